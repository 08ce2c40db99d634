//! The named steps at which a process kills itself: before and after every call through the ports.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use aqueduct::broker::{Abilities, Arrival, Broker, Membership, Receipt, Room, Settle, Subscription};
use aqueduct::sqlite::SqliteBroker;
use aqueduct::store::{
    Applied, Claim, Command, CommandId, CommandState, Due, Listed, Op, Query, Row, Standing, Store, StoreAbilities,
    TakeOver,
};
use aqueduct::{BoxFuture, BrokerError, Epoch, Message, Partition, Position, StoreError, Text, Timestamp, Topic};
use rustix::process::{Signal, getpid, kill_process};
use serde_json::json;
use tokio::sync::watch;

use crate::history::History;

/// The step at which this process dies, if any.
#[derive(Clone)]
pub(crate) struct Points {
    history: History,
    at: Option<Arc<(String, u32, AtomicU32)>>,
    /// Told after each call.
    pub(crate) called: watch::Sender<()>,
}

impl Points {
    /// Dies when the step, such as `settle/before`, is reached so many times.
    pub(crate) fn new(history: History, at: Option<(String, u32)>) -> Self {
        let at = at.map(|(step, nth)| Arc::new((step, nth, AtomicU32::new(0))));
        Self { history, at, called: watch::Sender::new(()) }
    }

    /// Counts a step, and dies if it is the one.
    pub(crate) fn reach(&self, call: &str, side: &str) {
        if self.is_now(call, side) {
            self.die();
        }
    }

    /// Counts a step; true if this process is to die there.
    pub(crate) fn is_now(&self, call: &str, side: &str) -> bool {
        self.at.as_deref().is_some_and(|(step, nth, count)| {
            let is_it = step.split_once('/') == Some((call, side));
            is_it && count.fetch_add(1, Ordering::SeqCst) + 1 == *nth
        })
    }

    /// The same as `kill -9` from outside, at this very instruction.
    pub(crate) fn die(&self) -> ! {
        let step = self.at.as_deref().map(|(step, ..)| step.as_str());
        self.history.note(json!({"killed": step}));
        kill_process(getpid(), Signal::KILL).unwrap();
        unreachable!("the signal comes before the call returns")
    }

    async fn through<T>(&self, calls: &[&str], work: impl Future<Output = T>) -> T {
        for call in calls {
            self.reach(call, "before");
        }
        let answer = work.await;
        for call in calls {
            self.reach(call, "after");
        }
        self.called.send_replace(());
        answer
    }
}

/// The embedded broker with its steps.
#[derive(Clone)]
pub(crate) struct SteppedBroker {
    pub(crate) inner: SqliteBroker,
    pub(crate) points: Points,
}

impl Broker for SteppedBroker {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(self.points.through(&["publish"], self.inner.publish(messages)))
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.check_topic(topic)
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(async {
            let inner = self.points.through(&["join"], self.inner.join(subscription)).await?;
            Ok(Arc::new(SteppedMembership { inner, points: self.points.clone() }) as Arc<dyn Membership>)
        })
    }
}

struct SteppedMembership {
    inner: Arc<dyn Membership>,
    points: Points,
}

impl Membership for SteppedMembership {
    fn stream(&self, partition: &Partition) -> Option<Text> {
        self.inner.stream(partition)
    }

    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>> {
        Box::pin(self.points.through(&["next"], self.inner.next(room)))
    }

    fn settle<'a>(&'a self, partition: &'a Partition, settles: &'a [Settle]) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(self.points.through(&["settle"], self.inner.settle(partition, settles)))
    }

    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(self.points.through(&["release"], self.inner.release(partition, above)))
    }

    fn heartbeat(&self) -> BoxFuture<'_, ()> {
        self.inner.heartbeat()
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(self.points.through(&["leave"], self.inner.leave()))
    }
}

/// A store with its steps.
#[derive(Clone)]
pub(crate) struct SteppedStore<S> {
    pub(crate) inner: S,
    pub(crate) points: Points,
}

impl<S: Store> Store for SteppedStore<S> {
    fn abilities(&self) -> StoreAbilities {
        self.inner.abilities()
    }

    fn take_over<'a>(
        &'a self,
        claim: &'a Claim,
        floor: Option<Position>,
    ) -> BoxFuture<'a, Result<TakeOver, StoreError>> {
        Box::pin(self.points.through(&["take_over"], self.inner.take_over(claim, floor)))
    }

    fn resume<'a>(&'a self, claim: &'a Claim, at: &'a Standing) -> BoxFuture<'a, Result<Option<Position>, StoreError>> {
        Box::pin(self.points.through(&["resume"], self.inner.resume(claim, at)))
    }

    fn settled<'a>(&'a self, claim: &'a Claim, floor: Position) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.points.through(&["settled"], self.inner.settled(claim, floor)))
    }

    fn apply<'a>(&'a self, claim: &'a Claim, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Applied>, StoreError>> {
        Box::pin(async move {
            let mut calls: Vec<String> = ops.iter().map(|op| format!("apply.{}", op.name())).collect();
            calls.sort_unstable();
            calls.dedup();
            let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
            self.points.through(&calls, self.inner.apply(claim, ops)).await
        })
    }

    fn bury<'a>(
        &'a self,
        consumer: &'a Text,
        partition: &'a Partition,
        rows: &'a [Row],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        self.inner.bury(consumer, partition, rows)
    }

    fn due<'a>(&'a self, claim: &'a Claim, now: Timestamp, limit: usize) -> BoxFuture<'a, Result<Due, StoreError>> {
        Box::pin(self.points.through(&["due"], self.inner.due(claim, now, limit)))
    }

    fn browse<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        self.inner.browse(query)
    }

    fn command<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<CommandId, StoreError>> {
        Box::pin(self.points.through(&["command"], self.inner.command(command)))
    }

    fn command_result(&self, id: CommandId) -> BoxFuture<'_, Result<Option<CommandState>, StoreError>> {
        self.inner.command_result(id)
    }
}
