//! The one instance of a consumer.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::consumer::{Enter, Floor, Restart, Right};
use super::floors::Floors;
use super::leased::Leased;
use super::lock::ConsumerLock;
use super::reader::Reader;
use super::state::State;
use super::{SqliteBroker, broker_error, wildcard};
use crate::broker::{self, Arrival, Membership, Room, Start, Subscription};
use crate::clock::Clock;
use crate::error::BrokerError;
use crate::outcome::BoxFuture;
use crate::pattern::Pattern;
use crate::store::sql::sqlite::SqliteFile;
use crate::topic::{Epoch, Partition, Text, Topic};

/// How long joining waits for the lock before it says who has it; a service joins again until it is stopped.
const LOCK_WAIT: Duration = Duration::from_secs(1);

/// How long a partition waits to be begun anew if that failed.
pub(super) const RELEASE_RETRY: Duration = Duration::from_millis(500);

/// How often the lock is tried again while joining waits.
const LOCK_RETRY: Duration = Duration::from_millis(20);

/// The membership of the one instance.
pub(super) struct SqliteMember {
    inner: Arc<Inner>,
    floors: Floors,
    hold: Hold,
    reader: JoinHandle<()>,
}

/// What makes this the one instance.
enum Hold {
    Lock(Mutex<Option<ConsumerLock>>),
    Lease(Leased),
}

/// What the member and its reader share.
pub(super) struct Inner {
    pub(super) file: SqliteFile,
    pub(super) consumer: Text,
    pub(super) start: Start,
    exact: Vec<Topic>,
    pub(super) patterns: Vec<Pattern>,
    pub(super) state: Mutex<State>,
    /// There is something for the engine.
    pub(super) arrived: Notify,
    /// There is something for the reader.
    pub(super) wanted: Notify,
}

/// Takes the consumer's lock or lease, raises its epoch, and gives it every partition.
pub(super) async fn join(broker: &SqliteBroker, subscription: Subscription) -> Result<SqliteMember, BrokerError> {
    let Subscription { consumer, topics, start, clock, .. } = subscription;
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
    let (mut hold, right) = take(broker, &consumer, &clock).await?;
    let (mut reader, names) = Reader::open(&file).await.map_err(|e| broker_error(&e))?;
    let matching = |topic: &Topic| !exact.contains(topic) && patterns.iter().any(|p| p.matches(topic.as_str()));
    entered.extend(names.into_iter().filter(|(_, topic, _)| matching(topic)));
    reader.reads(entered.iter().map(|(id, ..)| *id));
    let (name, by) = (consumer.clone(), right.clone());
    let enter = Enter { consumer: name, topics: entered, start, epoch: None, right: by, file: file.clone() };
    let (epoch, floors) = file.write_with(enter).await.map_err(|e| broker_error(&e))?;
    let mut state = State::new(right);
    state.assign(epoch, floors);
    let (state, arrived, wanted) = (Mutex::new(state), Notify::new(), Notify::new());
    let inner = Arc::new(Inner { file, consumer, start, exact, patterns, state, arrived, wanted });
    let floors = Floors::new(&inner.file, &inner.consumer);
    let reader = tokio::spawn(reader.run(Arc::clone(&inner)));
    if let Hold::Lease(leased) = &mut hold {
        leased.follow(&inner);
    }
    Ok(SqliteMember { inner, floors, hold, reader })
}

/// Takes the consumer's lock, or its lease where there are leases.
async fn take(broker: &SqliteBroker, consumer: &Text, clock: &Clock) -> Result<(Hold, Right), BrokerError> {
    if let Some(table) = &broker.0.leases {
        let leased = Leased::join(table, consumer, clock);
        let right = leased.right().await?;
        return Ok((Hold::Lease(leased), right));
    }
    let lock = take_lock(&broker.0.file, consumer, broker.0.waits).await?;
    broker.0.children.lock().insert(consumer.clone(), lock.children());
    Ok((Hold::Lock(Mutex::new(Some(lock))), Right::by_lock(clock)))
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

impl Inner {
    /// True if the topic is one that the member was to read.
    pub(super) fn reads(&self, topic: &Topic) -> bool {
        self.exact.contains(topic) || self.patterns.iter().any(|pattern| pattern.matches(topic.as_str()))
    }

    fn part(&self, partition: &Partition) -> Result<(i64, Epoch), BrokerError> {
        let state = self.state.lock();
        if state.left {
            return Err(BrokerError::Closed);
        }
        let part = state.parts.get(partition).filter(|part| part.owned);
        part.map(|part| (part.topic, part.epoch)).ok_or_else(|| BrokerError::Lost { partition: partition.clone() })
    }

    async fn arrival(&self, room: Room<'_>) -> Result<Arrival, BrokerError> {
        if std::mem::take(&mut self.state.lock().told) {
            self.wanted.notify_one();
        }
        loop {
            {
                let mut state = self.state.lock();
                if state.left {
                    return Err(BrokerError::Closed);
                }
                if let Some(arrival) = state.next(room) {
                    if state.wants() {
                        self.wanted.notify_one();
                    }
                    return Ok(arrival);
                }
                if let Some(error) = state.failed.take() {
                    state.told = true;
                    return Err(error);
                }
            }
            self.arrived.notified().await;
        }
    }
}

impl Drop for SqliteMember {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Membership for SqliteMember {
    fn stream(&self, partition: &Partition) -> Option<Text> {
        let topic = self.inner.state.lock().parts.get(partition)?.topic;
        Some(format!("{}/{topic}", self.inner.file.identity()).into())
    }

    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>> {
        Box::pin(self.inner.arrival(room))
    }

    fn settle<'a>(
        &'a self,
        partition: &'a Partition,
        settles: &'a [broker::Settle],
    ) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            let inner = &*self.inner;
            let (topic, epoch) = inner.part(partition)?;
            let floor = settles.iter().filter_map(|settle| match settle {
                broker::Settle::Floor(position) => Some(position.0),
                _ => None,
            });
            let Some(floor) = floor.max() else { return Ok(()) };
            let current = self.floors.settle((topic, partition.index), epoch, floor).await?;
            if current {
                return Ok(());
            }
            if let Hold::Lease(leased) = &self.hold {
                leased.give_up().await;
                return Err(BrokerError::Lost { partition: partition.clone() });
            }
            let why =
                format!("{partition} is another instance's: was the lock file of the consumer deleted, or replaced?");
            inner.state.lock().lose(partition, epoch, why);
            inner.arrived.notify_one();
            Err(BrokerError::Lost { partition: partition.clone() })
        })
    }

    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            let inner = &*self.inner;
            let (topic, epoch) = inner.part(partition)?;
            if let Some(part) = inner.state.lock().parts.get_mut(partition) {
                part.end();
            }
            let above = above.map_or(epoch, |above| above.max(epoch));
            let (consumer, file, number) = (inner.consumer.clone(), inner.file.clone(), partition.index);
            // Nobody else would ask for it again.
            let (epoch, floor) = loop {
                let right = inner.state.lock().right.clone();
                let restart = Restart { consumer: consumer.clone(), topic, number, above, right, file: file.clone() };
                match inner.file.write_with(restart).await {
                    Ok(restarted) => break restarted,
                    Err(error) if inner.state.lock().left => return Err(broker_error(&error)),
                    Err(error) => {
                        tracing::warn!(%partition, %error, "the partition cannot be begun anew; it is tried again");
                        tokio::time::sleep(RELEASE_RETRY).await;
                    }
                }
            };
            inner.state.lock().assign(epoch, vec![Floor { partition: partition.clone(), topic, settled: floor }]);
            inner.arrived.notify_one();
            inner.wanted.notify_one();
            Ok(())
        })
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            self.inner.state.lock().left = true;
            self.inner.arrived.notify_one();
            self.reader.abort();
            match &self.hold {
                Hold::Lock(lock) => drop(lock.lock().take()),
                Hold::Lease(leased) => leased.leave().await,
            }
            Ok(())
        })
    }
}
