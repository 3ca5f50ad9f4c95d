//! The pipeline's own programs, `orders` and `relay`, as processes with settings.

use std::path::PathBuf;
use std::time::Duration;

use crate::guard;
use crate::process::{Process, ProcessError, Spec};
use crate::services::free_port;

/// Every setting of the two programs: what the caller does not set must not leak in from outside.
const SETTINGS: &[&str] = &[
    "DATABASE_URL",
    "ORDERS_LISTEN",
    "ORDERS_AUTH",
    "ORDERS_QUEUE",
    "ORDERS_RATE_LIMIT",
    "ORDERS_CORS_ORIGINS",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "KAFKA_BROKERS",
    "KAFKA_TOPIC",
    "KAFKA_PROPERTIES",
    "EVENTS_SOURCE",
    "NOTIFY_GROUP",
    "SMTP_URL",
    "SMTP_CA_FILE",
    "SMTP_TIMEOUT_SECONDS",
    "NOTIFY_DEAD_TOPIC",
    "MAIL_FROM",
    "MAIL_CONNECTIONS",
    "MAIL_RATE",
    "MAIL_ON_UNKNOWN",
    "MAIL_LIST_UNSUBSCRIBE",
    "MAIL_ERASE_DAYS",
    "RELAY_OPERATOR",
    "RELAY_SINK",
    "OUTBOX_SHAPE",
    "OUTBOX_TABLE",
    "OUTBOX_TOPIC",
    "OUTBOX_HEADERS",
    "RELAY_LISTEN",
    "RELAY_LEASE_SECONDS",
    "RELAY_RETENTION_DAYS",
    "RELAY_INBOX_RETENTION_DAYS",
    "RUST_LOG",
    "LOG_FORMAT",
];

/// How long a program may take to end after SIGTERM.
const END: Duration = Duration::from_secs(10);

/// One of the two programs that serve HTTP; dropping it kills it.
#[derive(Debug)]
pub struct Server {
    spec: Spec,
    url: String,
    process: Process,
}

impl Server {
    /// Starts `orders serve` on a free port, for every client (`ORDERS_AUTH=off`). `settings` add
    /// to this and win over it.
    ///
    /// # Errors
    /// When the program is not built or cannot be started.
    pub fn orders(database_url: &str, settings: &[(&str, &str)]) -> Result<Self, ProcessError> {
        let base = [("DATABASE_URL", database_url), ("ORDERS_AUTH", "off")];
        Self::start("orders", &["serve"], "ORDERS_LISTEN", &base, settings)
    }

    /// Starts `relay run` with its pages on a free port. `settings` add to this and win over it.
    ///
    /// # Errors
    /// When the program is not built or cannot be started.
    pub fn relay(
        database_url: &str,
        brokers: &str,
        topic: &str,
        smtp_url: &str,
        settings: &[(&str, &str)],
    ) -> Result<Self, ProcessError> {
        Self::relay_stages(&[], database_url, brokers, topic, smtp_url, settings)
    }

    /// Starts `relay run` with the named stages only.
    ///
    /// # Errors
    /// When the program is not built or cannot be started.
    pub fn relay_stages(
        stages: &[&str],
        database_url: &str,
        brokers: &str,
        topic: &str,
        smtp_url: &str,
        settings: &[(&str, &str)],
    ) -> Result<Self, ProcessError> {
        let base = [
            ("DATABASE_URL", database_url),
            ("KAFKA_BROKERS", brokers),
            ("KAFKA_TOPIC", topic),
            ("SMTP_URL", smtp_url),
        ];
        Self::start("relay", &[&["run"], stages].concat(), "RELAY_LISTEN", &base, settings)
    }

    fn start(
        program: &str,
        args: &[&str],
        listen: &str,
        base: &[(&str, &str)],
        settings: &[(&str, &str)],
    ) -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::Start { program: program.to_owned(), source };
        let address = match settings.iter().find(|(name, _)| *name == listen) {
            Some((_, address)) => (*address).to_owned(),
            None => format!("127.0.0.1:{}", free_port().map_err(failed)?),
        };
        let mut spec = spec(program, args, base)?;
        spec.env.push((listen.to_owned(), address.clone()));
        for (name, value) in settings {
            spec.env.retain(|(known, _)| known != name);
            spec.env.push(((*name).to_owned(), (*value).to_owned()));
        }
        let process = Process::spawn(&spec)?;
        Ok(Self { spec, url: format!("http://{address}"), process })
    }

    /// Where it answers, without a slash at the end.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The running process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] as soon as it ends, [`ProcessError::Late`] past the limit.
    pub async fn ready(&mut self, limit: Duration) -> Result<(), ProcessError> {
        self.process.wait_ready(&self.url, limit).await
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        self.process.kill()
    }

    /// SIGTERM, and waits up to 10 s until it is gone.
    ///
    /// # Errors
    /// [`ProcessError::Late`] when it runs on; [`ProcessError::Ended`] when its exit code is not 0.
    pub async fn terminate(&mut self) -> Result<(), ProcessError> {
        let status = self.process.terminate(END).await?;
        if status.success() { Ok(()) } else { self.process.check_running() }
    }

    /// Starts it again with the same settings, on the same port; ends it by SIGKILL if it runs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start_again(&mut self) -> Result<(), ProcessError> {
        self.process.kill()?;
        self.process = Process::spawn(&self.spec)?;
        Ok(())
    }
}

/// Runs a command of one of the programs to its end and gives what it wrote. What it changes is recorded
/// under the name `demo`, unless `env` or `args` have another.
///
/// # Errors
/// [`ProcessError::Ended`] when its exit code is not 0, [`ProcessError::Late`] after a minute.
pub async fn run(program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<String, ProcessError> {
    let spec = spec(program, args, &[&[("RELAY_OPERATOR", "demo")][..], env].concat())?;
    Process::run(&spec, Duration::from_secs(60)).await?;
    std::fs::read_to_string(&spec.log)
        .map_err(|source| ProcessError::Control { program: program.to_owned(), source })
}

fn spec(program: &str, args: &[&str], env: &[(&str, &str)]) -> Result<Spec, ProcessError> {
    let failed = |source| ProcessError::Start { program: program.to_owned(), source };
    let path = path(program).map_err(failed)?;
    if !path.is_file() {
        return Err(ProcessError::Missing { program: program.to_owned(), path });
    }
    let log = guard::scratch(program).map_err(failed)?.join("log");
    let mut spec = Spec::new(program, path, log).args(args);
    spec.unset = SETTINGS;
    spec.env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Ok(spec)
}

/// Beside the running program; a test's own file lies one folder deeper, in `deps`.
fn path(program: &str) -> std::io::Result<PathBuf> {
    let mut folder = std::env::current_exe()?;
    folder.pop();
    if folder.ends_with("deps") {
        folder.pop();
    }
    Ok(folder.join(program))
}
