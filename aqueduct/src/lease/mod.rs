//! The port to a table of leases: who owns the parts of a group's work.
//!
//! A group is what shares work without a broker that hands it out: the instances of a relay or of a consumer. Each has a
//! session, which beats in the table, and each part of the work has a record with its epoch and its owner's session. The
//! table is told no times and tells none: a watcher measures another's silence on its own clock, an owner its lease.
//!
//! [`Keeper`] is the task that beats for an instance and tells its user what it owns; `group` decides what to do about a
//! view of the table, and `shares` who is to own what. An adapter only keeps rows.

use std::collections::BTreeMap;

use tokio::sync::watch;

use crate::error::BoxError;
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Position, Text};

mod group;
mod keeper;
mod shares;
#[cfg(test)]
mod tests;

pub(crate) use keeper::{Held, Keeper, LastWords};

/// A table of sessions and records.
///
/// Each call is atomic. One that was given up may still take place later, and in any order with those after it: what is
/// asked for is made so that this does no harm.
pub(crate) trait LeaseTable: Send + Sync + 'static {
    /// Counts a beat of the session, if it is there and its number is lower, and answers the group as it is then. A view
    /// without the session, or with another number of it, says that it was struck off.
    fn beat<'a>(&'a self, member: &'a Member, beat: Beat) -> BoxFuture<'a, Result<View, LeaseError>>;

    /// Makes parts the session's, each under an epoch above its record's, and each only if its record still has the epoch
    /// that the session has seen. A view tells which of them were taken.
    fn take<'a>(&'a self, member: &'a Member, takes: &'a [Take]) -> BoxFuture<'a, Result<(), LeaseError>>;

    /// Makes a part nobody's if it is the session's under this epoch. The epoch stays; a floor is written down for the next
    /// owner.
    fn let_go<'a>(
        &'a self,
        member: &'a Member,
        part: &'a Text,
        epoch: Epoch,
        floor: Option<Position>,
    ) -> BoxFuture<'a, Result<(), LeaseError>>;

    /// Strikes off a session if this still is its beat: it is gone, and its parts are nobody's.
    fn strike<'a>(&'a self, group: &'a Text, session: &'a Text, beat: u64) -> BoxFuture<'a, Result<(), LeaseError>>;

    /// Ends the session: it is gone, and its parts are nobody's.
    fn leave<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, Result<(), LeaseError>>;

    /// Changes when a part may have become nobody's, as far as the table is told. Defaults to none: then it is seen by the
    /// next beat.
    fn changes(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}

/// An instance in a group.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) group: Text,
    /// Never used again once it was struck off or has left.
    pub(crate) session: Text,
    /// Says to people who this is.
    pub(crate) info: Text,
}

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    /// Higher with every sending, even if the one before has failed: watchers must see each that its sender counts on.
    pub(crate) number: u64,
    /// Begins the session unless it is there.
    pub(crate) joins: bool,
}

/// The taking of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Take {
    pub(crate) part: Text,
    /// The epoch of its record; none if it has no record.
    pub(crate) from: Option<Epoch>,
    pub(crate) to: Epoch,
}

/// A group at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The sessions and their last beats.
    pub(crate) sessions: BTreeMap<Text, u64>,
    /// The records of the parts that were ever taken.
    pub(crate) records: BTreeMap<Text, Record>,
}

/// The record of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) epoch: Epoch,
    /// Whose it is. One that is no session of the group is nobody.
    pub(crate) session: Option<Text>,
    /// What the last owner that drained has written down.
    pub(crate) floor: Option<Position>,
}

/// What a table answers when it does not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LeaseError {
    /// It cannot be reached or did not answer; the same call may succeed later.
    #[error("the table of leases is unavailable: {0}")]
    Unavailable(#[source] BoxError),
    /// It refuses the call, and will do so again until somebody mends it.
    #[error("the table of leases refused: {0}")]
    Refused(String),
}
