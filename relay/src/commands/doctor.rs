//! `relay doctor`: checks the settings around the relay that undo a guarantee, and says how to
//! mend them. Changes nothing, publishes nothing, sends no mail.

mod database;
mod servers;
mod table;

use serde::Serialize;

use super::finding::{self, Finding, Severity};
use super::{CommandError, Ended, print, print_json};
use crate::config::DoctorArgs;
use crate::db;

/// What is printed as JSON.
#[derive(Serialize)]
struct Report<'a> {
    /// Of this program.
    version: &'a str,
    worst: Severity,
    findings: &'a [Finding],
}

pub(super) async fn run(args: DoctorArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let (kafka, smtp) = (args.kafka.settings()?, args.smtp.server()?);
    let outbox = args.outbox.outbox(&args.sink.relay_sink)?;
    let of_database = async {
        let mut findings = database::check(&pool).await;
        findings.extend(table::check(&pool, &args.sink.relay_sink, &outbox, &args.outbox.routing).await);
        findings
    };
    let ages = args.retention.ages();
    let (database, kafka, mail) = tokio::join!(
        of_database,
        servers::check_kafka(&kafka, args.notify.dead_topic(&kafka.topic), &ages),
        servers::check_mail(&smtp, &args.smtp)
    );
    let findings = [database, kafka, mail].concat();
    let worst = finding::worst(&findings);
    if args.output.json {
        print_json(&Report { version: env!("CARGO_PKG_VERSION"), worst, findings: &findings })?;
    } else {
        print(&finding::shown(&findings))?;
    }
    match worst {
        Severity::Ok => Ok(Ended::Done),
        Severity::Warning | Severity::Error => Ok(Ended::Found),
        Severity::Down => Err(CommandError::Down("a server does not answer; see above".to_owned())),
    }
}
