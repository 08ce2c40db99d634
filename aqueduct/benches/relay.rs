//! The relay beside the loop that does the least: read 500 rows and delete them, in one transaction.
//!
//! `cargo xtask bench relay`; each line is `name: value (bar B)`, and a bar that is missed ends it with an error. Both sides wait for
//! the disk. Rounds alternate between them, each on a fresh file, and what is compared is the median of each side.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::future::IntoFuture;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use aqueduct::sqlite::{SqliteFile, SqliteStore};
use aqueduct::{Event, MemoryBroker, Outbox, Relay};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection, Row};

/// Rounds of each side.
const ROUNDS: usize = 5;

/// Rows that are drained in a round.
const ROWS: u64 = 100_000;

/// Rows written in one transaction, before the watch runs.
const WRITTEN: u64 = 5_000;

/// Rows whose way from the commit to the broker is measured one by one.
const SINGLE: u64 = 200;

/// Low, since a file has one shard and one writer, and each row passes between two threads on both sides; the loop by hand
/// looks at nothing and publishes nothing.
const BAR: f64 = 0.4;
const LATENCY_BAR_MS: f64 = 20.0;

async fn connect(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).journal_mode(SqliteJournalMode::Wal);
    options.synchronous(SqliteSynchronous::Full).connect().await.expect("the file is there")
}

fn event(n: u64) -> Event {
    let event = Event::raw("order.placed", vec![b'x'; 256]).topic("orders");
    event.key(format!("key {}", (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % 10_000))
}

async fn write(outbox: &Outbox, connection: &mut SqliteConnection, events: Vec<Event>) {
    let mut tx = connection.begin_with("begin immediate").await.expect("nobody else writes");
    outbox.publish_all(&mut tx, events).await.expect("written");
    tx.commit().await.expect("committed");
}

async fn fill(path: &Path) -> SqliteFile {
    let file = SqliteFile::open(path).await.expect("a fresh file");
    let (outbox, mut connection) = (Outbox::new("shop", &file).relayed(), connect(path).await);
    for start in (0..ROWS).step_by(usize::try_from(WRITTEN).unwrap_or(usize::MAX)) {
        write(&outbox, &mut connection, (start..start + WRITTEN).map(event).collect()).await;
    }
    file
}

async fn is_empty(connection: &mut SqliteConnection) -> bool {
    let found = sqlx::query("select id from aq_outbox limit 1").fetch_optional(connection).await;
    found.expect("the table is there").is_none()
}

/// Rows a second of the loop written by hand.
async fn by_hand(path: &Path) -> f64 {
    drop(fill(path).await);
    let mut connection = connect(path).await;
    let began = Instant::now();
    loop {
        let mut tx = connection.begin_with("begin immediate").await.expect("nobody else writes");
        let read = "select id, topic, key, content from aq_outbox order by id limit 500";
        let rows = sqlx::query(read).fetch_all(&mut *tx).await.expect("read");
        let Some(last) = rows.last().map(|row| row.get::<i64, _>(0)) else { break };
        for row in &rows {
            let (key, content): (String, Vec<u8>) = (row.get(2), row.get(3));
            std::hint::black_box((key, content));
        }
        sqlx::query("delete from aq_outbox where id <= ?").bind(last).execute(&mut *tx).await.expect("deleted");
        tx.commit().await.expect("committed");
    }
    per_second(began.elapsed())
}

/// Rows a second of the relay.
async fn ours(path: &Path) -> f64 {
    let file = fill(path).await;
    let mut connection = connect(path).await;
    let relay = Relay::new(&SqliteStore::new(&file), MemoryBroker::new());
    let began = Instant::now();
    let drained = async {
        loop {
            let changed = file.changed();
            if is_empty(&mut connection).await {
                break;
            }
            changed.await;
        }
    };
    tokio::select! {
        biased;
        () = drained => {}
        served = relay.serve().into_future() => served.expect("it serves"),
    }
    per_second(began.elapsed())
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn per_second(took: Duration) -> f64 {
    ROWS as f64 / took.as_secs_f64()
}

/// From the commit of a row to the broker, the median in milliseconds.
async fn latency_ms(path: &Path) -> f64 {
    let file = SqliteFile::open(path).await.expect("a fresh file");
    let (outbox, mut connection) = (Outbox::new("shop", &file).relayed(), connect(path).await);
    let broker = MemoryBroker::new().partitions(1);
    let relay = tokio::spawn(Relay::new(&SqliteStore::new(&file), broker.clone()).serve().into_future());
    let mut took = Vec::new();
    for n in 0..SINGLE {
        tokio::time::sleep(Duration::from_millis(n % 50)).await;
        write(&outbox, &mut connection, vec![event(n)]).await;
        let committed = Instant::now();
        while broker.log(&"orders".into()).len() as u64 <= n {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        took.push(committed.elapsed().as_secs_f64() * 1_000.0);
    }
    relay.abort();
    median(took)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

#[tokio::main]
async fn main() -> ExitCode {
    let (mut hand, mut relay) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let folder = tempfile::tempdir().expect("room for a file");
        hand.push(by_hand(&folder.path().join(format!("hand {round}.db"))).await);
        relay.push(ours(&folder.path().join(format!("relay {round}.db"))).await);
    }
    let folder = tempfile::tempdir().expect("room for a file");
    let latency = latency_ms(&folder.path().join("latency.db")).await;
    let (hand, relay) = (median(hand), median(relay));
    println!("rows read and deleted by hand in a second: {hand:.0}");
    println!("rows relayed in a second: {relay:.0}");
    println!("relayed to by hand: {:.2} (bar {BAR})", relay / hand);
    println!("median from commit to broker, ms: {latency:.1} (bar {LATENCY_BAR_MS})");
    if relay / hand < BAR || latency > LATENCY_BAR_MS { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
