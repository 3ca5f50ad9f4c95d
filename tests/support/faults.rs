//! What every test of the publisher needs that breaks a server: a backlog that is not done too soon, and
//! what the relay says of itself meanwhile.
#![allow(dead_code, reason = "each test file includes this and uses its own part")]

use std::time::Duration;

use demo::programs::Server;
use demo::testing::{Topic, eventually};
use sqlx::PgPool;
use uuid::Uuid;

/// Restarts of servers on a loaded machine included.
pub(crate) const SOON: Duration = Duration::from_secs(120);

pub(crate) fn publisher(database_url: &str, topic: &Topic, settings: &[(&str, &str)]) -> Server {
    let no_mail = "smtp://127.0.0.1:1";
    Server::relay_stages(&["publish"], database_url, topic.brokers(), topic.name(), no_mail, settings)
        .expect("the relay starts")
}

/// Commits `each` events of each of `orders` new orders, interleaved.
pub(crate) async fn backlog(pool: &PgPool, orders: i32, each: i32) {
    sqlx::query(
        "insert into outbox (event_id, aggregate_type, aggregate_id, version, type, payload)
         select gen_random_uuid(), 'order', md5($3 || n)::uuid, version, 'order.created.v1',
                json_build_object('filling', repeat(md5(n::text), 10))
         from generate_series(1, $1) n, generate_series(1, $2) version
         order by version, n",
    )
    .bind(orders)
    .bind(each)
    .bind(Uuid::now_v7().to_string())
    .execute(pool)
    .await
    .expect("a backlog");
}

/// How many events [`long_backlog`] commits.
pub(crate) const LONG: i64 = 80_000;

/// Commits many short orders, which keep everything busy, and behind them a few long ones, which no
/// publisher is done with soon: each of their events is a round trip of its own.
pub(crate) async fn long_backlog(pool: &PgPool) {
    backlog(pool, 20_000, 3).await;
    backlog(pool, 20, 1_000).await;
}

/// Waits until the relay has settled `at_least` events, and asserts that it is not done.
pub(crate) async fn in_the_middle(pool: &PgPool, at_least: i64) {
    let (settled, committed) = eventually("the relay to be in the middle", SOON, async || {
        let (settled, committed): (i64, i64) = sqlx::query_as(
            "select (select coalesce(sum(upper(r) - lower(r)), 0)::int8 from relay_sinks, unnest(published) r),
                    (select count(*) from outbox)",
        )
        .fetch_one(pool)
        .await
        .ok()?;
        (settled >= at_least).then_some((settled, committed))
    })
    .await;
    assert!(settled < committed, "the backlog is too small to be caught in the middle");
}

/// Waits until the relay's health names a problem with these words. Shows what it says until then.
pub(crate) async fn says(relay: &Server, words: &str) {
    let http = reqwest::Client::new();
    let mut last = String::new();
    let told = async || {
        let answer = http.get(format!("{}/readyz", relay.url())).send().await.ok()?;
        let status = answer.status().as_u16();
        let text = answer.text().await.ok()?;
        if text != last {
            println!("{status} {text}");
            last = text;
        }
        (status == 503 && last.contains(words)).then_some(())
    };
    eventually(&format!("/readyz to say: {words}"), SOON, told).await;
}

pub(crate) async fn recovered(relay: &mut Server) {
    relay.ready(SOON).await.expect("ready again");
}

pub(crate) async fn nothing_is_parked(pool: &PgPool) {
    let parked: i64 =
        sqlx::query_scalar("select count(*) from relay_dead").fetch_one(pool).await.expect("counted");
    assert_eq!(parked, 0, "an outage parks nothing");
}

/// Waits until a gauge on the relay's page of metrics has this value.
pub(crate) async fn gauge(relay: &Server, name: &str, value: i64) {
    let http = reqwest::Client::new();
    let line = format!("{name} {value}");
    eventually(&format!("the metrics to say: {line}"), SOON, async || {
        let page = http.get(format!("{}/metrics", relay.url())).send().await.ok()?.text().await.ok()?;
        page.lines().any(|told| told == line).then_some(())
    })
    .await;
}
