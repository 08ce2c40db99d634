//! The connections to a server: those of the library's own work, and those of handlers, which cannot take all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Pool, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::errors::{Meaning, broken, explain, meaning};
use super::floors::Floors;
use super::tx::{Begin, Limits};
use super::{OptionsOf, Server, named};
use crate::error::StoreError;

/// Connections of the store, the relay and the leases.
const OWN_CONNECTIONS: u32 = 6;

/// How long a connection is waited for before the database counts as away.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// For how long it is known why there was no connection.
const FRESH: Duration = Duration::from_secs(1);

const NOT_BEGUN: &str = "the database did not begin a transaction in time";

pub(super) struct Pools<DB: Server> {
    own: Pool<DB>,
    handlers: Pool<DB>,
    options: OptionsOf<DB>,
    /// Where it is, without secrets.
    pub(super) address: String,
    /// A pooler hands out another connection for each transaction, so statements are not kept and nothing runs outside one.
    pub(super) behind_pooler: bool,
    /// Connections that handlers have given back in good order; the pool would ask each of them first.
    warm: Mutex<Vec<Warm<DB>>>,
    /// A handler has one of these before it asks for a connection: the pool knows nothing of those that were given back here.
    places: Arc<Semaphore>,
    /// How many connections have had a number.
    numbered: AtomicU64,
    /// What a connection of a handler prepares before its first attempt.
    prepare: Option<String>,
    /// Why there was no connection when somebody looked last.
    none_because: tokio::sync::Mutex<Option<(Instant, String)>>,
}

/// A connection of a handler, with a number that no other has. Unless it is given back it is closed with this: it may be inside
/// a transaction, or a statement.
pub(super) struct Numbered<DB: Server> {
    pub(super) connection: PoolConnection<DB>,
    pub(super) number: u64,
    /// Those of its session, if they are known.
    pub(super) limits: Option<Limits>,
    _place: OwnedSemaphorePermit,
}

/// A connection, and whether what was to be done on it is done.
pub(super) type Begun<DB> = (Numbered<DB>, Result<u64, sqlx::Error>);

/// A connection without a place, its number, and the limits of its session.
type Warm<DB> = (PoolConnection<DB>, u64, Option<Limits>);

/// A connection inside a transaction, or on the way into one. Dropped there, because nobody waits for it any more, it is
/// closed: the pool would hand it on with the transaction open, and with what it has locked.
pub(super) struct Open<DB: Server>(Option<PoolConnection<DB>>);

impl<DB: Server> Open<DB> {
    pub(super) fn new(connection: PoolConnection<DB>) -> Self {
        Self(Some(connection))
    }

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

impl<DB: Server> Pools<DB> {
    pub(super) fn new(
        options: OptionsOf<DB>,
        handlers: u32,
        behind_pooler: bool,
        floors: &Arc<Floors>,
        prefix: &str,
    ) -> Self {
        let options = options.disable_statement_logging();
        let options = if behind_pooler { DB::behind_pooler(options) } else { options };
        let address = DB::address(&options);
        // Behind a pooler a connection says nothing of the server that a transaction will be on.
        let looked_at = (!behind_pooler).then(|| Arc::new((Arc::clone(floors), prefix.to_owned(), address.clone())));
        let [fence, inbox] = [DB::FENCE, DB::INBOX].map(|text| named(prefix, &DB::translate(text)));
        let prepare = DB::prepare(&fence, &inbox).filter(|_| !behind_pooler);
        let pool = |count| {
            let looked_at = looked_at.clone();
            let pool = PoolOptions::new().max_connections(count).min_connections(0).acquire_timeout(PATIENCE);
            let pool = pool.after_connect(move |connection, _| {
                let looked_at = looked_at.clone();
                Box::pin(async move {
                    let Some((floors, prefix, address)) = looked_at.as_deref() else { return Ok(()) };
                    floors.look::<DB>(connection, prefix, address).await
                })
            });
            pool.test_before_acquire(false).connect_lazy_with(options.clone())
        };
        Self {
            own: pool(OWN_CONNECTIONS),
            handlers: pool(handlers),
            prepare,
            address,
            behind_pooler,
            warm: Mutex::default(),
            places: Arc::new(Semaphore::new(handlers as usize)),
            numbered: AtomicU64::new(0),
            options,
            none_because: tokio::sync::Mutex::default(),
        }
    }

    /// A connection for the library's own work, and whether it is certainly a new one.
    pub(super) async fn own(&self) -> Result<(PoolConnection<DB>, bool), StoreError> {
        self.acquire(&self.own).await
    }

    /// A connection of a handler: one that was given back in good order, or one of the pool. And whether a transaction was begun
    /// on it, and what goes with that done.
    pub(super) async fn begin_attempt(&self, begin: Begin, limits: Limits, and: &str) -> Result<Begun<DB>, StoreError> {
        let asked = Instant::now();
        let until = asked + limits.lock.min(PATIENCE * 2);
        let place = self.place(until.min(asked + PATIENCE)).await?;
        loop {
            let warm = self.warm.lock().pop();
            let ((connection, number, had), new) = if let Some(warm) = warm {
                (warm, false)
            } else {
                let acquired = timeout_at(until, self.acquire(&self.handlers)).await;
                let (mut connection, new) = acquired.map_err(|_| self.unavailable(NOT_BEGUN))??;
                connection.close_on_drop();
                ((connection, self.number(), None), new)
            };
            let has = had.filter(|had| had.suit(limits));
            let gets = if has.is_none() { Some(limits.for_longer()) } else { None };
            let sql = DB::begin_attempt(Begin { limits: gets, ..begin });
            let mut open = Open::new(connection);
            // What goes with it may wait for a lock, and is told when that took too long.
            let beginning = async {
                let connection: &mut DB::Connection = open.get().map_err(sqlx::Error::decode)?;
                if let Some(prepare) = self.prepare.as_ref().filter(|_| is_fresh::<DB>(connection)) {
                    DB::send(connection, prepare.clone()).await?;
                }
                begin_on::<DB>(connection, &sql, and).await
            };
            let done = match timeout_at(asked + limits.lock * 5 / 4, beginning).await {
                // The server has closed it since; then it has closed others too.
                Ok(Err(error)) if broken::<DB>(&error) && !new => continue,
                Ok(done) => done,
                Err(_) => {
                    self.warm.lock().clear();
                    return Err(self.unavailable(NOT_BEGUN));
                }
            };
            let limits = has.or(gets).filter(|_| !self.behind_pooler && done.is_ok());
            return Ok((Numbered { connection: open.ended()?, number, limits, _place: place }, done));
        }
    }

    /// Takes a connection back that is in good order: no transaction is open on it, and no answer outstanding.
    pub(super) fn give_back(&self, held: Numbered<DB>) {
        // A savepoint that was forgotten would be counted for ever.
        if DB::Manager::get_transaction_depth(&held.connection) <= 1 {
            // Before its place is free.
            self.warm.lock().push((held.connection, held.number, held.limits));
        }
    }

    /// The number of the connection that something was written on: behind a pooler it is another each time.
    pub(super) fn number_of(&self, number: u64) -> u64 {
        if self.behind_pooler { self.number() } else { number }
    }

    /// A number that no connection has.
    fn number(&self) -> u64 {
        self.numbered.fetch_add(1, Ordering::Relaxed)
    }

    /// One of the places for handlers, in the order in which they ask.
    async fn place(&self, until: Instant) -> Result<OwnedSemaphorePermit, StoreError> {
        match timeout_at(until, Arc::clone(&self.places).acquire_owned()).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(self.unavailable("all connections for handlers are in use, and none became free in time: allow more with `handler_connections`, or fewer handlers with `concurrency`")),
        }
    }

    /// One with a transaction begun on it. One that the server has closed meanwhile is replaced.
    pub(super) async fn begin_own(&self) -> Result<Open<DB>, StoreError> {
        loop {
            let (connection, new) = self.own().await?;
            let mut open = Open::new(connection);
            match begin_on::<DB>(open.get()?, DB::BEGIN, "").await {
                Ok(_) => return Ok(open),
                Err(error) if broken::<DB>(&error) && !new => {}
                Err(error) => return Err(explain::<DB>(&self.address, &error)),
            }
        }
    }

    async fn acquire(&self, pool: &Pool<DB>) -> Result<(PoolConnection<DB>, bool), StoreError> {
        let new = pool.num_idle() == 0;
        match pool.acquire().await {
            Ok(connection) => Ok((connection, new)),
            Err(sqlx::Error::PoolTimedOut) => Err(self.why_none().await),
            Err(error) => Err(explain::<DB>(&self.address, &error)),
        }
    }

    /// Why the pool had no connection: it does not say itself. Connects once outside of it, for all who want to know.
    async fn why_none(&self) -> StoreError {
        let mut known = self.none_because.lock().await;
        let recent = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, why)| why.clone());
        let why = match recent {
            Some(why) => why,
            None => match timeout(PATIENCE, self.options.connect()).await {
                Ok(Ok(connection)) => {
                    drop(connection);
                    format!("the store's own connections were all in use for {PATIENCE:?}")
                }
                Ok(Err(error)) => match meaning::<DB>(&error) {
                    Some(
                        Meaning::GivenUp(what) | Meaning::Gone(what) | Meaning::Passes(what) | Meaning::Stays(what),
                    ) => {
                        format!("{what} ({error})")
                    }
                    _ => format!(
                        "the database cannot be reached: is the database up, and is this its address? ({error})"
                    ),
                },
                Err(_) => format!("the database does not answer within {PATIENCE:?}"),
            },
        };
        let error = self.unavailable(&why);
        *known = Some((Instant::now(), why));
        error
    }

    pub(super) fn unavailable(&self, what: &str) -> StoreError {
        StoreError::Unavailable(format!("{}: {what}", self.address).into())
    }
}

/// Nothing is open on it, as sqlx counts.
fn is_fresh<DB: Server>(connection: &DB::Connection) -> bool {
    DB::Manager::get_transaction_depth(connection) == 0
}

/// sqlx counts what is open, so that `begin` inside a transaction makes a savepoint. On a handler's connection it counts one from
/// the first on, between transactions too: to be told of each end it sends a message of its own.
async fn begin_on<DB: Server>(connection: &mut DB::Connection, begin: &str, and: &str) -> Result<u64, sqlx::Error> {
    if !is_fresh::<DB>(connection) {
        return DB::send(connection, format!("{begin}; {and}")).await;
    }
    DB::Manager::begin(connection, Some(AssertSqlSafe(begin.to_owned()).into_sql_str())).await?;
    if and.is_empty() { Ok(0) } else { DB::send(connection, and.to_owned()).await }
}
