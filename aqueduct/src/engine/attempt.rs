//! Attempts: running handlers, never on the loop.
//!
//! Worker tasks take one event at a time, poll its handler once in place and spawn what is still pending: a spawn and the
//! way back cost about a microsecond, and most handlers that only compute never need it. An attempt ends when its future
//! has been dropped, not when its deadline passes; only then is the loop told.

use std::collections::VecDeque;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::Span;

use super::mailbox::{AbortOnDrop, Mailbox, Note};
use super::runs::RunId;
use super::tasks::Tasks;
use crate::call::{Call, Origin};
use crate::clock::Clock;
use crate::error::{Error, Fault, Result, StoreError};
use crate::outcome::{BoxFuture, Outcome};
use crate::policy::{Classify, fault_of};
use crate::router::{App, RouteId};
use crate::telemetry;
use crate::topic::{Epoch, Partition};

/// How an attempt ended.
#[derive(Debug)]
pub(crate) enum Ending {
    Done,
    /// With what its policy makes of the error, and the error's text.
    Failed(Fault, String),
    /// The store has another epoch for the partition than ours, or has lost what it was to go on from.
    Refused(Option<Epoch>, String),
    Panicked(String),
    TimedOut,
    /// It was dropped because its lease had lapsed or its service stops; it does not count.
    Cancelled,
}

/// An attempt to be made.
pub(crate) struct Job {
    pub(crate) run: RunId,
    pub(crate) route: RouteId,
    pub(crate) call: Call,
    pub(crate) classify: Option<Classify>,
}

/// What the loop and the workers share.
pub(crate) struct Workers {
    queue: Mutex<Queue>,
    work: Notify,
    pub(crate) app: Arc<App>,
    pub(crate) mailbox: Arc<Mailbox>,
    clock: Clock,
    tasks: Tasks,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    idle: usize,
}

impl Workers {
    pub(crate) fn new(app: Arc<App>, mailbox: Arc<Mailbox>, clock: Clock, tasks: Tasks) -> Arc<Self> {
        Arc::new(Self { queue: Mutex::default(), work: Notify::new(), app, mailbox, clock, tasks })
    }

    /// Starts as many workers as the runtime has threads: one that is blocked by its handler leaves the others.
    pub(crate) fn start(self: &Arc<Self>) -> Vec<AbortOnDrop> {
        let threads = tokio::runtime::Handle::current().metrics().num_workers().max(1);
        (0..threads).map(|_| self.tasks.spawn(Arc::clone(self).work())).collect()
    }

    /// Hands jobs to the workers; `jobs` is left empty.
    pub(crate) fn submit(&self, jobs: &mut Vec<Job>) {
        let count = jobs.len();
        let wake = {
            let mut queue = self.queue.lock();
            queue.jobs.extend(jobs.drain(..));
            queue.idle.min(count)
        };
        (0..wake).for_each(|_| self.work.notify_one());
    }

    async fn work(self: Arc<Self>) {
        loop {
            let job = self.next().await;
            // A woken loop may sit in this thread's own slot, from where no other thread takes it: let it run before a
            // handler is polled that may block the thread.
            if self.attempt(job) {
                step_back().await;
            }
        }
    }

    async fn next(&self) -> Job {
        loop {
            let mut work = std::pin::pin!(self.work.notified());
            let idle = {
                let mut queue = self.queue.lock();
                if let Some(job) = queue.jobs.pop_front() {
                    return job;
                }
                queue.idle += 1;
                // From here on a notification finds this worker, though it has not been polled yet.
                work.as_mut().enable();
                Idle(self)
            };
            work.await;
            drop(idle);
        }
    }

    /// Polls an attempt once. Answers true if a task was woken or spawned.
    fn attempt(self: &Arc<Self>, job: Job) -> bool {
        let (run, deadline) = (job.run, job.call.deadline());
        let mut driven = Driven::new(&self.app, job);
        match driven.poll_once(&mut Context::from_waker(Waker::noop()), &self.clock) {
            Poll::Ready(ending) => {
                drop(driven);
                self.mailbox.push(Note::Ended { run, ending })
            }
            Poll::Pending => {
                let report = Report { run, mailbox: Arc::clone(&self.mailbox), ending: Some(Ending::Cancelled) };
                let task = self.tasks.spawn(Spawned { driven, report }.drive(deadline, self.clock.clone()));
                self.mailbox.push(Note::Spawned { run, task });
                true
            }
        }
    }
}

/// Lets other tasks of this thread run first. Unlike tokio's `yield_now`, which keeps the task in a list of the thread
/// until that looks for events, it goes to the end of the queue, from where another thread can take it if this one is
/// blocked by whoever runs next.
async fn step_back() {
    let mut stepped = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut stepped, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Counts a waiting worker, also when its task is dropped while it waits.
struct Idle<'a>(&'a Workers);

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.queue.lock().idle -= 1;
    }
}

/// An attempt with a task of its own. The future is dropped before the report is sent: fields are dropped in order.
struct Spawned {
    driven: Driven,
    report: Report,
}

impl Spawned {
    async fn drive(mut self, deadline: Option<Instant>, clock: Clock) {
        let ended = std::future::poll_fn(|cx| self.driven.poll_once(cx, &clock));
        let ending = match deadline {
            None => ended.await,
            Some(deadline) => tokio::time::timeout_at(deadline, ended).await.unwrap_or(Ending::TimedOut),
        };
        self.report.ending = Some(ending);
    }
}

/// Tells the loop how an attempt ended, at the latest when it is dropped.
struct Report {
    run: RunId,
    mailbox: Arc<Mailbox>,
    ending: Option<Ending>,
}

impl Drop for Report {
    fn drop(&mut self) {
        if let Some(ending) = self.ending.take() {
            self.mailbox.push(Note::Ended { run: self.run, ending });
        }
    }
}

/// A handler's future, then its commit; polled only while the lease holds.
struct Driven {
    stage: Stage,
    origin: Arc<Origin>,
    classify: Option<Classify>,
    span: Span,
}

enum Stage {
    Handler(BoxFuture<'static, Outcome>),
    Commit(BoxFuture<'static, Result<()>>),
    Ended,
}

impl Driven {
    fn new(app: &App, job: Job) -> Self {
        let (origin, classify) = (Arc::clone(job.call.origin()), job.classify);
        let span = telemetry::attempt_span(&job.call);
        let endpoint = &app.route(job.route).endpoint;
        let begun = span.in_scope(|| catch_unwind(AssertUnwindSafe(|| endpoint.call(job.call))));
        let stage = match begun {
            Ok(future) => Stage::Handler(future),
            Err(panic) => Stage::Commit(Box::pin(std::future::ready(Err(Error::msg(panic_text(&*panic)))))),
        };
        Self { stage, origin, classify, span }
    }

    fn poll_once(&mut self, cx: &mut Context<'_>, clock: &Clock) -> Poll<Ending> {
        if !self.origin.holds(clock) {
            return Poll::Ready(self.end(Ending::Cancelled));
        }
        let Self { stage, span, .. } = self;
        match span.in_scope(|| catch_unwind(AssertUnwindSafe(|| stage.poll(cx)))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(()))) => Poll::Ready(self.end(Ending::Done)),
            Ok(Poll::Ready(Err(error))) => {
                let ending = judge(error, self.classify, &self.origin.partition);
                Poll::Ready(self.end(ending))
            }
            Err(panic) => Poll::Ready(self.end(Ending::Panicked(panic_text(&*panic)))),
        }
    }

    /// Drops the future: a handler that panics while it is dropped must not take the worker with it.
    fn end(&mut self, ending: Ending) -> Ending {
        let stage = std::mem::replace(&mut self.stage, Stage::Ended);
        match catch_unwind(AssertUnwindSafe(|| drop(stage))) {
            Ok(()) => ending,
            Err(panic) => Ending::Panicked(panic_text(&*panic)),
        }
    }
}

impl Drop for Driven {
    fn drop(&mut self) {
        let _ = self.end(Ending::Cancelled);
    }
}

impl Stage {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if let Self::Handler(future) = self {
            let Poll::Ready(outcome) = Pin::new(future).poll(cx) else { return Poll::Pending };
            if !outcome.has_unit() {
                return Poll::Ready(outcome.into_result());
            }
            *self = Self::Commit(Box::pin(outcome.commit()));
        }
        match self {
            Self::Commit(future) => Pin::new(future).poll(cx),
            Self::Handler(_) | Self::Ended => Poll::Ready(Err(Error::msg("an attempt was polled after its end"))),
        }
    }
}

/// What an error means, found out here and not on the loop: to judge it, to write it and to drop it is the user's code,
/// which may panic.
fn judge(error: Error, classify: Option<Classify>, ours: &Partition) -> Ending {
    let judged = catch_unwind(AssertUnwindSafe(move || match error.downcast_ref() {
        Some(StoreError::Fenced { partition, held, .. }) if partition == ours => {
            Ending::Refused(Some(*held), error.to_string())
        }
        Some(StoreError::Lost(_)) => Ending::Refused(None, error.to_string()),
        _ => Ending::Failed(fault_of(&error, classify), error.to_string()),
    }));
    judged.unwrap_or_else(|panic| Ending::Panicked(panic_text(&*panic)))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("(no message)"))
}
