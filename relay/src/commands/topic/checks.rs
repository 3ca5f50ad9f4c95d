//! Which settings of a topic and its brokers undo a guarantee. Pure; shared with `relay doctor`.

use crate::commands::finding::Finding;
use crate::commands::text::span;
use crate::topic::admin::{Cluster, Description};

/// Rows of the outbox are kept for so long after they are published.
const OUTBOX_DAYS: i64 = 7;
const DAY_MS: i64 = 24 * 3600 * 1000;

/// Everything that can be said of the topic. `message_bytes` is the largest message that the relay
/// sends.
pub(in crate::commands) fn check(cluster: &Cluster, name: &str, message_bytes: i64) -> Vec<Finding> {
    let Some(topic) = &cluster.topic else {
        let mend = "relay topic apply --partitions N, with as many partitions as you will ever need";
        return vec![Finding::error("topic", format!("{name} does not exist"), mend)];
    };
    let mut findings = vec![partitions(topic, name), replication(topic, cluster.brokers), in_sync(topic)];
    if let Some(why) = &cluster.unreadable {
        let mend = "grant DescribeConfigs on the topic, or look by hand with kafka-configs.sh --describe";
        findings.push(Finding::warning("topic settings", format!("cannot be read: {why}"), mend));
        return findings;
    }
    findings.extend([
        min_insync(topic),
        unclean(topic),
        message_size(topic, message_bytes),
        cleanup(topic),
        retention(topic),
        timestamps(topic),
    ]);
    findings
}

/// What can be said of the topic for dead letters of `notify`. A missing one holds nothing up: they wait in
/// the database.
pub(in crate::commands) fn letters(cluster: &Cluster, name: &str, message_bytes: i64) -> Finding {
    const CHECK: &str = "dead-letter topic";
    let Some(topic) = &cluster.topic else {
        return Finding::warning(
            CHECK,
            format!("{name} does not exist: what notify cannot handle waits in the table inbox_dead alone"),
            "relay topic apply, or correct NOTIFY_DEAD_TOPIC",
        );
    };
    match topic.number("max.message.bytes") {
        Some(there) if there <= message_bytes => Finding::warning(
            CHECK,
            format!(
                "{name} takes {there} bytes; an event of {message_bytes} with the reason does not fit and waits in inbox_dead"
            ),
            format!(
                "kafka-configs.sh --alter --add-config max.message.bytes={}",
                message_bytes + 2 * super::plan::FRAME
            ),
        ),
        _ => Finding::ok(CHECK, name),
    }
}

fn partitions(topic: &Description, name: &str) -> Finding {
    let leaderless = topic.partitions.iter().filter(|partition| !partition.led).count();
    let found = format!("{name} has {}", topic.partitions.len());
    match leaderless {
        0 => Finding::ok("topic partitions", found),
        n => Finding::error(
            "topic partitions",
            format!("{found}, {n} of them without a leader: orders of these partitions wait"),
            "bring the brokers back that have them",
        ),
    }
}

fn replication(topic: &Description, brokers: usize) -> Finding {
    const CHECK: &str = "topic replication";
    match topic.replication() {
        1 if brokers < 2 => Finding::warning(
            CHECK,
            "1 replica on the only broker: a lost disk loses published events",
            "for anything but a trial run three brokers, and create the topic with --replication 3",
        ),
        1 => Finding::warning(
            CHECK,
            format!("1 replica, though there are {brokers} brokers: a lost disk loses published events"),
            "kafka-reassign-partitions.sh, to three replicas",
        ),
        n => Finding::ok(CHECK, format!("{n} replicas")),
    }
}

fn in_sync(topic: &Description) -> Finding {
    let needed = usize::try_from(topic.number("min.insync.replicas").unwrap_or(1)).unwrap_or(1);
    let few = topic.partitions.iter().filter(|partition| partition.in_sync < needed).count();
    let behind = topic.partitions.iter().filter(|partition| partition.in_sync < partition.replicas).count();
    match (few, behind) {
        (0, 0) => Finding::ok("topic in sync", "every replica is up to date"),
        (0, n) => Finding::warning(
            "topic in sync",
            format!("{n} partitions have replicas that are not up to date"),
            "see which broker is away or slow",
        ),
        (n, _) => Finding::error(
            "topic in sync",
            format!(
                "{n} partitions have fewer than {needed} replicas in sync: nothing can be published there"
            ),
            "bring the brokers back that have them",
        ),
    }
}

fn min_insync(topic: &Description) -> Finding {
    const CHECK: &str = "min.insync.replicas";
    let there = topic.number(CHECK).unwrap_or(1);
    let replicas = i64::try_from(topic.replication()).unwrap_or(i64::MAX);
    if there > replicas {
        Finding::error(
            CHECK,
            format!("{there} of {replicas} replicas: nothing can ever be published"),
            "kafka-configs.sh --alter --add-config min.insync.replicas=..., to less than the replicas",
        )
    } else if there < 2 {
        Finding::warning(
            CHECK,
            "1: acks=all then means that a single broker has the event, and an event is lost with it",
            if replicas > 1 {
                "relay topic apply --min-insync-replicas 2"
            } else {
                "more replicas first; then 2"
            },
        )
    } else if there == replicas {
        Finding::warning(
            CHECK,
            format!("{there} of {replicas} replicas: one broker away stops publishing"),
            "one more replica, by kafka-reassign-partitions.sh",
        )
    } else {
        Finding::ok(CHECK, format!("{there} of {replicas} replicas"))
    }
}

fn unclean(topic: &Description) -> Finding {
    const CHECK: &str = "unclean.leader.election.enable";
    match topic.value(CHECK) {
        Some("true") => Finding::error(
            CHECK,
            "true: a replica that is behind may become the leader, and acknowledged events are gone",
            "kafka-configs.sh --alter --add-config unclean.leader.election.enable=false",
        ),
        Some(_) => Finding::ok(CHECK, "false"),
        None => Finding::ok(CHECK, "not told by this broker"),
    }
}

fn message_size(topic: &Description, ours: i64) -> Finding {
    const CHECK: &str = "max.message.bytes";
    match topic.number(CHECK) {
        Some(there) if there < ours => Finding::warning(
            CHECK,
            format!("{there}, and the relay sends up to {ours}: events in between are refused and parked"),
            format!("kafka-configs.sh --alter --add-config {CHECK}={}", ours + super::plan::FRAME),
        ),
        Some(there) => Finding::ok(CHECK, format!("{there}, and the relay sends up to {ours}")),
        None => Finding::ok(CHECK, "not told by this broker"),
    }
}

fn cleanup(topic: &Description) -> Finding {
    const CHECK: &str = "cleanup.policy";
    match topic.value(CHECK) {
        Some(policy) if policy.contains("compact") => Finding::error(
            CHECK,
            format!("{policy}: compaction keeps the last event of each order only"),
            "kafka-configs.sh --alter --add-config cleanup.policy=delete",
        ),
        Some(policy) => Finding::ok(CHECK, policy),
        None => Finding::ok(CHECK, "not told by this broker"),
    }
}

fn retention(topic: &Description) -> Finding {
    const CHECK: &str = "topic retention";
    let by_size = topic.number("retention.bytes").filter(|bytes| *bytes >= 0);
    match (topic.number("retention.ms"), by_size) {
        (Some(millis), _) if (0..OUTBOX_DAYS * DAY_MS).contains(&millis) => Finding::warning(
            CHECK,
            // Below 2^53: exact as a float.
            format!(
                "{}: less than the {OUTBOX_DAYS} days for which the outbox keeps its rows, so `relay audit` cannot compare all of them, and a consumer that is away longer misses events",
                span(millis as f64 / 1e3)
            ),
            format!("relay topic apply --retention {OUTBOX_DAYS}d"),
        ),
        (_, Some(bytes)) => Finding::warning(
            CHECK,
            format!("by size, {bytes} bytes a partition: a burst may remove events that nobody has read"),
            "kafka-configs.sh --alter --add-config retention.bytes=-1",
        ),
        (Some(millis), None) if millis >= 0 => Finding::ok(CHECK, span(millis as f64 / 1e3)),
        _ => Finding::ok(CHECK, "for ever"),
    }
}

/// Kafka has no request that tells its time; what depends on its clock is told instead.
fn timestamps(topic: &Description) -> Finding {
    const CHECK: &str = "broker clock";
    let ahead = topic.number("message.timestamp.after.max.ms").filter(|millis| *millis < i64::MAX);
    let stamps = topic.value("message.timestamp.type") == Some("LogAppendTime");
    match ahead {
        Some(millis) if !stamps => Finding::ok(
            CHECK,
            format!(
                "Kafka does not tell its time; events are refused when this machine is more than {} ahead of it (message.timestamp.after.max.ms)",
                span(millis as f64 / 1e3)
            ),
        ),
        _ => Finding::ok(CHECK, "Kafka does not tell its time; only the topic's retention depends on it"),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::commands::finding::{Severity, worst};
    use crate::topic::admin::{Partition, Setting};

    fn cluster(settings: &[(&str, &str)]) -> Cluster {
        let settings = settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), Setting { value: (*value).to_owned(), own: true }))
            .collect::<BTreeMap<_, _>>();
        let partitions = vec![Partition { replicas: 3, in_sync: 3, led: true }; 6];
        let topic = Some(Description { partitions, settings });
        Cluster { brokers: 3, topic, ..Cluster::default() }
    }

    const GOOD: [(&str, &str); 5] = [
        ("min.insync.replicas", "2"),
        ("unclean.leader.election.enable", "false"),
        ("max.message.bytes", "1048588"),
        ("cleanup.policy", "delete"),
        ("retention.ms", "1209600000"),
    ];

    #[test]
    fn a_topic_as_it_should_be_has_no_finding() {
        let findings = check(&cluster(&GOOD), "t", 1_000_000);
        assert_eq!(worst(&findings), Severity::Ok, "{findings:?}");
    }

    #[test]
    fn each_setting_that_undoes_a_guarantee_is_found() {
        for (name, value, check_name, severity) in [
            ("min.insync.replicas", "1", "min.insync.replicas", Severity::Warning),
            ("min.insync.replicas", "3", "min.insync.replicas", Severity::Warning),
            ("unclean.leader.election.enable", "true", "unclean.leader.election.enable", Severity::Error),
            ("max.message.bytes", "1000", "max.message.bytes", Severity::Warning),
            ("cleanup.policy", "compact,delete", "cleanup.policy", Severity::Error),
            ("retention.ms", "3600000", "topic retention", Severity::Warning),
            ("retention.bytes", "1000000", "topic retention", Severity::Warning),
        ] {
            let mut settings = GOOD.to_vec();
            settings.retain(|(known, _)| *known != name);
            settings.push((name, value));
            let findings = check(&cluster(&settings), "t", 1_000_000);
            let bad: Vec<_> = findings.iter().filter(|finding| finding.severity > Severity::Ok).collect();
            assert_eq!(bad.len(), 1, "{name}={value}: {bad:?}");
            assert_eq!((bad[0].check.as_str(), bad[0].severity), (check_name, severity));
            assert!(bad[0].mend.is_some());
        }
    }

    #[test]
    fn brokers_that_are_away_are_told_by_what_they_had() {
        let mut cluster = cluster(&GOOD);
        if let Some(topic) = &mut cluster.topic {
            topic.partitions[0] = Partition { replicas: 3, in_sync: 1, led: false };
        }
        let bad = check(&cluster, "t", 1_000_000);
        assert_eq!(bad.iter().filter(|finding| finding.severity == Severity::Error).count(), 2, "{bad:?}");
    }
}
