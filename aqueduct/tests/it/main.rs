//! The promises, a file each.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

#[cfg(feature = "testing")]
mod memory;
#[cfg(feature = "testing")]
mod memory_broker_model;
#[cfg(feature = "testing")]
mod memory_store_model;
