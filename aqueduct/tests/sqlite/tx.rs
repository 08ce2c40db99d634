//! Handlers that take a transaction, and publishing inside one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aqueduct::broker::Broker;
use aqueduct::sqlite::{Sqlite, SqliteBroker, SqliteFile, SqliteOptions, SqliteStore};
use aqueduct::store::{Query, Store};
use aqueduct::{
    Attempt, Call, Consumer, Error, Event, Handler, Message, Next, Outbox, Outcome, Policy, Publisher, Result, Router,
    ServeError, State, Tx,
};
use sqlx::{Connection, Row, SqliteConnection};
use tempfile::TempDir;
use tokio::sync::Notify;

/// A service on a file of its own.
struct Shop {
    folder: TempDir,
    file: SqliteFile,
    broker: SqliteBroker,
    publisher: Publisher,
}

impl Shop {
    async fn new() -> Self {
        Self::with(|options| options).await
    }

    async fn with(set: impl FnOnce(SqliteOptions) -> SqliteOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = set(SqliteFile::options(folder.path().join("shop.db"))).open().await.unwrap();
        let broker = SqliteBroker::new(&file);
        let publisher = Publisher::new("shop", broker.clone());
        let shop = Self { folder, file, broker, publisher };
        // No constraint that would hide a second effect.
        shop.execute("create table effects (event text, what text)").await;
        shop
    }

    async fn connection(&self) -> SqliteConnection {
        let url = format!("sqlite:{}", self.file.path().display());
        SqliteConnection::connect(&url).await.unwrap()
    }

    async fn execute(&self, sql: &'static str) {
        sqlx::query(sql).execute(&mut self.connection().await).await.unwrap();
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query(sql).fetch_one(&mut self.connection().await).await.unwrap().get(0)
    }

    async fn publish(&self, count: usize) {
        let event = |n: usize| Event::raw("order.placed", n.to_string()).topic("orders").key(format!("key {}", n % 10));
        for receipt in self.publisher.publish_all((0..count).map(event).collect()).await {
            receipt.unwrap();
        }
    }

    fn consumer(&self) -> Consumer {
        Consumer::new("stock", self.broker.clone()).topics(["orders"]).store(SqliteStore::new(&self.file)).policy(
            Policy::ordered()
                .quick_attempts(2)
                .quick_delay(Duration::from_millis(1))
                .parked_delay(Duration::from_millis(10)),
        )
    }

    /// Serves until the notification.
    async fn serve(&self, consumer: Consumer, app: Router, end: Arc<Notify>) -> std::result::Result<(), ServeError> {
        let stop = async move { end.notified().await };
        tokio::time::timeout(Duration::from_mins(1), consumer.serve(app).with_graceful_shutdown(stop)).await.unwrap()
    }
}

/// Counts what handlers do, and tells when it is enough.
#[derive(Clone)]
struct Tally(Arc<(AtomicUsize, AtomicUsize, Notify)>);

impl Tally {
    fn new(expected: usize) -> (Self, Arc<Notify>) {
        let end = Arc::new(Notify::new());
        let tally = Self(Arc::new((AtomicUsize::new(0), AtomicUsize::new(expected), Notify::new())));
        (tally, end)
    }

    fn count(&self) -> usize {
        self.0.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

async fn effect(tx: &mut SqliteConnection, event: &Event) -> Result<()> {
    let what = String::from_utf8_lossy(&event.data).into_owned();
    sqlx::query("insert into effects (event, what) values (?, ?)")
        .bind(event.id.as_str().to_owned())
        .bind(what)
        .execute(tx)
        .await?;
    Ok(())
}

/// Stops the service when so many effects are committed.
async fn until(shop: &Shop, sql: &'static str, wanted: i64, end: &Notify) {
    loop {
        let changed = shop.file.changed();
        if shop.count(sql).await >= wanted {
            break;
        }
        changed.await;
    }
    end.notify_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_for_the_transaction_of_another_spends_no_attempt() {
    let shop = Shop::with(|options| options.handler_limit(Duration::from_secs(10))).await;
    for key in ["slow", "quick"] {
        shop.publisher.publish(Event::raw("order.placed", key).topic("orders").key(key)).await.unwrap();
    }
    let (held, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let handler = async |event: Event, attempt: Attempt, State(held): State<Arc<Notify>>, mut tx: Tx<Sqlite>| {
        if event.data == "slow" && attempt.number == 1 {
            held.notify_one();
            // Until its own time is over.
            std::future::pending::<()>().await;
        }
        effect(&mut tx, &event).await
    };
    let attempts: Arc<parking_lot::Mutex<Vec<u32>>> = Arc::default();
    let (quick, is_held) = (attempts.clone(), held.clone());
    let layer = tower::layer::layer_fn(move |next: Next| {
        let (quick, is_held) = (quick.clone(), is_held.clone());
        tower::service_fn(move |call: Call| {
            let (quick, is_held, mut next) = (quick.clone(), is_held.clone(), next.clone());
            async move {
                if call.event().data == "quick" {
                    quick.lock().push(call.attempt().number);
                    if quick.lock().len() == 1 {
                        is_held.notified().await;
                    }
                }
                tower::Service::call(&mut next, call).await
            }
        })
    });
    let handler = handler.layer(layer).timeout(Duration::from_millis(300));
    let app = Router::new().on("order.*", handler).with_state(held);
    let served = shop.serve(shop.consumer(), app, end.clone());
    let (served, ()) = tokio::join!(served, until(&shop, "select count(*) from effects", 2, &end));
    served.unwrap();
    let attempts = attempts.lock().clone();
    assert!(attempts.len() > 1, "it waited in vain once: {attempts:?}");
    assert!(attempts.iter().all(|number| *number == 1), "{attempts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn effects_and_events_of_a_handler_are_committed_together_and_once() {
    let shop = Shop::new().await;
    shop.publish(300).await;
    let (tally, end) = Tally::new(300);
    let handler = async |event: Event, State(tally): State<Tally>, mut tx: Tx<Sqlite>| -> Result<()> {
        effect(&mut tx, &event).await?;
        tx.publish(Event::raw("stock.reserved", event.data.clone()).topic("stock").key(event.key.clone().unwrap()))
            .await?;
        // Every third attempt fails after all its work.
        if tally.count() % 3 == 0 { Err(Error::msg("no luck")) } else { Ok(()) }
    };
    let app = Router::new().on("order.*", handler).with_state(tally);
    let served = shop.serve(shop.consumer(), app, end.clone());
    let (served, ()) = tokio::join!(served, until(&shop, "select count(*) from effects", 300, &end));
    served.unwrap();
    assert_eq!(shop.count("select count(*) from effects").await, 300);
    assert_eq!(shop.count("select count(distinct event) from effects").await, 300);
    assert_eq!(
        shop.count(
            "select coalesce(sum(count), 0) from aq_log l join aq_topics t on t.id = l.topic and t.name = 'stock'"
        )
        .await,
        300
    );
    assert_eq!(shop.count("select count(*) from aq_inbox").await, 300);
}

#[tokio::test]
async fn an_event_that_took_effect_does_not_do_so_again() {
    let shop = Shop::new().await;
    let event = || Event::raw("order.placed", "1").id("same").topic("orders").key("k");
    shop.publisher.publish(event()).await.unwrap();
    let other = Publisher::new("shop", shop.broker.clone());
    // The same identity on another topic that the consumer reads too.
    other.publish(event().topic("more")).await.unwrap();
    other.publish(Event::raw("order.placed", "2").topic("more")).await.unwrap();
    let end = Arc::new(Notify::new());
    let app = Router::new().on(">", async |event: Event, mut tx: Tx<Sqlite>| effect(&mut tx, &event).await);
    let consumer = shop.consumer().topics(["orders", "more"]);
    let settled = "select count(*) from aq_floors where floor > 0 and (select count(*) from effects) = 2";
    let (served, ()) = tokio::join!(shop.serve(consumer, app, end.clone()), until(&shop, settled, 2, &end));
    served.unwrap();
    assert_eq!(shop.count("select count(*) from effects where event = 'same'").await, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publish_of_its_own_from_inside_is_refused_and_names_the_way() {
    let shop = Shop::new().await;
    shop.publish(1).await;
    let (told, end) = (Arc::new(parking_lot::Mutex::new(String::new())), Arc::new(Notify::new()));
    let (publisher, seen) = (shop.publisher.clone(), told.clone());
    let handler = move |event: Event, mut tx: Tx<Sqlite>| {
        let (publisher, seen) = (publisher.clone(), seen.clone());
        async move {
            let refused = publisher.publish(Event::raw("stock.reserved", "1").topic("stock")).await;
            *seen.lock() = refused.unwrap_err().to_string();
            effect(&mut tx, &event).await
        }
    };
    let app = Router::new().on("order.*", handler);
    let served = shop.serve(shop.consumer(), app, end.clone());
    let (served, ()) = tokio::join!(served, until(&shop, "select count(*) from effects", 1, &end));
    served.unwrap();
    let text = told.lock().clone();
    assert!(text.contains("tx.publish"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_holds_its_transaction_too_long_fails_and_the_others_do_not() {
    let shop = Shop::with(|options| options.handler_limit(Duration::from_millis(100))).await;
    shop.publish(40).await;
    let end = Arc::new(Notify::new());
    let (tally, _) = Tally::new(0);
    let handler = async |event: Event, State(tally): State<Tally>, mut tx: Tx<Sqlite>| -> Result<()> {
        effect(&mut tx, &event).await?;
        match (event.data.as_ref(), tally.count()) {
            (b"3", _) => std::future::pending::<()>().await,
            // A statement without end: SQLite itself must be stopped.
            (b"4", _) => {
                let sql = "with recursive n(i) as (select 1 union all select i + 1 from n) select count(*) from n";
                sqlx::query(sql).fetch_one(&mut *tx).await?;
            }
            _ => {}
        }
        Ok(())
    };
    let app = Router::new().on("order.*", handler).with_state(tally);
    let consumer = shop.consumer().policy(Policy::fast().max_attempts(2));
    let served = shop.serve(consumer, app, end.clone());
    let (served, ()) = tokio::join!(served, until(&shop, "select count(*) from effects", 38, &end));
    served.unwrap();
    assert_eq!(shop.count("select count(*) from effects where what in ('3', '4')").await, 0);
    assert_eq!(shop.count("select count(distinct event) from effects").await, 38);
}

#[tokio::test]
async fn the_outbox_publishes_exactly_if_the_applications_own_transaction_commits() {
    let shop = Shop::new().await;
    let outbox = Outbox::new("orders", &shop.file);
    let event = |n: i32| Event::raw("order.placed", n.to_string()).topic("orders").key("k");
    let mut connection = shop.connection().await;
    let mut tx = connection.begin_with("begin immediate").await.unwrap();
    outbox.publish(&mut tx, event(1)).await.unwrap();
    tx.rollback().await.unwrap();
    let mut tx = connection.begin_with("begin immediate").await.unwrap();
    sqlx::query("insert into effects (event, what) values ('o', 'order')").execute(&mut *tx).await.unwrap();
    let receipts = outbox.publish_all(&mut tx, vec![event(2), event(3)]).await.unwrap();
    let position = |n: usize| receipts[n].as_ref().unwrap().position;
    assert!(position(0) < position(1));
    let refused = outbox.publish(&mut tx, Event::raw("order.placed", "4")).await.unwrap_err();
    assert!(refused.to_string().contains(".topic("), "{refused}");
    tx.commit().await.unwrap();
    let end = Arc::new(Notify::new());
    let app = Router::new().on(">", async |event: Event, mut tx: Tx<Sqlite>| effect(&mut tx, &event).await);
    let served = shop.serve(shop.consumer(), app, end.clone());
    let (served, ()) = tokio::join!(served, until(&shop, "select count(*) from effects", 3, &end));
    served.unwrap();
    assert_eq!(shop.count("select count(*) from effects where what = '1'").await, 0);
    drop(shop.folder);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_ends_the_shared_transaction_is_found_and_the_others_are_not_harmed() {
    let shop = Shop::new().await;
    shop.publish(60).await;
    let end = Arc::new(Notify::new());
    let handler = async |event: Event, mut tx: Tx<Sqlite>| -> Result<()> {
        effect(&mut tx, &event).await?;
        match event.data.as_ref() {
            b"17" => {
                sqlx::query("rollback").execute(&mut *tx).await?;
            }
            b"23" => {
                sqlx::query("commit").execute(&mut *tx).await?;
            }
            // What is begun after that is not the transaction of the others either.
            b"29" => {
                sqlx::query("rollback").execute(&mut *tx).await?;
                tx.begin().await?.rollback().await?;
            }
            // A savepoint that is dropped is rolled back, and harms nobody.
            b"37" => drop(tx.begin().await?),
            // A transaction of its own inside is a savepoint, and may fail by itself.
            b"31" => {
                let mut inner = tx.begin().await?;
                sqlx::query("insert into effects (event, what) values ('inner', 'no')").execute(&mut *inner).await?;
                inner.rollback().await?;
            }
            _ => {}
        }
        Ok(())
    };
    let app = Router::new().on("order.*", handler);
    let served = shop.serve(shop.consumer().concurrency(64), app, end.clone());
    let done = "select count(distinct event) + (select count(*) from aq_rows where state = 1) from effects";
    // Nobody but the writer can commit.
    let (served, ()) = tokio::join!(served, until(&shop, done, 60, &end));
    served.unwrap();
    assert_eq!(shop.count("select count(*) - count(distinct event) from effects").await, 0);
    assert_eq!(shop.count("select count(*) from effects where what in ('17', '23', '29', 'no')").await, 0);
    assert_eq!(shop.count("select count(*) from effects where what in ('31', '37')").await, 2);
    let dead = SqliteStore::new(&shop.file).browse(&Query::default()).await.unwrap();
    assert!(dead.iter().any(|l| l.row.history.iter().any(|f| f.error.as_str().contains("tx.begin()"))), "{dead:?}");
}

#[tokio::test]
async fn a_layer_that_turns_an_error_into_success_commits_nothing() {
    let shop = Shop::new().await;
    shop.publish(3).await;
    let end = Arc::new(Notify::new());
    let handler = async |event: Event, mut tx: Tx<Sqlite>| -> Result<()> {
        effect(&mut tx, &event).await?;
        Err(Error::msg("no luck"))
    };
    let forgiving = tower::layer::layer_fn(|next: Next| {
        tower::service_fn(move |call: Call| {
            let mut next = next.clone();
            async move {
                let _ = tower::Service::call(&mut next, call).await;
                Ok::<_, std::convert::Infallible>(Outcome::done())
            }
        })
    });
    let app = Router::new().on("order.*", handler.layer(forgiving));
    let served = shop.serve(shop.consumer(), app, end.clone());
    let settled = "select sum(floor) from aq_floors";
    let (served, ()) = tokio::join!(served, until(&shop, settled, 3, &end));
    served.unwrap();
    assert_eq!(shop.count("select count(*) from effects").await, 0);
    assert_eq!(shop.count("select count(*) from aq_inbox").await, 0);
}

#[tokio::test]
async fn a_wrong_store_and_a_second_transaction_say_what_to_do() {
    let shop = Shop::new().await;
    let app = || Router::new().on(">", async |_: Tx<Sqlite>| ());
    let memory = Consumer::new("stock", shop.broker.clone()).topics(["orders"]).serve(app()).await;
    assert!(memory.unwrap_err().to_string().contains("SqliteStore::new(&file)"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_limit_of_a_handler_ends_with_its_commit() {
    let shop = Shop::new().await;
    shop.publish(1).await;
    let end = Arc::new(Notify::new());
    let app = Router::new().on(">", async |event: Event, mut tx: Tx<Sqlite>| effect(&mut tx, &event).await);
    let served = shop.serve(shop.consumer(), app, end.clone());
    let (served, ()) = tokio::join!(served, until(&shop, "select count(*) from effects", 1, &end));
    served.unwrap();
    // Long enough for SQLite to ask whether it is to go on.
    let message = |n: usize| Message::new("orders", n.to_string());
    for receipt in shop.broker.publish((0..3_000).map(message).collect()).await {
        receipt.unwrap();
    }
}
