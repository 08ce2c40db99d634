//! Integration tests: one binary, a file a promise.

mod compile;
mod format;
mod memory;
