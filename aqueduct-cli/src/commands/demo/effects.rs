//! What handlers did: a table of their own database, beside the events.

use std::path::Path;

use aqueduct::{Event, Key, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Row};

use super::story::number;

/// Creates the table.
pub(super) async fn create(path: &Path) -> Result<SqliteConnection> {
    let options = SqliteConnectOptions::new().filename(path).disable_statement_logging();
    let mut connection = options.connect().await?;
    let sql = "create table if not exists effects (n integer primary key, event text not null, repository text)";
    sqlx::query(sql).execute(&mut connection).await?;
    Ok(connection)
}

/// A handler's work is done.
pub(super) async fn insert(connection: &mut SqliteConnection, event: &Event) -> Result<()> {
    sqlx::query("insert into effects (event, repository) values (?, ?)")
        .bind(number(event))
        .bind(event.key.as_ref().map(Key::to_string))
        .execute(connection)
        .await?;
    Ok(())
}

/// The numbers of the events in the order in which they took effect.
pub(super) async fn all(connection: &mut SqliteConnection) -> Result<Vec<String>> {
    let rows = sqlx::query("select event from effects order by n").fetch_all(connection).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}
