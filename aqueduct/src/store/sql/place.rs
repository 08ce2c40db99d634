//! Whether a file is still where it was opened: on Unix one that was deleted or replaced can be written to as before, and
//! all of that is gone when it is closed.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wal;
use crate::error::StoreError;

/// The place of a file and of its write-ahead log.
#[derive(Clone, Debug)]
pub(super) struct Place(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    wal: PathBuf,
    /// The file's identity when it was opened; none if it was gone already.
    identity: Option<u128>,
    wal_bytes: AtomicU64,
}

impl Place {
    /// The place of a file that has just been opened.
    pub(super) fn of(path: &Path) -> Self {
        let identity = std::fs::metadata(path).ok().map(|found| identity(&found));
        Self(Arc::new(Inner { path: path.to_owned(), wal: wal::path(path), identity, wal_bytes: AtomicU64::new(0) }))
    }

    /// Says what has become of the file, if it is not there any more.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let Inner { path, identity: expected, .. } = &*self.0;
        match std::fs::metadata(path) {
            Ok(found) if Some(identity(&found)) == *expected => Ok(()),
            Ok(_) => Err(gone(path, "another file has taken its place: put the right one there, and start again")),
            Err(error) => Err(gone(path, &format!("it is not there any more ({error}): put it back"))),
        }
    }

    /// The same for a file that has just been committed to, which has a write-ahead log.
    pub(super) fn check_committed(&self) -> Result<(), StoreError> {
        self.check()?;
        self.measure_wal().map(drop).map_err(|error| {
            let what =
                format!("it is not there any more ({error}), and commits are lost with it: stop what uses the file");
            gone(&self.0.wal, &what)
        })
    }

    /// Looks how long the write-ahead log is.
    pub(super) fn look_at_wal(&self) -> u64 {
        self.measure_wal().unwrap_or(0)
    }

    fn measure_wal(&self) -> std::io::Result<u64> {
        let bytes = std::fs::metadata(&self.0.wal)?.len();
        self.0.wal_bytes.store(bytes, Ordering::Relaxed);
        Ok(bytes)
    }

    /// How long the write-ahead log was when it was looked at last.
    pub(super) fn wal_bytes(&self) -> u64 {
        self.0.wal_bytes.load(Ordering::Relaxed)
    }
}

fn gone(path: &Path, what: &str) -> StoreError {
    StoreError::Unavailable(format!("{}: {what}", path.display()).into())
}

#[cfg(unix)]
fn identity(found: &std::fs::Metadata) -> u128 {
    use std::os::unix::fs::MetadataExt;
    u128::from(found.dev()) << 64 | u128::from(found.ino())
}

/// Elsewhere a file that is open can be neither deleted nor replaced.
#[cfg(not(unix))]
fn identity(_: &std::fs::Metadata) -> u128 {
    0
}
