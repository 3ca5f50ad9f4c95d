//! `relay run mail` before real servers that behave and misbehave, and what an operator can do.

#[path = "support/mails.rs"]
mod mails;

use std::collections::HashSet;
use std::sync::Arc;

use demo::mailbox::{Fault, Login, Mailbox, Manners, Step, Tls, Wrong};
use demo::process::ProcessError;
use demo::programs::{self, Server};
use demo::testing::{Database, eventually};
use mails::{
    HOLD, SOON, becomes, count, mail, mailer, metric, notification, notifications, only_pictured_changes,
    own_ca, sent, spent, tells_of_an_outage, watch_states,
};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

const CIRCUIT: &str = r#"relay_circuit_open{sink="smtp"}"#;

#[tokio::test(flavor = "multi_thread")]
async fn each_misbehaviour_ends_in_the_state_that_the_table_says_and_nothing_else_waits_for_it() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let cases = [
        (Fault::SilentAfterData, "unknown", "no answer"),
        (Fault::At(Step::Message, Wrong::Silence), "unknown", "no answer"),
        (Fault::OneByteASecond, "unknown", "no answer"),
        (Fault::ClosesAfterData, "unknown", "message"),
        (Fault::At(Step::Message, Wrong::Close), "unknown", "message"),
        (Fault::At(Step::Recipient, Wrong::Reply(421)), "pending", "421"),
        (Fault::At(Step::Recipient, Wrong::Reply(450)), "pending", "450"),
        (Fault::At(Step::Recipient, Wrong::Reply(550)), "failed", "550"),
        (Fault::At(Step::Message, Wrong::Reply(421)), "pending", "421"),
        (Fault::At(Step::Message, Wrong::Reply(452)), "pending", "452"),
        (Fault::At(Step::Message, Wrong::Reply(554)), "failed", "554"),
    ];
    let mut bad = Vec::new();
    for (n, (fault, state, words)) in cases.into_iter().enumerate() {
        let recipient = format!("bad-{n}@example.com");
        mailbox.set_fault(&recipient, Some(fault));
        bad.push((notification(&pool, &recipient).await, fault, state, words));
    }
    notifications(&pool, 50).await;

    // A step may take 3 s, the answer to the message 30.
    let settings = [HOLD, ("SMTP_TIMEOUT_SECONDS", "3"), ("MAIL_CONNECTIONS", "4")];
    let _relay = mailer(&database, &mailbox.smtp_url(), &settings);

    sent(&pool, 50).await;
    for (id, fault, ..) in &bad[..3] {
        assert_eq!(mail(&pool, *id).await.0, "sending", "{fault:?} is waited for, and only by itself");
    }
    for (id, fault, state, words) in bad {
        let (attempts, error) = becomes(&pool, id, state).await;
        let error = error.unwrap_or_else(|| panic!("{fault:?} left no words"));
        // What is tried again after 30 s may have been refused again meanwhile.
        assert!(attempts == 1 || state == "pending", "{fault:?}: {attempts}");
        assert!(error.contains(words) && !error.contains("@example.com"), "{fault:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_refuses_everybody_is_an_outage_that_spends_nothing_and_is_probed_with_one_mail() {
    for code in [554, 421] {
        let database = Database::create().await;
        let pool = database.pool().await;
        let mailbox = Mailbox::start(0).await.expect("a mailbox");
        mailbox.set_fault_for_everybody(Some(Fault::At(Step::Greeting, Wrong::Reply(code))));
        notifications(&pool, 40).await;
        let relay = mailer(&database, &mailbox.smtp_url(), &[]);
        eventually("the outage to be told", SOON, async || tells_of_an_outage(&relay).await).await;
        assert_eq!(metric(&relay, CIRCUIT).await, 1.0);
        // Past the first wave, on all connections, there are only probes.
        eventually("the first wave to be over", SOON, async || {
            (count(&pool, "sending").await == 0).then_some(())
        })
        .await;
        let before = mailbox.connections().accepted;
        eventually("more probes", SOON, async || {
            assert!(count(&pool, "sending").await <= 1, "one mail probes");
            (mailbox.connections().accepted >= before + 3).then_some(())
        })
        .await;
        assert_eq!(spent(&pool).await, 0, "{code}");

        mailbox.set_fault_for_everybody(None);
        sent(&pool, 40).await;
        assert_eq!(spent(&pool).await, 0, "{code}");
        assert_eq!(mailbox.count(), 40, "each once");
        assert_eq!(metric(&relay, CIRCUIT).await, 0.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_login_is_an_outage_and_no_failure_of_the_mail() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let login = Login { user: "shop".into(), password: "right".into(), plain: true };
    let manners = Manners { login: Some(login), ..Manners::default() };
    let mailbox = Mailbox::start_with(0, manners).await.expect("a mailbox");
    let id = notification(&pool, "ada@example.com").await;
    let url = |password| format!("smtp://shop:{password}@{}", mailbox.address());
    let mut relay = mailer(&database, &url("wrong"), &[]);
    eventually("the outage to be told", SOON, async || tells_of_an_outage(&relay).await).await;
    relay.terminate().await.expect("stopped");
    // By now it is recorded.
    assert_eq!((mail(&pool, id).await.0.as_str(), spent(&pool).await), ("pending", 0));

    let _relay = mailer(&database, &url("right"), &[]);
    becomes(&pool, id, "sent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mail_goes_encrypted_by_each_of_the_ways_with_an_own_ca_and_a_login() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let (ca, config) = own_ca("relay-mail", "127.0.0.1");
    let login = |plain| Some(Login { user: "shop".into(), password: "p@ss word".into(), plain });
    let ways = [
        (Tls::Implicit(Arc::clone(&config)), login(true), "smtps", ""),
        (Tls::StartTls(Arc::clone(&config)), login(false), "smtp", "?tls=required"),
        (Tls::StartTls(config), login(true), "smtp", "?tls=opportunistic"),
    ];
    for (tls, login, scheme, query) in ways {
        let told = format!("{scheme} {query}");
        let mailbox = Mailbox::start_with(0, Manners { tls: Some(tls), login }).await.expect("a mailbox");
        let url = format!("{scheme}://shop:p%40ss%20word@{}/shop.example{query}", mailbox.address());
        let id = notification(&pool, "ada@example.com").await;

        // Its certificate is signed by nobody that is known.
        let mut relay = mailer(&database, &url, &[]);
        eventually("the outage to be told", SOON, async || tells_of_an_outage(&relay).await).await;
        relay.terminate().await.expect("stopped");
        assert_eq!((mail(&pool, id).await.0.as_str(), mailbox.count()), ("pending", 0), "{told}");

        let _relay = mailer(&database, &url, &[("SMTP_CA_FILE", ca.to_str().expect("a path"))]);
        becomes(&pool, id, "sent").await;
        assert_eq!(mailbox.count(), 1, "{told}");
    }
    std::fs::remove_file(ca).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_with_the_certificate_of_another_host_gets_no_mail() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let (ca, config) = own_ca("relay-mail-other-host", "mail.example");
    let ways = [
        (Tls::Implicit(Arc::clone(&config)), "smtps", ""),
        (Tls::StartTls(Arc::clone(&config)), "smtp", "?tls=required"),
        (Tls::StartTls(config), "smtp", "?tls=opportunistic"),
    ];
    let id = notification(&pool, "ada@example.com").await;
    for (tls, scheme, query) in ways {
        let mailbox =
            Mailbox::start_with(0, Manners { tls: Some(tls), login: None }).await.expect("a mailbox");
        let url = format!("{scheme}://{}{query}", mailbox.address());
        let mut relay = mailer(&database, &url, &[("SMTP_CA_FILE", ca.to_str().expect("a path"))]);
        eventually("the outage to be told", SOON, async || tells_of_an_outage(&relay).await).await;
        relay.terminate().await.expect("stopped");
        assert_eq!((mail(&pool, id).await.0.as_str(), mailbox.count()), ("pending", 0), "{scheme} {query}");
    }
    std::fs::remove_file(ca).expect("removed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_starttls_gets_mail_only_when_encryption_is_optional() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let id = notification(&pool, "ada@example.com").await;
    let mut relay = mailer(&database, &format!("{}?tls=required", mailbox.smtp_url()), &[]);
    eventually("the outage to be told", SOON, async || tells_of_an_outage(&relay).await).await;
    relay.terminate().await.expect("stopped");
    assert_eq!((mail(&pool, id).await.0.as_str(), mailbox.count()), ("pending", 0));
    let _relay = mailer(&database, &format!("{}?tls=opportunistic", mailbox.smtp_url()), &[]);
    becomes(&pool, id, "sent").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_mails_go_over_as_many_connections_as_are_allowed() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    notifications(&pool, 200).await;
    let _relay = mailer(&database, &mailbox.smtp_url(), &[("MAIL_CONNECTIONS", "2")]);
    sent(&pool, 200).await;
    let connections = mailbox.connections();
    assert_eq!((connections.accepted, connections.most), (2, 2), "opened once, used for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_server_closes_between_mails_costs_nothing() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mut mailbox = Mailbox::start(0).await.expect("a mailbox");
    let mut relay = mailer(&database, &mailbox.smtp_url(), &[("MAIL_CONNECTIONS", "1")]);
    becomes(&pool, notification(&pool, "ada@example.com").await, "sent").await;
    // Closes every connection, and is there again at once.
    mailbox.start_again().await.expect("there again");
    let (attempts, error) = becomes(&pool, notification(&pool, "ada@example.com").await, "sent").await;
    assert_eq!((attempts, error), (0, None));
    let log = relay.process().log_tail();
    assert!(!log.contains("no progress"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_mails_per_second_go_out_than_are_allowed() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    notifications(&pool, 41).await;
    let _relay = mailer(&database, &mailbox.smtp_url(), &[("MAIL_RATE", "20")]);
    let mails = mailbox.wait_for(41, SOON).await.expect("all of them");
    let took = mails[40].received_at - mails[0].received_at;
    // 40 mails after the first take 2 s; the first may have been slow on its way.
    assert!(took >= chrono::TimeDelta::milliseconds(1_700), "{took}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_a_day_fails_with_the_servers_words_and_an_outage_is_no_part_of_the_day() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    mailbox.set_fault("ada@example.com", Some(Fault::At(Step::Recipient, Wrong::Reply(451))));
    let id = notification(&pool, "ada@example.com").await;
    let _relay = mailer(&database, &mailbox.smtp_url(), &[]);
    eventually("the first refusal", SOON, async || (mail(&pool, id).await.1 == 1).then_some(())).await;
    assert_eq!(mail(&pool, id).await.0, "pending");
    // Hours since the first refusal, and for how many of them it has been due: the server, the database or we
    // were away.
    let passes = [(23, 0, "pending"), (48, 47, "pending"), (26, 1, "failed")];
    for ((hours, due, expected), attempts) in passes.into_iter().zip(2..) {
        let sql = "update notifications set next_attempt_at = now() - make_interval(hours => $2),
                                            refused_since = now() - make_interval(hours => $1)";
        sqlx::query(sql).bind(hours).bind(due).execute(&pool).await.expect("time passes");
        eventually("the next refusal", SOON, async || (mail(&pool, id).await.1 == attempts).then_some(()))
            .await;
        let (state, _, error) = mail(&pool, id).await;
        assert_eq!(state, expected, "after {hours} hours of which it was due for {due}");
        assert!(error.expect("words").contains("RCPT TO: transient error (451)"));
        let counted: i32 = sqlx::query_scalar(
            "select (extract(epoch from now() - refused_since) / 3600)::int from notifications",
        )
        .fetch_one(&pool)
        .await
        .expect("read");
        assert_eq!(counted, hours - due, "what counts");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_outcome_is_sent_again_with_the_same_message_id() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    mailbox.set_fault("ada@example.com", Some(Fault::At(Step::Message, Wrong::Close)));
    let id = notification(&pool, "ada@example.com").await;
    let _relay = mailer(&database, &mailbox.smtp_url(), &[]);
    becomes(&pool, id, "unknown").await;
    mailbox.set_fault("ada@example.com", None);
    sqlx::query("update notifications set next_attempt_at = now()")
        .execute(&pool)
        .await
        .expect("time passes");
    becomes(&pool, id, "sent").await;
    let mails = mailbox.messages();
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[0].raw, mails[1].raw, "the same message, byte for byte");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_in_the_middle_leaves_no_unknown_and_the_next_start_sends_the_rest_once() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    notifications(&pool, 600).await;
    let mut relay = mailer(&database, &mailbox.smtp_url(), &[]);
    mailbox.wait_for(50, SOON).await.expect("in the middle");
    relay.terminate().await.expect("stopped");
    for state in ["sending", "unknown"] {
        assert_eq!(count(&pool, state).await, 0, "{state}");
    }
    assert_eq!(count(&pool, "sent").await, mailbox.count(), "what was taken is recorded");
    assert!(mailbox.count() < 600, "it was in the middle");
    relay.start_again().expect("started again");
    sent(&pool, 600).await;
    assert_eq!((mailbox.count(), mailbox.message_ids().len()), (600, 600), "each once");
}

/// Runs `relay mail …` and gives what it wrote.
async fn relay_mail(database: &Database, args: &[&str]) -> Result<String, ProcessError> {
    programs::run("relay", &[&["mail"], args].concat(), &[("DATABASE_URL", database.url())]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_sees_every_mail_with_its_address_masked_and_settles_what_is_stuck() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    mailbox.set_fault("bob@example.com", Some(Fault::At(Step::Recipient, Wrong::Reply(550))));
    mailbox.set_fault("cyd@example.com", Some(Fault::SilentAfterData));
    mailbox.set_fault("dan@example.com", Some(Fault::At(Step::Message, Wrong::Close)));
    let ada = notification(&pool, "ada@example.com").await;
    let bob = notification(&pool, "bob@example.com").await;
    let cyd = notification(&pool, "cyd@example.com").await;
    let dan = notification(&pool, "dan@example.com").await;
    watch_states(&pool).await;
    let _relay = mailer(&database, &mailbox.smtp_url(), &[HOLD, ("SMTP_TIMEOUT_SECONDS", "1")]);
    becomes(&pool, ada, "sent").await;
    becomes(&pool, bob, "failed").await;
    becomes(&pool, cyd, "unknown").await;
    becomes(&pool, dan, "unknown").await;

    // What is held is not sent again, however long nobody settles it: what comes later overtakes it.
    sqlx::query(
        "update notifications set next_attempt_at = now() - interval '1 day' where state = 'unknown'",
    )
    .execute(&pool)
    .await
    .expect("time passes");
    let later = notification(&pool, "later@example.com").await;
    becomes(&pool, later, "sent").await;
    for id in [cyd, dan] {
        assert_eq!(mail(&pool, id).await.0, "unknown", "it is held");
    }

    let list = relay_mail(&database, &["list"]).await.expect("listed");
    assert!(list.contains("a…@example.com") && !list.contains("ada@example.com"), "{list}");
    let masked = relay_mail(&database, &["list", "--json"]).await.expect("listed");
    assert!(masked.contains("a…@example.com") && !masked.contains("ada@example.com"), "{masked}");
    let json: Value = serde_json::from_str(
        &relay_mail(&database, &["list", "--state", "failed", "--json", "--show-addresses"])
            .await
            .expect("listed"),
    )
    .expect("JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(1), "{json}");
    assert_eq!(json[0]["recipient"], "bob@example.com");
    let order = json[0]["orderId"].as_str().expect("an order");
    let of_order = relay_mail(&database, &["list", "--order", order]).await.expect("listed");
    assert_eq!(of_order.lines().count(), 1, "{of_order}");
    let show = relay_mail(&database, &["show", &bob.to_string()]).await.expect("shown");
    assert!(show.contains("b…@example.com") && show.contains("550"), "{show}");
    let show = relay_mail(&database, &["show", &bob.to_string(), "--json"]).await.expect("shown");
    assert!(show.contains("b…@example.com") && !show.contains("bob@example.com"), "{show}");

    // Only what is unknown is resolved, only what has not been sent is retried, and nothing by halves.
    let why = ["--reason", "a test"];
    let both = ["resolve", &dan.to_string(), &ada.to_string(), "--sent"];
    relay_mail(&database, &[&both[..], &why].concat()).await.expect_err("one of them is sent");
    assert_eq!(mail(&pool, dan).await.0, "unknown");
    let both = ["retry", &bob.to_string(), &ada.to_string()];
    relay_mail(&database, &[&both[..], &why].concat()).await.expect_err("one of them is sent");
    assert_eq!(mail(&pool, bob).await.0, "failed");

    for recipient in ["bob@example.com", "cyd@example.com"] {
        mailbox.set_fault(recipient, None);
    }
    let by = ["--by", "eve", "--reason", "mailbox is back"];
    relay_mail(&database, &[&["retry", &bob.to_string()], &by[..]].concat()).await.expect("retried");
    relay_mail(&database, &[&["resolve", &cyd.to_string(), "--resend"], &by[..]].concat())
        .await
        .expect("resolved");
    relay_mail(&database, &[&["resolve", &dan.to_string(), "--sent"], &by[..]].concat())
        .await
        .expect("resolved");
    for id in [bob, cyd, dan] {
        becomes(&pool, id, "sent").await;
    }
    let dans = mailbox.read(|mails| mails.iter().filter(|mail| mail.to.contains("dan")).count());
    assert_eq!(dans, 1, "what the operator knows to be sent is not sent again");
    let changes: Vec<(String, String, String)> =
        sqlx::query_as("select changed_by, command, reason from relay_changes order by change_id")
            .fetch_all(&pool)
            .await
            .expect("the record");
    let change = |command: &str| ("eve".to_owned(), command.to_owned(), "mailbox is back".to_owned());
    assert_eq!(changes, [change("mail retry"), change("mail resolve"), change("mail resolve")]);
    only_pictured_changes(&pool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_are_erased_a_while_after_the_mail_is_done_with() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mailbox = Mailbox::start(0).await.expect("a mailbox");
    let old = notification(&pool, "old@example.com").await;
    let young = notification(&pool, "young@example.com").await;
    let failed = notification(&pool, "failed@example.com").await;
    for (id, days, state) in [(old, 8, "sent"), (young, 6, "sent"), (failed, 8, "failed")] {
        sqlx::query(
            "update notifications set state = $3, last_error = case when $3 = 'failed' then '550 no failed here' end,
                    sent_at = case when $3 = 'sent' then now() - make_interval(days => $2) end,
                    failed_at = case when $3 = 'failed' then now() - make_interval(days => $2) end
             where notification_id = $1",
        )
        .bind(id)
        .bind(days)
        .bind(state)
        .execute(&pool)
        .await
        .expect("time passes");
    }
    mailbox.set_fault("waiting@example.com", Some(Fault::At(Step::Recipient, Wrong::Reply(450))));
    let waiting = notification(&pool, "waiting@example.com").await;
    let _relay = mailer(&database, &mailbox.smtp_url(), &[("MAIL_ERASE_DAYS", "7")]);
    let left = || async {
        let rows: Vec<(Uuid,)> =
            sqlx::query_as("select notification_id from notifications where recipient is not null")
                .fetch_all(&pool)
                .await
                .expect("read");
        rows.into_iter().map(|row| row.0).collect::<HashSet<_>>()
    };
    eventually("the old ones to be erased", SOON, async || {
        (left().await == HashSet::from([young, waiting])).then_some(())
    })
    .await;
    assert_eq!(mail(&pool, failed).await.2.as_deref(), Some("erased"));
    relay_mail(&database, &["retry", &failed.to_string(), "--reason", "a test"])
        .await
        .expect_err("nobody to send it to");
    // The schema holds it: what is to be sent has somewhere to go.
    let pending = "update notifications set recipient = null, erased_at = now() where notification_id = $1";
    sqlx::query(pending).bind(waiting).execute(&pool).await.expect_err("refused");
}

/// Every table that has `text` in one of its rows, as text or as bytes.
async fn tables_with(pool: &PgPool, text: &str) -> Vec<String> {
    let tables: Vec<(String,)> =
        sqlx::query_as("select tablename::text from pg_tables where schemaname = 'public'")
            .fetch_all(pool)
            .await
            .expect("the tables");
    let mut found = Vec::new();
    for (table,) in tables {
        let sql = format!(
            "select count(*) from {table} t where t::text ilike '%' || $1 || '%'
             or t::text like '%' || encode(convert_to($1, 'UTF8'), 'hex') || '%'"
        );
        let rows: i64 =
            sqlx::query_scalar(sqlx::AssertSqlSafe(sql)).bind(text).fetch_one(pool).await.expect("searched");
        if rows > 0 {
            found.push(table);
        }
    }
    found.sort();
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_request_erases_the_address_everywhere_and_nobody_elses() {
    let database = Database::create().await;
    let pool = database.pool().await;
    let mut api = Server::orders(database.url(), &[]).expect("the API starts");
    api.ready(SOON).await.expect("ready");
    let http = reqwest::Client::new();
    let post = async |customer: i64, email: &str| {
        let body = serde_json::json!({"customerId": customer, "amountCents": 5, "customerEmail": email});
        let request = http
            .post(format!("{}/orders", api.url()))
            .header("idempotency-key", format!("key-{customer}"))
            .json(&body);
        request.send().await.expect("answered").text().await.expect("a body")
    };
    let (zoe, bob) = (r#""zoe.to.erase"@example.com"#, "bob@example.com");
    let first = post(42, zoe).await;
    post(43, bob).await;
    assert!(first.contains(r#""customerEmail":"\"zoe.to.erase\"@example.com""#), "{first}");
    let order: Value = serde_json::from_str(&first).expect("JSON");
    let order: Uuid = order["orderId"].as_str().expect("an id").parse().expect("a UUID");
    for (version, state) in [(1, "sent"), (2, "pending"), (3, "unknown")] {
        let id = notification(&pool, zoe).await;
        let sql = "update notifications set order_id = $2, order_version = $3, state = $4,
                   sent_at = case when $4 = 'sent' then now() end where notification_id = $1";
        sqlx::query(sql).bind(id).bind(order).bind(version).bind(state).execute(&pool).await.expect("as if");
    }
    watch_states(&pool).await;
    let held = ["idempotency_keys", "notifications", "orders"];
    assert_eq!(tables_with(&pool, "@example.com").await, held);

    let erase = async |more: &[&str]| {
        let args = [&["erase", "--customer", "42", "--json"], more].concat();
        let out = programs::run("orders", &args, &[("DATABASE_URL", database.url())]).await.expect("erased");
        serde_json::from_str::<Value>(&out).expect("JSON")["erased"].clone()
    };
    let all = serde_json::json!({"orders": 1, "answers": 1, "notifications": 3, "beingSent": 0});
    let none = serde_json::json!({"orders": 0, "answers": 0, "notifications": 0, "beingSent": 0});
    assert_eq!(erase(&["--dry-run"]).await, all);
    assert_eq!(erase(&["--client", "somebody"]).await, none, "another client's customer 42");
    assert_eq!(erase(&["--by", "eve"]).await, all);
    assert_eq!(erase(&[]).await, none, "nothing is left");

    for part in ["zoe.to.erase", "\"zoe.to.erase\"@example.com"] {
        assert_eq!(tables_with(&pool, part).await, Vec::<String>::new(), "{part}");
    }
    assert_eq!(tables_with(&pool, bob).await, ["idempotency_keys", "orders"], "bob stays");
    assert_eq!(
        (count(&pool, "sent").await, count(&pool, "failed").await),
        (1, 2),
        "nothing goes out any more"
    );
    only_pictured_changes(&pool).await;
    let again = post(42, zoe).await;
    assert_eq!(
        again,
        first.replace(r#","customerEmail":"\"zoe.to.erase\"@example.com""#, ""),
        "its first answer, without"
    );
    assert_eq!(
        tables_with(&pool, "zoe.to.erase").await,
        Vec::<String>::new(),
        "the repeat brought nothing back"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_cannot_be_used_is_named_before_anything_is_sent() {
    let check = async |settings: &[(&str, &str)]| {
        let base = [("DATABASE_URL", "postgres://a@b/c")];
        programs::run("relay", &["config", "check"], &[&base, settings].concat()).await
    };
    check(&[("MAIL_RATE", "5"), ("MAIL_LIST_UNSUBSCRIBE", "mailto:stop@shop.example")]).await.expect("right");
    for wrong in [
        ("SMTP_URL", "smtp://user:secret@mail.example"),
        ("SMTP_URL", "smtp://mail.example?tls=maybe"),
        ("SMTP_CA_FILE", "/nowhere.pem"),
        ("SMTP_TIMEOUT_SECONDS", "0"),
        ("MAIL_CONNECTIONS", "0"),
        ("MAIL_RATE", "0"),
        ("MAIL_LIST_UNSUBSCRIBE", "shop.example"),
        ("MAIL_ERASE_DAYS", "-1"),
    ] {
        let error = check(&[wrong]).await.expect_err(wrong.0).to_string();
        assert!(!error.contains("secret"), "{error}");
    }
}
