//! The command line: every setting is a flag and an environment variable, declared here once.

use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use axum::http::{HeaderValue, Uri};
use clap::{Args, Parser, Subcommand, ValueEnum};
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;

/// REST API that writes an order, its idempotency record and its event in one transaction.
#[derive(Debug, Parser)]
#[command(
    name = "orders",
    version,
    after_help = "Example:\n  export DATABASE_URL=postgres://postgres@127.0.0.1/orders\n  orders migrate && ORDERS_AUTH=off orders serve\n\nExit codes: 0 done, 1 failed, 2 usage, 3 a check found something, 4 a dependency is down"
)]
pub struct Cli {
    /// How to log.
    #[command(flatten)]
    pub log: Log,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API until SIGTERM or SIGINT
    #[command(
        after_help = "Example:\n  ORDERS_AUTH=off orders serve --listen 127.0.0.1:8080\n  curl -i localhost:8080/orders -H 'content-type: application/json' \\\n    -H 'idempotency-key: order-1' -d '{\"customerId\": 42, \"amountCents\": 2599}'"
    )]
    Serve(Serve),
    /// Apply the migrations that are missing, or say whether there are any
    #[command(after_help = "Example:\n  orders migrate --check || orders migrate")]
    Migrate(Migrate),
    /// Print the API's description, OpenAPI 3.1 as JSON
    #[command(after_help = "Example:\n  orders openapi > openapi.json")]
    Openapi,
    /// Make, list and revoke the keys that clients call with
    #[command(
        after_help = "Example:\n  TOKEN=$(orders keys create --client shop)\n  curl localhost:8080/orders -H \"authorization: Bearer $TOKEN\""
    )]
    Keys(Keys),
    /// Erase a customer's e-mail address: from orders, stored answers and notifications
    #[command(
        after_help = "Example:\n  orders erase --customer 42 --dry-run\n  orders erase --customer 42 --reason 'asked on 24 November'\n\nExit code 3: an e-mail was being sent to the address; run it again"
    )]
    Erase(Erase),
}

impl Command {
    /// Where its traces go, if it makes any.
    #[must_use]
    pub fn otlp_endpoint(&self) -> Option<&str> {
        match self {
            Self::Serve(serve) => serve.otlp_endpoint.as_deref(),
            _ => None,
        }
    }
}

/// Where the database is.
#[derive(Args, Clone)]
pub struct Database {
    /// PostgreSQL to use, postgres://user:password@host:port/database
    // A String and not a parsed URL: clap repeats a value that it cannot parse, password included.
    #[arg(long, env = "DATABASE_URL", value_name = "URL", hide_env_values = true)]
    database_url: String,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Database(…)")
    }
}

impl Database {
    /// For code that has a URL and no command line.
    #[must_use]
    pub fn new(database_url: impl Into<String>) -> Self {
        Self { database_url: database_url.into() }
    }

    /// How to connect. Statements are not logged: they would show what clients sent.
    ///
    /// # Errors
    /// When the URL is none; the message does not repeat it.
    pub fn options(&self) -> Result<PgConnectOptions, InvalidDatabaseUrl> {
        let options: PgConnectOptions = self.database_url.parse().map_err(|_| InvalidDatabaseUrl)?;
        Ok(options.application_name("orders").disable_statement_logging())
    }
}

/// The value of `DATABASE_URL` is not a URL of PostgreSQL.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("DATABASE_URL must look like postgres://user:password@host:port/database")]
pub struct InvalidDatabaseUrl;

/// Settings of `orders serve`.
#[derive(Args, Clone, Debug)]
pub struct Serve {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Address and port to listen on
    #[arg(long, env = "ORDERS_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Who may call: holders of an API key, or everybody as client `anonymous`
    #[arg(long, env = "ORDERS_AUTH", value_enum, default_value_t = Auth::Keys)]
    pub auth: Auth,
    /// Collector of traces, http://host:4318 (OTLP over HTTP); no traces when left out
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,
    /// Orders that may wait for the writer; past that, clients get 503 `overloaded`
    #[arg(long, env = "ORDERS_QUEUE", value_name = "N", default_value_t = 4096,
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1_000_000))]
    pub queue: usize,
    /// Requests per second that a client may make, and how many at once [default: no limit]
    #[arg(long, env = "ORDERS_RATE_LIMIT", value_name = "RATE[,BURST]")]
    pub rate_limit: Option<RateLimit>,
    /// Origins of web pages that may call, separated by commas, like `https://shop.example`; or `*`
    /// for all of them [default: none]
    #[arg(long, env = "ORDERS_CORS_ORIGINS", value_name = "ORIGINS")]
    pub cors_origins: Option<Origins>,
}

/// How often a client may ask: whole requests per second and how many of them at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    rate: u32,
    burst: u32,
}

impl RateLimit {
    const MAX: u32 = 1_000_000;

    /// The most requests at once.
    #[must_use]
    pub fn burst(self) -> u32 {
        self.burst
    }

    /// The time in which a client earns one request.
    #[must_use]
    pub fn interval(self) -> Duration {
        Duration::from_secs(1) / self.rate
    }

    /// The time in which a client that has used up everything earns it all again.
    #[must_use]
    pub fn window(self) -> Duration {
        self.interval() * self.burst
    }
}

impl FromStr for RateLimit {
    type Err = &'static str;

    /// `RATE` or `RATE,BURST`; a burst that is not given is the rate.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.trim().parse().ok().filter(|n| (1..=Self::MAX).contains(n));
        let (rate, burst) = text.split_once(',').unwrap_or((text, text));
        number(rate)
            .zip(number(burst))
            .map(|(rate, burst)| Self { rate, burst })
            .ok_or("must be requests per second and, if wanted, a burst, from 1 to 1000000: 50 or 50,200")
    }
}

/// The origins of web pages that may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// All of them.
    Any,
    /// These; each is `scheme://host` or `scheme://host:port`, as browsers send it.
    These(Vec<HeaderValue>),
}

impl FromStr for Origins {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.trim() == "*" {
            return Ok(Self::Any);
        }
        let origins: Option<Vec<_>> = text.split(',').map(|origin| parse_origin(origin.trim())).collect();
        origins.map(Self::These).ok_or(
            "must be * or origins like https://shop.example or http://localhost:3000, separated by commas: \
             in lower case, without a path",
        )
    }
}

/// Browsers compare origins byte by byte, so one that no browser sends is a mistake.
fn parse_origin(origin: &str) -> Option<HeaderValue> {
    let uri: Uri = origin.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let canonical = format!("{scheme}://{authority}");
    let sent = canonical == origin
        && ["http", "https"].contains(&scheme)
        && !origin.contains('@')
        && !origin.bytes().any(|b| b.is_ascii_uppercase());
    sent.then(|| HeaderValue::try_from(canonical).ok()).flatten()
}

/// Who may call the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Auth {
    /// Holders of an API key.
    Keys,
    /// Everybody, as client `anonymous`.
    Off,
}

/// Settings of `orders migrate`.
#[derive(Args, Clone, Debug)]
pub struct Migrate {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// Change nothing; exit code 3 when migrations are missing
    #[arg(long)]
    pub check: bool,
}

/// Settings of `orders keys`.
#[derive(Args, Clone, Debug)]
pub struct Keys {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// What to do.
    #[command(subcommand)]
    pub command: KeysCommand,
}

/// What can be done with keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeysCommand {
    /// Make a key and print its token, this once
    #[command(after_help = "Example:\n  orders keys create --client shop")]
    Create {
        /// Whose orders and idempotency keys it opens; several keys of one client see the same
        #[arg(long, value_name = "NAME", value_parser = client_name)]
        client: String,
    },
    /// Print every key, without its token
    #[command(after_help = "Example:\n  orders keys list --json")]
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a key out of force; it stops within 5 seconds
    #[command(after_help = "Example:\n  orders keys revoke 01a20eed-818d-74fd-b1bc-ada1c23bef06")]
    Revoke {
        /// The key's id, as `orders keys list` shows it
        id: uuid::Uuid,
    },
}

/// Settings of `orders erase`.
#[derive(Args, Clone, Debug)]
pub struct Erase {
    /// The database.
    #[command(flatten)]
    pub database: Database,
    /// The customer's id
    #[arg(long, value_name = "ID", value_parser = clap::value_parser!(i64).range(1..))]
    pub customer: i64,
    /// Only the customer of this client; ids of different clients may name different people
    #[arg(long, value_name = "NAME")]
    pub client: Option<String>,
    /// Change nothing, only count
    #[arg(long)]
    pub dry_run: bool,
    /// Who does it, for the record
    #[arg(long, env = "USER", value_name = "NAME", default_value = "unknown")]
    pub by: String,
    /// Why, for the record
    #[arg(long)]
    pub reason: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn client_name(name: &str) -> Result<String, &'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if (1..=100).contains(&name.len()) && name.bytes().all(plain) {
        Ok(name.to_owned())
    } else {
        Err("must be 1 to 100 letters, digits, '-', '_' or '.'")
    }
}

/// How to log.
#[derive(Args, Clone, Debug)]
pub struct Log {
    /// What to log, for example info or orders=debug
    #[arg(long = "log", env = "RUST_LOG", value_name = "FILTER", default_value = "info", global = true)]
    filter: String,
    /// Lines for people or for programs
    #[arg(long, env = "LOG_FORMAT", value_enum, default_value_t = LogFormat::Text, global = true)]
    log_format: LogFormat,
}

/// The form of a log line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Log {
    /// In the syntax of tracing's `EnvFilter`.
    pub(crate) fn filter(&self) -> &str {
        &self.filter
    }

    /// How lines are written.
    pub(crate) fn format(&self) -> LogFormat {
        self.log_format
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_database_url_is_not_repeated() {
        let database = Database::new("postgres//user:hunter2@host");
        let error = database.options().expect_err("no URL");
        assert!(!error.to_string().contains("hunter2"));
        assert!(!format!("{database:?}").contains("hunter2"));
    }

    #[test]
    fn a_rate_limit_is_a_rate_and_perhaps_a_burst() {
        let limit = |text: &str| text.parse::<RateLimit>();
        assert_eq!(limit("50"), Ok(RateLimit { rate: 50, burst: 50 }));
        assert_eq!(limit("50, 200"), Ok(RateLimit { rate: 50, burst: 200 }));
        for wrong in ["", "0", "5,0", "-1", "1.5", "5,", "1,2,3", "1000001", "fast"] {
            assert!(limit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        let origins = |text: &str| text.parse::<Origins>();
        assert_eq!(origins("*"), Ok(Origins::Any));
        let two = ["https://shop.example", "http://localhost:3000"].map(HeaderValue::from_static);
        assert_eq!(origins("https://shop.example, http://localhost:3000"), Ok(Origins::These(two.into())));
        for wrong in [
            "",
            "shop.example",
            "https://shop.example/",
            "https://shop.example/a",
            "https://Shop.example",
            "ftp://shop.example",
            "https://a@shop.example",
            "https://shop.example,",
            "https://shop.example,*",
        ] {
            assert!(origins(wrong).is_err(), "{wrong}");
        }
    }
}
