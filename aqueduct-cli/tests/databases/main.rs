//! The program and real database servers: `cargo xtask test` starts them and says where they are in `AQUEDUCT_TEST_POSTGRES` and
//! `AQUEDUCT_TEST_MARIADB`; for work by hand `cargo xtask servers` does.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod fresh;
mod outbox;
mod rows;
mod tables;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "the other tests need the rest of it")]
mod world;
mod wrong;
