//! The relay on the outbox tables of database servers.

use aqueduct::sql::{ServerDatabase, SqlStore};
use aqueduct::{Event, Outbox, OutboxTable};
use sqlx::Connection as _;

use crate::fresh::{TestDatabase, prefix};
use crate::relay_cases::{self as cases, Site};

pub(crate) struct Server<DB: TestDatabase> {
    pub(crate) database: ServerDatabase<DB>,
    pub(crate) prefix: String,
    pub(crate) outbox: Outbox<DB>,
    /// The application's own.
    connection: tokio::sync::Mutex<DB::Connection>,
}

impl<DB: TestDatabase> Server<DB> {
    pub(crate) async fn new() -> Self {
        Self::open(prefix()).await
    }

    /// The tables with this prefix, which are made if they are not there.
    pub(crate) async fn open(prefix: String) -> Self {
        let database = DB::options().prefix(prefix.clone()).connect().await.unwrap();
        let outbox = DB::outbox("shop", &database);
        let connection = tokio::sync::Mutex::new(DB::connect().await);
        Self { database, prefix, outbox, connection }
    }

    fn sql(&self, sql: &str) -> String {
        let sql = sql.replace("aq_", &self.prefix);
        // A word of the language in MySQL.
        if DB::NAME == "MySQL" { sql.replace(" key,", " `key`,") } else { sql }
    }
}

impl<DB: TestDatabase> Site for Server<DB> {
    fn table(&self) -> OutboxTable {
        OutboxTable::from(&SqlStore::new(&self.database))
    }

    async fn write(&self, events: Vec<Event>) {
        let mut connection = self.connection.lock().await;
        let mut tx = connection.begin().await.unwrap();
        DB::publish_all(&self.outbox, &mut tx, events).await.unwrap();
        tx.commit().await.unwrap();
    }

    async fn run(&self, sql: &'static str) {
        DB::run(&mut *self.connection.lock().await, self.sql(sql)).await.unwrap();
    }

    async fn count(&self, sql: &'static str) -> i64 {
        DB::number(&mut *self.connection.lock().await, self.sql(sql)).await.unwrap()
    }

    async fn changed(&self) {
        // The database does not tell of its changes, so it is asked again; not all the time, which would leave none to relays.
        let _ = tokio::time::timeout(std::time::Duration::from_millis(5), std::future::pending::<()>()).await;
    }
}

async fn a_backlog_is_drained_in_order<DB: TestDatabase>() {
    cases::a_backlog_is_drained_in_order(&Server::<DB>::new().await, 50_000).await;
}

async fn a_row_is_published_at_once<DB: TestDatabase>() {
    cases::a_row_is_published_at_once(&Server::<DB>::new().await).await;
}

async fn a_refused_row_parks_its_key_and_no_other<DB: TestDatabase>() {
    cases::a_refused_row_parks_its_key_and_no_other(&Server::<DB>::new().await).await;
}

async fn rows_of_other_languages_are_events_or_say_why_not<DB: TestDatabase>() {
    cases::rows_of_other_languages_are_events_or_say_why_not(&Server::<DB>::new().await).await;
}

async fn relays_that_are_killed_lose_nothing<DB: TestDatabase>() {
    cases::relays_that_are_killed_lose_nothing(&Server::<DB>::new().await, 5_000).await;
}

async fn an_audit_keeps_what_was_published<DB: TestDatabase>() {
    cases::an_audit_keeps_what_was_published(&Server::<DB>::new().await).await;
}

crate::fresh::on_servers!(
    a_backlog_is_drained_in_order,
    a_row_is_published_at_once,
    a_refused_row_parks_its_key_and_no_other,
    rows_of_other_languages_are_events_or_say_why_not,
    relays_that_are_killed_lose_nothing,
    an_audit_keeps_what_was_published,
);
