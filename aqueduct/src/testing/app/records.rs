//! What became of each event: a layer around every route writes down each attempt.

use std::any::Any;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tower_layer::Layer;
use tower_service::Service;

use crate::call::Call;
use crate::event::Event;
use crate::layer::Next;
use crate::outcome::{BoxFuture, Outcome};
use crate::store::{Listed, RowState};
use crate::topic::{Partition, Place, Position};

/// What an event came to.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Handled {
    /// The event as it was tried last, or as it was given to [`TestApp::publish`](super::TestApp::publish).
    pub event: Arc<Event>,
    /// How many attempts were done; one, unless it was replayed or came twice.
    pub done: usize,
    /// The errors of the attempts that failed, oldest first.
    pub errors: Vec<String>,
    /// Where it is now.
    pub fate: Fate,
}

/// Where an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fate {
    /// With the broker: not settled yet.
    Open,
    /// An attempt was done, and it is gone.
    Done,
    /// In the store, to be tried again, or behind one that is.
    Parked,
    /// A dead letter.
    Dead,
    /// Settled without a handler that was done with it: filtered, of an ignored type, given up or discarded.
    Dropped,
}

/// Names an event.
type Name = (Partition, Place);

/// More attempts than this in one wait have no end.
const ATTEMPTS_MAX: u64 = 100_000;
/// How often those who wait for that are told.
const TOLD_EVERY: u64 = 1_000;

/// What is known of each event.
#[derive(Default)]
pub(super) struct Records {
    inner: Mutex<Inner>,
    more: Notify,
}

#[derive(Default)]
struct Inner {
    /// Attempts that have ended, of all events.
    attempts: u64,
    records: Vec<Record>,
    by_name: BTreeMap<Name, usize>,
}

struct Record {
    name: Name,
    event: Arc<Event>,
    done: usize,
    errors: Vec<String>,
}

impl Records {
    pub(super) fn published(&self, name: &Name, event: Event) {
        self.inner.lock().of(name, || Arc::new(event));
    }

    fn tried(&self, name: &Name, event: &Arc<Event>, result: Result<(), String>) {
        let mut inner = self.inner.lock();
        let record = inner.of(name, || Arc::clone(event));
        record.event = Arc::clone(event);
        match result {
            Ok(()) => record.done += 1,
            Err(error) => record.errors.push(error),
        }
        inner.attempts += 1;
        if inner.attempts.is_multiple_of(TOLD_EVERY) {
            self.more.notify_waiters();
        }
    }

    /// Resolves after so many attempts that there will be no end of them, and says how many those were.
    pub(super) async fn endless(&self) -> u64 {
        let end = self.inner.lock().attempts + ATTEMPTS_MAX;
        loop {
            let more = self.more.notified();
            if self.inner.lock().attempts >= end {
                return ATTEMPTS_MAX;
            }
            more.await;
        }
    }

    /// What each event came to, given the rows of the store and how far a partition is settled.
    pub(super) fn report(&self, rows: &[Listed], floor: impl Fn(&Partition) -> Option<Position>) -> Vec<Handled> {
        let rows: BTreeMap<(&Partition, Place), &Listed> =
            rows.iter().map(|listed| ((&listed.partition, listed.row.place), listed)).collect();
        let inner = self.inner.lock();
        let handled = inner.records.iter().map(|record| {
            let (partition, place) = &record.name;
            let row = rows.get(&(partition, *place)).map(|listed| &listed.row);
            let fate = match row.map(|row| row.state) {
                Some(RowState::Parked) => Fate::Parked,
                Some(RowState::Dead(_)) => Fate::Dead,
                Some(RowState::Discarded) => Fate::Dropped,
                None if record.done > 0 => Fate::Done,
                None if floor(partition) >= Some(place.position) => Fate::Dropped,
                None => Fate::Open,
            };
            let mut errors = record.errors.clone();
            if let (true, Some(row)) = (errors.is_empty(), row) {
                // No handler was reached: the history alone knows why.
                errors.extend(row.history.iter().map(|failure| failure.error.to_string()));
            }
            Handled { event: Arc::clone(&record.event), done: record.done, errors, fate }
        });
        handled.collect()
    }
}

impl Inner {
    fn of(&mut self, name: &Name, event: impl FnOnce() -> Arc<Event>) -> &mut Record {
        let next = self.records.len();
        let at = *self.by_name.entry(name.clone()).or_insert(next);
        if at == next {
            self.records.push(Record { name: name.clone(), event: event(), done: 0, errors: Vec::new() });
        }
        &mut self.records[at]
    }
}

/// The layer.
pub(super) struct Recorder(pub(super) Arc<Records>);

impl Layer<Next> for Recorder {
    type Service = Recorded;

    fn layer(&self, next: Next) -> Recorded {
        Recorded { next, records: Arc::clone(&self.0) }
    }
}

/// A route whose attempts are written down.
#[derive(Clone)]
pub(super) struct Recorded {
    next: Next,
    records: Arc<Records>,
}

impl Service<Call> for Recorded {
    type Response = Outcome;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Outcome, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.next.poll_ready(cx)
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let name = (call.origin().partition.clone(), call.place());
        let mut pending =
            Pending { records: Arc::clone(&self.records), name, event: Arc::clone(call.event_arc()), told: false };
        let mut next = self.next.clone();
        Box::pin(async move {
            let mut attempt = Box::pin(async move { next.call(call).await });
            let ended = poll_fn(|cx| match catch_unwind(AssertUnwindSafe(|| attempt.as_mut().poll(cx))) {
                Ok(Poll::Pending) => Poll::Pending,
                Ok(Poll::Ready(outcome)) => Poll::Ready(Ok(outcome)),
                Err(panic) => Poll::Ready(Err(panic)),
            });
            match ended.await {
                Ok(Ok(outcome)) => {
                    pending.tell(outcome.error().map_or(Ok(()), |error| Err(error.to_string())));
                    Ok(outcome)
                }
                Ok(Err(never)) => match never {},
                Err(panic) => {
                    pending.tell(Err(panic_text(&*panic)));
                    resume_unwind(panic)
                }
            }
        })
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("the handler panicked: {}", text.unwrap_or("(no message)"))
}

/// An attempt that has not ended.
struct Pending {
    records: Arc<Records>,
    name: Name,
    event: Arc<Event>,
    told: bool,
}

impl Pending {
    fn tell(&mut self, result: Result<(), String>) {
        self.told = true;
        self.records.tried(&self.name, &self.event, result);
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.told {
            self.tell(Err(
                "the attempt was dropped before its end, at its deadline or because its service stops".to_owned()
            ));
        }
    }
}
