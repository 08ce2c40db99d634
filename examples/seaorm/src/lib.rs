//! An example: `SeaORM`'s entities in the transaction that Aqueduct lends to a handler, and in the one that an event is
//! published in.
//!
//! `SeaORM` 2 does not hand out the sqlx connection inside its own transactions, but its entities run on whatever implements
//! [`ConnectionTrait`]; [`Sea`] does that for an sqlx connection. Copy it.

mod sea;

use aqueduct::postgres::Postgres;
use aqueduct::{Event, Json, Outbox, Result, Tx};
pub use sea::{Sea, plain};
use sea_orm::entity::prelude::*;
use sea_orm::{IntoActiveModel, Set};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;

/// What is on the shelves.
pub mod stock {
    use sea_orm::entity::prelude::*;

    /// So many pieces of something.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "stock")]
    pub struct Model {
        /// What.
        #[sea_orm(primary_key, auto_increment = false)]
        pub sku: String,
        /// How many.
        pub free: i32,
    }

    /// None.
    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// What was ordered.
pub mod orders {
    use sea_orm::entity::prelude::*;

    /// An order.
    #[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
    #[sea_orm(table_name = "orders")]
    pub struct Model {
        /// Its number.
        #[sea_orm(primary_key)]
        pub id: i64,
        /// Of what.
        pub sku: String,
    }

    /// None.
    #[derive(Clone, Copy, Debug, EnumIter, DeriveRelation)]
    pub enum Relation {}

    impl ActiveModelBehavior for ActiveModel {}
}

/// An order, as others hear of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Placed {
    /// Its number.
    pub order: i64,
    /// Of what.
    pub sku: String,
}

/// Writes an order and publishes its event, both or neither.
pub async fn place_order(pool: &PgPool, outbox: &Outbox<Postgres>, sku: &str) -> Result<i64> {
    let mut tx = pool.begin().await?;
    let order = orders::ActiveModel { sku: Set(sku.to_owned()), ..Default::default() };
    let order = order.insert(&Sea::on(&mut tx)).await.map_err(plain)?;
    let placed = Event::new("order.placed", &Placed { order: order.id, sku: order.sku })?;
    outbox.publish(&mut tx, placed.topic("orders").key(sku)).await?;
    tx.commit().await?;
    Ok(order.id)
}

/// Takes one from the shelf and says so: once for each order, whatever happens.
pub async fn reserve(Json(placed): Json<Placed>, mut tx: Tx<Postgres>) -> Result<()> {
    let sea = Sea::on(&mut tx);
    let shelf = stock::Entity::find_by_id(placed.sku.clone()).one(&sea).await.map_err(plain)?;
    let free = shelf.filter(|shelf| shelf.free > 0);
    let kind = if free.is_some() { "stock.reserved" } else { "stock.missing" };
    if let Some(shelf) = free {
        let left = shelf.free - 1;
        let mut shelf = shelf.into_active_model();
        shelf.free = Set(left);
        shelf.update(&sea).await.map_err(plain)?;
    }
    tx.publish(Event::new(kind, &placed)?.topic("stock").key(placed.sku)).await?;
    Ok(())
}
