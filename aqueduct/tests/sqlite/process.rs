//! Another process of a test's binary: started with a task, listened to, killed.

use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use aqueduct::Clock;
use serde_json::{Value, json};

use crate::worker::TASK;

/// Longer than anything here takes, on a busy machine too.
pub(crate) const LONG: Duration = Duration::from_mins(2);

/// Another process of this binary. It ends with this value.
pub(crate) struct Worker {
    pub(crate) process: Child,
    pub(crate) input: Option<ChildStdin>,
    output: Receiver<String>,
    /// What it said so far.
    pub(crate) said: String,
    errors: std::path::PathBuf,
}

impl Worker {
    pub(crate) fn start(folder: &Path, name: &str, mut task: Value) -> Self {
        (task["folder"], task["process"]) = (json!(folder), json!(name));
        let (path, errors) = (folder.join(format!("{name}.task")), folder.join(format!("{name}.errors")));
        std::fs::write(&path, task.to_string()).unwrap();
        let (reader, stdout) = std::io::pipe().unwrap();
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "worker::process", "--ignored", "--nocapture"])
            .env(TASK, path)
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(stdout)
            .stderr(std::fs::File::create(&errors).unwrap())
            .spawn()
            .unwrap();
        let (tell, output) = channel();
        std::thread::spawn(move || {
            BufReader::new(reader).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Self { input: process.stdin.take(), process, output, said: String::new(), errors }
    }

    /// The next line; none at the end, when all have ended that could write one.
    fn line(&mut self, patience: Duration) -> Result<String, RecvTimeoutError> {
        let line = self.output.recv_timeout(patience)?;
        writeln!(self.said, "{line}").unwrap();
        Ok(line)
    }

    /// Waits until it has said something, and answers what came behind it.
    pub(crate) fn wait_for(&mut self, mark: &str) -> String {
        let [rest] = self.wait_for_all([mark]);
        rest
    }

    /// Waits until it, or what it has started, has said these things, in whatever order.
    pub(crate) fn wait_for_all<const N: usize>(&mut self, marks: [&str; N]) -> [String; N] {
        let mut found = [const { None }; N];
        while found.contains(&None) {
            let line = match self.line(LONG) {
                Ok(line) => line,
                Err(error) => panic!("it did not say all of {marks:?} ({error}): {}", self.story()),
            };
            for (mark, found) in marks.iter().zip(&mut found) {
                if let Some((_, rest)) = line.split_once(mark) {
                    *found = Some(rest.trim().to_owned());
                }
            }
        }
        found.map(Option::unwrap)
    }

    /// Waits for its end and that of all that it started.
    pub(crate) fn end(&mut self) -> ExitStatus {
        self.end_within(LONG)
    }

    fn end_within(&mut self, patience: Duration) -> ExitStatus {
        loop {
            match self.line(patience) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return self.process.wait().unwrap(),
                Err(RecvTimeoutError::Timeout) => panic!("it does not end: {}", self.story()),
            }
        }
    }

    pub(crate) fn end_well(&mut self) {
        self.end_well_within(LONG);
    }

    pub(crate) fn end_well_within(&mut self, patience: Duration) {
        let status = self.end_within(patience);
        assert!(status.success(), "{status}: {}", self.story());
    }

    /// Kills it after a time, unless it ends before: true if it was killed.
    pub(crate) fn kill_after(&mut self, moment: Duration) -> bool {
        let clock = Clock::system();
        let until = clock.boot().after(moment);
        while self.line(until.since(clock.boot())).is_ok() {}
        self.kill();
        self.end().signal().is_some()
    }

    /// Kills it, and nothing else.
    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// What it has said last.
    pub(crate) fn story(&mut self) -> String {
        while self.line(Duration::ZERO).is_ok() {}
        let errors = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let tail = |text: &str| {
            text.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        format!("\n{}\n{}", tail(&self.said), tail(&errors))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Hands warnings of the library to the test.
pub(crate) struct Warnings;

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Warnings {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                let _ = write!(self.0, " {field}={value:?}");
            }
        }
        if *event.metadata().level() <= tracing::Level::WARN {
            let mut text = Text(String::new());
            event.record(&mut text);
            println!("\n@log{}", text.0);
        }
    }
}
