//! Tables of a test's own on the servers that were started for the tests.

use std::sync::atomic::{AtomicU32, Ordering};

use aqueduct::mysql::MySqlDatabase;
use aqueduct::postgres::PgDatabase;

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
