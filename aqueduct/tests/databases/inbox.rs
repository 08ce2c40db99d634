//! The inbox: duplicates at the same time, replays, what it forgets, and streams that were made anew.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aqueduct::mysql::MySql;
use aqueduct::postgres::Postgres;
use aqueduct::sql::{Forget, ServerDatabase, SqlStore};
use aqueduct::sqlite::{SqliteBroker, SqliteFile};
use aqueduct::store::{Action, Claim, Command, CommandState, Content, Hold, Op, Query, Row, RowState, Standing, Store};
use aqueduct::{
    Attempt, Clock, Consumer, Epoch, Error, Event, FaultExt, Health, Key, MemoryBroker, Partition, Place, Policy,
    Position, Publisher, Result, Router, StoreError, Tx,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;

use crate::fresh::{TestDatabase, prefix};

const CONSUMER: &str = "stock";

/// Longer than anything here takes, on a busy machine too.
const LONG: Duration = Duration::from_mins(1);

/// Tables of a test's own, with one for effects that has no constraint.
struct Shop<DB: TestDatabase> {
    database: ServerDatabase<DB>,
    prefix: String,
    retention: Duration,
}

impl<DB: TestDatabase> Shop<DB> {
    async fn new(retention: Duration) -> Self {
        let prefix = prefix();
        let options = DB::options().prefix(prefix.clone()).inbox_retention(retention);
        let shop = Self { database: options.connect().await.unwrap(), prefix, retention };
        shop.run("create table {p}effects (event varchar(200))").await;
        shop
    }

    /// Another instance's connections to the same tables.
    async fn another(&self) -> Self {
        let options = DB::options().prefix(self.prefix.clone()).inbox_retention(self.retention);
        Self { database: options.connect().await.unwrap(), prefix: self.prefix.clone(), retention: self.retention }
    }

    fn store(&self) -> SqlStore<ServerDatabase<DB>> {
        SqlStore::new(&self.database)
    }

    async fn run(&self, sql: &str) {
        DB::run(&mut DB::connect().await, sql.replace("{p}", &self.prefix)).await.unwrap();
    }

    async fn count(&self, sql: &str) -> i64 {
        DB::number(&mut DB::connect().await, sql.replace("{p}", &self.prefix)).await.unwrap()
    }

    async fn effects(&self) -> i64 {
        self.count("select count(*) from {p}effects").await
    }

    /// Handles until it is stopped.
    fn serve(&self, consumer: Consumer, app: Router) -> Service {
        let policy = Policy::ordered().quick_attempts(2).quick_delay(Duration::from_millis(1));
        let policy = policy.parked_delay(Duration::from_millis(5)).max_attempts(5);
        let stop = Arc::new(Notify::new());
        let serve = consumer.store(self.store()).policy(policy).serve(app);
        let (health, signal) = (serve.health(), Arc::clone(&stop));
        let serve = serve.with_graceful_shutdown(async move { signal.notified().await });
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Service { health, stop, task }
    }
}

struct Service {
    health: Health,
    stop: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Service {
    async fn stop(self) {
        self.stop.notify_one();
        tokio::time::timeout(LONG, self.task).await.unwrap().unwrap();
    }
}

/// Waits until something has come about that nobody tells of.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let mut looks = tokio::time::interval(Duration::from_millis(10));
    let looking = async {
        while !done().await {
            looks.tick().await;
        }
    };
    assert!(tokio::time::timeout(LONG, looking).await.is_ok(), "it did not come about: {what}");
}

/// So many attempts are writing their event into the inbox, where one that another has in hand is waited for.
async fn waiting<DB: TestDatabase>(shop: &Shop<DB>) -> i64 {
    let sql = match DB::NAME {
        "PostgreSQL" => {
            "select count(*) from pg_stat_activity a where wait_event_type = 'Lock' and exists (
                select 1 from pg_locks l where l.pid = a.pid and l.relation = '{p}inbox'::regclass)"
        }
        _ => "select count(*) from information_schema.processlist where info like 'insert into {p}inbox%'",
    };
    shop.count(sql).await
}

async fn write_effect<DB: TestDatabase>(tx: &mut Tx<DB>, prefix: &str, event: &Event) -> Result<()> {
    DB::run(tx, format!("insert into {prefix}effects values ('{}')", event.id)).await?;
    Ok(())
}

fn order(n: usize, topic: &'static str) -> Event {
    Event::raw("order.placed", n.to_string()).id(format!("order {n}")).source("shop").topic(topic).key("key")
}

/// Two instances have the same event from different partitions; the first fails, or does not, while the second waits.
async fn duplicates_at_the_same_time<DB: TestDatabase>(fails: bool) -> (i64, usize) {
    let shop = Shop::<DB>::new(LONG).await;
    let (entered, go_on) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
    let (runs, mut services, mut brokers) = (Arc::new(AtomicUsize::new(0)), Vec::new(), Vec::new());
    for topic in ["orders", "copies"] {
        let (instance, broker) = (shop.another().await, MemoryBroker::new());
        Publisher::new("shop", broker.clone()).publish(order(1, topic)).await.unwrap();
        let (runs, entered, go_on, prefix) = (runs.clone(), entered.clone(), go_on.clone(), shop.prefix.clone());
        let handler = move |event: Event, mut tx: Tx<DB>| {
            let (runs, entered, go_on, prefix) = (runs.clone(), entered.clone(), go_on.clone(), prefix.clone());
            async move {
                write_effect(&mut tx, &prefix, &event).await?;
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    entered.add_permits(1);
                    go_on.acquire().await.unwrap().forget();
                    if fails {
                        return Err(Error::msg("not now"));
                    }
                }
                Ok(())
            }
        };
        let consumer = Consumer::new(CONSUMER, broker.clone()).topics([topic]);
        services.push(instance.serve(consumer, Router::new().on("order.placed", handler)));
        brokers.push(broker);
    }
    entered.acquire().await.unwrap().forget();
    until("the duplicate waits", async || waiting(&shop).await == 1).await;
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    go_on.add_permits(1);
    for (broker, service) in brokers.iter().zip(services) {
        tokio::time::timeout(LONG, broker.wait_settled(CONSUMER)).await.unwrap();
        service.stop().await;
    }
    (shop.effects().await, runs.load(Ordering::SeqCst))
}

async fn a_duplicate_waits_while_the_first_runs_and_is_skipped<DB: TestDatabase>() {
    assert_eq!(duplicates_at_the_same_time::<DB>(false).await, (1, 1));
}

async fn a_duplicate_runs_when_the_first_has_failed_while_it_waited<DB: TestDatabase>() {
    assert_eq!(duplicates_at_the_same_time::<DB>(true).await, (1, 2));
}

/// Two dead letters of one event, and a command to replay each, one of them twice.
async fn a_replayed_dead_letter_takes_effect_once<DB: TestDatabase>() {
    let (shop, broker) = (Shop::<DB>::new(LONG).await, MemoryBroker::new());
    let publisher = Publisher::new("shop", broker.clone());
    for topic in ["orders", "copies"] {
        publisher.publish(order(1, topic)).await.unwrap();
    }
    let (replays, prefix) = (Arc::new(AtomicUsize::new(0)), shop.prefix.clone());
    let counted = Arc::clone(&replays);
    let handler = move |event: Event, attempt: Attempt, mut tx: Tx<DB>| {
        let (prefix, replays) = (prefix.clone(), counted.clone());
        async move {
            write_effect(&mut tx, &prefix, &event).await?;
            if attempt.replay {
                replays.fetch_add(1, Ordering::SeqCst);
                return Ok(());
            }
            Err(Error::msg("somebody must mend this")).permanent()
        }
    };
    let consumer = Consumer::new(CONSUMER, broker.clone()).topics(["orders", "copies"]);
    let (service, store) = (shop.serve(consumer, Router::new().on("order.placed", handler)), shop.store());
    tokio::time::timeout(LONG, broker.wait_settled(CONSUMER)).await.unwrap();
    let dead = store.browse(&Query::default()).await.unwrap();
    assert_eq!((dead.len(), shop.effects().await), (2, 0));
    let mut given = Vec::new();
    for listed in dead.iter().chain(&dead[..1]) {
        given.push(store.command(&Command::new(listed, Action::Replay, "test", "it was mended")).await.unwrap());
    }
    until("the commands are carried out", async || {
        let left = store.browse(&Query::default()).await.unwrap();
        let audit = store.audit(10).await.unwrap();
        left.is_empty() && audit.iter().all(|(_, _, state)| *state != CommandState::Waiting)
    })
    .await;
    service.stop().await;
    assert_eq!((shop.effects().await, replays.load(Ordering::SeqCst), given.len()), (1, 1, 3));
}

/// A row of the inbox: its id, where it stood and how old it is.
async fn remembered<DB: TestDatabase>(shop: &Shop<DB>, consumer: &str, ids: &[String], position: i64, age: Duration) {
    let at = Clock::system().now().unix_ms() - i64::try_from(age.as_millis()).unwrap();
    for ids in ids.chunks(500) {
        let row = |id: &String| format!("('{consumer}', 'shop', '{id}', 'orders', 0, {position}, {at})");
        let rows: Vec<String> = ids.iter().map(row).collect();
        let columns = "consumer, source, id, topic, number, position, at";
        shop.run(&format!("insert into {{p}}inbox ({columns}) values {}", rows.join(", "))).await;
    }
}

fn orders(index: u32) -> Claim {
    Claim { consumer: CONSUMER.into(), partition: Partition { topic: "orders".into(), index }, epoch: Epoch(1) }
}

/// A floor of a partition, and a row of the store in a state.
async fn settled_with_rows<DB: TestDatabase>(shop: &Shop<DB>, floor: u64, rows: &[(&str, RowState)]) {
    let (store, claim) = (shop.store(), orders(0));
    store.take_over(&claim, None).await.unwrap();
    store.resume(&claim, &Standing::new(Some("stream".into()), None)).await.unwrap();
    store.settled(&claim, Position(floor)).await.unwrap();
    for (position, (id, state)) in (1..).zip(rows) {
        let event = Event::raw("order.placed", "").id(*id).source("shop").key("key");
        let lane = Key::new("key").unwrap().lane();
        let mut row = Row::new(Place::at(position), lane, Content::Event(Arc::new(event)), Clock::system().now());
        row.state = *state;
        store.apply(&claim, &[Op::Put(vec![row])]).await.unwrap();
    }
}

const HOUR: Duration = Duration::from_hours(1);

async fn the_inbox_forgets_only_what_nobody_can_ask_for_again<DB: TestDatabase>() {
    let shop = Shop::<DB>::new(HOUR).await;
    let rows = [("parked", RowState::Parked), ("dead", RowState::Dead(Hold::Skip))];
    settled_with_rows(&shop, 10, &rows).await;
    let one = |id: &str| [id.to_owned()];
    remembered(&shop, CONSUMER, &one("at the floor"), 10, 2 * HOUR).await;
    remembered(&shop, CONSUMER, &one("above the floor"), 11, 2 * HOUR).await;
    remembered(&shop, CONSUMER, &one("young"), 5, HOUR / 2).await;
    remembered(&shop, CONSUMER, &one("parked"), 1, 2 * HOUR).await;
    remembered(&shop, CONSUMER, &one("dead"), 2, 2 * HOUR).await;
    remembered(&shop, "without a floor", &one("of another"), 5, 2 * HOUR).await;
    let many: Vec<String> = (0..2_100).map(|n| format!("old {n}")).collect();
    remembered(&shop, CONSUMER, &many, 5, 3 * HOUR).await;
    let before = shop.store().inbox_status().await.unwrap();
    let oldest = Clock::system().now().since(before.oldest.unwrap());
    assert!(before.effects == 2_106 && before.exact && (3 * HOUR..4 * HOUR).contains(&oldest), "{before:?}");
    assert_eq!(shop.store().inbox_sweep().await.unwrap(), 2_101);
    for kept in ["above the floor", "young", "parked", "dead", "of another"] {
        assert_eq!(shop.count(&format!("select count(*) from {{p}}inbox where id = '{kept}'")).await, 1, "{kept}");
    }
    assert_eq!(shop.store().inbox_status().await.unwrap().effects, 5);
    assert_eq!(shop.store().inbox_sweep().await.unwrap(), 0);
}

/// An effect that is forgotten is none that the database has lost, whatever is settled later.
async fn what_was_forgotten_is_not_missed<DB: TestDatabase>() {
    let (shop, folder) = (Shop::<DB>::new(Duration::ZERO).await, tempfile::tempdir().unwrap());
    let log = Log::at(&folder.path().join("log.db")).await;
    let publisher = Publisher::new("shop", log.broker.clone());
    let prefix = shop.prefix.clone();
    let handler = move |event: Event, mut tx: Tx<DB>| {
        let prefix = prefix.clone();
        async move { write_effect(&mut tx, &prefix, &event).await }
    };
    let app = Router::new().on("order.placed", handler).on("order.seen", async || ());
    let service = shop.serve(log.consumer(), app);
    publisher.publish(order(1, "orders")).await.unwrap();
    log.settled().await;
    assert_eq!(shop.store().inbox_sweep().await.unwrap(), 1);
    publisher.publish(Event::raw("order.seen", "").topic("orders").key("key")).await.unwrap();
    log.settled().await;
    assert_eq!(service.health.reason(), "");
    let epochs = shop.count("select epoch from {p}shards where epoch is not null order by epoch desc limit 1");
    assert_eq!(epochs.await, 1, "the partition was given up");
    service.stop().await;
}

/// It does so by itself, for as long as somebody has the database.
async fn the_inbox_forgets_by_itself_once_an_hour<DB: TestDatabase>() {
    let shop = Shop::<DB>::new(HOUR).await;
    settled_with_rows(&shop, 10, &[]).await;
    remembered(&shop, CONSUMER, &["old".to_owned()], 5, 2 * HOUR).await;
    tokio::time::pause();
    tokio::time::advance(Duration::from_mins(70)).await;
    tokio::time::resume();
    until("it is forgotten", async || shop.count("select count(*) from {p}inbox").await == 0).await;
}

/// A log of one partition in a file, whose consumer has its transactions elsewhere.
struct Log {
    path: PathBuf,
    broker: SqliteBroker,
}

impl Log {
    async fn at(path: &Path) -> Self {
        let file = SqliteFile::options(path).partitions(1).open().await.unwrap();
        Self { path: path.to_owned(), broker: SqliteBroker::new(&file) }
    }

    async fn publish(&self, numbers: impl IntoIterator<Item = usize>) {
        let publisher = Publisher::new("shop", self.broker.clone());
        for n in numbers {
            publisher.publish(order(n, "orders")).await.unwrap();
        }
    }

    fn consumer(&self) -> Consumer {
        Consumer::new(CONSUMER, self.broker.clone()).topics(["orders"])
    }

    async fn settled(&self) {
        until("all is settled", async || {
            let status = self.broker.status().await.unwrap();
            let consumer = status.consumers.iter().find(|consumer| consumer.consumer == CONSUMER);
            consumer.is_some_and(|consumer| !consumer.floors.is_empty() && consumer.lag() == 0)
        })
        .await;
    }

    /// As it is now, in another folder.
    fn copy_to(&self, folder: &Path) -> PathBuf {
        for end in ["", "-wal"] {
            let name = format!("{}{end}", self.path.file_name().unwrap().display());
            std::fs::copy(self.path.with_file_name(&name), folder.join(&name)).unwrap();
        }
        folder.join(self.path.file_name().unwrap())
    }
}

/// The ids of the events that it is run for.
type Seen = Arc<Mutex<Vec<String>>>;

fn watched<DB: TestDatabase>(shop: &Shop<DB>, dead: &'static str) -> (Router, Seen) {
    let (seen, prefix) = (Seen::default(), shop.prefix.clone());
    let ids = Arc::clone(&seen);
    let handler = move |event: Event, mut tx: Tx<DB>| {
        let (ids, prefix) = (ids.clone(), prefix.clone());
        async move {
            if event.id == dead {
                return Err(Error::msg("it is refused")).permanent();
            }
            ids.lock().push(event.id.to_string());
            write_effect(&mut tx, &prefix, &event).await
        }
    };
    (Router::new().on("order.placed", handler), seen)
}

/// An older backup of the log is restored: everything comes again, and the inbox has forgotten it.
async fn a_delivery_older_than_the_retention_is_skipped_by_the_floor<DB: TestDatabase>() {
    let (shop, folders) =
        (Shop::<DB>::new(Duration::ZERO).await, [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
    let log = Log::at(&folders[0].path().join("log.db")).await;
    log.publish(1..=3).await;
    let backup = log.copy_to(folders[1].path());
    let (app, seen) = watched(&shop, "");
    let service = shop.serve(log.consumer(), app);
    log.settled().await;
    service.stop().await;
    assert_eq!(seen.lock().len(), 3);
    assert_eq!(shop.store().inbox_sweep().await.unwrap(), 3);

    let log = Log::at(&backup).await;
    let (app, seen) = watched(&shop, "");
    let service = shop.serve(log.consumer(), app);
    log.settled().await;
    log.publish([4]).await;
    log.settled().await;
    service.stop().await;
    assert_eq!(*seen.lock(), ["order 4"]);
    assert_eq!(shop.effects().await, 4);
}

/// The file of the log was deleted and made anew: nothing starts until somebody says that this was meant.
async fn a_stream_that_was_made_anew_waits_for_the_command_to_go_on<DB: TestDatabase>() {
    let (shop, folder) = (Shop::<DB>::new(LONG).await, tempfile::tempdir().unwrap());
    let log = Log::at(&folder.path().join("log.db")).await;
    log.publish(1..=3).await;
    let (app, seen) = watched(&shop, "order 2");
    let service = shop.serve(log.consumer(), app);
    log.settled().await;
    service.stop().await;
    assert_eq!(*seen.lock(), ["order 1", "order 3"]);

    let log = Log::at(&folder.path().join("again.db")).await;
    // The second of them stands where the dead letter stood.
    log.publish([1, 4, 5]).await;
    let (app, seen) = watched(&shop, "");
    let service = shop.serve(log.consumer(), app);
    let health = service.health.clone();
    until("it says why", async || health.reason().contains("aqueduct inbox forget --group stock --topic orders")).await;
    assert!(!health.is_ready() && health.reason().contains("another stream"), "{}", health.reason());
    assert!(seen.lock().is_empty());

    let mut forget = Forget::default();
    let refused = shop.store().inbox_forget(CONSUMER, "orders", forget).await.unwrap_err();
    assert!(
        matches!(&refused, StoreError::Refused(why) if why.contains("1 parked events and dead letters")),
        "{refused}"
    );
    forget.rows = true;
    shop.store().inbox_forget(CONSUMER, "orders", forget).await.unwrap();
    log.settled().await;
    service.stop().await;
    assert_eq!(*seen.lock(), ["order 4", "order 5"], "the identity of the first took effect before");

    // The same once more, and what took effect before is forgotten too.
    let log = Log::at(&folder.path().join("once more.db")).await;
    log.publish([1]).await;
    let (app, seen) = watched(&shop, "");
    let service = shop.serve(log.consumer(), app);
    let health = service.health.clone();
    until("it says why", async || health.reason().contains("another stream")).await;
    forget.effects = true;
    shop.store().inbox_forget(CONSUMER, "orders", forget).await.unwrap();
    log.settled().await;
    service.stop().await;
    assert_eq!(*seen.lock(), ["order 1"]);
}

macro_rules! on_servers {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name::<super::Postgres>().await;
            })*
        }
        mod mysql {
            $(#[tokio::test]
            async fn $name() {
                super::$name::<super::MySql>().await;
            })*
        }
    };
}

on_servers!(
    a_duplicate_waits_while_the_first_runs_and_is_skipped,
    a_duplicate_runs_when_the_first_has_failed_while_it_waited,
    a_replayed_dead_letter_takes_effect_once,
    the_inbox_forgets_only_what_nobody_can_ask_for_again,
    what_was_forgotten_is_not_missed,
    the_inbox_forgets_by_itself_once_an_hour,
    a_delivery_older_than_the_retention_is_skipped_by_the_floor,
    a_stream_that_was_made_anew_waits_for_the_command_to_go_on,
);
