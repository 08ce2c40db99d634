//! Disks that are full: small ones in memory, which only root can mount.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use aqueduct::postgres::{PgDatabase, Postgres as Pg};
use aqueduct_servers::{Options, Postgres};

use crate::logs::logged;
use crate::service::Service;

/// A small disk, in memory.
struct Disk {
    folder: tempfile::TempDir,
}

impl Disk {
    fn new(megabytes: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let size = format!("size={megabytes}m,mode=0777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(folder.path()).output();
        let mounted = mounted.is_ok_and(|output| output.status.success());
        assert!(mounted, "only root can mount the small disk that this test fills: leave it out with `--skip full::`");
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn ballast(&self) -> PathBuf {
        self.folder.path().join("ballast")
    }

    /// Takes all the room that is left.
    fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.ballast()).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.folder.path()).output();
    }
}

/// The disk of the tables is full: statements fail until there is room, and the service goes on by itself.
#[test]
fn a_full_disk_is_waited_out() {
    let disk = Disk::new(48);
    logged(async |logs| {
        let server = Postgres::start(Options::new()).unwrap();
        let space = disk.path().join("space");
        std::fs::create_dir(&space).unwrap();
        let owner = Command::new("chown").arg("--reference").arg(server.data()).arg(&space).status();
        assert!(owner.unwrap().success());
        let create = format!("create tablespace small location '{}'", space.display());
        server.query("postgres", &create).unwrap();
        server.query("postgres", "create database shop tablespace small").unwrap();
        let url = server.url("shop");
        let service = Service::<Pg>::new(&logs, PgDatabase::options(&url), &url).await;
        service.publish(3_000).await;
        let running = service.start().await;
        running.handled(200).await;
        disk.fill();
        logs.wait_for(&["WARN", "No space left on device"]).await;
        disk.free();
        service.settle_all(running).await;
        service.check().await;
        assert_eq!(service.attempts(), 1, "a full disk spends nothing\n{}", logs.text());
        let address = format!("127.0.0.1:{}", server.port());
        logs.wait_for(&["WARN", &address, "disk is full: free some space"]).await;
    });
}

/// The disk of the write-ahead log is full: the server gives up, and is started again when there is room.
#[test]
fn a_server_that_a_full_disk_has_ended_is_waited_for() {
    let disk = Disk::new(192);
    logged(async |logs| {
        let settings = [("max_wal_size", "32MB"), ("min_wal_size", "32MB"), ("wal_recycle", "off")];
        let server = Postgres::start(Options::new().folder(disk.path()).settings(&settings)).unwrap();
        let database = server.database().unwrap();
        let service = Service::<Pg>::new(&logs, PgDatabase::options(database.url()), database.url()).await;
        service.publish(3_000).await;
        let running = service.start().await;
        running.handled(200).await;
        disk.fill();
        // The next segment of the log has no room.
        let _ = server.query(database.name(), "select pg_switch_wal()");
        let _ = server.query(database.name(), "create table more as select generate_series(1, 200000)");
        logs.wait_for(&["WARN", &format!("127.0.0.1:{}", server.port())]).await;
        disk.free();
        server.kill().unwrap();
        server.start_again().unwrap();
        service.settle_all(running).await;
        service.check().await;
        assert_eq!(service.attempts(), 1, "a full disk spends nothing\n{}", logs.text());
    });
}
