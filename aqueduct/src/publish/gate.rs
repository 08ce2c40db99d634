//! The gate of a publisher: at most one caller at a time has unconfirmed events of a key.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::topic::{Key, Topic};

/// What has to be published one at a time.
pub(super) type LaneName = (Topic, Key);

/// Lets one caller a lane through, the others in the order in which they came. Lanes without callers take no memory.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<BTreeMap<LaneName, Entry>>>);

struct Entry {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Those inside and those waiting.
    callers: usize,
}

/// The right to publish on a lane, until it is dropped.
pub(super) struct Pass {
    // Fields are dropped in their order: the turn goes on before the caller is gone.
    _turn: tokio::sync::OwnedMutexGuard<()>,
    _caller: Caller,
}

/// One who is inside or waits. Dropping it, at whatever point, takes it off the count.
struct Caller {
    gate: Gate,
    lane: LaneName,
}

impl Gate {
    /// Waits for the turn of this caller. May be dropped at any point.
    pub(super) async fn enter(self, lane: LaneName) -> Pass {
        let turn = {
            let mut lanes = self.0.lock();
            let entry = lanes.entry(lane.clone()).or_insert_with(|| Entry { turn: Arc::default(), callers: 0 });
            entry.callers += 1;
            Arc::clone(&entry.turn)
        };
        let caller = Caller { gate: self, lane };
        // A free turn is taken at once: waiting for a lock, even a free one, is rationed by tokio.
        let turn = match Arc::clone(&turn).try_lock_owned() {
            Ok(turn) => turn,
            Err(_) => turn.lock_owned().await,
        };
        Pass { _turn: turn, _caller: caller }
    }

    #[cfg(test)]
    pub(super) fn lanes(&self) -> usize {
        self.0.lock().len()
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        let mut lanes = self.gate.0.lock();
        if let Some(entry) = lanes.get_mut(&self.lane) {
            entry.callers -= 1;
            if entry.callers == 0 {
                lanes.remove(&self.lane);
            }
        }
    }
}
