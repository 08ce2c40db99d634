//! Durable writes of one partition, in order, one `apply` at a time: so a lane is written in the order of positions.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::core::Core;
use super::lanes::LaneRef;
use super::mailbox::{AbortOnDrop, Note};
use super::planted::Planted;
use crate::error::StoreError;
use crate::store::{Action, Applied, CommandId, Op};
use crate::topic::{LaneId, Place, Position};

/// The writes of one partition.
#[derive(Default)]
pub(crate) struct Writer {
    queue: VecDeque<(Op, After)>,
    in_flight: Option<InFlight>,
    /// After a refusal writes go one by one, so that the one that is refused is found.
    one_by_one: bool,
    failures: u32,
    pub(crate) retry_at: Option<Instant>,
}

struct InFlight {
    ops: Arc<Vec<Op>>,
    after: Vec<After>,
    /// The task that waits for the store; none between two tries.
    task: Option<AbortOnDrop>,
}

/// What follows when a write is confirmed.
#[derive(Debug)]
pub(crate) enum After {
    /// A whole lane is in the store: its deliveries are settled.
    Parked { lane: LaneId, settle: Vec<Place> },
    /// An arrival of a parked key is in the store, or was finished before.
    Appended { lane: LaneId, place: Place },
    /// A row that was in memory is finished, dated anew or dead.
    Row { lane: LaneRef, id: LaneId, place: Place, dies: bool },
    /// The head of a lane is a dead letter that lets the lane pass.
    Buried { lane: LaneRef, place: Place },
    /// An operator's command was carried out or refused.
    Operated { id: CommandId, lane: LaneId, place: Place, action: Option<Action> },
    /// The store knows the floor.
    Floor,
}

impl After {
    /// The deliveries that are settled by it.
    fn settles(&self) -> &[Place] {
        match self {
            Self::Parked { settle, .. } => settle,
            Self::Appended { place, .. } | Self::Buried { place, .. } => std::slice::from_ref(place),
            Self::Row { .. } | Self::Operated { .. } | Self::Floor => &[],
        }
    }

    /// How many deliveries the write takes out of memory; a buried one is still in its lane.
    fn events(&self) -> usize {
        if matches!(self, Self::Buried { .. }) { 0 } else { self.settles().len() }
    }
}

/// Operations in one `apply`.
const OPS_MAX: usize = 256;

impl Writer {
    pub(crate) fn is_idle(&self) -> bool {
        self.queue.is_empty() && self.in_flight.is_none()
    }

    /// How many deliveries are on their way to the store.
    pub(crate) fn events(&self) -> usize {
        self.afters().map(After::events).sum()
    }

    /// The positions of the deliveries that are on their way to the store.
    pub(crate) fn carries(&self) -> impl Iterator<Item = Position> {
        self.afters().flat_map(After::settles).map(|place| place.position)
    }

    fn afters(&self) -> impl Iterator<Item = &After> {
        self.queue.iter().map(|(_, after)| after).chain(self.in_flight.iter().flat_map(|f| &f.after))
    }

    /// True if the store has failed and is to be tried again.
    pub(crate) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    fn take_batch(&mut self) -> Option<Arc<Vec<Op>>> {
        if let Some(flight) = &self.in_flight {
            return flight.task.is_none().then(|| Arc::clone(&flight.ops));
        }
        let count = self.repeatable().min(if self.one_by_one { 1 } else { OPS_MAX });
        if count == 0 {
            return None;
        }
        let (ops, after): (Vec<_>, Vec<_>) = self.queue.drain(..count).unzip();
        let ops = Arc::new(ops);
        self.in_flight = Some(InFlight { ops: Arc::clone(&ops), after, task: None });
        Some(ops)
    }

    /// How many writes from the front may go together: all of them are repeated if their answer is lost, and an arrival
    /// is judged by the rows of its lane, so none of those is deleted in the same batch.
    fn repeatable(&self) -> usize {
        let mut appended = HashSet::new();
        for (n, (op, _)) in self.queue.iter().take(OPS_MAX).enumerate() {
            match op {
                Op::Append { row, .. } => drop(appended.insert(row.lane)),
                Op::Finish(row) if appended.contains(&row.lane) => return n,
                _ => {}
            }
        }
        self.queue.len()
    }

    /// Puts a refused batch back, to be tried one by one.
    fn split(&mut self) {
        let Some(InFlight { ops, after, .. }) = self.in_flight.take() else { return };
        for (op, after) in ops.iter().cloned().zip(after).rev() {
            self.queue.push_front((op, after));
        }
        self.one_by_one = true;
    }
}

impl Core {
    /// Queues a write.
    pub(super) fn write(&mut self, slot: u32, op: Op, after: After) {
        if let Some(owned) = self.owned.get_mut(&slot) {
            if let Some(end) = &mut owned.finish_below {
                *end = after.settles().iter().map(|place| place.position).fold(*end, Position::max);
            }
            owned.writer.queue.push_back((op, after));
            self.pump(slot);
        }
    }

    /// Sends the next batch of writes, unless one is in flight or the store is being left alone for a while.
    pub(super) fn pump(&mut self, slot: u32) {
        let now = self.now;
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        if owned.writer.retry_at.is_some_and(|at| at > now) {
            return;
        }
        owned.writer.retry_at = None;
        let Some(ops) = owned.writer.take_batch() else { return };
        let (store, claim, mailbox) = (Arc::clone(&self.stores.rows), owned.claim.clone(), Arc::clone(&self.mailbox));
        let task = self.tasks.spawn(async move {
            let result = store.apply(&claim, &ops).await;
            mailbox.push(Note::Applied { slot, result });
        });
        if let Some(flight) = &mut owned.writer.in_flight {
            flight.task = Some(task);
        }
    }

    /// The store has answered.
    pub(super) fn applied(&mut self, slot: u32, result: Result<Vec<Applied>, StoreError>) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        match result {
            Ok(answers) => {
                let Some(flight) = owned.writer.in_flight.take() else { return };
                owned.writer.failures = 0;
                owned.writer.one_by_one &= !owned.writer.queue.is_empty();
                for (after, answer) in flight.after.into_iter().zip(answers) {
                    self.follow(slot, after, answer);
                }
                self.pump(slot);
            }
            Err(StoreError::Fenced { held, .. }) => self.give_up_partition(slot, Some(held)),
            Err(error @ StoreError::Lost(_)) => self.take_over_anew(slot, &error),
            Err(error) => self.write_failed(slot, &error),
        }
    }

    fn write_failed(&mut self, slot: u32, error: &StoreError) {
        self.metrics.store_errors.increment(1);
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        let writer = &mut owned.writer;
        let unavailable = matches!(error, StoreError::Unavailable(_));
        if !unavailable && writer.in_flight.as_ref().is_some_and(|f| f.ops.len() > 1) {
            writer.split();
        } else if let Some(flight) = &mut writer.in_flight {
            flight.task = None;
        }
        let wait = Duration::from_millis(50 << writer.failures.min(6));
        writer.failures += 1;
        writer.retry_at = Some(self.now + wait + self.clock.jitter(wait / 2));
        if self.health.failing(&owned.partition, error) {
            tracing::warn!(partition = %owned.partition, %error, "the store does not take a write; it is tried again and nothing is lost");
        }
        self.wake_by(self.now + wait);
    }

    /// What follows from a confirmed write.
    fn follow(&mut self, slot: u32, after: After, answer: Applied) {
        let now = self.clock.now();
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        if let Applied::Lane { next_at, .. } = answer {
            owned.due.by(next_at);
        } else {
            owned.due.by(Some(now));
        }
        match after {
            After::Parked { lane, settle } => {
                owned.parked.close(lane, true, None);
                owned.parked.write_ends(lane);
                self.buffered -= settle.len();
                for place in settle {
                    self.settle_at(slot, place);
                }
            }
            After::Appended { lane, place } => {
                owned.parked.write_ends(lane);
                owned.due.grows(lane);
                match answer {
                    Applied::Appended => owned.parked.holds(lane, true),
                    // Perhaps by this very write, whose first answer was lost.
                    Applied::Present { holds } => owned.parked.holds(lane, holds),
                    _ => {}
                }
                owned.parked.try_open(lane, true);
                self.buffered -= 1;
                self.settle_at(slot, place);
            }
            After::Row { lane, id, place, dies } => self.row_follows(slot, (lane, id, place, dies), answer),
            After::Buried { lane, place } => {
                if !self.planted(Planted::DeadLetterNotAwaited) {
                    self.finish_head(slot, lane, place);
                }
            }
            After::Operated { id, lane, place, action } => self.operated(slot, id, (lane, place, action), answer),
            After::Floor => {}
        }
        self.soon();
    }

    fn row_follows(&mut self, slot: u32, (lane, id, place, dies): (LaneRef, LaneId, Place, bool), answer: Applied) {
        let mind_writes = !self.planted(Planted::OpenedDuringAppend);
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        owned.due.leaves(place);
        if dies && owned.ledger.floor().is_none_or(|floor| place.position > floor) && owned.parked.contains(id) {
            owned.parked.close(id, false, Some(place.position));
        }
        if let Applied::Lane { holds, .. } = answer {
            owned.parked.holds(id, holds);
            owned.parked.try_open(id, mind_writes);
        }
        // A partition that is given up may have let go of the row before the store answered.
        self.stored_in_memory -= usize::from(self.lanes.pop(lane).is_some());
        if self.lanes.exists(lane) {
            self.scheduler.ready(lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;
    use crate::store::{Content, Late, Row, RowRef};

    fn append(position: u64, lane: u64) -> Op {
        let content = Content::Event(Arc::new(Event::raw("test", "")));
        let row = Row::new(Place::at(position), LaneId(lane), content, crate::clock::Timestamp::UNIX_EPOCH);
        Op::Append { row, late: Late::Finished }
    }

    fn finish(position: u64, lane: u64) -> Op {
        Op::Finish(RowRef { place: Place::at(position), lane: LaneId(lane), version: 1 })
    }

    /// Repeated with its finish, the append would find the lane empty and bring back what was finished before.
    #[test]
    fn no_row_is_deleted_in_one_batch_with_an_append_to_its_lane() {
        let ops =
            [finish(3, 1), append(9, 1), finish(4, 2), append(10, 2), finish(14, 1), finish(15, 1), append(16, 1)];
        let mut writer = Writer::default();
        writer.queue.extend(ops.iter().cloned().map(|op| (op, After::Floor)));
        for batch in [&ops[..4], &ops[4..]] {
            assert_eq!(writer.take_batch().as_deref().map(Vec::as_slice), Some(batch));
            writer.in_flight = None;
        }
        assert!(writer.is_idle() && writer.take_batch().is_none());
    }
}
