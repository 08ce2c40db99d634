//! placeholder
mod bounds;
mod checker;
#[cfg(test)]
mod checker_tests;
mod exclusion;
mod history;
mod order;

pub use checker::{Invariant, Violation};
