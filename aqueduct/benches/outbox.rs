//! The relay on PostgreSQL and MariaDB beside reading and deleting alone, the time from a commit to the handler, and how many
//! statements an event costs, here and by what others do for a job.
//!
//! `cargo xtask bench outbox`; each line is `name: value (bar B)`, and a bar that is missed ends it with an error. Arguments
//! choose databases (`postgres`, `mariadb`) and figures (`relay`, `latency`, `statements`; the last on PostgreSQL alone).

#![allow(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

#[path = "outbox/latency.rs"]
mod latency;
#[path = "outbox/queues.rs"]
mod queues;

use std::fmt::Write;
use std::future::IntoFuture;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use aqueduct::broker::{Abilities, Broker, Membership, Receipt, Subscription};
use aqueduct::mysql::{MySql, MySqlDatabase};
use aqueduct::postgres::{PgDatabase, Postgres};
use aqueduct::sql::{Server, ServerDatabase, SqlStore, TxDatabase};
use aqueduct::{BoxFuture, BrokerError, Event, MemoryBroker, Message, Outbox, Relay, Topic};
use sqlx::{AssertSqlSafe, Pool, Row};
use tokio::sync::Notify;

const ROUNDS: usize = 5;

/// Rows that are relayed in a round, and before it.
const ROWS: u64 = 50_000;
const WARM: u64 = 200;

const SHARDS: i64 = 16;

/// Rows that the relay reads of a shard at once, and so does the loop written by hand.
const READ: i64 = 500;

/// A database as all of this uses it.
trait Bench: Server + TxDatabase {
    const NAME: &'static str;

    fn home() -> impl Future<Output = ServerDatabase<Self>> + Send;
    fn pool() -> impl Future<Output = Pool<Self>> + Send;
    /// Writes events with the outbox, in a transaction.
    fn write(outbox: &Outbox<Self>, pool: &Pool<Self>, events: Vec<Event>) -> impl Future<Output = ()> + Send;
    fn outbox(home: &ServerDatabase<Self>) -> Outbox<Self>;
    fn run(pool: &Pool<Self>, sql: String) -> impl Future<Output = ()> + Send;
    /// Reads the lowest rows of a shard and deletes them; false if there were none.
    fn by_hand(pool: &Pool<Self>, shard: i64) -> impl Future<Output = bool> + Send;
    fn is_empty(pool: &Pool<Self>) -> impl Future<Output = bool> + Send;
}

macro_rules! bench {
    ($database:ty, $home:ty, $name:literal, $variable:literal, $select:literal) => {
        impl Bench for $database {
            const NAME: &'static str = $name;

            async fn home() -> ServerDatabase<Self> {
                let url = std::env::var($variable).expect("run `cargo xtask bench outbox`");
                <$home>::options(url).prefix("bench_").connect().await.expect("a database")
            }

            async fn pool() -> Pool<Self> {
                let url = std::env::var($variable).expect("run `cargo xtask bench outbox`");
                let options = sqlx::pool::PoolOptions::new().max_connections(4);
                options.test_before_acquire(false).connect(&url).await.expect("a database")
            }

            async fn write(outbox: &Outbox<Self>, pool: &Pool<Self>, events: Vec<Event>) {
                let mut tx = pool.begin().await.expect("a transaction");
                outbox.publish_all(&mut tx, events).await.expect("rows");
                tx.commit().await.expect("a commit");
            }

            fn outbox(home: &ServerDatabase<Self>) -> Outbox<Self> {
                Outbox::new("bench", home)
            }

            async fn run(pool: &Pool<Self>, sql: String) {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect("SQL");
            }

            async fn by_hand(pool: &Pool<Self>, shard: i64) -> bool {
                let mut tx = pool.begin().await.expect("a transaction");
                let rows = sqlx::query($select).bind(shard).bind(READ).fetch_all(&mut *tx).await.expect("rows");
                let mut ids = String::new();
                for row in &rows {
                    std::hint::black_box(row.get::<Option<Vec<u8>>, _>(1));
                    let separator = if ids.is_empty() { "" } else { ", " };
                    write!(ids, "{separator}{}", row.get::<i64, _>(0)).expect("a text");
                }
                if !rows.is_empty() {
                    let sql = format!("delete from bench_outbox where shard = {shard} and id in ({ids})");
                    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut *tx).await.expect("deleted");
                }
                tx.commit().await.expect("a commit");
                !rows.is_empty()
            }

            async fn is_empty(pool: &Pool<Self>) -> bool {
                let found = sqlx::query("select id from bench_outbox limit 1").fetch_optional(pool).await;
                found.expect("the table is there").is_none()
            }
        }
    };
}

bench!(
    Postgres,
    PgDatabase,
    "postgres",
    "AQUEDUCT_TEST_POSTGRES",
    "select id, content from bench_outbox where shard = $1 order by id limit $2"
);
bench!(
    MySql,
    MySqlDatabase,
    "mariadb",
    "AQUEDUCT_TEST_MARIADB",
    "select id, content from bench_outbox where shard = ? order by id limit ?"
);

fn event(n: u64) -> Event {
    Event::raw("order.placed", vec![b'x'; 256]).id(n.to_string()).topic("orders").key((n % 1_000).to_string())
}

/// All rows are there at once.
async fn fill<DB: Bench>(home: &ServerDatabase<DB>, pool: &Pool<DB>) -> Instant {
    DB::write(&DB::outbox(home), pool, (0..ROWS).map(event).collect()).await;
    Instant::now()
}

/// Rows a second that are read and deleted, shard by shard.
async fn by_hand<DB: Bench>(home: &ServerDatabase<DB>, pool: &Pool<DB>) -> f64 {
    let began = fill(home, pool).await;
    let mut shards: Vec<i64> = (0..SHARDS).collect();
    while !shards.is_empty() {
        let mut left = Vec::new();
        for shard in shards {
            if DB::by_hand(pool, shard).await {
                left.push(shard);
            }
        }
        shards = left;
    }
    per_second(ROWS, began.elapsed())
}

/// Rows a second of the relay with the memory broker; it has its shards before the rows are there.
async fn relayed<DB: Bench>(home: &ServerDatabase<DB>, pool: &Pool<DB>) -> f64 {
    let all = Arc::new(Notify::new());
    let broker = Counting {
        broker: MemoryBroker::new(),
        left: AtomicI64::new((WARM + ROWS).cast_signed()),
        all: Arc::clone(&all),
    };
    let relay = Running::start(home, broker);
    DB::write(&DB::outbox(home), pool, (0..WARM).map(event).collect()).await;
    until_empty(pool).await;
    let began = fill(home, pool).await;
    all.notified().await;
    until_empty(pool).await;
    let took = began.elapsed();
    relay.end().await;
    per_second(ROWS, took)
}

/// A memory broker that tells when it has all: looking costs the more the less is left to be seen.
struct Counting {
    broker: MemoryBroker,
    left: AtomicI64,
    all: Arc<Notify>,
}

impl Broker for Counting {
    fn abilities(&self) -> Abilities {
        self.broker.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(async move {
            let answers = self.broker.publish(messages).await;
            let taken = answers.iter().filter(|answer| answer.is_ok()).count().cast_signed() as i64;
            // Some may have come twice.
            if self.left.fetch_sub(taken, Ordering::Relaxed) <= taken {
                self.all.notify_one();
            }
            answers
        })
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.broker.check_topic(topic)
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        self.broker.join(subscription)
    }
}

/// A relay, which gives its shards back at its end.
struct Running {
    end: Arc<Notify>,
    task: tokio::task::JoinHandle<()>,
}

impl Running {
    fn start<DB: Bench>(home: &ServerDatabase<DB>, broker: impl Broker) -> Self {
        let end = Arc::new(Notify::new());
        let (told, relay) = (Arc::clone(&end), Relay::new(&SqlStore::new(home), broker));
        let serve = relay.serve().with_graceful_shutdown(async move { told.notified().await });
        Self { end, task: tokio::spawn(async move { serve.into_future().await.expect("it serves") }) }
    }

    async fn end(self) {
        self.end.notify_one();
        self.task.await.expect("no panic");
    }
}

async fn until_empty<DB: Bench>(pool: &Pool<DB>) {
    while !DB::is_empty(pool).await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate")]
fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

async fn run<DB: Bench>(wants: impl Fn(&str) -> bool) -> bool {
    let (home, pool, name) = (DB::home().await, DB::pool().await, <DB as Bench>::NAME);
    DB::run(&pool, "delete from bench_outbox".to_owned()).await;
    let mut reached = true;
    if wants("relay") {
        let (mut ours, mut hand) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            hand.push(by_hand(&home, &pool).await);
            ours.push(relayed(&home, &pool).await);
        }
        let (ours, hand) = (median(ours), median(hand));
        println!("{name}_relay_per_s: {ours:.0} (bar none)\n{name}_read_and_delete_per_s: {hand:.0} (bar none)");
        println!("{name}_relay_ratio: {:.2} (bar 0.8)", ours / hand);
        reached = ours / hand >= 0.8;
    }
    if wants("latency") {
        for rate in [100, 1_000] {
            let [half, most] = latency::latency(&home, &pool, rate).await;
            println!("{name}_latency_ms_at_{rate}_p50: {half:.1} (bar none)");
            println!("{name}_latency_ms_at_{rate}_p99: {most:.1} (bar none)");
        }
    }
    reached
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let (databases, figures): (Vec<String>, Vec<String>) =
        args.into_iter().partition(|arg| ["postgres", "mariadb"].contains(&arg.as_str()));
    let on = |name: &str| databases.is_empty() || databases.iter().any(|arg| arg == name);
    let wants = |figure: &str| figures.is_empty() || figures.iter().any(|arg| arg == figure);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut reached = true;
    if on("postgres") {
        reached &= runtime.block_on(run::<Postgres>(wants));
    }
    if on("mariadb") {
        reached &= runtime.block_on(run::<MySql>(wants));
    }
    if on("postgres") && wants("statements") {
        runtime.block_on(queues::statements());
    }
    if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
