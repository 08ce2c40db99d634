//! Relays that are killed and stopped, and what stands in the stream behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aqueduct::broker::Start;
use aqueduct::sqlite::SqliteBroker;
use aqueduct::{Clock, Event, MemoryBroker, Outbox, Relay};
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::json;
use sqlx::{Connection as _, Row as _, SqliteConnection};

use crate::fresh::TestDatabase;
use crate::relay::Server;
use crate::relay_cases::{Running, Site, WAITING, until};
use crate::relay_worker::{ORDERS, Process, TOPIC, id_of, order, pass, stream, sum};

/// What `cargo xtask chaos` asks for; none in a usual test run.
fn chaos(what: &str) -> Option<usize> {
    std::env::var(format!("AQUEDUCT_CHAOS_{what}")).ok().map(|value| value.parse().unwrap())
}

/// A message of the stream.
struct Published {
    id: String,
    key: String,
    at_ms: i64,
}

/// The stream as it stands at the end; each key's events in their order.
async fn read_stream(folder: &Path) -> Vec<Published> {
    let mut connection = SqliteConnection::connect(&format!("sqlite:{}", stream(folder).display())).await.unwrap();
    let sql = "select number, last, stored_at from aq_log";
    let batches = sqlx::query(sql).fetch_all(&mut connection).await.unwrap();
    let times: BTreeMap<(i64, i64), i64> = batches.iter().map(|row| ((row.get(0), row.get(1)), row.get(2))).collect();
    let broker = SqliteBroker::open(stream(folder)).await.unwrap();
    let mut reader = broker.read(TOPIC, Start::Beginning).await.unwrap();
    let mut all = Vec::new();
    loop {
        let found = reader.read(1_000).await.unwrap();
        if found.is_empty() {
            return all;
        }
        for logged in found {
            let place = (i64::from(logged.partition.index), logged.position.0.cast_signed());
            let (_, at_ms) = times.range(place..).next().unwrap();
            let key = String::from_utf8(logged.message.key.as_ref().unwrap().to_vec()).unwrap();
            all.push(Published { id: id_of(&logged.message), key, at_ms: *at_ms });
        }
    }
}

/// A service with its relay is killed so long after a commit, and started again.
async fn sold_and_died<DB: TestDatabase>(moment_us: u64) {
    let (site, folder) = (Server::<DB>::new().await, tempfile::tempdir().unwrap());
    site.run("create table aq_sales (number bigint)").await;
    let dies = json!({"die_after_us": moment_us});
    let first = Process::start::<DB>("shop", &site.prefix, folder.path(), &dies);
    let (said, signal) = first.end().await;
    assert_eq!(signal, Some(9), "{said:#?}");
    let second = Process::start::<DB>("shop", &site.prefix, folder.path(), &json!({}));
    until(&site, WAITING, 0).await;
    let said = second.leave().await;
    let ids: Vec<usize> =
        read_stream(folder.path()).await.iter().map(|published| published.id.parse().unwrap()).collect();
    let committed: BTreeSet<usize> = (0..=ORDERS).filter(|n| *n == ORDERS || n % 5 > 1).collect();
    assert_eq!(ids.iter().copied().collect::<BTreeSet<_>>(), committed);
    assert_eq!(ids.len(), committed.len(), "once for each identity: {ids:?}");
    let sales = i64::try_from(committed.len() - 1).unwrap();
    assert_eq!(site.count("select count(*) from aq_sales").await, sales);
    println!("{}: killed {moment_us} us after a commit: {} repeats", DB::NAME, sum(&said, "@repeats "));
}

async fn what_is_committed_at_a_kill_is_published_once_and_nothing_else<DB: TestDatabase>() {
    tokio::join!(sold_and_died::<DB>(0), sold_and_died::<DB>(500), sold_and_died::<DB>(3_000));
}

/// By what the order of a key's commits is known before they are made.
#[derive(Clone, Copy, Debug)]
enum Locks {
    /// Transactions lock the row of their key before they publish.
    Rows,
    /// They lock nothing, and the outbox serializes keys.
    Keys,
}

/// A committed event.
struct Committed {
    key: String,
    /// Counted by the order of the key's commits.
    number: i64,
    at_ms: i64,
}

/// Writers of events, each with some connections.
const WRITERS: usize = 8;
const CONNECTIONS_EACH: usize = 8;

/// What writers share.
struct Writers<DB: TestDatabase> {
    prefix: String,
    outbox: Outbox<DB>,
    locks: Locks,
    keys: usize,
    /// So many are to be committed.
    events: usize,
    next: AtomicUsize,
    rolled_back: AtomicUsize,
    committed: Mutex<BTreeMap<String, Committed>>,
    chance: Clock,
}

impl<DB: TestDatabase> Writers<DB> {
    fn dice(&self, sides: usize) -> usize {
        usize::try_from(self.chance.random(sides as u64)).unwrap()
    }

    async fn write(&self) {
        let mut connection = DB::connect().await;
        // The order is read from the rows that others have committed meanwhile.
        let session = if DB::NAME == "MySQL" { "session" } else { "session characteristics as" };
        let isolation = format!("set {session} transaction isolation level read committed");
        DB::run(&mut connection, isolation).await.unwrap();
        while self.committed.lock().len() < self.events {
            let number = self.next.fetch_add(1, Ordering::SeqCst);
            self.transaction(&mut connection, number.to_string()).await;
        }
    }

    async fn transaction(&self, connection: &mut DB::Connection, id: String) {
        let key = self.dice(self.keys);
        let mut tx = connection.begin().await.unwrap();
        let number = match self.locks {
            Locks::Rows => {
                self.run(&mut tx, format!("update aq_counters set number = number + 1 where id = {key}")).await;
                let number = self.number(&mut tx, format!("select number from aq_counters where id = {key}")).await;
                self.publish(&mut tx, &id, key).await;
                number
            }
            Locks::Keys => {
                self.publish(&mut tx, &id, key).await;
                let sql = format!("select coalesce(max(number), 0) + 1 from aq_orders where counter = {key}");
                self.number(&mut tx, sql).await
            }
        };
        self.run(&mut tx, format!("insert into aq_orders values ({key}, {number}, '{id}')")).await;
        if self.dice(8) == 0 {
            // Others commit before it that have written later.
            pass(Duration::from_millis(self.chance.random(1_000))).await;
        }
        if self.dice(10) == 0 {
            tx.rollback().await.unwrap();
            self.rolled_back.fetch_add(1, Ordering::SeqCst);
            return;
        }
        tx.commit().await.unwrap();
        let at_ms = self.chance.now().unix_ms();
        self.committed.lock().insert(id, Committed { key: format!("key {key}"), number, at_ms });
    }

    async fn publish(&self, connection: &mut DB::Connection, id: &str, key: usize) {
        let event = Event::raw("order.placed", "").id(id.to_owned()).topic(TOPIC).key(format!("key {key}"));
        DB::publish_all(&self.outbox, connection, vec![event]).await.unwrap();
    }

    async fn run(&self, connection: &mut DB::Connection, sql: String) {
        DB::run(connection, sql.replace("aq_", &self.prefix)).await.unwrap();
    }

    async fn number(&self, connection: &mut DB::Connection, sql: String) -> i64 {
        DB::number(connection, sql.replace("aq_", &self.prefix)).await.unwrap()
    }
}

/// Relays in processes, of which one is killed or stopped once in a while.
struct Relays<'a> {
    start: Box<dyn Fn() -> Process + Send + 'a>,
    running: Vec<Process>,
    /// Those that stand still, and for how many blows more.
    stopped: Vec<(u64, Process)>,
    said: Vec<String>,
    chance: Clock,
    kills: usize,
    stops: usize,
}

const RELAYS: usize = 3;

/// From one blow to the next, at least and at most. Who watches for 6 s strikes a dead one off, so some live long enough.
const BLOW_MS: [u64; 2] = [1_000, 5_000];

/// The blows after which a relay that stands still goes on, at the latest: others have taken over by then.
const STILL_MAX: u64 = 5;

impl<'a> Relays<'a> {
    fn start<DB: TestDatabase>(prefix: &'a str, folder: &'a Path, chance: Clock) -> Self {
        let start = Box::new(move || Process::start::<DB>("relay", prefix, folder, &json!({})));
        let running = (0..RELAYS).map(|_| start()).collect();
        Self { start, running, stopped: Vec::new(), said: Vec::new(), chance, kills: 0, stops: 0 }
    }

    /// Kills relays and stops them until it is dropped.
    async fn blows(&mut self) {
        let [least, most] = BLOW_MS;
        loop {
            pass(Duration::from_millis(least + self.chance.random(most - least))).await;
            self.resume();
            let victim = self.running.len();
            let mut victim = self.running.swap_remove(usize::try_from(self.chance.random(victim as u64)).unwrap());
            // One of them is well at any time.
            if self.running.is_empty() || self.chance.random(2) == 0 {
                victim.strike(Signal::KILL).await;
                self.said.extend(victim.end().await.0);
                self.kills += 1;
                self.running.push((self.start)());
            } else {
                victim.strike(Signal::STOP).await;
                self.stops += 1;
                self.stopped.push((1 + self.chance.random(STILL_MAX), victim));
            }
        }
    }

    fn resume(&mut self) {
        self.stopped.iter_mut().for_each(|(left, _)| *left -= 1);
        for (_, process) in self.stopped.extract_if(.., |(left, _)| *left == 0) {
            process.resume();
            self.running.push(process);
        }
    }

    async fn leave(&mut self) {
        for process in self.running.drain(..) {
            self.said.extend(process.leave().await);
        }
    }
}

/// Everything that is committed is in the stream and nothing else, and the order of each key is that of its commits. Answers
/// the longest delay, or what is wrong.
fn judge(committed: &BTreeMap<String, Committed>, stream: &[Published]) -> Result<Duration, String> {
    let (mut seen, mut reached, mut longest) = (BTreeSet::new(), BTreeMap::new(), 0);
    for Published { id, key, at_ms } in stream {
        let event = committed.get(id).filter(|event| event.key == *key);
        let event = event.ok_or_else(|| format!("{id} was never committed under {key}"))?;
        if !seen.insert(id) {
            continue;
        }
        let before = reached.insert(key, event.number).unwrap_or(0);
        if before + 1 != event.number {
            return Err(format!("{key}: number {} came after number {before}", event.number));
        }
        longest = longest.max(at_ms - event.at_ms);
    }
    let lost: Vec<_> = committed.keys().filter(|id| !seen.contains(id)).collect();
    if lost.is_empty() { Ok(Duration::from_millis(longest.cast_unsigned())) } else { Err(format!("lost: {lost:?}")) }
}

#[test]
fn the_judge_finds_what_is_wrong() {
    let event = |id: &str, key: &str, number| (id.to_owned(), Committed { key: key.to_owned(), number, at_ms: 100 });
    let committed = [event("a", "k", 1), event("b", "k", 2), event("c", "l", 1)].into();
    let judged = |stream: &[(&str, &str)]| {
        let published = |(id, key): &(&str, &str)| Published { id: (*id).into(), key: (*key).into(), at_ms: 107 };
        judge(&committed, &stream.iter().map(published).collect::<Vec<_>>())
    };
    let [a, b, c] = [("a", "k"), ("b", "k"), ("c", "l")];
    assert_eq!(judged(&[a, c, b]), Ok(Duration::from_millis(7)));
    assert_eq!(judged(&[a, b, a, b, c]), Ok(Duration::from_millis(7)));
    for (stream, why) in [
        (&[a, b][..], "lost"),
        (&[b, a, c], "came after"),
        (&[b, c], "came after"),
        (&[a, b, c, ("d", "k")], "never committed"),
        (&[a, b, ("c", "k")], "never committed"),
    ] {
        let found = judged(stream).unwrap_err();
        assert!(found.contains(why), "{stream:?}: {found}");
    }
}

async fn keeps_order_under_faults<DB: TestDatabase>(locks: Locks) {
    let events = chaos("EVENTS").unwrap_or(6_000);
    let chance = if chaos("EVENTS").is_some() { Clock::system() } else { Clock::simulated(1) };
    let keys = (events / 100).max(200);
    let (site, folder) = (Server::<DB>::new().await, tempfile::tempdir().unwrap());
    counters(&site, keys).await;
    let writers = Arc::new(Writers {
        prefix: site.prefix.clone(),
        outbox: site.outbox.clone().serialize_keys(matches!(locks, Locks::Keys)),
        locks,
        keys,
        events,
        next: AtomicUsize::new(0),
        rolled_back: AtomicUsize::new(0),
        committed: Mutex::default(),
        chance: Clock::system(),
    });
    let began = tokio::time::Instant::now();
    let mut relays = Relays::start::<DB>(&site.prefix, folder.path(), chance);
    let mut writing = tokio::task::JoinSet::new();
    for _ in 0..WRITERS * CONNECTIONS_EACH {
        let writers = Arc::clone(&writers);
        writing.spawn(async move { writers.write().await });
    }
    tokio::select! {
        () = relays.blows() => unreachable!("blows have no end"),
        _ = writing.join_all() => {}
    }
    let (written, ended) = (began.elapsed(), tokio::time::Instant::now());
    for (left, _) in &mut relays.stopped {
        *left = 1;
    }
    relays.resume();
    let left = site.count(WAITING).await;
    until(&site, WAITING, 0).await;
    let drained = ended.elapsed();
    relays.leave().await;
    let committed = std::mem::take(&mut *writers.committed.lock());
    assert_eq!(site.count("select count(*) from aq_orders").await, i64::try_from(committed.len()).unwrap());
    let longest = judge(&committed, &read_stream(folder.path()).await).unwrap();
    println!(
        "{} {locks:?}: {} committed, {} rolled back, {keys} keys, {written:.1?}; {} kills, {} stops, {} repeats; longest delay {longest:.1?}; {left} left when the faults stopped, gone after {drained:.1?}",
        DB::NAME,
        committed.len(),
        writers.rolled_back.load(Ordering::SeqCst),
        relays.kills,
        relays.stops,
        sum(&relays.said, "@repeats "),
    );
}

async fn counters<DB: TestDatabase>(site: &Server<DB>, keys: usize) {
    site.run("create table aq_orders (counter bigint, number bigint, id varchar(40) primary key)").await;
    site.run("create index aq_orders_counter on aq_orders (counter, number)").await;
    site.run("create table aq_counters (number bigint, id bigint primary key)").await;
    let mut connection = DB::connect().await;
    for keys in (0..keys).collect::<Vec<_>>().chunks(1_000) {
        let rows: Vec<String> = keys.iter().map(|key| format!("(0, {key})")).collect();
        let sql = format!("insert into {}counters values {}", site.prefix, rows.join(", "));
        DB::run(&mut connection, sql).await.unwrap();
    }
}

async fn keys_whose_rows_are_locked_keep_their_order_whatever_happens_to_relays<DB: TestDatabase>() {
    keeps_order_under_faults::<DB>(Locks::Rows).await;
}

async fn serialized_keys_keep_their_order_whatever_happens_to_relays<DB: TestDatabase>() {
    keeps_order_under_faults::<DB>(Locks::Keys).await;
}

/// Nobody else waits for a transaction that does nothing.
const AT_ONCE: Duration = Duration::from_secs(2);

async fn an_idle_transaction_stops_no_other_key<DB: TestDatabase>() {
    let rows = chaos("ROWS").unwrap_or(5_000);
    let site = Server::<DB>::new().await;
    site.run("create table aq_sales (number bigint)").await;
    let mut connection = DB::connect().await;
    let mut idle = connection.begin().await.unwrap();
    let insert = format!("insert into {}sales values (0)", site.prefix);
    DB::run(&mut idle, insert).await.unwrap();
    // What it reads keeps old rows from being cleaned up, in MySQL too.
    DB::number(&mut idle, format!("select count(*) from {}sales", site.prefix)).await.unwrap();
    DB::publish_all(&site.outbox, &mut idle, vec![order(0)]).await.unwrap();
    let broker = MemoryBroker::new();
    let relay = Running::start(Relay::new(site.table(), broker.clone()));
    println!("{}: at first {}", DB::NAME, delays(&site, 1).await);
    let (mut written, mut next) = (0, 1_000);
    while written < rows {
        let chunk = (rows - written).min(1_000);
        let event = |n: usize| order(0).id(n.to_string()).key(format!("key {}", 1 + n % 100));
        site.write((next..next + chunk).map(event).collect()).await;
        until(&site, WAITING, 0).await;
        (written, next) = (written + chunk, next + chunk);
        if written.is_multiple_of(20_000) || written == rows {
            println!("{}: {written} rows later {}", DB::NAME, delays(&site, next).await);
            next += 1_000;
        }
    }
    assert!(broker.log(&TOPIC.into()).iter().all(|(_, _, message)| message.key.as_deref() != Some(&b"key 0"[..])));
    idle.commit().await.unwrap();
    until(&site, WAITING, 0).await;
    relay.stop().await;
    let log = broker.log(&TOPIC.into());
    assert!(log.iter().any(|(_, _, message)| message.key.as_deref() == Some(&b"key 0"[..])));
}

/// How long single events take from before their transaction to their deletion, and a look into all shards.
async fn delays<DB: TestDatabase>(site: &Server<DB>, from: usize) -> String {
    let mut took = Vec::new();
    for n in from..from + 20 {
        let began = tokio::time::Instant::now();
        site.write(vec![order(0).id(n.to_string()).key(format!("key {}", 1 + n % 10))]).await;
        until(site, WAITING, 0).await;
        assert!(chaos("ROWS").is_some() || began.elapsed() < AT_ONCE, "{:?}", began.elapsed());
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let began = tokio::time::Instant::now();
    let lowest = |shard| {
        format!(
            "select * from (select id from {}outbox where shard = {shard} order by id limit 32) s{shard}",
            site.prefix
        )
    };
    let all: Vec<String> = (0..16).map(lowest).collect();
    let sql = format!("select count(*) from ({}) lowest", all.join(" union all "));
    DB::number(&mut DB::connect().await, sql).await.unwrap();
    format!("median {:.1?}, longest {:.1?}; a look {:.1?}", took[10], took[19], began.elapsed())
}

crate::fresh::on_servers!(
    what_is_committed_at_a_kill_is_published_once_and_nothing_else,
    keys_whose_rows_are_locked_keep_their_order_whatever_happens_to_relays,
    serialized_keys_keep_their_order_whatever_happens_to_relays,
    an_idle_transaction_stops_no_other_key,
);
