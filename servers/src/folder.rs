//! Folders: one for each running server, and those with fresh data that servers start from.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};

use crate::account::Account;
use crate::process::read;

/// Changes with how fresh data is made.
const EDITION: u32 = 2;

/// The folder of a running server. It is deleted when dropped, or, if its process died, when another one is made.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    lock_path: PathBuf,
    /// Held for as long as the folder is in use: the system lets go of it however the process ends.
    _lock: File,
}

impl RunFolder {
    pub(crate) fn new(server: &str, account: &Account) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let above = above()?;
        // While this is held, no folder has a lock file that is not locked yet.
        let _alone = lock(&above.join("lock"))?;
        sweep(&above);
        let name = format!("{server}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = above.join(&name);
        let lock_path = above.join(format!("{name}.lock"));
        let held = lock(&lock_path)?;
        let _ = fs::remove_dir_all(&path);
        folder(&path, 0o700)?;
        account.give(&path)?;
        Ok(Self { path, lock_path, _lock: held })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

/// Fresh data for a server into `to`, which must not exist yet. `make` makes it, in a folder that its account owns; that is slow, so
/// it happens once for each version, and afterwards the data is copied.
pub(crate) fn fresh(version: &str, account: &Account, to: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let words: Vec<_> = version.split(|c: char| !c.is_alphanumeric() && c != '.').filter(|w| !w.is_empty()).collect();
    let name = format!("{}-{}-{EDITION}", words.join("-"), account.name());
    let cache = cache();
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let template = cache.join(&name);
    let alone = lock(&cache.join(format!("{name}.lock")))?;
    if !template.exists() {
        let run = RunFolder::new("template", account)?;
        make(run.path())?;
        // Under its name is only what is complete.
        let unnamed = cache.join(format!("{name}.new"));
        let _ = fs::remove_dir_all(&unnamed);
        copy(&run.path().join("data"), &unnamed)?;
        fs::rename(&unnamed, &template)?;
    }
    drop(alone);
    copy(&template, to)
}

/// Copies a folder with its owners and times.
fn copy(from: &Path, to: &Path) -> Result<()> {
    read(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}

/// Where templates and servers are kept.
pub(crate) fn cache() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("aqueduct-servers")
}

/// The folder with all run folders. It is no user's own, because other accounts must reach what is in it.
fn above() -> Result<PathBuf> {
    let me = rustix::process::geteuid().as_raw();
    let above = std::env::temp_dir().join(format!("aqueduct-servers-{me}"));
    if !above.exists() {
        folder(&above, 0o755)?;
    }
    let owner = above.symlink_metadata().with_context(|| above.display().to_string())?;
    if owner.uid() != me || !owner.is_dir() {
        bail!("{} belongs to somebody else", above.display());
    }
    Ok(above)
}

fn folder(path: &Path, mode: u32) -> Result<()> {
    DirBuilder::new().recursive(true).mode(mode).create(path).with_context(|| path.display().to_string())
}

pub(crate) fn lock(path: &Path) -> Result<File> {
    let file = File::create(path).with_context(|| path.display().to_string())?;
    file.lock().with_context(|| path.display().to_string())?;
    Ok(file)
}

/// Deletes the folders whose processes are no more.
fn sweep(above: &Path) {
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        let lock_path = entry.path();
        let path = lock_path.with_extension("");
        if lock_path.extension().is_none_or(|e| e != "lock") {
            continue;
        }
        let Ok(file) = File::open(&lock_path) else { continue };
        if file.try_lock().is_ok() {
            let _ = fs::remove_dir_all(&path);
            let _ = fs::remove_file(&lock_path);
        }
    }
}
