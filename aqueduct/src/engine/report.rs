//! What the engine says about itself: gauges, stuck attempts, partitions that wait.

use std::time::Duration;

use tokio::time::Instant;

use super::attempt::Ending;
use super::core::Core;
use super::owned::Stage;
use crate::policy::defaults;
use crate::telemetry::AttemptEnd;

/// A broker that has nothing to give does not answer: no failure for so long, though it was asked again, means that it
/// is well.
const QUIET_IS_WELL: Duration = Duration::from_secs(10);

impl Ending {
    pub(super) fn label(&self) -> AttemptEnd {
        match self {
            Self::Done => AttemptEnd::Done,
            Self::Failed(..) | Self::Refused(..) => AttemptEnd::Failed,
            Self::Panicked(_) => AttemptEnd::Panicked,
            Self::TimedOut => AttemptEnd::TimedOut,
            Self::Cancelled => AttemptEnd::Cancelled,
        }
    }
}

impl Core {
    /// Sets the gauges and says which partitions wait, once for each tick.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats; the counts are far below 2^52")]
    pub(super) fn report(&mut self) {
        self.metrics.running.set(self.scheduler.running() as f64);
        self.metrics.buffered.set((self.buffered + self.stored_in_memory) as f64);
        self.metrics.partitions.set(self.owned.len() as f64);
        if self.fetch_failed_at.is_some_and(|at| self.now.duration_since(at) > QUIET_IS_WELL) {
            self.fetch_failed_at = None;
            self.health.broker_well();
        }
        for owned in self.owned.values().filter(|o| o.stage == Stage::Open) {
            if !owned.writer.is_failing() && !owned.due.failing && !owned.settling.failed {
                self.health.well(&owned.partition);
            }
            if !owned.held.is_empty() {
                self.health.waits(&owned.partition, "a key has more events than fit into memory, and there is no durable store to hold them: give the consumer one with `.store(..)`");
            } else if owned.ledger.above_floor() >= defaults::ABOVE_FLOOR {
                self.health.waits(&owned.partition, "an event is unfinished and 65,536 others behind it are settled: nothing more is fetched until it ends");
            } else if let Some(outage) = &owned.outage {
                self.health.waits(&owned.partition, outage.clone());
            } else {
                self.health.waits_no_more(&owned.partition);
            }
        }
    }

    /// An event waits at the broker because there is no store for it.
    pub(super) fn report_waiting(&self, slot: u32) {
        if let Some(owned) = self.owned.get(&slot) {
            tracing::warn!(partition = %owned.partition, "a failing event holds its key at the broker, since there is no durable store to park it in");
        }
    }

    /// Says which attempts run longer than they should: a handler that blocks its thread cannot be ended.
    #[expect(clippy::cast_precision_loss, reason = "gauges are floats; the counts are far below 2^52")]
    pub(super) fn report_stuck(&mut self, now: Instant) {
        let (mut count, stall) = (0, self.settings.stall);
        for run in self.runs.iter_mut().filter(|run| now.duration_since(run.began) > stall) {
            count += 1;
            if !std::mem::replace(&mut run.stuck, true) {
                tracing::error!(lane = run.key.lane.0, running_for = ?now.duration_since(run.began), "an attempt is stuck; its key waits and it holds its permit");
            }
        }
        self.metrics.stuck.set(count as f64);
        self.health.stuck(count);
    }
}
