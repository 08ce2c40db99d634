//! Names that a peer would refuse.

use crate::topic::Text;

/// A name that a peer would refuse, or take for another: what is wrong with it, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} {name:?} cannot be used: {problem}")]
pub struct NameError {
    what: &'static str,
    name: Text,
    problem: Text,
}

impl NameError {
    pub(super) fn new(what: &'static str, name: &str, problem: impl Into<Text>) -> Self {
        Self { what, name: name.into(), problem: problem.into() }
    }

    /// What is wrong, without the name.
    #[cfg(feature = "proto")]
    pub(super) fn problem(&self) -> Text {
        self.problem.clone()
    }
}
