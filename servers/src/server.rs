//! A server on its port: started, ended, suspended. What is the same for all kinds.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail};
use rustix::process::Signal;

use crate::folder::RunFolder;
use crate::process::Process;
use crate::tree;

/// How long a server may take to be ready: after a crash it repairs its data first, on a machine that may be busy.
const START: Duration = Duration::from_mins(2);
/// How long a server may take to end when asked.
const STOP: Duration = Duration::from_mins(1);
/// The lines of the log in an error.
const TAIL: usize = 20;

/// How a server says that it takes connections.
#[derive(Clone, Debug)]
pub(crate) enum Ready {
    /// It writes these words into its log.
    Log(&'static str),
    /// It writes its process number and `ready` into this file.
    Postmaster(PathBuf),
}

/// How a server is asked to end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// Without losing anything in memory.
    pub(crate) stop: Signal,
    /// As fast as it can leave nothing behind.
    pub(crate) drop: Signal,
}

/// Makes a kind of server the [`Server`] that it has.
macro_rules! is_server {
    ($kind:ty) => {
        impl std::ops::Deref for $kind {
            type Target = $crate::Server;

            fn deref(&self) -> &$crate::Server {
                &self.server
            }
        }
    };
}
pub(crate) use is_server;

type Line = Box<dyn Fn(u16) -> Result<Command> + Send + Sync>;

/// A server as a process: what every kind can be made to do.
pub struct Server {
    name: &'static str,
    run: RunFolder,
    port: u16,
    line: Line,
    ready: Ready,
    ends: Ends,
    process: Mutex<Option<Process>>,
}

impl Server {
    /// Starts a server on a free port; `line` is its command line on a port.
    pub(crate) fn start(name: &'static str, run: RunFolder, ready: Ready, ends: Ends, line: Line) -> Result<Self> {
        let mut server = Self { name, run, port: 0, line, ready, ends, process: Mutex::new(None) };
        let mut tries = 5;
        loop {
            server.port = free_port()?;
            tries -= 1;
            match server.start_once() {
                Ok(()) => return Ok(server),
                // Somebody else was faster with this port.
                Err(Failure::PortTaken(_)) if tries > 0 => {}
                Err(failure) => return Err(failure.into()),
            }
        }
    }

    /// Starts it on the same port and data, after [`kill`](Self::kill) or [`stop`](Self::stop).
    pub fn start_again(&self) -> Result<()> {
        // The port may have been taken meanwhile, for a moment.
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match self.start_once() {
                Err(Failure::PortTaken(_)) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                done => return Ok(done?),
            }
        }
    }

    fn start_once(&self) -> Result<(), Failure> {
        let mut process = self.lock();
        if process.is_some() {
            return Err(Failure::Other(anyhow!("{} runs already", self.name)));
        }
        let log = OpenOptions::new().create(true).append(true).open(self.log()).context("the log")?;
        let begin = log.metadata().context("the log")?.len();
        let mut line = (self.line)(self.port)?;
        line.stdin(Stdio::null()).stdout(log.try_clone().context("the log")?).stderr(log);
        // In a group of its own, so that Ctrl-C reaches only whoever then ends the server in the right way.
        line.current_dir(self.run.path()).process_group(0);
        let started = Process::start(line)?;
        if let Err(e) = self.wait_ready(&started, begin) {
            end(&started, Signal::KILL)?;
            let taken = self.log_since(begin).to_lowercase().contains("address already in use");
            return Err(if taken { Failure::PortTaken(e) } else { Failure::Other(e) });
        }
        *process = Some(started);
        Ok(())
    }

    fn wait_ready(&self, process: &Process, begin: u64) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let end = process.end();
            if end.is_none() && self.is_ready(process, begin) {
                return Ok(());
            }
            let what = match end {
                Some(end) => format!("ended with {end} before it was ready"),
                None if Instant::now() > deadline => format!("was not ready after {} s", START.as_secs()),
                None => {
                    process.wait(Duration::from_millis(5));
                    continue;
                }
            };
            bail!("{} {what}; the end of its log:\n{}", self.name, self.log_tail(TAIL));
        }
    }

    fn is_ready(&self, process: &Process, begin: u64) -> bool {
        match &self.ready {
            Ready::Log(words) => self.log_since(begin).contains(words),
            Ready::Postmaster(file) => {
                let text = std::fs::read_to_string(file).unwrap_or_default();
                let mut lines = text.lines().map(str::trim);
                let own = lines.next() == Some(&process.id().as_raw_pid().to_string());
                own && lines.nth(6) == Some("ready")
            }
        }
    }

    /// Its port on 127.0.0.1, the same for as long as it lives.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The number of its first process; none while it is down.
    pub fn pid(&self) -> Option<u32> {
        let process = self.lock();
        process.as_ref().filter(|p| p.end().is_none()).map(|p| p.id().as_raw_pid().unsigned_abs())
    }

    /// Ends it in the orderly way: connections are closed, and what is in memory is written.
    pub fn stop(&self) -> Result<()> {
        let Some(process) = self.lock().take() else { bail!("{} does not run", self.name) };
        end(&process, self.ends.stop)
    }

    /// Stops it in the orderly way and starts it again.
    pub fn restart(&self) -> Result<()> {
        self.stop()?;
        self.start_again()
    }

    /// Kills it and all its processes at once, as a crash does. Answers when none is left.
    pub fn kill(&self) -> Result<()> {
        let Some(process) = self.lock().take() else { bail!("{} does not run", self.name) };
        kill(&process)
    }

    /// Suspends it with all its processes: connections stay open, and nothing is answered. The kernel still takes new connections.
    pub fn suspend(&self) -> Result<()> {
        let process = self.lock();
        let Some(process) = process.as_ref() else { bail!("{} does not run", self.name) };
        tree::suspend(process.id()).map(drop)
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        let process = self.lock();
        let Some(process) = process.as_ref() else { bail!("{} does not run", self.name) };
        tree::resume(process.id())
    }

    /// The last lines of its log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = self.log_since(0);
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    fn log_since(&self, begin: u64) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = File::open(self.log()) {
            let _ = file.seek(SeekFrom::Start(begin)).and_then(|_| file.read_to_end(&mut bytes));
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn log(&self) -> PathBuf {
        self.run.path().join("log")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.run.path()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (port, folder) = (self.port, self.folder());
        f.debug_struct(self.name)
            .field("port", &port)
            .field("pid", &self.pid())
            .field("folder", &folder)
            .finish_non_exhaustive()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(process) = self.lock().take() else { return };
        if let Err(e) = end(&process, self.ends.drop) {
            eprintln!("{} did not end: {e:#}", self.name);
        }
    }
}

/// Why a server does not start.
enum Failure {
    PortTaken(anyhow::Error),
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(e: anyhow::Error) -> Self {
        Self::Other(e)
    }
}

impl From<Failure> for anyhow::Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::PortTaken(e) | Failure::Other(e) => e,
        }
    }
}

/// Asks a process to end, and kills it if it does not.
fn end(process: &Process, signal: Signal) -> Result<()> {
    if process.end().is_some() {
        return Ok(());
    }
    if signal == Signal::KILL {
        return kill(process);
    }
    process.send(signal);
    // A suspended process gets its signals only when it goes on.
    tree::resume(process.id())?;
    if process.wait(STOP) { Ok(()) } else { kill(process) }
}

/// Suspended first, no process can start another one, or see what happens to the others.
fn kill(process: &Process) -> Result<()> {
    let all = tree::suspend(process.id())?;
    process.send(Signal::KILL);
    all.iter().filter(|id| **id != process.id()).for_each(|id| tree::send(*id, Signal::KILL));
    process.wait(STOP);
    tree::wait_gone(&all)
}

/// A port that nobody has, below those that systems give to outgoing connections, so that none of them takes it while its server is
/// down.
pub(crate) fn free_port() -> Result<u16> {
    const PORTS: std::ops::Range<u16> = 15_000..30_000;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.subsec_nanos();
    let count = u32::from(PORTS.end - PORTS.start);
    // Everybody begins elsewhere.
    let begin = (now / 1_000) ^ std::process::id().wrapping_mul(7_919);
    let mut ports =
        (0..count).filter_map(|i| u16::try_from(begin.wrapping_add(i) % count).ok()).map(|p| PORTS.start + p);
    let free = ports.find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok());
    free.context("no port of 127.0.0.1 is free")
}
