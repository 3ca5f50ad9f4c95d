//! The relay as an operator sees it: metrics, readiness and traces. Real PostgreSQL, real Kafka, real
//! processes.

#[path = "support/collector.rs"]
mod collector;
#[path = "support/outbox.rs"]
mod outbox;

use std::time::Duration;

use collector::{Collector, contains};
use demo::mailbox::Mailbox;
use demo::programs::Server;
use demo::services::free_port;
use demo::testing::{Database, Topic, eventually};
use outbox::settled;
use serde_json::Value;
use sqlx::{Executor, PgExecutor, PgPool};
use uuid::Uuid;

const NOWHERE: &str = "smtp://127.0.0.1:1";
const NO_BROKER: &str = "127.0.0.1:1";
const NO_DATABASE: &str = "postgres://nobody@127.0.0.1:1/nothing";
const SOON: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

fn relay(stages: &[&str], database: &str, brokers: &str, topic: &str, smtp: &str) -> Server {
    Server::relay_stages(stages, database, brokers, topic, smtp, &[]).expect("the relay starts")
}

/// An order with an address and its event, an hour old.
async fn order(database: impl PgExecutor<'_>) {
    let order = Uuid::now_v7();
    sqlx::query(
        "with placed as (
             insert into orders (order_id, client_id, customer_id, amount_cents, currency, customer_email, status,
                                 version, created_at)
             values ($1, 'test', 42, 2599, 'USD', 'ada@example.com', 'created', 1, now())
         )
         insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload, headers, created_at)
         values ($2, 'order', $1, 1, 'order.created.v1', $3, $4, now() - interval '1 hour')",
    )
    .bind(order)
    .bind(Uuid::now_v7())
    .bind(serde_json::json!({
        "orderId": order, "customerId": 42, "amountCents": 2599, "currency": "USD",
        "status": "created", "createdAt": "2026-01-01T00:00:00Z"
    }))
    .bind(serde_json::json!({"traceparent": format!("00-{TRACE}-{PARENT}-01")}))
    .execute(database)
    .await
    .expect("an order");
}

async fn page(relay: &Server, path: &str) -> Option<(u16, String)> {
    let answer = reqwest::get(format!("{}{path}", relay.url())).await.ok()?;
    Some((answer.status().as_u16(), answer.text().await.ok()?))
}

async fn metric(relay: &Server, name: &str) -> Option<f64> {
    let (_, text) = page(relay, "/metrics").await?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

/// Waits until the metrics are these, all at once.
async fn shows(relay: &Server, wanted: &[(&str, f64)]) {
    eventually(&format!("the metrics to be {wanted:?}"), SOON, async || {
        for (name, value) in wanted {
            if metric(relay, name).await? != *value {
                return None;
            }
        }
        Some(())
    })
    .await;
}

/// Waits until `/readyz` is 503 and the stage's problem contains `words`; and until the metrics say so.
async fn is_stuck(relay: &Server, stage: &str, words: &str) {
    eventually(&format!("{stage} to say {words}"), SOON, async || {
        let (status, text) = page(relay, "/readyz").await?;
        let page: Value = serde_json::from_str(&text).ok()?;
        let problem = page["stages"][stage]["problem"].as_str()?;
        (status == 503 && problem.contains(words)).then_some(())
    })
    .await;
    shows(relay, &[(&format!("relay_stage_ready{{stage=\"{stage}\"}}"), 0.0)]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_metrics_follow_events_from_the_outbox_to_the_mailbox() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(free_port().expect("a port")).await.expect("a mailbox");
    let relay = relay(&[], database.url(), topic.brokers(), topic.name(), &mailbox.smtp_url());
    for _ in 0..3 {
        order(&pool).await;
    }
    mailbox.wait_for(3, SOON).await.expect("three mails");
    shows(
        &relay,
        &[
            ("outbox_published_total", 3.0),
            ("outbox_commit_to_ack_seconds_count", 3.0),
            ("outbox_pending_events", 0.0),
            ("outbox_oldest_pending_age_seconds", 0.0),
            ("outbox_dead_events", 0.0),
            (r#"outbox_publish_failures_total{kind="permanent"}"#, 0.0),
            ("relay_leader", 1.0),
            ("relay_lease_epoch", 1.0),
            ("relay_paused", 0.0),
            ("relay_database_up", 1.0),
            (r#"relay_circuit_open{sink="kafka"}"#, 0.0),
            (r#"relay_stage_ready{stage="publish"}"#, 1.0),
            (r#"relay_stage_ready{stage="notify"}"#, 1.0),
            (r#"relay_stage_ready{stage="mail"}"#, 1.0),
            (r#"notifications_total{outcome="made"}"#, 3.0),
            ("notify_delay_seconds_count", 3.0),
            (r#"mail_attempts_total{outcome="sent"}"#, 3.0),
            ("mail_pending", 0.0),
            ("mail_unknown", 0.0),
            ("kafka_producer_queue_messages", 0.0),
        ],
    )
    .await;
    // An hour lies between the writing and the acknowledgement.
    let (_, text) = page(&relay, "/metrics").await.expect("the metrics");
    let waited = metric(&relay, "outbox_commit_to_ack_seconds_sum").await.expect("a sum");
    assert!((3.0 * 3600.0..3.0 * 3700.0).contains(&waited), "{waited}");
    eventually("a broker's statistics", SOON, async || {
        let (_, text) = page(&relay, "/metrics").await?;
        (text.contains("kafka_broker_up{broker=\"1\"} 1") && text.contains("kafka_broker_rtt_seconds{"))
            .then_some(())
    })
    .await;
    assert!(!text.contains("ada@example.com"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_told_while_kafka_is_away_and_a_stage_that_does_not_run_shows_nothing() {
    let database = Database::create().await;
    let pool = database.pool().await;
    order(&pool).await;
    let mut writer = pool.begin().await.expect("begin");
    writer
        .execute(
            "lock table outbox in row exclusive mode; select nextval(pg_get_serial_sequence('outbox', 'seq'))",
        )
        .await
        .expect("a number is drawn");
    for _ in 3..=8 {
        order(&pool).await;
    }
    // 1 and 3 wait, 2 is not committed yet, 4 is parked, 5 is on Kafka, 6 to 8 wait.
    pool.execute(
        "insert into relay_sinks (sink, published, paused_at, pause_reason) values ('kafka', '{[4,6)}', now(), 'a test');
         insert into relay_dead (sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers,
                                 created_at, cause, detail)
         select 'kafka', seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers, created_at,
                'refused', 'by the test' from outbox where seq = 4",
    )
    .await
    .expect("a sink");
    let relay = relay(&["publish"], database.url(), NO_BROKER, "nothing", NOWHERE);
    shows(
        &relay,
        &[
            ("outbox_pending_events", 5.0),
            ("outbox_holes", 1.0),
            ("outbox_dead_events", 1.0),
            ("relay_paused", 1.0),
            ("outbox_published_total", 0.0),
        ],
    )
    .await;
    let age = metric(&relay, "outbox_oldest_pending_age_seconds").await.expect("an age");
    assert!((3600.0..3700.0).contains(&age), "{age}");
    let (_, text) = page(&relay, "/metrics").await.expect("the metrics");
    assert!(!text.contains("mail_") && !text.contains("notif"), "{text}");
    writer.rollback().await.expect("the writer was there to the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_relays_one_is_the_leader_and_the_other_is_ready_and_tells_the_same_of_the_outbox() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let start = || relay(&["publish"], database.url(), topic.brokers(), topic.name(), NOWHERE);
    let relays = [start(), start()];
    pool.execute("insert into relay_sinks (sink) values ('another')").await.expect("a sink of somebody else");
    eventually("one leader and one that stands by", SOON, async || {
        let mut leaders = 0.0;
        for relay in &relays {
            leaders += metric(relay, "relay_leader").await?;
        }
        (leaders == 1.0).then_some(())
    })
    .await;
    for relay in &relays {
        shows(relay, &[("outbox_pending_events", 0.0), ("relay_lease_epoch", 1.0)]).await;
        assert_eq!(page(relay, "/readyz").await.map(|(status, _)| status), Some(200));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_database_every_stage_that_needs_it_is_stuck_and_no_old_gauge_is_shown() {
    let topic = Topic::create(1).await;
    let lost = relay(&["publish", "mail"], NO_DATABASE, topic.brokers(), topic.name(), NOWHERE);
    is_stuck(&lost, "publish", "PostgreSQL").await;
    is_stuck(&lost, "mail", "PostgreSQL").await;
    let (_, text) = page(&lost, "/metrics").await.expect("the metrics");
    assert!(text.contains("relay_database_up 0"), "{text}");
    assert!(!text.contains("outbox_pending_events") && !text.contains("mail_pending"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_with_work_and_no_kafka_is_stuck() {
    let database = Database::create().await;
    order(&database.pool().await).await;
    let relay = relay(&["publish"], database.url(), NO_BROKER, "nothing", NOWHERE);
    is_stuck(&relay, "publish", "Kafka").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn notify_is_stuck_without_kafka_and_when_it_cannot_commit_what_it_reads() {
    let database = Database::create().await;
    let deaf = relay(&["notify"], database.url(), NO_BROKER, "nothing", NOWHERE);
    is_stuck(&deaf, "notify", "Kafka").await;

    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    order(&pool).await;
    let _publisher = relay(&["publish"], database.url(), topic.brokers(), topic.name(), NOWHERE);
    settled(&pool, SOON).await;
    let lost = relay(&["notify"], NO_DATABASE, topic.brokers(), topic.name(), NOWHERE);
    is_stuck(&lost, "notify", "PostgreSQL").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_is_stuck_while_a_mail_is_due_and_the_server_is_away() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let relay = relay(&["mail"], database.url(), NO_BROKER, "nothing", NOWHERE);
    eventually("nothing to do to be ready", SOON, async || {
        (page(&relay, "/readyz").await?.0 == 200).then_some(())
    })
    .await;
    pending_mail(&pool).await;
    is_stuck(&relay, "mail", "SMTP").await;
    shows(&relay, &[("mail_pending", 1.0)]).await;
    assert!(metric(&relay, r#"mail_attempts_total{outcome="away"}"#).await > Some(0.0));
}

async fn pending_mail(pool: &PgPool) {
    pool.execute(
        "insert into notifications (notification_id, kind, order_id, order_version, recipient, message_id, data)
         values (gen_random_uuid(), 'confirmation', gen_random_uuid(), 1, 'ada@example.com', '<1@localhost>',
                 '{\"orderId\": \"0198a2a0-0000-7000-8000-000000000001\", \"customerId\": 42, \"amountCents\": 2599,
                   \"currency\": \"USD\", \"status\": \"created\", \"createdAt\": \"2026-01-01T00:00:00Z\"}')",
    )
    .await
    .expect("a notification");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trace_goes_on_from_the_request_across_the_outbox_to_the_mailbox() {
    let mut collector = Collector::start().await;
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(free_port().expect("a port")).await.expect("a mailbox");
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url())];
    let mut relay =
        Server::relay(database.url(), topic.brokers(), topic.name(), &mailbox.smtp_url(), &settings)
            .expect("the relay starts");
    order(&pool).await;
    mailbox.wait_for(1, SOON).await.expect("a mail");
    relay.terminate().await.expect("a soft stop exports what is left");

    let spans = collector.spans(3, SOON).await;
    let (trace, parent) = (hex(TRACE, 16), hex(PARENT, 8));
    for name in
        [format!("send {}", topic.name()), format!("process {}", topic.name()), "send confirmation".into()]
    {
        let span =
            spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name} in {spans:?}"));
        assert_eq!((&span.trace_id, &span.parent_span_id), (&trace, &parent), "{name}");
    }
    let published = spans.iter().find(|span| span.name.starts_with("send test_")).expect("published");
    let lasted = published.end_time_unix_nano - published.start_time_unix_nano;
    assert!(Duration::from_nanos(lasted) > Duration::from_secs(3600), "from the writing on: {lasted} ns");
    assert!(spans.iter().any(|span| span.links.iter().any(|link| link.span_id == parent)), "{spans:?}");
    assert!(!contains(&collector.exported, b"ada@example.com"), "an address was exported");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_no_event() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let settings = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")];
    let mut relay =
        Server::relay_stages(&["publish"], database.url(), topic.brokers(), topic.name(), NOWHERE, &settings)
            .expect("the relay starts");
    for _ in 0..5 {
        order(&pool).await;
    }
    settled(&pool, SOON).await;
    relay.terminate().await.expect("ends with exit code 0");
    assert_eq!(topic.read().await.len(), 5);
}

fn hex(text: &str, bytes: usize) -> Vec<u8> {
    u128::from_str_radix(text, 16).expect("hex").to_be_bytes()[16 - bytes..].to_vec()
}
