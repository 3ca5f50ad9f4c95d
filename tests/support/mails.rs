//! Notifications made by hand, and a relay that only mails them.
#![allow(dead_code, reason = "each test file includes this and uses its own part")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use demo::programs::Server;
use demo::testing::{Database, eventually};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use sqlx::PgPool;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use uuid::Uuid;

pub(crate) const SOON: Duration = Duration::from_secs(90);
pub(crate) const HOLD: (&str, &str) = ("MAIL_ON_UNKNOWN", "hold");

/// Makes a notification that is due, as `notify` does; gives its id.
pub(crate) async fn notification(pool: &PgPool, recipient: &str) -> Uuid {
    let (id, order) = (Uuid::now_v7(), Uuid::now_v7());
    let data = serde_json::json!({ "orderId": order, "customerId": 42, "amountCents": 2599, "currency": "USD",
        "status": "created", "createdAt": "2026-01-01T00:00:00Z" });
    sqlx::query(
        "insert into notifications (notification_id, kind, order_id, order_version, recipient, message_id, data)
         values ($1, 'confirmation', $2, 1, $3, $4, $5)",
    )
    .bind(id)
    .bind(order)
    .bind(recipient)
    .bind(format!("<confirmation.{order}.1@localhost>"))
    .bind(data)
    .execute(pool)
    .await
    .expect("a notification");
    sqlx::query("select pg_notify('relay_mail', '')").execute(pool).await.expect("rung");
    id
}

/// `count` notifications to addresses that work.
pub(crate) async fn notifications(pool: &PgPool, count: usize) -> Vec<Uuid> {
    let mut ids = Vec::with_capacity(count);
    for n in 0..count {
        ids.push(notification(pool, &format!("well-{n}@example.com")).await);
    }
    ids
}

/// A relay that only mails. It says when it is ready by itself: `/readyz` is 503 while the server is away.
pub(crate) fn mailer(database: &Database, smtp_url: &str, settings: &[(&str, &str)]) -> Server {
    Server::relay_stages(&["mail"], database.url(), "127.0.0.1:1", "none", smtp_url, settings)
        .expect("the relay starts")
}

/// State, attempts and last error.
pub(crate) async fn mail(pool: &PgPool, id: Uuid) -> (String, i32, Option<String>) {
    sqlx::query_as("select state, attempts, last_error from notifications where notification_id = $1")
        .bind(id)
        .fetch_one(pool)
        .await
        .expect("the mail")
}

pub(crate) async fn count(pool: &PgPool, state: &str) -> usize {
    let rows: i64 = sqlx::query_scalar("select count(*) from notifications where state = $1")
        .bind(state)
        .fetch_one(pool)
        .await
        .expect("counted");
    usize::try_from(rows).expect("a number")
}

/// Waits until the mail is in this state and gives its attempts and last error.
pub(crate) async fn becomes(pool: &PgPool, id: Uuid, state: &str) -> (i32, Option<String>) {
    eventually(&format!("mail {id} to be {state}"), SOON, async || {
        let (now, attempts, error) = mail(pool, id).await;
        (now == state).then_some((attempts, error))
    })
    .await
}

/// Waits until so many mails are sent.
pub(crate) async fn sent(pool: &PgPool, wanted: usize) {
    eventually(&format!("{wanted} mails to be sent"), SOON, async || {
        (count(pool, "sent").await >= wanted).then_some(())
    })
    .await;
}

/// From now on keeps every change of state.
pub(crate) async fn watch_states(pool: &PgPool) {
    let sql = "create table changes_of_state (was text, became text);
        create function keep() returns trigger language plpgsql as
          $$ begin insert into changes_of_state values (old.state, new.state); return null; end $$;
        create trigger keep after update on notifications for each row
          when (old.state <> new.state) execute function keep()";
    sqlx::raw_sql(sql).execute(pool).await.expect("watched");
}

/// There were changes of state, and the picture in `docs/mail.md` has an arrow for each.
pub(crate) async fn only_pictured_changes(pool: &PgPool) {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/mail.md")).expect("docs");
    let arrow = |was: &str, became: &str| page.contains(&format!("\n  {was} --> {became}: "));
    let changes: Vec<(String, String)> = sqlx::query_as("select distinct was, became from changes_of_state")
        .fetch_all(pool)
        .await
        .expect("the changes");
    assert!(!changes.is_empty());
    for (was, became) in changes {
        assert!(arrow(&was, &became), "docs/mail.md has no {was} --> {became}");
    }
}

/// Whether `/readyz` of the relay is 503 and names SMTP.
pub(crate) async fn tells_of_an_outage(relay: &Server) -> Option<()> {
    let answer = reqwest::get(format!("{}/readyz", relay.url())).await.ok()?;
    let unready = answer.status() == 503;
    (unready && answer.text().await.ok()?.contains("SMTP")).then_some(())
}

/// How many mails have spent anything.
pub(crate) async fn spent(pool: &PgPool) -> i64 {
    sqlx::query_scalar("select count(*) from notifications where attempts > 0 or refused_since is not null")
        .fetch_one(pool)
        .await
        .expect("counted")
}

/// The value of one line of the relay's `/metrics`.
pub(crate) async fn metric(relay: &Server, line: &str) -> f64 {
    let answer = reqwest::get(format!("{}/metrics", relay.url())).await.expect("answered");
    let page = answer.text().await.expect("a page");
    let value = page.lines().find_map(|found| found.strip_prefix(line)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("no {line} in {page}")).parse().expect("a number")
}

/// A CA of our own: its certificate in a file, and what a server shows whose certificate is for `host`.
pub(crate) fn own_ca(name: &str, host: &str) -> (PathBuf, Arc<ServerConfig>) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    let key = KeyPair::generate().expect("a key");
    let server = CertificateParams::new([host.to_owned()]).expect("a name");
    let certificate = server.signed_by(&key, &ca).expect("a certificate");
    let file = std::env::temp_dir().join(format!("{name}-{}.pem", Uuid::now_v7()));
    std::fs::write(&file, ca.pem()).expect("written");
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::try_from(key.serialize_der()).expect("a key"),
        )
        .expect("a server");
    (file, Arc::new(config))
}
