//! Tables of other systems, so that a service can be moved over table by table: their outboxes are relayed, their inbox and
//! their tables of failures are kept (features `postgres` and `mysql`).
//!
//! Each system is a file that says what its tables look like; what is done with them is written once beside it.

pub mod jetstream_bridge;
mod json;
mod marks;
mod outbox;
pub mod tupic;
mod words;
