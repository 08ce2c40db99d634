//! What an event costs in statements and in time: here, and by SQL of our own for what River, Oban and Watermill-SQL do for a
//! job on PostgreSQL. Each writes an order and its event or job in one transaction, and moves one account for it in another.

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Instant;

use aqueduct::postgres::{PgDatabase, PgStore, Postgres};
use aqueduct::{Consumer, Event, MemoryBroker, Outbox, Relay, Router, Tx};
use aqueduct_servers::Options;
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};
use tokio::sync::Notify;
use tokio::task::JoinSet;

const EVENTS: i64 = 4_000;

/// Handlers at one time, and what a fetch takes.
const CONCURRENCY: u32 = 16;
const FETCH: i64 = 100;

const TABLES: &str = "
    create extension pg_stat_statements;
    create table orders (id bigint primary key, total bigint not null);
    create table accounts (id bigint primary key, amount bigint not null);
    insert into accounts select n, 0 from generate_series(0, 999) n;
    create table jobs (id bigserial primary key, state text not null default 'available', queue text not null default 'q',
        priority int not null default 1, args jsonb not null, attempt int not null default 0, attempted_at timestamptz,
        finalized_at timestamptz, scheduled_at timestamptz not null default now());
    create index jobs_fetch on jobs (state, queue, priority, scheduled_at, id);
    create table messages (\"offset\" bigserial primary key, uuid text not null, payload json, metadata json,
        transaction_id xid8 not null default pg_current_xact_id());
    create table offsets (consumer_group text primary key, acked bigint not null, last_transaction_id xid8 not null);
    insert into offsets values ('g', 0, '0')";

const JOB: &str = "insert into jobs (args) values (jsonb_build_object('n', $1::bigint))";

/// As River and Oban take jobs: some at once, skipping those that others have locked.
const TAKE: &str = "update jobs set state = 'running', attempt = attempt + 1, attempted_at = now() where id in (
    select id from jobs where state = 'available' and queue = 'q' and scheduled_at <= now()
    order by priority, scheduled_at, id limit $1 for update skip locked) returning id, (args->>'n')::bigint";

const FINISH: &str = "update jobs set state = 'completed', finalized_at = now() where id = $1";

const MESSAGE: &str = "insert into messages (uuid, payload, metadata) values (gen_random_uuid()::text, json_build_object('n', $1::bigint), '{}')";

/// As Watermill-SQL reads: after the group's offset, which is locked, what transactions wrote that are over.
const SUBSCRIBE: &str =
    "with last as (select acked, last_transaction_id from offsets where consumer_group = 'g' for update)
    select m.\"offset\", (m.payload->>'n')::bigint, m.transaction_id::text from messages m, last
    where (m.transaction_id, m.\"offset\") > (last.last_transaction_id, last.acked)
      and m.transaction_id < pg_snapshot_xmin(pg_current_snapshot())
    order by m.transaction_id, m.\"offset\" limit $1";

const ACK: &str = "insert into offsets values ('g', $1, $2::xid8) on conflict (consumer_group)
    do update set acked = excluded.acked, last_transaction_id = excluded.last_transaction_id";

/// Prints a line for each figure of each system.
pub(crate) async fn statements() {
    let preload = Options::new().setting("shared_preload_libraries", "pg_stat_statements");
    let server = aqueduct_servers::Postgres::start(preload).expect("a server");
    for system in ["aqueduct", "river", "oban", "watermill"] {
        let database = server.database().expect("a database");
        let pool = PgPoolOptions::new().max_connections(CONCURRENCY + 4).test_before_acquire(false);
        let pool = pool.connect(&database.url()).await.expect("a connection");
        sqlx::raw_sql(TABLES).execute(&pool).await.expect("tables");
        let home =
            PgDatabase::options(database.url()).handler_connections(CONCURRENCY).connect().await.expect("tables");
        let outbox = Outbox::new("shop", &home);

        begin(&pool).await;
        share(&pool, (0..EVENTS).collect(), move |pool, n| {
            let outbox = outbox.clone();
            async move {
                let mut tx = pool.begin().await?;
                sqlx::query("insert into orders values ($1, $1)").bind(n).execute(&mut *tx).await?;
                if system == "aqueduct" {
                    outbox.publish(&mut tx, event(n)).await.expect("a row");
                } else {
                    let sql = if system == "watermill" { MESSAGE } else { JOB };
                    sqlx::query(sql).bind(n).execute(&mut *tx).await?;
                }
                tx.commit().await
            }
        })
        .await;
        report(&pool, &format!("{system}_written")).await;

        begin(&pool).await;
        let began = Instant::now();
        match system {
            "aqueduct" => ours(&home).await,
            "river" => jobs(&pool, true).await,
            "oban" => jobs(&pool, false).await,
            _ => messages(&pool).await,
        }
        let took = began.elapsed();
        report(&pool, &format!("{system}_handled")).await;
        println!("queues_{system}_handled_per_s: {:.0} (bar none)", super::per_second(EVENTS.unsigned_abs(), took));
        let sum = sqlx::query("select sum(amount)::bigint from accounts").fetch_one(&pool).await.expect("a sum");
        assert_eq!(sum.get::<i64, _>(0), EVENTS, "{system}");
        pool.close().await;
    }
}

fn event(n: i64) -> Event {
    Event::raw("order.placed", n.to_string()).id(n.to_string()).topic("orders").key((n % 1_000).to_string())
}

async fn begin(pool: &PgPool) {
    sqlx::query("select pg_stat_statements_reset()").execute(pool).await.expect("an extension");
}

/// Statements for each event since the beginning, BEGIN and COMMIT included.
async fn report(pool: &PgPool, what: &str) {
    let sql = "select sum(calls)::float8 from pg_stat_statements s join pg_database d on d.oid = s.dbid
        where d.datname = current_database()";
    let calls: f64 = sqlx::query(sql).fetch_one(pool).await.expect("an extension").get(0);
    #[expect(clippy::cast_precision_loss, reason = "a figure for people")]
    let each = calls / EVENTS as f64;
    println!("queues_{what}_statements: {each:.2} (bar none)");
}

async fn account(connection: &mut PgConnection, n: i64) -> sqlx::Result<()> {
    let sql = "update accounts set amount = amount + 1 where id = $1";
    sqlx::query(sql).bind(n % 1_000).execute(connection).await.map(drop)
}

async fn ours(home: &PgDatabase) {
    let (broker, store) = (MemoryBroker::new(), PgStore::new(home));
    let (left, end) = (Arc::new(AtomicI64::new(EVENTS)), Arc::new(Notify::new()));
    let (counted, told) = (Arc::clone(&left), Arc::clone(&end));
    let handler = move |event: Event, mut tx: Tx<Postgres>| {
        let (counted, told) = (Arc::clone(&counted), Arc::clone(&told));
        async move {
            account(&mut tx, event.id.as_str().parse()?).await?;
            if counted.fetch_sub(1, Ordering::Relaxed) == 1 {
                told.notify_one();
            }
            Ok::<_, aqueduct::Error>(())
        }
    };
    let relay = tokio::spawn(Relay::new(&store, broker.clone()).serve().into_future());
    let consumer = Consumer::new("accounts", broker).topics(["orders"]).store(store);
    let serve = consumer.concurrency(CONCURRENCY as usize).serve(Router::new().on("order.placed", handler));
    serve.with_graceful_shutdown(async move { end.notified().await }).into_future().await.expect("it serves");
    relay.abort();
}

/// River finishes a job in its own transaction, Oban after it.
async fn jobs(pool: &PgPool, inside: bool) {
    loop {
        let taken = sqlx::query(TAKE).bind(FETCH).fetch_all(pool).await.expect("jobs");
        if taken.is_empty() {
            return;
        }
        let taken = taken.iter().map(|row| (row.get::<i64, _>(0), row.get::<i64, _>(1))).collect();
        share(pool, taken, move |pool, job| do_job(pool, job, inside)).await;
    }
}

async fn do_job(pool: PgPool, (id, n): (i64, i64), inside: bool) -> sqlx::Result<()> {
    let mut tx = pool.begin().await?;
    account(&mut tx, n).await?;
    if inside {
        sqlx::query(FINISH).bind(id).execute(&mut *tx).await?;
        return tx.commit().await;
    }
    tx.commit().await?;
    sqlx::query(FINISH).bind(id).execute(&pool).await.map(drop)
}

/// One after another, as the order of a topic wants it.
async fn messages(pool: &PgPool) {
    loop {
        let mut tx = pool.begin().await.expect("a transaction");
        let rows = sqlx::query(SUBSCRIBE).bind(FETCH).fetch_all(&mut *tx).await.expect("messages");
        let Some(last) = rows.last() else { return };
        for row in &rows {
            let mut work = pool.begin().await.expect("a transaction");
            account(&mut work, row.get(1)).await.expect("an account");
            work.commit().await.expect("a commit");
        }
        let (offset, transaction): (i64, String) = (last.get(0), last.get(2));
        sqlx::query(ACK).bind(offset).bind(transaction).execute(&mut *tx).await.expect("an offset");
        tx.commit().await.expect("a commit");
    }
}

/// Does work for each, as many at a time as there are handlers.
async fn share<T, F, W>(pool: &PgPool, all: Vec<T>, work: F)
where
    T: Send + 'static,
    F: Fn(PgPool, T) -> W + Clone + Send + 'static,
    W: Future<Output = sqlx::Result<()>> + Send,
{
    let all = Arc::new(parking_lot::Mutex::new(all.into_iter()));
    let mut tasks = JoinSet::new();
    for _ in 0..CONCURRENCY {
        let (all, pool, work) = (Arc::clone(&all), pool.clone(), work.clone());
        tasks.spawn(async move {
            loop {
                let next = all.lock().next();
                let Some(next) = next else { return };
                work(pool.clone(), next).await.expect("a transaction");
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
}
