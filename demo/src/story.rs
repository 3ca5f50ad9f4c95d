//! One order's way through the pipeline, with its times.

use std::time::{Duration, Instant};

use demo::mailbox::Mail;
use reqwest::header::HeaderMap;
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Outcome;
use crate::stack::Stack;

const ARRIVES: Duration = Duration::from_secs(30);

/// What the closing table has to know of the single order.
pub(crate) struct Single {
    pub(crate) order: Uuid,
    pub(crate) recipient: String,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
    took: Duration,
    at: Instant,
}

impl Answer {
    fn show(&self) {
        println!("< {} in {}", self.status, millis(self.took));
        for name in ["location", "idempotency-key", "idempotent-replayed", "content-type"] {
            if let Some(value) = self.headers.get(name) {
                println!("< {name}: {}", value.to_str().unwrap_or("(binary)"));
            }
        }
        println!("< {}", self.body);
    }
}

/// Sends one order through and shows where it comes by.
pub(crate) async fn one_order(stack: &Stack) -> Outcome<Single> {
    let client = Client::new();
    let url = format!("{}/orders", stack.api_url());
    let run = Uuid::now_v7().simple();
    let key = format!("demo-{run}");
    let recipient = format!("ada.{run}@example.com");
    let order = json!({"customerId": 42, "amountCents": 2599, "customerEmail": recipient});

    heading("1. An order is placed");
    let first = post(&client, &url, &key, &order).await?;
    expect(first.status == StatusCode::CREATED, "the first request is answered with 201")?;
    let body: Value = serde_json::from_str(&first.body)?;
    let id: Uuid = body["orderId"].as_str().ok_or("the answer has no orderId")?.parse()?;

    heading("2. The client retries: the same answer, nothing done twice");
    let retry = post(&client, &url, &key, &order).await?;
    expect(
        (retry.status, &retry.body) == (first.status, &first.body),
        "the retry gets the first answer, byte for byte",
    )?;

    heading("3. The same key with another order: refused");
    let other = json!({"customerId": 42, "amountCents": 1, "customerEmail": recipient});
    let conflict = post(&client, &url, &key, &other).await?;
    expect(conflict.status == StatusCode::CONFLICT, "the conflict is answered with 409")?;

    heading("4. Its event on Kafka");
    let of_order = |message: &demo::topic::Message| message.header("ce_subject") == Some(&id.to_string());
    let event = stack.events.find(of_order, ARRIVES).await.ok_or("no event of the order after 30 s")?;
    let message = &event.message;
    println!(
        "topic {}, partition {}, offset {}, seen {} after the answer",
        stack.topic,
        message.partition,
        message.offset,
        after(event.at, first.at)
    );
    println!("key   {}", text(message.key.as_deref()));
    for (name, value) in &message.headers {
        println!("      {name}: {}", text(Some(value)));
    }
    println!("value {}", text(message.value.as_deref()));

    heading("5. Its e-mail");
    mail(stack, &recipient, first.at).await?;
    Ok(Single { order: id, recipient })
}

async fn mail(stack: &Stack, recipient: &str, answered: Instant) -> Outcome<()> {
    let Some(mailbox) = &stack.mailbox else {
        println!("goes to the SMTP server that SMTP_URL names");
        return Ok(());
    };
    let arrived = Instant::now() + ARRIVES;
    loop {
        let count = mailbox.count();
        let to_them = |mail: &&Mail| mail.envelope_to.iter().any(|to| to == recipient);
        if let Some(mail) = mailbox.read(|mails| mails.iter().find(to_them).cloned()) {
            println!("taken by the mailbox {} after the answer", after_utc(mail.received_at, answered));
            println!(
                "From: {}\nTo: {}\nSubject: {}\nMessage-ID: <{}>",
                mail.from, mail.to, mail.subject, mail.message_id
            );
            println!("\n{}", mail.text.trim_end());
            return Ok(());
        }
        let left = arrived.saturating_duration_since(Instant::now());
        mailbox.wait_for(count + 1, left).await?;
    }
}

async fn post(client: &Client, url: &str, key: &str, order: &Value) -> Outcome<Answer> {
    println!("> POST {url}\n> Idempotency-Key: {key}\n> {order}");
    let start = Instant::now();
    let response = client.post(url).header("Idempotency-Key", key).json(order).send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.text().await?;
    let answer = Answer { status, headers, body, took: start.elapsed(), at: Instant::now() };
    answer.show();
    Ok(answer)
}

fn heading(text: &str) {
    println!("\n{text}");
}

fn expect(met: bool, promise: &str) -> Outcome<()> {
    if met { Ok(()) } else { Err(format!("not kept: {promise}").into()) }
}

fn text(bytes: Option<&[u8]>) -> String {
    bytes.map_or_else(|| "(none)".to_owned(), |bytes| String::from_utf8_lossy(bytes).into_owned())
}

fn millis(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

/// The relay may be faster than the answer's way back to us.
fn after(event: Instant, answered: Instant) -> String {
    millis(event.saturating_duration_since(answered))
}

fn after_utc(event: chrono::DateTime<chrono::Utc>, answered: Instant) -> String {
    let ago = (chrono::Utc::now() - event).to_std().unwrap_or_default();
    after(Instant::now().checked_sub(ago).unwrap_or(answered), answered)
}
