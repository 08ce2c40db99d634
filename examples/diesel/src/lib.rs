//! An example: events published in diesel's own transactions.
//!
//! diesel has a connection of its own, so neither `Outbox` nor `Tx` is for it. It need not be: whoever writes the row that
//! `aqueduct outbox sql` prints has published the event, if the transaction commits. [`Row`] is that row; copy it. A relay, in this
//! program or as `aqueduct relay`, does the rest. No code of Aqueduct is needed to publish.

use diesel::result::Error;
use diesel::{ExpressionMethods as _, Insertable};
use diesel_async::{AsyncConnection as _, AsyncPgConnection, RunQueryDsl as _};

/// Tables.
#[allow(missing_docs, reason = "a macro makes what is in it")]
pub mod schema {
    diesel::table! {
        orders (id) {
            id -> BigInt,
            sku -> Text,
        }
    }

    diesel::table! {
        aq_outbox (id) {
            id -> BigInt,
            topic -> Text,
            key -> Nullable<Text>,
            #[sql_name = "type"]
            kind -> Text,
            source -> Nullable<Text>,
            content_type -> Nullable<Text>,
            data -> Nullable<Binary>,
        }
    }
}

/// An event that is published if the transaction commits. The database makes up its id.
#[derive(Debug, Insertable)]
#[diesel(table_name = schema::aq_outbox)]
pub struct Row<'a> {
    /// Where it is published.
    pub topic: &'a str,
    /// Events of one key are published in the order in which they were written.
    pub key: Option<&'a str>,
    /// What has happened.
    pub kind: &'a str,
    /// Who says so.
    pub source: Option<&'a str>,
    /// What the data are.
    pub content_type: Option<&'a str>,
    /// Any bytes.
    pub data: Option<Vec<u8>>,
}

/// Writes an order and publishes its event, both or neither.
pub async fn place_order(connection: &mut AsyncPgConnection, sku: &str) -> Result<i64, Error> {
    connection.transaction(async |connection| write_order(connection, sku).await).await
}

/// The same inside a transaction that is open.
pub async fn write_order(connection: &mut AsyncPgConnection, sku: &str) -> Result<i64, Error> {
    use schema::{aq_outbox, orders};

    let order = diesel::insert_into(orders::table).values(orders::sku.eq(sku)).returning(orders::id);
    let order: i64 = order.get_result(connection).await?;
    let placed = serde_json::json!({ "order": order, "sku": sku });
    let row = Row {
        topic: "orders",
        key: Some(sku),
        kind: "order.placed",
        source: Some("shop"),
        content_type: Some("application/json"),
        data: Some(placed.to_string().into_bytes()),
    };
    diesel::insert_into(aq_outbox::table).values(row).execute(connection).await?;
    Ok(order)
}
