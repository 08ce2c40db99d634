//! Placeholder.
/// Placeholder.
#[derive(Debug)]
pub struct CloudEvents;
