//! The store in an SQLite file keeps the contract of its port, and its rows outlive it.

use std::path::Path;
use std::sync::Arc;

use aqueduct::sqlite::{SqliteFile, SqliteStore};
use aqueduct::store::{
    Action, Claim, Command, CommandState, Content, Failure, Listed, Next, Op, Query, Row, RowRef, Store,
};
use aqueduct::testing::store_suite;
use aqueduct::{Epoch, Event, Key, Partition, Place, StoreError, Timestamp};
use proptest::prelude::*;
use sqlx::{Connection, SqliteConnection};

use crate::store_model;

pub(crate) fn claim() -> Claim {
    Claim { consumer: "billing".into(), partition: Partition { topic: "orders".into(), index: 0 }, epoch: Epoch(1) }
}

pub(crate) fn at(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(ms)
}

pub(crate) fn row(position: u64, key: &str) -> Row {
    let event = Event::raw("order.placed", format!("data {position}")).id(position.to_string()).source("shop").key(key);
    Row::new(Place::at(position), Key::new(key).unwrap().lane(), Content::Event(Arc::new(event)), at(1_000))
}

pub(crate) fn named(row: &Row) -> RowRef {
    RowRef { place: row.place, lane: row.lane, version: row.version }
}

pub(crate) fn listed(row: &Row) -> Listed {
    Listed { consumer: claim().consumer, partition: claim().partition, row: row.clone() }
}

/// Another program's connection to the file.
pub(crate) async fn other(path: &Path) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite:{}?mode=rwc", path.display())).await.unwrap()
}

pub(crate) async fn run(path: &Path, sql: &'static str) {
    sqlx::raw_sql(sql).execute(&mut other(path).await).await.unwrap();
}

async fn run_suite(relaxed: bool) {
    let folder = tempfile::tempdir().unwrap();
    store_suite::run(async |case| {
        let options = SqliteFile::options(folder.path().join(case));
        let file = if relaxed { options.relaxed() } else { options }.open().await.unwrap();
        Arc::new(SqliteStore::new(&file)) as _
    })
    .await;
}

#[tokio::test]
async fn it_keeps_the_contract_of_stores_on_one_thread() {
    run_suite(false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_keeps_the_contract_of_stores_on_many_threads() {
    run_suite(true).await;
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]

    #[test]
    fn any_sequence_of_operations_leaves_it_as_it_leaves_the_model(steps in store_model::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        runtime.block_on(async {
            let file = SqliteFile::options(folder.path().join("model.db")).relaxed().open().await.unwrap();
            store_model::compare(&SqliteStore::new(&file), steps).await
        })?;
    }
}

#[tokio::test]
async fn rows_fences_and_commands_outlive_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aqueduct.db");
    let mut parked = row(1, "a");
    let failure = Failure { at: at(7), attempt: 1, took: std::time::Duration::from_micros(3), error: "broken".into() };
    let store = SqliteStore::open(&path).await.unwrap();
    store.take_over(&claim(), None).await.unwrap();
    let update = Op::Update { row: named(&parked), failure: failure.clone(), to: Next::Retry(at(2_000)) };
    store.apply(&claim(), &[Op::Put(vec![parked.clone(), row(2, "a")]), update]).await.unwrap();
    let command = Command::new(&listed(&row(2, "a")), Action::Discard, "ann", "because");
    let id = store.command(&command).await.unwrap();
    drop(store);

    let store = SqliteStore::open(&path).await.unwrap();
    (parked.version, parked.attempts, parked.next_at) = (2, 1, at(2_000));
    parked.remember(failure);
    let rows = store.browse(&Query::default()).await.unwrap();
    assert_eq!(rows, [listed(&parked), listed(&row(2, "a"))]);
    let older = Claim { epoch: Epoch(0), ..claim() };
    assert!(matches!(store.take_over(&older, None).await, Err(StoreError::Fenced { held: Epoch(1), .. })));
    let due = store.due(&claim(), at(2_000), 10).await.unwrap();
    assert_eq!((due.heads, due.commands), (vec![parked], vec![(id, command.clone())]));
    assert_eq!(store.audit(10).await.unwrap(), [(id, command, CommandState::Waiting)]);
}

#[tokio::test]
async fn people_find_events_by_their_identity() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aqueduct.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.bury(&claim().consumer, &claim().partition, &[row(1, "a"), row(2, "b")]).await.unwrap();
    let sql =
        "select position from aq_rows where key = 'b' and source = 'shop' and event_id = '2' and kind = 'order.placed'";
    let found: i64 = sqlx::query_scalar(sql).fetch_one(&mut other(&path).await).await.unwrap();
    assert_eq!(found, 2);
}

#[tokio::test]
async fn commands_beyond_ten_thousand_that_wait_are_not_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aqueduct.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.take_over(&claim(), None).await.unwrap();
    store.apply(&claim(), &[Op::Put(vec![row(1, "a")])]).await.unwrap();
    let command = Command::new(&listed(&row(1, "a")), Action::Replay, "ann", "because");
    let first = store.command(&command).await.unwrap();
    let copies = "with recursive n (i) as (select 1 union all select i + 1 from n where i < 9999)
        insert into aq_commands (shard, position, idx, lane, revision, action, event, who, why, state, version)
        select shard, position, idx, lane, revision, action, event, who, why, state, version from aq_commands, n";
    run(&path, copies).await;
    assert!(matches!(store.command(&command).await, Err(StoreError::Unavailable(_))));
    store.apply(&claim(), &[Op::Operate { id: first, refused: Some("no".into()), now: at(1) }]).await.unwrap();
    let last = store.command(&command).await.unwrap();
    let audit = store.audit(2).await.unwrap();
    assert_eq!(audit.last().unwrap(), &(last, command, CommandState::Waiting));
    assert!(audit.len() == 2 && audit[0].0 < last);
}
