//! The program and a real NATS server: `cargo xtask test` starts one and says where it is in `AQUEDUCT_TEST_NATS`; for work by
//! hand `cargo xtask servers` does.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod consume;
mod kill;
mod look;
mod publish;
mod relay;
mod shore;
#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "the other tests need the rest of it")]
mod world;
