//! `relay mail`: looks at e-mails, and settles what the relay cannot settle by itself. What is changed is
//! kept with who did it, in the same transaction.

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::PgPool;
use uuid::Uuid;

use super::{CommandError, Ended, print, print_json};
use crate::bell;
use crate::config::{MailCommand, MailListArgs, MailResolveArgs, MailRetryArgs, MailShowArgs};
use crate::db::notifications::{self, MailView};
use crate::db::{self, changes};
use crate::mail::State;

pub(super) async fn run(command: MailCommand) -> Result<Ended, CommandError> {
    match command {
        MailCommand::List(args) => list(&args).await,
        MailCommand::Show(args) => show(&args).await,
        MailCommand::Retry(args) => retry(&args).await,
        MailCommand::Resolve(args) => resolve(&args).await,
    }
}

async fn list(args: &MailListArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let mut mails = notifications::list(&pool, &args.state, args.order, args.limit).await?;
    if !args.addresses.show_addresses {
        mails.iter_mut().for_each(mask);
    }
    if args.output.json {
        print_json(&mails)?;
    } else {
        let lines: Vec<String> = mails.iter().map(line).collect();
        print(&lines.concat())?;
    }
    Ok(Ended::Done)
}

/// One mail on one line.
fn line(mail: &MailView) -> String {
    let detail = match mail.state {
        State::Sent => time(mail.sent_at),
        State::Failed => mail.last_error.clone().unwrap_or_default(),
        State::Pending | State::Sending | State::Unknown => match &mail.last_error {
            Some(words) => format!("next {:.0}, after: {words}", mail.next_attempt_at),
            None => String::new(),
        },
    };
    let line = format!(
        "{}  {:<7}  {:<12}  order {}  {}  {detail}",
        mail.notification_id,
        mail.state.as_str(),
        mail.kind,
        mail.order_id,
        address(mail),
    );
    format!("{}\n", line.trim_end())
}

async fn show(args: &MailShowArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 1);
    let mut mail = notifications::find(&pool, args.id).await?.ok_or_else(|| no_such(args.id))?;
    if !args.addresses.show_addresses {
        mask(&mut mail);
    }
    if args.output.json {
        print_json(&mail)?;
        return Ok(Ended::Done);
    }
    let rows = [
        ("id", mail.notification_id.to_string()),
        ("state", mail.state.as_str().to_owned()),
        ("kind", mail.kind.clone()),
        ("order", format!("{} version {}", mail.order_id, mail.order_version)),
        ("recipient", address(&mail).to_owned()),
        ("message-id", mail.message_id.clone()),
        ("refused", format!("{} times", mail.attempts)),
        ("refused since", time(mail.refused_since)),
        ("created", time(Some(mail.created_at))),
        (
            "next attempt",
            if mail.state == State::Pending { time(Some(mail.next_attempt_at)) } else { String::new() },
        ),
        ("sent", time(mail.sent_at)),
        ("failed", time(mail.failed_at)),
        ("erased", time(mail.erased_at)),
        ("last error", mail.last_error.clone().unwrap_or_default()),
    ];
    let known = rows.iter().filter(|(_, value)| !value.is_empty());
    print(&known.map(|(name, value)| format!("{name:<14} {value}\n")).collect::<String>())?;
    Ok(Ended::Done)
}

async fn retry(args: &MailRetryArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 2);
    let mut transaction = pool.begin().await?;
    let retried = notifications::retry(&mut transaction, &args.ids, args.order).await?;
    if let Some(left) = args.ids.iter().find(|id| !retried.contains(id)) {
        drop(transaction);
        return Err(why_not(&pool, *left, "only failed and pending ones can be tried again").await?);
    }
    let details = json!({ "notifications": retried, "order": args.order, "allFailed": args.all_failed });
    let by = args.operator.name()?;
    changes::record(&mut transaction, &by, "mail retry", Some(&args.reason), &details).await?;
    transaction.commit().await?;
    bell::ring(&pool, bell::MAIL).await?;
    if args.output.json {
        print_json(&json!({ "retried": retried }))?;
    } else {
        print(&format!("{} e-mails are due now\n", retried.len()))?;
    }
    Ok(Ended::Done)
}

async fn resolve(args: &MailResolveArgs) -> Result<Ended, CommandError> {
    let pool = db::pool(args.database.options()?, 2);
    let mut transaction = pool.begin().await?;
    let resolved = notifications::resolve(&mut transaction, &args.ids, args.sent).await?;
    if let Some(left) = args.ids.iter().find(|id| !resolved.contains(id)) {
        drop(transaction);
        return Err(why_not(&pool, *left, "only an unknown one is to be resolved").await?);
    }
    let state = if args.sent { State::Sent } else { State::Pending };
    let details = json!({ "notifications": resolved, "as": if args.sent { "sent" } else { "resend" } });
    let by = args.operator.name()?;
    changes::record(&mut transaction, &by, "mail resolve", Some(&args.reason), &details).await?;
    transaction.commit().await?;
    bell::ring(&pool, bell::MAIL).await?;
    if args.output.json {
        print_json(&json!({ "resolved": resolved, "state": state }))?;
    } else {
        print(&format!("{} e-mails are {} now\n", resolved.len(), state.as_str()))?;
    }
    Ok(Ended::Done)
}

fn no_such(id: Uuid) -> CommandError {
    CommandError::Failed(format!("there is no e-mail {id}; `relay mail list` shows those that there are"))
}

/// Why an e-mail was not changed. Nothing was.
async fn why_not(pool: &PgPool, id: Uuid, rule: &str) -> Result<CommandError, CommandError> {
    Ok(match notifications::find(pool, id).await? {
        None => no_such(id),
        Some(mail) if mail.recipient.is_none() => CommandError::Failed(format!(
            "the address of {id} is erased, so nothing can be sent; nothing was changed"
        )),
        Some(mail) => {
            CommandError::Failed(format!("{id} is {}, and {rule}; nothing was changed", mail.state.as_str()))
        }
    })
}

fn address(mail: &MailView) -> &str {
    mail.recipient.as_deref().unwrap_or("(erased)")
}

/// Leaves the first character and the domain, enough to tell mails apart.
fn mask(mail: &mut MailView) {
    if let Some(address) = &mut mail.recipient {
        let (local, domain) = address.rsplit_once('@').unwrap_or((address.as_str(), ""));
        let first = local.chars().next().map(String::from).unwrap_or_default();
        *address = format!("{first}…@{domain}");
    }
}

fn time(at: Option<DateTime<Utc>>) -> String {
    at.map(|at| format!("{at:.0}")).unwrap_or_default()
}
