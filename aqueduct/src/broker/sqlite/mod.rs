//! The embedded broker: a durable log in an SQLite file.

mod lock;

pub use lock::{ChildRecord, Children};
