//! Processor time of a process.

use std::time::Duration;

/// Of all threads so far, in user and kernel mode, to 10 ms. `None` where there is no `/proc`.
pub(crate) fn time(pid: u32) -> Option<Duration> {
    // proc_pid_stat(5): fields 14 and 15, in clock ticks; the second field is a name in brackets.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    // Linux shows 100 ticks a second on every machine that this runs on.
    Some(Duration::from_millis((ticks()? + ticks()?) * 10))
}

/// What was used since `before`.
pub(crate) fn since(pid: u32, before: Option<Duration>) -> Option<Duration> {
    Some(time(pid)?.saturating_sub(before?))
}
