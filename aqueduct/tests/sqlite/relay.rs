//! The relay on the outbox table of an SQLite file.

use std::future::IntoFuture;

use aqueduct::sqlite::{SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::{Event, Outbox, OutboxTable, Relay};
use sqlx::{Connection, SqliteConnection};
use tempfile::TempDir;
use tokio::sync::Mutex;

use crate::relay_cases::{self as cases, Site};

struct Shop {
    _folder: TempDir,
    file: SqliteFile,
    outbox: Outbox<aqueduct::sqlite::Sqlite>,
    /// The application's own.
    connection: Mutex<SqliteConnection>,
}

impl Shop {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = SqliteFile::options(folder.path().join("shop.db")).relaxed().open().await.unwrap();
        let outbox = Outbox::new("shop", &file).relayed();
        let connection = Mutex::new(crate::store::other(file.path()).await);
        Self { _folder: folder, file, outbox, connection }
    }
}

impl Site for Shop {
    fn table(&self) -> OutboxTable {
        OutboxTable::from(&SqliteStore::new(&self.file))
    }

    async fn write(&self, events: Vec<Event>) {
        let mut connection = self.connection.lock().await;
        let mut tx = connection.begin_with("begin immediate").await.unwrap();
        self.outbox.publish_all(&mut tx, events).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn run(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&mut *self.connection.lock().await).await.unwrap();
    }

    async fn count(&self, sql: &'static str) -> i64 {
        sqlx::query_scalar(sql).fetch_one(&mut *self.connection.lock().await).await.unwrap()
    }

    fn changed(&self) -> impl Future<Output = ()> + Send {
        self.file.changed()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_is_drained_in_order() {
    cases::a_backlog_is_drained_in_order(&Shop::new().await, 100_000).await;
}

#[tokio::test]
async fn a_row_is_published_at_once() {
    cases::a_row_is_published_at_once(&Shop::new().await).await;
}

#[tokio::test]
async fn a_refused_row_parks_its_key_and_no_other() {
    cases::a_refused_row_parks_its_key_and_no_other(&Shop::new().await).await;
}

#[tokio::test]
async fn rows_of_other_languages_are_events_or_say_why_not() {
    cases::rows_of_other_languages_are_events_or_say_why_not(&Shop::new().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn relays_that_are_killed_lose_nothing() {
    cases::relays_that_are_killed_lose_nothing(&Shop::new().await, 1_500).await;
}

#[tokio::test]
async fn an_audit_keeps_what_was_published() {
    cases::an_audit_keeps_what_was_published(&Shop::new().await).await;
}

#[tokio::test]
async fn a_transaction_that_is_rolled_back_publishes_nothing_and_the_log_of_the_same_file_can_be_the_broker() {
    let site = Shop::new().await;
    let broker = SqliteBroker::new(&site.file);
    let mut other = crate::store::other(site.file.path()).await;
    let mut tx = other.begin_with("begin immediate").await.unwrap();
    let receipt = site.outbox.publish(&mut tx, cases::events(0..1, 1).remove(0)).await.unwrap();
    assert!(receipt.is_none(), "a relay publishes it later");
    tx.rollback().await.unwrap();
    site.write(cases::events(1..11, 2)).await;
    let relay = Relay::new(&SqliteStore::new(&site.file), broker);
    let stop = cases::until(&site, "select count(*) from aq_outbox", 0);
    tokio::select! {
        biased;
        served = relay.serve().into_future() => served.unwrap(),
        () = stop => {}
    }
    assert_eq!(site.count("select sum(count) from aq_log").await, 10);
}
