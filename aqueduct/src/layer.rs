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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::sync::{Semaphore, mpsc};
    use tokio::task::JoinSet;
    use tokio::time::timeout;
    use tower::ServiceBuilder;
    use tower::layer::layer_fn;
    use tower::limit::ConcurrencyLimitLayer;
    use tower::timeout::TimeoutLayer;

    use super::*;
    use crate::call::{Attempt, Origin};
    use crate::event::Event;
    use crate::extract::Extension;
    use crate::handler::Handler;
    use crate::topic::{Epoch, Partition, Place, Topic};

    fn call() -> Call {
        let partition = Partition { topic: Topic::from("orders"), index: 0 };
        let origin = Origin::new("shop", partition, Epoch(1), crate::broker::Lease::forever());
        Call::new(Arc::new(Event::raw("order.placed", "7")), Arc::new(origin), Place::at(1), Attempt::fresh(1))
    }

    fn endpoint<T>(handler: impl Handler<T, ()>) -> Arc<dyn Endpoint> {
        handler.configured().endpoint(&Arc::new(())).0
    }

    /// Leaves a name for those behind it, and refuses to be ready without one.
    #[derive(Clone)]
    struct Named(Option<&'static str>, Next);

    impl Service<Call> for Named {
        type Response = Outcome;
        type Error = BoxError;
        type Future = BoxFuture<'static, Result<Outcome, BoxError>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
            Poll::Ready(self.0.map(drop).ok_or_else(|| "no name".into()))
        }

        fn call(&mut self, mut call: Call) -> Self::Future {
            if let Some(name) = self.0 {
                call.extensions_mut().insert(name);
            }
            let answer = self.1.call(call);
            Box::pin(async { Ok(answer.await?) })
        }
    }

    #[tokio::test]
    async fn a_layer_can_leave_a_value_and_the_last_one_added_is_the_outermost() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let handler = {
            let seen = Arc::clone(&seen);
            async move |Extension(name): Extension<&'static str>| seen.lock().push(name)
        };
        let inner = handler.layer(layer_fn(|next| Named(Some("inner"), next)));
        let both = inner.layer(layer_fn(|next| Named(Some("outer"), next)));
        assert!(endpoint(both).call(call()).await.is_done());
        assert_eq!(*seen.lock(), ["inner"]);
    }

    #[tokio::test]
    async fn a_layer_that_cannot_get_ready_fails_the_attempt_and_the_handler_does_not_run() {
        let unready = (async || -> () { unreachable!() }).layer(layer_fn(|next| Named(None, next)));
        let outcome = endpoint(unready).call(call()).await;
        let error = outcome.error().unwrap();
        assert_eq!(error.to_string(), "no name");
        assert_eq!(error.fault(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_of_concurrency_holds_across_calls_of_one_route() {
        let (entered, mut entries) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let waits = {
            let gate = Arc::clone(&gate);
            async move || {
                entered.send(()).unwrap();
                gate.acquire().await.unwrap().forget();
            }
        };
        let endpoint = endpoint(waits.layer(ConcurrencyLimitLayer::new(2)));
        let mut calls: JoinSet<_> = (0..5).map(|_| endpoint.call(call())).collect();
        // With the clock paused the second passes only when nothing else can move.
        let second = Duration::from_secs(1);
        for running in [2, 1, 1, 1, 0] {
            for _ in 0..running {
                timeout(second, entries.recv()).await.unwrap();
            }
            assert!(timeout(second, entries.recv()).await.is_err(), "the limit is two");
            gate.add_permits(1);
            assert!(calls.join_next().await.unwrap().unwrap().is_done());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn layers_stacked_by_a_service_builder_are_one_layer() {
        let hangs = async || std::future::pending::<()>().await;
        let stack = ServiceBuilder::new().layer(TimeoutLayer::new(Duration::from_secs(1))).concurrency_limit(1);
        let outcome = endpoint(hangs.layer(stack.into_inner())).call(call()).await;
        assert!(outcome.error().unwrap().downcast_ref::<tower::timeout::error::Elapsed>().is_some());
    }
}
