//! `relay completions` and `relay man`: made from the declaration of the command line.

use std::path::Path;

use clap::CommandFactory;

use super::{CommandError, Ended, print};
use crate::config::Cli;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<Ended, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "relay", &mut script);
    print(&String::from_utf8_lossy(&script))?;
    Ok(Ended::Done)
}

pub(super) fn pages(folder: &Path) -> Result<Ended, CommandError> {
    clap_mangen::generate_to(Cli::command(), folder)
        .map_err(|error| CommandError::Failed(format!("{}: {error}", folder.display())))?;
    Ok(Ended::Done)
}
