//! Which settings of a topic and its brokers undo a guarantee. Pure; shared with `relay doctor`.

use std::time::Duration;

use crate::commands::finding::Finding;
use crate::commands::text::span;
use crate::retention::Ages;
use crate::topic::admin::{Cluster, Description};

/// Seconds.
const DAY: u64 = 24 * 3600;

/// Everything that can be said of the topic. `message_bytes` is the largest message that the relay
/// sends, `ages` is how long the relay keeps rows.
pub(in crate::commands) fn check(
    cluster: &Cluster,
    name: &str,
    message_bytes: i64,
    ages: &Ages,
) -> Vec<Finding> {
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
        retention(topic, ages.outbox),
        timestamps(topic),
    ]);
    findings.extend(dedup_keys(topic, ages.inbox));
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

fn retention(topic: &Description, outbox: Option<Duration>) -> Finding {
    const CHECK: &str = "topic retention";
    let by_size = topic.number("retention.bytes").filter(|bytes| *bytes >= 0);
    let rows = outbox.map_or_else(|| "for ever".to_owned(), |age| span(age.as_secs_f64()));
    match (kept(topic), by_size) {
        (Some(events), _) if outbox.is_none_or(|rows| events < rows) => Finding::warning(
            CHECK,
            format!(
                "{}, and the outbox keeps its rows {rows} (RELAY_RETENTION_DAYS): `relay audit` cannot compare all of them, and a consumer that is away longer misses events",
                span(events.as_secs_f64())
            ),
            match outbox {
                Some(rows) => format!("relay topic apply --retention {}d", rows.as_secs() / DAY),
                None => "relay topic apply --retention forever".to_owned(),
            },
        ),
        (_, Some(bytes)) => Finding::warning(
            CHECK,
            format!("by size, {bytes} bytes a partition: a burst may remove events that nobody has read"),
            "kafka-configs.sh --alter --add-config retention.bytes=-1",
        ),
        (Some(events), None) => Finding::ok(CHECK, span(events.as_secs_f64())),
        (None, None) => Finding::ok(CHECK, "for ever"),
    }
}

/// Events that outlive the dedup keys of `notify` are handled again when they are read again: after a
/// reset of its offsets, for example. The notification has a key of its own, so that no second mail is
/// made; but what an operator has skipped is made up for.
fn dedup_keys(topic: &Description, keys: Option<Duration>) -> Option<Finding> {
    const CHECK: &str = "notify dedup keys";
    let keys = keys?;
    let events = kept(topic);
    if events.is_some_and(|events| events < keys) {
        return Some(Finding::ok(CHECK, format!("kept {}, and events no longer", span(keys.as_secs_f64()))));
    }
    Some(Finding::warning(
        CHECK,
        format!(
            "kept {} (RELAY_INBOX_RETENTION_DAYS), and events {}: one that is read again after that is handled again, and mailed if it was skipped",
            span(keys.as_secs_f64()),
            events.map_or_else(|| "for ever".to_owned(), |events| span(events.as_secs_f64()))
        ),
        match events {
            Some(events) => {
                format!("RELAY_INBOX_RETENTION_DAYS={} for every relay", events.as_secs() / DAY + 1)
            }
            None => "RELAY_INBOX_RETENTION_DAYS=0 for every relay".to_owned(),
        },
    ))
}

/// How long the topic keeps its events; none for ever.
fn kept(topic: &Description) -> Option<Duration> {
    let millis = topic.number("retention.ms")?;
    u64::try_from(millis).ok().map(Duration::from_millis)
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

    const AGES: Ages =
        Ages { outbox: Some(Duration::from_secs(7 * DAY)), inbox: Some(Duration::from_secs(30 * DAY)) };

    const GOOD: [(&str, &str); 5] = [
        ("min.insync.replicas", "2"),
        ("unclean.leader.election.enable", "false"),
        ("max.message.bytes", "1048588"),
        ("cleanup.policy", "delete"),
        ("retention.ms", "1209600000"),
    ];

    #[test]
    fn a_topic_as_it_should_be_has_no_finding() {
        let findings = check(&cluster(&GOOD), "t", 1_000_000, &AGES);
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
            // No shorter than 30 days.
            ("retention.ms", "-1", "notify dedup keys", Severity::Warning),
            ("retention.ms", "2592000000", "notify dedup keys", Severity::Warning),
        ] {
            let mut settings = GOOD.to_vec();
            settings.retain(|(known, _)| *known != name);
            settings.push((name, value));
            let findings = check(&cluster(&settings), "t", 1_000_000, &AGES);
            let bad: Vec<_> = findings.iter().filter(|finding| finding.severity > Severity::Ok).collect();
            assert_eq!(bad.len(), 1, "{name}={value}: {bad:?}");
            assert_eq!((bad[0].check.as_str(), bad[0].severity), (check_name, severity));
            assert!(bad[0].mend.is_some());
        }
    }

    #[test]
    fn how_long_events_must_stay_and_may_stay_is_what_the_relay_keeps() {
        let found = |outbox: u64, inbox: u64| {
            let age = |days: u64| (days > 0).then(|| Duration::from_secs(days * DAY));
            let ages = Ages { outbox: age(outbox), inbox: age(inbox) };
            // They stay for 14 days.
            let findings = check(&cluster(&GOOD), "t", 1_000_000, &ages);
            let bad = findings.into_iter().filter(|finding| finding.severity > Severity::Ok);
            bad.map(|finding| (finding.check, finding.mend.unwrap_or_default())).collect::<Vec<_>>()
        };
        assert_eq!(found(14, 15), []);
        assert_eq!(found(14, 0), []);
        let pair = |check: &str, mend: &str| (check.to_owned(), mend.to_owned());
        assert_eq!(found(15, 30), [pair("topic retention", "relay topic apply --retention 15d")]);
        assert_eq!(found(0, 30), [pair("topic retention", "relay topic apply --retention forever")]);
        let longer = "RELAY_INBOX_RETENTION_DAYS=15 for every relay";
        assert_eq!(found(7, 14), [pair("notify dedup keys", longer)]);
    }

    #[test]
    fn brokers_that_are_away_are_told_by_what_they_had() {
        let mut cluster = cluster(&GOOD);
        if let Some(topic) = &mut cluster.topic {
            topic.partitions[0] = Partition { replicas: 3, in_sync: 1, led: false };
        }
        let bad = check(&cluster, "t", 1_000_000, &AGES);
        assert_eq!(bad.iter().filter(|finding| finding.severity == Severity::Error).count(), 2, "{bad:?}");
    }
}
