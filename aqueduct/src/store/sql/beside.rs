//! Tables of other systems beside Aqueduct's own, kept in the same transactions.

use std::sync::Arc;

use super::dialect::Session;
use super::ops::Shard;
use super::rows;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::event::Event;
use crate::outcome::BoxFuture;
use crate::store::{Applied, Next, Op, Row, RowState};
use crate::topic::{Partition, Place};

/// Keeps tables of another system.
pub(crate) trait Beside: Send + Sync + 'static {
    /// The transaction of an attempt has begun, and the event is new to the inbox. True if there it has taken effect.
    #[cfg_attr(not(any(feature = "postgres", feature = "mysql")), expect(dead_code, reason = "servers alone call it"))]
    fn enter<'a>(
        &'a self,
        _: &'a mut dyn Session,
        _: &'a Partition,
        _: &'a Event,
        _: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    /// A row is a dead letter now.
    fn died<'a>(
        &'a self,
        _: &'a mut dyn Session,
        _: &'a Partition,
        _: &'a Row,
        _: Timestamp,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }
}

/// All that are kept in a database, and the time of the transaction.
#[derive(Clone)]
pub(super) struct Kept {
    pub(super) tables: Arc<[Arc<dyn Beside>]>,
    pub(super) now: Timestamp,
}

impl Kept {
    /// Tells them of the rows that are dead letters by an operation.
    pub(super) async fn told(&self, shard: &mut Shard<'_>, op: &Op, answer: Applied) -> Result<(), StoreError> {
        if self.tables.is_empty() {
            return Ok(());
        }
        match op {
            Op::Put(rows) => self.died(shard, rows).await,
            Op::Append { row, .. } if answer == Applied::Appended => self.died(shard, std::slice::from_ref(row)).await,
            Op::Update { row, to: Next::Dead(_), .. } if answer != Applied::Conflict => {
                self.read(shard, row.place).await
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn died(&self, shard: &mut Shard<'_>, rows: &[Row]) -> Result<(), StoreError> {
        for row in rows.iter().filter(|row| matches!(row.state, RowState::Dead(_))) {
            for table in &*self.tables {
                table.died(&mut *shard.session, shard.partition, row, self.now).await?;
            }
        }
        Ok(())
    }

    async fn read(&self, shard: &mut Shard<'_>, place: Place) -> Result<(), StoreError> {
        let Some(found) = shard.row(place).await? else { return Ok(()) };
        let row = rows::read(&found, shard.partition)?;
        self.died(shard, &[row]).await
    }
}
