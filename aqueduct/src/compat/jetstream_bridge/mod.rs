//! The Ruby gem `jetstream_bridge`: its envelope, its names on the broker, its dead letters, its presets and its tables.
//!
//! A service joins a fleet with [`Envelope`] as the format and the subjects of [`Names`]:
//!
//! ```
//! use aqueduct::compat::jetstream_bridge::{Envelope, Names};
//! use aqueduct::{Event, MemoryBroker, Publisher};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> aqueduct::Result<()> {
//! let names = Names::new("orders", "warehouse")?;
//! let broker = MemoryBroker::new();
//! let orders = Publisher::new("orders", broker).format(Envelope::new()).route("order.>", names.publish);
//! orders.publish(Event::new("order.placed", &["sku-1"])?.key("order/7")).await?;
//! # Ok(()) }
//! ```

mod dead_letter;
mod format;
mod names;
mod preset;
#[cfg(any(feature = "postgres", feature = "mysql"))]
mod tables;

pub use dead_letter::{DeadLetter, Reason};
pub use format::Envelope;
pub use names::{Generation, Names};
pub use preset::Preset;
#[cfg(any(feature = "postgres", feature = "mysql"))]
pub use tables::{Inbox, Outbox};
