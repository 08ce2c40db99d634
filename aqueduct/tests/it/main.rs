//! The promises, a file each.

#[cfg(feature = "testing")]
mod memory;
