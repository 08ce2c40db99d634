//! A consumer's instances, and which of them owns what.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::LeaseTimes;
use super::ledger::Ledger;
use super::log::TopicLog;
use crate::broker::{Arrival, Lease, Room};
use crate::clock::{Boot, Clock};
use crate::error::BrokerError;
use crate::topic::{Epoch, Partition, Position, Topic};

/// How long an owner has to give a partition up.
const REVOKE: Duration = Duration::from_secs(30);

/// The most deliveries in one batch.
const BATCH_MAX: usize = 256;

/// A consumer.
pub(super) struct Group {
    pub(super) members: BTreeMap<u64, Member>,
    pub(super) parts: BTreeMap<Partition, Part>,
    /// Every member is served from every partition; nobody owns one.
    pub(super) competing: bool,
    pub(super) leases: Option<LeaseTimes>,
}

/// An instance.
pub(super) struct Member {
    pub(super) topics: Vec<Topic>,
    pub(super) clock: Clock,
    pub(super) wake: Arc<Notify>,
    /// Changes of ownership that it has not been told yet.
    notes: VecDeque<Arrival>,
    /// The partition it was served from last.
    last: Option<Partition>,
    /// When its last renewal arrived, and until when that renewal holds.
    heard: Instant,
    deadline: Boot,
    /// It was silent for too long and owns nothing until it is heard again.
    struck: bool,
    /// It was dropped and will not be heard again.
    pub(super) gone: bool,
}

/// A partition as this group has it.
pub(super) struct Part {
    /// The numbers of its topic and, within that, its log.
    pub(super) log: (usize, usize),
    pub(super) ledger: Ledger,
    epoch: u64,
    owner: Option<Owner>,
    /// Who owns it, or will.
    target: Option<u64>,
}

struct Owner {
    member: u64,
    lease: Lease,
    /// The member knows that it owns it.
    told: bool,
    /// The member knows that what earlier owners had in hand has come again.
    resumed: bool,
    /// By when it must have given it up.
    revoking: Option<Instant>,
}

impl Member {
    pub(super) fn new(topics: Vec<Topic>, clock: Clock, leases: Option<LeaseTimes>, now: Instant) -> Self {
        let deadline = leases.map_or(Boot(u64::MAX), |times| clock.boot().after(times.lease));
        let (wake, notes) = (Arc::new(Notify::new()), VecDeque::new());
        Self { topics, clock, wake, notes, last: None, heard: now, deadline, struck: false, gone: false }
    }

    fn tell(&mut self, note: Arrival) {
        self.notes.push_back(note);
        self.wake.notify_waiters();
    }

    /// Takes back what it was not told yet of an ownership that is over.
    fn forget(&mut self, partition: &Partition) {
        self.notes.retain(|note| match note {
            Arrival::Assigned { partition: p, .. } | Arrival::Revoking { partition: p, .. } => p != partition,
            _ => true,
        });
    }

    fn reads(&self, topic: &Topic) -> bool {
        !self.struck && self.topics.contains(topic)
    }
}

impl Part {
    pub(super) fn new(log: (usize, usize), ledger: Ledger) -> Self {
        Self { log, ledger, epoch: 0, owner: None, target: None }
    }

    fn floor(&self) -> Option<Position> {
        Some(self.ledger.floor()).filter(|floor| *floor > 0).map(Position)
    }

    fn is_owned_by(&self, member: u64) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.member == member)
    }

    fn assign(&mut self, partition: &Partition, id: u64, member: &mut Member) {
        self.epoch += 1;
        self.ledger.reopen();
        let lease = Lease::until(member.deadline);
        self.owner = Some(Owner {
            member: id,
            lease: lease.clone(),
            told: false,
            resumed: self.ledger.keeps_floor_alone(),
            revoking: None,
        });
        member.tell(self.assigned(partition, lease));
    }

    fn assigned(&self, partition: &Partition, lease: Lease) -> Arrival {
        Arrival::Assigned { partition: partition.clone(), epoch: Epoch(self.epoch), floor: self.floor(), lease }
    }

    /// Takes the partition from its owner. In one process the lease can be ended, not only left to lapse.
    fn take_away(&mut self, partition: &Partition, members: &mut BTreeMap<u64, Member>) {
        let Some(owner) = self.owner.take() else { return };
        owner.lease.renew(Boot(0));
        let Some(member) = members.get_mut(&owner.member) else { return };
        if owner.told {
            member.tell(Arrival::Lost { partition: partition.clone() });
        } else {
            member.forget(partition);
        }
    }
}

impl Group {
    pub(super) fn new(competing: bool, leases: Option<LeaseTimes>) -> Self {
        Self { members: BTreeMap::new(), parts: BTreeMap::new(), competing, leases }
    }

    pub(super) fn reads(&self, topic: &Topic) -> bool {
        self.members.values().any(|member| member.reads(topic))
    }

    pub(super) fn wake(&self) {
        self.members.values().for_each(|member| member.wake.notify_waiters());
    }

    pub(super) fn join(&mut self, id: u64, mut member: Member, now: Instant) {
        if self.competing {
            for (partition, part) in &mut self.parts {
                if member.reads(&partition.topic) {
                    part.epoch = part.epoch.max(1);
                    member.tell(part.assigned(partition, Lease::forever()));
                }
            }
        }
        self.members.insert(id, member);
        self.rebalance(now);
    }

    pub(super) fn leave(&mut self, id: u64, now: Instant) {
        self.members.remove(&id);
        self.free(id);
        self.rebalance(now);
    }

    /// Takes everything from a member that is no more.
    fn free(&mut self, id: u64) {
        for (partition, part) in &mut self.parts {
            part.ledger.reopen_of(id);
            if part.is_owned_by(id) {
                part.take_away(partition, &mut self.members);
            }
        }
        self.wake();
    }

    /// A renewal, sent at `sent` on the member's clock; false if the member has left.
    pub(super) fn renew(&mut self, id: u64, sent: Boot, now: Instant) -> bool {
        let Some(times) = self.leases else { return self.members.contains_key(&id) };
        let Some(member) = self.members.get_mut(&id) else { return false };
        (member.heard, member.deadline) = (now, sent.after(times.lease));
        for owner in self.parts.values().filter_map(|part| part.owner.as_ref()).filter(|o| o.member == id) {
            owner.lease.renew(member.deadline);
        }
        if std::mem::take(&mut member.struck) {
            if self.competing {
                // What it had was taken from it, and it may have given partitions up that it will be served from again.
                for (partition, part) in &self.parts {
                    if member.reads(&partition.topic) {
                        member.tell(part.assigned(partition, Lease::forever()));
                    }
                }
            }
            self.rebalance(now);
            self.wake();
        }
        true
    }

    /// Does what is due: deliveries come again, partitions are taken away, the silent are struck off.
    pub(super) fn tick(&mut self, now: Instant) {
        let mut freed = false;
        for (partition, part) in &mut self.parts {
            part.ledger.tick(now);
            if part.owner.as_ref().and_then(|owner| owner.revoking).is_some_and(|until| until <= now) {
                part.take_away(partition, &mut self.members);
                freed = true;
            }
        }
        let silent: Vec<u64> = self.strike_offs().filter(|(_, at)| *at <= now).map(|(id, _)| id).collect();
        for id in silent {
            self.strike_off(id);
            freed = true;
        }
        if freed {
            self.rebalance(now);
        }
    }

    /// When each member is struck off unless it is heard before.
    fn strike_offs(&self) -> impl Iterator<Item = (u64, Instant)> {
        let after = self.leases.map(|times| times.strike_off.max(times.lease));
        let live = self.members.iter().filter(|(_, member)| !member.struck);
        live.filter_map(move |(id, member)| Some((*id, member.heard + after?)))
    }

    fn strike_off(&mut self, id: u64) {
        if let Some(member) = self.members.get_mut(&id) {
            member.struck = true;
        }
        self.free(id);
        self.members.retain(|_, member| !(member.struck && member.gone));
    }

    /// Gives free partitions to those who are to have them, and asks for those that are to move.
    fn rebalance(&mut self, now: Instant) {
        if self.competing {
            return;
        }
        self.choose_targets();
        for (partition, part) in &mut self.parts {
            let Some(target) = part.target else { continue };
            match part.owner.as_mut() {
                Some(owner) if owner.member == target || owner.revoking.is_some() => {}
                Some(owner) => {
                    owner.revoking = Some(now + REVOKE);
                    if let Some(member) = self.members.get_mut(&owner.member) {
                        let until = member.clock.boot().after(REVOKE);
                        member.tell(Arrival::Revoking { partition: partition.clone(), until });
                    }
                }
                None => {
                    if let Some(member) = self.members.get_mut(&target) {
                        part.assign(partition, target, member);
                    }
                }
            }
        }
        // There may be new deadlines, which those who wait already do not know.
        self.wake();
    }

    /// Says who is to own what: as evenly as can be, and with as few moves as that needs.
    fn choose_targets(&mut self) {
        let live = self.members.iter().filter(|(_, member)| !member.struck && !member.gone);
        let mut loads: BTreeMap<u64, usize> = live.map(|(id, _)| (*id, 0)).collect();
        for (partition, part) in &mut self.parts {
            let reads = |id: &u64| loads.contains_key(id) && self.members[id].reads(&partition.topic);
            part.target = part.target.filter(reads);
            if let Some(load) = part.target.and_then(|id| loads.get_mut(&id)) {
                *load += 1;
            }
        }
        // By number first, so that each topic is spread over all.
        let mut order: Vec<Partition> = self.parts.keys().cloned().collect();
        order.sort_by(|a, b| (a.index, &a.topic).cmp(&(b.index, &b.topic)));
        while let Some((partition, from, to)) = order.iter().find_map(|p| self.better(p, &loads)) {
            if let Some(load) = from.and_then(|id| loads.get_mut(&id)) {
                *load -= 1;
            }
            *loads.entry(to).or_default() += 1;
            if let Some(part) = self.parts.get_mut(partition) {
                part.target = Some(to);
            }
        }
    }

    /// From whom to whom a partition should go, if that makes the shares more even.
    fn better<'a>(
        &self,
        partition: &'a Partition,
        loads: &BTreeMap<u64, usize>,
    ) -> Option<(&'a Partition, Option<u64>, u64)> {
        let from = self.parts.get(partition)?.target;
        let readers = loads.iter().filter(|(id, _)| self.members[id].reads(&partition.topic));
        let (to, least) = readers.min_by_key(|(_, load)| **load)?;
        let gains = from.is_none_or(|from| loads[&from] > least + 1);
        gains.then_some((partition, from, *to))
    }

    /// Gives a partition up.
    pub(super) fn release(
        &mut self,
        id: u64,
        partition: &Partition,
        above: Option<Epoch>,
        now: Instant,
    ) -> Result<(), BrokerError> {
        let competing = self.competing;
        let part = self.owned(id, partition)?;
        part.epoch = part.epoch.max(above.map_or(0, |epoch| epoch.0));
        part.owner = None;
        let again = competing.then(|| {
            part.epoch += 1;
            part.ledger.reopen_of(id);
            part.assigned(partition, Lease::forever())
        });
        if let Some(member) = self.members.get_mut(&id) {
            member.forget(partition);
            member.notes.extend(again);
        }
        self.wake();
        self.rebalance(now);
        Ok(())
    }

    /// The partition, if the member owns it and knows so.
    pub(super) fn owned(&mut self, id: u64, partition: &Partition) -> Result<&mut Part, BrokerError> {
        let member = self.members.get(&id).ok_or(BrokerError::Closed)?;
        let lost = || BrokerError::Lost { partition: partition.clone() };
        let part = self.parts.get_mut(partition).ok_or_else(lost)?;
        let owned = match &part.owner {
            None => self.competing && member.reads(&partition.topic),
            Some(owner) => owner.member == id && owner.told,
        };
        owned.then_some(part).ok_or_else(lost)
    }

    /// What the member gets next; nothing if it has to wait.
    pub(super) fn next(
        &mut self,
        id: u64,
        room: Room<'_>,
        topics: &[TopicLog],
        last_tag: &mut u64,
        now: Instant,
    ) -> Result<Option<Arrival>, BrokerError> {
        let member = self.members.get_mut(&id).ok_or(BrokerError::Closed)?;
        if let Some(note) = member.notes.pop_front() {
            self.told(id, &note);
            return Ok(Some(note));
        }
        if let Some(partition) = self.resumed(id) {
            return Ok(Some(Arrival::Resumed { partition }));
        }
        let Some(partition) = self.serve_from(id, room, topics).cloned() else { return Ok(None) };
        let Some(part) = self.parts.get_mut(&partition) else { return Ok(None) };
        let log = &topics[part.log.0].partitions[part.log.1];
        let deliveries = part.ledger.take(log, room.deliveries_max.min(BATCH_MAX), id, now, last_tag);
        if let Some(member) = self.members.get_mut(&id) {
            member.last = Some(partition.clone());
        }
        Ok(Some(Arrival::Batch { partition, deliveries }))
    }

    /// A partition of the member that has resumed without its knowing.
    fn resumed(&mut self, id: u64) -> Option<Partition> {
        let news = |part: &Part| {
            part.ledger.has_resumed() && part.owner.as_ref().is_some_and(|o| o.member == id && !o.resumed)
        };
        let (partition, part) = self.parts.iter_mut().find(|(_, part)| news(part))?;
        part.owner.as_mut()?.resumed = true;
        Some(partition.clone())
    }

    fn told(&mut self, id: u64, note: &Arrival) {
        let Arrival::Assigned { partition, epoch, .. } = note else { return };
        let Some(part) = self.parts.get_mut(partition).filter(|part| part.epoch == epoch.0) else { return };
        if let Some(owner) = part.owner.as_mut().filter(|owner| owner.member == id) {
            owner.told = true;
        }
    }

    /// The next partition with something for the member, after the one it was served from last.
    fn serve_from(&self, id: u64, room: Room<'_>, topics: &[TopicLog]) -> Option<&Partition> {
        if room.deliveries_max == 0 {
            return None;
        }
        let last = self.members.get(&id)?.last.as_ref();
        let after =
            self.parts.range::<Partition, _>((last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded));
        let rest = last.map(|last| self.parts.range::<Partition, _>((Bound::Unbounded, Bound::Included(last))));
        let mut all = after.chain(rest.into_iter().flatten());
        let has_more = |part: &Part| part.ledger.has_more(&topics[part.log.0].partitions[part.log.1]);
        let found = all.find(|(p, part)| self.serves(id, p, part) && has_more(part) && !room.paused.contains(p));
        found.map(|(partition, _)| partition)
    }

    fn serves(&self, id: u64, partition: &Partition, part: &Part) -> bool {
        match &part.owner {
            None => self.competing && self.members.get(&id).is_some_and(|member| member.reads(&partition.topic)),
            Some(owner) => owner.member == id && owner.revoking.is_none(),
        }
    }

    /// When the member should look again without being woken.
    pub(super) fn next_tick(&self, id: u64, room: Room<'_>) -> Option<Instant> {
        let revoking = self.parts.values().filter_map(|part| part.owner.as_ref()?.revoking);
        let wanted = |p: &Partition, part: &Part| {
            room.deliveries_max > 0 && self.serves(id, p, part) && !room.paused.contains(p)
        };
        let served = self.parts.iter().filter(|(p, part)| wanted(p, part));
        let again = served.filter_map(|(_, part)| part.ledger.next_timer());
        revoking.chain(again).chain(self.strike_offs().map(|(_, at)| at)).min()
    }
}
