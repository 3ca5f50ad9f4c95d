//! Outbox tables of other programs: a table as Debezium's documentation shows it, an application that
//! inserts as it always did, and the relay in Debezium's place. Real PostgreSQL, real Kafka, real
//! processes.

#[path = "support/outbox.rs"]
mod outbox;

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use demo::process::ProcessError;
use demo::programs::{self, Server};
use demo::testing::{Database, Topic, eventually, read_topic};
use demo::topic::{self, Message};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, PgPool, Row as _};
use tokio::task::JoinSet;
use uuid::Uuid;

const NO_MAIL: &str = "smtp://127.0.0.1:1";
const SOON: Duration = Duration::from_secs(60);

/// The outbox table of Debezium's documentation, and the table of the application beside it.
const APPLICATION: &str = "
    create table outboxevent (
      id            uuid         not null constraint outboxevent_pkey primary key,
      aggregatetype varchar(255) not null,
      aggregateid   varchar(255) not null,
      type          varchar(255) not null,
      payload       jsonb
    );
    create table purchase (purchase_id text primary key, changes int not null default 0);
    insert into purchase select 'p-' || n from generate_series(1, 12) as n;";

/// The application's statement; it knows of no other column.
const INSERT: &str = "insert into outboxevent (id, aggregatetype, aggregateid, type, payload) values ($1, $2, $3, $4, $5::jsonb)";

/// A database with the application's tables, and a topic for each of its aggregate types.
struct World {
    database: Database,
    pool: PgPool,
    brokers: String,
    prefix: String,
}

impl World {
    async fn create(types: &[&str]) -> Self {
        let database = Database::create().await;
        let pool = database.pool().await;
        pool.execute(APPLICATION).await.expect("the application's tables");
        let brokers = demo::testing::shared(demo::testing::KAFKA_BROKERS);
        let prefix = format!("adopted_{}", Uuid::now_v7().simple());
        for kind in types {
            topic::create(&brokers, &format!("{prefix}.{kind}"), 3).await.expect("topic created");
        }
        Self { database, pool, brokers, prefix }
    }

    /// What `relay adopt` prints about the table.
    async fn adopt(&self, more: &[&str]) -> Result<String, ProcessError> {
        let topic = format!("{}.{{aggregatetype}}", self.prefix);
        let arguments = ["adopt", "--table", "outboxevent", "--outbox-topic", &topic];
        programs::run("relay", &[&arguments, more].concat(), &[("DATABASE_URL", self.database.url())]).await
    }

    /// What `relay adopt` prints when it ends with exit code 3.
    async fn adopt_refused(&self, more: &[&str]) -> String {
        match self.adopt(more).await {
            Err(ProcessError::Ended { status, log, .. }) if status.code() == Some(3) => log,
            other => panic!("exit code 3 is expected: {other:?}"),
        }
    }

    /// Runs printed SQL as psql does: each statement by itself.
    async fn apply(&self, script: &str) {
        let mut connection = self.pool.acquire().await.expect("a connection");
        let lines: Vec<&str> = script.lines().filter(|line| !line.starts_with("--")).collect();
        for statement in lines.join("\n").split(";\n").filter(|statement| !statement.trim().is_empty()) {
            let done = connection.execute(AssertSqlSafe(statement.to_owned())).await;
            done.unwrap_or_else(|error| panic!("{error}: {statement}"));
        }
    }

    /// The relay with the settings that were printed.
    fn relay(&self, script: &str) -> Server {
        self.relay_with(script, &[])
    }

    fn relay_with(&self, script: &str, more: &[(&str, &str)]) -> Server {
        let settings = settings(script);
        assert_eq!(settings.len(), 6, "{script}");
        let settings = [&settings, more].concat();
        Server::relay_stages(&["publish"], self.database.url(), &self.brokers, "unused", NO_MAIL, &settings)
            .expect("the relay starts")
    }

    /// Runs a command of an operator for the table's sink.
    async fn operate(&self, args: &[&str], script: &str) -> Result<String, ProcessError> {
        let place = [("DATABASE_URL", self.database.url()), ("KAFKA_BROKERS", &self.brokers)];
        programs::run("relay", args, &[&place, &settings(script)[..]].concat()).await
    }

    /// What such a command prints as JSON.
    async fn json(&self, args: &[&str], script: &str) -> Value {
        let text = self.operate(&[args, &["--json"]].concat(), script).await.expect("exit code 0");
        serde_json::from_str(&text).expect("JSON")
    }

    /// Waits until nothing is asked of the publisher any more.
    async fn nothing_is_retried(&self) {
        eventually("the retry to be over", SOON, async || {
            let asked: i64 =
                sqlx::query_scalar("select count(*) from relay_retries").fetch_one(&self.pool).await.ok()?;
            (asked == 0).then_some(())
        })
        .await;
    }

    async fn commit(&self, kind: &str, aggregate: &str, payload: Option<&str>) -> Uuid {
        let id = Uuid::now_v7();
        sqlx::query(INSERT)
            .bind(id)
            .bind(kind)
            .bind(aggregate)
            .bind("Changed")
            .bind(payload)
            .execute(&self.pool)
            .await
            .expect("the event is written");
        id
    }

    /// Waits until every numbered row is settled by the sink.
    async fn settled(&self) {
        eventually("every row of the table to be settled", SOON, async || {
            let open: i64 = sqlx::query_scalar(
                "select count(*) from outboxevent where seq is not null and not exists
                 (select from relay_sinks where sink = 'outboxevent' and published @> seq)",
            )
            .fetch_one(&self.pool)
            .await
            .ok()?;
            (open == 0).then_some(())
        })
        .await;
    }

    async fn read(&self, kind: &str) -> Vec<Message> {
        read_topic(&self.brokers, &format!("{}.{kind}", self.prefix), SOON).await
    }

    /// Compares the table with the topics of these aggregate types event by event, and gives the number
    /// of repeats. The rows in `except` are expected not to be there.
    async fn compare(&self, types: &[&str], except: &HashSet<Uuid>) -> usize {
        let rows = sqlx::query(
            "select id, aggregatetype, aggregateid, type, payload::text as payload, seq from outboxevent where seq is not null",
        )
        .fetch_all(&self.pool)
        .await
        .expect("the table is read");
        let rows: HashMap<Uuid, _> = rows.iter().map(|row| (row.get::<Uuid, _>("id"), row)).collect();
        let (mut seen, mut repeats) = (HashSet::new(), 0);
        for kind in types {
            let mut latest: HashMap<String, i64> = HashMap::new();
            for message in self.read(kind).await {
                let id: Uuid = message.header("id").expect("header id").parse().expect("a UUID");
                let row = rows.get(&id).expect("on the topic is what was committed");
                let key = String::from_utf8(message.key.clone().expect("a key")).expect("UTF-8");
                let value = message.value.clone().map(|value| String::from_utf8(value).expect("UTF-8"));
                assert!(!except.contains(&id), "{id} was not to be published");
                assert_eq!(row.get::<&str, _>("aggregatetype"), *kind);
                assert_eq!(row.get::<&str, _>("aggregateid"), key);
                assert_eq!(row.get::<Option<String>, _>("payload"), value);
                assert_eq!(message.header("eventType"), Some(row.get::<&str, _>("type")));
                assert_eq!(message.headers.len(), 2);
                if !seen.insert(id) {
                    repeats += 1;
                    continue;
                }
                let seq = row.get::<i64, _>("seq");
                let before = latest.insert(key, seq).unwrap_or(0);
                assert!(before < seq, "first occurrences of an aggregate are in order");
            }
        }
        let lost: Vec<_> = rows.keys().filter(|id| !seen.contains(*id) && !except.contains(id)).collect();
        assert!(lost.is_empty(), "{} of {} events lost: {lost:?}", lost.len(), rows.len());
        repeats
    }
}

/// The settings that a script of `relay adopt` ends with.
fn settings(script: &str) -> Vec<(&str, &str)> {
    script
        .lines()
        .filter_map(|line| line.strip_prefix("--   ")?.split_once('='))
        .chain([("RELAY_LEASE_SECONDS", "2")])
        .collect()
}

/// The application at work: under the row lock of a purchase it writes one event of it and one of its
/// shipment, commits late, rolls back, and rolls back to savepoints, all at random.
async fn work(pool: PgPool, rounds: u32) {
    for _ in 0..rounds {
        let purchase = format!("p-{}", fastrand::u8(1..=12));
        let mut transaction = pool.begin().await.expect("begin");
        let locked = sqlx::query("update purchase set changes = changes + 1 where purchase_id = $1");
        locked.bind(&purchase).execute(&mut *transaction).await.expect("locked");
        for kind in ["purchase", "shipment"] {
            if fastrand::u8(..4) == 0 {
                transaction.execute("savepoint here").await.expect("savepoint");
            }
            let insert = sqlx::query(INSERT).bind(Uuid::now_v7()).bind(kind).bind(&purchase);
            let insert = insert.bind(format!("{kind}Changed")).bind(r#"{"lines": [1, 2], "ü": null}"#);
            insert.execute(&mut *transaction).await.expect("the event is written");
            if fastrand::u8(..4) == 0 {
                // Where there is no savepoint yet the whole work is given up.
                if transaction.execute("rollback to savepoint here").await.is_err() {
                    break;
                }
            }
        }
        if fastrand::u8(..4) == 0 {
            // Part of the work: a transaction that takes its time before it commits.
            tokio::time::sleep(Duration::from_millis(fastrand::u64(10..150))).await;
        }
        if fastrand::u8(..6) == 0 {
            transaction.rollback().await.expect("rolled back");
        } else {
            transaction.commit().await.expect("ended");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_of_debezium_is_taken_over_from_now_on_and_its_application_is_not_touched() {
    let world = World::create(&["purchase", "shipment"]).await;
    let headers = ["--outbox-headers", "type:eventType"];
    // Debezium has published these.
    let mut before = HashSet::new();
    for n in 1..=12 {
        before.insert(world.commit("purchase", &format!("p-{n}"), Some("{}")).await);
    }
    let script = world.adopt(&headers).await.expect("a migration");
    world.apply(&script).await;
    before.insert(world.commit("shipment", "p-1", Some("{}")).await);

    // Open at the moment of taking over: Debezium may or may not be asked for it, so the relay is.
    let mut open = world.pool.begin().await.expect("begin");
    let late = Uuid::now_v7();
    let insert = sqlx::query(INSERT).bind(late).bind("purchase").bind("p-late").bind("Late").bind("{}");
    insert.execute(&mut *open).await.expect("the event is written");
    before.insert(world.commit("shipment", "p-2", Some("{}")).await);
    world
        .apply(
            &world
                .adopt(&[&headers[..], &["--start-now", "--reason", "Debezium ends"]].concat())
                .await
                .expect("a statement"),
        )
        .await;

    let mut relay = world.relay(&script);
    relay.ready(SOON).await.expect("ready");
    let mut application = JoinSet::new();
    for _ in 0..6 {
        application.spawn(work(world.pool.clone(), 40));
    }
    open.commit().await.expect("committed");
    eventually("half of the events", SOON, async || {
        let count: i64 =
            sqlx::query_scalar("select count(*) from outboxevent").fetch_one(&world.pool).await.ok()?;
        (count > 150).then_some(())
    })
    .await;
    relay.kill().expect("killed");
    relay.start_again().expect("started again");
    application.join_all().await;
    let nothing = world.commit("purchase", "p-1", None).await;
    world.settled().await;

    world.compare(&["purchase", "shipment"], &before).await;
    let messages = world.read("purchase").await;
    let of = |id: Uuid| messages.iter().find(|message| message.header("id") == Some(&id.to_string()));
    assert!(of(late).is_some(), "what was open is published");
    assert!(of(nothing).is_some_and(|message| message.value.is_none()), "no payload is a tombstone");
    let recorded: (String, String, String) =
        sqlx::query_as("select changed_by, reason, details ->> 'sink' from relay_changes")
            .fetch_one(&world.pool)
            .await
            .expect("the start is recorded once");
    assert_eq!(recorded, ("demo".to_owned(), "Debezium ends".to_owned(), "outboxevent".to_owned()));
    relay.terminate().await.expect("ends with exit code 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_table_and_the_orders_share_a_database_and_never_touch_each_other() {
    let world = World::create(&["purchase", "shipment"]).await;
    let script = world.adopt(&["--outbox-headers", "type:eventType"]).await.expect("a migration");
    world.apply(&script).await;
    let topic = Topic::create(3).await;
    let lease = [("RELAY_LEASE_SECONDS", "2")];
    let mut orders = Server::relay_stages(
        &["publish"],
        world.database.url(),
        topic.brokers(),
        topic.name(),
        NO_MAIL,
        &lease,
    )
    .expect("the relay starts");
    let mut adopted = world.relay(&script);
    orders.ready(SOON).await.expect("ready");
    adopted.ready(SOON).await.expect("ready");

    // Both tables number their rows from 1. A transaction that writes to one holds no hole of the other open.
    let mut foreign = world.pool.begin().await.expect("begin");
    let insert =
        sqlx::query(INSERT).bind(Uuid::now_v7()).bind("purchase").bind("p-open").bind("Open").bind("{}");
    insert.execute(&mut *foreign).await.expect("written");
    let order_event = "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
                       select $1, 'order', $2, coalesce(max(version), 0) + 1, 'order.created.v1', '{}'
                       from outbox where aggregate_id = $2";
    let order = Uuid::now_v7();
    for round in 0..60 {
        let mut transaction = world.pool.begin().await.expect("begin");
        let insert = sqlx::query(order_event).bind(Uuid::now_v7()).bind(order);
        insert.execute(&mut *transaction).await.expect("written");
        if round % 5 == 1 {
            transaction.rollback().await.expect("rolled back");
        } else {
            transaction.commit().await.expect("committed");
        }
        world.commit("shipment", &format!("s-{}", round % 7), Some("{}")).await;
    }
    outbox::settled(&world.pool, SOON).await;
    eventually("the orders' holes to be closed", SOON, async || {
        let ranges: i64 =
            sqlx::query_scalar("select count(*) from relay_sinks, unnest(published) where sink = 'kafka'")
                .fetch_one(&world.pool)
                .await
                .ok()?;
        (ranges == 1).then_some(())
    })
    .await;
    world.settled().await;
    let gap: bool =
        sqlx::query_scalar("select not published @> 1::int8 from relay_sinks where sink = 'outboxevent'")
            .fetch_one(&world.pool)
            .await
            .expect("the sink");
    assert!(gap, "the open event's number is not given up");
    foreign.commit().await.expect("committed");
    world.settled().await;
    assert_eq!(outbox::compare(&world.pool, &topic, &HashSet::new()).await, 0);
    assert_eq!(world.compare(&["purchase", "shipment"], &HashSet::new()).await, 0);

    // Another table under a name that is taken is refused.
    world.pool.execute("create table other (like outboxevent including all)").await.expect("another table");
    let settings = [("RELAY_SINK", "outboxevent"), ("OUTBOX_SHAPE", "debezium"), ("OUTBOX_TABLE", "other")];
    let mut other = Server::relay_stages(
        &["publish"],
        world.database.url(),
        topic.brokers(),
        topic.name(),
        NO_MAIL,
        &settings,
    )
    .expect("the relay starts");
    let reason = eventually("the relay to say why it does nothing", SOON, async || {
        let answer = reqwest::get(format!("{}/readyz", other.url())).await.ok()?;
        let text = answer.text().await.ok()?;
        text.contains("outboxevent reads public.outboxevent").then_some(text)
    })
    .await;
    assert!(reason.contains("RELAY_SINK"), "{reason}");
    other.kill().expect("killed");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_cannot_be_published_takes_its_own_aggregate_aside_and_is_kept_whole() {
    let world = World::create(&["purchase"]).await;
    let script = world.adopt(&["--outbox-headers", "type:eventType"]).await.expect("a migration");
    world.apply(&script).await;
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(3 << 20).collect();
    world.commit("purchase", "big", Some("{}")).await;
    let mut parked = vec![
        world.commit("purchase", "big", Some(&format!("\"{noise}\""))).await,
        world.commit("purchase", "big", Some("{}")).await,
        world.commit("two words", "big", Some("[1]")).await,
    ];
    for n in 0..50 {
        world.commit("purchase", &format!("p-{n}"), Some("{}")).await;
    }
    let mut relay = world.relay(&script);
    relay.ready(SOON).await.expect("ready");
    world.settled().await;
    // One that is committed after the parking goes behind as well.
    parked.push(world.commit("purchase", "big", Some("[2]")).await);
    world.settled().await;

    let dead = sqlx::query(
        "select event_id, aggregate_type, source_id, source_key, convert_from(source_value, 'UTF8') as value,
                type, headers ->> 'eventType' as kind, cause, detail, version
         from relay_dead where sink = 'outboxevent' order by seq",
    )
    .fetch_all(&world.pool)
    .await
    .expect("dead");
    let causes: Vec<&str> = dead.iter().map(|row| row.get("cause")).collect();
    assert_eq!(causes, ["refused", "behind", "refused", "behind"]);
    for (row, id) in dead.iter().zip(&parked) {
        assert_eq!(row.get::<Uuid, _>("event_id"), *id);
        assert_eq!(row.get::<String, _>("source_id"), id.to_string());
        assert_eq!(row.get::<&str, _>("source_key"), "big");
        assert_eq!(row.get::<&str, _>("type"), "Changed");
        assert_eq!(row.get::<&str, _>("kind"), "Changed");
        assert_eq!(row.get::<i32, _>("version"), 0);
    }
    assert_eq!(dead[0].get::<String, _>("value").len(), noise.len() + 2);
    assert_eq!(dead[2].get::<&str, _>("aggregate_type"), "two words");
    assert!(dead[2].get::<&str, _>("detail").contains("no name of a Kafka topic"));
    assert_eq!(dead[3].get::<&str, _>("value"), "[2]");
    assert_eq!(world.compare(&["purchase"], &parked.into_iter().collect()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_migration_for_a_big_table_leaves_old_rows_alone_and_the_application_may_go_on_inserting() {
    let world = World::create(&["purchase"]).await;
    let role = format!("shop_{}", Uuid::now_v7().simple());
    let as_application = async |statement: &str| {
        let mut connection = world.pool.acquire().await.expect("a connection");
        let script = format!("set role {role}; {statement}; reset role");
        connection.execute(AssertSqlSafe(script)).await.expect("the application may do that");
    };
    let insert = |key: &str, value: &str| {
        format!(
            "insert into outboxevent (id, aggregatetype, aggregateid, type, payload)
             values (gen_random_uuid(), 'purchase', '{key}', 'Changed', {value})"
        )
    };
    // Its payload is bytes, Avro perhaps.
    let start = format!(
        "create role {role}; alter table outboxevent alter column payload type bytea using null;
         grant insert on outboxevent to {role}"
    );
    world.pool.execute(AssertSqlSafe(start)).await.expect("a role");
    as_application(&insert("old", "'\\xff00'")).await;

    let script = world.adopt(&["--online"]).await.expect("a migration");
    world.apply(&script).await;
    as_application(&insert("new", "'\\xff01'")).await;
    let mut relay = world.relay(&script);
    relay.ready(SOON).await.expect("ready");
    world.settled().await;
    let messages = world.read("purchase").await;
    assert_eq!(messages.len(), 1, "the old row was Debezium's");
    assert_eq!(messages[0].key.as_deref(), Some(&b"new"[..]));
    assert_eq!(messages[0].value.as_deref(), Some(&[0xff, 1][..]));

    let again = world.adopt(&[]).await.expect("once more");
    assert!(again.contains("numbered already") && !again.contains("add column"), "{again}");
    drop(relay);
    let end = format!("drop owned by {role}; drop role {role}");
    world.pool.execute(AssertSqlSafe(end)).await.expect("the role is gone");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_cannot_be_adopted_is_refused_with_the_reason_and_nothing_is_changed() {
    let world = World::create(&[]).await;
    assert!(
        world
            .adopt_refused(&["--start-now", "--reason", "a test"])
            .await
            .contains("wrong: there is no column `seq` yet")
    );
    let Err(ProcessError::Ended { status, log, .. }) = world.adopt(&["--start-now"]).await else {
        panic!("it needs a reason")
    };
    assert!(status.code() == Some(2) && log.contains("--reason"), "{log}");
    let unknown = world.adopt_refused(&["--outbox-headers", "traceid:traceparent"]).await;
    assert!(unknown.contains("no column `traceid`"), "{unknown}");

    for (change, reason) in [
        ("alter table outboxevent rename column payload to body", "no column `payload`"),
        ("alter table outboxevent add column payload point", "`payload` is point"),
        ("alter table outboxevent drop column payload, add column payload json", ""),
        ("alter table outboxevent alter column aggregateid drop not null", "`aggregateid` may be null"),
        (
            "alter table outboxevent alter column aggregateid set not null, add column seq bigint",
            "no sequence",
        ),
        (
            "alter table outboxevent drop column seq, add column seq bigint generated always as identity (cache 20)",
            "cache 1",
        ),
        ("alter table outboxevent alter column seq set cache 1", "no valid unique index"),
        ("alter table outboxevent set unlogged", "is unlogged"),
    ] {
        world.pool.execute(change).await.expect("the table is changed");
        if reason.is_empty() {
            continue;
        }
        let said = world.adopt_refused(&[]).await;
        assert!(said.contains("wrong: ") && said.contains(reason), "{reason}: {said}");
        assert!(!said.contains("create unique index"), "no SQL for a table that is refused: {said}");
    }
    assert!(world.adopt_refused(&["--json"]).await.contains("\"sql\": null"));

    let sinks: i64 =
        sqlx::query_scalar("select count(*) from relay_sinks").fetch_one(&world.pool).await.expect("counted");
    assert_eq!(sinks, 0);
    let nowhere = [("DATABASE_URL", world.database.url())];
    let none = programs::run("relay", &["adopt", "--table", "nowhere"], &nowhere);
    let Err(ProcessError::Ended { status, log, .. }) = none.await else {
        panic!("adopted a table that is not there")
    };
    assert_eq!(status.code(), Some(2), "{log}");
    let settings = [("DATABASE_URL", world.database.url()), ("OUTBOX_SHAPE", "debezium")];
    let Err(ProcessError::Ended { status, log, .. }) = programs::run("relay", &["run"], &settings).await
    else {
        panic!("the orders' sink is not for a foreign table")
    };
    assert!(status.code() == Some(2) && log.contains("RELAY_SINK"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_application_that_deletes_its_events_as_it_writes_them_is_noticed() {
    let world = World::create(&[]).await;
    let json: serde_json::Value =
        serde_json::from_str(&world.adopt(&["--json"]).await.expect("it fits")).expect("JSON");
    assert!(json["sql"].is_string() && json["notes"] == serde_json::json!([]), "{json}");
    let mut connection = world.pool.acquire().await.expect("a connection");
    let insert = "insert into outboxevent values (gen_random_uuid(), 'purchase', 'p-1', 'Changed', '{}')";
    connection
        .execute(AssertSqlSafe(format!("begin; {insert}; delete from outboxevent; commit")))
        .await
        .expect("inserted and deleted");
    // Statistics are written when a session ends.
    drop(connection.detach());
    eventually("the note", SOON, async || {
        world.adopt(&[]).await.expect("it fits").contains("note: every row").then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_deleted_before_it_is_published_is_a_hole_that_closes() {
    let world = World::create(&["purchase"]).await;
    let script = world.adopt(&["--outbox-headers", "type:eventType"]).await.expect("a migration");
    world.apply(&script).await;
    for _ in 0..3 {
        world.commit("purchase", "p-1", Some("{}")).await;
    }
    world.pool.execute("delete from outboxevent where seq = 2").await.expect("deleted");
    let mut relay = world.relay(&script);
    relay.ready(SOON).await.expect("ready");
    eventually("the hole to be closed", SOON, async || {
        let closed: bool = sqlx::query_scalar(
            "select published = '{[1,4)}'::int8multirange from relay_sinks where sink = 'outboxevent'",
        )
        .fetch_optional(&world.pool)
        .await
        .ok()??;
        closed.then_some(())
    })
    .await;
    assert_eq!(world.compare(&["purchase"], &HashSet::new()).await, 0);
    relay.terminate().await.expect("ends with exit code 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_an_adopted_table_are_shown_retried_and_discarded_from_their_copy_alone() {
    let world = World::create(&["purchase"]).await;
    let script = world.adopt(&["--outbox-headers", "type:eventType"]).await.expect("a migration");
    world.apply(&script).await;
    // The orders' events have the same numbers.
    let orders = "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
                  select gen_random_uuid(), 'order', gen_random_uuid(), 1, 'order.created.v1', '{}'
                  from generate_series(1, 9)";
    world.pool.execute(orders).await.expect("the orders' events");
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(3 << 20).collect();
    let first = world.commit("purchase", "big", Some(&format!("\"{noise}\""))).await;
    let second = world.commit("purchase", "big", None).await;
    let nameless = world.commit("two words", "x", Some("[1]")).await;
    let large = [("KAFKA_PROPERTIES", "message.max.bytes=8388608")];
    let mut relay = world.relay_with(&script, &large);
    relay.ready(SOON).await.expect("ready");
    world.settled().await;

    let listed = world.json(&["dead", "list"], &script).await;
    assert_eq!(listed["groups"].as_array().map(Vec::len), Some(3), "{listed}");
    let shown = world.json(&["dead", "show", &nameless.to_string()], &script).await;
    assert_eq!(shown[0]["sourceKey"], "x", "{shown}");
    assert_eq!((&shown[0]["sourceId"], &shown[0]["value"]), (&json!(nameless.to_string()), &json!("[1]")));
    let shown = world.json(&["dead", "show", &first.to_string()], &script).await;
    let aggregate = shown[0]["orderId"].as_str().expect("an aggregate").to_owned();
    let listed = world.operate(&["dead", "list", "--order", &aggregate], &script).await.expect("listed");
    assert!(listed.contains(&format!("(key big, id {second})")), "{listed}");

    // What is settled may be deleted by the application; and the topic takes large messages now.
    world.pool.execute("delete from outboxevent").await.expect("deleted");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &world.brokers).create().expect("a client");
    let topic = format!("{}.purchase", world.prefix);
    let change = AlterConfig::new(ResourceSpecifier::Topic(&topic)).set("max.message.bytes", "8388608");
    let done = admin.alter_configs([&change], &AdminOptions::new()).await.expect("Kafka answers");
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    world.operate(&["dead", "retry", "--all", "--reason", "a test"], &script).await.expect("asked");
    world.nothing_is_retried().await;
    let third = world.commit("purchase", "big", Some("[3]")).await;
    world.settled().await;

    let messages = world.read("purchase").await;
    let ids: Vec<_> = messages.iter().filter_map(|message| message.header("id")).collect();
    assert_eq!(ids, [first, second, third].map(|id| id.to_string()));
    let kinds: Vec<_> = messages.iter().map(|message| message.header("eventType")).collect();
    assert_eq!(kinds, [Some("Changed"); 3]);
    assert!(messages.iter().all(|message| message.key.as_deref() == Some(b"big")));
    let value = messages[0].value.as_deref().expect("a value");
    assert_eq!(value, format!("\"{noise}\"").as_bytes());
    assert_eq!(messages[1].value, None, "a tombstone stays one");
    // Refused again, it is parked again; no event of the orders is taken for it.
    let left: Vec<(String, String)> =
        sqlx::query_as("select source_id, cause from relay_dead").fetch_all(&world.pool).await.expect("dead");
    assert_eq!(left, [(nameless.to_string(), "refused".to_owned())]);
    let discard = ["dead", "discard", "--event", &nameless.to_string(), "--reason", "a typing error"];
    world.operate(&discard, &script).await.expect("discarded");
    world.nothing_is_retried().await;
    let (dead, discarded): (i64, Option<String>) = sqlx::query_as(
        "select (select count(*) from relay_dead), (select event ->> 'source_key' from relay_discarded)",
    )
    .fetch_one(&world.pool)
    .await
    .expect("read");
    assert_eq!((dead, discarded.as_deref()), (0, Some("x")));
    relay.terminate().await.expect("ends with exit code 0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_operator_sees_and_does_of_an_adopted_table_is_of_that_table() {
    let world = World::create(&["purchase"]).await;
    let script = world.adopt(&["--outbox-headers", "type:eventType"]).await.expect("a migration");
    // No mail server and no topic of orders here: what doctor says of the table is one line among others.
    let doctor =
        async |settings: &str| match world.operate(&["doctor", "--sink", "outboxevent"], settings).await {
            Err(ProcessError::Ended { log, .. }) => log,
            other => panic!("something is wrong here: {other:?}"),
        };
    let said = doctor(&script).await;
    assert!(said.contains("ERROR    outbox table") && said.contains("no column `seq`"), "{said}");
    world.apply(&script).await;
    let said = doctor(&script).await;
    assert!(said.contains("ok       outbox table"), "{said}");
    // Nine events of the orders are pending, and none of them is this sink's.
    let orders = "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
                  select gen_random_uuid(), 'order', gen_random_uuid(), 1, 'order.created.v1', '{}'
                  from generate_series(1, 9)";
    world.pool.execute(orders).await.expect("the orders' events");
    world.commit("purchase", "p-1", Some("{}")).await;
    let said = world.operate(&["once"], &script).await.expect("exit code 0");
    assert!(said.contains("everything that was there is published"), "{said}");
    assert_eq!(world.compare(&["purchase"], &HashSet::new()).await, 0);

    // One is pending, and one belongs to a transaction that is open.
    let mut open = world.pool.begin().await.expect("begin");
    open.execute("insert into outboxevent values (gen_random_uuid(), 'purchase', 'p-2', 'Changed', '{}')")
        .await
        .expect("written");
    world.commit("purchase", "p-1", Some("{}")).await;
    let status = world.json(&["status"], &script).await;
    let sink = &status["sinks"][0];
    assert_eq!((&sink["sink"], &sink["source"]), (&json!("outboxevent"), &json!("public.outboxevent")));
    assert_eq!(sink["pending"], json!({"events": 1, "exact": true}), "{status}");

    let mut relay = world.relay(&script);
    relay.ready(SOON).await.expect("ready");
    eventually("the metrics to be those of the table", SOON, async || {
        let page = reqwest::get(format!("{}/metrics", relay.url())).await.ok()?.text().await.ok()?;
        assert!(!page.contains("outbox_oldest_pending_age_seconds"), "its rows tell no time: {page}");
        let shows = |line: &str| page.lines().any(|found| found == line);
        (shows("outbox_pending_events 0") && shows("outbox_holes 1") && shows("relay_leader 1")).then_some(())
    })
    .await;
    let status = world.json(&["status"], &script).await;
    let holes = &status["sinks"][0]["holes"];
    assert_eq!(
        (&holes["numbers"], holes["writers"].as_array().map(Vec::len)),
        (&json!(1), Some(1)),
        "{status}"
    );
    open.commit().await.expect("committed");
    world.settled().await;
    relay.terminate().await.expect("ends with exit code 0");

    for command in [&["audit"][..], &["replay", "--all", "--dry-run"], &["explain", "1"]] {
        let Err(ProcessError::Ended { status, log, .. }) = world.operate(command, &script).await else {
            panic!("{command:?} knows the orders only")
        };
        assert!(status.code() == Some(2) && log.contains("public.outboxevent"), "{command:?}: {log}");
    }
    // The sink's own row tells which table it is.
    let said = doctor("").await;
    assert!(said.contains("ok       outbox table"), "{said}");
    world.pool.execute("drop table outboxevent").await.expect("dropped");
    let said = doctor("").await;
    assert!(said.contains("ERROR    outbox table") && said.contains("no such table"), "{said}");
    let status = world.json(&["status"], &script).await;
    assert_eq!(status["sinks"][0]["pending"], Value::Null, "what is not known is not shown as a number");
}
