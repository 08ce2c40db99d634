//! Statements of the library's own on a server's connection, translated and run one after another.

use sqlx::pool::PoolConnection;
use sqlx_core::transaction::TransactionManager;

use super::dialect::{Session, SqlRow, Value};
use super::server::{Meaning, Server, ServerDatabase, broken, meaning};
use crate::error::StoreError;
use crate::outcome::BoxFuture;

/// The connection of a transaction while work runs on it.
pub(super) struct Within<'c, DB: Server> {
    pub(super) database: &'c ServerDatabase<DB>,
    pub(super) connection: &'c mut DB::Connection,
    /// What the error of the statement meant that failed.
    pub(super) failed: Option<Meaning>,
}

/// A connection to read on.
pub(super) struct Reading<DB: Server> {
    pub(super) database: ServerDatabase<DB>,
    /// There until it is given back.
    pub(super) connection: Option<PoolConnection<DB>>,
}

impl<DB: Server> Session for Within<'_, DB> {
    fn execute<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move {
            let done = execute(self.database, self.connection, sql, args).await;
            done.map_err(|error| {
                self.failed = meaning::<DB>(&error);
                self.database.explain(&error)
            })
        })
    }

    fn fetch<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<Vec<SqlRow>, StoreError>> {
        Box::pin(async move {
            let found = fetch(self.database, self.connection, sql, args).await;
            found.map_err(|error| {
                self.failed = meaning::<DB>(&error);
                self.database.explain(&error)
            })
        })
    }
}

impl<DB: Server> Reading<DB> {
    /// Runs it on another connection once if this one has been closed by the server, as it may be after a quiet time.
    async fn again(&mut self, error: &sqlx::Error) -> Result<(), StoreError> {
        if let Some(mut connection) = self.connection.take() {
            connection.close_on_drop();
        }
        if !broken::<DB>(error) || self.database.behind_pooler() {
            return Err(self.database.explain(error));
        }
        self.connection = Some(self.database.own_connection().await?);
        Ok(())
    }

    fn connection(&mut self) -> Result<&mut PoolConnection<DB>, StoreError> {
        self.connection.as_mut().ok_or_else(|| StoreError::Unavailable("the connection was lost".into()))
    }
}

impl<DB: Server> Drop for Reading<DB> {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection
            && self.database.behind_pooler()
        {
            DB::Manager::start_rollback(connection);
        }
    }
}

impl<DB: Server> Session for Reading<DB> {
    fn execute<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move {
            let database = self.database.clone();
            match execute(&database, self.connection()?, sql, args).await {
                Ok(done) => Ok(done),
                Err(error) => Err(database.explain(&error)),
            }
        })
    }

    fn fetch<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<Vec<SqlRow>, StoreError>> {
        Box::pin(async move {
            let database = self.database.clone();
            let found = fetch(&database, self.connection()?, sql, args.clone()).await;
            let Err(error) = found else { return found.map_err(|e| database.explain(&e)) };
            self.again(&error).await?;
            fetch(&database, self.connection()?, sql, args).await.map_err(|e| database.explain(&e))
        })
    }
}

/// Runs statements one after another and answers how many rows the last one changed.
async fn execute<DB: Server>(
    database: &ServerDatabase<DB>,
    connection: &mut DB::Connection,
    text: &'static str,
    mut args: Vec<Value>,
) -> Result<u64, sqlx::Error> {
    let mut changed = 0;
    for statement in &*database.translated(text) {
        let rest = args.split_off(statement.args.min(args.len()));
        changed = DB::execute(connection, statement, std::mem::replace(&mut args, rest)).await?;
    }
    Ok(changed)
}

/// Runs statements one after another and answers the rows of the last one.
async fn fetch<DB: Server>(
    database: &ServerDatabase<DB>,
    connection: &mut DB::Connection,
    text: &'static str,
    mut args: Vec<Value>,
) -> Result<Vec<SqlRow>, sqlx::Error> {
    let statements = database.translated(text);
    let Some((last, before)) = statements.split_last() else { return Ok(Vec::new()) };
    for statement in before {
        let rest = args.split_off(statement.args.min(args.len()));
        DB::execute(connection, statement, std::mem::replace(&mut args, rest)).await?;
    }
    DB::fetch(connection, last, args).await
}
