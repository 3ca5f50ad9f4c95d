//! `relay completions` and `relay man`: made from the declaration of the command line.

use std::path::Path;

use clap::CommandFactory;

use super::{CommandError, Ended, print};
use crate::config::Cli;

pub(super) fn completions(shell: clap_complete::Shell) -> Result<Ended, CommandError> {
    print(&script(shell))?;
    Ok(Ended::Done)
}

fn script(shell: clap_complete::Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "relay", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

pub(super) fn pages(folder: &Path) -> Result<Ended, CommandError> {
    clap_mangen::generate_to(Cli::command(), folder)
        .map_err(|error| CommandError::Failed(format!("{}: {error}", folder.display())))?;
    Ok(Ended::Done)
}

#[cfg(test)]
mod tests {
    use clap::Command;
    use clap_complete::Shell;

    use super::*;

    /// Every command with the words that lead to it, groups too.
    fn commands() -> Vec<(Vec<String>, Command)> {
        fn walk(path: &[String], command: &Command, all: &mut Vec<(Vec<String>, Command)>) {
            all.push((path.to_vec(), command.clone()));
            for below in command.get_subcommands() {
                let path = [path, &[below.get_name().to_owned()]].concat();
                walk(&path, below, all);
            }
        }
        let mut all = Vec::new();
        walk(&["relay".to_owned()], &Cli::command(), &mut all);
        assert!(all.len() > 20, "{} commands", all.len());
        all
    }

    #[test]
    fn the_help_of_every_command_has_an_example_of_it() {
        Cli::command().debug_assert();
        for (path, command) in commands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = help.split_once("Example:\n").map(|(_, example)| example).unwrap_or_default();
            let typed = path.join(" ");
            assert!(
                example.lines().any(|line| line.contains(&typed)),
                "`{typed} --help` has no example: {help:?}"
            );
        }
    }

    #[test]
    fn the_completions_of_every_shell_name_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for (path, _) in commands() {
                let name = path.last().expect("a name");
                assert!(script.contains(name.as_str()), "{shell} does not know {}", path.join(" "));
            }
        }
    }

    #[test]
    fn every_command_has_a_man_page_that_names_it() {
        let folder = std::env::temp_dir().join(format!("relay-man-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).expect("a folder");
        pages(&folder).expect("pages");
        for (path, _) in commands() {
            let page = std::fs::read_to_string(folder.join(format!("{}.1", path.join("-"))));
            let page = page.unwrap_or_else(|error| panic!("{}: {error}", path.join(" ")));
            // A dash is escaped in a page.
            let name = path.join("-").replace('-', "\\-");
            assert!(page.contains(".TH") && page.contains(&name), "{name}: {page}");
        }
        std::fs::remove_dir_all(&folder).expect("removed");
    }
}
