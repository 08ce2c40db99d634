//! Benchmarks of parts that are not public.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::engine::bench_parts::{Head, Item, LaneKey, Lanes, Scheduler};
use crate::event::Event;
use crate::store::Content;
use crate::topic::{LaneId, Place};

/// Pushes, schedules and finishes `events` events over the keys that `key_of` says, 1,024 in hand at a time, and answers
/// how long that took; panics if a key's events leave out of order.
pub fn lanes_and_scheduler(events: u64, key_of: impl Fn(u64) -> u64) -> Duration {
    const IN_HAND: u64 = 1_024;
    let (mut lanes, mut scheduler) = (Lanes::default(), Scheduler::new(1_000));
    let event = Arc::new(Event::raw("bench", ""));
    let begin = Instant::now();
    let mut running = Vec::with_capacity(1_000);
    let (mut next, mut done) = (0, 0_u64);
    while done < events {
        while next < events && next - done < IN_HAND {
            let key = LaneKey { slot: 0, lane: LaneId(key_of(next).wrapping_mul(0x9e37_79b9_7f4a_7c15)) };
            let item = Item::fresh(Place::at(next), Content::Event(Arc::clone(&event)));
            if let Some(lane) = lanes.push(key, item) {
                scheduler.ready(lane);
            }
            next += 1;
        }
        while let Some(lane) = scheduler.next(begin) {
            lanes.set(lane, Head::Running);
            running.push((lane, lanes.head(lane).map(|item| item.place)));
        }
        for (lane, place) in running.drain(..) {
            scheduler.finish();
            assert_eq!(lanes.pop(lane).map(|item| item.place), place, "a key's events left out of order");
            if lanes.exists(lane) {
                scheduler.ready(lane);
            }
            done += 1;
        }
    }
    begin.elapsed()
}
