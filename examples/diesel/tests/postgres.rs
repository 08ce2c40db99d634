//! The example against a server that `AQUEDUCT_TEST_POSTGRES` names; `cargo xtask test` starts one.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use aqueduct::postgres::{PgDatabase, PgStore};
use aqueduct::{Consumer, Event, MemoryBroker, Relay, Result, Router};
use aqueduct_servers::postgres_database;
use diesel::QueryDsl as _;
use diesel::result::Error;
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _, SimpleAsyncConnection as _};
use diesel_outbox::schema::orders;
use diesel_outbox::{place_order, write_order};
use tokio::sync::mpsc;

/// Three orders and one that is rolled back: three are in the table, and three events tell of them, in order.
#[tokio::test(flavor = "multi_thread")]
async fn orders_and_their_events_are_one_transaction_each() {
    let server = postgres_database().unwrap();
    let database = PgDatabase::connect(server.url()).await.unwrap();
    let mut diesel = AsyncPgConnection::establish(&server.url()).await.unwrap();
    diesel.batch_execute("create table orders (id bigserial primary key, sku text not null)").await.unwrap();

    place_order(&mut diesel, "tea").await.unwrap();
    let undone = diesel.transaction(async |diesel| {
        write_order(diesel, "tea").await?;
        Err::<(), _>(Error::RollbackTransaction)
    });
    undone.await.unwrap_err();
    for _ in 0..2 {
        place_order(&mut diesel, "tea").await.unwrap();
    }

    let (broker, store) = (MemoryBroker::new(), PgStore::new(&database));
    let (tell, mut told) = mpsc::unbounded_channel();
    let hear = async move |event: Event| -> Result<()> {
        let data: serde_json::Value = serde_json::from_slice(&event.data)?;
        Ok(tell.send((event.source.to_string(), data["order"].as_i64()))?)
    };
    let warehouse = Consumer::new("warehouse", broker.clone()).topics(["orders"]).store(store.clone());
    let warehouse = tokio::spawn(warehouse.serve(Router::new().on("order.placed", hear)).into_future());
    let relay = tokio::spawn(Relay::new(&store, broker).serve().into_future());
    for order in orders::table.select(orders::id).order(orders::id).load::<i64>(&mut diesel).await.unwrap() {
        assert_eq!(told.recv().await.unwrap(), ("shop".to_owned(), Some(order)));
    }
    assert_eq!(orders::table.count().get_result::<i64>(&mut diesel).await.unwrap(), 3);
    warehouse.abort();
    relay.abort();
}
