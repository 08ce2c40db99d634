//! Placeholder.
/// Placeholder.
#[derive(Debug)]
pub struct MemoryBroker;
