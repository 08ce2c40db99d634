//! The embedded broker and store on real files.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

mod broker;
#[cfg(unix)]
mod checker;
mod damage;
mod disk;
#[cfg(unix)]
mod history;
mod leases;
mod log_damage;
mod operators;
#[cfg(unix)]
mod points;
#[cfg(unix)]
mod process;
#[cfg(unix)]
mod processes;
mod relay;
#[path = "../it/relay_cases.rs"]
mod relay_cases;
mod shared;
#[cfg(target_os = "linux")]
mod small_disk;
mod store;
#[path = "../it/store_model.rs"]
mod store_model;
mod tx;
#[cfg(unix)]
mod worker;
