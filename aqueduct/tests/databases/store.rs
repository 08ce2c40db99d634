//! The store keeps the contract of its port on every database.

use std::sync::Arc;

use aqueduct::sql::SqlStore;
use aqueduct::store::{Applied, Claim, Content, Late, Op, Row, RowRef, Standing, Store};
use aqueduct::testing::store_suite;
use aqueduct::{Clock, Epoch, Event, Key, Partition, Place, Position};
use proptest::prelude::*;

use crate::fresh::{TestDatabase, on_servers};
use crate::{fresh, store_model};

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_contract_of_stores() {
    store_suite::run(async |_| Arc::new(SqlStore::new(&fresh::postgres().await)) as _).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_keeps_the_contract_of_stores() {
    store_suite::run(async |_| Arc::new(SqlStore::new(&fresh::mysql().await)) as _).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_leaves_them_as_it_leaves_the_model(steps in store_model::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            store_model::compare(&SqlStore::new(&fresh::postgres().await), steps.clone()).await?;
            store_model::compare(&SqlStore::new(&fresh::mysql().await), steps).await
        })?;
    }
}

fn claim() -> Claim {
    let partition = Partition { topic: "orders".into(), index: 0 };
    Claim { consumer: "stock".into(), partition, epoch: Epoch(1) }
}

fn row(position: u64) -> Row {
    let (event, lane) = (Event::raw("t", "").key("k"), Key::new("k").unwrap().lane());
    Row::new(Place::at(position), lane, Content::Event(Arc::new(event)), Clock::system().now())
}

/// An append writes no row for what was finished before, and a row may be finished while others settle: neither is lost.
async fn rows_that_were_never_written_or_are_finished_are_not_missed<DB: TestDatabase>() {
    let (database, _) = fresh::tables::<DB>().await;
    let (store, claim) = (SqlStore::new(&database), claim());
    store.take_over(&claim, None).await.unwrap();
    store.resume(&claim, &Standing::new(Some("stream".into()), None)).await.unwrap();
    store.apply(&claim, &[Op::Put(vec![row(5)])]).await.unwrap();
    let late = Op::Append { row: row(3), late: Late::Finished };
    assert_eq!(store.apply(&claim, &[late]).await.unwrap(), [Applied::Finished]);
    store.settled(&claim, Position(3)).await.unwrap();
    for position in 10..40 {
        let row = row(position);
        let named = RowRef { place: row.place, lane: row.lane, version: row.version };
        store.apply(&claim, &[Op::Append { row, late: Late::Finished }]).await.unwrap();
        let finish = [Op::Finish(named)];
        let (settled, finished) = tokio::join!(store.settled(&claim, Position(position)), store.apply(&claim, &finish));
        finished.unwrap();
        settled.unwrap();
    }
}

/// Nobody gets a connection with the transaction of who was dropped inside it.
async fn a_write_that_nobody_waits_for_leaves_no_transaction_open<DB: TestDatabase>() {
    let (database, _) = fresh::tables::<DB>().await;
    let (store, claim) = (SqlStore::new(&database), claim());
    store.take_over(&claim, None).await.unwrap();
    for position in 0..60 {
        let (dropped, claim) = (store.clone(), claim.clone());
        let write = tokio::spawn(async move { dropped.apply(&claim, &[Op::Put(vec![row(position)])]).await.map(drop) });
        for _ in 0..position {
            tokio::task::yield_now().await;
        }
        write.abort();
        let ended = write.await;
        assert!(ended.is_err() || ended.unwrap().is_ok());
    }
    let writes = (0..60).map(|position| {
        let (store, claim) = (store.clone(), claim.clone());
        tokio::spawn(async move { store.apply(&claim, &[Op::Put(vec![row(position)])]).await.map(drop) })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap().unwrap();
    }
}

on_servers!(
    rows_that_were_never_written_or_are_finished_are_not_missed,
    a_write_that_nobody_waits_for_leaves_no_transaction_open,
);
