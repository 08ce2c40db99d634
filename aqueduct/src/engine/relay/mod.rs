//! The relay: publishes what applications have written to an outbox table.
//!
//! In the order of flow: `serve` puts an instance together, `core` is its loop and decides by its `pace` which shards a
//! `round` works on; a round reads, sends the `lines` of its rows in waves, and settles. What is `parked` comes again with a
//! round when it is due. `duties` run beside it.

mod backoff;
mod core;
mod duties;
mod lines;
mod pace;
mod parked;
mod round;
mod serve;
#[cfg(test)]
mod tests;

pub use serve::{Relay, RelayServe};
