//! Extends deliveries that the broker would take back: from receipt, with an end, by one task with a heap.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::broker::{Membership, Settle, Ticket};
use crate::clock::later;
use crate::policy::defaults;
use crate::topic::{Partition, Position};

/// A delivery is not extended more often than this, however short its time is.
const EVERY_MIN: Duration = Duration::from_millis(1);

/// Keeps deliveries from being taken back.
#[derive(Clone)]
pub(crate) struct Extender(Arc<Shared>);

struct Shared {
    membership: Arc<dyn Membership>,
    held: Mutex<Held>,
    news: Notify,
}

#[derive(Default)]
struct Held {
    by_time: BTreeSet<(Instant, u32, Position)>,
    tickets: BTreeMap<(u32, Position), HeldTicket>,
    partitions: BTreeMap<u32, Partition>,
}

struct HeldTicket {
    ticket: Ticket,
    every: Duration,
    next: Instant,
    until: Instant,
}

impl Extender {
    pub(crate) fn new(membership: Arc<dyn Membership>) -> Self {
        Self(Arc::new(Shared { membership, held: Mutex::default(), news: Notify::new() }))
    }

    /// Extends this delivery at each third of its time until it is released.
    pub(crate) fn hold(&self, slot: u32, partition: &Partition, ticket: Ticket) {
        let Some(ack_wait) = ticket.ack_wait else { return };
        let (now, every) = (Instant::now(), (ack_wait / 3).max(EVERY_MIN));
        let (next, until) = (later(now, every), now + defaults::EXTEND_MAX);
        let mut held = self.0.held.lock();
        held.partitions.entry(slot).or_insert_with(|| partition.clone());
        held.tickets.insert((slot, ticket.position), HeldTicket { ticket, every, next, until });
        held.by_time.insert((next, slot, ticket.position));
        drop(held);
        self.0.news.notify_one();
    }

    /// A delivery that is in hand has come again with another ticket.
    pub(crate) fn renew(&self, slot: u32, ticket: Ticket) {
        if let Some(held) = self.0.held.lock().tickets.get_mut(&(slot, ticket.position)) {
            held.ticket = ticket;
        }
    }

    /// This delivery needs no more time.
    pub(crate) fn release(&self, slot: u32, position: Position) {
        let mut held = self.0.held.lock();
        if let Some(gone) = held.tickets.remove(&(slot, position)) {
            held.by_time.remove(&(gone.next, slot, position));
        }
    }

    /// Nothing of this partition needs more time.
    pub(crate) fn forget(&self, slot: u32) {
        let mut held = self.0.held.lock();
        held.partitions.remove(&slot);
        held.by_time.retain(|(_, s, _)| *s != slot);
        held.tickets.retain(|(s, _), _| *s != slot);
    }

    pub(crate) async fn run(self) {
        loop {
            let next = self.0.held.lock().by_time.first().map(|(at, ..)| *at);
            match next {
                None => self.0.news.notified().await,
                Some(at) if at > Instant::now() => {
                    tokio::select! {
                        biased;
                        () = self.0.news.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                Some(_) => self.extend().await,
            }
        }
    }

    async fn extend(&self) {
        let due = self.0.held.lock().take_due(Instant::now());
        for (partition, settles) in due {
            if let Err(error) = self.0.membership.settle(&partition, &settles).await {
                tracing::warn!(%partition, %error, "deliveries were not extended; they may come again");
            }
        }
    }
}

impl Held {
    /// The tickets to extend now, by partition, dated anew.
    fn take_due(&mut self, now: Instant) -> Vec<(Partition, Vec<Settle>)> {
        let mut due: BTreeMap<u32, Vec<Settle>> = BTreeMap::new();
        while let Some(&(_, slot, position)) = self.by_time.first().filter(|(at, ..)| *at <= now) {
            self.by_time.pop_first();
            let Some(held) = self.tickets.get_mut(&(slot, position)) else { continue };
            if now >= held.until {
                self.tickets.remove(&(slot, position));
                continue;
            }
            held.next = later(now, held.every);
            due.entry(slot).or_default().push(Settle::Extend(held.ticket));
            self.by_time.insert((held.next, slot, position));
        }
        due.into_iter().filter_map(|(slot, settles)| Some((self.partitions.get(&slot)?.clone(), settles))).collect()
    }
}
