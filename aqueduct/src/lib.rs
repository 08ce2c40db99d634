//! Reliable events for Rust services.
//!
//! You write handlers as you write them for axum: async functions of what they need. Aqueduct keeps its promises when
//! things fail: nothing is lost, keys stay in order, one bad key hurts nobody else. The default features bring a broker
//! and a store in memory, so hello world needs no server:
//!
//! ```
//! use aqueduct::{Consumer, Event, Json, MemoryBroker, Publisher, Result, Router};
//!
//! async fn greet(Json(name): Json<String>) -> Result<()> {
//!     println!("Hello, {name}!");
//!     Ok(())
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<()> {
//! let broker = MemoryBroker::new();
//! let door = Publisher::new("door", broker.clone()).route("guest.*", "guests");
//! door.publish(Event::new("guest.arrived", "Ada")?.key("ada")).await?;
//!
//! let greeter = Consumer::new("greeter", broker.clone()).topics(["guests"]);
//! greeter
//!     .serve(Router::new().on("guest.arrived", greet))
//!     .with_graceful_shutdown(async move { broker.wait_settled("greeter").await })
//!     .await?;
//! # Ok(()) }
//! ```
//!
//! # The guide
//!
//! - [Quick start](guide::quick_start): publish, handle, stop.
//! - [Promises](guide::promises) and their conditions.
//! - [Retries and dead letters](guide::retries).
//! - [Ordering](guide::ordering).
//! - [Embedded](guide::embedded): broker and store in one SQLite file.
//! - [Peers](guide::peers): other libraries on the same broker.
//! - [Testing](guide::testing).
//!
//! The examples `01-hello` to `06-embedded` are a course.
//!
//! # The parts
//!
//! | to | see |
//! |---|---|
//! | make and publish events | [`Event`], [`Publisher`] |
//! | handle them | [`Handler`], [`Router`], [`extract`], [`EventService`] for layers |
//! | run a service | [`Consumer`], [`Serve`], [`serve_all`], [`Health`], [`telemetry`] |
//! | publish from a database transaction | `Outbox`, `Relay`, `OutboxTable` (feature `sqlite`) |
//! | say what to do about failures | [`Policy`], [`FaultExt`], [`Unknown`], every default in [`defaults`] |
//! | look at what is parked or dead, and mend it | [`store::Store`], [`store::Command`] |
//! | say what streams are to be like, and bring it about | `topology` (feature `nats`) |
//! | join services that use other libraries | [`compat`] |
//! | add a broker, a store or a format | [`broker::Broker`], [`store::Store`], [`format::Format`] |
//!
//! # Features
//!
//! | feature | brings |
//! |---|---|
//! | `sqlite` | a durable broker and store in one SQLite file, [`Tx`] and [`Outbox`] on it. Defaults to off |
//! | `postgres`, `mysql` | a durable store in a PostgreSQL, MySQL or MariaDB database, [`Tx`], the outbox and its relay. Defaults to off |
//! | `nats` | a broker on NATS JetStream, and topologies of its streams. Defaults to off |
//! | `proto` | Protobuf: `Proto`, `Event::from_proto`, and windshift's format. Defaults to off |
//! | `testing` | the test kit: `TestApp` for tests of your handlers, the suites for adapters. Defaults to off |

pub mod broker;
mod call;
mod clock;
pub mod compat;
pub mod engine;
mod error;
mod event;
pub mod extract;
pub mod format;
/// The guide, a page each.
pub mod guide {
    #[doc = include_str!("guide/quick-start.md")]
    pub mod quick_start {}

    #[doc = include_str!("guide/promises.md")]
    pub mod promises {}

    #[doc = include_str!("guide/retries.md")]
    pub mod retries {}

    #[doc = include_str!("guide/ordering.md")]
    pub mod ordering {}

    #[cfg(feature = "sqlite")]
    #[doc = include_str!("guide/embedded.md")]
    pub mod embedded {}

    #[cfg(any(feature = "postgres", feature = "mysql"))]
    #[doc = include_str!("guide/databases.md")]
    pub mod databases {}

    #[cfg(any(feature = "postgres", feature = "mysql"))]
    #[doc = include_str!("guide/moving.md")]
    pub mod moving {}

    #[doc = include_str!("guide/peers.md")]
    pub mod peers {}

    #[cfg(feature = "nats")]
    #[doc = include_str!("guide/nats.md")]
    pub mod nats {}

    #[doc = include_str!("guide/testing.md")]
    pub mod testing {}
}
mod handler;
mod headers;
mod layer;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql", feature = "nats"))]
mod lease;
mod message;
/// The broker on NATS JetStream (feature `nats`).
#[cfg(feature = "nats")]
pub mod nats {
    pub use crate::broker::nats::{
        Expected, ForeignStream, NatsBroker, NatsConnection, NatsConsumerStatus, NatsForeign, NatsOptions, NatsStatus,
        NatsTopicStatus,
    };
    pub use crate::topology::NatsTopic;
}
mod outcome;
mod pattern;
mod policy;
mod publish;
mod router;
/// The embedded broker and store in one SQLite file (feature `sqlite`).
#[cfg(feature = "sqlite")]
pub mod sqlite {
    pub use crate::broker::sqlite::{
        ChildRecord, Children, ConsumerStatus, FloorStatus, LogReader, Logged, Owner, PartitionStatus, Purged,
        Retention, SqliteBroker, SqliteStatus, StandIn,
    };
    pub use crate::store::sql::{ShardStatus, SqliteFile, SqliteOptions, SqliteStore, SqliteTx};
    /// The database of [`Tx`](crate::Tx).
    pub use sqlx::Sqlite;
}
/// What the SQL databases have in common (features `sqlite`, `postgres` and `mysql`).
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub mod sql {
    #[cfg(all(any(feature = "postgres", feature = "mysql"), any(test, feature = "testing")))]
    #[doc(hidden)]
    pub use crate::store::sql::Planted;
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub use crate::store::sql::{Forget, InboxStatus, Isolation, Server, ServerDatabase, ServerOptions, ServerTx};
    pub use crate::store::sql::{Home, Migrated, ShardStatus, SqlStore, TxDatabase};
}
/// The store, transactions and the outbox in a PostgreSQL database (feature `postgres`).
#[cfg(feature = "postgres")]
pub mod postgres {
    pub use crate::store::sql::{PgDatabase, PgOptions, PgStore};
    /// The database of a transaction.
    pub use sqlx::Postgres;
}
/// The store, transactions and the outbox in a MySQL or MariaDB database (feature `mysql`).
#[cfg(feature = "mysql")]
pub mod mysql {
    pub use crate::store::sql::{MySqlDatabase, MySqlOptions, MySqlStore};
    /// The database of a transaction.
    pub use sqlx::MySql;
}
pub mod store;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod topic;
#[cfg(feature = "nats")]
pub mod topology;

pub use broker::MemoryBroker;
pub use bytes::Bytes;
pub use call::{Attempt, Call, Extensions, Loan, Origin, Scope};
pub use clock::{Boot, Clock, Timestamp, TimestampError};
pub use engine::{Consumer, Health, Serve, ServeError, serve_all};
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub use engine::{Relay, RelayServe};
pub use error::{BoxError, BrokerError, Error, Fault, FaultExt, Result, StoreError, WiringError};
pub use event::Event;
#[cfg(feature = "proto")]
pub use extract::Proto;
pub use extract::{Deadline, Extension, FromCall, Json, State};
pub use handler::{Configured, Handler};
pub use headers::Headers;
pub use layer::{EventService, Next, NextFuture};
pub use message::Message;
pub use outcome::{BoxFuture, IntoOutcome, Outcome, Unit};
pub use policy::{Policy, defaults};
pub use publish::{PublishError, Publisher};
pub use router::{Router, Unknown};
pub use store::MemoryStore;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub use store::outbox::{OutboxStatus, OutboxTable, ParkedLine};
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub use store::sql::ReadTx;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub use store::sql::{Outbox, Tx, TxBatch};
pub use topic::{Epoch, Key, LaneId, Partition, Place, Position, Text, Topic, TopicError};

/// The README's hello world, as a test.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;
