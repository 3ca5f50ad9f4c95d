//! What has to be changed for a topic to be as it was asked for. Pure.

use std::collections::BTreeMap;

use crate::config::{Retention, TopicApplyArgs};
use crate::topic::admin::{Change, Cluster, Description};

const PARTITIONS: i32 = 6;
const REPLICATION: usize = 3;
const MIN_INSYNC: &str = "min.insync.replicas";
const RETENTION: &str = "retention.ms";
const UNCLEAN: &str = "unclean.leader.election.enable";
const MESSAGE_BYTES: &str = "max.message.bytes";
const CLEANUP: &str = "cleanup.policy";

/// The changes that are to be made, or why they are not.
pub(super) fn plan(
    args: &TopicApplyArgs,
    cluster: &Cluster,
    message_bytes: i64,
) -> Result<Vec<Change>, String> {
    match &cluster.topic {
        None => create(args, cluster, message_bytes).map(|change| vec![change]),
        Some(topic) => raise(args, topic),
    }
}

fn create(args: &TopicApplyArgs, cluster: &Cluster, message_bytes: i64) -> Result<Change, String> {
    let replication = match args.replication {
        Some(replicas) => replicas,
        None => i32::try_from(cluster.brokers.clamp(1, REPLICATION)).unwrap_or(1),
    };
    let in_sync = args.min_insync_replicas.unwrap_or((replication - 1).clamp(1, 2));
    if in_sync > replication {
        return Err(format!(
            "--min-insync-replicas {in_sync} of {replication} replicas: nothing could be written"
        ));
    }
    let mut settings = BTreeMap::from([
        (MIN_INSYNC.to_owned(), in_sync.to_string()),
        (UNCLEAN.to_owned(), "false".to_owned()),
        (CLEANUP.to_owned(), "delete".to_owned()),
        // Room for the frame of the batch around the largest event that is ever sent.
        (MESSAGE_BYTES.to_owned(), (message_bytes + FRAME).to_string()),
    ]);
    if let Some(retention) = args.retention {
        settings.insert(RETENTION.to_owned(), millis(retention).to_string());
    }
    Ok(Change::Create { partitions: args.partitions.unwrap_or(PARTITIONS), replication, settings })
}

/// The topic of the dead letters, if there is none: one partition, and room for the headers that say why.
pub(super) fn letters(
    args: &TopicApplyArgs,
    cluster: &Cluster,
    message_bytes: i64,
) -> Result<Vec<Change>, String> {
    if cluster.topic.is_some() {
        return Ok(Vec::new());
    }
    let Change::Create { replication, settings, .. } = create(args, cluster, message_bytes + FRAME)? else {
        return Ok(Vec::new());
    };
    Ok(vec![Change::Create { partitions: 1, replication, settings }])
}

/// What a batch and a record add to an event: Kafka's own default for brokers is larger by 12 bytes
/// than that for producers, and headers and key count too.
pub(super) const FRAME: i64 = 48 << 10;

fn raise(args: &TopicApplyArgs, topic: &Description) -> Result<Vec<Change>, String> {
    let mut changes = Vec::new();
    let there = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    match args.partitions {
        Some(wanted) if wanted < there => {
            return Err(format!("there are {there} partitions, and Kafka cannot take any away"));
        }
        Some(wanted) if wanted > there && !args.yes_move_orders => {
            return Err(format!(
                "{wanted} partitions instead of {there} would move orders: from then on an order's events may go to another partition than its earlier ones, and a consumer may see them out of order across the change. Let consumers catch up, pause the relay, then add --yes-move-orders"
            ));
        }
        Some(wanted) if wanted > there => changes.push(Change::Partitions(wanted)),
        _ => {}
    }
    let replicas = i32::try_from(topic.replication()).unwrap_or(i32::MAX);
    if let Some(wanted) = args.replication.filter(|wanted| *wanted != replicas) {
        return Err(format!(
            "there are {replicas} replicas, not {wanted}; Kafka changes that by moving data: use its own kafka-reassign-partitions.sh"
        ));
    }
    let mut settings = BTreeMap::new();
    if let Some(wanted) = args.min_insync_replicas {
        if wanted > replicas {
            return Err(format!(
                "--min-insync-replicas {wanted} of {replicas} replicas: nothing could be written"
            ));
        }
        raise_number(topic, &mut settings, MIN_INSYNC, wanted.into())?;
    }
    if let Some(retention) = args.retention {
        raise_number(topic, &mut settings, RETENTION, millis(retention))?;
    }
    if !settings.is_empty() {
        changes.push(Change::Settings(settings));
    }
    Ok(changes)
}

/// Asks for a setting, if it is not there already; -1 is without end.
fn raise_number(
    topic: &Description,
    settings: &mut BTreeMap<String, String>,
    name: &str,
    wanted: i64,
) -> Result<(), String> {
    let endless = |n: i64| if n < 0 { i64::MAX } else { n };
    match topic.number(name) {
        Some(there) if endless(there) > endless(wanted) => {
            Err(format!("{name} is {there}, which is more than {wanted}: to reduce it use kafka-configs.sh"))
        }
        Some(there) if there == wanted => Ok(()),
        _ => {
            settings.insert(name.to_owned(), wanted.to_string());
            Ok(())
        }
    }
}

fn millis(retention: Retention) -> i64 {
    match retention {
        Retention::Forever => -1,
        Retention::For(time) => i64::try_from(time.as_millis()).unwrap_or(i64::MAX),
    }
}

/// A change in words that follow "would" and "done:".
pub(super) fn words(change: &Change, topic: &str) -> String {
    let list = |settings: &BTreeMap<String, String>| {
        settings.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(", ")
    };
    match change {
        Change::Create { partitions, replication, settings } => format!(
            "create topic {topic} with {partitions} partitions, {replication} replicas each, {}",
            list(settings)
        ),
        Change::Partitions(partitions) => format!("add partitions to {topic}, up to {partitions}"),
        Change::Settings(settings) => format!("set {} on topic {topic}", list(settings)),
    }
}

/// Whether the cluster shows that the change was made.
pub(super) fn shows(cluster: &Cluster, change: &Change) -> bool {
    let Some(topic) = &cluster.topic else { return false };
    let count = i32::try_from(topic.partitions.len()).unwrap_or(i32::MAX);
    let led = topic.partitions.iter().all(|partition| partition.led);
    match change {
        Change::Create { partitions, .. } => count == *partitions && led && !topic.settings.is_empty(),
        Change::Partitions(partitions) => count == *partitions && led,
        Change::Settings(settings) => settings.iter().all(|(name, value)| topic.value(name) == Some(value)),
    }
}
