//! A call: an event on its way to a handler.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::clock::{Clock, Lease};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::outcome::{Outcome, Unit};
use crate::topic::{Epoch, Partition, Place, Text};

/// An event on its way through the layers to a handler: one attempt.
pub struct Call {
    event: Arc<Event>,
    origin: Arc<Origin>,
    place: Place,
    attempt: Attempt,
    deadline: Option<tokio::time::Instant>,
    extensions: Extensions,
    scope: OnceLock<Scope>,
}

/// What all calls from one partition under one epoch have in common.
#[non_exhaustive]
pub struct Origin {
    /// The name of the consumer.
    pub consumer: Text,
    /// The partition that the event came from.
    pub partition: Partition,
    /// The epoch under which this instance owns the partition.
    pub epoch: Epoch,
    /// Until when it owns it.
    pub lease: Lease,
    /// The store of the service, for extractors that know which one they need.
    pub store: Option<Arc<dyn Any + Send + Sync>>,
    revoked: AtomicBool,
}

impl Origin {
    /// A partition that is owned under an epoch for as long as the lease holds.
    pub fn new(consumer: impl Into<Text>, partition: Partition, epoch: Epoch, lease: Lease) -> Self {
        Self { consumer: consumer.into(), partition, epoch, lease, store: None, revoked: AtomicBool::new(false) }
    }

    /// The same with the store of the service.
    pub fn with_store(mut self, store: Arc<dyn Any + Send + Sync>) -> Self {
        self.store = Some(store);
        self
    }

    /// True while attempts may be polled: the lease holds and the partition was not taken away.
    pub fn holds(&self, clock: &Clock) -> bool {
        !self.revoked.load(Ordering::Acquire) && self.lease.holds(clock)
    }

    /// Ends the ownership for good.
    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }
}

/// Which attempt this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Attempt {
    /// Counts from 1 over all attempts on this event that the engine knows of.
    pub number: u32,
    /// True if the event comes from the store, where it was parked or dead.
    pub stored: bool,
    /// True if an operator asked for this attempt.
    pub replay: bool,
}

impl Attempt {
    /// The attempt with this number on an event that comes from the broker.
    pub const fn fresh(number: u32) -> Self {
        Self { number, stored: false, replay: false }
    }

    /// The attempt with this number on an event that comes from the store.
    pub const fn stored(number: u32, replay: bool) -> Self {
        Self { number, stored: true, replay }
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { consumer, partition, epoch, .. } = self;
        f.debug_struct("Origin")
            .field("consumer", consumer)
            .field("partition", partition)
            .field("epoch", epoch)
            .finish_non_exhaustive()
    }
}

impl Call {
    /// A call with everything that a handler may ask for.
    pub fn new(event: Arc<Event>, origin: Arc<Origin>, place: Place, attempt: Attempt) -> Self {
        let extensions = Extensions::default();
        Self { event, origin, place, attempt, deadline: None, extensions, scope: OnceLock::new() }
    }

    /// The same call once more, for a layer that tries again within the attempt: same deadline, no extensions, and a
    /// transaction of its own.
    pub fn again(&self) -> Self {
        let mut again = Self::new(Arc::clone(&self.event), Arc::clone(&self.origin), self.place, self.attempt);
        again.deadline = self.deadline;
        again
    }

    /// Sets when the attempt is given up.
    pub fn with_deadline(mut self, deadline: tokio::time::Instant) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// The event.
    pub fn event(&self) -> &Event {
        &self.event
    }

    /// The event, shared.
    pub fn event_arc(&self) -> &Arc<Event> {
        &self.event
    }

    /// The consumer, partition and epoch it comes from.
    pub fn origin(&self) -> &Arc<Origin> {
        &self.origin
    }

    /// Where the event stands in its partition.
    pub fn place(&self) -> Place {
        self.place
    }

    /// Which attempt this is.
    pub fn attempt(&self) -> Attempt {
        self.attempt
    }

    /// When the attempt is given up, if ever.
    pub fn deadline(&self) -> Option<tokio::time::Instant> {
        self.deadline
    }

    /// What layers have left for those behind them.
    pub fn extensions(&self) -> &Extensions {
        &self.extensions
    }

    /// What layers have left for those behind them, to change it.
    pub fn extensions_mut(&mut self) -> &mut Extensions {
        &mut self.extensions
    }

    /// Where an extractor leaves a transaction for the end of the attempt.
    pub fn scope(&self) -> &Scope {
        self.scope.get_or_init(Scope::default)
    }

    /// When what is on loan must be given back.
    pub(crate) fn loan_ends(&self) -> Option<tokio::time::Instant> {
        match *self.scope.get()?.0.lock() {
            Slot::Lent(until) => until,
            _ => None,
        }
    }

    /// Closes the scope when the handler has returned: the transaction to commit, if there is one.
    pub(crate) fn close_scope(&self) -> Result<Option<Box<dyn Unit>>> {
        self.scope.get().map_or(Ok(None), Scope::close)
    }

    /// Closes the scope after a handler that has failed: its transaction is rolled back in good order, and says what it
    /// knows of the error.
    pub(crate) fn roll_back_scope(&self, failed: Outcome) -> Outcome {
        let Some(Slot::Held(unit)) = self.scope.get().and_then(Scope::abandon) else { return failed };
        let failed = failed.map_err(|error| unit.explain(error));
        unit.roll_back();
        failed
    }

    /// Closes the scope, if it is open, without a result of the handler: the transaction is dropped.
    pub(crate) fn abandon_scope(&self) {
        if let Some(scope) = self.scope.get() {
            drop(scope.abandon());
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("event", &self.event).field("attempt", &self.attempt).finish_non_exhaustive()
    }
}

/// Values by their type, at most one of each.
#[derive(Default)]
pub struct Extensions(Option<HashMap<TypeId, Box<dyn Any + Send + Sync>>>);

impl Extensions {
    /// Leaves a value, replacing another of its type.
    pub fn insert<T: Any + Send + Sync>(&mut self, value: T) {
        self.0.get_or_insert_default().insert(TypeId::of::<T>(), Box::new(value));
    }

    /// The value of this type.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.as_ref()?.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

/// Where the transaction of one attempt waits between the extractor that began it and the commit.
///
/// An extractor lends the unit to the handler and gives it back when the handler drops it.
#[derive(Clone, Default)]
pub struct Scope(Arc<Mutex<Slot>>);

#[derive(Default)]
enum Slot {
    #[default]
    Empty,
    /// Until then, if it has an end.
    Lent(Option<tokio::time::Instant>),
    Held(Box<dyn Unit>),
    Closed {
        gave: bool,
    },
}

impl Scope {
    /// Begins the loan of a unit; an attempt has one at most.
    pub fn lend(&self) -> Result<Loan> {
        let mut slot = self.0.lock();
        match *slot {
            Slot::Empty => {
                *slot = Slot::Lent(None);
                Ok(Loan(self.clone()))
            }
            Slot::Closed { .. } => Err(Error::msg("a transaction was asked for after its attempt had ended")),
            Slot::Lent(_) | Slot::Held(_) => {
                Err(Error::msg("an attempt has one transaction: ask for `Tx` once among the handler's arguments and pass it on as `&mut Tx`").permanent())
            }
        }
    }

    fn close(&self) -> Result<Option<Box<dyn Unit>>> {
        let mut slot = self.0.lock();
        let gave = matches!(*slot, Slot::Held(_));
        match std::mem::replace(&mut *slot, Slot::Closed { gave }) {
            Slot::Empty | Slot::Closed { .. } => Ok(None),
            Slot::Held(unit) => Ok(Some(unit)),
            Slot::Lent(_) => Err(Error::msg(
                "the transaction was still in use when the handler returned: do not move `Tx` into a spawned task, await the work instead",
            )),
        }
    }

    /// Closes it, if it is open, and answers what it held.
    fn abandon(&self) -> Option<Slot> {
        let mut slot = self.0.lock();
        let open = !matches!(*slot, Slot::Closed { .. });
        open.then(|| std::mem::replace(&mut *slot, Slot::Closed { gave: false }))
    }

    /// True if a transaction was handed on when the scope was closed.
    pub(crate) fn gave_unit(&self) -> bool {
        matches!(*self.0.lock(), Slot::Closed { gave: true })
    }
}

/// A unit that is out on loan; [`give_back`](Self::give_back) ends the loan.
pub struct Loan(Scope);

impl Loan {
    /// The handler must have returned by then: it is dropped otherwise, and the attempt has failed.
    pub fn ends(&self, at: tokio::time::Instant) {
        let mut slot = self.0.0.lock();
        if matches!(*slot, Slot::Lent(_)) {
            *slot = Slot::Lent(Some(at));
        }
    }

    /// Gives the unit back, to be committed at the end; after the end it is rolled back.
    pub fn give_back(self, unit: Box<dyn Unit>) {
        let mut slot = self.0.0.lock();
        if matches!(*slot, Slot::Lent(_)) {
            *slot = Slot::Held(unit);
        }
    }
}
