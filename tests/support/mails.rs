//! Notifications made by hand, and a relay that only mails them.
#![allow(dead_code, reason = "each test file includes this and uses its own part")]

use std::time::Duration;

use demo::programs::Server;
use demo::testing::{Database, eventually};
use sqlx::PgPool;
use uuid::Uuid;

pub(crate) const SOON: Duration = Duration::from_secs(90);

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
