//! A Kafka broker of our own: one KRaft node, or librdkafka's mock cluster where there is no Java.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;
use std::{fs, thread};

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use uuid::Uuid;

use super::distribution::Distribution;
use super::{Disk, Extras, STARTS, ServiceError, free_port};
use crate::guard;
use crate::process::{Process, Spec};

const NAME: &str = "Kafka";
const START: Duration = Duration::from_secs(60);
const STOP: Duration = Duration::from_secs(30);
/// Starts fast and takes little memory; with many requests a second it stops for 20 ms every other second.
const SMALL: &[&str] = &["-Xmx512m", "-Xms256m", "-XX:+UseSerialGC"];

/// A running broker; dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Kafka {
    directory: PathBuf,
    classpath: String,
    port: u16,
    login_port: u16,
    cluster: Cluster,
    spec: Spec,
    process: Process,
}

/// What the brokers of a cluster have in common.
#[derive(Clone, Debug)]
struct Cluster {
    id: String,
    /// The port of the one controller, which is in the process of the first broker.
    controller: u16,
}

impl Kafka {
    /// Formats a new node and starts it.
    ///
    /// # Errors
    /// When it cannot be fetched or does not start; the end of its log is shown.
    pub async fn start() -> Result<Self, ServiceError> {
        Self::start_with(Extras::default()).await
    }

    /// The same with more settings, or on a disk of its own.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub async fn start_with(extras: Extras<'_>) -> Result<Self, ServiceError> {
        Self::start_node(1, None, extras).await
    }

    /// One that knows access rules ([`Kafka::rights`]). Where there is none for a resource, everybody may do
    /// everything with it.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub async fn start_with_rights() -> Result<Self, ServiceError> {
        let authorizer = [
            ("authorizer.class.name", "org.apache.kafka.metadata.authorizer.StandardAuthorizer"),
            ("allow.everyone.if.no.acl.found", "true"),
        ];
        Self::start_with(Extras { settings: &authorizer, ..Extras::default() }).await
    }

    /// Starts another broker of the same cluster. The first one stays its controller: the cluster lives as
    /// long as that one.
    ///
    /// # Errors
    /// As [`Kafka::start`].
    pub async fn join(&self, node: u16) -> Result<Self, ServiceError> {
        Self::start_node(node, Some(&self.cluster), Extras::default()).await
    }

    async fn start_node(
        node: u16,
        cluster: Option<&Cluster>,
        extras: Extras<'_>,
    ) -> Result<Self, ServiceError> {
        let io_failed = |source| ServiceError::Io { service: NAME, source };
        let classpath = format!("{}/*", Distribution::kafka().unpacked().await?.display());
        let mut tries = 0;
        loop {
            tries += 1;
            let directory = guard::scratch("kafka").map_err(io_failed)?;
            let port = free_port().map_err(io_failed)?;
            let new = Cluster { id: cluster_id(), controller: free_port().map_err(io_failed)? };
            let is_first = cluster.is_none();
            let cluster = cluster.cloned().unwrap_or(new);
            let properties = directory.join("server.properties");
            let data = extras.disk.map_or(directory.as_path(), Disk::path).join(format!("data-{tries}"));
            let mut text = server_properties(node, is_first, port, cluster.controller, &data);
            let login_port = free_port().map_err(io_failed)?;
            if let Some((user, password)) = extras.login {
                text += &login_properties(port, cluster.controller, login_port, user, password);
            }
            for (name, value) in extras.settings {
                text += &format!("{name}={value}\n");
            }
            fs::write(&properties, text).map_err(io_failed)?;
            format(&classpath, &properties, &cluster.id, directory.join("format.log")).await?;
            let machine = if extras.jvm.is_empty() { SMALL } else { extras.jvm };
            let spec = java("kafka", machine, &classpath, directory.join("log"))
                .args(["kafka.Kafka"])
                .args([&properties]);
            let set = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
            let spec = Spec { env: extras.environment.iter().map(set).collect(), ..spec };
            let process = Process::spawn(&spec).map_err(ServiceError::process(NAME))?;
            let classpath = classpath.clone();
            let mut broker = Self { directory, classpath, port, login_port, cluster, spec, process };
            match broker.answers().await {
                Ok(()) => return Ok(broker),
                Err(error) if tries == STARTS => return Err(error),
                Err(_) => {}
            }
        }
    }

    /// What goes into `KAFKA_BROKERS`.
    #[must_use]
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The same for clients that log in; nobody is there without [`Extras::login`].
    #[must_use]
    pub fn login_brokers(&self) -> String {
        format!("127.0.0.1:{}", self.login_port)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// SIGTERM, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop(&mut self) -> Result<(), ServiceError> {
        self.process.terminate(STOP).await.map(drop).map_err(ServiceError::process(NAME))
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self) -> Result<(), ServiceError> {
        self.process.kill().map_err(ServiceError::process(NAME))
    }

    /// Starts it again on the same data and port.
    ///
    /// # Errors
    /// When it does not start; the end of its log is shown.
    pub async fn start_again(&mut self) -> Result<(), ServiceError> {
        self.kill()?;
        self.process = Process::spawn(&self.spec).map_err(ServiceError::process(NAME))?;
        self.answers().await
    }

    /// Adds or removes access rules on a topic, in the words of Kafka's own `kafka-acls` command:
    /// `["--add", "--deny-principal", "User:ANONYMOUS", "--operation", "Write"]`.
    ///
    /// # Errors
    /// When the broker has no authorizer, or refuses.
    pub async fn rights(&self, topic: &str, rule: &[&str]) -> Result<(), ServiceError> {
        self.rule(&["--topic", topic], rule).await
    }

    /// The same on the cluster.
    ///
    /// # Errors
    /// As [`Kafka::rights`].
    pub async fn cluster_rights(&self, rule: &[&str]) -> Result<(), ServiceError> {
        self.rule(&["--cluster"], rule).await
    }

    async fn rule(&self, resource: &[&str], rule: &[&str]) -> Result<(), ServiceError> {
        let command = java(
            "kafka-acls",
            &["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"],
            &self.classpath,
            self.directory.join("acls.log"),
        )
        .args(["org.apache.kafka.tools.AclCommand", "--bootstrap-server", &self.brokers()])
        .args(resource)
        .args(rule);
        Process::run(&command, START).await.map_err(ServiceError::process(NAME))
    }

    async fn answers(&mut self) -> Result<(), ServiceError> {
        let brokers = self.brokers();
        self.process
            .wait_until("ready", START, async || {
                // librdkafka backs off between attempts; a plain connection is cheaper to repeat.
                if tokio::net::TcpStream::connect(&brokers).await.is_err() {
                    return false;
                }
                let brokers = brokers.clone();
                tokio::task::spawn_blocking(move || is_broker(&brokers)).await.is_ok_and(|yes| yes)
            })
            .await
            .map_err(ServiceError::process(NAME))
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// librdkafka's mock cluster: speaks the protocol to other processes too, keeps everything in
/// memory, proves no guarantee.
#[derive(Debug)]
pub struct MockKafka {
    brokers: String,
    // Dropping it ends the thread that owns the cluster.
    _end: mpsc::Sender<()>,
}

impl MockKafka {
    /// Starts it with one topic, since it has no `CreateTopics`.
    ///
    /// # Errors
    /// When librdkafka refuses.
    pub fn start(topic: &str, partitions: i32) -> Result<Self, ServiceError> {
        let (end, ended) = mpsc::channel::<()>();
        let (started, start) = mpsc::channel();
        let topic = topic.to_owned();
        // The cluster cannot move between threads.
        thread::spawn(move || {
            let cluster = MockCluster::<DefaultProducerContext>::new(1)
                .and_then(|cluster| cluster.create_topic(&topic, partitions, 1).map(|()| cluster));
            match cluster {
                Ok(cluster) => {
                    if started.send(Ok(cluster.bootstrap_servers())).is_ok() {
                        let _ = ended.recv();
                    }
                }
                Err(error) => drop(started.send(Err(error))),
            }
        });
        let brokers = start
            .recv()
            .map_err(|_| ServiceError::Mock(rdkafka::error::KafkaError::Canceled))?
            .map_err(ServiceError::Mock)?;
        Ok(Self { brokers, _end: end })
    }

    /// What goes into `KAFKA_BROKERS`.
    #[must_use]
    pub fn brokers(&self) -> &str {
        &self.brokers
    }
}

/// Whether there is a Java that Kafka 4 runs on (17 or later).
#[must_use]
pub fn java_is_there() -> bool {
    let Ok(output) = Command::new("java").arg("-version").output() else { return false };
    // openjdk version "17.0.15" 2025-04-15
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let major =
        text.split('"').nth(1).and_then(|version| version.split(['.', '-']).next()?.parse::<u32>().ok());
    output.status.success() && major.is_some_and(|major| major >= 17)
}

async fn format(classpath: &str, properties: &Path, cluster: &str, log: PathBuf) -> Result<(), ServiceError> {
    let format = java(
        "kafka format",
        &["-XX:+UseSerialGC", "-Xshare:auto", "-XX:TieredStopAtLevel=1"],
        classpath,
        log,
    )
    .args(["kafka.tools.StorageTool", "format", "-t", cluster, "-c"])
    .args([properties]);
    Process::run(&format, START).await.map_err(ServiceError::process(NAME))
}

fn java(name: &str, options: &[&str], classpath: &str, log: PathBuf) -> Spec {
    Spec::new(name, "java", log)
        .args(options)
        // Without a logging configuration of its own log4j shows errors alone.
        .args(["-Dlog4j2.level=WARN", "-cp", classpath])
}

/// 16 random bytes in URL-safe base64 without padding, as Kafka makes them.
fn cluster_id() -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let bits = Uuid::now_v7().as_u128();
    let digit = |index: u128| char::from(ALPHABET[(index & 63) as usize]);
    (0..21).map(|i| digit(bits >> (122 - 6 * i))).chain([digit(bits << 4)]).collect()
}

fn server_properties(node: u16, is_first: bool, port: u16, controller: u16, data: &Path) -> String {
    let (roles, and_controller) = if is_first {
        ("broker,controller", format!(",CONTROLLER://127.0.0.1:{controller}"))
    } else {
        ("broker", String::new())
    };
    format!(
        "process.roles={roles}\n\
         node.id={node}\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port}{and_controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={}\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         group.initial.rebalance.delay.ms=0\n\
         num.partitions=6\n\
         auto.create.topics.enable=false\n",
        data.display()
    )
}

/// Goes behind the properties of a first broker, and replaces its listeners.
fn login_properties(port: u16, controller: u16, login_port: u16, user: &str, password: &str) -> String {
    let listeners = format!("PLAINTEXT://127.0.0.1:{port},LOGIN://127.0.0.1:{login_port}");
    format!(
        "listeners={listeners},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners={listeners}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,LOGIN:SASL_PLAINTEXT\n\
         inter.broker.listener.name=PLAINTEXT\n\
         sasl.enabled.mechanisms=PLAIN\n\
         listener.name.login.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
         required user_{user}=\"{password}\";\n"
    )
}

fn is_broker(brokers: &str) -> bool {
    ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set_log_level(RDKafkaLogLevel::Emerg)
        .create::<BaseConsumer>()
        .and_then(|client| client.fetch_metadata(None, Duration::from_secs(2)))
        .is_ok_and(|metadata| !metadata.brokers().is_empty())
}
