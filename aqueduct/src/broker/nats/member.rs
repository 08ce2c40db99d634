//! An instance of a consumer: the partitions that it owns, what was read of them, and how far they are settled.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::Shared;
use super::foreign::{self, Durable, Said, Singles};
use super::layout::Layout;
use super::lease::NatsLeases;
use super::reader::{self, Acks};
use crate::broker::{Arrival, Delivery, Membership, Room, Settle, Start, Subscription};
use crate::clock::{Boot, Clock, Lease};
use crate::error::BrokerError;
use crate::lease::{Held, Keeper, LastWords};
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Partition, Position, Text};

/// What is read ahead of the engine in one partition.
pub(super) const AHEAD_MAX: usize = 256;
const AHEAD_BYTES_MAX: usize = 4 << 20;

/// How long an owner has to finish what it has in hand of a partition that is to go to another; as long as a stop takes.
const GIVE_UP: Duration = Duration::from_secs(30);

/// The membership of one instance.
pub(super) struct NatsMember {
    inner: Arc<Inner>,
    following: AbortHandle,
}

/// What the member and its tasks share.
pub(super) struct Inner {
    pub(super) shared: Arc<Shared>,
    pub(super) consumer: Text,
    pub(super) start: Start,
    pub(super) clock: Clock,
    keeper: Keeper,
    parts: Parts,
    state: Mutex<State>,
    /// There is something for the engine.
    arrived: Notify,
}

/// All partitions, by their names as parts of the work.
pub(super) type Parts = BTreeMap<Text, (Partition, Source)>;

/// What a partition is read from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// The partition of a declared topic.
    Declared(Arc<Layout>),
    /// A durable consumer of the server's.
    Foreign(Arc<Durable>),
}

#[derive(Default)]
struct State {
    open: BTreeMap<Partition, Open>,
    news: VecDeque<Arrival>,
    /// Parts on their way back to the table: under these epochs they are not opened again.
    given_up: BTreeMap<Text, Epoch>,
    /// The partition whose deliveries were handed out last.
    turn: Option<Partition>,
    left: bool,
}

/// A partition that is owned.
struct Open {
    part: Text,
    epoch: Epoch,
    lease: Lease,
    /// It is to go to another by then.
    revoking: Option<Boot>,
    reader: AbortHandle,
    stream: Option<Text>,
    queue: VecDeque<Delivery>,
    /// What earlier owners had in hand is in the queue, and with its end the engine is told so.
    resumes: bool,
    queue_bytes: usize,
    acks: Acks,
    singles: Singles,
    /// Everything up to here is settled.
    floor: Option<Position>,
    /// There is room in the queue.
    room: Arc<Notify>,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A partition to be read.
#[derive(Clone)]
pub(super) struct Task {
    pub(super) partition: Partition,
    pub(super) epoch: Epoch,
    pub(super) lease: Lease,
    /// What an owner before has written down.
    pub(super) floor: Option<Position>,
    pub(super) room: Arc<Notify>,
}

/// Joins the instances of a consumer of declared topics.
pub(super) async fn join(shared: &Arc<Shared>, subscription: Subscription) -> Result<NatsMember, BrokerError> {
    let (mut parts, mut replicas) = (Parts::new(), 1);
    for topic in &subscription.topics {
        let (layout, config) = shared.checked(topic).await?;
        replicas = replicas.max(config.num_replicas);
        for index in 0..layout.partitions() {
            let partition = Partition { topic: topic.clone(), index };
            let source = Source::Declared(Arc::clone(&layout));
            parts.insert(Text::from(format!("{topic}/{index}")), (partition, source));
        }
    }
    share(shared, subscription, parts, replicas).await
}

/// Joins the instances that share these parts.
pub(super) async fn share(
    shared: &Arc<Shared>,
    subscription: Subscription,
    parts: Parts,
    replicas: usize,
) -> Result<NatsMember, BrokerError> {
    let Subscription { consumer, start, clock, .. } = subscription;
    let table = Arc::new(NatsLeases::new(Arc::clone(shared), replicas));
    table.open(&consumer).await?;
    let (names, info) = (parts.keys().cloned().collect(), format!("pid {}", std::process::id()).into());
    let keeper = Keeper::start(table, consumer.clone(), names, info, clock.clone());
    let owned = keeper.owned();
    let (shared, state, arrived) = (Arc::clone(shared), Mutex::default(), Notify::new());
    let inner = Arc::new(Inner { shared, consumer, start, clock, keeper, parts, state, arrived });
    let following = tokio::spawn(follow(Arc::clone(&inner), owned)).abort_handle();
    Ok(NatsMember { inner, following })
}

/// Reads what is owned, and tells the engine what is not any more.
async fn follow(inner: Arc<Inner>, mut owned: watch::Receiver<BTreeMap<Text, Held>>) {
    loop {
        let held = owned.borrow_and_update().clone();
        inner.follow(&held);
        inner.arrived.notify_one();
        if owned.changed().await.is_err() {
            return;
        }
    }
}

/// The one that was to give a partition up may have gone meanwhile.
async fn take_away(inner: Weak<Inner>, partition: Partition, until: Boot) {
    tokio::time::sleep(GIVE_UP).await;
    if let Some(inner) = inner.upgrade() {
        inner.take_away(&partition, until).await;
    }
}

impl Inner {
    fn follow(self: &Arc<Self>, held: &BTreeMap<Text, Held>) {
        let mut state = self.state.lock();
        if state.left {
            return;
        }
        let stays = |open: &Open| held.get(&open.part).is_some_and(|held| held.epoch == open.epoch);
        let gone: Vec<Partition> =
            state.open.iter().filter(|(_, open)| !stays(open)).map(|(partition, _)| partition.clone()).collect();
        for partition in gone {
            state.close(&partition);
            state.news.push_back(Arrival::Lost { partition });
        }
        state.given_up.retain(|part, epoch| held.get(part).is_some_and(|held| held.epoch == *epoch));
        for (part, held) in held {
            let Some((partition, source)) = self.parts.get(part) else { continue };
            // In a table that was made anew epochs begin anew.
            if state.given_up.get(part) == Some(&held.epoch) {
                continue;
            }
            if !state.open.contains_key(partition) {
                state.open.insert(partition.clone(), self.open(part, partition, source, held));
            }
            let Some(open) = state.open.get_mut(partition) else { continue };
            if held.revoking && open.revoking.is_none() {
                let until = self.clock.boot().after(GIVE_UP);
                open.revoking = Some(until);
                tokio::spawn(take_away(Arc::downgrade(self), partition.clone(), until));
                // The engine hears of it when it owns it.
                if open.stream.is_some() {
                    state.news.push_back(Arrival::Revoking { partition: partition.clone(), until });
                }
            } else if !held.revoking {
                open.revoking = None;
            }
        }
    }

    fn open(self: &Arc<Self>, part: &Text, partition: &Partition, source: &Source, held: &Held) -> Open {
        let task = Task {
            partition: partition.clone(),
            epoch: held.epoch,
            lease: held.lease.clone(),
            floor: held.floor,
            room: Arc::new(Notify::new()),
        };
        let (room, inner) = (Arc::clone(&task.room), Arc::clone(self));
        let reader = match source {
            Source::Declared(layout) => tokio::spawn(reader::run(inner, task, Arc::clone(layout))),
            Source::Foreign(durable) => tokio::spawn(foreign::run(inner, task, Arc::clone(durable))),
        };
        Open {
            part: part.clone(),
            epoch: held.epoch,
            lease: held.lease.clone(),
            revoking: None,
            room,
            reader: reader.abort_handle(),
            stream: None,
            queue: VecDeque::new(),
            resumes: false,
            queue_bytes: 0,
            acks: Acks::default(),
            singles: Singles::default(),
            floor: held.floor,
        }
    }

    /// Gives a partition to others whose time has come.
    async fn take_away(&self, partition: &Partition, until: Boot) {
        let closed = {
            let mut state = self.state.lock();
            if state.open.get(partition).is_none_or(|open| open.revoking != Some(until)) {
                return;
            }
            let closed = state.close(partition);
            state.news.push_back(Arrival::Lost { partition: partition.clone() });
            closed
        };
        self.arrived.notify_one();
        if let Some((part, floor)) = closed {
            self.keeper.let_go(&part, LastWords { floor, above: None }).await;
        }
    }

    /// What is done to a partition that this reader's task still owns.
    fn with<T>(&self, task: &Task, act: impl FnOnce(&mut State, &Partition) -> T) -> Option<T> {
        let mut state = self.state.lock();
        let ours = state.open.get(&task.partition).is_some_and(|open| open.epoch == task.epoch);
        let done = ours.then(|| act(&mut state, &task.partition));
        drop(state);
        self.arrived.notify_one();
        done
    }

    /// Its reader is open: the engine owns it from now on.
    pub(super) fn opened(&self, task: &Task, stream: Text, floor: Option<Position>) {
        self.with(task, |state, partition| {
            if let Some(open) = state.open.get_mut(partition) {
                (open.stream, open.floor) = (Some(stream), floor);
                let (owned, epoch, lease) = (partition.clone(), open.epoch, open.lease.clone());
                state.news.push_back(Arrival::Assigned { partition: owned, epoch, floor, lease });
                let revoking = open.revoking.map(|until| Arrival::Revoking { partition: partition.clone(), until });
                state.news.extend(revoking);
            }
        });
    }

    /// Takes a delivery; false while there is no room for it, or none if the partition is not the task's any more.
    pub(super) fn offer(&self, task: &Task, delivery: &mut Option<Delivery>, reply: &str) -> Option<bool> {
        self.with(task, |state, partition| {
            let open = state.open.get_mut(partition)?;
            if open.queue.len() >= AHEAD_MAX || open.queue_bytes >= AHEAD_BYTES_MAX {
                return Some(false);
            }
            if let Some(delivery) = delivery.take() {
                open.queue_bytes += delivery.message.size();
                open.acks.delivered(delivery.ticket, reply);
                open.queue.push_back(delivery);
            }
            Some(true)
        })?
    }

    /// What earlier owners had in hand has come again.
    pub(super) fn resumed(&self, task: &Task) {
        self.with(task, |state, partition| {
            if state.open.get(partition).is_some_and(|open| open.queue.is_empty()) {
                state.news.push_back(Arrival::Resumed { partition: partition.clone() });
            } else if let Some(open) = state.open.get_mut(partition) {
                open.resumes = true;
            }
        });
    }

    /// Its events are settled one by one.
    pub(super) fn settles_singly(&self, task: &Task, singles: Singles) {
        self.note(task, |of| *of = singles);
    }

    /// Takes note of something about how events are settled; false if the partition is not the task's any more.
    pub(super) fn note(&self, task: &Task, note: impl FnOnce(&mut Singles)) -> bool {
        let mut state = self.state.lock();
        let open = state.open.get_mut(&task.partition).filter(|open| open.epoch == task.epoch);
        open.map(|open| note(&mut open.singles)).is_some()
    }

    /// Takes a delivery whatever there is room for; false if the partition is not owned under this epoch any more.
    pub(super) fn push(&self, partition: &Partition, epoch: Epoch, delivery: Delivery, is_last: bool) -> bool {
        let mut state = self.state.lock();
        let Some(open) = state.open.get_mut(partition).filter(|open| open.epoch == epoch) else { return false };
        open.queue_bytes += delivery.message.size();
        open.singles.handed_out(&delivery, is_last);
        open.queue.push_back(delivery);
        drop(state);
        self.arrived.notify_one();
        true
    }

    /// How many deliveries there is room for; none if the partition is not the task's any more.
    pub(super) fn room(&self, task: &Task) -> Option<usize> {
        let state = self.state.lock();
        let open = state.open.get(&task.partition).filter(|open| open.epoch == task.epoch)?;
        Some(if open.queue_bytes < AHEAD_BYTES_MAX { AHEAD_MAX.saturating_sub(open.queue.len()) } else { 0 })
    }

    /// Extends what the engine has not taken yet.
    pub(super) async fn extend_queued(self: &Arc<Self>, task: &Task) -> Result<(), BrokerError> {
        let queued: Vec<Settle> = {
            let state = self.state.lock();
            let open = state.open.get(&task.partition).filter(|open| open.epoch == task.epoch);
            let queue = open.into_iter().flat_map(|open| &open.queue);
            queue.map(|delivery| Settle::Extend(delivery.ticket)).collect()
        };
        self.settle(&task.partition, &queued).await
    }

    /// Tells the server what became of deliveries.
    pub(super) async fn settle(self: &Arc<Self>, partition: &Partition, settles: &[Settle]) -> Result<(), BrokerError> {
        let (epoch, all) = self.said(partition, settles)?;
        for said in all {
            match said {
                Said::Word(subject, word) => {
                    let sent = self.shared.link.client.publish(subject, word).await;
                    sent.map_err(|error| BrokerError::Unavailable(error.into()))?;
                }
                Said::Again(delivery, delay) => {
                    let (inner, of) = (Arc::downgrade(self), (partition.clone(), epoch));
                    tokio::spawn(foreign::hand_out_again(inner, of, delivery, delay));
                }
            }
        }
        Ok(())
    }

    /// How far it is settled, if nothing that was read is not.
    pub(super) fn idle_floor(&self, task: &Task) -> Option<Position> {
        let state = self.state.lock();
        let open = state.open.get(&task.partition).filter(|open| open.epoch == task.epoch)?;
        open.acks.is_idle().then_some(open.floor.unwrap_or(Position(0)))
    }

    pub(super) fn stop(&self, task: &Task, why: String) {
        self.with(task, |state, partition| {
            state.news.push_back(Arrival::Stopped { partition: partition.clone(), why });
        });
    }

    /// Begins a partition anew under a higher epoch, at what is settled, or at this floor.
    pub(super) async fn reopen(&self, task: &Task, floor: Option<Position>, above: Option<Epoch>) {
        let left = self.with(task, |state, partition| {
            let open = state.open.get(partition)?;
            Some((open.part.clone(), floor.max(open.floor)))
        });
        let Some(Some((part, floor))) = left else { return };
        self.keeper.let_go(&part, LastWords { floor, above }).await;
    }

    fn next(&self, room: Room<'_>) -> Option<Result<Arrival, BrokerError>> {
        let mut state = self.state.lock();
        if state.left {
            return Some(Err(BrokerError::Closed));
        }
        state.next(room).map(Ok)
    }

    /// What is to be done about what became of deliveries, and under which epoch.
    fn said(&self, partition: &Partition, settles: &[Settle]) -> Result<(Epoch, Vec<Said>), BrokerError> {
        let mut state = self.state.lock();
        let lost = || BrokerError::Lost { partition: partition.clone() };
        let open = state.open.get_mut(partition).ok_or_else(lost)?;
        // Whoever owns it by now must not find more settled than it has handled.
        if !open.lease.holds(&self.clock) {
            return Err(BrokerError::Unavailable(format!("the lease on {partition} has lapsed").into()));
        }
        let mut said: Vec<Said> = settles.iter().filter_map(|settle| open.singles.settled(settle)).collect();
        let floors = settles.iter().filter_map(|settle| match settle {
            Settle::Floor(position) => Some(*position),
            _ => None,
        });
        if let Some(floor) = floors.max() {
            open.floor = open.floor.max(Some(floor));
            said.extend(open.acks.settled(floor).map(|subject| Said::Word(subject, reader::ACK)));
        }
        Ok((open.epoch, said))
    }

    /// All that was settled is on the server before others are told.
    async fn let_go(&self, partition: &Partition, above: Option<Epoch>) -> Result<(), BrokerError> {
        let closed = self.state.lock().close(partition);
        let (part, floor) = closed.ok_or_else(|| BrokerError::Lost { partition: partition.clone() })?;
        // What is not flushed is written down with the lease.
        let _ = tokio::time::timeout(self.shared.options.ack_timeout, self.shared.link.client.flush()).await;
        self.keeper.let_go(&part, LastWords { floor, above }).await;
        Ok(())
    }
}

impl State {
    /// Closes a partition; answers its name and how far it is settled.
    fn close(&mut self, partition: &Partition) -> Option<(Text, Option<Position>)> {
        let open = self.open.remove(partition)?;
        self.given_up.insert(open.part.clone(), open.epoch);
        self.news.retain(|news| !is_about(news, partition));
        Some((open.part.clone(), open.floor))
    }

    fn next(&mut self, room: Room<'_>) -> Option<Arrival> {
        if let Some(news) = self.news.pop_front() {
            return Some(news);
        }
        if room.deliveries_max == 0 {
            return None;
        }
        let ready =
            |(partition, open): &(&Partition, &Open)| !open.queue.is_empty() && !room.paused.contains(partition);
        let after = self.open.iter().filter(|(partition, _)| self.turn.as_ref().is_none_or(|turn| *partition > turn));
        let next = after.chain(self.open.iter()).find(ready).map(|(partition, _)| partition.clone())?;
        self.turn = Some(next.clone());
        let open = self.open.get_mut(&next)?;
        let count = open.queue.len().min(room.deliveries_max);
        let deliveries: Vec<Delivery> = open.queue.drain(..count).collect();
        open.queue_bytes -= deliveries.iter().map(|delivery| delivery.message.size()).sum::<usize>();
        if open.queue.is_empty() && std::mem::take(&mut open.resumes) {
            self.news.push_back(Arrival::Resumed { partition: next.clone() });
        }
        open.room.notify_one();
        Some(Arrival::Batch { partition: next, deliveries })
    }
}

fn is_about(news: &Arrival, of: &Partition) -> bool {
    match news {
        Arrival::Assigned { partition, .. }
        | Arrival::Resumed { partition }
        | Arrival::Batch { partition, .. }
        | Arrival::Revoking { partition, .. }
        | Arrival::Stopped { partition, .. }
        | Arrival::Lost { partition } => partition == of,
    }
}

impl Drop for NatsMember {
    fn drop(&mut self) {
        self.following.abort();
        let mut state = self.inner.state.lock();
        state.left = true;
        state.open.clear();
    }
}

impl Membership for NatsMember {
    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>> {
        Box::pin(async move {
            loop {
                if let Some(next) = self.inner.next(room) {
                    return next;
                }
                self.inner.arrived.notified().await;
            }
        })
    }

    fn settle<'a>(&'a self, partition: &'a Partition, settles: &'a [Settle]) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(self.inner.settle(partition, settles))
    }

    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(self.inner.let_go(partition, above))
    }

    fn stream(&self, partition: &Partition) -> Option<Text> {
        self.inner.state.lock().open.get(partition)?.stream.clone()
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            let open: Vec<Partition> = {
                let mut state = self.inner.state.lock();
                state.left = true;
                state.open.keys().cloned().collect()
            };
            self.inner.arrived.notify_one();
            for partition in open {
                // One that is lost is others' already.
                let _ = self.inner.let_go(&partition, None).await;
            }
            self.inner.keeper.leave().await;
            Ok(())
        })
    }
}
