//! A database server: its pool, its transactions, its migrations. What PostgreSQL and MySQL do differently is in their own
//! files, behind [`Server`].

mod batch;
mod errors;
mod floors;
mod inbox;
#[cfg(feature = "mysql")]
mod mysql;
mod outbox;
#[cfg(any(test, feature = "testing"))]
mod planted;
mod pool;
#[cfg(feature = "postgres")]
mod postgres;
mod session;
mod tx;

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::RwLock;
use sqlx::error::DatabaseError;
use sqlx::pool::PoolConnection;
use sqlx_core::transaction::TransactionManager;

use super::beside::Beside;
use super::dialect::{Database, Session, SqlRow, Value, Work};
use super::ops::{SHARD, names};
use super::schema::Migrated;
use super::store::{Home, HomeCalls, SqlStore};
use crate::clock::Clock;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::outbox::Hint;
use crate::store::{Applied, Claim, Op, Standing};
use crate::topic::{Epoch, Partition, Position, Text};
use batch::Queue;
use errors::{Meaning, explain, meaning};
use floors::Floors;
use inbox::{RETENTION, keep_house};
use outbox::Written;
use pool::{Begun, Pools};
use tx::{Begin, Ended, Limits, Steps};

pub use inbox::{Forget, InboxStatus};
#[cfg(feature = "mysql")]
pub use mysql::{MySqlDatabase, MySqlOptions, MySqlStore};
#[cfg(any(test, feature = "testing"))]
pub use planted::Planted;
#[cfg(feature = "postgres")]
pub use postgres::{PgDatabase, PgOptions, PgStore};
pub use tx::ServerTx;

/// Connections of handlers, unless told otherwise.
const HANDLER_CONNECTIONS: u32 = 16;

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
    fn run(connection: &mut Self::Connection, sql: String) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async move { Self::send(connection, sql).await.map(drop) })
    }

    /// What a service lacks whose store is none of this database.
    const LACKS_STORE: &'static str;

    /// Writes an event into the inbox; changes nothing, or fails as a duplicate, if it is there.
    const INBOX: &'static str;

    /// Deletes from the inbox a thousand effects from before a time that nobody can ask for again.
    const SWEEP: &'static str;

    /// Answers about how many effects the inbox holds, without counting.
    const INBOX_ABOUT: &'static str;

    /// Locks a fence and compares it; for [`end`](Self::end) alone.
    const FENCE: &'static str;

    /// How connections of handlers prepare these, if they do so by name.
    fn prepare(_fence: &str, _inbox: &str) -> Option<String> {
        None
    }

    /// Begins the transaction of an attempt.
    fn begin_attempt(begin: Begin) -> String;

    /// [`INBOX`](Self::INBOX) with its arguments in its text, which can go with others in one message; none if they cannot be
    /// there.
    fn in_text(insert: &Statement, args: Vec<Value>) -> Option<String>;

    /// Refuses a row of the inbox that would not be stored as it is.
    fn check(_inbox: &[Value]) -> Result<(), StoreError> {
        Ok(())
    }

    /// Sends statements of the library's own that take no arguments in one message, as they are. Answers how many rows they
    /// have changed.
    fn send(connection: &mut Self::Connection, sql: String) -> BoxFuture<'_, Result<u64, sqlx::Error>>;

    /// Commits the transaction of attempts, if no owner of theirs has been replaced: no new owner can raise a fence between
    /// the look at it and the commit. Both go in one message, so that no process is stopped in between with a fence locked.
    fn end<'a>(
        connection: &'a mut Self::Connection,
        fence: &'a Statement,
        fences: &'a [(i64, Epoch)],
    ) -> BoxFuture<'a, Result<Ended, sqlx::Error>>;

    /// Waits for these locks until they are this transaction's; its end lets them go.
    fn lock_keys<'a>(
        connection: &'a mut Self::Connection,
        prefix: &'a str,
        keys: Vec<i64>,
        kept: bool,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>>;

    /// Writes rows of the outbox, in their order, with as few statements as can be; `kept`: they may be prepared for longer.
    fn insert_events<'a>(
        connection: &'a mut Self::Connection,
        prefix: &'a str,
        rows: Vec<Written>,
        kept: bool,
    ) -> BoxFuture<'a, Result<(), sqlx::Error>>;

    /// Nothing can be written.
    const READ_ONLY: Meaning;

    /// What an error of the database means; none if it is none that is known.
    fn meaning(error: &dyn DatabaseError) -> Option<Meaning>;
}

/// What a connection is made with.
pub(crate) type OptionsOf<DB> = <<DB as sqlx::Database>::Connection as sqlx::Connection>::Options;

/// The statements of one text.
type Statements = Arc<[Statement]>;

/// A statement that is translated, and how many arguments it takes.
#[derive(Clone, Debug)]
pub(crate) struct Statement {
    pub(super) sql: Arc<str>,
    pub(super) args: usize,
    /// It is prepared for as long as the connection lives; behind a pooler nothing is.
    pub(super) kept: bool,
}

impl Statement {
    /// One that stands alone, and is not prepared for longer.
    pub(super) fn once(sql: &str) -> Self {
        Self { sql: sql.trim().into(), args: sql.matches('?').count(), kept: false }
    }
}

/// A database on a server, with Aqueduct's tables in it. Clones share its connections.
///
/// It has two pools: one for the store, the relay and the leases, and one for handlers that take a transaction, so that
/// busy handlers cannot keep a lease from being renewed. The tables begin with a prefix, `aq_` unless it is changed.
pub struct ServerDatabase<DB: Server>(Arc<Shared<DB>>);

/// A database that is not kept from being closed.
pub(super) struct Unowned<DB: Server>(Weak<Shared<DB>>);

struct Shared<DB: Server> {
    pools: Pools<DB>,
    prefix: String,
    clock: Clock,
    isolation: Isolation,
    /// The ids of shards that were taken over.
    shards: RwLock<BTreeMap<(Text, Partition), i64>>,
    floors: Arc<Floors>,
    hint: Hint,
    batch: Queue<DB>,
    retention: Duration,
    steps: Steps,
    beside: Arc<[Arc<dyn Beside>]>,
    /// Texts that were translated, by where they are: they are all the library's own and live as long as the program.
    translated: RwLock<BTreeMap<(usize, usize), Statements>>,
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

impl Isolation {
    fn sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "read committed",
            Self::RepeatableRead => "repeatable read",
            Self::Serializable => "serializable",
        }
    }
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
    beside: Vec<Arc<dyn Beside>>,
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
    ///
    /// The trap: a handler's own statements are prepared by name, which a pooler mixes up, unless they are made with
    /// `sqlx::query(..).persistent(false)`, or the pooler knows such statements, as `PgBouncer` does from 1.21 on with
    /// `max_prepared_statements`.
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

    /// Keeps a table of another system in the same transactions.
    pub(crate) fn beside(mut self, table: impl Beside) -> Self {
        self.beside.push(Arc::new(table));
        self
    }

    /// Is told of each step inside a transaction that no port shows, so that a test can end or stop its process there.
    #[cfg(any(test, feature = "testing"))]
    pub fn steps(mut self, told: impl Fn(&'static str) + Send + Sync + 'static) -> Self {
        self.steps.told_to(told);
        self
    }

    /// Fences handlers' transactions in a wrong way, for the test that is to find it.
    #[cfg(any(test, feature = "testing"))]
    #[doc(hidden)]
    pub fn planted(mut self, planted: self::planted::Planted) -> Self {
        self.steps.planted = Some(planted);
        self
    }

    /// How long handlers may join a transaction that they share, for tests of what such a group has in common.
    #[cfg(any(test, feature = "testing"))]
    #[doc(hidden)]
    pub fn group_time(mut self, time: Duration) -> Self {
        self.steps.group_time = Some(time);
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
            let text = format!(
                "the URL of the {} database cannot be read: it is like {}, with what is special percent-encoded",
                DB::NAME,
                DB::URL
            );
            return Err(StoreError::Refused(text));
        };
        let floors = Arc::<Floors>::default();
        Ok(ServerDatabase(Arc::new(Shared {
            pools: Pools::new(options, self.handlers, self.behind_pooler, &floors, &self.prefix),
            prefix: self.prefix,
            clock: self.clock,
            isolation: self.isolation,
            shards: RwLock::default(),
            floors,
            hint: Hint::default(),
            batch: Queue::default(),
            retention: self.retention,
            steps: self.steps,
            beside: self.beside.into(),
            translated: RwLock::default(),
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
            beside: Vec::new(),
        }
    }

    /// The SQL that makes the tables, in steps: the first makes those of version 1, each one after it brings them to the next.
    /// For who runs their own migrations.
    pub fn migrations(prefix: &str) -> Result<Vec<String>, StoreError> {
        check_prefix(prefix)?;
        Ok((1..).zip(DB::MIGRATIONS).map(|(to, sql)| step(prefix, sql, to)).collect())
    }

    /// True if statements are prepared for as long as the connection lives.
    pub(crate) fn keeps_statements(&self) -> bool {
        !self.pools().behind_pooler
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
        let (mut connection, _) = self.pools().own().await?;
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
                self.pools().address,
                KNOWN
            )));
        }
        Ok(())
    }

    /// The version of the tables; 0 if there are none.
    async fn version(&self) -> Result<u32, StoreError> {
        let (mut connection, _) = self.pools().own().await?;
        let sql = format!("select max(version) from {}schema", self.0.prefix);
        let statement = Statement::once(&sql);
        let rows = match DB::fetch(&mut connection, &statement, vec![]).await {
            Ok(rows) => rows,
            Err(error) if meaning::<DB>(&error) == Some(Meaning::Missing) => return Ok(0),
            Err(error) => return Err(self.explain(&error)),
        };
        let version = rows.first().map(|row| row.int_or_null(0)).transpose()?.flatten();
        Ok(u32::try_from(version.unwrap_or(0)).unwrap_or(0))
    }

    /// A connection, and whether the transaction of an attempt was begun on it, and done what is to be sent with that. All
    /// statements of one that reads see the same state of the database, which costs it nothing. An attempt that ends while it
    /// waits for the database would count.
    async fn begin_attempt(&self, reads: bool, limits: Limits, and: &str) -> Result<Begun<DB>, StoreError> {
        let isolation = match self.0.isolation {
            Isolation::ReadCommitted if reads => Isolation::RepeatableRead,
            isolation => isolation,
        };
        let begin = Begin { isolation, reads, limits: None, behind_pooler: self.pools().behind_pooler };
        self.pools().begin_attempt(begin, limits, and).await
    }

    /// The id of a shard that has been taken over.
    pub(super) async fn shard(&self, consumer: &Text, partition: &Partition) -> Result<i64, StoreError> {
        let name = (consumer.clone(), partition.clone());
        if let Some(known) = self.0.shards.read().get(&name) {
            return Ok(*known);
        }
        let found = self.read().await?.fetch(SHARD, names(consumer, partition)).await?;
        let Some(row) = found.first() else {
            let text = format!("nobody has taken over {partition} for {consumer} in {}", self.pools().address);
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
            _ => Statement::once(text),
        }
    }

    fn pools(&self) -> &Pools<DB> {
        &self.0.pools
    }

    fn floors(&self) -> &Floors {
        &self.0.floors
    }

    pub(super) fn retention(&self) -> Duration {
        self.0.retention
    }

    pub(super) fn steps(&self) -> &Steps {
        &self.0.steps
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
        Statement { sql: sql.trim().into(), args, kept: self.keeps_statements() }
    }

    /// Host, port and database, without secrets.
    pub(super) fn address(&self) -> &str {
        &self.pools().address
    }

    pub(super) fn explain(&self, error: &sqlx::Error) -> StoreError {
        explain::<DB>(&self.pools().address, error)
    }
}

fn compare(found: u32) -> Result<(), StoreError> {
    if found > KNOWN { Err(StoreError::TooNew { found, known: KNOWN }) } else { Ok(()) }
}

/// One step of the migrations, with the note of the version that it leads to.
fn step(prefix: &str, sql: &str, to: u32) -> String {
    let first = if to == 1 { "create table aq_schema (version bigint not null);\n" } else { "" };
    named(prefix, &format!("{sql}{first}insert into aq_schema (version) values ({to});\n"))
}

/// Puts the prefix before the names of tables. An index is in the schema of its table by itself.
pub(super) fn named(prefix: &str, sql: &str) -> String {
    if prefix == "aq_" {
        return sql.to_owned();
    }
    let name = prefix.rsplit_once('.').map_or(prefix, |(_, name)| name);
    sql.replace("index aq_", "index @_").replace("aq_", prefix).replace("@_", name)
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
        f.debug_tuple(DB::NAME).field(&self.pools().address).finish()
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

    fn beside(&self) -> Arc<[Arc<dyn Beside>]> {
        Arc::clone(&self.0.beside)
    }

    fn resume<'a>(&'a self, claim: &'a Claim, at: &'a Standing) -> BoxFuture<'a, Result<Option<Position>, StoreError>> {
        Box::pin(self.resume(claim, at))
    }

    fn settled<'a>(&'a self, claim: &'a Claim, floor: Position) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.settled(claim, floor))
    }

    fn took_over(&self, claim: &Claim, shard: i64) {
        self.0.shards.write().insert((claim.consumer.clone(), claim.partition.clone()), shard);
        self.0.floors.took_over(shard);
    }

    fn applying(&self, claim: &Claim, ops: &[Op]) -> Result<(), StoreError> {
        let name = (claim.consumer.clone(), claim.partition.clone());
        let Some(shard) = self.0.shards.read().get(&name).copied() else { return Ok(()) };
        self.0.floors.rows_go(shard, claim, ops);
        self.0.floors.check(shard)
    }

    fn applied(&self, shard: i64, claim: &Claim, ops: &[Op], answers: &[Applied]) {
        self.0.floors.rows_come(shard, claim, ops, answers);
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
        Box::pin(async move { Ok(Box::new(self.reading().await?) as Box<dyn Session>) })
    }
}
