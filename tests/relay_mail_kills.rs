//! SIGKILL of `mail` at each of its steps. The mailer that is killed is this very test program, started once
//! more: its `relay` has the places to stop at (feature `failpoints`), which no other program has.

#[path = "support/mails.rs"]
mod mails;

use std::collections::HashSet;
use std::process::Stdio;
use std::time::Duration;

use clap::Parser;
use demo::mailbox::Mailbox;
use demo::testing::{Database, eventually};
use mails::{SOON, mailer, notifications, sent};
use relay::config::{Cli, Command};
use sqlx::PgPool;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::sync::CancellationToken;

const REACHED: &str = "reached the place to be killed at";
const MAILS: usize = 5;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "no test: the mailer that the test kills"]
#[allow(clippy::disallowed_methods, reason = "the test sets it for this process alone")]
async fn the_mailer_that_is_killed() {
    let place = std::env::var("PLACE").expect("where to stop");
    fail::cfg_callback(place, || {
        println!("{REACHED}");
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    })
    .expect("a place");
    let Command::Run(args) = Cli::parse_from(["relay", "run", "mail"]).command else { panic!("not run") };
    relay::run(*args, CancellationToken::new()).await.expect("it runs until it is killed");
}

/// Runs a mailer until it reaches `place`, and kills it there.
async fn kill_at(place: &str, database: &Database, mailbox: &Mailbox) {
    let mut child = tokio::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["the_mailer_that_is_killed", "--exact", "--ignored", "--nocapture"])
        .env("PLACE", place)
        .env("DATABASE_URL", database.url())
        .env("SMTP_URL", mailbox.smtp_url())
        .env("MAIL_CONNECTIONS", "1")
        .env("RELAY_LISTEN", "127.0.0.1:0")
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("started");
    let mut lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let reached = async {
        while let Some(line) = lines.next_line().await.expect("read") {
            if line.contains(REACHED) {
                return;
            }
        }
        panic!("it ended before it reached {place:?}");
    };
    tokio::time::timeout(SOON, reached).await.unwrap_or_else(|_| panic!("{place:?} is never reached"));
    child.kill().await.expect("killed");
}

/// The Message-IDs that the database knows to be sent.
async fn recorded(pool: &PgPool) -> HashSet<String> {
    let ids: Vec<String> =
        sqlx::query_scalar("select trim(both '<>' from message_id) from notifications where state = 'sent'")
            .fetch_all(pool)
            .await
            .expect("read");
    ids.into_iter().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_each_step_loses_no_mail_and_repeats_only_what_was_in_flight_with_its_message_id() {
    for place in ["mail leased", "mail begun", "mail answered", "mail recording", "mail recorded"] {
        let database = Database::create().await;
        let pool = database.pool().await;
        let mailbox = Mailbox::start(0).await.expect("a mailbox");
        notifications(&pool, MAILS).await;
        kill_at(place, &database, &mailbox).await;
        eventually("the mailbox to see that it is gone", SOON, async || {
            (mailbox.connections().open == 0).then_some(())
        })
        .await;
        // With the server, and not recorded.
        let recorded = recorded(&pool).await;
        let in_flight: HashSet<String> =
            mailbox.message_ids().into_keys().filter(|id| !recorded.contains(id)).collect();
        let (expected, why) = match place {
            "mail leased" | "mail begun" => (0..=0, "nothing was handed over"),
            "mail answered" => (1..=1, "the sender stands still behind the 250"),
            // The sender goes on while the desk stands still.
            "mail recording" => (1..=MAILS, "what the desk was about to record"),
            _ => (0..=MAILS - 1, "the first is recorded"),
        };
        assert!(expected.contains(&in_flight.len()), "{place}: {why}: {in_flight:?}");

        // Nobody renews the dead one's leases.
        let sql = "update notifications set lease_until = clock_timestamp() where state = 'sending'";
        sqlx::query(sql).execute(&pool).await.expect("time passes");
        let _relay = mailer(&database, &mailbox.smtp_url(), &[]);
        sent(&pool, MAILS).await;
        let times = mailbox.message_ids();
        assert_eq!(times.len(), MAILS, "{place}: none is lost");
        assert!(times.values().all(|times| *times <= 2), "{place}: {times:?}");
        let twice: HashSet<String> = times.into_iter().filter(|(_, n)| *n == 2).map(|(id, _)| id).collect();
        assert_eq!(twice, in_flight, "{place}");
    }
}
