//! Plays a scenario: starts, kills, freezes and stops instances, publishes, waits for the end.

use std::collections::btree_map::OccupiedEntry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::broker::FaultyBroker;
use super::checker::{Invariant, Told, Truth, Violation, check};
use super::faults::{Faults, Reached};
use super::history::{EventNo, History, Instance, NOBODY, What};
use super::life::Life;
use super::probe::{Numbers, Probe};
use super::publishing::{self, PublishPort};
use super::report::Report;
use super::script::Stage;
use super::store::{FaultyStore, Floors};
use super::world::{Planned, Scenario, Step};
use crate::broker::{Broker, MemoryBroker, Ownership};
use crate::clock::Clock;
use crate::engine::Consumer;
use crate::format::{CloudEvents, Format};
use crate::message::Message;
use crate::publish::Publisher;
use crate::router::Router;
use crate::store::{Action, Command, CommandState, Hold, Listed, MemoryStore, Query, RowState, Store};
use crate::topic::{Position, Text, Topic};

const CONSUMER: &str = "sim";

/// How often the director looks whether everything is settled.
const LOOK: Duration = Duration::from_millis(200);

/// How much longer than its limit, and as long again for the leave, a graceful stop may take.
const STOP_MARGIN: Duration = Duration::from_secs(1);

/// Makes the router of one life of an instance.
pub(crate) type MakeRouter = Arc<dyn Fn(&Life) -> Router + Send + Sync>;

pub(crate) struct Director {
    scenario: Scenario,
    make_router: MakeRouter,
    numbers: Numbers,
    topics: Vec<Topic>,
    broker: MemoryBroker,
    /// Publishes, in runs in which publishing fails.
    publisher: Option<Publisher>,
    store: MemoryStore,
    floors: Floors,
    history: History,
    reached: Reached,
    slots: Vec<Slot>,
    agenda: BTreeMap<(Instant, u32), Task>,
    /// Orders what is to happen at the same time.
    tasks: u32,
    rng: fastrand::Rng,
    lives: Instance,
    began: Instant,
    deaths: (UnboundedSender<Instance>, UnboundedReceiver<Instance>),
    extra: Vec<Violation>,
}

/// A place for an instance: one life after the other.
#[derive(Default)]
struct Slot {
    lives: u32,
    running: Option<Running>,
}

struct Running {
    life: Life,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

#[derive(Clone, Copy)]
enum Task {
    Publish(EventNo),
    Step(Step),
}

/// The numbers of a scenario's events.
pub(crate) fn numbers(events: &[Planned]) -> Numbers {
    let name = |planned: &Planned| (planned.event.source.clone(), planned.event.id.clone());
    Arc::new(events.iter().map(name).zip(0..).collect())
}

/// The router that follows the scenario's scripts.
pub(crate) fn scripted(scenario: &Scenario, numbers: &Numbers) -> MakeRouter {
    let scripts = (0..).zip(scenario.events.iter().map(|planned| planned.script)).collect();
    let stage = Stage::new(scripts, Arc::clone(numbers));
    Arc::new(move |life| stage.router(life))
}

impl Director {
    /// Needs to be called on a tokio runtime with a paused clock.
    pub(crate) fn new(scenario: Scenario, make_router: MakeRouter, numbers: Numbers) -> Self {
        let clock = Clock::simulated(scenario.seed);
        let mut broker = MemoryBroker::new()
            .partitions(scenario.partitions)
            .ownership(scenario.ownership)
            .ack_wait(scenario.ack_wait)
            .clock(clock.clone());
        if let Some(times) = scenario.leases {
            broker = broker.leases(times);
        }
        let history = History::new(clock.clone());
        let publisher = (scenario.publish_fails > 0).then(|| {
            let port = PublishPort {
                inner: broker.clone(),
                history: history.clone(),
                numbers: Arc::clone(&numbers),
                fails: scenario.publish_fails,
                rng: Mutex::new(fastrand::Rng::with_seed(scenario.seed.wrapping_mul(31))),
            };
            Publisher::new("sim", port).clock(clock)
        });
        let topics: BTreeSet<Topic> = scenario.events.iter().filter_map(|p| p.event.topic.clone()).collect();
        Self {
            make_router,
            numbers,
            topics: topics.into_iter().collect(),
            broker,
            store: MemoryStore::new(),
            floors: Floors::default(),
            history,
            publisher,
            reached: Reached::default(),
            slots: (0..scenario.instances).map(|_| Slot::default()).collect(),
            agenda: BTreeMap::new(),
            tasks: 0,
            rng: fastrand::Rng::with_seed(!scenario.seed),
            lives: 0,
            began: Instant::now(),
            deaths: unbounded_channel(),
            extra: Vec::new(),
            scenario,
        }
    }

    /// Plays the whole scenario and judges it.
    pub(crate) async fn play(mut self) -> Report {
        self.plan();
        let calm_at = self.began + self.scenario.calm_at;
        self.direct_until(calm_at).await;
        self.note(What::Calm);
        for slot in 0..self.slots.len() {
            self.start(slot);
        }
        self.wait_settled().await;
        self.stop_all().await;
        self.look_at_the_store().await;
        self.judge()
    }

    fn plan(&mut self) {
        let publishes: Vec<Duration> = self.scenario.events.iter().map(|p| p.at).collect();
        for (n, at) in (0..).zip(publishes) {
            self.add(self.began + at, Task::Publish(n));
        }
        for (at, step) in self.scenario.steps.clone() {
            self.add(self.began + at, Task::Step(step));
        }
    }

    fn add(&mut self, at: Instant, task: Task) {
        self.agenda.insert((at, self.tasks), task);
        self.tasks += 1;
    }

    fn note(&self, what: What) {
        self.history.note(NOBODY, what);
    }

    /// Works off the agenda; what is on it for later is forgotten.
    async fn direct_until(&mut self, end: Instant) {
        loop {
            let next = self.agenda.first_key_value().map_or(end, |((at, _), _)| *at).min(end);
            tokio::select! {
                biased;
                Some(instance) = self.deaths.1.recv() => self.ended(instance),
                () = tokio::time::sleep_until(next) => {
                    let first = self.agenda.first_entry().filter(|first| first.key().0 <= end);
                    match first.map(OccupiedEntry::remove) {
                        None => return,
                        Some(task) => self.carry_out(task).await,
                    }
                }
            }
        }
    }

    async fn carry_out(&mut self, task: Task) {
        match task {
            Task::Publish(event) => self.publish(event).await,
            Task::Step(Step::Start(slot)) => self.start(slot),
            Task::Step(Step::Crash(slot)) => {
                if let Some(running) = &self.slots[slot].running {
                    running.life.kill();
                }
            }
            Task::Step(Step::Freeze(slot, span)) => {
                if let Some(running) = &self.slots[slot].running {
                    running.life.freeze(span);
                }
            }
            Task::Step(Step::Stop(slot)) => self.stop(slot),
            Task::Step(Step::Operate(what)) => self.operate(what).await,
        }
    }

    /// Publishes an event; now and then twice, as after a confirmation that was lost.
    async fn publish(&mut self, event: EventNo) {
        let planned = &self.scenario.events[event as usize];
        if let Some(publisher) = self.publisher.as_ref().filter(|_| !planned.broken) {
            if let Err(error) = publishing::publish(publisher, planned.event.clone()).await {
                self.fail(Invariant::NoLoss, format!("event {event} could not be published: {error}"));
            }
            return;
        }
        let Some(message) = message(planned) else { return };
        let times = if !planned.broken && self.rng.u32(0..20) == 0 { 2 } else { 1 };
        let broker = self.broker.clone();
        for answer in broker.publish(vec![message; times]).await {
            match answer {
                Ok(receipt) if !receipt.duplicate => {
                    let (partition, position) = (receipt.partition, receipt.position);
                    self.note(What::Published { event, partition, position });
                }
                Ok(_) => {}
                Err(error) => self.fail(Invariant::NoLoss, format!("event {event} could not be published: {error}")),
            }
        }
    }

    fn fail(&mut self, invariant: Invariant, text: String) {
        self.extra.push(Violation::new(invariant, text, []));
    }

    /// Starts an instance unless one runs there.
    fn start(&mut self, slot: usize) {
        if self.slots[slot].running.is_some() {
            return;
        }
        let life = Life::new(self.lives, self.history.clone(), self.deaths.0.clone());
        self.lives += 1;
        life.note(What::Joined);
        let (stop, stopped) = oneshot::channel();
        let plan = self.scenario.plan(slot, self.slots[slot].lives);
        let faults = Faults::new(life.clone(), plan, self.reached.clone());
        let serve = self.consumer(&life, faults).serve(self.router(&life)).with_graceful_shutdown(async {
            // A sender that is gone stops it as well.
            let _ = stopped.await;
        });
        let (ending, over) = (life.clone(), self.deaths.0.clone());
        let task = tokio::spawn(life.gate().wrap(async move {
            let error = serve.await.err().map(|error| error.to_string());
            ending.note(What::Stopped { error });
            // The director may be gone.
            let _ = over.send(ending.instance());
        }));
        self.slots[slot].lives += 1;
        self.slots[slot].running = Some(Running { life, stop: Some(stop), task });
    }

    fn consumer(&self, life: &Life, faults: Faults) -> Consumer {
        let scenario = &self.scenario;
        let broker = FaultyBroker {
            inner: self.broker.clone(),
            faults: faults.clone(),
            durable: scenario.storeless,
            buffer: scenario.buffer,
        };
        let consumer = Consumer::new(CONSUMER, broker)
            .topics(self.topics.clone())
            .store(FaultyStore { inner: self.store.clone(), floors: self.floors.clone(), faults })
            .policy(scenario.policy.clone())
            .timeout(scenario.timeout)
            .concurrency(scenario.concurrency)
            .buffer(scenario.buffer)
            .buffer_per_key(scenario.buffer_per_key)
            .shutdown(scenario.shutdown)
            .clock(self.history.clock().clone())
            .gate(life.gate().clone());
        #[cfg(test)]
        let consumer = match scenario.planted {
            Some(bug) => consumer.planted(bug),
            None => consumer,
        };
        consumer
    }

    fn router(&self, life: &Life) -> Router {
        let probe = Probe { life: life.clone(), numbers: Arc::clone(&self.numbers) };
        (self.make_router)(life).layer(probe)
    }

    fn stop(&mut self, slot: usize) {
        let stop = self.slots[slot].running.as_mut().and_then(|running| Some((running.stop.take()?, &running.life)));
        if let Some((stop, life)) = stop
            && !life.is_dead()
        {
            life.asked_to_stop();
            // It may have ended by itself.
            let _ = stop.send(());
        }
    }

    /// An instance has ended: it is started again after a while.
    fn ended(&mut self, instance: Instance) {
        let slots = self.slots.iter_mut().enumerate();
        let of = |slot: &Slot| slot.running.as_ref().is_some_and(|r| r.life.instance() == instance);
        let Some((slot, place)) = slots.into_iter().find(|(_, slot)| of(slot)) else { return };
        if let Some(running) = place.running.take() {
            running.task.abort();
        }
        let calm_at = self.began + self.scenario.calm_at;
        let again = Instant::now() + Duration::from_millis(self.rng.u64(0..4_000));
        self.add(again.min(calm_at.max(Instant::now())), Task::Step(Step::Start(slot)));
    }

    async fn wait_settled(&mut self) {
        let deadline = Instant::now() + self.scenario.patience + LOOK * 2;
        while Instant::now() < deadline {
            if self.is_settled().await {
                self.note(What::Settled);
                return;
            }
            self.direct_until(Instant::now() + LOOK).await;
        }
    }

    async fn is_settled(&self) -> bool {
        if self.broker.lag(CONSUMER) != Some(0) {
            return false;
        }
        let waits = |(_, _, state): &(_, _, CommandState)| *state == CommandState::Waiting;
        if self.store.audit().iter().any(waits) {
            return false;
        }
        let rows = self.rows().await;
        // Behind a dead letter that blocks, parked rows wait for ever; before it they do not.
        let blocks = |lane: &_, at: Position| {
            rows.iter().any(|(l, row)| l == lane && row.0 < at && row.1 == RowState::Dead(Hold::Block))
        };
        rows.iter().all(|(lane, row)| row.1 != RowState::Parked || blocks(lane, row.0))
    }

    /// The rows of the store, each with the partition and lane that it belongs to.
    async fn rows(&self) -> Vec<Found> {
        let name = |l: Listed| ((l.partition, l.row.lane), (l.row.place.position, l.row.state));
        self.listed().await.into_iter().map(name).collect()
    }

    async fn listed(&self) -> Vec<Listed> {
        let mut query = Query { consumer: Some(Text::from(CONSUMER)), ..Query::default() };
        query.limit = usize::MAX;
        self.store.browse(&query).await.unwrap_or_default()
    }

    /// An operator looks at the rows and asks for something that can be done with one of them.
    async fn operate(&self, what: u32) {
        let rows: Vec<Listed> =
            self.listed().await.into_iter().filter(|l| l.row.state != RowState::Discarded).collect();
        if rows.is_empty() || self.scenario.ownership == Ownership::Competing {
            return;
        }
        let on = &rows[what as usize / 8 % rows.len()];
        let action = match what % 8 {
            0 | 1 => Action::Discard,
            2..=4 if on.row.state == RowState::Dead(Hold::Block) => Action::Skip,
            _ => Action::Replay,
        };
        // It is refused if the row has changed meanwhile.
        let _ = self.store.command(&Command::new(on, action, "operator", "the seed says so")).await;
    }

    async fn stop_all(&mut self) {
        for slot in 0..self.slots.len() {
            self.stop(slot);
        }
        let asked = Instant::now();
        while self.slots.iter().any(|slot| slot.running.is_some()) {
            // A process that is frozen learns of it late.
            let thawed = self.slots.iter().filter_map(|slot| slot.running.as_ref()?.life.thaws_at()).max();
            let deadline = thawed.max(Some(asked)).unwrap_or(asked) + self.scenario.shutdown * 2 + STOP_MARGIN;
            tokio::select! {
                biased;
                Some(instance) = self.deaths.1.recv() => self.ended(instance),
                () = tokio::time::sleep_until(deadline) => {
                    if self.slots.iter().filter_map(|slot| slot.running.as_ref()?.life.thaws_at()).max() > thawed {
                        continue;
                    }
                    let left: Vec<Instance> = self.slots.iter().filter_map(|s| Some(s.running.as_ref()?.life.instance())).collect();
                    let text = format!("instances {left:?} did not stop within twice {:?} and {STOP_MARGIN:?}", self.scenario.shutdown);
                    return self.fail(Invariant::Liveness, text);
                }
            }
        }
    }

    async fn look_at_the_store(&self) {
        for ((partition, _), (position, state)) in self.rows().await {
            self.note(What::Left { partition, position, state });
        }
    }

    fn judge(self) -> Report {
        let records = self.history.take();
        let truth = truth(&self.scenario);
        let mut failures = check(&records, &truth);
        failures.extend(self.extra);
        Report::new(self.scenario.seed, self.scenario.to_string(), &records, failures, self.reached.names())
    }
}

/// A row: the partition and lane that it belongs to, its position and its state.
type Found = ((crate::topic::Partition, crate::topic::LaneId), (crate::topic::Position, RowState));

fn message(planned: &Planned) -> Option<Message> {
    let topic = planned.event.topic.clone()?;
    if planned.broken {
        return Some(Message::new(topic, planned.event.data.clone()));
    }
    CloudEvents::binary().encode(&planned.event, &topic).ok()
}

/// What the checker has to know of a scenario.
fn truth(scenario: &Scenario) -> Truth {
    let mut counters: BTreeMap<String, u32> = BTreeMap::new();
    let told = |(n, planned): (usize, &Planned)| {
        let topic = planned.event.topic.as_ref().map_or("", Topic::as_str);
        let lane = match &planned.event.key {
            Some(key) => format!("{topic}/{key}"),
            None => format!("{topic}/(none {n})"),
        };
        let next = counters.entry(lane.clone()).or_default();
        *next += 1;
        Told { lane, counter: *next - 1 }
    };
    Truth {
        ownership: scenario.ownership,
        has_store: !scenario.storeless,
        events: scenario.events.iter().enumerate().map(told).collect(),
        concurrency: scenario.concurrency,
        buffer: scenario.buffer,
        attempts_max: if scenario.storeless { u32::MAX } else { scenario.attempts_max },
        shutdown: scenario.shutdown,
        patience: scenario.patience,
    }
}
