//! The topics: partitioned logs of messages, and what was published lately.

use std::collections::{BTreeMap, VecDeque};

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use crate::broker::{Receipt, Start};
use crate::clock::Timestamp;
use crate::error::BrokerError;
use crate::message::Message;
use crate::topic::{Partition, Position, Topic};

/// How many identities a topic remembers.
pub(super) const IDENTITIES_MAX: usize = 65_536;

/// A topic: its partitions share one limit and one memory of identities.
pub(super) struct TopicLog {
    pub(super) topic: Topic,
    pub(super) partitions: Vec<Log>,
    held: usize,
    /// Where the next message without a key goes.
    turn: usize,
    recent: BTreeMap<u128, Seen>,
    recent_order: VecDeque<u128>,
}

/// What is remembered of a published identity.
#[derive(Clone, Copy)]
struct Seen {
    body: u128,
    partition: usize,
    position: u64,
}

impl TopicLog {
    pub(super) fn new(topic: Topic, partitions: u32) -> Self {
        let partitions = (0..partitions.max(1)).map(|_| Log { first: 1, messages: VecDeque::new() }).collect();
        Self { topic, partitions, held: 0, turn: 0, recent: BTreeMap::new(), recent_order: VecDeque::new() }
    }

    /// Stores a message, or says where the same one was stored before.
    pub(super) fn append(
        &mut self,
        mut message: Message,
        now: Timestamp,
        messages_max: usize,
    ) -> Result<Receipt, BrokerError> {
        let identity = message.dedup_id.as_ref().map(|id| (xxh3_128(id.as_str().as_bytes()), xxh3_128(&message.body)));
        if let Some(seen) = identity.and_then(|(id, _)| self.recent.get(&id).copied()) {
            if identity.is_some_and(|(_, body)| body != seen.body) {
                let dedup_id = message.dedup_id.map_or_else(String::new, |id| id.to_string());
                return Err(BrokerError::IdentityReused { dedup_id });
            }
            return Ok(self.receipt(seen.partition, seen.position, true));
        }
        if self.held >= messages_max {
            return Err(BrokerError::Full { topic: self.topic.clone() });
        }
        let partition = self.choose(&message);
        // It has served its purpose, and what is kept is copied at every delivery.
        message.dedup_id = None;
        // Bytes that own a vector become shared, with an allocation, when they are cloned first: here, not at delivery.
        message = message.clone();
        message.stored_at = Some(now);
        let log = &mut self.partitions[partition];
        let position = log.end();
        log.messages.push_back(message);
        self.held += 1;
        if let Some((id, body)) = identity {
            self.remember(id, Seen { body, partition, position });
        }
        Ok(self.receipt(partition, position, false))
    }

    fn choose(&mut self, message: &Message) -> usize {
        let count = self.partitions.len();
        let number = match message.key() {
            Some(key) => usize::try_from(xxh3_64(key) % count as u64).unwrap_or(0),
            None => self.turn,
        };
        if message.key().is_none() {
            self.turn = (self.turn + 1) % count;
        }
        number
    }

    fn remember(&mut self, id: u128, seen: Seen) {
        self.recent.insert(id, seen);
        self.recent_order.push_back(id);
        let forgotten = if self.recent_order.len() > IDENTITIES_MAX { self.recent_order.pop_front() } else { None };
        if let Some(oldest) = forgotten {
            self.recent.remove(&oldest);
        }
    }

    fn receipt(&self, partition: usize, position: u64, duplicate: bool) -> Receipt {
        Receipt::new(self.name(partition), Position(position), duplicate)
    }

    pub(super) fn name(&self, partition: usize) -> Partition {
        Partition { topic: self.topic.clone(), index: u32::try_from(partition).unwrap_or(u32::MAX) }
    }

    /// Deletes what every group has passed.
    pub(super) fn trim(&mut self, partition: usize, floor: u64) {
        let log = &mut self.partitions[partition];
        let passed = floor.saturating_add(1).saturating_sub(log.first);
        let count = usize::try_from(passed).unwrap_or(usize::MAX).min(log.messages.len());
        log.messages.drain(..count);
        log.first += count as u64;
        self.held -= count;
    }
}

/// One partition's messages, oldest first; positions count from 1.
pub(super) struct Log {
    /// The position of the oldest message still held.
    pub(super) first: u64,
    pub(super) messages: VecDeque<Message>,
}

impl Log {
    /// The position of the next message to be stored.
    pub(super) fn end(&self) -> u64 {
        self.first + self.messages.len() as u64
    }

    pub(super) fn get(&self, position: u64) -> Option<&Message> {
        let index = position.checked_sub(self.first)?;
        self.messages.get(usize::try_from(index).ok()?)
    }

    /// The position below the one at which a new group starts.
    pub(super) fn floor_at(&self, start: Start) -> u64 {
        let last = self.end() - 1;
        let floor = match start {
            Start::Beginning => 0,
            Start::New => last,
            Start::Position(position) => position.0.saturating_sub(1),
            Start::Time(at) => {
                let found = self.messages.iter().position(|message| message.stored_at >= Some(at));
                found.map_or(last, |index| self.first + index as u64 - 1)
            }
        };
        floor.max(self.first - 1)
    }
}
