//! The example against a server that `AQUEDUCT_TEST_POSTGRES` names; `cargo xtask test` starts one.

#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

use aqueduct::postgres::{PgDatabase, PgStore};
use aqueduct::{Consumer, Event, MemoryBroker, Outbox, Relay, Result, Router};
use aqueduct_servers::postgres_database;
use sea_orm::entity::prelude::*;
use seaorm::{Sea, orders, place_order, reserve, stock};
use sqlx::PgPool;
use tokio::sync::mpsc;

const TABLES: &str = "create table orders (id bigserial primary key, sku text not null);
    create table stock (sku text primary key, free int not null);
    insert into stock values ('tea', 2)";

/// Four orders, of which one is rolled back, and two pieces: two are reserved, one is missing, and the shelf is empty.
#[tokio::test(flavor = "multi_thread")]
async fn orders_and_shelves_and_their_events_are_one_transaction_each() {
    let server = postgres_database().unwrap();
    let database = PgDatabase::connect(server.url()).await.unwrap();
    let pool = PgPool::connect(&server.url()).await.unwrap();
    sqlx::raw_sql(TABLES).execute(&pool).await.unwrap();

    let outbox = Outbox::new("shop", &database);
    for _ in 0..3 {
        place_order(&pool, &outbox, "tea").await.unwrap();
    }
    let mut tx = pool.begin().await.unwrap();
    let lost = orders::ActiveModel { sku: sea_orm::Set("tea".into()), ..Default::default() };
    lost.insert(&Sea::on(&mut tx)).await.unwrap();
    outbox.publish(&mut tx, Event::new("order.placed", &"lost").unwrap().topic("orders").key("tea")).await.unwrap();
    tx.rollback().await.unwrap();

    let broker = MemoryBroker::new();
    let store = PgStore::new(&database);
    let (tell, mut told) = mpsc::unbounded_channel();
    let answer = async move |event: Event| -> Result<()> { Ok(tell.send(event.kind.to_string())?) };
    let app = Router::new().on("order.placed", reserve).on("stock.*", answer);
    let warehouse = Consumer::new("warehouse", broker.clone()).topics(["orders", "stock"]).store(store.clone());
    let warehouse = tokio::spawn(warehouse.serve(app).into_future());
    let relay = tokio::spawn(Relay::new(&store, broker).serve().into_future());
    let mut kinds = Vec::new();
    for _ in 0..3 {
        kinds.push(told.recv().await.unwrap());
    }
    assert_eq!(kinds, ["stock.reserved", "stock.reserved", "stock.missing"]);
    let mut connection = pool.acquire().await.unwrap();
    let sea = Sea::on(&mut connection);
    assert_eq!(stock::Entity::find_by_id("tea").one(&sea).await.unwrap().unwrap().free, 0);
    assert_eq!(orders::Entity::find().all(&sea).await.unwrap().len(), 3);
    warehouse.abort();
    relay.abort();
}
