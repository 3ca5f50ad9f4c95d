//! How the topic is set, and setting it.

use std::collections::BTreeMap;

use rdkafka::admin::{
    AdminClient, AdminOptions, AlterConfig, ConfigSource, NewPartitions, NewTopic, ResourceSpecifier,
    TopicReplication,
};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;

use super::{ANSWER, blocking};
use crate::kafka::Settings;

/// One partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Brokers that shall have it.
    pub replicas: usize,
    /// Those of them that are up to date.
    pub in_sync: usize,
    /// Whether somebody leads it.
    pub led: bool,
}

/// A setting of the topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Its value.
    pub value: String,
    /// Set for this topic, not taken over from the brokers.
    pub own: bool,
}

/// The topic as Kafka describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// Its partitions.
    pub partitions: Vec<Partition>,
    /// Its settings by name.
    pub settings: BTreeMap<String, Setting>,
}

impl Description {
    /// The value of a setting.
    #[must_use]
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(|setting| setting.value.as_str())
    }

    /// The value of a setting that is a number.
    #[must_use]
    pub(crate) fn number(&self, name: &str) -> Option<i64> {
        self.value(name)?.parse().ok()
    }

    /// The fewest replicas of a partition.
    #[must_use]
    pub(crate) fn replication(&self) -> usize {
        self.partitions.iter().map(|partition| partition.replicas).min().unwrap_or(0)
    }
}

/// The cluster, and the topic if it exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cluster {
    /// Brokers that are up.
    pub brokers: usize,
    /// The version that the brokers tell; Kafka 4 and later tell none.
    pub version: Option<String>,
    /// None when there is no such topic.
    pub topic: Option<Description>,
    /// Why its settings cannot be read, if so.
    pub unreadable: Option<String>,
}

/// What is to be changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Make the topic.
    Create { partitions: i32, replication: i32, settings: BTreeMap<String, String> },
    /// Add partitions, up to so many.
    Partitions(i32),
    /// Give settings another value.
    Settings(BTreeMap<String, String>),
}

/// Asks Kafka.
///
/// # Errors
/// When Kafka does not answer.
pub(crate) async fn describe(settings: &Settings) -> Result<Cluster, KafkaError> {
    let config = settings.client();
    let topic = settings.topic.clone();
    let (metadata, controller) = blocking(move || {
        // A consumer: a producer's question for a topic may make it.
        let consumer: BaseConsumer = config.create()?;
        let metadata = consumer.fetch_metadata(Some(&topic), ANSWER)?;
        let broker = metadata.brokers().first().map(|broker| broker.id());
        Ok::<_, KafkaError>((summary(&metadata, &topic)?, broker))
    })
    .await?;
    let (brokers, partitions) = metadata;
    let mut cluster = Cluster { brokers, ..Cluster::default() };
    let admin = admin(settings)?;
    let broker = controller.map(ResourceSpecifier::Broker);
    if let Some(Ok(entries)) = entries(&admin, broker).await? {
        let told = entries.into_iter().find(|entry| entry.name == "inter.broker.protocol.version");
        cluster.version = told.and_then(|entry| entry.value);
    }
    let Some(partitions) = partitions else { return Ok(cluster) };
    let mut description = Description { partitions, settings: BTreeMap::new() };
    match entries(&admin, Some(ResourceSpecifier::Topic(&settings.topic))).await? {
        Some(Ok(entries)) => {
            for entry in entries {
                if let Some(value) = entry.value {
                    let own = entry.source == ConfigSource::DynamicTopic;
                    description.settings.insert(entry.name, Setting { value, own });
                }
            }
        }
        Some(Err(code)) => cluster.unreadable = Some(code.to_string()),
        None => {}
    }
    cluster.topic = Some(description);
    Ok(cluster)
}

/// Brokers, and the partitions of the topic if it exists.
fn summary(metadata: &Metadata, topic: &str) -> Result<(usize, Option<Vec<Partition>>), KafkaError> {
    let topic = metadata.topics().iter().find(|known| known.name() == topic);
    let partitions = match topic.and_then(|topic| topic.error()).map(RDKafkaErrorCode::from) {
        Some(RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic) => None,
        Some(code) => return Err(KafkaError::MetadataFetch(code)),
        None => topic.map(|topic| {
            topic
                .partitions()
                .iter()
                .map(|partition| Partition {
                    replicas: partition.replicas().len(),
                    in_sync: partition.isr().len(),
                    led: partition.leader() >= 0,
                })
                .collect()
        }),
    };
    Ok((metadata.brokers().len(), partitions))
}

type Entries = Result<Vec<rdkafka::admin::ConfigEntry>, RDKafkaErrorCode>;

async fn entries(
    admin: &AdminClient<DefaultClientContext>,
    of: Option<ResourceSpecifier<'_>>,
) -> Result<Option<Entries>, KafkaError> {
    let Some(of) = of else { return Ok(None) };
    let described = admin.describe_configs([&of], &options()).await?;
    Ok(described.into_iter().next().map(|resource| resource.map(|resource| resource.entries)))
}

/// Makes one change. Settings of the topic that are not named keep their value.
///
/// # Errors
/// When Kafka does not answer or refuses.
pub(crate) async fn change(settings: &Settings, now: &Cluster, change: &Change) -> Result<(), KafkaError> {
    let admin = admin(settings)?;
    let topic = settings.topic.as_str();
    let refused = match change {
        Change::Create { partitions, replication, settings } => {
            let new = NewTopic::new(topic, *partitions, TopicReplication::Fixed(*replication));
            let new = settings.iter().fold(new, |new, (name, value)| new.set(name, value));
            let results = admin.create_topics([&new], &options()).await?;
            results.into_iter().find_map(Result::err)
        }
        Change::Partitions(partitions) => {
            let new = NewPartitions::new(topic, usize::try_from(*partitions).unwrap_or_default());
            let results = admin.create_partitions([&new], &options()).await?;
            results.into_iter().find_map(Result::err)
        }
        Change::Settings(changed) => {
            // The request sets everything that it does not name back to the brokers' value.
            let kept = now.topic.iter().flat_map(|topic| &topic.settings).filter(|(_, setting)| setting.own);
            let alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
            let alter = kept.fold(alter, |alter, (name, setting)| alter.set(name, &setting.value));
            let alter = changed.iter().fold(alter, |alter, (name, value)| alter.set(name, value));
            let results = admin.alter_configs([&alter], &options()).await?;
            results.into_iter().find_map(Result::err).map(|(_, code)| (topic.to_owned(), code))
        }
    };
    refused.map_or(Ok(()), |(_, code)| Err(KafkaError::AdminOp(code)))
}

fn admin(settings: &Settings) -> Result<AdminClient<DefaultClientContext>, KafkaError> {
    settings.client().create()
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(ANSWER)).operation_timeout(Some(ANSWER))
}
