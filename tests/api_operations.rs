//! What an operator sees of the API, and what it does without being asked.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use demo::testing::{Database, eventually};
use reqwest::Method;
use sqlx::{AssertSqlSafe, Executor, PgPool};
use support::{Api, ORDER, until};

const DELETED: &str = "idempotency_keys_expired_total";

/// Keys 1 to `expired` are past their time by 1, 2, 3 … seconds; ten others are not.
async fn fill(pool: &PgPool, expired: i64) {
    pool.execute(AssertSqlSafe(format!(
        "insert into idempotency_keys (client_id, key, operation, fingerprint, order_id, response_status,
                                       response_headers, response_body, created_at, expires_at)
         select 'anonymous', 'k-' || i, 'orders.create', sha256('x'), gen_random_uuid(), 201, '{{}}', '',
                now() - interval '80 h',
                case when i <= {expired} then now() - i * interval '1 s' else now() + i * interval '1 s' end
           from generate_series(1, {expired} + 10) i"
    )))
    .await
    .unwrap();
}

const ALL_BUT_TEN_GONE: &str = "select count(*) = 10 from idempotency_keys";

/// The deletions that the API has counted, once there are `expected` over all of `apis`.
async fn deleted(apis: &[&Api], expected: f64) -> Vec<f64> {
    eventually("all deletions to be counted", Duration::from_secs(20), async || {
        let mut counts = Vec::new();
        for api in apis {
            counts.push(api.get("/metrics").await.metric(DELETED));
        }
        (counts.iter().sum::<f64>() == expected).then_some(counts)
    })
    .await
}

#[tokio::test]
async fn expired_keys_are_deleted_and_the_others_stay() {
    let database = Database::create().await;
    let pool = database.pool().await;
    fill(&pool, 2_500).await;
    let api = Api::start(database.url()).await;
    until(&pool, ALL_BUT_TEN_GONE).await;
    let alive: i64 = sqlx::query_scalar("select count(*) from idempotency_keys where expires_at > now()")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(alive, 10);
    deleted(&[&api], 2_500.0).await;
    api.stop().await;
}

#[tokio::test]
async fn two_processes_share_the_expired_keys_without_waiting_for_each_other() {
    let database = Database::create().await;
    let pool = database.pool().await;
    fill(&pool, 2_500).await;
    // Someone is deleting the oldest: they are passed over, not waited for.
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("select from idempotency_keys order by expires_at limit 500 for update").await.unwrap();
    let one = Api::start(database.url()).await;
    until(&pool, "select count(*) = 510 from idempotency_keys").await;
    foreign.rollback().await.unwrap();
    let two = Api::start(database.url()).await;
    until(&pool, ALL_BUT_TEN_GONE).await;
    assert_eq!(deleted(&[&one, &two], 2_500.0).await, [2_000.0, 500.0]);
    one.stop().await;
    two.stop().await;

    // Started together, every key is deleted and counted once.
    pool.execute("truncate idempotency_keys").await.unwrap();
    fill(&pool, 20_000).await;
    let (one, two) = tokio::join!(Api::start(database.url()), Api::start(database.url()));
    until(&pool, ALL_BUT_TEN_GONE).await;
    deleted(&[&one, &two], 20_000.0).await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test]
async fn the_metrics_count_requests_and_how_each_key_was_judged() {
    let database = Database::create().await;
    let api = Api::start(database.url()).await;
    let order = api.create("k-1", ORDER).await.order_id();
    api.create("k-1", ORDER).await;
    api.create("k-1", r#"{"customerId": 1, "amountCents": 1}"#)
        .await
        .is_problem(409, "idempotency_key_reused");
    api.create("k-2", "{}").await.is_problem(422, "validation_failed");
    api.cancel(&order, "c-1").await;
    api.cancel(&order, "c-2").await.is_problem(409, "order_not_cancellable");
    api.cancel(&order, "c-2").await;
    api.cancel(&events::OrderId::new().to_string(), "c-3").await.is_problem(404, "order_not_found");
    for path in ["/no/such/path", "/wp-admin", "/orders/x/y/z"] {
        api.get(path).await.is_problem(404, "not_found");
    }
    api.send(Method::from_bytes(b"BREW").unwrap(), "/orders", &[], "")
        .await
        .is_problem(405, "method_not_allowed");

    let metrics = api.get("/metrics").await;
    assert!(metrics.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let outcomes = [
        ("orders.create", "created", 1.0),
        ("orders.create", "replayed", 1.0),
        ("orders.create", "reused", 1.0),
        ("orders.cancel", "cancelled", 1.0),
        ("orders.cancel", "refused", 1.0),
        ("orders.cancel", "replayed", 1.0),
        ("orders.cancel", "not_found", 1.0),
    ];
    for (operation, outcome, count) in outcomes {
        let name = format!("idempotency_requests_total{{operation=\"{operation}\",outcome=\"{outcome}\"}}");
        assert_eq!(metrics.metric(&name), count, "{name}");
    }
    let requests = [
        ("POST", "/orders", "201", 2.0),
        ("POST", "/orders", "409", 1.0),
        ("POST", "/orders", "422", 1.0),
        ("POST", "/orders/{order_id}/cancel", "200", 1.0),
        ("GET", "unmatched", "404", 3.0),
        ("other", "/orders", "405", 1.0),
    ];
    for (method, route, status, count) in requests {
        let name =
            format!("http_requests_total{{method=\"{method}\",route=\"{route}\",status=\"{status}\"}}");
        assert_eq!(metrics.metric(&name), count, "{name}");
    }
    let text = String::from_utf8_lossy(&metrics.body);
    assert!(!text.contains("wp-admin") && !text.contains("BREW") && !text.contains(&order), "{text}");
    let posts = "http_request_duration_seconds_count{method=\"POST\",route=\"/orders\"}";
    assert_eq!(metrics.metric(posts), 4.0);
    assert_eq!(
        (metrics.metric("writer_batch_size_count"), metrics.metric("writer_batch_size_sum")),
        (3.0, 3.0)
    );
    assert!(metrics.metric("database_pool_connections{pool=\"readers\",state=\"idle\"}") >= 1.0, "{text}");
    assert!(text.contains("database_pool_connections{pool=\"waiters\",state=\"busy\"}"));
    api.stop().await;
}

#[tokio::test]
async fn the_metrics_show_the_queue_while_it_is_full_and_what_it_refused() {
    let database = Database::create().await;
    let (api, pool) = (Api::start_with_queue(database.url(), 2).await, database.pool().await);
    let mut foreign = pool.begin().await.unwrap();
    foreign.execute("lock table orders in access exclusive mode").await.unwrap();
    let keys: Vec<_> = (0..30).map(|i| format!("k-{i}")).collect();
    let requests = futures_util::future::join_all(keys.iter().map(|key| api.create(key, ORDER)));
    let watch = async {
        let refused = eventually("the queue to be full", Duration::from_secs(20), async || {
            let metrics = api.get("/metrics").await;
            let refused = "idempotency_requests_total{operation=\"orders.create\",outcome=\"overloaded\"}";
            (metrics.metric("writer_queue_depth") == 2.0).then(|| metrics.metric(refused))
        })
        .await;
        foreign.rollback().await.unwrap();
        refused
    };
    let (answers, _) = tokio::join!(requests, watch);
    let refused = answers.iter().filter(|answer| answer.status == 503).count();
    let metrics = api.get("/metrics").await;
    assert_eq!(metrics.metric("writer_queue_depth"), 0.0);
    let overloaded = "idempotency_requests_total{operation=\"orders.create\",outcome=\"overloaded\"}";
    assert_eq!(metrics.metric(overloaded), refused as f64);
    assert!(refused > 0);
    api.stop().await;
}
