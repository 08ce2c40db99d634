//! The port to an outbox: a table that applications write events to inside their own transactions, and that relays publish.
//!
//! A relay reads the lowest rows of a shard with no transaction open, publishes them, and says in one short transaction what
//! became of them. It never keeps a cursor: a row with a lower id may be committed later than one with a higher id, so every
//! read begins at the lowest row that is there, and rows are deleted by their exact ids.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use xxhash_rust::xxh3::Xxh3;

use crate::clock::{Clock, Timestamp};
use crate::error::StoreError;
use crate::event::Event;
pub(crate) use crate::lease::Held;
use crate::lease::LastWords;
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Key, LaneId, Partition, Place, Text, Topic};

/// Where a relay takes rows from.
pub(crate) trait OutboxSource: Send + Sync + 'static {
    /// How many shards the rows are in, numbered from 0. All rows of a lane are in one shard.
    fn shards(&self) -> u32;

    /// Becomes one of the relays that share the shards.
    fn join<'a>(&'a self, group: &'a Text, clock: &'a Clock) -> BoxFuture<'a, Result<Arc<dyn Keeper>, StoreError>>;

    /// The lowest rows of each of these shards, at most `limit_each`, lowest id first within a shard. No transaction is open
    /// when it answers. Of one shard, rows that are being settled may be left out.
    fn read<'a>(
        &'a self,
        shards: &'a [u32],
        limit_each: usize,
        except: &'a [i64],
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>>;

    /// The lanes of a shard that have parked rows, and when the head of each is due.
    fn parked_lanes(&self, shard: u32) -> BoxFuture<'_, Result<BTreeMap<LaneId, Timestamp>, StoreError>>;

    /// The first parked rows of each of these lanes, at most `limit_each`, lowest id first.
    fn read_parked<'a>(
        &'a self,
        shard: u32,
        lanes: &'a [LaneId],
        limit_each: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>>;

    /// Says what became of rows, all or nothing, and answers which of the [`unparked`](Settlement::unparked) lanes still have
    /// parked rows. Refused as [`Fenced`](StoreError::Fenced) if a claim is not the latest of its shard.
    ///
    /// An error may hide a success: the same settlement may be made again, and changes nothing the second time.
    fn settle<'a>(&'a self, settlement: &'a Arc<Settlement>) -> BoxFuture<'a, Result<Vec<(u32, LaneId)>, StoreError>>;

    /// Deletes some of what was published before this time and kept; true if there may be more.
    fn forget_sent(&self, before: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>>;

    /// What waits to be published, and what is parked.
    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, StoreError>>;

    /// The heads of parked lines, at most `limit`, lowest id first.
    fn list_parked(&self, limit: usize) -> BoxFuture<'_, Result<Vec<ParkedLine>, StoreError>>;

    /// Makes parked lines due now: those whose heads are these rows, or all. Answers how many rows that were.
    fn retry_now<'a>(&'a self, heads: Option<&'a [i64]>, now: Timestamp) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// Deletes a parked row, whose event is then never published, and answers what it was; none if it is not there.
    fn discard(&self, id: i64) -> BoxFuture<'_, Result<Option<ParkedLine>, StoreError>>;
}

/// A relay's membership among those that share the shards. A shard is named by its number.
pub(crate) trait Keeper: Send + Sync + 'static {
    /// What this relay owns.
    fn owned(&self) -> watch::Receiver<BTreeMap<Text, Held>>;

    /// Gives a shard up on which nothing is under way any more.
    fn let_go<'a>(&'a self, shard: &'a Text) -> BoxFuture<'a, ()>;

    /// Gives everything up.
    fn leave(&self) -> BoxFuture<'_, ()>;
}

impl Keeper for crate::lease::Keeper {
    fn owned(&self) -> watch::Receiver<BTreeMap<Text, Held>> {
        self.owned()
    }

    fn let_go<'a>(&'a self, shard: &'a Text) -> BoxFuture<'a, ()> {
        Box::pin(self.let_go(shard, LastWords::default()))
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.leave())
    }
}

/// A row of the outbox.
#[derive(Clone, Debug)]
pub(crate) struct OutboxRow {
    pub(crate) id: i64,
    pub(crate) shard: u32,
    pub(crate) lane: LaneId,
    /// How often a parked row was refused; none for a row that is not parked.
    pub(crate) parked: Option<u32>,
    /// The event with its topic, or why the row is none.
    pub(crate) event: Result<Box<Event>, Text>,
    /// The bytes that the row has in memory, more or less.
    pub(crate) bytes: usize,
}

/// What became of rows that were read.
#[derive(Clone, Debug)]
pub(crate) struct Settlement {
    pub(crate) group: Text,
    /// One for each shard that has rows here.
    pub(crate) claims: Vec<ShardClaim>,
    pub(crate) rows: Vec<Settled>,
    /// Published rows are kept for an audit.
    pub(crate) keep_sent: bool,
    pub(crate) now: Timestamp,
}

/// In whose name rows of a shard are settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardClaim {
    pub(crate) shard: u32,
    pub(crate) epoch: Epoch,
}

/// What became of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settled {
    pub(crate) id: i64,
    pub(crate) shard: u32,
    pub(crate) lane: LaneId,
    /// It was parked before.
    pub(crate) parked: bool,
    pub(crate) fate: Fate,
}

/// The ends that a row can come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The broker has confirmed it.
    Sent,
    /// It cannot be published: it is the head of its lane's parked line.
    Refused { attempts: u32, next_at: Timestamp, why: Text },
    /// It stands behind one that was refused: it goes to the end of the parked line.
    Behind,
}

impl OutboxRow {
    /// The row with what became of it.
    pub(crate) fn settled(&self, fate: Fate) -> Settled {
        let Self { id, shard, lane, parked, .. } = *self;
        Settled { id, shard, lane, parked: parked.is_some(), fate }
    }
}

impl Settlement {
    /// The lanes of a shard that have fewer parked rows than before.
    pub(crate) fn unparked(&self, shard: u32) -> Vec<LaneId> {
        let of_shard = self.rows.iter().filter(|row| row.shard == shard && row.parked && row.fate == Fate::Sent);
        let mut lanes: Vec<LaneId> = of_shard.map(|row| row.lane).collect();
        lanes.dedup();
        lanes
    }
}

/// The name of a shard in errors.
pub(crate) fn named(shard: u32) -> Partition {
    Partition { topic: Topic::from("outbox shard"), index: shard }
}

/// The lane of a row: what must be published in order. A row without a key is a lane of its own. Part of what is stored, so
/// it never changes.
pub(crate) fn lane_of(topic: &[u8], key: &[u8], id: i64) -> LaneId {
    if key.is_empty() {
        return Place::at(id.cast_unsigned()).lane();
    }
    let mut hash = Xxh3::new();
    hash.update(topic);
    // No topic has it, so no two pairs are the same bytes.
    hash.update(&[0]);
    hash.update(key);
    LaneId(hash.digest())
}

/// Tells the relays of this process that rows were written, so that they look at once.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hint(Arc<watch::Sender<()>>);

impl Hint {
    /// Says that there are rows, or will be in a moment, when their transaction is committed.
    pub(crate) fn give(&self) {
        self.0.send_replace(());
    }

    /// Where hints given from now on arrive.
    pub(crate) fn heed(&self) -> watch::Receiver<()> {
        self.0.subscribe()
    }
}

/// How an outbox table is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OutboxStatus {
    /// Rows that wait to be published, parked ones not counted.
    pub pending: u64,
    /// Whether `pending` was counted; above 10,000 rows it is estimated from the ids.
    pub counted: bool,
    /// When the row with the lowest id was written.
    pub oldest: Option<Timestamp>,
    /// Rows that are parked.
    pub parked: u64,
    /// The lines that they form, one for each key.
    pub parked_lines: u64,
}

/// The head of a parked line: what holds up a key.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParkedLine {
    /// The row's id.
    pub id: i64,
    /// The topic.
    pub topic: Text,
    /// The key; none for an event that is alone in its line.
    pub key: Option<Key>,
    /// The event's id.
    pub event_id: Text,
    /// The event's type.
    pub kind: Text,
    /// How many rows the line has, this one included.
    pub rows: u64,
    /// When it was written.
    pub written_at: Timestamp,
    /// How often it was refused.
    pub attempts: u32,
    /// When it is tried again.
    pub next_at: Timestamp,
    /// Why it was refused last.
    pub why: Text,
}

/// An outbox table: what a [`Relay`](crate::Relay) publishes from, and what operators look at. Cheap to clone.
///
/// Made of a store in the same database, with [`From`]. Nothing here needs a relay to run: what is made due is
/// published by whichever relay owns it, within some ten seconds.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> aqueduct::Result<()> {
/// # let folder = tempfile::tempdir()?; let path = folder.path().join("shop.db");
/// use aqueduct::{OutboxTable, sqlite::SqliteStore};
/// let table = OutboxTable::from(&SqliteStore::open(&path).await?);
/// assert_eq!(table.status().await?.pending, 0);
/// for line in table.parked(100).await? {
///     println!("{} {:?}: {} rows wait: {}", line.topic, line.key, line.rows, line.why);
/// }
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct OutboxTable {
    pub(crate) source: Arc<dyn OutboxSource>,
    pub(crate) hint: Hint,
    pub(crate) clock: Clock,
}

impl OutboxTable {
    pub(crate) fn new(source: Arc<dyn OutboxSource>, hint: Hint, clock: Clock) -> Self {
        Self { source, hint, clock }
    }

    /// How many rows wait, since when, and what is parked.
    pub async fn status(&self) -> Result<OutboxStatus, StoreError> {
        self.source.status().await
    }

    /// The heads of parked lines, at most `limit`, lowest id first.
    pub async fn parked(&self, limit: usize) -> Result<Vec<ParkedLine>, StoreError> {
        self.source.list_parked(limit).await
    }

    /// Makes the parked lines with these heads due now, and answers how many that were.
    pub async fn retry(&self, heads: &[i64]) -> Result<u64, StoreError> {
        self.source.retry_now(Some(heads), self.clock.now()).await
    }

    /// Makes all parked lines due now, and answers how many rows that were.
    pub async fn retry_all(&self) -> Result<u64, StoreError> {
        self.source.retry_now(None, self.clock.now()).await
    }

    /// Deletes a parked row, so that the rows behind it are published, and answers what it was; none if it is not there.
    /// The log says who did it.
    ///
    /// The trap: its event is lost for good. One that a relay is just about to publish may be published all the same.
    pub async fn discard(&self, id: i64, by: &str, why: &str) -> Result<Option<ParkedLine>, StoreError> {
        let discarded = self.source.discard(id).await?;
        if let Some(line) = &discarded {
            tracing::warn!(id, topic = %line.topic, event = %line.event_id, r#type = %line.kind, by, why, "a parked event of the outbox was discarded");
        }
        Ok(discarded)
    }
}

impl std::fmt::Debug for OutboxTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OutboxTable").field("shards", &self.source.shards()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_stable_and_keep_topics_and_keyless_rows_apart() {
        assert_eq!(lane_of(b"orders", b"7", 1), lane_of(b"orders", b"7", 2));
        assert_eq!(lane_of(b"orders", b"7", 1), LaneId(xxhash_rust::xxh3::xxh3_64(b"orders\x007")));
        assert_ne!(lane_of(b"orders", b"7", 1), lane_of(b"order", b"s7", 1));
        assert_ne!(lane_of(b"orders", b"", 1), lane_of(b"orders", b"", 2));
    }
}
