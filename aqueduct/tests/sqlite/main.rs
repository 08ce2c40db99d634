//! The embedded broker and store on real files.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what fails here is a failed test")]

mod broker;
mod tx;
