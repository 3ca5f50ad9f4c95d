//! How every bench ends.

use std::error::Error;
use std::process::ExitCode;

pub(crate) type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Ends what the bench has started, and says why it failed if it did.
pub(crate) fn ended(outcome: Outcome<()>) -> ExitCode {
    demo::guard::finish();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut cause: Option<&dyn Error> = Some(error.as_ref());
            while let Some(error) = cause {
                eprintln!("error: {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}
