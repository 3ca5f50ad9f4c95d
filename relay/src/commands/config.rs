//! `relay config check`

use super::{CommandError, Ended, print, print_json};
use crate::config::ConfigCheckArgs;

/// Reads every setting as `relay run` would, and says what it would use.
pub(super) fn check(args: &ConfigCheckArgs) -> Result<Ended, CommandError> {
    let run = &args.run;
    let database = run.database.options()?;
    let kafka = run.kafka.settings()?;
    run.smtp.server()?;
    run.outbox()?;
    run.traces()?;
    let stages: Vec<String> = run.stages().iter().map(|stage| format!("{stage:?}").to_lowercase()).collect();
    let settings = [
        ("stages", stages.join(" ")),
        (
            "DATABASE_URL",
            format!(
                "{}:{}/{}",
                database.get_host(),
                database.get_port(),
                database.get_database().unwrap_or(database.get_username())
            ),
        ),
        ("RELAY_SINK", run.sink.relay_sink.to_string()),
        ("OUTBOX_SHAPE", format!("{:?}", run.outbox.outbox_shape).to_lowercase()),
        ("OUTBOX_TABLE", run.outbox.outbox_table.clone()),
        ("OUTBOX_TOPIC", run.outbox.routing.outbox_topic.to_string()),
        ("OUTBOX_HEADERS", run.outbox.routing.outbox_headers.to_string()),
        ("KAFKA_BROKERS", kafka.brokers.clone()),
        ("KAFKA_TOPIC", kafka.topic.clone()),
        ("KAFKA_PROPERTIES", kafka.properties.names().join(",")),
        ("EVENTS_SOURCE", kafka.source.clone()),
        ("NOTIFY_GROUP", run.notify.notify_group.clone()),
        ("NOTIFY_DEAD_TOPIC", run.notify.dead_topic(&kafka.topic)),
        ("SMTP_URL", run.smtp.shown()),
        ("SMTP_CA_FILE", optional(run.smtp.smtp_ca_file.as_ref().map(|path| path.display()))),
        ("SMTP_TIMEOUT_SECONDS", run.smtp.smtp_timeout_seconds.to_string()),
        ("MAIL_FROM", run.smtp.mail_from.to_string()),
        ("MAIL_CONNECTIONS", run.mail.mail_connections.to_string()),
        ("MAIL_RATE", optional(run.mail.mail_rate)),
        ("MAIL_ON_UNKNOWN", format!("{:?}", run.mail.mail_on_unknown).to_lowercase()),
        ("MAIL_LIST_UNSUBSCRIBE", optional(run.mail.mail_list_unsubscribe.as_ref())),
        ("MAIL_ERASE_DAYS", run.mail.mail_erase_days.to_string()),
        ("RELAY_LISTEN", run.relay_listen.to_string()),
        ("RELAY_LEASE_SECONDS", run.relay_lease_seconds.to_string()),
        ("RELAY_RETENTION_DAYS", run.retention.relay_retention_days.to_string()),
        ("RELAY_INBOX_RETENTION_DAYS", run.retention.relay_inbox_retention_days.to_string()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", run.otlp_endpoint.clone().unwrap_or_default()),
        ("RUST_LOG", run.log.log.clone()),
        ("LOG_FORMAT", format!("{:?}", run.log.log_format).to_lowercase()),
    ];
    if args.output.json {
        let object: serde_json::Map<_, _> =
            settings.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        print_json(&object)?;
    } else {
        let lines: Vec<String> =
            settings.iter().map(|(name, value)| format!("{name:<28} {value}\n")).collect();
        print(&lines.concat())?;
    }
    Ok(Ended::Done)
}

/// Nothing for a setting that is left out.
fn optional(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}
