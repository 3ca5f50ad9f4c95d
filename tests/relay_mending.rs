//! What operators change while the relay runs: pausing, dead letters, replays, publishing once. Real
//! PostgreSQL, real Kafka, real processes.

#[path = "support/outbox.rs"]
mod outbox;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use demo::process::ProcessError;
use demo::programs::Server;
use demo::testing::{Database, Topic, eventually};
use demo::topic::Message;
use events::inbox::{HandleError, Handler, Inbox, Pass, Settings};
use events::kafka::Event;
use outbox::{append, compare, compare_with, settled};
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier};
use rdkafka::client::DefaultClientContext;
use serde_json::{Value, json};
use sqlx::{Executor, PgConnection, PgPool};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use uuid::Uuid;

const NO_MAIL: &str = "smtp://127.0.0.1:1";
const SOON: Duration = Duration::from_secs(90);
/// More than a topic's max.message.bytes, 1 MiB by default.
const OVERSIZED: usize = 3 << 20;

/// A database and a topic, and the programs on them.
struct Place {
    database: Database,
    topic: Topic,
    pool: PgPool,
}

impl Place {
    async fn new(partitions: i32) -> Self {
        let database = Database::create().await;
        let pool = database.pool().await;
        Self { pool, topic: Topic::create(partitions).await, database }
    }

    /// A publisher whose own limit of a message's size is above the topic's.
    async fn publisher(&self) -> Server {
        let settings = [("RELAY_LEASE_SECONDS", "4"), ("KAFKA_PROPERTIES", "message.max.bytes=8388608")];
        let (database, topic) = (self.database.url(), &self.topic);
        let mut relay =
            Server::relay_stages(&["publish"], database, topic.brokers(), topic.name(), NO_MAIL, &settings)
                .expect("the relay starts");
        relay.ready(SOON).await.expect("ready");
        relay
    }

    fn settings(&self) -> [(&str, &str); 3] {
        [
            ("DATABASE_URL", self.database.url()),
            ("KAFKA_BROKERS", self.topic.brokers()),
            ("KAFKA_TOPIC", self.topic.name()),
        ]
    }

    /// Runs a command that has to end with exit code 0.
    async fn relay(&self, args: &[&str]) -> String {
        demo::programs::run("relay", args, &self.settings()).await.expect("exit code 0")
    }

    async fn json(&self, args: &[&str]) -> Value {
        serde_json::from_str(&self.relay(&[args, &["--json"]].concat()).await).expect("JSON")
    }

    /// Starts a command and does not wait for it.
    fn start(&self, args: &[&str]) -> Child {
        Command::new(program())
            .args(args)
            .envs(self.settings())
            .env("RELAY_OPERATOR", "ada")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the command starts")
    }

    /// Runs a command with `--json`; gives its exit code and what it printed, what it said beside it left out.
    async fn printed(&self, args: &[&str]) -> (Option<i32>, Value) {
        let command = Command::new(program())
            .args(args)
            .arg("--json")
            .envs(self.settings())
            .env("RELAY_OPERATOR", "ada")
            .output()
            .await
            .expect("the command starts");
        let printed = serde_json::from_slice(&command.stdout);
        (command.status.code(), printed.unwrap_or_else(|error| panic!("{args:?} gave no JSON: {error}")))
    }

    /// Publishes ten versions of each of twenty orders, and starts a replay of them to `elsewhere`, forty a
    /// second; gives it when it is in the middle, with its id.
    async fn replay(&self, elsewhere: &Topic) -> (Child, String) {
        let orders: Vec<Uuid> = std::iter::repeat_with(Uuid::now_v7).take(20).collect();
        for version in 1..=10 {
            for order in &orders {
                self.commit(*order, version, "{}").await;
            }
        }
        settled(&self.pool, SOON).await;
        let to = ["--to-topic", elsewhere.name(), "--rate", "40", "--reason", "a test"];
        let replay = self.start(&[&["replay", "--all"], &to[..]].concat());
        let id = eventually("the replay to be under way", SOON, async || {
            let (id, published): (i64, i64) =
                sqlx::query_as("select replay_id, published from relay_replays")
                    .fetch_optional(&self.pool)
                    .await
                    .ok()??;
            (published > 80).then_some(id)
        })
        .await;
        (replay, id.to_string())
    }

    /// As if nothing had been seen of the replays for ten minutes.
    async fn nobody_has_seen_the_replays(&self) {
        sqlx::query("update relay_replays set seen_at = seen_at - interval '10 minutes'")
            .execute(&self.pool)
            .await
            .expect("time passes");
    }

    /// Runs a command that has to fail, and gives its exit code and what it says.
    async fn refused(&self, args: &[&str]) -> (Option<i32>, String) {
        match demo::programs::run("relay", args, &self.settings()).await {
            Err(ProcessError::Ended { status, log, .. }) => (status.code(), log),
            other => panic!("{args:?} gave {other:?}"),
        }
    }

    async fn commit(&self, order: Uuid, version: i32, payload: &str) {
        sqlx::query(
            "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
             values ($1, 'order', $2, $3, 'order.created.v1', $4::json)",
        )
        .bind(Uuid::now_v7())
        .bind(order)
        .bind(version)
        .bind(payload)
        .execute(&self.pool)
        .await
        .expect("the event is written");
    }

    async fn dead(&self) -> Vec<(i32, String)> {
        sqlx::query_as("select version, cause from relay_dead order by seq")
            .fetch_all(&self.pool)
            .await
            .expect("dead letters")
    }

    /// Waits until these versions are parked.
    async fn parked(&self, versions: &[i32]) {
        eventually("the dead letters", SOON, async || {
            let dead: Vec<i32> = self.dead().await.into_iter().map(|(version, _)| version).collect();
            (dead == versions).then_some(())
        })
        .await;
    }

    /// Waits until nothing is asked for any more.
    async fn nothing_is_retried(&self) {
        eventually("the retry to be over", SOON, async || {
            let asked: i64 =
                sqlx::query_scalar("select count(*) from relay_retries").fetch_one(&self.pool).await.ok()?;
            (asked == 0).then_some(())
        })
        .await;
    }

    async fn allow_large_messages(&self) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", self.topic.brokers()).create().expect("a client");
        let change =
            AlterConfig::new(ResourceSpecifier::Topic(self.topic.name())).set("max.message.bytes", "8388608");
        let done = admin.alter_configs([&change], &AdminOptions::new()).await.expect("Kafka answers");
        assert!(done.iter().all(Result::is_ok), "{done:?}");
    }
}

fn oversized() -> String {
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(OVERSIZED).collect();
    format!("\"{noise}\"")
}

fn versions(messages: &[Message], order: Uuid) -> Vec<i32> {
    let of_order = messages.iter().filter(|message| message.header("ce_subject") == Some(&order.to_string()));
    of_order
        .map(|message| message.header("ce_orderversion").expect("a version").parse().expect("a number"))
        .collect()
}

async fn signal(child: &Child, name: &str) {
    let pid = child.id().expect("it runs").to_string();
    let sent = Command::new("kill").args([name, &pid]).status().await.expect("kill");
    assert!(sent.success());
}

/// Waits for the end of a command that was started; gives its exit code and what it said.
async fn ended(child: Child) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = child.wait_with_output().await.expect("ended");
    (status.code(), String::from_utf8_lossy(&stderr).into_owned())
}

async fn page(relay: &Server) -> Option<(u16, Value)> {
    let answer = reqwest::get(format!("{}/readyz", relay.url())).await.ok()?;
    Some((answer.status().as_u16(), answer.json().await.ok()?))
}

/// Waits until its holder has prolonged the lease by five seconds: longer than between two reads.
async fn prolonged(pool: &PgPool) {
    let lease = async || -> Option<(String, f64)> {
        let sql = "select holder, extract(epoch from lease_until)::float8 from relay_sinks";
        sqlx::query_as(sql).fetch_one(pool).await.ok()
    };
    let (holder, until) = lease().await.expect("a lease");
    eventually("the lease to be prolonged", SOON, async || {
        let (now, at) = lease().await?;
        assert_eq!(now, holder, "the lease went to another");
        (at > until + 5.0).then_some(())
    })
    .await;
}

async fn says_paused(relay: &Server, reason: &str) {
    eventually("the publisher to stand still", SOON, async || {
        let (status, page) = page(relay).await?;
        let stage = &page["stages"]["publish"];
        (stage["doing"] == "paused" && stage["reason"] == reason && status == 200).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_publisher_stands_still_and_so_does_its_successor_until_it_is_resumed() {
    let place = Place::new(1).await;
    let mut relay = place.publisher().await;
    let order = Uuid::now_v7();
    place.commit(order, 1, "{}").await;
    settled(&place.pool, SOON).await;

    assert_eq!(place.refused(&["pause"]).await.0, Some(2), "a pause needs a reason");
    let paused = place.json(&["pause", "--reason", "Kafka moves", "--by", "ada"]).await;
    assert_eq!((&paused["paused"], &paused["wasPaused"]), (&true.into(), &false.into()));
    says_paused(&relay, "Kafka moves").await;
    place.commit(order, 2, "{}").await;
    prolonged(&place.pool).await;
    assert_eq!(place.topic.read().await.len(), 1, "nothing is published meanwhile");

    // Nothing was under way, so its successor repeats nothing.
    relay.kill().expect("killed");
    let successor = place.publisher().await;
    says_paused(&successor, "Kafka moves").await;
    prolonged(&place.pool).await;
    assert_eq!(place.topic.read().await.len(), 1, "nor by its successor");

    assert!(place.relay(&["resume", "--by", "grace"]).await.contains("goes on"));
    settled(&place.pool, SOON).await;
    assert_eq!(compare(&place.pool, &place.topic, &HashSet::new()).await, 0);
    assert!(place.relay(&["resume"]).await.contains("not paused"));
    let changes = place.json(&["changes"]).await;
    let told: Vec<_> =
        changes.as_array().expect("a list").iter().map(|c| (&c["command"], &c["by"])).collect();
    assert_eq!(told, [(&"resume".into(), &"grace".into()), (&"pause".into(), &"ada".into())]);
    assert_eq!(changes[1]["reason"], "Kafka moves");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_is_paused_before_its_first_relay_begins_paused() {
    let place = Place::new(1).await;
    place.commit(Uuid::now_v7(), 1, "{}").await;
    let (code, said) = place.refused(&["pause", "--sink", "kafak", "--reason", "a typing error"]).await;
    assert!(code == Some(1) && said.contains("--sink"), "{said}");
    let paused = place.json(&["pause", "--reason", "not before Monday"]).await;
    assert_eq!((&paused["paused"], &paused["wasPaused"]), (&true.into(), &false.into()));
    let relay = place.publisher().await;
    says_paused(&relay, "not before Monday").await;
    prolonged(&place.pool).await;
    assert_eq!(place.topic.read().await.len(), 0, "nothing is published");
    place.relay(&["resume"]).await;
    settled(&place.pool, SOON).await;
    let sinks: i64 =
        sqlx::query_scalar("select count(*) from relay_sinks").fetch_one(&place.pool).await.expect("counted");
    assert_eq!(sinks, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_retried_completes_its_order_in_order_while_all_others_flow() {
    let place = Place::new(3).await;
    let big = Uuid::now_v7();
    place.commit(big, 1, "{}").await;
    place.commit(big, 2, &oversized()).await;
    place.commit(big, 3, "{}").await;
    let others: Vec<Uuid> = std::iter::repeat_with(Uuid::now_v7).take(50).collect();
    for other in &others {
        place.commit(*other, 1, "{}").await;
    }
    let _relay = place.publisher().await;
    settled(&place.pool, SOON).await;
    place.parked(&[2, 3]).await;
    let seen = place.topic.read().await;
    assert_eq!(versions(&seen, big), [1]);
    assert!(others.iter().all(|other| versions(&seen, *other) == [1]), "all other orders flowed");

    // It says what it would do, and does not do it.
    let order = big.to_string();
    let plan = place.json(&["dead", "retry", "--order", &order, "--dry-run"]).await;
    let planned: Vec<_> = plan["events"].as_array().expect("a list").iter().map(|e| &e["version"]).collect();
    assert_eq!(planned, [2, 3]);
    let asked: i64 =
        sqlx::query_scalar("select count(*) from relay_retries").fetch_one(&place.pool).await.expect("count");
    assert_eq!(asked, 0);

    // Kafka would still refuse it: it is parked again, and everything of its order behind it.
    assert_eq!(
        place.refused(&["dead", "retry", "--order", &order]).await.0,
        Some(2),
        "a retry needs a reason"
    );
    place.relay(&["dead", "retry", "--order", &order, "--by", "ada", "--reason", "a test"]).await;
    place.nothing_is_retried().await;
    place.commit(big, 4, "{}").await;
    settled(&place.pool, SOON).await;
    place.parked(&[2, 3, 4]).await;
    assert_eq!(versions(&place.topic.read().await, big), [1]);
    let groups = place.json(&["dead", "list"]).await;
    assert_eq!(
        (&groups["groups"][0]["cause"], &groups["groups"][0]["events"]),
        (&"behind".into(), &2.into())
    );
    assert_eq!(
        (&groups["groups"][1]["cause"], &groups["groups"][1]["orders"]),
        (&"refused".into(), &1.into())
    );

    place.allow_large_messages().await;
    place
        .relay(&["dead", "retry", "--cause", "MessageSizeTooLarge", "--by", "ada", "--reason", "a test"])
        .await;
    place.commit(big, 5, "{}").await;
    place.nothing_is_retried().await;
    place.commit(big, 6, "{}").await;
    settled(&place.pool, SOON).await;
    assert_eq!(place.dead().await, []);
    assert_eq!(
        compare(&place.pool, &place.topic, &HashSet::new()).await,
        0,
        "complete, in order, nothing twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_in_no_outbox_any_more_is_published_from_its_copy() {
    let place = Place::new(1).await;
    let order = Uuid::now_v7();
    place.commit(order, 1, &oversized()).await;
    for version in 2..=4 {
        place.commit(order, version, "{}").await;
    }
    let relay = place.publisher().await;
    settled(&place.pool, SOON).await;
    place.parked(&[1, 2, 3, 4]).await;
    let removed = "create table kept as select * from outbox; delete from outbox";
    place.pool.execute(removed).await.expect("retention");
    place.allow_large_messages().await;

    // An event takes the earlier ones of its order along, and leaves the later ones.
    let third: Uuid = sqlx::query_scalar("select event_id from relay_dead where version = 3")
        .fetch_one(&place.pool)
        .await
        .expect("an event");
    place.relay(&["pause", "--reason", "a test"]).await;
    says_paused(&relay, "a test").await;
    place.relay(&["dead", "retry", "--event", &third.to_string(), "--reason", "a test"]).await;
    let list = place.json(&["dead", "list"]).await;
    let counted =
        |group: &Value| (group["cause"].clone(), group["events"].clone(), group["retrying"].clone());
    let groups: Vec<_> = list["groups"].as_array().expect("groups").iter().map(counted).collect();
    let group = |cause: &str, events: i64, retrying: i64| (cause.into(), events.into(), retrying.into());
    assert_eq!(groups, [group("behind", 3, 2), group("refused", 1, 1)], "the fourth is not asked for");
    place.relay(&["resume"]).await;
    place.nothing_is_retried().await;
    place.parked(&[4]).await;
    place.relay(&["dead", "retry", "--all", "--reason", "a test"]).await;
    place.nothing_is_retried().await;
    assert_eq!(versions(&place.topic.read().await, order), [1, 2, 3, 4]);
    assert_eq!(place.dead().await, []);
    // What lies on the topic is, byte for byte, what was once in the outbox. Its numbers are settled, so
    // that nothing is published by putting it back.
    let put_back = "insert into outbox overriding system value select * from kept";
    place.pool.execute(put_back).await.expect("put back");
    assert_eq!(compare(&place.pool, &place.topic, &HashSet::new()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn kills_in_the_middle_of_a_retry_lose_no_dead_letter_keep_their_order_and_leave_none_parked() {
    let place = Place::new(1).await;
    let order = Uuid::now_v7();
    place.commit(order, 1, &oversized()).await;
    // More than are read back at a time.
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         select gen_random_uuid(), 'order', $1, version, 'order.created.v1', '{}'
         from generate_series(2, 1500) version order by version",
    )
    .bind(order)
    .execute(&place.pool)
    .await
    .expect("events behind it");
    let mut relay = place.publisher().await;
    settled(&place.pool, SOON).await;
    place.parked(&(1..=1500).collect::<Vec<_>>()).await;
    place.allow_large_messages().await;

    place.relay(&["dead", "retry", "--order", &order.to_string(), "--reason", "a test"]).await;
    let left = async || -> (i64, i64) {
        sqlx::query_as("select (select count(*) from relay_dead), (select count(*) from relay_retries)")
            .fetch_one(&place.pool)
            .await
            .expect("counted")
    };
    for at_most in [1_450, 1_000, 500] {
        eventually("the retry to be under way", SOON, async || (left().await.0 <= at_most).then_some(()))
            .await;
        relay.kill().expect("killed");
        let (letters, asked) = left().await;
        assert!(letters > 0 && asked == 1, "{letters} dead letters: it was in the middle");
        // The lease of the dead one is waited for.
        relay = place.publisher().await;
    }
    place.nothing_is_retried().await;
    assert_eq!(place.dead().await, [], "none is parked for ever");
    place.commit(order, 1501, "{}").await;
    settled(&place.pool, SOON).await;
    compare(&place.pool, &place.topic, &HashSet::new()).await;
    assert_eq!(place.dead().await, [], "the order goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discarded_event_is_kept_as_a_record_and_its_order_goes_on_with_a_gap() {
    let place = Place::new(1).await;
    let order = Uuid::now_v7();
    place.commit(order, 1, "{}").await;
    place.commit(order, 2, &oversized()).await;
    place.commit(order, 3, "{}").await;
    let _relay = place.publisher().await;
    settled(&place.pool, SOON).await;
    place.parked(&[2, 3]).await;

    let second: Uuid = sqlx::query_scalar("select event_id from relay_dead where version = 2")
        .fetch_one(&place.pool)
        .await
        .expect("an event");
    let event = second.to_string();
    assert_eq!(place.json(&["dead", "show", &event]).await[0]["version"], 2);
    assert_eq!(place.refused(&["dead", "discard", "--event", &event]).await.0, Some(2), "it needs a reason");
    let said =
        place.relay(&["dead", "discard", "--event", &event, "--reason", "a test", "--by", "ada"]).await;
    assert!(said.contains("gap") && said.contains("version 3"), "{said}");
    place.parked(&[3]).await;
    let kept: (i32, String, String, String) = sqlx::query_as(
        "select version, reason, discarded_by, event ->> 'payload' from relay_discarded where event_id = $1",
    )
    .bind(second)
    .fetch_one(&place.pool)
    .await
    .expect("the record");
    assert_eq!((kept.0, kept.1.as_str(), kept.2.as_str(), kept.3.len()), (2, "a test", "ada", OVERSIZED));

    place.relay(&["dead", "retry", "--order", &order.to_string(), "--reason", "a test"]).await;
    place.nothing_is_retried().await;
    assert_eq!(versions(&place.topic.read().await, order), [1, 3]);

    // With the last dead letter gone the running publisher lets the order go.
    place.commit(order, 4, &oversized()).await;
    place.parked(&[4]).await;
    place.relay(&["dead", "discard", "--all", "--reason", "another test"]).await;
    place.nothing_is_retried().await;
    place.commit(order, 5, "{}").await;
    settled(&place.pool, SOON).await;
    assert_eq!(versions(&place.topic.read().await, order), [1, 3, 5]);
    assert_eq!(place.dead().await, []);
}

/// Tells what the inbox has done.
struct Tells(tokio::sync::mpsc::UnboundedSender<Pass>);

impl Handler for Tells {
    async fn handle(&mut self, _: &Event, _: &mut PgConnection) -> Result<(), HandleError> {
        Ok(())
    }

    async fn committed(&mut self, pass: &Pass) {
        let _ = self.0.send(*pass);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_marked_and_the_inbox_takes_it_for_the_repeat_that_it_is() {
    let place = Place::new(2).await;
    let order = Uuid::now_v7();
    for version in 1..=5 {
        place.commit(order, version, "{}").await;
    }
    let relay = place.publisher().await;
    settled(&place.pool, SOON).await;
    // What is not published yet belongs to the publisher.
    place.relay(&["pause", "--reason", "a test"]).await;
    says_paused(&relay, "a test").await;
    place.commit(order, 6, "{}").await;

    let count = place.json(&["replay", "--order", &order.to_string(), "--dry-run"]).await;
    assert_eq!((&count["events"], &count["leftOut"]), (&5.into(), &1.into()));
    let done =
        place.relay(&["replay", "--order", &order.to_string(), "--by", "ada", "--reason", "a test"]).await;
    assert!(done.contains("5 events published"), "{done}");
    let messages = place.topic.read().await;
    let marks: Vec<_> = messages.iter().map(|message| message.header("replayed")).collect();
    assert_eq!(marks, [[None; 5], [Some("true"); 5]].concat());
    assert_eq!(versions(&messages, order), [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]);

    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", place.topic.brokers());
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let mut settings = Settings::new(config, Uuid::now_v7().to_string(), place.topic.name());
    settings.name = "test".to_owned();
    let inbox = Inbox::start(settings, place.pool.clone(), Tells(tell)).expect("a consumer");
    let (mut handled, mut repeated) = (0, 0);
    let counted = async {
        while handled + repeated < 10 {
            let pass = tokio::time::timeout(SOON, told.recv()).await.expect("in time").expect("a pass");
            (handled, repeated) = (handled + pass.handled, repeated + pass.repeated);
        }
    };
    tokio::select! {
        () = inbox.run(tokio_util::sync::CancellationToken::new()) => panic!("the inbox ended"),
        () = counted => {}
    }
    assert_eq!((handled, repeated), (5, 5));

    place.relay(&["resume"]).await;
    settled(&place.pool, SOON).await;
    assert_eq!(compare(&place.pool, &place.topic, &HashSet::new()).await, 5);
    let changes = place.json(&["changes"]).await;
    assert!(changes.as_array().expect("a list").iter().any(|c| c["command"] == "replay" && c["by"] == "ada"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_was_stopped_goes_on_and_publishes_everything_in_order() {
    let place = Place::new(1).await;
    let elsewhere = Topic::create(3).await;
    let _relay = place.publisher().await;
    let (replay, id) = place.replay(&elsewhere).await;
    signal(&replay, "-INT").await;
    assert_eq!(ended(replay).await.0, Some(1));
    let list = place.json(&["replay", "list"]).await;
    assert_eq!(list[0]["state"], "stopped");
    let published = list[0]["published"].as_i64().expect("a number");
    assert!((1..200).contains(&published), "{list}");

    let before = elsewhere.read().await.len();
    assert!((1..200).contains(&before), "{before} events before the stop");
    let (code, count) = place.printed(&["replay", "--continue", &id, "--dry-run"]).await;
    assert_eq!((code, count["events"].as_i64()), (Some(0), Some(200 - published)), "{count}");
    place.relay(&["replay", "--continue", &id, "--reason", "a test"]).await;
    let (code, done) = place.printed(&["replay", "--continue", &id, "--reason", "a test"]).await;
    assert_eq!((code, &done["state"]), (Some(0), &"done".into()), "again changes nothing");
    let messages = elsewhere.read().await;
    assert!(messages.iter().all(|message| message.header("replayed") == Some("true")));
    // What was done before the stop is done: only the page that was under way comes again.
    let repeats = compare_with(&place.pool, &messages, &HashSet::new()).await;
    assert!(repeats <= 40, "{repeats} of {before} events came again");
    assert_eq!(
        compare(&place.pool, &place.topic, &HashSet::new()).await,
        0,
        "live publishing did not notice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_was_killed_goes_on_and_publishes_everything_in_order() {
    let place = Place::new(1).await;
    let elsewhere = Topic::create(3).await;
    let _relay = place.publisher().await;
    let (mut replay, id) = place.replay(&elsewhere).await;
    replay.kill().await.expect("killed");
    let go_on = ["replay", "--continue", &id, "--reason", "a test"];
    let (code, said) = place.refused(&go_on).await;
    assert!(code == Some(1) && said.contains("is running"), "nobody knows yet that it is gone: {said}");
    place.nobody_has_seen_the_replays().await;
    assert_eq!(place.json(&["replay", "list"]).await[0]["alive"], false);
    place.relay(&go_on).await;
    let repeats = compare_with(&place.pool, &elsewhere.read().await, &HashSet::new()).await;
    assert!(repeats <= 40, "{repeats} events came again");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_that_go_on_with_a_replay_at_once_one_does_and_the_other_is_refused() {
    let place = Place::new(1).await;
    let elsewhere = Topic::create(3).await;
    let _relay = place.publisher().await;
    let (replay, id) = place.replay(&elsewhere).await;
    signal(&replay, "-INT").await;
    ended(replay).await;

    // Both have looked at the replay, and come to the statement that decides at the same time.
    let mut held = place.pool.begin().await.expect("begin");
    held.execute("lock table relay_replays in share row exclusive mode").await.expect("held");
    let go_on = ["replay", "--continue", &id, "--reason", "a test"];
    let both = [place.start(&go_on), place.start(&go_on)];
    eventually("both to wait", SOON, async || {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_locks
             where relation = 'relay_replays'::regclass and not granted
               and database = (select oid from pg_database where datname = current_database())",
        )
        .fetch_one(&place.pool)
        .await
        .ok()?;
        (waiting == 2).then_some(())
    })
    .await;
    held.commit().await.expect("let go");
    let [one, other] = both;
    let (one, other) = tokio::join!(ended(one), ended(other));
    let refused = if one.0 == Some(0) { &other } else { &one };
    assert_eq!([one.0, other.0].iter().filter(|code| **code == Some(0)).count(), 1, "{one:?} {other:?}");
    assert!(refused.0 == Some(1) && refused.1.contains("is running"), "{refused:?}");
    let repeats = compare_with(&place.pool, &elsewhere.read().await, &HashSet::new()).await;
    assert!(repeats <= 40, "{repeats} events came again");
    let changes = place.json(&["changes"]).await;
    assert_eq!(changes.to_string().matches("replay --continue").count(), 1, "{changes}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_slept_while_another_process_went_on_stops_and_changes_nothing() {
    let place = Place::new(1).await;
    let elsewhere = Topic::create(3).await;
    let _relay = place.publisher().await;
    let (replay, id) = place.replay(&elsewhere).await;
    signal(&replay, "-STOP").await;
    place.nobody_has_seen_the_replays().await;
    place.relay(&["replay", "--continue", &id, "--reason", "a test"]).await;
    let done = place.json(&["replay", "list"]).await;
    assert_eq!((&done[0]["state"], &done[0]["published"]), (&"done".into(), &200.into()));

    signal(&replay, "-CONT").await;
    let (code, said) = ended(replay).await;
    assert!(code == Some(1) && said.contains("another process goes on"), "{said}");
    assert_eq!(place.json(&["replay", "list"]).await, done);
    compare_with(&place.pool, &elsewhere.read().await, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_waits_for_kafka_shows_all_the_time_that_it_runs() {
    let place = Place::new(1).await;
    let relay = place.publisher().await;
    place.commit(Uuid::now_v7(), 1, "{}").await;
    settled(&place.pool, SOON).await;
    let away = ["--kafka-brokers", "127.0.0.1:1", "--timeout", "600", "--reason", "a test"];
    let _replay = place.start(&[&["replay", "--all"], &away[..]].concat());
    let alive = async || -> Option<bool> {
        sqlx::query_scalar("select seen_at > clock_timestamp() - interval '1 minute' from relay_replays")
            .fetch_optional(&place.pool)
            .await
            .ok()?
    };
    eventually("the replay to be under way", SOON, async || alive().await).await;
    place.nobody_has_seen_the_replays().await;
    assert_eq!(alive().await, Some(false));
    eventually("a sign of life", SOON, async || alive().await.filter(|alive| *alive)).await;
    let (code, said) = place.refused(&["replay", "--continue", "1", "--reason", "a test"]).await;
    assert!(code == Some(1) && said.contains("is running"), "{said}");
    drop(relay);
}

/// What a live event takes until it is acknowledged, in the mean over so many of them, seconds: to be
/// committed, as seen from here, and from there on, as the relay counts it.
async fn live_delay(place: &Place, relay: &Server, events: u64) -> f64 {
    let read = async || -> Option<(f64, f64)> {
        let page = reqwest::get(format!("{}/metrics", relay.url())).await.ok()?.text().await.ok()?;
        let value = |name: &str| {
            let line = page.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().parse::<f64>().ok()
        };
        Some((value("outbox_commit_to_ack_seconds_sum")?, value("outbox_commit_to_ack_seconds_count")?))
    };
    let before = read().await.expect("metrics");
    // One every 5 ms, whatever becomes of the others: who is kept waiting keeps nobody from coming.
    let mut arrivals = tokio::time::interval(Duration::from_millis(5));
    let mut commits = JoinSet::new();
    for _ in 0..events {
        arrivals.tick().await;
        let pool = place.pool.clone();
        commits.spawn(async move {
            let began = Instant::now();
            append(&pool, Uuid::now_v7()).await.expect("committed");
            let ring = sqlx::query("select pg_notify($1, '')").bind(events::OUTBOX_CHANNEL);
            ring.execute(&pool).await.expect("rung");
            began.elapsed()
        });
    }
    let took: Duration = commits.join_all().await.into_iter().sum();
    let committed = took.as_secs_f64() / events as f64;
    let (sum, count) = eventually("the live events to be acknowledged", SOON, async || {
        let now = read().await?;
        (now.1 - before.1 >= events as f64).then_some((now.0 - before.0, now.1 - before.1))
    })
    .await;
    committed + sum / count
}

#[tokio::test(flavor = "multi_thread")]
async fn live_events_hardly_wait_longer_while_old_ones_are_replayed() {
    /// The smaller of the two is never much larger by chance.
    const ROUNDS: usize = 5;
    const LIVE: u64 = 200;
    let place = Place::new(3).await;
    let elsewhere = Topic::create(3).await;
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         select gen_random_uuid(), 'order', gen_random_uuid(), 1, 'order.created.v1', '{}'
         from generate_series(1, 60000)",
    )
    .execute(&place.pool)
    .await
    .expect("events of the past");
    let relay = place.publisher().await;
    settled(&place.pool, SOON).await;
    live_delay(&place, &relay, LIVE).await;

    let (mut without, mut with) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..ROUNDS {
        without = without.min(live_delay(&place, &relay, LIVE).await);
        let to = ["--to-topic", elsewhere.name(), "--reason", "a test"];
        let mut replay = place.start(&[&["replay", "--to", "60000"], &to[..]].concat());
        let before = Instant::now();
        eventually("the replay to be under way", SOON, async || {
            let published: i64 =
                sqlx::query_scalar("select published from relay_replays where state = 'running'")
                    .fetch_optional(&place.pool)
                    .await
                    .ok()??;
            (published > 0).then_some(())
        })
        .await;
        with = with.min(live_delay(&place, &relay, LIVE).await);
        assert!(replay.try_wait().expect("asked").is_none(), "it ran all the while: {:?}", before.elapsed());
        signal(&replay, "-INT").await;
        ended(replay).await;
    }
    eprintln!("a live event takes {without} s alone, {with} s beside a replay");
    assert!(with < 3.0 * without, "{with} s beside a replay, {without} s without");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_takes_what_its_filters_mean_and_nothing_that_was_not_published() {
    let place = Place::new(1).await;
    let elsewhere = Topic::create(1).await;
    let (one, other, parked) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    for version in 1..=3 {
        place.commit(one, version, "{}").await;
        place.commit(other, version, "{}").await;
    }
    place.commit(parked, 1, "{}").await;
    place.commit(parked, 2, &oversized()).await;
    place.commit(parked, 3, "{}").await;
    let aged = "update outbox set type = case when version = 3 then 'order.cancelled.v1' else type end,
                created_at = timestamptz '2026-01-01 00:00:00Z' + make_interval(days => version)";
    sqlx::query(aged).execute(&place.pool).await.expect("time passes");
    let _relay = place.publisher().await;
    settled(&place.pool, SOON).await;
    place.parked(&[2, 3]).await;
    let second: Uuid = sqlx::query_scalar("select event_id from relay_dead where version = 2")
        .fetch_one(&place.pool)
        .await
        .expect("an event");
    place.relay(&["dead", "discard", "--event", &second.to_string(), "--reason", "a test"]).await;
    let seq: i64 = sqlx::query_scalar("select seq from outbox where aggregate_id = $1 and version = 2")
        .bind(one)
        .fetch_one(&place.pool)
        .await
        .expect("a number");

    // What is meant has to be said, and why.
    assert_eq!(place.refused(&["replay", "--reason", "a test"]).await.0, Some(2));
    let (code, said) = place.refused(&["replay", "--all"]).await;
    assert!(code == Some(2) && said.contains("--reason"), "{said}");
    let (ones, seq) = (one.to_string(), seq.to_string());
    let cases: [(&[&str], [&[i32]; 3]); 7] = [
        (&["--order", &ones], [&[1, 2, 3], &[], &[]]),
        (&["--type", "order.cancelled.v1"], [&[3], &[3], &[]]),
        (&["--from", "2026-01-03T00:00:00Z"], [&[2, 3], &[2, 3], &[]]),
        (&["--from", "1", "--to", "2026-01-02T12:00:00Z"], [&[1], &[1], &[1]]),
        (&["--from", &seq, "--to", &seq], [&[2], &[], &[]]),
        (&["--from", "1"], [&[1, 2, 3], &[1, 2, 3], &[1]]),
        (&["--all"], [&[1, 2, 3], &[1, 2, 3], &[1]]),
    ];
    let mut before = 0;
    for (filter, expected) in cases {
        place
            .relay(&[&["replay", "--to-topic", elsewhere.name(), "--reason", "a test"], filter].concat())
            .await;
        let messages = elsewhere.read().await;
        let news = &messages[before..];
        let got = [one, other, parked].map(|order| versions(news, order));
        assert_eq!(got.each_ref().map(Vec::as_slice), expected, "{filter:?}");
        before = messages.len();
    }
}

/// Beside this test's own file, one folder up.
fn program() -> PathBuf {
    let mut path = std::env::current_exe().expect("a path");
    path.pop();
    path.pop();
    path.join("relay")
}

#[tokio::test(flavor = "multi_thread")]
async fn once_publishes_what_is_there_and_says_why_when_it_cannot() {
    let place = Place::new(2).await;
    // More than one read takes, and so that most of them wait for an earlier one of their order.
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         select gen_random_uuid(), 'order', md5(n::text)::uuid, version, 'order.created.v1', '{}'
         from generate_series(1, 500) n, generate_series(1, 8) version order by n, version",
    )
    .execute(&place.pool)
    .await
    .expect("a backlog");
    let down = [("DATABASE_URL", place.database.url()), ("KAFKA_BROKERS", "127.0.0.1:1")];
    match demo::programs::run("relay", &["once", "--timeout", "1"], &down).await {
        Err(ProcessError::Ended { status, log, .. }) => {
            assert_eq!(status.code(), Some(4), "{log}");
            assert!(log.contains("Kafka"), "{log}");
        }
        other => panic!("Kafka is away: {other:?}"),
    }
    let (code, away) = place.printed(&["once", "--timeout", "1", "--kafka-brokers", "127.0.0.1:1"]).await;
    assert_eq!((code, &away["published"]), (Some(4), &0.into()));
    assert!(away["reason"].as_str().is_some_and(|why| why.contains("Kafka")), "{away}");

    let (code, done) = place.printed(&["once"]).await;
    assert_eq!(code, Some(0));
    assert_eq!(done, json!({"published": 4000, "dead": 0, "holder": null, "reason": null}));
    let said = place.relay(&["once"]).await;
    assert!(said.contains("everything that was there is published"), "{said}");
    assert_eq!(compare(&place.pool, &place.topic, &HashSet::new()).await, 0);

    place.relay(&["pause", "--reason", "not now"]).await;
    let (code, said) = place.refused(&["once"]).await;
    assert!(code == Some(1) && said.contains("not now"), "{said}");
    let (code, paused) = place.printed(&["once"]).await;
    assert_eq!((code, &paused["published"]), (Some(1), &0.into()));
    assert!(paused["reason"].as_str().is_some_and(|why| why.contains("not now")), "{paused}");
    place.relay(&["resume"]).await;

    let _relay = place.publisher().await;
    let holder = eventually("somebody to publish", SOON, async || {
        sqlx::query_scalar::<_, Option<String>>("select holder from relay_sinks")
            .fetch_one(&place.pool)
            .await
            .ok()?
    })
    .await;
    let (code, said) = place.refused(&["once"]).await;
    assert!(code == Some(1) && said.contains(&holder), "{said}");
    let (code, other) = place.printed(&["once"]).await;
    assert_eq!((code, &other["holder"]), (Some(1), &holder.into()), "{other}");
}
