//! What the API's tests share: a server in this process or as a process of its own, a client,
//! and a proxy before PostgreSQL that can cut a connection at a chosen moment.
#![allow(dead_code, unreachable_pub, reason = "each test file includes this and uses its own part")]

pub mod proxy;

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use clap::Parser;
use demo::testing::Database;
use orders::config::{Cli, Command};
use orders::server::{ServeError, serve};
use reqwest::{Method, Response};
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The seed's request.
pub const ORDER: &str = r#"{"customerId": 42, "amountCents": 2599}"#;

/// The API within the test's process.
pub struct Api {
    pub address: SocketAddr,
    pub shutdown: CancellationToken,
    task: JoinHandle<Result<(), ServeError>>,
    client: reqwest::Client,
}

impl Api {
    pub async fn start(database_url: &str) -> Self {
        Self::start_with_queue(database_url, 4096).await
    }

    pub async fn start_with_queue(database_url: &str, queue: usize) -> Self {
        Self::start_with(database_url, &["--auth", "off", "--queue", &queue.to_string()]).await
    }

    /// With these arguments of `orders serve`.
    #[allow(clippy::disallowed_methods, reason = "the test ends it")]
    pub async fn start_with(database_url: &str, arguments: &[&str]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let command = ["orders", "serve", "--database-url", database_url];
        let Command::Serve(config) = Cli::parse_from(command.iter().chain(arguments)).command else {
            panic!("{arguments:?}");
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(serve(listener, config, shutdown.clone()));
        Self { address, shutdown, task, client: reqwest::Client::new() }
    }

    /// Asks for a soft stop and waits for it.
    pub async fn stop(self) {
        self.shutdown.cancel();
        drop(self.client);
        self.task.await.unwrap().unwrap();
    }

    pub async fn create(&self, key: &str, body: &str) -> Answer {
        create(&self.client, self.address, key, body).await.unwrap()
    }

    pub async fn cancel(&self, order: &str, key: &str) -> Answer {
        cancel(&self.client, self.address, order, key).await.unwrap()
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], "").await
    }

    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &[u8])],
        body: impl Into<reqwest::Body>,
    ) -> Answer {
        let mut request = self.client.request(method, format!("http://{}{path}", self.address)).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::read(request.send().await.unwrap()).await.unwrap()
    }
}

pub async fn create(
    client: &reqwest::Client,
    address: SocketAddr,
    key: &str,
    body: &str,
) -> reqwest::Result<Answer> {
    let request = client
        .post(format!("http://{address}/orders"))
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(body.to_owned());
    Answer::read(request.send().await?).await
}

async fn cancel(
    client: &reqwest::Client,
    address: SocketAddr,
    order: &str,
    key: &str,
) -> reqwest::Result<Answer> {
    let request = client.post(format!("http://{address}/orders/{order}/cancel"));
    Answer::read(request.header("idempotency-key", key).send().await?).await
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    async fn read(response: Response) -> reqwest::Result<Self> {
        Ok(Self {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.bytes().await?.to_vec(),
        })
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub fn replayed(&self) -> bool {
        self.header("idempotent-replayed") == Some("true")
    }

    pub fn order_id(&self) -> String {
        self.json()["orderId"].as_str().unwrap_or_else(|| panic!("no order id in {self:?}")).to_owned()
    }

    /// The value of a metric, and 0 when it is not there.
    pub fn metric(&self, name: &str) -> f64 {
        let text = String::from_utf8_lossy(&self.body);
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map_or(0.0, |value| value.parse().unwrap())
    }

    /// Asserts that this is the problem `code`, and well formed.
    #[track_caller]
    pub fn is_problem(&self, status: u16, code: &str) -> &Self {
        let json = self.json();
        assert_eq!((self.status, json["code"].as_str()), (status, Some(code)), "{self:?}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(json["status"], status);
        assert_eq!(json["type"], format!("/problems/{code}"));
        for member in ["title", "detail"] {
            assert!(json[member].as_str().is_some_and(|text| !text.is_empty()), "{member} in {json}");
        }
        assert!(json["retryable"].is_boolean());
        self
    }
}

/// Counts the rows of orders, idempotency_keys and outbox.
pub async fn rows(pool: &PgPool) -> (i64, i64, i64) {
    sqlx::query_as(
        "select (select count(*) from orders), (select count(*) from idempotency_keys), (select count(*) from outbox)",
    )
    .fetch_one(pool)
    .await
    .unwrap()
}

/// Polls a query for a boolean until it is true.
#[track_caller]
pub fn until<'a>(pool: &'a PgPool, question: &'a str) -> impl Future<Output = ()> + 'a {
    let deadline = Instant::now() + Duration::from_secs(20);
    async move {
        loop {
            let yes: bool = sqlx::query_scalar(AssertSqlSafe(question)).fetch_one(pool).await.unwrap();
            if yes {
                return;
            }
            assert!(Instant::now() < deadline, "never true: {question}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// The API as a process of its own, killed when dropped.
pub struct Process {
    pub address: SocketAddr,
    child: tokio::process::Child,
}

impl Process {
    /// Starts it and waits until it is ready. The port is chosen here and may be reused.
    pub async fn start(database: &Database) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        Self::start_at(database, address).await
    }

    pub async fn start_at(database: &Database, address: SocketAddr) -> Self {
        let child = tokio::process::Command::new(env!("CARGO_BIN_EXE_orders"))
            .args(["serve", "--auth", "off", "--listen", &address.to_string()])
            .env("DATABASE_URL", database.url())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while !reqwest::get(format!("http://{address}/readyz")).await.is_ok_and(|r| r.status().is_success()) {
            assert!(Instant::now() < deadline, "the API did not start");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Self { address, child }
    }

    pub async fn create(&self, key: &str, body: &str) -> reqwest::Result<Answer> {
        create(&reqwest::Client::new(), self.address, key, body).await
    }

    pub async fn cancel(&self, order: &str, key: &str) -> reqwest::Result<Answer> {
        cancel(&reqwest::Client::new(), self.address, order, key).await
    }

    /// SIGKILL.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// SIGTERM; gives the exit code.
    pub async fn terminate(&mut self) -> Option<i32> {
        let pid = self.child.id().unwrap().to_string();
        let sent = tokio::process::Command::new("kill").args(["-TERM", &pid]).status().await.unwrap();
        assert!(sent.success());
        self.child.wait().await.unwrap().code()
    }
}
