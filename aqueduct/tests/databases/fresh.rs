//! Tables of a test's own on the servers that were started for the tests.

use std::sync::atomic::{AtomicU32, Ordering};

use aqueduct::mysql::{MySql, MySqlDatabase};
use aqueduct::postgres::{PgDatabase, Postgres};
use aqueduct::sql::{Server, ServerDatabase, ServerOptions, TxDatabase};
use aqueduct::{Event, Outbox};
use aqueduct_servers::{Database, Options};
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
    /// A column that numbers the rows of a table in the order in which they were inserted.
    const SERIAL: &'static str;
    /// The function that does nothing for so many seconds, and how many connections run it.
    const SLEEP: &'static str;
    const SLEEPING: &'static str;
    /// The server's setting for how many connections it allows.
    const CONNECTIONS_MAX: &'static str;
    /// Deadlocks are looked for at once.
    fn find_deadlocks_soon(database: &Database);
    /// A server of a test's own.
    type Own: OwnServer;
    /// A database of its own on the server that all tests share.
    fn shared() -> Database;
    fn options_for(url: &str) -> ServerOptions<Self>;
    fn connect_to(url: &str) -> impl Future<Output = sqlx::Result<Self::Connection>> + Send;
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
    ($database:ty, $home:ty, $own:ty, $shared:expr, $url:expr, $integer:literal, $serial:literal,
        $sleep:literal, $sleeping:literal, $connections:literal, $deadlocks:expr) => {
        impl TestDatabase for $database {
            const INTEGER: &'static str = $integer;
            const SERIAL: &'static str = $serial;
            const SLEEP: &'static str = $sleep;
            const SLEEPING: &'static str = $sleeping;
            const CONNECTIONS_MAX: &'static str = $connections;
            type Own = $own;

            fn find_deadlocks_soon(database: &Database) {
                let sql: Option<&str> = $deadlocks;
                if let Some(sql) = sql {
                    database.query(&sql.replace("{name}", database.name())).unwrap();
                }
            }

            fn shared() -> Database {
                $shared.unwrap()
            }

            fn options_for(url: &str) -> ServerOptions<Self> {
                <$home>::options(url)
            }

            async fn connect_to(url: &str) -> sqlx::Result<Self::Connection> {
                <Self::Connection as sqlx::Connection>::connect(url).await
            }

            fn options() -> ServerOptions<Self> {
                <$home>::options($url)
            }

            async fn run(connection: &mut Self::Connection, sql: String) -> sqlx::Result<()> {
                sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
            }

            async fn number(connection: &mut Self::Connection, sql: String) -> sqlx::Result<i64> {
                sqlx::query(AssertSqlSafe(sql)).persistent(false).fetch_one(connection).await?.try_get(0)
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

test_database!(
    Postgres,
    PgDatabase,
    aqueduct_servers::Postgres,
    aqueduct_servers::postgres_database(),
    postgres_url(),
    "bigint",
    "id bigserial primary key",
    "pg_sleep",
    "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%' and datname = current_database()",
    "max_connections",
    Some("alter database {name} set deadlock_timeout = '10ms'")
);
test_database!(
    MySql,
    MySqlDatabase,
    aqueduct_servers::MariaDb,
    aqueduct_servers::mariadb_database(),
    mysql_url(),
    "signed",
    "id bigint auto_increment primary key",
    "sleep",
    "select count(*) from information_schema.processlist where info like 'select sleep%' and db = database()",
    "max-connections",
    None
);

/// A server that a test may hurt.
pub(crate) trait OwnServer: Sized + Send + Sync {
    fn start(options: Options) -> Self;
    fn database(&self) -> Database;
    fn port(&self) -> u16;
    fn kill(&self);
    fn stop(&self);
    fn start_again(&self);
}

macro_rules! own_server {
    ($server:ty) => {
        impl OwnServer for $server {
            fn start(options: Options) -> Self {
                <$server>::start(options).unwrap()
            }

            fn database(&self) -> Database {
                self.database().unwrap()
            }

            fn port(&self) -> u16 {
                aqueduct_servers::Server::port(self)
            }

            fn kill(&self) {
                aqueduct_servers::Server::kill(self).unwrap();
            }

            fn stop(&self) {
                aqueduct_servers::Server::stop(self).unwrap();
            }

            fn start_again(&self) {
                aqueduct_servers::Server::start_again(self).unwrap();
            }
        }
    };
}

own_server!(aqueduct_servers::Postgres);
own_server!(aqueduct_servers::MariaDb);

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
