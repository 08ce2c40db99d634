//! The loop of a relay: which shards are worked on, and when.
//!
//! A few rounds run at a time, so that some publish while others wait for the database. Shards with many rows get rounds of
//! their own, in turn: a shard that rests a moment is read faster, since its deleted rows are gone for everybody by then. All
//! others are looked into together, with one query.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::pace::Pace;
use super::round::{BATCHES_MAX, Ended, ROWS_MAX, Round, Shard, Tools};
use crate::engine::health::Health;
use crate::error::{BrokerError, StoreError};
use crate::outcome::BoxFuture;
use crate::policy::defaults;
use crate::store::outbox::{Held, Keeper, ShardClaim, named};
use crate::topic::{Epoch, Text};

/// Rounds at the same time; fewer than there are connections, of which the leases need one.
const ROUNDS_MAX: usize = 4;

/// Rows that are read while the broker is away, to see whether it is back.
const PROBE_ROWS: usize = 16;

/// How long the loop sleeps when it waits for others anyway, for a lease that has lapsed, and at the least.
const NOTHING_TO_DO: Duration = Duration::from_secs(10);
const LAPSED: Duration = Duration::from_millis(100);
const SHORTEST: Duration = Duration::from_millis(1);

/// The loop and all it knows.
pub(super) struct Core {
    tools: Arc<Tools>,
    keeper: Arc<dyn Keeper>,
    owned: watch::Receiver<BTreeMap<Text, Held>>,
    hints: watch::Receiver<()>,
    health: Health,
    pace: Pace,
    broker: Backoff,
    store: Backoff,
    /// Owned, and nothing is under way on them; the one that was worked on last stands last.
    resting: Vec<Shard>,
    rounds: JoinSet<Ended>,
    /// What is under way, by task.
    running: Vec<Running>,
    /// Epochs under which a shard was lost, though its keeper may not know yet.
    fenced: BTreeMap<u32, Epoch>,
    /// Shards on their way back to the keeper.
    leaving: JoinSet<()>,
}

struct Running {
    task: tokio::task::Id,
    shards: Vec<ShardClaim>,
    halt: Arc<AtomicBool>,
    /// It looks into all shards that are not deep.
    is_look: bool,
    /// It reads while it settles, which takes two connections.
    is_double: bool,
}

impl Core {
    pub(super) fn new(tools: Arc<Tools>, keeper: Arc<dyn Keeper>, hints: watch::Receiver<()>, health: Health) -> Self {
        let mut owned = keeper.owned();
        // What is owned already is news to the loop.
        owned.mark_changed();
        Self {
            tools,
            keeper,
            owned,
            hints,
            health,
            pace: Pace::new(Instant::now()),
            broker: Backoff::default(),
            store: Backoff::default(),
            resting: Vec::new(),
            rounds: JoinSet::new(),
            running: Vec::new(),
            fenced: BTreeMap::new(),
            leaving: JoinSet::new(),
        }
    }

    /// Runs until `stop` resolves, and then to the end of what is under way.
    pub(super) async fn run(mut self, mut stop: BoxFuture<'static, ()>) {
        loop {
            self.start_rounds();
            let next = self.next();
            tokio::select! {
                biased;
                () = &mut stop => break,
                // The sender is gone when the keeper is, which is ours.
                _ = self.owned.changed() => self.follow_keeper(),
                Some(ended) = self.rounds.join_next_with_id(), if !self.rounds.is_empty() => self.round_ended(ended),
                _ = self.hints.changed() => self.pace.hinted(Instant::now()),
                Some(_) = self.leaving.join_next(), if !self.leaving.is_empty() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
        self.health.stopping();
        self.halt(|_| true);
        // What has not ended by then is dropped; it comes again elsewhere.
        let _ = tokio::time::timeout(defaults::SHUTDOWN, self.wind_up()).await;
    }

    async fn wind_up(&mut self) {
        while self.rounds.join_next().await.is_some() {}
        while self.leaving.join_next().await.is_some() {}
        self.keeper.leave().await;
    }

    /// Tells rounds on some shards to send nothing more.
    fn halt(&self, which: impl Fn(ShardClaim) -> bool) {
        let running = self.running.iter().filter(|running| running.shards.iter().any(|shard| which(*shard)));
        running.for_each(|running| running.halt.store(true, Ordering::Release));
    }

    /// Begins with what is new, and lets go of what is not ours any more.
    fn follow_keeper(&mut self) {
        let held = self.owned.borrow_and_update().clone();
        let held: BTreeMap<u32, (Text, Held)> =
            held.into_iter().filter_map(|(part, held)| Some((part.as_str().parse().ok()?, (part, held)))).collect();
        let stays = |claim: ShardClaim| {
            held.get(&claim.shard).is_some_and(|(_, held)| !held.revoking && held.epoch == claim.epoch)
        };
        self.resting.retain(|shard| stays(shard.claim));
        self.halt(|claim| !stays(claim));
        let running: Vec<u32> =
            self.running.iter().flat_map(|running| &running.shards).map(|claim| claim.shard).collect();
        for (number, (part, held)) in held {
            let is_running = running.contains(&number);
            if held.revoking && !is_running {
                self.let_go(part);
            } else if !held.revoking && !is_running && self.is_new(number, held.epoch) {
                self.resting.insert(0, Shard::new(number, held.epoch, held.lease));
                self.pace.hinted(Instant::now());
            }
        }
        self.tools.metrics.shards.set(f64::from(u32::try_from(self.resting.len() + running.len()).unwrap_or(u32::MAX)));
    }

    fn is_new(&self, shard: u32, epoch: Epoch) -> bool {
        let fenced = self.fenced.get(&shard).is_some_and(|lost| epoch <= *lost);
        !fenced && self.resting.iter().all(|resting| resting.number() != shard)
    }

    fn let_go(&mut self, part: Text) {
        let keeper = Arc::clone(&self.keeper);
        self.leaving.spawn(async move { keeper.let_go(&part).await });
    }

    /// When there is something to do if nothing happens. What can be done now has been begun.
    fn next(&self) -> Instant {
        let now = Instant::now();
        if self.busy() >= self.rounds_max() || self.is_looking() || self.resting.is_empty() {
            return now + NOTHING_TO_DO;
        }
        if self.resting.iter().any(|shard| !shard.lease.holds(&self.tools.clock)) {
            return now + LAPSED;
        }
        let due = self.resting.iter().filter_map(Shard::due).min();
        let due = due.map(|due| now + due.since(self.tools.clock.now()));
        let next = due.map_or(self.pace.next(), |due| due.min(self.pace.next()));
        let held_up = [self.broker.until(), self.store.until()].into_iter().flatten().max();
        held_up.map_or(next, |until| until.max(next)).max(now + SHORTEST)
    }

    fn is_looking(&self) -> bool {
        self.running.iter().any(|running| running.is_look)
    }

    fn start_rounds(&mut self) {
        let now = Instant::now();
        let held_up = [self.broker.until(), self.store.until()].into_iter().flatten().any(|until| now < until);
        while !held_up && self.busy() < self.rounds_max() {
            let Some(shards) = self.choose(now) else { return };
            self.start(shards);
        }
    }

    /// How many rounds are running, by their connections.
    fn busy(&self) -> usize {
        self.running.len() + self.running.iter().filter(|running| running.is_double).count()
    }

    /// One is enough to see whether what was away is back.
    fn rounds_max(&self) -> usize {
        if self.broker.is_failing() || self.store.is_failing() { 1 } else { ROUNDS_MAX }
    }

    /// The shards of the next round, and whether it is a look into all that have few rows; none if there is nothing to do yet.
    fn choose(&mut self, now: Instant) -> Option<(Vec<Shard>, bool)> {
        let Tools { clock, .. } = &*self.tools;
        let wall = clock.now();
        let is_due = || self.resting.iter().filter_map(Shard::due).any(|due| due <= wall);
        if !self.is_looking() && (self.pace.next() <= now || is_due()) {
            let few = |shard: &mut Shard| !shard.deep && shard.lease.holds(clock);
            let shards: Vec<Shard> = self.resting.extract_if(.., few).collect();
            if !shards.is_empty() {
                self.pace.look(now);
                return Some((shards, true));
            }
        }
        let deep = self.resting.iter().position(|shard| shard.deep && shard.lease.holds(clock))?;
        Some((vec![self.resting.remove(deep)], false))
    }

    fn start(&mut self, (shards, is_look): (Vec<Shard>, bool)) {
        let (claims, halt) = (shards.iter().map(|shard| shard.claim).collect(), Arc::new(AtomicBool::new(false)));
        let rows_max = if self.broker.is_failing() { PROBE_ROWS } else { ROWS_MAX };
        let alone = self.running.is_empty() && !self.resting.iter().any(|shard| shard.deep);
        let batches_max = if alone { BATCHES_MAX } else { 1 };
        let round = Round { tools: Arc::clone(&self.tools), shards, rows_max, batches_max, halt: Arc::clone(&halt) };
        let task = self.rounds.spawn(round.run()).id();
        self.running.push(Running { task, shards: claims, halt, is_look, is_double: alone });
    }

    fn round_ended(&mut self, ended: Result<(tokio::task::Id, Ended), tokio::task::JoinError>) {
        let task = ended.as_ref().map_or_else(tokio::task::JoinError::id, |(task, _)| *task);
        let Some(at) = self.running.iter().position(|running| running.task == task) else { return };
        let Running { is_look, shards, .. } = self.running.swap_remove(at);
        let now = Instant::now();
        match ended {
            Ok((_, ended)) => self.take_back(ended, is_look, now),
            Err(error) => {
                // A format panicked, say. What the store has is the truth: the shards are begun with anew.
                let text = StoreError::Unavailable(format!("a round on the shards {shards:?} failed: {error}").into());
                self.store_failed(&text, now);
            }
        }
        // Before the next rounds begin: shards that were lost or revoked meanwhile do not rest, and new ones may have waited.
        self.follow_keeper();
    }

    fn take_back(&mut self, ended: Ended, is_look: bool, now: Instant) {
        let Ended { shards, read, moved, outage, store } = ended;
        if is_look {
            self.pace.looked(now, read > 0);
        }
        self.resting.extend(shards);
        match &store {
            Some(StoreError::Fenced { partition, ours, .. }) => self.lost(partition.index, *ours),
            Some(error) => self.store_failed(error, now),
            None if self.store.answered() => {
                tracing::info!(relay = %self.tools.group, "the outbox answers again");
                self.health.well(&named(0));
            }
            None => {}
        }
        self.hear_of_broker(outage, moved, now);
    }

    fn hear_of_broker(&mut self, outage: Option<BrokerError>, moved: usize, now: Instant) {
        match outage {
            Some(error) => {
                self.tools.metrics.broker_errors.increment(1);
                self.health.broker_failing(&error);
                if self.broker.failed(now, &self.tools.clock) {
                    tracing::warn!(relay = %self.tools.group, %error, "the broker is away: rows stay in the outbox until it is back");
                }
            }
            None if moved > 0 && self.broker.answered() => {
                tracing::info!(relay = %self.tools.group, "the broker answers again");
                self.health.broker_well();
            }
            None => {}
        }
    }

    fn store_failed(&mut self, error: &StoreError, now: Instant) {
        self.tools.metrics.store_errors.increment(1);
        self.health.failing(&named(0), error);
        if self.store.failed(now, &self.tools.clock) {
            tracing::warn!(relay = %self.tools.group, %error, "the outbox does not answer; it is tried again");
        }
    }

    /// Another relay has taken over.
    fn lost(&mut self, shard: u32, epoch: Epoch) {
        tracing::info!(relay = %self.tools.group, shard, epoch = epoch.0, "another relay has taken over a shard");
        self.fenced.insert(shard, epoch);
        self.resting.retain(|resting| resting.number() != shard);
    }
}
