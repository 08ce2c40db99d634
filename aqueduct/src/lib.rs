//! Reliable events for Rust services.

pub mod broker;
mod call;
mod clock;
pub mod engine;
mod error;
mod event;
pub mod extract;
pub mod format;
mod headers;
mod message;
mod outcome;
mod policy;
pub mod store;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod topic;

pub use call::{Attempt, Call, Extensions, Loan, Origin, Scope};
pub use clock::{Boot, Clock, Timestamp, TimestampError};
pub use error::{BoxError, BrokerError, Error, Fault, FaultExt, Result, StoreError, WiringError};
pub use event::Event;
pub use headers::Headers;
pub use message::Message;
pub use outcome::{BoxFuture, IntoOutcome, Outcome, Unit};
pub use policy::{Policy, defaults};
pub use topic::{Epoch, Key, LaneId, Partition, Place, Position, Text, Topic, TopicError};
