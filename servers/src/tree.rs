//! The processes of a server: the one that was started, and all that it started.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::process::read;

/// How long processes may take to obey a signal that they cannot refuse.
const OBEDIENCE: Duration = Duration::from_secs(20);

/// A process in the table of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    id: i32,
    parent: i32,
    /// `T` is suspended, `Z` has ended and was not waited for yet.
    state: char,
}

/// Suspends a process and all below it: afterwards none of them runs.
pub(crate) fn suspend(root: Pid) -> Result<Vec<Pid>> {
    let deadline = Instant::now() + OBEDIENCE;
    loop {
        // Again until nothing is left that runs: what was not suspended yet may have started another one.
        let tree = below(root, &table()?);
        let running: Vec<_> = tree.iter().filter(|e| !matches!(e.state, 'T' | 'Z' | 'X')).collect();
        if running.is_empty() {
            return Ok(tree.iter().filter_map(|e| Pid::from_raw(e.id)).collect());
        }
        if Instant::now() > deadline {
            bail!("processes do not stop: {running:?}");
        }
        running.iter().filter_map(|e| Pid::from_raw(e.id)).for_each(|id| send(id, Signal::STOP));
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Lets a process and all below it go on.
pub(crate) fn resume(root: Pid) -> Result<()> {
    let tree = below(root, &table()?);
    // Children first, so that nobody is asked for anything by a parent while suspended.
    tree.iter().rev().filter_map(|e| Pid::from_raw(e.id)).for_each(|id| send(id, Signal::CONT));
    Ok(())
}

/// Waits until none of these processes is left.
pub(crate) fn wait_gone(ids: &[Pid]) -> Result<()> {
    let deadline = Instant::now() + OBEDIENCE;
    loop {
        let table = table()?;
        let left: Vec<_> =
            table.iter().filter(|e| e.state != 'Z' && ids.iter().any(|id| id.as_raw_pid() == e.id)).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("processes do not end: {left:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Sends a signal; to a process that is no more, nothing happens.
pub(crate) fn send(id: Pid, signal: Signal) {
    let _ = kill_process(id, signal);
}

/// A process and those below it, each after its parent.
fn below(root: Pid, table: &[Entry]) -> Vec<Entry> {
    let mut tree: Vec<Entry> = table.iter().filter(|e| e.id == root.as_raw_pid()).copied().collect();
    let mut next = 0;
    while let Some(parent) = tree.get(next).copied() {
        tree.extend(table.iter().filter(|e| e.parent == parent.id && e.id != parent.id));
        next += 1;
    }
    tree
}

/// All processes: from the kernel's files where there are some, else from `ps`, which a small system may not have.
fn table() -> Result<Vec<Entry>> {
    if !Path::new("/proc/self/stat").exists() {
        let printed = read(Command::new("ps").args(["-A", "-o", "pid=,ppid=,stat="]))?;
        return Ok(printed.lines().filter_map(from_ps).collect());
    }
    let numbers =
        std::fs::read_dir("/proc")?.flatten().filter(|e| e.file_name().as_encoded_bytes()[0].is_ascii_digit());
    // A process may end while this reads.
    let texts = numbers.filter_map(|e| std::fs::read_to_string(e.path().join("stat")).ok());
    Ok(texts.filter_map(|text| from_stat(&text)).collect())
}

fn from_ps(line: &str) -> Option<Entry> {
    let mut words = line.split_whitespace();
    let (id, parent) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(Entry { id, parent, state: words.next()?.chars().next()? })
}

/// The name in brackets may have spaces and brackets itself.
fn from_stat(text: &str) -> Option<Entry> {
    let (id, rest) = text.split_once(' ')?;
    let mut words = rest.rsplit_once(')')?.1.split_whitespace();
    let state = words.next()?.chars().next()?;
    Some(Entry { id: id.parse().ok()?, parent: words.next()?.parse().ok()?, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_read_from_both_sources() {
        let expected = Some(Entry { id: 12, parent: 3, state: 'S' });
        assert_eq!(from_stat("12 (a (b) c) S 3 12 12 0 -1"), expected);
        assert_eq!(from_ps("   12     3 Ss+"), expected);
        assert_eq!((from_stat("rubbish"), from_ps("")), (None, None));
    }

    #[test]
    fn a_tree_has_grandchildren_and_no_strangers() {
        let entry = |id, parent| Entry { id, parent, state: 'S' };
        let table = [entry(1, 0), entry(5, 4), entry(4, 2), entry(2, 1), entry(3, 1)];
        let ids: Vec<_> = below(Pid::from_raw(2).unwrap(), &table).iter().map(|e| e.id).collect();
        assert_eq!(ids, [2, 4, 5]);
    }
}
