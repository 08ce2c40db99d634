//! What a handler of `Tx<Postgres>` or `Tx<MySql>` has: a connection with a transaction of its own.
//!
//! First the inbox record is written: a concurrent duplicate waits there, and is skipped then. The fence is read last, under
//! a lock that keeps a new owner from raising it until the commit: locked first, a stopped process would keep the new owner
//! waiting; read first without a lock, an owner that was replaced meanwhile would commit all the same.

use std::any::Any;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx_core::transaction::TransactionManager;
use tokio::time::Instant;

use super::dialect::Value;
use super::outbox::{How, Outbox};
use super::server::{Meaning, Server, ServerDatabase, meaning};
use super::server_floors::Effect;
use super::server_outbox;
use super::store::{HomeCalls, SqlStore};
use super::tx::{Begun, Lends, TxDatabase};
use crate::broker::Receipt;
use crate::call::{Call, Origin};
use crate::clock::Lease;
use crate::error::{Error, Result, StoreError};
use crate::event::Event;
use crate::outcome::{BoxFuture, Unit};
use crate::topic::{Epoch, Position, Topic};

/// How long a transaction may take that is in no attempt with a deadline.
const LONGEST: Duration = Duration::from_hours(1);

/// How long a transaction may stand still, a statement take, and a lock be waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) idle: Duration,
    pub(crate) statement: Duration,
    pub(crate) lock: Duration,
}

impl Limits {
    /// Half of the time for locks: waiting for others must end before the attempt does, which would count.
    fn until(deadline: Option<Instant>) -> Self {
        let left = deadline.map_or(LONGEST, |deadline| deadline.saturating_duration_since(Instant::now()));
        Self { idle: left, statement: left, lock: left / 2 }
    }
}

/// What a handler of `Tx<Postgres>` or `Tx<MySql>` has.
pub struct ServerTx<DB: Server> {
    database: ServerDatabase<DB>,
    origin: Arc<Origin>,
    event: Arc<Event>,
    /// The fence of its partition.
    shard: i64,
    position: Position,
    /// There until it is given back, with which it ends.
    connection: Option<PoolConnection<DB>>,
}

impl<DB: Server> Deref for ServerTx<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("it is given back only with the end of the transaction"),
        }
    }
}

impl<DB: Server> DerefMut for ServerTx<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.connection {
            Some(connection) => connection,
            None => unreachable!("it is given back only with the end of the transaction"),
        }
    }
}

impl<DB: Server> Drop for ServerTx<DB> {
    /// A handler that was cancelled may have been inside a statement: such a connection is closed, and never another's.
    fn drop(&mut self) {
        if let Some(mut connection) = self.connection.take() {
            connection.close_on_drop();
        }
    }
}

impl<DB: Server> Unit for ServerTx<DB> {
    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            let (lease, database) = (&self.origin.lease, self.database.clone());
            let end = End { shard: self.shard, epoch: self.origin.epoch, left: remaining(lease, &database) };
            let fence = database.one(DB::FENCE);
            let ended = DB::end(&mut *self, &fence, end, database.steps()).await.map_err(|e| why(&database, &e))?;
            match ended {
                Ended::Committed => {
                    database.floors().effect(self.effect());
                    self.give_back();
                }
                Ended::Replaced(held) => return Err(self.replaced(held)),
                Ended::Before => return Err(Error::msg(ENDED).permanent()),
            }
            Ok(())
        })
    }

    fn roll_back(mut self: Box<Self>) {
        tokio::spawn(async move {
            if DB::Manager::rollback(&mut *self).await.is_ok() {
                self.give_back();
            }
        });
    }
}

impl<DB: Server> ServerTx<DB> {
    fn give_back(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.database.give_back(connection);
        }
    }

    fn effect(&self) -> Effect {
        let (consumer, shard, position) = (self.origin.consumer.clone(), self.shard, self.position);
        Effect { consumer, source: self.event.source.clone(), id: self.event.id.clone(), shard, position }
    }

    fn replaced(&self, held: Option<i64>) -> Error {
        let Origin { partition, epoch, .. } = &*self.origin;
        let held = Epoch(held.unwrap_or(0).cast_unsigned());
        Error::from(StoreError::Fenced { partition: partition.clone(), held, ours: *epoch }).uncounted()
    }
}

/// A connection inside a transaction, or on the way into one. Dropped there, because nobody waits for it any more, it is
/// closed: the pool would hand it on with the transaction open, and with what it has locked.
pub(super) struct Open<DB: Server>(pub(super) Option<PoolConnection<DB>>);

impl<DB: Server> Open<DB> {
    pub(super) fn get(&mut self) -> Result<&mut PoolConnection<DB>, StoreError> {
        self.0.as_mut().ok_or_else(|| StoreError::Unavailable("the connection was lost".into()))
    }

    /// It may be used by others, or its holder sees to it.
    pub(super) fn ended(mut self) -> Result<PoolConnection<DB>, StoreError> {
        self.0.take().ok_or_else(|| StoreError::Unavailable("the connection was lost".into()))
    }
}

impl<DB: Server> Drop for Open<DB> {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.0 {
            connection.close_on_drop();
        }
    }
}

/// Who is told of steps inside a transaction: nobody but tests.
#[derive(Clone, Default)]
pub(crate) struct Steps(#[cfg(any(test, feature = "testing"))] Option<Arc<dyn Fn(&'static str) + Send + Sync>>);

impl Steps {
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn told_to(told: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(told)))
    }

    #[cfg_attr(not(any(test, feature = "testing")), expect(clippy::unused_self, reason = "there is nobody to tell"))]
    pub(crate) fn reach(&self, step: &'static str) {
        #[cfg(any(test, feature = "testing"))]
        if let Some(told) = &self.0 {
            told(step);
        }
        #[cfg(not(any(test, feature = "testing")))]
        let _ = step;
    }
}

/// What the end of a transaction depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) shard: i64,
    pub(crate) epoch: Epoch,
    /// How long the lease holds still.
    pub(crate) left: Duration,
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    Committed,
    /// The fence has another epoch, or is not there.
    Replaced(Option<i64>),
    /// By the handler itself, some time ago.
    Before,
}

/// Why a transaction could not be committed after the handler has returned.
fn why<DB: Server>(database: &ServerDatabase<DB>, error: &sqlx::Error) -> Error {
    match meaning::<DB>(error) {
        Some(Meaning::Aborted) => Error::msg(GONE_ON),
        _ => Error::from(database.explain(error)).uncounted(),
    }
}

/// What a handler may not do.
const ENDED: &str =
    "a handler ended its transaction itself: no `commit` or `rollback` of its own, but `tx.begin()`, and end that";

const GONE_ON: &str = "a statement of the handler failed, and the handler said that it is done all the same: the database has given the transaction up. Return the error, or run what may fail inside `tx.begin()`";

/// How long the lease holds still; at least a moment, since 0 is no limit.
fn remaining<DB: Server>(lease: &Lease, database: &ServerDatabase<DB>) -> Duration {
    if lease.is_forever() {
        return LONGEST;
    }
    let left = lease.deadline().0.saturating_sub(database.clock().boot().0);
    Duration::from_nanos(left).max(Duration::from_millis(1))
}

impl<DB: Server> TxDatabase for DB {}

impl<DB: Server> Lends for DB {
    type Home = ServerDatabase<DB>;
    type Held = ServerTx<DB>;

    const LACKS: &'static str = DB::LACKS_STORE;

    fn is_in(store: &dyn Any) -> bool {
        store.is::<SqlStore<ServerDatabase<DB>>>()
    }

    fn lend<'a>(
        store: &'a (dyn Any + Send + Sync),
        call: &'a Call,
    ) -> BoxFuture<'a, Result<Option<Begun<ServerTx<DB>>>>> {
        Box::pin(async move {
            let Some(store) = store.downcast_ref::<SqlStore<ServerDatabase<DB>>>() else {
                return Err(Error::msg(Self::LACKS));
            };
            let database = store.home();
            let shard = database.shard(&call.origin().consumer, &call.origin().partition).await;
            let shard = shard.map_err(|e| Error::from(e).uncounted())?;
            let connection = database.begin_attempt(Limits::until(call.deadline())).await;
            let connection = connection.map_err(|e| Error::from(e).uncounted())?;
            database.steps().reach("begun");
            let (origin, event) = (Arc::clone(call.origin()), Arc::clone(call.event_arc()));
            let (database, position, connection) = (database.clone(), call.place().position, Some(connection));
            let mut held = Box::new(ServerTx { database, origin, event, shard, position, connection });
            if enter(&mut held, call).await? {
                return Ok(Some((*held, None)));
            }
            held.roll_back();
            Ok(None)
        })
    }

    fn publish(held: &mut ServerTx<DB>, event: Event) -> BoxFuture<'_, Result<Option<Receipt>>> {
        Box::pin(async move {
            let outbox = Outbox::new(held.origin.consumer.clone(), &held.database);
            outbox.publish(held, event).await
        })
    }

    fn write<'a>(
        home: &'a ServerDatabase<DB>,
        how: &'a How,
        transaction: &'a mut DB::Connection,
        events: Vec<(Topic, Event)>,
    ) -> BoxFuture<'a, Result<Vec<Option<Receipt>>>> {
        Box::pin(server_outbox::write(home, how, transaction, events))
    }
}

/// Writes the event into the inbox, and answers whether it was not there. Where another has the same event in hand, it waits
/// for the end of that.
async fn enter<DB: Server>(held: &mut ServerTx<DB>, call: &Call) -> Result<bool> {
    let (event, Origin { consumer, partition, .. }) = (call.event(), &**call.origin());
    let args = vec![
        consumer.into(),
        (&event.source).into(),
        (&event.id).into(),
        Value::Text(partition.topic.clone().into()),
        i64::from(partition.index).into(),
        call.place().position.0.cast_signed().into(),
        held.database.clock().now().unix_ms().into(),
    ];
    let statement = held.database.one(DB::INBOX);
    match DB::execute(&mut *held, &statement, args).await {
        Ok(inserted) => Ok(inserted > 0),
        Err(error) if meaning::<DB>(&error) == Some(Meaning::Duplicate) => Ok(false),
        Err(error) => {
            let error = held.database.explain(&error);
            let refused = matches!(error, StoreError::Refused(_));
            let error = Error::from(error);
            Err(if refused { error.permanent() } else { error.uncounted() })
        }
    }
}
