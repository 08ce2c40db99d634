//! How far a group has come in one partition, and what it has in flight there.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use super::log::Log;
use crate::broker::{Delivery, Ticket};
use crate::clock::later;
use crate::topic::Position;

/// A group's progress in one partition.
pub(super) struct Ledger {
    /// Everything up to here is settled.
    floor: u64,
    /// The position that is delivered next for the first time (or, with a floor alone, again).
    cursor: u64,
    /// How long a delivery may stay unsettled; none where a floor alone is kept.
    ack_wait: Option<Duration>,
    /// What is delivered and not done, where deliveries are settled one by one.
    open: BTreeMap<u64, Open>,
    /// When an open delivery comes again.
    timers: BTreeSet<(Instant, u64)>,
    /// Open deliveries that come again now, lowest first.
    ready: BTreeSet<u64>,
    /// What earlier owners had open and what has neither come again nor been settled.
    undone: BTreeSet<u64>,
}

/// A delivery that is not done.
struct Open {
    tag: u64,
    deliveries: u32,
    member: u64,
    /// Its entry among the timers; none while it is ready.
    again_at: Option<Instant>,
}

impl Ledger {
    pub(super) fn new(floor: u64, ack_wait: Option<Duration>) -> Self {
        let (open, timers, ready) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new());
        Self { floor, cursor: floor + 1, ack_wait, open, timers, ready, undone: BTreeSet::new() }
    }

    pub(super) fn floor(&self) -> u64 {
        self.floor
    }

    /// How many messages are not settled, delivered or not.
    pub(super) fn lag(&self, log: &Log) -> usize {
        let from = if self.ack_wait.is_some() { self.cursor } else { self.floor + 1 };
        let fresh = usize::try_from(log.end().saturating_sub(from)).unwrap_or(usize::MAX);
        fresh + self.open.len()
    }

    pub(super) fn has_more(&self, log: &Log) -> bool {
        !self.ready.is_empty() || self.cursor < log.end()
    }

    /// When the next delivery comes again by itself.
    pub(super) fn next_timer(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// True if deliveries are not settled one by one.
    pub(super) fn keeps_floor_alone(&self) -> bool {
        self.ack_wait.is_none()
    }

    /// True if all that earlier owners had open has come again or was settled.
    pub(super) fn has_resumed(&self) -> bool {
        self.undone.is_empty()
    }

    /// Lets come again what is due.
    pub(super) fn tick(&mut self, now: Instant) {
        while let Some((at, position)) = self.timers.first().copied().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, position));
            self.make_ready(position);
        }
    }

    /// A new owner starts: everything undone comes again first, in order.
    pub(super) fn reopen(&mut self) {
        if self.ack_wait.is_none() {
            self.cursor = self.floor + 1;
        }
        self.timers.clear();
        self.ready.extend(self.open.keys());
        self.undone = self.ready.clone();
        self.open.values_mut().for_each(|open| open.again_at = None);
    }

    /// A member is gone: what it had in flight comes again.
    pub(super) fn reopen_of(&mut self, member: u64) {
        let lost: Vec<u64> = self.open.iter().filter(|(_, open)| open.member == member).map(|(at, _)| *at).collect();
        for position in lost {
            self.set_timer(position, None);
            self.make_ready(position);
        }
    }

    fn make_ready(&mut self, position: u64) {
        if let Some(open) = self.open.get_mut(&position) {
            open.again_at = None;
            self.ready.insert(position);
        }
    }

    /// Moves the timer of an open delivery; none takes it away.
    fn set_timer(&mut self, position: u64, at: Option<Instant>) {
        let Some(open) = self.open.get_mut(&position) else { return };
        if let Some(old) = std::mem::replace(&mut open.again_at, at) {
            self.timers.remove(&(old, position));
        }
        self.timers.extend(at.map(|at| (at, position)));
    }

    /// Takes at most `count` deliveries for a member: first what comes again, then what is new.
    pub(super) fn take(
        &mut self,
        log: &Log,
        count: usize,
        member: u64,
        now: Instant,
        last_tag: &mut u64,
    ) -> Vec<Delivery> {
        let fresh = usize::try_from(log.end().saturating_sub(self.cursor)).unwrap_or(usize::MAX);
        let mut deliveries = Vec::with_capacity(count.min(self.ready.len().saturating_add(fresh)));
        while deliveries.len() < count {
            let position = match self.ready.pop_first() {
                Some(position) => position,
                None if self.cursor < log.end() => {
                    self.cursor += 1;
                    self.cursor - 1
                }
                None => break,
            };
            self.undone.remove(&position);
            let Some(message) = log.get(position) else { continue };
            *last_tag += 1;
            let mut ticket = Ticket::new(Position(position), *last_tag);
            self.deliver(&mut ticket, member, now);
            deliveries.push(Delivery { message: message.clone(), ticket });
        }
        deliveries
    }

    fn deliver(&mut self, ticket: &mut Ticket, member: u64, now: Instant) {
        let Some(ack_wait) = self.ack_wait else { return };
        let position = ticket.position.0;
        let open = self.open.entry(position).or_insert(Open { tag: 0, deliveries: 0, member, again_at: None });
        (open.tag, open.member) = (ticket.tag, member);
        open.deliveries = open.deliveries.saturating_add(1);
        (ticket.deliveries, ticket.ack_wait) = (open.deliveries, Some(ack_wait));
        self.set_timer(position, Some(later(now, ack_wait)));
    }

    /// Moves the floor, never back; false if the position was never delivered.
    pub(super) fn settle_floor(&mut self, position: Position) -> bool {
        let delivered = position.0 < self.cursor;
        if delivered {
            self.floor = self.floor.max(position.0);
        }
        delivered
    }

    /// Any delivery of a message settles it, an older one too.
    pub(super) fn settle_done(&mut self, ticket: Ticket) {
        let position = ticket.position.0;
        self.set_timer(position, None);
        self.ready.remove(&position);
        self.undone.remove(&position);
        self.open.remove(&position);
        self.floor = self.open.first_key_value().map_or(self.cursor, |(at, _)| *at) - 1;
    }

    /// Lets the message come again, or be worked on, for so long; only its last delivery has a say.
    pub(super) fn settle_later(&mut self, ticket: Ticket, wait: Option<Duration>, now: Instant) {
        let position = ticket.position.0;
        let current = self.open.get(&position).is_some_and(|open| open.tag == ticket.tag);
        if let Some(wait) = wait.or(self.ack_wait).filter(|_| current && !self.ready.contains(&position)) {
            self.set_timer(position, Some(later(now, wait)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;
    use crate::message::Message;

    fn log(messages: u64) -> Log {
        let messages = (0..messages).map(|n| Message::new("t", n.to_string())).collect::<VecDeque<_>>();
        Log { first: 1, messages }
    }

    fn positions(deliveries: &[Delivery]) -> Vec<u64> {
        deliveries.iter().map(|d| d.ticket.position.0).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_undone_comes_again_before_what_is_new_and_an_old_ticket_settles_it() {
        let (log, wait, mut tag) = (log(5), Duration::from_secs(10), 0);
        let mut ledger = Ledger::new(0, Some(wait));
        let first = ledger.take(&log, 3, 1, Instant::now(), &mut tag);
        ledger.settle_done(first[1].ticket);
        assert_eq!((ledger.floor(), ledger.lag(&log)), (0, 4));
        tokio::time::advance(wait).await;
        ledger.tick(Instant::now());
        let second = ledger.take(&log, 3, 1, Instant::now(), &mut tag);
        assert_eq!(positions(&second), [1, 3, 4]);
        assert_eq!(second[0].ticket.deliveries, 2);
        ledger.settle_later(first[0].ticket, Some(Duration::ZERO), Instant::now());
        ledger.tick(Instant::now());
        assert!(!ledger.ready.contains(&1), "an old ticket has no say in when it comes again");
        ledger.settle_done(first[0].ticket);
        assert_eq!(ledger.floor(), 2);
    }

    #[test]
    fn a_floor_never_goes_back_nor_above_what_was_delivered() {
        let (log, mut tag) = (log(5), 0);
        let mut ledger = Ledger::new(0, None);
        ledger.take(&log, 3, 1, Instant::now(), &mut tag);
        assert!(ledger.settle_floor(Position(2)) && ledger.settle_floor(Position(1)));
        assert_eq!(ledger.floor(), 2);
        assert!(!ledger.settle_floor(Position(4)));
        ledger.reopen();
        assert_eq!(positions(&ledger.take(&log, 9, 1, Instant::now(), &mut tag)), [3, 4, 5]);
    }
}
