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
