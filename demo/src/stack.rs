//! Everything that the demo runs, started side by side where one needs not the other.

use std::time::Duration;

use demo::mailbox::Mailbox;
use demo::programs::{self, Server};
use demo::services::{Kafka, MockKafka, Postgres, free_port, java_is_there};
use demo::topic::{self, Follower};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::net::TcpListener;

use crate::Outcome;
use crate::cli::Demo;

const READY: Duration = Duration::from_secs(60);
const PARTITIONS: i32 = 6;

/// Where the events go.
enum Broker {
    Own(Box<Kafka>),
    Mock(MockKafka),
    Given(String),
}

impl Broker {
    async fn start(options: &Demo) -> Outcome<Self> {
        if let Some(brokers) = &options.kafka_brokers {
            return Ok(Self::Given(brokers.clone()));
        }
        if !java_is_there() {
            println!(
                "no Java 17 here: librdkafka's mock cluster stands in for Kafka and proves no guarantee"
            );
            return Ok(Self::Mock(MockKafka::start(&options.kafka_topic, PARTITIONS)?));
        }
        Ok(Self::Own(Box::new(Kafka::start().await?)))
    }

    fn brokers(&self) -> String {
        match self {
            Self::Own(kafka) => kafka.brokers(),
            Self::Mock(kafka) => kafka.brokers().to_owned(),
            Self::Given(brokers) => brokers.clone(),
        }
    }
}

/// What runs, in the order in which it ends: whoever uses a server ends before it.
pub(crate) struct Stack {
    pub(crate) events: Follower,
    pub(crate) relay: Server,
    api: Server,
    pub(crate) database: PgPool,
    pub(crate) mailbox: Option<Mailbox>,
    pub(crate) topic: String,
    page: Option<String>,
    broker: Broker,
    postgres: Option<Postgres>,
}

impl Stack {
    pub(crate) async fn start(options: &Demo) -> Outcome<Self> {
        println!("starting {}", names(options).join(", "));
        let ((postgres, database_url, api), broker, (mailbox, page)) =
            tokio::try_join!(api(options), Broker::start(options), mailbox(options))?;

        let brokers = broker.brokers();
        let topic = options.kafka_topic.clone();
        if !matches!(broker, Broker::Mock(_)) {
            topic::create(&brokers, &topic, PARTITIONS).await?;
            topic::create(&brokers, &format!("{topic}.orders-notify.dead"), 1).await?;
        }
        let events = Follower::start(&brokers, &topic).await?;
        let smtp_url =
            mailbox.as_ref().map(Mailbox::smtp_url).or(options.smtp_url.clone()).unwrap_or_default();
        let listen = listen(9464).await?;
        let mut relay =
            Server::relay(&database_url, &brokers, &topic, &smtp_url, &[("RELAY_LISTEN", &listen)])?;
        relay.ready(READY).await?;
        if let Broker::Own(_) = broker {
            settled(&brokers).await;
        }
        let database = PgPoolOptions::new().max_connections(4).connect(&database_url).await?;
        Ok(Self { events, relay, api, database, mailbox, topic, page, broker, postgres })
    }

    pub(crate) fn api_url(&self) -> &str {
        self.api.url()
    }

    pub(crate) fn relay_url(&self) -> &str {
        self.relay.url()
    }

    /// The page to read the mail.
    pub(crate) fn page(&self) -> Option<&str> {
        self.page.as_deref()
    }

    pub(crate) fn show(&self) {
        println!("  API         {}", self.api_url());
        println!("  relay       {}/readyz", self.relay_url());
        if let Some(page) = self.page() {
            println!("  mailbox     {page}");
        }
        if let Some(postgres) = &self.postgres {
            println!("  PostgreSQL  {}", postgres.url());
        }
        println!("  Kafka       {} topic {}", self.broker.brokers(), self.topic);
    }

    /// Returns only when a process has ended by itself.
    pub(crate) async fn watch(&mut self) -> Outcome<()> {
        loop {
            self.api.process().check_running()?;
            self.relay.process().check_running()?;
            if let Some(postgres) = &mut self.postgres {
                postgres.process().check_running()?;
            }
            if let Broker::Own(kafka) = &mut self.broker {
                kafka.process().check_running()?;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    /// Ends everything in order; what does not end in time is killed.
    pub(crate) async fn stop(mut self) -> Outcome<()> {
        drop(self.events);
        let api = self.api.terminate().await;
        let relay = self.relay.terminate().await;
        self.database.close().await;
        api?;
        relay?;
        Ok(())
    }
}

fn names(options: &Demo) -> Vec<&'static str> {
    let own = [
        (options.database_url.is_none(), "PostgreSQL"),
        (options.kafka_brokers.is_none(), "Kafka"),
        (options.smtp_url.is_none(), "a mailbox"),
        (true, "the API"),
        (true, "the relay"),
    ];
    own.into_iter().filter_map(|(own, name)| own.then_some(name)).collect()
}

/// The database with its schema, and the API on it.
async fn api(options: &Demo) -> Outcome<(Option<Postgres>, String, Server)> {
    let (postgres, url) = match &options.database_url {
        Some(url) => (None, url.clone()),
        None => {
            let postgres = Postgres::start().await?;
            let url = postgres.url();
            (Some(postgres), url)
        }
    };
    programs::run("orders", &["migrate"], &[("DATABASE_URL", &url)]).await?;
    let listen = listen(8080).await?;
    let mut api = Server::orders(&url, &[("ORDERS_LISTEN", &listen)])?;
    api.ready(READY).await?;
    Ok((postgres, url, api))
}

async fn mailbox(options: &Demo) -> Outcome<(Option<Mailbox>, Option<String>)> {
    if options.smtp_url.is_some() {
        return Ok((None, None));
    }
    let mut mailbox = Mailbox::start(0).await?;
    let port = port(8025).await?;
    let page = mailbox.serve_page(port).await?;
    Ok((Some(mailbox), Some(page)))
}

/// A group's first join takes seconds; the times of the first order must not have that in them.
/// No more than that rests on it.
async fn settled(brokers: &str) {
    let joined = async {
        while !topic::group_is_stable(brokers, None).await.unwrap_or(false) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(6), joined).await;
}

async fn listen(usual: u16) -> Outcome<String> {
    Ok(format!("127.0.0.1:{}", port(usual).await?))
}

/// The usual port, or a free one where that is taken.
async fn port(usual: u16) -> std::io::Result<u16> {
    match TcpListener::bind(("127.0.0.1", usual)).await {
        Ok(_) => Ok(usual),
        Err(_) => free_port(),
    }
}
