//! An event in a lane.

use crate::router::{RouteId, Unknown};
use crate::store::{Content, Failure};
use crate::topic::{Place, Text};

/// An event in a lane, with what was tried on it.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) place: Place,
    pub(crate) content: Content,
    pub(crate) target: Target,
    /// Attempts made so far.
    pub(crate) attempts: u32,
    /// The row it is in the store; none while only the broker has it.
    pub(crate) stored: Option<Stored>,
    /// Attempts that failed since it came into memory, oldest first.
    pub(crate) failures: Vec<Failure>,
}

/// A row that is worked on in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) version: u32,
    pub(crate) replay: bool,
}

/// Where an event is going.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// To a handler.
    Route(RouteId),
    /// Nowhere: its type has no route, and this is to become of it.
    Unknown(Unknown),
    /// Nowhere: no format could read it.
    Undecodable(Text),
}

impl Target {
    /// The route, if there is one.
    pub(crate) fn route(&self) -> Option<RouteId> {
        if let Self::Route(id) = self { Some(*id) } else { None }
    }
}

#[cfg(any(test, feature = "testing"))]
impl Item {
    /// An event from the broker that goes nowhere.
    pub(crate) fn fresh(place: Place, content: Content) -> Self {
        Self {
            place,
            content,
            target: Target::Unknown(Unknown::Ignore),
            attempts: 0,
            stored: None,
            failures: Vec::new(),
        }
    }
}
