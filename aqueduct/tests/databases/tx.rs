//! Handlers that take a transaction of a database server.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aqueduct::mysql::MySql;
use aqueduct::postgres::Postgres;
use aqueduct::sql::{ServerDatabase, SqlStore};
use aqueduct::store::{Query, Store};
use aqueduct::{Attempt, Consumer, Error, Event, MemoryBroker, Policy, Publisher, Result, Router, Tx};
use parking_lot::Mutex;
use sqlx::{Connection as _, Database as _};
use tokio::sync::Notify;

use crate::fresh::{TestDatabase, tables};

/// A service whose state is in a database.
struct Shop<DB: TestDatabase> {
    database: ServerDatabase<DB>,
    prefix: String,
    broker: MemoryBroker,
    publisher: Publisher,
}

impl<DB: TestDatabase> Shop<DB> {
    async fn new() -> Self {
        let (database, prefix) = tables::<DB>().await;
        let broker = MemoryBroker::new();
        let publisher = Publisher::new("shop", broker.clone());
        let shop = Self { database, prefix, broker, publisher };
        // No constraint that would hide a second effect.
        shop.run("create table {p}effects (event varchar(200), what varchar(200))").await;
        shop
    }

    fn sql(&self, sql: &str) -> String {
        sql.replace("{p}", &self.prefix)
    }

    async fn run(&self, sql: &str) {
        DB::run(&mut DB::connect().await, self.sql(sql)).await.unwrap();
    }

    async fn count(&self, sql: &str) -> i64 {
        DB::number(&mut DB::connect().await, self.sql(sql)).await.unwrap()
    }

    async fn publish(&self, count: usize) {
        let event = |n: usize| {
            Event::raw("order.placed", n.to_string())
                .id(format!("event {n}"))
                .topic("orders")
                .key(format!("key {}", n % 10))
        };
        for receipt in self.publisher.publish_all((0..count).map(event).collect()).await {
            receipt.unwrap();
        }
    }

    fn consumer(&self) -> Consumer {
        let policy = Policy::ordered().quick_attempts(3).quick_delay(Duration::from_millis(1));
        let policy = policy.parked_delay(Duration::from_millis(10)).max_attempts(4);
        Consumer::new("stock", self.broker.clone())
            .topics(["orders"])
            .store(SqlStore::new(&self.database))
            .policy(policy)
    }

    /// Serves until the notification.
    async fn serve(&self, app: Router, end: Arc<Notify>) {
        let stop = async move { end.notified().await };
        let serve = self.consumer().serve(app).with_graceful_shutdown(stop);
        tokio::time::timeout(Duration::from_mins(1), serve).await.unwrap().unwrap();
    }
}

/// Writes an effect of the event.
async fn effect<DB: TestDatabase>(tx: &mut Tx<DB>, prefix: &str, event: &Event) -> Result<()> {
    let what = String::from_utf8_lossy(&event.data);
    DB::run(tx, format!("insert into {prefix}effects values ('{}', '{what}')", event.id)).await?;
    Ok(())
}

/// Everything of an attempt is committed together, and an attempt that fails leaves nothing.
async fn attempts_are_committed_as_a_whole<DB: TestDatabase>() {
    let shop = Shop::<DB>::new().await;
    shop.publish(40).await;
    let (end, attempts, prefix) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)), shop.prefix.clone());
    let (done, ended) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&end));
    let handler = move |event: Event, mut tx: Tx<DB>| {
        let (prefix, attempts, done, end) = (prefix.clone(), attempts.clone(), done.clone(), end.clone());
        async move {
            effect(&mut tx, &prefix, &event).await?;
            tx.publish(Event::raw("stock.reserved", "").topic("stock").key("k")).await?;
            if attempts.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
                return Err(Error::msg("not now"));
            }
            if done.fetch_add(1, Ordering::SeqCst) + 1 == 40 {
                end.notify_one();
            }
            Ok(())
        }
    };
    shop.serve(Router::new().on("order.placed", handler), ended).await;
    assert_eq!(shop.count("select count(*) from {p}effects").await, 40);
    assert_eq!(shop.count("select count(distinct event) from {p}effects").await, 40);
    assert_eq!(shop.count("select count(*) from {p}inbox").await, 40);
    assert_eq!(shop.count("select count(*) from {p}outbox").await, 40);
}

/// Its name goes into the text of a statement.
async fn an_event_may_be_called_anything<DB: TestDatabase>() {
    let shop = Shop::<DB>::new().await;
    let names = ["it's", r"a\'", r"\", "'; drop table effects; --", "ключ", "$1 ? %s", "a\nb"];
    let events = |topic: &'static str| {
        names.map(|name| Event::raw("order.placed", "1").id(name).source(name).topic(topic).key("key"))
    };
    let (end, done, prefix) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)), shop.prefix.clone());
    let ended = Arc::clone(&end);
    let handler = move |event: Event, mut tx: Tx<DB>| {
        let (prefix, done, end) = (prefix.clone(), done.clone(), end.clone());
        async move {
            // The last of the second topic comes when all duplicates before it have been skipped.
            let what = if event.id.as_str() == "last" { "last" } else { "effect" };
            DB::run(&mut tx, format!("insert into {prefix}effects values ('event', '{what}')")).await?;
            done.fetch_add(1, Ordering::SeqCst);
            if what == "last" {
                end.notify_one();
            }
            Ok::<_, Error>(())
        }
    };
    for event in events("orders") {
        shop.publisher.publish(event).await.unwrap();
    }
    // The same under one key of another topic, so that they are handled in turn.
    let again =
        events("copies").into_iter().chain([Event::raw("order.placed", "").id("last").topic("copies").key("key")]);
    let app = Router::new().on("order.placed", handler);
    let consumer = shop.consumer().topics(["orders", "copies"]);
    let serve =
        tokio::spawn(consumer.serve(app).with_graceful_shutdown(async move { ended.notified().await }).into_future());
    tokio::time::timeout(Duration::from_mins(1), shop.broker.wait_settled("stock")).await.unwrap();
    for event in again {
        shop.publisher.publish(event).await.unwrap();
    }
    tokio::time::timeout(Duration::from_mins(1), serve).await.unwrap().unwrap().unwrap();
    assert_eq!(shop.count("select count(*) from {p}effects").await, 8);
    assert_eq!(shop.count("select count(*) from {p}inbox").await, 8);
}

/// PostgreSQL gives a transaction up with its first error: a handler that swallows it has failed, and runs again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_swallowed_error_is_no_success() {
    type DB = Postgres;
    let shop = Shop::<DB>::new().await;
    shop.publish(1).await;
    let end = Arc::new(Notify::new());
    let (prefix, attempts, ended) = (shop.prefix.clone(), Arc::new(AtomicUsize::new(0)), Arc::clone(&end));
    let handler = move |event: Event, mut tx: Tx<DB>| {
        let (prefix, attempts, end) = (prefix.clone(), attempts.clone(), end.clone());
        async move {
            effect(&mut tx, &prefix, &event).await?;
            if attempts.fetch_add(1, Ordering::SeqCst) == 0 {
                let missing = DB::run(&mut tx, "insert into there_is_no_such_table values (1)".to_owned()).await;
                assert!(missing.is_err());
            } else {
                end.notify_one();
            }
            Ok::<_, Error>(())
        }
    };
    shop.serve(Router::new().on("order.placed", handler), ended).await;
    assert_eq!(shop.count("select count(*) from {p}effects").await, 1);
}

/// A savepoint may be rolled back alone.
async fn a_savepoint_may_be_rolled_back<DB: TestDatabase>() {
    let shop = Shop::<DB>::new().await;
    shop.publish(1).await;
    let end = Arc::new(Notify::new());
    let (prefix, ended) = (shop.prefix.clone(), Arc::clone(&end));
    let handler = move |event: Event, mut tx: Tx<DB>| {
        let (prefix, end) = (prefix.clone(), end.clone());
        async move {
            let mut inner = tx.begin().await?;
            DB::run(&mut inner, format!("insert into {prefix}effects values ('undone', '')")).await?;
            inner.rollback().await?;
            effect(&mut tx, &prefix, &event).await?;
            end.notify_one();
            Ok::<_, Error>(())
        }
    };
    shop.serve(Router::new().on("order.placed", handler), ended).await;
    assert_eq!(shop.count("select count(*) from {p}effects where event <> 'undone'").await, 1);
    assert_eq!(shop.count("select count(*) from {p}effects").await, 1);
}

/// An owner that has been replaced cannot commit, and spends no attempt.
async fn who_was_replaced_commits_nothing<DB: TestDatabase>() {
    let shop = Shop::<DB>::new().await;
    shop.publish(1).await;
    let end = Arc::new(Notify::new());
    let (prefix, attempts, ended) = (shop.prefix.clone(), Arc::new(AtomicUsize::new(0)), Arc::clone(&end));
    let handler = move |event: Event, mut tx: Tx<DB>| {
        let (prefix, attempts, end) = (prefix.clone(), attempts.clone(), end.clone());
        async move {
            effect(&mut tx, &prefix, &event).await?;
            let raise = format!("update {prefix}shards set epoch = epoch + 100");
            DB::run(&mut DB::connect().await, raise).await?;
            if attempts.fetch_add(1, Ordering::SeqCst) == 3 {
                end.notify_one();
            }
            Ok::<_, Error>(())
        }
    };
    shop.serve(Router::new().on("order.placed", handler), ended).await;
    assert_eq!(shop.count("select count(*) from {p}effects").await, 0);
    let rows = SqlStore::new(&shop.database).browse(&Query::default()).await.unwrap();
    assert!(rows.is_empty(), "{rows:?}");
}

/// Two transactions that wait for each other: one is given up, runs again, and has spent no attempt.
async fn a_deadlock_spends_no_attempt<DB: TestDatabase>() {
    let shop = Shop::<DB>::new().await;
    shop.run("create table {p}stock (id bigint primary key, free bigint)").await;
    shop.run("insert into {p}stock values (0, 0), (1, 0)").await;
    for n in 0..2 {
        let event = Event::raw("order.placed", n.to_string()).topic("orders").key(format!("key {n}"));
        shop.publisher.publish(event).await.unwrap();
    }
    let (end, done) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
    let (prefix, ended, both) = (shop.prefix.clone(), Arc::clone(&end), Arc::new(tokio::sync::Barrier::new(2)));
    let (first, attempts) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&attempts);
    let handler = move |event: Event, attempt: aqueduct::Attempt, mut tx: Tx<DB>| {
        let (prefix, end, done, both) = (prefix.clone(), end.clone(), done.clone(), both.clone());
        let (first, counted) = (first.clone(), counted.clone());
        async move {
            counted.fetch_max(attempt.number as usize, Ordering::SeqCst);
            let mine = i64::from(event.data.as_ref() == b"1");
            DB::run(&mut tx, format!("update {prefix}stock set free = free + 1 where id = {mine}")).await?;
            if first.fetch_add(1, Ordering::SeqCst) < 2 {
                both.wait().await;
            }
            DB::run(&mut tx, format!("update {prefix}stock set free = free + 1 where id = {}", 1 - mine)).await?;
            if done.fetch_add(1, Ordering::SeqCst) + 1 == 2 {
                end.notify_one();
            }
            Ok::<_, Error>(())
        }
    };
    shop.serve(Router::new().on("order.placed", handler), ended).await;
    assert_eq!(
        shop.count("select cast(sum(free) as signed) from {p}stock".replace("signed", DB::INTEGER).as_str()).await,
        4
    );
    assert_eq!(attempts.load(Ordering::SeqCst), 1, "the deadlock was the fault of no event");
}

/// The numbers that a query in the handler answers, one an event of one connection; the third attempt of all fails.
async fn asked<DB: TestDatabase>(query: &'static str) -> Vec<i64> {
    let prefix = crate::fresh::prefix();
    let database = DB::options().prefix(&prefix).handler_connections(1).connect().await.unwrap();
    let broker = MemoryBroker::new();
    let shop = Shop::<DB> { database, prefix, publisher: Publisher::new("shop", broker.clone()), broker };
    shop.publish(10).await;
    let (end, answers) = (Arc::new(Notify::new()), Arc::new(Mutex::new(Vec::new())));
    let (ended, all) = (Arc::clone(&end), Arc::clone(&answers));
    let handler = move |mut tx: Tx<DB>| {
        let (answers, end) = (answers.clone(), end.clone());
        async move {
            let answer = DB::number(&mut tx, query.to_owned()).await?;
            let mut answers = answers.lock();
            answers.push(answer);
            match answers.len() {
                3 => return Err(Error::msg("not now")),
                11 => end.notify_one(),
                _ => {}
            }
            Ok(())
        }
    };
    shop.serve(Router::new().on("order.placed", handler), ended).await;
    assert_eq!(shop.count("select count(*) from {p}inbox").await, 10);
    std::mem::take(&mut *all.lock())
}

/// The database ends a transaction not before its attempt, and not long after; also after one that was rolled back.
async fn a_session_has_the_limits_of_its_attempts<DB: TestDatabase>() {
    let query = if DB::NAME == Postgres::NAME {
        "select setting::bigint from pg_settings where name = 'statement_timeout'"
    } else {
        "select cast(/*M!100300 @@max_statement_time * 1000 */ /*!50799 @@max_execution_time */ as signed)"
    };
    let limits = asked::<DB>(query).await;
    assert!(limits.iter().all(|limit| (29_000..=37_500).contains(limit)), "{limits:?}");
}

/// What an attempt costs on MariaDB: three statements in the message that begins it, the handler's, and three in the message
/// that ends it. Nothing tells sqlx of the end, and no limit is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_on_mysql_has_six_statements_beside_the_handlers() {
    let query = "select cast(variable_value as signed) from information_schema.session_status
        where variable_name = 'QUESTIONS'";
    let counts = asked::<MySql>(query).await;
    let between: Vec<i64> = counts.windows(2).map(|pair| pair[1] - pair[0]).collect();
    // As many for the one that was rolled back and for the next, whose limits are set again.
    assert_eq!(between, [7; 10], "{counts:?}");
}

/// MySQL does not tell that a transaction was given up: what the handler wrote before is gone, and what it writes later is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_of_mysql_that_is_over_is_no_success() {
    for over in ["rollback", "commit", "truncate table {p}nothing"] {
        let shop = Shop::<MySql>::new().await;
        shop.run("create table {p}nothing (id bigint)").await;
        shop.publish(1).await;
        let (end, attempts, sql) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)), shop.sql(over));
        let (ended, tries, prefix) = (Arc::clone(&end), Arc::clone(&attempts), shop.prefix.clone());
        let handler = move |event: Event, attempt: Attempt, mut tx: Tx<MySql>| {
            let (tries, end, sql, prefix) = (tries.clone(), end.clone(), sql.clone(), prefix.clone());
            async move {
                tries.fetch_add(1, Ordering::SeqCst);
                if attempt.number == 1 {
                    MySql::run(&mut tx, sql).await?;
                } else {
                    effect(&mut tx, &prefix, &event).await?;
                    end.notify_one();
                }
                Ok::<_, Error>(())
            }
        };
        if over == "rollback" {
            shop.serve(Router::new().on("order.placed", handler), ended).await;
            assert_eq!(attempts.load(Ordering::SeqCst), 2, "the first was no success");
            assert_eq!(shop.count("select count(*) from {p}effects").await, 1);
            assert_eq!(shop.count("select count(*) from {p}inbox").await, 1);
            continue;
        }
        // The record was committed with what stood before, so the event is not handled again; and nobody was told of a success.
        let until = async move { ended.notified().await };
        let serve = shop.consumer().serve(Router::new().on("order.placed", handler)).with_graceful_shutdown(until);
        let serve = tokio::spawn(serve.into_future());
        tokio::time::timeout(Duration::from_mins(1), shop.broker.wait_settled("stock")).await.unwrap();
        serve.abort();
        assert_eq!(attempts.load(Ordering::SeqCst), 1, "{over}");
    }
}

crate::fresh::on_servers!(
    an_event_may_be_called_anything,
    a_session_has_the_limits_of_its_attempts,
    attempts_are_committed_as_a_whole,
    a_savepoint_may_be_rolled_back,
    who_was_replaced_commits_nothing,
    a_deadlock_spends_no_attempt,
);
