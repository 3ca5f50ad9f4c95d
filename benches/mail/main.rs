//! The way of an e-mail: how fast the mail stage drains a backlog to a server on this machine, and how long after
//! the commit of its order a mail is taken. Prints the figures and whether each target is met; a missed target
//! fails nothing, because times depend on the machine.

#[path = "../shared/ending.rs"]
mod ending;

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use clap::Parser;
use demo::mailbox::Mailbox;
use demo::programs::Server;
use demo::services::{Kafka, Postgres};
use demo::topic;
use futures_util::{StreamExt, stream};
use reqwest::{Client, StatusCode};
use serde_json::json;
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;

use crate::ending::{Outcome, ended};

const TOPIC: &str = "orders.events.v1";
const CONNECTIONS: usize = 64;
/// Seconds before what is measured: the notifier joins its group, statements are prepared.
const WARM_UP: u32 = 5;
const READY: Duration = Duration::from_secs(60);
const THROUGH: Duration = Duration::from_secs(600);

/// Measures the mail stage against a server on this machine.
#[derive(Debug, Parser)]
struct Cli {
    /// Orders of the backlog
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    orders: u32,
    /// Orders per second while latency is measured
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    rate: u32,
    /// For how many seconds
    #[arg(long, env = "BENCH_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Simultaneous SMTP connections
    #[arg(long, default_value = "8")]
    connections: String,
    /// JSON instead of lines
    #[arg(long)]
    json: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Everything that the pipeline stands on; ends with the run.
struct Place {
    postgres: Postgres,
    kafka: Kafka,
    mailbox: Mailbox,
    api: Server,
    pool: PgPool,
    http: Client,
}

impl Place {
    async fn start() -> Outcome<Self> {
        let (postgres, kafka) = (Postgres::start().await?, Kafka::start().await?);
        let pool = PgPoolOptions::new().max_connections(4).connect(&postgres.url()).await?;
        orders::MIGRATOR.run(&pool).await?;
        topic::create(&kafka.brokers(), TOPIC, 6).await?;
        let mut api = Server::orders(&postgres.url(), &[])?;
        api.ready(READY).await?;
        Ok(Self { postgres, kafka, mailbox: Mailbox::start(0).await?, api, pool, http: Client::new() })
    }

    async fn relay(&self, stages: &[&str], connections: &str) -> Outcome<Server> {
        let (url, smtp) = (self.postgres.url(), self.mailbox.smtp_url());
        let settings = [("MAIL_CONNECTIONS", connections)];
        let mut relay = Server::relay_stages(stages, &url, &self.kafka.brokers(), TOPIC, &smtp, &settings)?;
        relay.ready(READY).await?;
        Ok(relay)
    }

    async fn order(&self, key: &str) -> Outcome<()> {
        let order =
            json!({"customerId": 42, "amountCents": 2599, "customerEmail": format!("{key}@example.com")});
        let request = self.http.post(format!("{}/orders", self.api.url())).header("idempotency-key", key);
        let answer = request.json(&order).send().await?;
        if answer.status() == StatusCode::CREATED { Ok(()) } else { Err(answer.text().await?.into()) }
    }
}

/// Mails per second, from the first one taken to the last, with the orders' events already handled.
async fn drain(place: &Place, cli: &Cli) -> Outcome<f64> {
    let relay = place.relay(&["publish", "notify"], &cli.connections).await?;
    let answers: Vec<Outcome<()>> = stream::iter(0..cli.orders)
        .map(async |n| place.order(&format!("drain-{n}")).await)
        .buffer_unordered(CONNECTIONS)
        .collect()
        .await;
    answers.into_iter().collect::<Outcome<Vec<()>>>()?;
    let start = Instant::now();
    while sqlx::query_scalar::<_, i64>("select count(*) from notifications").fetch_one(&place.pool).await?
        < i64::from(cli.orders)
    {
        if start.elapsed() > THROUGH {
            return Err("the events are not handled in time".into());
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    drop(relay);
    let _mailer = place.relay(&["mail"], &cli.connections).await?;
    let wanted = usize::try_from(cli.orders)?;
    place.mailbox.wait_for(wanted, THROUGH).await?;
    let took = place.mailbox.read(|mails| {
        let times = mails.iter().map(|mail| mail.received_at);
        times.clone().max().zip(times.min()).map(|(last, first)| last - first)
    });
    let seconds = took.ok_or("no mail")?.as_seconds_f64();
    if place.mailbox.message_ids().len() != wanted {
        return Err("mails are missing".into());
    }
    Ok(f64::from(cli.orders) / seconds)
}

/// Milliseconds from an order's event being written (just before its commit) to the mail being taken: p50, p99.
async fn latency(place: &Place, cli: &Cli) -> Outcome<(f64, f64)> {
    let _relay = place.relay(&["publish", "notify", "mail"], &cli.connections).await?;
    let before = place.mailbox.count();
    let mut beat = tokio::time::interval(Duration::from_secs(1) / cli.rate);
    let count = cli.rate * (cli.seconds + WARM_UP);
    let ticks = stream::unfold((&mut beat, 0), async |(beat, n)| {
        beat.tick().await;
        (n < count).then_some((n, (beat, n + 1)))
    });
    let answers: Vec<Outcome<()>> = ticks
        .map(async |n| place.order(&format!("paced-{n}")).await)
        .buffer_unordered(CONNECTIONS)
        .collect()
        .await;
    answers.into_iter().collect::<Outcome<Vec<()>>>()?;
    place.mailbox.wait_for(before + usize::try_from(count)?, THROUGH).await?;
    let written: HashMap<String, DateTime<Utc>> =
        sqlx::query_as("select aggregate_id::text, created_at from outbox order by seq desc limit $1")
            .bind(i64::from(cli.rate * cli.seconds))
            .fetch_all(&place.pool)
            .await?
            .into_iter()
            .collect();
    let mut waits: Vec<f64> = place.mailbox.read(|mails| {
        let order = |id: &str| id.split('.').nth(1).map(str::to_owned);
        mails[before..]
            .iter()
            .filter_map(|mail| {
                let written = written.get(&order(&mail.message_id)?)?;
                Some((mail.received_at - written).as_seconds_f64() * 1_000.0)
            })
            .collect()
    });
    waits.sort_unstable_by(f64::total_cmp);
    let quantile = |part: f64| waits.get(((waits.len() as f64 - 1.0) * part) as usize).copied();
    quantile(0.5).zip(quantile(0.99)).ok_or_else(|| "no mail".into())
}

async fn measure(cli: &Cli) -> Outcome<()> {
    let place = Place::start().await?;
    // First the backlog: the latency is then that of a pipeline with rows in its tables.
    let rate = drain(&place, cli).await?;
    let (p50, p99) = latency(&place, cli).await?;
    if cli.json {
        println!(
            "{}",
            json!({ "mailsPerSecond": rate, "connections": cli.connections, "orders": cli.orders,
                    "ordersPerSecond": cli.rate, "seconds": cli.seconds,
                    "commitToTakenP50Milliseconds": p50, "commitToTakenP99Milliseconds": p99 })
        );
        return Ok(());
    }
    let verdict = |met| if met { "met" } else { "MISSED" };
    println!(
        "{} mails over {} connections: {rate:.0} mails/s; target 1000: {}",
        cli.orders,
        cli.connections,
        verdict(rate >= 1_000.0)
    );
    println!(
        "{} orders/s for {} s, commit to mail taken: p50 {p50:.1} ms, p99 {p99:.1} ms; target p99 100 ms: {}",
        cli.rate,
        cli.seconds,
        verdict(p99 < 100.0)
    );
    Ok(())
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    if !cli.bench {
        // `cargo test --all-targets` comes here too, and must not take minutes.
        eprintln!("this measures: run it with `make bench-mail`");
        return ExitCode::SUCCESS;
    }
    ended(measure(&cli).await)
}
