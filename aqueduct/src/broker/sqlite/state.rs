//! What a member knows of its partitions, and what was read of them and not delivered yet.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

use super::consumer::Floor;
use crate::broker::{Arrival, Delivery, Room, Ticket};
use crate::clock::Lease;
use crate::error::BrokerError;
use crate::message::Message;
use crate::store::sql::log::{PartitionEntry, entry_damaged};
use crate::store::sql::sqlite::MEND;
use crate::topic::{Epoch, Partition, Position};

/// How many messages of all partitions together are read ahead.
const AHEAD: usize = 2_048;

/// How many of one partition, if it has so many.
const AHEAD_MAX: usize = 256;
const AHEAD_MIN: usize = 16;

/// How much memory they may take together, by what messages of their partition have on average.
const AHEAD_BYTES: usize = 64 << 20;

#[derive(Default)]
pub(super) struct State {
    pub(super) parts: BTreeMap<Partition, Part>,
    /// Changes of ownership that the engine has not been told yet.
    notes: VecDeque<Arrival>,
    /// True if a partition may be broken.
    any_broken: bool,
    /// Why reading failed, until the engine has been told.
    pub(super) failed: Option<BrokerError>,
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
    /// How many messages are read at once; when half of them are left the next are.
    portion: usize,
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
    pub(super) limit: usize,
}

impl Part {
    /// It is not owned any more.
    pub(super) fn end(&mut self) {
        self.owned = false;
        self.ready.clear();
        self.broken = None;
    }

    /// True if so little is left that more is to be read.
    fn is_low(&self) -> bool {
        self.owned && self.broken.is_none() && self.ready.len() <= self.portion / 2
    }

    /// Takes in where the partition ends. It is one of so many, each of which has its share of what is read ahead: none keeps
    /// another's from being read.
    fn look(&mut self, entry: &PartitionEntry, parts: usize) {
        self.next = entry.next.cast_unsigned();
        let size = usize::try_from(entry.bytes / (entry.next - entry.first).max(1)).unwrap_or(0);
        let fits = AHEAD_BYTES / parts / size.max(1);
        self.portion = (AHEAD / parts).clamp(AHEAD_MIN, AHEAD_MAX).min(fits).max(1);
    }
}

impl State {
    pub(super) fn assign(&mut self, epoch: Epoch, floors: Vec<Floor>) {
        for Floor { partition, topic, settled } in floors {
            let Some(floor) = settled else {
                let why = format!("up to where {partition} is settled is damaged: {MEND}");
                self.notes.push_back(Arrival::Stopped { partition, why });
                continue;
            };
            let (ready, next) = (VecDeque::new(), floor + 1);
            let part = Part { topic, epoch, owned: true, cursor: floor, ready, portion: 1, next, broken: None };
            self.parts.insert(partition.clone(), part);
            let floor = (floor > 0).then_some(Position(floor));
            self.notes.push_back(Arrival::Assigned { partition, epoch, floor, lease: Lease::forever() });
        }
    }

    /// What the engine is told next; none if there is nothing yet.
    pub(super) fn next(&mut self, room: Room<'_>) -> Option<Arrival> {
        self.notes.pop_front().or_else(|| self.stopped()).or_else(|| self.serve(room))
    }

    /// A partition that is damaged behind what was delivered.
    fn stopped(&mut self) -> Option<Arrival> {
        if !std::mem::take(&mut self.any_broken) {
            return None;
        }
        let mut broken = self.parts.iter_mut().filter(|(_, part)| part.owned && part.broken.is_some());
        let found = broken.find(|(_, part)| part.ready.is_empty());
        let stopped = found.and_then(|(partition, part)| {
            let why = part.broken.take()?;
            part.end();
            Some(Arrival::Stopped { partition: partition.clone(), why })
        });
        self.any_broken = self.parts.values().any(|part| part.owned && part.broken.is_some());
        stopped
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
        let ready = &mut self.parts.get_mut(&partition)?.ready;
        let deliveries = ready.drain(..room.deliveries_max.min(ready.len())).collect();
        self.last = Some(partition.clone());
        Some(Arrival::Batch { partition, deliveries })
    }

    /// Takes in where the partitions end. Answers what is to be read.
    pub(super) fn look(&mut self, entries: &BTreeMap<(i64, i64), PartitionEntry>) -> Vec<Want> {
        let (mut damaged, mut wants, parts) = (Vec::new(), Vec::new(), self.parts.len());
        for (partition, part) in self.parts.iter_mut().filter(|(_, part)| part.owned) {
            match entries.get(&(part.topic, i64::from(partition.index))) {
                Some(entry) => part.look(entry, parts),
                None => damaged.push(partition.clone()),
            }
            // One that ends before what was read is damaged, which reading it tells.
            if part.cursor + 1 != part.next && part.is_low() {
                let Part { topic, epoch, cursor: after, portion: limit, .. } = *part;
                wants.push(Want { partition: partition.clone(), topic, epoch, after, limit });
            }
        }
        for partition in damaged {
            let why = entry_damaged(&partition).to_string();
            self.stop(&partition, why);
        }
        // Those after the one that was served last come first.
        let served = wants.iter().position(|want| Some(&want.partition) > self.last.as_ref()).unwrap_or(0);
        wants.rotate_left(served);
        wants
    }

    /// True if there is more to read, as far as is known.
    pub(super) fn wants(&self) -> bool {
        self.parts.values().any(|part| part.cursor + 1 < part.next && part.is_low())
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
        let delivery = |(position, message): (Position, Message)| {
            let ticket = Ticket::new(position, position.0);
            Delivery { message, ticket }
        };
        part.ready.extend(messages.into_iter().map(delivery));
    }

    /// Damage stops a partition, and no other, when what was read before is delivered.
    pub(super) fn stop(&mut self, partition: &Partition, why: String) {
        if let Some(part) = self.parts.get_mut(partition).filter(|part| part.owned) {
            part.broken.get_or_insert(why);
            self.any_broken = true;
        }
    }

    /// A partition is not this member's any more: nothing of it is delivered.
    pub(super) fn lose(&mut self, partition: &Partition, why: String) {
        if let Some(part) = self.parts.get_mut(partition) {
            part.ready.clear();
        }
        self.stop(partition, why);
    }
}
