//! Transactions and the outbox on PostgreSQL and MariaDB beside the same work written by hand with sqlx.
//!
//! `cargo xtask bench databases`; each line is `name: value (bar B)`, and a bar that is missed ends it with an error. Rounds
//! alternate between both sides, and what is compared is the median of each side. Arguments choose databases (`postgres`,
//! `mariadb`) and figures (`transactions`, `batch`, `single`, `hundred`).

#![allow(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::future::IntoFuture;
use std::ops::DerefMut;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aqueduct::mysql::{MySql, MySqlDatabase};
use aqueduct::postgres::{PgDatabase, Postgres};
use aqueduct::sql::{Server, ServerDatabase, SqlStore, TxDatabase};
use aqueduct::{Consumer, Event, FromCall, MemoryBroker, Outbox, Publisher, Router, Tx, TxBatch};
use sqlx::{AssertSqlSafe, Pool, Row};
use tokio::sync::Notify;
use tokio::task::JoinSet;

const ROUNDS: usize = 5;

/// Events that are handled in a round.
const HANDLED: u64 = 20_000;

/// Transactions with one business row in a round, and with a hundred.
const SINGLES: u64 = 10_000;
const HUNDREDS: u64 = 400;

/// Connections of either side.
const CONNECTIONS: u32 = 16;

/// Fences that are looked at.
const PARTITIONS: u64 = 16;

/// Accounts that are written to.
const ACCOUNTS: u64 = 1_000;

/// A database as both sides use it.
trait Bench: Server + TxDatabase {
    const NAME: &'static str;
    /// Read committed, for each session.
    const ISOLATION: &'static str;
    const FENCE: &'static str;
    const INBOX: &'static str;
    const UPDATE: &'static str;
    const ORDER: &'static str;

    fn home() -> impl Future<Output = ServerDatabase<Self>> + Send;
    fn pool() -> impl Future<Output = Pool<Self>> + Send;
    fn outbox(home: &ServerDatabase<Self>) -> Outbox<Self>;
    fn prepare(pool: &Pool<Self>) -> impl Future<Output = ()> + Send;
    fn update(connection: &mut Self::Connection, account: i64) -> impl Future<Output = sqlx::Result<()>> + Send;
    fn order(connection: &mut Self::Connection, id: i64) -> impl Future<Output = sqlx::Result<()>> + Send;
    fn publish_all(
        outbox: &Outbox<Self>,
        connection: &mut Self::Connection,
        events: Vec<Event>,
    ) -> impl Future<Output = ()> + Send;
    /// Begin, inbox record, update, look at the fence, commit, as one would write it.
    fn by_hand(pool: &Pool<Self>, id: u64, fenced: bool) -> impl Future<Output = sqlx::Result<()>> + Send;
    fn begin(pool: &Pool<Self>) -> impl Future<Output = sqlx::Transaction<'static, Self>> + Send;
    fn commit(tx: sqlx::Transaction<'static, Self>) -> impl Future<Output = ()> + Send;
}

macro_rules! bench {
    ($database:ty, $home:ty, $name:literal, $variable:literal, [$isolation:literal, $fence:literal], $inbox:literal, $update:literal, $order:literal) => {
        impl Bench for $database {
            const NAME: &'static str = $name;
            const ISOLATION: &'static str = $isolation;
            const FENCE: &'static str = $fence;
            const INBOX: &'static str = $inbox;
            const UPDATE: &'static str = $update;
            const ORDER: &'static str = $order;

            async fn home() -> ServerDatabase<Self> {
                let url = std::env::var($variable).expect("run `cargo xtask bench databases`");
                let options = <$home>::options(url).prefix("bench_").handler_connections(CONNECTIONS);
                options.connect().await.expect("a database")
            }

            async fn pool() -> Pool<Self> {
                let url = std::env::var($variable).expect("run `cargo xtask bench databases`");
                let options = sqlx::pool::PoolOptions::new().max_connections(CONNECTIONS);
                let options = options.after_connect(|connection, _| {
                    Box::pin(async move { sqlx::raw_sql(Self::ISOLATION).execute(connection).await.map(drop) })
                });
                options.test_before_acquire(false).connect(&url).await.expect("a database")
            }

            fn outbox(home: &ServerDatabase<Self>) -> Outbox<Self> {
                Outbox::new("bench", home)
            }

            async fn prepare(pool: &Pool<Self>) {
                for sql in [
                    "drop table if exists bench_accounts",
                    "drop table if exists bench_orders",
                    "drop table if exists bench_hand",
                    "create table bench_accounts (id bigint primary key, amount bigint not null)",
                    "create table bench_orders (id bigint primary key, customer bigint not null, total bigint not null)",
                    "create table bench_hand (consumer varchar(100), source varchar(100), id varchar(100), topic varchar(100), number bigint, position bigint, at bigint, primary key (consumer, source, id))",
                    "drop table if exists bench_fence",
                    "create table bench_fence (id bigint primary key, epoch bigint not null)",
                    "truncate table bench_inbox",
                    "truncate table bench_outbox",
                ] {
                    sqlx::query(sql).execute(pool).await.expect("a table");
                }
                for (table, count) in [("accounts", ACCOUNTS), ("fence", PARTITIONS)] {
                    let rows: Vec<String> = (0..count).map(|id| format!("({id}, 0)")).collect();
                    let sql = format!("insert into bench_{table} values {}", rows.join(", "));
                    sqlx::raw_sql(AssertSqlSafe(sql)).execute(pool).await.expect("rows");
                }
            }

            async fn update(connection: &mut Self::Connection, account: i64) -> sqlx::Result<()> {
                sqlx::query(Self::UPDATE).bind(account).execute(connection).await.map(drop)
            }

            async fn order(connection: &mut Self::Connection, id: i64) -> sqlx::Result<()> {
                sqlx::query(Self::ORDER).bind(id).bind(id % 97).bind(id % 1_013).execute(connection).await.map(drop)
            }

            async fn publish_all(outbox: &Outbox<Self>, connection: &mut Self::Connection, events: Vec<Event>) {
                outbox.publish_all(connection, events).await.expect("rows");
            }

            async fn by_hand(pool: &Pool<Self>, id: u64, fenced: bool) -> sqlx::Result<()> {
                let mut tx = pool.begin().await?;
                let (partition, at) = ((id % PARTITIONS).cast_signed(), 1_700_000_000_000_i64);
                let query = sqlx::query(Self::INBOX).bind("stock").bind("bench").bind(id.to_string());
                let query = query.bind("orders").bind(partition).bind(id.cast_signed()).bind(at);
                query.execute(&mut *tx).await?;
                Self::update(&mut tx, (id % ACCOUNTS).cast_signed()).await?;
                if fenced {
                    let epoch: i64 = sqlx::query(Self::FENCE).bind(partition).fetch_one(&mut *tx).await?.get(0);
                    assert_eq!(epoch, 0, "nobody raises it");
                }
                tx.commit().await
            }

            async fn begin(pool: &Pool<Self>) -> sqlx::Transaction<'static, Self> {
                pool.begin().await.expect("a transaction")
            }

            async fn commit(tx: sqlx::Transaction<'static, Self>) {
                tx.commit().await.expect("a commit");
            }
        }
    };
}

bench!(
    Postgres,
    PgDatabase,
    "postgres",
    "AQUEDUCT_TEST_POSTGRES",
    [
        "set session characteristics as transaction isolation level read committed",
        "select epoch from bench_fence where id = $1 for share"
    ],
    "insert into bench_hand values ($1, $2, $3, $4, $5, $6, $7) on conflict do nothing",
    "update bench_accounts set amount = amount + 1 where id = $1",
    "insert into bench_orders values ($1, $2, $3)"
);
bench!(
    MySql,
    MySqlDatabase,
    "mariadb",
    "AQUEDUCT_TEST_MARIADB",
    [
        "set session transaction isolation level read committed",
        "select epoch from bench_fence where id = ? lock in share mode"
    ],
    "insert ignore into bench_hand values (?, ?, ?, ?, ?, ?, ?)",
    "update bench_accounts set amount = amount + 1 where id = ?",
    "insert into bench_orders values (?, ?, ?)"
);

fn event(id: u64) -> Event {
    let data = vec![b'x'; 256];
    Event::raw("order.placed", data).id(id.to_string()).source("bench").topic("orders").key((id % ACCOUNTS).to_string())
}

/// Events a second of a consumer whose handlers take a transaction, or share one.
async fn ours<DB: Bench, T>(home: &ServerDatabase<DB>, concurrency: u32) -> f64
where
    T: FromCall<()> + DerefMut<Target = DB::Connection> + 'static,
{
    let broker = MemoryBroker::new();
    let publisher = Publisher::new("bench", broker.clone());
    for receipt in publisher.publish_all((0..HANDLED).map(event).collect()).await {
        receipt.expect("room");
    }
    let (left, end) = (Arc::new(AtomicU64::new(HANDLED)), Arc::new(Notify::new()));
    let (counted, told) = (Arc::clone(&left), Arc::clone(&end));
    let handler = move |event: Event, mut tx: T| {
        let (counted, told) = (Arc::clone(&counted), Arc::clone(&told));
        async move {
            let account = event.key.as_ref().and_then(|key| key.as_str().parse().ok()).unwrap_or(0);
            DB::update(&mut tx, account).await?;
            if counted.fetch_sub(1, Ordering::Relaxed) == 1 {
                told.notify_one();
            }
            Ok::<_, aqueduct::Error>(())
        }
    };
    let begin = Instant::now();
    let consumer = Consumer::new("stock", broker).topics(["orders"]).store(SqlStore::new(home));
    let consumer = consumer.concurrency(concurrency as usize);
    let serve = consumer.serve(Router::new().on("order.placed", handler));
    serve.with_graceful_shutdown(async move { end.notified().await }).into_future().await.expect("it serves");
    rate(HANDLED, begin.elapsed())
}

/// The same transactions written by hand, or what is left of them without the fence.
async fn hand<DB: Bench>(pool: &Pool<DB>, fenced: bool) -> f64 {
    let begin = Instant::now();
    share(HANDLED, pool, move |pool, id| async move { DB::by_hand(&pool, id, fenced).await.expect("a transaction") })
        .await;
    rate(HANDLED, begin.elapsed())
}

/// Runs work for each number on as many tasks as there are connections.
async fn share<DB: Bench, F, W>(count: u64, pool: &Pool<DB>, work: F)
where
    F: Fn(Pool<DB>, u64) -> W + Clone + Send + 'static,
    W: Future<Output = ()> + Send,
{
    let next = Arc::new(AtomicU64::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, pool, work) = (Arc::clone(&next), pool.clone(), work.clone());
        tasks.spawn(async move {
            loop {
                let id = next.fetch_add(1, Ordering::Relaxed);
                if id >= count {
                    return;
                }
                work(pool.clone(), id).await;
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
}

/// Transactions a second with `rows` business rows written one by one, and their events in one statement or none.
async fn orders<DB: Bench>(pool: &Pool<DB>, count: u64, rows: u64, outbox: Option<Outbox<DB>>) -> f64 {
    DB::prepare(pool).await;
    let begin = Instant::now();
    share(count, pool, move |pool, n| {
        let outbox = outbox.clone();
        async move {
            let mut tx = DB::begin(&pool).await;
            for row in 0..rows {
                DB::order(&mut tx, (n * rows + row).cast_signed()).await.expect("a row");
            }
            if let Some(outbox) = &outbox {
                DB::publish_all(outbox, &mut tx, (0..rows).map(|row| event(n * rows + row)).collect()).await;
            }
            DB::commit(tx).await;
        }
    })
    .await;
    rate(count, begin.elapsed())
}

fn rate(count: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let count = count as f64;
    count / took.as_secs_f64()
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or_default()
}

/// Prints both sides and their ratio; true if the bar is reached.
fn compare(name: &str, ours: Vec<f64>, hand: Vec<f64>, bar: f64) -> bool {
    let (ours, hand) = (median(ours), median(hand));
    println!("{name}_per_s: {ours:.0} (bar none)\n{name}_by_hand_per_s: {hand:.0} (bar none)");
    println!("{name}_ratio: {:.2} (bar {bar})", ours / hand);
    ours / hand >= bar
}

async fn run<DB: Bench>(wanted: &[String]) -> bool {
    let wants = |figure: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == figure);
    let (home, pool, mut reached) = (DB::home().await, DB::pool().await, true);
    let outbox = DB::outbox(&home);
    let (mut tx, mut single, mut hundred) = <([Vec<f64>; 2], [Vec<f64>; 2], [Vec<f64>; 2])>::default();
    let mut bare = Vec::new();
    let mut batches = [("batch_of_16", Vec::new()), ("batch_of_64", Vec::new())];
    for _ in 0..ROUNDS {
        if wants("transactions") {
            DB::prepare(&pool).await;
            tx[1].push(hand(&pool, true).await);
            DB::prepare(&pool).await;
            bare.push(hand(&pool, false).await);
            DB::prepare(&pool).await;
            tx[0].push(ours::<DB, Tx<DB>>(&home, CONNECTIONS).await);
        }
        if wants("batch") {
            for (concurrency, (_, figures)) in [CONNECTIONS, 64].into_iter().zip(&mut batches) {
                DB::prepare(&pool).await;
                figures.push(ours::<DB, TxBatch<DB>>(&home, concurrency).await);
            }
        }
        if wants("single") {
            single[1].push(orders(&pool, SINGLES, 1, None).await);
            single[0].push(orders(&pool, SINGLES, 1, Some(outbox.clone())).await);
        }
        if wants("hundred") {
            hundred[1].push(orders(&pool, HUNDREDS, 100, None).await);
            hundred[0].push(orders(&pool, HUNDREDS, 100, Some(outbox.clone())).await);
        }
    }
    for (name, figures) in batches {
        if !figures.is_empty() {
            println!("{}_{name}_per_s: {:.0} (bar none)", <DB as Bench>::NAME, median(figures));
        }
    }
    if !bare.is_empty() {
        let (ours, bare) = (median(tx[0].clone()), median(bare));
        println!("{}_transactions_without_fence_by_hand_per_s: {bare:.0} (bar none)", <DB as Bench>::NAME);
        println!("{}_transactions_to_those_without_fence_ratio: {:.2} (bar none)", <DB as Bench>::NAME, ours / bare);
    }
    for (figure, [ours, hand], bar) in
        [("transactions", tx, 0.9), ("outbox_single", single, 0.7), ("outbox_hundred", hundred, 0.8)]
    {
        if !ours.is_empty() {
            reached &= compare(&format!("{}_{figure}", <DB as Bench>::NAME), ours, hand, bar);
        }
    }
    reached
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let (databases, figures): (Vec<String>, Vec<String>) =
        args.into_iter().partition(|arg| ["postgres", "mariadb"].contains(&arg.as_str()));
    let wants = |name: &str| databases.is_empty() || databases.iter().any(|arg| arg == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    let mut reached = true;
    if wants("postgres") {
        reached &= runtime.block_on(run::<Postgres>(&figures));
    }
    if wants("mariadb") {
        reached &= runtime.block_on(run::<MySql>(&figures));
    }
    if reached { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
