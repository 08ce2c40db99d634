//! Placeholder.
/// Placeholder.
#[derive(Debug)]
pub struct PlainJson;
