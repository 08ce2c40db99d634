//! `--exec-stream`: programs that live long, read events and write results, a line each. `docs/exec-stream.md` is the
//! protocol.

mod protocol;
mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use aqueduct::{BoxFuture, Error, Event, Result};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Delivery, Handle, Limits, Records};
use crate::program::{CommandLine, Groups};
use protocol::Ask;
use worker::Worker;

/// What all workers have in common.
pub(crate) struct Shared {
    pub(crate) command: CommandLine,
    pub(crate) limits: Limits,
    pub(crate) records: Records,
    pub(crate) groups: Groups,
}

pub(crate) struct Stream {
    desks: Vec<Arc<Desk>>,
    shared: Arc<Shared>,
    closing: watch::Sender<bool>,
    next: AtomicU64,
    answers: bool,
}

/// Where events for one worker are handed in.
struct Desk {
    asks: mpsc::UnboundedSender<Ask>,
    /// Numbers of events that were given up: their worker is to be ended.
    given_up: mpsc::UnboundedSender<u64>,
    load: AtomicUsize,
}

impl Stream {
    /// Starts the workers. `answers`: their results may have events to publish.
    pub(crate) fn start(shared: Shared, workers: usize, answers: bool) -> Self {
        let (shared, closing) = (Arc::new(shared), watch::Sender::new(false));
        let desks = (1..=workers.max(1)).map(|number| {
            let ((asks, queue), (given_up, overdue)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
            let worker = Worker::new(number, Arc::clone(&shared), queue, overdue, closing.subscribe());
            tokio::spawn(worker.work());
            Arc::new(Desk { asks, given_up, load: AtomicUsize::new(0) })
        });
        Self { desks: desks.collect(), shared, closing, next: AtomicU64::new(1), answers }
    }

    /// The worker that has the least in hand.
    fn desk(&self) -> Result<Arc<Desk>> {
        let least = self.desks.iter().min_by_key(|desk| desk.load.load(Ordering::Relaxed));
        least.cloned().ok_or_else(|| Error::msg("there are no workers").uncounted())
    }
}

impl Handle for Stream {
    fn handle(&self, delivery: Delivery) -> BoxFuture<'_, Result<Vec<Event>>> {
        Box::pin(async move {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let (answer, mut reply) = oneshot::channel();
            let mut hand = InHand::new(self.desk()?, number);
            let gone = || Error::msg("the workers have ended").uncounted();
            let (line, taken) = (protocol::ask(number, &delivery)?, Arc::clone(&hand.taken));
            hand.desk.asks.send(Ask { number, line, taken, answer }).map_err(|_| gone())?;
            let limit = self.shared.limits.timeout;
            let Ok(reply) = tokio::time::timeout(limit, &mut reply).await else {
                let limit = humantime::format_duration(limit);
                if !hand.give_up() {
                    return Err(Error::msg(format!("no worker took it for {limit}")).uncounted());
                }
                // Until its worker has ended it may still work on the event.
                let _ = reply.await;
                return Err(Error::msg(format!("no result after {limit}; its worker was ended")));
            };
            hand.done = true;
            let results = reply.unwrap_or_else(|_| Err(gone()))?;
            match results.len() {
                0 => Ok(Vec::new()),
                _ if self.answers => delivery.results_of(&results),
                _ => Err(Error::msg(
                    "it answered with events, and nothing says where to publish them: give --publish-results TOPIC",
                )),
            }
        })
    }

    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.closing.send_replace(true);
            self.shared.groups.none().await;
        })
    }
}

/// An event that was handed in. If its attempt is dropped before it has a result, the worker that took it is ended.
struct InHand {
    desk: Arc<Desk>,
    number: u64,
    /// Whoever sets it decides: its worker, which then works on it, or the attempt, and then nobody will.
    taken: Arc<AtomicBool>,
    done: bool,
}

impl InHand {
    fn new(desk: Arc<Desk>, number: u64) -> Self {
        desk.load.fetch_add(1, Ordering::Relaxed);
        Self { desk, number, taken: Arc::default(), done: false }
    }

    /// True if a worker has it, which is ended.
    fn give_up(&mut self) -> bool {
        self.done = true;
        let taken = self.taken.swap(true, Ordering::AcqRel);
        if taken {
            // A worker that is gone works on nothing.
            let _ = self.desk.given_up.send(self.number);
        }
        taken
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.desk.load.fetch_sub(1, Ordering::Relaxed);
        if !self.done {
            self.give_up();
        }
    }
}
