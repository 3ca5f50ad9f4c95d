//! Servers that others stand in for: a database that is failed over to and does not know the latest
//! transactions, and a Kafka of three brokers of which leaders die. Real servers, each of the tests' own.

#[path = "support/faults.rs"]
mod faults;
#[path = "support/outbox.rs"]
mod outbox;

use std::collections::HashSet;
use std::time::Duration;

use demo::services::{Kafka, Postgres};
use demo::testing::{Database, Topic, eventually};
use faults::{SOON, backlog, in_the_middle, long_backlog, nothing_is_parked, publisher, recovered, says};
use outbox::{append, compare, compare_with, settled};
use sqlx::PgPool;
use uuid::Uuid;

async fn event_ids(pool: &PgPool) -> HashSet<Uuid> {
    let ids: Vec<Uuid> =
        sqlx::query_scalar("select event_id from outbox").fetch_all(pool).await.expect("the outbox is read");
    ids.into_iter().collect()
}

async fn epoch(pool: &PgPool) -> Option<i64> {
    sqlx::query_scalar("select epoch from relay_sinks where holder is not null")
        .fetch_optional(pool)
        .await
        .ok()?
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_goes_back_under_a_running_relay_has_its_new_events_published_in_order() {
    let mut postgres = Postgres::start().await.expect("a PostgreSQL of our own");
    let database = Database::create_on(&postgres.url()).await;
    let pool = database.pool().await;
    let topic = Topic::create(3).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    let orders: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    for order in &orders {
        append(&pool, *order).await.expect("committed");
    }
    settled(&pool, SOON).await;
    postgres.keep().await.expect("kept");

    // Published, and then forgotten: their numbers will be drawn again.
    eventually("PostgreSQL to take an event", SOON, async || append(&pool, orders[0]).await.ok()).await;
    for order in orders.iter().chain(&orders) {
        append(&pool, *order).await.expect("committed");
    }
    settled(&pool, SOON).await;
    let before = event_ids(&pool).await;
    postgres.go_back().await.expect("gone back");

    // Each order goes on, and its second event gets a number that the relay has passed before.
    eventually("PostgreSQL to take an event", SOON, async || append(&pool, orders[0]).await.ok()).await;
    for order in orders.iter().chain(&orders).chain(&orders) {
        append(&pool, *order).await.expect("committed");
    }
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    let forgotten: HashSet<Uuid> = &before - &event_ids(&pool).await;
    assert!(forgotten.len() > 40, "{} events were forgotten", forgotten.len());
    let known: Vec<_> = topic
        .read()
        .await
        .into_iter()
        .filter(|message| {
            message.header("ce_id").is_some_and(|id| !forgotten.contains(&id.parse().expect("a UUID")))
        })
        .collect();
    compare_with(&pool, &known, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_database_begins_another_term_at_once_and_not_after_the_lease() {
    let mut postgres = Postgres::start().await.expect("a PostgreSQL of our own");
    let database = Database::create_on(&postgres.url()).await;
    let pool = database.pool().await;
    let topic = Topic::create(3).await;
    // The test would run into its limit if the lease had to end.
    let mut relay = publisher(database.url(), &topic, &[("RELAY_LEASE_SECONDS", "60")]);
    append(&pool, Uuid::now_v7()).await.expect("committed");
    settled(&pool, SOON).await;
    let before = epoch(&pool).await.expect("a term");
    postgres.stop().await.expect("stopped");
    postgres.start_again().await.expect("started again");
    eventually("PostgreSQL to take an event", SOON, async || append(&pool, Uuid::now_v7()).await.ok()).await;
    settled(&pool, Duration::from_secs(40)).await;
    recovered(&mut relay).await;
    assert_eq!(epoch(&pool).await, Some(before + 1));
    compare(&pool, &topic, &HashSet::new()).await;
}

/// Three brokers; the first is the controller and is not to be killed.
async fn cluster() -> [Kafka; 3] {
    let first = Kafka::start().await.expect("a Kafka of our own");
    let (second, third) = tokio::try_join!(first.join(2), first.join(3)).expect("a cluster");
    [first, second, third]
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_killed_in_the_middle_of_a_drain_and_too_few_replicas_cost_no_event_and_no_order() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let [first, mut second, mut third] = cluster().await;
    let topic = Topic::create_replicated(&first.brokers(), 6, 3, &[("min.insync.replicas", "2")]).await;
    long_backlog(&pool).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    in_the_middle(&pool, 2_000).await;
    second.kill().expect("killed");
    // With one replica less it goes on, once the second broker's partitions have other leaders.
    in_the_middle(&pool, 20_000).await;
    third.kill().expect("killed");
    // Nothing is acknowledged by fewer than two.
    says(&relay, "Kafka").await;
    nothing_is_parked(&pool).await;
    second.start_again().await.expect("started again");
    in_the_middle(&pool, 40_000).await;
    third.start_again().await.expect("started again");
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    nothing_is_parked(&pool).await;
    compare(&pool, &topic, &HashSet::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_without_a_leader_is_told_while_the_others_flow() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let [first, mut second, _third] = cluster().await;
    // One replica each: who dies takes partitions along.
    let topic = Topic::create_on(&first.brokers(), 6, &[]).await;
    let mut relay = publisher(database.url(), &topic, &[]);
    backlog(&pool, 100, 1).await;
    settled(&pool, SOON).await;
    second.kill().expect("killed");
    // Others are answered all the time, and so Kafka is never silent.
    let flowing = async {
        loop {
            backlog(&pool, 20, 1).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = says(&relay, "unanswered for") => {}
        () = flowing => unreachable!("flows until it is dropped"),
    }
    let published: i64 = sqlx::query_scalar(
        "select count(*) from outbox, relay_sinks where sink = 'kafka' and published @> seq",
    )
    .fetch_one(&pool)
    .await
    .expect("counted");
    assert!(published > 300, "the others flow: {published}");
    nothing_is_parked(&pool).await;
    second.start_again().await.expect("started again");
    settled(&pool, SOON).await;
    recovered(&mut relay).await;
    compare(&pool, &topic, &HashSet::new()).await;
}
