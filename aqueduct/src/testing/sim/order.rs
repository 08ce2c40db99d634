//! I4: keys keep their order.

use std::collections::{BTreeMap, BTreeSet};

use super::checker::{Index, Invariant, Truth, Violation};
use super::history::{EventNo, Record, What};
use crate::store::{Hold, RowState};

/// What the history has shown so far.
struct Walk<'a> {
    truth: &'a Truth,
    lanes: BTreeMap<&'a str, Vec<EventNo>>,
    done: BTreeSet<EventNo>,
    dead: BTreeMap<EventNo, (usize, Hold)>,
    gone: BTreeSet<EventNo>,
    /// Dead letters and discards that had no effect since: a repeat that was given up.
    given_up: BTreeSet<EventNo>,
    /// Dead letters that let their lane pass and were replayed: they run late, and may stand anywhere.
    late: BTreeSet<EventNo>,
    /// The latest effect of each lane: its counter and record.
    latest: BTreeMap<&'a str, (usize, usize)>,
    found: Vec<Violation>,
}

/// Checks that nothing of a key starts before all that is earlier has an effect or is dead, that a repeated suffix is
/// complete and goes to the end, and that nothing passes a dead letter that blocks.
pub(crate) fn check(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let mut walk = Walk {
        truth,
        lanes: truth.lanes(),
        done: BTreeSet::new(),
        dead: BTreeMap::new(),
        gone: BTreeSet::new(),
        given_up: BTreeSet::new(),
        late: BTreeSet::new(),
        latest: BTreeMap::new(),
        found: Vec::new(),
    };
    for (n, record) in records.iter().enumerate() {
        match &record.what {
            What::Started { event, .. } => walk.started(*event, n),
            What::Effect { run } => {
                if let Some(run) = index.run(*run) {
                    walk.effect(run.event, n);
                }
            }
            What::Stored { partition, position, state } => match (index.at(partition, *position), state) {
                (Some(event), RowState::Dead(hold)) => {
                    walk.given_up.insert(event);
                    walk.dead.insert(event, (n, *hold));
                }
                (Some(event), RowState::Discarded) => {
                    walk.given_up.insert(event);
                    walk.gone.insert(event);
                }
                _ => {}
            },
            What::Replayed { partition, position } => {
                if let Some(event) = index.at(partition, *position)
                    && let Some((_, Hold::Skip)) = walk.dead.remove(&event)
                {
                    walk.late.insert(event);
                }
            }
            _ => {}
        }
    }
    walk.ends(index);
    walk.found
}

impl<'a> Walk<'a> {
    fn lane(&self, event: EventNo) -> Option<(&'a str, usize)> {
        self.truth.events.get(event as usize).map(|told| (told.lane.as_str(), told.counter as usize))
    }

    fn tell(&mut self, text: String, records: Vec<usize>) {
        self.found.push(Violation::new(Invariant::KeyOrder, text, records));
    }

    fn started(&mut self, event: EventNo, n: usize) {
        let Some((lane, counter)) = self.lane(event) else { return };
        for &earlier in &self.lanes[lane][..counter] {
            let name = self.truth.name(event);
            match self.dead.get(&earlier) {
                _ if [&self.gone, &self.done, &self.late].iter().any(|set| set.contains(&earlier)) => {}
                Some((_, Hold::Skip)) => {}
                Some((at, Hold::Block)) => {
                    let text = format!("{name} started behind the blocking dead letter {}", self.truth.name(earlier));
                    return self.tell(text, vec![*at, n]);
                }
                None => {
                    let text = format!("{name} started before {} was done", self.truth.name(earlier));
                    return self.tell(text, vec![n]);
                }
            }
        }
    }

    fn effect(&mut self, event: EventNo, n: usize) {
        let Some((lane, counter)) = self.lane(event) else { return };
        if self.late.contains(&event) {
            return;
        }
        self.given_up.remove(&event);
        let before = self.latest.insert(lane, (counter, n));
        self.done.insert(event);
        let Some((last, at)) = before else { return };
        // Upwards from the last effect without a hole; a step down begins a repeat, which `bounds` judges.
        for left_out in last + 1..counter {
            let left_out = self.lanes[lane][left_out];
            if !self.dead.contains_key(&left_out) && !self.gone.contains(&left_out) && !self.late.contains(&left_out) {
                let text = format!(
                    "{} took effect in a repeat that left out {}",
                    self.truth.name(event),
                    self.truth.name(left_out)
                );
                return self.tell(text, vec![at, n]);
            }
        }
    }

    fn ends(&mut self, index: &Index) {
        for (lane, (last, at)) in self.latest.clone() {
            let stands = |e: &EventNo| self.done.contains(e) && !self.given_up.contains(e) && index.published(*e);
            let later = self.lanes[lane][last + 1..].iter().copied().find(stands);
            if let Some(later) = later {
                let end = self.lanes[lane][last];
                let text = format!(
                    "the last effect is {}, though {} took effect before",
                    self.truth.name(end),
                    self.truth.name(later)
                );
                self.tell(text, vec![at]);
            }
        }
    }
}
