//! What is SQLite's own: the file, its connections, its migrations and its errors.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, ConnectOptions, Row, TypeInfo, ValueRef};
use tokio::sync::watch;
use tokio::time::Instant;

use super::append::Inserts;
use super::dialect::{Database, Kind, Session, SqlRow, Value, Work};
use super::inbox::{Entry, SWEEP_EVERY, Sweep};
use super::place::Place;
use super::schema::Migrated;
use super::store::{Home, HomeCalls, SqlStore};
use super::wal;
use super::writer::{AnyTask, Loan, Task, Writer};
use crate::clock::Clock;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::outbox::Hint;
use crate::topic::Text;

/// The schema of this version of the library, and how each version before becomes the next.
const MIGRATIONS: [&str; 2] =
    [include_str!("../../../migrations/sqlite/0001.sql"), include_str!("../../../migrations/sqlite/0002.sql")];

/// How long a writer waits for another process before it gives up and says so.
pub(super) const BUSY: Duration = Duration::from_secs(5);

/// Connections that only read; the log's readers and the writer have their own beside these.
const READERS: u32 = 4;

/// How many partitions a topic gets unless its creator says otherwise.
pub(crate) const PARTITIONS: u32 = 16;

/// Rows on their way from SQLite's thread to the reader.
const ROW_BUFFER: usize = 1_024;

/// Pages of write-ahead log after which SQLite moves them into the file: 16 MiB.
pub(super) const CHECKPOINT_PAGES: u32 = 4_000;

/// An SQLite file with Aqueduct's tables in it: an embedded broker, a store, or both. Clones share it.
///
/// It may be the application's own file: every table of Aqueduct begins with `aq_`. The file is in write-ahead mode, and
/// one connection does all of this process's writing, many writers in one commit. Beside it stand `-wal`, `-shm`,
/// `-aq-door` and `-aq-turn`; copy them all, or use `.backup`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?; let path = folder.path().join("aqueduct.db");
/// use aqueduct::sqlite::{SqliteBroker, SqliteFile, SqliteStore};
/// let file = SqliteFile::open(&path).await?;
/// let (broker, store) = (SqliteBroker::new(&file), SqliteStore::new(&file));
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SqliteFile(Arc<Shared>);

struct Shared {
    path: PathBuf,
    place: Place,
    options: SqliteConnectOptions,
    readers: SqlitePool,
    writer: Writer,
    changed: watch::Sender<u64>,
    clock: Clock,
    create: Option<u32>,
    inserts: Inserts,
    identity: Text,
    lists: Arc<Lists>,
    hint: Hint,
}

/// How a file is opened; made by [`SqliteFile::options`].
#[derive(Clone, Debug)]
#[must_use = "nothing is opened until `open` is awaited"]
pub struct SqliteOptions {
    path: PathBuf,
    full: bool,
    handler_limit: Duration,
    clock: Clock,
    create: Option<u32>,
}

impl SqliteOptions {
    /// Confirms writes before the disk has them: a crash of the process loses nothing, but a power failure, or a crash of
    /// the system, loses what was confirmed in the last moments, here and nowhere else. Many times the throughput of
    /// single writes. Defaults to waiting for the disk.
    pub fn relaxed(mut self) -> Self {
        self.full = false;
        self
    }

    /// How long a handler may hold its transaction: meanwhile nobody else writes to the file. Defaults to 500 ms.
    pub fn handler_limit(mut self, limit: Duration) -> Self {
        self.handler_limit = limit;
        self
    }

    /// How many partitions a topic gets that publishing or joining creates; 0 counts as 1. A topic that exists keeps what
    /// it has. Defaults to 16.
    pub fn partitions(mut self, count: u32) -> Self {
        self.create = Some(count.max(1));
        self
    }

    /// Refuses topics that were not [declared](crate::sqlite::SqliteBroker::declare). Defaults to creating them.
    pub fn require_topics(mut self) -> Self {
        self.create = None;
        self
    }

    /// Where times and ids come from. Defaults to the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Brings the tables to this version, as opening does, and says which version they had.
    pub async fn migrate(self) -> Result<Migrated, StoreError> {
        self.connect().await.map(|(.., migrated)| migrated)
    }

    /// A connection to the file, which is there by now, with its tables.
    async fn connect(&self) -> Result<(PathBuf, SqliteConnectOptions, SqliteConnection, Migrated), StoreError> {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = folder.canonicalize().map_err(|e| no_folder(&self.path, &e))?;
        let path = folder.join(self.path.file_name().unwrap_or_default());
        if let Some(kind) = SqliteFile::network(&folder) {
            tracing::warn!(folder = %folder.display(), kind, "this is a network file system, where SQLite's locks are not reliable and a crash can damage the file: use a local disk");
        }
        check_wal(&path).await?;
        let options = connect_options(&path, self.full);
        let mut connection = options.connect().await.map_err(|e| explain(&path, e))?;
        let migrated = migrate(&path, &mut connection).await?;
        Ok((path, options, connection, migrated))
    }

    /// Opens the file, or creates it, and brings its tables to this version.
    pub async fn open(self) -> Result<SqliteFile, StoreError> {
        let (path, options, mut connection, _) = self.connect().await?;
        check_small_tables(&path, &mut connection).await?;
        let identity = identity(&mut connection).await.map_err(|e| explain(&path, e))?;
        let place = Place::of(&path);
        let readers = SqlitePoolOptions::new().min_connections(0).max_connections(READERS).test_before_acquire(false);
        let placed = place.clone();
        let readers = readers.after_connect(move |_, _| {
            // One that was opened on another file would be kept.
            let checked = placed.check().map_err(|e| sqlx::Error::Io(std::io::Error::other(e)));
            Box::pin(std::future::ready(checked))
        });
        let readers = readers.connect_lazy_with(options.clone());
        let changed = watch::Sender::new(0);
        let writer = Writer::start((&path, &place), &options, changed.clone(), self.handler_limit, self.clock.clone())?;
        let (clock, create) = (self.clock, self.create);
        let file = SqliteFile(Arc::new(Shared {
            path,
            place,
            options,
            readers,
            writer,
            changed,
            clock,
            create,
            inserts: Inserts::default(),
            identity,
            lists: Arc::default(),
            hint: Hint::default(),
        }));
        tokio::spawn(keep_house(Arc::downgrade(&file.0)));
        Ok(file)
    }
}

impl SqliteFile {
    /// Opens a file with the default options, or creates it.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Self::options(path).open().await
    }

    /// Options for a file that is to be opened.
    pub fn options(path: impl AsRef<Path>) -> SqliteOptions {
        let (path, handler_limit) = (path.as_ref().to_owned(), Duration::from_millis(500));
        SqliteOptions { path, full: true, handler_limit, clock: Clock::system(), create: Some(PARTITIONS) }
    }

    /// The kind of network file system that a path is on; none on a local disk, and where it cannot be told. SQLite's locks
    /// are not reliable on one, and a crash can damage the file; opening a file there warns.
    pub fn network(path: impl AsRef<Path>) -> Option<&'static str> {
        network(path.as_ref())
    }

    /// The SQL that makes the tables, in steps: the first makes those of version 1, each one after it brings them to the next.
    pub fn migrations() -> Vec<String> {
        let noted = |(to, sql): (u32, &&str)| match to {
            1 => format!(
                "{sql}create table aq_schema (version integer not null);\ninsert into aq_schema (version) values (1);\n"
            ),
            _ => format!("{sql}update aq_schema set version = {to};\n"),
        };
        (1..).zip(&MIGRATIONS).map(noted).collect()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// Resolves at the first commit of this process after this call, whether it was awaited by then or not: call it, look
    /// into the file, and await it if what you look for is not there yet.
    pub fn changed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut changes = self.changes();
        async move {
            // An error means that the file is closed: nothing will change.
            let _ = changes.changed().await;
        }
    }

    /// How many partitions a new topic gets; none if topics must be declared.
    pub(crate) fn create(&self) -> Option<u32> {
        self.0.create
    }

    /// Which file it is: one that was made anew has another.
    pub(crate) fn identity(&self) -> &Text {
        &self.0.identity
    }

    /// The statements that append to the log.
    pub(crate) fn inserts(&self) -> &Inserts {
        &self.0.inserts
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Told after every commit of this process.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// A connection for one reader alone.
    pub(crate) async fn connect(&self) -> Result<SqliteConnection, StoreError> {
        let connection = self.0.options.connect().await.map_err(|e| explain(self.path(), e))?;
        self.check_place().map(|()| connection)
    }

    /// Runs a task on the writing connection, with those of others in one commit, and answers when it is committed.
    pub(crate) async fn write_with<T: Task>(&self, task: T) -> Result<T::Answer, StoreError> {
        self.0.writer.write(task).await
    }

    /// As [`write_with`](Self::write_with), for a task that answers by itself, whatever becomes of who asks for it; not
    /// before a time.
    pub(crate) fn hand_in_later(&self, task: Box<dyn AnyTask>, not_before: Option<Instant>) {
        self.0.writer.hand_in_later(task, not_before);
    }

    /// The writing connection for the handler of one attempt, inside a transaction of many.
    pub(super) async fn lend(&self, entry: Entry) -> Result<Loan, StoreError> {
        self.0.writer.lend(entry).await
    }

    /// True if the running task holds the writing connection, so that it would wait for itself.
    pub(crate) fn is_held_here(&self) -> bool {
        self.0.writer.is_held_here()
    }

    /// Says what has become of the file, if it is not where it was opened.
    pub(crate) fn check_place(&self) -> Result<(), StoreError> {
        self.0.place.check()
    }

    pub(crate) fn explain(&self, error: sqlx::Error) -> StoreError {
        explain(self.path(), error)
    }
}

impl std::fmt::Debug for SqliteFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SqliteFile").field(&self.0.path).finish()
    }
}

impl Home for SqliteFile {
    type Sql = sqlx::Sqlite;
}

impl HomeCalls for SqliteFile {
    // There is one writer, so that more would gain nothing.
    const SHARDS: u32 = 1;

    fn clock(&self) -> &Clock {
        &self.0.clock
    }

    fn hint(&self) -> &Hint {
        &self.0.hint
    }
}

/// A store in an SQLite file; those of many partitions share a commit.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let folder = tempfile::tempdir()?; let path = folder.path().join("aqueduct.db");
/// use aqueduct::{sqlite::SqliteStore, store::Store};
/// let store = SqliteStore::open(&path).await?;
/// assert!(store.abilities().durable);
/// # Ok(()) }
/// ```
pub type SqliteStore = SqlStore<SqliteFile>;

impl SqliteStore {
    /// Opens a file with the default options, or creates it.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        Ok(Self::new(&SqliteFile::open(path).await?))
    }
}

impl Database for SqliteFile {
    fn write(&self, work: Box<dyn Work>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.write_with(AnyWork { work, path: self.0.path.clone(), lists: Arc::clone(&self.0.lists) }))
    }

    fn read(&self) -> BoxFuture<'_, Result<Box<dyn Session>, StoreError>> {
        Box::pin(async move {
            let connection = self.0.readers.acquire().await.map_err(|e| self.explain(e))?;
            let (path, lists) = (self.0.path.clone(), Arc::clone(&self.0.lists));
            Ok(Box::new(Reading { connection, path, lists }) as Box<dyn Session>)
        })
    }
}

/// Deletes what nobody needs any more, once in a while, for as long as the file is open.
async fn keep_house(file: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        let Some(file) = file.upgrade().map(SqliteFile) else { return };
        let swept = async {
            while file.write_with(Sweep { now: file.clock().now(), file: file.clone() }).await? {}
            Ok::<_, StoreError>(())
        };
        if let Err(error) = swept.await {
            tracing::warn!(?file, %error, "old effects were not forgotten; it is tried again");
        }
    }
}

/// Work that sees no more than a session.
struct AnyWork {
    work: Box<dyn Work>,
    path: PathBuf,
    lists: Arc<Lists>,
}

impl Task for AnyWork {
    type Answer = ();

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        let Self { work, path, lists } = self;
        Box::pin(async move { work.run(&mut Borrowed { connection, path, lists }).await })
    }
}

/// The writing connection while work runs on it.
struct Borrowed<'c> {
    connection: &'c mut SqliteConnection,
    path: &'c Path,
    lists: &'c Lists,
}

/// A connection of the readers.
struct Reading {
    connection: sqlx::pool::PoolConnection<sqlx::Sqlite>,
    path: PathBuf,
    lists: Arc<Lists>,
}

impl Session for Borrowed<'_> {
    fn execute<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(execute(self.connection, self.path, self.lists.query(sql, args)))
    }

    fn fetch<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<Vec<SqlRow>, StoreError>> {
        Box::pin(fetch(self.connection, self.path, self.lists.query(sql, args)))
    }
}

impl Session for Reading {
    fn execute<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(execute(&mut self.connection, &self.path, self.lists.query(sql, args)))
    }

    fn fetch<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<Vec<SqlRow>, StoreError>> {
        Box::pin(fetch(&mut self.connection, &self.path, self.lists.query(sql, args)))
    }
}

type Query = sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

/// Statements with lists of numbers as SQLite takes them, by where the library has their texts: a list is one argument, a
/// JSON array, so that the statement is the same for lists of any length.
#[derive(Default)]
struct Lists(Mutex<BTreeMap<(usize, usize), Arc<str>>>);

impl Lists {
    fn query(&self, sql: &'static str, args: Vec<Value>) -> Query {
        let has_list = args.iter().any(|arg| matches!(arg, Value::Ints(_)));
        let query = if has_list { sqlx::query(AssertSqlSafe(self.translated(sql))) } else { sqlx::query(sql) };
        args.into_iter().fold(query, |query, value| match value {
            Value::Null(_) => query.bind(None::<i64>),
            Value::Int(int) => query.bind(int),
            Value::Text(text) => query.bind(text.as_str().to_owned()),
            Value::Blob(blob) => query.bind(Vec::from(blob)),
            Value::Ints(ints) => query.bind(json_array(&ints)),
        })
    }

    fn translated(&self, sql: &'static str) -> Arc<str> {
        let at = (sql.as_ptr().addr(), sql.len());
        let translate = || sql.replace("in_ints(?)", "in (select value from json_each(?))").into();
        Arc::clone(self.0.lock().entry(at).or_insert_with(translate))
    }
}

fn json_array(ints: &[i64]) -> String {
    let mut text = String::with_capacity(2 + ints.len() * 8);
    for int in ints {
        text.push(if text.is_empty() { '[' } else { ',' });
        // Writing to a string cannot fail.
        let _ = write!(text, "{int}");
    }
    text.push_str(if text.is_empty() { "[]" } else { "]" });
    text
}

async fn execute(connection: &mut SqliteConnection, path: &Path, query: Query) -> Result<u64, StoreError> {
    let done = query.execute(connection).await.map_err(|e| explain(path, e))?;
    Ok(done.rows_affected())
}

async fn fetch(connection: &mut SqliteConnection, path: &Path, query: Query) -> Result<Vec<SqlRow>, StoreError> {
    let rows = query.fetch_all(connection).await.map_err(|e| explain(path, e))?;
    rows.iter().map(|row| sql_row(row).map_err(|e| explain(path, e))).collect()
}

fn sql_row(row: &SqliteRow) -> Result<SqlRow, sqlx::Error> {
    let value = |column| {
        let raw = row.try_get_raw(column)?;
        Ok(match raw.type_info().name() {
            _ if raw.is_null() => Value::Null(Kind::Int),
            "INTEGER" => Value::Int(row.try_get(column)?),
            // Damage can make a text of anything; who expects a text says so.
            "TEXT" => {
                let bytes = Bytes::from(row.try_get::<Vec<u8>, _>(column)?);
                Text::try_from(bytes.clone()).map_or(Value::Blob(bytes), Value::Text)
            }
            _ => Value::Blob(Bytes::from(row.try_get::<Vec<u8>, _>(column)?)),
        })
    };
    (0..row.len()).map(value).collect::<Result<_, sqlx::Error>>().map(SqlRow)
}

fn connect_options(path: &Path, full: bool) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(if full { SqliteSynchronous::Full } else { SqliteSynchronous::Normal })
        .busy_timeout(BUSY)
        .foreign_keys(false)
        .pragma("cell_size_check", "on")
        .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
        .pragma("journal_size_limit", (u64::from(CHECKPOINT_PAGES) * 4_096).to_string())
        .row_buffer_size(ROW_BUFFER)
        .disable_statement_logging()
}

/// Brings the tables to this version, in one transaction.
async fn migrate(path: &Path, connection: &mut SqliteConnection) -> Result<Migrated, StoreError> {
    let failed = |e| explain(path, e);
    let known = MIGRATIONS.len();
    let number = |n| u32::try_from(n).unwrap_or(u32::MAX);
    let to = number(known);
    if version(connection).await.map_err(failed)? == known {
        return Ok(Migrated { from: to, to });
    }
    run("begin immediate", connection).await.map_err(failed)?;
    // Another process may have done it while this one waited for its turn.
    let found = version(connection).await.map_err(failed)?;
    if found > known {
        return Err(StoreError::TooNew { found: number(found), known: to });
    }
    for migration in &MIGRATIONS[found..] {
        run(migration, connection).await.map_err(failed)?;
    }
    run("create table if not exists aq_schema (version integer not null); delete from aq_schema", connection)
        .await
        .map_err(failed)?;
    sqlx::query("insert into aq_schema (version) values (?)")
        .bind(i64::try_from(known).unwrap_or(i64::MAX))
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    run("commit", connection).await.map_err(failed)?;
    Ok(Migrated { from: number(found), to })
}

/// Reads the write-ahead log once, before SQLite does.
async fn check_wal(path: &Path) -> Result<(), StoreError> {
    let path = path.to_owned();
    let checked = tokio::task::spawn_blocking(move || wal::check(&path)).await;
    checked.unwrap_or_else(|e| Err(StoreError::Unavailable(e.into())))
}

/// Looks through the tables that everything else is found by. Their size depends on topics, partitions and consumers
/// alone: the log, the store and the inbox are looked at when they are used.
async fn check_small_tables(path: &Path, connection: &mut SqliteConnection) -> Result<(), StoreError> {
    for table in ["aq_topics", "aq_partitions", "aq_consumers", "aq_floors", "aq_shards"] {
        let check = sqlx::query(assembled(format!("pragma integrity_check({table})")));
        let rows = check.fetch_all(&mut *connection).await.map_err(|e| explain(path, e))?;
        let found: Vec<String> =
            rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>().map_err(|e| explain(path, e))?;
        if let Some(first) = found.first().filter(|first| *first != "ok") {
            let file = path.display();
            return Err(StoreError::Refused(format!("{file}: {table} is damaged: {MEND} ({first})")));
        }
    }
    Ok(())
}

async fn identity(connection: &mut SqliteConnection) -> Result<Text, sqlx::Error> {
    let row = sqlx::query("select identity from aq_file").fetch_one(connection).await?;
    row.try_get::<String, _>(0).map(Text::from)
}

/// The version of the tables in the file; 0 if there are none.
async fn version(connection: &mut SqliteConnection) -> Result<usize, sqlx::Error> {
    let table = sqlx::query("select 1 from sqlite_master where name = 'aq_schema'");
    if table.fetch_optional(&mut *connection).await?.is_none() {
        return Ok(0);
    }
    let version = sqlx::query("select version from aq_schema").fetch_one(connection).await?;
    Ok(usize::try_from(version.try_get::<i64, _>(0)?).unwrap_or(0))
}

pub(super) async fn run(sql: &'static str, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(sql).execute(connection).await.map(drop)
}

/// What to do with a file that is damaged.
pub(crate) const MEND: &str =
    "stop what uses the file, keep a copy, and restore a backup or try `sqlite3 FILE .recover`";

/// SQLite found no room for the index of the write-ahead log: <https://sqlite.org/rescode.html#ioerr_shmsize>.
const NO_ROOM_FOR_INDEX: u32 = 4_874;

/// Says what is wrong and what to do about it. What can pass by itself is unavailable; what cannot is refused.
#[expect(clippy::needless_pass_by_value, reason = "as `map_err` gives it")]
pub(crate) fn explain(path: &Path, error: sqlx::Error) -> StoreError {
    let code = match &error {
        sqlx::Error::Database(e) => e.code().and_then(|code| code.parse::<u32>().ok()),
        sqlx::Error::Io(e) => io_code(e),
        _ => None,
    };
    let (passes, what) = match code.map(|code| if code == NO_ROOM_FOR_INDEX { 13 } else { code & 0xff }) {
        Some(5 | 6) => (true, "another process or transaction holds it: end it, or wait".to_owned()),
        Some(8) => (true, "it cannot be written: check its permissions, those of its folder and of `-wal` and `-shm` beside it, and whether the disk is mounted read-only".to_owned()),
        Some(9) => (true, "the statement took longer than a handler may hold its transaction: make it shorter, or raise `handler_limit`".to_owned()),
        Some(10) => (true, "reading or writing the disk failed: look at the system's log, and whether a quota or a limit on the size of files was reached".to_owned()),
        Some(11) => (false, format!("it is damaged: {MEND}")),
        Some(13) => (true, "the disk is full: free some space, and it goes on by itself".to_owned()),
        Some(14) => (true, "it cannot be opened: check that its folder exists and may be written to".to_owned()),
        Some(26) => (false, "it is no SQLite file, or an encrypted one: give another path, or move it away".to_owned()),
        _ => unnamed(&error),
    };
    let file = path.display();
    let separator = if what.is_empty() { "" } else { ": " };
    let text = format!("{file}{separator}{what} ({error})");
    if passes { StoreError::Unavailable(text.into()) } else { StoreError::Refused(text) }
}

/// SQLite's code for an error of the system; none for one that says enough.
fn io_code(error: &std::io::Error) -> Option<u32> {
    match error.kind() {
        std::io::ErrorKind::ReadOnlyFilesystem | std::io::ErrorKind::PermissionDenied => Some(8),
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded | std::io::ErrorKind::FileTooLarge => {
            Some(13)
        }
        std::io::ErrorKind::NotFound => Some(14),
        _ => None,
    }
}

/// What was read is not what was written: SQLite sees that only where it spoils a tree.
fn unnamed(error: &sqlx::Error) -> (bool, String) {
    match error {
        sqlx::Error::Decode(what) => (false, format!("it is damaged, {what}: {MEND}")),
        sqlx::Error::ColumnDecode { .. } => (false, format!("it is damaged, a column is not what it was: {MEND}")),
        sqlx::Error::RowNotFound => (false, format!("it is damaged, a row is missing: {MEND}")),
        _ => (true, String::new()),
    }
}

fn no_folder(path: &Path, error: &std::io::Error) -> StoreError {
    StoreError::Refused(format!(
        "{}: its folder cannot be used ({error}): create it, or give another path",
        path.display()
    ))
}

/// From statfs(2).
#[cfg(target_os = "linux")]
fn network(path: &Path) -> Option<&'static str> {
    const REMOTE: [(u32, &str); 7] = [
        (0x6969, "NFS"),
        (0x517b, "SMB"),
        (0xff53_4d42, "CIFS"),
        (0xfe53_4d42, "SMB"),
        (0x5346_414f, "AFS"),
        (0x0102_1997, "9P"),
        (0x00c3_6400, "Ceph"),
    ];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a magic number of 32 bits")]
    let kind = rustix::fs::statfs(path).ok()?.f_type as u32;
    REMOTE.iter().find(|(magic, _)| *magic == kind).map(|(_, name)| *name)
}

#[cfg(not(target_os = "linux"))]
fn network(_: &Path) -> Option<&'static str> {
    None
}

/// A statement put together from parts that are all the library's own.
pub(crate) fn assembled(sql: String) -> AssertSqlSafe<String> {
    AssertSqlSafe(sql)
}
