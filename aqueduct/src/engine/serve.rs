//! Consumers: what a service is made of, its checks at start, and serving it.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::time::Duration;

use super::attempt::Workers;
use super::core::{Core, Parts};
use super::health::Health;
use super::letters::Letters;
use super::mailbox::Mailbox;
#[cfg(test)]
use super::planted::Planted;
use super::stores::Stores;
use super::tasks::Tasks;
use crate::broker::{Abilities, Broker, Membership, Ownership, Start, Subscription};
use crate::clock::Clock;
use crate::error::{BrokerError, StoreError, WiringError};
use crate::event::Event;
use crate::format::{CloudEvents, Format};
use crate::outcome::BoxFuture;
use crate::pattern::Pattern;
use crate::policy::{Policy, defaults};
use crate::router::{App, Router};
use crate::store::{MemoryStore, Store};
use crate::telemetry::ConsumerMetrics;
use crate::topic::{Text, Topic};

/// A consumer: a named group of instances that share the work of some topics. This is one instance of it.
///
/// ```
/// use aqueduct::{Consumer, MemoryBroker, Result, Router};
/// # async fn shutdown_signal() {}
/// # async fn run() -> Result<()> {
/// Consumer::new("inventory", MemoryBroker::new())
///     .topics(["orders", "payments"])
///     .serve(Router::new().on("order.placed", async || println!("an order")))
///     .with_graceful_shutdown(shutdown_signal())
///     .await?;
/// # Ok(()) }
/// ```
pub struct Consumer {
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    /// Where the transactions of handlers are, if not in the store.
    transactions: Option<Arc<dyn Store>>,
    topics: Vec<Topic>,
    start: Start,
    default_format: bool,
    mistakes: Vec<WiringError>,
    settings: Settings,
    #[cfg(any(test, feature = "testing"))]
    gate: Option<super::gate::Gate>,
}

/// The settings of a consumer that the engine works by.
pub(super) struct Settings {
    pub(super) name: Text,
    pub(super) clock: Clock,
    pub(super) formats: Vec<Arc<dyn Format>>,
    dead_letters: Option<Topic>,
    types: Vec<Pattern>,
    skip_sources: Vec<Text>,
    pub(super) policy: Policy,
    pub(super) timeout: Duration,
    pub(super) concurrency: usize,
    pub(super) buffer: usize,
    pub(super) buffer_per_key: usize,
    pub(super) shutdown: Duration,
    pub(super) stall: Duration,
    #[cfg(test)]
    pub(super) planted: Option<Planted>,
}

impl Settings {
    /// True if an event is to be settled without a handler.
    pub(super) fn filters_out(&self, event: &Event) -> bool {
        self.skip_sources.contains(&event.source)
            || !(self.types.is_empty() || self.types.iter().any(|types| types.matches(event.kind.as_str())))
    }
}

impl Consumer {
    /// An instance of the consumer `name` on a broker.
    pub fn new(name: impl Into<Text>, broker: impl Broker) -> Self {
        Self {
            broker: Arc::new(broker),
            store: Arc::new(MemoryStore::new()),
            transactions: None,
            topics: Vec::new(),
            start: Start::default(),
            default_format: true,
            mistakes: Vec::new(),
            settings: Settings {
                name: name.into(),
                clock: Clock::system(),
                formats: vec![Arc::new(CloudEvents::default())],
                dead_letters: None,
                types: Vec::new(),
                skip_sources: Vec::new(),
                policy: Policy::default(),
                timeout: defaults::TIMEOUT,
                concurrency: defaults::CONCURRENCY,
                buffer: defaults::BUFFER,
                buffer_per_key: defaults::BUFFER_PER_KEY,
                shutdown: defaults::SHUTDOWN,
                stall: defaults::STALL,
                #[cfg(test)]
                planted: None,
            },
            #[cfg(any(test, feature = "testing"))]
            gate: None,
        }
    }

    /// The topics to consume. Defaults to none, which is a mistake.
    pub fn topics<T: Into<Topic>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Where parked events and dead letters live. Defaults to memory, which beside a durable broker counts as none: then
    /// failing events wait at the broker.
    pub fn store(mut self, store: impl Store) -> Self {
        self.store = Arc::new(store);
        self
    }

    /// Where the transactions of handlers are that ask for [`Tx`](crate::Tx), if not in the store: their inbox, their fences and
    /// their outbox. Defaults to the store.
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
    pub fn transactions(mut self, database: impl Store) -> Self {
        self.transactions = Some(Arc::new(database));
        self
    }

    /// A format to read; called again, one more, asked in this order. Defaults to CloudEvents.
    pub fn format(mut self, format: impl Format) -> Self {
        if std::mem::take(&mut self.default_format) {
            self.settings.formats.clear();
        }
        self.settings.formats.push(Arc::new(format));
        self
    }

    /// Publishes dead letters to this topic, in the first of the formats that can write them, instead of keeping them in the store;
    /// headers that begin with `aqueduct-dead-` say whose they are, where they stood, and why. Their key goes on when the broker
    /// has confirmed them. If it does not take one, the event stays where it is and [`Health`] says why. The topic must be there
    /// when the service starts. What holds its lane ([`Policy::block`]) stays in the store.
    ///
    /// The trap: a topic only lists. What is in the store can be replayed and mended in the order of its key. Defaults to none.
    ///
    /// ```
    /// # use aqueduct::{Consumer, MemoryBroker};
    /// let consumer = Consumer::new("stock", MemoryBroker::new()).topics(["orders"]).dead_letters_to("orders.dead");
    /// ```
    pub fn dead_letters_to(mut self, topic: impl Into<Topic>) -> Self {
        self.settings.dead_letters = Some(topic.into());
        self
    }

    /// Where to begin when nothing has been settled before. Defaults to the beginning.
    pub fn start(mut self, start: Start) -> Self {
        self.start = start;
        self
    }

    /// Only events of these types, as patterns; others are settled without a handler. Defaults to all.
    #[track_caller]
    pub fn types<'a>(mut self, patterns: impl IntoIterator<Item = &'a str>) -> Self {
        let at = std::panic::Location::caller();
        for pattern in patterns {
            match Pattern::parse(pattern) {
                Ok(pattern) => self.settings.types.push(pattern),
                Err(error) => self.mistakes.push(WiringError::new(error.to_string()).at(at)),
            }
        }
        self
    }

    /// Settles events of this source without a handler: a service that consumes a topic it publishes to gives its own
    /// name here. May be called again. Defaults to none.
    pub fn skip_source(mut self, source: impl Into<Text>) -> Self {
        self.settings.skip_sources.push(source.into());
        self
    }

    /// The policy of routes that have none of their own. Defaults to [`Policy::ordered`].
    pub fn policy(mut self, policy: Policy) -> Self {
        self.settings.policy = policy;
        self
    }

    /// How long an attempt may take, on routes that do not say. Defaults to 30 s.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout;
        self
    }

    /// How many handlers run at the same time; 0 counts as 1. Defaults to 32.
    pub fn concurrency(mut self, handlers: usize) -> Self {
        self.settings.concurrency = handlers.max(1);
        self
    }

    /// How many deliveries are held in memory; 0 counts as 1. Raise it with the concurrency. Defaults to 1,024.
    pub fn buffer(mut self, deliveries: usize) -> Self {
        self.settings.buffer = deliveries.max(1);
        self
    }

    /// How many deliveries of one key are held in memory before all of them move to the store; 0 counts as 1. Defaults
    /// to 64.
    pub fn buffer_per_key(mut self, deliveries: usize) -> Self {
        self.settings.buffer_per_key = deliveries.max(1);
        self
    }

    /// How long a graceful stop may take. Defaults to 30 s.
    pub fn shutdown(mut self, limit: Duration) -> Self {
        self.settings.shutdown = limit;
        self
    }

    /// After how long a running attempt is reported as stuck. Defaults to 5 min.
    pub fn stall(mut self, threshold: Duration) -> Self {
        self.settings.stall = threshold;
        self
    }

    /// Where time and randomness come from. Defaults to the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.settings.clock = clock;
        self
    }

    /// Polls every task of this instance through a gate.
    #[cfg(any(test, feature = "testing"))]
    pub fn gate(mut self, gate: super::gate::Gate) -> Self {
        self.gate = Some(gate);
        self
    }

    #[cfg(test)]
    pub(crate) fn planted(mut self, bug: Planted) -> Self {
        self.settings.planted = Some(bug);
        self
    }

    /// Makes it a service, to be awaited.
    #[track_caller]
    pub fn serve(self, router: Router) -> Serve {
        let at = std::panic::Location::caller();
        Serve { consumer: self, router, at, health: Health::new(), stop: Box::pin(std::future::pending()) }
    }

    fn check(&self, at: &'static std::panic::Location<'static>) -> Result<(), WiringError> {
        if let Some(mistake) = self.mistakes.first() {
            return Err(mistake.clone());
        }
        if self.settings.name.is_empty() {
            return Err(WiringError::new("the consumer has no name: its instances find each other by it").at(at));
        }
        if self.topics.is_empty() {
            let text =
                format!("consumer {:?} has no topics: name them with `.topics([\"orders\"])`", self.settings.name);
            return Err(WiringError::new(text).at(at));
        }
        if let Some(topic) = self.settings.dead_letters.as_ref().filter(|topic| self.topics.contains(topic)) {
            let text = format!(
                "consumer {:?} consumes its own topic of dead letters, {topic:?}: choose another",
                self.settings.name
            );
            return Err(WiringError::new(text).at(at));
        }
        let mut all = self.topics.iter().chain(&self.settings.dead_letters);
        all.try_for_each(|topic| topic.check().map_err(|e| WiringError::new(e.to_string()).at(at)))
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("name", &self.settings.name)
            .field("topics", &self.topics)
            .finish_non_exhaustive()
    }
}

/// A consumer that is ready to run: await it.
///
/// Dropping the future stops everything at once, as a crash would: nothing is lost, and what was in hand comes again.
#[must_use = "a service does nothing until it is awaited"]
pub struct Serve {
    consumer: Consumer,
    router: Router,
    at: &'static std::panic::Location<'static>,
    health: Health,
    stop: BoxFuture<'static, ()>,
}

impl Serve {
    /// Stops in phases when `signal` resolves: it fetches nothing more, lets running attempts finish, cancels them when
    /// four fifths of [`Consumer::shutdown`] have passed, and leaves. Defaults to never.
    pub fn with_graceful_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop = Box::pin(signal);
        self
    }

    /// How it is doing.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    async fn run(self) -> Result<(), ServeError> {
        let Self { consumer, router, at, health, mut stop } = self;
        let _stopped = health.stopped_when_dropped();
        consumer.check(at)?;
        let abilities = consumer.broker.abilities();
        let store_abilities = consumer.store.abilities();
        let app = Arc::new(
            router
                .into_app(&**consumer.transactions.as_ref().unwrap_or(&consumer.store), abilities)
                .map_err(|e| e.at(at))?,
        );
        consumer.check_types(&app, at)?;
        let has_store = store_abilities.durable || !abilities.durable;
        if !has_store {
            let letters = consumer.settings.dead_letters.is_some();
            let dead = if letters { "" } else { ", and no dead letter can be written" };
            tracing::warn!(consumer = %consumer.settings.name, "no durable store: events that fail wait at the broker{dead}");
        }
        health.joining();
        let metrics = ConsumerMetrics::new(consumer.settings.name.as_str());
        let Some(membership) = consumer.join(&health, &metrics, &mut stop).await? else { return Ok(()) };
        health.serving();
        let core = consumer.core(app, membership, (health, metrics), has_store);
        core.run(stop).await
    }
}

impl Consumer {
    /// A type that is asked for and has no route is a mistake.
    fn check_types(&self, app: &App, at: &'static std::panic::Location<'static>) -> Result<(), WiringError> {
        let routed = |types: &&Pattern| !app.patterns().any(|pattern| pattern.overlaps(types));
        let Some(types) = self.settings.types.iter().find(routed) else { return Ok(()) };
        let text = format!(
            "no route for the type {:?} of `Consumer::types`: add one with `Router::on`, or leave the type out",
            types.as_str()
        );
        Err(WiringError::new(text).at(at))
    }

    /// Joins as soon as the broker can be reached; none if the service is to stop before that.
    async fn join(
        &self,
        health: &Health,
        metrics: &ConsumerMetrics,
        stop: &mut BoxFuture<'static, ()>,
    ) -> Result<Option<Arc<dyn Membership>>, BrokerError> {
        let mut failures = 0_u32;
        loop {
            let joined = tokio::select! {
                biased;
                joined = self.try_join() => joined,
                () = &mut *stop => return Ok(None),
            };
            let error = match joined {
                Err(error) if error.is_transient() => error,
                joined => {
                    health.broker_well();
                    return joined.map(Some);
                }
            };
            failures += 1;
            metrics.broker_errors.increment(1);
            tracing::warn!(consumer = %self.settings.name, %error, "the broker cannot be joined; it is tried again");
            health.broker_failing(&error);
            let longest = Duration::from_millis(50 << failures.min(7));
            tokio::select! {
                biased;
                () = &mut *stop => return Ok(None),
                () = tokio::time::sleep(longest / 2 + self.settings.clock.jitter(longest / 2)) => {}
            }
        }
    }

    async fn try_join(&self) -> Result<Arc<dyn Membership>, BrokerError> {
        for topic in self.topics.iter().chain(&self.settings.dead_letters) {
            self.broker.check_topic(topic).await?;
        }
        let mut subscription = Subscription::new(self.settings.name.clone(), self.topics.clone());
        subscription.start = self.start;
        subscription.clock = self.settings.clock.clone();
        self.broker.join(subscription).await
    }

    fn core(
        self,
        app: Arc<App>,
        membership: Arc<dyn Membership>,
        (health, metrics): (Health, ConsumerMetrics),
        has_store: bool,
    ) -> Core {
        #[cfg(any(test, feature = "testing"))]
        let tasks = Tasks::gated(self.gate);
        #[cfg(not(any(test, feature = "testing")))]
        let tasks = Tasks::default();
        let mailbox = Arc::new(Mailbox::default());
        let workers = Workers::new(app, Arc::clone(&mailbox), self.settings.clock.clone(), tasks.clone());
        let Abilities { ownership, durable, .. } = self.broker.abilities();
        let transactions = self.transactions.unwrap_or_else(|| Arc::clone(&self.store));
        // A log that is anew with each process has other positions than those that the store remembers.
        let keeps_floors = has_store && ownership == Ownership::Floor && transactions.abilities().durable == durable;
        let stores = Stores { rows: self.store, transactions, keeps_floors };
        let (broker, formats, consumer) = (self.broker, self.settings.formats.clone(), self.settings.name.clone());
        let letters = self.settings.dead_letters.clone();
        let letters = letters.map(|topic| Arc::new(Letters { broker, topic, formats, consumer }));
        Core::new(
            self.settings,
            Parts { membership, stores, letters, workers, mailbox, tasks, health, metrics, ownership, has_store },
        )
    }
}

impl IntoFuture for Serve {
    type Output = Result<(), ServeError>;
    type IntoFuture = BoxFuture<'static, Result<(), ServeError>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for Serve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Serve").field("consumer", &self.consumer).field("health", &self.health).finish_non_exhaustive()
    }
}

/// Why a service ended, or did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// It is put together wrongly.
    #[error(transparent)]
    Wiring(#[from] WiringError),
    /// The broker refuses for good.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// The database of a relay refuses for good.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The time for a graceful stop was over while attempts were still running; their events come again.
    #[error("{running} attempts had not ended when the time to stop was over; their events come again")]
    Abandoned {
        /// How many.
        running: usize,
    },
}

/// Serves several consumers in one process with one shutdown, and ends when all have ended.
///
/// When one of them fails the others are stopped gracefully; the first failure is the result.
///
/// ```
/// # use aqueduct::{Consumer, MemoryBroker, Router, serve_all};
/// # async fn shutdown_signal() {}
/// # async fn run() -> aqueduct::Result<()> {
/// let broker = MemoryBroker::new();
/// let stock = Consumer::new("stock", broker.clone()).topics(["orders"]).serve(Router::new().on(">", async || ()));
/// let mail = Consumer::new("mail", broker).topics(["orders"]).serve(Router::new().on(">", async || ()));
/// serve_all([stock, mail], shutdown_signal()).await?;
/// # Ok(()) }
/// ```
pub async fn serve_all(
    services: impl IntoIterator<Item = Serve>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let (tell, told) = tokio::sync::watch::channel(false);
    let mut running = tokio::task::JoinSet::new();
    for service in services {
        let mut told = told.clone();
        let signal = async move {
            // An error means that the sender is gone, and with it whoever waits for this service.
            let _ = told.wait_for(|stop| *stop).await;
        };
        running.spawn(service.with_graceful_shutdown(signal).into_future());
    }
    let mut shutdown = std::pin::pin!(shutdown);
    let mut result = Ok(());
    loop {
        let stopping = *tell.borrow();
        let ended = tokio::select! {
            biased;
            () = &mut shutdown, if !stopping => {
                tell.send_replace(true);
                continue;
            }
            ended = running.join_next() => ended,
        };
        match ended {
            None => return result,
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => {
                tell.send_replace(true);
                result = result.and(Err(error));
            }
            Some(Err(join)) => {
                tell.send_replace(true);
                result = result.and(Err(BrokerError::Unavailable(join.into()).into()));
            }
        }
    }
}
