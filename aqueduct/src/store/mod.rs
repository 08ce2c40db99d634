//! The port to a store: where reliability state lives.
//!
//! A store keeps parked events and dead letters as [`Row`]s, grouped into lanes, under a [`Claim`]. Every durable write of
//! the engine is one [`Store::apply`]: atomic for each lane, refused as [`Fenced`](StoreError::Fenced) under an epoch that
//! is not the highest. A row carries its whole event and is its own wake-up.

use std::any::Any;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::event::Event;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Key, LaneId, Partition, Place, Position, Text};

pub mod memory;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub(crate) mod outbox;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub(crate) mod sql;

pub use memory::MemoryStore;

/// Where parked events and dead letters live.
pub trait Store: Any + Send + Sync {
    /// What it can do.
    fn abilities(&self) -> StoreAbilities;

    /// Raises the fence to the claim's epoch, and THEN loads what the new owner must know before it fetches anything.
    ///
    /// `floor` is the broker's: marks at or below it are deleted. The same epoch may take over again.
    fn take_over<'a>(
        &'a self,
        claim: &'a Claim,
        floor: Option<Position>,
    ) -> BoxFuture<'a, Result<TakeOver, StoreError>>;

    /// Compares where the broker has a partition with where this store has it, once after [`take_over`](Self::take_over),
    /// and answers up to where it is settled for ever: what is delivered at or below that is skipped.
    ///
    /// Refused, with the command to go on, if the store is behind the broker, for then it has lost what it had confirmed; or
    /// if the stream is another one. Defaults to knowing nothing.
    fn resume<'a>(&'a self, claim: &'a Claim, at: &'a Standing) -> BoxFuture<'a, Result<Option<Position>, StoreError>> {
        let _ = (claim, at);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Remembers up to where a partition is settled, before the broker is told, and answers when that is durable; so the
    /// store is never behind the broker unless it has lost something, which is refused. Defaults to doing nothing.
    fn settled<'a>(&'a self, claim: &'a Claim, floor: Position) -> BoxFuture<'a, Result<(), StoreError>> {
        let _ = (claim, floor);
        Box::pin(std::future::ready(Ok(())))
    }

    /// Applies operations in order and answers each. Operations on one lane take effect together or not at all.
    ///
    /// An error may hide a success, so all of an `apply` can be repeated, before any other: the second time each operation
    /// finds its work done. An append is judged by the rows of its lane, so no [`Finish`](Op::Finish) on its lane follows
    /// it in the same `apply`.
    fn apply<'a>(&'a self, claim: &'a Claim, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Applied>, StoreError>>;

    /// Writes dead letters of consumers that own nothing; a row that is there already stays as it is.
    fn bury<'a>(
        &'a self,
        consumer: &'a Text,
        partition: &'a Partition,
        rows: &'a [Row],
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// The heads of lanes that are due at `now`, at most `limit`, earliest first, and what operators have asked for.
    ///
    /// A head is the parked or blocking row of a lane with the lowest place; a blocking head holds its lane and is never due.
    fn due<'a>(&'a self, claim: &'a Claim, now: Timestamp, limit: usize) -> BoxFuture<'a, Result<Due, StoreError>>;

    /// Rows for people to look at, in the order of their places.
    fn browse<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>>;

    /// Leaves a command for the partition's owner and answers its id.
    fn command<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<CommandId, StoreError>>;

    /// What became of a command; none if there is no such command.
    fn command_result(&self, id: CommandId) -> BoxFuture<'_, Result<Option<CommandState>, StoreError>>;
}

/// What a store can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreAbilities {
    /// Rows outlive the process.
    pub durable: bool,
    /// The largest row taken, in bytes of its event.
    pub row_bytes_max: usize,
}

impl StoreAbilities {
    /// A store of rows up to 64 MiB.
    pub const fn new(durable: bool) -> Self {
        Self { durable, row_bytes_max: 64 << 20 }
    }
}

/// In whose name the store is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The consumer.
    pub consumer: Text,
    /// The partition.
    pub partition: Partition,
    /// The epoch under which it is owned.
    pub epoch: Epoch,
}

/// Where the broker has a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Standing {
    /// Which stream it is: another one if it was made anew. None where the broker cannot tell.
    pub stream: Option<Text>,
    /// Up to where it is settled; none if nothing is.
    pub floor: Option<Position>,
}

impl Standing {
    /// A partition of this stream that is settled up to here.
    pub fn new(stream: Option<Text>, floor: Option<Position>) -> Self {
        Self { stream, floor }
    }
}

/// What a new owner must know before it fetches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TakeOver {
    /// The lanes that have rows of any kind: each once, in any order.
    pub lanes: Vec<StoredLane>,
    /// The earliest time at which a head is due.
    pub next_at: Option<Timestamp>,
}

/// A lane that has rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredLane {
    /// The lane.
    pub lane: LaneId,
    /// It has parked rows or a dead letter that blocks.
    pub holds: bool,
    /// The highest position above the floor of a dead letter or a discarded row; such a row may be delivered again.
    pub mark: Option<Position>,
}

/// An event in the store.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Row {
    /// Where the event stood in the partition; unique there.
    pub place: Place,
    /// The lane it belongs to.
    pub lane: LaneId,
    /// The event, or the message that could not be decoded.
    pub content: Content,
    /// Parked, dead or discarded.
    pub state: RowState,
    /// Counts changes of the row, from 1.
    pub version: u32,
    /// How many attempts were made.
    pub attempts: u32,
    /// When the row is due if it is the head of its lane.
    pub next_at: Timestamp,
    /// When it was parked first.
    pub parked_at: Timestamp,
    /// The last attempts that failed, oldest first; at most [`HISTORY_MAX`].
    pub history: VecDeque<Failure>,
    /// An operator asked for its next attempt.
    pub replay: bool,
}

/// How many failed attempts a row remembers.
pub const HISTORY_MAX: usize = 20;

impl Row {
    /// A row that is parked and due at once.
    pub fn new(place: Place, lane: LaneId, content: Content, now: Timestamp) -> Self {
        let (state, version, attempts) = (RowState::Parked, 1, 0);
        Self {
            place,
            lane,
            content,
            state,
            version,
            attempts,
            next_at: now,
            parked_at: now,
            history: VecDeque::new(),
            replay: false,
        }
    }

    /// Adds a failed attempt to the history and forgets the oldest one above the limit.
    pub fn remember(&mut self, failure: Failure) {
        self.history.push_back(failure);
        while self.history.len() > HISTORY_MAX {
            self.history.pop_front();
        }
    }

    /// True if the row holds its lane: those behind it wait.
    pub fn holds(&self) -> bool {
        matches!(self.state, RowState::Parked | RowState::Dead(Hold::Block))
    }

    /// The row in its version.
    pub(crate) fn named(&self) -> RowRef {
        RowRef { place: self.place, lane: self.lane, version: self.version }
    }

    /// True if this update was made before: the row remembers its failure as the last one, in the version that it led to.
    pub(crate) fn has_failed(&self, row: RowRef, failure: &Failure) -> bool {
        let after = RowRef { version: row.version.wrapping_add(1), ..row };
        self.named() == after && self.history.back() == Some(failure)
    }

    /// Changes the row after a failed attempt.
    pub(crate) fn fail(&mut self, failure: &Failure, to: Next) {
        self.version = self.version.wrapping_add(1);
        self.attempts = self.attempts.saturating_add(1);
        self.replay = false;
        self.remember(failure.clone());
        match to {
            Next::Retry(at) => (self.state, self.next_at) = (RowState::Parked, at),
            Next::Dead(hold) => self.state = RowState::Dead(hold),
        }
    }

    /// Does to the row what an operator wants, or says why it cannot be done.
    pub(crate) fn act(&mut self, action: &Action, now: Timestamp) -> Result<(), String> {
        match action {
            Action::Replay => {
                (self.state, self.next_at) = (RowState::Parked, now);
                (self.attempts, self.replay) = (0, true);
            }
            Action::Skip if self.state == RowState::Dead(Hold::Block) => self.state = RowState::Dead(Hold::Skip),
            Action::Skip => {
                let state = self.state;
                return Err(format!("only a dead letter that blocks can be skipped, and this row is {state:?}"));
            }
            Action::Discard => self.state = RowState::Discarded,
            Action::Edit(event) if event.key.as_ref() == self.content.key() => {
                self.content = Content::Event(event.clone());
            }
            Action::Edit(event) => {
                let (old, new) = (self.content.key(), event.key.as_ref());
                return Err(format!("an edit keeps the key: the row has {old:?} and the new event has {new:?}"));
            }
        }
        self.version = self.version.wrapping_add(1);
        Ok(())
    }
}

/// What a row carries.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// An event.
    Event(Arc<Event>),
    /// A message that no format could decode; it has no key.
    Undecodable(Arc<Message>),
}

impl Content {
    /// The event's key.
    pub fn key(&self) -> Option<&Key> {
        match self {
            Self::Event(e) => e.key.as_ref(),
            Self::Undecodable(_) => None,
        }
    }

    /// The bytes it carries.
    pub fn size(&self) -> usize {
        match self {
            Self::Event(e) => e.size(),
            Self::Undecodable(m) => m.size(),
        }
    }
}

/// What state a row is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RowState {
    /// To be tried again.
    Parked,
    /// Given up.
    Dead(Hold),
    /// Discarded by an operator; kept as a mark until the floor has passed it.
    Discarded,
}

/// What a dead letter does to the events behind it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Hold {
    /// They go on without it. The default.
    #[default]
    Skip,
    /// They wait until somebody resolves it.
    Block,
}

/// A failed attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When it ended.
    pub at: Timestamp,
    /// Which attempt it was.
    pub attempt: u32,
    /// How long it took.
    pub took: Duration,
    /// The error, its causes included, cut to 2,000 bytes.
    pub error: Text,
}

/// One durable change.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Op {
    /// Writes rows of one lane, lowest place first; a row that is there already stays as it is. Answers
    /// [`Applied::Lane`].
    Put(Vec<Row>),
    /// Writes a row at the end of a lane that has rows. Answers [`Applied::Appended`], [`Applied::Present`] or
    /// [`Applied::Finished`].
    Append {
        /// The row.
        row: Row,
        /// What to do when the row stands before the lane's last one and is no row of it.
        late: Late,
    },
    /// Deletes a row that is done. Answers [`Applied::Lane`], also when it is gone already.
    Finish(RowRef),
    /// Changes a row after a failed attempt. Answers [`Applied::Lane`], or [`Applied::Conflict`] if the version is another.
    Update {
        /// The row.
        row: RowRef,
        /// The attempt that failed.
        failure: Failure,
        /// What becomes of it.
        to: Next,
    },
    /// Everything of the partition up to here is settled at the broker: marks at or below it are deleted. Answers
    /// [`Applied::Lane`] without a meaning.
    Floor(Position),
    /// Carries out, or refuses, an operator's command. Answers [`Applied::Lane`], or [`Applied::Conflict`] if the row has
    /// changed since; the command's state is kept either way.
    Operate {
        /// The command.
        id: CommandId,
        /// Why it is refused; none to carry it out.
        refused: Option<Text>,
        /// The time of the action.
        now: Timestamp,
    },
}

impl Op {
    /// The name of the kind of operation, for telemetry and crash points.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Put(rows) if rows.iter().any(|r| matches!(r.state, RowState::Dead(_))) => "dead",
            Self::Put(_) => "park",
            Self::Append { .. } => "append",
            Self::Finish(_) => "finish",
            Self::Update { to: Next::Retry(_), .. } => "redate",
            Self::Update { to: Next::Dead(_), .. } => "give_up",
            Self::Floor(_) => "floor",
            Self::Operate { .. } => "operate",
        }
    }
}

/// What becomes of an event that is appended before the end of its lane without being a row of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Late {
    /// It was finished before: a lane with a floor is written in the order of positions.
    Finished,
    /// It may be new: it is inserted in its place, a repeat rather than a loss.
    Insert,
}

/// Names a version of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowRef {
    /// The row's place.
    pub place: Place,
    /// The lane it belongs to.
    pub lane: LaneId,
    /// Its version.
    pub version: u32,
}

impl RowRef {
    /// Nothing if what stands at the place is of this lane and in this version, else what is there instead.
    pub(crate) fn check(self, found: Option<(LaneId, u32)>) -> Result<(), String> {
        let Self { place, lane, version } = self;
        match found {
            None => Err(format!("there is no row at {place:?}: it was finished or never parked")),
            Some((found, _)) if found != lane => Err(format!("the row at {place:?} is of {found:?}, not of {lane:?}")),
            Some((_, found)) if found != version => {
                Err(format!("the row at {place:?} has version {found} by now, not {version}: look at it again"))
            }
            Some(_) => Ok(()),
        }
    }
}

/// What becomes of a row after a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Next {
    /// It is tried again at this time.
    Retry(Timestamp),
    /// It is given up.
    Dead(Hold),
}

/// The answer to an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Applied {
    /// Done; this is how the lane stands after it.
    Lane {
        /// It has parked rows or a dead letter that blocks.
        holds: bool,
        /// When its head is due; none if it has none, or the head is a dead letter that blocks.
        next_at: Option<Timestamp>,
    },
    /// The row is at the end of its lane.
    Appended,
    /// The row was there already: it is delivered again, or this is a repeat of the operation.
    Present {
        /// The lane has parked rows or a dead letter that blocks.
        holds: bool,
    },
    /// The event was finished before.
    Finished,
    /// The row has another version, or is gone: nothing was changed.
    Conflict,
}

/// What is due.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Due {
    /// Heads of lanes that are due.
    pub heads: Vec<Row>,
    /// Commands for this partition that wait for its owner, oldest first; at most `limit`.
    pub commands: Vec<(CommandId, Command)>,
    /// When the next head is due that is not among `heads`.
    pub next_at: Option<Timestamp>,
}

/// Which rows somebody wants to see. An unset field does not restrict.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Query {
    /// Of this consumer.
    pub consumer: Option<Text>,
    /// Of this partition.
    pub partition: Option<Partition>,
    /// Of this key.
    pub key: Option<Key>,
    /// Only dead letters, or only parked ones.
    pub dead: Option<bool>,
    /// Only above this place.
    pub after: Option<Place>,
    /// At most so many; 0 means 100.
    pub limit: usize,
}

/// A row with the names of those it belongs to.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// The consumer.
    pub consumer: Text,
    /// The partition.
    pub partition: Partition,
    /// The row.
    pub row: Row,
}

/// What an operator wants done with a row. It is carried out by the partition's owner, in the row's lane.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Command {
    /// The consumer.
    pub consumer: Text,
    /// The partition.
    pub partition: Partition,
    /// The row, in the version that the operator has seen.
    pub row: RowRef,
    /// What to do.
    pub action: Action,
    /// Who wants it.
    pub who: Text,
    /// Why.
    pub why: Text,
}

impl Command {
    /// A command about a listed row, in the version listed.
    pub fn new(on: &Listed, action: Action, who: impl Into<Text>, why: impl Into<Text>) -> Self {
        let row = on.row.named();
        let (consumer, partition) = (on.consumer.clone(), on.partition.clone());
        Self { consumer, partition, row, action, who: who.into(), why: why.into() }
    }
}

/// What can be done with a row.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Action {
    /// Try it at once, whatever its state; its attempts count from the start again.
    Replay,
    /// Let the events behind it pass: a dead letter that blocks becomes one that does not.
    Skip,
    /// Forget it; a mark stays until the floor has passed it.
    Discard,
    /// Replace what it carries. Its key, and so its lane, stays.
    Edit(Arc<Event>),
}

/// Names a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// What became of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CommandState {
    /// It waits for the owner.
    Waiting,
    /// It was carried out.
    Done {
        /// When.
        at: Timestamp,
    },
    /// It was not carried out.
    Refused {
        /// When.
        at: Timestamp,
        /// Why not.
        why: Text,
    },
}
