//! A member of a consumer that does what it is told and keeps what it gets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::Ground;
use crate::broker::{Arrival, Delivery, Lease, Membership, Ownership, Room, Settle};
use crate::topic::{Epoch, Partition, Position};

/// How long one look for an arrival takes when there is none.
const LOOK: Duration = Duration::from_millis(20);

/// After how long without a delivery it counts as quiet.
const QUIET: Duration = Duration::from_millis(500);

pub(super) struct Peer {
    pub(super) membership: Arc<dyn Membership>,
    heartbeat: AbortHandle,
    by_floor: bool,
    patience: Duration,
    pub(super) room: usize,
    pub(super) paused: Vec<Partition>,
    /// Releases what is revoked.
    pub(super) obliging: bool,
    pub(super) owned: BTreeMap<Partition, Owned>,
    epochs: BTreeMap<Partition, Epoch>,
    /// The deliveries, as they came.
    pub(super) got: Vec<(Partition, Delivery)>,
    pub(super) revoked: BTreeSet<Partition>,
    pub(super) lost: Vec<Partition>,
}

pub(super) struct Owned {
    pub(super) epoch: Epoch,
    pub(super) floor: Option<Position>,
    pub(super) lease: Lease,
}

impl Peer {
    pub(super) fn new(membership: Arc<dyn Membership>, ground: &Ground) -> Self {
        let beating = membership.clone();
        let heartbeat = tokio::spawn(async move { beating.heartbeat().await }).abort_handle();
        Self {
            membership,
            heartbeat,
            by_floor: ground.ownership() == Ownership::Floor,
            patience: ground.patience,
            room: 1_000,
            paused: Vec::new(),
            obliging: true,
            owned: BTreeMap::new(),
            epochs: BTreeMap::new(),
            got: Vec::new(),
            revoked: BTreeSet::new(),
            lost: Vec::new(),
        }
    }

    /// Looks for an arrival for a moment; false if there was none.
    async fn look(&mut self, moment: Duration) -> bool {
        let next = self.membership.next(Room::new(self.room, &self.paused));
        let Ok(arrival) = timeout(moment, next).await else { return false };
        self.take_in(arrival.unwrap()).await;
        true
    }

    /// Makes a `next`, polls it once and drops it.
    pub(super) async fn poll_next_once(&mut self) {
        let next = self.membership.next(Room::new(self.room, &self.paused));
        let arrival = tokio::select! {
            biased;
            arrival = next => Some(arrival.unwrap()),
            () = std::future::ready(()) => None,
        };
        if let Some(arrival) = arrival {
            self.take_in(arrival).await;
        }
        tokio::task::yield_now().await;
    }

    async fn take_in(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Assigned { partition, epoch, floor, lease } => {
                let before = self.epochs.insert(partition.clone(), epoch);
                assert!(before < Some(epoch), "{partition}: epoch {epoch:?} after {before:?}");
                self.owned.insert(partition, Owned { epoch, floor, lease });
            }
            Arrival::Batch { partition, deliveries } => {
                assert!(self.owned.contains_key(&partition), "{partition} delivers to somebody who does not own it");
                assert!(!deliveries.is_empty() && deliveries.len() <= self.room);
                self.got.extend(deliveries.into_iter().map(|delivery| (partition.clone(), delivery)));
            }
            Arrival::Revoking { partition, .. } => {
                self.revoked.insert(partition.clone());
                if self.obliging {
                    self.owned.remove(&partition);
                    self.membership.release(&partition, None).await.unwrap();
                }
            }
            Arrival::Resumed { partition } => {
                assert!(self.owned.contains_key(&partition), "{partition} resumes unowned");
            }
            Arrival::Stopped { partition, why } => panic!("{partition} was stopped: {why}"),
            Arrival::Lost { partition } => {
                self.owned.remove(&partition);
                self.lost.push(partition);
            }
        }
    }

    /// Waits until it has got exactly so many deliveries in all.
    pub(super) async fn take(&mut self, count: usize) {
        pump(&mut [self], "deliveries", |peers| peers[0].got.len() >= count).await;
        assert_eq!(self.got.len(), count, "no more than expected");
    }

    /// Waits until it has got so many deliveries of a partition.
    pub(super) async fn take_from(&mut self, partition: &Partition, count: usize) {
        pump(&mut [self], "deliveries", |peers| peers[0].positions(partition).len() >= count).await;
    }

    /// Sees to it that no delivery comes for a while.
    pub(super) async fn stays_quiet(&mut self) {
        self.stays_quiet_for(QUIET).await;
    }

    pub(super) async fn stays_quiet_for(&mut self, time: Duration) {
        let before = self.got.len();
        let _ = timeout(time, async {
            loop {
                self.look(time * 2).await;
            }
        })
        .await;
        assert_eq!(self.got.len(), before, "unexpected: {:?}", &self.got[before..]);
    }

    /// Settles the first so many of what it got.
    pub(super) async fn settle_first(&mut self, count: usize) {
        let mut settles = BTreeMap::<Partition, Vec<Settle>>::new();
        for (partition, delivery) in &self.got[..count] {
            let settle =
                if self.by_floor { Settle::Floor(delivery.ticket.position) } else { Settle::Done(delivery.ticket) };
            settles.entry(partition.clone()).or_default().push(settle);
        }
        for (partition, settles) in settles {
            self.membership.settle(&partition, &settles).await.unwrap();
        }
    }

    pub(super) async fn leave(&mut self) {
        self.membership.leave().await.unwrap();
        self.heartbeat.abort();
        self.owned.clear();
    }

    pub(super) fn last_epoch(&self, partition: &Partition) -> Epoch {
        self.epochs[partition]
    }

    /// The positions it got of a partition, as they came.
    pub(super) fn positions(&self, partition: &Partition) -> Vec<u64> {
        let of_partition = self.got.iter().filter(|(p, _)| p == partition);
        of_partition.map(|(_, delivery)| delivery.ticket.position.0).collect()
    }

    pub(super) fn places(&self) -> BTreeSet<(Partition, Position)> {
        self.got.iter().map(|(partition, delivery)| (partition.clone(), delivery.ticket.position)).collect()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.heartbeat.abort();
    }
}

/// Lets peers work in turn until something holds.
pub(super) async fn pump(peers: &mut [&mut Peer], what: &str, until: impl Fn(&[&mut Peer]) -> bool) {
    let patience = peers[0].patience;
    let pumped = timeout(patience, async {
        while !until(peers) {
            for peer in peers.iter_mut() {
                peer.look(LOOK).await;
            }
        }
    });
    if pumped.await.is_err() {
        let got: Vec<_> = peers.iter().map(|peer| (peer.owned.len(), peer.got.len())).collect();
        panic!("waited {patience:?} for {what}; partitions and deliveries of each peer: {got:?}");
    }
}
