//! Draws a scenario from a seed: what there is, what is published, and what goes wrong.

use std::fmt;
use std::time::Duration;

use fastrand::Rng;

use super::faults::{CALLS, Plan, Port, SLOW_MAX};
use super::script::Script;
use crate::broker::Ownership;
use crate::broker::memory::LeaseTimes;
use crate::clock::Boot;
#[cfg(test)]
use crate::engine::planted::Planted;
use crate::event::Event;
use crate::policy::Policy;

/// Everything that a run is made of.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    pub(crate) seed: u64,
    pub(crate) ownership: Ownership,
    /// The broker says that it is durable, so that the memory store counts as none.
    pub(crate) storeless: bool,
    pub(crate) partitions: u32,
    pub(crate) instances: usize,
    pub(crate) leases: Option<LeaseTimes>,
    pub(crate) ack_wait: Duration,
    pub(crate) events: Vec<Planned>,
    pub(crate) policy: Policy,
    pub(crate) attempts_max: u32,
    pub(crate) timeout: Duration,
    pub(crate) shutdown: Duration,
    pub(crate) concurrency: usize,
    pub(crate) buffer: usize,
    pub(crate) buffer_per_key: usize,
    pub(crate) patience: Duration,
    pub(crate) faults: FaultsDrawn,
    /// Of a thousand publishes so many fail, as many before as after they have taken effect.
    pub(crate) publish_fails: u32,
    pub(crate) steps: Vec<(Duration, Step)>,
    pub(crate) calm_at: Duration,
    #[cfg(test)]
    pub(crate) planted: Option<Planted>,
}

/// An event to be published.
#[derive(Clone, Debug)]
pub(crate) struct Planned {
    pub(crate) at: Duration,
    pub(crate) event: Event,
    pub(crate) script: Script,
    /// No format can read it.
    pub(crate) broken: bool,
}

/// Something that happens to an instance from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Start(usize),
    Crash(usize),
    Freeze(usize, Duration),
    Stop(usize),
    /// An operator does something to a row; the number says what to which.
    Operate(u32),
}

/// Which kinds of faults there are, and how many.
#[derive(Clone, Debug, Default)]
pub(crate) struct FaultsDrawn {
    /// Every life crashes at some point of a call, if it gets there.
    pub(crate) crash_points: bool,
    /// The first life of the first instance crashes here, and no other does.
    pub(crate) crash_at: Option<(String, u32)>,
    pub(crate) plan: Plan,
}

/// What a seed leans to, so that rare meetings happen often enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lean {
    /// Nothing in particular.
    Mixed,
    /// Few keys that fail, with a steady stream behind them and a slow store.
    Hot,
    /// Many quick events, little going wrong in them.
    Wide,
}

const SOURCE: &str = "sim";

impl Scenario {
    pub(crate) fn draw(seed: u64, ownership: Option<Ownership>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let drawn = match rng.u32(0..10) {
            0..=4 => Ownership::Floor,
            5..=7 => Ownership::AckEach,
            _ => Ownership::Competing,
        };
        let ownership = ownership.unwrap_or(drawn);
        let storeless = ownership != Ownership::Competing && rng.u32(0..100) < 18;
        let lean = match rng.u32(0..10) {
            0..=4 => Lean::Mixed,
            5..=7 => Lean::Hot,
            _ => Lean::Wide,
        };
        let (policy, attempts_max) = draw_policy(&mut rng, storeless);
        let timeout = ms(&mut rng, 500, 3_000);
        let (events, span) = draw_events(&mut rng, lean, storeless, timeout);
        let calm_at = span + ms(&mut rng, 1_000, 8_000);
        let instances = rng.usize(1..=3);
        let concurrency = rng.usize(1..=8);
        let buffer = rng.usize(8..=64);
        let mut scenario = Self {
            seed,
            ownership,
            storeless,
            partitions: rng.u32(1..=4),
            instances,
            leases: rng.bool().then(|| draw_leases(&mut rng)),
            ack_wait: ms(&mut rng, 1_000, 6_000),
            events,
            policy,
            attempts_max,
            timeout,
            shutdown: ms(&mut rng, 500, 5_000),
            concurrency,
            buffer,
            buffer_per_key: rng.usize(2..=8).min(buffer),
            patience: Duration::ZERO,
            publish_fails: 0,
            faults: draw_faults(&mut rng, lean, calm_at),
            steps: draw_steps(&mut rng, instances, calm_at),
            calm_at,
            #[cfg(test)]
            planted: None,
        };
        if rng.u32(0..4) == 0 {
            scenario.operate(rng.usize(1..=6), &mut rng);
        }
        scenario.publish_fails = if rng.u32(0..3) == 0 { 100 } else { 0 };
        scenario.patience = scenario.patience();
        scenario
    }

    /// Operators do something so many times.
    fn operate(&mut self, times: usize, rng: &mut Rng) {
        let end = u64::try_from(self.calm_at.as_millis()).unwrap_or(0);
        for _ in 0..times {
            self.steps.push((ms(rng, 0, end), Step::Operate(rng.u32(..))));
        }
    }

    /// How long everything may take, one after the other, and a minute.
    fn patience(&self) -> Duration {
        let wait = Duration::from_secs(3) + self.ack_wait + self.faults.plan.store_latency * 4;
        let each = |planned: &Planned| {
            let failures = planned.script.failures().min(self.attempts_max);
            (planned.script.takes(self.timeout) + wait) * failures + planned.script.takes(self.timeout) + wait / 8
        };
        let operated = self.steps.iter().filter(|(_, step)| matches!(step, Step::Operate(_))).count();
        let operated = Duration::from_mins(1) * u32::try_from(operated).unwrap_or(u32::MAX);
        Duration::from_mins(1) + operated + self.events.iter().map(each).sum::<Duration>()
    }

    /// Leaves out everything that goes wrong from outside.
    pub(crate) fn calm_down(&mut self) {
        let plan = &self.faults.plan;
        let latencies = (plan.broker_latency, plan.store_latency);
        self.faults = FaultsDrawn::default();
        self.publish_fails = 0;
        (self.faults.plan.broker_latency, self.faults.plan.store_latency) = latencies;
        self.steps.retain(|(_, step)| matches!(step, Step::Start(_) | Step::Operate(_)));
    }

    /// One crash, where it is wanted, and one graceful stop to reach the points of stopping.
    pub(crate) fn crash_once(&mut self, point: &str, nth: u32) {
        self.calm_down();
        self.faults.crash_at = Some((point.to_owned(), nth));
        let mut rng = Rng::with_seed(!self.seed);
        self.operate(4, &mut rng);
        let stop_at = self.calm_at.mul_f64(rng.f64());
        self.steps.push((stop_at, Step::Stop(0)));
        // The life that is to crash has to be the one that is stopped.
        self.calm_at = self.calm_at.max(stop_at + self.shutdown * 2 + Duration::from_secs(10));
    }

    /// The plan of one life of an instance.
    pub(crate) fn plan(&self, slot: usize, life: u32) -> Plan {
        let seed = self.seed.wrapping_mul(1_000_003).wrapping_add(u64::from(life) + 1);
        let mut rng = Rng::with_seed(seed);
        let random = (self.faults.crash_points && rng.u32(0..3) > 0).then(|| draw_point(&mut rng));
        let wanted = self.faults.crash_at.clone().filter(|_| slot == 0 && life == 0);
        Plan {
            seed,
            crash_at: wanted.or(random),
            calm_at: Some(Boot(0).after(self.calm_at)),
            ..self.faults.plan.clone()
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ownership, partitions, instances, concurrency, buffer, buffer_per_key, policy, .. } = self;
        let store = if self.storeless { "no store" } else { "a store" };
        let leases = if self.leases.is_some() { "leases" } else { "no leases" };
        write!(f, "{ownership:?}, {store}, {leases}, {instances} instances, {partitions} partitions a topic, ")?;
        write!(f, "concurrency {concurrency}, buffer {buffer}, {buffer_per_key} a key, {policy:?}")
    }
}

fn ms(rng: &mut Rng, from: u64, to: u64) -> Duration {
    Duration::from_millis(rng.u64(from..=to))
}

fn draw_point(rng: &mut Rng) -> (String, u32) {
    let call = CALLS[rng.usize(0..CALLS.len())];
    let side = if rng.bool() { "before" } else { "after" };
    let stop = if rng.u32(0..8) == 0 { "stop." } else { "" };
    let nth = if call == "next" { rng.u32(1..60) } else { rng.u32(1..8) };
    (format!("{stop}{call}/{side}"), nth)
}

fn draw_policy(rng: &mut Rng, storeless: bool) -> (Policy, u32) {
    let quick = rng.u32(1..=3);
    let parked = rng.u32(1..=4);
    let fast = !storeless && rng.u32(0..5) == 0;
    let base = if fast { Policy::fast() } else { Policy::ordered() };
    let policy = base
        .quick_attempts(quick)
        .quick_delay(ms(rng, 2, 60))
        .max_attempts(parked)
        .parked_delay(ms(rng, 10, 800))
        .parked_delay_max(ms(rng, 200, 1_500));
    let policy = if !storeless && rng.u32(0..4) == 0 { policy.block() } else { policy };
    (policy, if fast { quick } else { quick + parked })
}

fn draw_leases(rng: &mut Rng) -> LeaseTimes {
    let unit = ms(rng, 100, 1_000);
    LeaseTimes { renew: unit, lease: unit * 4, strike_off: unit * 6 }
}

fn draw_events(rng: &mut Rng, lean: Lean, storeless: bool, timeout: Duration) -> (Vec<Planned>, Duration) {
    let keys = if lean == Lean::Hot { rng.usize(1..=3) } else { rng.usize(1..=12) };
    let count = rng.usize(20..=if lean == Lean::Mixed { 80 } else { 120 });
    let topics = rng.usize(1..=2);
    let keyless = rng.usize(0..=15);
    let gap_max = [0, 5, 30, 150][rng.usize(0..4)];
    let before_start = rng.usize(0..count);
    let mut at = Duration::ZERO;
    let mut events = Vec::with_capacity(count);
    for n in 0..count {
        if n >= before_start {
            at += ms(rng, 0, gap_max);
        }
        let mut script = draw_script(rng, lean, timeout);
        if storeless && !script.heals() {
            script = Script::Fail(1);
        }
        let broken = !storeless && rng.usize(0..100) < 2;
        let key =
            if broken || rng.usize(0..100) < keyless { String::new() } else { format!("k{}", rng.usize(0..keys)) };
        let topic = if rng.usize(0..topics) == 0 { "a" } else { "b" };
        let event = Event::raw("sim.event", n.to_string()).id(format!("e{n}")).source(SOURCE).topic(topic).key(key);
        events.push(Planned { at, event, script, broken });
    }
    (events, at)
}

fn draw_script(rng: &mut Rng, lean: Lean, timeout: Duration) -> Script {
    let calm = match lean {
        Lean::Mixed => 600,
        Lean::Hot => 450,
        Lean::Wide => 850,
    };
    if rng.u32(0..1_000) < calm {
        return Script::Done;
    }
    match rng.u32(0..100) {
        0..=29 => Script::Rest(rng.u32(1..=4), ms(rng, 1, 60)),
        30..=33 => Script::Rest(2, timeout.mul_f32(0.4)),
        34..=63 => Script::Fail(rng.u32(1..=4)),
        64..=75 => Script::FailLate(rng.u32(1..=3), ms(rng, 1, 200)),
        76..=79 => Script::RetryAfter(rng.u32(1..=2), ms(rng, 10, 2_000)),
        80..=84 => Script::FailAlways,
        85..=89 => Script::Permanent,
        90..=93 => Script::Panic(rng.u32(1..=3)),
        94..=96 => Script::Hang(1),
        _ => Script::Block(ms(rng, 50, 6_000)),
    }
}

fn draw_faults(rng: &mut Rng, lean: Lean, calm_at: Duration) -> FaultsDrawn {
    let some = |rng: &mut Rng, of_thousand| if rng.u32(0..3) == 0 { of_thousand } else { 0 };
    let latencies: [u64; 4] = if lean == Lean::Hot { [3, 10, 40, 150] } else { [0, 2, 10, 60] };
    let mut outages = Vec::new();
    for port in [Port::Broker, Port::Store] {
        if rng.u32(0..6) == 0 {
            let from = rng.u64(0..=u64::try_from(calm_at.as_millis()).unwrap_or(0));
            let from = Duration::from_millis(from);
            let to = (from + ms(rng, 200, 6_000)).min(calm_at);
            outages.push((port, Boot(0).after(from), Boot(0).after(to)));
        }
    }
    let plan = Plan {
        fail_before: some(rng, 40),
        fail_after: some(rng, 40),
        slow: some(rng, 30),
        slow_max: ms(rng, 100, 4_000).min(SLOW_MAX),
        again: some(rng, 150),
        broker_latency: Duration::from_millis([0, 0, 3, 25][rng.usize(0..4)]),
        store_latency: Duration::from_millis(latencies[rng.usize(0..4)]),
        outages,
        ..Plan::default()
    };
    FaultsDrawn { crash_points: rng.u32(0..3) > 0, crash_at: None, plan }
}

fn draw_steps(rng: &mut Rng, instances: usize, calm_at: Duration) -> Vec<(Duration, Step)> {
    let end = u64::try_from(calm_at.as_millis()).unwrap_or(0);
    let mut steps = vec![(Duration::ZERO, Step::Start(0))];
    for slot in 1..instances {
        let late = if rng.bool() { end / 2 } else { 50 };
        steps.push((ms(rng, 0, late), Step::Start(slot)));
    }
    let kinds: [fn(&mut Rng, usize) -> Step; 3] =
        [|_, slot| Step::Crash(slot), |rng, slot| Step::Freeze(slot, ms(rng, 100, 12_000)), |_, slot| Step::Stop(slot)];
    for kind in kinds {
        if rng.bool() {
            for _ in 0..rng.u32(1..=2) {
                let slot = rng.usize(0..instances);
                steps.push((ms(rng, 0, end), kind(rng, slot)));
            }
        }
    }
    steps
}
