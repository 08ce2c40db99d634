//! Integration tests: one binary, a file a promise.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

mod compile;
mod engine;
mod faults;
mod format;
mod health;
mod letters;
mod memory;
mod memory_broker_model;
mod mistakes;
mod operators;
mod refuted;
mod store_model;
mod telemetry;
mod test_app;
