//! Child processes: started under the guard, with a log, ended by signal and waited for with a
//! deadline. Knows how to end a process and nothing of what it does.

mod error;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

pub use self::error::ProcessError;
use crate::guard;

/// How often a state is looked at while waiting for it.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// What to start and how to end it.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    pub(crate) program: String,
    pub(crate) file: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) unset: &'static [&'static str],
    /// Whom to run it as, user and group, when this process is root.
    pub(crate) user: Option<u32>,
    /// The signal that asks for a graceful end.
    pub(crate) signal: &'static str,
    /// Where stdout and stderr go; appended to, so that a restart keeps what was there.
    pub(crate) log: PathBuf,
}

impl Spec {
    pub(crate) fn new(program: &str, file: impl Into<PathBuf>, log: PathBuf) -> Self {
        Self {
            program: program.to_owned(),
            file: file.into(),
            args: Vec::new(),
            env: Vec::new(),
            unset: &[],
            user: None,
            signal: "TERM",
            log,
        }
    }

    pub(crate) fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }
}

/// A running child; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    program: String,
    log: PathBuf,
    signal: &'static str,
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts the process in a process group of its own, so that a ctrl-c reaches only us.
    pub(crate) fn spawn(spec: &Spec) -> Result<Self, ProcessError> {
        let failed = |source| ProcessError::Start { program: spec.program.clone(), source };
        let log = File::options().create(true).append(true).open(&spec.log).map_err(failed)?;
        // The shell becomes the program only when it is told to, after the guard knows its
        // number: killed in between, we leave a shell that reads the end of its input and ends.
        let mut command = Command::new("sh");
        command
            .args(["-c", "read -r go && exec \"$@\" </dev/null", "sh"])
            .arg(&spec.file)
            .args(&spec.args)
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            .process_group(0);
        for name in spec.unset.iter().filter(|name| spec.env.iter().all(|(set, _)| set != *name)) {
            command.env_remove(name);
        }
        if let Some(id) = spec.user {
            command.gid(id).uid(id).current_dir("/");
        }
        let child = command.spawn().map_err(failed)?;
        let mut process = Self {
            program: spec.program.clone(),
            log: spec.log.clone(),
            signal: spec.signal,
            child,
            status: None,
        };
        guard::watch(process.id(), spec.signal).map_err(failed)?;
        let mut start = process.child.stdin.take().ok_or_else(|| failed(io::ErrorKind::BrokenPipe.into()))?;
        start.write_all(b"\n").map_err(failed)?;
        Ok(process)
    }

    /// Runs a process to its end.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] when its exit code is not 0, [`ProcessError::Late`] past the limit.
    pub(crate) async fn run(spec: &Spec, limit: Duration) -> Result<(), ProcessError> {
        let mut process = Self::spawn(spec)?;
        let status = process.wait(limit).await?;
        if status.success() { Ok(()) } else { Err(process.ended(status)) }
    }

    /// The process number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file that takes stdout and stderr.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    /// How it ended; `None` while it runs.
    ///
    /// # Errors
    /// When the operating system does not say.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>, ProcessError> {
        if self.status.is_none() {
            self.status = self.child.try_wait().map_err(|e| self.control(e))?;
            if self.status.is_some() {
                guard::forget(self.id());
            }
        }
        Ok(self.status)
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] with the end of the log.
    pub fn check_running(&mut self) -> Result<(), ProcessError> {
        self.exited()?.map_or(Ok(()), |status| Err(self.ended(status)))
    }

    /// SIGKILL, and waits until it is gone.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn kill(&mut self) -> Result<(), ProcessError> {
        if self.exited()?.is_none() {
            self.child.kill().map_err(|e| self.control(e))?;
            self.status = Some(self.child.wait().map_err(|e| self.control(e))?);
            guard::forget(self.id());
        }
        Ok(())
    }

    /// Asks for a graceful end (SIGTERM, or what the program takes for it) and waits for it.
    ///
    /// # Errors
    /// [`ProcessError::Late`] when it still runs at the limit.
    pub async fn terminate(&mut self, limit: Duration) -> Result<ExitStatus, ProcessError> {
        self.signal(self.signal)?;
        self.wait(limit).await
    }

    /// Sends a signal by its name (`TERM`, `STOP`, `CONT`) if it still runs.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn signal(&mut self, signal: &str) -> Result<(), ProcessError> {
        if self.exited()?.is_none() {
            guard::signal_group(self.id(), signal).map_err(|e| self.control(e))?;
        }
        Ok(())
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// [`ProcessError::Late`] when it still runs at the limit.
    pub async fn wait(&mut self, limit: Duration) -> Result<ExitStatus, ProcessError> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.exited()? {
                return Ok(status);
            }
            if start.elapsed() > limit {
                return Err(self.late("ended", limit));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Polls `probe` until it says yes.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] as soon as the process ends, [`ProcessError::Late`] past the limit.
    pub async fn wait_until(
        &mut self,
        state: &'static str,
        limit: Duration,
        mut probe: impl AsyncFnMut() -> bool,
    ) -> Result<(), ProcessError> {
        let start = Instant::now();
        loop {
            self.check_running()?;
            if probe().await {
                return Ok(());
            }
            if start.elapsed() > limit {
                return Err(self.late(state, limit));
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Polls `URL/readyz` until it answers 200.
    ///
    /// # Errors
    /// [`ProcessError::Ended`] as soon as the process ends, [`ProcessError::Late`] past the limit.
    pub async fn wait_ready(&mut self, url: &str, limit: Duration) -> Result<(), ProcessError> {
        let client = reqwest::Client::new();
        let url = format!("{url}/readyz");
        self.wait_until("ready", limit, async || {
            let request = client.get(&url).timeout(Duration::from_secs(2));
            request.send().await.is_ok_and(|answer| answer.status().is_success())
        })
        .await
    }

    /// Asks for a graceful end, waits for it without a runtime, then kills: for `Drop`.
    pub(crate) fn end_now(&mut self, limit: Duration) -> Result<(), ProcessError> {
        self.signal(self.signal)?;
        let start = Instant::now();
        while self.exited()?.is_none() && start.elapsed() < limit {
            std::thread::sleep(POLL);
        }
        self.kill()
    }

    fn ended(&self, status: ExitStatus) -> ProcessError {
        ProcessError::Ended { program: self.program.clone(), status, log: self.log_tail() }
    }

    fn late(&self, state: &'static str, waited: Duration) -> ProcessError {
        ProcessError::Late { program: self.program.clone(), state, waited, log: self.log_tail() }
    }

    fn control(&self, source: io::Error) -> ProcessError {
        ProcessError::Control { program: self.program.clone(), source }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A failure leaves it to the guard.
        let _ = self.kill();
    }
}

/// The last 20 lines of a file; what cannot be read is not there.
pub(crate) fn tail(log: &Path) -> String {
    let text =
        std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
