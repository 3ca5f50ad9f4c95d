//! One key, one order: what every repeat of a request gets.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use demo::testing::Database;
use futures_util::future::join_all;
use reqwest::Method;
use sqlx::Executor;
use support::{Api, ORDER, rows, until};
use tokio::time::Instant;

#[tokio::test]
async fn the_first_request_creates_the_same_replays_and_another_is_refused() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;

    let first = api.create("seed-1", ORDER).await;
    assert_eq!(first.status, 201);
    let json = first.json();
    let id = first.order_id();
    assert_eq!((&json["status"], &json["amountCents"]), (&"created".into(), &2599.into()));
    assert_eq!((&json["customerId"], &json["currency"]), (&42.into(), &"USD".into()));
    assert_eq!((&json["version"], json["createdAt"].is_string()), (&1.into(), true));
    assert!(json.get("customerEmail").is_none());
    assert_eq!(first.header("location"), Some(format!("/orders/{id}").as_str()));
    assert_eq!(first.header("idempotency-key"), Some("seed-1"));
    assert!(!first.replayed());

    let again = api.create("seed-1", ORDER).await;
    assert_eq!((again.status, &again.body), (201, &first.body), "byte for byte");
    assert_eq!(again.header("location"), first.header("location"));
    assert_eq!(again.header("content-type"), first.header("content-type"));
    assert!(again.replayed());

    let other = api.create("seed-1", r#"{"customerId": 42, "amountCents": 2600}"#).await;
    other.is_problem(409, "idempotency_key_reused");
    assert_eq!((other.json()["retryable"].as_bool(), other.header("retry-after")), (Some(false), None));
    assert!(!String::from_utf8_lossy(&other.body).contains(&id), "nothing of the stored answer is shown");

    assert_eq!(rows(&database.pool().await).await, (1, 1, 1));
    assert_eq!(api.get(&format!("/orders/{id}")).await.body, first.body);
    api.stop().await;
}

#[tokio::test]
async fn spelling_of_key_and_body_does_not_make_another_request() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let first = api.create("k-1", ORDER).await;
    for (key, body) in [
        ("\"k-1\"", ORDER),
        ("k-1", r#"{"amountCents":2599.0,"customerId":42}"#),
        ("k-1", r#"{"currency":"USD","amount\u0043ents":2599,  "customerId":42}"#),
    ] {
        let again = api.create(key, body).await;
        assert!(again.replayed(), "{key} {body}: {again:?}");
        assert_eq!(again.body, first.body);
        assert_eq!(again.header("idempotency-key"), Some(key), "echoed as sent");
    }
    api.stop().await;
}

/// The rules become stricter while a client still repeats what it was promised an answer for.
#[tokio::test]
async fn a_stored_request_that_is_no_longer_valid_still_replays() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let pool = database.pool().await;
    let first = api.create("k-1", r#"{"customerId":42,"amountCents":1}"#).await;
    // As if an amount of 0 had been accepted then.
    let body = r#"{"customerId":42,"amountCents":0}"#;
    let fingerprint = orders::domain::Fingerprint::create(42, 0, "USD", None);
    sqlx::query("update idempotency_keys set fingerprint = $1")
        .bind(fingerprint.as_bytes())
        .execute(&pool)
        .await
        .unwrap();
    let again = api.create("k-1", body).await;
    assert_eq!((again.status, &again.body, again.replayed()), (201, &first.body, true));

    // Another request, another key, an expired key: judged by the rules alone.
    for (key, body) in [("k-1", r#"{"customerId":43,"amountCents":0}"#), ("k-2", body)] {
        let invalid = api.create(key, body).await;
        invalid.is_problem(422, "validation_failed");
        assert!(!String::from_utf8_lossy(&invalid.body).contains(&first.order_id()));
    }
    pool.execute("update idempotency_keys set created_at = now() - interval '73 h', expires_at = now()")
        .await
        .unwrap();
    api.create("k-1", body).await.is_problem(422, "validation_failed");
    assert_eq!(rows(&pool).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn a_key_used_for_another_operation_is_reused() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let order = api.create("k-1", ORDER).await.order_id();
    api.cancel(&order, "k-1").await.is_problem(409, "idempotency_key_reused");
    assert_eq!(api.cancel(&order, "k-2").await.status, 200);
    api.create("k-2", ORDER).await.is_problem(409, "idempotency_key_reused");
    api.stop().await;
}

#[tokio::test]
async fn fifty_concurrent_requests_with_one_key_make_one_order_and_one_event() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let answers = join_all((0..50).map(|_| api.create("k-1", ORDER))).await;
    assert!(answers.iter().all(|a| a.status == 201 && a.body == answers[0].body), "{answers:?}");
    assert_eq!(answers.iter().filter(|a| !a.replayed()).count(), 1);
    assert_eq!(rows(&database.pool().await).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn two_apis_on_one_database_behave_as_one() {
    let database = Database::create().await;
    let (one, two) = (Api::start(database.url()).await, Api::start(database.url()).await);
    // Twenty keys, each sent ten times, in opposite orders over the two: batches overlap.
    let requests = (0..200).map(|i| {
        let (api, key) = if i % 2 == 0 { (&one, i / 2 % 20) } else { (&two, 19 - i / 2 % 20) };
        async move { (key, api.create(&format!("k-{key}"), ORDER).await) }
    });
    let answers = join_all(requests).await;
    for key in 0..20 {
        let of_key: Vec<_> = answers.iter().filter(|(k, _)| *k == key).map(|(_, answer)| answer).collect();
        assert_eq!(of_key.len(), 10);
        assert!(of_key.iter().all(|a| a.status == 201 && a.body == of_key[0].body), "{of_key:?}");
        assert_eq!(of_key.iter().filter(|a| !a.replayed()).count(), 1);
    }
    assert_eq!(rows(&database.pool().await).await, (20, 20, 20));
    one.stop().await;
    two.stop().await;
}

/// Whether the statement that creates orders waits for a lock.
const WAITS_FOR_A_LOCK: &str = "select exists (select from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock' and query like '%claimed%')";

const FOREIGN_KEY_ROW: &str = "insert into idempotency_keys
    (client_id, key, operation, fingerprint, order_id, response_status, response_headers, response_body, expires_at)
    values ('anonymous', 'k-1', 'orders.create', sha256('foreign'), gen_random_uuid(), 201, '{}', '',
            clock_timestamp() + interval '1 hour')";

#[tokio::test]
async fn a_key_held_by_a_running_transaction_is_in_progress_and_nobody_else_waits() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute(FOREIGN_KEY_ROW).await.unwrap();

    let began = Instant::now();
    let held = async {
        let answer = api.create("k-1", ORDER).await;
        (answer, began.elapsed())
    };
    let keys: Vec<_> = (0..20).map(|i| format!("other-{i}")).collect();
    let others = async {
        until(&pool, WAITS_FOR_A_LOCK).await;
        let began = Instant::now();
        let others = join_all(keys.iter().map(|key| api.create(key, ORDER))).await;
        (others, began.elapsed())
    };
    let ((answer, waited), (others, others_waited)) = tokio::join!(held, others);
    answer.is_problem(409, "request_in_progress");
    assert_eq!((answer.json()["retryable"].as_bool(), answer.header("retry-after")), (Some(true), Some("1")));
    assert!(waited >= Duration::from_millis(450), "it waits for the other: {waited:?}");
    assert!(others.iter().all(|a| a.status == 201));
    assert!(others_waited < Duration::from_millis(300), "{others_waited:?}");

    foreign.rollback().await.unwrap();
    assert_eq!(api.create("k-1", ORDER).await.status, 201, "a rolled back key is free");
    api.stop().await;
}

#[tokio::test]
async fn a_key_whose_holder_commits_during_the_wait_is_judged_by_what_it_committed() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute(FOREIGN_KEY_ROW).await.unwrap();
    let commit = async {
        until(&pool, WAITS_FOR_A_LOCK).await;
        foreign.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(api.create("k-1", ORDER), commit);
    answer.is_problem(409, "idempotency_key_reused");
    api.stop().await;
}

#[tokio::test]
async fn a_key_whose_holder_leaves_the_same_request_behind_is_replayed() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let first = api.create("k-1", ORDER).await;
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("delete from idempotency_keys").await.unwrap();
    let keep = async {
        until(&pool, WAITS_FOR_A_LOCK).await;
        foreign.rollback().await.unwrap();
    };
    let (answer, ()) = tokio::join!(api.create("k-1", ORDER), keep);
    assert_eq!((answer.status, answer.replayed(), &answer.body), (201, true, &first.body));
    assert_eq!(rows(&pool).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn a_key_whose_holder_rolls_back_during_the_wait_is_taken() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute(FOREIGN_KEY_ROW).await.unwrap();
    let rollback = async {
        until(&pool, WAITS_FOR_A_LOCK).await;
        foreign.rollback().await.unwrap();
    };
    let (answer, ()) = tokio::join!(api.create("k-1", ORDER), rollback);
    assert_eq!(answer.status, 201);
    assert!(!answer.replayed());
    assert_eq!(rows(&pool).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn another_lock_is_not_reported_as_request_in_progress() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    for table in
        ["lock table orders in access exclusive mode", "lock table idempotency_keys in access exclusive mode"]
    {
        let mut foreign = pool.begin().await.unwrap();
        foreign.execute(table).await.unwrap();
        let answer = api.create("k-1", ORDER).await;
        answer.is_problem(503, "database_unavailable");
        assert_eq!(answer.header("retry-after"), Some("1"));
        foreign.rollback().await.unwrap();
    }
    // A short one, as a migration takes it, is waited out.
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("lock table orders in access exclusive mode").await.unwrap();
    let release = async {
        until(&pool, WAITS_FOR_A_LOCK).await;
        foreign.rollback().await.unwrap();
    };
    let (answer, ()) = tokio::join!(api.create("k-1", ORDER), release);
    assert_eq!(answer.status, 201);
    assert_eq!(rows(&pool).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn an_expired_key_is_a_new_request() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let first = api.create("k-1", ORDER).await;
    let kept: bool = sqlx::query_scalar(
        "select expires_at - created_at between interval '72 h' - interval '1 min' and interval '72 h' from idempotency_keys",
    )
    .fetch_one(&pool)
    .await
    .unwrap();
    assert!(kept);
    pool.execute("update idempotency_keys set created_at = created_at - interval '80 h', expires_at = expires_at - interval '80 h'")
        .await
        .unwrap();
    let second = api.create("k-1", ORDER).await;
    assert_eq!(second.status, 201);
    assert!(!second.replayed());
    assert_ne!(second.order_id(), first.order_id());
    assert_eq!(rows(&pool).await, (2, 1, 2));
    api.stop().await;
}

#[tokio::test]
async fn an_order_that_changed_since_still_replays_its_first_answer() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let first = api.create("k-1", ORDER).await;
    assert_eq!(api.cancel(&first.order_id(), "c-1").await.status, 200);
    let again = api.create("k-1", ORDER).await;
    assert_eq!((again.status, &again.body, again.replayed()), (201, &first.body, true));
    api.stop().await;
}

#[tokio::test]
async fn a_validation_error_is_not_stored() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    api.create("k-1", r#"{"customerId": 42, "amountCents": 0}"#).await.is_problem(422, "validation_failed");
    assert_eq!(api.create("k-1", ORDER).await.status, 201);
    api.stop().await;
}

#[tokio::test]
async fn the_work_goes_on_when_the_client_leaves_and_the_retry_replays() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("lock table orders in access exclusive mode").await.unwrap();
    {
        let request = api.create("k-1", ORDER);
        let accepted = until(&pool, WAITS_FOR_A_LOCK);
        tokio::select! { answer = request => panic!("{answer:?}"), () = accepted => {} }
        // Dropping the request closes its connection.
    }
    foreign.rollback().await.unwrap();
    until(&pool, "select count(*) = 1 from orders").await;
    assert!(api.create("k-1", ORDER).await.replayed());
    assert_eq!(rows(&pool).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn a_well_formed_trace_travels_with_the_event_and_a_broken_one_does_not() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (key, trace) in [("good", parent), ("broken", "00-zz-1-01")] {
        let headers: [(&str, &[u8]); 4] = [
            ("content-type", b"application/json; charset=UTF-8"),
            ("idempotency-key", key.as_bytes()),
            ("traceparent", trace.as_bytes()),
            ("tracestate", b"vendor=1"),
        ];
        assert_eq!(api.send(Method::POST, "/orders", &headers, ORDER).await.status, 201);
    }
    let headers: Vec<serde_json::Value> =
        sqlx::query_scalar("select headers from outbox order by seq").fetch_all(&pool).await.unwrap();
    assert_eq!(
        headers,
        [serde_json::json!({"traceparent": parent, "tracestate": "vendor=1"}), serde_json::json!({})]
    );
    api.stop().await;
}
