//! The broker on a real NATS server with JetStream.
//!
//! `cargo xtask test` starts the shared server and says where it is in `AQUEDUCT_TEST_NATS`; for work by hand
//! `cargo xtask servers` does.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

#[cfg(unix)]
mod chaos;
mod consume;
mod declare;
mod faults;
#[cfg(unix)]
mod fleet;
mod foreign;
mod fresh;
#[cfg(unix)]
#[path = "../sqlite/history.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod history;
#[cfg(unix)]
mod judge;
mod jwt;
mod login;
mod peers;
mod permissions;
#[cfg(unix)]
#[path = "../sqlite/process.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod process;
mod promises;
#[cfg(unix)]
mod proxy;
mod publish;
#[cfg(target_os = "linux")]
#[path = "../sqlite/small_disk.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod small_disk;
mod tls;
mod topology;
#[cfg(unix)]
mod worker;
