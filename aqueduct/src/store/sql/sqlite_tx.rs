//! What a handler of `Tx<Sqlite>` has: the file's one writing connection, for a while.

use std::any::Any;
use std::ops::{Deref, DerefMut};

use sqlx::sqlite::{Sqlite, SqliteConnection};
use tokio::time::Instant;

use super::inbox::Entry;
use super::outbox::{How, Outbox};
use super::sqlite::{SqliteFile, SqliteStore};
use super::sqlite_outbox;
use super::tx::{Begun, Commits, Lends, TxDatabase};
use super::writer::{Lent, Loan};
use crate::broker::Receipt;
use crate::call::Call;
use crate::error::{Error, Result, StoreError};
use crate::event::Event;
use crate::outcome::{BoxFuture, Unit};
use crate::topic::Topic;

/// What a handler of [`Tx<Sqlite>`](super::Tx) has: the file's one writing connection, inside a savepoint.
pub struct SqliteTx {
    lent: Lent,
    outbox: Outbox<Sqlite>,
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

impl TxDatabase for Sqlite {}

impl Lends for Sqlite {
    type Home = SqliteFile;
    type Held = SqliteTx;

    const LACKS: &'static str =
        "`Tx<Sqlite>` needs a store in an SQLite file: give the consumer one with `.store(SqliteStore::new(&file))`";

    fn is_in(store: &dyn Any) -> bool {
        store.is::<SqliteStore>()
    }

    /// Handlers share commits either way.
    fn lend<'a>(
        store: &'a (dyn Any + Send + Sync),
        call: &'a Call,
        _: Commits,
    ) -> BoxFuture<'a, Result<Option<Begun<SqliteTx>>>> {
        Box::pin(async move {
            let Some(store) = store.downcast_ref::<SqliteStore>() else { return Err(Error::msg(Self::LACKS)) };
            let file = store.home();
            let entry = Entry::new(call, file.clock().now());
            let lent = match lend(file, entry, call.deadline()).await.map_err(|e| Error::from(e).uncounted())? {
                Loan::Lent(lent) => lent,
                Loan::Duplicate => return Ok(None),
            };
            lent.held_here();
            let until = lent.until;
            let outbox = Outbox::new(call.origin().consumer.clone(), file);
            Ok(Some((SqliteTx { lent, outbox }, Some(until))))
        })
    }

    fn publish(held: &mut SqliteTx, event: Event) -> BoxFuture<'_, Result<Option<Receipt>>> {
        Box::pin(async move { held.outbox.publish(held.lent.connection_mut(), event).await })
    }

    fn write<'a>(
        home: &'a SqliteFile,
        how: &'a How,
        transaction: &'a mut SqliteConnection,
        events: Vec<(Topic, Event)>,
    ) -> BoxFuture<'a, Result<Vec<Option<Receipt>>>> {
        Box::pin(sqlite_outbox::write(home, how, transaction, events))
    }
}

/// Waits for the connection, for half of the attempt's time at the most: that others are slow spends no attempt.
async fn lend(file: &SqliteFile, entry: Entry, deadline: Option<Instant>) -> Result<Loan, StoreError> {
    let Some(deadline) = deadline else { return file.lend(entry).await };
    let wait = deadline.saturating_duration_since(Instant::now()) / 2;
    let busy = |_| {
        let text =
            format!("the file's one writing connection was not free for {wait:?}: other handlers or writes take it");
        Err(StoreError::Unavailable(text.into()))
    };
    tokio::time::timeout(wait, file.lend(entry)).await.unwrap_or_else(busy)
}
