//! What tests need, of this library and of what is built on it. Feature `testing`.
//!
//! A suite is told by the adapter's abilities what to expect. It runs its cases one after the other, each on what a
//! factory made for it, and fails by panicking, as tests do.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, reason = "a suite fails by panicking")]

mod app;
pub mod bench;
pub mod broker_suite;
pub mod format_suite;
pub mod store_suite;

pub use app::{Fate, Handled, TestApp, TestAppBuilder};

/// Names each case after its function.
macro_rules! cases {
    ($($case:ident),* $(,)?) => { &[$((stringify!($case), |ground| Box::pin($case(ground)))),*] };
}
use cases;
