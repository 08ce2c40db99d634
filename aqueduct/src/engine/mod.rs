//! The engine: takes deliveries in, orders them into lanes, runs handlers, settles.

#[cfg(any(test, feature = "testing"))]
pub mod gate;
