//! What goes wrong at the ports: every call has a point before it and one after it, where it can crash, fail or wait.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::history::What;
use super::life::Life;
use crate::clock::Boot;
use crate::error::BoxError;

/// All calls through ports by which an instance's work becomes durable or is handed on, by name; a point is one of them with
/// `/before` or `/after` behind it, and with `stop.` before it once the instance has been asked to stop.
pub const CALLS: [&str; 16] = [
    "join",
    "next",
    "settle",
    "release",
    "leave",
    "take_over",
    "due",
    "bury",
    "apply.park",
    "apply.dead",
    "apply.append",
    "apply.finish",
    "apply.redate",
    "apply.give_up",
    "apply.floor",
    "apply.operate",
];

/// Calls in one life, after which the instance is taken to run in circles and gets no more answers.
const CALLS_MAX: u32 = 20_000;

/// The longest that a call is kept waiting.
pub(crate) const SLOW_MAX: Duration = Duration::from_secs(4);

/// Which system a call goes to: each has its own delays and outages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    Broker,
    Store,
}

/// What is to go wrong in one life.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// Crash when this point is reached so many times.
    pub(crate) crash_at: Option<(String, u32)>,
    /// Of a thousand calls so many fail without having taken effect.
    pub(crate) fail_before: u32,
    /// Of a thousand calls so many fail though they have taken effect.
    pub(crate) fail_after: u32,
    /// Of a thousand calls so many take up to `slow_max`, in each direction.
    pub(crate) slow: u32,
    pub(crate) slow_max: Duration,
    /// Of a thousand batches so many repeat a delivery.
    pub(crate) again: u32,
    /// Every call takes up to so long, in each direction.
    pub(crate) broker_latency: Duration,
    pub(crate) store_latency: Duration,
    /// When which port answers nothing but errors.
    pub(crate) outages: Vec<(Port, Boot, Boot)>,
    /// From here on nothing fails; none means from the start.
    pub(crate) calm_at: Option<Boot>,
}

/// The points that were reached in a run, and how often.
#[derive(Clone, Default)]
pub(crate) struct Reached(Arc<Mutex<BTreeMap<String, u32>>>);

impl Reached {
    fn count(&self, point: &str) {
        let mut points = self.0.lock();
        match points.get_mut(point) {
            Some(count) => *count += 1,
            None => drop(points.insert(point.to_owned(), 1)),
        }
    }

    pub(crate) fn names(&self) -> BTreeSet<String> {
        self.0.lock().keys().cloned().collect()
    }
}

/// Lets the calls of one life go wrong by its plan.
#[derive(Clone)]
pub(crate) struct Faults(Arc<Inner>);

struct Inner {
    life: Life,
    plan: Plan,
    reached: Reached,
    state: Mutex<State>,
}

struct State {
    rng: fastrand::Rng,
    /// How often the point was reached at which to crash.
    crash_count: u32,
    calls: u32,
}

impl Faults {
    pub(crate) fn new(life: Life, plan: Plan, reached: Reached) -> Self {
        let rng = fastrand::Rng::with_seed(plan.seed);
        let state = Mutex::new(State { rng, crash_count: 0, calls: 0 });
        Self(Arc::new(Inner { life, plan, reached, state }))
    }

    pub(crate) fn life(&self) -> &Life {
        &self.0.life
    }

    /// Carries a call through the port, with everything that may happen on the way.
    pub(crate) async fn through<T, E>(
        &self,
        port: Port,
        calls: &[&'static str],
        work: impl Future<Output = Result<T, E>>,
        error: fn(BoxError) -> E,
    ) -> Result<T, E> {
        self.enter(calls).await;
        self.carry(port, calls, work, error).await
    }

    /// The rest of the way, once the point before the call is behind.
    pub(crate) async fn carry<T, E>(
        &self,
        port: Port,
        calls: &[&'static str],
        work: impl Future<Output = Result<T, E>>,
        error: fn(BoxError) -> E,
    ) -> Result<T, E> {
        self.delay(port, calls).await;
        if let Some(fault) = self.fault_before(port, calls) {
            return Err(error(fault));
        }
        let answer = work.await;
        self.pass(calls, "after").await;
        self.delay(port, calls).await;
        match self.fault_after(calls) {
            Some(fault) => Err(error(fault)),
            None => answer,
        }
    }

    /// Reaches the point before a call.
    pub(crate) async fn enter(&self, calls: &[&'static str]) {
        if self.dies_before(calls) {
            self.die().await;
        }
        if self.is_circling(calls) {
            std::future::pending::<()>().await;
        }
    }

    /// Says so once, in the history, when the instance asks too often.
    fn is_circling(&self, calls: &[&'static str]) -> bool {
        let count = {
            let mut state = self.0.state.lock();
            state.calls += 1;
            state.calls
        };
        if count == CALLS_MAX {
            self.0.life.note(What::Fault { point: format!("running in circles: {} ", calls.join(", ")) });
        }
        count >= CALLS_MAX
    }

    /// Reaches the point before a call; true if the process is to die there.
    pub(crate) fn dies_before(&self, calls: &[&'static str]) -> bool {
        self.0.life.is_dead() || self.dies(calls, "before")
    }

    /// Reaches the point after a call, or dies there.
    pub(crate) async fn pass(&self, calls: &[&'static str], side: &str) {
        if self.dies(calls, side) {
            self.die().await;
        }
    }

    fn dies(&self, calls: &[&'static str], side: &str) -> bool {
        let mut dies = false;
        for call in calls {
            let point = format!("{call}/{side}");
            dies |= self.reaches(&point);
            if self.0.life.is_stopping() {
                dies |= self.reaches(&format!("stop.{point}"));
            }
        }
        dies
    }

    /// Counts a point; true if it is the one to die at.
    fn reaches(&self, point: &str) -> bool {
        self.0.reached.count(point);
        let Some((_, nth)) = self.0.plan.crash_at.as_ref().filter(|(at, _)| *at == point) else { return false };
        let mut state = self.0.state.lock();
        state.crash_count += 1;
        state.crash_count == *nth && self.shaky()
    }

    /// Ends the process within this poll.
    pub(crate) async fn die(&self) {
        self.0.life.kill();
        std::future::pending::<()>().await;
    }

    /// True until the faults stop.
    fn shaky(&self) -> bool {
        self.0.plan.calm_at.is_some_and(|at| self.0.life.history().clock().boot() < at)
    }

    /// True in so many of a thousand cases, until the faults stop.
    pub(crate) fn chance(&self, of_thousand: u32) -> bool {
        self.shaky() && self.0.state.lock().rng.u32(0..1_000) < of_thousand
    }

    pub(crate) fn repeats(&self) -> bool {
        self.chance(self.0.plan.again)
    }

    /// A number below `end`.
    pub(crate) fn pick(&self, end: usize) -> usize {
        self.0.state.lock().rng.usize(0..end.max(1))
    }

    fn span(&self, max: Duration) -> Duration {
        let ms = u64::try_from(max.as_millis()).unwrap_or(0);
        Duration::from_millis(self.0.state.lock().rng.u64(0..=ms))
    }

    async fn delay(&self, port: Port, calls: &[&'static str]) {
        let plan = &self.0.plan;
        let span = if self.chance(plan.slow) {
            self.note(calls, "slow");
            self.span(plan.slow_max)
        } else {
            self.span(if port == Port::Broker { plan.broker_latency } else { plan.store_latency })
        };
        if !span.is_zero() {
            tokio::time::sleep(span).await;
        }
    }

    fn note(&self, calls: &[&'static str], how: &str) {
        for call in calls {
            self.0.life.note(What::Fault { point: format!("{call}/{how}") });
        }
    }

    /// How long to keep the next arrival back, if at all.
    pub(crate) fn slowness(&self) -> Option<Duration> {
        self.chance(self.0.plan.slow).then(|| self.span(self.0.plan.slow_max))
    }

    pub(crate) fn fault_before(&self, port: Port, calls: &[&'static str]) -> Option<BoxError> {
        let now = self.0.life.history().clock().boot();
        let out = self.0.plan.outages.iter().any(|(of, from, to)| *of == port && (*from..*to).contains(&now));
        (out || self.chance(self.0.plan.fail_before)).then(|| self.fault(calls, "before"))
    }

    fn fault_after(&self, calls: &[&'static str]) -> Option<BoxError> {
        self.chance(self.0.plan.fail_after).then(|| self.fault(calls, "after"))
    }

    fn fault(&self, calls: &[&'static str], side: &str) -> BoxError {
        self.note(calls, side);
        format!("a simulated fault {side} {}", calls.join(", ")).into()
    }
}
