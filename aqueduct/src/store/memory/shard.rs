//! The rows of one consumer and partition, with their indexes.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::store::{
    Action, Applied, Claim, CommandId, Due, Failure, Late, Next, Query, Row, RowRef, RowState, StoredLane, TakeOver,
};
use crate::topic::{Epoch, LaneId, Place, Position};

/// The rows of one partition. Every change of a row goes through [`insert`](Self::insert), [`remove`](Self::remove) or
/// [`change`](Self::change), which keep the indexes right.
#[derive(Default)]
pub(super) struct Shard {
    epoch: Option<Epoch>,
    rows: BTreeMap<Place, Row>,
    lanes: BTreeMap<LaneId, Lane>,
    /// The heads that are not dead letters, by the time they are due.
    heads: BTreeSet<(Timestamp, Place)>,
    discarded: BTreeSet<Place>,
    /// The commands that wait for the partition's owner.
    pub(super) commands: BTreeSet<CommandId>,
}

#[derive(Default)]
struct Lane {
    places: BTreeSet<Place>,
    /// Those that hold the lane; the first is its head.
    holding: BTreeSet<Place>,
    /// What stands for this lane among the shard's heads.
    head: Option<(Timestamp, Place)>,
}

impl Shard {
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(super) fn row(&self, place: Place) -> Option<&Row> {
        self.rows.get(&place)
    }

    /// Refuses a claim that is not the highest that took over.
    pub(super) fn fence(&self, claim: &Claim) -> Result<(), StoreError> {
        if self.epoch == Some(claim.epoch) {
            return Ok(());
        }
        let held = self.epoch.unwrap_or(Epoch(0));
        Err(StoreError::Fenced { partition: claim.partition.clone(), held, ours: claim.epoch })
    }

    pub(super) fn take_over(&mut self, claim: &Claim, floor: Option<Position>) -> Result<TakeOver, StoreError> {
        if self.epoch > Some(claim.epoch) {
            self.fence(claim)?;
        }
        self.epoch = Some(claim.epoch);
        if let Some(floor) = floor {
            self.forget_marks(floor);
        }
        let lanes = self.lanes.iter().map(|(lane, index)| StoredLane {
            lane: *lane,
            holds: !index.holding.is_empty(),
            mark: self.mark(index, floor),
        });
        Ok(TakeOver { lanes: lanes.collect(), next_at: self.heads.first().map(|(at, _)| *at) })
    }

    /// The highest position above the floor of a dead letter or a discarded row.
    fn mark(&self, lane: &Lane, floor: Option<Position>) -> Option<Position> {
        let above = lane.places.iter().rev().take_while(|place| Some(place.position) > floor);
        let mut settled = above.filter(|place| self.rows.get(place).is_some_and(|row| row.state != RowState::Parked));
        settled.next().map(|place| place.position)
    }

    pub(super) fn put(&mut self, rows: &[Row]) -> Applied {
        for row in rows {
            if !self.rows.contains_key(&row.place) {
                self.insert(row.clone());
            }
        }
        rows.first().map_or(Applied::Lane { holds: false, next_at: None }, |row| self.answer(row.lane))
    }

    pub(super) fn append(&mut self, row: &Row, late: Late) -> Applied {
        if self.rows.contains_key(&row.place) {
            return Applied::Present { holds: self.holds(row.lane) };
        }
        let last = self.lanes.get(&row.lane).and_then(|lane| lane.places.last().copied());
        if late == Late::Finished && last > Some(row.place) {
            return Applied::Finished;
        }
        self.insert(row.clone());
        Applied::Appended
    }

    pub(super) fn finish(&mut self, row: RowRef) -> Applied {
        if self.current(row).is_ok() {
            self.remove(row.place);
        } else if self.rows.contains_key(&row.place) {
            return Applied::Conflict;
        }
        self.answer(row.lane)
    }

    pub(super) fn update(&mut self, row: RowRef, failure: &Failure, to: Next) -> Applied {
        if self.rows.get(&row.place).is_some_and(|found| found.has_failed(row, failure)) {
            return self.answer(row.lane);
        }
        if self.current(row).is_err() {
            return Applied::Conflict;
        }
        self.change(row.place, |row| row.fail(failure, to));
        self.answer(row.lane)
    }

    /// Deletes the discarded rows that the floor has passed.
    pub(super) fn forget_marks(&mut self, floor: Position) -> Applied {
        while let Some(place) = self.discarded.first().copied().filter(|place| place.position <= floor) {
            self.remove(place);
        }
        Applied::Lane { holds: false, next_at: None }
    }

    /// Does to a row what an operator wants, or says why it cannot be done.
    pub(super) fn act(&mut self, place: Place, action: &Action, now: Timestamp) -> Result<(), String> {
        self.change(place, |row| row.act(action, now)).unwrap_or_else(|| Err("the row is gone".into()))
    }

    /// Nothing if the row is there in this version, else what is there instead.
    pub(super) fn current(&self, row: RowRef) -> Result<(), String> {
        row.check(self.rows.get(&row.place).map(|found| (found.lane, found.version)))
    }

    pub(super) fn answer(&self, lane: LaneId) -> Applied {
        let next_at = self.lanes.get(&lane).and_then(|lane| lane.head).map(|(at, _)| at);
        Applied::Lane { holds: self.holds(lane), next_at }
    }

    fn holds(&self, lane: LaneId) -> bool {
        self.lanes.get(&lane).is_some_and(|lane| !lane.holding.is_empty())
    }

    pub(super) fn due(&self, now: Timestamp, limit: usize) -> Due {
        let mut waiting = self.heads.iter();
        let mut due = Due::default();
        for (at, place) in waiting.by_ref() {
            if *at > now || due.heads.len() == limit {
                due.next_at = Some(*at);
                break;
            }
            due.heads.extend(self.rows.get(place).cloned());
        }
        due
    }

    /// The rows that a query asks for, lowest place first.
    pub(super) fn matching<'a>(&'a self, query: &'a Query) -> impl Iterator<Item = &'a Row> {
        let from = query.after.map_or(Bound::Unbounded, Bound::Excluded);
        let wanted = |row: &Row| match query.dead {
            None => true,
            Some(true) => matches!(row.state, RowState::Dead(_)),
            Some(false) => row.state == RowState::Parked,
        };
        let rows = self.rows.range((from, Bound::Unbounded)).map(|(_, row)| row);
        rows.filter(move |row| wanted(row) && (query.key.is_none() || query.key.as_ref() == row.content.key()))
    }

    fn insert(&mut self, row: Row) {
        let (place, lane) = (row.place, row.lane);
        self.rows.insert(place, row);
        self.lanes.entry(lane).or_default().places.insert(place);
        self.index(place);
    }

    /// Changes a row and brings the indexes up to date.
    fn change<T>(&mut self, place: Place, change: impl FnOnce(&mut Row) -> T) -> Option<T> {
        let changed = change(self.rows.get_mut(&place)?);
        self.index(place);
        Some(changed)
    }

    fn remove(&mut self, place: Place) {
        let Some(row) = self.rows.remove(&place) else { return };
        self.discarded.remove(&place);
        let Some(lane) = self.lanes.get_mut(&row.lane) else { return };
        lane.places.remove(&place);
        lane.holding.remove(&place);
        self.reindex_head(row.lane);
    }

    fn index(&mut self, place: Place) {
        let Some(row) = self.rows.get(&place) else { return };
        let Some(lane) = self.lanes.get_mut(&row.lane) else { return };
        if row.holds() {
            lane.holding.insert(place)
        } else {
            lane.holding.remove(&place)
        };
        if row.state == RowState::Discarded {
            self.discarded.insert(place)
        } else {
            self.discarded.remove(&place)
        };
        self.reindex_head(row.lane);
    }

    fn reindex_head(&mut self, id: LaneId) {
        let Some(lane) = self.lanes.get_mut(&id) else { return };
        let first = lane.holding.first().and_then(|place| self.rows.get(place));
        let head = first.filter(|row| row.state == RowState::Parked).map(|row| (row.next_at, row.place));
        if head != lane.head {
            if let Some(old) = std::mem::replace(&mut lane.head, head) {
                self.heads.remove(&old);
            }
            self.heads.extend(head);
        }
        if lane.places.is_empty() {
            self.lanes.remove(&id);
        }
    }
}
