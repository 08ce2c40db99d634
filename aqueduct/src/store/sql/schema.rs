//! Which version the tables have.

/// What bringing tables to this version has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migrated {
    /// The version that they had; 0 if there were none.
    pub from: u32,
    /// The version that they have now.
    pub to: u32,
}
