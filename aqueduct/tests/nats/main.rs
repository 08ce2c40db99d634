//! The broker on a real NATS server with JetStream.
//!
//! `cargo xtask test` starts the shared server and says where it is in `AQUEDUCT_TEST_NATS`; for work by hand
//! `cargo xtask servers` does.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

mod consume;
mod declare;
mod faults;
mod fresh;
mod jwt;
mod login;
mod permissions;
mod publish;
mod tls;
mod topology;
