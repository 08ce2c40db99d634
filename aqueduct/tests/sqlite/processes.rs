//! Processes that are killed, and processes that share a file.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use aqueduct::sqlite::{SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::store::{Claim, Listed, RowState, Store};
use aqueduct::{Clock, Epoch, Partition, Publisher};
use parking_lot::Mutex;
use serde_json::{Value, json};
use sqlx::{Connection, Row, SqliteConnection};
use tempfile::TempDir;

use crate::checker::{Consumed, Log, check_parked, rows};
use crate::history::{History, Step, What, steps};
use crate::process::{LONG, Worker};
use crate::worker::{Events, FILE_EVENTS, TOPIC, database, history_path, left};

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

async fn connection(folder: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite:{}", database(folder).display())).await.unwrap()
}

/// A folder with a file that has a table for effects, with no constraint that would hide a second one.
fn ground() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    block_on(async {
        SqliteFile::open(database(folder.path())).await.unwrap();
        let table = "create table effects (at integer primary key, consumer text, event text, life integer)";
        sqlx::query(table).execute(&mut connection(folder.path()).await).await.unwrap();
    });
    folder
}

/// The store has seen later epochs of two partitions than the broker, as when the broker's file is an older backup: their
/// first owner gives them back, to own them again under a higher epoch.
async fn raise_fences(folder: &Path) {
    let store = SqliteStore::open(database(folder)).await.unwrap();
    for index in [3, 5] {
        let partition = Partition { topic: TOPIC.into(), index };
        let claim = Claim { consumer: CONSUMER.into(), partition, epoch: Epoch(7) };
        store.take_over(&claim, None).await.unwrap();
    }
}

/// The effects in the table, in the order of their commits.
async fn table_of_effects(connection: &mut SqliteConnection, consumer: &str) -> Vec<(String, usize)> {
    let sql = "select event, life from effects where consumer = ? order by at";
    let rows = sqlx::query(sql).bind(consumer.to_owned()).fetch_all(connection).await.unwrap();
    rows.iter().map(|row| (row.get(0), usize::try_from(row.get::<i64, _>(1)).unwrap())).collect()
}

fn effects_in(steps: &[Step]) -> Vec<(String, usize)> {
    let effects = steps.iter().filter(|step| step.what == What::Effect);
    effects.map(|step| (step.event.clone(), step.life)).collect()
}

/// The sum of many runs, to be printed.
#[derive(Default)]
struct Figures {
    runs: usize,
    kills: usize,
    events: usize,
    effects: usize,
    repeats: usize,
    parked: usize,
}

impl Figures {
    fn add(&mut self, other: &Self) {
        self.runs += other.runs;
        self.kills += other.kills;
        self.events += other.events;
        self.effects += other.effects;
        self.repeats += other.repeats;
        self.parked += other.parked;
    }
}

impl std::fmt::Display for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { runs, kills, events, effects, repeats, parked } = self;
        write!(
            f,
            "{runs} files, {kills} kills, {events} events, {effects} effects of which {repeats} repeat one, {parked} parked when killed"
        )
    }
}

/// One file, and the lives of a service on it.
struct Run {
    folder: TempDir,
    tx: bool,
    /// It does not wait for the disk, which a killed process does not need.
    relaxed: bool,
    lives: usize,
    steps: Vec<Step>,
    /// So many events are known to be confirmed.
    confirmed: usize,
    published: usize,
    figures: Figures,
}

const CONSUMER: &str = "worker";

impl Run {
    fn new(tx: bool, relaxed: bool) -> Self {
        let (folder, figures) = (ground(), Figures { runs: 1, ..Figures::default() });
        block_on(raise_fences(folder.path()));
        Self { folder, tx, relaxed, lives: 0, steps: Vec::new(), confirmed: 0, published: 0, figures }
    }

    /// The next life, which publishes the events up to here. It begins a little before what was confirmed.
    fn start(&mut self, to: usize, die_at: Option<(&str, u32)>) -> Worker {
        self.published = self.published.max(to);
        let mut task = json!({
            "role": "consumer", "consumer": CONSUMER, "life": self.lives, "tx": self.tx, "operator": !self.tx,
            "relaxed": self.relaxed, "from": self.confirmed.saturating_sub(30), "to": self.published,
        });
        if let Some((step, nth)) = die_at {
            (task["die_at"], task["nth"]) = (json!(step), json!(nth));
        }
        Worker::start(self.folder.path(), &format!("life-{}", self.lives), task)
    }

    /// Takes in what the life that has just ended wrote down. Answers the step at which it killed itself.
    fn ended(&mut self, parked: &[Listed]) -> Option<String> {
        let lines = History::read(&history_path(self.folder.path(), &format!("life-{}", self.lives)));
        let steps = steps(self.lives, &lines);
        check_parked(parked, &steps);
        self.steps.extend(steps);
        for line in &lines {
            let to = line["confirmed"]["to"].as_u64().unwrap_or(0);
            self.confirmed = self.confirmed.max(usize::try_from(to).unwrap());
        }
        self.lives += 1;
        lines.iter().find_map(|line| Some(line["killed"].as_str()?.to_owned()))
    }

    fn parked(&mut self) -> Vec<Listed> {
        let rows = block_on(rows(self.folder.path(), CONSUMER));
        self.figures.parked += rows.iter().filter(|l| l.row.state == RowState::Parked).count();
        rows
    }

    /// A life that kills itself at a step, which it must reach.
    fn die_at(&mut self, step: &str, nth: u32) {
        let parked = self.parked();
        let mut worker = self.start(FILE_EVENTS, Some((step, nth)));
        let status = worker.end();
        assert_eq!(self.ended(&parked).as_deref(), Some(step), "it was never reached: {status} {}", worker.story());
        assert_eq!(status.signal(), Some(9));
        self.figures.kills += 1;
    }

    /// A last life without a fault, and the judgement.
    fn settle_and_check(mut self) -> Figures {
        let parked = self.parked();
        let to = self.published;
        self.start(to, None).end_well();
        self.ended(&parked);
        assert_eq!(self.confirmed, self.published);
        block_on(self.check());
        self.figures
    }

    async fn check(&mut self) {
        let mut connection = connection(self.folder.path()).await;
        let log = Log::read(self.folder.path()).await;
        let events = Events::of("w");
        log.check(&(0..self.published).map(|n| events.id(n)).collect());
        assert_eq!(left(&mut connection, CONSUMER).await, 0);
        let effects = if self.tx { table_of_effects(&mut connection, CONSUMER).await } else { effects_in(&self.steps) };
        let (steps, once) = (self.steps.as_slice(), self.tx);
        let consumed = Consumed { consumer: CONSUMER, log: &log, mended: !self.tx, steps, effects: &effects, once };
        self.figures.repeats += consumed.check(self.folder.path()).await;
        self.figures.events += self.published;
        self.figures.effects += effects.len();
        let sound = sqlx::query("pragma integrity_check").fetch_one(&mut connection).await.unwrap();
        assert_eq!(sound.get::<String, _>(0), "ok");
    }
}

/// Every call through a port, with its steps before and after, and which of its calls is the last.
const CALLS: [(&str, u32); 17] = [
    ("join", 1),
    ("take_over", 3),
    ("next", 20),
    ("publish", 3),
    ("settle", 4),
    ("due", 5),
    ("apply.park", 1),
    ("apply.append", 2),
    ("apply.dead", 1),
    ("apply.finish", 3),
    ("apply.redate", 2),
    ("apply.give_up", 1),
    ("apply.floor", 1),
    ("command", 1),
    ("apply.operate", 1),
    ("release", 2),
    ("leave", 1),
];

/// The steps of handlers that take a transaction, and what is around them.
const TX_STEPS: [(&str, u32); 10] = [
    ("tx.begin/after", 40),
    ("tx.handler/after", 60),
    ("tx.commit/before", 80),
    ("tx.commit/after", 30),
    ("publish/after", 2),
    ("next/after", 20),
    ("settle/before", 3),
    ("settle/after", 3),
    ("release/before", 2),
    ("leave/before", 1),
];

/// Does all jobs, some at the same time.
fn all<T: Send>(jobs: Vec<T>, work: impl Fn(T) -> Figures + Sync) -> Figures {
    let (jobs, total) = (Mutex::new(jobs.into_iter()), Mutex::new(Figures::default()));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                loop {
                    let Some(job) = jobs.lock().next() else { return };
                    total.lock().add(&work(job));
                }
            });
        }
    });
    total.into_inner()
}

#[test]
fn a_process_killed_at_any_step_loses_nothing_and_keeps_the_order_of_keys() {
    let sides = ["before", "after"];
    let plain = CALLS.iter().flat_map(|(call, nth)| sides.map(|side| (format!("{call}/{side}"), *nth, false)));
    let tx = TX_STEPS.iter().map(|(step, nth)| ((*step).to_owned(), *nth, true));
    let figures = all(plain.chain(tx).collect(), |(step, nth, tx)| {
        let mut run = Run::new(tx, true);
        if step.starts_with("apply.floor") {
            // It tells the store that an earlier life's dead letters do not come again.
            run.die_at("apply.dead/after", 1);
        }
        run.die_at(&step, nth);
        run.settle_and_check()
    });
    println!("named steps: {figures}");
}

/// What `cargo xtask chaos` asks for; none in a usual test run.
fn chaos(what: &str) -> Option<u64> {
    std::env::var(format!("AQUEDUCT_CHAOS_{what}")).ok().map(|value| value.parse().unwrap())
}

/// Kills of one service.
const KILLS: u64 = 5;

/// Events that each life publishes more than the one before.
const MORE: usize = 200;

#[test]
fn a_process_killed_at_random_under_load_loses_nothing_and_keeps_the_order_of_keys() {
    let rounds = chaos("ROUNDS").unwrap_or(15);
    let chance = if chaos("ROUNDS").is_some() { Clock::system() } else { Clock::simulated(1) };
    let jobs = (0..rounds.div_ceil(KILLS)).map(|n| {
        let moments = (0..KILLS.min(rounds - n * KILLS)).map(|_| moment(&chance));
        (n % 2 == 1, moments.collect::<Vec<_>>())
    });
    let figures = all(jobs.collect(), |(tx, moments)| {
        let mut run = Run::new(tx, false);
        for (life, moment) in moments.into_iter().enumerate() {
            let parked = run.parked();
            let mut worker = run.start((life + 1) * MORE, None);
            if moment.is_early {
                run.figures.kills += usize::from(worker.kill_after(moment.after));
            } else {
                worker.wait_for("@up");
                run.figures.kills += usize::from(worker.kill_after(moment.after));
            }
            run.ended(&parked);
        }
        run.settle_and_check()
    });
    println!("random: {figures}");
}

struct Moment {
    /// Counted from its start, else from when it has opened the file.
    is_early: bool,
    after: Duration,
}

fn moment(chance: &Clock) -> Moment {
    let is_early = chance.random(8) == 0;
    let after = Duration::from_micros(chance.random(if is_early { 50_000 } else { 600_000 }));
    Moment { is_early, after }
}

/// A folder with one event, and a process whose handler has started a program for it.
fn started(record: bool) -> (TempDir, Worker, String) {
    let folder = ground();
    block_on(async {
        let broker = SqliteBroker::open(database(folder.path())).await.unwrap();
        Publisher::new("test", broker).publish(Events::of("w").get(0)).await.unwrap();
    });
    let task = json!({"role": "starter", "with_input": true, "record": record});
    let mut first = Worker::start(folder.path(), "first", task);
    let [program, _] = first.wait_for_all(["@program", "@running"]);
    assert_eq!(runs(&folder), "start first\n");
    (folder, first, program)
}

fn runs(folder: &TempDir) -> String {
    std::fs::read_to_string(folder.path().join("runs")).unwrap_or_default()
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "only Linux tells whose orphans there are")]
fn a_restart_waits_for_the_program_of_a_killed_process_and_says_so() {
    let (folder, mut first, program) = started(false);
    first.kill();
    let mut second = Worker::start(folder.path(), "second", json!({"role": "starter"}));
    let waits = second.wait_for("cannot be joined");
    let orphans = format!("waits for orphans of the ended process {}: ", first.process.id());
    let names = waits.contains(&orphans) && waits.contains(&format!("`sh` (pid {program})"));
    assert!(names, "{waits}");
    assert_eq!(runs(&folder), "start first\n");
    first.input = None;
    second.end_well();
    assert_eq!(runs(&folder), "start first\nend first\nstart second\nend second\n");
    first.end();
}

#[test]
#[cfg_attr(not(target_os = "linux"), ignore = "only Linux tells whose orphans there are")]
fn a_program_of_a_killed_process_is_ended_with_its_group_when_its_time_is_over() {
    let (folder, mut first, program) = started(true);
    first.kill();
    let mut second = Worker::start(folder.path(), "second", json!({"role": "starter"}));
    let ended = second.wait_for("passed its deadline and was ended");
    assert!(ended.contains(&format!("(pid {program}, until ")), "{ended}");
    // Its output ends when nobody is left who could write, although its input goes on.
    first.end();
    second.end_well();
    assert_eq!(runs(&folder), "start first\nstart second\nend second\n");
    drop(first.input.take());
}

#[test]
fn consumers_and_publishers_in_processes_of_their_own_share_a_file() {
    let seconds = chaos("SECONDS").unwrap_or(4);
    let folder = ground();
    let consumers = [("plain", false), ("ledger", true)].map(|(name, tx)| {
        let task = json!({"role": "consumer", "consumer": name, "tx": tx, "until_input_ends": true});
        (name, tx, Worker::start(folder.path(), name, task))
    });
    let names = ["north", "south", "west"];
    let publishers =
        names.map(|name| Worker::start(folder.path(), name, json!({"role": "publisher", "seconds": seconds})));
    for mut publisher in publishers {
        publisher.end_well_within(LONG + Duration::from_secs(seconds));
    }
    for (_, _, mut worker) in consumers {
        worker.input = None;
        worker.end_well();
    }
    let history = |name: &str| History::read(&history_path(folder.path(), name));
    let published: BTreeSet<String> = names.iter().flat_map(|name| confirmed(name, &history(name))).collect();
    let publish_max = names.map(|name| figure(&history(name), "publish_max_ms"));
    let gap_max = ["plain", "ledger"].map(|name| figure(&history(name), "gap_max_ms"));
    println!(
        "shared file: {} events in {seconds} s; longest publish of each publisher {publish_max:?} ms, longest wait of each consumer {gap_max:?} ms",
        published.len()
    );
    block_on(async {
        let mut connection = connection(folder.path()).await;
        let log = Log::read(folder.path()).await;
        log.check(&published);
        for (consumer, once) in [("plain", false), ("ledger", true)] {
            let steps = steps(0, &history(consumer));
            let effects = if once { table_of_effects(&mut connection, consumer).await } else { effects_in(&steps) };
            let consumed = Consumed { consumer, log: &log, mended: false, steps: &steps, effects: &effects, once };
            assert_eq!(consumed.check(folder.path()).await, 0, "{consumer} handled events again");
        }
    });
    if chaos("SECONDS").is_some() {
        let longest = publish_max.into_iter().chain(gap_max).max();
        assert!(longest < Some(1_000), "somebody was locked out for {longest:?} ms");
    }
}

fn confirmed(by: &str, lines: &[Value]) -> Vec<String> {
    let events = Events::of(by);
    let range = |line: &Value| {
        let [from, to] = ["from", "to"].map(|end| line["confirmed"][end].as_u64().unwrap_or(0));
        (from..to).map(|n| events.id(usize::try_from(n).unwrap())).collect::<Vec<_>>()
    };
    lines.iter().flat_map(range).collect()
}

fn figure(lines: &[Value], name: &str) -> u64 {
    lines.iter().find_map(|line| line[name].as_u64()).unwrap()
}
