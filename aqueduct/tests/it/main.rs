//! Integration tests: one binary, a file a promise.

mod format;
mod memory;
