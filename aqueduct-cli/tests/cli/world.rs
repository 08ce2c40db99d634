//! A folder with the program in it, and processes that are waited for by what they say.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use aqueduct::sqlite::SqliteStore;
use aqueduct::store::{Content, Listed, Query, RowState, Store};
use tempfile::TempDir;

/// Longer than anything here takes, on a busy machine too.
pub(crate) const LONG: Duration = Duration::from_mins(2);

/// The real events.
pub(crate) const WEBHOOKS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../aqueduct/examples/data/github-webhooks.ndjson");

pub(crate) struct World {
    folder: TempDir,
}

/// An event in the store.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: String,
    pub(crate) dead: bool,
    pub(crate) attempts: u32,
    pub(crate) error: String,
}

/// What a process said until it ended.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }

    /// A shell script that may be run.
    pub(crate) fn script(&self, name: &str, text: &str) -> String {
        let path = self.write(name, &format!("#!/bin/sh\n{text}\n"));
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// The program, in this folder, with none of the settings of whoever runs the tests.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_aqueduct"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("AQUEDUCT_")) {
            command.env_remove(name);
        }
        command.args(arguments).current_dir(self.folder.path()).env("NO_COLOR", "1").stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Said {
        Said::of(self.command(arguments))
    }

    pub(crate) fn run_with(&self, arguments: &[&str], input: &str) -> Said {
        let mut command = self.command(arguments);
        command.stdin(std::fs::File::open(self.write("input", input)).unwrap());
        Said::of(command)
    }

    /// Publishes `count` small events of `keys` keys to the topic `t`, with ids from 0.
    pub(crate) fn events(&self, count: usize, keys: usize) {
        let line = |n: usize| format!("{{\"n\":{n},\"k\":\"key-{}\"}}\n", n % keys);
        let text: String = (0..count).map(line).collect();
        self.run_with(&["publish", "--topic", "t", "--type", "tick", "--id", "n", "--key", "k"], &text).succeeded();
    }

    /// What is parked or dead: id, whether it is dead, attempts, and the last error.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let path = self.path("aqueduct.db");
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let store = SqliteStore::open(path).await.unwrap();
            let mut query = Query::default();
            query.limit = 10_000;
            let rows = store.browse(&query).await.unwrap();
            let row = |listed: Listed| {
                let Content::Event(event) = &listed.row.content else { panic!("no event") };
                Row {
                    id: event.id.to_string(),
                    dead: matches!(listed.row.state, RowState::Dead(_)),
                    attempts: listed.row.attempts,
                    error: listed.row.history.back().map(|f| f.error.to_string()).unwrap_or_default(),
                }
            };
            rows.into_iter().map(row).collect()
        })
    }

    pub(crate) fn start(&self, arguments: &[&str]) -> Running {
        Running::start(self.command(arguments))
    }
}

impl Said {
    pub(crate) fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (out, err) = (read_all(child.stdout.take().unwrap()), read_all(child.stderr.take().unwrap()));
        let ended = out.recv_timeout(LONG).and_then(|out| Ok((out, err.recv_timeout(LONG)?)));
        let Ok((out, err)) = ended else {
            child.kill().unwrap();
            panic!("it does not end: {command:?} {err:?}", err = err.recv_timeout(Duration::from_secs(1)));
        };
        Self { code: child.wait().unwrap().code(), out, err }
    }

    #[track_caller]
    pub(crate) fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// It failed with this code, and said all of this.
    #[track_caller]
    pub(crate) fn failed(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "{self:?}");
        self.says(words)
    }

    #[track_caller]
    pub(crate) fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(self.err.contains(word), "{word:?} is missing: {self:?}");
        }
        self
    }
}

fn read_all(mut from: impl Read + Send + 'static) -> Receiver<String> {
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let mut text = String::new();
        from.read_to_string(&mut text).unwrap();
        tell.send(text)
    });
    told
}

/// A process that runs. Both outputs are read as lines, in one order.
pub(crate) struct Running {
    child: Child,
    lines: Receiver<String>,
    pub(crate) said: String,
}

impl Running {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, lines) = channel();
        let outputs: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let tell = tell.clone();
            std::thread::spawn(move || {
                BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
            });
        }
        Self { child, lines, said: String::new() }
    }

    fn line(&mut self) -> Result<String, RecvTimeoutError> {
        let line = self.lines.recv_timeout(LONG)?;
        writeln!(self.said, "{line}").unwrap();
        Ok(line)
    }

    /// Waits until a line has this in it, and answers the line.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, mark: &str) -> String {
        loop {
            match self.line() {
                Ok(line) if line.contains(mark) => return line,
                Ok(_) => {}
                Err(error) => panic!("it did not say {mark:?} ({error}): {}", self.said),
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, name: &str) {
        signal(name, &self.pid().to_string());
    }

    /// Waits for the end of it, and of what else has its outputs.
    pub(crate) fn end(&mut self) -> ExitStatus {
        loop {
            match self.line() {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return self.child.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {}", self.said),
            }
        }
    }

    /// Lets it run for so long, or until it has ended.
    pub(crate) fn wait_or_end(&mut self, time: Duration) {
        let until = std::time::Instant::now() + time;
        while let Ok(line) = self.lines.recv_timeout(until.saturating_duration_since(std::time::Instant::now())) {
            writeln!(self.said, "{line}").unwrap();
        }
    }

    /// The processes that it has started and that have not ended.
    pub(crate) fn descendants(&self) -> Vec<String> {
        let tasks = Path::new("/proc").join(self.pid().to_string()).join("task");
        let children =
            |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        let all: String = std::fs::read_dir(tasks).into_iter().flatten().flatten().map(children).collect();
        all.split_whitespace().map(str::to_owned).collect()
    }

    /// Kills it, and nothing else. Says whether it was still running.
    pub(crate) fn kill(&mut self) -> bool {
        let ran = self.child.try_wait().unwrap().is_none();
        let _ = self.child.kill();
        let _ = self.child.wait();
        ran
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Sends a signal to a process, or with a minus before it to a group.
pub(crate) fn signal(name: &str, to: &str) -> bool {
    Command::new("kill").args([&format!("-{name}"), "--", to]).stderr(Stdio::null()).status().unwrap().success()
}

/// True while a process, and no more than a zombie of one, is there.
pub(crate) fn is_running(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid).join("stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}
