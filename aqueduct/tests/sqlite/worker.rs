//! What the other processes of these tests do: this test binary, started again with a task.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command as Program, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aqueduct::format::{CloudEvents, Decoded, Format};
use aqueduct::sqlite::{Sqlite, SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::store::{Action, Command, CommandState, Content, Listed, Query, Store};
use aqueduct::{
    Attempt, Clock, Consumer, Error, Event, FaultExt, Health, Key, Message, Policy, Publisher, Result, Router, State,
    StoreError, Tx,
};
use serde_json::{Value, json};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::oneshot;
use tower::util::MapResponseLayer;
use tracing_subscriber::layer::SubscriberExt;

use crate::history::History;
use crate::points::{Points, SteppedBroker, SteppedStore};
use crate::process::Warnings;

/// Names the file with the task.
pub(crate) const TASK: &str = "AQUEDUCT_WORKER";

pub(crate) const TOPIC: &str = "webhooks";

/// What every handler publishes, once for each event.
pub(crate) const FOLLOW_UPS: &str = "followups";

/// Events in the file of real ones.
pub(crate) const FILE_EVENTS: usize = 329;

/// What is to be done by a process.
pub(crate) struct Task(pub(crate) Value);

impl Task {
    fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap_or_default()
    }

    fn number(&self, name: &str) -> u64 {
        self.0[name].as_u64().unwrap_or(0)
    }

    fn is(&self, name: &str) -> bool {
        self.0[name].as_bool().unwrap_or(false)
    }

    fn folder(&self) -> PathBuf {
        self.text("folder").into()
    }

    async fn file(&self) -> SqliteFile {
        let options = SqliteFile::options(database(&self.folder()));
        if self.is("relaxed") { options.relaxed() } else { options }.open().await.unwrap()
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

/// Where a process writes its history.
pub(crate) fn history_path(folder: &Path, process: &str) -> PathBuf {
    folder.join(format!("{process}.jsonl"))
}

/// Tells the test something. It may look like the runner's own line otherwise.
fn say(text: impl std::fmt::Display) {
    println!("\n@{text}");
}

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn process() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task = Task(serde_json::from_slice(&std::fs::read(task).unwrap()).unwrap());
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Warnings)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        match task.text("role") {
            "consumer" => consume(task).await,
            "publisher" => publish_for_a_time(&task).await,
            "starter" => start_programs(task).await,
            role => panic!("no role {role:?}"),
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

pub(crate) fn fate(number: usize) -> Fate {
    match number % FILE_EVENTS {
        60 => Fate::Poison,
        110 | 250 => Fate::Refused,
        150 => Fate::Mendable,
        n if n % 41 == 7 => Fate::Fails(4),
        n if n % 13 == 5 => Fate::Fails(1),
        n if n % 97 == 21 => Fate::Panics,
        _ => Fate::Fine,
    }
}

/// The number of an event, and who published it.
pub(crate) fn parts(id: &str) -> (&str, usize) {
    let (by, number) = id.rsplit_once('-').unwrap();
    (by, number.parse().unwrap())
}

/// The real events, under new ids: one publisher goes through the file again and again.
pub(crate) struct Events {
    by: String,
    lines: Vec<&'static str>,
}

impl Events {
    pub(crate) fn of(by: &str) -> Self {
        let lines: Vec<_> = include_str!("../../examples/data/github-webhooks.ndjson").lines().collect();
        assert_eq!(lines.len(), FILE_EVENTS);
        Self { by: by.to_owned(), lines }
    }

    pub(crate) fn id(&self, number: usize) -> String {
        format!("{}-{number:06}", self.by)
    }

    pub(crate) fn get(&self, number: usize) -> Event {
        let mut message = Message::new(TOPIC, self.lines[number % FILE_EVENTS]);
        message.headers = [("content-type", "application/cloudevents+json")].into_iter().collect();
        match CloudEvents::structured().decode(&message).unwrap() {
            Decoded::One(event) => event.id(self.id(number)).source("github").topic(TOPIC),
            Decoded::Batch(_) => panic!("a line holds one event"),
        }
    }
}

/// The id of what a consumer's handler publishes.
pub(crate) fn follow_up_id(consumer: &str, event: &str) -> String {
    format!("{consumer} {event}")
}

/// What handlers share.
struct World {
    history: History,
    points: Points,
    file: SqliteFile,
    publisher: Publisher,
    consumer: String,
    life: i64,
    /// When a handler was started last, and the longest time without one while an event waited, in milliseconds.
    started_at: AtomicU64,
    gap_max: AtomicU64,
}

impl World {
    fn follow_up(&self, event: &Event) -> Event {
        let id = follow_up_id(&self.consumer, event.id.as_str());
        Event::raw("followed.up", "").id(id).source("worker").topic(FOLLOW_UPS)
    }

    fn start(&self, event: &Event, attempt: Attempt) {
        self.history.note(json!({"start": event.id.as_str(), "attempt": attempt.number, "stored": attempt.stored}));
        let now = now_ms();
        let before = self.started_at.swap(now, Ordering::SeqCst);
        if let (1, false, Some(time)) = (attempt.number, attempt.stored, event.time) {
            let ready = before.max(u64::try_from(time.unix_ms()).unwrap_or(0));
            self.gap_max.fetch_max(now.saturating_sub(ready), Ordering::SeqCst);
        }
    }

    fn end<T>(&self, event: &Event, result: Result<T>) -> Result<T> {
        let how = if result.is_ok() { "effect" } else { "failed" };
        self.history.note(json!({how: event.id.as_str()}));
        result
    }

    /// Fails or panics if that is the event's fate.
    fn meet_fate(&self, event: &Event, attempt: Attempt) -> Result<()> {
        match fate(parts(event.id.as_str()).1) {
            Fate::Fails(times) if attempt.number <= times => Err(Error::msg("not this time")),
            Fate::Poison => Err(Error::msg("nothing can be made of this event")),
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

fn now_ms() -> u64 {
    u64::try_from(Clock::system().now().unix_ms()).unwrap()
}

/// Its effect is a line in the history.
async fn plain(event: Event, attempt: Attempt, State(world): State<Arc<World>>) -> Result<()> {
    world.start(&event, attempt);
    tokio::task::yield_now().await;
    world.end(&event, work(&world, &event, attempt).await)
}

async fn work(world: &World, event: &Event, attempt: Attempt) -> Result<()> {
    world.meet_fate(event, attempt)?;
    world.publisher.publish(world.follow_up(event)).await?;
    Ok(())
}

/// Its effect is a row in a table without any constraint. Whatever fails does so after all the work.
async fn in_transaction(
    event: Event,
    attempt: Attempt,
    State(world): State<Arc<World>>,
    mut tx: Tx<Sqlite>,
) -> Result<()> {
    world.points.reach("tx.begin", "after");
    world.start(&event, attempt);
    if world.points.is_now("tx.commit", "after") {
        let (points, committed) = (world.points.clone(), world.file.changed());
        tokio::spawn(async move {
            committed.await;
            points.die();
        });
    }
    sqlx::query("insert into effects (consumer, event, life) values (?, ?, ?)")
        .bind(&world.consumer)
        .bind(event.id.as_str().to_owned())
        .bind(world.life)
        .execute(&mut *tx)
        .await?;
    tx.publish(world.follow_up(&event)).await?;
    world.points.reach("tx.handler", "after");
    let met = world.meet_fate(&event, attempt);
    // Whether it takes effect is up to the commit.
    let how = if met.is_ok() { "returned" } else { "failed" };
    world.history.note(json!({how: event.id.as_str()}));
    met
}

fn policy() -> Policy {
    Policy::ordered()
        .quick_attempts(2)
        .quick_delay(Duration::from_millis(1))
        .parked_delay(Duration::from_millis(4))
        .parked_delay_max(Duration::from_millis(16))
        .max_attempts(6)
}

/// Consumes, and publishes meanwhile if that is wanted, until all is settled. Then it stops gracefully.
async fn consume(task: Task) {
    let (history, points, file) = (task.history(), task.points(), task.file().await);
    say("up");
    let broker = SteppedBroker { inner: SqliteBroker::new(&file), points: points.clone() };
    let store = SqliteStore::new(&file);
    let name = task.text("consumer").to_owned();
    let world = Arc::new(World {
        history,
        points: points.clone(),
        file: file.clone(),
        publisher: Publisher::new("worker", broker.clone()),
        consumer: name.clone(),
        life: i64::try_from(task.number("life")).unwrap(),
        started_at: now_ms().into(),
        gap_max: AtomicU64::new(0),
    });
    let consumer = Consumer::new(name, broker).topics([TOPIC]).policy(policy());
    let commit = points.clone();
    let before_commit = MapResponseLayer::new(move |outcome| {
        commit.reach("tx.commit", "before");
        outcome
    });
    let (consumer, app) = if task.is("tx") {
        let app = Router::new().on("github.>", in_transaction).layer(before_commit);
        (consumer.store(store.clone()), app)
    } else {
        let store = SteppedStore { inner: store.clone(), points };
        (consumer.store(store), Router::new().on("github.>", plain))
    };
    let app = app.with_state(Arc::clone(&world));
    let serve = consumer.serve(app);
    let settled = until_settled(task, Arc::clone(&world), store, serve.health());
    serve.with_graceful_shutdown(settled).await.unwrap();
    world.history.note(json!({"gap_max_ms": world.gap_max.load(Ordering::SeqCst)}));
}

/// Nothing takes so long, on a busy machine too.
const STANDSTILL: Duration = Duration::from_secs(20);

/// Does everything else that is to be done, and waits until nothing is left.
async fn until_settled(task: Task, world: Arc<World>, store: SqliteStore, health: Health) {
    if task.is("until_input_ends") {
        input_ends().await;
    } else {
        publish(&task, &world).await;
    }
    let stepped = SteppedStore { inner: store, points: world.points.clone() };
    let mut connection = SqliteConnection::connect_with(&read_only(&world.file)).await.unwrap();
    loop {
        let changed = world.file.changed();
        let mended = !task.is("operator") || mend(&world, &stepped).await;
        let left = left(&mut connection, &world.consumer).await;
        if mended && left == 0 {
            return;
        }
        let stands_still = tokio::time::timeout(STANDSTILL, changed).await.is_err();
        assert!(!stands_still, "{left} are left, and nothing was written for {STANDSTILL:?}: {:?}", health.reason());
    }
}

fn read_only(file: &SqliteFile) -> sqlx::sqlite::SqliteConnectOptions {
    sqlx::sqlite::SqliteConnectOptions::new().filename(file.path()).read_only(true)
}

/// What a consumer has not settled, and what is parked.
pub(crate) async fn left(connection: &mut SqliteConnection, consumer: &str) -> i64 {
    let sql = "select
        (select coalesce(sum(p.next - 1 - f.floor), 1) from aq_floors f, aq_partitions p
         where f.consumer = ?1 and p.topic = f.topic and p.number = f.number)
        + (select count(*) from aq_rows r, aq_shards s where s.id = r.shard and s.consumer = ?1 and r.state = 0)";
    sqlx::query(sql).bind(consumer.to_owned()).fetch_one(connection).await.unwrap().get(0)
}

/// Asks for another attempt on what can be mended. True if no such dead letter is there.
async fn mend(world: &World, store: &SteppedStore<SqliteStore>) -> bool {
    let mut query = Query::default();
    (query.dead, query.limit, query.consumer) = (Some(true), usize::MAX, Some(world.consumer.as_str().into()));
    let dead = store.browse(&query).await.unwrap();
    let mendable = dead.iter().filter(|listed| fate(parts(&event_id(listed)).1) == Fate::Mendable);
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

pub(crate) fn event_id(listed: &Listed) -> String {
    match &listed.row.content {
        Content::Event(event) => event.id.to_string(),
        Content::Undecodable(message) => panic!("{message:?} was published as an event"),
    }
}

/// Publishes a range of the events, as one does who does not know what was confirmed before.
async fn publish(task: &Task, world: &World) {
    let events = Events::of("w");
    let (from, to) = (task.number("from"), task.number("to"));
    let numbers: Vec<usize> = (from..to).map(|n| usize::try_from(n).unwrap()).collect();
    for wave in numbers.chunks(25) {
        let receipts = world.publisher.publish_all(wave.iter().map(|n| events.get(*n)).collect()).await;
        let again = receipts.into_iter().filter(|receipt| receipt.as_ref().unwrap().duplicate).count();
        let to = wave.last().unwrap() + 1;
        world.history.note(json!({"confirmed": {"from": wave[0], "to": to, "again": again}}));
    }
}

async fn input_ends() {
    let (tell, told) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        let _ = tell.send(());
    });
    let _ = told.await;
}

/// One event in 10 ms, now and then a burst of 10, and one in 8 a second time, as after a lost answer.
async fn publish_for_a_time(task: &Task) {
    let (history, file) = (task.history(), task.file().await);
    let events = Events::of(task.text("process"));
    let publisher = Publisher::new("shop", SqliteBroker::new(&file));
    let clock = Clock::system();
    let began = clock.boot();
    let (mut number, mut longest, mut pace) = (0, Duration::ZERO, tokio::time::interval(Duration::from_millis(10)));
    say("up");
    while clock.boot().since(began) < Duration::from_secs(task.number("seconds")) {
        pace.tick().await;
        let count = if number % 50 == 0 { 10 } else { 1 };
        let batch: Vec<Event> = (number..number + count).map(|n| events.get(n).time(clock.now())).collect();
        let sent_at = clock.boot();
        let receipts = publisher.publish_all(batch.clone()).await;
        longest = longest.max(clock.boot().since(sent_at));
        assert!(receipts.into_iter().all(|receipt| !receipt.unwrap().duplicate));
        if number % 8 == 0 {
            for receipt in publisher.publish_all(batch).await {
                assert!(receipt.unwrap().duplicate);
            }
        }
        number += count;
        history.note(json!({"confirmed": {"from": number - count, "to": number}}));
    }
    history.note(json!({"publish_max_ms": u64::try_from(longest.as_millis()).unwrap()}));
}

/// The program writes down that it has begun, and that it ends, which it does when its input ends.
const PROGRAM: &str = "echo start $0 >> runs; echo @running; cat; echo end $0 >> runs";

/// Consumes one event, whose handler starts a program and waits for it.
async fn start_programs(task: Task) {
    let file = task.file().await;
    let broker = SqliteBroker::new(&file);
    let (done, told) = oneshot::channel::<()>();
    let done = Arc::new(parking_lot::Mutex::new(Some(done)));
    let (task, children) = (Arc::new(task), broker.clone());
    let handler = move |_: Event| {
        let (task, children, done) = (Arc::clone(&task), children.clone(), Arc::clone(&done));
        async move {
            run_program(&task, &children).await;
            drop(done.lock().take());
        }
    };
    let serve = Consumer::new("starter", broker)
        .topics([TOPIC])
        .store(SqliteStore::new(&file))
        .serve(Router::new().on(">", handler));
    let stop = async move { drop(told.await) };
    serve.with_graceful_shutdown(stop).await.unwrap();
}

async fn run_program(task: &Task, broker: &SqliteBroker) {
    use std::os::unix::process::CommandExt;
    let mut command = Program::new("sh");
    command.args(["-c", PROGRAM, task.text("process")]).current_dir(task.folder());
    if !task.is("with_input") {
        command.stdin(Stdio::null());
    }
    let recorded = task.is("record");
    if recorded {
        command.process_group(0);
    }
    let mut child = command.spawn().unwrap();
    let record = recorded.then(|| {
        // Its time is over at once.
        broker.children("starter").unwrap().record(child.id(), Clock::system().now()).unwrap()
    });
    say(format_args!("program {}", child.id()));
    tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
    drop(record);
}

/// The key that orders an event, if any.
pub(crate) fn key_of(event: &Event) -> Option<String> {
    event.key.as_ref().map(Key::to_string)
}
