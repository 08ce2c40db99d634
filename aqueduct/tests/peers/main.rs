//! Peers on NATS: what the real libraries of other systems have written is read, and what is written is what they write. Needs no
//! server: the records in `tests/vectors` were taken from running ones.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

mod arbitrary;
mod bridge;
mod bridge_captured;
mod captured;
mod tupic;
mod tupic_captured;
mod windshift;
mod windshift_captured;
