//! Handlers that take a transaction.

use std::any::Any;
use std::ops::{Deref, DerefMut};

use sqlx::sqlite::{Sqlite, SqliteConnection};
use tokio::time::Instant;

use super::inbox::Entry;
use super::outbox::Outbox;
use super::sqlite::{SqliteFile, SqliteStore};
use super::writer::Lent;
use crate::broker::Receipt;
use crate::call::{Call, Loan};
use crate::error::{Error, Result, StoreError, WiringError};
use crate::event::Event;
use crate::extract::{FromCall, Rejection, Wiring};
use crate::outcome::{BoxFuture, Unit};

/// The transaction of an attempt, as an argument of a handler: what it writes, the events it publishes and the record that
/// the event took effect are committed together, or none of them.
///
/// It derefs to the connection, so `&mut *tx` is what sqlx executes on. It is committed when the handler and every layer
/// around it are done, and rolled back otherwise. An event that has taken effect before is skipped: its handler does not
/// run. Handlers on one [`SqliteFile`](super::SqliteFile) run one after another, many in one commit; their deliveries are settled after it. A
/// commit that fails for another's sake spends no attempt.
///
/// The traps: no network inside, for nobody else writes to the file meanwhile, and after
/// [`handler_limit`](super::SqliteOptions::handler_limit) the handler is dropped and its attempt has failed. `concurrency`
/// is how many handlers can share a commit. Do not move it into a spawned task.
///
/// ```
/// use aqueduct::{Event, Json, Result, Router, Tx, sqlite::Sqlite};
///
/// async fn reserve(Json(sku): Json<String>, mut tx: Tx<Sqlite>) -> Result<()> {
///     sqlx::query("update stock set free = free - 1 where sku = ?").bind(&sku).execute(&mut *tx).await?;
///     tx.publish(Event::new("stock.reserved", &sku)?.topic("stock").key(&sku)).await?;
///     Ok(())
/// }
/// let app: Router = Router::new().on("order.placed", reserve);
/// ```
pub struct Tx<DB: TxDatabase> {
    held: Option<DB::Held>,
    loan: Option<Loan>,
}

/// A database whose transactions handlers can take.
pub trait TxDatabase: sqlx::Database {
    /// The transaction while a handler has it.
    type Held: Unit + DerefMut<Target = Self::Connection> + 'static;
}

impl TxDatabase for Sqlite {
    type Held = SqliteTx;
}

/// What a handler of [`Tx<Sqlite>`](Tx) has: the file's one writing connection, inside a savepoint.
pub struct SqliteTx {
    lent: Lent,
    outbox: Outbox,
}

impl Deref for SqliteTx {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.lent.connection()
    }
}

impl DerefMut for SqliteTx {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.lent.connection_mut()
    }
}

impl Unit for SqliteTx {
    fn commit(self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            self.lent.commit().await.map_err(|e| match e {
                StoreError::Refused(_) => Error::from(e).permanent(),
                _ => Error::from(e).uncounted(),
            })
        })
    }
}

impl<DB: TxDatabase> Deref for Tx<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.held {
            Some(held) => held,
            None => unreachable!("it is taken only when this is dropped"),
        }
    }
}

impl<DB: TxDatabase> DerefMut for Tx<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.held {
            Some(held) => held,
            None => unreachable!("it is taken only when this is dropped"),
        }
    }
}

impl<DB: TxDatabase> Drop for Tx<DB> {
    fn drop(&mut self) {
        if let (Some(held), Some(loan)) = (self.held.take(), self.loan.take()) {
            loan.give_back(Box::new(held));
        }
    }
}

impl<DB: TxDatabase> std::fmt::Debug for Tx<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tx").finish_non_exhaustive()
    }
}

impl Tx<Sqlite> {
    /// Publishes an event to the log of this file, if the transaction commits. Its source is the consumer's name unless it
    /// names one; it must name its topic.
    pub async fn publish(&mut self, event: Event) -> Result<Receipt> {
        match &mut self.held {
            Some(SqliteTx { lent, outbox }) => outbox.publish(lent.connection_mut(), event).await,
            None => unreachable!("it is taken only when this is dropped"),
        }
    }
}

impl<S: Sync> FromCall<S> for Tx<Sqlite> {
    fn check(wiring: &Wiring<'_>) -> Result<(), WiringError> {
        let store: &dyn Any = wiring.store;
        let text = "`Tx<Sqlite>` needs a store in an SQLite file: give the consumer one with `.store(SqliteStore::new(&file))`";
        store.is::<SqliteStore>().then_some(()).ok_or_else(|| WiringError::new(text))
    }

    async fn from_call(call: &Call, _: &S) -> Result<Self, Rejection> {
        let store = call.origin().store.as_ref().and_then(|store| store.downcast_ref::<SqliteStore>());
        let Some(store) = store else {
            let text = "there is no store in an SQLite file: serve this router with `.store(SqliteStore::new(&file))`";
            return Err(Rejection::Failed(Error::msg(text).permanent()));
        };
        let file = store.home();
        let loan = call.scope().lend()?;
        let entry = Entry::new(call, file.clock().now());
        let lent = match lend(file, entry, call.deadline()).await.map_err(|e| Error::from(e).uncounted())? {
            super::writer::Loan::Lent(lent) => lent,
            super::writer::Loan::Duplicate => return Err(Rejection::Duplicate),
        };
        lent.held_here();
        loan.ends(lent.until);
        let outbox = Outbox::new(call.origin().consumer.clone(), file);
        Ok(Self { held: Some(SqliteTx { lent, outbox }), loan: Some(loan) })
    }
}

/// Waits for the connection, for half of the attempt's time at the most: that others are slow spends no attempt.
async fn lend(
    file: &SqliteFile,
    entry: Entry,
    deadline: Option<Instant>,
) -> std::result::Result<super::writer::Loan, StoreError> {
    let Some(deadline) = deadline else { return file.lend(entry).await };
    let wait = deadline.saturating_duration_since(Instant::now()) / 2;
    let busy = |_| {
        let text =
            format!("the file's one writing connection was not free for {wait:?}: other handlers or writes take it");
        Err(StoreError::Unavailable(text.into()))
    };
    tokio::time::timeout(wait, file.lend(entry)).await.unwrap_or_else(busy)
}
