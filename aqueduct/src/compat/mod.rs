//! Other systems: what they write is read, what they read is written, and their tables are kept, so that a service can join
//! their fleet or take it over one piece at a time.
//!
//! # On NATS
//!
//! Each system is a [`Format`](crate::format::Format), given to a [`Publisher`](crate::Publisher) and a
//! [`Consumer`](crate::Consumer), and the names that its services use on the broker. None of it needs a server.
//!
//! | system | format | names |
//! |---|---|---|
//! | the gem `jetstream_bridge` | [`jetstream_bridge::Envelope`] | [`jetstream_bridge::Names`] |
//! | tupic's Go modules | [`tupic::Envelope`] | [`tupic::task_subject`], [`tupic::durables`] |
//! | windshift (feature `proto`) | `windshift::Protobuf` | `windshift::check_subject`, `windshift::check_pattern` |
//!
//! What a peer knows of an event is less than what Aqueduct knows: each format has a table of what travels, and how. What the
//! peer has beside an event's fields is a header whose name begins with `ce-`, so it survives a way through CloudEvents too.
//!
//! The message's `dedup_id` stands for the header `Nats-Msg-Id`, in exactly this case, by which the server knows repeats. A
//! format that leaves it empty wants no such header: there are consumers that lose events by it.
//!
//! # In databases
//!
//! With the features `postgres` and `mysql` the outboxes of a Rails or Go service are relayed, and their inbox and tables
//! of failures are kept. Each system says what its tables look like; what is done with them is written once beside it.

mod header;
pub mod jetstream_bridge;
mod json;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod marks;
mod name;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod outbox;
pub mod tupic;
#[cfg(feature = "proto")]
pub mod windshift;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod words;

pub use name::NameError;
