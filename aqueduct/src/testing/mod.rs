//! The test kit: what proves the library's promises, for users to prove theirs. Feature `testing`.
//!
//! The [simulator](sim) runs the real engine under faults from a seed. The suites are what every adapter of a port must
//! pass: told by its abilities what to expect, each case runs on what a factory made for it, and fails by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, reason = "a suite fails by panicking")]

mod app;
pub mod bench;
pub mod broker_suite;
pub mod format_suite;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql", feature = "nats"))]
pub mod lease_suite;
pub mod sim;
pub mod store_suite;

pub use app::{Fate, Handled, TestApp, TestAppBuilder};

/// Names each case after its function.
macro_rules! cases {
    ($($case:ident),* $(,)?) => { &[$((stringify!($case), |ground| Box::pin($case(ground)))),*] };
}
use cases;
