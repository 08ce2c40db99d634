//! Leases in an SQLite file: the suite that every table of leases passes.

use aqueduct::sqlite::SqliteFile;
use aqueduct::testing::lease_suite;

#[tokio::test]
async fn a_file_is_a_table_of_leases() {
    let folder = tempfile::tempdir().unwrap();
    lease_suite::run(async |case| {
        let file = SqliteFile::open(folder.path().join(case)).await.unwrap();
        [&file].into_iter().collect()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_opened_three_times_is_one_table_of_leases() {
    let folder = tempfile::tempdir().unwrap();
    lease_suite::run(async |case| {
        let mut files = Vec::new();
        for _ in 0..3 {
            files.push(SqliteFile::options(folder.path().join(case)).relaxed().open().await.unwrap());
        }
        files.iter().collect()
    })
    .await;
}
