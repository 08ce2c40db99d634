//! What the other processes of these tests do: this test binary, started again with a task.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aqueduct::broker::{Abilities, Broker, Membership, Receipt, Subscription};
use aqueduct::extract::{FromCall, Rejection};
use aqueduct::mysql::MySql;
use aqueduct::postgres::Postgres;
use aqueduct::sql::SqlStore;
use aqueduct::sqlite::{Sqlite, SqliteBroker, SqliteFile};
use aqueduct::store::{Action, Command, CommandState, Content, Listed, Query, Store};
use aqueduct::{
    Attempt, BoxFuture, BrokerError, Call, Consumer, Error, Event, FaultExt, Health, Message, Next, Origin, Outcome,
    Policy, Publisher, Result, Router, State, StoreError, Topic, Tx, TxBatch, Unit,
};
use serde_json::{Value, json};
use sqlx::{Connection, Database as _, SqliteConnection};
use tower::Service;
use tower::layer::layer_fn;
use tracing_subscriber::layer::SubscriberExt;

use crate::bank::{ACCOUNTS, Bank};
use crate::history::History;
use crate::points::{Points, SteppedBroker, SteppedStore};
use crate::process::Warnings;
use crate::stopped_worker;

/// Names the file with the task.
pub(crate) const TASK: &str = "AQUEDUCT_DATABASES_WORKER";

pub(crate) const CONSUMER: &str = "bank";

pub(crate) const TOPIC: &str = "transfers";

/// Where the doubles of some keys are: their partitions, and with them the attempts on one event, are at work at the same
/// time.
pub(crate) const MIRROR: &str = "mirror";

/// What every handler publishes, once for each event.
pub(crate) const FOLLOW_UPS: &str = "followups";

const KEYS: usize = 8;

/// Nothing takes so long, on a busy machine too.
const STANDSTILL: Duration = Duration::from_secs(30);

/// What is to be done by a process.
struct Task(Value);

impl Task {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    fn number(&self, name: &str) -> usize {
        usize::try_from(self.0[name].as_u64().unwrap_or(0)).unwrap()
    }

    fn folder(&self) -> PathBuf {
        self.text("folder").into()
    }

    fn history(&self) -> History {
        History::append_to(&history_path(&self.folder(), self.text("process")))
    }

    fn points(&self) -> Points {
        let at = self.0["die_at"].as_str().map(|step| (step.to_owned(), u32::try_from(self.number("nth")).unwrap()));
        Points::new(self.history(), at)
    }
}

pub(crate) fn database(folder: &Path) -> PathBuf {
    folder.join("aqueduct.db")
}

/// The file with the log, without waiting for a disk that a killed process does not need.
pub(crate) async fn open(folder: &Path) -> SqliteFile {
    SqliteFile::options(database(folder)).relaxed().partitions(4).open().await.unwrap()
}

/// Where a process writes its history.
pub(crate) fn history_path(folder: &Path, process: &str) -> PathBuf {
    folder.join(format!("{process}.jsonl"))
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn process() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task = Task(serde_json::from_slice(&std::fs::read(task).unwrap()).unwrap());
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Warnings)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let stands = task.0["stands_at"].is_string();
        match task.text("database") {
            Postgres::NAME if stands => stopped_worker::consume::<Postgres>(task.0).await,
            MySql::NAME if stands => stopped_worker::consume::<MySql>(task.0).await,
            Postgres::NAME => consume::<Postgres>(task).await,
            MySql::NAME => consume::<MySql>(task).await,
            Sqlite::NAME => consume::<Sqlite>(task).await,
            other => panic!("no database {other:?}"),
        }
    });
}

/// What the world has in store for an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    Fine,
    /// Fails so many times.
    Fails(u32),
    Panics,
    /// Fails for good.
    Refused,
    /// Fails every time, though it says that it might not.
    Poison,
    /// Fails for good, until an operator asks for another attempt.
    Mendable,
}

/// So many events have every fate, on another key each time.
pub(crate) const FATES: usize = 37;

/// An order to move money.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Transfer(pub(crate) usize);

impl Transfer {
    pub(crate) fn of(id: &str) -> Self {
        Self(id.rsplit_once('-').unwrap().1.parse().unwrap())
    }

    pub(crate) fn id(self) -> String {
        format!("transfer-{:06}", self.0)
    }

    /// The id of what its handler publishes.
    pub(crate) fn follow_up(self) -> String {
        format!("after-{:06}", self.0)
    }

    pub(crate) fn key(self) -> usize {
        self.0 % KEYS
    }

    /// Its number among those of its key.
    pub(crate) fn counter(self) -> usize {
        self.0 / KEYS
    }

    /// True if its double is in the same lane, behind it.
    pub(crate) fn is_doubled_in_its_lane(self) -> bool {
        self.key().is_multiple_of(2)
    }

    /// From one account to another, and how much.
    pub(crate) fn moves(self) -> [(usize, i64); 2] {
        let (from, to) = (self.0 % ACCOUNTS, (self.0 * 5 + 1) % ACCOUNTS);
        let to = if to == from { (to + 1) % ACCOUNTS } else { to };
        let amount = i64::try_from(self.0 % 17 + 1).unwrap();
        let mut moves = [(from, -amount), (to, amount)];
        // In the order of accounts, so that no two transfers wait for each other.
        moves.sort_unstable();
        moves
    }

    pub(crate) fn fate(self) -> Fate {
        match self.0 % FATES {
            3 => Fate::Panics,
            5 | 21 => Fate::Fails(1),
            9 | 28 => Fate::Fails(4),
            13 => Fate::Refused,
            17 => Fate::Mendable,
            25 => Fate::Poison,
            _ => Fate::Fine,
        }
    }

    /// True if it ends as a dead letter.
    pub(crate) fn is_dead(self) -> bool {
        matches!(self.fate(), Fate::Refused | Fate::Poison)
    }

    fn event(self) -> Event {
        let event = Event::raw("transfer.ordered", self.0.to_string()).id(self.id()).source("teller");
        event.topic(TOPIC).key(format!("key {}", self.key()))
    }
}

/// Publishes every message twice: the second has another place, and the same event.
#[derive(Clone)]
struct Doubling(SteppedBroker);

impl Doubling {
    fn double(message: &Message) -> Message {
        let mut double = message.clone();
        let id = message.dedup_id.as_ref().unwrap();
        if Transfer::of(id.as_str()).is_doubled_in_its_lane() {
            double.dedup_id = Some(format!("{id} again").into());
        } else {
            double.topic = MIRROR.into();
        }
        double
    }
}

impl Broker for Doubling {
    fn abilities(&self) -> Abilities {
        self.0.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        let messages = messages.into_iter().flat_map(|message| [Self::double(&message), message]).collect();
        Box::pin(async move {
            let answers = self.0.publish(messages).await;
            let mut answers = answers.into_iter();
            std::iter::from_fn(|| answers.next().zip(answers.next())).map(|(double, first)| double.and(first)).collect()
        })
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.0.check_topic(topic)
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        self.0.join(subscription)
    }
}

/// What handlers share.
struct World<DB: Bank> {
    history: History,
    points: Points,
    file: SqliteFile,
    sql: Arc<SqlStore<DB::Ledger>>,
    prefix: String,
    life: usize,
    /// Handlers share their transactions.
    batched: bool,
}

impl<DB: Bank> World<DB> {
    async fn transfer(&self, event: &Event, tx: &mut Inside<DB>) -> Result<()> {
        let (prefix, transfer) = (&self.prefix, Transfer::of(event.id.as_str()));
        for (account, amount) in transfer.moves() {
            let sql = format!("update {prefix}accounts set balance = balance + {amount} where id = {account}");
            tx.run(sql).await?;
        }
        let values = format!("{}, {}, {}, {}", transfer.0, transfer.key(), transfer.counter(), self.life);
        tx.run(format!("insert into {prefix}effects (event, lane, counter, life) values ({values})")).await?;
        let follow_up = Event::raw("transfer.done", "").id(transfer.follow_up()).source(CONSUMER).topic(FOLLOW_UPS);
        tx.publish(follow_up).await
    }

    /// Fails or panics if that is the event's fate.
    fn meet_fate(&self, event: &Event, attempt: Attempt) -> Result<()> {
        match Transfer::of(event.id.as_str()).fate() {
            Fate::Fails(times) if attempt.number <= times => Err(Error::msg("not this time")),
            Fate::Poison => Err(Error::msg("nothing can be made of this transfer")),
            Fate::Refused => Err(Error::msg("it is refused")).permanent(),
            Fate::Mendable if !attempt.replay => Err(Error::msg("somebody must mend this")).permanent(),
            Fate::Panics if attempt.number == 1 => {
                self.history.note(json!({"failed": event.id.as_str()}));
                panic!("the handler of {} hits a bug", event.id)
            }
            _ => Ok(()),
        }
    }
}

/// The transaction of a handler whose service has a store that is wrapped.
enum Inside<DB: Bank> {
    Alone(Tx<DB>),
    Shared(TxBatch<DB>),
}

impl<DB: Bank> FromCall<Arc<World<DB>>> for Inside<DB> {
    async fn from_call(call: &Call, world: &Arc<World<DB>>) -> Result<Self, Rejection> {
        if world.batched {
            TxBatch::from_call(call, world).await.map(Self::Shared)
        } else {
            Tx::from_call(call, world).await.map(Self::Alone)
        }
    }
}

impl<DB: Bank> Inside<DB> {
    async fn run(&mut self, sql: String) -> Result<()> {
        match self {
            Self::Alone(tx) => DB::run(tx, sql).await?,
            Self::Shared(tx) => DB::run(tx, sql).await?,
        }
        Ok(())
    }

    async fn publish(&mut self, event: Event) -> Result<()> {
        match self {
            Self::Alone(tx) => tx.publish(event).await.map(drop),
            Self::Shared(tx) => tx.publish(event).await.map(drop),
        }
    }
}

/// Whatever fails does so after all the work.
async fn transfer<DB: Bank>(
    event: Event,
    attempt: Attempt,
    State(world): State<Arc<World<DB>>>,
    mut tx: Inside<DB>,
) -> Result<()> {
    world.points.reach("tx.inbox", "after");
    world.history.note(json!({"start": event.id.as_str(), "attempt": attempt.number, "stored": attempt.stored}));
    let mut done = world.transfer(&event, &mut tx).await;
    world.points.reach("tx.handler", "after");
    if done.is_ok() {
        done = world.meet_fate(&event, attempt);
    }
    let how = if done.is_ok() { "returned" } else { "failed" };
    world.history.note(json!({how: event.id.as_str()}));
    done
}

/// Around a handler: hands it the database behind the store that is wrapped, and has the steps of its commit.
struct Around<DB: Bank> {
    next: Next,
    world: Arc<World<DB>>,
}

impl<DB: Bank> Clone for Around<DB> {
    fn clone(&self) -> Self {
        Self { next: self.next.clone(), world: Arc::clone(&self.world) }
    }
}

impl<DB: Bank> Service<Call> for Around<DB> {
    type Response = Outcome;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Outcome, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let Origin { consumer, partition, epoch, lease, .. } = &**call.origin();
        let origin = Origin::new(consumer.clone(), partition.clone(), *epoch, lease.clone());
        let origin = Arc::new(origin.with_store(Arc::clone(&self.world.sql) as _));
        let event = Arc::clone(call.event_arc());
        let inner = Call::new(Arc::clone(&event), origin, call.place(), call.attempt());
        let next = self.next.call(match call.deadline() {
            Some(deadline) => inner.with_deadline(deadline),
            None => inner,
        });
        let world = Arc::clone(&self.world);
        Box::pin(async move {
            world.points.reach("tx.begin", "before");
            let outcome = next.await?;
            if outcome.is_done() && !outcome.has_unit() {
                world.history.note(json!({"skipped": event.id.as_str()}));
            }
            let points = world.points.clone();
            Ok(if outcome.has_unit() { Outcome::done_with(Box::new(Commit { outcome, points })) } else { outcome })
        })
    }
}

struct Commit {
    outcome: Outcome,
    points: Points,
}

impl Unit for Commit {
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            self.points.reach("tx.commit", "before");
            let done = self.outcome.commit().await;
            if done.is_ok() {
                self.points.reach("tx.commit", "after");
            }
            done
        })
    }
}

fn policy() -> Policy {
    Policy::ordered()
        .quick_attempts(2)
        .quick_delay(Duration::from_millis(1))
        .parked_delay(Duration::from_millis(4))
        .parked_delay_max(Duration::from_millis(16))
        .max_attempts(6)
}

/// Publishes transfers and carries them out, until all is settled. Then it stops gracefully.
async fn consume<DB: Bank>(task: Task) {
    let (points, file) = (task.points(), open(&task.folder()).await);
    let prefix = task.text("prefix").to_owned();
    let home = DB::open(&file, &prefix, points.clone()).await;
    println!("\n@up");
    let broker = SteppedBroker { inner: SqliteBroker::new(&file), points: points.clone() };
    let sql = Arc::new(SqlStore::new(&home));
    let store = SteppedStore { inner: SqlStore::clone(&sql), points: points.clone() };
    let (history, life) = (task.history(), task.number("life"));
    let batched = task.0["batched"] == true;
    let world = Arc::new(World::<DB> { history, points, file, sql, prefix, life, batched });
    let around = Arc::clone(&world);
    let app = Router::new()
        .on("transfer.ordered", transfer::<DB>)
        .layer(layer_fn(move |next| Around { next, world: Arc::clone(&around) }))
        .with_state(Arc::clone(&world));
    let consumer = Consumer::new(CONSUMER, broker.clone()).topics([TOPIC, MIRROR]).policy(policy());
    let serve = consumer.store(store.clone()).serve(app);
    let settled = until_settled(task, world, (Doubling(broker), store), serve.health());
    serve.with_graceful_shutdown(settled).await.unwrap();
}

/// Does everything else that is to be done, and waits until nothing is left.
async fn until_settled<DB: Bank>(
    task: Task,
    world: Arc<World<DB>>,
    (broker, store): (Doubling, SteppedStore<SqlStore<DB::Ledger>>),
    health: Health,
) {
    publish(&task, &world.history, Publisher::new("teller", broker)).await;
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(world.file.path()).read_only(true);
    let mut log = SqliteConnection::connect_with(&options).await.unwrap();
    let mut called = world.points.called.subscribe();
    loop {
        called.borrow_and_update();
        let changed = world.file.changed();
        let mended = mend(&store).await;
        let left = left(&mut log).await + parked(&store.inner).await;
        if mended && left == 0 {
            return;
        }
        let something = async {
            tokio::select! {
                biased;
                _ = called.changed() => {}
                () = changed => {}
            }
        };
        let stands_still = tokio::time::timeout(STANDSTILL, something).await.is_err();
        assert!(!stands_still, "{left} are left, and nothing has happened for {STANDSTILL:?}: {}", health.reason());
    }
}

/// Publishes a range of the transfers, as one does who does not know what was confirmed before.
async fn publish(task: &Task, history: &History, publisher: Publisher) {
    let numbers: Vec<usize> = (task.number("from")..task.number("to")).collect();
    for wave in numbers.chunks(20) {
        let receipts = publisher.publish_all(wave.iter().map(|n| Transfer(*n).event()).collect()).await;
        for receipt in receipts {
            receipt.unwrap();
        }
        history.note(json!({"confirmed": wave.last().unwrap() + 1}));
    }
}

/// What of the log is not settled.
pub(crate) async fn left(log: &mut SqliteConnection) -> i64 {
    let sql = "select coalesce(sum(p.next - 1 - f.floor), 1) from aq_floors f, aq_partitions p
         where f.consumer = ? and p.topic = f.topic and p.number = f.number";
    sqlx::query_scalar(sql).bind(CONSUMER).fetch_one(log).await.unwrap()
}

/// What the store has to do still.
pub(crate) async fn parked<H: aqueduct::sql::Home>(store: &SqlStore<H>) -> i64 {
    let shards = store.shards().await.unwrap();
    i64::try_from(shards.iter().map(|shard| shard.parked + shard.waiting).sum::<u64>()).unwrap()
}

/// Asks for another attempt on what can be mended. True if no such dead letter is there.
async fn mend<H: aqueduct::sql::Home>(store: &SteppedStore<SqlStore<H>>) -> bool {
    let dead = rows(&store.inner, Some(true)).await;
    let mendable = dead.iter().filter(|listed| transfer_of(listed).fate() == Fate::Mendable);
    let commands: Vec<Command> =
        mendable.map(|listed| Command::new(listed, Action::Replay, "test", "it was mended")).collect();
    if commands.is_empty() {
        return true;
    }
    let mut asked = store.inner.audit(usize::MAX).await.unwrap();
    asked.retain(|(_, _, state)| *state == CommandState::Waiting);
    for command in commands.iter().filter(|command| asked.iter().all(|(_, other, _)| other != *command)) {
        match store.command(command).await {
            // The row may have changed since it was looked at.
            Ok(_) | Err(StoreError::Refused(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    false
}

/// Parked events and dead letters, or those that are dead or not.
pub(crate) async fn rows(store: &dyn Store, dead: Option<bool>) -> Vec<Listed> {
    let mut query = Query::default();
    (query.dead, query.limit) = (dead, usize::MAX);
    store.browse(&query).await.unwrap()
}

pub(crate) fn transfer_of(listed: &Listed) -> Transfer {
    match &listed.row.content {
        Content::Event(event) => Transfer::of(event.id.as_str()),
        Content::Undecodable(message) => panic!("{message:?} was published as an event"),
    }
}
