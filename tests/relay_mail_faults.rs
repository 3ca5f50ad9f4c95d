//! `relay run mail` before servers that fail in every step and at the worst moment, and before a database that
//! goes away.

#[path = "support/mails.rs"]
mod mails;
#[path = "support/proxy.rs"]
#[allow(dead_code, clippy::unwrap_used, reason = "each test file includes this and uses its own part")]
mod proxy;

use std::time::Duration;

use demo::mailbox::{Fault, Login, Mailbox, Manners, Step, Tls, Wrong};
use demo::programs::{self, Server};
use demo::services::Postgres;
use demo::testing::{Database, eventually};
use futures_util::future::join_all;
use mails::{
    HOLD, SOON, becomes, count, mail, mailer, notification, notifications, only_pictured_changes, own_ca,
    sent, spent, tells_of_an_outage, watch_states,
};
use proxy::{Mode, Proxy};
use sqlx::PgPool;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout};
use uuid::Uuid;

const ADA: &str = "ada@example.com";

/// The table in `docs/mail.md`: each step, and what it says of 4xx, 421, 5xx and a break.
fn table() -> Vec<(String, [String; 4])> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/mail.md")).expect("docs");
    let (_, table) = page.split_once("| step | 4xx | 421 | 5xx | broken or silent |\n").expect("the table");
    let rows = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let mut cells = row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned());
        let step = cells.next().expect("a step");
        (step, cells.collect::<Vec<_>>().try_into().expect("four cells"))
    })
    .collect()
}

/// Tells of an outage that spends nothing.
async fn is_an_outage(relay: &Server, pool: &PgPool, id: Uuid, told: &str) {
    eventually(&format!("{told}: the outage to be told"), SOON, async || tells_of_an_outage(relay).await)
        .await;
    assert_eq!((mail(pool, id).await.1, spent(pool).await), (0, 0), "{told}");
    assert_eq!(mail(pool, id).await.2, None, "{told}: nothing is said of the mail");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_and_every_silence_in_every_step_ends_in_the_state_that_the_table_says() {
    let rows = table();
    assert_eq!(rows.len(), 9);
    join_all(rows.into_iter().map(|(step, cells)| async move {
        if step == "connect" {
            return unreachable_servers(&cells).await;
        }
        row(&step, &cells).await;
    }))
    .await;
}

/// A port where nobody listens, and one where nobody accepts.
async fn unreachable_servers(cells: &[String; 4]) {
    assert_eq!(cells[3], "outage");
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("bound");
    let listener = socket.listen(1).expect("listening");
    let silent = listener.local_addr().expect("its address");
    let mut waiting = Vec::new();
    while let Ok(connected) = timeout(Duration::from_millis(500), TcpStream::connect(silent)).await {
        waiting.push(connected.expect("connected"));
        assert!(waiting.len() < 1_000, "the queue is never full");
    }
    for url in ["smtp://127.0.0.1:1".to_owned(), format!("smtp://{silent}")] {
        let database = Database::create().await;
        let pool = database.pool().await;
        let id = notification(&pool, ADA).await;
        let relay = mailer(&database, &url, &[("SMTP_TIMEOUT_SECONDS", "1")]);
        is_an_outage(&relay, &pool, id, &format!("connect to {url}")).await;
    }
}

/// Everything that the table says of one step.
async fn row(step: &str, cells: &[String; 4]) {
    // Where the mailbox goes wrong, and where it does so without a word only.
    let (places, unanswered): (&[Step], &[Step]) = match step {
        "TLS" => (&[], &[Step::Tls]),
        "greeting, EHLO" => (&[Step::Greeting, Step::Hello], &[]),
        "STARTTLS" => (&[Step::StartTls], &[Step::Tls]),
        "AUTH" => (&[Step::Login], &[]),
        "MAIL FROM" => (&[Step::Sender], &[]),
        "RCPT TO" => (&[Step::Recipient], &[]),
        "DATA" => (&[Step::Data], &[]),
        "message" => (&[Step::Message], &[]),
        _ => panic!("no such step: {step}"),
    };
    let (ca, config) = own_ca("relay-mail-faults", "127.0.0.1");
    let (tls, scheme, query) = match step {
        "TLS" => (Some(Tls::Implicit(config)), "smtps", ""),
        "STARTTLS" => (Some(Tls::StartTls(config)), "smtp", "?tls=required"),
        _ => (None, "smtp", ""),
    };
    let login = Login { user: "shop".into(), password: "secret".into(), plain: true };
    let mailbox = Mailbox::start_with(0, Manners { tls, login: Some(login) }).await.expect("a mailbox");
    let database = Database::create().await;
    let pool = database.pool().await;
    let url = format!("{scheme}://shop:secret@{}{query}", mailbox.address());
    let settings = [HOLD, ("SMTP_TIMEOUT_SECONDS", "1"), ("SMTP_CA_FILE", ca.to_str().expect("a path"))];
    let relay = mailer(&database, &url, &settings);
    watch_states(&pool).await;

    let [transient, closing, permanent, broken] = cells;
    let silences = [(broken, Wrong::Close), (broken, Wrong::Silence)];
    let replies =
        [(transient, Wrong::Reply(450)), (closing, Wrong::Reply(421)), (permanent, Wrong::Reply(550))];
    let answered = places.iter().flat_map(|place| replies.iter().chain(&silences).map(move |f| (place, f)));
    let unanswered = unanswered.iter().flat_map(|place| silences.iter().map(move |f| (place, f)));
    for (place, (cell, wrong)) in answered.chain(unanswered) {
        let told = format!("{step}: {place:?} {wrong:?}");
        // No connection is left from the last time.
        mailbox.hang_up();
        eventually("every connection to be closed", SOON, async || {
            (mailbox.connections().open == 0).then_some(())
        })
        .await;
        mailbox.set_fault_for_everybody(Some(Fault::At(*place, *wrong)));
        let id = notification(&pool, ADA).await;
        match cell.as_str() {
            "outage" => {
                is_an_outage(&relay, &pool, id, &told).await;
                mailbox.set_fault_for_everybody(None);
                becomes(&pool, id, "sent").await;
                assert_eq!(spent(&pool).await, 0, "{told}");
            }
            // The server is there again at once, so it is no outage.
            "`pending`" | "`pending` or outage" => {
                eventually(&told, SOON, async || (mail(&pool, id).await.1 > 0).then_some(())).await;
                assert_eq!(mail(&pool, id).await.0, "pending", "{told}");
            }
            "`failed`" => drop(becomes(&pool, id, "failed").await),
            "`unknown`" => assert!(becomes(&pool, id, "unknown").await.0 > 0, "{told}"),
            other => panic!("{told}: what is {other}?"),
        }
        mailbox.set_fault_for_everybody(None);
        sqlx::query("delete from notifications").execute(&pool).await.expect("done with");
    }
    only_pictured_changes(&pool).await;
    std::fs::remove_file(ca).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mail_of_which_the_server_dies_holds_up_no_other_and_is_not_delivered_whenever_the_server_is_back()
{
    for step in [Step::Recipient, Step::Data, Step::Message] {
        let database = Database::create().await;
        let pool = database.pool().await;
        let mailbox = Mailbox::start(0).await.expect("a mailbox");
        mailbox.set_fault("killer@example.com", Some(Fault::At(step, Wrong::Die)));
        let killer = notification(&pool, "killer@example.com").await;
        let began = Instant::now();
        let _relay = mailer(&database, &mailbox.smtp_url(), &[]);
        // It is the oldest, so it goes first, and would be the next again.
        eventually("the server to die", SOON, async || mail(&pool, killer).await.2).await;
        notifications(&pool, 20).await;
        sent(&pool, 20).await;

        let (state, attempts, _) = mail(&pool, killer).await;
        let copies = mailbox.read(|mails| mails.iter().filter(|mail| mail.to.contains("killer")).count());
        if step == Step::Message {
            assert!(attempts > 0, "it may have been taken, and counts: {state}");
            // At most one for each wait, which is 15 s at least.
            let most = 1 + began.elapsed().as_secs() / 15;
            assert!((1..=most).contains(&u64::try_from(copies).expect("a number")), "{copies} of {most}");
        } else {
            assert_eq!((copies, attempts), (0, 0), "{step:?}: an outage spends nothing: {state}");
        }
        assert_eq!(mailbox.count() - copies, 20, "{step:?}: the others went once each");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_somebody_writes_behind_starttls_are_not_taken_for_the_servers() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let (ca, config) = own_ca("relay-mail-injection", "127.0.0.1");
    // EHLO, MAIL FROM, RCPT TO, DATA and the message, as if all had gone well.
    let answers = "250 mailbox\r\n250 OK\r\n250 OK\r\n354 Go\r\n250 Taken\r\n";
    for query in ["?tls=required", "?tls=opportunistic"] {
        let manners = Manners { tls: Some(Tls::StartTls(config.clone())), login: None };
        let mailbox = Mailbox::start_with(0, manners).await.expect("a mailbox");
        mailbox.set_fault_for_everybody(Some(Fault::Injects(answers)));
        mailbox.set_fault(ADA, Some(Fault::At(Step::Recipient, Wrong::Reply(550))));
        let id = notification(&pool, ADA).await;
        let url = format!("{}{query}", mailbox.smtp_url());
        let mut relay = mailer(&database, &url, &[("SMTP_CA_FILE", ca.to_str().expect("a path"))]);
        eventually("the outage to be told", SOON, async || {
            assert_eq!(count(&pool, "sent").await, 0, "{query}: the server has taken nothing");
            tells_of_an_outage(&relay).await
        })
        .await;
        relay.terminate().await.expect("stopped");
        let (state, attempts, _) = mail(&pool, id).await;
        assert_eq!((state.as_str(), attempts, mailbox.count()), ("pending", 0, 0), "{query}");
        sqlx::query("delete from notifications").execute(&pool).await.expect("done with");
    }
    std::fs::remove_file(ca).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_waits_for_the_answers_to_what_was_handed_over_and_leaves_no_unknown() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let late = Wrong::Late(Duration::from_secs(2));
    mailbox.set_fault_for_everybody(Some(Fault::At(Step::Message, late)));
    notifications(&pool, 40).await;
    let mut relay = mailer(&database, &mailbox.smtp_url(), &[("MAIL_CONNECTIONS", "8")]);
    mailbox.wait_for(8, SOON).await.expect("all of them with the server");
    let before = count(&pool, "sent").await;
    relay.terminate().await.expect("stopped");
    assert_eq!(before, 0, "the stop came before the first answer");
    assert_eq!((count(&pool, "sent").await, mailbox.count()), (8, 8));
    assert_eq!((count(&pool, "pending").await, spent(&pool).await), (32, 0), "the rest is untouched");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_no_more_to_the_operator_than_was_with_the_server() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    mailbox.set_fault_for_everybody(Some(Fault::At(Step::Message, Wrong::Silence)));
    notifications(&pool, 40).await;
    let mut relay = mailer(&database, &mailbox.smtp_url(), &[HOLD, ("MAIL_CONNECTIONS", "4")]);
    mailbox.wait_for(4, SOON).await.expect("all of them with the server");
    relay.kill().expect("killed");
    let sql = "update notifications set lease_until = clock_timestamp() where state = 'sending'";
    sqlx::query(sql).execute(&pool).await.expect("time passes");
    mailbox.set_fault_for_everybody(None);
    let _relay = mailer(&database, &mailbox.smtp_url(), &[HOLD]);
    sent(&pool, 36).await;
    assert_eq!(count(&pool, "unknown").await, 4);

    let held: Vec<Uuid> =
        sqlx::query_scalar("select notification_id from notifications where state = 'unknown'")
            .fetch_all(&pool)
            .await
            .expect("read");
    let ids: Vec<String> = held.iter().map(Uuid::to_string).collect();
    let mut resolve = vec!["mail", "resolve", "--sent", "--json", "--reason", "a test"];
    resolve.extend(ids.iter().map(String::as_str));
    programs::run("relay", &resolve, &[("DATABASE_URL", database.url())]).await.expect("all at once");
    assert_eq!((count(&pool, "sent").await, mailbox.count()), (40, 40));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_of_postgresql_longer_than_the_leases_sends_no_mail_twice_and_spends_nothing() {
    /// Longer than a lease of 15 s.
    const AWAY: Duration = Duration::from_secs(20);
    let mut postgres = Postgres::start().await.expect("a PostgreSQL of our own");
    let database = Database::create_on(&postgres.url()).await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    // Some are answered while the database is away, and one only after it is back.
    let late = |seconds| Some(Fault::At(Step::Message, Wrong::Late(Duration::from_secs(seconds))));
    mailbox.set_fault_for_everybody(late(2));
    mailbox.set_fault("slow@example.com", late(35));
    notification(&pool, "slow@example.com").await;
    notifications(&pool, 30).await;
    let relay = mailer(&database, &mailbox.smtp_url(), &[("MAIL_CONNECTIONS", "8")]);
    mailbox.wait_for(8, SOON).await.expect("mails with the server");
    pool.close().await;
    postgres.stop().await.expect("stopped");
    tokio::time::sleep(AWAY).await;
    let answer = reqwest::get(format!("{}/readyz", relay.url())).await.expect("answered");
    assert!(answer.text().await.expect("a page").contains("PostgreSQL"), "the outage is told");
    postgres.start_again().await.expect("there again");

    let pool = database.pool().await;
    eventually("all to be sent", SOON, async || {
        assert_eq!(count(&pool, "unknown").await, 0, "nobody was killed");
        (count(&pool, "sent").await == 31).then_some(())
    })
    .await;
    assert_eq!((mailbox.count(), mailbox.message_ids().len()), (31, 31), "each once");
    assert_eq!(spent(&pool).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn mails_of_which_the_mailer_never_got_to_know_that_it_leased_them_go_all_the_same() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let proxy = Proxy::before(database.url()).await;
    // The first statement that says who leases is carried out, and its answer is lost.
    proxy.set(Mode::Cut { marker: "relay-".to_owned(), then: Box::new(Mode::Pass) });
    notifications(&pool, 5).await;
    watch_states(&pool).await;
    let _relay = mailer(&database, &mailbox.smtp_url(), &[("DATABASE_URL", &proxy.url())]);
    sent(&pool, 5).await;
    assert_eq!((mailbox.count(), spent(&pool).await), (5, 0));
    let sql = "select count(*) from changes_of_state where was = 'sending' and became = 'pending'";
    let given_back: i64 = sqlx::query_scalar(sql).fetch_one(&pool).await.expect("counted");
    assert_eq!(given_back, 5, "they were leased, and nobody had them");
}
