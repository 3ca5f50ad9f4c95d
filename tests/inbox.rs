//! The inbox against a real Kafka and a real PostgreSQL: repeats, gaps, poison, outages, rebalances.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/proxy.rs"]
mod proxy;

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use chrono::Utc;
use demo::testing::{Database, Topic, eventually};
use demo::topic::{self, Message};
use events::inbox::{
    HandleError, Handler, Inbox, InboxError, OutOfOrder, Pass, Release, SCHEMA, Settings, release,
};
use events::kafka::{self, Event};
use events::{Attributes, EventId, OrderId};
use proxy::{Mode, Proxy};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::OwnedHeaders;
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset};
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(60);
const GROUP: &str = "inbox-test";

/// What the handlers of a test do, and what they saw.
#[derive(Default)]
struct World {
    refused: Mutex<HashSet<EventId>>,
    away: AtomicBool,
    calls: Mutex<Vec<EventId>>,
    passed: Mutex<Pass>,
    /// How many events the largest pass has handled.
    largest: AtomicUsize,
    conditions: Mutex<Vec<String>>,
    outside: Mutex<Vec<EventId>>,
    /// Handlers that are called while it is set wait for ever.
    stuck: AtomicBool,
}

impl World {
    fn refuse(&self, event: &Attributes) {
        self.refused.lock().unwrap().insert(event.id);
    }

    fn calls(&self, event: &Attributes) -> usize {
        self.calls.lock().unwrap().iter().filter(|id| **id == event.id).count()
    }

    fn passed(&self) -> Pass {
        *self.passed.lock().unwrap()
    }

    async fn told(&self, part: &str) {
        eventually(part, SOON, async || {
            self.conditions.lock().unwrap().iter().any(|line| line.contains(part)).then_some(())
        })
        .await;
    }
}

/// Writes down every event, without any constraint that would hide a second time.
struct Applies<const OUTSIDE: bool>(Arc<World>);

impl<const OUTSIDE: bool> Handler for Applies<OUTSIDE> {
    const OUTSIDE: bool = OUTSIDE;

    async fn handle(&mut self, event: &Event, connection: &mut PgConnection) -> Result<(), HandleError> {
        let id = event.attributes.id;
        self.0.calls.lock().unwrap().push(id);
        if self.0.away.load(Ordering::SeqCst) {
            return Err(HandleError::Unavailable("the warehouse is away".to_owned()));
        }
        if self.0.stuck.load(Ordering::SeqCst) {
            Notify::new().notified().await;
        }
        sqlx::query("insert into applied (event_id, order_id, version) values ($1, $2, $3)")
            .bind(id.as_uuid())
            .bind(event.attributes.subject)
            .bind(event.attributes.version)
            .execute(connection)
            .await?;
        // After the write: it must be undone.
        if self.0.refused.lock().unwrap().contains(&id) {
            return Err(HandleError::Refused("no such product".to_owned()));
        }
        Ok(())
    }

    async fn outside(&mut self, event: &Event) -> Result<(), HandleError> {
        self.0.outside.lock().unwrap().push(event.attributes.id);
        Ok(())
    }

    async fn committed(&mut self, pass: &Pass) {
        *self.0.passed.lock().unwrap() += *pass;
        self.0.largest.fetch_max(pass.handled, Ordering::SeqCst);
    }

    fn condition(&mut self, condition: Result<(), &InboxError>) {
        if let Err(error) = condition {
            self.0.conditions.lock().unwrap().push(error.to_string());
        }
    }
}

/// A team's database, a topic and its dead letters.
struct Team {
    database: Database,
    pool: PgPool,
    topic: Topic,
    dead: Topic,
    producer: FutureProducer,
}

impl Team {
    async fn new(partitions: i32) -> Self {
        let database = Database::empty().await;
        let pool = database.pool().await;
        sqlx::raw_sql(SCHEMA).execute(&pool).await.unwrap();
        sqlx::raw_sql(SCHEMA).execute(&pool).await.expect("safe to run again");
        sqlx::raw_sql("create table applied (seq bigserial, event_id uuid, order_id uuid, version int)")
            .execute(&pool)
            .await
            .unwrap();
        let topic = Topic::create(partitions).await;
        let producer = ClientConfig::new().set("bootstrap.servers", topic.brokers()).create().unwrap();
        Self { database, pool, dead: Topic::create(1).await, topic, producer }
    }

    fn settings(&self) -> Settings {
        let mut kafka = ClientConfig::new();
        kafka.set("bootstrap.servers", self.topic.brokers());
        let mut settings = Settings::new(kafka, format!("{GROUP}-{}", self.topic.name()), self.topic.name());
        settings.name = GROUP.to_owned();
        settings.dead_letter_topic = self.dead.name().to_owned();
        settings
    }

    fn start(&self, world: &Arc<World>) -> Running {
        Running::start(self.settings(), self.pool.clone(), Applies::<false>(Arc::clone(world)))
    }

    async fn send(&self, event: &Attributes) {
        self.send_raw(Some(&event.subject.to_string()), kafka::headers(event)).await;
    }

    async fn send_raw(&self, key: Option<&str>, headers: OwnedHeaders) {
        self.send_to(self.topic.name(), key, headers, "{}").await;
    }

    async fn send_to(&self, topic: &str, key: Option<&str>, headers: OwnedHeaders, payload: &str) {
        let mut record = FutureRecord::<str, str>::to(topic).payload(payload).headers(headers);
        record.key = key;
        self.producer.send(record, SOON).await.expect("delivered");
    }

    /// Versions of an order in the order in which they were applied.
    async fn applied(&self, order: OrderId) -> Vec<i32> {
        sqlx::query_scalar("select version from applied where order_id = $1 order by seq")
            .bind(order.as_uuid())
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    async fn wait_applied(&self, order: OrderId, versions: &[i32]) {
        eventually(&format!("versions {versions:?} to be applied"), SOON, async || {
            (self.applied(order).await == versions).then_some(())
        })
        .await;
    }

    async fn wait_dead(&self, count: usize) -> Vec<Message> {
        eventually("the dead letters", SOON, async || {
            let dead = self.dead.read().await;
            (dead.len() >= count).then_some(dead)
        })
        .await
    }

    async fn count(&self, sql: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(sql.to_owned())).fetch_one(&self.pool).await.unwrap()
    }
}

/// A member of the group.
struct Running {
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Running {
    fn start<H: Handler + 'static>(settings: Settings, pool: PgPool, handler: H) -> Self {
        let shutdown = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let inbox = Inbox::start(settings, pool, handler).expect("a consumer");
        tasks.spawn(inbox.run(shutdown.clone()));
        Self { shutdown, tasks }
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        self.tasks.join_next().await.unwrap().unwrap();
    }

    /// In the middle of whatever it does.
    async fn abort(mut self) {
        self.tasks.shutdown().await;
    }
}

fn event(order: OrderId, version: i32) -> Attributes {
    Attributes {
        id: EventId::new(),
        source: "/orders".to_owned(),
        kind: "order.created.v1".to_owned(),
        subject: order.as_uuid(),
        time: Utc::now(),
        version,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()),
        tracestate: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_a_gap_and_a_reordering_are_told_apart_and_counted() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let order = OrderId::new();
    let [first, second, third] = [1, 2, 3].map(|version| event(order, version));
    for event in [&first, &first, &third, &second, &third] {
        team.send(event).await;
    }
    let running = team.start(&world);
    let last = OrderId::new();
    team.send(&event(last, 1)).await;
    team.wait_applied(last, &[1]).await;
    assert_eq!(team.applied(order).await, [1, 3, 2]);
    eventually("the passes to be told", SOON, async || (world.passed().handled == 4).then_some(())).await;
    assert_eq!(world.passed(), Pass { handled: 4, repeated: 2, gaps: 1, reordered: 1, dead: 0 });
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_takes_a_gap_aside_and_another_event_of_a_handled_version_always_goes_there() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let mut settings = team.settings();
    settings.gaps = OutOfOrder::Refuse;
    let running = Running::start(settings, team.pool.clone(), Applies::<false>(Arc::clone(&world)));
    let (gapped, doubled) = (OrderId::new(), OrderId::new());
    for event in [event(gapped, 1), event(gapped, 3), event(doubled, 1), event(doubled, 1)] {
        team.send(&event).await;
    }
    let dead = team.wait_dead(2).await;
    let reasons: Vec<_> = dead.iter().map(|message| message.header("dead_reason").unwrap()).collect();
    assert_eq!(reasons, ["a gap: version 3 came after 1", "version 1 of this order was another event"]);
    assert_eq!((team.applied(gapped).await, team.applied(doubled).await), (vec![1], vec![1]));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_event_takes_its_order_to_the_dead_letters_and_a_release_brings_it_back_in_order() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let (order, other) = (OrderId::new(), OrderId::new());
    let events = [1, 2, 3, 4].map(|version| event(order, version));
    world.refuse(&events[1]);
    for event in &events[..3] {
        team.send(event).await;
    }
    team.send(&event(other, 1)).await;
    let running = team.start(&world);
    team.wait_applied(other, &[1]).await;
    assert_eq!(team.applied(order).await, [1]);
    // Once among the others, which does not count, and three attempts of its own.
    assert!((3..=4).contains(&world.calls(&events[1])), "{} attempts", world.calls(&events[1]));
    assert_eq!(world.calls(&events[2]), 0, "nothing overtakes it");

    // A repeat of what lies aside is no second dead letter.
    team.send(&events[1]).await;
    let dead = team.wait_dead(2).await;
    for (message, event, cause, reason) in [
        (&dead[0], &events[1], "refused", "no such product"),
        (&dead[1], &events[2], "behind", "an earlier event of this order could not be handled"),
    ] {
        for (name, value) in event.headers() {
            assert_eq!(message.header(name), Some(value.as_str()), "the original headers");
        }
        let key = order.to_string();
        assert_eq!(
            (message.key.as_deref(), message.value.as_deref()),
            (Some(key.as_bytes()), Some(&b"{}"[..]))
        );
        assert_eq!(
            (message.header("dead_cause"), message.header("dead_reason")),
            (Some(cause), Some(reason))
        );
        assert_eq!(message.header("dead_consumer"), Some(GROUP));
        assert_eq!(message.header("dead_topic"), Some(team.topic.name()));
    }

    // Still refused: it stays where it is.
    assert!(release(&team.pool, GROUP, order, Release::Retry).await.unwrap());
    eventually("the release to be refused", SOON, async || {
        (team.count("select count(*) from inbox_blocked where release is null").await == 1).then_some(())
    })
    .await;
    assert_eq!(team.applied(order).await, [1]);
    // Cured: everything comes in order, and what comes later too.
    world.refused.lock().unwrap().clear();
    team.send(&events[3]).await;
    assert!(release(&team.pool, GROUP, order, Release::Retry).await.unwrap());
    team.wait_applied(order, &[1, 2, 3, 4]).await;
    team.send(&events[2]).await;
    team.send(&event(order, 5)).await;
    team.wait_applied(order, &[1, 2, 3, 4, 5]).await;
    assert_eq!(team.count("select count(*) from inbox_dead").await, 0);
    assert!(!release(&team.pool, GROUP, order, Release::Retry).await.unwrap(), "nothing is blocked any more");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_release_that_skips_gives_up_the_first_dead_event_and_no_other() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let order = OrderId::new();
    let events = [1, 2, 3].map(|version| event(order, version));
    world.refuse(&events[0]);
    for event in &events {
        team.send(event).await;
    }
    let running = team.start(&world);
    team.wait_dead(3).await;
    assert!(release(&team.pool, GROUP, order, Release::Skip).await.unwrap());
    team.wait_applied(order, &[2, 3]).await;
    // It counts as handled: it does not come back by a repeat.
    world.refused.lock().unwrap().clear();
    team.send(&events[0]).await;
    team.send(&event(order, 4)).await;
    team.wait_applied(order, &[2, 3, 4]).await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_goes_to_the_dead_letters_with_the_order_that_its_key_names() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let (order, other) = (OrderId::new(), OrderId::new());
    team.send_raw(Some(&order.to_string()), OwnedHeaders::new()).await;
    team.send_raw(None, OwnedHeaders::new()).await;
    team.send(&event(order, 1)).await;
    team.send(&event(other, 1)).await;
    let running = team.start(&world);
    team.wait_applied(other, &[1]).await;
    let dead = team.wait_dead(3).await;
    let told: Vec<_> = dead
        .iter()
        .map(|message| (message.header("dead_cause").unwrap(), message.header("dead_reason").unwrap()))
        .collect();
    let unreadable = ("refused", "header `ce_specversion` is missing");
    assert_eq!(
        told,
        [unreadable, unreadable, ("behind", "an earlier event of this order could not be handled")]
    );
    assert_eq!(team.applied(order).await, [0; 0]);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_aside_is_forwarded_long_before_the_next_look_for_what_others_left() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let running = team.start(&world);
    // After the first look, which finds nothing; the next one comes 30 s later.
    let (before, poison) = (OrderId::new(), event(OrderId::new(), 1));
    team.send(&event(before, 1)).await;
    team.wait_applied(before, &[1]).await;
    world.refuse(&poison);
    team.send(&poison).await;
    eventually("the dead letter to be forwarded", Duration::from_secs(15), async || {
        (team.count("select count(*) from inbox_dead where forwarded_at is not null").await == 1)
            .then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_cannot_be_delivered_hold_nothing_up_and_are_kept() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let mut settings = team.settings();
    settings.dead_letter_topic = format!("{}.dead", team.topic.name());
    let missing = settings.dead_letter_topic.clone();
    let (order, other) = (OrderId::new(), OrderId::new());
    let poison = event(order, 1);
    world.refuse(&poison);
    team.send(&poison).await;
    let running = Running::start(settings, team.pool.clone(), Applies::<false>(Arc::clone(&world)));
    world.told(&format!("dead-letter topic {missing}")).await;
    team.send(&event(other, 1)).await;
    team.wait_applied(other, &[1]).await;
    topic::create(team.topic.brokers(), &missing, 1).await.unwrap();
    eventually("the dead letter to be forwarded", SOON, async || {
        (team.count("select count(*) from inbox_dead where forwarded_at is not null").await == 1)
            .then_some(())
    })
    .await;
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_are_too_large_for_their_topic_hold_no_other_back() {
    const LARGE: usize = 120;
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let narrow = Topic::create_on(team.topic.brokers(), 1, &[("max.message.bytes", "2000")]).await;
    let mut settings = team.settings();
    settings.dead_letter_topic = narrow.name().to_owned();
    let large = "x".repeat(5_000);
    for number in 0..=LARGE {
        if number == LARGE / 2 || number == LARGE {
            team.send_raw(Some(&number.to_string()), OwnedHeaders::new()).await;
        }
        if number < LARGE {
            team.send_to(team.topic.name(), None, OwnedHeaders::new(), &large).await;
        }
    }
    let running = Running::start(settings, team.pool.clone(), Applies::<false>(Arc::clone(&world)));
    let letters = eventually("the letters that fit", SOON, async || {
        let letters = narrow.read().await;
        (letters.len() == 2).then_some(letters)
    })
    .await;
    let keys: Vec<_> =
        letters.into_iter().map(|letter| String::from_utf8(letter.key.unwrap()).unwrap()).collect();
    assert_eq!(keys, [(LARGE / 2).to_string(), LARGE.to_string()]);
    world.told(&format!("dead-letter topic {}", narrow.name())).await;
    let kept = team.count("select count(*) from inbox_dead where forwarded_at is null").await;
    assert_eq!(usize::try_from(kept).unwrap(), LARGE, "the others are kept");
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_may_be_larger_than_any_event() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    // What librdkafka sends at most by default is 1,000,000 bytes; the topic takes 1,048,588.
    team.send_to(team.topic.name(), None, OwnedHeaders::new(), &"x".repeat(999_900)).await;
    let running = team.start(&world);
    let letters = team.wait_dead(1).await;
    assert!(letters[0].header("dead_reason").is_some());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_what_a_handler_needs_spends_nothing() {
    let team = Team::new(2).await;
    let world = Arc::new(World::default());
    world.away.store(true, Ordering::SeqCst);
    let orders: Vec<_> = (0..20).map(|_| OrderId::new()).collect();
    let running = team.start(&world);
    for order in &orders {
        team.send(&event(*order, 1)).await;
    }
    // More often than an event may be refused.
    eventually("six tries", SOON, async || (world.calls.lock().unwrap().len() >= 6).then_some(())).await;
    world.told("the warehouse is away").await;
    world.away.store(false, Ordering::SeqCst);
    for order in &orders {
        team.wait_applied(*order, &[1]).await;
    }
    assert_eq!(team.count("select count(*) from inbox_dead").await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_an_outage_no_more_is_taken_from_kafka_than_a_batch() {
    const EVENTS: usize = 5_000;
    let team = Team::new(4).await;
    let world = Arc::new(World::default());
    world.away.store(true, Ordering::SeqCst);
    for _ in 0..10 {
        let events: Vec<_> = (0..EVENTS / 10).map(|_| event(OrderId::new(), 1)).collect();
        futures_util::future::join_all(events.iter().map(|event| team.send(event))).await;
    }
    let running = team.start(&world);
    world.told("the warehouse is away").await;
    // That nothing happens shows in time only.
    tokio::time::sleep(Duration::from_secs(3)).await;
    world.away.store(false, Ordering::SeqCst);
    eventually("every event to be handled", SOON, async || (world.passed().handled == EVENTS).then_some(()))
        .await;
    // Whatever had been taken shares the first transaction after the outage.
    let (largest, batch) = (world.largest.load(Ordering::SeqCst), team.settings().batch);
    assert!(largest <= batch, "{largest} events were taken, and a batch is {batch}");
    assert_eq!(team.count("select count(*) from applied").await, i64::try_from(EVENTS).unwrap());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_in_an_outage_of_postgresql_is_no_second_effect() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let proxy = Proxy::before(team.database.url()).await;
    let pool = PgPool::connect(&proxy.url()).await.unwrap();
    let running = Running::start(team.settings(), pool, Applies::<false>(Arc::clone(&world)));
    let (before, cut, after) = (OrderId::new(), OrderId::new(), OrderId::new());
    team.send(&event(before, 1)).await;
    team.wait_applied(before, &[1]).await;
    proxy.set(Mode::Cut { marker: "COMMIT".to_owned(), then: Box::new(Mode::Refuse) });
    team.send(&event(cut, 1)).await;
    world.told("PostgreSQL").await;
    team.send(&event(after, 1)).await;
    proxy.set(Mode::Pass);
    team.wait_applied(after, &[1]).await;
    assert_eq!(team.applied(cut).await, [1]);
    assert_eq!(team.count("select count(*) from inbox_dead").await, 0);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_postgresql_longer_than_the_poll_interval_costs_no_member_its_place() {
    const INTERVAL: Duration = Duration::from_secs(6);
    let team = Team::new(4).await;
    let world = Arc::new(World::default());
    let proxy = Proxy::before(team.database.url()).await;
    let mut settings = team.settings();
    settings.batch = 10;
    settings.kafka.set("max.poll.interval.ms", INTERVAL.as_millis().to_string());
    let mut members = Vec::new();
    for _ in 0..2 {
        let pool = PgPool::connect(&proxy.url()).await.unwrap();
        members.push(Running::start(settings.clone(), pool, Applies::<false>(Arc::clone(&world))));
    }
    let group = settings.group.clone();
    let before = eventually("two members", SOON, async || {
        let members = members_of(team.topic.brokers(), &group).await?;
        (members.len() == 2).then_some(members)
    })
    .await;
    proxy.set(Mode::Refuse);
    let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity
               where datname = current_database() and pid <> pg_backend_pid()";
    assert!(team.count(sql).await >= 2, "the open connections too");
    let orders: Vec<_> = (0..400).map(|_| OrderId::new()).collect();
    for order in &orders {
        team.send(&event(*order, 1)).await;
    }
    world.told("PostgreSQL").await;
    let end = tokio::time::Instant::now() + INTERVAL * 3;
    while tokio::time::Instant::now() < end {
        let now = members_of(team.topic.brokers(), &group).await;
        assert_eq!(now.as_ref(), Some(&before), "no member leaves, and no rebalance begins");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    proxy.set(Mode::Pass);
    let all = i64::try_from(orders.len()).unwrap();
    eventually("every event to be applied", SOON, async || {
        (team.count("select count(distinct event_id) from applied").await == all).then_some(())
    })
    .await;
    assert_eq!(team.count("select count(*) from applied").await, all, "none twice");
    for member in members {
        member.stop().await;
    }
    nothing_unhandled_is_committed(&team).await;
}

/// The ids of the group's members; none while they are not all at work.
async fn members_of(brokers: &str, group: &str) -> Option<Vec<String>> {
    let (brokers, group) = (brokers.to_owned(), group.to_owned());
    tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", &brokers).create().unwrap();
        let groups = consumer.fetch_group_list(Some(&group), SOON).ok()?;
        let group = groups.groups().first().filter(|group| group.state() == "Stable")?;
        let mut ids: Vec<_> = group.members().iter().map(|member| member.id().to_owned()).collect();
        ids.sort();
        Some(ids)
    })
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn rebalances_and_aborts_under_load_apply_every_event_once_and_commit_nothing_unhandled() {
    const ORDERS: usize = 400;
    let team = Team::new(6).await;
    let world = Arc::new(World::default());
    let mut members = vec![team.start(&world)];
    let orders: Vec<_> = (0..ORDERS).map(|_| OrderId::new()).collect();
    for version in 1..=5 {
        for batch in orders.chunks(100) {
            let events: Vec<_> = batch.iter().map(|order| event(*order, version)).collect();
            // Everything comes twice.
            futures_util::future::join_all(events.iter().map(|event| team.send(event))).await;
            futures_util::future::join_all(events.iter().map(|event| team.send(event))).await;
        }
        nothing_unhandled_is_committed(&team).await;
        members.push(team.start(&world));
        if version % 2 == 0 {
            members.remove(0).abort().await;
        } else if version > 1 {
            members.remove(0).stop().await;
        }
    }
    let all = i64::try_from(ORDERS * 5).unwrap();
    eventually("every event to be applied", SOON * 2, async || {
        (team.count("select count(distinct event_id) from applied").await == all).then_some(())
    })
    .await;
    assert_eq!(team.count("select count(*) from applied").await, all, "none twice");
    let disordered = "select count(*) from (select version, row_number() over (partition by order_id order by seq) as place from applied) a where version <> place";
    assert_eq!(team.count(disordered).await, 0, "each order in order");
    for member in members {
        member.stop().await;
    }
    nothing_unhandled_is_committed(&team).await;
    assert_eq!(team.count("select count(*) from inbox_dead").await, 0);
}

/// Below each offset that the group has committed, everything is handled.
async fn nothing_unhandled_is_committed(team: &Team) {
    let settings = team.settings();
    let (topic, group, brokers) =
        (team.topic.name().to_owned(), settings.group, team.topic.brokers().to_owned());
    let committed = tokio::task::spawn_blocking(move || {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", &brokers).set("group.id", &group).create().unwrap();
        let mut partitions = rdkafka::TopicPartitionList::new();
        partitions.add_partition_range(&topic, 0, 5);
        let committed = consumer.committed_offsets(partitions, SOON).unwrap();
        let offset =
            |element: &rdkafka::topic_partition_list::TopicPartitionListElem<'_>| match element.offset() {
                Offset::Offset(offset) => offset,
                _ => 0,
            };
        committed.elements().iter().map(|element| (element.partition(), offset(element))).collect::<Vec<_>>()
    })
    .await
    .unwrap();
    let below = |message: &Message| {
        committed
            .iter()
            .any(|(partition, offset)| message.partition == *partition && message.offset < *offset)
    };
    let ids: HashSet<EventId> = team
        .topic
        .read()
        .await
        .iter()
        .filter(|message| below(message))
        .map(|message| message.header("ce_id").unwrap().parse().unwrap())
        .collect();
    let handled: i64 = sqlx::query_scalar("select count(*) from inbox where event_id = any($1)")
        .bind(ids.iter().map(EventId::as_uuid).collect::<Vec<_>>())
        .fetch_one(&team.pool)
        .await
        .unwrap();
    assert_eq!(usize::try_from(handled).unwrap(), ids.len(), "what is committed was handled");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_effect_outside_postgresql_is_repeated_by_a_crash_before_the_commit_but_by_no_refusal_and_no_repeat()
 {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let start = || Running::start(team.settings(), team.pool.clone(), Applies::<true>(Arc::clone(&world)));
    let (order, later) = (OrderId::new(), OrderId::new());
    let crashed = event(order, 1);
    world.stuck.store(true, Ordering::SeqCst);
    let running = start();
    team.send(&crashed).await;
    eventually("the handler to be in the transaction", SOON, async || {
        (world.calls(&crashed) == 1).then_some(())
    })
    .await;
    running.abort().await;
    world.stuck.store(false, Ordering::SeqCst);
    // Refused by the transaction, tried again: the effect was done and is not done again.
    let refused = event(later, 1);
    world.refuse(&refused);
    let running = start();
    team.send(&refused).await;
    team.wait_applied(order, &[1]).await;
    team.wait_dead(1).await;
    // A repeat is none for the outside either, and hides nothing that comes behind it.
    let next = event(order, 2);
    team.send(&crashed).await;
    team.send(&next).await;
    team.wait_applied(order, &[1, 2]).await;
    let outside = world.outside.lock().unwrap().clone();
    let times = |id: EventId| outside.iter().filter(|seen| **seen == id).count();
    assert_eq!((times(crashed.id), times(refused.id), times(next.id)), (2, 1, 1));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_goes_to_another_member_before_the_commit_repeats_an_effect_outside_postgresql() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let start = || Running::start(team.settings(), team.pool.clone(), Applies::<true>(Arc::clone(&world)));
    // Between the effect and the commit, for as long as it takes.
    world.away.store(true, Ordering::SeqCst);
    let order = OrderId::new();
    team.send(&event(order, 1)).await;
    let one = start();
    let outside = || world.outside.lock().unwrap().len();
    eventually("the effect", SOON, async || (outside() == 1).then_some(())).await;
    // Nothing crashes: a member comes, and the other one leaves in good order.
    let other = start();
    one.stop().await;
    eventually("the effect once more", SOON, async || (outside() == 2).then_some(())).await;
    world.away.store(false, Ordering::SeqCst);
    team.wait_applied(order, &[1]).await;
    other.stop().await;
    assert_eq!(team.applied(order).await, [1], "inside it happens once");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_group_has_handled_is_a_repeat_under_the_same_name() {
    let team = Team::new(1).await;
    let world = Arc::new(World::default());
    let order = OrderId::new();
    let events = [1, 2, 3].map(|version| event(order, version));
    for event in &events[..2] {
        team.send(event).await;
    }
    let running = team.start(&world);
    team.wait_applied(order, &[1, 2]).await;
    running.stop().await;

    // As `relay replay --to-topic` does, and with an event that the first group never saw.
    let replay = Topic::create(1).await;
    let key = order.to_string();
    for event in &events {
        team.send_to(replay.name(), Some(&key), kafka::replayed(kafka::headers(event)), "{}").await;
    }
    let before = team.settings();
    let mut settings = Settings::new(before.kafka, format!("{}-replay", before.group), replay.name());
    assert_eq!(settings.name, settings.group, "by default everything would be new");
    settings.name = before.name;
    settings.dead_letter_topic = before.dead_letter_topic;
    let again = Arc::new(World::default());
    let running = Running::start(settings, team.pool.clone(), Applies::<false>(Arc::clone(&again)));
    team.wait_applied(order, &[1, 2, 3]).await;
    eventually("the passes to be told", SOON, async || (again.passed().handled == 1).then_some(())).await;
    assert_eq!(again.passed(), Pass { handled: 1, repeated: 2, ..Pass::default() });
    running.stop().await;
}

/// Columns, constraints and indexes of the inbox's tables.
async fn described(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar(
        "select format('%s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default)
           from information_schema.columns where table_name in ('inbox', 'inbox_blocked', 'inbox_dead')
         union all
         select conname || ' ' || pg_get_constraintdef(oid) from pg_constraint
           where conrelid in ('inbox'::regclass, 'inbox_blocked'::regclass, 'inbox_dead'::regclass)
         union all
         select indexdef from pg_indexes where tablename in ('inbox', 'inbox_blocked', 'inbox_dead')
         order by 1",
    )
    .fetch_all(pool)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tables_that_the_crate_ships_are_those_of_the_migrations() {
    let (ours, theirs) = (Database::create().await.pool().await, Database::empty().await.pool().await);
    sqlx::raw_sql(SCHEMA).execute(&theirs).await.unwrap();
    let described_by_us = described(&ours).await;
    assert!(described_by_us.len() > 30);
    assert_eq!(described_by_us, described(&theirs).await);
}
