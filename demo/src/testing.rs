//! A database and a topic of its own for each test, on the servers that the run shares.

use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, PgPool};
use uuid::Uuid;

use crate::topic::{self, Message};

/// Names the shared PostgreSQL server: a URL to a database in which databases may be created.
pub const DATABASE_SERVER: &str = "TEST_DATABASE_URL";
/// Names the shared Kafka: host:port.
pub const KAFKA_BROKERS: &str = "TEST_KAFKA_BROKERS";

/// The value of one of the two variables.
///
/// # Panics
/// When it is not set: tests run by `make test`, which starts the servers.
#[must_use]
#[allow(clippy::disallowed_methods, reason = "a test has no command line to declare them on")]
pub fn shared(variable: &str) -> String {
    std::env::var(variable)
        .unwrap_or_else(|_| panic!("{variable} is not set: run the tests with `make test`"))
}

/// A fresh database.
#[derive(Debug)]
pub struct Database {
    url: String,
}

impl Database {
    /// Creates the database and applies every migration.
    ///
    /// # Panics
    /// When the server cannot be reached.
    pub async fn create() -> Self {
        Self::create_on(&shared(DATABASE_SERVER)).await
    }

    /// The same on the server that `url` names.
    ///
    /// # Panics
    /// When the server cannot be reached.
    pub async fn create_on(url: &str) -> Self {
        let database = Self::empty_on(url).await;
        orders::MIGRATOR.run(&database.pool().await).await.expect("migrated");
        database
    }

    /// A database without any table: what a team outside has.
    ///
    /// # Panics
    /// When the server cannot be reached.
    pub async fn empty() -> Self {
        Self::empty_on(&shared(DATABASE_SERVER)).await
    }

    async fn empty_on(url: &str) -> Self {
        let server: PgConnectOptions = url.parse().expect("a PostgreSQL URL");
        let name = format!("test_{}", Uuid::now_v7().simple());
        let mut admin = server.connect().await.expect("PostgreSQL answers");
        admin.execute(AssertSqlSafe(format!("create database {name}"))).await.expect("database created");
        Self { url: server.database(&name).to_url_lossy().to_string() }
    }

    /// What goes into `DATABASE_URL`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A pool of up to 10 connections.
    ///
    /// # Panics
    /// When the database cannot be reached.
    pub async fn pool(&self) -> PgPool {
        PgPoolOptions::new().max_connections(10).connect(&self.url).await.expect("database answers")
    }
}

/// A fresh topic on the Kafka that the run shares.
#[derive(Debug)]
pub struct Topic {
    name: String,
    brokers: String,
}

impl Topic {
    /// Creates the topic.
    ///
    /// # Panics
    /// When Kafka cannot be reached.
    pub async fn create(partitions: i32) -> Self {
        Self::create_on(&shared(KAFKA_BROKERS), partitions, &[]).await
    }

    /// The same on other brokers, with settings of its own.
    ///
    /// # Panics
    /// When Kafka cannot be reached.
    pub async fn create_on(brokers: &str, partitions: i32, settings: &[(&str, &str)]) -> Self {
        Self::create_replicated(brokers, partitions, 1, settings).await
    }

    /// The same on so many brokers of a cluster each.
    ///
    /// # Panics
    /// When Kafka cannot be reached.
    pub async fn create_replicated(
        brokers: &str,
        partitions: i32,
        replicas: i32,
        settings: &[(&str, &str)],
    ) -> Self {
        let name = format!("test_{}", Uuid::now_v7().simple());
        topic::create_with(brokers, &name, partitions, replicas, settings).await.expect("topic created");
        Self { name, brokers: brokers.to_owned() }
    }

    /// What goes into `KAFKA_TOPIC`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What goes into `KAFKA_BROKERS`.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// Everything that lies on it now.
    ///
    /// # Panics
    /// When it cannot be read within a minute.
    pub async fn read(&self) -> Vec<Message> {
        read_topic(&self.brokers, &self.name, Duration::from_secs(60)).await
    }
}

/// Everything that lies on a topic now, up to its high watermarks, partition by partition in order
/// of offset.
///
/// # Panics
/// When it cannot be read within `limit`.
pub async fn read_topic(brokers: &str, topic: &str, limit: Duration) -> Vec<Message> {
    topic::read(brokers, topic, limit).await.expect("the topic is read")
}

/// Polls `check` until it gives a value.
///
/// # Panics
/// After `limit`; `what` says what was waited for.
pub async fn eventually<T>(what: &str, limit: Duration, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + limit;
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(Instant::now() < end, "after {limit:?} still waiting for: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
