//! The start of a consumer on a large file: how long until its first handler runs, and how much memory that takes.
//!
//! `cargo xtask bench sqlite_start` fills a file with a tenth of the full size; with the variable `AQUEDUCT_BENCH_FULL` set
//! it has 10,000,000 events and 1,000,000 parked rows, each a lane of its own. Filling and starting are processes of their
//! own, so that the memory is that of the start alone; the file is in the system's page cache as far as that holds it.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::future::IntoFuture;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aqueduct::broker::{Arrival, Broker, Membership, Room, Settle, Subscription};
use aqueduct::format::{CloudEvents, Format};
use aqueduct::sqlite::{SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::store::{Claim, Content, Op, Row, Store};
use aqueduct::{Bytes, Clock, Consumer, Epoch, Event, Message, Partition, Place, Position, Router};
use tokio::sync::Notify;

/// Events in one publish, and parked rows in one write.
const BATCH: u64 = 5_000;

/// The partitions of a topic, unless its creator says otherwise.
const PARTITIONS: u64 = 16;

/// What is in the file.
struct Size {
    events: u64,
    parked: u64,
}

impl Size {
    fn wanted() -> Self {
        let full = std::env::var_os("AQUEDUCT_BENCH_FULL").is_some();
        let scale = if full { 10 } else { 1 };
        Self { events: 1_000_000 * scale, parked: 100_000 * scale }
    }
}

/// An event without a key: it goes to the next partition in turn, and is a lane of its own.
fn message(n: u64, clock: &Clock) -> Message {
    let event = Event::raw("order.placed", n.to_string()).id(clock.uuid().to_string()).source("shop");
    CloudEvents::binary().encode(&event, &"orders".into()).expect("a plain event")
}

/// Writes the log, settles the first positions of each partition, and parks the events that stand there.
async fn fill(path: &Path, size: &Size) {
    let file = SqliteFile::options(path).relaxed().open().await.expect("a fresh file");
    let (broker, clock) = (SqliteBroker::new(&file), Clock::system());
    broker.declare("orders").await.expect("a fresh file");
    let begin = Instant::now();
    // While one batch is written the next is made.
    let mut before: Option<tokio::task::JoinHandle<()>> = None;
    for start in (0..size.events).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX)) {
        let batch = (start..(start + BATCH).min(size.events)).map(|n| message(n, &clock)).collect();
        let publish = broker.clone();
        let next = async move { publish.publish(batch).await.into_iter().for_each(|r| drop(r.expect("stored"))) };
        if let Some(before) = before.replace(tokio::spawn(next)) {
            before.await.expect("no panic");
        }
    }
    if let Some(last) = before {
        last.await.expect("no panic");
    }
    println!("start_fill_log_s: {:.1} (bar none)", begin.elapsed().as_secs_f64());
    let begin = Instant::now();
    let member = broker.join(Subscription::new("stock", vec!["orders".into()])).await.expect("nobody else");
    let store = SqliteStore::new(&file);
    for _ in 0..PARTITIONS {
        let arrival = member.next(Room::new(0, &[])).await.expect("an assignment");
        let Arrival::Assigned { partition, epoch, .. } = arrival else { panic!("no assignment, but {arrival:?}") };
        park(&*member, &store, partition, epoch, size.parked / PARTITIONS).await;
    }
    member.leave().await.expect("nothing is left to do");
    println!("start_fill_parked_s: {:.1} (bar none)", begin.elapsed().as_secs_f64());
}

async fn park(member: &dyn Membership, store: &SqliteStore, partition: Partition, epoch: Epoch, rows: u64) {
    let claim = Claim { consumer: "stock".into(), partition, epoch };
    store.take_over(&claim, None).await.expect("a fresh file");
    let now = Clock::system().now();
    let row = |position: u64| {
        let place = Place::at(position);
        let event = Event::raw("order.placed", position.to_string()).id(position.to_string()).source("shop");
        let mut row = Row::new(place, place.lane(), Content::Event(Arc::new(event)), now);
        row.next_at = now.after(Duration::from_hours(1));
        Op::Put(vec![row])
    };
    for start in (1..=rows).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX)) {
        let ops: Vec<Op> = (start..(start + BATCH).min(rows + 1)).map(row).collect();
        store.apply(&claim, &ops).await.expect("room on the disk");
    }
    member.settle(&claim.partition, &[Settle::Floor(Position(rows))]).await.expect("it is owned");
}

/// Opens the file and serves until the first handler has run.
async fn start(path: &Path, size: &Size) -> bool {
    let (first, found) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = {
        let first = Arc::clone(&first);
        async move |body: Bytes| {
            std::hint::black_box(body.len());
            first.notify_one();
            found.notified().await;
        }
    };
    let begin = Instant::now();
    let file = SqliteFile::open(path).await.expect("it was filled");
    let consumer = Consumer::new("stock", SqliteBroker::new(&file)).topics(["orders"]).store(SqliteStore::new(&file));
    let serving = tokio::spawn(consumer.serve(Router::new().on("order.placed", handler)).into_future());
    first.notified().await;
    let seconds = begin.elapsed().as_secs_f64();
    let [now, most] = ["VmRSS:", "VmHWM:"].map(memory_mb);
    serving.abort();
    let parked = parked(&file).await;
    let parked_wanted = size.parked / PARTITIONS * PARTITIONS;
    println!("start_parked_lanes: {parked} (bar {parked_wanted})");
    println!("start_to_first_handler_s: {seconds:.2} (bar 5)");
    println!("start_resident_mb: {now} (bar none)");
    println!("start_resident_at_most_mb: {most} (bar {MEMORY_MB})");
    parked >= parked_wanted && seconds < 5.0 && most <= MEMORY_MB
}

/// So much memory at most, at the full size too.
const MEMORY_MB: u64 = 512;

/// How many lanes a new owner finds in the store.
async fn parked(file: &SqliteFile) -> u64 {
    let store = SqliteStore::new(file);
    let mut lanes = 0;
    for index in 0..u32::try_from(PARTITIONS).unwrap_or(u32::MAX) {
        let partition = Partition { topic: "orders".into(), index };
        // Above the epoch of whoever has just been stopped.
        let claim = Claim { consumer: "stock".into(), partition, epoch: Epoch(u64::from(u32::MAX)) };
        lanes += store.take_over(&claim, None).await.expect("nobody else").lanes.len() as u64;
    }
    lanes
}

/// A line of `/proc/self/status` in MB; 0 where there is no such file.
fn memory_mb(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<u64>().ok()).unwrap_or(0) / 1_024
}

/// Runs this program in a mode of its own; true if that went well.
fn in_its_own_process(mode: &str, path: &Path) -> bool {
    let program = std::env::current_exe().expect("this program");
    Command::new(program).arg(mode).arg(path).status().expect("it starts").success()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let size = Size::wanted();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let done = match &args[..] {
        [mode, path] if mode == "fill" => {
            runtime.block_on(fill(Path::new(path), &size));
            true
        }
        [mode, path] if mode == "start" => runtime.block_on(start(Path::new(path), &size)),
        _ => {
            let folder = tempfile::tempdir().expect("a temporary folder");
            let path = folder.path().join("aqueduct.db");
            println!("start_events: {} (bar none)", size.events);
            in_its_own_process("fill", &path) && in_its_own_process("start", &path)
        }
    };
    if done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
