//! Nothing that the demo starts outlives it.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Starts `demo services` below a temporary directory of its own and waits until it is up.
fn services(temporary: &Path) -> Child {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .arg("services")
        .env("TMPDIR", temporary)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert_eq!(lines.take(2).filter(|line| line.starts_with("export ")).count(), 2, "it is up");
    demo
}

/// The command line of every process that names the directory: the servers of the run.
fn processes(directory: &Path) -> Vec<String> {
    let all: Vec<String> = match std::fs::read_dir("/proc") {
        Ok(entries) => entries
            .filter_map(|entry| std::fs::read(entry.ok()?.path().join("cmdline")).ok())
            .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
            .collect(),
        Err(_) => {
            let listing = Command::new("ps").args(["-A", "-o", "args="]).output().unwrap();
            String::from_utf8_lossy(&listing.stdout).lines().map(str::to_owned).collect()
        }
    };
    all.into_iter().filter(|line| line.contains(directory.to_str().unwrap())).collect()
}

fn temporary() -> (tempfile::TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    // PostgreSQL runs as another user than root and has to get through.
    let directory =
        tempfile::Builder::new().permissions(std::fs::Permissions::from_mode(0o755)).tempdir().unwrap();
    let path = directory.path().to_owned();
    (directory, path)
}

fn poll(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < limit, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_killed_demo_leaves_no_process_and_no_directory() {
    let (_owner, temporary) = temporary();
    let mut demo = services(&temporary);
    assert!(processes(&temporary).len() >= 2, "PostgreSQL and Kafka run");

    demo.kill().unwrap();
    demo.wait().unwrap();

    poll("its processes are gone", Duration::from_secs(10), || processes(&temporary).is_empty());
    poll("its directory is gone", Duration::from_secs(10), || {
        std::fs::read_dir(&temporary).unwrap().next().is_none()
    });
}

#[test]
fn an_interrupted_demo_has_cleaned_up_when_it_ends() {
    let (_owner, temporary) = temporary();
    let mut demo = services(&temporary);

    Command::new("sh").args(["-c", &format!("kill -INT {}", demo.id())]).status().unwrap();
    assert!(demo.wait().unwrap().success());

    assert_eq!(processes(&temporary), Vec::<String>::new());
    assert!(std::fs::read_dir(&temporary).unwrap().next().is_none(), "its directory is gone");
}

#[test]
fn the_command_ends_with_the_services_and_its_exit_code_is_theirs() {
    let run = |script| {
        Command::new(env!("CARGO_BIN_EXE_demo"))
            .args(["services", "--", "sh", "-c", script])
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(run("test -n \"$TEST_DATABASE_URL\" && test -n \"$TEST_KAFKA_BROKERS\""), Some(0));
    assert_eq!(run("exit 7"), Some(7));
}
