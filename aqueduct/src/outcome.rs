//! How an attempt ended.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use crate::error::{BoxError, Error, Result};

/// A boxed future that can be sent between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How a handler, and every layer around it, says that its work on an event ended.
///
/// A done outcome may carry the transaction that the handler worked in. It is committed only when the outermost layer
/// has returned it; an outcome that is dropped, or replaced by another on its way out, rolls it back. So a layer that
/// turns an error into [`done`](Self::done) commits nothing.
#[must_use = "a dropped outcome rolls its transaction back"]
pub struct Outcome {
    result: Result<()>,
    unit: Option<Box<dyn Unit>>,
}

impl Outcome {
    /// The event is done with.
    pub fn done() -> Self {
        Self { result: Ok(()), unit: None }
    }

    /// The attempt failed.
    pub fn failed(error: impl Into<Error>) -> Self {
        Self { result: Err(error.into()), unit: None }
    }

    /// The event is done with once `unit` is committed.
    pub fn done_with(unit: Box<dyn Unit>) -> Self {
        Self { result: Ok(()), unit: Some(unit) }
    }

    /// True if nothing failed.
    pub fn is_done(&self) -> bool {
        self.result.is_ok()
    }

    /// What failed.
    pub fn error(&self) -> Option<&Error> {
        self.result.as_ref().err()
    }

    /// Commits what is to be committed and says how the attempt ended in the end.
    pub async fn commit(self) -> Result<()> {
        match (self.result, self.unit) {
            (Ok(()), Some(unit)) => unit.commit().await,
            (result, _) => result,
        }
    }

    /// How it ended, without a commit; a transaction that waits is rolled back.
    pub fn into_result(self) -> Result<()> {
        self.result
    }

    /// The same with another error, if it failed.
    pub(crate) fn map_err(self, map: impl FnOnce(Error) -> Error) -> Self {
        Self { result: self.result.map_err(map), unit: self.unit }
    }

    /// True if a transaction waits to be committed.
    pub fn has_unit(&self) -> bool {
        self.unit.is_some()
    }
}

impl fmt::Debug for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outcome").field("result", &self.result).field("unit", &self.unit.is_some()).finish()
    }
}

/// Work that takes effect as a whole or not at all, such as a database transaction. Dropping it rolls it back.
pub trait Unit: Send {
    /// Makes the work take effect.
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>>;

    /// Says of the error that its handler has returned what is known of it here, such as which database it comes from.
    /// Defaults to nothing.
    fn explain(&self, error: Error) -> Error {
        error
    }

    /// Rolls it back after its handler has returned, so that nothing is under way on it. Defaults to dropping it.
    fn roll_back(self: Box<Self>) {}
}

/// What a handler may return: `()`, or a `Result<(), E>` whose error converts into a [`BoxError`].
#[diagnostic::on_unimplemented(
    message = "a handler cannot return `{Self}`",
    label = "return `()` or `aqueduct::Result<()>`",
    note = "a handler returns `()` or `Result<(), E>`, where `E` converts into a boxed error (`anyhow::Error`, your own error type, `aqueduct::Error`)"
)]
pub trait IntoOutcome {
    /// The outcome.
    fn into_outcome(self) -> Outcome;
}

impl IntoOutcome for Outcome {
    fn into_outcome(self) -> Outcome {
        self
    }
}

impl IntoOutcome for () {
    fn into_outcome(self) -> Outcome {
        Outcome::done()
    }
}

impl<E: Into<BoxError>> IntoOutcome for std::result::Result<(), E> {
    fn into_outcome(self) -> Outcome {
        Outcome { result: self.map_err(|e| Error::boxed(e.into())), unit: None }
    }
}
