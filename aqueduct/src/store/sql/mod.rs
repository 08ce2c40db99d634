//! The SQL store, written once for all databases, and what is SQLite's own.
//!
//! [`sqlite`] is the file with its one writer, which the embedded broker uses too; everything else sees a database only
//! through the few calls of `dialect`.

pub(crate) mod codec;
mod commands;
pub(crate) mod dialect;
mod lookup;
mod ops;
mod rows;
pub(crate) mod sqlite;
mod store;
mod turn;
pub(crate) mod writer;

pub use sqlite::{SqliteFile, SqliteOptions};
pub use store::SqliteStore;
