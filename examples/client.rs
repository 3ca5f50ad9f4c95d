//! A client that cannot make a second order: it makes the key before the first attempt, keeps it
//! for every retry, and retries only what the API calls retryable.
//!
//! `cargo run --example client -- http://127.0.0.1:8080 2599`

use std::time::Duration;

use reqwest::header::{HeaderMap, RETRY_AFTER};
use serde::{Deserialize, Serialize};

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct NewOrder {
    customer_id: i64,
    amount_cents: i64,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    order_id: String,
    status: String,
}

#[derive(Debug, Deserialize)]
struct Problem {
    code: String,
    detail: String,
    retryable: bool,
}

/// How often a request is tried; with the waits below, about a minute.
const ATTEMPTS: u32 = 8;

async fn place(http: &reqwest::Client, api: &str, key: &str, order: &NewOrder) -> Result<Order, String> {
    let mut last = String::new();
    for attempt in 0..ATTEMPTS {
        let sent = http
            .post(format!("{api}/orders"))
            .header("idempotency-key", key)
            .timeout(Duration::from_secs(15))
            .json(order)
            .send()
            .await;
        let headers = match sent {
            Ok(answer) if answer.status().is_success() => {
                return answer.json().await.map_err(|error| error.to_string());
            }
            Ok(answer) => {
                let headers = answer.headers().clone();
                let problem: Problem = answer.json().await.map_err(|error| error.to_string())?;
                if !problem.retryable {
                    return Err(format!("{}: {}", problem.code, problem.detail));
                }
                last = problem.code;
                headers
            }
            // No answer says nothing of the order: only the same key finds out.
            Err(error) => {
                last = error.to_string();
                HeaderMap::new()
            }
        };
        eprintln!("attempt {} failed: {last}", attempt + 1);
        tokio::time::sleep(wait(attempt, &headers)).await;
    }
    Err(format!("given up after {ATTEMPTS} attempts: {last}"))
}

/// 100 ms, doubling up to 20 s, jittered; never less than the server asks for.
fn wait(attempt: u32, headers: &HeaderMap) -> Duration {
    let asked = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    let step = Duration::from_millis(100 * 2_u64.pow(attempt)).min(Duration::from_secs(20));
    step.mul_f64(0.5 + fastrand::f64() / 2.0).max(Duration::from_secs(asked.unwrap_or(0)))
}

#[tokio::main]
async fn main() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let api = args.next().ok_or("usage: client URL AMOUNT_CENTS")?;
    let amount_cents =
        args.next().and_then(|cents| cents.parse().ok()).ok_or("usage: client URL AMOUNT_CENTS")?;
    // Made once per order that a person wants; a program that may restart stores it with the order first.
    let key = uuid::Uuid::now_v7().to_string();
    let order =
        place(&reqwest::Client::new(), &api, &key, &NewOrder { customer_id: 42, amount_cents }).await?;
    println!("{} {}", order.order_id, order.status);
    Ok(())
}
