//! The store, transactions, the outbox and the relay on real database servers.
//!
//! `cargo xtask test` starts the servers and says where they are in `AQUEDUCT_TEST_POSTGRES` and `AQUEDUCT_TEST_MARIADB`; for
//! work by hand `cargo xtask servers` does.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

#[cfg(unix)]
mod bank;
mod batch;
mod compat;
mod failover;
mod faults;
mod fresh;
mod full;
#[cfg(unix)]
#[path = "../sqlite/history.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod history;
mod inbox;
mod jetstream;
#[cfg(unix)]
mod kills;
mod leases;
mod logs;
mod migrate;
#[cfg(unix)]
#[path = "../sqlite/points.rs"]
mod points;
mod pooler;
#[cfg(unix)]
#[path = "../sqlite/process.rs"]
#[allow(dead_code, reason = "other tests use the rest of it")]
mod process;
mod proxy;
mod reads;
mod relay;
#[path = "../it/relay_cases.rs"]
mod relay_cases;
#[cfg(unix)]
mod relay_delay;
#[cfg(unix)]
mod relay_processes;
#[cfg(unix)]
mod relay_worker;
mod service;
#[cfg(unix)]
mod stopped;
#[cfg(unix)]
mod stopped_worker;
mod store;
#[path = "../it/store_model.rs"]
mod store_model;
mod tx;
#[cfg(unix)]
mod worker;
