//! A disk that is full, and files that cannot be written.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use crate::world::World;

const INSIDE: &str = "AQUEDUCT_TEST_HAS_NAMESPACE";

/// A disk of so many bytes, unmounted in the end.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount(bytes: u64) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"]).arg(folder.path());
        let mount = mount.output();
        mount.is_ok_and(|done| done.status.success()).then_some(Self(folder))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

/// Runs a test on a small disk. Who may not mount one gets a name space of its own where that is allowed.
fn on_small_disk(name: &str, bytes: u64, test: impl FnOnce(&Path)) {
    if let Some(disk) = SmallDisk::mount(bytes) {
        return test(disk.0.path());
    }
    assert!(std::env::var_os(INSIDE).is_none(), "no disk can be mounted here: run this test as root");
    let done = Command::new("unshare")
        .args(["--map-root-user", "--mount"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("disk::{name}"), "--nocapture"])
        .env(INSIDE, "1")
        .status();
    assert!(done.unwrap().success(), "no disk can be mounted here, or the test failed there");
}

#[test]
fn publishing_to_a_full_disk_says_what_is_confirmed() {
    on_small_disk("publishing_to_a_full_disk_says_what_is_confirmed", 64 << 20, |disk| {
        let world = World::new();
        std::fs::write(disk.join("ballast"), vec![1; 56 << 20]).unwrap();
        let line = |n: usize| format!("{{\"n\":{n},\"pad\":\"{}\"}}\n", "a".repeat(1_000));
        let text: String = (0..12_000).map(line).collect();
        let broker = format!("sqlite:{}", disk.join("a.db").display());
        let publish = ["publish", "--topic", "t", "--type", "x", "--id", "n", "--broker", &broker];
        world.run_with(&publish, &text).failed(69, &["a.db", "the disk is full", "free some space", "confirmed: "]);
        std::fs::remove_file(disk.join("ballast")).unwrap();
        // What was confirmed is there, and counts as that.
        let said = world.run_with(&publish, &text).succeeded();
        assert!(said.out.starts_with("read 12000, ") && !said.out.contains("duplicates 0,"), "{}", said.out);
    });
}

#[test]
fn printing_to_a_full_disk_settles_nothing_that_was_not_written() {
    on_small_disk("printing_to_a_full_disk_settles_nothing_that_was_not_written", 64 << 10, |disk| {
        let world = World::new();
        world.events(2_000, 10);
        let mut command = world.command(&["consume", "t", "--group", "g", "--exit-when-idle", "300ms"]);
        command.stdout(std::fs::File::create(disk.join("out")).unwrap()).stderr(std::process::Stdio::piped());
        let said = command.spawn().unwrap().wait_with_output().unwrap();
        let error = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(74), "{error}");
        assert!(error.contains("standard output cannot be written") && error.contains("No space left"), "{error}");
        let rest = world.run(&["consume", "t", "--group", "g", "--exit-when-idle", "300ms"]).succeeded().out;
        let written = std::fs::read_to_string(disk.join("out")).unwrap();
        let whole = |text: &str| -> Vec<u64> {
            let id = |line: &str| serde_json::from_str::<serde_json::Value>(line).ok()?["data"]["n"].as_u64();
            text.lines().filter_map(id).collect()
        };
        let all: std::collections::BTreeSet<u64> = whole(&written).into_iter().chain(whole(&rest)).collect();
        assert_eq!(all.len(), 2_000, "an event was settled that nobody has seen");
    });
}

#[test]
fn a_file_that_may_not_be_written_says_so() {
    let world = World::new();
    world.events(1, 1);
    std::fs::set_permissions(world.path("aqueduct.db"), PermissionsExt::from_mode(0o444)).unwrap();
    let said = world.run_with(&["publish", "--topic", "t", "--type", "x", "--id", "n"], "{\"n\":5}");
    // Who runs the tests as root may write all the same.
    if said.code != Some(0) {
        said.failed(69, &["aqueduct.db"]);
    }
}
