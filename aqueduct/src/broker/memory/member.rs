//! The membership of one instance.

use std::sync::Arc;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Shared;
use crate::broker::{Arrival, Membership, Ownership, Room, Settle};
use crate::clock::Clock;
use crate::error::BrokerError;
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Partition, Text};

/// One instance of a consumer, until it leaves or is dropped.
pub(super) struct MemoryMembership {
    pub(super) shared: Arc<Shared>,
    pub(super) consumer: Text,
    pub(super) id: u64,
    pub(super) clock: Clock,
    pub(super) wake: Arc<Notify>,
}

/// What a look at the group brings.
enum Look {
    Found(Arrival),
    WaitUntil(Option<Instant>),
}

impl Membership for MemoryMembership {
    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>> {
        Box::pin(async move {
            loop {
                // Made before the look, so that nothing that happens after it goes unnoticed.
                let woken = self.wake.notified();
                match self.look(room)? {
                    Look::Found(arrival) => return Ok(arrival),
                    Look::WaitUntil(None) => woken.await,
                    Look::WaitUntil(Some(at)) => {
                        tokio::select! {
                            biased;
                            () = woken => {}
                            () = tokio::time::sleep_until(at) => {}
                        }
                    }
                }
            }
        })
    }

    fn settle<'a>(&'a self, partition: &'a Partition, settles: &'a [Settle]) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move { self.settle_now(partition, settles) })
    }

    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            let now = Instant::now();
            self.shared.state.lock().group(&self.consumer, now)?.release(self.id, partition, above, now)
        })
    }

    fn heartbeat(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let Some(times) = self.shared.state.lock().options.leases else { return std::future::pending().await };
            loop {
                let (sent, now) = (self.clock.boot(), Instant::now());
                let heard = self
                    .shared
                    .state
                    .lock()
                    .group(&self.consumer, now)
                    .is_ok_and(|group| group.renew(self.id, sent, now));
                if !heard {
                    return std::future::pending().await;
                }
                tokio::time::sleep(times.renew).await;
            }
        })
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            let now = Instant::now();
            self.shared.state.lock().group(&self.consumer, now)?.leave(self.id, now);
            self.wake.notify_waiters();
            Ok(())
        })
    }
}

impl MemoryMembership {
    fn look(&self, room: Room<'_>) -> Result<Look, BrokerError> {
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        state.group(&self.consumer, now)?;
        let state = &mut *state;
        let Some(group) = state.groups.get_mut(&self.consumer) else { return Err(BrokerError::Closed) };
        let found = group.next(self.id, room, &state.topics, &mut state.last_tag, now)?;
        Ok(found.map_or_else(|| Look::WaitUntil(group.next_tick(self.id, room)), Look::Found))
    }

    fn settle_now(&self, partition: &Partition, settles: &[Settle]) -> Result<(), BrokerError> {
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        let by_floor = state.options.ownership == Ownership::Floor;
        let group = state.group(&self.consumer, now)?;
        let ledger = &mut group.owned(self.id, partition)?.ledger;
        for settle in settles {
            match *settle {
                Settle::Floor(position) if by_floor => {
                    if !ledger.settle_floor(position) {
                        let text = format!("position {} of {partition} was never delivered to this owner", position.0);
                        return Err(BrokerError::Refused(text));
                    }
                }
                Settle::Done(ticket) if !by_floor => ledger.settle_done(ticket),
                Settle::Again(ticket, delay) if !by_floor => ledger.settle_later(ticket, Some(delay), now),
                Settle::Extend(ticket) => ledger.settle_later(ticket, None, now),
                other => {
                    let text = format!("{other:?} is not how this broker settles: its ownership says how");
                    return Err(BrokerError::Refused(text));
                }
            }
        }
        if settles.iter().any(|settle| matches!(settle, Settle::Again(..))) {
            group.wake();
        }
        state.trim(partition);
        drop(state);
        self.shared.settled.notify_waiters();
        Ok(())
    }
}

impl Drop for MemoryMembership {
    /// Without leases this is a process that died and was noticed at once; with them it has fallen silent.
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        let Ok(group) = state.group(&self.consumer, now) else { return };
        match group.members.get_mut(&self.id) {
            Some(member) if group.leases.is_some() => member.gone = true,
            Some(_) => group.leave(self.id, now),
            None => {}
        }
    }
}
