//! What the operating system says of a process.

/// Resident memory in megabytes.
pub(crate) async fn resident(pid: u32) -> Option<f64> {
    let output =
        tokio::process::Command::new("ps").args(["-o", "rss=", "-p", &pid.to_string()]).output().await;
    let kilobytes: f64 = String::from_utf8(output.ok()?.stdout).ok()?.trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}
