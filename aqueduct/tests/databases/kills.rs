//! Every delivery doubled, and processes that are killed at every step between two durable actions, or whenever it may be:
//! money that handlers move adds up on every database.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::time::Duration;

use aqueduct::broker::Start;
use aqueduct::mysql::MySql;
use aqueduct::postgres::Postgres;
use aqueduct::sql::SqlStore;
use aqueduct::sqlite::{Sqlite, SqliteBroker};
use aqueduct::store::{Claim, RowState, Store};
use aqueduct::{Clock, Epoch, Partition};
use serde_json::json;
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;

use crate::bank::{ACCOUNTS, BALANCE, Bank, found};
use crate::history::{History, Step, What, steps};
use crate::points::Points;
use crate::process::Worker;
use crate::worker::{
    CONSUMER, FATES, FOLLOW_UPS, Fate, TOPIC, Transfer, database, history_path, left, open, parked, rows, transfer_of,
};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// The sum of many lives, to be printed.
#[derive(Default)]
struct Figures {
    kills: usize,
    deliveries: usize,
    skipped: usize,
    runs: usize,
    effects: usize,
    dead: usize,
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kills, deliveries, skipped, runs, effects, dead } = self;
        write!(
            f,
            "{kills} kills, {deliveries} deliveries, {runs} runs of handlers, {effects} effects, {skipped} attempts skipped by the inbox, {dead} dead letters"
        )
    }
}

/// One bank, and the lives of a service for it.
struct Run<DB: Bank> {
    folder: TempDir,
    prefix: String,
    lives: usize,
    steps: Vec<Step>,
    /// So many transfers are known to be confirmed.
    confirmed: usize,
    published: usize,
    figures: Figures,
    /// Handlers share their transactions.
    batched: bool,
    database: std::marker::PhantomData<DB>,
}

impl<DB: Bank> Run<DB> {
    fn new(batched: bool) -> Self {
        let (folder, prefix, database) = (tempfile::tempdir().unwrap(), DB::prefix(), std::marker::PhantomData);
        let run = Self {
            folder,
            prefix,
            lives: 0,
            steps: Vec::new(),
            confirmed: 0,
            published: 0,
            figures: Figures::default(),
            batched,
            database,
        };
        block_on(async {
            run.store().await;
            found::<DB>(&crate::worker::database(run.folder.path()), &run.prefix).await;
        });
        run
    }

    async fn store(&self) -> SqlStore<DB::Ledger> {
        let file = open(self.folder.path()).await;
        let points = Points::new(History::append_to(&self.folder.path().join("test.jsonl")), None);
        SqlStore::new(&DB::open(&file, &self.prefix, points).await)
    }

    /// The next life, with more transfers. It publishes some again that were confirmed.
    fn start(&mut self, more: usize, die_at: Option<(&str, u32)>) -> Worker {
        self.published += more;
        let mut task = json!({
            "database": DB::NAME, "prefix": self.prefix, "life": self.lives,
            "from": self.confirmed.saturating_sub(30), "to": self.published, "batched": self.batched,
        });
        if let Some((step, nth)) = die_at {
            (task["die_at"], task["nth"]) = (json!(step), json!(nth));
        }
        Worker::start(self.folder.path(), &format!("life-{}", self.lives), task)
    }

    /// Takes in what the life that has just ended wrote down. Answers the step at which it killed itself.
    fn ended(&mut self) -> Option<String> {
        let lines = History::read(&history_path(self.folder.path(), &format!("life-{}", self.lives)));
        let of_this_life = steps(self.lives, &lines);
        self.figures.runs += of_this_life.iter().filter(|step| matches!(step.what, What::Start { .. })).count();
        self.steps.extend(of_this_life);
        for line in &lines {
            let to = line["confirmed"].as_u64().unwrap_or(0);
            self.confirmed = self.confirmed.max(usize::try_from(to).unwrap());
            self.figures.skipped += usize::from(line["skipped"].is_string());
        }
        self.lives += 1;
        lines.iter().find_map(|line| Some(line["killed"].as_str()?.to_owned()))
    }

    /// A life that kills itself at a step, which it must reach.
    fn die_at(&mut self, step: &str, nth: u32) {
        if step.starts_with("release") {
            block_on(self.raise_fences());
        }
        if step.starts_with("apply.floor") {
            // It tells the store that an earlier life's dead letters do not come again.
            self.die_at("apply.dead/after", 1);
        }
        // A life that does not reach it settles everything, and the next one has no backlog that is in the way.
        for last in [false, false, true] {
            let mut worker = self.start(FATES, Some((step, nth)));
            let status = worker.end();
            let died_at = self.ended();
            self.check_log(&worker);
            assert!(
                died_at.is_some() || status.success() && !last,
                "{step} is never reached: {status} {}",
                worker.story()
            );
            if died_at.is_some() {
                assert_eq!((died_at.as_deref(), status.signal()), (Some(step), Some(9)));
                self.figures.kills += 1;
                return;
            }
        }
    }

    /// No database has lost anything, and no life says so.
    fn check_log(&self, worker: &Worker) {
        let wrong = worker.said.lines().find(|line| line.contains("has lost"));
        assert!(wrong.is_none(), "{}, life {}: {wrong:?}", DB::NAME, self.lives - 1);
    }

    /// The store has seen later epochs of two partitions than the broker: their owner gives them back, to own them again
    /// under a higher one.
    async fn raise_fences(&self) {
        let store = self.store().await;
        for index in [1, 3] {
            let partition = Partition { topic: TOPIC.into(), index };
            let epoch = Epoch(1_000 * (self.lives as u64 + 1));
            store.take_over(&Claim { consumer: CONSUMER.into(), partition, epoch }, None).await.unwrap();
        }
    }

    /// A last life without a fault, and the judgement.
    fn settle_and_check(mut self) -> Figures {
        let mut worker = self.start(0, None);
        worker.end_well();
        self.ended();
        self.check_log(&worker);
        assert_eq!(self.confirmed, self.published);
        block_on(self.check());
        self.figures
    }

    async fn check(&mut self) {
        let transfers: Vec<Transfer> = (0..self.published).map(Transfer).collect();
        let (done, dead): (Vec<_>, Vec<_>) = transfers.iter().copied().partition(|transfer| !transfer.is_dead());
        let mut connection = DB::connect(&database(self.folder.path())).await;
        self.check_effects(&mut connection, &done).await;
        self.check_accounts(&mut connection, &done).await;
        self.check_follow_ups(&mut connection, &done).await;
        self.check_inbox(&mut connection, &done).await;
        self.check_dead(&dead).await;
        self.check_runs();
        self.figures.deliveries += 2 * transfers.len();
    }

    /// Each event that can have an effect has had it once, and those of a key in their order. A replayed dead letter runs late.
    async fn check_effects(&mut self, connection: &mut DB::Connection, done: &[Transfer]) {
        let sql = format!("select event, lane, counter, life from {}effects order by at", self.prefix);
        let effects = DB::numbers(connection, sql).await;
        let mut times: BTreeMap<usize, usize> = BTreeMap::new();
        let mut reached: BTreeMap<usize, usize> = BTreeMap::new();
        for effect in &effects {
            let [event, key, counter] = [0, 1, 2].map(|column: usize| usize::try_from(effect[column]).unwrap());
            *times.entry(event).or_default() += 1;
            if Transfer(event).fate() == Fate::Mendable {
                continue;
            }
            let before = reached.insert(key, counter);
            assert!(before < Some(counter), "key {key}: {counter} after {before:?}, in life {}", effect[3]);
        }
        let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "{}: more than one effect: {twice:?}", DB::NAME);
        let (found, expected) = (times.into_keys().collect(), done.iter().map(|t| t.0).collect::<BTreeSet<_>>());
        let (lost, phantom): (Vec<_>, Vec<_>) =
            (expected.difference(&found).collect(), found.difference(&expected).collect());
        assert!(lost.is_empty() && phantom.is_empty(), "{}: no effect: {lost:?}; wrong: {phantom:?}", DB::NAME);
        self.figures.effects += effects.len();
    }

    /// Every account has what the transfers make of it.
    async fn check_accounts(&self, connection: &mut DB::Connection, done: &[Transfer]) {
        let mut expected = [BALANCE; ACCOUNTS];
        done.iter().flat_map(|transfer| transfer.moves()).for_each(|(account, amount)| expected[account] += amount);
        let sql = format!("select balance from {}accounts order by id", self.prefix);
        let found: Vec<i64> = DB::numbers(connection, sql).await.into_iter().map(|row| row[0]).collect();
        assert_eq!(found, expected, "{}: the accounts", DB::NAME);
        assert_eq!(found.iter().sum::<i64>(), BALANCE * i64::try_from(ACCOUNTS).unwrap());
    }

    /// What handlers publish is there once for each effect.
    async fn check_follow_ups(&self, connection: &mut DB::Connection, done: &[Transfer]) {
        let mut found = match DB::outbox(connection, &self.prefix).await {
            Some(ids) => ids,
            None => self.logged(FOLLOW_UPS).await,
        };
        found.sort();
        let expected: Vec<String> = done.iter().map(|transfer| transfer.follow_up()).collect();
        assert_eq!(found, expected, "{}: what was published", DB::NAME);
    }

    /// The ids of the events of a topic.
    async fn logged(&self, topic: &'static str) -> Vec<String> {
        let broker = SqliteBroker::new(&open(self.folder.path()).await);
        let mut reader = broker.read(topic, Start::Beginning).await.unwrap();
        let mut ids = Vec::new();
        loop {
            let found = reader.read(1_000).await.unwrap();
            if found.is_empty() {
                return ids;
            }
            ids.extend(found.iter().map(|logged| logged.message.headers.text("ce-id").unwrap().to_owned()));
        }
    }

    async fn check_inbox(&self, connection: &mut DB::Connection, done: &[Transfer]) {
        let found =
            DB::texts(connection, format!("select cast(id as {}) from {}inbox order by 1", DB::TEXT, self.prefix));
        let expected: Vec<String> = done.iter().map(|transfer| transfer.id()).collect();
        assert_eq!(found.await, expected, "{}: the inbox", DB::NAME);
    }

    /// Exactly what cannot be carried out is a dead letter, with its double, and nothing else is left.
    async fn check_dead(&mut self, dead: &[Transfer]) {
        let store = self.store().await;
        let rows = rows(&store, None).await;
        let mut found: Vec<usize> = rows.iter().map(|listed| transfer_of(listed).0).collect();
        found.sort_unstable();
        let expected: Vec<usize> = dead.iter().flat_map(|transfer| [transfer.0, transfer.0]).collect();
        assert_eq!(found, expected, "{}: dead letters", DB::NAME);
        assert!(rows.iter().all(|listed| matches!(listed.row.state, RowState::Dead(_))));
        let mut log =
            SqliteConnection::connect(&format!("sqlite:{}", database(self.folder.path()).display())).await.unwrap();
        assert_eq!((left(&mut log).await, parked(&store).await), (0, 0));
        self.figures.dead += rows.len();
    }

    /// No two runs of a key at the same time, where all that is of the key is in one lane.
    fn check_runs(&self) {
        let mut running: BTreeMap<usize, &Step> = BTreeMap::new();
        for step in &self.steps {
            let transfer = Transfer::of(&step.event);
            if !transfer.is_doubled_in_its_lane() {
                continue;
            }
            if matches!(step.what, What::Start { .. }) {
                let before = running.insert(transfer.key(), step);
                let overlaps = before.filter(|before| before.life == step.life);
                assert!(overlaps.is_none(), "{}: {step:?} while there was {overlaps:?}", DB::NAME);
            } else {
                let began = running.remove(&transfer.key());
                assert_eq!(began.map(|b| &b.event), Some(&step.event), "{}: {step:?} after {began:?}", DB::NAME);
            }
        }
    }
}

/// Every call through a port, with its steps before and after, and which of its calls is the last.
const CALLS: [(&str, u32); 19] = [
    ("join", 1),
    ("take_over", 5),
    ("resume", 5),
    ("next", 8),
    ("publish", 2),
    ("settled", 3),
    ("settle", 3),
    ("due", 5),
    ("apply.park", 1),
    ("apply.append", 2),
    ("apply.dead", 1),
    ("apply.finish", 2),
    ("apply.redate", 2),
    ("apply.give_up", 1),
    ("apply.floor", 1),
    ("command", 1),
    ("apply.operate", 1),
    ("release", 2),
    ("leave", 1),
];

/// The steps inside and around a transaction that every database has.
const TX_STEPS: [(&str, u32); 5] = [
    ("tx.begin/before", 9),
    ("tx.inbox/after", 14),
    ("tx.handler/after", 19),
    ("tx.commit/before", 16),
    ("tx.commit/after", 13),
];

fn killed_at_every_step<DB: Bank>() {
    let calls = CALLS.iter().flat_map(|(call, nth)| ["before", "after"].map(|side| (format!("{call}/{side}"), *nth)));
    let inside = TX_STEPS.iter().chain(DB::STEPS).map(|(step, nth)| ((*step).to_owned(), *nth));
    let mut run = Run::<DB>::new(false);
    for (step, nth) in inside.chain(calls) {
        run.die_at(&step, nth);
    }
    println!("{}, named steps: {}", DB::NAME, run.settle_and_check());
}

/// What `cargo xtask chaos` asks for; none in a usual test run.
fn rounds() -> Option<u64> {
    std::env::var("AQUEDUCT_CHAOS_ROUNDS").ok().map(|value| value.parse().unwrap())
}

/// Transfers that each life orders more than the one before.
const MORE: usize = 150;

/// Processes whose handlers share their transactions: the steps inside and around one, and moments by chance.
fn killed_in_batches<DB: Bank>() {
    let mut run = Run::<DB>::new(true);
    // A transaction is begun more seldom, and dead letters and their doubles are never inside one for long.
    let steps =
        TX_STEPS.iter().chain(DB::STEPS).map(|(step, nth)| (*step, if step.contains("/after") { 3 } else { *nth }));
    for (step, nth) in steps {
        run.die_at(step, nth);
    }
    killed_at_chance(run, "in batches");
}

fn killed_at_random<DB: Bank>() {
    killed_at_chance(Run::<DB>::new(false), "random");
}

fn killed_at_chance<DB: Bank>(mut run: Run<DB>, name: &str) {
    let chance = if rounds().is_some() { Clock::system() } else { Clock::simulated(1) };
    for _ in 0..rounds().unwrap_or(5) {
        let mut worker = run.start(MORE, None);
        // Now and then while it starts.
        if chance.random(8) > 0 {
            worker.wait_for("@up");
        }
        run.figures.kills += usize::from(worker.kill_after(Duration::from_micros(chance.random(500_000))));
        run.ended();
        run.check_log(&worker);
    }
    println!("{}, {name}: {}", DB::NAME, run.settle_and_check());
}

macro_rules! on_databases {
    ($($database:ident: $DB:ty),*) => {$(
        mod $database {
            #[test]
            fn a_process_killed_at_any_step_moves_each_sum_once() {
                super::killed_at_every_step::<$DB>();
            }

            #[test]
            fn a_process_killed_at_random_moves_each_sum_once() {
                super::killed_at_random::<$DB>();
            }

            #[test]
            fn a_process_killed_inside_a_batch_moves_each_sum_once() {
                super::killed_in_batches::<$DB>();
            }
        }
    )*};
}

on_databases!(postgres: super::Postgres, mysql: super::MySql, sqlite: super::Sqlite);
