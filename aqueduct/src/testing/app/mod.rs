//! A whole service in one process, for tests of your own handlers.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::broker::MemoryBroker;
use crate::clock::Clock;
use crate::engine::{Consumer, Health, Serve, ServeError};
use crate::error::StoreError;
use crate::event::Event;
use crate::publish::Publisher;
use crate::router::Router;
use crate::store::{Action, Command, CommandState, Listed, MemoryStore, Query, RowState, Store};
use crate::topic::{Place, Topic};

mod records;

pub use records::{Fate, Handled};
use records::{Recorder, Records};

/// The name of the consumer and of the publisher.
const NAME: &str = "test";
/// Enough to have several; each costs a look at the store a second.
const PARTITIONS: u32 = 4;
/// How long to wait for what should come by itself.
const PATIENCE: Duration = Duration::from_mins(5);

/// Your router in the real engine, on a broker and a store in memory, for tests.
///
/// Publish events into it, [wait until it is idle](Self::wait_idle), and look at what they came to. On a paused clock
/// (`start_paused = true`) nothing is waited for in real time: hours of retries take milliseconds. Without a paused clock
/// it works as well, in real time.
///
/// It must be made inside a tokio runtime. Dropping it stops the service.
///
/// ```
/// use aqueduct::testing::{Fate, TestApp};
/// use aqueduct::{Attempt, Error, Event, FaultExt, Json, Result, Router};
/// use std::time::Duration;
///
/// async fn charge(Json(cents): Json<i64>, attempt: Attempt) -> Result<()> {
///     match cents {
///         ..0 => Err(Error::msg("a negative amount")).permanent(),
///         1000.. if attempt.number < 5 => Err(Error::msg("the bank does not answer")),
///         _ => Ok(()),
///     }
/// }
///
/// #[tokio::main(flavor = "current_thread", start_paused = true)]
/// async fn main() -> Result<()> {
///     let app = TestApp::new(Router::new().on("payment.due", charge));
///     for cents in [200, -1, 1000] {
///         app.publish(Event::new("payment.due", &cents)?).await;
///     }
///     app.wait_idle().await;
///     let fates: Vec<Fate> = app.outcomes().await.iter().map(|handled| handled.fate).collect();
///     assert_eq!(fates, [Fate::Done, Fate::Dead, Fate::Parked]);
///     assert!(app.dead().await[0].row.history[0].error.as_str().contains("negative"));
///
///     app.advance(Duration::from_secs(60)).await;
///     assert_eq!(app.outcomes().await[2].errors.len(), 4);
///     assert!(app.parked().await.is_empty());
///     app.stop().await?;
///     Ok(())
/// }
/// ```
pub struct TestApp {
    broker: MemoryBroker,
    store: MemoryStore,
    publisher: Publisher,
    clock: Clock,
    records: Arc<Records>,
    health: Health,
    serving: JoinHandle<Result<(), ServeError>>,
    /// Why the service has ended, if it was not asked to.
    failed: watch::Receiver<Option<String>>,
    stop: oneshot::Sender<()>,
}

impl TestApp {
    /// Serves `router` with every default, from the topic `events`.
    #[track_caller]
    pub fn new(router: Router) -> Self {
        Self::builder(router).start()
    }

    /// Serves `router` with settings of your own.
    pub fn builder(router: Router) -> TestAppBuilder {
        let settings: Box<dyn FnOnce(Consumer) -> Consumer> = Box::new(|consumer| consumer);
        let broker = MemoryBroker::new().partitions(PARTITIONS);
        TestAppBuilder { router, settings, broker, topics: vec!["events".into()] }
    }

    /// Publishes an event; one that names no topic goes to the first of the app's topics. Panics if it is refused.
    ///
    /// What it comes to is the last of [`outcomes`](Self::outcomes).
    pub async fn publish(&self, event: Event) {
        let kind = event.kind.clone();
        let copy = event.clone();
        match self.publisher.publish(event).await {
            Ok(receipt) => {
                let place = Place { position: receipt.position, index: 0 };
                self.records.published(&(receipt.partition, place), copy);
            }
            Err(error) => panic!("the {kind:?} event was not published: {error}"),
        }
    }

    /// Waits until every event is settled and nothing is running or due: what is left waits in the store for a later
    /// time, or for somebody to resolve it. Panics when the service ends before, and after five minutes or a hundred
    /// thousand attempts.
    pub async fn wait_idle(&self) {
        let idle = async {
            loop {
                let changed = self.store.changed();
                self.broker.wait_settled(NAME).await;
                if !self.has_work().await {
                    return;
                }
                changed.await;
            }
        };
        self.patiently("idle", idle, PATIENCE).await;
    }

    /// Lets time pass, and then waits until it is idle. On a paused clock this takes no real time.
    ///
    /// Everything happens at its time on the way, so an event may be tried often while an hour passes.
    pub async fn advance(&self, time: Duration) {
        self.patiently("further", tokio::time::sleep(time), time + PATIENCE).await;
        self.wait_idle().await;
    }

    /// What each event came to, in the order in which they were published, or first tried if somebody else published
    /// them.
    pub async fn outcomes(&self) -> Vec<Handled> {
        let rows = self.rows(None).await;
        self.records.report(&rows, |partition| self.broker.floor(NAME, partition))
    }

    /// The events that wait in the store to be tried again, or behind one that does.
    pub async fn parked(&self) -> Vec<Listed> {
        self.rows(Some(false)).await
    }

    /// The dead letters.
    pub async fn dead(&self) -> Vec<Listed> {
        self.rows(Some(true)).await
    }

    /// Gives an operator's command about a row of [`parked`](Self::parked) or [`dead`](Self::dead), and waits until the
    /// engine has carried it out or refused it. What follows from it may still be running: see
    /// [`wait_idle`](Self::wait_idle).
    ///
    /// An error means that the store refused it at once, as when the row has changed since it was listed.
    pub async fn command(&self, on: &Listed, action: Action) -> Result<CommandState, StoreError> {
        let id = self.store.command(&Command::new(on, action, NAME, NAME)).await?;
        let answered = async {
            loop {
                let changed = self.store.changed();
                match self.store.command_result(id).await? {
                    None | Some(CommandState::Waiting) => changed.await,
                    Some(state) => return Ok(state),
                }
            }
        };
        self.patiently("done with a command", answered, PATIENCE).await
    }

    /// How the service is doing.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    /// The broker: clones of it share its topics.
    pub fn broker(&self) -> &MemoryBroker {
        &self.broker
    }

    /// The store: clones of it share its rows.
    pub fn store(&self) -> &MemoryStore {
        &self.store
    }

    /// The clock that the service lives by. It starts at 2026-01-01 and follows tokio's.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Stops the service gracefully and says how it ended.
    pub async fn stop(self) -> Result<(), ServeError> {
        drop(self.stop);
        self.serving.await.expect("the service does not panic")
    }

    async fn rows(&self, dead: Option<bool>) -> Vec<Listed> {
        let query = Query { dead, limit: usize::MAX, ..Query::default() };
        self.store.browse(&query).await.expect("a store in memory can be read")
    }

    /// True if the head of some lane is due, or a command waits.
    async fn has_work(&self) -> bool {
        let rows = self.rows(None).await;
        let now = self.clock.now();
        let mut lanes = std::collections::BTreeSet::new();
        let holding = rows.iter().filter(|listed| listed.row.holds());
        // Rows come in the order of their places, so the first of a lane that holds it is its head.
        let mut heads = holding.filter(|listed| lanes.insert((&listed.partition, listed.row.lane)));
        heads.any(|head| head.row.state == RowState::Parked && head.row.next_at <= now)
            || self.store.audit().iter().any(|(_, _, state)| *state == CommandState::Waiting)
    }

    /// Waits, but not for ever, and not for a service that has ended.
    async fn patiently<T>(&self, what: &str, wanted: impl Future<Output = T>, limit: Duration) -> T {
        let mut failed = self.failed.clone();
        let failure = async {
            match failed.wait_for(Option::is_some).await {
                Ok(why) => why.clone().unwrap_or_default(),
                Err(_) => "it was stopped".to_owned(),
            }
        };
        tokio::select! {
            biased;
            got = wanted => got,
            why = failure => panic!("the service ended: {why}"),
            attempts = self.records.endless() => {
                panic!("it was not {what} after {attempts} attempts: does a handler publish what it consumes?")
            }
            () = tokio::time::sleep(limit) => {
                let lag = self.broker.lag(NAME).unwrap_or_default();
                let rows = self.rows(None).await;
                panic!("it was not {what} after {limit:?}: {lag} events are not settled, the store has {rows:#?}")
            }
        }
    }
}

impl std::fmt::Debug for TestApp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestApp").field("broker", &self.broker).field("store", &self.store).finish_non_exhaustive()
    }
}

/// The settings of a [`TestApp`].
#[must_use = "nothing runs until it is started"]
pub struct TestAppBuilder {
    router: Router,
    settings: Box<dyn FnOnce(Consumer) -> Consumer>,
    broker: MemoryBroker,
    topics: Vec<Topic>,
}

impl TestAppBuilder {
    /// The topics to consume; events that name none are published to the first. Defaults to `events`.
    pub fn topics<T: Into<Topic>>(mut self, topics: impl IntoIterator<Item = T>) -> Self {
        self.topics = topics.into_iter().map(Into::into).collect();
        self
    }

    /// Changes the consumer's settings, all but its name, topics, store and clock. Defaults to the consumer's defaults.
    pub fn consumer(mut self, settings: impl FnOnce(Consumer) -> Consumer + 'static) -> Self {
        self.settings = Box::new(settings);
        self
    }

    /// The broker, for handlers that publish to it themselves, or for another kind of ownership. Defaults to one of four
    /// partitions.
    pub fn broker(mut self, broker: MemoryBroker) -> Self {
        self.broker = broker;
        self
    }

    /// Starts the service.
    #[track_caller]
    pub fn start(self) -> TestApp {
        let Self { router, settings, broker, topics } = self;
        let (clock, store, records) = (Clock::simulated(1), MemoryStore::new(), Arc::new(Records::default()));
        let mut publisher = Publisher::new(NAME, broker.clone()).clock(clock.clone());
        if let Some(first) = topics.first() {
            publisher = publisher.route(">", first);
        }
        let consumer = settings(Consumer::new(NAME, broker.clone()));
        let consumer = consumer.topics(topics).store(store.clone()).clock(clock.clone());
        // A layer around no route is a mistake, and would hide the real one.
        let recorded = if router.has_routes() { router.layer(Recorder(Arc::clone(&records))) } else { router };
        let serve = consumer.serve(recorded);
        let health = serve.health();
        let (stop, failed, serving) = spawn(serve);
        TestApp { broker, store, publisher, clock, records, health, serving, failed, stop }
    }
}

impl std::fmt::Debug for TestAppBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TestAppBuilder").field("router", &self.router).finish_non_exhaustive()
    }
}

type Serving = (oneshot::Sender<()>, watch::Receiver<Option<String>>, JoinHandle<Result<(), ServeError>>);

/// Serves until the sender is dropped.
fn spawn(serve: Serve) -> Serving {
    let (stop, stopped) = oneshot::channel::<()>();
    let (tell, failed) = watch::channel(None);
    let serving = tokio::spawn(async move {
        let ended = serve.with_graceful_shutdown(async { drop(stopped.await) }).into_future().await;
        if let Err(error) = &ended {
            tell.send_replace(Some(error.to_string()));
        }
        ended
    });
    (stop, failed, serving)
}
