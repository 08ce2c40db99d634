//! `SeaORM` on an sqlx connection.

use std::sync::Arc;

use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, RuntimeErr, Statement};
use sea_query_sqlx::SqlxValues;
use sqlx::postgres::{PgConnection, PgRow};
use sqlx::query::Query;
use sqlx::{AssertSqlSafe, Postgres};
use tokio::sync::Mutex;

/// An sqlx connection that `SeaORM`'s entities run on, for as long as this lives.
pub struct Sea<'c>(Mutex<&'c mut PgConnection>);

impl<'c> Sea<'c> {
    /// Lends it the connection: of a transaction of sqlx, or of `Tx<Postgres>`.
    pub fn on(connection: &'c mut PgConnection) -> Self {
        Self(Mutex::new(connection))
    }
}

#[async_trait::async_trait]
impl ConnectionTrait for Sea<'_> {
    fn get_database_backend(&self) -> DbBackend {
        DbBackend::Postgres
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let mut connection = self.0.lock().await;
        query(&statement).execute(&mut **connection).await.map(ExecResult::from).map_err(failed)
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let mut connection = self.0.lock().await;
        let done = sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut **connection).await;
        done.map(ExecResult::from).map_err(failed)
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        let mut connection = self.0.lock().await;
        let row: Option<PgRow> = query(&statement).fetch_optional(&mut **connection).await.map_err(failed)?;
        Ok(row.map(QueryResult::from))
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut connection = self.0.lock().await;
        let rows: Vec<PgRow> = query(&statement).fetch_all(&mut **connection).await.map_err(failed)?;
        Ok(rows.into_iter().map(QueryResult::from).collect())
    }
}

fn query(statement: &Statement) -> Query<'_, Postgres, SqlxValues> {
    let values = statement.values.clone().unwrap_or(sea_orm::Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(statement.sql.as_str()), SqlxValues(values))
}

fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// The error of sqlx that is in one of `SeaORM`: by it Aqueduct knows a deadlock or a lost connection, which spend no attempt.
pub fn plain(error: DbErr) -> aqueduct::Error {
    match error {
        DbErr::Conn(RuntimeErr::SqlxError(inner))
        | DbErr::Exec(RuntimeErr::SqlxError(inner))
        | DbErr::Query(RuntimeErr::SqlxError(inner)) => match Arc::try_unwrap(inner) {
            Ok(error) => error.into(),
            Err(shared) => DbErr::Query(RuntimeErr::SqlxError(shared)).into(),
        },
        other => other.into(),
    }
}
