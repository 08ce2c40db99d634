//! The test kit: what proves the library's promises, for users to prove theirs.

pub mod sim;
