//! Many orders at once, and in their middle the relay is killed.

use std::collections::HashMap;
use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::Outcome;
use crate::stack::Stack;
use crate::story::Single;
use crate::tally::Tally;

const CONNECTIONS: usize = 64;
/// How long an order is tried and tried again with its key.
const ANSWERED: Duration = Duration::from_secs(30);
/// How long the pipeline may take to get through what was accepted.
const THROUGH: Duration = Duration::from_secs(120);

/// What the API has answered: the order of each recipient.
pub(crate) type Accepted = HashMap<String, Uuid>;

/// Sends the orders, kills the relay half-way, waits until everything is through.
pub(crate) async fn orders(stack: &mut Stack, count: u32, single: &Single) -> Outcome<Tally> {
    println!("\n6. {count} orders, and in their middle the relay is killed (SIGKILL)");
    let start = Instant::now();
    let progress = Progress::new(count, "orders");
    let mut load = Load::start(stack.api_url(), count)?;
    let mut killed = false;
    while load.answered() < count && !load.workers.is_empty() {
        if !killed && load.answered() >= count / 2 {
            stack.relay.kill()?;
            stack.relay.start_again()?;
            progress.say(&format!("relay killed and started again after {} orders", load.answered()));
            killed = true;
        }
        progress.at(load.answered());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut accepted = load.finish().await?;
    progress.done(count);
    let took = start.elapsed().as_secs_f64();
    println!("{count} orders answered in {took:.1} s ({:.0}/s)", f64::from(count) / took);
    if !killed {
        stack.relay.kill()?;
        stack.relay.start_again()?;
        println!("relay killed and started again");
    }
    accepted.insert(single.recipient.clone(), single.order);
    through(stack, &accepted).await
}

/// Polls until nothing is missing any more; past the limit the table shows what is.
async fn through(stack: &mut Stack, accepted: &Accepted) -> Outcome<Tally> {
    let start = Instant::now();
    let orders = u32::try_from(accepted.len())?;
    let progress = Progress::new(orders.saturating_mul(2), "events and e-mails");
    loop {
        stack.relay.process().check_running()?;
        let tally = Tally::take(stack, accepted).await?;
        progress.at(u32::try_from(tally.events.min(tally.orders) + tally.mails.min(tally.orders))?);
        if tally.is_whole() || start.elapsed() > THROUGH {
            progress.done(orders.saturating_mul(2));
            println!("through {:.1} s after the last answer", start.elapsed().as_secs_f64());
            return Ok(tally);
        }
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// The clients.
struct Load {
    answered: Arc<AtomicU32>,
    workers: JoinSet<Outcome<Vec<(String, Uuid)>>>,
}

impl Load {
    fn start(api: &str, count: u32) -> Outcome<Self> {
        let client = Client::builder().pool_max_idle_per_host(CONNECTIONS).timeout(ANSWERED).build()?;
        let url: Arc<str> = format!("{api}/orders").into();
        let run: Arc<str> = Uuid::now_v7().simple().to_string().into();
        let (next, answered) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let mut workers = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let (client, url, run) = (client.clone(), Arc::clone(&url), Arc::clone(&run));
            let (next, answered) = (Arc::clone(&next), Arc::clone(&answered));
            workers.spawn(async move {
                let mut accepted = Vec::new();
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok(accepted);
                    }
                    let recipient = format!("customer-{number}.{run}@example.com");
                    let order = place(&client, &url, &format!("{run}-{number}"), number, &recipient).await?;
                    accepted.push((recipient, order));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Ok(Self { answered, workers })
    }

    fn answered(&self) -> u32 {
        self.answered.load(Ordering::Relaxed)
    }

    async fn finish(&mut self) -> Outcome<Accepted> {
        let mut accepted = Accepted::new();
        while let Some(worker) = self.workers.join_next().await {
            accepted.extend(worker??);
        }
        Ok(accepted)
    }
}

/// As a client should: whatever is unclear is asked again with the same key.
async fn place(client: &Client, url: &str, key: &str, number: u32, recipient: &str) -> Outcome<Uuid> {
    let order = json!({
        "customerId": i64::from(number) + 1,
        "amountCents": 100 + i64::from(number % 10_000),
        "customerEmail": recipient,
    });
    let start = Instant::now();
    loop {
        let response = client.post(url).header("Idempotency-Key", key).json(&order).send().await;
        let problem = match response {
            Ok(response) if response.status() == StatusCode::CREATED => {
                let body: Value = response.json().await?;
                return Ok(body["orderId"].as_str().ok_or("the answer has no orderId")?.parse()?);
            }
            Ok(response) => {
                let status = response.status();
                let body = response.text().await.unwrap_or_default();
                let problem = serde_json::from_str::<Value>(&body).unwrap_or_default();
                if problem["retryable"] != json!(true) && !status.is_server_error() {
                    return Err(format!("an order was refused with {status}: {body}").into());
                }
                format!("{status}: {body}")
            }
            Err(error) => error.to_string(),
        };
        if start.elapsed() > ANSWERED {
            return Err(format!("an order got no answer within 30 s, at last {problem}").into());
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(50..200))).await;
    }
}

/// A bar on a terminal, a line at every tenth elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    total: u32,
    name: &'static str,
    said: AtomicU32,
}

impl Progress {
    fn new(total: u32, name: &'static str) -> Self {
        let bar = std::io::stdout().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}  {elapsed}");
            let target = ProgressDrawTarget::stdout();
            ProgressBar::with_draw_target(Some(u64::from(total)), target)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
                .with_message(name)
        });
        Self { bar, total, name, said: AtomicU32::new(0) }
    }

    fn at(&self, position: u32) {
        if let Some(bar) = &self.bar {
            bar.set_position(u64::from(position));
            return;
        }
        let tenth = u64::from(position) * 10 / u64::from(self.total.max(1));
        if tenth > u64::from(self.said.load(Ordering::Relaxed)) {
            self.said.store(u32::try_from(tenth).unwrap_or(10), Ordering::Relaxed);
            println!("{position}/{} {}", self.total, self.name);
        }
    }

    fn say(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => println!("{line}"),
        }
    }

    fn done(&self, position: u32) {
        if let Some(bar) = &self.bar {
            bar.set_position(u64::from(position));
            bar.abandon();
        } else {
            self.at(position);
        }
    }
}
