//! The port to a broker: how events travel.
//!
//! A broker publishes messages and lets a consumer's instances [join](Broker::join). A [`Membership`] hands out
//! partitions, deliveries and the loss of partitions as [`Arrival`]s, and takes back what became of the deliveries.
//! Three kinds of [`Ownership`] cover what brokers offer. The engine counts attempts, orders keys and computes floors by
//! itself; an adapter only carries.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Boot, Clock, Timestamp};
use crate::error::BrokerError;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Partition, Position, Text, Topic};

pub mod memory;
#[cfg(feature = "nats")]
pub(crate) mod nats;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;

pub use crate::clock::Lease;
pub use memory::MemoryBroker;

/// A system that carries messages.
pub trait Broker: Send + Sync + 'static {
    /// What it can do.
    fn abilities(&self) -> Abilities;

    /// Publishes messages and waits until the broker has confirmed each, answering in their order.
    ///
    /// All are sent at once, so two of one key may land out of order when the first is refused, unless
    /// [`Abilities::ordered_publish`] is set. Who needs order sends one of a key at a time, as
    /// [`Publisher`](crate::Publisher) does.
    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>>;

    /// Says whether a topic can be published to; called at start, so that a wrong name is found before the first event.
    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Joins the instances of a consumer. Partitions are assigned through [`Membership::next`].
    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>>;
}

impl<B: Broker + ?Sized> Broker for Arc<B> {
    fn abilities(&self) -> Abilities {
        (**self).abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        (**self).publish(messages)
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        (**self).check_topic(topic)
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        (**self).join(subscription)
    }
}

/// What a broker can do; the engine and the conformance suite adapt to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
#[expect(clippy::struct_excessive_bools, reason = "each is an ability of its own")]
pub struct Abilities {
    /// How deliveries are owned and settled.
    pub ownership: Ownership,
    /// Messages outlive the process. A store that does not, counts as none beside such a broker.
    pub durable: bool,
    /// Several unconfirmed messages of a key stay in order even when one fails (Kafka's idempotent producer).
    pub ordered_publish: bool,
    /// A message published again under the same identity is recognised.
    pub dedup: bool,
    /// A consumer has one instance at a time; another waits to join until it has ended.
    pub one_instance: bool,
    /// The largest message taken, in bytes of key, headers and body. Defaults to 1 MiB.
    pub message_bytes_max: usize,
}

impl Abilities {
    /// The least: not durable, no dedup, no order across failures, 1 MiB.
    pub const fn new(ownership: Ownership) -> Self {
        Self {
            ownership,
            durable: false,
            ordered_publish: false,
            dedup: false,
            one_instance: false,
            message_bytes_max: 1 << 20,
        }
    }
}

/// How deliveries are owned and settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ownership {
    /// Partitions with one owner; everything up to a floor is settled at once ([`Settle::Floor`]).
    Floor,
    /// Partitions with one owner; each delivery is settled by itself, and may be given back.
    AckEach,
    /// No owner: instances compete for deliveries, and nothing is promised about order.
    Competing,
}

/// The broker's confirmation that it has a message.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// The partition it is in.
    pub partition: Partition,
    /// Where it stands there.
    pub position: Position,
    /// True if the broker had it already; that is success.
    pub duplicate: bool,
}

impl Receipt {
    /// A receipt for a message at this place.
    pub fn new(partition: Partition, position: Position, duplicate: bool) -> Self {
        Self { partition, position, duplicate }
    }
}

/// Where a consumer begins that has never settled anything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Start {
    /// At the oldest message there is. The default.
    #[default]
    Beginning,
    /// At the first message published after it joined.
    New,
    /// At this position in every partition.
    Position(Position),
    /// At the first message stored at or after this time.
    Time(Timestamp),
}

/// What an instance asks for when it joins.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Subscription {
    /// The consumer's name: its instances share the work.
    pub consumer: Text,
    /// The topics.
    pub topics: Vec<Topic>,
    /// Where to begin.
    pub start: Start,
    /// The clock that leases are measured on.
    pub clock: Clock,
}

impl Subscription {
    /// A subscription from the beginning, on the system's clock.
    pub fn new(consumer: impl Into<Text>, topics: Vec<Topic>) -> Self {
        Self { consumer: consumer.into(), topics, start: Start::default(), clock: Clock::system() }
    }
}

/// The membership of one instance in a consumer.
///
/// All calls may be made at the same time and from several tasks; each may be dropped before it has answered.
pub trait Membership: Send + Sync + 'static {
    /// Waits for the next arrival. Dropping the future loses nothing.
    ///
    /// Called at all times, with no room too: changes of ownership arrive even then.
    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>>;

    /// Says what became of deliveries of one partition. An `Ok` means that the broker has been told, not that it is
    /// durable: deliveries may come again after a crash of either side.
    fn settle<'a>(&'a self, partition: &'a Partition, settles: &'a [Settle]) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Gives a partition up after its last settle, or because it cannot be worked on: then it may be assigned again, to
    /// anyone, under an epoch above `above`.
    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>>;

    /// Which stream a partition is of, so that one that was made anew is told from the one before, whose positions began
    /// anew with it. Defaults to none: it cannot be told.
    fn stream(&self, partition: &Partition) -> Option<Text> {
        let _ = partition;
        None
    }

    /// Renews leases for as long as it is polled. The engine runs it in a task of its own. Defaults to never ending.
    fn heartbeat(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    /// Leaves the consumer: what is still owned goes to others at once. Everything settled before has been sent when it
    /// answers.
    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>>;
}

/// How much more the engine can take.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Room<'a> {
    /// At most so many deliveries; with 0 only changes of ownership.
    pub deliveries_max: usize,
    /// Nothing from these partitions; they stand for seconds.
    pub paused: &'a [Partition],
}

impl<'a> Room<'a> {
    /// Room for so many deliveries, none of them from the paused partitions.
    pub const fn new(deliveries_max: usize, paused: &'a [Partition]) -> Self {
        Self { deliveries_max, paused }
    }
}

/// What comes in from a broker.
#[derive(Debug)]
#[non_exhaustive]
pub enum Arrival {
    /// This instance owns a partition from now on. Its deliveries follow after the floor. For a partition that is owned
    /// already it is a new ownership: what was in hand under the old one is forgotten and comes again.
    Assigned {
        /// The partition.
        partition: Partition,
        /// The epoch of this ownership, higher than all before.
        epoch: Epoch,
        /// Everything up to here is settled; none if nothing is.
        floor: Option<Position>,
        /// Until when the ownership holds.
        lease: Lease,
    },
    /// What earlier owners had in hand of a partition, unsettled, has come again. Only with [`Ownership::AckEach`], once
    /// after each `Assigned`: until then no parked event runs, lest it overtake one that is still to come.
    Resumed {
        /// The partition.
        partition: Partition,
    },
    /// Deliveries of one partition; on owned partitions in the order of their positions, but for those that come again.
    Batch {
        /// The partition.
        partition: Partition,
        /// The deliveries.
        deliveries: Vec<Delivery>,
    },
    /// The partition is to be given up: finish or cancel its work, settle, and release it.
    Revoking {
        /// The partition.
        partition: Partition,
        /// By then it goes to another.
        until: Boot,
    },
    /// The partition cannot be worked on: it was deleted, made anew or restored, or events of it are gone unread. It is
    /// given up, and [`Health`](crate::Health) says why, until it is assigned again.
    Stopped {
        /// The partition.
        partition: Partition,
        /// What happened, and the command to go on.
        why: String,
    },
    /// The partition is gone: nothing of it can be settled any more.
    Lost {
        /// The partition.
        partition: Partition,
    },
}

/// One arrival of a message.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The message.
    pub message: Message,
    /// The right to settle it.
    pub ticket: Ticket,
}

/// The right to settle a delivery: plain data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Ticket {
    /// Where the message stands in its partition.
    pub position: Position,
    /// Tells this delivery from others of the same message; the adapter's own.
    pub tag: u64,
    /// How often the broker has delivered it, this time included, as far as it knows.
    pub deliveries: u32,
    /// If the broker takes it back unless extended: after how long.
    pub ack_wait: Option<Duration>,
}

impl Ticket {
    /// The ticket of a first delivery without a time limit.
    pub const fn new(position: Position, tag: u64) -> Self {
        Self { position, tag, deliveries: 1, ack_wait: None }
    }
}

/// What became of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Settle {
    /// Everything up to this position is settled. Only with [`Ownership::Floor`].
    Floor(Position),
    /// This one is settled. Not with [`Ownership::Floor`].
    Done(Ticket),
    /// This one is given back, to come again after the delay. Not with [`Ownership::Floor`].
    Again(Ticket, Duration),
    /// This one is still being worked on.
    Extend(Ticket),
}
