//! The one instance of a consumer.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};
use tokio::sync::watch;
use tokio::time::Instant;

use super::consumer::{Enter, Floor, Restart, Settle};
use super::lock::ConsumerLock;
use super::{SqliteBroker, broker_error, wildcard};
use crate::broker::{self, Arrival, Delivery, Membership, Room, Start, Subscription, Ticket};
use crate::clock::Lease;
use crate::error::{BrokerError, StoreError};
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::pattern::Pattern;
use crate::store::sql::batch::Slice;
use crate::store::sql::log::{PartitionEntry, entry_damaged, topic_names};
use crate::store::sql::sqlite::{MEND, SqliteFile, assembled};
use crate::topic::{Epoch, Partition, Position, Text, Topic};

/// What is read of a partition at once, if it has so much.
const BATCH_MAX: usize = 256;
const BATCH_MIN: usize = 16;

/// The pages that the reader keeps, in KiB: enough for what it reads ahead, whose messages of several partitions share pages.
const CACHE: &str = "pragma cache_size = -16384";

/// How often other processes' commits are looked for while something happens, and at the longest.
const LOOK: Duration = Duration::from_millis(25);
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Quiet for so long, it is looked for less often.
const QUIET: Duration = Duration::from_secs(10);

/// How long joining waits for the lock before it says who has it; a service joins again until it is stopped.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// How long a partition waits to be begun anew if that failed.
const RELEASE_RETRY: Duration = Duration::from_millis(500);

/// How often the lock is tried again while joining waits.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The membership of the one instance.
pub(super) struct SqliteMember {
    file: SqliteFile,
    consumer: Text,
    start: Start,
    exact: Vec<Topic>,
    patterns: Vec<Pattern>,
    state: Mutex<State>,
    reader: tokio::sync::Mutex<Reader>,
    lock: Mutex<Option<ConsumerLock>>,
}

struct State {
    parts: BTreeMap<Partition, Part>,
    /// Changes of ownership that the engine has not been told yet.
    notes: VecDeque<Arrival>,
    /// The partition it was served from last.
    last: Option<Partition>,
    left: bool,
}

/// A partition of the member.
struct Part {
    topic: i64,
    epoch: Epoch,
    /// False while it is released and not assigned again, or stopped.
    owned: bool,
    /// What was read last.
    cursor: u64,
    /// What was read and not delivered yet.
    ready: VecDeque<Delivery>,
    /// Where the next message will stand, as far as is known.
    next: u64,
}

/// The connection that reads the log, and what it knows of changes.
struct Reader {
    connection: SqliteConnection,
    changes: watch::Receiver<u64>,
    /// SQLite's own count of other connections' commits.
    data_version: i64,
    /// True if the heads of the partitions may have moved since they were looked at.
    stale: bool,
    /// When a message came last.
    busy_at: Instant,
    looked_at: Instant,
    /// The statement that reads the heads of all partitions, for these topics.
    heads: String,
    /// The highest number of a topic that was looked at.
    topics_seen: i64,
}

/// Takes the consumer's lock, raises its epoch, and gives it every partition.
pub(super) async fn join(broker: &SqliteBroker, subscription: Subscription) -> Result<SqliteMember, BrokerError> {
    let Subscription { consumer, topics, start, .. } = subscription;
    let (mut exact, mut patterns, mut entered) = (Vec::new(), Vec::new(), Vec::new());
    for topic in topics {
        if let Some(pattern) = wildcard(&topic)? {
            patterns.push(pattern);
        } else {
            let entry = broker.find(&topic).await?;
            entered.push((entry.id, topic.clone(), entry.partitions));
            exact.push(topic);
        }
    }
    let file = broker.0.file.clone();
    let lock = take_lock(&file, &consumer, broker.0.waits).await?;
    broker.0.children.lock().insert(consumer.clone(), lock.children());
    let changes = file.changes();
    let mut connection = file.connect().await.map_err(|e| broker_error(&e))?;
    sqlx::query(CACHE).execute(&mut connection).await.map_err(|e| broker_error(&file.explain(e)))?;
    let names = topic_names(&mut connection).await.map_err(|e| broker_error(&file.explain(e)))?;
    let topics_seen = names.last().map_or(0, |(id, ..)| *id);
    let matching = |topic: &Topic| !exact.contains(topic) && patterns.iter().any(|p| p.matches(topic.as_str()));
    entered.extend(names.into_iter().filter(|(_, topic, _)| matching(topic)));
    let now = Instant::now();
    let reader = Reader {
        connection,
        changes,
        data_version: 0,
        stale: true,
        busy_at: now,
        looked_at: now,
        heads: heads_of(entered.iter().map(|(id, ..)| *id)),
        topics_seen,
    };
    let enter = Enter { consumer: consumer.clone(), topics: entered, start, epoch: None, file: file.clone() };
    let (epoch, floors) = file.write_with(enter).await.map_err(|e| broker_error(&e))?;
    let state = State { parts: BTreeMap::new(), notes: VecDeque::new(), last: None, left: false };
    let (state, reader) = (Mutex::new(state), tokio::sync::Mutex::new(reader));
    let lock = Mutex::new(Some(lock));
    let member = SqliteMember { file, consumer, start, exact, patterns, state, reader, lock };
    member.state.lock().assign(epoch, floors);
    Ok(member)
}

pub(super) async fn take_lock(file: &SqliteFile, consumer: &Text, waits: bool) -> Result<ConsumerLock, BrokerError> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        let taken = ConsumerLock::try_take(file.path(), consumer.as_str());
        let held = match taken.map_err(|e| broker_error(&file.explain(e.into())))? {
            Ok(lock) => return Ok(lock),
            Err(held) => held,
        };
        for ended in held.end_overdue(file.clock().now()) {
            tracing::warn!(%consumer, %ended, "an orphan of an earlier instance had passed its deadline and was ended");
        }
        if !waits {
            return Err(BrokerError::Refused(held.to_string()));
        }
        if Instant::now() >= until {
            return Err(BrokerError::Unavailable(held.to_string().into()));
        }
        tokio::time::sleep(LOCK_RETRY).await;
    }
}

/// The statement that reads the heads of these topics. Numbers are all that goes into it.
fn heads_of(topics: impl Iterator<Item = i64>) -> String {
    let topics: Vec<String> = topics.map(|id| id.to_string()).collect();
    format!("select {} from aq_partitions p where p.topic in ({})", PartitionEntry::COLUMNS, topics.join(", "))
}

impl State {
    fn assign(&mut self, epoch: Epoch, floors: Vec<Floor>) {
        for Floor { partition, topic, settled } in floors {
            let Some(floor) = settled else {
                let why = format!("up to where {partition} is settled is damaged: {MEND}");
                self.notes.push_back(Arrival::Stopped { partition, why });
                continue;
            };
            let part = Part { topic, epoch, owned: true, cursor: floor, ready: VecDeque::new(), next: floor + 1 };
            self.parts.insert(partition.clone(), part);
            let floor = (floor > 0).then_some(Position(floor));
            self.notes.push_back(Arrival::Assigned { partition, epoch, floor, lease: Lease::forever() });
        }
    }

    /// What was read of the next partition, after the one it was served from last.
    fn serve(&mut self, room: Room<'_>) -> Option<Arrival> {
        if room.deliveries_max == 0 {
            return None;
        }
        let last = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let (after, rest) = (self.parts.range::<Partition, _>((last, Bound::Unbounded)), self.parts.iter());
        let is_ready = |(p, part): &(&Partition, &Part)| !part.ready.is_empty() && !room.paused.contains(p);
        let partition = after.chain(rest).find(is_ready)?.0.clone();
        let ready = &mut self.parts.get_mut(&partition)?.ready;
        let deliveries = ready.drain(..room.deliveries_max.min(ready.len())).collect();
        self.last = Some(partition.clone());
        Some(Arrival::Batch { partition, deliveries })
    }

    /// Takes in where the partitions end. Answers those that something is to be read of, and up to where they were read.
    fn look(&mut self, entries: &BTreeMap<(i64, i64), PartitionEntry>, room: Room<'_>) -> Vec<(Partition, Epoch, u64)> {
        let (mut damaged, mut wanting) = (Vec::new(), Vec::new());
        for (partition, part) in self.parts.iter_mut().filter(|(_, part)| part.owned) {
            match entries.get(&(part.topic, i64::from(partition.index))) {
                Some(entry) => part.next = entry.next.cast_unsigned(),
                None => damaged.push(partition.clone()),
            }
            // One that ends before what was read is damaged, which reading it tells.
            let more = part.cursor + 1 != part.next && part.ready.is_empty();
            if room.deliveries_max > 0 && more && !room.paused.contains(partition) {
                wanting.push((partition.clone(), part.epoch, part.cursor));
            }
        }
        for partition in damaged {
            let why = entry_damaged(&partition).to_string();
            self.stop(&partition, why);
        }
        // Those after the one that was served last come first.
        let served = wanting.iter().position(|(partition, ..)| Some(partition) > self.last.as_ref()).unwrap_or(0);
        wanting.rotate_left(served);
        wanting
    }

    /// True if there is more to read, as far as is known.
    fn wants(&self, room: Room<'_>) -> bool {
        let wants = |(p, part): (&Partition, &Part)| {
            part.owned && part.ready.is_empty() && part.cursor + 1 < part.next && !room.paused.contains(p)
        };
        room.deliveries_max > 0 && self.parts.iter().any(wants)
    }

    /// Messages were read: the partition's cursor moves, unless it was assigned anew meanwhile.
    fn keep(&mut self, partition: &Partition, epoch: Epoch, messages: Vec<(Position, Message)>) {
        let Some(part) = self.parts.get_mut(partition).filter(|part| part.owned && part.epoch == epoch) else { return };
        if let Some((first, _)) = messages.first().filter(|(first, _)| first.0 > part.cursor + 1) {
            let after = part.cursor;
            tracing::warn!(%partition, after, next = first.0, "messages were deleted before this consumer had read them");
        }
        // Nothing was there though there was more to read: retention has deleted it, up to where the next one will stand.
        part.cursor = messages.last().map_or(part.next - 1, |(last, _)| last.0);
        let delivery = |(position, message): (Position, Message)| {
            let ticket = Ticket::new(position, position.0);
            Delivery { message, ticket }
        };
        part.ready.extend(messages.into_iter().map(delivery));
    }

    /// Damage stops a partition, and no other.
    fn stop(&mut self, partition: &Partition, why: String) {
        if let Some(part) = self.parts.get_mut(partition).filter(|part| part.owned) {
            part.owned = false;
            part.ready.clear();
            self.notes.push_back(Arrival::Stopped { partition: partition.clone(), why });
        }
    }
}

impl SqliteMember {
    async fn arrival(&self, room: Room<'_>) -> Result<Arrival, BrokerError> {
        let mut reader = self.reader.lock().await;
        loop {
            let wants = {
                let mut state = self.state.lock();
                if state.left {
                    return Err(BrokerError::Closed);
                }
                if let Some(arrival) = state.notes.pop_front().or_else(|| state.serve(room)) {
                    return Ok(arrival);
                }
                state.wants(room)
            };
            if wants || reader.stale {
                // It stays stale if this is dropped half-way.
                self.fill(&mut reader, room).await?;
                reader.stale = false;
            } else {
                reader.wait(&self.file).await?;
            }
        }
    }

    /// Reads ahead, of every partition that has more: in one snapshot, as their messages share pages.
    async fn fill(&self, reader: &mut Reader, room: Room<'_>) -> Result<(), BrokerError> {
        let failed = |e| broker_error(&self.file.explain(e));
        if !self.patterns.is_empty() {
            self.find_topics(reader).await?;
        }
        let heads = assembled(reader.heads.clone());
        let mut snapshot = reader.connection.begin().await.map_err(failed)?;
        let rows = sqlx::query(heads).fetch_all(&mut *snapshot).await.map_err(failed)?;
        let entries = rows.iter().filter_map(PartitionEntry::read).map(|entry| ((entry.topic, entry.number), entry));
        let entries: BTreeMap<_, _> = entries.collect();
        let wanting = self.state.lock().look(&entries, room);
        let limit = (room.deliveries_max / wanting.len().max(1)).clamp(BATCH_MIN, BATCH_MAX);
        let (mut trouble, mut left) = (None, room.deliveries_max);
        for (partition, epoch, after) in wanting {
            if left == 0 {
                break;
            }
            let topic = self.state.lock().parts.get(&partition).map_or(0, |part| part.topic);
            let Some(entry) = entries.get(&(topic, i64::from(partition.index))) else { continue };
            let read =
                Slice { partition: &partition, topic, after, limit: limit.min(left) }.read(&mut snapshot, entry).await;
            match read.map_err(|e| self.file.explain(e)).and_then(std::convert::identity) {
                Ok(messages) => {
                    left -= messages.len().min(left);
                    self.state.lock().keep(&partition, epoch, messages);
                }
                // The others have their turn.
                Err(StoreError::Unavailable(source)) => trouble = Some(source),
                Err(error) => self.state.lock().stop(&partition, error.to_string()),
            }
            reader.busy_at = Instant::now();
        }
        snapshot.commit().await.map_err(failed)?;
        trouble.map_or(Ok(()), |source| Err(BrokerError::Unavailable(source)))
    }

    /// Takes in topics that were created since and match a pattern.
    async fn find_topics(&self, reader: &mut Reader) -> Result<(), BrokerError> {
        let failed = |e| broker_error(&self.file.explain(e));
        let row = sqlx::query("select coalesce(max(id), 0) from aq_topics").fetch_one(&mut reader.connection).await;
        let highest: i64 = row.and_then(|row| row.try_get(0)).map_err(failed)?;
        if highest == reader.topics_seen {
            return Ok(());
        }
        let names = topic_names(&mut reader.connection).await.map_err(failed)?;
        let known: Vec<i64> = self.state.lock().parts.values().map(|part| part.topic).collect();
        let wanted = |topic: &Topic| {
            self.exact.contains(topic) || self.patterns.iter().any(|pattern| pattern.matches(topic.as_str()))
        };
        let topics: Vec<_> = names.into_iter().filter(|(id, topic, _)| !known.contains(id) && wanted(topic)).collect();
        if !topics.is_empty() {
            let epoch = self.state.lock().parts.values().map(|part| part.epoch).max();
            // A topic that is new has nothing old.
            let start = if self.start == Start::New { Start::Beginning } else { self.start };
            let (consumer, file) = (self.consumer.clone(), self.file.clone());
            let enter = Enter { consumer, topics: topics.clone(), start, epoch, file };
            let (epoch, floors) = self.file.write_with(enter).await.map_err(|e| broker_error(&e))?;
            self.state.lock().assign(epoch, floors);
        }
        let all = known.into_iter().chain(topics.iter().map(|(id, ..)| *id));
        reader.heads = heads_of(all.collect::<std::collections::BTreeSet<_>>().into_iter());
        reader.topics_seen = highest;
        Ok(())
    }

    fn part(&self, partition: &Partition) -> Result<(i64, Epoch), BrokerError> {
        let state = self.state.lock();
        if state.left {
            return Err(BrokerError::Closed);
        }
        let part = state.parts.get(partition).filter(|part| part.owned);
        part.map(|part| (part.topic, part.epoch)).ok_or_else(|| BrokerError::Lost { partition: partition.clone() })
    }
}

impl Reader {
    /// Waits for a commit of this process, or until it is time to look for one of another.
    async fn wait(&mut self, file: &SqliteFile) -> Result<(), BrokerError> {
        let quiet = self.busy_at.elapsed();
        let every = if quiet < QUIET { LOOK } else { (quiet / 50).min(LOOK_MAX) };
        tokio::select! {
            biased;
            // An error means that the file is gone, and with it this member.
            _ = self.changes.changed() => self.stale = true,
            () = tokio::time::sleep_until(self.looked_at + every) => {
                self.looked_at = Instant::now();
                file.check_place().map_err(|e| broker_error(&e))?;
                let row = sqlx::query("pragma data_version").fetch_one(&mut self.connection).await;
                let version: i64 = row.and_then(|row| row.try_get(0)).map_err(|e| broker_error(&file.explain(e)))?;
                self.stale = std::mem::replace(&mut self.data_version, version) != version;
            }
        }
        Ok(())
    }
}

impl Membership for SqliteMember {
    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>> {
        Box::pin(self.arrival(room))
    }

    fn settle<'a>(
        &'a self,
        partition: &'a Partition,
        settles: &'a [broker::Settle],
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            let (topic, epoch) = self.part(partition)?;
            let floor = settles.iter().filter_map(|settle| match settle {
                broker::Settle::Floor(position) => Some(position.0),
                _ => None,
            });
            let Some(floor) = floor.max() else { return Ok(()) };
            let (consumer, file, number) = (self.consumer.clone(), self.file.clone(), partition.index);
            let settle = Settle { consumer, topic, number, epoch, floor, file };
            let current = self.file.write_with(settle).await.map_err(|e| broker_error(&e))?;
            current.then_some(()).ok_or_else(|| BrokerError::Lost { partition: partition.clone() })
        })
    }

    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            let (topic, epoch) = self.part(partition)?;
            if let Some(part) = self.state.lock().parts.get_mut(partition) {
                part.owned = false;
                part.ready.clear();
            }
            let above = above.map_or(epoch, |above| above.max(epoch));
            let (consumer, file, number) = (self.consumer.clone(), self.file.clone(), partition.index);
            let restart = Restart { consumer, topic, number, above, file };
            // Nobody else would ask for it again.
            let (epoch, floor) = loop {
                match self.file.write_with(restart.clone()).await {
                    Ok(restarted) => break restarted,
                    Err(error) if self.state.lock().left => return Err(broker_error(&error)),
                    Err(error) => {
                        tracing::warn!(%partition, %error, "the partition cannot be begun anew; it is tried again");
                        tokio::time::sleep(RELEASE_RETRY).await;
                    }
                }
            };
            self.state.lock().assign(epoch, vec![Floor { partition: partition.clone(), topic, settled: floor }]);
            Ok(())
        })
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.state.lock().left = true;
            drop(self.lock.lock().take());
            Ok(())
        })
    }
}
