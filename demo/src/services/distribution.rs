//! The servers' files: fetched once per user with Maven, kept in a cache, never changed there.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use super::ServiceError;
use crate::guard;
use crate::process::{Process, ProcessError, Spec};

/// Pins the versions; compiled in, so that the program needs no source tree.
const POM: &str = include_str!("../../services/pom.xml");
/// A slow line and Maven's own plugins included.
const FETCH: Duration = Duration::from_secs(600);

/// One server's files, by name and version.
pub(super) struct Distribution {
    /// `postgres` or `kafka`: names the profile of the pom.
    profile: &'static str,
    name: String,
    properties: Vec<String>,
}

impl Distribution {
    pub(super) fn postgres() -> Result<Self, ServiceError> {
        use std::env::consts::{ARCH, OS};
        let platform = match (OS, ARCH) {
            ("linux", "x86_64") => "linux-amd64",
            ("linux", "aarch64") => "linux-arm64v8",
            ("macos", "x86_64") => "darwin-amd64",
            ("macos", "aarch64") => "darwin-arm64v8",
            _ => return Err(ServiceError::Platform(format!("{OS} on {ARCH}"))),
        };
        Ok(Self {
            profile: "postgres",
            name: format!("postgres-{}-{platform}", property("postgres.version")),
            properties: vec![format!("-Dpostgres.platform={platform}")],
        })
    }

    pub(super) fn kafka() -> Self {
        Self {
            profile: "kafka",
            name: format!("kafka-{}", property("kafka.version")),
            properties: Vec::new(),
        }
    }

    /// The directory with the files, fetched when they are not there yet.
    pub(super) async fn unpacked(&self) -> Result<PathBuf, ServiceError> {
        let failed = ServiceError::io(self.profile);
        let cache = cache().map_err(failed)?;
        let place = cache.join(&self.name);
        if !place.is_dir() {
            let _alone = self.lock(&cache).await?;
            // Another process may have fetched it while we waited.
            if !place.is_dir() {
                self.fetch(&cache, &place).await?;
            }
        }
        Ok(place)
    }

    /// Maven's own repository does not bear two writers, so one process fetches at a time.
    async fn lock(&self, cache: &Path) -> Result<File, ServiceError> {
        let path = cache.join(".lock");
        let locked = tokio::task::spawn_blocking(move || {
            let file = File::options().create(true).truncate(false).write(true).open(path)?;
            file.lock().map(|()| file)
        });
        locked.await.map_err(io::Error::other).flatten().map_err(ServiceError::io(self.profile))
    }

    /// Unpacks under another name and renames: a half unpacked server is never taken for one.
    async fn fetch(&self, cache: &Path, place: &Path) -> Result<(), ServiceError> {
        let io_failed = |source| ServiceError::Io { service: self.profile, source };
        let failed = |source| ServiceError::Fetch { distribution: self.name.clone(), source };
        eprintln!("fetching {} into {} (once)", self.name, cache.display());
        let scratch = guard::scratch("fetch").map_err(io_failed)?;
        let partial = cache.join(format!(".{}-{}", self.name, std::process::id()));
        guard::remove_at_end(&partial).map_err(io_failed)?;
        guard::create_traversable(&partial).map_err(io_failed)?;
        let pom = scratch.join("pom.xml");
        fs::write(&pom, POM).map_err(io_failed)?;

        let (goal, output) = match self.profile {
            "postgres" => ("dependency:unpack-dependencies", &scratch),
            _ => ("dependency:copy-dependencies", &partial),
        };
        let mvn = Spec::new("mvn", "mvn", scratch.join("log"))
            .args(["-B", "-q", "-Dstyle.color=never", "-P", self.profile, goal, "-f"])
            .args([&pom])
            .args(&self.properties)
            .args([format!("-DoutputDirectory={}", output.display())]);
        Process::run(&mvn, FETCH).await.map_err(failed)?;
        if self.profile == "postgres" {
            unpack_archive(&scratch, &partial).await.map_err(failed)?;
        }
        fs::rename(&partial, place).map_err(io_failed)?;
        fs::remove_dir_all(&scratch).map_err(io_failed)
    }
}

/// The jar holds one xz-compressed tar.
async fn unpack_archive(from: &Path, to: &Path) -> Result<(), ProcessError> {
    let missing = |source| ProcessError::Start { program: "tar".to_owned(), source };
    let archive = fs::read_dir(from)
        .map_err(missing)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "txz"))
        .ok_or_else(|| missing(io::Error::new(io::ErrorKind::NotFound, "the jar holds no .txz")))?;
    let tar = Spec::new("tar", "tar", from.join("log")).args(["--no-same-owner", "-xJf"]).args([
        archive.as_path(),
        Path::new("-C"),
        to,
    ]);
    Process::run(&tar, FETCH).await
}

/// The value of a property of the pom.
fn property(name: &str) -> &'static str {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    POM.split_once(&open).and_then(|(_, rest)| rest.split_once(&close)).map_or("unknown", |(value, _)| value)
}

/// Root's cache must be readable for the user that PostgreSQL runs as; root's home is not.
fn cache() -> io::Result<PathBuf> {
    let cache = if guard::is_root()? {
        PathBuf::from("/var/cache/orders-demo")
    } else {
        std::env::home_dir()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "this user has no home directory"))?
            .join(".cache/orders-demo")
    };
    guard::create_traversable(&cache)?;
    Ok(cache)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_named_by_the_pinned_versions() {
        assert_eq!(Distribution::kafka().name, "kafka-4.3.1");
        assert!(Distribution::postgres().expect("a platform").name.starts_with("postgres-18.3.0-"));
    }
}
