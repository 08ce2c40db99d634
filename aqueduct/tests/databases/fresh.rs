//! Tables of a test's own on the servers that were started for the tests.

use std::sync::atomic::{AtomicU32, Ordering};

use aqueduct::mysql::{MySql, MySqlDatabase};
use aqueduct::postgres::{PgDatabase, Postgres};
use aqueduct::sql::{Server, ServerDatabase, ServerOptions, TxDatabase};
use aqueduct::{Event, Outbox};
use sqlx::AssertSqlSafe;
use sqlx::Row as _;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A prefix that nobody else uses.
pub(crate) fn prefix() -> String {
    format!("t{}_{}_", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn url(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run `cargo xtask test`, or `cargo xtask servers` and what it prints")
    })
}

pub(crate) fn postgres_url() -> String {
    url("AQUEDUCT_TEST_POSTGRES")
}

pub(crate) fn mysql_url() -> String {
    url("AQUEDUCT_TEST_MARIADB")
}

pub(crate) async fn postgres() -> PgDatabase {
    PgDatabase::options(postgres_url()).prefix(prefix()).connect().await.unwrap()
}

pub(crate) async fn mysql() -> MySqlDatabase {
    MySqlDatabase::options(mysql_url()).prefix(prefix()).connect().await.unwrap()
}

/// A database of the tests, with statements that take no arguments.
pub(crate) trait TestDatabase: Server + TxDatabase {
    /// What a sum is cast to, to be read as a number.
    const INTEGER: &'static str;
    fn options() -> ServerOptions<Self>;
    fn run(connection: &mut Self::Connection, sql: String) -> impl Future<Output = sqlx::Result<()>> + Send;
    fn number(connection: &mut Self::Connection, sql: String) -> impl Future<Output = sqlx::Result<i64>> + Send;
    fn connect() -> impl Future<Output = Self::Connection> + Send;
    fn outbox(name: &str, database: &ServerDatabase<Self>) -> Outbox<Self>;
    fn publish_all(
        outbox: &Outbox<Self>,
        connection: &mut Self::Connection,
        events: Vec<Event>,
    ) -> impl Future<Output = aqueduct::Result<()>> + Send;
}

macro_rules! test_database {
    ($database:ty, $home:ty, $url:expr, $integer:literal) => {
        impl TestDatabase for $database {
            const INTEGER: &'static str = $integer;

            fn options() -> ServerOptions<Self> {
                <$home>::options($url)
            }

            async fn run(connection: &mut Self::Connection, sql: String) -> sqlx::Result<()> {
                sqlx::query(AssertSqlSafe(sql)).execute(connection).await.map(drop)
            }

            async fn number(connection: &mut Self::Connection, sql: String) -> sqlx::Result<i64> {
                sqlx::query(AssertSqlSafe(sql)).fetch_one(connection).await?.try_get(0)
            }

            async fn connect() -> Self::Connection {
                <Self::Connection as sqlx::Connection>::connect(&$url).await.unwrap()
            }

            fn outbox(name: &str, database: &ServerDatabase<Self>) -> Outbox<Self> {
                Outbox::new(name.to_owned(), database)
            }

            async fn publish_all(
                outbox: &Outbox<Self>,
                connection: &mut Self::Connection,
                events: Vec<Event>,
            ) -> aqueduct::Result<()> {
                outbox.publish_all(connection, events).await.map(drop)
            }
        }
    };
}

test_database!(Postgres, PgDatabase, postgres_url(), "bigint");
test_database!(MySql, MySqlDatabase, mysql_url(), "signed");

/// Tables of a test's own, and its prefix.
pub(crate) async fn tables<DB: TestDatabase>() -> (ServerDatabase<DB>, String) {
    let prefix = prefix();
    (DB::options().prefix(prefix.clone()).connect().await.unwrap(), prefix)
}

/// Each test on each server.
macro_rules! on_servers {
    ($($(#[$attribute:meta])* $name:ident),* $(,)?) => {
        mod postgres {
            $($(#[$attribute])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<aqueduct::postgres::Postgres>().await;
            })*
        }
        mod mysql {
            $($(#[$attribute])* #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name::<aqueduct::mysql::MySql>().await;
            })*
        }
    };
}
pub(crate) use on_servers;
