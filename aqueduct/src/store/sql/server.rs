//! A database server: its pool, its transactions, its migrations. What PostgreSQL and MySQL do differently is in their own
//! files, behind [`Server`].

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use sqlx::error::DatabaseError;
use sqlx::pool::{PoolConnection, PoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Pool, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;

use super::dialect::{Database, Session, SqlRow, Value, Work};
use super::ops::{SHARD, names};
use super::schema::Migrated;
use super::server_floors::Floors;
use super::server_inbox::{RETENTION, keep_house};
use super::server_outbox::Written;
use super::server_tx::{End, Ended, Limits, Open, Steps};
use super::store::{Home, HomeCalls, SqlStore};
use crate::clock::Clock;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::outbox::Hint;
use crate::store::{Claim, Standing};
use crate::topic::{Partition, Position, Text};

/// Connections of the store, the relay and the leases; handlers have their own, so that they cannot take all of them.
const OWN_CONNECTIONS: u32 = 6;

/// Connections for handlers, unless told otherwise.
const HANDLER_CONNECTIONS: u32 = 16;

/// How long a connection is waited for before the database counts as away.
const PATIENCE: Duration = Duration::from_secs(5);

/// The version of the tables that this program knows.
const KNOWN: u32 = 2;

/// How often a transaction is tried again that the database has given up for the sake of another.
const TRIES: u32 = 8;

/// A server's database that Aqueduct can live in: [`Postgres`](sqlx::Postgres) with the feature `postgres`,
/// [`MySql`](sqlx::MySql) with the feature `mysql`. It is not for others.
#[expect(private_bounds, reason = "what a database does differently is the library's own")]
pub trait Server: Calls {}

/// What databases do differently.
pub(crate) trait Calls: sqlx::Database + Sized {
    type Manager: TransactionManager<Database = Self>;

    /// How a URL of it looks.
    const URL: &'static str;

    /// The schema of this version of the library, and how each version before becomes the next.
    const MIGRATIONS: [&'static str; KNOWN as usize];

    /// Begins a transaction of the library's own: each statement reads what is committed by then.
    const BEGIN: &'static str;

    /// Keeps others from migrating at the same time, until the transaction or the connection ends.
    const LOCK: &'static str;

    /// No statement is prepared for longer than its transaction.
    fn behind_pooler(options: OptionsOf<Self>) -> OptionsOf<Self>;

    /// Host, port and database, without secrets.
    fn address(options: &OptionsOf<Self>) -> String;

    /// One statement of the library's own as this database has it.
    fn translate(statement: &str) -> String;

    fn execute<'a>(
        connection: &'a mut Self::Connection,
        statement: &'a Statement,
        args: Vec<Value>,
    ) -> BoxFuture<'a, Result<u64, sqlx::Error>>;

    fn fetch<'a>(
        connection: &'a mut Self::Connection,
        statement: &'a Statement,
        args: Vec<Value>,
    ) -> BoxFuture<'a, Result<Vec<SqlRow>, sqlx::Error>>;

    /// Runs statements as they are, without arguments.
    fn run(connection: &mut Self::Connection, sql: String) -> BoxFuture<'_, Result<(), sqlx::Error>>;

    /// What a service lacks whose store is none of this database.
    const LACKS_STORE: &'static str;

    /// Writes an event into the inbox; changes nothing, or fails as a duplicate, if it is there.
    const INBOX: &'static str;

    /// Deletes from the inbox a thousand effects from before a time that nobody can ask for again.
    const SWEEP: &'static str;

    /// Answers about how many effects the inbox holds, without counting.
    const INBOX_ABOUT: &'static str;

    /// Locks the fence and compares it; for [`end`](Self::end) alone.
    const FENCE: &'static str;

    /// Begins the transaction of an attempt.
    fn begin_attempt(isolation: Isolation, limits: Limits) -> String;

    /// Commits the transaction of an attempt, if its owner has not been replaced: no new owner can raise the fence between
    /// the look at it and the commit.
    fn end<'a>(
        connection: &'a mut Self::Connection,
        fence: &'a Statement,
        end: End,
        steps: &'a Steps,
    ) -> BoxFuture<'a, Result<Ended, sqlx::Error>>;

    /// Waits for these locks until they are this transaction's; its end lets them go.
    fn lock_keys<'a>(
        connection: &'a mut Self::Connection,
        prefix: &'a str,
        keys: Vec<i64>,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>>;

    /// Writes rows of the outbox, in their order, with as few statements as can be.
    fn insert_events<'a>(
        connection: &'a mut Self::Connection,
        prefix: &'a str,
        rows: Vec<Written>,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>>;

    /// What an error of the database means; none if it is none that is known.
    fn meaning(error: &dyn DatabaseError) -> Option<Meaning>;
}

/// What a connection is made with.
pub(crate) type OptionsOf<DB> = <<DB as sqlx::Database>::Connection as sqlx::Connection>::Options;

/// What an error of a database means, and what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// The transaction was given up for another's sake: the same again can succeed.
    GivenUp(&'static str),
    /// The connection is of no use any more.
    Gone(&'static str),
    /// There is no such table.
    Missing,
    /// What was to be inserted is there.
    Duplicate,
    /// A statement of the transaction failed before, and nothing more can be done in it. `PostgreSQL` alone does that.
    #[cfg_attr(not(feature = "postgres"), expect(dead_code, reason = "only PostgreSQL says so"))]
    Aborted,
    /// It passes by itself, or when somebody does this.
    Passes(&'static str),
    /// The same will fail again, until somebody does this.
    Stays(&'static str),
}

/// The statements of one text.
type Statements = Arc<[Statement]>;

/// A statement that is translated, and how many arguments it takes.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(super) sql: Arc<str>,
    pub(super) args: usize,
}

/// A database on a server, with Aqueduct's tables in it. Clones share its connections.
///
/// It has two pools: one for the store, the relay and the leases, and one for handlers that take a transaction, so that
/// busy handlers cannot keep a lease from being renewed. The tables begin with a prefix, `aq_` unless it is changed.
pub struct ServerDatabase<DB: Server>(Arc<Shared<DB>>);

/// A database that is not kept from being closed.
pub(super) struct Unowned<DB: Server>(Weak<Shared<DB>>);

struct Shared<DB: Server> {
    own: Pool<DB>,
    handlers: Pool<DB>,
    /// Where it is, without secrets.
    address: String,
    prefix: String,
    clock: Clock,
    isolation: Isolation,
    /// The ids of shards that were taken over.
    shards: RwLock<BTreeMap<(Text, Partition), i64>>,
    /// A pooler hands out another connection for each transaction, so statements are not kept and nothing runs outside one.
    behind_pooler: bool,
    floors: Floors,
    hint: Hint,
    retention: Duration,
    steps: Steps,
    /// Texts that were translated, by where they are: they are all the library's own and live as long as the program.
    translated: RwLock<BTreeMap<(usize, usize), Statements>>,
    /// Connections that handlers have given back in good order; the pool would ask each of them first.
    warm: Mutex<Vec<PoolConnection<DB>>>,
}

/// What a handler's transaction sees of others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Isolation {
    /// Each statement sees what is committed by then. The default.
    #[default]
    ReadCommitted,
    /// All statements see what was committed before the first of them.
    RepeatableRead,
    /// As if handlers ran one after another. The database gives transactions up for that; their handlers run again, which
    /// spends no attempt.
    Serializable,
}

/// How a database is opened; made by [`ServerDatabase::options`].
#[must_use = "nothing is opened until `connect` is awaited"]
pub struct ServerOptions<DB: Server> {
    /// None if the URL cannot be read: its error may repeat it, with its password.
    options: Option<OptionsOf<DB>>,
    handlers: u32,
    prefix: String,
    clock: Clock,
    isolation: Isolation,
    migrate: bool,
    behind_pooler: bool,
    retention: Duration,
    steps: Steps,
}

impl<DB: Server> ServerOptions<DB> {
    /// How many handlers can have a transaction at the same time; give the database as many connections, and six more for the
    /// store and the relay. Handlers beyond it wait for one. Defaults to 16.
    pub fn handler_connections(mut self, count: u32) -> Self {
        self.handlers = count.max(1);
        self
    }

    /// What the names of all tables begin with; with a schema (PostgreSQL) or a database (MySQL) before a dot if they are to
    /// be in another than the connection's. Letters, digits and `_`. Defaults to `aq_`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Leaves the tables alone: they were made by `aqueduct migrate`, or from the SQL that it prints. Connecting fails if they are
    /// missing or older than this program. Defaults to creating them and bringing them to this version.
    pub fn without_migrating(mut self) -> Self {
        self.migrate = false;
        self
    }

    /// Says that a pooler is between this program and the database that gives each transaction another connection, such as
    /// `PgBouncer` in transaction mode: then no statement is prepared for longer, and nothing runs outside a transaction.
    /// Defaults to a connection of one's own.
    pub fn behind_pooler(mut self) -> Self {
        self.behind_pooler = true;
        self
    }

    /// What handlers' transactions see of others. Defaults to [`Isolation::ReadCommitted`].
    pub fn isolation(mut self, isolation: Isolation) -> Self {
        self.isolation = isolation;
        self
    }

    /// Where times and ids come from. Defaults to the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// How long an effect is remembered at least by the identity of its event. One that was published again later, as a new
    /// message, takes effect again; a delivery of the same message never does. Defaults to 7 days.
    pub fn inbox_retention(mut self, retention: Duration) -> Self {
        self.retention = retention;
        self
    }

    /// Is told of each step inside a handler's transaction that no port shows, so that a test can end its process there.
    #[cfg(any(test, feature = "testing"))]
    pub fn steps(mut self, told: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        self.steps = Steps::told_to(told);
        self
    }

    /// Connects, and looks whether the tables are there.
    pub async fn connect(self) -> Result<ServerDatabase<DB>, StoreError> {
        let migrate = self.migrate;
        let database = self.open()?;
        if migrate {
            database.migrate().await?;
        } else {
            database.check_schema().await?;
        }
        tokio::spawn(keep_house(Unowned(Arc::downgrade(&database.0))));
        Ok(database)
    }

    /// Brings the tables to this version, for programs that leave them alone, and says which version they had.
    pub async fn migrate(self) -> Result<Migrated, StoreError> {
        self.open()?.migrate().await
    }

    fn open(self) -> Result<ServerDatabase<DB>, StoreError> {
        check_prefix(&self.prefix)?;
        let Some(options) = self.options else {
            let text = format!("the URL of the {} database cannot be read: it is like {}", DB::NAME, DB::URL);
            return Err(StoreError::Refused(text));
        };
        let options = options.disable_statement_logging();
        let options = if self.behind_pooler { DB::behind_pooler(options) } else { options };
        let address = DB::address(&options);
        let pool = |count| {
            PoolOptions::new()
                .max_connections(count)
                .min_connections(0)
                .acquire_timeout(PATIENCE)
                .test_before_acquire(false)
                .connect_lazy_with(options.clone())
        };
        Ok(ServerDatabase(Arc::new(Shared {
            own: pool(OWN_CONNECTIONS),
            handlers: pool(self.handlers),
            address,
            prefix: self.prefix,
            clock: self.clock,
            isolation: self.isolation,
            behind_pooler: self.behind_pooler,
            shards: RwLock::default(),
            floors: Floors::default(),
            hint: Hint::default(),
            retention: self.retention,
            steps: self.steps,
            translated: RwLock::default(),
            warm: Mutex::default(),
        })))
    }
}

/// A prefix goes into statements as it is.
fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    let (schema, name) = prefix.rsplit_once('.').unwrap_or(("a", prefix));
    let plain = |part: &str| part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && part.len() <= 30;
    let begins = |part: &str| part.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    if plain(schema) && plain(name) && begins(schema) && (name.is_empty() || begins(name)) && !prefix.is_empty() {
        return Ok(());
    }
    Err(StoreError::Refused(format!(
        "the prefix {prefix:?} cannot begin the names of tables: use letters, digits and `_`, and perhaps a schema before a dot, such as `events.aq_`"
    )))
}

impl<DB: Server> ServerDatabase<DB> {
    /// Connects with the default options, and brings the tables to this version.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, StoreError> {
        Self::options(url).connect().await
    }

    /// Options for a database that is to be connected to.
    pub fn options(url: impl AsRef<str>) -> ServerOptions<DB> {
        ServerOptions {
            options: url.as_ref().parse().ok(),
            handlers: HANDLER_CONNECTIONS,
            prefix: "aq_".to_owned(),
            clock: Clock::system(),
            isolation: Isolation::default(),
            migrate: true,
            behind_pooler: false,
            retention: RETENTION,
            steps: Steps::default(),
        }
    }

    /// The SQL that makes the tables, in steps: the first makes those of version 1, each one after it brings them to the next.
    /// For who runs their own migrations.
    pub fn migrations(prefix: &str) -> Result<Vec<String>, StoreError> {
        check_prefix(prefix)?;
        Ok((1..).zip(DB::MIGRATIONS).map(|(to, sql)| step(prefix, sql, to)).collect())
    }

    /// What the names of tables begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.0.prefix
    }

    /// Brings the tables to this version, and says which one they had; safe while programs of the version before are running,
    /// and when several do it at the same time.
    pub async fn migrate(&self) -> Result<Migrated, StoreError> {
        if self.version().await? == KNOWN {
            return Ok(Migrated { from: KNOWN, to: KNOWN });
        }
        let mut connection = self.acquire(&self.0.own).await?;
        // Closing it ends whatever is open, and lets the lock go.
        connection.close_on_drop();
        let run = async |connection: &mut PoolConnection<DB>, sql: String| {
            DB::run(connection, sql).await.map_err(|e| self.explain(&e))
        };
        run(&mut connection, format!("{}; {}", DB::BEGIN, DB::LOCK)).await?;
        // Another may have done it while this one waited.
        let found = self.version().await?;
        compare(found)?;
        for (to, sql) in (1..).zip(DB::MIGRATIONS).skip(found as usize) {
            run(&mut connection, step(&self.0.prefix, sql, to)).await?;
        }
        run(&mut connection, "commit".to_owned()).await?;
        Ok(Migrated { from: found, to: KNOWN })
    }

    /// Refuses tables that are missing, older or newer.
    async fn check_schema(&self) -> Result<(), StoreError> {
        let found = self.version().await?;
        compare(found)?;
        if found < KNOWN {
            return Err(StoreError::Refused(format!(
                "{}: the tables have version {found} and this program needs {}: run `aqueduct migrate`, or the SQL that it prints",
                self.0.address, KNOWN
            )));
        }
        Ok(())
    }

    /// The version of the tables; 0 if there are none.
    async fn version(&self) -> Result<u32, StoreError> {
        let mut connection = self.acquire(&self.0.own).await?;
        let sql = format!("select max(version) from {}schema", self.0.prefix);
        let statement = Statement { sql: sql.into(), args: 0 };
        let rows = match DB::fetch(&mut connection, &statement, vec![]).await {
            Ok(rows) => rows,
            Err(error) if meaning::<DB>(&error) == Some(Meaning::Missing) => return Ok(0),
            Err(error) => return Err(self.explain(&error)),
        };
        let version = rows.first().map(|row| row.int_or_null(0)).transpose()?.flatten();
        Ok(u32::try_from(version.unwrap_or(0)).unwrap_or(0))
    }

    async fn acquire(&self, pool: &Pool<DB>) -> Result<PoolConnection<DB>, StoreError> {
        pool.acquire().await.map_err(|e| self.explain(&e))
    }

    /// A connection with the transaction of an attempt begun on it: one that was given back in good order, or one of the pool.
    pub(super) async fn begin_attempt(&self, limits: Limits) -> Result<PoolConnection<DB>, StoreError> {
        let begin = DB::begin_attempt(self.0.isolation, limits);
        loop {
            let warm = self.0.warm.lock().pop();
            let Some(connection) = warm else {
                return self.begun(&self.0.handlers, begin).await.map_err(|failed| failed.error);
            };
            let mut connection = Open(Some(connection));
            // One that fails was closed by the server since; then it has closed others too.
            if begin_on::<DB>(connection.get()?, &begin).await.is_ok() {
                return connection.ended();
            }
        }
    }

    /// The id of a shard that has been taken over.
    pub(super) async fn shard(&self, consumer: &Text, partition: &Partition) -> Result<i64, StoreError> {
        let name = (consumer.clone(), partition.clone());
        if let Some(known) = self.0.shards.read().get(&name) {
            return Ok(*known);
        }
        let found = self.read().await?.fetch(SHARD, names(consumer, partition)).await?;
        let Some(row) = found.first() else {
            let text = format!("nobody has taken over {partition} for {consumer} in {}", self.0.address);
            return Err(StoreError::Unavailable(text.into()));
        };
        let id = row.int(0)?;
        self.0.shards.write().insert(name, id);
        Ok(id)
    }

    /// A statement of the library's own that stands alone.
    pub(super) fn one(&self, text: &'static str) -> Statement {
        match &*self.translated(text) {
            [one] => one.clone(),
            _ => Statement { sql: text.into(), args: 0 },
        }
    }

    pub(super) fn floors(&self) -> &Floors {
        &self.0.floors
    }

    pub(super) fn retention(&self) -> Duration {
        self.0.retention
    }

    pub(super) fn steps(&self) -> &Steps {
        &self.0.steps
    }

    /// Takes a connection back that is in good order: no transaction is open on it, and no answer outstanding.
    pub(super) fn give_back(&self, connection: PoolConnection<DB>) {
        self.0.warm.lock().push(connection);
    }

    /// A text of the library's own as this database has it, statement by statement.
    pub(super) fn translated(&self, text: &'static str) -> Arc<[Statement]> {
        let place = (text.as_ptr() as usize, text.len());
        if let Some(known) = self.0.translated.read().get(&place) {
            return Arc::clone(known);
        }
        let statements = text.split(';').filter(|part| !part.trim().is_empty());
        let statements: Arc<[Statement]> = statements.map(|part| self.statement(part)).collect();
        self.0.translated.write().insert(place, Arc::clone(&statements));
        statements
    }

    fn statement(&self, text: &str) -> Statement {
        let args = text.matches('?').count();
        let sql = named(&self.0.prefix, &DB::translate(text));
        Statement { sql: sql.trim().into(), args }
    }

    pub(super) fn explain(&self, error: &sqlx::Error) -> StoreError {
        explain::<DB>(&self.0.address, error)
    }

    /// One try at a transaction of the library's own.
    async fn transaction(&self, work: &mut dyn Work) -> Result<(), Failed> {
        let mut open = Open(Some(self.begun(&self.0.own, DB::BEGIN.to_owned()).await?));
        let connection = open.get()?;
        let mut session = Within { database: self, connection, failed: None };
        let done = work.run(&mut session).await;
        let failed = session.failed.take();
        let (ended, done) = match done {
            Ok(()) => {
                let committed = DB::Manager::commit(connection).await;
                (committed.is_ok(), committed.map_err(|e| self.failed(&e)))
            }
            Err(error) => {
                let again = failed.is_some_and(|meaning| matches!(meaning, Meaning::GivenUp(_)));
                (DB::Manager::rollback(connection).await.is_ok(), Err(Failed { error, again }))
            }
        };
        if ended {
            open.ended()?;
        }
        done
    }

    /// A connection with a transaction begun on it. One that the server has closed meanwhile is replaced.
    async fn begun(&self, pool: &Pool<DB>, begin: String) -> Result<PoolConnection<DB>, Failed> {
        loop {
            let mut open = Open(Some(pool.acquire().await.map_err(|e| self.failed(&e))?));
            let done = begin_on::<DB>(open.get()?, &begin).await;
            let Err(error) = done else { return Ok(open.ended()?) };
            drop(open);
            if !broken::<DB>(&error) || pool.num_idle() == 0 {
                return Err(self.failed(&error));
            }
        }
    }

    fn failed(&self, error: &sqlx::Error) -> Failed {
        let again = matches!(meaning::<DB>(error), Some(Meaning::GivenUp(_)));
        Failed { error: self.explain(error), again }
    }
}

fn compare(found: u32) -> Result<(), StoreError> {
    if found > KNOWN { Err(StoreError::TooNew { found, known: KNOWN }) } else { Ok(()) }
}

async fn begin_on<DB: Server>(connection: &mut DB::Connection, begin: &str) -> Result<(), sqlx::Error> {
    DB::Manager::begin(connection, Some(AssertSqlSafe(begin.to_owned()).into_sql_str())).await
}

/// Why a try at a transaction failed, and whether another may succeed.
struct Failed {
    error: StoreError,
    again: bool,
}

impl From<StoreError> for Failed {
    fn from(error: StoreError) -> Self {
        Self { error, again: false }
    }
}

/// One step of the migrations, with the note of the version that it leads to.
fn step(prefix: &str, sql: &str, to: u32) -> String {
    let first = if to == 1 { "create table aq_schema (version bigint not null);\n" } else { "" };
    named(prefix, &format!("{sql}{first}insert into aq_schema (version) values ({to});\n"))
}

/// Puts the prefix before the names of tables. An index is in the schema of its table by itself.
fn named(prefix: &str, sql: &str) -> String {
    if prefix == "aq_" {
        return sql.to_owned();
    }
    let name = prefix.rsplit_once('.').map_or(prefix, |(_, name)| name);
    sql.replace("index aq_", "index @_").replace("aq_", prefix).replace("@_", name)
}

/// The connection is of no use any more.
pub(super) fn broken<DB: Server>(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) | sqlx::Error::WorkerCrashed => true,
        _ => matches!(meaning::<DB>(error), Some(Meaning::Gone(_))),
    }
}

pub(super) fn meaning<DB: Server>(error: &sqlx::Error) -> Option<Meaning> {
    match error {
        sqlx::Error::Database(error) => DB::meaning(&**error),
        _ => None,
    }
}

/// Says what is wrong and what to do about it. What can pass by itself is unavailable; what cannot is refused.
fn explain<DB: Server>(address: &str, error: &sqlx::Error) -> StoreError {
    let unavailable = |text: String| StoreError::Unavailable(text.into());
    match (meaning::<DB>(error), error) {
        (Some(Meaning::GivenUp(what) | Meaning::Gone(what) | Meaning::Passes(what)), _) => {
            unavailable(format!("{address}: {what} ({error})"))
        }
        (Some(Meaning::Missing), _) => unavailable(format!(
            "{address}: a table of Aqueduct is missing, was it dropped? Run `aqueduct migrate` ({error})"
        )),
        (Some(Meaning::Stays(what)), _) => StoreError::Refused(format!("{address}: {what} ({error})")),
        (None, sqlx::Error::PoolTimedOut) => unavailable(format!(
            "{address}: no connection was free, or could be had, for {PATIENCE:?}: is the database up, and does it allow enough connections?"
        )),
        (None, sqlx::Error::Io(_)) => {
            unavailable(format!("{address}: the database cannot be reached, or has closed the connection ({error})"))
        }
        (None, sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. } | sqlx::Error::RowNotFound) => {
            StoreError::Refused(format!("{address}: what is stored is not what was written ({error})"))
        }
        _ => unavailable(format!("{address}: {error}")),
    }
}

impl<DB: Server> Unowned<DB> {
    /// The database, if somebody has it still.
    pub(super) fn upgrade(&self) -> Option<ServerDatabase<DB>> {
        self.0.upgrade().map(ServerDatabase)
    }
}

impl<DB: Server> Clone for ServerDatabase<DB> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<DB: Server> std::fmt::Debug for ServerDatabase<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple(DB::NAME).field(&self.0.address).finish()
    }
}

impl<DB: Server> std::fmt::Debug for ServerOptions<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerOptions").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<DB: Server> Home for ServerDatabase<DB> {
    type Sql = DB;
}

impl<DB: Server> HomeCalls for ServerDatabase<DB> {
    const SHARDS: u32 = 16;

    fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn hint(&self) -> &Hint {
        &self.0.hint
    }

    fn resume<'a>(&'a self, claim: &'a Claim, at: &'a Standing) -> BoxFuture<'a, Result<Option<Position>, StoreError>> {
        Box::pin(self.resume(claim, at))
    }

    fn settled<'a>(&'a self, claim: &'a Claim, floor: Position) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.settled(claim, floor))
    }

    fn applied(&self, row: Option<[i64; 4]>) {
        self.0.floors.row(row);
    }
}

impl<DB: Server> SqlStore<ServerDatabase<DB>> {
    /// Connects to a database with the default options, and brings its tables to this version.
    pub async fn connect(url: impl AsRef<str>) -> Result<Self, StoreError> {
        Ok(Self::new(&ServerDatabase::connect(url).await?))
    }
}

impl<DB: Server> Database for ServerDatabase<DB> {
    fn write(&self, mut work: Box<dyn Work>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            let mut tries = 1;
            loop {
                match self.transaction(&mut *work).await {
                    Err(failed) if failed.again && tries < TRIES => tries += 1,
                    done => return done.map_err(|failed| failed.error),
                }
            }
        })
    }

    fn read(&self) -> BoxFuture<'_, Result<Box<dyn Session>, StoreError>> {
        Box::pin(async move {
            let connection = if self.0.behind_pooler {
                self.begun(&self.0.own, DB::BEGIN.to_owned()).await.map_err(|failed| failed.error)?
            } else {
                self.acquire(&self.0.own).await?
            };
            Ok(Box::new(Reading { database: self.clone(), connection: Some(connection) }) as Box<dyn Session>)
        })
    }
}

/// The connection of a transaction while work runs on it.
struct Within<'c, DB: Server> {
    database: &'c ServerDatabase<DB>,
    connection: &'c mut DB::Connection,
    /// What the error of the statement meant that failed.
    failed: Option<Meaning>,
}

/// A connection to read on.
struct Reading<DB: Server> {
    database: ServerDatabase<DB>,
    /// There until it is given back.
    connection: Option<PoolConnection<DB>>,
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
        if !broken::<DB>(error) || self.database.0.behind_pooler {
            return Err(self.database.explain(error));
        }
        self.connection = Some(self.database.acquire(&self.database.0.own).await?);
        Ok(())
    }

    fn connection(&mut self) -> Result<&mut PoolConnection<DB>, StoreError> {
        self.connection.as_mut().ok_or_else(|| StoreError::Unavailable("the connection was lost".into()))
    }
}

impl<DB: Server> Drop for Reading<DB> {
    fn drop(&mut self) {
        if let Some(connection) = &mut self.connection
            && self.database.0.behind_pooler
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
