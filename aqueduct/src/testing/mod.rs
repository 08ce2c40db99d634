//! What tests need, of this library and of what is built on it. Feature `testing`.

pub mod format_suite;
