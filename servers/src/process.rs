//! A process that runs until it is told otherwise.

use std::process::{Command, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use crate::tree;

/// A running process. A thread of its own starts it and waits for it: the kernel's word that a starter is gone is about the thread
/// that started, and the one that a test runs on ends long before the process does.
#[derive(Debug)]
pub(crate) struct Process {
    id: Pid,
    life: Arc<Life>,
}

#[derive(Debug, Default)]
struct Life {
    /// How it ended.
    end: Mutex<Option<String>>,
    ended: Condvar,
}

impl Process {
    pub(crate) fn start(command: Command) -> Result<Self> {
        let name = name(&command);
        let (tell, told) = channel();
        let life = Arc::<Life>::default();
        let kept = life.clone();
        std::thread::Builder::new().name(name.clone()).spawn(move || keep(command, &tell, &kept))?;
        let id = told.recv()?.with_context(|| format!("cannot start {name}"))?;
        Ok(Self { id, life })
    }

    pub(crate) fn id(&self) -> Pid {
        self.id
    }

    /// How it ended, if it did.
    pub(crate) fn end(&self) -> Option<String> {
        self.life.lock().clone()
    }

    /// Sends a signal to this process alone, if it has not ended.
    pub(crate) fn send(&self, signal: Signal) {
        // Under the lock its number cannot have passed to another process.
        let end = self.life.lock();
        if end.is_none() {
            tree::send(self.id, signal);
        }
    }

    /// Waits for its end; false if that takes too long.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let end = self.life.lock();
        let waited = self.life.ended.wait_timeout_while(end, patience, |end| end.is_none());
        waited.unwrap_or_else(PoisonError::into_inner).0.is_some()
    }
}

impl Life {
    fn lock(&self) -> MutexGuard<'_, Option<String>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep(mut command: Command, tell: &Sender<std::io::Result<Pid>>, life: &Life) {
    let mut child = match command.spawn() {
        Ok(child) => child,
        Err(e) => {
            let _ = tell.send(Err(e));
            return;
        }
    };
    let id = Pid::from_child(&child);
    let _ = tell.send(Ok(id));
    // First it only looks, so that the number stays taken until nobody sends signals to it any more.
    let looking = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    while matches!(waitid(WaitId::Pid(id), looking), Err(Errno::INTR)) {}
    let mut end = life.lock();
    *end = Some(child.wait().map_or_else(|e| e.to_string(), |status| status.to_string()));
    life.ended.notify_all();
}

/// Runs a program to its end and answers what it printed, without the last line's end; fails if it does, with what it said.
pub(crate) fn read(command: &mut Command) -> Result<String> {
    let name = name(command);
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {name}"))?;
    if !output.status.success() {
        let said = [output.stderr, output.stdout].concat();
        bail!("{name} ended with {}: {}", output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned())
}

/// The name of the program that is meant: `setpriv` only stands before it.
fn name(command: &Command) -> String {
    let behind = command.get_args().skip_while(|a| *a != "--").nth(1);
    let program = behind.unwrap_or_else(|| command.get_program());
    std::path::Path::new(program).file_name().unwrap_or(program).to_string_lossy().into_owned()
}
