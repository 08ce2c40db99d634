//! The SQL store, written once for all databases, and what is SQLite's own.
//!
//! [`sqlite`] is the file with its one writer, which the embedded broker uses too; everything else sees a database only
//! through the few calls of `dialect`.

pub(crate) mod append;
pub(crate) mod batch;
pub(crate) mod codec;
mod commands;
pub(crate) mod dialect;
pub(crate) mod identities;
mod inbox;
#[cfg_attr(
    not(any(test, feature = "testing")),
    allow(dead_code, reason = "until the relay keeps its shards by it, only tests do")
)]
mod lease;
pub(crate) mod log;
mod lookup;
mod ops;
mod outbox;
mod place;
mod rows;
mod shards;
pub(crate) mod sqlite;
mod store;
mod turn;
pub(crate) mod tx;
mod wal;
pub(crate) mod writer;

#[cfg(any(test, feature = "testing"))]
pub(crate) use lease::SqlLeases;
pub use outbox::Outbox;
pub use shards::ShardStatus;
pub use sqlite::{SqliteFile, SqliteOptions};
pub use store::SqliteStore;
pub(crate) use turn::try_lock;
pub use tx::{SqliteTx, Tx, TxDatabase};
