//! Where it is measured: one PostgreSQL for all points, a new database and a new API process for
//! each, so that no point finds the rows, the dirty pages or the memory of another.

use std::path::PathBuf;
use std::time::Duration;

use demo::guard;
use demo::programs::Server;
use demo::services::Postgres;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};

use crate::load::{self, Load, Mode, Seen};
use crate::shared::Outcome;
use crate::shared::process::resident;

/// Before each measurement: statements are prepared, files grow, caches fill.
const WARM_UP: Duration = Duration::from_secs(2);
const READY: Duration = Duration::from_secs(20);

/// A visit to a point.
pub(crate) struct Sample {
    pub(crate) seen: Seen,
    /// Transactions that PostgreSQL committed per order, warm-up and bell included; none where no order
    /// was made.
    pub(crate) commits_per_order: Option<f64>,
    /// The most resident memory of the API that was seen, in megabytes.
    pub(crate) memory: Option<f64>,
}

pub(crate) struct Place {
    // Ends the server when it goes.
    _postgres: Postgres,
    server: PgConnectOptions,
    /// Of the database of the point.
    url: String,
    directory: PathBuf,
}

impl Place {
    pub(crate) async fn start() -> Outcome<Self> {
        let postgres = Postgres::start().await?;
        let server: PgConnectOptions = postgres.url().parse()?;
        let directory = guard::directory()?.join("load");
        std::fs::create_dir_all(&directory)?;
        std::fs::write(directory.join("wrk.lua"), include_str!("wrk.lua"))?;
        let url = format!("{}bench", postgres.url().trim_end_matches("postgres"));
        let place = Self { _postgres: postgres, server, url, directory };
        place.admin(&["create database migrated"]).await?;
        orders::MIGRATOR.run(&mut place.server.clone().database("migrated").connect().await?).await?;
        Ok(place)
    }

    pub(crate) async fn visit(&self, load: &Load, duration: Duration) -> Outcome<Sample> {
        // The checkpoint leaves every point the same way to the next one.
        self.admin(&[
            "drop database if exists bench with (force)",
            "create database bench template migrated",
            "checkpoint",
        ])
        .await?;
        let (seen, memory) = match load {
            Load::Pgbench { script, orders, clients, .. } => {
                let file = self.directory.join("script.sql");
                std::fs::write(&file, script)?;
                let warm_up = self.logs("warm-up")?;
                load::pgbench(&file, &warm_up, &self.url, *orders, *clients, WARM_UP).await?;
                let logs = self.logs("measured")?;
                (load::pgbench(&file, &logs, &self.url, *orders, *clients, duration).await?, None)
            }
            Load::Api { mode, connections } => self.api(*mode, *connections, duration).await?,
        };
        let makes_orders =
            matches!(load, Load::Pgbench { .. } | Load::Api { mode: Mode::New | Mode::Mixed, .. });
        let commits_per_order = if makes_orders { Some(self.commits_per_order().await?) } else { None };
        Ok(Sample { seen, commits_per_order, memory })
    }

    async fn api(&self, mode: Mode, connections: u32, duration: Duration) -> Outcome<(Seen, Option<f64>)> {
        let mut server = Server::orders(&self.url, &[])?;
        server.ready(READY).await?;
        let script = self.directory.join("wrk.lua");
        // What is repeated has to be there before; what is new must not be.
        let (first, tag) = match mode {
            Mode::New | Mode::Health => (mode, "warm-up"),
            Mode::Repeated | Mode::Mixed => (Mode::Repeated, "measured"),
        };
        load::wrk(&script, server.url(), first, connections, tag, WARM_UP).await?;
        let pid = server.process().id();
        let mut memory: Option<f64> = None;
        let measured =
            async { load::wrk(&script, server.url(), mode, connections, "measured", duration).await };
        let watch = async {
            loop {
                tokio::time::sleep(Duration::from_millis(500)).await;
                let now = resident(pid).await;
                memory = now.map(|now| memory.map_or(now, |most| most.max(now))).or(memory);
            }
        };
        let seen = tokio::select! { seen = measured => seen?, () = watch => return Err("never ends".into()) };
        server.terminate().await?;
        Ok((seen, memory))
    }

    async fn commits_per_order(&self) -> Outcome<f64> {
        let mut connection = self.server.clone().database("bench").connect().await?;
        // A session's counts are in when it is gone.
        while sqlx::query_scalar::<_, i64>(
            "select count(*) from pg_stat_activity where datname = 'bench' and pid <> pg_backend_pid()
                and backend_type = 'client backend'",
        )
        .fetch_one(&mut connection)
        .await?
            > 0
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let commits: i64 =
            sqlx::query_scalar("select xact_commit from pg_stat_database where datname = 'bench'")
                .fetch_one(&mut connection)
                .await?;
        let orders: i64 =
            sqlx::query_scalar("select count(*) from orders").fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(commits as f64 / orders as f64)
    }

    /// An empty directory.
    fn logs(&self, name: &str) -> Outcome<PathBuf> {
        let directory = self.directory.join(name);
        if directory.is_dir() {
            std::fs::remove_dir_all(&directory)?;
        }
        std::fs::create_dir(&directory)?;
        Ok(directory)
    }

    async fn admin(&self, statements: &[&'static str]) -> Outcome<()> {
        let mut connection: PgConnection = self.server.connect().await?;
        for statement in statements {
            connection.execute(AssertSqlSafe(*statement)).await?;
        }
        connection.close().await?;
        Ok(())
    }
}
