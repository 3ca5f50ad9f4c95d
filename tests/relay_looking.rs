//! The relay's commands that look, from outside: real PostgreSQL, real Kafka, real processes, and
//! the settings of servers really broken.

#[path = "support/outbox.rs"]
mod outbox;

use std::process::{Output, Stdio};
use std::time::Duration;

use demo::mailbox::Mailbox;
use demo::programs::Server;
use demo::services::{Kafka, Postgres};
use demo::testing::{DATABASE_SERVER, Database, Topic, eventually, shared};
use outbox::settled;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{FutureProducer, FutureRecord};
use serde_json::{Value, json};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgPool};
use tokio::io::{AsyncBufReadExt, BufReader};
use uuid::Uuid;

const NO_MAIL: &str = "smtp://127.0.0.1:1";
const NO_KAFKA: &str = "127.0.0.1:1";
const SOON: Duration = Duration::from_secs(60);

/// Where the commands look.
struct Servers<'a> {
    database: &'a str,
    brokers: &'a str,
    topic: &'a str,
    smtp: &'a str,
}

impl Servers<'_> {
    async fn relay(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().await.expect("the relay is built")
    }

    fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut program = std::env::current_exe().expect("this file");
        program.pop();
        program.pop();
        let mut command = tokio::process::Command::new(program.join("relay"));
        command
            .args(arguments)
            .env_clear()
            .env("DATABASE_URL", self.database)
            .env("KAFKA_BROKERS", self.brokers)
            .env("KAFKA_TOPIC", self.topic)
            .env("SMTP_URL", self.smtp);
        command
    }

    /// Runs a command with `--json` and gives its exit code and what it printed.
    async fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.relay(&[arguments, &["--json"]].concat()).await;
        let code = output.status.code().expect("it ends by itself");
        let printed = serde_json::from_slice(&output.stdout);
        (code, printed.unwrap_or_else(|_| panic!("no JSON: {}", text(&output))))
    }

    async fn status(&self) -> Value {
        let (code, mut status) = self.json(&["status"]).await;
        assert_eq!(code, 0);
        status["sinks"][0].take()
    }

    /// The one event of a number.
    async fn explain(&self, event: Uuid) -> Value {
        let (code, mut life) = self.json(&["explain", &event.to_string()]).await;
        assert_eq!(code, 0, "{life}");
        assert_eq!(life["events"].as_array().map(Vec::len), Some(1), "{life}");
        life["events"][0].take()
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn at<'a>(database: &'a Database, topic: &'a Topic) -> Servers<'a> {
    Servers { database: database.url(), brokers: topic.brokers(), topic: topic.name(), smtp: NO_MAIL }
}

/// The finding of a check that is worse than ok; none when all of that name are.
fn bad<'a>(report: &'a Value, check: &str) -> Option<&'a Value> {
    report["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .find(|finding| finding["check"] == check && finding["severity"] != "ok")
}

#[track_caller]
fn assert_severity(report: &Value, check: &str, severity: &str) {
    let finding = bad(report, check).unwrap_or_else(|| panic!("{check} is no finding in {report:#}"));
    assert_eq!(finding["severity"], severity, "{finding}");
    assert!(finding["mend"].as_str().is_some_and(|mend| !mend.is_empty()), "{finding}");
}

async fn publisher(at: &Servers<'_>) -> Server {
    let settings = [("RELAY_LEASE_SECONDS", "2")];
    let mut relay = Server::relay_stages(&["publish"], at.database, at.brokers, at.topic, at.smtp, &settings)
        .expect("the relay starts");
    relay.ready(SOON).await.expect("ready");
    relay
}

/// Commits an event and gives its id.
async fn event(pool: &PgPool, order: Uuid, version: i32, payload: &str) -> Uuid {
    let id = Uuid::now_v7();
    write(pool, id, order, version, payload).await;
    id
}

async fn write(executor: impl sqlx::PgExecutor<'_>, id: Uuid, order: Uuid, version: i32, payload: &str) {
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         values ($1, 'order', $2, $3, 'order.created.v1', $4::json)",
    )
    .bind(id)
    .bind(order)
    .bind(version)
    .bind(payload)
    .execute(executor)
    .await
    .expect("the event is written");
}

async fn run(pool: &PgPool, sql: &'static str) {
    pool.execute(sql).await.expect(sql);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_who_publishes_what_waits_and_who_holds_a_hole() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let at = at(&database, &topic);
    let (code, nothing) = at.json(&["status"]).await;
    assert_eq!((code, &nothing["sinks"]), (0, &json!([])), "no relay has ever run");

    let mut relay = publisher(&at).await;
    for version in 1..=5 {
        event(&pool, Uuid::now_v7(), version, "{}").await;
    }
    settled(&pool, SOON).await;
    let status = eventually("a quiet publisher", SOON, async || {
        let status = at.status().await;
        (status["doing"] == "publishing").then_some(status)
    })
    .await;
    let holder = status["holder"].as_str().expect("somebody");
    assert!(holder.starts_with(&format!("relay-{}-", relay.process().id())), "{holder}");
    assert!(status["leaseSeconds"].as_f64().is_some_and(|left| left > 0.0 && left <= 2.0), "{status}");
    assert_eq!(status["circuit"], json!({"open": false, "reason": null, "since": null}));
    assert_eq!(status["pending"], json!({"events": 0, "exact": true}));
    assert_eq!((&status["oldestPendingSeconds"], &status["holes"]["numbers"]), (&Value::Null, &json!(0)));

    // A transaction that has written and not ended holds a hole, and is told by its name.
    let options: PgConnectOptions = database.url().parse().expect("a URL");
    let named =
        PgPoolOptions::new().connect_with(options.application_name("slow batch")).await.expect("connected");
    let mut open = named.begin().await.expect("begin");
    let pid: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut *open).await.expect("a pid");
    write(&mut *open, Uuid::now_v7(), Uuid::now_v7(), 1, "{}").await;
    let mut prepared = pool.acquire().await.expect("a connection");
    let gid = format!("two phases {}", Uuid::now_v7());
    prepared
        .execute(AssertSqlSafe(format!(
            "begin; insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
             values (gen_random_uuid(), 'order', gen_random_uuid(), 1, 'order.created.v1', '{{}}');
             prepare transaction '{gid}'"
        )))
        .await
        .expect("prepared");
    event(&pool, Uuid::now_v7(), 1, "{}").await;
    settled(&pool, SOON).await;
    let status = at.status().await;
    assert_eq!(status["holes"]["numbers"], 2, "{status}");
    let writers = status["holes"]["writers"].as_array().expect("writers");
    assert!(
        writers.iter().any(|writer| writer["pid"] == pid
            && writer["applicationName"] == "slow batch"
            && writer["state"] == "idle in transaction"
            && writer["since"].is_string()),
        "{status}"
    );
    assert!(
        writers.iter().any(|writer| writer["prepared"] == gid.as_str() && writer["since"].is_string()),
        "{status}"
    );
    let shown = text(&at.relay(&["status"]).await);
    assert!(shown.contains(&format!("pid {pid} (slow batch")) && shown.contains(&gid), "{shown}");
    prepared.execute(AssertSqlSafe(format!("rollback prepared '{gid}'"))).await.expect("rolled back");
    open.rollback().await.expect("rolled back");
    eventually("the holes to be closed", SOON, async || {
        (at.status().await["holes"] == json!({"numbers": 0, "writers": []})).then_some(())
    })
    .await;

    let mut watch = at.command(&["status", "--watch", "--json"]);
    let mut watch = watch.stdout(Stdio::piped()).kill_on_drop(true).spawn().expect("started");
    let mut lines = BufReader::new(watch.stdout.take().expect("its output")).lines();
    for _ in 0..3 {
        let line = tokio::time::timeout(SOON, lines.next_line()).await.expect("in time").expect("read");
        let status: Value = serde_json::from_str(&line.expect("one line after the other")).expect("JSON");
        assert_eq!(status["sinks"][0]["doing"], "publishing");
    }
    watch.kill().await.expect("ended");

    relay.kill().expect("killed");
    event(&pool, Uuid::now_v7(), 1, "{}").await;
    let status = eventually("the lease to end", SOON, async || {
        let status = at.status().await;
        (status["doing"] == "unattended").then_some(status)
    })
    .await;
    assert_eq!((&status["holder"], &status["pending"]["events"]), (&Value::Null, &json!(1)));
    assert!(status["oldestPendingSeconds"].as_f64().is_some_and(|age| age > 0.0), "{status}");
    run(&pool, "update relay_sinks set paused_at = now(), pause_reason = 'moving house'").await;
    let status = at.status().await;
    assert_eq!((&status["doing"], &status["paused"]["reason"]), (&json!("paused"), &json!("moving house")));
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_from_anywhere_that_kafka_is_away_and_that_it_is_back() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mut kafka = Kafka::start().await.expect("a broker");
    demo::topic::create(&kafka.brokers(), "away", 1).await.expect("a topic");
    let brokers = kafka.brokers();
    let at = Servers { database: database.url(), brokers: &brokers, topic: "away", smtp: NO_MAIL };
    let _relay = publisher(&at).await;
    kafka.kill().expect("killed");
    let waits = event(&pool, Uuid::now_v7(), 1, "{}").await;
    let status = eventually("the trouble to be told", SOON, async || {
        let status = at.status().await;
        (status["doing"] == "in-trouble").then_some(status)
    })
    .await;
    assert!(status["trouble"]["reason"].as_str().is_some_and(|why| why.starts_with("Kafka")), "{status}");
    assert!(status["trouble"]["since"].is_string());
    let circuit = &status["circuit"];
    assert_eq!(circuit["open"], true, "{status}");
    assert_eq!(
        (&circuit["reason"], &circuit["since"]),
        (&status["trouble"]["reason"], &status["trouble"]["since"])
    );
    let shown = text(&at.relay(&["status"]).await);
    assert!(shown.contains("circuit       open since ") && shown.contains("Kafka: "), "{shown}");
    let why = at.explain(waits).await;
    assert!(why["reason"].as_str().is_some_and(|why| why.contains("Kafka")), "{why}");

    kafka.start_again().await.expect("back");
    settled(&pool, SOON).await;
    eventually("the trouble to be over", SOON, async || {
        let status = at.status().await;
        (status["doing"] == "publishing" && status["trouble"].is_null() && status["circuit"]["open"] == false)
            .then_some(())
    })
    .await;
    let shown = text(&at.relay(&["status"]).await);
    assert!(shown.contains("circuit       closed"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pending_is_counted_without_reading_what_is_published() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let at = Servers { database: database.url(), brokers: NO_KAFKA, topic: "none", smtp: NO_MAIL };
    run(
        &pool,
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         select gen_random_uuid(), 'order', gen_random_uuid(), 1, 'order.created.v1', '{}'
         from generate_series(1, 200000)",
    )
    .await;
    // All published but the last 30 and ten in the middle, of which four were rolled back.
    run(&pool, "delete from outbox where seq between 100001 and 100004").await;
    run(
        &pool,
        "insert into relay_sinks (sink, published) values ('kafka', '{[1,100001),[100011,199971)}');
         analyze outbox",
    )
    .await;
    let read = "select heap_blks_hit + heap_blks_read + idx_blks_hit + idx_blks_read
                from pg_statio_user_tables where relname = 'outbox'";
    let blocks = async || {
        sqlx::raw_sql("select pg_stat_force_next_flush()").execute(&pool).await.expect("flushed");
        sqlx::query_scalar::<_, i64>(read).fetch_one(&pool).await.expect("counted")
    };
    let table: i64 = sqlx::query_scalar("select pg_relation_size('outbox') / 8192")
        .fetch_one(&pool)
        .await
        .expect("a size");
    let before = blocks().await;
    let status = at.status().await;
    assert_eq!(status["pending"], json!({"events": 36, "exact": true}));
    assert_eq!(status["holes"]["numbers"], 4);
    let after = eventually("the statistics of the command's session", SOON, async || {
        let now = blocks().await;
        (now > before).then_some(now)
    })
    .await;
    assert!(after - before < table / 10, "{} blocks of {table} were read", after - before);

    run(&pool, "update relay_sinks set published = '{[1,101)}'").await;
    assert_eq!(at.status().await["pending"], json!({"events": 199_900, "exact": false}));
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_the_whole_life_of_an_order_and_shows_no_address_unless_asked() {
    let database = Database::create().await;
    let topic = Topic::create(6).await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let smtp = mailbox.smtp_url();
    let at = Servers { smtp: &smtp, ..at(&database, &topic) };
    let mut api = Server::orders(at.database, &[]).expect("the API starts");
    let mut relay = Server::relay(at.database, at.brokers, at.topic, at.smtp, &[]).expect("the relay starts");
    api.ready(SOON).await.expect("ready");
    relay.ready(SOON).await.expect("ready");
    let http = reqwest::Client::new();
    let order: Value = http
        .post(format!("{}/orders", api.url()))
        .header("idempotency-key", "explained-1")
        .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
        .json(&json!({"customerId": 42, "amountCents": 2599, "customerEmail": "ada@example.com"}))
        .send()
        .await
        .expect("answered")
        .json()
        .await
        .expect("an order");
    let id = order["orderId"].as_str().expect("an id");
    let life = eventually("the mail to be sent", SOON, async || {
        let (_, life) = at.json(&["explain", id]).await;
        (life["events"][0]["done"] == true).then_some(life)
    })
    .await;
    let event = &life["events"][0];
    let steps: Vec<&str> =
        event["steps"].as_array().expect("steps").iter().filter_map(|step| step["step"].as_str()).collect();
    assert_eq!(steps, ["request", "written", "published", "handled", "e-mail", "sent"]);
    let step = |n: usize| event["steps"][n]["detail"].as_str().expect("a detail");
    assert!(step(0).contains("key explained-1") && step(0).contains("answered 201"), "{life:#}");
    assert_eq!(event["traceId"], "4bf92f3577b34da6a3ce929d0e0e4736");
    let message = &topic.read().await[0];
    assert_eq!(
        step(2),
        format!("partition {}, offset {} of {}", message.partition, message.offset, topic.name())
    );
    assert!(event["steps"][5]["afterSeconds"].is_number(), "{life:#}");

    let shown = text(&at.relay(&["explain", id]).await);
    assert!(shown.contains("=> published, and its e-mail is sent") && !shown.contains("ada@"), "{shown}");
    assert!(!life.to_string().contains("ada@"), "{life}");
    assert!(text(&at.relay(&["explain", id, "--show-addresses"]).await).contains("ada@example.com"));
    // The event's own id and its number tell the same.
    let (_, by_event) = at.json(&["explain", event["eventId"].as_str().expect("an id")]).await;
    let (_, by_number) = at.json(&["explain", &event["seq"].to_string()]).await;
    assert_eq!((&by_event["events"], &by_number["events"]), (&life["events"], &life["events"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_says_why_an_event_is_not_further_at_each_step() {
    let database = Database::create().await;
    let topic = Topic::create(6).await;
    let pool = database.pool().await;
    let at = at(&database, &topic);
    let reason = async |id: Uuid| {
        let event = at.explain(id).await;
        assert_eq!(event["done"], false, "{event}");
        event["reason"].as_str().expect("a reason").to_owned()
    };
    let unknown = at.relay(&["explain", &Uuid::now_v7().to_string()]).await;
    assert_eq!(unknown.status.code(), Some(1));
    assert!(
        text(&unknown).contains("no transaction that writes to the outbox is open"),
        "{}",
        text(&unknown)
    );
    let mut open = pool.begin().await.expect("begin");
    let invisible = Uuid::now_v7();
    write(&mut *open, invisible, Uuid::now_v7(), 1, "{}").await;
    let unknown = text(&at.relay(&["explain", &invisible.to_string()]).await);
    assert!(unknown.contains("not committed yet") && unknown.contains("idle in transaction"), "{unknown}");
    open.rollback().await.expect("rolled back");

    let order = Uuid::now_v7();
    let first = event(&pool, order, 1, "{}").await;
    assert!(reason(first).await.contains("no relay has ever published"));
    run(&pool, "insert into relay_sinks (sink) values ('kafka')").await;
    assert!(reason(first).await.contains("nobody holds the lease"));
    run(&pool, "update relay_sinks set paused_at = now(), pause_reason = 'moving house'").await;
    assert!(reason(first).await.contains("moving house"));
    run(&pool, "update relay_sinks set paused_at = null, pause_reason = null").await;

    // Above the topic's limit: parked, and the next version behind it.
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(3 << 20).collect();
    let big = event(&pool, order, 2, &format!("\"{noise}\"")).await;
    let behind = event(&pool, order, 3, "{}").await;
    let mut relay = publisher(&at).await;
    settled(&pool, SOON).await;
    let parked = reason(big).await;
    assert!(parked.contains("refused it for good") && parked.contains("relay dead retry"), "{parked}");
    assert!(reason(behind).await.contains("behind version 2"));
    // Nobody has handled the first: where it lies is found on the topic itself.
    let life = at.explain(first).await;
    let message = &topic.read().await[0];
    let place = format!("partition {}, offset {} of {}", message.partition, message.offset, topic.name());
    assert_eq!(life["steps"][1]["detail"], place, "{life:#}");
    assert!(reason(first).await.contains("relay run notify"));
    let without_kafka = Servers { brokers: NO_KAFKA, ..self::at(&database, &topic) };
    let life = without_kafka.explain(first).await;
    assert!(life["reason"].as_str().is_some_and(|why| why.contains("Kafka does not answer")), "{life}");

    relay.terminate().await.expect("ends");
    let lost = event(&pool, Uuid::now_v7(), 1, "{}").await;
    run(&pool, "update relay_sinks set published = published + int8multirange(int8range(1, 1000))").await;
    assert!(reason(lost).await.contains("not on the topic"), "{}", reason(lost).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_finds_what_was_published_before_partitions_were_added() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let at = at(&database, &topic);
    // Five of six keys lead to another partition afterwards.
    let mut ids = Vec::new();
    for _ in 0..8 {
        ids.push(event(&pool, Uuid::now_v7(), 1, "{}").await);
    }
    let mut relay = publisher(&at).await;
    settled(&pool, SOON).await;
    relay.terminate().await.expect("ends");
    let add = ["topic", "apply", "--partitions", "6", "--yes-move-orders", "--by", "ada"];
    assert_eq!(at.relay(&add).await.status.code(), Some(0));
    for id in ids {
        let life = at.explain(id).await;
        assert!(life["reason"].as_str().is_some_and(|why| why.starts_with("published; ")), "{life:#}");
        let place = life["steps"][1]["detail"].as_str().expect("a place");
        assert!(place.starts_with("partition 0, "), "{life:#}");
    }
    // What is in none of them is told as before.
    let lost = event(&pool, Uuid::now_v7(), 1, "{}").await;
    run(&pool, "update relay_sinks set published = published + int8multirange(int8range(1, 1000))").await;
    let life = at.explain(lost).await;
    assert!(life["reason"].as_str().is_some_and(|why| why.contains("not on the topic")), "{life:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn explain_tells_the_words_of_the_mail_server_without_the_address() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let at = at(&database, &topic);
    let (id, order) = (Uuid::now_v7(), Uuid::now_v7());
    write(&pool, id, order, 1, "{}").await;
    for sql in [
        "insert into relay_sinks (sink, published) values ('kafka', '{[1,100)}')",
        "insert into orders (order_id, client_id, customer_id, amount_cents, currency, customer_email, status, version, created_at)
         select aggregate_id, 'shop', 1, 1, 'USD', 'ada@example.com', 'created', 1, now() from outbox",
        "insert into inbox (consumer, event_id, aggregate_id, version, topic, kafka_partition, kafka_offset, published_at)
         select 'notify', event_id, aggregate_id, version, 'some.topic', 3, 17, now() from outbox",
        "insert into notifications (notification_id, kind, order_id, order_version, recipient, message_id, data, attempts, last_error)
         select gen_random_uuid(), 'confirmation', aggregate_id, 1, 'ada@example.com', '<1@x>', '{}', 2,
                '450 <ada@example.com>: mailbox busy' from outbox",
    ] {
        run(&pool, sql).await;
    }
    let event = at.explain(id).await;
    let reason = event["reason"].as_str().expect("a reason");
    assert!(
        reason.contains("2 times") && reason.contains("mailbox busy") && !reason.contains("ada@"),
        "{reason}"
    );
    let output = at.relay(&["explain", &id.to_string(), "--show-addresses"]).await;
    assert!(text(&output).contains("450 <ada@example.com>"), "{}", text(&output));
    run(&pool, "update notifications set state = 'unknown'").await;
    assert!(at.explain(id).await["reason"].as_str().is_some_and(|why| why.contains("same Message-ID")));
    run(&pool, "delete from notifications; update orders set customer_email = null").await;
    let event = at.explain(id).await;
    assert!(
        event["done"] == true
            && event["reason"].as_str().is_some_and(|why| why.contains("no e-mail address"))
    );
}

/// Puts a message on the topic as the relay would.
async fn produce(topic: &Topic, id: Uuid, order: Uuid, version: i32, payload: &str) {
    let (id, order, version) = (id.to_string(), order.to_string(), version.to_string());
    let now = chrono::Utc::now().to_rfc3339();
    let headers = [
        ("content-type", "application/json"),
        ("ce_specversion", "1.0"),
        ("ce_id", &id),
        ("ce_source", "/orders"),
        ("ce_type", "order.created.v1"),
        ("ce_subject", &order),
        ("ce_time", &now),
        ("ce_dataschema", "urn:orders:schema:order.created.v1"),
        ("ce_partitionkey", &order),
        ("ce_orderversion", &version),
        ("id", &id),
    ]
    .into_iter()
    .fold(OwnedHeaders::new(), |headers, (key, value)| headers.insert(Header { key, value: Some(value) }));
    let producer: FutureProducer =
        ClientConfig::new().set("bootstrap.servers", topic.brokers()).create().expect("a producer");
    producer
        .send(
            FutureRecord::to(topic.name()).key(&order).payload(payload).headers(headers),
            Duration::from_secs(30),
        )
        .await
        .expect("produced");
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_finds_what_is_missing_extra_changed_and_out_of_order_and_nothing_else() {
    let database = Database::create().await;
    let topic = Topic::create(3).await;
    let pool = database.pool().await;
    let at = at(&database, &topic);
    let mut ids = Vec::new();
    for _ in 0..40 {
        let order = Uuid::now_v7();
        for version in 1..=3 {
            ids.push((order, event(&pool, order, version, "{\"a\": 1}").await));
        }
    }
    let mut relay = publisher(&at).await;
    settled(&pool, SOON).await;
    relay.kill().expect("killed");
    // What the killed relay had not checkpointed is published again: repeats are no finding.
    run(&pool, "update relay_sinks set published = published - int8multirange(int8range(1, 31))").await;
    relay.start_again().expect("started");
    settled(&pool, SOON).await;
    relay.terminate().await.expect("ends");
    let pending = event(&pool, Uuid::now_v7(), 1, "{}").await;
    let (code, report) = at.json(&["audit"]).await;
    assert_eq!(code, 0, "{report:#}");
    assert_eq!(
        (&report["compared"], &report["repeats"], &report["pending"]),
        (&json!(120), &json!(30), &json!(1))
    );

    let (changed, missing, extra, late) = (ids[0], ids[30], Uuid::now_v7(), Uuid::now_v7());
    sqlx::query("update outbox set payload = '{\"a\": 2}' where event_id = $1")
        .bind(changed.1)
        .execute(&pool)
        .await
        .expect("changed");
    // As if it had been settled and never sent: its row gets another id, and the old one is extra.
    sqlx::query("update outbox set event_id = $2 where event_id = $1")
        .bind(missing.1)
        .bind(extra)
        .execute(&pool)
        .await
        .expect("swapped");
    // Version 4 before a later "version 3" of the same order, under an id of its own.
    let order = ids[60].0;
    produce(&topic, pending, order, 4, "{}").await;
    write(&pool, late, order, 4, "{}").await;
    produce(&topic, late, order, 4, "{}").await;
    let (code, report) = at.json(&["audit"]).await;
    assert_eq!(code, 3, "{report:#}");
    let found = |kind: &str| -> Vec<String> {
        let findings = report["findings"].as_array().expect("findings").iter();
        findings
            .filter(|f| f["kind"] == kind)
            .map(|f| f["eventId"].as_str().expect("an id").to_owned())
            .collect()
    };
    assert_eq!(found("missing"), [extra.to_string()], "the row's new id is not on the topic");
    assert_eq!(found("extra"), [missing.1.to_string()]);
    assert_eq!(found("outOfOrder"), [late.to_string()]);
    assert!(found("changed").contains(&changed.1.to_string()), "{report:#}");
    assert_eq!(
        (&report["missing"], &report["extra"], &report["outOfOrder"]),
        (&json!(1), &json!(1), &json!(1))
    );
    let shown = at.relay(&["audit"]).await;
    assert_eq!(shown.status.code(), Some(3));
    assert!(text(&shown).contains(&format!("missing: event {extra}")), "{}", text(&shown));

    // A range that leaves the wrong ones out finds nothing.
    let (code, report) = at.json(&["audit", "--from", "70", "--to", "100"]).await;
    assert_eq!((code, &report["compared"]), (0, &json!(31)), "{report:#}");
    let time: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select created_at from outbox where seq = 70")
            .fetch_one(&pool)
            .await
            .expect("a time");
    let until: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("select created_at from outbox where seq = 100")
            .fetch_one(&pool)
            .await
            .expect("a time");
    let (code, by_time) =
        at.json(&["audit", "--from", &time.to_rfc3339(), "--to", &until.to_rfc3339()]).await;
    assert_eq!((code, &by_time["compared"]), (0, &json!(31)), "{by_time:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_shows_what_a_point_in_time_recovery_took_from_the_database() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let at = at(&database, &topic);
    let order = Uuid::now_v7();
    let mut ids = Vec::new();
    for version in 1..=4 {
        ids.push(event(&pool, order, version, "{}").await);
    }
    let mut relay = publisher(&at).await;
    settled(&pool, SOON).await;
    relay.terminate().await.expect("ends");
    // The database goes back to when two events were there: rows, sequence and checkpoint.
    run(
        &pool,
        "delete from outbox where seq > 2; select setval('outbox_seq_seq', 2);
         update relay_sinks set published = '{[1,3)}'",
    )
    .await;
    let again = event(&pool, order, 3, "{\"other\": true}").await;
    relay.start_again().expect("started");
    settled(&pool, SOON).await;
    let (code, report) = at.json(&["audit"]).await;
    assert_eq!(code, 3);
    let mut extra: Vec<_> = report["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .filter(|f| f["kind"] == "extra")
        .map(|f| f["eventId"].as_str().expect("an id").to_owned())
        .collect();
    extra.sort();
    assert_eq!(extra, [ids[2].to_string(), ids[3].to_string()], "the two that the database forgot");
    // The number and the version are used again: under a new id, so it is out of order and not a repeat.
    let late: Vec<_> = report["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .filter(|f| f["kind"] == "outOfOrder")
        .collect();
    assert_eq!(late.len(), 1, "{report:#}");
    assert_eq!(late[0]["eventId"], again.to_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn audit_expects_no_dead_letters_and_blames_no_retention() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let pool = database.pool().await;
    let at = at(&database, &topic);
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(3 << 20).collect();
    let order = Uuid::now_v7();
    event(&pool, order, 1, &format!("\"{noise}\"")).await;
    event(&pool, order, 2, "{}").await;
    for _ in 0..20 {
        event(&pool, Uuid::now_v7(), 1, "{}").await;
    }
    let mut relay = publisher(&at).await;
    settled(&pool, SOON).await;
    relay.terminate().await.expect("ends");
    let (code, report) = at.json(&["audit"]).await;
    assert_eq!((code, &report["parked"], &report["compared"]), (0, &json!(2), &json!(20)), "{report:#}");
    // The outbox's retention: what is gone there is not extra on the topic.
    run(&pool, "delete from outbox where seq <= 12").await;
    let (code, report) = at.json(&["audit"]).await;
    assert_eq!((code, &report["compared"], &report["outOfRange"]), (0, &json!(10), &json!(10)), "{report:#}");
    run(&pool, "delete from outbox").await;
    let (code, report) = at.json(&["audit"]).await;
    assert_eq!((code, &report["compared"]), (0, &json!(0)), "{report:#}");

    let nowhere = Servers { brokers: NO_KAFKA, ..self::at(&database, &topic) };
    assert_eq!(nowhere.relay(&["audit"]).await.status.code(), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_the_settings_that_undo_a_guarantee_and_says_how_to_mend_them() {
    let server = Postgres::start().await.expect("a server");
    let options: PgConnectOptions = server.url().parse().expect("a URL");
    let pool =
        PgPoolOptions::new().max_connections(2).connect_with(options.clone()).await.expect("connected");
    let topic = Topic::create(1).await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let (url, smtp) = (server.url(), mailbox.smtp_url());
    let at = Servers { database: &url, brokers: topic.brokers(), topic: topic.name(), smtp: &smtp };

    let (code, report) = at.json(&["doctor"]).await;
    assert_eq!(code, 3);
    assert_severity(&report, "schema", "error");
    orders::MIGRATOR.run(&pool).await.expect("migrated");
    let (code, report) = at.json(&["doctor"]).await;
    assert_eq!(code, 3, "one replica is a warning");
    for check in [
        "schema",
        "postgresql fsync",
        "postgresql full_page_writes",
        "postgresql synchronous_commit",
        "outbox sequence",
        "rights",
        "clocks",
        "mail server",
        "kafka",
        "kafka producer",
        "vacuum",
        "postgresql statement_timeout",
        "postgresql transaction_timeout",
        "postgresql idle_in_transaction",
        "topic retention",
        "notify dedup keys",
    ] {
        assert!(bad(&report, check).is_none(), "{check} in {report:#}");
    }
    // What the relay keeps decides how long the topic has to keep, and may.
    let keeps = ["doctor", "--relay-retention-days", "8", "--relay-inbox-retention-days", "7"];
    let (_, kept) = at.json(&keeps).await;
    assert_severity(&kept, "topic retention", "warning");
    assert_severity(&kept, "notify dedup keys", "warning");
    assert_severity(&report, "topic replication", "warning");
    assert_severity(&report, "min.insync.replicas", "warning");
    assert_eq!(report["worst"], "warning", "{report:#}");

    for sql in [
        "alter system set fsync = off",
        "alter system set full_page_writes = off",
        "alter system set autovacuum = off",
        "alter table outbox alter seq set cache 20",
        "alter table inbox set (autovacuum_enabled = false)",
        "create role api login; alter role api set synchronous_commit = off",
        "update _sqlx_migrations set checksum = 'other' where version = 1",
        "select pg_reload_conf()",
    ] {
        run(&pool, sql).await;
    }
    let report = eventually("the server to have taken its settings", SOON, async || {
        let (_, report) = at.json(&["doctor"]).await;
        bad(&report, "postgresql fsync").is_some().then_some(report)
    })
    .await;
    for check in [
        "postgresql fsync",
        "postgresql full_page_writes",
        "postgresql synchronous_commit",
        "outbox sequence",
        "schema",
    ] {
        assert_severity(&report, check, "error");
    }
    assert_severity(&report, "postgresql autovacuum", "warning");
    for sql in [
        "alter role api set synchronous_commit = 'No'",
        "alter role current_user set statement_timeout = '30s'",
        "alter role current_user set transaction_timeout = '30s'",
        "alter role current_user set idle_in_transaction_session_timeout = '30s'",
    ] {
        run(&pool, sql).await;
    }
    let (_, report) = at.json(&["doctor"]).await;
    assert_severity(&report, "postgresql synchronous_commit", "error");
    for check in ["statement_timeout", "transaction_timeout", "idle_in_transaction"] {
        assert_severity(&report, &format!("postgresql {check}"), "warning");
    }
    run(&pool, "alter role api reset all").await;
    run(&pool, "alter role current_user reset all").await;
    let (_, report) = at.json(&["doctor"]).await;
    assert!(bad(&report, "postgresql synchronous_commit").is_none(), "{report:#}");
    run(&pool, "alter table outbox alter seq set cache 1").await;
    run(&pool, "insert into relay_sinks (sink, published) values ('kafka', '{[1,100)}')").await;
    let (_, report) = at.json(&["doctor"]).await;
    let ahead = bad(&report, "outbox sequence").expect("numbers would be used again");
    assert!(ahead["found"].as_str().is_some_and(|found| found.contains("never be published")), "{ahead}");
    run(&pool, "delete from _sqlx_migrations where version >= 5").await;
    run(&pool, "update _sqlx_migrations set checksum = 'x'").await;
    let shown = text(&at.relay(&["doctor"]).await);
    assert!(
        shown.contains("ERROR    postgresql fsync") && shown.contains("alter system set fsync = on"),
        "{shown}"
    );

    // A role that may hardly anything, and not see who holds holes.
    run(&pool, "create role reader login; grant select on outbox, orders, relay_dead to reader").await;
    let reader = options.username("reader").to_url_lossy().to_string();
    let (code, report) = Servers { database: &reader, ..at }.json(&["doctor"]).await;
    assert_eq!(code, 3);
    let rights: Vec<_> = report["findings"]
        .as_array()
        .expect("findings")
        .iter()
        .filter(|f| f["check"] == "rights")
        .map(|f| f["mend"].as_str().expect("a mend").to_owned())
        .collect();
    assert!(
        rights.contains(&"grant insert, select, update on relay_sinks to reader".to_owned()),
        "{rights:?}"
    );
    assert!(rights.contains(&"grant pg_read_all_stats to reader".to_owned()), "{rights:?}");
    assert!(!rights.iter().any(|mend| mend.contains(" on orders ")), "{rights:?}");
    // The relay's own vacuum would be skipped with a mere warning of PostgreSQL.
    let vacuum = bad(&report, "vacuum").expect("it may not vacuum");
    assert_eq!(vacuum["mend"], "grant maintain on outbox to reader");
    run(&pool, "grant maintain on outbox to reader").await;
    let (_, report) = Servers { database: &reader, ..at }.json(&["doctor"]).await;
    assert!(bad(&report, "vacuum").is_none(), "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_finds_that_kafka_lets_the_relay_write_nothing_and_writes_nothing_to_find_it() {
    let database = Database::create().await;
    let kafka = Kafka::start_with_rights().await.expect("a Kafka of our own");
    let topic = Topic::create_on(&kafka.brokers(), 1, &[]).await;
    let at = at(&database, &topic);
    let (_, report) = at.json(&["doctor"]).await;
    assert!(bad(&report, "kafka producer").is_none(), "{report:#}");

    // A producer id takes Write on any topic, or IdempotentWrite on the cluster.
    let everybody = "User:ANONYMOUS";
    let allowed = |operation| ["--add", "--allow-principal", everybody, "--operation", operation];
    kafka.rights("*", &allowed("Describe")).await.expect("topics may be looked at");
    kafka.cluster_rights(&allowed("All")).await.expect("the broker goes on");
    let denied = ["--add", "--deny-principal", everybody, "--operation", "IdempotentWrite"];
    kafka.cluster_rights(&denied).await.expect("denied");
    let (code, report) = at.json(&["doctor"]).await;
    assert_severity(&report, "kafka producer", "error");
    assert_eq!(code, 4, "no mail server");
    let mend = bad(&report, "kafka producer").and_then(|finding| finding["mend"].as_str());
    assert!(mend.is_some_and(|mend| mend.contains(topic.name())), "{report:#}");
    kafka.rights(topic.name(), &allowed("Write")).await.expect("it may be written to");
    let (_, report) = at.json(&["doctor"]).await;
    assert!(bad(&report, "kafka producer").is_none(), "{report:#}");
    kafka.rights(topic.name(), &allowed("Read")).await.expect("it may be read");
    assert_eq!(topic.read().await.len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_says_which_server_is_down_and_checks_the_others_all_the_same() {
    let database = Database::create().await;
    let topic = Topic::create(1).await;
    let nothing =
        Servers { database: "postgres://127.0.0.1:1/none", brokers: NO_KAFKA, topic: "none", smtp: NO_MAIL };
    let (code, report) = nothing.json(&["doctor"]).await;
    assert_eq!(code, 4);
    for check in ["postgresql", "kafka", "mail server"] {
        assert_severity(&report, check, "down");
    }
    let (code, report) = at(&database, &topic).json(&["doctor"]).await;
    assert_eq!(code, 4);
    assert_severity(&report, "mail server", "down");
    assert!(bad(&report, "schema").is_none() && bad(&report, "kafka").is_none(), "{report:#}");

    // A mail server that answers and has no TLS, though it is required.
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let smtp = format!("{}?tls=required", mailbox.smtp_url());
    let absent = Uuid::now_v7().to_string();
    let (code, report) =
        Servers { smtp: &smtp, topic: &absent, ..at(&database, &topic) }.json(&["doctor"]).await;
    assert_eq!(code, 3);
    assert_severity(&report, "mail server", "error");
    assert_severity(&report, "topic", "error");
    assert_eq!(mailbox.count(), 0, "nothing is sent");
    let plain = Servers { smtp: "smtp://mail.invalid:2525", ..at(&database, &topic) };
    let (_, report) = plain.json(&["doctor"]).await;
    assert_severity(&report, "mail encryption", "warning");
    let secret = Servers { smtp: "smtps://ada:hunter2@mail.invalid:2525", ..at(&database, &topic) };
    let (_, report) = secret.json(&["doctor"]).await;
    assert_severity(&report, "mail server", "down");
    assert!(!report.to_string().contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn topic_apply_creates_once_raises_never_reduces_and_moves_orders_only_when_told() {
    let brokers = shared(demo::testing::KAFKA_BROKERS);
    let name = format!("test_{}", Uuid::now_v7().simple());
    let database = Database::create().await;
    let at = Servers { database: database.url(), brokers: &brokers, topic: &name, smtp: NO_MAIL };
    let changes = |report: &Value| report["changes"].as_array().expect("changes").len();

    let (code, report) =
        at.json(&["topic", "apply", "--partitions", "3", "--retention", "14d", "--dry-run"]).await;
    assert_eq!((code, changes(&report)), (3, 2), "the topic and that of the dead letters");
    // Where a record is kept it has a name, and nothing is made without it.
    let nameless = at.relay(&["topic", "apply", "--partitions", "3"]).await;
    assert_eq!(nameless.status.code(), Some(2), "nobody is logged in");
    assert!(text(&nameless).contains("--by"), "{}", text(&nameless));
    let away = Servers { database: "postgres://127.0.0.1:1/none", ..at };
    assert_eq!(away.relay(&["topic", "apply", "--by", "ada"]).await.status.code(), Some(4));
    let by = ["--by", "ada", "--reason", "the shop opens"];
    let create = ["topic", "apply", "--partitions", "3", "--retention", "14d"];
    let (code, report) = at.json(&[&create[..], &by].concat()).await;
    assert_eq!((code, changes(&report)), (0, 2), "nothing was made before");
    let (_, record) = at.json(&["changes"]).await;
    assert_eq!(record.as_array().map(Vec::len), Some(1), "{record:#}");
    assert_eq!(
        (&record[0]["command"], &record[0]["by"], &record[0]["reason"]),
        (&json!("topic apply"), &json!("ada"), &json!("the shop opens"))
    );
    assert_eq!(
        (&record[0]["details"]["topic"], &record[0]["details"]["changes"]),
        (&json!(name), &report["changes"])
    );
    assert_severity(&report, "topic replication", "warning");
    assert_severity(&report, "min.insync.replicas", "warning");
    for check in ["unclean.leader.election.enable", "max.message.bytes", "cleanup.policy", "topic retention"]
    {
        assert!(bad(&report, check).is_none(), "{check} in {report:#}");
    }
    let (code, report) = at.json(&["topic", "apply", "--partitions", "3", "--retention", "14d"]).await;
    assert_eq!((code, changes(&report)), (0, 0), "again changes nothing: {report:#}");
    let (_, record) = at.json(&["changes"]).await;
    assert_eq!(record.as_array().map(Vec::len), Some(1), "and is no change: {record:#}");

    for (arguments, why) in [
        (&["--partitions", "2"][..], "cannot take any away"),
        (&["--partitions", "6"], "--yes-move-orders"),
        (&["--replication", "2"], "kafka-reassign-partitions"),
        (&["--retention", "1d"], "to reduce it"),
        (&["--min-insync-replicas", "2"], "nothing could be written"),
    ] {
        let refused = at.relay(&[&["topic", "apply"], arguments].concat()).await;
        assert_eq!(refused.status.code(), Some(1), "{arguments:?}");
        assert!(text(&refused).contains(why), "{}", text(&refused));
    }
    // What somebody else has set on the topic is left as it was when one setting is changed.
    let others = AlterConfig::new(ResourceSpecifier::Topic(&name))
        .set("retention.ms", "1209600000")
        .set("retention.bytes", "10000000000");
    let admin: AdminClient<DefaultClientContext> =
        ClientConfig::new().set("bootstrap.servers", &brokers).create().expect("an admin client");
    admin.alter_configs([&others], &AdminOptions::new()).await.expect("answered")[0].as_ref().expect("set");
    let (code, report) = at
        .json(&[
            "topic",
            "apply",
            "--partitions",
            "6",
            "--yes-move-orders",
            "--retention",
            "forever",
            "--by",
            "ada",
        ])
        .await;
    assert_eq!((code, changes(&report)), (0, 2), "{report:#}");
    let (code, report) =
        at.json(&["topic", "apply", "--dry-run", "--partitions", "6", "--retention", "forever"]).await;
    assert_eq!((code, changes(&report)), (3, 0), "{report:#}");
    let by_size = bad(&report, "topic retention").expect("what was set by others");
    assert!(by_size["found"].as_str().is_some_and(|found| found.contains("10000000000")), "{by_size}");
    assert_severity(&report, "notify dedup keys", "warning");
    assert_eq!(Servers { brokers: NO_KAFKA, ..at }.relay(&["topic", "apply"]).await.status.code(), Some(4));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_too_old_and_a_database_that_is_away_are_told_apart() {
    let server: PgConnectOptions = shared(DATABASE_SERVER).parse().expect("a URL");
    let name = format!("test_{}", Uuid::now_v7().simple());
    let mut admin = server.connect().await.expect("connected");
    admin.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("created");
    let url = server.database(&name).to_url_lossy().to_string();
    let old = Servers { database: &url, brokers: NO_KAFKA, topic: "none", smtp: NO_MAIL };
    let output = old.relay(&["status"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("orders migrate"), "{}", text(&output));
    let away = Servers { database: "postgres://127.0.0.1:1/none", ..old };
    assert_eq!(away.relay(&["status"]).await.status.code(), Some(4));
}
