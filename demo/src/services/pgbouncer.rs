//! A PgBouncer of our own, in transaction mode, before a PostgreSQL.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use super::{ServiceError, free_port, unprivileged};
use crate::guard;
use crate::process::{Process, Spec};

const NAME: &str = "PgBouncer";
const START: Duration = Duration::from_secs(30);

/// A running PgBouncer; dropping it kills it.
#[derive(Debug)]
pub struct PgBouncer {
    directory: PathBuf,
    url: PgConnectOptions,
    spec: Spec,
    process: Process,
}

impl PgBouncer {
    /// Starts `program` before the database that `url` names, for the user of `url` and for `users`
    /// beside it, none of whom the server may ask for a password.
    ///
    /// # Errors
    /// When it does not start; the end of its log is shown.
    ///
    /// # Panics
    /// When `url` is none of PostgreSQL.
    pub async fn start(program: &Path, url: &str, users: &[&str]) -> Result<Self, ServiceError> {
        let io_failed = |source| ServiceError::Io { service: NAME, source };
        let server: PgConnectOptions = url.parse().expect("a PostgreSQL URL");
        let directory = guard::scratch("pgbouncer").map_err(io_failed)?;
        // Who runs it may have no way to where it was built.
        let file = directory.join("pgbouncer");
        fs::copy(program, &file).map_err(io_failed)?;
        let port = free_port().map_err(io_failed)?;
        let known = [users, &[server.get_username()]].concat();
        let known: String = known.iter().map(|user| format!("\"{user}\" \"\"\n")).collect();
        let user_list = directory.join("users");
        fs::write(&user_list, known).map_err(io_failed)?;
        let settings = directory.join("ini");
        fs::write(&settings, ini(&server, port, &user_list)).map_err(io_failed)?;

        let mut spec = Spec::new("pgbouncer", &file, directory.join("log")).args([&settings]);
        // SIGTERM waits for every client to leave.
        spec.signal = "QUIT";
        spec.user = unprivileged().map_err(io_failed)?;
        let process = Process::spawn(&spec).map_err(ServiceError::process(NAME))?;
        let mut pooler = Self { directory, url: server.port(port), spec, process };
        pooler.answers().await?;
        Ok(pooler)
    }

    /// What goes into `DATABASE_URL`.
    #[must_use]
    pub fn url(&self) -> String {
        self.url.to_url_lossy().to_string()
    }

    /// The same for another user.
    #[must_use]
    pub fn url_of(&self, user: &str) -> String {
        self.url.clone().username(user).to_url_lossy().to_string()
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self) -> Result<(), ServiceError> {
        self.process.kill().map_err(ServiceError::process(NAME))
    }

    /// Starts it again on the same port.
    ///
    /// # Errors
    /// When it does not start; the end of its log is shown.
    pub async fn start_again(&mut self) -> Result<(), ServiceError> {
        self.kill()?;
        self.process = Process::spawn(&self.spec).map_err(ServiceError::process(NAME))?;
        self.answers().await
    }

    async fn answers(&mut self) -> Result<(), ServiceError> {
        let url = &self.url;
        self.process
            .wait_until("ready", START, async || match PgConnection::connect_with(url).await {
                Ok(connection) => connection.close().await.is_ok(),
                Err(_) => false,
            })
            .await
            .map_err(ServiceError::process(NAME))
    }
}

impl Drop for PgBouncer {
    fn drop(&mut self) {
        // A failure leaves it to the guard.
        let _ = self.process.kill();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// What docs/relay.md asks for, and few connections, so that clients have to share them.
fn ini(server: &PgConnectOptions, port: u16, users: &Path) -> String {
    format!(
        "[databases]\n\
         * = host={} port={}\n\
         [pgbouncer]\n\
         listen_addr = 127.0.0.1\n\
         listen_port = {port}\n\
         unix_socket_dir =\n\
         auth_type = trust\n\
         auth_file = {}\n\
         pool_mode = transaction\n\
         default_pool_size = 4\n\
         max_prepared_statements = 100\n\
         ignore_startup_parameters = extra_float_digits\n",
        server.get_host(),
        server.get_port(),
        users.display(),
    )
}
