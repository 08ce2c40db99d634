//! Lanes: the ordered lines of events in memory, one for each key of each partition.
//!
//! A plain struct owned by the loop. A lane exists only while it has events, and events live in one slab, so that memory
//! is bounded by what is buffered and the hot path allocates nothing.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::item::Item;
use crate::topic::LaneId;

/// Names a lane in memory: the owned partition's slot and the key's hash.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LaneKey {
    pub(crate) slot: u32,
    pub(crate) lane: LaneId,
}

/// Points at a lane; a reference to a lane that is gone finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct LaneRef {
    index: u32,
    generation: u32,
}

/// What the head of a lane is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Head {
    /// It waits for the scheduler, at once or after a delay.
    Waiting,
    /// An attempt is running.
    Running,
    /// Its end is being written to the store.
    Writing,
    /// Its partition may not start anything now.
    Suspended,
}

#[derive(Debug, Default)]
pub(crate) struct Lanes {
    by_key: HashMap<LaneKey, u32, BuildHasherDefault<LaneHasher>>,
    all: Vec<Lane>,
    free: Vec<u32>,
    nodes: Vec<Node>,
    free_node: u32,
    len: usize,
}

#[derive(Debug)]
struct Lane {
    key: LaneKey,
    generation: u32,
    first: u32,
    last: u32,
    len: u32,
    head: Head,
}

#[derive(Debug)]
struct Node {
    item: Option<Item>,
    next: u32,
}

const NONE: u32 = u32::MAX;

impl Lanes {
    /// Puts an event at the end of its lane. Answers the lane if it is a new one, which is to be scheduled.
    pub(crate) fn push(&mut self, key: LaneKey, item: Item) -> Option<LaneRef> {
        let node = self.new_node(item);
        self.len += 1;
        if let Some(&index) = self.by_key.get(&key) {
            let lane = &mut self.all[index as usize];
            let last = std::mem::replace(&mut lane.last, node);
            lane.len += 1;
            self.nodes[last as usize].next = node;
            return None;
        }
        let index = self.new_lane(key, node);
        self.by_key.insert(key, index);
        Some(LaneRef { index, generation: self.all[index as usize].generation })
    }

    /// The lane of this name.
    pub(crate) fn find(&self, key: LaneKey) -> Option<LaneRef> {
        let index = *self.by_key.get(&key)?;
        Some(LaneRef { index, generation: self.all[index as usize].generation })
    }

    /// The lane's name and what its head is doing; none if the lane is gone.
    pub(crate) fn look(&self, lane: LaneRef) -> Option<(LaneKey, Head)> {
        self.get(lane).map(|l| (l.key, l.head))
    }

    /// Says what the head is doing now.
    pub(crate) fn set(&mut self, lane: LaneRef, head: Head) {
        if let Some(l) = self.all.get_mut(lane.index as usize).filter(|l| l.generation == lane.generation) {
            l.head = head;
        }
    }

    /// The event at the head.
    pub(crate) fn head(&mut self, lane: LaneRef) -> Option<&mut Item> {
        let first = self.get(lane)?.first;
        self.nodes.get_mut(first as usize)?.item.as_mut()
    }

    /// How many events the lane has.
    pub(crate) fn count(&self, lane: LaneRef) -> usize {
        self.get(lane).map_or(0, |l| l.len as usize)
    }

    /// All events of the lane, in order.
    pub(crate) fn items(&self, lane: LaneRef) -> impl Iterator<Item = &Item> {
        let mut node = self.get(lane).map_or(NONE, |l| l.first);
        std::iter::from_fn(move || {
            let Node { item, next } = self.nodes.get(node as usize)?;
            node = *next;
            item.as_ref()
        })
    }

    /// Takes the head off; the lane stays if there are more, its head waiting.
    pub(crate) fn pop(&mut self, lane: LaneRef) -> Option<Item> {
        let first = self.get(lane)?.first;
        let (item, next) = self.drop_node(first);
        let l = &mut self.all[lane.index as usize];
        l.first = next;
        l.len -= 1;
        l.head = Head::Waiting;
        if next == NONE {
            self.drop_lane(lane.index);
        }
        item
    }

    /// True if the lane is still there.
    pub(crate) fn exists(&self, lane: LaneRef) -> bool {
        self.get(lane).is_some()
    }

    /// Takes all events off, in order; the lane is gone.
    pub(crate) fn take(&mut self, lane: LaneRef) -> Vec<Item> {
        let mut items = Vec::with_capacity(self.count(lane));
        while let Some(item) = self.pop(lane) {
            items.push(item);
        }
        items
    }

    /// Takes all events behind the head off, in order.
    pub(crate) fn take_tail(&mut self, lane: LaneRef) -> Vec<Item> {
        let Some(l) = self.get(lane) else { return Vec::new() };
        let (first, mut node) = (l.first, self.nodes[l.first as usize].next);
        let mut items = Vec::with_capacity(l.len as usize);
        while node != NONE {
            let (item, next) = self.drop_node(node);
            items.extend(item);
            node = next;
        }
        self.nodes[first as usize].next = NONE;
        let l = &mut self.all[lane.index as usize];
        (l.last, l.len) = (first, 1);
        items
    }

    /// All lanes of a partition, in the order of their place in memory.
    pub(crate) fn of_slot(&self, slot: u32) -> Vec<LaneRef> {
        let lanes = self.all.iter().enumerate().filter(|(_, l)| l.len > 0 && l.key.slot == slot);
        lanes.filter_map(|(i, l)| Some(LaneRef { index: u32::try_from(i).ok()?, generation: l.generation })).collect()
    }

    /// How many events there are in all lanes together.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    fn get(&self, lane: LaneRef) -> Option<&Lane> {
        self.all.get(lane.index as usize).filter(|l| l.generation == lane.generation && l.len > 0)
    }

    fn new_lane(&mut self, key: LaneKey, node: u32) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.all.push(Lane { key, generation: 0, first: NONE, last: NONE, len: 0, head: Head::Waiting });
            index_of(self.all.len() - 1)
        });
        let lane = &mut self.all[index as usize];
        lane.key = key;
        (lane.first, lane.last, lane.len, lane.head) = (node, node, 1, Head::Waiting);
        index
    }

    fn drop_lane(&mut self, index: u32) {
        let lane = &mut self.all[index as usize];
        lane.generation = lane.generation.wrapping_add(1);
        let key = lane.key;
        self.by_key.remove(&key);
        self.free.push(index);
    }

    fn new_node(&mut self, item: Item) -> u32 {
        let node = Node { item: Some(item), next: NONE };
        if self.free_node == NONE || self.nodes.is_empty() {
            self.nodes.push(node);
            self.free_node = NONE;
            return index_of(self.nodes.len() - 1);
        }
        let index = self.free_node;
        self.free_node = std::mem::replace(&mut self.nodes[index as usize], node).next;
        index
    }

    fn drop_node(&mut self, index: u32) -> (Option<Item>, u32) {
        let node = &mut self.nodes[index as usize];
        let (item, next) = (node.item.take(), std::mem::replace(&mut node.next, self.free_node));
        self.free_node = index;
        self.len -= 1;
        (item, next)
    }
}

/// Buffers are bounded far below this; a wrong index would be caught by the generation, not corrupt anything.
fn index_of(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(NONE - 1)
}

/// Lane names are hashes already: this only mixes the slot in.
#[derive(Default)]
pub(crate) struct LaneHasher(u64);

impl Hasher for LaneHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for b in bytes {
            self.write_u64(u64::from(*b));
        }
    }

    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = self.0.rotate_left(23) ^ n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, VecDeque};

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::super::scheduler::Scheduler;
    use super::*;
    use crate::store::Content;
    use crate::topic::Place;

    fn key(lane: u64) -> LaneKey {
        LaneKey { slot: 0, lane: LaneId(lane) }
    }

    fn item(position: u64) -> Item {
        Item::fresh(Place::at(position), Content::Event(std::sync::Arc::new(crate::Event::raw("test", ""))))
    }

    #[test]
    fn a_reference_to_a_lane_that_is_gone_finds_nothing() {
        let mut lanes = Lanes::default();
        let lane = lanes.push(key(1), item(1)).unwrap();
        assert_eq!(lanes.pop(lane).unwrap().place, Place::at(1));
        let again = lanes.push(key(1), item(2)).unwrap();
        assert!(!lanes.exists(lane) && lanes.pop(lane).is_none() && lanes.exists(again));
    }

    #[test]
    fn the_tail_leaves_and_the_head_stays() {
        let mut lanes = Lanes::default();
        let lane = lanes.push(key(1), item(1)).unwrap();
        (2..5).for_each(|p| assert!(lanes.push(key(1), item(p)).is_none()));
        let tail: Vec<_> = lanes.take_tail(lane).iter().map(|i| i.place.position.0).collect();
        assert_eq!((tail, lanes.count(lane), lanes.len()), (vec![2, 3, 4], 1, 1));
        lanes.push(key(1), item(9));
        assert_eq!(lanes.take(lane).len(), 2);
        assert_eq!(lanes.len(), 0);
    }

    #[derive(Clone, Debug)]
    enum Do {
        Push(u64),
        Next,
        Finish(usize),
        Retry(usize),
        Park(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Do>> {
        let step = prop_oneof![
            4 => (0u64..6).prop_map(Do::Push),
            3 => Just(Do::Next),
            3 => (0usize..8).prop_map(Do::Finish),
            1 => (0usize..8).prop_map(Do::Retry),
            1 => (0usize..8).prop_map(Do::Park),
        ];
        prop::collection::vec(step, 1..200)
    }

    proptest! {
        /// Against queues by key: never two of a key at once, always in order, never above the permits, nothing lost, and
        /// every key is handed out in the order in which keys became ready.
        #[test]
        fn lanes_and_scheduler_agree_with_queues_by_key(steps in steps()) {
            let now = Instant::now();
            let (mut lanes, mut scheduler) = (Lanes::default(), Scheduler::new(3));
            let mut model: BTreeMap<u64, VecDeque<u64>> = BTreeMap::new();
            let mut waiting: VecDeque<u64> = VecDeque::new();
            let mut running: Vec<(LaneRef, u64)> = Vec::new();
            let mut position = 0;
            for step in steps {
                match step {
                    Do::Push(k) => {
                        position += 1;
                        let queue = model.entry(k).or_default();
                        if queue.is_empty() { waiting.push_back(k); }
                        queue.push_back(position);
                        if let Some(lane) = lanes.push(key(k), item(position)) { scheduler.ready(lane); }
                    }
                    Do::Next => {
                        let Some(lane) = scheduler.next(now) else {
                            prop_assert!(waiting.is_empty() || running.len() == 3);
                            continue;
                        };
                        let k = waiting.pop_front().unwrap();
                        let (name, head) = lanes.look(lane).unwrap();
                        prop_assert_eq!((name.lane.0, head), (k, Head::Waiting));
                        prop_assert_eq!(lanes.head(lane).unwrap().place.position.0, model[&k][0]);
                        lanes.set(lane, Head::Running);
                        running.push((lane, k));
                        prop_assert!(running.len() <= 3);
                    }
                    Do::Finish(n) | Do::Retry(n) | Do::Park(n) if running.is_empty() => { let _ = n; }
                    Do::Finish(n) => {
                        let (lane, k) = running.remove(n % running.len());
                        scheduler.finish();
                        let done = lanes.pop(lane).unwrap().place.position.0;
                        prop_assert_eq!(Some(done), model.get_mut(&k).unwrap().pop_front());
                        if lanes.exists(lane) { scheduler.ready(lane); waiting.push_back(k); }
                    }
                    Do::Retry(n) => {
                        let (lane, k) = running.remove(n % running.len());
                        scheduler.finish();
                        lanes.set(lane, Head::Waiting);
                        scheduler.ready(lane);
                        waiting.push_back(k);
                    }
                    Do::Park(n) => {
                        let (lane, k) = running.remove(n % running.len());
                        scheduler.finish();
                        let all: Vec<u64> = lanes.take(lane).iter().map(|i| i.place.position.0).collect();
                        prop_assert_eq!(all, Vec::from(model.remove(&k).unwrap()));
                    }
                }
                prop_assert_eq!(lanes.len(), model.values().map(VecDeque::len).sum::<usize>());
                prop_assert_eq!(scheduler.running(), running.len());
            }
        }
    }
}
