//! The loop: it alone owns lanes, scheduler and partitions, and never polls a handler.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::attempt::{Ending, Job, Workers};
use super::extend::Extender;
use super::health::Health;
use super::lanes::{Head, LaneKey, LaneRef, Lanes};
use super::letters::Letters;
use super::mailbox::{AbortOnDrop, Mailbox, Note};
use super::owned::{Owned, Stage};
use super::planted::Planted;
use super::runs::{RunId, Runs};
use super::scheduler::Scheduler;
use super::serve::{ServeError, Settings};
use super::settle::End;
use super::stop::Stop;
use super::stores::Stores;
use super::tasks::Tasks;
use crate::broker::{Arrival, Membership, Ownership, Room};
use crate::call::{Attempt, Call};
use crate::clock::{Clock, later};
use crate::error::{BrokerError, Fault};
use crate::outcome::BoxFuture;
use crate::policy::defaults;
use crate::store::{Content, Failure};
use crate::telemetry::ConsumerMetrics;
use crate::topic::{Epoch, Partition, Text};

/// The state of one instance of a consumer.
pub(crate) struct Core {
    pub(super) settings: Settings,
    pub(super) clock: Clock,
    pub(super) ownership: Ownership,
    /// There is a store that is as durable as the broker.
    pub(super) has_store: bool,
    pub(super) membership: Arc<dyn Membership>,
    pub(super) stores: Stores,
    /// Where dead letters go that let their lane pass; none if they stay in the store.
    pub(super) letters: Option<Arc<Letters>>,
    pub(super) tasks: Tasks,
    pub(super) workers: Arc<Workers>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) lanes: Lanes,
    pub(super) scheduler: Scheduler,
    pub(super) runs: Runs,
    pub(super) owned: BTreeMap<u32, Owned>,
    pub(super) slots: BTreeMap<Partition, u32>,
    next_slot: u32,
    pub(super) paused: Vec<Partition>,
    /// Deliveries in memory: in lanes, held, or on their way to the store.
    pub(super) buffered: usize,
    /// Rows of the store in lanes.
    pub(super) stored_in_memory: usize,
    pub(super) extender: Extender,
    pub(super) health: Health,
    pub(super) metrics: ConsumerMetrics,
    pub(super) stop: Stop,
    /// Calls to the broker and the store that nobody waits for any more.
    pub(super) errands: Vec<AbortOnDrop>,
    /// Partitions whose giving up the broker is being told; a new ownership of one ends that, or it would be given up.
    pub(super) releases: BTreeMap<Partition, AbortOnDrop>,
    /// When the loop last looked at the clock.
    pub(super) now: Instant,
    next_tick: Instant,
    report_at: Instant,
    fetch_failures: u32,
    fetch_at: Option<Instant>,
    /// When the broker failed last; none when it has answered since, or has been waited for long enough.
    pub(super) fetch_failed_at: Option<Instant>,
    /// Why attempts have failed lately through no fault of their events, and when the log was told.
    pub(super) outages: Vec<(Instant, String)>,
    notes: Vec<Note>,
    jobs: Vec<Job>,
    _background: Vec<AbortOnDrop>,
}

/// How often gauges and health are brought up to date.
const REPORT_EVERY: Duration = Duration::from_millis(250);

/// What wakes the loop.
enum Event {
    Stop,
    Arrival(Result<Arrival, BrokerError>),
    Look,
}

/// A call to the broker for the next arrival.
struct Fetch {
    room: usize,
    paused: Arc<[Partition]>,
    next: BoxFuture<'static, Result<Arrival, BrokerError>>,
}

impl Core {
    pub(super) fn new(settings: Settings, parts: Parts) -> Self {
        let Parts { membership, stores, letters, workers, mailbox, tasks, health, metrics, ownership, has_store } =
            parts;
        let mut background = workers.start();
        let beating = Arc::clone(&membership);
        background.push(tasks.spawn(async move { beating.heartbeat().await }));
        let extender = Extender::new(Arc::clone(&membership));
        if ownership != Ownership::Floor {
            background.push(tasks.spawn(extender.clone().run()));
        }
        Self {
            clock: settings.clock.clone(),
            scheduler: Scheduler::new(settings.concurrency),
            metrics,
            stop: Stop::default(),
            lanes: Lanes::default(),
            runs: Runs::default(),
            owned: BTreeMap::new(),
            slots: BTreeMap::new(),
            next_slot: 0,
            paused: Vec::new(),
            buffered: 0,
            stored_in_memory: 0,
            errands: Vec::new(),
            releases: BTreeMap::new(),
            now: Instant::now(),
            next_tick: Instant::now(),
            report_at: Instant::now(),
            fetch_failures: 0,
            fetch_at: None,
            fetch_failed_at: None,
            outages: Vec::new(),
            notes: Vec::new(),
            jobs: Vec::new(),
            _background: background,
            settings,
            ownership,
            has_store,
            membership,
            stores,
            letters,
            tasks,
            workers,
            mailbox,
            extender,
            health,
        }
    }

    /// Runs until stopped, or until the broker refuses for good.
    pub(super) async fn run(mut self, mut stop_signal: BoxFuture<'static, ()>) -> Result<(), ServeError> {
        let mut fetch = None;
        loop {
            let now = Instant::now();
            self.now = now;
            self.read_notes();
            if now >= self.next_tick {
                self.tick(now);
            }
            if self.stop.is_over() {
                drop(fetch);
                return self.leave().await;
            }
            self.dispatch(now);
            let next_tick = self.next_tick;
            fetch = self.fetch(fetch, now);
            let event = tokio::select! {
                biased;
                () = &mut stop_signal, if !self.stop.is_asked() => Event::Stop,
                Some(arrival) = async { Some(fetch.as_mut()?.next.as_mut().await) } => Event::Arrival(arrival),
                () = self.mailbox.wait() => Event::Look,
                () = tokio::time::sleep_until(next_tick) => Event::Look,
            };
            match event {
                Event::Stop => self.begin_stop(),
                Event::Arrival(arrival) => {
                    fetch = None;
                    self.arrived(arrival)?;
                }
                Event::Look => {}
            }
        }
    }

    /// What waits for the next arrival: from turn to turn the same, while it asks for what may come.
    fn fetch(&self, fetch: Option<Fetch>, now: Instant) -> Option<Fetch> {
        if self.fetch_at.is_some_and(|at| at > now) {
            return None;
        }
        let room = self.room();
        let fits = |f: &Fetch| f.room <= room && (f.room > 0) == (room > 0) && *f.paused == *self.paused;
        Some(fetch.filter(fits).unwrap_or_else(|| {
            let (membership, paused) = (Arc::clone(&self.membership), Arc::<[Partition]>::from(&*self.paused));
            let asked = Arc::clone(&paused);
            let next = Box::pin(async move { membership.next(Room::new(room, &asked)).await });
            Fetch { room, paused, next }
        }))
    }

    /// How many deliveries may come. Too few are not worth a call: then only changes of ownership may come.
    fn room(&self) -> usize {
        let room = self.settings.buffer.saturating_sub(self.buffered);
        let worthwhile = (self.settings.buffer / 8).clamp(1, 64);
        if self.stop.is_asked() || room < worthwhile { 0 } else { room }
    }

    fn arrived(&mut self, arrival: Result<Arrival, BrokerError>) -> Result<(), ServeError> {
        match arrival {
            Ok(arrival) => {
                self.fetch_failures = 0;
                if self.fetch_failed_at.take().is_some() {
                    self.health.broker_well();
                }
                self.arrive(arrival);
                Ok(())
            }
            Err(error) if error.is_transient() || self.stop.is_asked() => {
                self.metrics.broker_errors.increment(1);
                self.fetch_failures += 1;
                self.now = Instant::now();
                self.fetch_failed_at = Some(self.now);
                let wait = Duration::from_millis(50 << self.fetch_failures.min(6));
                let at = self.now + self.clock.jitter(wait);
                self.fetch_at = Some(at);
                self.wake_by(at);
                tracing::warn!(%error, "the broker gives nothing; it is asked again");
                self.health.broker_failing(&error);
                Ok(())
            }
            Err(error) => Err(ServeError::Broker(error)),
        }
    }

    /// The loop looks at its timers by then at the latest.
    pub(super) fn wake_by(&mut self, at: Instant) {
        self.next_tick = self.next_tick.min(at);
    }

    /// The loop looks at its timers before it waits again.
    pub(super) fn soon(&mut self) {
        self.wake_by(self.now);
    }

    fn read_notes(&mut self) {
        let mut notes = std::mem::take(&mut self.notes);
        self.mailbox.take(&mut notes);
        for note in notes.drain(..) {
            match note {
                Note::Ended { run, ending } => self.ended(run, ending),
                Note::Spawned { run, task } => {
                    if let Some(run) = self.runs.get_mut(run).filter(|r| r.orphan.is_none()) {
                        run.task = Some(task);
                    }
                }
                Note::TakenOver { slot, result } => self.taken_over(slot, result),
                Note::Applied { slot, result } => self.applied(slot, result),
                Note::Due { slot, result } => self.due_answered(slot, result),
                Note::Settled { slot, result } => self.settled(slot, result),
                Note::Buried { slot, lane } => self.buried(slot, lane),
                Note::Released { slot } => self.released(slot),
            }
        }
        self.notes = notes;
    }

    /// Everything that depends on time.
    fn tick(&mut self, now: Instant) {
        self.next_tick = now + Duration::from_secs(1);
        if let Some(at) = self.scheduler.wakes_at() {
            self.wake_by(at);
        }
        if let Some(at) = self.fetch_at {
            if at <= now { self.fetch_at = None } else { self.wake_by(at) }
        }
        self.errands.retain(|task| !task.0.is_finished());
        self.releases.retain(|_, task| !task.0.is_finished());
        let slots: Vec<u32> = self.owned.keys().copied().collect();
        for slot in slots {
            self.tick_partition(slot, now);
        }
        self.stop_goes_on(now);
        if now >= self.report_at {
            self.report_at = now + REPORT_EVERY;
            self.report_stuck(now);
            self.report();
        }
    }

    fn tick_partition(&mut self, slot: u32, now: Instant) {
        self.watch_lease(slot, now);
        self.resume(slot);
        self.pump(slot);
        // Read once: what is not due by it is woken for, even if the clock goes on meanwhile.
        let wall = self.clock.now();
        self.ask_due(slot, now, wall);
        self.flush(slot, now);
        self.drain_partition(slot);
        let Some(owned) = self.owned.get(&slot) else { return };
        let due = owned.due.next_at.filter(|_| self.has_room_for_rows()).map(|at| now + at.since(wall));
        let times = [due, owned.due.poll_at, owned.settling.flush_at, owned.writer.retry_at];
        times.into_iter().flatten().filter(|at| *at > now).for_each(|at| self.next_tick = self.next_tick.min(at));
    }

    /// Drops running attempts when their lease has lapsed.
    fn watch_lease(&mut self, slot: u32, now: Instant) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        if owned.origin.lease.is_forever() {
            return;
        }
        let holds = owned.origin.holds(&self.clock);
        let left = owned.origin.lease.deadline().since(self.clock.boot());
        if !holds && !owned.lapsed {
            tracing::warn!(partition = %owned.partition, "the lease has lapsed; running attempts are dropped and not counted");
            self.cancel_runs(slot);
        }
        if let Some(owned) = self.owned.get_mut(&slot) {
            owned.lapsed = !holds;
        }
        self.wake_by(now + if holds { left } else { Duration::from_millis(50) });
    }

    /// Ends the attempts of a partition; each tells the loop when its future has been dropped.
    pub(super) fn cancel_runs(&mut self, slot: u32) {
        for run in self.runs.iter_mut().filter(|r| r.key.slot == slot) {
            run.task = None;
        }
    }

    /// Lets lanes go on that were ready while their partition might not start anything.
    fn resume(&mut self, slot: u32) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        if owned.suspended.is_empty() || !owned.origin.holds(&self.clock) {
            return;
        }
        for lane in std::mem::take(&mut owned.suspended) {
            self.lanes.set(lane, Head::Waiting);
            self.scheduler.ready(lane);
        }
    }

    /// Starts what may start.
    fn dispatch(&mut self, now: Instant) {
        let mut jobs = std::mem::take(&mut self.jobs);
        while let Some(lane) = self.scheduler.next(now) {
            match self.start(lane, now) {
                Some(job) => jobs.push(job),
                None => self.scheduler.finish(),
            }
        }
        if !jobs.is_empty() {
            self.workers.submit(&mut jobs);
        }
        self.jobs = jobs;
        if let Some(at) = self.scheduler.wakes_at() {
            self.wake_by(at);
        }
    }

    /// Starts the head of a lane, unless the lane is gone, may not start now, or needs no handler.
    fn start(&mut self, lane: LaneRef, now: Instant) -> Option<Job> {
        let (key, Head::Waiting) = self.lanes.look(lane)? else { return None };
        let owned = self.owned.get_mut(&key.slot)?;
        let item = self.lanes.head(lane)?;
        if !owned.may_start(item, &self.clock) || self.runs.has_orphan(&owned.partition, key) {
            if item.stored.is_some() && owned.is_closing() {
                self.leave_row(key, lane);
                return None;
            }
            self.lanes.set(lane, Head::Suspended);
            owned.suspended.push(lane);
            return None;
        }
        let Some(route) = item.target.route() else {
            self.unroutable(key, lane);
            return None;
        };
        let Content::Event(event) = &item.content else { return None };
        let attempt = match item.stored {
            None => Attempt::fresh(item.attempts + 1),
            Some(stored) => Attempt::stored(item.attempts + 1, stored.replay),
        };
        let options = self.workers.app.route(route);
        let timeout = options.timeout.unwrap_or(self.settings.timeout);
        let classify = options.policy.as_ref().unwrap_or(&self.settings.policy).classify;
        let call = Call::new(Arc::clone(event), Arc::clone(&owned.origin), item.place, attempt);
        let call = call.with_deadline(later(now, timeout));
        self.lanes.set(lane, Head::Running);
        let run = self.runs.begin(key, lane, now);
        Some(Job { run, route, call, classify })
    }

    /// An attempt has ended: its permit comes back, and its lane goes on.
    fn ended(&mut self, id: RunId, ending: Ending) {
        let Some(run) = self.runs.end(id) else { return };
        self.scheduler.finish();
        let took = self.now.duration_since(run.began);
        self.metrics.attempt(ending.label(), took);
        if run.orphan.is_some() {
            self.soon();
            return;
        }
        let (key, lane) = (run.key, run.lane);
        if !matches!(self.lanes.look(lane), Some((_, Head::Running))) {
            return;
        }
        let (fault, error) = match ending {
            Ending::Done => return self.conclude(key, lane, End::Done, None),
            Ending::Cancelled => return self.back_to_front(key, lane),
            Ending::Failed(fault, text) => (fault, text),
            // Nobody else might ever notice: while attempts are refused, nothing of the partition is written.
            Ending::Refused(Some(held), error) => {
                tracing::warn!(error, "a commit was refused; the partition is given up, and taken over anew");
                return self.give_up_partition(key.slot, Some(held));
            }
            Ending::Refused(None, error) => return self.take_over_anew(key.slot, &error),
            Ending::Panicked(text) => (Fault::Transient, text),
            Ending::TimedOut => (Fault::Transient, format!("the attempt was dropped at its deadline after {took:?}")),
        };
        self.conclude(key, lane, End::Failed(fault), Some((error, took)));
    }

    /// An attempt that does not count: its event is the next of its lane again.
    fn back_to_front(&mut self, key: LaneKey, lane: LaneRef) {
        let (Some(owned), Some(item)) = (self.owned.get_mut(&key.slot), self.lanes.head(lane)) else { return };
        if owned.may_start(item, &self.clock) && !self.stop.is_cancelling() {
            self.lanes.set(lane, Head::Waiting);
            self.scheduler.first(lane);
        } else {
            self.lanes.set(lane, Head::Suspended);
            owned.suspended.push(lane);
            self.soon();
        }
    }

    /// A new slot for a partition that is owned from now on.
    pub(super) fn new_slot(&mut self, owned: Owned) -> u32 {
        let slot = self.next_slot;
        self.next_slot += 1;
        self.slots.insert(owned.partition.clone(), slot);
        self.owned.insert(slot, owned);
        slot
    }

    /// A partition is gone: everything of it in memory is forgotten, nothing of it is settled.
    pub(super) fn drop_partition(&mut self, slot: u32) {
        let Some(owned) = self.owned.remove(&slot) else { return };
        owned.origin.revoke();
        self.slots.remove(&owned.partition);
        self.extender.forget(slot);
        for lane in self.lanes.of_slot(slot) {
            let items = self.lanes.take(lane);
            let stored = items.iter().filter(|i| i.stored.is_some()).count();
            self.stored_in_memory -= stored;
            self.buffered -= items.len() - stored;
        }
        self.buffered -= owned.held.len() + owned.writer.events();
        self.runs.orphan(slot, &owned.partition);
        self.health.forget(&owned.partition);
        self.update_paused();
    }

    /// Gives a partition back to the broker without having worked on it to an end.
    pub(super) fn give_up_partition(&mut self, slot: u32, above: Option<Epoch>) {
        let Some(partition) = self.owned.get(&slot).map(|o| o.partition.clone()) else { return };
        self.drop_partition(slot);
        self.release(slot, partition, above);
    }

    /// What was known of a partition does not hold any more.
    pub(super) fn take_over_anew(&mut self, slot: u32, why: &dyn std::fmt::Display) {
        if let Some(owned) = self.owned.get(&slot) {
            tracing::error!(partition = %owned.partition, error = %why, "the partition is given up, and taken over anew");
            self.give_up_partition(slot, None);
        }
    }

    /// Tells the broker that a partition is given up.
    pub(super) fn release(&mut self, slot: u32, partition: Partition, above: Option<Epoch>) {
        let (membership, mailbox, name) = (Arc::clone(&self.membership), Arc::clone(&self.mailbox), partition.clone());
        let task = self.tasks.spawn(async move {
            if let Err(error) = membership.release(&partition, above).await {
                tracing::warn!(%partition, %error, "the broker was not told that a partition is given up");
            }
            mailbox.push(Note::Released { slot });
        });
        self.releases.insert(name, task);
    }

    /// Which partitions nothing is to be fetched from.
    pub(super) fn update_paused(&mut self) {
        let early = self.planted(Planted::FetchBeforeLoad);
        let waits = |o: &&Owned| !(o.may_fetch(defaults::ABOVE_FLOOR) || early && o.stage == Stage::Loading);
        self.paused = self.owned.values().filter(waits).map(|o| o.partition.clone()).collect();
    }

    #[cfg(test)]
    pub(super) fn planted(&self, bug: Planted) -> bool {
        self.settings.planted == Some(bug)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "in test builds it looks at the settings")]
    pub(super) fn planted(&self, _: Planted) -> bool {
        false
    }

    pub(super) fn failure(&self, attempt: u32, error: &str, took: Duration) -> Failure {
        const ERROR_BYTES_MAX: usize = 2_000;
        let cut = error.floor_char_boundary(ERROR_BYTES_MAX);
        Failure { at: self.clock.now(), attempt, took, error: Text::from(error.get(..cut).unwrap_or_default()) }
    }
}

/// What a core is made of.
pub(super) struct Parts {
    pub(super) membership: Arc<dyn Membership>,
    pub(super) stores: Stores,
    pub(super) letters: Option<Arc<Letters>>,
    pub(super) workers: Arc<Workers>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) tasks: Tasks,
    pub(super) health: Health,
    pub(super) metrics: ConsumerMetrics,
    pub(super) ownership: Ownership,
    pub(super) has_store: bool,
}
