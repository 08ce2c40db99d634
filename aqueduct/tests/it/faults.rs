//! A broker and a store that fail on demand.

use std::sync::Arc;

use aqueduct::broker::{Abilities, Arrival, Broker, Membership, MemoryBroker, Receipt, Room, Settle, Subscription};
use aqueduct::store::{
    Applied, Claim, Command, CommandId, CommandState, Due, Listed, MemoryStore, Op, Query, Row, Store, StoreAbilities,
    TakeOver,
};
use aqueduct::{BoxFuture, BrokerError, Epoch, Message, Partition, Position, StoreError, Text, Timestamp, Topic};
use tokio::sync::watch;

/// A switch: while it is on, every call fails that waits for an answer.
#[derive(Clone)]
pub(crate) struct Outage(watch::Sender<bool>);

impl Outage {
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    pub(crate) fn begin(&self) {
        self.0.send_replace(true);
    }

    pub(crate) fn end(&self) {
        self.0.send_replace(false);
    }

    /// What `call` answers, unless there is an outage before it has answered.
    async fn during<T, E>(&self, call: impl Future<Output = Result<T, E>>, error: fn() -> E) -> Result<T, E> {
        let mut watch = self.0.subscribe();
        tokio::select! {
            biased;
            _ = watch.wait_for(|on| *on) => Err(error()),
            answer = call => answer,
        }
    }
}

/// A broker that can be down.
#[derive(Clone)]
pub(crate) struct FaultyBroker {
    pub(crate) inner: MemoryBroker,
    pub(crate) outage: Outage,
    /// What it says of itself.
    pub(crate) durable: bool,
}

impl FaultyBroker {
    pub(crate) fn new(inner: &MemoryBroker) -> Self {
        Self { inner: inner.clone(), outage: Outage::new(), durable: false }
    }
}

fn broker_down() -> BrokerError {
    BrokerError::Unavailable("no route to broker".into())
}

impl Broker for FaultyBroker {
    fn abilities(&self) -> Abilities {
        let mut abilities = self.inner.abilities();
        abilities.durable = self.durable;
        abilities
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        self.inner.publish(messages)
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(self.outage.during(self.inner.check_topic(topic), broker_down))
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(async {
            let inner = self.outage.during(self.inner.join(subscription), broker_down).await?;
            Ok(Arc::new(FaultyMembership { inner, outage: self.outage.clone() }) as _)
        })
    }
}

struct FaultyMembership {
    inner: Arc<dyn Membership>,
    outage: Outage,
}

impl Membership for FaultyMembership {
    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>> {
        Box::pin(self.outage.during(self.inner.next(room), broker_down))
    }

    fn settle<'a>(&'a self, partition: &'a Partition, settles: &'a [Settle]) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(self.outage.during(self.inner.settle(partition, settles), broker_down))
    }

    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.release(partition, above)
    }

    fn heartbeat(&self) -> BoxFuture<'_, ()> {
        self.inner.heartbeat()
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.leave()
    }
}

/// A store that can be down.
#[derive(Clone)]
pub(crate) struct FaultyStore {
    pub(crate) inner: MemoryStore,
    pub(crate) outage: Outage,
}

impl FaultyStore {
    pub(crate) fn new() -> Self {
        Self { inner: MemoryStore::new(), outage: Outage::new() }
    }
}

fn store_down() -> StoreError {
    StoreError::Unavailable("no route to store".into())
}

impl Store for FaultyStore {
    fn abilities(&self) -> StoreAbilities {
        self.inner.abilities()
    }

    fn take_over<'a>(
        &'a self,
        claim: &'a Claim,
        floor: Option<Position>,
    ) -> BoxFuture<'a, Result<TakeOver, StoreError>> {
        Box::pin(self.outage.during(self.inner.take_over(claim, floor), store_down))
    }

    fn apply<'a>(&'a self, claim: &'a Claim, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Applied>, StoreError>> {
        Box::pin(self.outage.during(self.inner.apply(claim, ops), store_down))
    }

    fn bury<'a>(
        &'a self,
        consumer: &'a Text,
        partition: &'a Partition,
        rows: &'a [Row],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.outage.during(self.inner.bury(consumer, partition, rows), store_down))
    }

    fn due<'a>(&'a self, claim: &'a Claim, now: Timestamp, limit: usize) -> BoxFuture<'a, Result<Due, StoreError>> {
        Box::pin(self.outage.during(self.inner.due(claim, now, limit), store_down))
    }

    fn browse<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        self.inner.browse(query)
    }

    fn command<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<CommandId, StoreError>> {
        self.inner.command(command)
    }

    fn command_result(&self, id: CommandId) -> BoxFuture<'_, Result<Option<CommandState>, StoreError>> {
        self.inner.command_result(id)
    }
}
