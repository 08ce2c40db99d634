//! One life of a simulated instance: from its start to its crash or stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::history::{History, Instance, What};
use crate::broker::Lease;
use crate::clock::Boot;
use crate::engine::gate::Gate;
use crate::topic::{Epoch, Partition};

/// The handle to one life of an instance, shared by everything that happens to it.
#[derive(Clone)]
pub(crate) struct Life(Arc<Inner>);

struct Inner {
    instance: Instance,
    gate: Gate,
    history: History,
    /// Tells the director who has died.
    deaths: UnboundedSender<Instance>,
    leases: Mutex<BTreeMap<(Partition, Epoch), Lease>>,
    stopping: AtomicBool,
    thaws_at: Mutex<Option<Instant>>,
}

impl Life {
    pub(crate) fn new(instance: Instance, history: History, deaths: UnboundedSender<Instance>) -> Self {
        let (gate, leases, stopping, thaws_at) =
            (Gate::default(), Mutex::default(), AtomicBool::new(false), Mutex::default());
        Self(Arc::new(Inner { instance, gate, history, deaths, leases, stopping, thaws_at }))
    }

    pub(crate) fn instance(&self) -> Instance {
        self.0.instance
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.0.gate
    }

    pub(crate) fn history(&self) -> &History {
        &self.0.history
    }

    pub(crate) fn note(&self, what: What) {
        self.0.history.note(self.0.instance, what);
    }

    pub(crate) fn is_dead(&self) -> bool {
        self.0.gate.is_dead()
    }

    /// The process is asked to stop gracefully.
    pub(crate) fn asked_to_stop(&self) {
        self.note(What::Stopping);
        self.0.stopping.store(true, Ordering::Release);
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Acquire)
    }

    /// Kills the process: nothing of it is polled again.
    pub(crate) fn kill(&self) {
        if !self.is_dead() {
            self.note(What::Crashed);
            self.0.gate.kill();
            // Nobody listens once the run is over.
            let _ = self.0.deaths.send(self.0.instance);
        }
    }

    /// Stops the process for a while.
    pub(crate) fn freeze(&self, span: Duration) {
        if self.is_dead() {
            return;
        }
        self.note(What::Frozen);
        self.0.gate.freeze();
        let thaws_at = Instant::now() + span;
        let latest = self.0.thaws_at.lock().replace(thaws_at);
        *self.0.thaws_at.lock() = latest.max(Some(thaws_at));
        let life = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(span).await;
            // Another freeze may have begun meanwhile.
            if !life.is_dead() && life.thaws_at() <= Some(Instant::now()) {
                life.note(What::Thawed);
                life.0.gate.thaw();
            }
        });
    }

    /// When it is polled again, or was after its last freeze.
    pub(crate) fn thaws_at(&self) -> Option<Instant> {
        *self.0.thaws_at.lock()
    }

    /// Waits for ever if the process is dead: the poll in which it died may still reach a port.
    pub(crate) async fn alive(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
    }

    /// Keeps the lease of an ownership, to see it at every poll of a handler.
    pub(crate) fn owns(&self, partition: &Partition, epoch: Epoch, lease: &Lease) {
        self.0.leases.lock().insert((partition.clone(), epoch), lease.clone());
    }

    /// Until when the ownership holds; for ever where nobody owns.
    pub(crate) fn lease(&self, partition: &Partition, epoch: Epoch) -> Boot {
        let leases = self.0.leases.lock();
        leases.get(&(partition.clone(), epoch)).map_or(Boot(u64::MAX), Lease::deadline)
    }
}
