//! Where it is measured: one PostgreSQL and one Kafka for all points, a new topic and a new relay
//! process for each. A full outbox is filled once; draining it changes nothing but the relay's own
//! row, which is removed before.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use demo::programs::Server;
use demo::services::{Extras, Kafka, Postgres};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgConnection};
use tokio::sync::Mutex;

use crate::commits::By;
use crate::kafka::Topic;
use crate::outbox::{HOT, Shape};
use crate::shared::Outcome;
use crate::shared::process::resident;
use crate::{Load, Sample, bare, commits, cpu, idle, poller};

/// What Kafka's own start script gives its broker.
const JVM: &[&str] = &[
    "-Xmx1G",
    "-Xms1G",
    "-server",
    "-XX:+UseG1GC",
    "-XX:MaxGCPauseMillis=20",
    "-XX:InitiatingHeapOccupancyPercent=35",
    "-XX:+ExplicitGCInvokesConcurrent",
    "-XX:MaxInlineLevel=15",
    "-Djava.awt.headless=true",
];
const READY: Duration = Duration::from_secs(60);
/// For how long events are committed while a standby takes over.
const TAKEOVER: Duration = Duration::from_secs(12);
/// How often the messages of a full outbox are produced before what is measured.
const WARM_DRAINS: usize = 3;
/// Commits a second, and for how long.
const WARM: (u64, Duration) = (5_000, Duration::from_secs(40));
/// How long a drain may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often the relay is asked how far it is.
const LOOK: Duration = Duration::from_millis(50);
/// The poller's time. With an old snapshot it gets slower and slower: what it has done by then
/// flatters it.
const POLLER: Duration = Duration::from_secs(20);

pub(crate) struct Place {
    // End the servers when they go.
    _postgres: Postgres,
    postgres_log: PathBuf,
    kafka: Kafka,
    server: PgConnectOptions,
    /// Of the server, without a database.
    url: String,
    events: i64,
    duration: Duration,
    filled: Mutex<HashSet<Shape>>,
    /// Whether the broker has had its share of small requests.
    warm: AtomicBool,
}

impl Place {
    pub(crate) async fn start(events: i64, duration: Duration) -> Outcome<Self> {
        let extras = Extras { jvm: JVM, ..Extras::default() };
        let (mut postgres, kafka) = tokio::try_join!(Postgres::start(), Kafka::start_with(extras))?;
        let server: PgConnectOptions = postgres.url().parse()?;
        let url = postgres.url().trim_end_matches("postgres").to_owned();
        let filled = Mutex::default();
        let postgres_log = postgres.process().log().to_owned();
        let place = Self {
            _postgres: postgres,
            postgres_log,
            kafka,
            server,
            url,
            events,
            duration,
            filled,
            warm: AtomicBool::default(),
        };
        execute(&mut place.connect("postgres").await?, &["create database migrated"]).await?;
        orders::MIGRATOR.run(&mut place.connect("migrated").await?).await?;
        Ok(place)
    }

    pub(crate) async fn visit(&self, load: Load) -> Outcome<Sample> {
        let topic = Topic::create(&self.kafka.brokers()).await?;
        let sample = match load {
            Load::Bare(shape) => self.bare(shape, &topic).await,
            Load::BareJemalloc(shape) => self.bare_jemalloc(shape, &topic).await,
            Load::Drain { shape, old_snapshot } => self.drain(shape, old_snapshot, &topic).await,
            Load::Poller { old_snapshot } => self.poller(old_snapshot, &topic).await,
            Load::Commits { per_second, at_once } => self.commits(per_second, at_once, &topic).await,
            Load::Direct { per_second } => self.direct(per_second, &topic).await,
            Load::Takeover { killed } => self.takeover(killed, &topic).await,
            Load::Idle { all_stages } => self.idle(all_stages, &topic).await,
        }?;
        topic.delete().await?;
        Ok(sample)
    }

    async fn bare(&self, shape: Shape, topic: &Topic) -> Outcome<Sample> {
        let messages = bare::Messages::read(&mut self.filled(shape).await?).await?;
        let used = cpu::time(std::process::id());
        tokio::task::block_in_place(|| messages.produce(topic))?;
        let used = cpu::since(std::process::id(), used);
        drained(topic, None, messages.count() as u64, used, None).await
    }

    async fn bare_jemalloc(&self, shape: Shape, topic: &Topic) -> Outcome<Sample> {
        drop(self.filled(shape).await?);
        // Cargo builds the bench into `deps`, and examples beside that.
        let program = std::env::current_exe()?.with_file_name("../examples/bare_jemalloc");
        let output = tokio::process::Command::new(&program)
            .args([&format!("{}{}", self.url, shape.database()), topic.brokers(), topic.name()])
            .output()
            .await
            .map_err(|error| format!("{}: {error}; `make bench-relay` builds it", program.display()))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into());
        }
        let used = String::from_utf8(output.stdout)?.trim().parse().ok().map(Duration::from_micros);
        drained(topic, None, self.events.unsigned_abs(), used, None).await
    }

    async fn drain(&self, shape: Shape, old_snapshot: bool, topic: &Topic) -> Outcome<Sample> {
        let mut database = self.filled(shape).await?;
        execute(&mut database, &["delete from relay_sinks", "checkpoint"]).await?;
        let _snapshot = if old_snapshot { Some(self.old_snapshot(shape).await?) } else { None };
        let expected = shape.measured(self.events);
        let mut relay = self.relay(&["publish"], shape.database(), topic, &[])?;
        let pid = relay.process().id();
        let (start, mut memory) = (Instant::now(), 0.0_f64);
        let mut looks = 0;
        while settled(&mut database, shape).await? < expected {
            relay.process().check_running()?;
            if start.elapsed() > PATIENCE {
                return Err("the relay does not come to an end".into());
            }
            if looks % 10 == 0 {
                memory = memory.max(resident(pid).await.unwrap_or_default());
            }
            looks += 1;
            tokio::time::sleep(LOOK).await;
        }
        let used = cpu::time(pid);
        let memory = memory.max(resident(pid).await.unwrap_or_default());
        relay.terminate().await?;
        let hot: Option<String> = match shape {
            Shape::Hot => {
                sqlx::query_scalar("select aggregate_id::text from outbox where seq = $1")
                    .bind(HOT)
                    .fetch_optional(&mut database)
                    .await?
            }
            _ => None,
        };
        drained(topic, hot, expected.unsigned_abs(), used, Some(memory)).await
    }

    async fn poller(&self, old_snapshot: bool, topic: &Topic) -> Outcome<Sample> {
        let mut connection = self.filled(Shape::One).await?;
        execute(&mut connection, poller::TABLE).await?;
        let snapshot = if old_snapshot { Some(self.old_snapshot(Shape::One).await?) } else { None };
        let used = cpu::time(std::process::id());
        let published = poller::run(&mut connection, topic, POLLER).await?;
        let used = cpu::since(std::process::id(), used);
        drop(snapshot);
        execute(&mut connection, &["drop table polled"]).await?;
        drained(topic, None, published, used, None).await
    }

    async fn commits(&self, per_second: u64, at_once: usize, topic: &Topic) -> Outcome<Sample> {
        self.warm().await?;
        self.committed(per_second, at_once, self.duration, topic).await
    }

    async fn direct(&self, per_second: u64, topic: &Topic) -> Outcome<Sample> {
        self.warm().await?;
        self.fresh("commits").await?;
        let database = self.server.clone().database("commits");
        let run = commits::measure(&database, topic, By::Writer, per_second, 1, self.duration).await?;
        Ok(run.seen(None)?.sample())
    }

    /// A young broker is slow: its code for many small requests is not compiled yet.
    async fn warm(&self) -> Outcome<()> {
        if !self.warm.swap(true, Ordering::Relaxed) {
            let topic = Topic::create(&self.kafka.brokers()).await?;
            self.committed(WARM.0, 1, WARM.1, &topic).await?;
            topic.delete().await?;
        }
        Ok(())
    }

    async fn committed(
        &self,
        per_second: u64,
        at_once: usize,
        duration: Duration,
        topic: &Topic,
    ) -> Outcome<Sample> {
        self.fresh("commits").await?;
        let mut relay = self.relay(&["publish"], "commits", topic, &commits::LOGGING)?;
        relay.ready(READY).await?;
        let database = self.server.clone().database("commits");
        let run = commits::measure(&database, topic, By::Relay, per_second, at_once, duration).await?;
        let pid = relay.process().id();
        let (used, memory) = (cpu::time(pid), resident(pid).await);
        relay.terminate().await?;
        let seen = run.seen(Some(relay.process().log()))?;
        let cpu_per_event = used.map(|used| used.as_secs_f64() * 1e6 / seen.events as f64);
        Ok(Sample { cpu_per_event, memory, ..seen.sample() })
    }

    /// Events are committed all the time, and the publisher goes while another one stands by: the one that
    /// waits longest waits for the takeover.
    async fn takeover(&self, killed: bool, topic: &Topic) -> Outcome<Sample> {
        self.fresh("commits").await?;
        let start = || self.relay(&["publish"], "commits", topic, &[]);
        let (mut leader, mut standby) = (start()?, start()?);
        leader.ready(READY).await?;
        standby.ready(READY).await?;
        let database = self.server.clone().database("commits");
        let mut connection = database.connect().await?;
        let holder = loop {
            let holder: Option<String> =
                sqlx::query_scalar("select holder from relay_sinks where holder is not null")
                    .fetch_optional(&mut connection)
                    .await?;
            if let Some(holder) = holder {
                break holder;
            }
            tokio::time::sleep(LOOK).await;
        };
        if !holder.starts_with(&format!("relay-{}-", leader.process().id())) {
            std::mem::swap(&mut leader, &mut standby);
        }
        let goes = async {
            tokio::time::sleep(TAKEOVER / 3).await;
            if killed { leader.kill() } else { leader.terminate().await }
        };
        let (per_second, at_once) = (200, 1);
        let measured = commits::measure(&database, topic, By::Relay, per_second, at_once, TAKEOVER);
        let (gone, run) = tokio::join!(goes, measured);
        gone?;
        let seen = run?.seen(None)?;
        standby.terminate().await?;
        // A killed publisher may have published what it had not noted down yet.
        let errors = if killed { 0 } else { seen.errors };
        Ok(Sample { errors, ..seen.sample() })
    }

    async fn idle(&self, all_stages: bool, topic: &Topic) -> Outcome<Sample> {
        self.fresh("idle").await?;
        let mut postgres = self.connect("postgres").await?;
        execute(&mut postgres, &idle::LOGGING).await?;
        let stages: &[&str] = if all_stages { &[] } else { &["publish"] };
        let relay = self.relay(stages, "idle", topic, &[])?;
        let seen = idle::measure(relay, &self.postgres_log, "idle").await?;
        execute(&mut postgres, &idle::NO_LOGGING).await?;
        Ok(Sample {
            per_second: seen.statements_per_second,
            to_ack: None,
            to_consumer: None,
            cpu_per_event: None,
            cpu_share: seen.cpu_share,
            memory: None,
            errors: 0,
        })
    }

    /// Nothing here sends mail: nobody listens where it would go.
    fn relay(
        &self,
        stages: &[&str],
        database: &str,
        topic: &Topic,
        settings: &[(&str, &str)],
    ) -> Outcome<Server> {
        let (url, no_mail) = (format!("{}{database}", self.url), "smtp://127.0.0.1:9");
        Ok(Server::relay_stages(stages, &url, topic.brokers(), topic.name(), no_mail, settings)?)
    }

    /// A connection to the full outbox of that shape.
    async fn filled(&self, shape: Shape) -> Outcome<PgConnection> {
        let mut filled = self.filled.lock().await;
        let first = filled.is_empty();
        if !filled.insert(shape) {
            return self.connect(shape.database()).await;
        }
        self.fresh(shape.database()).await?;
        let mut connection = self.connect(shape.database()).await?;
        shape.fill(&mut connection, self.events).await?;
        // So that the first reader need not mark rows as committed.
        execute(&mut connection, &["vacuum (freeze, analyze) outbox"]).await?;
        if first {
            // A young broker is slow: its code is not compiled yet.
            let messages = bare::Messages::read(&mut connection).await?;
            for _ in 0..WARM_DRAINS {
                let topic = Topic::create(&self.kafka.brokers()).await?;
                tokio::task::block_in_place(|| messages.produce(&topic))?;
                topic.delete().await?;
            }
        }
        Ok(connection)
    }

    /// Leaves an empty, migrated database of that name.
    async fn fresh(&self, name: &str) -> Outcome<()> {
        let mut postgres = self.connect("postgres").await?;
        postgres.execute(AssertSqlSafe(format!("drop database if exists {name} with (force)"))).await?;
        postgres.execute(AssertSqlSafe(format!("create database {name} template migrated"))).await?;
        execute(&mut postgres, &["checkpoint"]).await
    }

    /// A transaction that nobody ends: what is updated from now on cannot be vacuumed away.
    async fn old_snapshot(&self, shape: Shape) -> Outcome<PgConnection> {
        let mut connection = self.connect(shape.database()).await?;
        let begin = ["begin isolation level repeatable read", "select 1 from outbox limit 1"];
        execute(&mut connection, &begin).await?;
        Ok(connection)
    }

    async fn connect(&self, database: &str) -> Outcome<PgConnection> {
        Ok(self.server.clone().database(database).connect().await?)
    }
}

/// How many events of those that are measured the relay has settled, by its checkpoints.
async fn settled(database: &mut PgConnection, shape: Shape) -> Outcome<i64> {
    let hot = if shape == Shape::Hot { HOT } else { i64::MAX };
    let settled = sqlx::query_scalar(
        "select coalesce(sum(upper(range) - lower(range)
                             - ((upper(range) - 1) / $1 - (lower(range) - 1) / $1)), 0)::int8
         from relay_sinks, unnest(published) as range",
    );
    Ok(settled.bind(hot).fetch_one(database).await?)
}

/// The rate is of the broker's clock, from the first append to the last: neither the start of a
/// process is in it nor what comes after the last event.
async fn drained(
    topic: &Topic,
    except: Option<String>,
    expected: u64,
    used: Option<Duration>,
    memory: Option<f64>,
) -> Outcome<Sample> {
    let appended = topic.appended(except).await?;
    Ok(Sample {
        per_second: appended.events as f64 / appended.took.as_secs_f64(),
        to_ack: None,
        to_consumer: None,
        cpu_per_event: used.map(|used| used.as_secs_f64() * 1e6 / expected as f64),
        cpu_share: None,
        memory,
        errors: appended.events.abs_diff(expected),
    })
}

async fn execute(connection: &mut PgConnection, statements: &[&'static str]) -> Outcome<()> {
    for statement in statements {
        connection.execute(AssertSqlSafe(*statement)).await?;
    }
    Ok(())
}
