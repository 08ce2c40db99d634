//! Statements of the library's own on a server's connection, translated and run one after another.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx_core::transaction::TransactionManager;

use super::errors::{Meaning, broken, meaning};
use super::{Server, ServerDatabase};
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::sql::dialect::{Session, SqlRow, Value, Work};

/// How long they wait for answers: a server that is cut off says nothing, for a quarter of an hour.
const ANSWERED: Duration = Duration::from_secs(30);

/// Why a try at a transaction failed, and whether another may succeed.
pub(super) struct Failed {
    pub(super) error: StoreError,
    pub(super) again: bool,
    /// The connection is in no state to be used again.
    broken: bool,
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self { error, again: false, broken: true }
    }
}

impl<DB: Server> ServerDatabase<DB> {
    /// One try at a transaction of the library's own.
    pub(super) async fn transaction(&self, work: &mut dyn Work) -> Result<(), Failed> {
        let begun = tokio::time::timeout(ANSWERED, self.pools().begin_own()).await;
        let mut open = begun.map_err(|_| self.failed(&no_answer()))??;
        let done = tokio::time::timeout(ANSWERED, self.within(open.get()?, work)).await;
        let done = done.unwrap_or_else(|_| Err(self.failed(&no_answer())));
        if done.as_ref().err().is_none_or(|failed| !failed.broken) {
            open.ended()?;
        }
        done
    }

    /// Work, and its end, in a transaction that was begun.
    async fn within(&self, connection: &mut DB::Connection, work: &mut dyn Work) -> Result<(), Failed> {
        let mut session = Within::new(self, connection);
        let done = work.run(&mut session).await;
        let failed = session.failed.take();
        match done {
            Ok(()) => {
                self.steps().reach("written");
                DB::Manager::commit(connection).await.map_err(|e| self.failed(&e))
            }
            Err(error) => {
                let broken = DB::Manager::rollback(connection).await.is_err();
                let again = failed.is_some_and(|meaning| matches!(meaning, Meaning::GivenUp(_)));
                Err(Failed { error, again, broken })
            }
        }
    }

    fn failed(&self, error: &sqlx::Error) -> Failed {
        let again = matches!(meaning::<DB>(error), Some(Meaning::GivenUp(_)));
        Failed { error: self.explain(error), again, broken: true }
    }

    /// A connection to read on; behind a pooler in a transaction.
    pub(super) async fn reading(&self) -> Result<Reading<DB>, StoreError> {
        let (connection, new) = if self.pools().behind_pooler {
            (self.pools().begin_own().await?.ended()?, true)
        } else {
            self.pools().own().await?
        };
        Ok(Reading { database: self.clone(), connection: Some(connection), new })
    }
}

/// What is said of a server that says nothing.
fn no_answer() -> sqlx::Error {
    std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer for {ANSWERED:?}")).into()
}

/// The connection of a transaction while work runs on it.
pub(super) struct Within<'c, DB: Server> {
    database: &'c ServerDatabase<DB>,
    connection: &'c mut DB::Connection,
    /// What the error of the statement meant that failed.
    failed: Option<Meaning>,
}

impl<'c, DB: Server> Within<'c, DB> {
    pub(super) fn new(database: &'c ServerDatabase<DB>, connection: &'c mut DB::Connection) -> Self {
        Self { database, connection, failed: None }
    }
}

/// A connection to read on.
pub(super) struct Reading<DB: Server> {
    database: ServerDatabase<DB>,
    /// There until it is given back.
    connection: Option<PoolConnection<DB>>,
    /// It is certainly none that the server may have closed after a quiet time.
    new: bool,
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
    /// Takes another connection if this one has been closed by the server, as it may be after a quiet time.
    async fn again(&mut self, error: &sqlx::Error) -> Result<(), StoreError> {
        if let Some(mut connection) = self.connection.take() {
            connection.close_on_drop();
        }
        if !broken::<DB>(error) || self.new {
            return Err(self.database.explain(error));
        }
        let (connection, new) = self.database.pools().own().await?;
        (self.connection, self.new) = (Some(connection), new);
        Ok(())
    }

    fn connection(&mut self) -> Result<&mut PoolConnection<DB>, StoreError> {
        self.connection.as_mut().ok_or_else(|| StoreError::Unavailable("the connection was lost".into()))
    }
}

impl<DB: Server> Drop for Reading<DB> {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection
            && self.database.pools().behind_pooler
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
            loop {
                let found = fetch(&database, self.connection()?, sql, args.clone());
                match tokio::time::timeout(ANSWERED, found).await.unwrap_or_else(|_| Err(no_answer())) {
                    Ok(found) => return Ok(found),
                    Err(error) => self.again(&error).await?,
                }
            }
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
