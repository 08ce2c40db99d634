//! What `aqueduct consume` does with an event: print it, or hand it to a program or an address.

mod envelope;
pub(crate) mod exec;
mod http;
mod print;
pub(crate) mod results;
mod stream;

use std::sync::Arc;
use std::time::Duration;

use aqueduct::extract::{FromCall, Rejection};
use aqueduct::sqlite::Children;
use aqueduct::{Attempt, BoxFuture, Call, Event, Origin, Place, Result};

use crate::broker::AnyBroker;

pub(crate) use exec::Exec;
pub(crate) use http::Http;
pub(crate) use print::Print;
pub(crate) use results::Results;
pub(crate) use stream::{Shared, Stream};

/// An event in the hands of a handler: one attempt.
#[derive(Clone)]
pub(crate) struct Delivery {
    pub(crate) event: Arc<Event>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) place: Place,
    pub(crate) attempt: Attempt,
}

impl<S: Sync> FromCall<S> for Delivery {
    async fn from_call(call: &Call, _: &S) -> Result<Self, Rejection> {
        let (event, origin) = (Arc::clone(call.event_arc()), Arc::clone(call.origin()));
        Ok(Self { event, origin, place: call.place(), attempt: call.attempt() })
    }
}

/// Handles events, and answers with events to publish.
pub(crate) trait Handle: Send + Sync {
    fn handle(&self, delivery: Delivery) -> BoxFuture<'_, Result<Vec<Event>>>;

    /// Ends what still runs, after the last event.
    fn end(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

/// How long handlers may take.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) timeout: Duration,
    /// Between TERM and KILL.
    pub(crate) kill_after: Duration,
}

impl Limits {
    /// After this an attempt has ended by itself: the engine's own limit, which ends it less gently, lies behind it.
    pub(crate) fn engine(self) -> Duration {
        self.timeout.saturating_add(self.kill_after).saturating_add(Duration::from_secs(5))
    }
}

/// Where the programs of this group are recorded, so that a restart after a crash knows them.
#[derive(Clone)]
pub(crate) struct Records {
    pub(crate) broker: AnyBroker,
    pub(crate) group: String,
}

impl Records {
    pub(crate) fn children(&self) -> Option<Children> {
        self.broker.children(&self.group)
    }
}
