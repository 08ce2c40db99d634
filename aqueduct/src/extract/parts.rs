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
impl<S: Sync, T: FromCall<S>> FromCall<S> for Result<T, Error> {
    fn check(wiring: &Wiring<'_>) -> Result<(), WiringError> {
        T::check(wiring)
    }

    async fn from_call(call: &Call, state: &S) -> Result<Self, Rejection> {
        match T::from_call(call, state).await {
            Ok(value) => Ok(Ok(value)),
            Err(Rejection::Failed(error)) => Ok(Err(error)),
            Err(Rejection::Duplicate) => Err(Rejection::Duplicate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Origin;
    use crate::error::Fault;
    use crate::extract::{Extension, Json, State};
    use crate::topic::{Partition, Place, Topic};

    fn call(event: Event) -> Call {
        let partition = Partition { topic: Topic::from("orders"), index: 0 };
        let origin = Origin::new("shop", partition, Epoch(4), crate::broker::Lease::forever());
        Call::new(Arc::new(event), Arc::new(origin), Place::at(1), Attempt::stored(3, true))
    }

    async fn take<E: FromCall<()>>(call: &Call) -> Result<E, Error> {
        match E::from_call(call, &()).await {
            Ok(value) => Ok(value),
            Err(Rejection::Failed(error)) => Err(error),
            Err(Rejection::Duplicate) => unreachable!("no store is involved"),
        }
    }

    #[tokio::test]
    async fn every_part_of_a_call_can_be_taken() {
        let event = Event::raw("order.placed", "[7]").id("1").key("k").header("h", "v");
        let call = call(event.clone());
        assert_eq!(take::<Bytes>(&call).await.unwrap(), "[7]");
        assert_eq!(take::<Event>(&call).await.unwrap(), event);
        assert!(Arc::ptr_eq(&take::<Arc<Event>>(&call).await.unwrap(), call.event_arc()));
        assert_eq!(take::<Headers>(&call).await.unwrap().text("h"), Some("v"));
        assert_eq!(take::<Key>(&call).await.unwrap().as_str(), "k");
        assert_eq!(take::<Option<Key>>(&call).await.unwrap(), Key::new("k"));
        assert_eq!(take::<Attempt>(&call).await.unwrap(), Attempt::stored(3, true));
        assert_eq!(take::<Epoch>(&call).await.unwrap(), Epoch(4));
        assert_eq!(take::<Json<[u8; 1]>>(&call).await.unwrap(), Json([7]));
    }

    #[tokio::test]
    async fn what_an_event_cannot_give_is_a_permanent_failure_that_names_it() {
        let call = call(Event::raw("order.placed", "{\n  oops").id("o-1"));
        let error = take::<Json<u32>>(&call).await.unwrap_err();
        assert_eq!(error.fault(), Some(Fault::Permanent));
        let text = error.to_string();
        assert!(text.contains("\"order.placed\"") && text.contains("\"o-1\"") && text.contains("line"), "{text}");

        let error = take::<Key>(&call).await.unwrap_err();
        assert_eq!(error.fault(), Some(Fault::Permanent));
        assert!(error.to_string().contains("\"o-1\" has no key"), "{error}");
        assert_eq!(take::<Option<Key>>(&call).await.unwrap(), None);
        assert!(take::<Result<Json<u32>, Error>>(&call).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn an_extension_is_what_a_layer_has_left() {
        let mut call = call(Event::raw("t", ""));
        let error = take::<Extension<u8>>(&call).await.unwrap_err();
        assert!(error.to_string().contains("`u8`") && error.fault().is_none(), "{error}");
        assert_eq!(take::<Option<Extension<u8>>>(&call).await.unwrap(), None);
        call.extensions_mut().insert(9_u8);
        assert_eq!(take::<Extension<u8>>(&call).await.unwrap(), Extension(9));
        assert_eq!(take::<Option<Extension<u8>>>(&call).await.unwrap(), Some(Extension(9)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_says_what_is_left() {
        let none = take::<Deadline>(&call(Event::raw("t", ""))).await.unwrap();
        assert_eq!(none.remaining(), None);
        let call = call(Event::raw("t", "")).with_deadline(Instant::now() + Duration::from_secs(3));
        let deadline = take::<Deadline>(&call).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(deadline.remaining(), Some(Duration::from_secs(2)));
        tokio::time::advance(Duration::from_secs(5)).await;
        assert_eq!(deadline.remaining(), Some(Duration::ZERO));
    }

    #[tokio::test]
    async fn a_state_gives_itself_and_what_it_shares() {
        let call = call(Event::raw("t", ""));
        assert!(matches!(State::<u8>::from_call(&call, &7_u8).await, Ok(State(7))));
        assert!(matches!(State::<u8>::from_call(&call, &Arc::new(7_u8)).await, Ok(State(7))));
    }
}
