//! The engine: takes deliveries in, orders them into lanes, runs handlers, settles.
//!
//! In the order of flow: `serve` puts an instance together, `core` is its loop, `intake` brings deliveries to their
//! `lanes`, the `scheduler` picks one, `attempt` runs its handler, `settle` decides what becomes of it and `conclude` does
//! it; `writer` and `due` take rows to the store and back, `stop` ends it all.

mod attempt;
mod conclude;
mod core;
mod due;
mod extend;
#[cfg(any(test, feature = "testing"))]
pub mod gate;
mod health;
mod intake;
mod item;
mod lanes;
mod ledger;
mod letters;
mod mailbox;
mod owned;
pub(crate) mod planted;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
mod relay;
mod report;
mod runs;
mod scheduler;
mod serve;
mod settle;
mod stop;
mod stores;
mod tasks;
mod writer;

pub use health::Health;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
pub use relay::{Relay, RelayServe};
pub use serve::{Consumer, Serve, ServeError, serve_all};

/// What the benchmarks measure by itself.
#[cfg(any(test, feature = "testing"))]
pub(crate) mod bench_parts {
    pub(crate) use super::item::Item;
    pub(crate) use super::lanes::{Head, LaneKey, Lanes};
    pub(crate) use super::scheduler::Scheduler;
}
