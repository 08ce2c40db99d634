//! Integration tests: one binary, a file a promise.

mod compile;
mod engine;
mod format;
mod memory;
