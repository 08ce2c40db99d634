//! The parts of a call: the event, pieces of it, and what is known about the attempt.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{FromCall, Rejection, Wiring};
use crate::call::{Attempt, Call};
use crate::error::{Error, WiringError};
use crate::event::Event;
use crate::headers::Headers;
use crate::topic::{Epoch, Key};

macro_rules! part {
    ($(#[$doc:meta])* $part:ty, $call:ident => $value:expr) => {
        $(#[$doc])*
        impl<S: Sync> FromCall<S> for $part {
            async fn from_call($call: &Call, _: &S) -> Result<Self, Rejection> {
                Ok($value)
            }
        }
    };
}

part!(
    /// The event's data as it is.
    Bytes, call => call.event().data.clone()
);
part!(
    /// The whole event. Its texts and data are shared; only the list of its headers is copied.
    Event, call => call.event().clone()
);
part!(
    /// The whole event, shared.
    Arc<Event>, call => Arc::clone(call.event_arc())
);
part!(
    /// The event's headers.
    Headers, call => call.event().headers.clone()
);
part!(
    /// The event's key, if it has one.
    Option<Key>, call => call.event().key.clone()
);
part!(
    /// Which attempt this is.
    Attempt, call => call.attempt()
);
part!(
    /// When the attempt is given up.
    Deadline, call => Deadline(call.deadline())
);
part!(
    /// The epoch under which this instance owns the event's partition: a fencing token for what you write elsewhere.
    Epoch, call => call.origin().epoch
);

/// The event's key. An event without one is a permanent failure; ask for `Option<Key>` where it may be missing.
impl<S: Sync> FromCall<S> for Key {
    async fn from_call(call: &Call, _: &S) -> Result<Self, Rejection> {
        let event = call.event();
        event.key.clone().ok_or_else(|| {
            let text = format!("{:?} event {:?} has no key and the handler needs one", event.kind, event.id);
            Rejection::Failed(Error::msg(text).permanent())
        })
    }
}

/// When the engine gives the attempt up, if ever. A layer's own timeout does not show here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(pub Option<Instant>);

impl Deadline {
    /// The time that is left, zero if it has passed; none if there is no deadline.
    pub fn remaining(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }
}

/// The value of an extractor or why there is none, for the handler to decide. A duplicate still ends the call, and a
/// mistake in wiring is still one.
impl<S: Sync, E: FromCall<S>> FromCall<S> for Result<E, Error> {
    fn check(wiring: &Wiring<'_>) -> Result<(), WiringError> {
        E::check(wiring)
    }

    async fn from_call(call: &Call, state: &S) -> Result<Self, Rejection> {
        match E::from_call(call, state).await {
            Ok(value) => Ok(Ok(value)),
            Err(Rejection::Failed(error)) => Ok(Err(error)),
            Err(Rejection::Duplicate) => Err(Rejection::Duplicate),
        }
    }
}
