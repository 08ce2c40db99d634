//! The router: which handler an event goes to.

use std::any::Any;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use tower_layer::Layer;

use crate::broker::Abilities;
use crate::error::WiringError;
use crate::extract::Wiring;
use crate::handler::{Configured, Endpoint, Handler};
use crate::layer::{EventService, Next};
use crate::pattern::Pattern;
use crate::policy::Policy;
use crate::store::Store;

/// Sends events to handlers by their type.
///
/// A pattern is a type, or one with wildcards: `*` stands for exactly one segment and `>` at the end for one or more. The
/// most specific pattern wins. Two patterns that both match some type, neither being the more specific, are a mistake.
///
/// No method fails. Mistakes are found when the router is served, before the first event is fetched, and name the line
/// of the call that made them.
///
/// `S` is the state that its handlers still need; [`with_state`](Self::with_state) gives it.
///
/// ```
/// use aqueduct::{Event, Json, Policy, Result, Router, Unknown};
///
/// async fn placed(Json(order): Json<u64>) -> Result<()> {
///     println!("order {order}");
///     Ok(())
/// }
///
/// let payments = Router::new().on("due", async || ()).on("*", async |event: Event| println!("{}", event.kind));
/// let app: Router = Router::new()
///     .on("order.placed", placed)
///     .nest("payment", payments)
///     .policy(Policy::ordered().max_attempts(50))
///     .fallback(Unknown::Ignore);
/// ```
pub struct Router<S = ()> {
    entries: Vec<Entry<S>>,
    policy: Option<Policy>,
    timeout: Option<Duration>,
    unknown: Option<Unknown>,
    mistakes: Vec<WiringError>,
}

/// What becomes of an event whose type no route matches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unknown {
    /// It is settled and counted, nothing else.
    Ignore,
    /// It is parked, and tried again as any parked event, until a version of the service knows the type or its attempts
    /// run out. The events of its key wait behind it.
    Park,
    /// It becomes a dead letter at once: nothing is lost, and an operator can replay it. The default.
    #[default]
    DeadLetter,
}

type Caller = &'static Location<'static>;

struct Entry<S> {
    pattern: Pattern,
    handler: Configured<S>,
    at: Caller,
}

impl<S: Send + Sync + 'static> Router<S> {
    /// A router without routes.
    pub fn new() -> Self {
        Self { entries: Vec::new(), policy: None, timeout: None, unknown: None, mistakes: Vec::new() }
    }

    /// Sends the types that match `pattern` to `handler`.
    #[track_caller]
    pub fn on<H, T>(mut self, pattern: &str, handler: H) -> Self
    where
        H: Handler<T, S>,
    {
        self.add(pattern, handler.configured(), Location::caller());
        self
    }

    /// Adds the routes of another router, with its policy and timeout where they have none of their own.
    #[track_caller]
    pub fn merge(mut self, other: Self) -> Self {
        let at = Location::caller();
        match (self.unknown, other.unknown) {
            (Some(ours), Some(theirs)) if ours != theirs => {
                let text = format!("merged routers have the fallbacks {ours:?} and {theirs:?}: leave one of them out");
                self.mistakes.push(WiringError::new(text).at(at));
            }
            (ours, theirs) => self.unknown = ours.or(theirs),
        }
        let (entries, mistakes) = other.settled();
        self.mistakes.extend(mistakes);
        self.entries.extend(entries);
        self
    }

    /// Adds the routes of another router below a prefix: its `placed` becomes `order.placed` below `order`.
    ///
    /// The other router cannot have a [`fallback`](Self::fallback): what no route matches is decided by the outermost.
    #[track_caller]
    pub fn nest(mut self, prefix: &str, other: Self) -> Self {
        let at = Location::caller();
        if other.unknown.is_some() {
            let text = format!(
                "the router nested below {prefix:?} has a fallback: set it on the outer router, or add a route `>` to the inner one"
            );
            self.mistakes.push(WiringError::new(text).at(at));
        }
        if let Err(error) = Pattern::parse(&format!("{prefix}.>")) {
            let text = format!("{prefix:?} is no prefix, leave off its dots or use `merge` for no prefix: {error}");
            self.mistakes.push(WiringError::new(text).at(at));
            return self;
        }
        let (entries, mistakes) = other.settled();
        self.mistakes.extend(mistakes);
        for entry in entries {
            self.add(&format!("{prefix}.{}", entry.pattern.as_str()), entry.handler, entry.at);
        }
        self
    }

    /// Wraps a layer around each route added so far; the last one added is the outermost.
    ///
    /// Any tower layer will do whose service is an [`EventService`]. Each route is wrapped by itself, so a limit of
    /// concurrency is one for each route; tower's `GlobalConcurrencyLimitLayer` shares one. A layer's error counts as
    /// the failure of the attempt.
    ///
    /// A layer hands on the [`Outcome`](crate::Outcome) that it was given when that is done, for the handler's
    /// transaction travels in it. It may turn it into a failure, which rolls the transaction back. It may turn a failure
    /// into success, which commits nothing. Replacing one success by another would lose the transaction unseen, so it
    /// fails the attempt.
    ///
    /// ```
    /// use aqueduct::Router;
    /// use std::time::Duration;
    /// use tower::{limit::ConcurrencyLimitLayer, timeout::TimeoutLayer};
    ///
    /// let app: Router = Router::new()
    ///     .on("order.placed", async || ())
    ///     .layer(ConcurrencyLimitLayer::new(4))
    ///     .layer(TimeoutLayer::new(Duration::from_secs(5)));
    /// ```
    #[track_caller]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Next> + Send + Sync + 'static,
        L::Service: EventService,
    {
        if self.entries.is_empty() && self.mistakes.is_empty() {
            let mistake = WiringError::new("this layer wraps nothing: call `layer` after the routes that it is for");
            self.mistakes.push(mistake.at(Location::caller()));
        }
        let layer = Arc::new(layer);
        self.entries = self.map(|handler| handler.wrap(&layer));
        self
    }

    /// Sets what to do when an attempt fails, for all routes of this router that do not say so themselves. Defaults to
    /// the consumer's policy.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = Some(policy);
        self
    }

    /// Sets how long one attempt may take, for all routes of this router that do not say so themselves. Defaults to the
    /// consumer's timeout.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets what becomes of events whose type no route matches. Defaults to [`Unknown::DeadLetter`].
    ///
    /// To handle them instead add a route `>`.
    pub fn fallback(mut self, unknown: Unknown) -> Self {
        self.unknown = Some(unknown);
        self
    }

    /// Gives the handlers added so far their state. Only a router that needs no more state, `Router<()>`, can be served.
    ///
    /// A router that had its state can be merged with others of any state.
    pub fn with_state<S2>(mut self, state: S) -> Router<S2> {
        let state = Arc::new(state);
        let entries = self.map(|handler| handler.bind(&state));
        let Self { policy, timeout, unknown, mistakes, .. } = self;
        Router { entries, policy, timeout, unknown, mistakes }
    }

    /// True if a route was added.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn has_routes(&self) -> bool {
        !self.entries.is_empty()
    }

    fn add(&mut self, pattern: &str, handler: Configured<S>, at: Caller) {
        match Pattern::parse(pattern) {
            Ok(pattern) => self.entries.push(Entry { pattern, handler, at }),
            Err(error) => self.mistakes.push(WiringError::new(error.to_string()).at(at)),
        }
    }

    fn map<S2>(&mut self, change: impl Fn(Configured<S>) -> Configured<S2>) -> Vec<Entry<S2>> {
        let entries = std::mem::take(&mut self.entries).into_iter();
        entries.map(|Entry { pattern, handler, at }| Entry { pattern, handler: change(handler), at }).collect()
    }

    /// Its routes, each with the router's policy and timeout unless it has its own, and its mistakes.
    fn settled(mut self) -> (Vec<Entry<S>>, Vec<WiringError>) {
        let (policy, timeout) = (self.policy.take(), self.timeout);
        let entries = self.map(|mut handler| {
            handler.policy = handler.policy.take().or_else(|| policy.clone());
            handler.timeout = handler.timeout.or(timeout);
            handler
        });
        (entries, self.mistakes)
    }
}

impl<S: Send + Sync + 'static> Default for Router<S> {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Clone for Router<S> {
    fn clone(&self) -> Self {
        let copy = |e: &Entry<S>| Entry { pattern: e.pattern.clone(), handler: e.handler.clone(), at: e.at };
        Self {
            entries: self.entries.iter().map(copy).collect(),
            policy: self.policy.clone(),
            timeout: self.timeout,
            unknown: self.unknown,
            mistakes: self.mistakes.clone(),
        }
    }
}

impl<S> fmt::Debug for Router<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let patterns: Vec<_> = self.entries.iter().map(|e| e.pattern.as_str()).collect();
        f.debug_struct("Router").field("patterns", &patterns).finish_non_exhaustive()
    }
}

impl Router<()> {
    /// Makes it ready for the engine, or names the first mistake.
    pub(crate) fn into_app(self, store: &dyn Store, abilities: Abilities) -> Result<App, WiringError> {
        let unknown = self.unknown.unwrap_or_default();
        let (entries, mistakes) = self.settled();
        if let Some(first) = mistakes.into_iter().next() {
            return Err(first);
        }
        if entries.is_empty() {
            return Err(WiringError::new("the router has no routes: add one with `.on(\"order.placed\", handler)`"));
        }
        let mut app = App { exact: HashMap::new(), wild: Vec::new(), routes: Vec::new(), unknown };
        let nothing = Arc::new(());
        for (n, entry) in entries.iter().enumerate() {
            entry.clear_of(&entries[..n])?;
            let (endpoint, state) = entry.handler.endpoint(&nothing);
            let state: &dyn Any = state.as_ref();
            entry.handler.check(&Wiring::new(store, abilities, state)).map_err(|e| e.at(entry.at))?;
            app.add(entry, endpoint);
        }
        Ok(app)
    }
}

impl<S> Entry<S> {
    /// Says so if some type matches this pattern and one of `others`, and neither is the more specific.
    fn clear_of(&self, others: &[Self]) -> Result<(), WiringError> {
        let Some(other) = others.iter().find(|o| ambiguous(&o.pattern, &self.pattern)) else { return Ok(()) };
        let (ours, theirs) = (self.pattern.as_str(), other.pattern.as_str());
        let text = if ours == theirs {
            format!("{ours:?} has two handlers: remove one (the other is at {})", other.at)
        } else {
            format!(
                "{ours:?} and {theirs:?} both match some type and neither is more specific: make one narrower (the \
                 other is at {})",
                other.at
            )
        };
        Err(WiringError::new(text).at(self.at))
    }
}

/// True if some type is matched by both and neither is the more specific.
fn ambiguous(a: &Pattern, b: &Pattern) -> bool {
    a.overlaps(b) && matches!(a.cmp_specificity(b), None | Some(Ordering::Equal))
}

/// A router made ready: finds the route of a type.
pub(crate) struct App {
    exact: HashMap<Box<str>, RouteId>,
    /// Each before those that are less specific, so the first match is the most specific.
    wild: Vec<(Pattern, RouteId)>,
    routes: Vec<Route>,
    unknown: Unknown,
}

/// Names a route of an [`App`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RouteId(u32);

/// What an [`App`] knows about a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    Route(RouteId),
    Unknown(Unknown),
}

/// A handler with its layers, state and settings.
pub(crate) struct Route {
    pub(crate) pattern: Pattern,
    pub(crate) endpoint: Arc<dyn Endpoint>,
    pub(crate) policy: Option<Policy>,
    pub(crate) timeout: Option<Duration>,
}

impl App {
    /// What becomes of events of this type. Allocates nothing.
    pub(crate) fn find(&self, kind: &str) -> Found {
        let exact = self.exact.get(kind).copied();
        let found = exact.or_else(|| self.wild.iter().find(|(p, _)| p.matches(kind)).map(|(_, id)| *id));
        found.map_or(Found::Unknown(self.unknown), Found::Route)
    }

    /// The route that [`find`](Self::find) found.
    pub(crate) fn route(&self, id: RouteId) -> &Route {
        &self.routes[id.0 as usize]
    }

    /// The patterns of all routes, in the order in which they were added.
    pub(crate) fn patterns(&self) -> impl Iterator<Item = &Pattern> {
        self.routes.iter().map(|route| &route.pattern)
    }

    fn add<S>(&mut self, entry: &Entry<S>, endpoint: Arc<dyn Endpoint>) {
        let id = RouteId(u32::try_from(self.routes.len()).unwrap_or(u32::MAX));
        let pattern = entry.pattern.clone();
        if pattern.is_exact() {
            self.exact.insert(pattern.as_str().into(), id);
        } else {
            let less_specific = |(other, _): &(Pattern, RouteId)| {
                pattern.overlaps(other) && pattern.cmp_specificity(other) == Some(Ordering::Less)
            };
            let at = self.wild.iter().position(less_specific).unwrap_or(self.wild.len());
            self.wild.insert(at, (pattern.clone(), id));
        }
        let (policy, timeout) = (entry.handler.policy.clone(), entry.handler.timeout);
        self.routes.push(Route { pattern, endpoint, policy, timeout });
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tower::layer::layer_fn;
    use tower_service::Service;

    use super::*;
    use crate::broker::Ownership;
    use crate::call::{Attempt, Call, Origin};
    use crate::error::StoreError;
    use crate::event::Event;
    use crate::extract::{FromCall, Rejection, State};
    use crate::outcome::BoxFuture;
    use crate::store::{
        Applied, Claim, Command, CommandId, CommandState, Due, Listed, Op, Query, Row, StoreAbilities, TakeOver,
    };
    use crate::topic::{Epoch, Partition, Place, Position, Text, Topic};

    /// A store that only says what it can do: wiring never writes.
    struct Blank;

    fn refused<'a, T: Send + 'a>() -> BoxFuture<'a, Result<T, StoreError>> {
        Box::pin(std::future::ready(Err(StoreError::Refused("wiring does not use the store".to_owned()))))
    }

    impl Store for Blank {
        fn abilities(&self) -> StoreAbilities {
            StoreAbilities::new(false)
        }
        fn take_over<'a>(&'a self, _: &'a Claim, _: Option<Position>) -> BoxFuture<'a, Result<TakeOver, StoreError>> {
            refused()
        }
        fn apply<'a>(&'a self, _: &'a Claim, _: &'a [Op]) -> BoxFuture<'a, Result<Vec<Applied>, StoreError>> {
            refused()
        }
        fn bury<'a>(&'a self, _: &'a Text, _: &'a Partition, _: &'a [Row]) -> BoxFuture<'a, Result<(), StoreError>> {
            refused()
        }
        fn due<'a>(
            &'a self,
            _: &'a Claim,
            _: crate::clock::Timestamp,
            _: usize,
        ) -> BoxFuture<'a, Result<Due, StoreError>> {
            refused()
        }
        fn browse<'a>(&'a self, _: &'a Query) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
            refused()
        }
        fn command<'a>(&'a self, _: &'a Command) -> BoxFuture<'a, Result<CommandId, StoreError>> {
            refused()
        }
        fn command_result(&self, _: CommandId) -> BoxFuture<'_, Result<Option<CommandState>, StoreError>> {
            refused()
        }
    }

    fn app(router: Router) -> Result<App, WiringError> {
        router.into_app(&Blank, Abilities::new(Ownership::Floor))
    }

    /// The mistake that the router is refused for.
    fn mistake(router: Router) -> String {
        app(router).err().unwrap().to_string()
    }

    fn here(line: u32) -> String {
        format!("at {}:{line}:", file!())
    }

    async fn nothing() {}

    /// The pattern whose route events of this type take.
    fn way<'a>(app: &'a App, kind: &str) -> &'a str {
        match app.find(kind) {
            Found::Route(id) => app.route(id).pattern.as_str(),
            Found::Unknown(_) => "",
        }
    }

    async fn send(app: &App, kind: &str) -> bool {
        let Found::Route(id) = app.find(kind) else { return false };
        let partition = Partition { topic: Topic::from("orders"), index: 0 };
        let origin = Arc::new(Origin::new("shop", partition, Epoch(1), crate::broker::Lease::forever()));
        let event = Arc::new(Event::raw(kind, "7"));
        app.route(id).endpoint.call(Call::new(event, origin, Place::at(1), Attempt::fresh(1))).await.is_done()
    }

    #[test]
    fn the_most_specific_pattern_wins_in_whatever_order_they_were_added() {
        let patterns = [">", "order.>", "order.*", "order.*.late", "order.placed", "*.>"];
        let table = [
            ("order.placed", "order.placed"),
            ("order.paid", "order.*"),
            ("order.paid.late", "order.*.late"),
            ("order.paid.early", "order.>"),
            ("stock.low", "*.>"),
            ("tick", ">"),
        ];
        for turn in 0..patterns.len() {
            for reverse in [false, true] {
                let mut order = patterns;
                order.rotate_left(turn);
                if reverse {
                    order.reverse();
                }
                let app = app(order.iter().fold(Router::new(), |r, p| r.on(p, nothing))).unwrap();
                for (kind, pattern) in table {
                    assert_eq!(way(&app, kind), pattern, "{kind} among {order:?}");
                }
                assert!(app.patterns().map(Pattern::as_str).eq(order));
            }
        }
    }

    #[test]
    fn a_type_without_a_route_is_a_dead_letter_unless_the_fallback_says_otherwise() {
        let router = Router::new().on("order.*", nothing);
        assert_eq!(app(router.clone()).unwrap().find("stock.low"), Found::Unknown(Unknown::DeadLetter));
        let app = app(router.fallback(Unknown::Ignore)).unwrap();
        assert_eq!(app.find("stock.low"), Found::Unknown(Unknown::Ignore));
        assert!(matches!(app.find("order.placed"), Found::Route(_)));
    }

    #[test]
    fn two_patterns_of_which_neither_is_more_specific_are_refused_with_both_lines() {
        let first = line!() + 1;
        let router = Router::new().on("order.*", nothing);
        let text = mistake(router.on("*.placed", nothing));
        assert!(text.contains("\"order.*\"") && text.contains("\"*.placed\"") && text.contains("narrower"), "{text}");
        assert!(text.contains(&here(first)) && text.contains(&here(first + 1)), "{text}");
    }

    #[test]
    fn the_same_pattern_twice_is_refused_with_both_lines() {
        for pattern in ["order.placed", "order.*"] {
            let first = line!() + 1;
            let router = Router::new().on(pattern, nothing);
            let text = mistake(router.merge(Router::new().on(pattern, nothing)));
            assert!(text.contains("has two handlers") && text.contains(pattern), "{text}");
            assert!(text.contains(&here(first)) && text.contains(&here(first + 1)), "{text}");
        }
    }

    #[test]
    fn mistakes_name_the_line_of_the_call_that_made_them() {
        let routes = || Router::new().on("a", nothing);
        let first = line!() + 2;
        let table = [
            (routes().on("order.>.late", nothing), "`>` must be the last segment"),
            (routes().nest("x", routes().on("", nothing)), "it is empty"),
            (routes().nest("", routes()), "use `merge` for no prefix"),
            (routes().nest("x.>", routes()), "`>` must be the last segment"),
            (routes().nest("x", routes().fallback(Unknown::Park)), "set it on the outer router"),
            (Router::new().layer(layer_fn(|next: Next| next)).on("a", nothing), "call `layer` after the routes"),
            (routes().fallback(Unknown::Park).merge(Router::new().fallback(Unknown::Ignore)), "Park and Ignore"),
        ];
        for ((router, problem), line) in table.into_iter().zip(first..) {
            let text = mistake(router);
            assert!(text.contains(problem) && text.contains(&here(line)), "{line}: {text}");
        }
    }

    #[test]
    fn an_empty_router_is_refused() {
        assert!(mistake(Router::new()).contains("has no routes"));
    }

    /// Needs a durable store.
    struct Durable;

    impl<S: Sync> FromCall<S> for Durable {
        fn check(wiring: &Wiring<'_>) -> Result<(), WiringError> {
            assert!(wiring.state.is::<u8>(), "the state is the one given to the router");
            let lacks = || WiringError::new("`Durable` needs a durable store");
            wiring.store.abilities().durable.then_some(()).ok_or_else(lacks)
        }

        async fn from_call(_: &Call, _: &S) -> Result<Self, Rejection> {
            Ok(Self)
        }
    }

    #[test]
    fn what_an_extractor_lacks_is_found_at_start_at_the_line_of_its_route() {
        async fn handle(_: State<u8>, _: Result<Durable, crate::Error>) {}
        let line = line!() + 1;
        let text = mistake(Router::new().on("a", handle).layer(layer_fn(|n: Next| n)).with_state(7_u8));
        assert!(text.contains("needs a durable store") && text.contains(&here(line)), "{text}");
    }

    #[test]
    fn a_nested_router_hears_types_below_its_prefix() {
        let order = Router::new().on("placed", nothing).on("*.late", nothing).on(">", nothing);
        let app = app(Router::new().nest("shop.order", order).on("*", nothing)).unwrap();
        assert_eq!(way(&app, "shop.order.placed"), "shop.order.placed");
        assert_eq!(way(&app, "shop.order.paid.late"), "shop.order.*.late");
        assert_eq!(way(&app, "shop.order.paid"), "shop.order.>");
        assert_eq!((way(&app, "placed"), way(&app, "shop.order")), ("*", ""));
    }

    #[test]
    fn the_nearest_policy_and_timeout_win_wherever_they_are_said() {
        let secs = Duration::from_secs;
        let inner = Router::new().timeout(secs(2)).on("own", nothing.timeout(secs(1))).on("router", nothing);
        let merged = Router::new().on("merged", nothing.policy(Policy::fast()));
        let outer = Router::new().nest("in", inner).timeout(secs(3)).policy(Policy::best_effort()).merge(merged);
        let app = app(outer.on("late", nothing)).unwrap();
        let table = [
            ("in.own", 1, Policy::best_effort()),
            ("in.router", 2, Policy::best_effort()),
            ("merged", 3, Policy::fast()),
            ("late", 3, Policy::best_effort()),
        ];
        for (kind, timeout, policy) in table {
            let Found::Route(id) = app.find(kind) else { panic!("{kind}") };
            let route = app.route(id);
            assert_eq!(route.timeout, Some(secs(timeout)), "{kind}");
            assert_eq!(route.policy.as_ref().map(|p| p.kind), Some(policy.kind), "{kind}");
        }
    }

    #[test]
    fn without_settings_a_route_leaves_them_to_the_consumer() {
        let app = app(Router::new().on("a", nothing)).unwrap();
        let Found::Route(id) = app.find("a") else { panic!() };
        assert!(app.route(id).policy.is_none() && app.route(id).timeout.is_none());
    }

    #[tokio::test]
    async fn a_layer_wraps_the_routes_added_before_it_only() {
        /// Counts the calls that pass.
        #[derive(Clone)]
        struct Count(Next, Arc<Mutex<usize>>);

        impl Service<Call> for Count {
            type Response = crate::Outcome;
            type Error = std::convert::Infallible;
            type Future = crate::layer::NextFuture;

            fn poll_ready(
                &mut self,
                cx: &mut std::task::Context<'_>,
            ) -> std::task::Poll<Result<(), std::convert::Infallible>> {
                self.0.poll_ready(cx)
            }

            fn call(&mut self, call: Call) -> Self::Future {
                *self.1.lock() += 1;
                self.0.call(call)
            }
        }

        let count = Arc::new(Mutex::new(0));
        let layer = {
            let count = Arc::clone(&count);
            layer_fn(move |next| Count(next, Arc::clone(&count)))
        };
        let stateful = Router::new().on("bound", async |_: State<u8>| ()).with_state(7);
        let router = Router::new().on("before", nothing).merge(stateful).layer(layer).on("after", nothing);
        let app = app(router).unwrap();
        for (kind, counted) in [("before", 1), ("bound", 2), ("after", 2)] {
            assert!(send(&app, kind).await);
            assert_eq!(*count.lock(), counted, "{kind}");
        }
    }

    #[tokio::test]
    async fn routers_with_states_of_their_own_merge() {
        let sum = Arc::new(Mutex::new(0_u64));
        let adds = |sum: &Arc<Mutex<u64>>| {
            let sum = Arc::clone(sum);
            async move |State(n): State<u64>| *sum.lock() += n
        };
        let one = Router::new().on("one", adds(&sum)).with_state(1_u64);
        let ten = Router::new().on("ten", adds(&sum)).with_state(Arc::new(10_u64));
        let app = app(one.merge(ten)).unwrap();
        assert!(send(&app, "one").await && send(&app, "ten").await);
        assert_eq!(*sum.lock(), 11);
    }
}
