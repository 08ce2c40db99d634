//! Handlers that take a transaction.

use std::any::Any;
use std::ops::{Deref, DerefMut};

use tokio::time::Instant;

use super::outbox::How;
use super::store::Home;
use crate::broker::Receipt;
use crate::call::{Call, Loan};
use crate::error::{Error, Result, WiringError};
use crate::event::Event;
use crate::extract::{FromCall, Rejection, Wiring};
use crate::outcome::{BoxFuture, Unit};
use crate::topic::Topic;

/// The transaction of an attempt, as an argument of a handler: what it writes, the events it publishes and the record that
/// the event took effect are committed together, or none of them.
///
/// It derefs to the connection, so `&mut *tx` is what sqlx executes on; `tx.begin()` is a savepoint, which may be rolled back
/// alone. It is committed when the handler and every layer around it are done, and rolled back otherwise. An event that has
/// taken effect before is skipped: its handler does not run. What fails for another's sake, such as a deadlock, a lost
/// connection or a commit, spends no attempt.
///
/// On a server each attempt has a transaction and a connection of its own, at most
/// [`handler_connections`](crate::sql::ServerOptions::handler_connections) at a time, and the database ends it
/// soon after the attempt's deadline. Handlers on one [`SqliteFile`](crate::sqlite::SqliteFile) run one after another, many in one commit; nobody
/// else writes to the file meanwhile, and after [`handler_limit`](crate::sqlite::SqliteOptions::handler_limit) the handler is
/// dropped and its attempt has failed; `concurrency` is how many handlers can share a commit.
///
/// The traps: no network inside, since locks are held meanwhile. No `commit` or `rollback` of your own, nor what implies one, as
/// `create` and `truncate` do in MySQL. An error with which the database gives the transaction up, such as a deadlock, must be
/// returned. What you set for the session, limits of time above all, stays for the handlers that have the connection next: use
/// `set local`, or set it back. Do not move it into a spawned task.
///
/// ```
/// # #[cfg(feature = "sqlite")] fn f() {
/// use aqueduct::{Event, Json, Result, Router, Tx, sqlite::Sqlite};
///
/// async fn reserve(Json(sku): Json<String>, mut tx: Tx<Sqlite>) -> Result<()> {
///     sqlx::query("update stock set free = free - 1 where sku = ?").bind(&sku).execute(&mut *tx).await?;
///     tx.publish(Event::new("stock.reserved", &sku)?.topic("stock").key(&sku)).await?;
///     Ok(())
/// }
/// let app: Router = Router::new().on("order.placed", reserve);
/// # }
/// ```
pub struct Tx<DB: TxDatabase> {
    held: Option<DB::Held>,
    loan: Option<Loan>,
}

/// A database whose transactions handlers can take, and in which an outbox can be: SQLite, PostgreSQL, or MySQL. It is not
/// for others.
#[expect(private_bounds, reason = "how a transaction is lent is the library's own")]
pub trait TxDatabase: Lends {}

/// A transaction, and until when it may be held.
pub(crate) type Begun<T> = (T, Option<Instant>);

/// What a transaction is committed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Commits {
    /// As little else as the database allows.
    Alone,
    /// Those of other handlers.
    Shared,
    /// It is not: it only reads.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    Nothing,
}

/// How a database lends its transactions.
pub(crate) trait Lends: sqlx::Database {
    /// What it is to this library.
    type Home: Home<Sql = Self>;

    /// The transaction while a handler has it.
    type Held: Unit + DerefMut<Target = Self::Connection> + 'static;

    /// What a service lacks whose store is none of this database.
    const LACKS: &'static str;

    /// True for a store of this database.
    fn is_in(store: &dyn Any) -> bool;

    /// Begins the transaction of an attempt, with its event in the inbox; and until when it may be held. None if the event
    /// has taken effect before.
    fn lend<'a>(
        store: &'a (dyn Any + Send + Sync),
        call: &'a Call,
        commits: Commits,
    ) -> BoxFuture<'a, Result<Option<Begun<Self::Held>>>>;

    /// Publishes an event if the transaction commits.
    fn publish(held: &mut Self::Held, event: Event) -> BoxFuture<'_, Result<Option<Receipt>>>;

    /// Writes events that are complete into the outbox.
    fn write<'a>(
        home: &'a Self::Home,
        how: &'a How,
        transaction: &'a mut Self::Connection,
        events: Vec<(Topic, Event)>,
    ) -> BoxFuture<'a, Result<Vec<Option<Receipt>>>>;
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

impl<DB: TxDatabase> Tx<DB> {
    /// Publishes an event if the transaction commits. Its source is the consumer's name unless it names one; it must name
    /// its topic. The answer is where it stands, if the database is the log itself; else a relay publishes it later.
    pub async fn publish(&mut self, event: Event) -> Result<Option<Receipt>> {
        match &mut self.held {
            Some(held) => DB::publish(held, event).await,
            None => unreachable!("it is taken only when this is dropped"),
        }
    }

    async fn take(call: &Call, commits: Commits) -> Result<Self, Rejection> {
        let Some(store) = call.origin().store.as_deref().filter(|store| DB::is_in(*store)) else {
            return Err(Rejection::Failed(Error::msg(DB::LACKS).permanent()));
        };
        let loan = call.scope().lend()?;
        let Some((held, until)) = DB::lend(store, call, commits).await? else { return Err(Rejection::Duplicate) };
        if let Some(until) = until {
            loan.ends(until);
        }
        Ok(Self { held: Some(held), loan: Some(loan) })
    }
}

impl<S: Sync, DB: TxDatabase> FromCall<S> for Tx<DB> {
    fn check(wiring: &Wiring<'_>) -> Result<(), WiringError> {
        let store: &dyn Any = wiring.store;
        DB::is_in(store).then_some(()).ok_or_else(|| WiringError::new(DB::LACKS))
    }

    async fn from_call(call: &Call, _: &S) -> Result<Self, Rejection> {
        Self::take(call, Commits::Alone).await
    }
}

/// A transaction that handlers share, as an argument of each of them: several events, handled one after another, are
/// committed together.
///
/// It is used as [`Tx`] is and promises the same: what the handler writes, the events it publishes and the record that its
/// event took effect are committed together, or none of them. A handler that fails is rolled back alone. On PostgreSQL and
/// MySQL a service's handlers take turns on one connection, each behind a savepoint; the transaction is committed when nobody
/// waits for a turn any more, after 64 handlers or some 20 ms. On one [`SqliteFile`](crate::sqlite::SqliteFile) handlers always
/// share commits, and this is the same as [`Tx`].
///
/// Measure before you take it: with [`Tx`] handlers work at the same time, here they do not. It pays where the commit is what
/// takes long or connections are few, and events of many keys are there at once, since `concurrency` is how many handlers can
/// share a commit. Where commits are fast it is slower: on one machine [`Tx`] with 16 connections handled 7,764 events a
/// second with PostgreSQL and 8,413 with MariaDB, this 4,572 and 4,831 with 64 handlers at once.
///
/// If the commit fails, a handler is cancelled, or one of the partitions was taken over by another instance, none of the
/// handlers has had an effect. All of them run again, each with a commit of its own, and no attempt is spent.
///
/// The traps: a slow handler holds up all others, so wait for nothing in it but the database, neither for other services
/// nor for another connection. What a handler has locked is locked until the commit of all: instances whose handlers write
/// the same rows wait for each other longer than with [`Tx`], and more of their transactions are given up as deadlocks. It
/// is best for rows that belong to the event's key.
///
/// ```
/// # #[cfg(feature = "postgres")] fn f() {
/// use aqueduct::{Event, Json, Result, Router, TxBatch, postgres::Postgres};
///
/// async fn count(Json(page): Json<String>, mut tx: TxBatch<Postgres>) -> Result<()> {
///     sqlx::query("update pages set views = views + 1 where page = $1").bind(&page).execute(&mut *tx).await?;
///     tx.publish(Event::new("page.counted", &page)?.topic("pages").key(&page)).await?;
///     Ok(())
/// }
/// let app: Router = Router::new().on("page.viewed", count);
/// # }
/// ```
#[derive(Debug)]
pub struct TxBatch<DB: TxDatabase>(Tx<DB>);

impl<DB: TxDatabase> TxBatch<DB> {
    /// Publishes an event if the transaction commits, as [`Tx::publish`] does.
    pub async fn publish(&mut self, event: Event) -> Result<Option<Receipt>> {
        self.0.publish(event).await
    }
}

/// Another transaction is taken and used as `Tx` is.
macro_rules! as_tx {
    ($name:ident, $database:path, $commits:ident) => {
        impl<DB: $database> Deref for $name<DB> {
            type Target = DB::Connection;

            fn deref(&self) -> &DB::Connection {
                &self.0
            }
        }

        impl<DB: $database> DerefMut for $name<DB> {
            fn deref_mut(&mut self) -> &mut DB::Connection {
                &mut self.0
            }
        }

        impl<S: Sync, DB: $database> FromCall<S> for $name<DB> {
            fn check(wiring: &Wiring<'_>) -> Result<(), WiringError> {
                <Tx<DB> as FromCall<S>>::check(wiring)
            }

            async fn from_call(call: &Call, _: &S) -> Result<Self, Rejection> {
                Tx::take(call, Commits::$commits).await.map(Self)
            }
        }
    };
}

as_tx!(TxBatch, TxDatabase, Shared);
#[cfg(any(feature = "postgres", feature = "mysql"))]
as_tx!(ReadTx, super::Server, Nothing);

/// A transaction that only reads, as an argument of a handler whose effect is elsewhere, in a cache or a search index perhaps.
///
/// All its statements see the same state of the database, that at the first of them, also where
/// [`Isolation`](crate::sql::Isolation) asks for less; a handler sees at least what was committed before it began. The database
/// refuses to write, and the event of a handler that tries becomes a dead letter. It costs less than [`Tx`]: one message to
/// begin and one to end, which nobody waits for, and no commit.
///
/// The trap: nothing records that the event took effect, and nothing looks at who owns its partition. So the handler runs at
/// least once, again after a crash, and an instance that was replaced may finish what it had begun: let the effect bear that,
/// by an [`Epoch`](crate::Epoch) or a version that it compares. A handler has this or [`Tx`], not both.
///
/// It is there on PostgreSQL and MySQL alone: in an SQLite file handlers are lent the one connection that writes, and who only
/// reads had better open one of their own beside it.
///
/// ```
/// # #[cfg(feature = "postgres")] fn f() {
/// use aqueduct::{Json, ReadTx, Result, Router, postgres::Postgres};
///
/// async fn project(Json(sku): Json<String>, mut tx: ReadTx<Postgres>) -> Result<()> {
///     let free: i64 = sqlx::query_scalar("select free from stock where sku = $1").bind(&sku).fetch_one(&mut *tx).await?;
///     println!("{sku}: {free}");
///     Ok(())
/// }
/// let app: Router = Router::new().on("stock.changed", project);
/// # }
/// ```
#[cfg(any(feature = "postgres", feature = "mysql"))]
#[derive(Debug)]
pub struct ReadTx<DB: super::Server>(Tx<DB>);
