//! The servers for tests, tested: they are started, crashed, suspended and followed, and leave nothing behind.

#![allow(clippy::unwrap_used, reason = "a test that cannot prepare itself has failed")]

mod mariadb;
mod nats;
mod orphan;
mod pgbouncer;
mod postgres;
mod shared;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// True if the process runs: neither gone, nor ended and not waited for.
fn runs(pid: u32) -> bool {
    let printed = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap().stdout;
    let state = String::from_utf8(printed).unwrap();
    !state.trim().is_empty() && !state.starts_with('Z')
}

/// The children of a process.
fn children(pid: u32) -> Vec<u32> {
    let printed = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output().unwrap().stdout;
    let text = String::from_utf8(printed).unwrap();
    let pairs = text.lines().filter_map(|l| {
        let mut words = l.split_whitespace().map(|w| w.parse::<u32>().unwrap());
        Some((words.next()?, words.next()?))
    });
    pairs.filter(|(_, parent)| *parent == pid).map(|(id, _)| id).collect()
}

/// Waits until something holds.
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < deadline, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// A suspended server takes a connection and says nothing to a greeting; when it goes on, it does.
fn silent_until_resumed(port: u16, greeting: &[u8], resume: impl FnOnce()) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.write_all(greeting).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(stream.read(&mut [0]).is_err(), "a suspended server has answered");
    resume();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 1);
}

/// A folder that a server's account can reach, and that is deleted in the end.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("aqueduct-servers-live-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
