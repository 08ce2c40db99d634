//! Layers: what runs around handlers.

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tower_service::Service;

use crate::call::Call;
use crate::error::{BoxError, Error};
use crate::handler::Endpoint;
use crate::outcome::{BoxFuture, IntoOutcome, Outcome};

/// What a layer must make of [`Next`]: a [`tower_service::Service`] of [`Call`]s that is `Clone + Send + Sync`, whose
/// future is `Send`, whose response is an [`Outcome`] (or else [`IntoOutcome`]) and whose error converts into a
/// [`BoxError`].
///
/// Implemented for all such services; never implemented by hand.
pub trait EventService:
    Service<Call, Response: IntoOutcome, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static
{
}

impl<V> EventService for V where
    V: Service<Call, Response: IntoOutcome, Error: Into<BoxError>, Future: Send> + Clone + Send + Sync + 'static
{
}

/// The rest of the way to the handler, as a layer sees it: other layers, the extractors, the function.
///
/// It is always ready and never an error: a handler that fails answers with an [`Outcome`] that says so. Hand that
/// outcome on when it is done, for it may carry the handler's transaction.
#[derive(Clone)]
pub struct Next(Arc<dyn Endpoint>);

impl Next {
    pub(crate) fn new(endpoint: Arc<dyn Endpoint>) -> Self {
        Self(endpoint)
    }
}

impl fmt::Debug for Next {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Next")
    }
}

impl Service<Call> for Next {
    type Response = Outcome;
    type Error = Infallible;
    type Future = NextFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> NextFuture {
        NextFuture(self.0.call(call))
    }
}

/// The future of [`Next`].
#[must_use = "futures do nothing unless they are awaited"]
pub struct NextFuture(BoxFuture<'static, Outcome>);

impl Future for NextFuture {
    type Output = Result<Outcome, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx).map(Ok)
    }
}

impl fmt::Debug for NextFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NextFuture")
    }
}

/// A layer's service as an endpoint.
pub(crate) struct Layered<V>(pub(crate) V);

impl<V: EventService> Endpoint for Layered<V> {
    fn call(&self, call: Call) -> BoxFuture<'static, Outcome> {
        Box::pin(through(self.0.clone(), call))
    }
}

async fn through<V: EventService>(mut service: V, call: Call) -> Outcome {
    let scope = call.scope().clone();
    let failed = |error: V::Error| Outcome::failed(Error::boxed(error.into()));
    if let Err(outcome) = poll_fn(|cx| service.poll_ready(cx).map_err(failed)).await {
        return outcome;
    }
    let outcome = service.call(call).await.map_or_else(failed, IntoOutcome::into_outcome);
    if outcome.is_done() && !outcome.has_unit() && scope.gave_unit() {
        return Outcome::failed(Error::msg(
            "a layer replaced the outcome of a handler that is done, and the handler's transaction is rolled back: \
             let the layer return the `Outcome` that it was given",
        ));
    }
    outcome
}
