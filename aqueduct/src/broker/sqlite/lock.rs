//! One consumer, one process: a lock that the operating system keeps, without a lease and without a clock.
//!
//! The lock is on a file of its own beside the database. It ends with the last process that has the file open, and the
//! programs that a handler starts inherit it: when only their parent is killed, a restart waits until these orphans have
//! ended, since two processes must not work on one key.
//!
//! The file says who has it. Each line is a slot of [`SLOT`] bytes, the first the owner's, the others its programs': pid,
//! start, deadline, and a checksum, so that a torn line is ignored. A pid is used again; pid and start are not. The
//! checksum begins with the boot, the container and the owner, so that no line counts anywhere but below its own owner.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::clock::Timestamp;
use crate::store::sql::try_lock;

/// The bytes of a slot, the end of its line included.
const SLOT: usize = 128;

/// The most of a consumer's name that its file's name shows.
const NAME_MAX: usize = 64;

/// The right to run a consumer on a database. Dropping it lets it go, once all its [`ChildRecord`]s are dropped too.
#[derive(Debug)]
pub(crate) struct ConsumerLock(Arc<Locked>);

/// The locked file. A slot is taken or free; the first is the owner's.
#[derive(Debug)]
struct Locked {
    file: File,
    owner: u64,
    taken: Mutex<Vec<bool>>,
}

impl ConsumerLock {
    /// Takes the lock, or says who holds it. Answers at once.
    pub(crate) fn try_take(database: &Path, consumer: &str) -> io::Result<Result<Self, Held>> {
        let database = database.canonicalize().unwrap_or_else(|_| database.to_owned());
        let path = lock_path(&database, consumer);
        let file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        let free = try_lock(&file)?;
        // On Windows a locked file cannot be read by others.
        let (owner, children) = records(&file).unwrap_or_default();
        let held = |by| Ok(Err(Held { consumer: consumer.to_owned(), database: database.clone(), by }));
        if !free {
            return held(holder(owner, &children, &holders(&path)));
        }
        // A recorded program counts even where it has closed what it inherited, as `sudo` does.
        if let Some(owner) = owner {
            let programs = running_programs(&children, &[]);
            if programs.iter().any(|program| program.start != 0) {
                file.unlock()?;
                return held(Holder::Orphans { of: owner.pid, programs });
            }
        }
        file.set_len(0)?;
        let pid = std::process::id();
        let (line, owner) = Record { pid, start: start_of(pid), deadline: 0 }.line(here());
        let taken = Mutex::new(vec![true]);
        write_slot(&file, 0, &line)?;
        let file = inheritable(file)?;
        Ok(Ok(Self(Arc::new(Locked { file, owner, taken }))))
    }

    /// Where the programs of this consumer's handlers are recorded.
    pub(crate) fn children(&self) -> Children {
        Children(Arc::downgrade(&self.0))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        // Every program that may still work on an event has a record, which would keep this from being dropped. What else
        // inherited the lock, such as a program of another consumer, must not keep it: so it is unlocked, not just closed.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

/// Beside the database: `<database>.<consumer>.lock`. What another consumer, or a file system that does not tell `a` from
/// `A`, could take for the same name has a hash behind a `~`, which no name that stands for itself contains.
fn lock_path(database: &Path, consumer: &str) -> PathBuf {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let shown = consumer.chars().take(NAME_MAX).map(|c| c.to_ascii_lowercase());
    let mut name: String = shown.map(|c| if plain(c) { c } else { '_' }).collect();
    if name != consumer {
        name = format!("{name}~{:016x}", xxh3_64(consumer.as_bytes()));
    }
    let mut path = OsString::from(database);
    path.push(format!(".{name}.lock"));
    path.into()
}

/// The record of programs that a consumer's handlers start, so that a restart after a crash knows whose orphans they are
/// and until when they may run.
///
/// Every program inherits the consumer's lock, recorded or not: after a crash a restart waits for it. Only a recorded one
/// is ended when it runs on past its deadline, on Linux. Let it lead a process group, and its own programs end with it.
#[derive(Clone, Debug)]
pub struct Children(Weak<Locked>);

/// A program that is recorded; dropping this ends the record. Drop it after the program has ended, and not before: as
/// long as it is there, the consumer's lock is not let go.
#[derive(Debug)]
#[must_use = "dropping it ends the record"]
pub struct ChildRecord {
    locked: Arc<Locked>,
    slot: Option<usize>,
}

impl Children {
    /// Records a program that this process started and has not waited for, and until when it may run. An error says that
    /// this process does not run the consumer any more, or that the disk is full: end the program.
    pub fn record(&self, pid: u32, deadline: Timestamp) -> io::Result<ChildRecord> {
        let locked =
            self.0.upgrade().ok_or_else(|| io::Error::other("this process does not run the consumer any more"))?;
        if running(pid).is_none() {
            return Ok(ChildRecord { locked, slot: None });
        }
        let (line, _) = Record { pid, start: start_of(pid), deadline: deadline.unix_ms() }.line(locked.owner);
        let mut taken = locked.taken.lock();
        let slot = taken.iter().position(|taken| !taken).unwrap_or(taken.len());
        write_slot(&locked.file, slot, &line)?;
        if slot == taken.len() {
            taken.push(true);
        } else {
            taken[slot] = true;
        }
        drop(taken);
        Ok(ChildRecord { locked, slot: Some(slot) })
    }
}

impl Drop for ChildRecord {
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        let mut taken = self.locked.taken.lock();
        // A record that stays names a process that has ended, which its start tells.
        let _ = write_slot(&self.locked.file, slot, "");
        taken[slot] = false;
    }
}

/// What a slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    pid: u32,
    /// When it started, in the system's own count; 0 where that is not known.
    start: u64,
    /// In milliseconds since the Unix epoch.
    deadline: i64,
}

impl Record {
    /// The line of a slot and its checksum.
    fn line(self, above: u64) -> (String, u64) {
        let text = format!("{} {} {}", self.pid, self.start, self.deadline);
        let sum = xxh3_64_with_seed(text.as_bytes(), above);
        (format!("{text} {sum:016x}"), sum)
    }

    fn parse(slot: &[u8], above: u64) -> Option<(Self, u64)> {
        let (text, _) = std::str::from_utf8(slot).ok()?.trim_end().rsplit_once(' ')?;
        let mut numbers = text.split(' ');
        let (pid, start) = (numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?);
        let record = Self { pid, start, deadline: numbers.next()?.parse().ok()? };
        let (line, sum) = record.line(above);
        (slot.trim_ascii_end() == line.as_bytes()).then_some((record, sum))
    }

    /// The process that it is about, unless that has ended.
    fn running(&self) -> Option<Running> {
        running(self.pid).filter(|running| running.start == self.start)
    }
}

fn write_slot(mut file: &File, slot: usize, line: &str) -> io::Result<()> {
    let slot = u64::try_from(slot * SLOT).map_err(io::Error::other)?;
    file.seek(SeekFrom::Start(slot))?;
    file.write_all(format!("{line:<0$}\n", SLOT - 1).as_bytes())
}

/// The owner, and the programs below it. Nothing if the owner's line is torn, or was written elsewhere.
fn records(mut file: &File) -> io::Result<(Option<Record>, Vec<Record>)> {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.read_to_end(&mut bytes)?;
    let mut slots = bytes.chunks(SLOT);
    let Some((owner, sum)) = slots.next().and_then(|slot| Record::parse(slot, here())) else {
        return Ok((None, Vec::new()));
    };
    Ok((Some(owner), slots.filter_map(|slot| Record::parse(slot, sum)).map(|(record, _)| record).collect()))
}

/// Who holds the lock of a consumer, in words that say what to do.
#[derive(Debug)]
pub(crate) struct Held {
    consumer: String,
    database: PathBuf,
    by: Holder,
}

#[derive(Debug)]
enum Holder {
    ThisProcess,
    Process(Program),
    Orphans {
        of: u32,
        programs: Vec<Program>,
    },
    /// Of another user, container or machine; on Windows anyone.
    Unseen,
}

/// A process that was running when it was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pid: u32,
    start: u64,
    command: String,
    /// Until when it may run; none if it is not recorded.
    deadline: Option<Timestamp>,
}

/// Who runs a consumer, as far as its lock's file tells.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Owner {
    /// Nobody.
    Nobody,
    /// A process.
    Process {
        /// Its number.
        pid: u32,
        /// The name of its program; empty where that is not known.
        command: String,
    },
    /// A process that has ended; programs that it started still run, and until they have ended nobody can run it.
    Orphans {
        /// The process that has ended.
        of: u32,
        /// The programs.
        pids: Vec<u32>,
    },
    /// Perhaps a process of another user or container; perhaps one that was running when the system went down.
    Unseen,
}

/// Looks who has the lock of a consumer, without taking it.
pub(super) fn owner(database: &Path, consumer: &str) -> io::Result<Owner> {
    let database = database.canonicalize().unwrap_or_else(|_| database.to_owned());
    let path = lock_path(&database, consumer);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Owner::Nobody),
        Err(error) => return Err(error),
    };
    // Who leaves empties it.
    if file.metadata()?.len() == 0 {
        return Ok(Owner::Nobody);
    }
    let (record, children) = records(&file).unwrap_or_default();
    let of_a_running_process = record.is_some_and(|record| record.running().is_some());
    let holders = if of_a_running_process { Vec::new() } else { holders(&path) };
    let by = |program: Program| Owner::Process { pid: program.pid, command: program.command };
    Ok(match holder(record, &children, &holders) {
        Holder::ThisProcess => {
            let pid = std::process::id();
            running(pid).map_or(Owner::Unseen, |running| by(running.program(pid, None)))
        }
        Holder::Process(program) => by(program),
        Holder::Orphans { programs, .. } if programs.is_empty() => Owner::Nobody,
        Holder::Orphans { of, programs } => Owner::Orphans { of, pids: programs.iter().map(|p| p.pid).collect() },
        Holder::Unseen => Owner::Unseen,
    })
}

fn holder(owner: Option<Record>, children: &[Record], holders: &[u32]) -> Holder {
    let me = std::process::id();
    match owner {
        Some(owner) => match owner.running() {
            Some(_) if owner.pid == me => Holder::ThisProcess,
            Some(running) => Holder::Process(running.program(owner.pid, None)),
            None => Holder::Orphans { of: owner.pid, programs: running_programs(children, holders) },
        },
        // Who has only just taken it has not written its line yet.
        None if holders.contains(&me) => Holder::ThisProcess,
        None => running_programs(&[], holders).pop().map_or(Holder::Unseen, Holder::Process),
    }
}

/// The recorded programs that have not ended, and the other processes that hold the lock.
fn running_programs(children: &[Record], holders: &[u32]) -> Vec<Program> {
    let recorded = |child: &Record| {
        let deadline = Timestamp::from_unix_ms(child.deadline);
        child.running().map(|running| running.program(child.pid, Some(deadline)))
    };
    let mut programs: Vec<_> = children.iter().filter_map(recorded).collect();
    for &pid in holders {
        if programs.iter().all(|program| program.pid != pid) {
            programs.extend(running(pid).map(|running| running.program(pid, None)));
        }
    }
    programs
}

impl Held {
    /// Ends the orphans whose deadline has passed, and says which: only what the ended owner recorded and what still is
    /// the same process. One that leads a process group is ended with its group, unless this process is in it.
    pub(crate) fn end_overdue(&self, now: Timestamp) -> Vec<Program> {
        let Holder::Orphans { programs, .. } = &self.by else { return Vec::new() };
        let overdue = |program: &&Program| program.deadline.is_some_and(|deadline| deadline < now);
        programs.iter().filter(overdue).filter(|program| end(program)).cloned().collect()
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (consumer, file) = (&self.consumer, self.database.display());
        match &self.by {
            Holder::ThisProcess => {
                write!(f, "this process already runs consumer {consumer:?} on {file}: serve it once")
            }
            Holder::Process(process) => write!(
                f,
                "{process} runs consumer {consumer:?} on {file}, and one process runs a consumer: stop it, or give this consumer another name"
            ),
            Holder::Orphans { of, programs } => {
                write!(f, "consumer {consumer:?} on {file} waits for orphans of the ended process {of}: ")?;
                for (n, program) in programs.iter().enumerate() {
                    write!(f, "{}{program}", if n > 0 { ", " } else { "" })?;
                }
                let unseen = if programs.is_empty() { "none that can be seen from here" } else { "" };
                write!(f, "{unseen}: wait until they have ended, or end them")
            }
            Holder::Unseen => write!(
                f,
                "another process, or this one, already runs consumer {consumer:?} on {file}, and which cannot be seen from here: stop it, or give this consumer another name"
            ),
        }
    }
}

impl std::error::Error for Held {}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let command = if self.command.is_empty() { "process" } else { &self.command };
        write!(f, "`{command}` (pid {}", self.pid)?;
        match self.deadline {
            Some(deadline) => write!(f, ", until {deadline})"),
            None => f.write_str(")"),
        }
    }
}

/// A process that has not ended.
struct Running {
    command: String,
    group: u64,
    start: u64,
}

impl Running {
    fn program(self, pid: u32, deadline: Option<Timestamp>) -> Program {
        Program { pid, start: self.start, command: self.command, deadline }
    }
}

fn start_of(pid: u32) -> u64 {
    running(pid).map_or(0, |running| running.start)
}

/// What Linux says of a process: see proc(5), `/proc/pid/stat`.
#[cfg(target_os = "linux")]
fn running(pid: u32) -> Option<Running> {
    let line = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let line = String::from_utf8_lossy(&line);
    // The command may contain anything, brackets too.
    let (command, fields) = line.rsplit_once(')')?;
    let command = command.split_once('(')?.1.escape_debug().to_string();
    let fields: Vec<_> = fields.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    let (group, threads, start) = (number(2)?, number(17)?, number(19)?);
    // One that only waits for its parent has ended; with other threads left only its first has.
    let ended = matches!(fields.first(), Some(&("Z" | "X"))) && threads <= 1;
    (!ended).then_some(Running { command, group, start })
}

#[cfg(all(unix, not(target_os = "linux")))]
fn running(pid: u32) -> Option<Running> {
    let asked = rustix::process::test_kill_process(process_id(pid)?);
    (asked != Err(rustix::io::Errno::SRCH)).then(|| Running { command: String::new(), group: 0, start: 0 })
}

#[cfg(not(unix))]
fn running(_: u32) -> Option<Running> {
    None
}

/// Where pids mean what they mean here: the same boot of the same machine, and the same container.
#[cfg(target_os = "linux")]
fn here() -> u64 {
    let mut here = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let container = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    here.extend_from_slice(container.as_os_str().as_encoded_bytes());
    xxh3_64(&here)
}

#[cfg(not(target_os = "linux"))]
fn here() -> u64 {
    0
}

/// The processes that have the lock, by what Linux says of their open files. To have the file open is not to have the
/// lock: who only tries has it open too.
#[cfg(target_os = "linux")]
fn holders(path: &Path) -> Vec<u32> {
    let below = |folder: &Path| std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let locks = |fd: &Path| {
        let info = fd.to_string_lossy().replace("/fd/", "/fdinfo/");
        std::fs::read_link(fd).is_ok_and(|to| to == path)
            && std::fs::read_to_string(info).is_ok_and(|info| info.contains("FLOCK"))
    };
    let pid = |process: &Path| process.file_name()?.to_str()?.parse().ok();
    let processes = below(Path::new("/proc")).filter_map(|process| Some((pid(&process)?, process)));
    processes.filter(|(_, process)| below(&process.join("fd")).any(|fd| locks(&fd))).map(|(pid, _)| pid).collect()
}

#[cfg(not(target_os = "linux"))]
fn holders(_: &Path) -> Vec<u32> {
    Vec::new()
}

/// Lets programs that this process starts inherit the lock, under a number that no script uses for something else: a shell
/// that opens its own file as 3 would close the lock.
#[cfg(unix)]
fn inheritable(file: File) -> io::Result<File> {
    use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
    const NUMBER_MIN: i32 = 64;
    let file = fcntl_dupfd_cloexec(&file, NUMBER_MIN).map_or(file, File::from);
    fcntl_setfd(&file, FdFlags::empty())?;
    Ok(file)
}

#[cfg(not(unix))]
fn inheritable(file: File) -> io::Result<File> {
    Ok(file)
}

#[cfg(unix)]
fn process_id(pid: u32) -> Option<rustix::process::Pid> {
    // To signal the group of the first process is to signal every process.
    i32::try_from(pid).ok().filter(|pid| *pid > 1).and_then(rustix::process::Pid::from_raw)
}

/// Ends a program, unless it is another by now, or cannot be told from another.
#[cfg(unix)]
fn end(program: &Program) -> bool {
    use rustix::process::{Signal, getpgrp, kill_process, kill_process_group};
    let Some((pid, running)) = process_id(program.pid).zip(running(program.pid)) else { return false };
    if running.start != program.start || program.start == 0 || program.pid == std::process::id() {
        return false;
    }
    let leads = running.group == u64::from(program.pid) && pid != getpgrp();
    let ended = if leads { kill_process_group(pid, Signal::KILL) } else { kill_process(pid, Signal::KILL) };
    ended.is_ok()
}

#[cfg(not(unix))]
fn end(_: &Program) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder with a database in it.
    fn database() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().canonicalize().unwrap().join("aqueduct.db");
        File::create(&database).unwrap();
        (folder, database)
    }

    #[test]
    fn names_of_files_are_readable_and_never_the_same() {
        let name = |consumer: &str| lock_path(Path::new("a.db"), consumer).into_os_string().into_string().unwrap();
        assert_eq!(name("orders.v1"), "a.db.orders.v1.lock");
        let (long, longer) = ("x".repeat(65), "x".repeat(66));
        let consumers = ["a", "A", "a/b", "a_b", "a\\b", "a~b", "..", "", "ä", "a\0", "con:1", &long, &longer];
        let names: std::collections::BTreeSet<_> = consumers.iter().map(|c| name(c).to_lowercase()).collect();
        assert_eq!(names.len(), consumers.len(), "{names:?}");
        let safe = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
        assert!(names.iter().all(|name| name.chars().all(safe) && name.len() < 100), "{names:?}");
        // The name of another's file does not give that file.
        let stem = name("A").replace("a.db.", "").replace(".lock", "");
        assert_ne!(name(&stem), name("A"));
    }

    #[test]
    fn one_process_takes_a_lock_once() {
        let (_folder, database) = database();
        let take = |consumer| ConsumerLock::try_take(&database, consumer).unwrap();
        let first = take("orders").unwrap();
        let held = take("orders").unwrap_err();
        let (start, file) = ("already runs consumer \"orders\"", database.display().to_string());
        assert!(!cfg!(unix) || held.to_string().contains(start) && held.to_string().contains(&file), "{held}");
        take("refunds").unwrap();
        let children = first.children();
        drop(first);
        take("orders").unwrap();
        assert!(children.record(1, Timestamp::UNIX_EPOCH).is_err());
    }

    #[test]
    fn a_slot_is_read_whole_below_its_owner_or_not_at_all() {
        let (_folder, database) = database();
        let file = File::options().read(true).write(true).open(database).unwrap();
        let record = |pid| Record { pid, start: 7, deadline: -3 };
        let (line, owner) = record(1).line(here());
        write_slot(&file, 0, &line).unwrap();
        write_slot(&file, 1, &record(2).line(owner).0).unwrap();
        write_slot(&file, 2, "").unwrap();
        write_slot(&file, 3, &record(3).line(owner + 1).0).unwrap();
        write_slot(&file, 4, &record(4).line(owner).0).unwrap();
        assert_eq!(records(&file).unwrap(), (Some(record(1)), vec![record(2), record(4)]));
        file.set_len(4 * 128 + 12).unwrap();
        assert_eq!(records(&file).unwrap(), (Some(record(1)), vec![record(2)]));
        write_slot(&file, 0, &line.replace('7', "8")).unwrap();
        assert_eq!(records(&file).unwrap(), (None, vec![]));
    }

    #[cfg(target_os = "linux")]
    mod processes {
        use std::io::{BufRead, BufReader, PipeReader};
        use std::os::unix::process::CommandExt;
        use std::process::{Child, ChildStdin, Command, Stdio};
        use std::sync::mpsc;
        use std::time::Duration;

        use super::*;

        const SETUP: &str = "AQUEDUCT_LOCK_TEST";
        /// Long after every deadline of these tests.
        const LATE: i64 = 4_000_000_000_000;

        /// Another process that holds the lock, and the programs it started. They run until the input ends, which
        /// it does with this test however that ends; so none outlives it, and no pid needs to be remembered.
        struct Other {
            process: Child,
            input: Option<ChildStdin>,
            output: BufReader<PipeReader>,
        }

        impl Other {
            /// Starts it and its program. `how` may say `group`, that the program leads one; `record`; and `before`, that it
            /// starts before the lock is taken and so does not have it.
            fn start(database: &Path, how: &str, program: &[&str]) -> Self {
                let (output, stdout) = std::io::pipe().unwrap();
                let name = format!("{}::owner", module_path!()).replacen("aqueduct::", "", 1);
                let mut process = Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", &name, "--ignored", "--nocapture"])
                    .env(SETUP, format!("{}|{how}|{}", database.display(), program.join("|")))
                    .stdin(Stdio::piped())
                    .stdout(stdout)
                    .spawn()
                    .unwrap();
                Self { input: process.stdin.take(), process, output: BufReader::new(output) }
            }

            /// Waits until every mark was written, in any order, and answers the pids behind them.
            fn pids<const N: usize>(&mut self, marks: [&str; N]) -> [u32; N] {
                let (mut pids, mut line) = ([0; N], String::new());
                while pids.contains(&0) {
                    line.clear();
                    assert!(self.output.read_line(&mut line).unwrap() > 0, "not all of {marks:?} came");
                    for (mark, pid) in marks.iter().zip(&mut pids) {
                        if let Some((_, written)) = line.split_once(mark) {
                            *pid = written.trim().parse().unwrap();
                        }
                    }
                }
                pids
            }

            /// Kills the process, and nothing else.
            fn kill(&mut self) -> u32 {
                self.process.kill().unwrap();
                self.process.wait().unwrap();
                self.process.id()
            }

            /// Lets the programs end by themselves.
            fn end_input(&mut self) {
                self.input = None;
            }
        }

        impl Drop for Other {
            fn drop(&mut self) {
                let _ = self.process.kill();
                let _ = self.process.wait();
            }
        }

        /// What the other process does.
        #[test]
        #[ignore = "a part of other tests, which run it in a process of its own"]
        fn owner() {
            let Ok(setup) = std::env::var(SETUP) else { return };
            let [database, how, program @ ..] = &setup.split('|').collect::<Vec<_>>()[..] else { panic!("{setup}") };
            let take = || ConsumerLock::try_take(Path::new(database), "orders").unwrap().unwrap();
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).env_remove(SETUP);
            if how.contains("group") {
                command.process_group(0);
            }
            let early = (!how.contains("before")).then(take);
            let mut program = command.spawn().unwrap();
            let lock = early.unwrap_or_else(take);
            let deadline = Timestamp::from_unix_ms(LATE - 1);
            let record = how.contains("record").then(|| lock.children().record(program.id(), deadline).unwrap());
            println!("\n@program {}", program.id());
            program.wait().unwrap();
            drop(record);
        }

        fn try_take(database: &Path) -> Result<ConsumerLock, Held> {
            ConsumerLock::try_take(database, "orders").unwrap()
        }

        /// Waits until nobody holds the lock.
        fn wait_until_free(database: &Path) {
            let file = File::open(lock_path(database, "orders")).unwrap();
            let (done, wait) = mpsc::channel();
            std::thread::spawn(move || done.send(file.lock().and_then(|()| file.unlock())));
            wait.recv_timeout(Duration::from_mins(1)).expect("the lock becomes free").unwrap();
        }

        fn end_overdue(held: &Held, now: i64) -> Vec<u32> {
            held.end_overdue(Timestamp::from_unix_ms(now)).iter().map(|program| program.pid).collect()
        }

        /// Takes the lock as a restart would. A program lets go of what it had open before it has quite ended.
        fn take_freed(database: &Path) {
            wait_until_free(database);
            let taken = (0..1_000_000).any(|_| {
                std::thread::yield_now();
                try_take(database).is_ok()
            });
            assert!(taken);
        }

        #[test]
        fn an_owner_that_lives_is_named_and_its_programs_are_let_be() {
            let (_folder, database) = database();
            let mut other = Other::start(&database, "group record", &["cat"]);
            other.pids(["@program"]);
            let held = try_take(&database).unwrap_err();
            let (pid, text) = (other.process.id(), held.to_string());
            let command = running(pid).unwrap().command;
            assert!(text.starts_with(&format!("`{command}` (pid {pid}) runs consumer \"orders\"")), "{text}");
            assert_eq!(end_overdue(&held, LATE), [0; 0]);
            other.end_input();
            assert!(other.process.wait().unwrap().success());
            take_freed(&database);
        }

        #[test]
        fn orphans_hold_the_lock_until_they_have_ended() {
            let (_folder, database) = database();
            let mut other = Other::start(&database, "", &["cat"]);
            let ([program], owner) = (other.pids(["@program"]), other.kill());
            let held = try_take(&database).unwrap_err();
            let text = held.to_string();
            assert!(text.contains(&format!("orphans of the ended process {owner}: `cat` (pid {program}):")), "{text}");
            assert_eq!(end_overdue(&held, LATE), [0; 0]);
            other.end_input();
            take_freed(&database);
        }

        /// A shell in front of another program; both hold the lock.
        const TWO: [&str; 3] = ["sh", "-c", "exec 3<&0; cat <&3 & exec 3<&-; echo @second $!; wait"];

        #[test]
        fn an_overdue_orphan_ends_with_its_group() {
            let (_folder, database) = database();
            let mut other = Other::start(&database, "group record", &TWO);
            let ([program, second], _) = (other.pids(["@program", "@second"]), other.kill());
            let held = try_take(&database).unwrap_err();
            let text = held.to_string();
            assert!(text.contains(&format!("`sh` (pid {program}, until 2096-10-02T07:06:39.999Z)")), "{text}");
            assert!(text.contains(&format!("(pid {second})")), "{text}");
            assert_eq!(end_overdue(&held, LATE - 1), [0; 0]);
            assert_eq!(end_overdue(&held, LATE), [program]);
            take_freed(&database);
            assert_eq!(end_overdue(&held, LATE), [0; 0]);
        }

        #[test]
        fn an_overdue_orphan_in_the_group_of_this_process_ends_alone() {
            let (_folder, database) = database();
            let mut other = Other::start(&database, "record", &TWO);
            let ([program, second], _) = (other.pids(["@program", "@second"]), other.kill());
            assert_eq!(end_overdue(&try_take(&database).unwrap_err(), LATE), [program]);
            assert!(running(second).is_some());
            other.end_input();
            take_freed(&database);
        }

        #[test]
        fn another_process_with_the_pid_of_an_orphan_is_not_touched() {
            let (_folder, database) = database();
            let mut other = Other::start(&database, "group record", &["cat"]);
            let ([program], _) = (other.pids(["@program"]), other.kill());
            let path = lock_path(&database, "orders");
            let file = File::options().read(true).write(true).open(path).unwrap();
            let (owner, children) = records(&file).unwrap();
            let (_, sum) = owner.unwrap().line(here());
            let reused = Record { start: children[0].start - 1, ..children[0] };
            write_slot(&file, 1, &reused.line(sum).0).unwrap();
            let held = try_take(&database).unwrap_err();
            assert!(held.to_string().contains(&format!("`cat` (pid {program}):")), "{held}");
            assert_eq!(end_overdue(&held, LATE), [0; 0]);
            // What was the same when it was looked at may be another when it is to be ended.
            let Holder::Orphans { programs, .. } = held.by else { panic!("{held}") };
            assert!(!end(&Program { start: programs[0].start + 1, ..programs[0].clone() }));
            assert!(running(program).is_some());

            // A torn line says nothing.
            write_slot(&file, 1, &children[0].line(sum).0).unwrap();
            file.set_len(u64::try_from(SLOT).unwrap() + 20).unwrap();
            assert_eq!(end_overdue(&try_take(&database).unwrap_err(), LATE), [0; 0]);
            other.end_input();
            take_freed(&database);
        }

        #[test]
        fn a_recorded_orphan_counts_without_the_lock() {
            let (_folder, database) = database();
            let mut other = Other::start(&database, "before group record", &["cat"]);
            let ([program], _) = (other.pids(["@program"]), other.kill());
            wait_until_free(&database);
            let held = try_take(&database).unwrap_err();
            assert!(held.to_string().contains(&format!("(pid {program}, until")), "{held}");
            wait_until_free(&database);
            assert_eq!(end_overdue(&held, LATE), [program]);
            assert_eq!(other.output.read_line(&mut String::new()).unwrap(), 0);
            drop(try_take(&database));
        }
    }
}
