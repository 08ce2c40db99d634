//! tupic's Go modules: their envelope, their subjects and durable consumers, their tasks and their tables.
//!
//! The stream is made by somebody else; a subject must be in one before a service with the modules starts.
//!
//! ```
//! use aqueduct::compat::tupic::{self, Envelope};
//! use aqueduct::{Event, MemoryBroker, Publisher};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> aqueduct::Result<()> {
//! let validate = tupic::task_subject("acme", "high", "validate-asset")?;
//! assert_eq!(validate.as_str(), "acme.queues.high.validate-asset");
//! let broker = MemoryBroker::new();
//! let assets = Publisher::new("assets", broker).format(Envelope::new("acme"));
//! assets.publish(Event::new("queues.high.validate-asset", &["a-1"])?.topic(validate)).await?;
//! # Ok(()) }
//! ```

mod format;
mod names;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod tables;
mod tasks;

pub use format::Envelope;
pub use names::{durable, durables, event_subject, task_subject};
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub use tables::{FailedTasks, Outbox};
pub use tasks::{TASK_DELAYS, task_delay, task_policy};
