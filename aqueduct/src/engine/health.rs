//! How a consumer or a relay is doing, for probes and people.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::BrokerError;
use crate::topic::Partition;

/// How a consumer or a relay is doing; a handle that stays valid while and after it serves. Cheap to clone.
///
/// ```
/// # use aqueduct::{Consumer, Router, MemoryBroker};
/// let serve = Consumer::new("stock", MemoryBroker::new()).topics(["orders"]).serve(Router::new().on(">", async || ()));
/// let health = serve.health();
/// assert!(health.is_live() && !health.is_ready());
/// assert_eq!(health.reason(), "it has not been started");
/// ```
#[derive(Clone)]
pub struct Health(Arc<Mutex<State>>);

struct State {
    stage: Stage,
    broker: Option<String>,
    partitions: BTreeMap<Partition, String>,
    waiting: BTreeMap<Partition, Cow<'static, str>>,
    stuck: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    New,
    Joining,
    Serving,
    Stopping,
    Stopped,
}

impl Health {
    pub(crate) fn new() -> Self {
        let (stage, partitions, waiting) = (Stage::New, BTreeMap::new(), BTreeMap::new());
        Self(Arc::new(Mutex::new(State { stage, broker: None, partitions, waiting, stuck: 0 })))
    }

    /// True until it has stopped: a process that is not live should be restarted.
    pub fn is_live(&self) -> bool {
        self.0.lock().stage != Stage::Stopped
    }

    /// True while events are being handled: started, and broker and store answer. One key that waits does not count.
    pub fn is_ready(&self) -> bool {
        let state = self.0.lock();
        state.stage == Stage::Serving && state.broker.is_none() && state.partitions.is_empty()
    }

    /// Why it is not ready, or what is wrong though it is; empty if all is well.
    pub fn reason(&self) -> String {
        let state = self.0.lock();
        let mut reasons: Vec<String> = Vec::new();
        match state.stage {
            Stage::New => reasons.push("it has not been started".into()),
            Stage::Joining => reasons.push("it waits for the broker".into()),
            Stage::Stopping => reasons.push("it is stopping".into()),
            Stage::Stopped => reasons.push("it has stopped".into()),
            Stage::Serving => {}
        }
        reasons.extend(state.broker.clone());
        reasons.extend(state.partitions.iter().map(|(partition, why)| format!("{partition}: {why}")));
        reasons.extend(state.waiting.iter().map(|(partition, why)| format!("{partition}: {why}")));
        if state.stuck > 0 {
            reasons.push(format!("{} attempts run longer than the stall threshold", state.stuck));
        }
        reasons.join("; ")
    }

    pub(crate) fn joining(&self) {
        self.0.lock().stage = Stage::Joining;
    }

    pub(crate) fn serving(&self) {
        self.0.lock().stage = Stage::Serving;
    }

    pub(crate) fn stopping(&self) {
        self.0.lock().stage = Stage::Stopping;
    }

    /// However the service ends, also when its future is dropped, it has stopped.
    pub(crate) fn stopped_when_dropped(&self) -> StoppedWhenDropped {
        StoppedWhenDropped(self.clone())
    }

    pub(crate) fn broker_failing(&self, error: &BrokerError) {
        self.0.lock().broker = Some(error.to_string());
    }

    pub(crate) fn broker_well(&self) {
        self.0.lock().broker = None;
    }

    /// Answers true if it was not failing for the same reason before.
    pub(crate) fn failing(&self, partition: &Partition, error: &dyn fmt::Display) -> bool {
        let error = error.to_string();
        self.0.lock().partitions.insert(partition.clone(), error.clone()).is_none_or(|before| before != error)
    }

    pub(crate) fn well(&self, partition: &Partition) {
        self.0.lock().partitions.remove(partition);
    }

    pub(crate) fn waits(&self, partition: &Partition, why: impl Into<Cow<'static, str>>) {
        self.0.lock().waiting.insert(partition.clone(), why.into());
    }

    pub(crate) fn waits_no_more(&self, partition: &Partition) {
        self.0.lock().waiting.remove(partition);
    }

    pub(crate) fn forget(&self, partition: &Partition) {
        self.well(partition);
        self.waits_no_more(partition);
    }

    pub(crate) fn stopped_partition(&self, partition: &Partition, why: String) {
        self.0.lock().partitions.insert(partition.clone(), why);
    }

    pub(crate) fn stuck(&self, count: usize) {
        self.0.lock().stuck = count;
    }
}

/// Says that a service has stopped when it is dropped.
pub(crate) struct StoppedWhenDropped(Health);

impl Drop for StoppedWhenDropped {
    fn drop(&mut self) {
        self.0.0.lock().stage = Stage::Stopped;
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("ready", &self.is_ready()).field("reason", &self.reason()).finish()
    }
}
