//! Reliable events for Rust services.

pub mod broker;
mod call;
mod clock;
pub mod engine;
mod error;
mod event;
pub mod extract;
pub mod format;
mod handler;
mod headers;
mod layer;
mod message;
mod outcome;
mod pattern;
mod policy;
mod publish;
mod router;
pub mod store;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod topic;

pub use broker::MemoryBroker;
pub use bytes::Bytes;
pub use call::{Attempt, Call, Extensions, Loan, Origin, Scope};
pub use clock::{Boot, Clock, Timestamp, TimestampError};
pub use engine::{Consumer, Health, Serve, ServeError, serve_all};
pub use error::{BoxError, BrokerError, Error, Fault, FaultExt, Result, StoreError, WiringError};
pub use event::Event;
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
pub use topic::{Epoch, Key, LaneId, Partition, Place, Position, Text, Topic, TopicError};
