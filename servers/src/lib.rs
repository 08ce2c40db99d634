//! Real servers for tests: PostgreSQL, MariaDB, PgBouncer and NATS, on a free port of 127.0.0.1.
//!
//! A test that needs only a database of its own takes one from the server that all tests share; `cargo xtask test` and
//! `cargo xtask servers` start it and name it in [`POSTGRES_VARIABLE`] and [`MARIADB_VARIABLE`]; [`NATS_VARIABLE`] is the same for NATS:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! let database = aqueduct_servers::postgres_database()?;
//! assert_eq!(database.query("SELECT 1")?, "1");
//! # Ok(())
//! # }
//! ```
//!
//! A test that kills, suspends or fills a server starts one of its own:
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use aqueduct_servers::{Options, Postgres};
//!
//! let server = Postgres::start(Options::new().setting("max_connections", "20"))?;
//! let database = server.database()?;
//! server.kill()?;
//! server.start_again()?;
//! # Ok(())
//! # }
//! ```
//!
//! Everything here blocks, so that guards can clean up when they are dropped; it may be called inside a tokio runtime.
//!
//! # What ends a server
//!
//! Dropping its handle. When the starting process dies without that, by SIGKILL too, the server ends on Linux, where the kernel
//! tells it (`setpriv --pdeathsig`); elsewhere it goes on. A PostgreSQL that is suspended at that moment stays suspended, because
//! it must clean up after itself and cannot. Folders that are left behind go when the next server starts.

#[cfg(not(unix))]
compile_error!("servers are started on Unix only");

mod account;
mod address;
mod database;
mod folder;
mod install;
mod mariadb;
mod nats;
mod options;
mod pgbouncer;
mod postgres;
mod process;
mod programs;
mod server;
mod tree;

pub use database::{
    Database, MARIADB_VARIABLE, NATS_VARIABLE, POSTGRES_VARIABLE, fresh_name, mariadb_database, nats_url,
    postgres_database,
};
pub use install::{install, installed};
pub use mariadb::MariaDb;
pub use nats::{Nats, NatsCluster};
pub use options::Options;
pub use pgbouncer::PgBouncer;
pub use postgres::Postgres;
pub use server::Server;
