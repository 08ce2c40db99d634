//! What a handler of `Tx<Postgres>` or `Tx<MySql>` has: a connection with a transaction of its own.
//!
//! First the inbox record is written: a concurrent duplicate waits there, and is skipped then. The fence is read last, under
//! a lock that keeps a new owner from raising it until the commit: locked first, a stopped process would keep the new owner
//! waiting; read first without a lock, an owner that was replaced meanwhile would commit all the same.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::batch::{self, Seat};
use super::errors::{Meaning, explain_handlers, meaning};
use super::outbox;
#[cfg(any(test, feature = "testing"))]
use super::planted::Planted;
use super::pool::Numbered;
use super::session::Within;
use super::{Isolation, Server, ServerDatabase};
use crate::broker::Receipt;
use crate::call::{Call, Origin};
use crate::error::{Error, Result, StoreError};
use crate::event::Event;
use crate::outcome::{BoxFuture, Unit};
use crate::store::sql::dialect::{Database, Value};
use crate::store::sql::outbox::{How, Outbox};
use crate::store::sql::store::{HomeCalls, SqlStore};
use crate::store::sql::tx::{Begun, Commits, Lends, TxDatabase};
use crate::topic::{Epoch, Position, Topic};

/// How long a transaction may take that is in no attempt with a deadline.
pub(super) const LONGEST: Duration = Duration::from_hours(1);

const EPOCHS: &str = "select id, epoch from aq_shards where id in_ints(?)";

/// How long a roll back may take.
const ROLLED_BACK: Duration = Duration::from_secs(5);

/// How long a transaction may stand still or a statement take, and how long a lock be waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) whole: Duration,
    pub(crate) lock: Duration,
}

impl Limits {
    /// Half of the time for locks: waiting for others must end before the attempt does, which would count.
    pub(super) fn until(deadline: Option<Instant>) -> Self {
        let left = deadline.map_or(LONGEST, |deadline| deadline.saturating_duration_since(Instant::now()));
        Self { whole: left, lock: left / 2 }
    }

    /// Some longer ones, which do for later attempts too; locks are waited for no longer.
    pub(super) fn for_longer(self) -> Self {
        let whole = self.whole * 9 / 8;
        Self { whole, lock: whole * 2 / 5 }
    }

    /// Whether these do for an attempt with others: they end it no earlier, and not much later.
    pub(super) fn suit(self, others: Self) -> bool {
        (others.whole..=others.whole * 5 / 4).contains(&self.whole)
    }
}

/// How the transaction of an attempt is begun.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Begin {
    pub(crate) isolation: Isolation,
    /// Nothing is written in it.
    pub(crate) reads: bool,
    /// What the session gets, if it has none that suit.
    pub(crate) limits: Option<Limits>,
    /// The session is another's afterwards.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "MySQL has no limits of a transaction alone"))]
    pub(crate) behind_pooler: bool,
}

/// What a handler of `Tx<Postgres>` or `Tx<MySql>` has. A handler that was cancelled may have been inside a statement: its
/// connection is closed, and never another's.
pub struct ServerTx<DB: Server> {
    pub(super) database: ServerDatabase<DB>,
    pub(super) entry: Entry,
    /// There until it is given back, with which it ends.
    pub(super) connection: Option<Numbered<DB>>,
    /// Where it is given back to if the transaction is shared.
    pub(super) seat: Option<Seat<DB>>,
    /// Nothing is written in it, so nothing is committed.
    pub(super) reads: bool,
}

impl<DB: Server> Deref for ServerTx<DB> {
    type Target = DB::Connection;

    fn deref(&self) -> &DB::Connection {
        match &self.connection {
            Some(Numbered { connection, .. }) => connection,
            None => unreachable!("it is given back only with the end of the transaction"),
        }
    }
}

impl<DB: Server> DerefMut for ServerTx<DB> {
    fn deref_mut(&mut self) -> &mut DB::Connection {
        match &mut self.connection {
            Some(Numbered { connection, .. }) => connection,
            None => unreachable!("it is given back only with the end of the transaction"),
        }
    }
}

impl<DB: Server> Unit for ServerTx<DB> {
    fn commit(mut self: Box<Self>) -> BoxFuture<'static, Result<()>> {
        Box::pin(async move {
            if let Some((seat, connection)) = self.shared() {
                return seat.done(connection).await;
            }
            if self.reads {
                self.roll_back();
                return Ok(());
            }
            let (fence, database) = (self.entry.fence(), self.database.clone());
            database.steps().reach("ends");
            #[cfg(any(test, feature = "testing"))]
            if database.steps().planted.is_some() {
                return DB::send(&mut *self, "commit".to_owned()).await.map(drop).map_err(|e| why(&database, &e));
            }
            let statement = database.one(DB::FENCE);
            let ended = DB::end(&mut *self, &statement, &[fence]).await.map_err(|e| why(&database, &e))?;
            match ended {
                Ended::Committed => {
                    self.has_effect(Entered::New);
                    self.give_back();
                }
                Ended::Replaced => {
                    // Before anything else: the fence is locked.
                    drop(self.connection.take());
                    let held = epochs(&database, vec![self.entry.shard]).await.unwrap_or_default();
                    return Err(self.entry.replaced(held.get(&self.entry.shard).copied()));
                }
                Ended::Before => return Err(Error::msg(ENDED).permanent()),
                Ended::Gone => return Err(Error::msg(GONE)),
            }
            Ok(())
        })
    }

    fn explain(&self, error: Error) -> Error {
        let known = error.downcast_ref::<sqlx::Error>().and_then(meaning::<DB>);
        if self.reads && known == Some(DB::READ_ONLY) {
            let text = format!("{WRITES} ({error})");
            return error.explained(text).permanent();
        }
        explain_handlers::<DB>(self.database.address(), error)
    }

    fn roll_back(mut self: Box<Self>) {
        if let Some((seat, connection)) = self.shared() {
            return seat.undone(connection);
        }
        tokio::spawn(async move {
            // A server that does not answer is waited for no longer than its connection is worth.
            let done = tokio::time::timeout(ROLLED_BACK, DB::send(&mut *self, "rollback".to_owned())).await;
            if let (Ok(Ok(_)), Some(connection)) = (done, &mut self.connection) {
                // They may have been taken back too.
                connection.limits = None;
                self.give_back();
            }
        });
    }
}

impl<DB: Server> ServerTx<DB> {
    /// The connection and where it is given back to, if it is shared.
    fn shared(&mut self) -> Option<(Seat<DB>, Numbered<DB>)> {
        let seat = self.seat.take()?;
        Some((seat, self.connection.take()?))
    }

    fn give_back(&mut self) {
        if let Some(connection) = self.connection.take() {
            self.database.pools().give_back(connection);
        }
    }

    /// The event has taken effect, as the connection says.
    fn has_effect(&self, entered: Entered) {
        if let Some(Numbered { number, .. }) = &self.connection {
            self.entry.has_effect(&self.database, self.database.pools().number_of(*number), entered);
        }
    }

    /// Writes the event into the inbox, if that is not done, and into the tables of other systems.
    async fn enter(&mut self, written: Option<bool>) -> Result<Entered> {
        #[cfg(any(test, feature = "testing"))]
        self.plant(Planted::LockedFirst).await?;
        let (database, entry) = (self.database.clone(), self.entry.clone());
        let entered = entry.enter(&database, self, written).await?;
        #[cfg(any(test, feature = "testing"))]
        self.plant(Planted::ReadFirst).await?;
        Ok(entered)
    }

    /// Looks at the fence here and not before the commit, if the test is about that.
    #[cfg(any(test, feature = "testing"))]
    async fn plant(&mut self, planted: Planted) -> Result<()> {
        let (database, (shard, epoch)) = (self.database.clone(), self.entry.fence());
        if database.steps().planted == Some(planted) {
            planted.check(&database, self, shard, epoch).await
        } else {
            Ok(())
        }
    }
}

/// Whether an event has taken effect before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Entered {
    New,
    /// The inbox has it already.
    Before,
    /// A table of another system has it, so it is nothing that this database must have.
    Elsewhere,
}

/// The attempt that a transaction is for.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) origin: Arc<Origin>,
    event: Arc<Event>,
    position: Position,
    /// Where the fence of its partition is.
    pub(super) shard: i64,
}

impl Entry {
    pub(super) fn fence(&self) -> (i64, Epoch) {
        (self.shard, self.origin.epoch)
    }

    /// The event has taken effect, as the connection with this number says.
    pub(super) fn has_effect<DB: Server>(&self, database: &ServerDatabase<DB>, number: u64, entered: Entered) {
        let effect = (self.origin.consumer.clone(), self.event.source.clone(), self.event.id.clone());
        database.floors().effect(number, effect, entered == Entered::New);
    }

    pub(super) fn replaced(&self, held: Option<i64>) -> Error {
        let Origin { partition, epoch, .. } = &*self.origin;
        let held = Epoch(held.unwrap_or(0).cast_unsigned());
        Error::from(StoreError::Fenced { partition: partition.clone(), held, ours: *epoch }).uncounted()
    }

    /// Writes the event into the inbox, unless it is known whether that was done, and into the tables of other systems. Where
    /// another has the same event in hand, it waits for the end of that.
    pub(super) async fn enter<DB: Server>(
        &self,
        database: &ServerDatabase<DB>,
        connection: &mut DB::Connection,
        written: Option<bool>,
    ) -> Result<Entered> {
        let written = if let Some(written) = written {
            Ok(written)
        } else {
            let row = self.row(database)?;
            DB::execute(connection, &database.one(DB::INBOX), row).await.map(|rows| rows > 0)
        };
        match written {
            Ok(true) => {}
            Ok(false) => return Ok(Entered::Before),
            Err(error) if meaning::<DB>(&error) == Some(Meaning::Duplicate) => return Ok(Entered::Before),
            Err(error) => return Err(unentered(database.explain(&error))),
        }
        let (tables, now) = (database.beside(), database.clock().now());
        let mut session = Within::new(database, connection);
        for table in &*tables {
            if table.enter(&mut session, &self.origin.partition, &self.event, now).await.map_err(unentered)? {
                return Ok(Entered::Elsewhere);
            }
        }
        Ok(Entered::New)
    }

    /// The row of the inbox, if it would be stored as it is.
    fn row<DB: Server>(&self, database: &ServerDatabase<DB>) -> Result<Vec<Value>> {
        let Origin { consumer, partition, .. } = &*self.origin;
        let row = vec![
            consumer.into(),
            (&self.event.source).into(),
            (&self.event.id).into(),
            Value::Text(partition.topic.clone().into()),
            i64::from(partition.index).into(),
            self.position.0.cast_signed().into(),
            database.clock().now().unix_ms().into(),
        ];
        DB::check(&row).map_err(unentered)?;
        Ok(row)
    }
}

/// The epochs in the database, by shard.
pub(super) async fn epochs<DB: Server>(
    database: &ServerDatabase<DB>,
    shards: Vec<i64>,
) -> Result<BTreeMap<i64, i64>, StoreError> {
    let rows = database.read().await?.fetch(EPOCHS, vec![Value::Ints(shards)]).await?;
    rows.iter().map(|row| Ok((row.int(0)?, row.int(1)?))).collect()
}

fn unentered(error: StoreError) -> Error {
    let refused = matches!(error, StoreError::Refused(_));
    let error = Error::from(error);
    if refused { error.permanent() } else { error.uncounted() }
}

/// Begins a transaction, and writes the event into the inbox where one message can do both: false if it was there, none if
/// that is yet to be done.
async fn begin<DB: Server>(
    database: &ServerDatabase<DB>,
    entry: &Entry,
    reads: bool,
    limits: Limits,
) -> Result<(Numbered<DB>, Option<bool>)> {
    let insert = if reads { None } else { DB::in_text(&database.one(DB::INBOX), entry.row(database)?) };
    let and = insert.as_deref().unwrap_or_default();
    let (connection, begun) = database.begin_attempt(reads, limits, and).await.map_err(unentered)?;
    match begun {
        Ok(rows) => Ok((connection, insert.map(|_| rows > 0))),
        Err(error) if meaning::<DB>(&error) == Some(Meaning::Duplicate) => Ok((connection, Some(false))),
        Err(error) => Err(unentered(database.explain(&error))),
    }
}

/// Who is told of steps inside a transaction, and a wrong fence: tests alone have either.
#[derive(Clone, Default)]
pub(crate) struct Steps {
    #[cfg(any(test, feature = "testing"))]
    told: Option<Arc<dyn Fn(&'static str) + Send + Sync>>,
    #[cfg(any(test, feature = "testing"))]
    pub(super) planted: Option<Planted>,
    #[cfg(any(test, feature = "testing"))]
    pub(super) group_time: Option<Duration>,
}

impl Steps {
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn told_to(&mut self, told: impl Fn(&'static str) + Send + Sync + 'static) {
        self.told = Some(Arc::new(told));
    }

    #[cfg_attr(not(any(test, feature = "testing")), expect(clippy::unused_self, reason = "there is nobody to tell"))]
    pub(super) fn group_time(&self) -> Duration {
        #[cfg(any(test, feature = "testing"))]
        if let Some(time) = self.group_time {
            return time;
        }
        batch::GROUP_TIME
    }

    #[cfg_attr(not(any(test, feature = "testing")), expect(clippy::unused_self, reason = "there is nobody to tell"))]
    pub(crate) fn reach(&self, step: &'static str) {
        #[cfg(any(test, feature = "testing"))]
        if let Some(told) = &self.told {
            told(step);
        }
        #[cfg(not(any(test, feature = "testing")))]
        let _ = step;
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ended {
    Committed,
    /// A fence has another epoch, or is not there.
    Replaced,
    /// By the handler itself, or by the database after an error of a statement, some time ago; it does not tell.
    #[cfg_attr(not(feature = "mysql"), expect(dead_code, reason = "PostgreSQL tells"))]
    Gone,
    /// By the handler itself, some time ago.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "MySQL does not tell"))]
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

const GONE: &str = "the transaction was over before its handler was: the database has given it up after an error of a statement, such as a deadlock, with which the handler went on, or the handler ended it itself. Return the error; no `commit` or `rollback` of its own, nor what implies one, as `create` and `truncate` do, but `tx.begin()`, and end that";

const WRITES: &str = "a handler writes in the transaction of a `ReadTx`: take `Tx` in its place";

pub(super) const GONE_ON: &str = "a statement of the handler failed, and the handler said that it is done all the same: the database has given the transaction up. Return the error, or run what may fail inside `tx.begin()`";

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
        commits: Commits,
    ) -> BoxFuture<'a, Result<Option<Begun<ServerTx<DB>>>>> {
        Box::pin(async move {
            let Some(store) = store.downcast_ref::<SqlStore<ServerDatabase<DB>>>() else {
                return Err(Error::msg(Self::LACKS));
            };
            let database = store.home();
            let shard = database.shard(&call.origin().consumer, &call.origin().partition).await;
            let shard = shard.map_err(|e| Error::from(e).uncounted())?;
            let (origin, event) = (Arc::clone(call.origin()), Arc::clone(call.event_arc()));
            let entry = Entry { origin, event, position: call.place().position, shard };
            if commits == Commits::Shared {
                return Ok(batch::lend(database, entry, call.deadline()).await?.map(|held| (held, None)));
            }
            let reads = commits == Commits::Nothing;
            let (connection, written) = begin(database, &entry, reads, Limits::until(call.deadline())).await?;
            database.steps().reach("begun");
            let (database, connection) = (database.clone(), Some(connection));
            let mut held = Box::new(ServerTx { database, entry, connection, seat: None, reads });
            if reads {
                return Ok(Some((*held, None)));
            }
            if let Err(error) = held.database.floors().check(shard) {
                held.roll_back();
                return Err(Error::from(error).uncounted());
            }
            match held.enter(written).await? {
                Entered::New => return Ok(Some((*held, None))),
                // Perhaps by a commit whose answer was lost.
                Entered::Before => held.has_effect(Entered::Before),
                Entered::Elsewhere => {}
            }
            held.roll_back();
            Ok(None)
        })
    }

    fn publish(held: &mut ServerTx<DB>, event: Event) -> BoxFuture<'_, Result<Option<Receipt>>> {
        Box::pin(async move {
            let outbox = Outbox::new(held.entry.origin.consumer.clone(), &held.database);
            outbox.publish(held, event).await
        })
    }

    fn write<'a>(
        home: &'a ServerDatabase<DB>,
        how: &'a How,
        transaction: &'a mut DB::Connection,
        events: Vec<(Topic, Event)>,
    ) -> BoxFuture<'a, Result<Vec<Option<Receipt>>>> {
        Box::pin(outbox::write(home, how, transaction, events))
    }
}
