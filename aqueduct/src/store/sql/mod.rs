//! The SQL store, written once for all databases, and what is SQLite's own.
//!
//! [`sqlite`] is the file with its one writer, which the embedded broker uses too; everything else sees a database only
//! through the few calls of `dialect`.

#[cfg(feature = "sqlite")]
pub(crate) mod append;
#[cfg(feature = "sqlite")]
pub(crate) mod batch;
mod beside;
pub(crate) mod codec;
mod commands;
pub(crate) mod dialect;
#[cfg(feature = "sqlite")]
pub(crate) mod identities;
#[cfg(feature = "sqlite")]
mod inbox;
mod lease;
#[cfg(feature = "sqlite")]
pub(crate) mod log;
mod lookup;
mod ops;
mod outbox;
mod outgoing;
#[cfg(feature = "sqlite")]
mod place;
mod relay;
mod relay_status;
mod rows;
mod schema;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod server;
mod shards;
#[cfg(feature = "sqlite")]
pub(crate) mod sqlite;
#[cfg(feature = "sqlite")]
mod sqlite_outbox;
#[cfg(feature = "sqlite")]
mod sqlite_tx;
mod store;
#[cfg(feature = "sqlite")]
mod turn;
pub(crate) mod tx;
#[cfg(feature = "sqlite")]
mod wal;
#[cfg(feature = "sqlite")]
pub(crate) mod writer;

#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use beside::Beside;
#[cfg(any(test, feature = "testing"))]
pub(crate) use lease::SqlLeases;
pub use outbox::Outbox;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use relay::{check_fence, join};
pub use schema::Migrated;
#[cfg(all(any(feature = "postgres", feature = "mysql"), any(test, feature = "testing")))]
pub use server::Planted;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub use server::{Forget, InboxStatus, Isolation, Server, ServerDatabase, ServerOptions, ServerTx};
#[cfg(feature = "mysql")]
pub use server::{MySqlDatabase, MySqlOptions, MySqlStore};
#[cfg(feature = "postgres")]
pub use server::{PgDatabase, PgOptions, PgStore};
pub use shards::ShardStatus;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteFile, SqliteOptions, SqliteStore};
#[cfg(feature = "sqlite")]
pub use sqlite_tx::SqliteTx;
pub use store::{Home, SqlStore};
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub(crate) use store::{HomeCalls, Step};
#[cfg(feature = "sqlite")]
pub(crate) use turn::try_lock;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub use tx::ReadTx;
pub use tx::{Tx, TxBatch, TxDatabase};
