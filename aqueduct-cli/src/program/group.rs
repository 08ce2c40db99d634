//! A program that runs, with all that it starts: one process group, which is ended as a whole.

use std::io;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::sqlite::{ChildRecord, Children};
use aqueduct::{Clock, Error, Result};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::Child;
use tokio::sync::watch;

/// How often a group that is being ended is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// The groups that there are.
#[derive(Clone)]
pub(crate) struct Groups {
    counts: Arc<watch::Sender<Counts>>,
    kill_after: Duration,
}

#[derive(Default)]
struct Counts {
    running: usize,
    /// Those of attempts that were given up, which are being ended in the background.
    ending: usize,
}

impl Groups {
    pub(crate) fn new(kill_after: Duration) -> Self {
        Self { counts: Arc::default(), kill_after }
    }

    /// Waits until none is being ended: no event starts a program before, lest two work on one key.
    pub(crate) async fn quiet(&self) {
        // An error would mean that the sender is gone, which is this struct's own.
        let _ = self.counts.subscribe().wait_for(|counts| counts.ending == 0).await;
    }

    /// Waits until none runs.
    pub(crate) async fn none(&self) {
        let _ = self.counts.subscribe().wait_for(|counts| counts.running == 0).await;
    }

    /// Takes a program that was just started, and records it, so that after a crash of this process it is known.
    pub(crate) async fn adopt(&self, mut child: Child, children: Option<&Children>, limit: Duration) -> Result<Group> {
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else {
            return Err(Error::msg("the program had ended before it was known").uncounted());
        };
        match record(children, &child, limit.saturating_add(self.kill_after)) {
            Ok(record) => {
                self.counts.send_modify(|counts| counts.running += 1);
                let running = Some(Running { child, record, counts: Arc::clone(&self.counts) });
                Ok(Group { running, pid, groups: self.clone() })
            }
            Err(error) => {
                end(&mut child, pid, Duration::ZERO).await;
                Err(Error::msg(format!("the program could not be recorded and was ended: {error}")).uncounted())
            }
        }
    }
}

fn record(children: Option<&Children>, child: &Child, limit: Duration) -> io::Result<Option<ChildRecord>> {
    let (Some(children), Some(pid)) = (children, child.id()) else { return Ok(None) };
    children.record(pid, Clock::system().now().after(limit)).map(Some)
}

/// A program that has not ended yet, as far as is known.
struct Running {
    child: Child,
    record: Option<ChildRecord>,
    counts: Arc<watch::Sender<Counts>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.counts.send_modify(|counts| counts.running -= 1);
    }
}

/// A program and its process group. Dropping it ends all of it.
pub(crate) struct Group {
    running: Option<Running>,
    pid: Pid,
    groups: Groups,
}

impl Group {
    /// Waits until the program has ended by itself, and ends what it has left running.
    pub(crate) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let Some(running) = &mut self.running else { return Err(io::Error::other("it has ended already")) };
        let status = running.child.wait().await?;
        end_rest(self.pid, self.groups.kill_after).await;
        self.running = None;
        Ok(status)
    }

    /// Ends it: TERM, and KILL if that does not help in time.
    pub(crate) async fn end(&mut self) {
        if let Some(running) = &mut self.running {
            end(&mut running.child, self.pid, self.groups.kill_after).await;
            self.running = None;
        }
    }

    /// Says anew until when it may run.
    pub(crate) fn extend(&mut self, children: Option<&Children>, limit: Duration) {
        if let Some(running) = &mut self.running
            && let Ok(record) = record(children, &running.child, limit.saturating_add(self.groups.kill_after))
        {
            running.record = record;
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let Some(mut running) = self.running.take() else { return };
        let (pid, groups) = (self.pid, self.groups.clone());
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            let _ = kill_process_group(pid, Signal::KILL);
            return;
        };
        groups.counts.send_modify(|counts| counts.ending += 1);
        runtime.spawn(async move {
            end(&mut running.child, pid, groups.kill_after).await;
            drop(running);
            groups.counts.send_modify(|counts| counts.ending -= 1);
        });
    }
}

/// Ends a program with its group, and waits for it.
async fn end(child: &mut Child, pid: Pid, kill_after: Duration) {
    let _ = kill_process_group(pid, Signal::TERM);
    if tokio::time::timeout(kill_after, child.wait()).await.is_err() {
        let _ = kill_process_group(pid, Signal::KILL);
        // It has been killed, so this cannot take long, unless the kernel itself holds it.
        let _ = child.wait().await;
    }
    end_rest(pid, kill_after).await;
}

/// Ends what is left of a group whose leader has ended.
async fn end_rest(pid: Pid, kill_after: Duration) {
    if test_kill_process_group(pid).is_err() {
        return;
    }
    let _ = kill_process_group(pid, Signal::TERM);
    let ended = async {
        while test_kill_process_group(pid).is_ok() {
            tokio::time::sleep(LOOK).await;
        }
    };
    if tokio::time::timeout(kill_after, ended).await.is_err() {
        let _ = kill_process_group(pid, Signal::KILL);
    }
}
