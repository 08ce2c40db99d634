//! What the engine knows about a partition that it owns.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::item::Item;
use super::lanes::LaneRef;
use super::ledger::Ledger;
use super::mailbox::AbortOnDrop;
use super::writer::Writer;
use crate::broker::Settle;
use crate::call::Origin;
use crate::clock::{Boot, Clock, Timestamp};
use crate::store::{Claim, CommandId, Failure};
use crate::topic::{LaneId, Partition, Place, Position};

/// A partition that is owned, with everything that is in hand of it.
pub(crate) struct Owned {
    pub(crate) partition: Partition,
    pub(crate) origin: Arc<Origin>,
    pub(crate) claim: Claim,
    pub(crate) stage: Stage,
    pub(crate) ledger: Ledger,
    /// The keys whose events go to the store, because they have rows there.
    pub(crate) parked: ParkedKeys,
    pub(crate) finished: FinishedRows,
    pub(crate) writer: Writer,
    pub(crate) due: DueState,
    pub(crate) settling: Settling,
    pub(crate) returned: Returned,
    /// Dead letters that are on their way to the store, of a competing consumer, or to their topic.
    pub(crate) burying: BTreeSet<Position>,
    /// What sends them to their topic.
    pub(crate) letters: Vec<AbortOnDrop>,
    /// Events that found their lane full with no store to spill to; the partition is paused until they are in.
    pub(crate) held: VecDeque<Item>,
    /// While it is being closed: everything below here is to be finished.
    pub(crate) finish_below: Option<Position>,
    /// Lanes that are ready but may not start now.
    pub(crate) suspended: Vec<LaneRef>,
    /// The lease has lapsed, and the running attempts have been told.
    pub(crate) lapsed: bool,
    /// Why the last attempt failed through no fault of its event.
    pub(crate) outage: Option<String>,
}

/// The life of an ownership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The fence is being raised and the parked keys are being loaded: nothing is fetched.
    Loading,
    Open,
    /// The service stops: nothing new starts any more.
    Stopping,
    /// It is to be given up: nothing new starts any more.
    Draining {
        until: Boot,
    },
    /// The broker is being told that it is given up.
    Releasing,
}

/// Keys with rows in the store.
#[derive(Debug, Default)]
pub(crate) struct ParkedKeys {
    lanes: HashMap<LaneId, ParkedKey>,
    marks: BTreeSet<(Position, LaneId)>,
}

/// What is known about a key with rows in the store.
#[derive(Debug, Default, Clone, Copy)]
struct ParkedKey {
    /// It has parked rows or a dead letter that blocks.
    holds: bool,
    /// A dead or discarded row above the floor.
    mark: Option<Position>,
    /// Writes on their way to the store that bring rows.
    writes: u32,
}

impl ParkedKeys {
    pub(crate) fn contains(&self, lane: LaneId) -> bool {
        self.lanes.contains_key(&lane)
    }

    /// The key's events go to the store from now on.
    pub(crate) fn close(&mut self, lane: LaneId, holds: bool, mark: Option<Position>) {
        let key = self.lanes.entry(lane).or_default();
        key.holds |= holds;
        if let Some(mark) = mark {
            key.mark = key.mark.max(Some(mark));
            self.marks.insert((mark, lane));
        }
    }

    /// A write begins that brings rows of this key: until it ends, no answer to an earlier one opens the key.
    pub(crate) fn write_begins(&mut self, lane: LaneId) {
        self.lanes.entry(lane).or_default().writes += 1;
    }

    /// True while rows of this key are on their way to the store.
    pub(crate) fn is_written(&self, lane: LaneId) -> bool {
        self.lanes.get(&lane).is_some_and(|key| key.writes > 0)
    }

    pub(crate) fn write_ends(&mut self, lane: LaneId) {
        if let Some(key) = self.lanes.get_mut(&lane) {
            key.writes = key.writes.saturating_sub(1);
        }
    }

    /// The store's word on whether the lane is held.
    pub(crate) fn holds(&mut self, lane: LaneId, holds: bool) {
        if let Some(key) = self.lanes.get_mut(&lane) {
            key.holds = holds;
        }
    }

    /// Opens the key if nothing holds it: no row, no row on its way, no mark above the floor.
    pub(crate) fn try_open(&mut self, lane: LaneId, mind_writes: bool) {
        let open = |key: &ParkedKey| !key.holds && key.mark.is_none() && (key.writes == 0 || !mind_writes);
        if self.lanes.get(&lane).is_some_and(open) {
            self.lanes.remove(&lane);
        }
    }

    /// Forgets the marks that the floor has passed; true if there were any.
    pub(crate) fn floor_passes(&mut self, floor: Position) -> bool {
        let mut any = false;
        while let Some(&(position, lane)) = self.marks.first().filter(|(p, _)| *p <= floor) {
            self.marks.pop_first();
            any = true;
            if let Some(key) = self.lanes.get_mut(&lane) {
                key.mark = key.mark.filter(|mark| *mark > position);
            }
            self.try_open(lane, true);
        }
        any
    }
}

/// Rows that took effect before their own delivery, above the floor, has come again: an earlier owner parked them and the
/// broker was never told. A lane is written in the order of positions, so all of it up to such a row is finished.
#[derive(Debug, Default)]
pub(crate) struct FinishedRows(BTreeMap<LaneId, Place>);

impl FinishedRows {
    /// A row took effect whose delivery has not come.
    pub(crate) fn insert(&mut self, lane: LaneId, place: Place) {
        let highest = self.0.entry(lane).or_insert(place);
        *highest = place.max(*highest);
    }

    /// True if this arrival of the lane was finished as a row, or before one.
    pub(crate) fn covers(&self, lane: LaneId, place: Place) -> bool {
        !self.0.is_empty() && self.0.get(&lane).is_some_and(|highest| place <= *highest)
    }

    /// What the floor has passed does not come again.
    pub(crate) fn floor_passes(&mut self, floor: Position) {
        self.0.retain(|_, place| place.position > floor);
    }
}

/// When to ask the store what is due, and what of its rows is in memory.
#[derive(Debug, Default)]
pub(crate) struct DueState {
    /// What earlier owners had in hand has come again; before that a row might overtake an event of its key.
    pub(crate) resumed: bool,
    /// When the next head is due, as far as known.
    pub(crate) next_at: Option<Timestamp>,
    /// When to look for commands next.
    pub(crate) poll_at: Option<Instant>,
    pub(crate) asking: Option<AbortOnDrop>,
    /// The store did not say what is due when it was asked last.
    pub(crate) failing: bool,
    /// Rows that are in a lane in memory.
    pub(crate) busy: BTreeSet<Place>,
    /// Rows that changed while the store was being asked; its answer may show them as they were.
    pub(crate) touched: BTreeSet<Place>,
    /// Lanes that got a row while the store was being asked; where rows are inserted its answer may show a later head.
    pub(crate) grown: BTreeSet<LaneId>,
    /// Commands that are being carried out, and the rows that they are about: no attempt on those starts meanwhile.
    pub(crate) commands: BTreeMap<CommandId, Place>,
}

impl DueState {
    pub(crate) fn by(&mut self, at: Option<Timestamp>) {
        self.next_at = match (self.next_at, at) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// A lane has got a row.
    pub(crate) fn grows(&mut self, lane: LaneId) {
        if self.asking.is_some() {
            self.grown.insert(lane);
        }
    }

    /// The store's answer has been dealt with.
    pub(crate) fn answered(&mut self) {
        self.touched.clear();
        self.grown.clear();
    }

    /// A row has left memory.
    pub(crate) fn leaves(&mut self, place: Place) {
        self.busy.remove(&place);
        if self.asking.is_some() {
            self.touched.insert(place);
        }
    }
}

/// What the broker is to be told.
#[derive(Debug, Default)]
pub(crate) struct Settling {
    pub(crate) settles: Vec<Settle>,
    /// Settled deliveries that the broker does not know of yet.
    pub(crate) count: usize,
    pub(crate) flush_at: Option<Instant>,
    pub(crate) in_flight: Option<(AbortOnDrop, Arc<Vec<Settle>>)>,
    pub(crate) told_floor: Option<Position>,
    /// The last try to tell the broker failed; the next one waits.
    pub(crate) failed: bool,
}

/// Deliveries given back to a broker that acks one by one.
#[derive(Debug, Default)]
pub(crate) struct Returned {
    /// By key, what has not come again: the key is closed above the lowest. And until when it is not to be expected.
    pub(crate) lanes: BTreeMap<LaneId, (Instant, BTreeSet<Place>)>,
    /// What was tried on them.
    pub(crate) tries: BTreeMap<Place, (u32, Vec<Failure>)>,
}

impl Returned {
    /// An event is given back for a while: its key is closed above it. Answers for how long, since it would be given back
    /// again for as long as one before it stays away.
    pub(crate) fn close(&mut self, lane: LaneId, place: Place, now: Instant, delay: Duration) -> Duration {
        let (until, places) = self.lanes.entry(lane).or_insert((now, BTreeSet::new()));
        places.insert(place);
        *until = (*until).max(now + delay);
        until.duration_since(now)
    }

    /// True if a message before this event's own has an event of the lane that has not come again.
    pub(crate) fn is_closed(&self, lane: LaneId, place: Place) -> bool {
        let lowest = self.lanes.get(&lane).and_then(|(_, places)| places.first());
        lowest.is_some_and(|lowest| lowest.position < place.position)
    }

    /// An event of a lane arrives: true if it must be given back too, because one before it has not come again.
    pub(crate) fn closed_for(&mut self, lane: LaneId, place: Place) -> bool {
        let Some((_, places)) = self.lanes.get_mut(&lane) else { return false };
        if places.first().is_some_and(|lowest| place > *lowest) {
            return true;
        }
        places.remove(&place);
        if places.is_empty() {
            self.lanes.remove(&lane);
        }
        false
    }
}

impl Owned {
    /// True if nothing is on its way to the store.
    pub(crate) fn is_written(&self) -> bool {
        self.writer.is_idle() && self.burying.is_empty()
    }

    /// True if the broker knows everything that is settled.
    pub(crate) fn is_told(&self) -> bool {
        self.settling.settles.is_empty() && self.settling.in_flight.is_none() && self.settling.flush_at.is_none()
    }

    /// True while it is worked on without a limit.
    pub(crate) fn is_open(&self, clock: &Clock) -> bool {
        self.stage == Stage::Open && self.origin.holds(clock)
    }

    /// True while what is in hand is being finished and nothing new starts.
    pub(crate) fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Draining { .. } | Stage::Stopping)
    }

    /// True if an attempt on this event may start: while the partition is being closed, only what keeps the floor from
    /// reaching what is finished already.
    pub(crate) fn may_start(&self, item: &Item, clock: &Clock) -> bool {
        self.origin.holds(clock)
            && match self.stage {
                Stage::Open => true,
                Stage::Draining { .. } | Stage::Stopping => self.is_needed(item),
                Stage::Loading | Stage::Releasing => false,
            }
    }

    /// True if something behind this event is finished, which would be done again if this one were left.
    pub(crate) fn is_needed(&self, item: &Item) -> bool {
        item.stored.is_none() && self.finish_below.is_some_and(|end| item.place.position < end)
    }

    /// True while deliveries may be fetched.
    pub(crate) fn may_fetch(&self, above_floor_max: usize) -> bool {
        self.stage == Stage::Open && self.held.is_empty() && self.ledger.above_floor() < above_floor_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finished_row_covers_its_lane_up_to_itself_until_the_floor_passes() {
        let mut finished = FinishedRows::default();
        let (a, b) = (LaneId(1), LaneId(2));
        finished.insert(a, Place::at(20));
        finished.insert(a, Place::at(15));
        assert!(finished.covers(a, Place::at(18)) && finished.covers(a, Place::at(20)));
        assert!(!finished.covers(a, Place::at(21)) && !finished.covers(b, Place::at(18)));
        finished.floor_passes(Position(19));
        assert!(finished.covers(a, Place::at(20)));
        finished.floor_passes(Position(20));
        assert!(!finished.covers(a, Place::at(20)));
    }

    #[test]
    fn a_key_opens_only_when_neither_row_nor_write_nor_mark_holds_it() {
        let (mut keys, lane) = (ParkedKeys::default(), LaneId(1));
        keys.close(lane, false, Some(Position(7)));
        keys.holds(lane, true);
        assert!(keys.floor_passes(Position(7)) && keys.contains(lane), "a row still holds it");
        keys.write_begins(lane);
        keys.holds(lane, false);
        keys.try_open(lane, true);
        assert!(keys.contains(lane), "a row is on its way");
        keys.write_ends(lane);
        keys.try_open(lane, true);
        assert!(!keys.contains(lane));
    }
}
