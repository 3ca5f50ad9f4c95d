//! What the publisher does while the servers around it fail. Each test breaks something on purpose
//! and ends by comparing outbox and topic event by event. Real servers; the ones that are stopped,
//! filled or locked up are the test's own.

#[path = "support/faults.rs"]
mod faults;
#[path = "support/outbox.rs"]
mod outbox;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use demo::programs::Server;
use demo::services::{Disk, Extras, Kafka, Postgres};
use demo::testing::{Database, Topic, eventually};
use faults::{
    LONG, SOON, backlog, gauge, in_the_middle, long_backlog, nothing_is_parked, publisher, recovered, says,
};
use outbox::{append, compare, settled, without_holes};
use sqlx::PgPool;
use uuid::Uuid;

/// 1 while nothing is sent because Kafka takes nothing.
const CIRCUIT: &str = "relay_circuit_open{sink=\"kafka\"}";

/// Looks again and again: who asks in between must not be told that all is well.
async fn stays_in_trouble(relay: &Server, time: Duration) {
    let http = reqwest::Client::new();
    let until = tokio::time::Instant::now() + time;
    while tokio::time::Instant::now() < until {
        let answer = http.get(format!("{}/readyz", relay.url())).send().await.expect("an answer");
        let status = answer.status().as_u16();
        assert_eq!(status, 503, "{}", answer.text().await.unwrap_or_default());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn epoch_and_holder(pool: &PgPool) -> Option<(i64, String)> {
    sqlx::query_as("select epoch, holder from relay_sinks where holder is not null")
        .fetch_optional(pool)
        .await
        .ok()?
}

async fn holds(pool: &PgPool, relay: &mut Server) {
    let name = format!("relay-{}-", relay.process().id());
    eventually("that relay to hold the lease", SOON, async || {
        epoch_and_holder(pool).await.filter(|(_, holder)| holder.starts_with(&name)).map(drop)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_killed_in_the_middle_of_a_drain_and_started_again_costs_no_event_and_no_order() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mut kafka = Kafka::start().await.expect("a Kafka of our own");
    let topic = Topic::create_on(&kafka.brokers(), 3, &[]).await;
    long_backlog(&pool).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    for at_least in [2_000, 20_000] {
        in_the_middle(&pool, at_least).await;
        kafka.kill().expect("killed");
        says(&relay, "Kafka").await;
        kafka.start_again().await.expect("started again");
    }
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    nothing_is_parked(&pool).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_for_a_minute_spends_nothing_and_health_says_why() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mut kafka = Kafka::start().await.expect("a Kafka of our own");
    let topic = Topic::create_on(&kafka.brokers(), 3, &[]).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    backlog(&pool, 100, 1).await;
    settled(&pool, SOON).await;
    kafka.kill().expect("killed");
    backlog(&pool, 100, 3).await;
    says(&relay, "Kafka: ").await;
    // Part of the claim: longer than every timeout and pause of relay and client library.
    tokio::time::sleep(Duration::from_secs(60)).await;
    says(&relay, "Kafka: ").await;
    gauge(&relay, CIRCUIT, 1).await;
    nothing_is_parked(&pool).await;
    kafka.start_again().await.expect("started again");
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    nothing_is_parked(&pool).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_away_for_a_minute_and_killed_in_the_middle_of_a_drain_costs_no_event_and_no_order() {
    let mut postgres = Postgres::start().await.expect("a PostgreSQL of our own");
    let database = Database::create_on(&postgres.url()).await;
    let pool = database.pool().await;
    let topic = Topic::create(3).await;
    long_backlog(&pool).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    in_the_middle(&pool, 2_000).await;
    postgres.stop().await.expect("stopped");
    says(&relay, "PostgreSQL").await;
    // Part of the claim: longer than every timeout of the relay's connections.
    stays_in_trouble(&relay, Duration::from_secs(60)).await;
    says(&relay, "PostgreSQL").await;
    postgres.start_again().await.expect("started again");
    settled(&pool, SOON).await;
    long_backlog(&pool).await;
    in_the_middle(&pool, LONG + 2_000).await;
    postgres.kill().expect("killed");
    says(&relay, "PostgreSQL").await;
    postgres.start_again().await.expect("started again");
    // A crash makes the sequence jump.
    eventually("PostgreSQL to take an event", SOON, async || append(&pool, Uuid::now_v7()).await.ok()).await;
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_backend_terminated_once_a_second_for_20_seconds_costs_no_event_and_no_order() {
    let postgres = Postgres::start().await.expect("a PostgreSQL of our own");
    let database = Database::create_on(&postgres.url()).await;
    let pool = database.pool().await;
    let topic = Topic::create(3).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    relay.ready(SOON).await.expect("ready");

    let terminating = async {
        let mut killed = 0;
        let mut every_second = tokio::time::interval(Duration::from_secs(1));
        for _ in 0..20 {
            every_second.tick().await;
            let gone: i64 = eventually("the backends to be terminated", SOON, async || {
                sqlx::query_scalar(
                    "select count(pg_terminate_backend(pid)) from pg_stat_activity
                     where backend_type = 'client backend' and pid <> pg_backend_pid()",
                )
                .fetch_one(&pool)
                .await
                .ok()
            })
            .await;
            killed += gone;
        }
        killed
    };
    let writing = async {
        let orders: Vec<Uuid> = (0..50).map(|_| Uuid::now_v7()).collect();
        let mut committed = 0;
        loop {
            for order in &orders {
                // Terminated as well; whether it was committed, the table tells.
                committed += i32::from(append(&pool, *order).await.is_ok());
            }
            if committed > 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    };
    let killed = tokio::select! {
        killed = terminating => killed,
        () = writing => unreachable!("writes until it is dropped"),
    };
    assert!(killed > 40, "{killed} backends terminated");
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    nothing_is_parked(&pool).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_fails_proves_no_rollback_and_an_event_that_was_committed_late_is_published() {
    let postgres = Postgres::start().await.expect("a PostgreSQL of our own");
    let database = Database::create_on(&postgres.url()).await;
    let pool = database.pool().await;
    sqlx::raw_sql("create role reader login; grant all on all tables in schema public to reader")
        .execute(&pool)
        .await
        .expect("a user whose rights can be taken");
    let topic = Topic::create(3).await;
    let mut relay = publisher(&database.url().replace("//postgres@", "//reader@"), &topic, &[]);
    relay.ready(SOON).await.expect("ready");

    let mut late = pool.begin().await.expect("a transaction");
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         values (gen_random_uuid(), 'order', gen_random_uuid(), 1, 'order.created.v1', '{}')",
    )
    .execute(&mut *late)
    .await
    .expect("a number is drawn");
    append(&pool, Uuid::now_v7()).await.expect("committed");
    settled(&pool, SOON).await;

    // The number of the open transaction is a hole; now it is committed, and no read can show it.
    sqlx::query("revoke select on outbox from reader").execute(&pool).await.expect("revoked");
    late.commit().await.expect("committed late");
    says(&relay, "permission denied").await;
    // Part of the claim: longer than it takes to see that no writer is left.
    tokio::time::sleep(Duration::from_secs(3)).await;
    sqlx::query("grant select on outbox to reader").execute(&pool).await.expect("granted");
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    assert_eq!(compare(&pool, &topic, &HashSet::new()).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_relays_started_at_once_one_publishes_and_nothing_goes_twice() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(3).await;
    backlog(&pool, 5_000, 3).await;
    let long = [("RELAY_LEASE_SECONDS", "60")];
    let mut relays = [publisher(database.url(), &topic, &long), publisher(database.url(), &topic, &long)];
    settled(&pool, SOON).await;
    for relay in &mut relays {
        relay.ready(SOON).await.expect("ready");
    }
    let (epoch, _) = epoch_and_holder(&pool).await.expect("somebody holds the lease");
    assert_eq!(epoch, 1, "the lease was given once");
    assert_eq!(compare(&pool, &topic, &HashSet::new()).await, 0, "nothing twice");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_publisher_writes_after_its_lease_was_taken_changes_no_row() {
    let postgres = Postgres::start().await.expect("a PostgreSQL of our own");
    let database = Database::create_on(&postgres.url()).await;
    let pool = database.pool().await;
    // The two relays log in under two names, and every row of the lease that is written tells whose.
    sqlx::raw_sql(
        "create role first superuser login; create role second superuser login;
         create table written (who text, epoch bigint);
         create function note() returns trigger language plpgsql as
           $$ begin insert into written values (session_user, new.epoch); return null; end $$;
         create trigger note after update on relay_sinks for each row execute function note()",
    )
    .execute(&pool)
    .await
    .expect("a witness");
    let topic = Topic::create(3).await;
    long_backlog(&pool).await;
    let as_user = |name: &str| database.url().replace("//postgres@", &format!("//{name}@"));
    let short = [("RELAY_LEASE_SECONDS", "3")];
    let mut first = publisher(&as_user("first"), &topic, &short);
    holds(&pool, &mut first).await;
    let mut second = publisher(&as_user("second"), &topic, &short);
    second.ready(SOON).await.expect("ready");
    in_the_middle(&pool, 2_000).await;
    first.process().signal("STOP").expect("stopped in the middle");

    // Part of the claim: much longer than the lease, and than any time-out of a connection.
    let asleep = tokio::time::Instant::now() + Duration::from_secs(40);
    holds(&pool, &mut second).await;
    settled(&pool, SOON).await;
    tokio::time::sleep_until(asleep).await;
    let written = async || -> i64 {
        sqlx::query_scalar("select count(*) from written where who = 'first'")
            .fetch_one(&pool)
            .await
            .expect("counted")
    };
    let before = written().await;
    first.process().signal("CONT").expect("continued");
    let http = reqwest::Client::new();
    eventually("the fenced publisher to stand by", SOON, async || {
        let page = http.get(format!("{}/readyz", first.url())).send().await.ok()?.text().await.ok()?;
        page.contains("standing by").then_some(())
    })
    .await;
    assert!(before > 0, "the witness sees");
    assert_eq!(written().await, before, "the fenced publisher changed a row");
    holds(&pool, &mut second).await;
    append(&pool, Uuid::now_v7()).await.expect("committed");
    settled(&pool, SOON).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_may_not_be_written_to_parks_nothing_and_all_goes_through_once_it_may() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let kafka = Kafka::start_with_rights().await.expect("a Kafka of our own");
    let topic = Topic::create_on(&kafka.brokers(), 3, &[]).await;
    let everybody = "User:ANONYMOUS";
    let read = ["--add", "--allow-principal", everybody, "--operation", "Read", "--operation", "Describe"];
    kafka.rights(topic.name(), &read).await.expect("may be read");
    backlog(&pool, 100, 3).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    says(&relay, "authorization failed").await;
    // Tried again, and again refused.
    tokio::time::sleep(Duration::from_secs(3)).await;
    says(&relay, "authorization failed").await;
    nothing_is_parked(&pool).await;
    gauge(&relay, CIRCUIT, 1).await;
    let write = ["--add", "--allow-principal", everybody, "--operation", "Write"];
    kafka.rights(topic.name(), &write).await.expect("may be written to");
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    gauge(&relay, CIRCUIT, 0).await;
    nothing_is_parked(&pool).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_producer_that_may_not_begin_keeps_its_lease_and_says_why_until_it_may() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let kafka = Kafka::start_with_rights().await.expect("a Kafka of our own");
    let topic = Topic::create_on(&kafka.brokers(), 3, &[]).await;
    // Who may write to no topic and has no right of its own to be idempotent gets no producer id, and
    // librdkafka takes that for fatal.
    let everybody = "User:ANONYMOUS";
    // Where there is a rule, what no rule allows is denied, to the broker itself too.
    let all = ["--add", "--allow-principal", everybody, "--operation", "All"];
    kafka.rights("*", &all).await.expect("allowed");
    kafka.cluster_rights(&all).await.expect("allowed");
    let deny =
        |change, operation| [change, "--force", "--deny-principal", everybody, "--operation", operation];
    kafka.rights("*", &deny("--add", "Write")).await.expect("denied");
    kafka.cluster_rights(&deny("--add", "IdempotentWrite")).await.expect("denied");
    backlog(&pool, 100, 3).await;
    let mut relay = publisher(database.url(), &topic, &[("RELAY_LEASE_SECONDS", "3")]);
    says(&relay, "uthorization").await;
    let before = epoch_and_holder(&pool).await.expect("a holder");
    // Part of the claim: longer than the lease and than the longest wait for another producer.
    stays_in_trouble(&relay, Duration::from_secs(12)).await;
    assert_eq!(epoch_and_holder(&pool).await, Some(before), "the lease went away meanwhile");
    gauge(&relay, CIRCUIT, 1).await;
    kafka.rights("*", &deny("--remove", "Write")).await.expect("allowed");
    kafka.cluster_rights(&deny("--remove", "IdempotentWrite")).await.expect("allowed");
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    gauge(&relay, CIRCUIT, 0).await;
    nothing_is_parked(&pool).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_logs_in_to_kafka_with_each_of_its_clients_and_a_wrong_password_is_told() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let extras = Extras { login: Some(("relay", "hunter2")), ..Extras::default() };
    let kafka = Kafka::start_with(extras).await.expect("a Kafka of our own");
    let topic = Topic::create_on(&kafka.brokers(), 3, &[]).await;
    backlog(&pool, 20, 2).await;
    let group = format!("notify-{}", topic.name());
    let start = |password: &str| {
        let login =
            "security.protocol=SASL_PLAINTEXT,sasl.mechanism=PLAIN,sasl.username=relay,sasl.password=";
        let properties = format!("{login}{password}");
        let settings = [("KAFKA_PROPERTIES", properties.as_str()), ("NOTIFY_GROUP", group.as_str())];
        let (brokers, no_mail) = (kafka.login_brokers(), "smtp://127.0.0.1:1");
        let stages = ["publish", "notify"];
        Server::relay_stages(&stages, database.url(), &brokers, topic.name(), no_mail, &settings)
            .expect("starts")
    };
    let mut relay = start("wrong");
    says(&relay, "uthentication").await;
    relay.kill().expect("killed");
    let mut relay = start("hunter2");
    settled(&pool, SOON).await;
    // What is in the outbox are no orders' events, and so notify takes them aside: it has read them.
    eventually("notify to have read everything", SOON, async || {
        let read: i64 =
            sqlx::query_scalar("select (select count(*) from inbox) + (select count(*) from inbox_dead)")
                .fetch_one(&pool)
                .await
                .ok()?;
        (read == 40).then_some(())
    })
    .await;
    recovered(&mut relay).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

/// A disk that can be filled; none, and loudly, where this process may not mount one. CI may.
#[allow(clippy::disallowed_methods, reason = "no setting of a program")]
fn small_disk(megabytes: u32) -> Option<Disk> {
    let disk = Disk::mount(megabytes).expect("a place for a disk");
    if disk.is_none() {
        assert!(std::env::var_os("CI").is_none(), "a full disk cannot be tested: no tmpfs can be mounted");
        eprintln!("SKIPPED: a full disk cannot be tested here, because this process may not mount a tmpfs");
    }
    disk
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_postgres_costs_no_event_once_there_is_room_again() {
    let Some(disk) = small_disk(400) else { return };
    let wal = [("max_wal_size", "64MB"), ("min_wal_size", "32MB"), ("wal_recycle", "off")];
    let extras = Extras { settings: &wal, disk: Some(&disk), ..Extras::default() };
    let mut postgres = Postgres::start_with(extras).await.expect("a PostgreSQL of our own");
    let database = Database::create_on(&postgres.url()).await;
    let pool = database.pool().await;
    let topic = Topic::create(3).await;
    long_backlog(&pool).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    in_the_middle(&pool, 2_000).await;
    disk.fill().expect("filled");
    // A table that cannot grow fails its writer alone; the log that was laid out in advance is used up
    // some time later, and then everybody fails.
    let using_up = async {
        loop {
            let _ = sqlx::query("select pg_switch_wal()").execute(&pool).await;
            let _ = append(&pool, Uuid::now_v7()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::select! {
        () = says(&relay, "PostgreSQL") => {}
        () = using_up => unreachable!("goes on until it is dropped"),
    }
    disk.relieve().expect("there is room again");
    postgres.start_again().await.expect("started again");
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    nothing_is_parked(&pool).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_under_kafka_costs_no_event_once_there_is_room_again() {
    let Some(disk) = small_disk(400) else { return };
    let extras = Extras { disk: Some(&disk), ..Extras::default() };
    let mut kafka = Kafka::start_with(extras).await.expect("a Kafka of our own");
    let topic = Topic::create_on(&kafka.brokers(), 3, &[]).await;
    let database = Database::create().await;
    let pool = database.pool().await;
    long_backlog(&pool).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    in_the_middle(&pool, 2_000).await;
    disk.fill().expect("filled");
    says(&relay, "Kafka").await;
    disk.relieve().expect("there is room again");
    kafka.start_again().await.expect("started again");
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    nothing_is_parked(&pool).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

/// The library that makes a process believe another time of day.
fn libfaketime() -> String {
    ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|machine| format!("/usr/lib/{machine}/faketime/libfaketime.so.1"))
        .into_iter()
        .find(|path| Path::new(path).is_file())
        .expect("libfaketime is missing: `demo/install test` installs it")
}

/// Waits until the lease was prolonged for three times its time to live, and asserts that it is
/// the same term still.
async fn keeps_its_lease(pool: &PgPool) {
    let since = async || -> (i64, f64) {
        sqlx::query_as("select epoch, extract(epoch from lease_until)::float8 from relay_sinks")
            .fetch_one(pool)
            .await
            .expect("a lease")
    };
    let (epoch, until) = since().await;
    eventually("the lease to be prolonged", SOON, async || (since().await.1 > until + 15.0).then_some(()))
        .await;
    assert_eq!(since().await.0, epoch, "the lease was taken from a holder that lives");
}

/// One relay publishes, is not taken over while it lives, is taken over when it was killed.
async fn a_lease_on_a_database_whose_clock_is_off_by(offset: &str) {
    let library = libfaketime();
    let environment =
        [("LD_PRELOAD", library.as_str()), ("FAKETIME", offset), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")];
    let extras = Extras { environment: &environment, ..Extras::default() };
    let postgres = Postgres::start_with(extras).await.expect("a PostgreSQL of our own");
    let database = Database::create_on(&postgres.url()).await;
    let pool = database.pool().await;
    let now: DateTime<Utc> =
        sqlx::query_scalar("select clock_timestamp()").fetch_one(&pool).await.expect("the time");
    assert!((now - Utc::now()).abs() > TimeDelta::minutes(50), "the clock is not off: {now}");
    let topic = Topic::create(1).await;
    let order = Uuid::now_v7();
    let settings = [("RELAY_LEASE_SECONDS", "5")];
    let mut first = publisher(database.url(), &topic, &settings);
    holds(&pool, &mut first).await;
    let mut second = publisher(database.url(), &topic, &settings);
    second.ready(SOON).await.expect("ready");
    append(&pool, order).await.expect("committed");
    keeps_its_lease(&pool).await;
    first.kill().expect("killed");
    append(&pool, order).await.expect("committed");
    holds(&pool, &mut second).await;
    settled(&pool, SOON).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_on_a_database_whose_clock_is_ahead_lives_and_ends_as_any_other() {
    a_lease_on_a_database_whose_clock_is_off_by("+1h").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_on_a_database_whose_clock_is_behind_lives_and_ends_as_any_other() {
    a_lease_on_a_database_whose_clock_is_off_by("-1h").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_jumped_far_ahead_delays_and_loses_nothing() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create(1).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    relay.ready(SOON).await.expect("ready");
    let order = Uuid::now_v7();
    for _ in 0..3 {
        append(&pool, order).await.expect("committed");
        settled(&pool, SOON).await;
        sqlx::query(
            "select setval(pg_get_serial_sequence('outbox', 'seq'), max(seq) + 1000000000000) from outbox",
        )
        .execute(&pool)
        .await
        .expect("jumped");
    }
    append(&pool, order).await.expect("committed");
    settled(&pool, SOON).await;
    without_holes(&pool, SOON).await;
    assert_eq!(compare(&pool, &topic, &HashSet::new()).await, 0);
}

/// The most memory that a process ever had, in MiB.
fn peak(relay: &mut Server) -> u64 {
    let path = format!("/proc/{}/status", relay.process().id());
    let status = std::fs::read_to_string(path).expect("Linux tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_one_megabyte_payloads_after_small_ones_is_drained_within_300_mb() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let topic = Topic::create_on(
        &demo::testing::shared("TEST_KAFKA_BROKERS"),
        3,
        &[("max.message.bytes", "4000000")],
    )
    .await;
    backlog(&pool, 1_000, 5).await;
    let noise: String = std::iter::repeat_with(fastrand::alphanumeric).take(1 << 20).collect();
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         select gen_random_uuid(), 'order', gen_random_uuid(), 1, 'order.created.v1', to_json(n || $1)
         from generate_series(1, 500) n",
    )
    .bind(&noise)
    .execute(&pool)
    .await
    .expect("large events");
    let settings = [("KAFKA_PROPERTIES", "message.max.bytes=4000000")];
    let mut relay = publisher(database.url(), &topic, &settings);
    settled(&pool, SOON).await;
    let peak = peak(&mut relay);
    println!("{peak} MiB");
    assert!(peak < 300, "{peak} MiB");
    nothing_is_parked(&pool).await;
    compare(&pool, &topic, &HashSet::new()).await;
}
