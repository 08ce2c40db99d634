//! The embedded broker beside the same loops written by hand: publishing, consuming, and handlers with transactions.
//!
//! `cargo xtask bench sqlite`; each line is `name: value (bar B)`, and a bar that is missed ends it with an error. Both
//! sides are in write-ahead mode and wait for the disk. Rounds alternate between them, each on a fresh file, and what is
//! compared is the median of each side.
//!
//! For a profile, arguments choose figures (`publish`, `random`, `consume`, `singles`, `transactions`) and sides (`ours`, `sqlx`,
//! `rusqlite`): `cargo bench -p aqueduct --features sqlite,testing --bench sqlite -- consume ours`.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

#[path = "sqlite/by_hand.rs"]
mod by_hand;
#[path = "sqlite/by_rusqlite.rs"]
mod by_rusqlite;
#[path = "sqlite/load.rs"]
mod load;

use std::future::IntoFuture;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aqueduct::sqlite::{Sqlite, SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::{Bytes, Clock, Consumer, Event, Publisher, Result, Router, State, Tx};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::Notify;

use by_hand::{ByHand, effect};
use load::{BATCH, EFFECTS, Ids, Speed, Stopwatch, body, key_of};

/// Rounds of each side.
const ROUNDS: usize = 5;

/// Events that are published and consumed in a round.
const EVENTS: u64 = 60_000;

/// Events that are handled with transactions in a round.
const HANDLED: u64 = 20_000;

/// Tasks that publish events each by itself.
const SINGLE_PUBLISHERS: usize = 200;

/// The first argument of the process that runs rusqlite.
const RUSQLITE: &str = "rusqlite";

/// The library on a file of its own.
struct Ours {
    file: SqliteFile,
    broker: SqliteBroker,
}

impl Ours {
    async fn new(path: &Path) -> Self {
        let file = SqliteFile::open(path).await.expect("a fresh file");
        let broker = SqliteBroker::new(&file);
        Self { file, broker }
    }

    async fn publish(&self, events: u64, ids: Ids) -> Speed {
        let (publisher, clock, body) = (Publisher::new("shop", self.broker.clone()), Clock::system(), body());
        let watch = Stopwatch::start();
        for start in (0..events).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX)) {
            let event = |n| {
                let event = Event::raw("order.placed", body.clone()).topic("orders").key(key_of(n));
                if ids == Ids::Random { event.id(ids.next(&clock)) } else { event }
            };
            let batch = (start..(start + BATCH).min(events)).map(event).collect();
            for receipt in publisher.publish_all(batch).await {
                receipt.expect("stored");
            }
        }
        watch.of(events)
    }

    /// Publishes events each by itself, many at the same time: each is a batch of its own in the log.
    async fn publish_singly(&self, events: u64) {
        let (publisher, body) = (Publisher::new("shop", self.broker.clone()), body());
        let publish = |first: u64| {
            let (publisher, body) = (publisher.clone(), body.clone());
            tokio::spawn(async move {
                for n in (first..events).step_by(SINGLE_PUBLISHERS) {
                    let event = Event::raw("order.placed", body.clone()).topic("orders").key(key_of(n));
                    publisher.publish(event).await.expect("stored");
                }
            })
        };
        let publishers: Vec<_> = (0..SINGLE_PUBLISHERS as u64).map(publish).collect();
        for publisher in publishers {
            publisher.await.expect("no panic");
        }
    }

    fn consumer(&self) -> Consumer {
        Consumer::new("stock", self.broker.clone()).topics(["orders"]).store(SqliteStore::new(&self.file))
    }

    async fn consume(&self, events: u64) -> Speed {
        let handler = async |body: Bytes, State(tally): State<Tally>| {
            std::hint::black_box(body.len());
            tally.count();
        };
        self.serve(self.consumer(), events, |tally| Router::new().on("order.placed", handler).with_state(tally)).await
    }

    async fn transactions(&self, events: u64) -> Speed {
        let mut connection = self.connection().await;
        sqlx::query(EFFECTS).execute(&mut connection).await.expect("a fresh file");
        let handler = async |event: Event, State(tally): State<Tally>, mut tx: Tx<Sqlite>| -> Result<()> {
            effect(&mut tx, event.id.as_str().to_owned(), event.data.len()).await?;
            tally.count();
            Ok(())
        };
        let router = |tally| Router::new().on("order.placed", handler).with_state(tally);
        let speed = self.serve(self.consumer().concurrency(128), events, router).await;
        let count = sqlx::query("select count(*) from effects").fetch_one(&mut connection).await.expect("a count");
        assert_eq!(count.get::<i64, _>(0).cast_unsigned(), events, "each effect once");
        speed
    }

    /// Serves until so many events are handled, and everything that belongs to them is committed.
    async fn serve(&self, consumer: Consumer, events: u64, router: impl FnOnce(Tally) -> Router) -> Speed {
        let tally = Tally(Arc::new((AtomicU64::new(events), Notify::new())));
        let router = router(tally.clone());
        let watch = Stopwatch::start();
        let serve = consumer.serve(router).with_graceful_shutdown(async move { tally.0.1.notified().await });
        tokio::spawn(serve.into_future()).await.expect("no panic").expect("a clean stop");
        watch.of(events)
    }

    async fn connection(&self) -> SqliteConnection {
        SqliteConnection::connect(&format!("sqlite:{}", self.file.path().display())).await.expect("the file is there")
    }
}

/// Counts events down and tells when none is left.
#[derive(Clone)]
struct Tally(Arc<(AtomicU64, Notify)>);

impl Tally {
    fn count(&self) {
        if self.0.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.1.notify_one();
        }
    }
}

/// The rounds of one side.
#[derive(Default)]
struct Side {
    publish: Vec<Speed>,
    random: Vec<Speed>,
    consume: Vec<Speed>,
    singles: Vec<Speed>,
    transactions: Vec<Speed>,
}

impl Side {
    async fn ours(&mut self, folder: &Path, wanted: &Wanted) {
        if wanted.any(&["publish", "consume"]) {
            let ours = Ours::new(&folder.join("ours.db")).await;
            self.publish.push(ours.publish(EVENTS, Ids::Ordered).await);
            if wanted.any(&["consume"]) {
                self.consume.push(ours.consume(EVENTS).await);
            }
        }
        if wanted.any(&["singles"]) {
            let ours = Ours::new(&folder.join("ours-singles.db")).await;
            ours.publish_singly(EVENTS).await;
            self.singles.push(ours.consume(EVENTS).await);
        }
        if wanted.any(&["random"]) {
            let ours = Ours::new(&folder.join("ours-random.db")).await;
            self.random.push(ours.publish(EVENTS, Ids::Random).await);
        }
        if wanted.any(&["transactions"]) {
            let ours = Ours::new(&folder.join("ours-tx.db")).await;
            ours.publish(HANDLED, Ids::Ordered).await;
            self.transactions.push(ours.transactions(HANDLED).await);
        }
    }

    async fn by_hand(&mut self, folder: &Path, wanted: &Wanted) -> sqlx::Result<()> {
        if wanted.any(&["publish", "consume", "singles"]) {
            let mut hand = ByHand::new(&folder.join("hand.db")).await?;
            self.publish.push(hand.publish(EVENTS, Ids::Ordered).await?);
            if wanted.any(&["consume", "singles"]) {
                self.consume.push(hand.consume(EVENTS).await?);
            }
        }
        if wanted.any(&["random"]) {
            let mut hand = ByHand::new(&folder.join("hand-random.db")).await?;
            self.random.push(hand.publish(EVENTS, Ids::Random).await?);
        }
        if wanted.any(&["transactions"]) {
            let mut hand = ByHand::new(&folder.join("hand-tx.db")).await?;
            hand.publish(HANDLED, Ids::Ordered).await?;
            self.transactions.push(hand.transactions(HANDLED).await?);
        }
        Ok(())
    }

    /// In a process of its own: two SQLite libraries on one machine, none disturbing the other's threads.
    fn by_rusqlite(&mut self, folder: &Path) {
        let program = std::env::current_exe().expect("this program");
        let output = Command::new(program).arg(RUSQLITE).arg(folder.join("rusqlite.db")).output().expect("it starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut numbers = text.split_whitespace().map(|number| number.parse::<f64>().expect("a number"));
        let mut speed = || Speed { rate: numbers.next().expect("a rate"), cpu: numbers.next().expect("a time") };
        self.publish.push(speed());
        self.transactions.push(speed());
    }
}

/// Figures and sides that were asked for; all if none was.
struct Wanted(Vec<String>);

impl Wanted {
    const FIGURES: [&str; 5] = ["publish", "random", "consume", "singles", "transactions"];
    const SIDES: [&str; 3] = ["ours", "sqlx", RUSQLITE];

    fn any(&self, figures: &[&str]) -> bool {
        self.of(&Self::FIGURES, figures)
    }

    fn side(&self, side: &str) -> bool {
        self.of(&Self::SIDES, &[side])
    }

    fn of(&self, all: &[&str], some: &[&str]) -> bool {
        let named = |names: &[&str]| self.0.iter().any(|word| names.contains(&word.as_str()));
        named(some) || !named(all)
    }
}

fn median(speeds: &[Speed]) -> Speed {
    let middle = |of: fn(&Speed) -> f64| {
        let mut values: Vec<f64> = speeds.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Speed { rate: middle(|speed| speed.rate), cpu: middle(|speed| speed.cpu) }
}

/// The figures that missed their bars.
#[derive(Default)]
struct Report(Vec<String>);

impl Report {
    fn figure(&mut self, name: &str, value: f64, decimals: usize, bar: Option<f64>) {
        let bar_text = bar.map_or_else(|| "none".to_owned(), |bar| bar.to_string());
        println!("{name}: {value:.decimals$} (bar {bar_text})");
        if bar.is_some_and(|bar| value < bar) {
            self.0.push(name.to_owned());
        }
    }

    /// Prints a comparison: the ratio, and each side's speed and CPU time.
    fn compare(&mut self, name: &str, sides: &[(&str, &[Speed])], bar: Option<f64>, least: Option<f64>) {
        let measured = sides.iter().filter(|(_, speeds)| !speeds.is_empty());
        let medians: Vec<(&str, Speed)> = measured.map(|(side, speeds)| (*side, median(speeds))).collect();
        let Some((_, ours)) = medians.first().copied() else { return };
        for (side, speed) in &medians {
            if *side != "ours" {
                let bar = if *side == "sqlx" { bar } else { None };
                self.figure(&format!("{name}_ratio_to_{side}"), ours.rate / speed.rate, 2, bar);
            }
        }
        for (side, speed) in &medians {
            let least = if *side == "ours" { least } else { None };
            self.figure(&format!("{name}_{side}_per_s"), speed.rate, 0, least);
            self.figure(&format!("{name}_{side}_cpu_us_an_event"), speed.cpu, 1, None);
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    if let [mode, path] = &args[..]
        && mode == RUSQLITE
    {
        let (publish, transactions) = by_rusqlite::run(Path::new(path), EVENTS, HANDLED).expect("a fresh file");
        println!("{} {} {} {}", publish.rate, publish.cpu, transactions.rate, transactions.cpu);
        return ExitCode::SUCCESS;
    }
    let wanted = Wanted(args);
    let (mut ours, mut hand, mut other) = (Side::default(), Side::default(), Side::default());
    for _ in 0..ROUNDS {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let folder = tempfile::tempdir().expect("a temporary folder");
        if wanted.side("ours") {
            runtime.block_on(ours.ours(folder.path(), &wanted));
        }
        if wanted.side("sqlx") {
            runtime.block_on(hand.by_hand(folder.path(), &wanted)).expect("a fresh file");
        }
        if wanted.side(RUSQLITE) && wanted.any(&["publish", "transactions"]) {
            other.by_rusqlite(folder.path());
        }
    }
    let mut report = Report::default();
    let sides = |of: fn(&Side) -> &[Speed]| [("ours", of(&ours)), ("sqlx", of(&hand)), ("rusqlite", of(&other))];
    report.compare("publish", &sides(|side| &side.publish), Some(0.8), Some(30_000.0));
    report.compare("publish_random_ids", &sides(|side| &side.random)[..2], None, None);
    report.compare("consume", &sides(|side| &side.consume)[..2], Some(0.8), None);
    let singles: [(&str, &[Speed]); 2] = [("ours", &ours.singles), ("sqlx", &hand.consume)];
    report.compare("consume_published_singly", &singles, None, None);
    report.compare("transactions", &sides(|side| &side.transactions), Some(0.9), None);
    if report.0.is_empty() {
        return ExitCode::SUCCESS;
    }
    eprintln!("missed: {}", report.0.join(", "));
    ExitCode::FAILURE
}
