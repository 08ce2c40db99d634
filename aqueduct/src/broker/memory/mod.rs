//! A broker in memory: for tests, for trying things out, and for programs whose events may die with them.

mod group;
mod ledger;
mod log;
mod member;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::broker::{Abilities, Broker, Membership, Ownership, Receipt, Subscription};
use crate::clock::{Clock, Timestamp};
use crate::error::BrokerError;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::topic::{Partition, Position, Text, Topic};
use group::{Group, Member, Part};
use ledger::Ledger;
use log::TopicLog;
use member::MemoryMembership;

/// A broker that keeps everything in this process. Clones share their topics.
///
/// It keeps the whole contract of the port, with the kind of [`Ownership`] that you choose, so that code tested on it
/// meets what it will meet on a server: batches, redelivery, revoked and lost partitions, leases. A message is deleted
/// when every consumer that ever joined its topic has settled it, so a consumer that joins later does not see it;
/// with no consumer it stays.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), aqueduct::BrokerError> {
/// use aqueduct::Message;
/// use aqueduct::broker::{Broker, MemoryBroker};
/// let broker = MemoryBroker::new().partitions(4);
/// for receipt in broker.publish(vec![Message::new("orders", "one")]).await {
///     assert!(!receipt?.duplicate);
/// }
/// assert_eq!(broker.log(&"orders".into()).len(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct MemoryBroker(Arc<Shared>);

/// The times of [`MemoryBroker::leases`]. Defaults to 1 s, 4 s and 6 s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseTimes {
    /// How often a member renews.
    pub renew: Duration,
    /// How long an ownership holds from the sending of the last renewal.
    pub lease: Duration,
    /// After how long without a renewal a member's partitions go to others; less than `lease` counts as `lease`.
    pub strike_off: Duration,
}

impl Default for LeaseTimes {
    fn default() -> Self {
        let [renew, lease, strike_off] = [1, 4, 6].map(Duration::from_secs);
        Self { renew, lease, strike_off }
    }
}

struct Shared {
    state: Mutex<State>,
    /// Told at every settle.
    settled: Notify,
}

struct State {
    options: Options,
    topics: Vec<TopicLog>,
    names: BTreeMap<Topic, usize>,
    groups: BTreeMap<Text, Group>,
    last_member: u64,
    last_tag: u64,
}

struct Options {
    partitions: u32,
    ownership: Ownership,
    leases: Option<LeaseTimes>,
    ack_wait: Duration,
    messages_max: usize,
    require_topics: bool,
    clock: Clock,
}

impl MemoryBroker {
    /// A broker without topics; publishing or joining creates them.
    pub fn new() -> Self {
        let options = Options {
            partitions: 16,
            ownership: Ownership::Floor,
            leases: None,
            ack_wait: Duration::from_secs(10),
            messages_max: 1_000_000,
            require_topics: false,
            clock: Clock::system(),
        };
        let (topics, names, groups) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
        let state = Mutex::new(State { options, topics, names, groups, last_member: 0, last_tag: 0 });
        Self(Arc::new(Shared { state, settled: Notify::new() }))
    }

    fn set(self, set: impl FnOnce(&mut Options)) -> Self {
        set(&mut self.0.state.lock().options);
        self
    }

    /// How many partitions a topic gets when it is created; 0 counts as 1. Defaults to 16.
    pub fn partitions(self, count: u32) -> Self {
        self.set(|options| options.partitions = count)
    }

    /// How deliveries are owned and settled; set it before the first consumer joins. Defaults to [`Ownership::Floor`].
    pub fn ownership(self, ownership: Ownership) -> Self {
        self.set(|options| options.ownership = ownership)
    }

    /// Makes ownership end unless [`Membership::heartbeat`] renews it; set it before the first consumer joins.
    ///
    /// With leases a dropped membership is a process that hangs or was cut off: its partitions move after
    /// [`LeaseTimes::strike_off`]. Defaults to none: ownership holds until the member leaves or is dropped.
    pub fn leases(self, times: LeaseTimes) -> Self {
        self.set(|options| options.leases = Some(times))
    }

    /// After how long an unsettled delivery comes again, where deliveries are settled one by one. Defaults to 10 s.
    pub fn ack_wait(self, wait: Duration) -> Self {
        self.set(|options| options.ack_wait = wait)
    }

    /// How many messages a topic holds before publishing answers [`BrokerError::Full`]. Defaults to 1,000,000.
    pub fn messages_max(self, messages: usize) -> Self {
        self.set(|options| options.messages_max = messages)
    }

    /// Refuses topics that were not [declared](Self::declare), as a server does. Defaults to creating them.
    pub fn require_topics(self) -> Self {
        self.set(|options| options.require_topics = true)
    }

    /// The clock that [`Message::stored_at`] is taken from. Defaults to the system's.
    pub fn clock(self, clock: Clock) -> Self {
        self.set(|options| options.clock = clock)
    }

    /// Creates a topic unless it exists.
    pub fn declare(self, topic: impl Into<Topic>) -> Self {
        self.0.state.lock().create(&topic.into());
        self
    }

    /// The messages that a topic still holds, by partition and position.
    pub fn log(&self, topic: &Topic) -> Vec<(Partition, Position, Message)> {
        let state = self.0.state.lock();
        let Some(found) = state.names.get(topic).map(|index| &state.topics[*index]) else { return Vec::new() };
        let logs = found.partitions.iter().enumerate();
        let held = logs.flat_map(|(number, log)| {
            let messages = (log.first..).zip(&log.messages);
            messages.map(move |(at, message)| (found.name(number), Position(at), message.clone()))
        });
        held.collect()
    }

    /// Up to where a consumer has settled a partition; none if it has settled nothing there.
    pub fn floor(&self, consumer: &str, partition: &Partition) -> Option<Position> {
        let state = self.0.state.lock();
        let floor = state.groups.get(&Text::from(consumer))?.parts.get(partition)?.ledger.floor();
        (floor > 0).then_some(Position(floor))
    }

    /// How many messages a consumer has not settled, delivered or not; none if it never joined.
    pub fn lag(&self, consumer: &str) -> Option<usize> {
        self.0.state.lock().lag(consumer)
    }

    /// Waits until a consumer has joined and settled everything there is.
    pub async fn wait_settled(&self, consumer: &str) {
        loop {
            let settled = self.0.settled.notified();
            if self.lag(consumer) == Some(0) {
                return;
            }
            settled.await;
        }
    }
}

impl Default for MemoryBroker {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.0.state.lock();
        let topics: Vec<_> = state.names.keys().collect();
        let consumers: Vec<_> = state.groups.keys().collect();
        f.debug_struct("MemoryBroker").field("topics", &topics).field("consumers", &consumers).finish()
    }
}

impl Broker for MemoryBroker {
    fn abilities(&self) -> Abilities {
        Abilities { dedup: true, ..Abilities::new(self.0.state.lock().options.ownership) }
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(async move { self.0.state.lock().publish(messages) })
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move { self.0.state.lock().find(topic).map(drop) })
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(async move {
            let member = self.0.join(subscription)?;
            self.0.settled.notify_waiters();
            Ok(Arc::new(member) as Arc<dyn Membership>)
        })
    }
}

impl Shared {
    fn join(self: &Arc<Self>, subscription: Subscription) -> Result<MemoryMembership, BrokerError> {
        let now = Instant::now();
        let Subscription { consumer, topics, start, clock } = subscription;
        let topics: BTreeSet<Topic> = topics.into_iter().collect();
        let mut state = self.state.lock();
        let state = &mut *state;
        let found = topics.iter().map(|topic| state.find_or_create(topic)).collect::<Result<Vec<_>, _>>()?;
        let Options { ownership, leases, ack_wait, .. } = state.options;
        let fresh = || Group::new(ownership == Ownership::Competing, leases);
        let group = state.groups.entry(consumer.clone()).or_insert_with(fresh);
        group.tick(now);
        for index in found {
            let topic = &state.topics[index];
            for (number, log) in topic.partitions.iter().enumerate() {
                let ack_wait = (ownership != Ownership::Floor).then_some(ack_wait);
                let part = || Part::new((index, number), Ledger::new(log.floor_at(start), ack_wait));
                group.parts.entry(topic.name(number)).or_insert_with(part);
            }
        }
        state.last_member += 1;
        let id = state.last_member;
        let member = Member::new(topics.into_iter().collect(), clock.clone(), leases, now);
        let wake = member.wake.clone();
        group.join(id, member, now);
        Ok(MemoryMembership { shared: self.clone(), consumer, id, clock, wake })
    }
}

impl State {
    fn create(&mut self, topic: &Topic) -> usize {
        if let Some(index) = self.names.get(topic) {
            return *index;
        }
        let index = self.topics.len();
        self.topics.push(TopicLog::new(topic.clone(), self.options.partitions));
        self.names.insert(topic.clone(), index);
        index
    }

    /// The topic's number; none if it would have to be created.
    fn find(&self, topic: &Topic) -> Result<Option<usize>, BrokerError> {
        topic.check()?;
        let found = self.names.get(topic).copied();
        if found.is_none() && self.options.require_topics {
            return Err(BrokerError::NoSuchTopic { topic: topic.clone() });
        }
        Ok(found)
    }

    fn find_or_create(&mut self, topic: &Topic) -> Result<usize, BrokerError> {
        Ok(self.find(topic)?.unwrap_or_else(|| self.create(topic)))
    }

    fn publish(&mut self, messages: Vec<Message>) -> Vec<Result<Receipt, BrokerError>> {
        let now = self.options.clock.now();
        let mut touched: Vec<Topic> = Vec::new();
        let mut receipts = Vec::with_capacity(messages.len());
        for message in messages {
            if touched.last() != Some(&message.topic) {
                touched.push(message.topic.clone());
            }
            receipts.push(self.publish_one(message, now));
        }
        for group in self.groups.values().filter(|group| touched.iter().any(|topic| group.reads(topic))) {
            group.wake();
        }
        receipts
    }

    fn publish_one(&mut self, message: Message, now: Timestamp) -> Result<Receipt, BrokerError> {
        let (bytes, limit) = (message.size(), Abilities::new(self.options.ownership).message_bytes_max);
        if bytes > limit {
            return Err(BrokerError::TooLarge { bytes, limit });
        }
        let index = self.find_or_create(&message.topic)?;
        self.topics[index].append(message, now, self.options.messages_max)
    }

    /// The group, after doing what was due in it.
    fn group(&mut self, consumer: &Text, now: Instant) -> Result<&mut Group, BrokerError> {
        let group = self.groups.get_mut(consumer).ok_or(BrokerError::Closed)?;
        group.tick(now);
        Ok(group)
    }

    /// Deletes what every group has passed.
    fn trim(&mut self, partition: &Partition) {
        let parts = self.groups.values().filter_map(|group| group.parts.get(partition));
        let lowest = parts.map(|part| (part.ledger.floor(), part.log)).min();
        if let Some((floor, (topic, number))) = lowest {
            self.topics[topic].trim(number, floor);
        }
    }

    fn lag(&self, consumer: &str) -> Option<usize> {
        let parts = self.groups.get(&Text::from(consumer))?.parts.values();
        Some(parts.map(|part| part.ledger.lag(&self.topics[part.log.0].partitions[part.log.1])).sum())
    }
}
