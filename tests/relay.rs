//! The relay from outside: rows in the outbox in, Kafka and mail out. Real PostgreSQL, real Kafka,
//! real processes.

#[path = "support/outbox.rs"]
mod outbox;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use demo::process::ProcessError;
use demo::programs::Server;
use demo::testing::{Database, Topic, eventually};
use outbox::{compare, settled, without_holes};
use sqlx::{Executor, PgPool, Postgres, Transaction};
use tokio::task::JoinSet;
use uuid::Uuid;

const NO_MAIL: &str = "smtp://127.0.0.1:1";
/// Seconds.
const DEFAULT_LEASE: &str = "4";
/// What is promised of a standby whose publisher was killed.
const TAKEOVER: Duration = Duration::from_secs(10);
const SOON: Duration = Duration::from_secs(60);

fn publisher(database: &Database, topic: &Topic, lease: &str) -> Server {
    let settings = [("RELAY_LEASE_SECONDS", lease)];
    Server::relay_stages(&["publish"], database.url(), topic.brokers(), topic.name(), NO_MAIL, &settings)
        .expect("the relay starts")
}

/// Writes one event of `order` as the API does: under the order's row lock.
async fn write(transaction: &mut Transaction<'_, Postgres>, order: Uuid, payload: &str) {
    sqlx::query("select from orders where order_id = $1 for update")
        .bind(order)
        .execute(&mut **transaction)
        .await
        .expect("the order is locked");
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         select $1, 'order', $2, coalesce(max(version), 0) + 1, 'order.created.v1', $3::json
         from outbox where aggregate_id = $2",
    )
    .bind(Uuid::now_v7())
    .bind(order)
    .bind(payload)
    .execute(&mut **transaction)
    .await
    .expect("the event is written");
}

async fn new_order(pool: &PgPool) -> Uuid {
    let order = Uuid::now_v7();
    sqlx::query(
        "insert into orders (order_id, client_id, customer_id, amount_cents, currency, status, version, created_at)
         values ($1, 'test', 1, 1, 'USD', 'created', 1, now())",
    )
    .bind(order)
    .execute(pool)
    .await
    .expect("an order");
    order
}

async fn commit_event(pool: &PgPool, order: Uuid, payload: &str) {
    let mut transaction = pool.begin().await.expect("begin");
    write(&mut transaction, order, payload).await;
    transaction.commit().await.expect("commit");
}

/// Commits late, rolls back, and rolls back to savepoints, all at random.
async fn write_at_random(pool: PgPool, orders: Vec<Uuid>, rounds: u32) {
    for _ in 0..rounds {
        let mut transaction = pool.begin().await.expect("begin");
        // Ascending, so that two writers never wait for each other.
        let mut chosen = [fastrand::usize(..orders.len()), fastrand::usize(..orders.len())];
        chosen.sort_unstable();
        write(&mut transaction, orders[chosen[0]], "{}").await;
        if fastrand::u8(..3) == 0 {
            transaction.execute("savepoint here").await.expect("savepoint");
            write(&mut transaction, orders[chosen[1]], "{}").await;
            transaction.execute("rollback to savepoint here").await.expect("rolled back");
        }
        if fastrand::u8(..4) == 0 {
            // Part of the work: a transaction that takes its time before it commits.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(30..400))).await;
        }
        if fastrand::u8(..6) == 0 {
            transaction.rollback().await.expect("rolled back");
        } else {
            transaction.commit().await.expect("committed");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn late_commits_and_rollbacks_lose_nothing_double_nothing_and_wait_for_no_foreign_transaction() {
    let database = Database::create().await;
    let topic = Topic::create(3).await;
    let pool = database.pool().await;
    let mut relay = publisher(&database, &topic, "2");
    relay.ready(SOON).await.expect("ready");

    // Holds its xid and its snapshot, and never wrote to the outbox.
    let mut foreign = pool.begin().await.expect("begin");
    foreign
        .execute("create table foreign_work (n int); insert into foreign_work values (1)")
        .await
        .expect("xid");

    let mut orders = Vec::new();
    for _ in 0..12 {
        orders.push(new_order(&pool).await);
    }
    let mut writers = JoinSet::new();
    for _ in 0..6 {
        writers.spawn(write_at_random(pool.clone(), orders.clone(), 60));
    }
    writers.join_all().await;
    // One more after all the holes, so that every hole lies below a committed number.
    commit_event(&pool, orders[0], "{}").await;

    settled(&pool, SOON).await;
    without_holes(&pool, SOON).await;
    let (drawn, committed): (i64, i64) =
        sqlx::query_as("select max(seq), count(*) from outbox").fetch_one(&pool).await.expect("counted");
    assert!(drawn > committed, "there were holes");
    foreign.rollback().await.expect("the foreign transaction was open to the end");
    assert_eq!(compare(&pool, &topic, &HashSet::new()).await, 0, "nothing twice without a crash");
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_that_never_wrote_to_the_outbox_delay_nobody_though_they_last_a_minute() {
    let (database, other_database) = (Database::create().await, Database::create().await);
    let topic = Topic::create(3).await;
    let (pool, other) = (database.pool().await, other_database.pool().await);
    let mut relay = publisher(&database, &topic, DEFAULT_LEASE);
    relay.ready(SOON).await.expect("ready");
    let mut foreign = Vec::new();
    for pool in [&pool, &other] {
        let mut transaction = pool.begin().await.expect("begin");
        let holds_xid_and_snapshot = "set transaction isolation level repeatable read;
                                      create table foreign_work (n int); select * from foreign_work";
        transaction.execute(holds_xid_and_snapshot).await.expect("xid and snapshot");
        foreign.push(transaction);
    }
    let order = new_order(&pool).await;
    let since = Instant::now();
    let mut longest = Duration::ZERO;
    while since.elapsed() < Duration::from_secs(60) {
        let mut rolled_back = pool.begin().await.expect("begin");
        write(&mut rolled_back, order, "{}").await;
        rolled_back.rollback().await.expect("a hole");
        let committed = Instant::now();
        commit_event(&pool, order, "{}").await;
        settled(&pool, SOON).await;
        longest = longest.max(committed.elapsed());
    }
    assert!(longest < TAKEOVER, "an event waited {longest:?}");
    without_holes(&pool, SOON).await;
    for transaction in foreign {
        transaction.commit().await.expect("they lasted to the end");
    }
    assert_eq!(compare(&pool, &topic, &HashSet::new()).await, 0, "nothing twice without a crash");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_uncommitted_event_delays_nobody_and_is_published_as_soon_as_it_is_visible() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let mut relay = publisher(&database, &topic, "2");
    relay.ready(SOON).await.expect("ready");

    let (late, other) = (new_order(&pool).await, new_order(&pool).await);
    let mut open = pool.begin().await.expect("begin");
    write(&mut open, late, "{}").await;
    commit_event(&pool, other, "{}").await;
    settled(&pool, SOON).await;
    assert_eq!(topic.read().await.len(), 1, "the later number went first");

    open.commit().await.expect("commit");
    settled(&pool, SOON).await;
    assert_eq!(compare(&pool, &topic, &HashSet::new()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_transaction_keeps_its_hole_open_until_it_is_committed() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let can_prepare: String =
        sqlx::query_scalar("show max_prepared_transactions").fetch_one(&pool).await.expect("a setting");
    assert_ne!(can_prepare, "0", "the shared server must allow prepared transactions");
    let mut relay = publisher(&database, &topic, "2");
    relay.ready(SOON).await.expect("ready");

    let (prepared, other) = (new_order(&pool).await, new_order(&pool).await);
    let name = format!("late_{}", Uuid::now_v7().simple());
    let mut connection = pool.acquire().await.expect("a connection");
    let event = Uuid::now_v7();
    connection
        .execute(sqlx::AssertSqlSafe(format!(
            "begin;
             insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
             values ('{event}', 'order', '{prepared}', 1, 'order.created.v1', '{{}}');
             prepare transaction '{name}'"
        )))
        .await
        .expect("prepared");
    commit_event(&pool, other, "{}").await;
    settled(&pool, SOON).await;
    // The hole is looked at again and again meanwhile: a second event passes it, and a third.
    for _ in 0..2 {
        commit_event(&pool, other, "{}").await;
        settled(&pool, SOON).await;
    }
    connection.execute(sqlx::AssertSqlSafe(format!("commit prepared '{name}'"))).await.expect("committed");
    settled(&pool, SOON).await;
    assert_eq!(compare(&pool, &topic, &HashSet::new()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_kafka_refuses_is_parked_with_its_order_and_no_innocent_one() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let big = new_order(&pool).await;
    // Over the topic's max.message.bytes of 1 MiB, and incompressible.
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(3 << 20).collect();
    commit_event(&pool, big, "{}").await;
    commit_event(&pool, big, &format!("\"{noise}\"")).await;
    commit_event(&pool, big, "{}").await;
    let mut others = Vec::new();
    for _ in 0..50 {
        let order = new_order(&pool).await;
        commit_event(&pool, order, "{}").await;
        others.push(order);
    }
    let mut relay = publisher(&database, &topic, "2");
    relay.ready(SOON).await.expect("ready");
    settled(&pool, SOON).await;
    // One that is committed after the parking goes behind as well.
    commit_event(&pool, big, "{}").await;
    settled(&pool, SOON).await;

    let dead: Vec<(Uuid, i32, String)> =
        sqlx::query_as("select event_id, version, cause from relay_dead order by seq")
            .fetch_all(&pool)
            .await
            .expect("dead");
    let told: Vec<_> = dead.iter().map(|(_, version, cause)| (*version, cause.as_str())).collect();
    assert_eq!(told, [(2, "refused"), (3, "behind"), (4, "behind")]);
    compare(&pool, &topic, &dead.iter().map(|(id, ..)| *id).collect()).await;
}

/// Two relays, the one that publishes first.
async fn leader_and_standby(pool: &PgPool, database: &Database, topic: &Topic, lease: &str) -> [Server; 2] {
    let mut relays = [publisher(database, topic, lease), publisher(database, topic, lease)];
    for relay in &mut relays {
        relay.ready(SOON).await.expect("ready");
    }
    let leader = eventually("somebody to publish", SOON, async || holder(pool).await).await;
    if !leader.starts_with(&name_of(&mut relays[0])) {
        relays.swap(0, 1);
    }
    relays
}

async fn holder(pool: &PgPool) -> Option<String> {
    sqlx::query_scalar("select holder from relay_sinks where sink = 'kafka'")
        .fetch_optional(pool)
        .await
        .expect("the sink is read")
        .flatten()
}

/// How the name begins under which a relay holds the lease.
fn name_of(relay: &mut Server) -> String {
    format!("relay-{}-", relay.process().id())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_takes_over_when_the_publisher_was_killed() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let order = new_order(&pool).await;
    let [mut leader, mut standby] = leader_and_standby(&pool, &database, &topic, DEFAULT_LEASE).await;
    commit_event(&pool, order, "{}").await;
    settled(&pool, SOON).await;

    let killed = Instant::now();
    leader.kill().expect("killed");
    commit_event(&pool, order, "{}").await;
    settled(&pool, SOON).await;
    assert!(killed.elapsed() < TAKEOVER, "{:?}", killed.elapsed());
    assert!(holder(&pool).await.is_some_and(|holder| holder.starts_with(&name_of(&mut standby))));
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_is_stopped_hands_over_long_before_its_lease_ends_and_repeats_nothing() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let order = new_order(&pool).await;
    let [mut leader, mut standby] = leader_and_standby(&pool, &database, &topic, "60").await;
    for _ in 0..100 {
        commit_event(&pool, order, "{}").await;
    }
    leader.terminate().await.expect("ends with exit code 0");
    commit_event(&pool, order, "{}").await;
    // How much less than the lease it is, `make bench-relay` shows.
    settled(&pool, TAKEOVER).await;
    assert!(holder(&pool).await.is_some_and(|holder| holder.starts_with(&name_of(&mut standby))));
    assert_eq!(compare(&pool, &topic, &HashSet::new()).await, 0);
}

#[tokio::test]
async fn a_wrong_setting_is_named_and_no_secret_is_shown() {
    let right = "postgres://ada:hunter2@127.0.0.1/orders";
    for (name, value) in [
        ("DATABASE_URL", "postgres//ada:hunter2@127.0.0.1"),
        ("KAFKA_PROPERTIES", "sasl.password=hunter2,acks=1"),
        ("KAFKA_PROPERTIES", "security.protocol=hunter2"),
        ("SMTP_URL", "smtp//ada:hunter2@127.0.0.1"),
    ] {
        let settings = [("DATABASE_URL", right), (name, value)];
        let Err(ProcessError::Ended { status, log, .. }) =
            demo::programs::run("relay", &["run"], &settings).await
        else {
            panic!("the relay took {name}={value}");
        };
        assert_eq!(status.code(), Some(2), "{log}");
        assert!(log.contains(name) && !log.contains("hunter2"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publisher_that_wakes_up_after_its_lease_is_fenced_and_stands_by() {
    let database = Database::create().await;
    let topic = Topic::create(3).await;
    let pool = database.pool().await;
    let [mut leader, mut standby] = leader_and_standby(&pool, &database, &topic, "2").await;
    let order = new_order(&pool).await;
    commit_event(&pool, order, "{}").await;
    settled(&pool, SOON).await;

    leader.process().signal("STOP").expect("stopped");
    for _ in 0..20 {
        commit_event(&pool, order, "{}").await;
    }
    settled(&pool, SOON).await;
    assert!(holder(&pool).await.is_some_and(|holder| holder.starts_with(&name_of(&mut standby))));
    leader.process().signal("CONT").expect("continued");
    let http = reqwest::Client::new();
    eventually("the fenced publisher to stand by", SOON, async || {
        let page: serde_json::Value =
            http.get(format!("{}/readyz", leader.url())).send().await.ok()?.json().await.ok()?;
        (page["stages"]["publish"]["doing"] == "standing by").then_some(())
    })
    .await;
    for _ in 0..20 {
        commit_event(&pool, order, "{}").await;
    }
    settled(&pool, SOON).await;
    compare(&pool, &topic, &HashSet::new()).await;
}
