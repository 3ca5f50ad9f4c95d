//! Kafka and the mail server.

use crate::commands::finding::Finding;
use crate::commands::topic;
use crate::config::SmtpArgs;
use crate::kafka::Settings;
use crate::mail::{Reachable, SmtpServer};
use crate::retention::Ages;
use crate::topic::admin;
use crate::topic::write::{self, Produce};

pub(super) async fn check_kafka(settings: &Settings, dead_topic: String, ages: &Ages) -> Vec<Finding> {
    let cluster = match admin::describe(settings).await {
        Ok(cluster) => cluster,
        Err(error) => {
            let found = format!("{}: {error}", settings.brokers);
            let mend = "start it, or correct KAFKA_BROKERS and KAFKA_PROPERTIES (TLS, SASL)";
            return vec![Finding::down("kafka", found, mend)];
        }
    };
    let version = match &cluster.version {
        Some(version) => format!("version {version}"),
        None => "version not told (Kafka 4 and later do not)".to_owned(),
    };
    let mut findings = vec![Finding::ok("kafka", format!("brokers: {}, {version}", cluster.brokers))];
    findings.extend(topic::check(&cluster, &settings.topic, settings.message_bytes(), ages));
    findings.push(may_produce(settings).await);
    let letters = Settings { topic: dead_topic, ..settings.clone() };
    if let Ok(cluster) = admin::describe(&letters).await {
        findings.push(topic::letters(&cluster, &letters.topic, settings.message_bytes()));
    }
    findings
}

/// What Kafka lets a producer ask for before its first event. Since Kafka 2.8 that takes Write on any topic,
/// before it IdempotentWrite on the cluster: Write on this very topic shows only when an event is written.
async fn may_produce(settings: &Settings) -> Finding {
    const CHECK: &str = "kafka producer";
    match write::may_produce(settings).await {
        Ok(Produce::Allowed) => Finding::ok(CHECK, "Kafka lets this principal produce"),
        Ok(Produce::Refused(words)) => Finding::error(
            CHECK,
            format!("Kafka gives no producer id: {words}"),
            format!("grant Write and Describe on topic {} to the relay's principal", settings.topic),
        ),
        Ok(Produce::Silent) => Finding::warning(
            CHECK,
            "Kafka gave no producer id in time: it may be busy, or have too few brokers for its transaction log",
            "look into the broker's log",
        ),
        Err(error) => Finding::error(CHECK, error.to_string(), "correct KAFKA_PROPERTIES"),
    }
}

pub(super) async fn check_mail(smtp: &SmtpServer, args: &SmtpArgs) -> Vec<Finding> {
    const CHECK: &str = "mail server";
    let server = args.shown();
    let mut findings = vec![match smtp.reach().await {
        Reachable::Yes => {
            Finding::ok(CHECK, format!("{server} answers, and accepts the login if there is one"))
        }
        Reachable::Refused(words) => Finding::error(
            CHECK,
            format!("{server} answers and refuses: {words}"),
            "correct user, password or tls in SMTP_URL",
        ),
        Reachable::No(words) => {
            Finding::down(CHECK, format!("{server}: {words}"), "start it, or correct SMTP_URL")
        }
    }];
    if args.is_plain_to_elsewhere() {
        findings.push(Finding::warning(
            "mail encryption",
            "none: addresses can be read on the way",
            "smtps://, or ?tls=required, in SMTP_URL",
        ));
    }
    findings
}
