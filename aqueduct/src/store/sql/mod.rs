//! The SQL store, written once for all databases, and what is SQLite's own.
//!
//! [`sqlite`] is the file with its one writer, which the embedded broker uses too; everything else sees a database only
//! through the few calls of `dialect`.

#[cfg(feature = "sqlite")]
pub(crate) mod append;
#[cfg(feature = "sqlite")]
pub(crate) mod batch;
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
#[cfg(feature = "mysql")]
mod mysql;
mod ops;
mod outbox;
mod outgoing;
#[cfg(feature = "sqlite")]
mod place;
#[cfg(feature = "postgres")]
mod postgres;
mod relay;
mod relay_status;
mod rows;
mod schema;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod server;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod server_floors;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod server_inbox;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod server_outbox;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod server_tx;
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

#[cfg(any(test, feature = "testing"))]
pub(crate) use lease::SqlLeases;
#[cfg(feature = "mysql")]
pub use mysql::{MySqlDatabase, MySqlOptions, MySqlStore};
pub use outbox::Outbox;
#[cfg(feature = "postgres")]
pub use postgres::{PgDatabase, PgOptions, PgStore};
pub use schema::Migrated;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub use server::{Isolation, Server, ServerDatabase, ServerOptions};
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub use server_inbox::{Forget, InboxStatus};
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub use server_tx::ServerTx;
pub use shards::ShardStatus;
#[cfg(feature = "sqlite")]
pub use sqlite::{SqliteFile, SqliteOptions, SqliteStore};
#[cfg(feature = "sqlite")]
pub use sqlite_tx::SqliteTx;
pub use store::{Home, SqlStore};
#[cfg(feature = "sqlite")]
pub(crate) use turn::try_lock;
pub use tx::{Tx, TxDatabase};
