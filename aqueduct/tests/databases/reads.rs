//! Handlers that only read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use aqueduct::sql::{Isolation, ServerDatabase, SqlStore};
use aqueduct::store::{Query, Store};
use aqueduct::{Consumer, Error, Event, MemoryBroker, Publisher, ReadTx, Router};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::fresh::{TestDatabase, prefix};

/// A table of one stock, and a consumer whose handlers share one connection.
struct Shop<DB: TestDatabase> {
    database: ServerDatabase<DB>,
    prefix: String,
    broker: MemoryBroker,
}

impl<DB: TestDatabase> Shop<DB> {
    async fn new(isolation: Isolation) -> Self {
        let prefix = prefix();
        let options = DB::options().prefix(&prefix).handler_connections(1).isolation(isolation);
        let database = options.connect().await.unwrap();
        let mut connection = DB::connect().await;
        DB::run(&mut connection, format!("create table {prefix}stock (free bigint)")).await.unwrap();
        DB::run(&mut connection, format!("insert into {prefix}stock values (0)")).await.unwrap();
        Self { database, prefix, broker: MemoryBroker::new() }
    }

    /// Handles so many events, until the notification.
    async fn handle(&self, events: usize, app: Router, end: Arc<Notify>) {
        let event = |n: usize| Event::raw("stock.changed", "").topic("stock").key(n.to_string());
        let publisher = Publisher::new("shop", self.broker.clone());
        for receipt in publisher.publish_all((0..events).map(event).collect()).await {
            receipt.unwrap();
        }
        let consumer = Consumer::new("cache", self.broker.clone()).topics(["stock"]);
        let serve = consumer.store(SqlStore::new(&self.database)).serve(app);
        let serve = serve.with_graceful_shutdown(async move { end.notified().await });
        tokio::time::timeout(std::time::Duration::from_mins(1), serve).await.unwrap().unwrap();
    }

    async fn count(&self, table: &str) -> i64 {
        let sql = format!("select count(*) from {}{table}", self.prefix);
        DB::number(&mut DB::connect().await, sql).await.unwrap()
    }
}

/// Another changes what a handler reads while it reads it; and nothing is recorded.
async fn statements_see_one_state<DB: TestDatabase>() {
    for isolation in [Isolation::ReadCommitted, Isolation::RepeatableRead] {
        let shop = Shop::<DB>::new(isolation).await;
        let (end, seen) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
        let (prefix, ended, all) = (shop.prefix.clone(), Arc::clone(&end), Arc::clone(&seen));
        let handler = move |mut tx: ReadTx<DB>| {
            let (prefix, seen, end) = (prefix.clone(), seen.clone(), end.clone());
            async move {
                let look = format!("select free from {prefix}stock");
                let before = DB::number(&mut tx, look.clone()).await?;
                let more = format!("update {prefix}stock set free = free + 1");
                DB::run(&mut DB::connect().await, more).await?;
                let after = DB::number(&mut tx, look).await?;
                let mut seen = seen.lock();
                seen.push((before, after));
                if seen.len() == 5 {
                    end.notify_one();
                }
                Ok::<_, Error>(())
            }
        };
        shop.handle(5, Router::new().on("stock.changed", handler), ended).await;
        let mut seen = std::mem::take(&mut *all.lock());
        seen.sort_unstable();
        assert_eq!(seen, (0..5).map(|n| (n, n)).collect::<Vec<_>>());
        assert_eq!(shop.count("inbox").await, 0);
    }
}

/// The database refuses to write: the event is a dead letter that says why, and the next handler has the connection.
async fn nothing_is_written<DB: TestDatabase>() {
    let shop = Shop::<DB>::new(Isolation::default()).await;
    let (end, tries) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (prefix, ended, count) = (shop.prefix.clone(), Arc::clone(&end), Arc::clone(&tries));
    let handler = move |mut tx: ReadTx<DB>| {
        let (prefix, tries, end) = (prefix.clone(), tries.clone(), end.clone());
        async move {
            if tries.fetch_add(1, Ordering::SeqCst) == 3 {
                end.notify_one();
            }
            DB::run(&mut tx, format!("insert into {prefix}stock values (1)")).await?;
            Ok::<_, Error>(())
        }
    };
    shop.handle(4, Router::new().on("stock.changed", handler), ended).await;
    assert_eq!(count.load(Ordering::SeqCst), 4, "trying again cannot help");
    assert_eq!(shop.count("stock").await, 1);
    let (store, mut dead) = (SqlStore::new(&shop.database), Query::default());
    dead.dead = Some(true);
    let rows = store.browse(&dead).await.unwrap();
    assert_eq!(rows.len(), 4);
    for row in rows {
        assert!(format!("{row:?}").contains("take `Tx` in its place"), "{row:?}");
    }
}

crate::fresh::on_servers!(statements_see_one_state, nothing_is_written);
