//! Fences that are looked at in the wrong order, for the tests that must find them.

use super::{Server, ServerDatabase};
use crate::error::{Error, Result};
use crate::topic::Epoch;

/// A wrong way to fence a handler's transaction: the fence is not looked at again before the commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// It is read when the event is in the inbox, and not locked.
    ReadFirst,
    /// It is locked before anything else.
    LockedFirst,
}

impl Planted {
    pub(super) async fn check<DB: Server>(
        self,
        database: &ServerDatabase<DB>,
        connection: &mut DB::Connection,
        shard: i64,
        epoch: Epoch,
    ) -> Result<()> {
        let fence = database.one(match self {
            Self::ReadFirst => "select epoch from aq_shards where id = ?",
            Self::LockedFirst => "select epoch from aq_shards where id = ? /*lock*/",
        });
        let found = DB::fetch(connection, &fence, vec![shard.into()]).await?;
        match found.first().map(|row| row.int(0)).transpose()? {
            Some(held) if held.cast_unsigned() == epoch.0 => Ok(()),
            _ => Err(Error::msg("another owns the partition")),
        }
    }
}
