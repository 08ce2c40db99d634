//! A disk that is soon full.

use std::path::{Path, PathBuf};

use tempfile::TempDir;

const INSIDE: &str = "AQUEDUCT_TEST_HAS_NAMESPACE";

/// A disk of so many bytes, unmounted in the end.
pub(crate) struct SmallDisk(TempDir);

impl SmallDisk {
    pub(crate) fn mount(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={bytes}");
        let mount =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        mount.is_ok_and(|done| done.status.success()).then_some(Self(folder))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn remount_read_only(&self) {
        let done = std::process::Command::new("mount").args(["-o", "remount,ro"]).arg(self.0.path()).status();
        assert!(done.unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: connections may still be closing.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Runs a test on a small disk, by its full name. Who may not mount one gets a name space of its own where that is allowed.
pub(crate) fn on_small_disk<F: Future<Output = ()>>(name: &str, bytes: u64, test: impl FnOnce(SmallDisk) -> F) {
    if let Some(disk) = SmallDisk::mount(bytes) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        return runtime.block_on(test(disk));
    }
    assert!(std::env::var_os(INSIDE).is_none(), "no disk can be mounted here: run this test as root");
    let done = std::process::Command::new("unshare")
        .args(["--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(done.unwrap().success(), "no disk can be mounted here, or the test failed there");
}

/// Fills a disk to its last byte.
pub(crate) fn fill(ballast: &Path) {
    use std::io::Write;
    let mut file = std::fs::File::options().create(true).append(true).open(ballast).unwrap();
    for size in [65_536, 4_096, 1] {
        let block = vec![0; size];
        while file.write(&block).is_ok_and(|written| written > 0) {}
    }
}
