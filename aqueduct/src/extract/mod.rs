//! Extractors: what a handler may ask for as its arguments.

use std::any::Any;
use std::future::Future;

use crate::broker::Abilities;
use crate::call::Call;
use crate::error::{Error, WiringError};
use crate::store::Store;

mod json;
mod parts;
#[cfg(feature = "proto")]
mod proto;
mod state;

pub use json::Json;
pub use parts::Deadline;
#[cfg(feature = "proto")]
pub use proto::Proto;
pub use state::{Extension, FromState, State};

/// A value that a handler can have as an argument.
///
/// `S` is the state given to [`Router::with_state`](crate::Router::with_state). Implement it for your own types by
/// calling other extractors.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an argument of a handler",
    label = "this is not an extractor",
    note = "arguments of a handler are extractors: `Json<T>` (T: DeserializeOwned), `Bytes`, `Event`, `Key`, `Headers`, `State<T>`, `Attempt`, `Deadline`, `Epoch`, or your own type that implements `FromCall<S>` for the router's state `S`"
)]
pub trait FromCall<S>: Sized + Send {
    /// Says what this extractor lacks in a service, at start, before the first event is fetched. Defaults to nothing.
    fn check(wiring: &Wiring<'_>) -> Result<(), WiringError> {
        let _ = wiring;
        Ok(())
    }

    /// Takes the value from a call.
    fn from_call(call: &Call, state: &S) -> impl Future<Output = Result<Self, Rejection>> + Send;
}

/// What a service is made of, for extractors to check.
#[non_exhaustive]
pub struct Wiring<'a> {
    /// The store.
    pub store: &'a dyn Store,
    /// What the broker can do.
    pub broker: Abilities,
    /// The state of the route.
    pub state: &'a dyn Any,
}

impl<'a> Wiring<'a> {
    /// The parts of a service.
    pub fn new(store: &'a dyn Store, broker: Abilities, state: &'a dyn Any) -> Self {
        Self { store, broker, state }
    }
}

/// Why an extractor gives no value.
#[derive(Debug)]
#[non_exhaustive]
pub enum Rejection {
    /// The event has taken effect before: the call is done without running the handler.
    Duplicate,
    /// It failed; the error says whether trying again can help.
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Rejection {
    fn from(e: E) -> Self {
        Self::Failed(e.into())
    }
}
