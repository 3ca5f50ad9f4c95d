//! Sees to it that nothing this process starts outlives it, not even after SIGKILL.
//!
//! A shell in a process group of its own reads from a pipe whose write end only this process
//! holds (std opens it close-on-exec). However this process ends, the pipe closes; the shell then
//! ends what is still running and removes the run's directory. The guard never decides anything
//! while the pipe is open: stopping in order is the work of the owners of the processes.

use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use uuid::Uuid;

/// `child PID SIGNAL`, `gone PID`, `mount PATH`, `dir PATH`, `keep`, one a line; the end of the file is the end
/// of the guarded process. Children lead process groups of their own, so their children go too.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
children=
mounts=
dirs=
newline='
'
set -f
while IFS= read -r line; do
  case $line in
    'child '*) child=${line#child }; children="$children ${child% *}:${child##* }" ;;
    'gone '*)
      left=
      for child in $children; do
        [ "${child%%:*}" = "${line#gone }" ] || left="$left $child"
      done
      children=$left ;;
    'mount '*) mounts="$mounts${line#mount }$newline" ;;
    'dir '*) dirs="$dirs${line#dir }$newline" ;;
    keep) dirs= ;;
  esac
done
for child in $children; do kill -s "${child#*:}" -- "-${child%%:*}" 2>/dev/null; done
wait=0
while [ "$wait" -lt 30 ]; do
  alive=
  for child in $children; do kill -0 -- "-${child%%:*}" 2>/dev/null && alive=1; done
  [ -n "$alive" ] || break
  sleep 0.1
  wait=$((wait + 1))
done
for child in $children; do kill -s KILL -- "-${child%%:*}" 2>/dev/null; done
IFS=$newline
for mount in $mounts; do umount -l -- "$mount" 2>/dev/null; done
for dir in $dirs; do rm -rf -- "$dir"; done
"#;

static GUARD: OnceLock<Mutex<Option<Guard>>> = OnceLock::new();
static SCRATCH: AtomicU32 = AtomicU32::new(1);

struct Guard {
    shell: Child,
    pipe: ChildStdin,
    directory: PathBuf,
}

impl Guard {
    fn start() -> io::Result<Self> {
        let mut shell = Command::new("sh")
            .args(["-c", SCRIPT, "orders-demo-guard"])
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let mut pipe = shell.stdin.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let directory = std::env::temp_dir().join(format!("orders-demo-{}", Uuid::now_v7().simple()));
        // Told before it is made: a directory that nobody knows of is never there.
        writeln!(pipe, "dir {}", directory.display())?;
        create_traversable(&directory)?;
        Ok(Self { shell, pipe, directory })
    }
}

fn with<T>(work: impl FnOnce(&mut Guard) -> io::Result<T>) -> io::Result<T> {
    let mut guard = GUARD.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    if guard.is_none() {
        *guard = Some(Guard::start()?);
    }
    guard.as_mut().map_or_else(|| Err(io::ErrorKind::BrokenPipe.into()), work)
}

/// Has the process group that `pid` leads ended with this process, by `signal` and, after three
/// seconds, by SIGKILL.
///
/// # Errors
/// When the guard cannot be told.
pub fn watch(pid: u32, signal: &str) -> io::Result<()> {
    with(|guard| writeln!(guard.pipe, "child {pid} {signal}"))
}

/// The process has ended: its number may soon be another's.
pub fn forget(pid: u32) {
    // Without the guard nothing is left to be told.
    let _ = with(|guard| writeln!(guard.pipe, "gone {pid}"));
}

/// Sends a signal, by its name without `SIG`, to the process group that `leader` leads.
///
/// # Errors
/// When there is no shell.
pub fn signal_group(leader: u32, signal: &str) -> io::Result<()> {
    // The shell's own `kill`: the program of that name is not on every machine.
    let group = format!("-{leader}");
    Command::new("sh").args(["-c", "kill -s \"$1\" -- \"$2\"", "sh", signal, &group]).status().map(drop)
}

/// Has what is mounted at `directory` unmounted when this process ends.
pub(crate) fn unmount_at_end(directory: &Path) -> io::Result<()> {
    with(|guard| writeln!(guard.pipe, "mount {}", directory.display()))
}

/// Has `directory` removed when this process ends.
pub(crate) fn remove_at_end(directory: &Path) -> io::Result<()> {
    with(|guard| writeln!(guard.pipe, "dir {}", directory.display()))
}

/// The directory of this run, below the temporary directory; removed when this process ends.
///
/// # Errors
/// When the guard cannot be started or the directory cannot be made.
pub fn directory() -> io::Result<PathBuf> {
    with(|guard| Ok(guard.directory.clone()))
}

/// A new directory in the directory of the run.
pub(crate) fn scratch(name: &str) -> io::Result<PathBuf> {
    let number = SCRATCH.fetch_add(1, Ordering::Relaxed);
    let directory = directory()?.join(format!("{name}-{number}"));
    create_traversable(&directory)?;
    Ok(directory)
}

/// Leaves the directory of the run in place when this process ends.
///
/// # Errors
/// When the guard cannot be told.
pub fn keep() -> io::Result<()> {
    with(|guard| writeln!(guard.pipe, "keep"))
}

/// Ends the guard and waits until it has ended what is still running and removed the directory.
pub fn finish() {
    let Some(guard) = GUARD.get() else { return };
    let guard = guard.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(Guard { mut shell, pipe, .. }) = guard {
        drop(pipe);
        let _ = shell.wait();
    }
}

/// PostgreSQL runs as another user than root and must be able to reach its files.
pub(crate) fn create_traversable(directory: &Path) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
}

/// Whether this process runs as root: what it creates belongs to it.
pub(crate) fn is_root() -> io::Result<bool> {
    Ok(std::fs::metadata(directory()?)?.uid() == 0)
}
