//! A service that writes an effect of each event into a database, and what must be there in the end whatever happened meanwhile.

use std::collections::BTreeMap;
use std::ops::DerefMut;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use aqueduct::broker::{Abilities, Arrival, Broker, Membership, Receipt, Room, Settle, Subscription};
use aqueduct::extract::FromCall;
use aqueduct::sql::{ServerDatabase, ServerOptions, SqlStore};
use aqueduct::sqlite::{SqliteBroker, SqliteFile};
use aqueduct::store::{Query, Store};
use aqueduct::{
    Attempt, BoxFuture, BrokerError, Consumer, Epoch, Event, Health, Message, Partition, Policy, Publisher, Result,
    Router, Text, Topic, Tx, TxBatch,
};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::fresh::TestDatabase;
use crate::logs::{BOUND, Logs};

/// Of the events; few enough for many events of each.
pub(crate) const KEYS: usize = 50;

/// What a handler does before it writes the effect.
pub(crate) type Work<DB> =
    Arc<dyn for<'a> Fn(&'a mut dyn Given<DB>, &'a Event, Attempt) -> BoxFuture<'a, Result<()>> + Send + Sync>;

type Connection<DB> = <DB as sqlx::Database>::Connection;

/// What a handler has of its transaction, its own or one that it shares.
pub(crate) trait Given<DB: TestDatabase>: DerefMut<Target = Connection<DB>> + Send {
    fn publish(&mut self, event: Event) -> BoxFuture<'_, Result<()>>;
}

macro_rules! given {
    ($transaction:ident) => {
        impl<DB: TestDatabase> Given<DB> for $transaction<DB> {
            fn publish(&mut self, event: Event) -> BoxFuture<'_, Result<()>> {
                Box::pin(async move { self.publish(event).await.map(drop) })
            }
        }
    };
}

given!(Tx);
given!(TxBatch);

/// Its parts. The log is an embedded one, so that it survives whatever happens to the database.
pub(crate) struct Service<DB: TestDatabase> {
    pub(crate) database: ServerDatabase<DB>,
    /// The database itself, for the test's own statements.
    pub(crate) url: String,
    pub(crate) broker: SqliteBroker,
    pub(crate) logs: Logs,
    published: AtomicUsize,
    concurrency: usize,
    timeout: Duration,
    /// Handlers share their transactions.
    batched: bool,
    work: Work<DB>,
    attempts: Arc<AtomicU32>,
    _folder: tempfile::TempDir,
}

/// A service that runs.
pub(crate) struct Running {
    broker: Watched,
    logs: Logs,
    handled: watch::Receiver<usize>,
    pub(crate) health: Health,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl<DB: TestDatabase> Service<DB> {
    /// `options` say how the service reaches its database, `url` how the test does.
    pub(crate) async fn new(logs: &Logs, options: ServerOptions<DB>, url: impl Into<String>) -> Self {
        Self::with_partitions(logs, options, url, 8).await
    }

    pub(crate) async fn with_partitions(
        logs: &Logs,
        options: ServerOptions<DB>,
        url: impl Into<String>,
        partitions: u32,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = SqliteFile::options(folder.path().join("log.db")).relaxed().partitions(partitions);
        let file = file.open().await.unwrap();
        let service = Self {
            database: options.connect().await.unwrap(),
            url: url.into(),
            broker: SqliteBroker::new(&file),
            logs: logs.clone(),
            published: AtomicUsize::new(0),
            concurrency: 16,
            timeout: Duration::from_secs(30),
            batched: false,
            work: Arc::new(|_, _, _| Box::pin(async { Ok(()) })),
            attempts: Arc::default(),
            _folder: folder,
        };
        service
            .run(&format!("create table {EFFECTS} ({}, event varchar(100), name varchar(100), n bigint)", DB::SERIAL))
            .await;
        service
    }

    /// What a handler does before it writes the effect.
    pub(crate) fn work(mut self, work: Work<DB>) -> Self {
        self.work = work;
        self
    }

    pub(crate) fn batched(mut self) -> Self {
        self.batched = true;
        self
    }

    pub(crate) fn concurrency(mut self, handlers: usize) -> Self {
        self.concurrency = handlers;
        self
    }

    pub(crate) fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    pub(crate) async fn run(&self, sql: &str) {
        DB::run(&mut DB::connect_to(&self.url).await.unwrap(), sql.to_owned()).await.unwrap();
    }

    pub(crate) async fn number(&self, sql: &str) -> i64 {
        DB::number(&mut DB::connect_to(&self.url).await.unwrap(), sql.to_owned()).await.unwrap()
    }

    /// Publishes more events, each with its number in its key.
    pub(crate) async fn publish(&self, count: usize) {
        let publisher = Publisher::new("shop", self.broker.clone());
        let begin = self.published.fetch_add(count, Ordering::SeqCst);
        let event = |at: usize| {
            let (key, n) = (at % KEYS, at / KEYS);
            Event::raw("order.placed", n.to_string())
                .id(format!("event {at}"))
                .topic("orders")
                .key(format!("key {key}"))
        };
        for receipt in publisher.publish_all((begin..begin + count).map(event).collect()).await {
            receipt.unwrap();
        }
    }

    /// Serves until it is told to stop.
    pub(crate) async fn start(&self) -> Running {
        let floors = match self.broker.status().await.unwrap().consumers.first() {
            Some(consumer) => consumer.floors.iter().map(|f| (f.partition.clone(), f.floor.0)).collect(),
            None => BTreeMap::new(),
        };
        let broker = Watched { inner: Arc::new(self.broker.clone()), floors: Arc::new(watch::Sender::new(floors)) };
        let (ended, handled) = watch::channel(0);
        let app = if self.batched { self.app::<TxBatch<DB>>(ended) } else { self.app::<Tx<DB>>(ended) };
        let policy = Policy::ordered().quick_attempts(3).quick_delay(Duration::from_millis(1));
        let consumer = Consumer::new("stock", broker.clone())
            .topics(["orders"])
            .store(SqlStore::new(&self.database))
            .policy(policy.parked_delay(Duration::from_millis(50)))
            .concurrency(self.concurrency)
            .timeout(self.timeout);
        let (stop, stopped) = oneshot::channel();
        let serve = consumer.serve(app).with_graceful_shutdown(async {
            let _ = stopped.await;
        });
        let health = serve.health();
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Running { broker, logs: self.logs.clone(), handled, health, stop, task }
    }

    fn app<T>(&self, ended: watch::Sender<usize>) -> Router
    where
        T: FromCall<()> + Given<DB> + 'static,
    {
        let (work, attempts) = (Arc::clone(&self.work), Arc::clone(&self.attempts));
        let act = move |event: Event, attempt: Attempt, mut tx: T| {
            let (work, attempts, ended) = (Arc::clone(&work), Arc::clone(&attempts), ended.clone());
            async move {
                attempts.fetch_max(attempt.number, Ordering::SeqCst);
                work(&mut tx, &event, attempt).await?;
                effect::<DB>(&mut tx, &event).await?;
                ended.send_modify(|ended| *ended += 1);
                Ok::<_, aqueduct::Error>(())
            }
        };
        Router::new().on("order.placed", act)
    }

    /// Waits until all that was published is settled, and stops the service.
    pub(crate) async fn settle_all(&self, running: Running) {
        running.settled(self.published.load(Ordering::SeqCst) as u64).await;
        let nothing_left = async {
            let store = SqlStore::new(&self.database);
            // Parked events count as settled for the broker.
            while !store.browse(&Query::default()).await.unwrap().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(BOUND, nothing_left).await.expect("all that was parked ends");
        running.stop().await;
    }

    /// Every event has taken effect, once, and those of a key in their order; and nothing is left.
    pub(crate) async fn check(&self) {
        self.check_once().await;
        self.check_order().await;
    }

    /// Every event has taken effect, once, and nothing is left.
    pub(crate) async fn check_once(&self) {
        let published = i64::try_from(self.published.load(Ordering::SeqCst)).unwrap();
        let effects = self.number(&format!("select count(*) from {EFFECTS}")).await;
        let distinct = self.number(&format!("select count(distinct event) from {EFFECTS}")).await;
        assert_eq!((effects, distinct), (published, published), "effects, and events with one\n{}", self.logs.text());
        assert_eq!(self.number("select count(*) from aq_inbox").await, published);
        let rows = SqlStore::new(&self.database).browse(&Query::default()).await.unwrap();
        assert!(rows.is_empty(), "{rows:?}");
    }

    /// The effects of a key were written in its order.
    pub(crate) async fn check_order(&self) {
        let disorder = format!(
            "select count(*) from {EFFECTS} a join {EFFECTS} b on a.name = b.name and a.id < b.id and a.n >= b.n"
        );
        assert_eq!(self.number(&disorder).await, 0, "effects of a key out of order\n{}", self.logs.text());
    }

    /// The highest number that an attempt had.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::SeqCst)
    }
}

/// No constraint of it hides a second effect.
pub(crate) const EFFECTS: &str = "effects";

async fn effect<DB: TestDatabase>(tx: &mut Connection<DB>, event: &Event) -> Result<()> {
    let (n, key) = (String::from_utf8_lossy(&event.data), event.key.as_ref().map(Text::from).unwrap_or_default());
    let sql = format!("insert into {EFFECTS} (event, name, n) values ('{}', '{key}', {n})", event.id);
    Ok(DB::run(tx, sql).await?)
}

impl Running {
    /// Waits until so many handlers have come to their end.
    pub(crate) async fn handled(&self, count: usize) {
        let mut handled = self.handled.clone();
        let many = handled.wait_for(|handled| *handled >= count);
        let done = tokio::time::timeout(BOUND, many).await.is_ok();
        assert!(done, "only {} of {count} were handled: {}", *self.handled.borrow(), self.health.reason());
    }

    /// Waits until so many events are settled at the broker.
    pub(crate) async fn settled(&self, count: u64) {
        let mut floors = self.broker.floors.subscribe();
        let all = floors.wait_for(|floors| floors.values().sum::<u64>() >= count);
        if tokio::time::timeout(BOUND, all).await.is_err() {
            let (floors, why) = (self.broker.floors.borrow().clone(), self.health.reason());
            panic!("not all of {count} is settled: {floors:?}\n{why}\n{}", self.logs.text());
        }
    }

    /// How many handlers have come to their end.
    pub(crate) fn count(&self) -> usize {
        *self.handled.borrow()
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(BOUND, self.task).await.expect("it stops").unwrap();
    }
}

/// A broker whose floors can be waited for.
#[derive(Clone)]
struct Watched {
    inner: Arc<dyn Broker>,
    floors: Floors,
}

type Floors = Arc<watch::Sender<BTreeMap<Partition, u64>>>;

impl Broker for Watched {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        self.inner.publish(messages)
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.check_topic(topic)
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(async {
            let inner = self.inner.join(subscription).await?;
            Ok(Arc::new(WatchedMembership { inner, floors: Arc::clone(&self.floors) }) as Arc<dyn Membership>)
        })
    }
}

struct WatchedMembership {
    inner: Arc<dyn Membership>,
    floors: Floors,
}

impl Membership for WatchedMembership {
    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>> {
        self.inner.next(room)
    }

    fn settle<'a>(&'a self, partition: &'a Partition, settles: &'a [Settle]) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            self.inner.settle(partition, settles).await?;
            if let Some(Settle::Floor(floor)) = settles.last() {
                self.floors.send_modify(|floors| {
                    floors.insert(partition.clone(), floor.0);
                });
            }
            Ok(())
        })
    }

    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.release(partition, above)
    }

    fn stream(&self, partition: &Partition) -> Option<Text> {
        self.inner.stream(partition)
    }

    fn heartbeat(&self) -> BoxFuture<'_, ()> {
        self.inner.heartbeat()
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.inner.leave()
    }
}
