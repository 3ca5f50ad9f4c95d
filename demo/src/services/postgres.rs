//! A PostgreSQL server of our own.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::PgConnection;

use super::distribution::Distribution;
use super::{Disk, Extras, STARTS, ServiceError, free_port, unprivileged};
use crate::guard;
use crate::process::{Process, Spec};

const NAME: &str = "PostgreSQL";
const START: Duration = Duration::from_secs(30);
const STOP: Duration = Duration::from_secs(20);

/// A running PostgreSQL; dropping it ends it and removes its data.
#[derive(Debug)]
pub struct Postgres {
    directory: PathBuf,
    data: PathBuf,
    port: u16,
    spec: Spec,
    process: Process,
}

impl Postgres {
    /// Makes a new cluster and starts it.
    ///
    /// # Errors
    /// When it cannot be fetched or does not start; the end of its log is shown.
    pub async fn start() -> Result<Self, ServiceError> {
        Self::start_with(Extras::default()).await
    }

    /// The same with more settings, or on a disk of its own.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub async fn start_with(extras: Extras<'_>) -> Result<Self, ServiceError> {
        let io_failed = |source| ServiceError::Io { service: NAME, source };
        let bin = Distribution::postgres()?.unpacked().await?.join("bin");
        let user = unprivileged().map_err(io_failed)?;
        let directory = guard::scratch("postgres").map_err(io_failed)?;
        if user.is_some() {
            chown(&directory, user, user).map_err(io_failed)?;
        }
        let place = extras.disk.map_or(directory.as_path(), Disk::path);
        if user.is_some() {
            chown(place, user, user).map_err(io_failed)?;
        }
        let data = place.join("data");
        let mut initdb = Spec::new("initdb", bin.join("initdb"), directory.join("initdb.log"))
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .args([&data]);
        initdb.user = user;
        Process::run(&initdb, START).await.map_err(ServiceError::process(NAME))?;

        let mut spec =
            Spec::new("postgres", bin.join("postgres"), directory.join("log")).args(["-D"]).args([&data]);
        // SIGTERM waits for every client to leave.
        spec.signal = "INT";
        spec.user = user;
        // No socket file: the temporary directory's path may be too long for one. Shared memory in
        // files of the data directory: nothing is left behind after SIGKILL.
        for setting in [
            "listen_addresses=127.0.0.1",
            "unix_socket_directories=",
            "max_connections=300",
            "max_prepared_transactions=16",
            "dynamic_shared_memory_type=mmap",
        ] {
            spec = spec.args(["-c", setting]);
        }
        for (name, value) in extras.settings {
            spec = spec.args(["-c", &format!("{name}={value}")]);
        }
        let set = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        spec.env = extras.environment.iter().map(set).collect();
        let mut tries = 0;
        loop {
            tries += 1;
            let port = free_port().map_err(io_failed)?;
            let spec = spec.clone().args(["-p", &port.to_string()]);
            let process = Process::spawn(&spec).map_err(ServiceError::process(NAME))?;
            let mut server = Self { directory: directory.clone(), data: data.clone(), port, spec, process };
            match server.answers().await {
                Ok(()) => return Ok(server),
                Err(error) if tries == STARTS => return Err(error),
                // Only the data must outlive this try.
                Err(_) => server.directory = PathBuf::new(),
            }
        }
    }

    /// A URL to the database `postgres`, as a superuser.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Shuts down ("fast": clients are disconnected) and waits until it is gone.
    ///
    /// # Errors
    /// When it does not end in time.
    pub async fn stop(&mut self) -> Result<(), ServiceError> {
        self.process.terminate(STOP).await.map(drop).map_err(ServiceError::process(NAME))
    }

    /// SIGKILL.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self) -> Result<(), ServiceError> {
        self.process.kill().map_err(ServiceError::process(NAME))
    }

    /// Stops it, keeps a copy of its data for [`Postgres::go_back`], and starts it again.
    ///
    /// # Errors
    /// When it does not end or start in time, or cannot be copied.
    pub async fn keep(&mut self) -> Result<(), ServiceError> {
        self.stop().await?;
        self.copy(&self.data, &self.kept()).await?;
        self.start_again().await
    }

    /// Loses everything since [`Postgres::keep`], as a failover to a replica does that was behind: SIGKILL,
    /// and another start on what was kept.
    ///
    /// # Errors
    /// When it does not start, or nothing was kept.
    pub async fn go_back(&mut self) -> Result<(), ServiceError> {
        self.kill()?;
        let lost = self.directory.join("lost");
        fs::rename(&self.data, &lost).map_err(ServiceError::io(NAME))?;
        self.copy(&self.kept(), &self.data).await?;
        self.start_again().await
    }

    fn kept(&self) -> PathBuf {
        self.directory.join("kept")
    }

    async fn copy(&self, from: &Path, to: &Path) -> Result<(), ServiceError> {
        let copy = Spec::new("cp", "cp", self.directory.join("cp.log")).args(["-a"]).args([from, to]);
        Process::run(&copy, START).await.map_err(ServiceError::process(NAME))
    }

    /// Starts it again on the same data and port.
    ///
    /// # Errors
    /// When it does not start; the end of its log is shown.
    pub async fn start_again(&mut self) -> Result<(), ServiceError> {
        self.kill()?;
        let mut tries = 0;
        loop {
            tries += 1;
            self.process = Process::spawn(&self.spec).map_err(ServiceError::process(NAME))?;
            match self.answers().await {
                // After a SIGKILL its backends hold the shared memory until they notice.
                Err(_) if tries < 20 => tokio::time::sleep(Duration::from_millis(250)).await,
                result => return result,
            }
        }
    }

    async fn answers(&mut self) -> Result<(), ServiceError> {
        let url = self.url();
        self.process
            .wait_until("ready", START, async || match PgConnection::connect(&url).await {
                Ok(connection) => connection.close().await.is_ok(),
                Err(_) => false,
            })
            .await
            .map_err(ServiceError::process(NAME))
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGKILL of the postmaster alone would leave its shared memory segment behind.
        let _ = self.process.end_now(Duration::from_secs(3));
        let _ = fs::remove_dir_all(&self.directory);
    }
}
