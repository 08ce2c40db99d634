//! The scheduler: which lane runs next, and how many run at once.
//!
//! A plain struct owned by the loop. It hands out the lane that has waited longest; fairness between keys, spacing of hot
//! keys and the outage breaker will live behind the same three calls ([`ready`](Scheduler::ready),
//! [`next`](Scheduler::next), [`finish`](Scheduler::finish)).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use tokio::time::Instant;

use super::lanes::LaneRef;

#[derive(Debug)]
pub(crate) struct Scheduler {
    ready: VecDeque<LaneRef>,
    delayed: BinaryHeap<Reverse<(Instant, LaneRef)>>,
    running: usize,
    concurrency: usize,
}

impl Scheduler {
    pub(crate) fn new(concurrency: usize) -> Self {
        Self { ready: VecDeque::new(), delayed: BinaryHeap::new(), running: 0, concurrency }
    }

    /// A lane has an event to run; it takes its place behind those that wait already.
    pub(crate) fn ready(&mut self, lane: LaneRef) {
        self.ready.push_back(lane);
    }

    /// A lane that was interrupted runs again before all others.
    pub(crate) fn first(&mut self, lane: LaneRef) {
        self.ready.push_front(lane);
    }

    /// A lane will have an event to run at `at`; until then it holds no permit.
    pub(crate) fn delay(&mut self, lane: LaneRef, at: Instant) {
        self.delayed.push(Reverse((at, lane)));
    }

    /// The lane that has waited longest, with a permit; none while all permits are taken. The lane may be gone by now:
    /// then the permit goes back with [`finish`](Self::finish).
    pub(crate) fn next(&mut self, now: Instant) -> Option<LaneRef> {
        while self.delayed.peek().is_some_and(|Reverse((at, _))| *at <= now) {
            if let Some(Reverse((_, lane))) = self.delayed.pop() {
                self.ready.push_back(lane);
            }
        }
        if self.running >= self.concurrency {
            return None;
        }
        let lane = self.ready.pop_front()?;
        self.running += 1;
        Some(lane)
    }

    /// A permit comes back.
    pub(crate) fn finish(&mut self) {
        self.running -= 1;
    }

    /// How many permits are taken.
    pub(crate) fn running(&self) -> usize {
        self.running
    }

    /// When the next delayed lane becomes ready.
    pub(crate) fn wakes_at(&self) -> Option<Instant> {
        self.delayed.peek().map(|Reverse((at, _))| *at)
    }
}
