//! The pipeline through a real PgBouncer in transaction mode, where consecutive transactions of one
//! client run on different connections of the server, and NOTIFY is not heard. Real PostgreSQL, real
//! Kafka, real processes.

#[path = "support/outbox.rs"]
mod outbox;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use demo::programs::Server;
use demo::services::{PgBouncer, Postgres};
use demo::testing::{Database, Topic, eventually};
use outbox::{compare, settled};
use serde_json::{Value, json};
use sqlx::PgPool;
use tokio::task::JoinSet;
use uuid::Uuid;

const SOON: Duration = Duration::from_secs(120);
const NO_MAIL: &str = "smtp://127.0.0.1:1";
/// Two users beside the usual one, to tell apart who writes.
const USERS: [&str; 2] = ["first", "second"];

/// A database, a pooler before it, and a topic. The test itself looks at the database directly.
struct Place {
    // Ends when it is dropped.
    _postgres: Postgres,
    pool: PgPool,
    pooler: PgBouncer,
    topic: Topic,
}

impl Place {
    async fn new() -> Self {
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/pgbouncer/pgbouncer");
        assert!(
            program.exists(),
            "{} is missing: run `make target/pgbouncer/pgbouncer` first",
            program.display()
        );
        let postgres = Postgres::start().await.expect("a PostgreSQL of our own");
        let database = Database::create_on(&postgres.url()).await;
        let pooler = PgBouncer::start(&program, database.url(), &USERS).await.expect("a PgBouncer");
        Self { pool: database.pool().await, _postgres: postgres, pooler, topic: Topic::create(3).await }
    }

    fn publisher_as(&self, database_url: &str, lease: &str) -> Server {
        let settings = [("RELAY_LEASE_SECONDS", lease)];
        let (brokers, topic) = (self.topic.brokers(), self.topic.name());
        Server::relay_stages(&["publish"], database_url, brokers, topic, NO_MAIL, &settings)
            .expect("the relay starts")
    }

    async fn publisher(&self, lease: &str) -> Server {
        let mut relay = self.publisher_as(&self.pooler.url(), lease);
        relay.ready(SOON).await.expect("ready");
        relay
    }

    /// Two relays, the one that publishes first.
    async fn leader_and_standby(&self, lease: &str) -> [Server; 2] {
        let mut leader = self.publisher(lease).await;
        self.held_by(&mut leader).await;
        [leader, self.publisher(lease).await]
    }

    async fn held_by(&self, relay: &mut Server) {
        let name = format!("relay-{}-", relay.process().id());
        eventually("that relay to hold the lease", SOON, async || {
            let holder: Option<String> = sqlx::query_scalar("select holder from relay_sinks")
                .fetch_optional(&self.pool)
                .await
                .expect("the sink is read")
                .flatten();
            holder.filter(|holder| holder.starts_with(&name))
        })
        .await;
    }

    /// Commits the next event of an order of which nobody else writes, and rings as the API does.
    async fn append(&self, order: Uuid) {
        append(&self.pool, order).await;
    }

    /// Commits `each` events of each of `orders` orders, from as many writers.
    async fn write(&self, orders: usize, each: usize) {
        let mut writers = JoinSet::new();
        for _ in 0..orders {
            let (pool, order) = (self.pool.clone(), Uuid::now_v7());
            writers.spawn(async move {
                for _ in 0..each {
                    append(&pool, order).await;
                }
            });
        }
        writers.join_all().await;
    }

    /// Waits until everything is settled, and compares outbox and topic; gives the number of repeats.
    async fn repeats(&self) -> usize {
        settled(&self.pool, SOON).await;
        compare(&self.pool, &self.topic, &HashSet::new()).await
    }

    /// Runs a command of the relay through the pooler; its exit code has to be 0.
    async fn relay(&self, args: &[&str]) -> Value {
        let url = self.pooler.url();
        let settings = [
            ("DATABASE_URL", url.as_str()),
            ("KAFKA_BROKERS", self.topic.brokers()),
            ("KAFKA_TOPIC", self.topic.name()),
        ];
        let said = demo::programs::run("relay", &[args, &["--json"]].concat(), &settings).await;
        serde_json::from_str(&said.expect("exit code 0")).expect("JSON")
    }
}

/// Commits an event and rings as the API does.
async fn append(pool: &PgPool, order: Uuid) {
    outbox::append(pool, order).await.expect("committed");
    sqlx::query("select pg_notify($1, '')").bind(events::OUTBOX_CHANNEL).execute(pool).await.expect("rung");
}

/// Waits until the relay has found out that its bells are deaf.
async fn knows_that_it_is_deaf(relay: &mut Server) {
    let log = relay.process().log().to_owned();
    eventually("the relay to notice that NOTIFY is not heard", SOON, async || {
        let log = std::fs::read_to_string(&log).expect("a log");
        let told = |bell: &str| log.lines().any(|line| line.contains("not heard") && line.contains(bell));
        (told("\"outbox\"") && told("\"relay_lease\"")).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_a_relay_notices_that_it_is_deaf_polls_and_publishes_all_once_and_in_order() {
    let place = Place::new().await;
    let mut relay = place.publisher("10").await;
    knows_that_it_is_deaf(&mut relay).await;

    // One after the other: with the long poll of a relay that trusts its bell each takes 3 s.
    let (order, began) = (Uuid::now_v7(), Instant::now());
    for _ in 0..30 {
        place.append(order).await;
        settled(&place.pool, SOON).await;
    }
    assert!(began.elapsed() < Duration::from_secs(60), "the relay waits for a bell: {:?}", began.elapsed());

    place.write(8, 200).await;
    assert_eq!(place.repeats().await, 0, "nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_a_standby_takes_over_from_a_killed_publisher() {
    let place = Place::new().await;
    let [mut leader, mut standby] = place.leader_and_standby("5").await;
    let killed = async {
        eventually("some events to be published", SOON, async || {
            let some: bool = sqlx::query_scalar("select published <> '{}' from relay_sinks")
                .fetch_one(&place.pool)
                .await
                .expect("the sink is read");
            some.then_some(())
        })
        .await;
        leader.kill().expect("killed");
        place.held_by(&mut standby).await;
    };
    tokio::join!(killed, place.write(8, 200));
    place.repeats().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_a_stopped_publisher_hands_over_long_before_its_lease_ends() {
    let place = Place::new().await;
    // A minute's lease, of which nobody can hear that it was given up.
    let [mut leader, mut standby] = place.leader_and_standby("60").await;
    knows_that_it_is_deaf(&mut standby).await;
    place.write(4, 50).await;
    leader.terminate().await.expect("ends with exit code 0");
    let ended = Instant::now();
    place.held_by(&mut standby).await;
    assert!(ended.elapsed() < Duration::from_secs(20), "waited for the lease: {:?}", ended.elapsed());
    place.write(4, 50).await;
    assert_eq!(place.repeats().await, 0, "nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_a_publisher_that_wakes_up_after_its_lease_changes_no_row() {
    let place = Place::new().await;
    sqlx::raw_sql(
        "create role first superuser login; create role second superuser login;
         create table written (who text, epoch bigint);
         create function note() returns trigger language plpgsql as
           $$ begin insert into written values (session_user, new.epoch); return null; end $$;
         create trigger note after update on relay_sinks for each row execute function note()",
    )
    .execute(&place.pool)
    .await
    .expect("a witness");
    let [first, second] = USERS.map(|user| place.pooler.url_of(user));
    let mut leader = place.publisher_as(&first, "3");
    place.held_by(&mut leader).await;
    let mut standby = place.publisher_as(&second, "3");
    standby.ready(SOON).await.expect("ready");
    place.write(4, 50).await;

    leader.process().signal("STOP").expect("stopped");
    place.held_by(&mut standby).await;
    place.write(4, 50).await;
    let written = async || -> i64 {
        sqlx::query_scalar("select count(*) from written where who = 'first'")
            .fetch_one(&place.pool)
            .await
            .expect("counted")
    };
    let before = written().await;
    assert!(before > 0, "the witness sees");
    leader.process().signal("CONT").expect("continued");
    let http = reqwest::Client::new();
    eventually("the fenced publisher to stand by", SOON, async || {
        let page = http.get(format!("{}/readyz", leader.url())).send().await.ok()?.text().await.ok()?;
        page.contains("standing by").then_some(())
    })
    .await;
    assert_eq!(written().await, before, "the fenced publisher changed a row");
    place.held_by(&mut standby).await;
    place.repeats().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_that_is_killed_and_comes_back_costs_no_event_and_no_order() {
    let mut place = Place::new().await;
    let mut relay = place.publisher("10").await;
    for _ in 0..3 {
        place.write(8, 50).await;
        place.pooler.kill().expect("killed");
        place.write(8, 50).await;
        let http = reqwest::Client::new();
        eventually("/readyz to tell of it", SOON, async || {
            let page = http.get(format!("{}/readyz", relay.url())).send().await.ok()?.text().await.ok()?;
            page.contains("PostgreSQL").then_some(())
        })
        .await;
        place.pooler.start_again().await.expect("started again");
        settled(&place.pool, SOON).await;
    }
    relay.ready(SOON).await.expect("ready again");
    place.repeats().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_commands_and_the_api_work_through_a_pooler() {
    let place = Place::new().await;
    let mut relay = place.publisher("10").await;
    place.held_by(&mut relay).await;
    let mut api = Server::orders(&place.pooler.url(), &[]).expect("the API starts");
    api.ready(SOON).await.expect("ready");
    let http = reqwest::Client::new();
    let create = async |key: String| -> Value {
        let order = http.post(format!("{}/orders", api.url())).header("idempotency-key", key);
        let answer = order.json(&json!({"customerId": 42, "amountCents": 2599})).send().await;
        answer.expect("an answer").error_for_status().expect("created").json().await.expect("JSON")
    };

    place.relay(&["pause", "--reason", "a test"]).await;
    eventually("the publisher to be paused", SOON, async || {
        let status = place.relay(&["status"]).await;
        (status["sinks"][0]["doing"] == "paused").then_some(())
    })
    .await;
    for n in 0..50 {
        let first = create(format!("key-{n}")).await;
        assert_eq!(create(format!("key-{n}")).await, first, "a repeat is answered as the first time");
    }
    let orders: i64 =
        sqlx::query_scalar("select count(*) from orders").fetch_one(&place.pool).await.expect("counted");
    assert_eq!(orders, 50);
    assert!(place.topic.read().await.is_empty(), "a paused publisher sends nothing");

    place.relay(&["resume"]).await;
    assert_eq!(place.repeats().await, 0, "nothing twice");
    assert_eq!(place.relay(&["dead", "list"]).await["groups"], json!([]));
    // Its exit code is 3 when it finds anything.
    place.relay(&["audit"]).await;

    let refused = Uuid::now_v7();
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         values ($1, 'order', gen_random_uuid(), 1, 'order.created.v1', to_json($2::text))",
    )
    .bind(refused)
    // More than the topic's max.message.bytes, 1 MiB.
    .bind(std::iter::repeat_with(fastrand::alphanumeric).take(3 << 20).collect::<String>())
    .execute(&place.pool)
    .await
    .expect("committed");
    settled(&place.pool, SOON).await;
    let dead = place.relay(&["dead", "list"]).await;
    assert_eq!(dead["groups"].as_array().map(Vec::len), Some(1), "{dead}");
    place.relay(&["dead", "discard", "--event", &refused.to_string(), "--reason", "a test"]).await;
    compare(&place.pool, &place.topic, &HashSet::from([refused])).await;

    let changes = place.relay(&["changes"]).await;
    assert_eq!(changes.as_array().map(Vec::len), Some(3), "{changes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_a_pooler_the_bell_of_the_api_makes_no_commit_of_another_client_less_durable() {
    let place = Place::new().await;
    let mut api = Server::orders(&place.pooler.url(), &[]).expect("the API starts");
    api.ready(SOON).await.expect("ready");
    let http = reqwest::Client::new();
    for n in 0..50 {
        let order = http.post(format!("{}/orders", api.url())).header("idempotency-key", format!("key-{n}"));
        let answer = order.json(&json!({"customerId": 42, "amountCents": 2599})).send().await;
        assert_eq!(answer.expect("an answer").status(), 201);
    }
    // Every connection of the server that the pooler has: held until all are seen.
    let behind = PgPool::connect(&place.pooler.url()).await.expect("connected");
    let mut held = Vec::new();
    for _ in 0..4 {
        let mut transaction = behind.begin().await.expect("begun");
        let (setting,): (String,) = sqlx::query_as("select current_setting('synchronous_commit')")
            .fetch_one(&mut *transaction)
            .await
            .expect("a setting");
        assert_eq!(setting, "on", "left behind by the API's bell");
        held.push(transaction);
    }
}
