//! A broker whose calls go wrong.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::faults::{Faults, Port};
use super::history::What;
use crate::broker::{
    Abilities, Arrival, Broker, Delivery, Membership, MemoryBroker, Receipt, Room, Settle, Subscription, Ticket,
};
use crate::error::BrokerError;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Partition, Topic};

/// Marks the tag of a delivery that was repeated here.
const AGAIN: u64 = 1 << 63;

/// The memory broker as one instance sees it.
pub(crate) struct FaultyBroker {
    pub(crate) inner: MemoryBroker,
    pub(crate) faults: Faults,
    /// It says that it is durable, so that the memory store counts as none.
    pub(crate) durable: bool,
    pub(crate) buffer: usize,
}

impl Broker for FaultyBroker {
    fn abilities(&self) -> Abilities {
        let mut abilities = self.inner.abilities();
        abilities.durable = self.durable;
        abilities
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        self.inner.publish(messages)
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.check_topic(topic)
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        let work = self.inner.join(subscription);
        Box::pin(async move {
            let inner = self.faults.through(Port::Broker, &["join"], work, BrokerError::Unavailable).await?;
            let (faults, buffer) = (self.faults.clone(), self.buffer);
            let (keep_until, done) = (Mutex::default(), Mutex::default());
            Ok(Arc::new(FaultyMembership { inner, faults, buffer, keep_until, done }) as Arc<dyn Membership>)
        })
    }
}

struct FaultyMembership {
    inner: Arc<dyn Membership>,
    faults: Faults,
    buffer: usize,
    /// Nothing arrives before; kept here because a call may be dropped and made again.
    keep_until: Mutex<Option<Instant>>,
    /// Deliveries that have been settled, so that their repeats are not settled again.
    done: Mutex<BTreeSet<u64>>,
}

impl Membership for FaultyMembership {
    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>> {
        Box::pin(self.take_next(room))
    }

    fn settle<'a>(&'a self, partition: &'a Partition, settles: &'a [Settle]) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.faults.life().alive().await;
            for settle in settles {
                self.note(partition, settle);
            }
            let real: Vec<Settle> = settles.iter().filter_map(|settle| self.real(settle)).collect();
            let work = self.inner.settle(partition, &real);
            self.faults.through(Port::Broker, &["settle"], work, BrokerError::Unavailable).await
        })
    }

    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.faults.life().alive().await;
            self.faults.life().note(What::Released { partition: partition.clone() });
            let work = self.inner.release(partition, above);
            self.faults.through(Port::Broker, &["release"], work, BrokerError::Unavailable).await
        })
    }

    fn heartbeat(&self) -> BoxFuture<'_, ()> {
        self.inner.heartbeat()
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(self.faults.through(Port::Broker, &["leave"], self.inner.leave(), BrokerError::Unavailable))
    }
}

impl FaultyMembership {
    async fn take_next(&self, room: Room<'_>) -> Result<Arrival, BrokerError> {
        self.faults.enter(&["next"]).await;
        if room.deliveries_max > self.buffer {
            self.faults.life().note(What::Overfull { deliveries: room.deliveries_max });
        }
        let keep_until = *self.keep_until.lock();
        if let Some(until) = keep_until {
            tokio::time::sleep_until(until).await;
        }
        if let Some(fault) = self.faults.fault_before(Port::Broker, &["next"]) {
            return Err(BrokerError::Unavailable(fault));
        }
        let mut arrival = self.inner.next(room).await?;
        *self.keep_until.lock() = self.faults.slowness().map(|span| Instant::now() + span);
        if let Arrival::Batch { deliveries, .. } = &mut arrival
            && deliveries.len() < room.deliveries_max
            && !deliveries.is_empty()
            && self.faults.repeats()
        {
            self.repeat(deliveries);
        }
        self.see(&arrival, room);
        self.faults.pass(&["next"], "after").await;
        Ok(arrival)
    }

    /// Adds one delivery a second time, somewhere behind the first.
    fn repeat(&self, deliveries: &mut Vec<Delivery>) {
        let first = self.faults.pick(deliveries.len());
        let mut again = deliveries[first].clone();
        again.ticket.tag |= AGAIN;
        let at = first + 1 + self.faults.pick(deliveries.len() - first);
        deliveries.insert(at, again);
        self.faults.life().note(What::Fault { point: "deliver/again".into() });
    }

    fn see(&self, arrival: &Arrival, room: Room<'_>) {
        let life = self.faults.life();
        match arrival {
            Arrival::Assigned { partition, epoch, floor, lease } => {
                life.owns(partition, *epoch, lease);
                life.note(What::Assigned { partition: partition.clone(), epoch: *epoch, floor: *floor });
            }
            Arrival::Batch { partition, deliveries } => {
                let positions = deliveries.iter().map(|d| d.ticket.position).collect();
                life.note(What::Delivered { partition: partition.clone(), positions });
                if deliveries.len() > room.deliveries_max {
                    life.note(What::Overfull { deliveries: deliveries.len() });
                }
            }
            Arrival::Revoking { partition, .. } => life.note(What::Revoking { partition: partition.clone() }),
            Arrival::Resumed { .. } | Arrival::Stopped { .. } => {}
            Arrival::Lost { partition } => life.note(What::Lost { partition: partition.clone() }),
        }
    }

    /// Settles are noted when the call is made: from then on the broker may know.
    fn note(&self, partition: &Partition, settle: &Settle) {
        let partition = partition.clone();
        match settle {
            Settle::Floor(position) => self.faults.life().note(What::Floor { partition, position: *position }),
            Settle::Done(ticket) => self.faults.life().note(What::Done { partition, position: ticket.position }),
            Settle::Again(ticket, _) => self.faults.life().note(What::Again { partition, position: ticket.position }),
            Settle::Extend(_) => {}
        }
    }

    /// The settle with the ticket of the real delivery; none for one that is settled already.
    fn real(&self, settle: &Settle) -> Option<Settle> {
        let strip = |ticket: &Ticket| {
            let mut ticket = *ticket;
            ticket.tag &= !AGAIN;
            ticket
        };
        match settle {
            Settle::Floor(position) => Some(Settle::Floor(*position)),
            Settle::Done(ticket) => {
                self.done.lock().insert(strip(ticket).tag);
                Some(Settle::Done(strip(ticket)))
            }
            Settle::Again(ticket, after) => {
                let ticket = strip(ticket);
                (!self.done.lock().contains(&ticket.tag)).then_some(Settle::Again(ticket, *after))
            }
            Settle::Extend(ticket) => Some(Settle::Extend(strip(ticket))),
        }
    }
}
