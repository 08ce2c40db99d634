//! The embedded broker and store on real files.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

mod broker;
mod damage;
mod disk;
mod log_damage;
mod store;
#[path = "../it/store_model.rs"]
mod store_model;
mod tx;
