//! Handlers: async functions of extractors.

use std::any::Any;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use crate::call::Call;
use crate::error::{Error, WiringError};
use crate::extract::{FromCall, Rejection, Wiring};
use crate::layer::{EventService, Layered, Next};
use crate::outcome::{BoxFuture, IntoOutcome, Outcome};
use crate::policy::Policy;

/// What handles events: any async function or closure of up to twelve extractors that returns what is
/// [`IntoOutcome`], such as `()` or `Result<(), E>`.
///
/// Never implemented by hand. Its methods give one handler settings of its own; import the trait to use them. `T` are
/// the function's arguments and `S` is the state given to [`Router::with_state`](crate::Router::with_state); both are
/// inferred.
///
/// The extractors run in the order of the arguments, then the function. The transaction that one of them may have begun
/// is committed by the engine, and only if the function and every layer around it are done.
///
/// ```
/// use aqueduct::{Event, Handler, Json, Policy, Result, Router};
/// use std::time::Duration;
///
/// async fn charge(Json(cents): Json<u64>, event: Event) -> Result<()> {
///     println!("{cents} for {}", event.id);
///     Ok(())
/// }
///
/// let app: Router = Router::new()
///     .on("payment.due", charge.policy(Policy::ordered().max_attempts(50)).timeout(Duration::from_secs(5)))
///     .on("payment.*", async |event: Event| println!("{}", event.kind));
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a handler",
    label = "not an async function of up to 12 extractors",
    note = "a handler is an `async fn`, or a closure that returns a future and is `Clone + Send + Sync + 'static`, of up to 12 extractors: `async fn handle(Json(order): Json<Order>) -> aqueduct::Result<()>`",
    note = "more than 12? Group some in a type of your own that implements `FromCall`"
)]
pub trait Handler<T, S>: Sized + Send + Sync + 'static {
    /// The handler with its settings, none of them made yet.
    fn configured(self) -> Configured<S>;

    /// Sets what to do when an attempt fails. Defaults to the router's policy, then to the consumer's.
    fn policy(self, policy: Policy) -> Configured<S> {
        Configured { policy: Some(policy), ..self.configured() }
    }

    /// Sets how long one attempt may take. Defaults to the router's timeout, then to the consumer's.
    fn timeout(self, timeout: Duration) -> Configured<S> {
        Configured { timeout: Some(timeout), ..self.configured() }
    }

    /// Wraps a layer around this handler only; the last one added is the outermost.
    ///
    /// See [`Router::layer`](crate::Router::layer) for what a layer is and must not do.
    fn layer<L>(self, layer: L) -> Configured<S>
    where
        L: Layer<Next> + Send + Sync + 'static,
        L::Service: EventService,
        S: 'static,
    {
        self.configured().wrap(&Arc::new(layer))
    }
}

impl<F, T, S, R> Handler<T, S> for F
where
    F: Function<T, Returns = R>,
    T: Arguments<S> + 'static,
    S: Send + Sync + 'static,
    R: AsyncReturn + Send + 'static,
    R::Value: IntoOutcome,
{
    fn configured(self) -> Configured<S> {
        let bind = move |state| {
            let endpoint = FunctionEndpoint { function: self.clone(), state, arguments: PhantomData };
            Arc::new(endpoint) as Arc<dyn Endpoint>
        };
        Configured { target: Target::Unbound(Arc::new(bind)), check: T::check, policy: None, timeout: None }
    }
}

/// A function of as many arguments as the tuple `T` has elements.
///
/// Its implementations ask for nothing but the shape, so that the compiler, having found the one that fits, can name the
/// argument or the return value that is wrong.
pub trait Function<T>: Clone + Send + Sync + 'static {
    /// What it returns: for an async function, its future.
    type Returns;

    /// Calls it.
    fn call(self, arguments: T) -> Self::Returns;
}

/// The extractors of a function, as a tuple: each in turn.
pub trait Arguments<S>: Sized + Send {
    /// Says what one of them lacks.
    fn check(wiring: &Wiring<'_>) -> Result<(), WiringError>;

    /// Takes them all from a call, or stops at the first that refuses.
    fn from_call(call: &Call, state: &S) -> impl Future<Output = Result<Self, Rejection>> + Send;
}

/// What an async function returns: a future.
#[diagnostic::on_unimplemented(
    message = "a handler must be async, and this function returns `{Self}` at once",
    label = "not an `async fn`",
    note = "write `async fn` instead of `fn`, or `async |event: Event| ...` for a closure"
)]
pub trait AsyncReturn: Future<Output = Self::Value> {
    /// What it is when it is ready.
    type Value;
}

#[diagnostic::do_not_recommend]
impl<R: Future> AsyncReturn for R {
    type Value = R::Output;
}

macro_rules! of_arguments {
    ($($argument:ident)*) => {
        impl<Func, R, $($argument),*> Function<($($argument,)*)> for Func
        where
            Func: FnOnce($($argument),*) -> R + Clone + Send + Sync + 'static,
        {
            type Returns = R;

            #[allow(non_snake_case, reason = "the types' names serve as the names of the values")]
            fn call(self, ($($argument,)*): ($($argument,)*)) -> R {
                self($($argument),*)
            }
        }

        impl<S: Sync, $($argument: FromCall<S>),*> Arguments<S> for ($($argument,)*) {
            #[allow(unused_variables, reason = "the empty tuple uses none")]
            fn check(wiring: &Wiring<'_>) -> Result<(), WiringError> {
                $($argument::check(wiring)?;)*
                Ok(())
            }

            #[allow(unused_variables, clippy::unused_unit, reason = "the empty tuple uses none")]
            async fn from_call(call: &Call, state: &S) -> Result<Self, Rejection> {
                Ok(($($argument::from_call(call, state).await?,)*))
            }
        }
    };
}

of_arguments!();
of_arguments!(A);
of_arguments!(A B);
of_arguments!(A B C);
of_arguments!(A B C D);
of_arguments!(A B C D E);
of_arguments!(A B C D E F);
of_arguments!(A B C D E F G);
of_arguments!(A B C D E F G H);
of_arguments!(A B C D E F G H I);
of_arguments!(A B C D E F G H I J);
of_arguments!(A B C D E F G H I J K);
of_arguments!(A B C D E F G H I J K L);

/// A handler with settings of its own, made by the methods of [`Handler`].
pub struct Configured<S> {
    target: Target<S>,
    check: fn(&Wiring<'_>) -> Result<(), WiringError>,
    pub(crate) policy: Option<Policy>,
    pub(crate) timeout: Option<Duration>,
}

/// What waits for a state, and makes an endpoint of it.
type Bind<S> = Arc<dyn Fn(Arc<S>) -> Arc<dyn Endpoint> + Send + Sync>;

enum Target<S> {
    Unbound(Bind<S>),
    Bound { endpoint: Arc<dyn Endpoint>, state: Arc<dyn Any + Send + Sync> },
}

/// Marks [`Configured`] among the handlers.
pub struct Settings(());

#[diagnostic::do_not_recommend]
impl<S: 'static> Handler<Settings, S> for Configured<S> {
    fn configured(self) -> Self {
        self
    }
}

impl<S: 'static> Configured<S> {
    /// Wraps a layer around what is there.
    pub(crate) fn wrap<L>(self, layer: &Arc<L>) -> Self
    where
        L: Layer<Next> + Send + Sync + 'static,
        L::Service: EventService,
    {
        let layer = Arc::clone(layer);
        let wrap = move |inner| Arc::new(Layered(layer.layer(Next::new(inner)))) as Arc<dyn Endpoint>;
        let target = match self.target {
            Target::Unbound(bind) => Target::Unbound(Arc::new(move |state| wrap(bind(state)))),
            Target::Bound { endpoint, state } => Target::Bound { endpoint: wrap(endpoint), state },
        };
        Self { target, ..self }
    }

    /// The same with a state, if it has none yet.
    pub(crate) fn bind<S2>(self, state: &Arc<S>) -> Configured<S2>
    where
        S: Send + Sync,
    {
        let (endpoint, state) = self.endpoint(state);
        let Self { check, policy, timeout, .. } = self;
        Configured { target: Target::Bound { endpoint, state }, check, policy, timeout }
    }

    /// What the engine calls, and the state it works with: its own, else `state`.
    pub(crate) fn endpoint(&self, state: &Arc<S>) -> (Arc<dyn Endpoint>, Arc<dyn Any + Send + Sync>)
    where
        S: Send + Sync,
    {
        match &self.target {
            Target::Unbound(bind) => (bind(Arc::clone(state)), Arc::clone(state) as _),
            Target::Bound { endpoint, state } => (Arc::clone(endpoint), Arc::clone(state)),
        }
    }

    /// Asks every extractor what it lacks.
    pub(crate) fn check(&self, wiring: &Wiring<'_>) -> Result<(), WiringError> {
        (self.check)(wiring)
    }
}

impl<S> Clone for Configured<S> {
    fn clone(&self) -> Self {
        let target = match &self.target {
            Target::Unbound(bind) => Target::Unbound(Arc::clone(bind)),
            Target::Bound { endpoint, state } => {
                Target::Bound { endpoint: Arc::clone(endpoint), state: Arc::clone(state) }
            }
        };
        Self { target, check: self.check, policy: self.policy.clone(), timeout: self.timeout }
    }
}

impl<S> fmt::Debug for Configured<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Configured")
            .field("policy", &self.policy)
            .field("timeout", &self.timeout)
            .finish_non_exhaustive()
    }
}

/// A handler with its layers and its state, as the engine calls it.
pub(crate) trait Endpoint: Send + Sync {
    /// One attempt. Without layers the boxed future is the only allocation.
    fn call(&self, call: Call) -> BoxFuture<'static, Outcome>;
}

struct FunctionEndpoint<F, T, S> {
    function: F,
    state: Arc<S>,
    arguments: PhantomData<fn() -> T>,
}

impl<F, T, S, R> Endpoint for FunctionEndpoint<F, T, S>
where
    F: Function<T, Returns = R>,
    T: Arguments<S> + 'static,
    S: Send + Sync + 'static,
    R: AsyncReturn + Send + 'static,
    R::Value: IntoOutcome,
{
    fn call(&self, call: Call) -> BoxFuture<'static, Outcome> {
        Box::pin(attempt(self.function.clone(), call, Arc::clone(&self.state)))
    }
}

/// Extractors, then the handler, then the end of the scope.
async fn attempt<F, T, S, R>(function: F, call: Call, state: Arc<S>) -> Outcome
where
    F: Function<T, Returns = R>,
    T: Arguments<S>,
    R: AsyncReturn,
    R::Value: IntoOutcome,
{
    let call = OpenCall(call);
    let arguments = match T::from_call(&call.0, &state).await {
        Ok(arguments) => arguments,
        Err(Rejection::Duplicate) => return Outcome::done(),
        Err(Rejection::Failed(error)) => return Outcome::failed(error),
    };
    let running = function.call(arguments);
    let value = match call.0.loan_ends() {
        None => running.await,
        Some(end) => match tokio::time::timeout_at(end, running).await {
            Ok(value) => value,
            Err(_) => return Outcome::failed(Error::msg(TOO_LONG)),
        },
    };
    let outcome = value.into_outcome();
    if outcome.is_done() {
        return call.conclude(outcome);
    }
    call.0.roll_back_scope(outcome)
}

const TOO_LONG: &str = "the handler held its transaction for longer than its database allows: do what takes long, and what goes over the network, in a handler without `Tx`";

/// A call whose scope is closed when it is dropped, also by a panic or a timeout: no transaction outlives its attempt.
struct OpenCall(Call);

impl Drop for OpenCall {
    fn drop(&mut self) {
        self.0.abandon_scope();
    }
}

impl OpenCall {
    /// Hands the transaction on in the outcome.
    fn conclude(&self, outcome: Outcome) -> Outcome {
        match self.0.close_scope() {
            Ok(None) => outcome,
            Ok(Some(_)) if outcome.has_unit() => Outcome::failed(Error::msg(
                "the handler returned an outcome with a transaction and had asked for another: an attempt has one",
            )),
            Ok(Some(unit)) => Outcome::done_with(unit),
            Err(still_lent) => Outcome::failed(still_lent),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};
    use std::task::{Context, Poll};

    use parking_lot::Mutex;
    use tokio::sync::{Notify, oneshot};
    use tower::timeout::{TimeoutLayer, error::Elapsed};
    use tower::util::MapResponseLayer;
    use tower_service::Service;

    use super::*;
    use crate::call::{Attempt, Loan, Origin};
    use crate::error::{Fault, Result};
    use crate::event::Event;
    use crate::outcome::Unit;
    use crate::topic::{Epoch, Key, Partition, Place, Topic};

    /// What became of the transactions, in order.
    #[derive(Clone, Default)]
    struct Ledger(Arc<Mutex<Vec<&'static str>>>);

    impl Ledger {
        fn note(&self, what: &'static str) {
            self.0.lock().push(what);
        }

        fn take(&self) -> Vec<&'static str> {
            std::mem::take(&mut *self.0.lock())
        }
    }

    struct Work(Option<Ledger>);

    impl Unit for Work {
        fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
            self.0.take().unwrap().note("committed");
            Box::pin(ready(Ok(())))
        }
    }

    impl Drop for Work {
        fn drop(&mut self) {
            if let Some(ledger) = self.0.take() {
                ledger.note("rolled back");
            }
        }
    }

    /// A transaction as a store's extractor would lend it.
    struct Tx(Option<(Loan, Box<dyn Unit>)>);

    impl FromCall<Ledger> for Tx {
        async fn from_call(call: &Call, ledger: &Ledger) -> Result<Self, Rejection> {
            let loan = call.scope().lend()?;
            Ok(Self(Some((loan, Box::new(Work(Some(ledger.clone())))))))
        }
    }

    impl Drop for Tx {
        fn drop(&mut self) {
            if let Some((loan, unit)) = self.0.take() {
                loan.give_back(unit);
            }
        }
    }

    fn call() -> Call {
        let partition = Partition { topic: Topic::from("orders"), index: 0 };
        let origin = Origin::new("shop", partition, Epoch(1), crate::broker::Lease::forever());
        Call::new(Arc::new(Event::raw("order.placed", "7")), Arc::new(origin), Place::at(1), Attempt::fresh(1))
    }

    /// One attempt as the engine makes it: the call, then the commit. Says how it ended and what became of the
    /// transactions.
    async fn attempt_with<T>(handler: impl Handler<T, Ledger>) -> (Result<()>, Vec<&'static str>) {
        let ledger = Ledger::default();
        let (endpoint, _) = handler.configured().endpoint(&Arc::new(ledger.clone()));
        let result = endpoint.call(call()).await.commit().await;
        (result, ledger.take())
    }

    async fn ok(_: Tx) {}

    async fn fails(_: Tx) -> Result<()> {
        Err(Error::msg("out of stock"))
    }

    #[tokio::test]
    async fn a_done_handler_commits_and_a_failed_one_rolls_back() {
        let (result, ledger) = attempt_with(ok).await;
        assert!(result.is_ok());
        assert_eq!(ledger, ["committed"]);

        let (result, ledger) = attempt_with(fails).await;
        assert_eq!(result.unwrap_err().to_string(), "out of stock");
        assert_eq!(ledger, ["rolled back"]);
    }

    #[tokio::test]
    async fn a_layer_that_turns_an_error_into_success_commits_nothing() {
        let (result, ledger) = attempt_with(fails.layer(MapResponseLayer::new(|_: Outcome| Outcome::done()))).await;
        assert!(result.is_ok());
        assert_eq!(ledger, ["rolled back"]);
    }

    #[tokio::test]
    async fn a_layer_that_turns_success_into_an_error_rolls_back() {
        let refuse = MapResponseLayer::new(|_: Outcome| Err::<(), _>("not today"));
        let (result, ledger) = attempt_with(ok.layer(refuse)).await;
        assert_eq!(result.unwrap_err().to_string(), "not today");
        assert_eq!(ledger, ["rolled back"]);
    }

    #[tokio::test]
    async fn a_layer_that_replaces_success_by_success_fails_rather_than_lose_the_transaction() {
        let (result, ledger) = attempt_with(ok.layer(MapResponseLayer::new(|_: Outcome| ()))).await;
        assert!(result.unwrap_err().to_string().contains("return the `Outcome` that it was given"));
        assert_eq!(ledger, ["rolled back"]);

        let (result, _) = attempt_with((async || ()).layer(MapResponseLayer::new(|_: Outcome| ()))).await;
        assert!(result.is_ok(), "without a transaction there is nothing to lose");
    }

    #[tokio::test(start_paused = true)]
    async fn a_layer_that_times_out_rolls_back_and_fails_without_a_fault_of_its_own() {
        let hangs = async |_: Tx| pending::<()>().await;
        let (result, ledger) = attempt_with(hangs.layer(TimeoutLayer::new(Duration::from_secs(5)))).await;
        let error = result.unwrap_err();
        assert!(error.downcast_ref::<Elapsed>().is_some());
        assert_eq!(error.fault(), None);
        assert_eq!(ledger, ["rolled back"]);
    }

    #[tokio::test]
    async fn a_layer_that_calls_twice_commits_only_what_the_outermost_outcome_carries() {
        let attempts = Arc::new(Mutex::new(0));
        let second_works = {
            let attempts = Arc::clone(&attempts);
            async move |_: Tx| {
                *attempts.lock() += 1;
                if *attempts.lock() < 2 { Err(Error::msg("first")) } else { Ok(()) }
            }
        };
        let (result, ledger) = attempt_with(second_works.layer(tower::layer::layer_fn(Twice))).await;
        assert!(result.is_ok());
        assert_eq!(ledger, ["rolled back", "committed"]);

        let (result, ledger) = attempt_with(ok.layer(tower::layer::layer_fn(Twice))).await;
        assert!(result.is_ok());
        assert_eq!(ledger, ["rolled back", "committed"]);
    }

    /// Calls the inner service twice, whatever the first call said.
    #[derive(Clone)]
    struct Twice(Next);

    impl Service<Call> for Twice {
        type Response = Outcome;
        type Error = std::convert::Infallible;
        type Future = BoxFuture<'static, std::result::Result<Outcome, Self::Error>>;

        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<std::result::Result<(), Self::Error>> {
            self.0.poll_ready(cx)
        }

        fn call(&mut self, first: Call) -> Self::Future {
            let second = first.again();
            let mut next = self.0.clone();
            Box::pin(async move {
                drop(next.call(first).await?);
                next.call(second).await
            })
        }
    }

    #[tokio::test]
    async fn a_panic_in_the_handler_rolls_back() {
        async fn panics(_: Tx) {
            panic!("a bug");
        }
        let ledger = Ledger::default();
        for handler in [panics.configured(), panics.layer(tower::layer::util::Identity::new())] {
            let (endpoint, _) = handler.endpoint(&Arc::new(ledger.clone()));
            assert!(tokio::spawn(endpoint.call(call())).await.unwrap_err().is_panic());
            assert_eq!(ledger.take(), ["rolled back"]);
        }
    }

    #[tokio::test]
    async fn a_transaction_moved_into_a_task_fails_the_attempt_and_is_never_committed() {
        let (release, released) = oneshot::channel::<()>();
        let (released, ended) = (Arc::new(Mutex::new(Some(released))), Arc::new(Notify::new()));
        let spawns = {
            let ended = Arc::clone(&ended);
            move |tx: Tx| async move {
                let released = released.lock().take().unwrap();
                tokio::spawn(async move {
                    released.await.unwrap();
                    drop(tx);
                    ended.notify_one();
                });
            }
        };
        let ledger = Ledger::default();
        let (endpoint, _) = spawns.configured().endpoint(&Arc::new(ledger.clone()));
        let error = endpoint.call(call()).await.commit().await.unwrap_err();
        assert!(error.to_string().contains("do not move `Tx` into a spawned task"), "{error}");
        assert!(ledger.take().is_empty());

        release.send(()).unwrap();
        ended.notified().await;
        assert_eq!(ledger.take(), ["rolled back"]);
    }

    #[tokio::test]
    async fn a_transaction_asked_for_twice_fails_for_good_before_the_handler_runs() {
        let (result, ledger) = attempt_with(async |_: Tx, _: Tx| -> () { unreachable!() }).await;
        let error = result.unwrap_err();
        assert!(error.to_string().contains("ask for `Tx` once"), "{error}");
        assert_eq!(error.fault(), Some(Fault::Permanent));
        assert_eq!(ledger, ["rolled back"]);
    }

    #[tokio::test]
    async fn an_extractor_that_fails_rolls_back_before_any_layer_goes_on() {
        let ledger = Ledger::default();
        let (endpoint, _) = async_key
            .layer(MapResponseLayer::new({
                let ledger = ledger.clone();
                move |outcome: Outcome| {
                    ledger.note("layer");
                    outcome
                }
            }))
            .endpoint(&Arc::new(ledger.clone()));
        assert!(endpoint.call(call()).await.error().unwrap().to_string().contains("has no key"));
        assert_eq!(ledger.take(), ["rolled back", "layer"]);
    }

    async fn async_key(_: Tx, _: Key) {}

    struct Seen;

    impl<S: Sync> FromCall<S> for Seen {
        async fn from_call(_: &Call, _: &S) -> Result<Self, Rejection> {
            Err(Rejection::Duplicate)
        }
    }

    #[tokio::test]
    async fn a_duplicate_is_done_without_the_handler_and_commits_nothing() {
        let (result, ledger) = attempt_with(async |_: Tx, _: Seen| -> () { unreachable!() }).await;
        assert!(result.is_ok());
        assert_eq!(ledger, ["rolled back"]);
    }

    #[tokio::test]
    async fn a_handler_that_returns_a_transaction_beside_its_own_fails() {
        let two = async |_: Tx| Outcome::done_with(Box::new(Work(Some(Ledger::default()))));
        let (result, ledger) = attempt_with(two).await;
        assert!(result.unwrap_err().to_string().contains("an attempt has one"));
        assert_eq!(ledger, ["rolled back"]);

        let own = Ledger::default();
        let returns = {
            let own = own.clone();
            move || ready(Outcome::done_with(Box::new(Work(Some(own)))))
        };
        assert!(attempt_with(returns).await.0.is_ok());
        assert_eq!(own.take(), ["committed"]);
    }

    #[tokio::test]
    async fn a_handler_takes_twelve_extractors_in_the_order_of_its_arguments() {
        /// Notes its number when it is taken.
        struct Nth<const N: usize>;
        impl<const N: usize> FromCall<Ledger> for Nth<N> {
            async fn from_call(_: &Call, ledger: &Ledger) -> Result<Self, Rejection> {
                ledger.note(["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"][N]);
                Ok(Self)
            }
        }
        #[rustfmt::skip]
        #[allow(clippy::too_many_arguments, reason = "that is the point")]
        async fn all(
            _: Nth<0>, _: Nth<1>, _: Nth<2>, _: Nth<3>, _: Nth<4>, _: Nth<5>,
            _: Nth<6>, _: Nth<7>, _: Nth<8>, _: Nth<9>, _: Nth<10>, _: Nth<11>,
        ) {}
        let (result, ledger) = attempt_with(all).await;
        assert!(result.is_ok());
        assert_eq!(ledger.concat(), "abcdefghijkl");
    }
}
