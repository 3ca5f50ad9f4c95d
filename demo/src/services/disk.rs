//! A small disk of its own for a server, to be filled while the server runs.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::guard;

/// What is written at a time, in bytes: large first, then whatever still fits.
const BLOCKS: [usize; 3] = [1 << 20, 4096, 1];

/// A file system of fixed size in memory (tmpfs); dropping it unmounts it.
#[derive(Debug)]
pub struct Disk {
    path: PathBuf,
}

impl Disk {
    /// Mounts one. None where this process may not mount: it is not root, or in a container without
    /// that right.
    ///
    /// # Errors
    /// When there is no place for it.
    pub fn mount(megabytes: u32) -> io::Result<Option<Self>> {
        let path = guard::scratch("disk")?;
        // Told before it is mounted: a mount that nobody knows of is never there.
        guard::unmount_at_end(&path)?;
        let size = format!("size={megabytes}m,mode=0755");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &size, "orders-demo"])
            .arg(&path)
            .stderr(Stdio::null())
            .status();
        Ok(mounted.is_ok_and(|status| status.success()).then_some(Self { path }))
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes until nothing more fits.
    ///
    /// # Errors
    /// When writing fails for another reason than a full disk.
    pub fn fill(&self) -> io::Result<()> {
        let mut ballast = File::options().create(true).append(true).open(self.ballast())?;
        for block in BLOCKS {
            let bytes = vec![0; block];
            let full = loop {
                if let Err(error) = ballast.write_all(&bytes) {
                    break error;
                }
            };
            if full.kind() != io::ErrorKind::StorageFull {
                return Err(full);
            }
        }
        Ok(())
    }

    /// Gives the room back that [`Disk::fill`] took.
    ///
    /// # Errors
    /// When the disk has not been filled.
    pub fn relieve(&self) -> io::Result<()> {
        fs::remove_file(self.ballast())
    }

    fn ballast(&self) -> PathBuf {
        self.path.join("ballast")
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // A failure leaves it to the guard.
        let _ = Command::new("umount").arg("-l").arg(&self.path).stderr(Stdio::null()).status();
    }
}
