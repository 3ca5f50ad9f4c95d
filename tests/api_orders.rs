//! What a client can do with its orders besides creating them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use demo::testing::Database;
use futures_util::future::join_all;
use reqwest::Method;
use sqlx::Executor;
use support::{Api, ORDER, rows, until};

const WITH_EMAIL: &str =
    r#"{"customerId":7,"amountCents":100,"currency":"EUR","customerEmail":"ada@example.com"}"#;

#[tokio::test]
async fn an_order_is_cancelled_once_and_every_later_cancel_is_a_stored_refusal() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let order = api.create("k-1", WITH_EMAIL).await.order_id();

    let first = api.cancel(&order, "c-1").await;
    let json = first.json();
    assert_eq!((first.status, &json["status"], &json["version"]), (200, &"cancelled".into(), &2.into()));
    assert!(json["cancelledAt"].is_string());
    assert_eq!(json["customerEmail"], "ada@example.com");
    assert_eq!(api.get(&format!("/orders/{order}")).await.body, first.body);

    let again = api.cancel(&order, "c-1").await;
    assert_eq!((again.status, &again.body, again.replayed()), (200, &first.body, true));

    let refused = api.cancel(&order, "c-2").await;
    refused.is_problem(409, "order_not_cancellable");
    assert!(!refused.replayed());
    let again = api.cancel(&order, "c-2").await;
    again.is_problem(409, "order_not_cancellable");
    assert!(again.replayed());
    assert_eq!(again.body, refused.body);

    let pool = database.pool().await;
    let events: Vec<(i32, String)> =
        sqlx::query_as("select version, type from outbox order by seq").fetch_all(&pool).await.unwrap();
    assert_eq!(events, [(1, "order.created.v1".into()), (2, "order.cancelled.v1".into())]);
    let personal: bool = sqlx::query_scalar("select bool_or(payload::text like '%@%') from outbox")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert!(!personal, "no address in an event");
    api.stop().await;
}

#[tokio::test]
async fn concurrent_cancels_make_exactly_one_event() {
    let database = Database::create().await;
    let (one, two) = (Api::start(database.url()).await, Api::start(database.url()).await);
    let order = one.create("k-1", ORDER).await.order_id();
    // Ten keys, each sent twice.
    let keys: Vec<_> = (0..20).map(|i| format!("c-{}", i % 10)).collect();
    let cancels =
        keys.iter().enumerate().map(|(i, key)| if i % 2 == 0 { &one } else { &two }.cancel(&order, key));
    let answers = join_all(cancels).await;
    let fresh: Vec<_> = answers.iter().filter(|a| !a.replayed()).collect();
    assert_eq!(fresh.iter().filter(|a| a.status == 200).count(), 1, "{answers:?}");
    assert_eq!(fresh.iter().filter(|a| a.status == 409).count(), 9, "{answers:?}");
    assert_eq!(rows(&database.pool().await).await, (1, 11, 2));
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn cancels_that_meet_at_the_order_agree_on_one_event() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let order = api.create("k-1", ORDER).await.order_id();
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("select from orders for update").await.unwrap();
    let release = async {
        // Both have their key and stand before the order's row.
        until(
            &pool,
            "select count(*) = 2 from pg_stat_activity where datname = current_database()
                       and application_name = 'orders' and wait_event_type = 'Lock'",
        )
        .await;
        foreign.rollback().await.unwrap();
    };
    let (one, two, ()) = tokio::join!(api.cancel(&order, "c-1"), api.cancel(&order, "c-2"), release);
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409], "{one:?} {two:?}");
    assert_eq!(rows(&pool).await, (1, 3, 2));
    api.stop().await;
}

#[tokio::test]
async fn one_key_for_two_orders_cancels_only_the_first() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let (a, b) = (api.create("a", ORDER).await.order_id(), api.create("b", ORDER).await.order_id());
    assert_eq!(api.cancel(&a, "c-1").await.status, 200);
    api.cancel(&b, "c-1").await.is_problem(409, "idempotency_key_reused");
    assert_eq!(api.get(&format!("/orders/{b}")).await.json()["status"], "created");
    api.stop().await;
}

#[tokio::test]
async fn a_missing_order_is_404_and_its_key_stays_free() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let unknown = events::OrderId::new();
    api.cancel(&unknown.to_string(), "c-1").await.is_problem(404, "order_not_found");
    for path in [format!("/orders/{unknown}"), format!("/orders/{unknown}/events"), "/orders/nonsense".into()]
    {
        api.get(&path).await.is_problem(404, "order_not_found");
    }
    assert_eq!(rows(&database.pool().await).await, (0, 0, 0));
    let order = api.create("k-1", ORDER).await.order_id();
    assert_eq!(api.cancel(&order, "c-1").await.status, 200);
    api.stop().await;
}

#[tokio::test]
async fn another_clients_order_is_not_there() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let order = api.create("k-1", ORDER).await.order_id();
    pool.execute(
        "update orders set client_id = 'someone'; update idempotency_keys set client_id = 'someone'",
    )
    .await
    .unwrap();
    api.get(&format!("/orders/{order}")).await.is_problem(404, "order_not_found");
    api.get(&format!("/orders/{order}/events")).await.is_problem(404, "order_not_found");
    api.cancel(&order, "c-1").await.is_problem(404, "order_not_found");
    assert_eq!(api.get("/orders").await.json()["orders"], serde_json::json!([]));
    let own = api.create("k-1", ORDER).await;
    assert_eq!((own.status, own.replayed()), (201, false), "another client's key is independent");
    api.stop().await;
}

#[tokio::test]
async fn a_list_goes_through_all_orders_newest_first_and_once_while_orders_are_added() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let mut made = Vec::new();
    for i in 0..7 {
        made.push(api.create(&format!("k-{i}"), ORDER).await.order_id());
    }
    api.cancel(&made[3], "c-1").await;
    let mut seen = Vec::new();
    let mut path = "/orders?limit=3".to_owned();
    loop {
        let page = api.get(&path).await;
        assert_eq!(page.status, 200);
        let json = page.json();
        seen.extend(
            json["orders"].as_array().unwrap().iter().map(|o| o["orderId"].as_str().unwrap().to_owned()),
        );
        let Some(cursor) = json["nextCursor"].as_str() else { break };
        path = format!("/orders?limit=3&cursor={cursor}");
        api.create(&format!("new-{}", seen.len()), ORDER).await;
    }
    made.reverse();
    assert_eq!(seen, made);
    let cancelled = api.get("/orders?status=cancelled").await.json();
    assert_eq!(cancelled["orders"].as_array().unwrap().len(), 1);
    assert_eq!(cancelled["orders"][0]["orderId"], made[3]);
    api.stop().await;
}

#[tokio::test]
async fn an_order_that_the_client_already_has_is_not_sent_again() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let order = api.create("k-1", ORDER).await.order_id();
    let path = format!("/orders/{order}");
    let whole = api.get(&path).await;
    let tag = whole.header("etag").unwrap().to_owned();
    assert!(tag.starts_with('"') && tag.ends_with('"'), "strong: {tag}");
    let ask =
        async |list: &str| api.send(Method::GET, &path, &[("if-none-match", list.as_bytes())], "").await;
    for list in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
        let answer = ask(&list).await;
        assert_eq!((answer.status, answer.body.len()), (304, 0), "{list}");
        assert_eq!(answer.header("etag"), Some(tag.as_str()));
        assert_eq!(answer.header("content-type"), None);
    }
    assert_eq!(ask("\"x\"").await.body, whole.body);

    api.cancel(&order, "c-1").await;
    let changed = ask(&tag).await;
    assert_eq!((changed.status, &changed.json()["status"]), (200, &"cancelled".into()));
    assert_ne!(changed.header("etag"), Some(tag.as_str()));
    let none = format!("/orders/{}", events::OrderId::new());
    api.send(Method::GET, &none, &[("if-none-match", b"*")], "").await.is_problem(404, "order_not_found");
    api.stop().await;
}

#[tokio::test]
async fn the_history_shows_where_each_event_and_each_email_is() {
    let database = Database::create().await;
    let (api, pool) = (Api::start(database.url()).await, database.pool().await);
    let order = api.create("k-1", WITH_EMAIL).await.order_id();
    api.cancel(&order, "c-1").await;
    let path = format!("/orders/{order}/events");
    let history = api.get(&path).await.json();
    assert_eq!(history["orderId"], order);
    let states = |history: &serde_json::Value| -> Vec<_> {
        history["events"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| (e["version"].clone(), e["state"].clone()))
            .collect()
    };
    assert_eq!(states(&history), [(1.into(), "pending".into()), (2.into(), "pending".into())]);
    assert_eq!(history["events"][1]["type"], "order.cancelled.v1");
    assert!(history["events"][0].get("published").is_none());

    pool.execute(
        "insert into relay_sinks (sink, published)
           select 'kafka', range_agg(int8range(seq, seq, '[]')) from outbox;
         insert into inbox (consumer, event_id, aggregate_id, version, topic, kafka_partition, kafka_offset, published_at)
           select 'notify', event_id, aggregate_id, version, 'orders.events.v1', 3, 77, now() from outbox where version = 1;
         insert into relay_dead (sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers,
                                 created_at, cause, detail)
           select 'kafka', seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers, created_at,
                  'refused', 'too large' from outbox where version = 2;
         insert into notifications (notification_id, kind, order_id, order_version, recipient, message_id, data, state, sent_at)
           select gen_random_uuid(), 'order_created', order_id, 1, 'ada@example.com', 'm-1', '{}', 'sent', now() from orders",
    )
    .await
    .unwrap();
    let answer = api.get(&path).await;
    let history = answer.json();
    assert_eq!(states(&history), [(1.into(), "published".into()), (2.into(), "parked".into())]);
    let published = &history["events"][0]["published"];
    assert_eq!((&published["partition"], &published["offset"]), (&3.into(), &77.into()));
    assert!(published["time"].is_string());
    assert_eq!(history["emails"][0]["state"], "sent");
    assert!(history["emails"][0]["sentAt"].is_string());
    assert!(!String::from_utf8_lossy(&answer.body).contains("ada@"));

    // Published, but nobody has said where yet.
    pool.execute("delete from inbox").await.unwrap();
    let history = api.get(&path).await.json();
    assert_eq!(history["events"][0]["state"], "published");
    assert!(history["events"][0].get("published").is_none());
    api.stop().await;
}
