//! What the errors of a server's database mean, and what is said of them.

use super::Server;
use super::pool::PATIENCE;
use crate::error::{Error, StoreError};

/// What an error of a database means, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The transaction was given up for another's sake: the same again can succeed.
    GivenUp(&'static str),
    /// The connection is of no use any more.
    Gone(&'static str),
    /// There is no such table.
    Missing,
    /// What was to be inserted is there.
    Duplicate,
    /// A statement of the transaction failed before, and nothing more can be done in it. `PostgreSQL` alone does that.
    Aborted,
    /// It passes by itself, or when somebody does this.
    Passes(&'static str),
    /// The same will fail again, until somebody does this.
    Stays(&'static str),
}

const CLOSED: &str = "the database cannot be reached, or has closed the connection";

/// The connection is of no use any more.
pub(super) fn broken<DB: Server>(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        _ => matches!(meaning::<DB>(error), Some(Meaning::Gone(_))),
    }
}

pub(super) fn meaning<DB: Server>(error: &sqlx::Error) -> Option<Meaning> {
    match error {
        sqlx::Error::Database(error) => DB::meaning(&**error),
        _ => None,
    }
}

/// Says what is wrong and what to do about it. What can pass by itself is unavailable; what cannot is refused.
pub(super) fn explain<DB: Server>(address: &str, error: &sqlx::Error) -> StoreError {
    let unavailable = |text: String| StoreError::Unavailable(text.into());
    match (meaning::<DB>(error), error) {
        (Some(Meaning::GivenUp(what) | Meaning::Gone(what) | Meaning::Passes(what)), _) => {
            unavailable(format!("{address}: {what} ({error})"))
        }
        (Some(Meaning::Missing), _) => unavailable(format!(
            "{address}: a table of Aqueduct is missing, was it dropped? Run `aqueduct migrate` ({error})"
        )),
        (Some(Meaning::Stays(what)), _) => StoreError::Refused(format!("{address}: {what} ({error})")),
        (None, sqlx::Error::PoolTimedOut) => unavailable(format!(
            "{address}: no connection was free, or could be had, for {PATIENCE:?}: is the database up, and does it allow enough connections?"
        )),
        (None, sqlx::Error::Io(_)) => unavailable(format!("{address}: {CLOSED} ({error})")),
        (None, sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::RowNotFound) => {
            StoreError::Refused(format!("{address}: what is stored is not what was written ({error})"))
        }
        _ => unavailable(format!("{address}: {error}")),
    }
}

/// A handler's own error, with where its database is and what it means, if that is known.
pub(super) fn explain_handlers<DB: Server>(address: &str, error: Error) -> Error {
    let Some(known) = error.downcast_ref::<sqlx::Error>() else { return error };
    let what = match (meaning::<DB>(known), known) {
        (Some(Meaning::GivenUp(what) | Meaning::Gone(what) | Meaning::Passes(what)), _) => what,
        (None, sqlx::Error::Io(_)) => CLOSED,
        _ => return error,
    };
    let text = format!("{address}: {what} ({error})");
    error.explained(text)
}
