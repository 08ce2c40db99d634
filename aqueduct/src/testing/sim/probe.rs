//! Watches handlers from outside: when they are polled, how they end, when they are dropped.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_layer::Layer;
use tower_service::Service;

use super::history::{EventNo, Run, What};
use super::life::Life;
use crate::call::{Call, Origin};
use crate::layer::{Next, NextFuture};
use crate::outcome::Outcome;
use crate::topic::Text;

/// The numbers of events by source and id.
pub(crate) type Numbers = Arc<BTreeMap<(Text, Text), EventNo>>;

/// A layer that records what handlers do in one life of an instance.
#[derive(Clone)]
pub(crate) struct Probe {
    pub(crate) life: Life,
    pub(crate) numbers: Numbers,
}

impl Layer<Next> for Probe {
    type Service = Probed;

    fn layer(&self, inner: Next) -> Probed {
        Probed { probe: self.clone(), inner }
    }
}

/// The service of [`Probe`].
#[derive(Clone)]
pub(crate) struct Probed {
    probe: Probe,
    inner: Next,
}

impl Service<Call> for Probed {
    type Response = Outcome;
    type Error = Infallible;
    type Future = Watched;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Watched {
        let event = call.event();
        let number = self.probe.numbers.get(&(event.source.clone(), event.id.clone())).copied();
        let (origin, attempt) = (call.origin().clone(), call.attempt().number);
        let inner = self.inner.call(call);
        Watched { life: self.probe.life.clone(), number, origin, attempt, run: None, inner }
    }
}

/// An attempt that is watched.
pub(crate) struct Watched {
    life: Life,
    /// None for an event that the simulation did not publish, such as one of the user's handlers.
    number: Option<EventNo>,
    origin: Arc<Origin>,
    attempt: u32,
    run: Option<Run>,
    inner: NextFuture,
}

impl Future for Watched {
    type Output = Result<Outcome, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // The process may have died earlier in this poll of its task.
        if self.life.is_dead() {
            return Poll::Pending;
        }
        let Some(event) = self.number else { return Pin::new(&mut self.inner).poll(cx) };
        let run = self.note_poll(event);
        match catch_unwind(AssertUnwindSafe(|| Pin::new(&mut self.inner).poll(cx))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(Ok(outcome))) => {
                self.life.note(if outcome.is_done() { What::Effect { run } } else { What::Failed { run } });
                Poll::Ready(Ok(outcome))
            }
            Err(panic) => {
                self.life.note(What::Failed { run });
                resume_unwind(panic)
            }
        }
    }
}

impl Watched {
    fn note_poll(&mut self, event: EventNo) -> Run {
        let Origin { partition, epoch, .. } = &*self.origin;
        let lease = self.life.lease(partition, *epoch);
        if let Some(run) = self.run {
            self.life.note(What::Polled { run, lease });
            return run;
        }
        let run = self.life.history().next_run();
        let (partition, epoch, attempt) = (partition.clone(), *epoch, self.attempt);
        self.life.note(What::Started { run, event, partition, epoch, attempt, lease });
        self.run = Some(run);
        run
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(run) = self.run.filter(|_| !self.life.is_dead()) {
            self.life.note(What::Ended { run });
        }
    }
}
