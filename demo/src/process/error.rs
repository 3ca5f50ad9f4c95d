//! What can go wrong with a child process, told with the end of its log.

use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why a process is not there or did not do what was asked of it.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The program's file is not where it was looked for.
    #[error("{program} is not built ({} is missing): `make test` and `make demo` build it", path.display())]
    Missing {
        /// Its name.
        program: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// The operating system refused to start it.
    #[error("{program} cannot be started")]
    Start {
        /// Its name.
        program: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
    /// It ended though it should run on, or ended with a failure.
    #[error("{program} ended ({status}); the end of its log:\n{log}")]
    Ended {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last lines that it wrote.
        log: String,
    },
    /// It did not get there in time.
    #[error("{program} is not {state} after {} s; the end of its log:\n{log}", waited.as_secs())]
    Late {
        /// Its name.
        program: String,
        /// What was waited for.
        state: &'static str,
        /// For how long.
        waited: Duration,
        /// The last lines that it wrote.
        log: String,
    },
    /// A signal or a look at the process failed.
    #[error("{program} cannot be controlled")]
    Control {
        /// Its name.
        program: String,
        /// The operating system's reason.
        #[source]
        source: io::Error,
    },
}
