//! What the relay removes, and what it must not. Real PostgreSQL, real Kafka, real processes.

#[path = "support/outbox.rs"]
mod outbox;

use std::time::{Duration, SystemTime};

use chrono::{DateTime, Utc};
use demo::programs::Server;
use demo::testing::{Database, Topic, eventually};
use outbox::settled;
use serde_json::Value;
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, Executor, PgPool};
use uuid::{NoContext, Timestamp, Uuid};

const NO_MAIL: &str = "smtp://127.0.0.1:1";
const SOON: Duration = Duration::from_secs(90);

fn publisher(database: &Database, topic: &Topic, settings: &[(&str, &str)]) -> Server {
    Server::relay_stages(&["publish"], database.url(), topic.brokers(), topic.name(), NO_MAIL, settings)
        .expect("the relay starts")
}

/// Writes events of orders of their own, written so many days ago.
async fn write(pool: impl sqlx::PgExecutor<'_>, events: i32, days: i32) {
    let age = Duration::from_secs(u64::from(days.unsigned_abs()) * 86_400);
    let made = (SystemTime::now() - age).duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let id = || Uuid::new_v7(Timestamp::from_unix(NoContext, made.as_secs(), made.subsec_nanos()));
    let ids: Vec<Uuid> = std::iter::repeat_with(id).take(events.unsigned_abs() as usize).collect();
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload, created_at)
         select id, 'order', gen_random_uuid(), 1, 'order.created.v1', '{}', now() - make_interval(days => $2)
         from unnest($1::uuid[]) as id",
    )
    .bind(ids)
    .bind(days)
    .execute(pool)
    .await
    .expect("events are written");
}

async fn left(pool: &PgPool) -> Vec<i64> {
    sqlx::query_scalar("select seq from outbox order by seq").fetch_all(pool).await.expect("read")
}

/// Waits until these, and no others, are left.
async fn leaves(pool: &PgPool, wanted: &[i64]) {
    eventually(&format!("the outbox to hold {wanted:?}"), SOON, async || {
        (left(pool).await == wanted).then_some(())
    })
    .await;
}

/// Starts the relay again: it looks for what is old as soon as it starts, and then every minute.
async fn look_again(relay: &mut Server) {
    relay.ready(SOON).await.expect("ready");
    relay.terminate().await.expect("stopped");
    relay.start_again().expect("started");
}

#[tokio::test(flavor = "multi_thread")]
async fn retention_removes_only_what_is_old_and_settled_by_every_sink() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    write(&pool, 20, 8).await;
    write(&pool, 5, 6).await;
    pool.execute("insert into relay_sinks (sink, published) values ('another', '{[1,11)}')")
        .await
        .expect("a sink");
    // The numbers of another table, and of its dead letters, say nothing of this one.
    pool.execute(
        "insert into relay_sinks (sink, source) values ('adopted', 'public.outboxevent');
         insert into relay_dead (sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers,
                                 created_at, cause, detail, source_id, source_key)
         values ('adopted', 3, gen_random_uuid(), 'purchase', gen_random_uuid(), 0, '', 'null', '{}', now(), 'refused',
                 'by the test', '3', 'p-3')",
    )
    .await
    .expect("a sink of another table");
    let mut relay = publisher(&database, &topic, &[]);
    settled(&pool, SOON).await;
    look_again(&mut relay).await;
    leaves(&pool, &(11..=25).collect::<Vec<_>>()).await;

    pool.execute("update relay_sinks set published = '{[1,26)}' where sink = 'another'")
        .await
        .expect("moved");
    look_again(&mut relay).await;
    leaves(&pool, &[21, 22, 23, 24, 25]).await;
    assert_eq!(
        topic.read().await.len(),
        25,
        "nothing was removed before it was published, or published twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_settled_or_is_a_dead_letter_is_kept_and_stops_nothing_else() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    write(&pool, 10, 8).await;
    let mut late = pool.begin().await.expect("begin");
    write(&mut *late, 1, 8).await;
    write(&pool, 9, 8).await;
    let mut relay = publisher(&database, &topic, &[]);
    settled(&pool, SOON).await;
    pool.execute(
        "insert into relay_dead (sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers,
                                 created_at, cause, detail)
         select 'kafka', seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers, created_at,
                'refused', 'by the test' from outbox where seq = 5",
    )
    .await
    .expect("a dead letter");
    look_again(&mut relay).await;
    leaves(&pool, &[5]).await;

    // Below everything that retention has come past, it is published and removed all the same.
    late.commit().await.expect("committed");
    settled(&pool, SOON).await;
    assert_eq!(left(&pool).await, [5, 11]);
    pool.execute("delete from relay_dead").await.expect("resolved");
    look_again(&mut relay).await;
    leaves(&pool, &[]).await;
    assert_eq!(topic.read().await.len(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_audit_takes_what_retention_removed_for_old_and_not_for_extra_though_a_dead_letter_is_left() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    write(&pool, 10, 8).await;
    pool.execute(
        "insert into relay_sinks (sink, published) values ('kafka', '{[1,2)}');
         insert into relay_dead (sink, seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers,
                                 created_at, cause, detail)
         select 'kafka', seq, event_id, aggregate_type, aggregate_id, version, type, payload, headers, created_at,
                'refused', 'by the test' from outbox where seq = 1",
    )
    .await
    .expect("a dead letter");
    let mut relay = publisher(&database, &topic, &[]);
    settled(&pool, SOON).await;
    write(&pool, 2, 0).await;
    settled(&pool, SOON).await;
    look_again(&mut relay).await;
    leaves(&pool, &[1, 11, 12]).await;
    let settings =
        [("DATABASE_URL", database.url()), ("KAFKA_BROKERS", topic.brokers()), ("KAFKA_TOPIC", topic.name())];
    let said = demo::programs::run("relay", &["audit"], &settings).await.expect("nothing is found");
    assert!(said.contains(" 2  events are in the outbox"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_relays_remove_each_row_once_and_remember_one_position() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    write(&pool, 60_000, 8).await;
    pool.execute("insert into relay_sinks (sink, published) values ('kafka', '{[1,60001)}')")
        .await
        .expect("published");
    let relays = [publisher(&database, &topic, &[]), publisher(&database, &topic, &[])];
    leaves(&pool, &[]).await;
    let removed: String = sqlx::query_scalar("select outbox_removed::text from relay_retention")
        .fetch_one(&pool)
        .await
        .expect("read");
    assert_eq!(removed, "{[1,60001)}");
    eventually("both to have counted what they removed", SOON, async || {
        let mut rows = 0.0;
        for relay in &relays {
            rows += metric(relay, r#"retention_removed_total{table="outbox"}"#).await?;
        }
        (rows == 60_000.0).then_some(())
    })
    .await;
}

async fn metric(relay: &Server, name: &str) -> Option<f64> {
    let text = reqwest::get(format!("{}/metrics", relay.url())).await.ok()?.text().await.ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn zero_days_keep_events_for_ever_and_dedup_keys_have_an_age_of_their_own() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    write(&pool, 3, 1000).await;
    dedup_keys(&pool).await;
    pool.execute("insert into relay_sinks (sink, published) values ('kafka', '{[1,4)}')")
        .await
        .expect("published");
    let _relay = publisher(&database, &topic, &[("RELAY_RETENTION_DAYS", "0")]);
    only_old_keys_of_notify_go(&pool).await;
    assert_eq!(left(&pool).await, [1, 2, 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_removed_before_the_relays_own_sink_is_among_the_sinks() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    write(&pool, 3, 8).await;
    dedup_keys(&pool).await;
    pool.execute("insert into relay_sinks (sink, published) values ('another', '{[1,4)}')")
        .await
        .expect("a sink");
    // The publisher waits for this row, and retention does not.
    let mut first = pool.begin().await.expect("begin");
    first.execute("insert into relay_sinks (sink) values ('kafka')").await.expect("a sink");
    let _relay = publisher(&database, &topic, &[]);
    only_old_keys_of_notify_go(&pool).await;
    assert_eq!(left(&pool).await, [1, 2, 3]);
    first.rollback().await.expect("rolled back");
    settled(&pool, SOON).await;
    assert_eq!(topic.read().await.len(), 3);
}

/// Two dedup keys of notify and one of somebody else.
async fn dedup_keys(pool: &PgPool) {
    pool.execute(
        "insert into inbox (consumer, event_id, aggregate_id, version, topic, kafka_partition, kafka_offset,
                            published_at, handled_at)
         select consumer, gen_random_uuid(), gen_random_uuid(), 1, 't', 0, 0, now(), now() - make_interval(days => age)
         from (values ('notify', 31), ('notify', 29), ('somebody else', 31)) as keys(consumer, age)",
    )
    .await
    .expect("dedup keys");
}

/// Waits until the old one is gone. The outbox has its turn before the inbox.
async fn only_old_keys_of_notify_go(pool: &PgPool) {
    eventually("the old key of notify to be gone", SOON, async || {
        let keys: Vec<(String, i32)> = sqlx::query_as(
            "select consumer, extract(day from now() - handled_at)::int from inbox order by handled_at",
        )
        .fetch_all(pool)
        .await
        .ok()?;
        (keys == [("somebody else".to_owned(), 31), ("notify".to_owned(), 29)]).then_some(())
    })
    .await;
}

/// The publisher's reading statement, as it is checked against the schema.
fn reading_statement() -> String {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/.sqlx");
    let queries = std::fs::read_dir(folder).expect("the checked queries").map(|file| {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("read");
        let query: Value = serde_json::from_str(&text).expect("JSON");
        query["query"].as_str().expect("SQL").to_owned()
    });
    let mut reads = queries.filter(|sql| sql.contains("as open(from_seq, to_seq)"));
    let read = reads.next().expect("the publisher reads");
    assert!(reads.next().is_none(), "only one statement reads what is to be published");
    read
}

/// Pages that a statement touches.
async fn pages(pool: &PgPool, sql: &str, above: i64) -> i64 {
    let explain = format!("explain (analyze, buffers, format json) {sql}");
    let mut query = sqlx::query_scalar::<_, Json<Value>>(AssertSqlSafe(explain));
    if sql.contains("$1") {
        query = query.bind(Vec::<i64>::new()).bind(Vec::<i64>::new()).bind(above).bind(2000_i64);
        let server_started: DateTime<Utc> =
            sqlx::query_scalar("select pg_postmaster_start_time()").fetch_one(pool).await.expect("a time");
        query = query.bind(server_started);
    }
    let plan = query.fetch_one(pool).await.expect("explained");
    let of = |name: &str| plan[0]["Plan"][name].as_i64().expect("a number of pages");
    of("Shared Hit Blocks") + of("Shared Read Blocks")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_publishers_reading_stays_flat_behind_removed_rows_that_an_old_snapshot_keeps() {
    const ROWS: i32 = 300_000;
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    write(&pool, ROWS, 8).await;
    sqlx::query(
        "insert into relay_sinks (sink, published) values ('kafka', int8multirange(int8range(1, $1 + 1)))",
    )
    .bind(ROWS)
    .execute(&pool)
    .await
    .expect("published");
    pool.execute("vacuum analyze outbox").await.expect("analysed");
    let read = reading_statement();
    let before = pages(&pool, &read, ROWS.into()).await;

    let mut old = pool.begin_with("begin isolation level repeatable read").await.expect("begin");
    let seen: i64 =
        sqlx::query_scalar("select count(*) from outbox").fetch_one(&mut *old).await.expect("a snapshot");
    assert_eq!(seen, i64::from(ROWS));
    let mut relay = publisher(&database, &topic, &[]);
    leaves(&pool, &[]).await;

    let after = pages(&pool, &read, ROWS.into()).await;
    let oldest = pages(&pool, "select seq from outbox order by seq limit 1", 0).await;
    assert!(oldest > 1000, "the dead rows are still there: {oldest} pages to find the oldest of none");
    assert!(after <= before + 4, "{before} pages before, {after} after");
    old.rollback().await.expect("it was open to the end");
    relay.terminate().await.expect("ends with exit code 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_outlives_its_events_and_its_history_is_then_without_them() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let mut api = Server::orders(database.url(), &[]).expect("the API starts");
    api.ready(SOON).await.expect("ready");
    let mut relay = publisher(&database, &topic, &[]);
    let http = reqwest::Client::new();
    let place = async |key: Uuid| -> Value {
        let request = http
            .post(format!("{}/orders", api.url()))
            .header("idempotency-key", key.to_string())
            .json(&serde_json::json!({"customerId": 42, "amountCents": 2599}));
        request.send().await.expect("answered").json().await.expect("JSON")
    };
    let key = Uuid::now_v7();
    let placed = place(key).await;
    settled(&pool, SOON).await;
    pool.execute("update outbox set created_at = created_at - interval '8 days'").await.expect("aged");
    look_again(&mut relay).await;
    leaves(&pool, &[]).await;

    let url = format!("{}/orders/{}", api.url(), placed["orderId"].as_str().expect("an id"));
    let order: Value = http.get(&url).send().await.expect("answered").json().await.expect("JSON");
    assert_eq!(order["status"], "created");
    let history = http.get(format!("{url}/events")).send().await.expect("answered");
    assert_eq!(history.status(), 200);
    assert_eq!(history.json::<Value>().await.expect("JSON")["events"], serde_json::json!([]));
    assert_eq!(place(key).await, placed, "the request is still replayed");
}
