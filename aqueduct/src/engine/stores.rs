//! The stores of a service: where rows live, and where the transactions of handlers do. Mostly they are one.

use std::sync::Arc;

use crate::broker::{Membership, Settle};
use crate::error::{BrokerError, StoreError};
use crate::store::{Claim, Standing, Store, TakeOver};
use crate::topic::Position;

/// Where what becomes of events is written.
#[derive(Clone)]
pub(crate) struct Stores {
    /// Parked events and dead letters.
    pub(crate) rows: Arc<dyn Store>,
    /// The fence, floors and inbox that handlers' transactions are checked against.
    pub(crate) transactions: Arc<dyn Store>,
    /// It remembers up to where partitions are settled.
    pub(crate) keeps_floors: bool,
}

/// What a new owner has learnt.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) loaded: TakeOver,
    /// Up to where the partition is settled for ever, as the store knows.
    pub(crate) settled: Option<Position>,
}

/// Why the floor did not reach the broker.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotSettled {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Broker(#[from] BrokerError),
}

impl Stores {
    /// Raises every fence, and THEN loads what the new owner must know.
    pub(crate) async fn take_over(&self, claim: &Claim, at: &Standing) -> Result<Taken, StoreError> {
        if !Arc::ptr_eq(&self.rows, &self.transactions) {
            self.transactions.take_over(claim, at.floor).await?;
        }
        let loaded = self.rows.take_over(claim, at.floor).await?;
        let settled = if self.keeps_floors { self.transactions.resume(claim, at).await? } else { None };
        Ok(Taken { loaded, settled })
    }

    /// Tells the store where the floor is, and then the broker what is settled.
    pub(crate) async fn settle(
        &self,
        membership: &dyn Membership,
        claim: &Claim,
        settles: &[Settle],
    ) -> Result<(), NotSettled> {
        if let Some(Settle::Floor(floor)) = settles.last().filter(|_| self.keeps_floors) {
            self.transactions.settled(claim, *floor).await?;
        }
        Ok(membership.settle(&claim.partition, settles).await?)
    }
}
