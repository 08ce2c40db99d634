//! Tests of what lives in an SQLite file: one binary, a file a part.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

mod damage;
mod store;
#[path = "../it/store_model.rs"]
mod store_model;
