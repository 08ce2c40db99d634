//! The promises, a file each.

#[cfg(feature = "testing")]
mod memory;
#[cfg(feature = "testing")]
mod memory_broker_model;
#[cfg(feature = "testing")]
mod memory_store_model;
