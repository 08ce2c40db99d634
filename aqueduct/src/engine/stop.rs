//! The graceful stop, in phases: fetch nothing more; let what runs finish; cancel it; write and settle; leave.

use std::time::Duration;

use tokio::time::Instant;

use super::core::Core;
use super::item::Item;
use super::lanes::{Head, LaneKey, LaneRef};
use super::owned::Stage;
use super::serve::ServeError;
use crate::broker::Ownership;
use crate::clock::later;

/// How far the stop has come.
#[derive(Debug, Default)]
pub(super) struct Stop {
    asked: Option<Instant>,
    cancelled: bool,
    returned: bool,
    over: bool,
    abandoned: usize,
}

impl Stop {
    pub(super) fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    pub(super) fn is_cancelling(&self) -> bool {
        self.cancelled
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

impl Core {
    pub(super) fn begin_stop(&mut self) {
        tracing::info!(consumer = %self.settings.name, running = self.scheduler.running(), "stopping");
        // The loop has waited since it looked at the clock, and the limit counts from now.
        self.now = Instant::now();
        self.stop.asked = Some(self.now);
        let open = self.owned.iter().filter(|(_, o)| o.stage == Stage::Open).map(|(slot, _)| *slot);
        for slot in open.collect::<Vec<_>>() {
            self.close_partition(slot, Stage::Stopping);
        }
        self.health.stopping();
        self.soon();
    }

    /// Nothing new starts in a partition. Only what stands before finished events is still worked on: left undone, it
    /// would let those be done again by the next owner.
    pub(super) fn close_partition(&mut self, slot: u32, stage: Stage) {
        let under_way = |lane: &LaneRef| {
            self.lanes.look(*lane).is_some_and(|(_, head)| matches!(head, Head::Running | Head::Writing))
        };
        let heads = self.lanes.of_slot(slot).into_iter().filter(under_way);
        // Rows too: one that stands above the floor and is finished may be delivered again.
        let highest = heads.filter_map(|lane| Some(self.lanes.items(lane).next()?.place.position)).max();
        let by_floor = self.ownership == Ownership::Floor;
        let Some(owned) = self.owned.get_mut(&slot).filter(|o| o.stage != Stage::Releasing) else { return };
        let highest = owned.ledger.highest_settled().max(owned.writer.carries().max()).max(highest);
        owned.finish_below = highest.filter(|_| by_floor);
        owned.stage = stage;
        self.update_paused();
        self.soon();
    }

    /// True if an event is unfinished that [`close_partition`](Self::close_partition) wants finished, and can be.
    fn has_needed(&self, slot: u32) -> bool {
        let Some(owned) = self.owned.get(&slot) else { return false };
        let can_end = |item: &Item| owned.is_needed(item) && (self.has_store || item.attempts == 0);
        let fresh = |lane| self.lanes.items(lane).find(|item| item.stored.is_none());
        owned.origin.holds(&self.clock) && self.lanes.of_slot(slot).into_iter().any(|l| fresh(l).is_some_and(can_end))
    }

    /// A row that is not to be started now waits in the store: behind one that is replayed late, in a key that is open,
    /// may stand what is needed.
    pub(super) fn leave_row(&mut self, key: LaneKey, lane: LaneRef) {
        let Some(item) = self.lanes.pop(lane) else { return };
        self.forget_row(key.slot, item.place);
        if self.lanes.exists(lane) {
            self.scheduler.ready(lane);
        }
    }

    /// The next phase, if it is time.
    pub(super) fn stop_goes_on(&mut self, now: Instant) {
        let Some(asked) = self.stop.asked else { return };
        let shutdown = self.settings.shutdown;
        let (cancel_at, end_at) = (later(asked, shutdown.mul_f64(0.8)), later(asked, shutdown));
        let slots: Vec<u32> = self.owned.keys().copied().collect();
        let busy =
            self.scheduler.running() > 0 || !self.stop.cancelled && slots.iter().any(|slot| self.has_needed(*slot));
        if busy && now >= cancel_at && !self.stop.cancelled {
            self.stop.cancelled = true;
            tracing::warn!(
                running = self.scheduler.running(),
                "the time to finish is over; running attempts are cancelled"
            );
            self.owned.values_mut().for_each(|owned| owned.finish_below = None);
            self.runs.iter_mut().for_each(|run| run.task = None);
        }
        if !busy && !self.stop.returned {
            self.stop.returned = true;
            self.return_everything();
        }
        for slot in slots {
            self.flush_now(slot, now);
        }
        // Busy again: a lease that had lapsed was renewed, or a lane was parked on the way.
        let settled = !busy && self.owned.values().all(|o| o.is_written() && o.is_told());
        if self.stop.returned && settled || now >= end_at {
            self.stop.abandoned = self.scheduler.running();
            self.stop.over = true;
        } else {
            self.wake_by(if now < cancel_at { cancel_at } else { end_at });
        }
    }

    /// Everything that was not started goes back, each lane from its head on.
    fn return_everything(&mut self) {
        if self.ownership == Ownership::Floor {
            return;
        }
        let tickets: Vec<_> =
            self.owned.iter().flat_map(|(slot, o)| o.ledger.open().map(|t| (*slot, t)).collect::<Vec<_>>()).collect();
        for (slot, ticket) in tickets {
            // What is on its way to the store is settled when it has arrived.
            if self.owned.get(&slot).is_some_and(|o| {
                o.writer.carries().all(|p| p != ticket.position) && !o.burying.contains(&ticket.position)
            }) {
                let place = crate::topic::Place { position: ticket.position, index: 0 };
                self.return_delivery(slot, place, Duration::ZERO);
            }
        }
    }

    fn flush_now(&mut self, slot: u32, now: Instant) {
        if let Some(owned) = self.owned.get_mut(&slot).filter(|o| o.settling.flush_at.is_some() && !o.settling.failed) {
            owned.settling.flush_at = Some(now);
            self.flush(slot, now);
        }
    }

    /// The last phase: partitions go to others at once.
    pub(super) async fn leave(self) -> Result<(), ServeError> {
        let rest = Duration::from_secs(5).min(self.settings.shutdown);
        match tokio::time::timeout(rest, self.membership.leave()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the broker was not told of the leave; it will find out by itself");
            }
            Err(_) => tracing::warn!("the broker did not answer the leave in time; it will find out by itself"),
        }
        match self.stop.abandoned {
            0 => Ok(()),
            running => Err(ServeError::Abandoned { running }),
        }
    }

    /// A partition that is to be given up is released when nothing of it runs and all is written and settled.
    pub(super) fn drain_partition(&mut self, slot: u32) {
        let Some(owned) = self.owned.get(&slot) else { return };
        let Stage::Draining { until } = owned.stage else { return };
        let now = self.now;
        let left = until.since(self.clock.boot());
        if self.runs.of_slot(slot) > 0 || self.has_needed(slot) && left > self.settings.shutdown.mul_f64(0.2) {
            if left <= self.settings.shutdown.mul_f64(0.2) {
                self.cancel_runs(slot);
            }
            return self.wake_by(now + left.clamp(Duration::from_millis(20), Duration::from_secs(1)));
        }
        self.flush_now(slot, now);
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        let finished = owned.writer.is_idle() && owned.is_told();
        if !finished && !left.is_zero() {
            return self.wake_by(now + left.clamp(Duration::from_millis(20), Duration::from_secs(1)));
        }
        if self.ownership != Ownership::Floor {
            self.return_lanes(slot);
        }
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        owned.stage = Stage::Releasing;
        let partition = owned.partition.clone();
        self.release(slot, partition, None);
    }

    /// The broker knows that a partition is given up.
    pub(super) fn released(&mut self, slot: u32) {
        self.drop_partition(slot);
    }

    /// Forgets the lanes of a partition that is about to be released; their deliveries come again to its next owner.
    fn return_lanes(&mut self, slot: u32) {
        for lane in self.lanes.of_slot(slot) {
            let Some((LaneKey { slot, .. }, _)) = self.lanes.look(lane) else { continue };
            for item in self.lanes.take(lane) {
                if item.stored.is_some() {
                    self.forget_row(slot, item.place);
                } else {
                    self.buffered -= 1;
                }
            }
        }
    }
}
