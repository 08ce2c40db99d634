//! The store, transactions, the outbox and the relay on real database servers.
//!
//! `cargo xtask test` starts the servers and says where they are in `AQUEDUCT_TEST_POSTGRES` and `AQUEDUCT_TEST_MARIADB`; for
//! work by hand `cargo xtask servers` does.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

mod fresh;
mod leases;
mod relay;
#[path = "../it/relay_cases.rs"]
mod relay_cases;
#[cfg(unix)]
mod relay_delay;
#[cfg(unix)]
mod relay_processes;
#[cfg(unix)]
mod relay_worker;
mod store;
#[path = "../it/store_model.rs"]
mod store_model;
mod tx;
