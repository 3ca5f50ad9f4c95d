//! Logging: one line per failure, readable or JSON.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use crate::config::{LogArgs, LogFormat};

/// Starts logging to standard error.
///
/// # Errors
/// When the filter cannot be read.
pub fn init(args: &LogArgs) -> Result<(), ParseError> {
    // The client library repeats itself at every attempt to connect; the stages say it once.
    let filter = EnvFilter::try_new(format!("librdkafka=off,rdkafka=off,{}", args.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
