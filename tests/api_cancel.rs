//! What a client can rely on when it cancels: the same situations as for a new order, each with
//! its own test.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use demo::testing::Database;
use reqwest::Method;
use sqlx::{AssertSqlSafe, Executor, PgPool};
use support::proxy::{Mode, Proxy};
use support::{Answer, Api, ORDER, Process, rows, until};
use tokio::time::Instant;

/// Whether a statement of the API waits for a lock.
const WAITS: &str = "select exists (select from pg_stat_activity where datname = current_database()
    and application_name = 'orders' and wait_event_type = 'Lock')";

async fn start() -> (Database, Api, PgPool, String) {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let order = api.create("k-1", ORDER).await.order_id();
    (database, api, pool, order)
}

async fn cancel_with(api: &Api, order: &str, headers: &[(&str, &[u8])], body: &str) -> Answer {
    api.send(Method::POST, &format!("/orders/{order}/cancel"), headers, body.to_owned()).await
}

/// A key that a transaction has taken and not yet committed.
async fn hold(foreign: &mut sqlx::Transaction<'static, sqlx::Postgres>, key: &str) {
    let claim = format!(
        "insert into idempotency_keys (client_id, key, operation, fingerprint, order_id, response_status,
                                       response_headers, response_body, expires_at)
         values ('anonymous', '{key}', 'orders.cancel', sha256('foreign'), gen_random_uuid(), 200, '{{}}', '',
                 clock_timestamp() + interval '1 hour')"
    );
    foreign.execute(AssertSqlSafe(claim)).await.unwrap();
}

#[tokio::test]
async fn a_cancel_without_a_key_is_refused() {
    let (_database, api, pool, order) = start().await;
    cancel_with(&api, &order, &[], "").await.is_problem(400, "idempotency_key_missing");
    assert_eq!(rows(&pool).await, (1, 1, 1));
    api.stop().await;
}

#[tokio::test]
async fn a_cancel_echoes_its_key_and_its_spelling_makes_no_other_request() {
    let (_database, api, pool, order) = start().await;
    let first = api.cancel(&order, "c-1").await;
    assert_eq!((first.status, first.header("idempotency-key")), (200, Some("c-1")));
    assert!(!first.replayed());
    let json: (&str, &[u8]) = ("content-type", b"application/json");
    for (key, body) in [("\"c-1\"", ""), ("c-1", "{}"), ("c-1", " { } ")] {
        let again = cancel_with(&api, &order, &[json, ("idempotency-key", key.as_bytes())], body).await;
        assert_eq!((again.status, again.replayed(), &again.body), (200, true, &first.body), "{key} {body}");
        assert_eq!(again.header("idempotency-key"), Some(key));
    }
    assert_eq!(rows(&pool).await, (1, 2, 2));
    api.stop().await;
}

#[tokio::test]
async fn a_cancel_whose_key_is_held_elsewhere_waits_and_is_then_in_progress() {
    let (_database, api, pool, order) = start().await;
    let mut foreign = pool.begin().await.unwrap();
    hold(&mut foreign, "c-1").await;
    let began = Instant::now();
    let answer = api.cancel(&order, "c-1").await;
    answer.is_problem(409, "request_in_progress");
    assert_eq!((answer.json()["retryable"].as_bool(), answer.header("retry-after")), (Some(true), Some("1")));
    assert!(began.elapsed() >= Duration::from_millis(450));
    foreign.rollback().await.unwrap();
    assert_eq!(api.cancel(&order, "c-1").await.status, 200);
    api.stop().await;
}

#[tokio::test]
async fn a_cancel_is_judged_by_what_the_holder_of_its_key_committed() {
    let (_database, api, pool, order) = start().await;
    let mut foreign = pool.begin().await.unwrap();
    hold(&mut foreign, "c-1").await;
    let commit = async {
        until(&pool, WAITS).await;
        foreign.commit().await.unwrap();
    };
    let (answer, ()) = tokio::join!(api.cancel(&order, "c-1"), commit);
    answer.is_problem(409, "idempotency_key_reused");
    assert_eq!((answer.json()["retryable"].as_bool(), answer.header("retry-after")), (Some(false), None));
    assert_eq!(rows(&pool).await, (1, 2, 1));
    api.stop().await;
}

#[tokio::test]
async fn a_cancel_replays_when_the_holder_of_its_key_leaves_the_same_request_behind() {
    let (_database, api, pool, order) = start().await;
    let first = api.cancel(&order, "c-1").await;
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("delete from idempotency_keys where key = 'c-1'").await.unwrap();
    let keep = async {
        until(&pool, WAITS).await;
        foreign.rollback().await.unwrap();
    };
    let (answer, ()) = tokio::join!(api.cancel(&order, "c-1"), keep);
    assert_eq!((answer.status, answer.replayed(), &answer.body), (200, true, &first.body));
    api.stop().await;
}

#[tokio::test]
async fn an_invalid_cancel_is_not_stored() {
    let (_database, api, pool, order) = start().await;
    let headers: [(&str, &[u8]); 2] = [("content-type", b"application/json"), ("idempotency-key", b"c-1")];
    cancel_with(&api, &order, &headers, r#"{"why": 1}"#).await.is_problem(422, "validation_failed");
    assert_eq!(rows(&pool).await, (1, 1, 1));
    let answer = api.cancel(&order, "c-1").await;
    assert_eq!((answer.status, answer.replayed()), (200, false));
    api.stop().await;
}

#[tokio::test]
async fn a_cancel_that_fails_for_now_is_not_stored() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let proxy = Proxy::before(database.url()).await;
    let api = Api::start(&proxy.url()).await;
    let order = api.create("k-1", ORDER).await.order_id();
    proxy.set(Mode::Refuse);
    pool.execute(
        "select pg_terminate_backend(pid) from pg_stat_activity
          where datname = current_database() and application_name = 'orders'",
    )
    .await
    .unwrap();
    let away = api.cancel(&order, "c-1").await;
    away.is_problem(503, "database_unavailable");
    assert_eq!(away.header("retry-after"), Some("1"));
    proxy.set(Mode::Pass);

    pool.execute("alter table outbox add constraint no_cancel check (version = 1)").await.unwrap();
    api.cancel(&order, "c-1").await.is_problem(500, "internal_error");
    assert_eq!(rows(&pool).await, (1, 1, 1));
    pool.execute("alter table outbox drop constraint no_cancel").await.unwrap();
    let answer = api.cancel(&order, "c-1").await;
    assert_eq!((answer.status, answer.replayed()), (200, false));
    assert_eq!(rows(&pool).await, (1, 2, 2));
    api.stop().await;
}

#[tokio::test]
async fn a_crash_before_the_cancel_is_committed_leaves_nothing_and_the_retry_runs() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mut process = Process::start(&database).await;
    let order = process.create("k-1", ORDER).await.unwrap().order_id();
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("select from orders for update").await.unwrap();
    {
        let request = process.cancel(&order, "c-1");
        tokio::select! { answer = request => panic!("{answer:?}"), () = until(&pool, WAITS) => {} }
    }
    process.kill().await;
    foreign.rollback().await.unwrap();
    let process = Process::start(&database).await;
    let answer = process.cancel(&order, "c-1").await.unwrap();
    assert_eq!((answer.status, answer.replayed()), (200, false), "{answer:?}");
    assert_eq!(rows(&pool).await, (1, 2, 2));
}

#[tokio::test]
async fn a_crash_after_the_cancel_was_committed_replays_its_answer() {
    let database = Database::create().await;
    let mut process = Process::start(&database).await;
    let order = process.create("k-1", ORDER).await.unwrap().order_id();
    let first = process.cancel(&order, "c-1").await.unwrap();
    assert_eq!(first.status, 200);
    process.kill().await;
    let process = Process::start(&database).await;
    let again = process.cancel(&order, "c-1").await.unwrap();
    assert_eq!((again.status, again.replayed(), &again.body), (200, true, &first.body));
    assert_eq!(rows(&database.pool().await).await, (1, 2, 2));
}

#[tokio::test]
async fn a_cancel_whose_outcome_stays_unknown_says_so_and_the_retry_replays() {
    let database = Database::create().await;
    let proxy = Proxy::before(database.url()).await;
    let api = Api::start(&proxy.url()).await;
    let order = api.create("k-1", ORDER).await.order_id();
    proxy.set(Mode::Cut { marker: "COMMIT".into(), then: Box::new(Mode::Refuse) });
    let answer = api.cancel(&order, "c-1").await;
    answer.is_problem(503, "outcome_unknown");
    assert_eq!((answer.json()["retryable"].as_bool(), answer.header("retry-after")), (Some(true), Some("1")));
    proxy.set(Mode::Pass);
    let again = api.cancel(&order, "c-1").await;
    assert_eq!((again.status, again.replayed()), (200, true), "it had been committed: {again:?}");
    assert_eq!(rows(&database.pool().await).await, (1, 2, 2));
    api.stop().await;
}

#[tokio::test]
async fn the_key_of_another_clients_cancel_is_independent() {
    let (_database, api, pool, order) = start().await;
    let other = api.create("k-2", ORDER).await.order_id();
    assert_eq!(api.cancel(&other, "c-1").await.status, 200);
    pool.execute("update idempotency_keys set client_id = 'someone' where key = 'c-1'").await.unwrap();
    let answer = api.cancel(&order, "c-1").await;
    assert_eq!((answer.status, answer.replayed(), answer.order_id()), (200, false, order));
    api.stop().await;
}

#[tokio::test]
async fn an_expired_key_of_a_cancel_is_a_new_request() {
    let (_database, api, pool, order) = start().await;
    assert_eq!(api.cancel(&order, "c-1").await.status, 200);
    pool.execute(
        "update idempotency_keys set created_at = created_at - interval '80 h',
                                     expires_at = expires_at - interval '80 h' where key = 'c-1'",
    )
    .await
    .unwrap();
    let answer = api.cancel(&order, "c-1").await;
    answer.is_problem(409, "order_not_cancellable");
    assert!(!answer.replayed());
    assert_eq!(rows(&pool).await, (1, 2, 2));
    api.stop().await;
}

#[tokio::test]
async fn a_cancel_goes_on_when_the_client_leaves() {
    let (_database, api, pool, order) = start().await;
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("select from orders for update").await.unwrap();
    {
        let request = api.cancel(&order, "c-1");
        tokio::select! { answer = request => panic!("{answer:?}"), () = until(&pool, WAITS) => {} }
    }
    foreign.rollback().await.unwrap();
    until(&pool, "select bool_and(status = 'cancelled') from orders").await;
    let again = api.cancel(&order, "c-1").await;
    assert_eq!((again.status, again.replayed()), (200, true));
    api.stop().await;
}
