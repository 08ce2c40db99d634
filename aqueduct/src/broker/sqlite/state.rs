//! What a member knows of its partitions, and what was read of them and not delivered yet.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::consumer::{Floor, Right};
use crate::broker::{Arrival, Delivery, Room, Ticket};
use crate::error::BrokerError;
use crate::message::Message;
use crate::store::sql::log::{PartitionEntry, entry_damaged};
use crate::store::sql::sqlite::MEND;
use crate::topic::{Epoch, Partition, Position, Topic};

/// How many messages of all partitions together are read ahead.
const AHEAD: usize = 2_048;

/// How many of one partition, if it has so many.
const AHEAD_MAX: usize = 256;
const AHEAD_MIN: usize = 16;

/// How many bytes their keys, headers and bodies may have together.
const AHEAD_BYTES: usize = 64 << 20;

pub(super) struct State {
    /// By what the partitions are owned that are.
    pub(super) right: Right,
    pub(super) parts: BTreeMap<Partition, Part>,
    /// Changes of ownership that the engine has not been told yet.
    notes: VecDeque<Arrival>,
    /// Why reading failed, until the engine has been told or it works again.
    pub(super) failed: Option<BrokerError>,
    /// The engine has been told so, and has not asked again.
    pub(super) told: bool,
    /// The partition it was served from last.
    last: Option<Partition>,
    pub(super) left: bool,
}

/// A partition of the member.
pub(super) struct Part {
    pub(super) topic: i64,
    pub(super) epoch: Epoch,
    /// False while it is released and not assigned again, or stopped.
    pub(super) owned: bool,
    /// What was read last.
    cursor: u64,
    /// What was read and not delivered yet.
    ready: VecDeque<Delivery>,
    /// The bytes of those.
    ready_bytes: usize,
    /// Where the next message will stand, as far as is known.
    next: u64,
    /// Why nothing can be read behind what is ready.
    broken: Option<String>,
}

/// What is to be read of a partition.
pub(super) struct Want {
    pub(super) partition: Partition,
    pub(super) topic: i64,
    pub(super) epoch: Epoch,
    pub(super) after: u64,
    /// So many messages at most, and so many bytes.
    pub(super) limit: usize,
    pub(super) bytes: usize,
}

impl Part {
    /// It is not owned any more.
    pub(super) fn end(&mut self) {
        self.owned = false;
        self.clear();
        self.broken = None;
    }

    fn clear(&mut self) {
        self.ready.clear();
        self.ready_bytes = 0;
    }

    /// True if no more than half of its share is left, so that more is to be read.
    fn is_low(&self, (messages, bytes): (usize, usize)) -> bool {
        self.owned && self.broken.is_none() && self.ready.len() <= messages / 2 && self.ready_bytes <= bytes / 2
    }
}

impl State {
    pub(super) fn new(right: Right) -> Self {
        let (parts, notes) = (BTreeMap::new(), VecDeque::new());
        Self { right, parts, notes, failed: None, told: false, last: None, left: false }
    }

    pub(super) fn assign(&mut self, epoch: Epoch, floors: Vec<Floor>) {
        for Floor { partition, topic, settled } in floors {
            let Some(floor) = settled else {
                let why = format!("up to where {partition} is settled is damaged: {MEND}");
                self.notes.push_back(Arrival::Stopped { partition, why });
                continue;
            };
            let (cursor, ready, next) = (floor, VecDeque::new(), floor + 1);
            let part = Part { topic, epoch, owned: true, cursor, ready, ready_bytes: 0, next, broken: None };
            self.parts.insert(partition.clone(), part);
            let floor = (floor > 0).then_some(Position(floor));
            self.notes.push_back(Arrival::Assigned { partition, epoch, floor, lease: self.right.lease.clone() });
        }
    }

    /// The consumer is another's: all that was owned is lost.
    pub(super) fn lose_all(&mut self) {
        for (partition, part) in self.parts.iter_mut().filter(|(_, part)| part.owned) {
            part.end();
            self.notes.push_back(Arrival::Lost { partition: partition.clone() });
        }
    }

    /// The topics that were entered, each with its number and how many partitions it has.
    pub(super) fn topics(&self) -> Vec<(i64, Topic, u32)> {
        let mut topics = BTreeMap::<i64, (&Topic, u32)>::new();
        for (partition, part) in &self.parts {
            topics.entry(part.topic).or_insert((&partition.topic, 0)).1 += 1;
        }
        topics.into_iter().map(|(id, (topic, partitions))| (id, topic.clone(), partitions)).collect()
    }

    /// What the engine is told next; none if there is nothing yet.
    pub(super) fn next(&mut self, room: Room<'_>) -> Option<Arrival> {
        self.notes.pop_front().or_else(|| self.stopped()).or_else(|| self.serve(room))
    }

    /// A partition that is damaged behind what was delivered.
    fn stopped(&mut self) -> Option<Arrival> {
        let mut done = self.parts.iter_mut().filter(|(_, part)| part.owned && part.ready.is_empty());
        let (partition, part) = done.find(|(_, part)| part.broken.is_some())?;
        let why = part.broken.take()?;
        part.end();
        Some(Arrival::Stopped { partition: partition.clone(), why })
    }

    /// What was read of the next partition, after the one it was served from last.
    fn serve(&mut self, room: Room<'_>) -> Option<Arrival> {
        if room.deliveries_max == 0 {
            return None;
        }
        let last = self.last.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let (after, rest) = (self.parts.range::<Partition, _>((last, Bound::Unbounded)), self.parts.iter());
        let is_ready = |(p, part): &(&Partition, &Part)| !part.ready.is_empty() && !room.paused.contains(p);
        let partition = after.chain(rest).find(is_ready)?.0.clone();
        let part = self.parts.get_mut(&partition)?;
        let count = room.deliveries_max.min(part.ready.len());
        let deliveries: Vec<Delivery> = part.ready.drain(..count).collect();
        part.ready_bytes -= deliveries.iter().map(|delivery| delivery.message.size()).sum::<usize>();
        self.last = Some(partition.clone());
        Some(Arrival::Batch { partition, deliveries })
    }

    /// How many messages and bytes are read ahead of each partition: none keeps another's from being read.
    fn share(&self) -> (usize, usize) {
        let parts = self.parts.len().max(1);
        ((AHEAD / parts).clamp(AHEAD_MIN, AHEAD_MAX), AHEAD_BYTES / parts)
    }

    /// Takes in where the partitions end. Answers what is to be read.
    pub(super) fn look(&mut self, entries: &BTreeMap<(i64, i64), PartitionEntry>) -> Vec<Want> {
        let (mut damaged, mut wants, share) = (Vec::new(), Vec::new(), self.share());
        for (partition, part) in self.parts.iter_mut().filter(|(_, part)| part.owned) {
            match entries.get(&(part.topic, i64::from(partition.index))) {
                Some(entry) => part.next = entry.next.cast_unsigned(),
                None => damaged.push(partition.clone()),
            }
            // One that ends before what was read is damaged, which reading it tells.
            if part.cursor + 1 != part.next && part.is_low(share) {
                let (Part { topic, epoch, cursor: after, .. }, (limit, bytes)) = (&*part, share);
                let partition = partition.clone();
                wants.push(Want { partition, topic: *topic, epoch: *epoch, after: *after, limit, bytes });
            }
        }
        for partition in damaged {
            let why = entry_damaged(&partition).to_string();
            self.stop(&partition, None, why);
        }
        // Those after the one that was served last come first.
        let served = wants.iter().position(|want| Some(&want.partition) > self.last.as_ref()).unwrap_or(0);
        wants.rotate_left(served);
        wants
    }

    /// True if there is more to read, as far as is known.
    pub(super) fn wants(&self) -> bool {
        let share = self.share();
        self.parts.values().any(|part| part.cursor + 1 < part.next && part.is_low(share))
    }

    /// Messages were read: the partition's cursor moves, unless it was assigned anew meanwhile.
    pub(super) fn keep(&mut self, want: &Want, messages: Vec<(Position, Message)>) {
        let (partition, epoch) = (&want.partition, want.epoch);
        let Some(part) = self.parts.get_mut(partition).filter(|part| part.owned && part.epoch == epoch) else { return };
        if let Some((first, _)) = messages.first().filter(|(first, _)| first.0 > part.cursor + 1) {
            let after = part.cursor;
            tracing::warn!(%partition, after, next = first.0, "messages were deleted before this consumer had read them");
        }
        // Nothing was there though there was more to read: retention has deleted it, up to where the next one will stand.
        part.cursor = messages.last().map_or(part.next - 1, |(last, _)| last.0);
        part.ready_bytes += messages.iter().map(|(_, message)| message.size()).sum::<usize>();
        let delivery = |(position, message): (Position, Message)| {
            let ticket = Ticket::new(position, position.0);
            Delivery { message, ticket }
        };
        part.ready.extend(messages.into_iter().map(delivery));
    }

    /// Damage stops a partition, and no other, when what was read before is delivered.
    pub(super) fn stop(&mut self, partition: &Partition, epoch: Option<Epoch>, why: String) {
        if let Some(part) =
            self.parts.get_mut(partition).filter(|part| part.owned && epoch.is_none_or(|e| e == part.epoch))
        {
            part.broken.get_or_insert(why);
        }
    }

    /// A partition is not this member's any more: nothing of it is delivered.
    pub(super) fn lose(&mut self, partition: &Partition, epoch: Epoch, why: String) {
        if let Some(part) = self.parts.get_mut(partition).filter(|part| part.owned && part.epoch == epoch) {
            part.clear();
            self.stop(partition, Some(epoch), why);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn what_was_read_under_an_old_epoch_does_nothing_to_the_new_one() {
        let partition = Partition { topic: "t".into(), index: 0 };
        let floor = |settled| vec![Floor { partition: partition.clone(), topic: 1, settled: Some(settled) }];
        let mut state = State::new(Right::by_lock(&Clock::system()));
        state.assign(Epoch(1), floor(0));
        state.assign(Epoch(2), floor(3));
        let old = Want { partition: partition.clone(), topic: 1, epoch: Epoch(1), after: 0, limit: 9, bytes: 9 };
        state.keep(&old, vec![(Position(1), Message::new("t", "old"))]);
        state.stop(&partition, Some(Epoch(1)), "old damage".into());
        state.lose(&partition, Epoch(1), "lost long ago".into());
        let mut arrivals = std::iter::from_fn(|| state.next(Room::new(9, &[])));
        assert!(matches!(arrivals.next(), Some(Arrival::Assigned { epoch: Epoch(1), .. })));
        assert!(matches!(arrivals.next(), Some(Arrival::Assigned { epoch: Epoch(2), .. })));
        assert!(arrivals.next().is_none());
        state.stop(&partition, Some(Epoch(2)), "new damage".into());
        assert!(matches!(state.next(Room::new(9, &[])), Some(Arrival::Stopped { why, .. }) if why == "new damage"));
    }
}
