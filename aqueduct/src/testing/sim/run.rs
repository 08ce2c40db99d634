//! The door of the simulator.

use std::sync::Arc;
use std::time::Duration;

use super::checker::{Invariant, Violation};
use super::director::{Director, MakeRouter, numbers, scripted};
use super::report::Report;
use super::script::Script;
use super::world::{Planned, Scenario};
use crate::broker::Ownership;
use crate::event::Event;
use crate::policy::Policy;
use crate::router::Router;

/// Runs the seed's own scenario: its events, handlers and faults.
pub fn run(seed: u64) -> Report {
    Sim::new(seed).run()
}

/// Runs the seed's events and handlers without faults but one: the first instance crashes when it has reached a point
/// for the `nth` time. One of [`CALLS`](super::CALLS) with `/before` or `/after` behind it names a point.
///
/// Half-way the first instance is asked to stop gracefully, so that the points of stopping are reached. The report counts
/// one crash if the point was reached so often.
pub fn run_crash(seed: u64, ownership: Ownership, point: &str, nth: u32) -> Report {
    Sim::new(seed).ownership(ownership).crash_at(point, nth).run()
}

/// A simulated run in the making.
///
/// Everything that is not set is drawn from the seed.
#[must_use = "nothing happens until it is run"]
pub struct Sim {
    seed: u64,
    ownership: Option<Ownership>,
    router: Option<MakeRouter>,
    events: Option<Vec<Event>>,
    policy: Option<Policy>,
    timeout: Option<Duration>,
    crash_at: Option<(String, u32)>,
    calm: bool,
    #[cfg(test)]
    planted: Option<crate::engine::planted::Planted>,
}

impl Sim {
    /// The run of this seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            ownership: None,
            router: None,
            events: None,
            policy: None,
            timeout: None,
            crash_at: None,
            calm: false,
            #[cfg(test)]
            planted: None,
        }
    }

    /// Sets how deliveries are owned. Defaults to what the seed says.
    pub fn ownership(mut self, ownership: Ownership) -> Self {
        self.ownership = Some(ownership);
        self
    }

    /// Runs these handlers; the function is called for each instance that starts. Give it [`events`](Self::events) that
    /// it knows, and use `tokio::time` for waiting: time is simulated. Defaults to handlers that follow the seed.
    ///
    /// The checker counts an attempt that is done as an effect, and an event may take as many attempts as its policy
    /// allows; routes with a policy of their own are judged by the limits of [`policy`](Self::policy).
    pub fn router(mut self, router: impl Fn() -> Router + Send + Sync + 'static) -> Self {
        self.router = Some(Arc::new(move |_| router()));
        self
    }

    /// Publishes these events, in this order, at times drawn from the seed. Each needs a topic; an id and a source are
    /// given to those without. Defaults to events drawn from the seed.
    pub fn events(mut self, events: impl IntoIterator<Item = Event>) -> Self {
        self.events = Some(events.into_iter().collect());
        self
    }

    /// Sets what to do when an attempt fails. Defaults to what the seed says.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Sets how long one attempt may take. Defaults to what the seed says, a few seconds.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Leaves out crashes, freezes, stops and failing calls. Defaults to what the seed says.
    pub fn without_faults(mut self) -> Self {
        self.calm = true;
        self
    }

    /// Leaves out every fault but this one, as [`run_crash`] says. Defaults to what the seed says.
    pub fn crash_at(mut self, point: &str, nth: u32) -> Self {
        self.crash_at = Some((point.to_owned(), nth));
        self
    }

    #[cfg(test)]
    pub(crate) fn plant(mut self, bug: crate::engine::planted::Planted) -> Self {
        self.planted = Some(bug);
        self
    }

    /// Runs it on a runtime of its own. The report says whether every promise was kept.
    pub fn run(self) -> Report {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        match runtime {
            Ok(runtime) => runtime.block_on(async { self.direct().play().await }),
            Err(error) => {
                let text = format!("the runtime for the simulation cannot be built: {error}");
                let failure = Violation::new(Invariant::Liveness, text, []);
                Report::new(self.seed, String::new(), &[], vec![failure], std::collections::BTreeSet::new())
            }
        }
    }

    fn direct(self) -> Director {
        let scenario = self.scenario();
        let numbers = numbers(&scenario.events);
        let router = self.router.unwrap_or_else(|| scripted(&scenario, &numbers));
        Director::new(scenario, router, numbers)
    }

    fn scenario(&self) -> Scenario {
        let mut scenario = Scenario::draw(self.seed, self.ownership);
        if let Some(events) = &self.events {
            scenario.replace_events(events);
        }
        if let Some(policy) = &self.policy {
            scenario.attempts_max = policy.quick_attempts.saturating_add(policy.parked_attempts);
            scenario.policy = policy.clone();
        }
        scenario.timeout = self.timeout.unwrap_or(scenario.timeout);
        if self.calm {
            scenario.calm_down();
        }
        if let Some((point, nth)) = &self.crash_at {
            scenario.crash_once(point, *nth);
        }
        #[cfg(test)]
        {
            scenario.planted = self.planted;
        }
        scenario
    }
}

impl Scenario {
    /// Puts a user's events in place of the seed's, at the seed's times.
    fn replace_events(&mut self, events: &[Event]) {
        let times: Vec<Duration> = self.events.iter().map(|planned| planned.at).collect();
        let last = times.last().copied().unwrap_or_default();
        let planned = |(n, event): (usize, &Event)| {
            let mut event = event.clone();
            if event.id.is_empty() {
                event.id = format!("e{n}").into();
            }
            if event.source.is_empty() {
                event.source = "sim".into();
            }
            Planned { at: times.get(n).copied().unwrap_or(last), event, script: Script::Done, broken: false }
        };
        self.events = events.iter().enumerate().map(planned).collect();
        // Without a store an event that always fails never ends.
        self.storeless = false;
        self.patience += Duration::from_mins(10);
    }
}
