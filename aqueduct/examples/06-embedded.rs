//! Lesson 6: one SQLite file as broker, store and database. An order and its event are one transaction; a handler's effect,
//! the record of it and what it publishes are another.
//!
//! `cargo run --example 06-embedded --features sqlite`

use aqueduct::sqlite::{Sqlite, SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::{Consumer, Event, Json, Key, Outbox, Result, Router, Tx};
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::mpsc;

/// Takes one from the shelf and says so, or neither.
async fn reserve(Json(sku): Json<String>, order: Key, mut tx: Tx<Sqlite>) -> Result<()> {
    let taken = sqlx::query("update stock set free = free - 1 where sku = ? and free > 0")
        .bind(&sku)
        .execute(&mut *tx)
        .await?
        .rows_affected();
    let kind = if taken == 1 { "stock.reserved" } else { "stock.missing" };
    tx.publish(Event::new(kind, &sku)?.topic("stock").key(order)).await?;
    Ok(())
}

/// An order that is committed has its event; one that is rolled back never had any.
async fn place_order(
    connection: &mut SqliteConnection,
    outbox: &Outbox<aqueduct::sqlite::Sqlite>,
    id: &str,
    sku: &str,
    paid: bool,
) -> Result<()> {
    let mut tx = connection.begin_with("begin immediate").await?;
    sqlx::query("insert into orders (id, sku) values (?, ?)").bind(id).bind(sku).execute(&mut *tx).await?;
    outbox.publish(&mut tx, Event::new("order.placed", sku)?.topic("orders").key(id)).await?;
    if paid {
        tx.commit().await?;
    } else {
        tx.rollback().await?;
    }
    println!("  {id}: {}", if paid { "placed" } else { "rolled back" });
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = SqliteFile::open(folder.path().join("shop.db")).await?;
    let mut connection = SqliteConnection::connect(&format!("sqlite:{}", file.path().display())).await?;
    sqlx::raw_sql(
        "create table orders (id text, sku text); create table stock (sku text, free integer);
         insert into stock values ('tea', 2), ('cake', 1)",
    )
    .execute(&mut connection)
    .await?;

    println!("The shop takes orders:");
    let outbox = Outbox::new("shop", &file);
    for (id, sku, paid) in [("order-1", "tea", true), ("order-2", "cake", false), ("order-3", "cake", true)] {
        place_order(&mut connection, &outbox, id, sku, paid).await?;
    }
    place_order(&mut connection, &outbox, "order-4", "cake", true).await?;

    println!("The warehouse answers:");
    let (tell, mut told) = mpsc::unbounded_channel();
    let answer = async move |event: Event, order: Key| -> Result<()> {
        println!("  {order}: {}", event.kind);
        tell.send(())?;
        Ok(())
    };
    let app = Router::new().on("order.placed", reserve).on("stock.*", answer);
    let warehouse = Consumer::new("warehouse", SqliteBroker::new(&file)).topics(["orders", "stock"]);
    let service = warehouse.store(SqliteStore::new(&file)).serve(app);
    let all = async move {
        for _ in 0..3 {
            told.recv().await;
        }
    };
    service.with_graceful_shutdown(all).await?;

    let left = sqlx::query("select sku, free from stock order by sku").fetch_all(&mut connection).await?;
    for row in left {
        println!("{} left: {}", row.get::<String, _>(0), row.get::<i64, _>(1));
    }
    Ok(())
}
