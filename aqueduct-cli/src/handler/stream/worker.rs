//! One worker: its program is started, fed, listened to, and started again when it has ended.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aqueduct::{Clock, Error, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::process::{ChildStdin, ChildStdout};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use super::Shared;
use super::protocol::{Answer, Ask, Reply};
use crate::handler::exec::{not_started, said, with_tail};
use crate::output::note;
use crate::program::{Group, Tail};

/// Events whose lines are written at once.
const WRITE_MAX: usize = 1_024;

/// The longest line that is read.
const LINE_MAX: u64 = 16 << 20;

/// The wait before a worker is started again; it doubles while workers live shortly.
const RESTART: Duration = Duration::from_millis(100);
const RESTART_MAX: Duration = Duration::from_secs(10);
const SHORT_LIFE: Duration = Duration::from_secs(10);

/// What the program has in hand.
type Pending = Mutex<BTreeMap<u64, oneshot::Sender<Answer>>>;

pub(super) struct Worker {
    number: usize,
    shared: Arc<Shared>,
    queue: UnboundedReceiver<Ask>,
    overdue: UnboundedReceiver<u64>,
    closing: watch::Receiver<bool>,
    pending: Pending,
}

/// Why the program's life ended.
enum End {
    /// There will be no more events.
    Closing,
    /// This event was given up, and the others it had are not at fault.
    GaveUp(u64),
    /// It ended, or did something that it must not.
    Failed(String),
    NotStarted,
}

impl Worker {
    pub(super) fn new(
        number: usize,
        shared: Arc<Shared>,
        queue: UnboundedReceiver<Ask>,
        overdue: UnboundedReceiver<u64>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self { number, shared, queue, overdue, closing, pending: Mutex::default() }
    }

    /// Lives until there are no more events.
    pub(super) async fn work(mut self) {
        let mut wait = RESTART;
        loop {
            self.shared.groups.quiet().await;
            let began = Instant::now();
            let end = self.live().await;
            self.give_back(&end);
            if matches!(end, End::Closing) {
                return;
            }
            wait = if began.elapsed() < SHORT_LIFE { (wait * 2).min(RESTART_MAX) } else { RESTART };
            if self.pause(wait).await {
                return;
            }
        }
    }

    /// One life of the program.
    async fn live(&mut self) -> End {
        let mut command = self.shared.command.command();
        let mut child = match command.stdout(Stdio::piped()).spawn() {
            Ok(child) => child,
            Err(error) => {
                not_started(self.shared.command.program(), &error);
                return End::NotStarted;
            }
        };
        let ends = child.stdin.take().zip(child.stdout.take()).zip(child.stderr.take());
        let (limit, children) = (self.shared.limits.timeout, self.shared.records.children());
        let Ok(mut group) = self.shared.groups.adopt(child, children.as_ref(), limit).await else {
            return End::NotStarted;
        };
        let Some(((stdin, stdout), stderr)) = ends else {
            return End::Failed("has no standard input and output".into());
        };
        let tail = Tail::default();
        let following = tokio::spawn(tail.clone().follow(stderr));
        let end = self.converse(&mut group, stdin, stdout).await;
        if matches!(end, End::Closing) {
            let _ = tokio::time::timeout(self.shared.limits.kill_after, group.wait()).await;
        }
        group.end().await;
        let _ = tokio::time::timeout(Duration::from_millis(100), following).await;
        match end {
            End::Failed(why) => End::Failed(with_tail(why, &tail)),
            end => end,
        }
    }

    /// Writes events and reads results until something ends it. The input is closed then.
    async fn converse(&mut self, group: &mut Group, stdin: ChildStdin, stdout: ChildStdout) -> End {
        let (limit, children) = (self.shared.limits.timeout, self.shared.records.children());
        let Self { queue, overdue, closing, pending, .. } = self;
        let mut writing = std::pin::pin!(write(queue, pending, stdin));
        let mut reading = std::pin::pin!(read(stdout, pending));
        let mut record = tokio::time::interval(limit / 2 + Duration::from_millis(1));
        loop {
            tokio::select! {
                biased;
                why = &mut reading => return ended(group, why).await,
                why = &mut writing => return ended(group, why).await,
                // One of an earlier life ended with that.
                Some(number) = overdue.recv() => if lock(pending).contains_key(&number) { return End::GaveUp(number) },
                () = closed(closing) => return End::Closing,
                _ = record.tick() => group.extend(children.as_ref(), limit),
            }
        }
    }

    /// Fails what the program had in hand.
    fn give_back(&self, end: &End) {
        let pending = std::mem::take(&mut *lock(&self.pending));
        let (name, count) = (format!("worker {}", self.number), pending.len());
        match end {
            End::Failed(why) => note(format!("{name} {why}; {count} events it had are tried again, and so is it")),
            End::GaveUp(_) => {
                note(format!("{name} was ended because an event of its was given up, and is started again"));
            }
            End::Closing | End::NotStarted => {}
        }
        for (number, answer) in pending {
            let error = match end {
                End::Failed(why) => Error::msg(format!("its worker {why}")),
                End::GaveUp(by) if *by == number => Error::msg("it was given up"),
                _ => Error::msg("its worker was ended because of another event").uncounted(),
            };
            let _ = answer.send(Err(error));
        }
    }

    /// Waits before the next life; meanwhile events are sent back. True if there will be none.
    async fn pause(&mut self, wait: Duration) -> bool {
        let mut over = std::pin::pin!(tokio::time::sleep(Clock::system().jitter(wait / 2) + wait / 2));
        loop {
            tokio::select! {
                biased;
                () = closed(&mut self.closing) => return true,
                () = &mut over => return false,
                Some(ask) = self.queue.recv() => {
                    ask.taken.store(true, Ordering::Release);
                    let _ = ask.answer.send(Err(Error::msg("its worker is being started again").uncounted()));
                }
            }
        }
    }
}

/// Waits until there will be no more events.
async fn closed(closing: &mut watch::Receiver<bool>) {
    // An error means that those who hand in events are gone, which is the same.
    let _ = closing.wait_for(|closing| *closing).await;
}

fn lock(pending: &Pending) -> MutexGuard<'_, BTreeMap<u64, oneshot::Sender<Answer>>> {
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Says how the program ended, if it was that.
async fn ended(group: &mut Group, why: Result<(), String>) -> End {
    let exited = match why {
        Err(why) => return End::Failed(why),
        Ok(()) => tokio::time::timeout(Duration::from_secs(1), group.wait()).await,
    };
    End::Failed(match exited {
        Ok(Ok(status)) => format!("ended ({})", said(status)),
        _ => "closed its standard input or output".into(),
    })
}

/// Writes what waits with one call, until the program reads no more.
async fn write(queue: &mut UnboundedReceiver<Ask>, pending: &Pending, mut stdin: ChildStdin) -> Result<(), String> {
    let (mut asks, mut text) = (Vec::new(), Vec::new());
    while queue.recv_many(&mut asks, WRITE_MAX).await > 0 {
        text.clear();
        {
            let mut pending = lock(pending);
            for ask in asks.drain(..).filter(|ask| !ask.taken.swap(true, Ordering::AcqRel)) {
                text.extend_from_slice(&ask.line);
                pending.insert(ask.number, ask.answer);
            }
        }
        if stdin.write_all(&text).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// Reads results until the program writes no more, or something else.
async fn read(stdout: ChildStdout, pending: &Pending) -> Result<(), String> {
    let (mut stdout, mut line) = (BufReader::with_capacity(1 << 16, stdout), Vec::new());
    loop {
        line.clear();
        let read = (&mut stdout).take(LINE_MAX).read_until(b'\n', &mut line).await;
        if !matches!(read, Ok(1..)) {
            return Ok(());
        }
        if line.trim_ascii().is_empty() {
            continue;
        }
        let reply = Reply::parse(&line)?;
        let Some(answer) = lock(pending).remove(&reply.id) else {
            return Err(format!(
                "wrote a result for id {}, which it does not have in hand: write one result for each event",
                reply.id
            ));
        };
        // Nobody waits for it if the attempt was given up.
        let _ = answer.send(reply.answer());
    }
}
