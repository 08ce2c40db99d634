//! Checks a history against the invariants.
//!
//! Each invariant is one function over the whole history, so that each can be read, and broken by a test, by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use super::history::{EventNo, Instance, Record, Run, What};
use super::{bounds, exclusion, order};
use crate::broker::Ownership;
use crate::clock::Boot;
use crate::store::{Hold, RowState};
use crate::topic::{Partition, Position};

/// A promise that a history can be checked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Invariant {
    /// I1: every published event ends as exactly one of effect, dead letter and recorded discard.
    NoLoss,
    /// I4: a key's effects are in order; a crash may repeat a suffix, in order and to its end.
    KeyOrder,
    /// I5: no attempt is polled after its owner's lease, and two runs of one key never overlap.
    Exclusion,
    /// I6: all at or below what was acknowledged is settled.
    Watermark,
    /// I9: everything settles within a time once the faults have stopped.
    Liveness,
    /// I10: running, buffered and attempts stay inside their limits; duplicates only after a disruption.
    Bounds,
}

impl Invariant {
    /// Its number in the list of invariants.
    pub fn number(self) -> u8 {
        match self {
            Self::NoLoss => 1,
            Self::KeyOrder => 4,
            Self::Exclusion => 5,
            Self::Watermark => 6,
            Self::Liveness => 9,
            Self::Bounds => 10,
        }
    }
}

/// A promise that was broken, and where in the history it shows.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Violation {
    /// The invariant.
    pub invariant: Invariant,
    /// What happened: which key, which counters.
    pub text: String,
    /// The numbers of the records that show it.
    pub records: Vec<usize>,
}

impl Violation {
    pub(crate) fn new(invariant: Invariant, text: String, records: impl Into<Vec<usize>>) -> Self {
        Self { invariant, text, records: records.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "I{} {:?}: {}", self.invariant.number(), self.invariant, self.text)?;
        match self.records.as_slice() {
            [] => Ok(()),
            records => write!(f, " (records {records:?})"),
        }
    }
}

/// What is known about a run beside its history.
#[derive(Clone, Debug)]
pub(crate) struct Truth {
    /// How the deliveries are owned.
    pub(crate) ownership: Ownership,
    /// There is a store that counts.
    pub(crate) has_store: bool,
    /// The events by their numbers.
    pub(crate) events: Vec<Told>,
    /// Handlers that may run at a time in one instance.
    pub(crate) concurrency: usize,
    /// Deliveries that one instance may hold.
    pub(crate) buffer: usize,
    /// Attempts that an event may have.
    pub(crate) attempts_max: u32,
    /// How long a graceful stop may take.
    pub(crate) shutdown: Duration,
    /// How long everything may take to settle once the faults have stopped.
    pub(crate) patience: Duration,
}

/// What is known about an event.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    /// Its lane: topic and key, or a name of its own if it has no key.
    pub(crate) lane: String,
    /// Counts the events of the lane, from 0.
    pub(crate) counter: u32,
}

/// All violations, in the order of the invariants.
pub(crate) fn check(records: &[Record], truth: &Truth) -> Vec<Violation> {
    let index = Index::new(records);
    let mut found = no_loss(records, truth, &index);
    if truth.ownership != Ownership::Competing {
        found.extend(order::check(records, truth, &index));
        found.extend(exclusion::check(records, truth, &index));
    }
    found.extend(watermark(records, truth, &index));
    found.extend(liveness(records, truth, &index));
    found.extend(bounds::check(records, truth, &index));
    found
}

/// Finds runs and events by their numbers and places.
pub(crate) struct Index {
    runs: BTreeMap<Run, RunInfo>,
    places: BTreeMap<(Partition, Position), EventNo>,
    homes: BTreeMap<EventNo, (Partition, Position)>,
}

/// An attempt.
#[derive(Clone, Debug)]
pub(crate) struct RunInfo {
    pub(crate) event: EventNo,
    pub(crate) instance: Instance,
    pub(crate) partition: Partition,
    pub(crate) record: usize,
}

impl Index {
    fn new(records: &[Record]) -> Self {
        let mut index = Self { runs: BTreeMap::new(), places: BTreeMap::new(), homes: BTreeMap::new() };
        for (n, record) in records.iter().enumerate() {
            match &record.what {
                What::Published { event, partition, position } => {
                    index.places.insert((partition.clone(), *position), *event);
                    index.homes.entry(*event).or_insert_with(|| (partition.clone(), *position));
                }
                What::Started { run, event, partition, .. } => {
                    let (instance, partition) = (record.instance, partition.clone());
                    index.runs.insert(*run, RunInfo { event: *event, instance, partition, record: n });
                }
                _ => {}
            }
        }
        index
    }

    pub(crate) fn run(&self, run: Run) -> Option<&RunInfo> {
        self.runs.get(&run)
    }

    pub(crate) fn at(&self, partition: &Partition, position: Position) -> Option<EventNo> {
        self.places.get(&(partition.clone(), position)).copied()
    }

    /// The events of a partition with their positions, in order.
    pub(crate) fn events_of(&self, partition: &Partition) -> impl Iterator<Item = (Position, EventNo)> {
        let range = (partition.clone(), Position(0))..=(partition.clone(), Position(u64::MAX));
        self.places.range(range).map(|((_, position), event)| (*position, *event))
    }

    /// Where an event stands.
    pub(crate) fn home(&self, event: EventNo) -> Option<&(Partition, Position)> {
        self.homes.get(&event)
    }

    pub(crate) fn published(&self, event: EventNo) -> bool {
        self.homes.contains_key(&event)
    }

    fn all_published(&self) -> impl Iterator<Item = EventNo> {
        self.homes.keys().copied()
    }
}

impl Truth {
    /// An event in words: its key and counter.
    pub(crate) fn name(&self, event: EventNo) -> String {
        self.events.get(event as usize).map_or_else(
            || format!("unknown event {event}"),
            |told| format!("key {} counter {} (event {event})", told.lane, told.counter),
        )
    }

    /// The events of each lane in their order.
    pub(crate) fn lanes(&self) -> BTreeMap<&str, Vec<EventNo>> {
        let mut lanes: BTreeMap<&str, Vec<EventNo>> = BTreeMap::new();
        for (n, told) in (0..).zip(&self.events) {
            lanes.entry(&told.lane).or_default().push(n);
        }
        lanes
    }
}

/// What became of the events in the end.
struct Ends {
    effects: BTreeMap<EventNo, usize>,
    left: BTreeMap<EventNo, (usize, RowState)>,
    discarded: BTreeSet<EventNo>,
}

impl Ends {
    fn new(records: &[Record], index: &Index) -> Self {
        let mut ends = Self { effects: BTreeMap::new(), left: BTreeMap::new(), discarded: BTreeSet::new() };
        for (n, record) in records.iter().enumerate() {
            match &record.what {
                What::Effect { run } => {
                    if let Some(run) = index.run(*run) {
                        ends.effects.insert(run.event, n);
                    }
                }
                What::Left { partition, position, state } => {
                    if let Some(event) = index.at(partition, *position) {
                        ends.left.insert(event, (n, *state));
                    }
                }
                What::Stored { partition, position, state: RowState::Discarded } => {
                    ends.discarded.extend(index.at(partition, *position));
                }
                _ => {}
            }
        }
        ends
    }

    /// The lanes that a dead letter holds at the end, with its counter.
    fn blocked<'a>(&self, truth: &'a Truth) -> BTreeMap<&'a str, u32> {
        let mut blocked = BTreeMap::new();
        for (event, (_, state)) in &self.left {
            if let (RowState::Dead(Hold::Block), Some(told)) = (state, truth.events.get(*event as usize)) {
                let counter = blocked.entry(told.lane.as_str()).or_insert(told.counter);
                *counter = told.counter.min(*counter);
            }
        }
        blocked
    }
}

/// I1.
fn no_loss(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let ends = Ends::new(records, index);
    let blocked = ends.blocked(truth);
    let mut found = Vec::new();
    for event in index.all_published() {
        let effect = ends.effects.get(&event);
        let left = ends.left.get(&event);
        let discarded = ends.discarded.contains(&event);
        let told = truth.events.get(event as usize);
        let held = told.is_some_and(|t| blocked.get(t.lane.as_str()).is_some_and(|by| *by < t.counter));
        let name = truth.name(event);
        let mut tell = |text: String, records: Vec<usize>| found.push(Violation::new(Invariant::NoLoss, text, records));
        match (effect, left) {
            (None, None) if !discarded => tell(format!("{name} is lost: no effect, dead letter or discard"), vec![]),
            // One competitor may finish what another, to whom it was given as well, has given up.
            (Some(e), Some((_, RowState::Dead(_)))) if bounds::were_given_both(records, *e, truth, index) => {}
            (Some(e), Some((l, RowState::Dead(_)))) => {
                tell(format!("{name} has an effect and is a dead letter too"), vec![*e, *l]);
            }
            (Some(e), Some((l, RowState::Parked))) => {
                tell(format!("{name} has an effect and is still parked"), vec![*e, *l]);
            }
            (None, Some((l, RowState::Parked))) if !held => {
                tell(format!("{name} is still parked and no dead letter holds its key"), vec![*l]);
            }
            // Its effect may not have come to the store's notice before an operator discarded it.
            (Some(e), _) if discarded && bounds::is_cut_off(records, *e, index) => {}
            (Some(e), _) if discarded => tell(format!("{name} has an effect and was discarded too"), vec![*e]),
            _ => {}
        }
    }
    found
}

/// I6, at every acknowledgement, which is before any crash that could follow it.
fn watermark(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let mut effects: BTreeSet<EventNo> = BTreeSet::new();
    let mut stored: BTreeSet<EventNo> = BTreeSet::new();
    let mut floors: BTreeMap<&Partition, Position> = BTreeMap::new();
    let mut found = Vec::new();
    for (n, record) in records.iter().enumerate() {
        let mut tell = |text: String| found.push(Violation::new(Invariant::Watermark, text, [n]));
        match &record.what {
            What::Effect { run } => effects.extend(index.run(*run).map(|r| r.event)),
            What::Stored { partition, position, .. } => stored.extend(index.at(partition, *position)),
            What::Floor { partition, position } => {
                let before = floors.get(partition).copied();
                for (at, event) in index.events_of(partition) {
                    let newly = at <= *position && before.is_none_or(|b| at > b);
                    if newly && !effects.contains(&event) && !stored.contains(&event) {
                        tell(format!(
                            "floor {} acknowledged, {} at {} is not settled",
                            position.0,
                            truth.name(event),
                            at.0
                        ));
                    }
                }
                floors.insert(partition, before.map_or(*position, |b| b.max(*position)));
            }
            What::Done { partition, position } => {
                let event = index.at(partition, *position);
                if let Some(event) = event.filter(|e| !effects.contains(e) && !stored.contains(e)) {
                    tell(format!("{} acknowledged before effect, parked copy or dead letter", truth.name(event)));
                }
            }
            What::Finished { partition, position } => {
                if let Some(event) = index.at(partition, *position).filter(|e| !effects.contains(e)) {
                    tell(format!("the row of {} was deleted before its effect", truth.name(event)));
                }
            }
            _ => {}
        }
    }
    found
}

/// I9.
fn liveness(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let find = |wanted: &What| records.iter().position(|r| r.what == *wanted);
    let Some(calm) = find(&What::Calm) else { return Vec::new() };
    let late = |at: Boot| at.since(records[calm].at) > truth.patience;
    match find(&What::Settled) {
        Some(n) if !late(records[n].at) => Vec::new(),
        settled => {
            let ends = Ends::new(records, index);
            let open: Vec<String> = index
                .all_published()
                .filter(|e| !ends.effects.contains_key(e) && !ends.left.contains_key(e))
                .map(|e| truth.name(e))
                .collect();
            let when = if settled.is_some() { "too late" } else { "never" };
            let text = format!("settled {when}: {:?} allowed after the faults stopped; open: {open:?}", truth.patience);
            vec![Violation::new(Invariant::Liveness, text, settled.into_iter().chain([calm]).collect::<Vec<_>>())]
        }
    }
}
