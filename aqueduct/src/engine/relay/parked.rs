//! The parked lanes of a shard, and when the head of each is due.

use std::collections::{BTreeMap, BTreeSet};

use crate::clock::Timestamp;
use crate::topic::LaneId;

/// Exact, since only the owner parks: no look into the table for each row. What operators do is learnt by reading anew.
#[derive(Debug, Default)]
pub(super) struct ParkedLanes {
    lanes: BTreeMap<LaneId, Timestamp>,
    by_time: BTreeSet<(Timestamp, LaneId)>,
}

impl ParkedLanes {
    pub(super) fn new(lanes: BTreeMap<LaneId, Timestamp>) -> Self {
        let by_time = lanes.iter().map(|(lane, due)| (*due, *lane)).collect();
        Self { lanes, by_time }
    }

    pub(super) fn len(&self) -> usize {
        self.lanes.len()
    }

    pub(super) fn contains(&self, lane: LaneId) -> bool {
        self.lanes.contains_key(&lane)
    }

    /// When the first head is due.
    pub(super) fn first_due(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(due, _)| *due)
    }

    /// The lanes whose heads are due, earliest first.
    pub(super) fn due(&self, now: Timestamp, limit: usize) -> Vec<LaneId> {
        self.by_time.iter().take_while(|(due, _)| *due <= now).take(limit).map(|(_, lane)| *lane).collect()
    }

    /// The head of a lane is due at another time, or the lane is new here.
    pub(super) fn date(&mut self, lane: LaneId, due: Timestamp) {
        self.open(lane);
        self.lanes.insert(lane, due);
        self.by_time.insert((due, lane));
    }

    /// A row went to the end of a lane.
    pub(super) fn append(&mut self, lane: LaneId, now: Timestamp) {
        if !self.contains(lane) {
            self.date(lane, now);
        }
    }

    /// A lane has no parked rows any more.
    pub(super) fn open(&mut self, lane: LaneId) {
        if let Some(due) = self.lanes.remove(&lane) {
            self.by_time.remove(&(due, lane));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_are_due_in_the_order_of_their_times() {
        let at = Timestamp::from_unix_ms;
        let mut parked = ParkedLanes::new([(LaneId(1), at(30)), (LaneId(2), at(10))].into());
        parked.append(LaneId(1), at(5));
        parked.append(LaneId(3), at(20));
        assert_eq!((parked.first_due(), parked.len()), (Some(at(10)), 3));
        assert_eq!(parked.due(at(20), 9), [LaneId(2), LaneId(3)]);
        parked.date(LaneId(2), at(40));
        parked.open(LaneId(3));
        assert_eq!(parked.due(at(99), 9), [LaneId(1), LaneId(2)]);
        assert_eq!(parked.due(at(99), 1), [LaneId(1)]);
        assert!(parked.contains(LaneId(1)) && !parked.contains(LaneId(3)));
    }
}
