//! The one writer of a file: everything that this process writes goes through one connection, many works in one commit.
//!
//! A commit that waits for the disk costs as much as hundreds of rows, so what comes in while one is under way shares the
//! next. Handlers borrow the connection one after another, each inside a savepoint. When one of a group cannot be committed
//! the group is rolled back and everybody goes alone, so that nobody fails for another.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteTransactionManager as Transactions};
use sqlx::{ConnectOptions, Connection, SqlSafeStr};
use sqlx_core::transaction::TransactionManager;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

use super::inbox::{Entered, Entry, Fences};
use super::place::Place;
use super::sqlite::{BUSY, CHECKPOINT_PAGES, assembled, explain, run};
use super::turn::Turnstile;
use crate::clock::{Boot, Clock};
use crate::error::StoreError;
use crate::outcome::BoxFuture;

/// Works that wait for the writer; more make their senders wait.
const QUEUE: usize = 1_024;

/// Works in one commit.
const GROUP_WORKS_MAX: usize = 256;

/// Handlers in one commit.
const GROUP_HANDLERS_MAX: usize = 100;

/// A commit takes in nothing more after this.
const GROUP_TIME: Duration = Duration::from_millis(50);

/// The write-ahead log is begun anew when it is longer; some more than after what SQLite does so by itself. Where that is
/// not possible it is tried again after each step.
const WAL_BOUND: u64 = CHECKPOINT_PAGES as u64 * 5_120;
const WAL_STEP: u64 = WAL_BOUND / 4;

/// How long readers are waited for then, and how long after the last write that is tried again.
const WAL_PATIENCE: Duration = Duration::from_millis(100);
const WAL_IDLE: Duration = Duration::from_secs(1);

/// Steps of SQLite's machine between two looks at the time: some 100 us.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

/// How long a handler's connection is waited for after its limit; then it is given up.
const GRACE: Duration = Duration::from_mins(1);

/// What a handler may not do.
const ENDED: &str = "a handler ended the transaction that it shares with others, or left one open inside it: no `commit` or `rollback` of its own, but `tx.begin()`, and end that; and do not go on after a statement that has failed";

/// What is to be written.
pub(crate) trait Task: Send + 'static {
    /// What is known when it is committed.
    type Answer: Send + 'static;

    /// Does it, inside a transaction. It may be called again when the transaction has failed, and then starts from the
    /// beginning. An error rolls everything back that it did.
    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<Self::Answer, StoreError>>;
}

/// A [`Task`] with the way back to all who wait for it.
pub(crate) trait AnyTask: Send + 'static {
    /// As that of a task.
    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>>;
    /// It is committed, or will not be.
    fn answer(self: Box<Self>, committed: Result<(), StoreError>);
}

/// The answer to a handler that asks for the transaction.
pub(super) enum Loan {
    /// The transaction is the handler's, and its event is in the inbox.
    Lent(Lent),
    /// The event took effect before.
    Duplicate,
}

/// Where works are handed in.
pub(super) struct Writer {
    queue: mpsc::Sender<Job>,
    holder: Arc<Holder>,
    /// The runtime that the writer runs on.
    runtime: tokio::runtime::Handle,
}

/// Who has the connection.
struct Holder {
    /// The task of the handler that has it.
    task: Mutex<Option<tokio::task::Id>>,
    /// When its time is over, on the clock that counts suspension; 0 for no end.
    until: AtomicU64,
    /// True while the writer itself commits: nobody else may.
    commits: AtomicBool,
}

enum Job {
    Work(Box<dyn AnyTask>),
    Handler(Entry, oneshot::Sender<Result<Loan, StoreError>>),
}

struct Pending<T: Task> {
    task: T,
    found: Option<T::Answer>,
    back: oneshot::Sender<Result<T::Answer, StoreError>>,
}

impl<T: Task> AnyTask for Pending<T> {
    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.found = Some(self.task.run(connection).await?);
            Ok(())
        })
    }

    fn answer(self: Box<Self>, committed: Result<(), StoreError>) {
        let Self { found, back, .. } = *self;
        // Who does not wait any more does not need the answer.
        let _ = back.send(committed.and_then(|()| found.ok_or_else(closed)));
    }
}

/// The writing connection while a handler has it. Dropping it rolls back what the handler did.
pub(crate) struct Lent {
    /// Both are there until it is given back, with which it ends.
    connection: Option<SqliteConnection>,
    back: Option<oneshot::Sender<Returned>>,
    holder: Arc<Holder>,
    /// When the handler must have given it back.
    pub(crate) until: Instant,
}

struct Returned {
    connection: SqliteConnection,
    /// Who waits for the commit; nobody if it is to be rolled back.
    keep: Option<oneshot::Sender<Result<(), StoreError>>>,
}

impl Lent {
    pub(crate) fn connection(&self) -> &SqliteConnection {
        match &self.connection {
            Some(connection) => connection,
            None => unreachable!("it is given back only with the end of the loan"),
        }
    }

    pub(crate) fn connection_mut(&mut self) -> &mut SqliteConnection {
        match &mut self.connection {
            Some(connection) => connection,
            None => unreachable!("it is given back only with the end of the loan"),
        }
    }

    /// The running task has it from now on.
    pub(crate) fn held_here(&self) {
        *self.holder.task.lock() = tokio::task::try_id();
    }

    /// Keeps what the handler did, and answers when it is committed with that of the others.
    pub(crate) async fn commit(mut self) -> Result<(), StoreError> {
        let (keep, committed) = oneshot::channel();
        self.give_back(Some(keep));
        committed.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Gives it back once: from then on the connection is another's, whose time is not to be touched.
    fn give_back(&mut self, keep: Option<oneshot::Sender<Result<(), StoreError>>>) {
        let (Some(connection), Some(back)) = (self.connection.take(), self.back.take()) else { return };
        // A writer that waits no longer has another connection by now.
        if !back.is_closed() {
            *self.holder.task.lock() = None;
            if keep.is_none() {
                // A statement that still runs, because its handler was dropped, is stopped at once.
                self.holder.until.store(1, Ordering::Release);
            }
        }
        // A writer that has gone has nothing to commit.
        let _ = back.send(Returned { connection, keep });
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.give_back(None);
    }
}

impl Writer {
    pub(super) fn start(
        (path, place): (&Path, &Place),
        options: &SqliteConnectOptions,
        changed: watch::Sender<u64>,
        limit: Duration,
        clock: Clock,
    ) -> Result<Self, StoreError> {
        let turnstile = Turnstile::open(path).map_err(|e| explain(path, e.into()))?;
        let (queue, jobs) = mpsc::channel(QUEUE);
        let holder =
            Arc::new(Holder { task: Mutex::new(None), until: AtomicU64::new(0), commits: AtomicBool::new(false) });
        let worker = Worker {
            jobs,
            turnstile,
            connection: None,
            path: path.to_owned(),
            place: place.clone(),
            wal_bound: WAL_BOUND,
            options: options.clone(),
            changed,
            holder: Arc::clone(&holder),
            limit,
            clock,
            alone: 0,
        };
        tokio::spawn(worker.work());
        Ok(Self { queue, holder, runtime: tokio::runtime::Handle::current() })
    }

    pub(super) async fn write<T: Task>(&self, task: T) -> Result<T::Answer, StoreError> {
        let (back, answer) = oneshot::channel();
        let job = Job::Work(Box::new(Pending { task, found: None, back }));
        self.queue.send(job).await.map_err(|_| closed())?;
        answer.await.unwrap_or_else(|_| Err(closed()))
    }

    /// Hands it in whatever becomes of who asks for it, and of the runtime it asks on.
    pub(super) fn hand_in_later(&self, task: Box<dyn AnyTask>, not_before: Option<Instant>) {
        let queue = self.queue.clone();
        self.runtime.spawn(async move {
            if let Some(time) = not_before {
                tokio::time::sleep_until(time).await;
            }
            if let Err(mpsc::error::SendError(job)) = queue.send(Job::Work(task)).await {
                job.refuse(&closed());
            }
        });
    }

    pub(super) async fn lend(&self, entry: Entry) -> Result<Loan, StoreError> {
        let (back, lent) = oneshot::channel();
        self.queue.send(Job::Handler(entry, back)).await.map_err(|_| closed())?;
        lent.await.unwrap_or_else(|_| Err(closed()))
    }

    pub(super) fn is_held_here(&self) -> bool {
        let holder = *self.holder.task.lock();
        holder.is_some() && holder == tokio::task::try_id()
    }
}

fn closed() -> StoreError {
    unavailable("the file's writer has ended with its runtime")
}

fn unavailable(text: &str) -> StoreError {
    StoreError::Unavailable(text.to_owned().into())
}

/// A plain error of the statement, where a savepoint or a commit is to end: there is none any more.
fn ended(error: &sqlx::Error) -> Option<StoreError> {
    let sqlx::Error::Database(error) = error else { return None };
    error.code().is_some_and(|code| code == "1").then(|| StoreError::Refused(ENDED.into()))
}

/// The same error for another.
fn same(error: &StoreError) -> StoreError {
    match error {
        StoreError::Unavailable(source) => unavailable(&source.to_string()),
        StoreError::Fenced { partition, held, ours } => {
            StoreError::Fenced { partition: partition.clone(), held: *held, ours: *ours }
        }
        StoreError::TooNew { found, known } => StoreError::TooNew { found: *found, known: *known },
        StoreError::Refused(text) => StoreError::Refused(text.clone()),
        StoreError::Lost(text) => StoreError::Lost(text.clone()),
    }
}

impl Job {
    fn refuse(self, error: &StoreError) {
        match self {
            Self::Work(work) => work.answer(Err(same(error))),
            // Who has gone does not need to know.
            Self::Handler(_, borrower) => drop(borrower.send(Err(same(error)))),
        }
    }
}

struct Worker {
    jobs: mpsc::Receiver<Job>,
    turnstile: Turnstile,
    /// None while there is no usable one.
    connection: Option<SqliteConnection>,
    path: PathBuf,
    place: Place,
    /// How long the write-ahead log may become before it is begun anew.
    wal_bound: u64,
    options: SqliteConnectOptions,
    changed: watch::Sender<u64>,
    holder: Arc<Holder>,
    limit: Duration,
    clock: Clock,
    /// So many handlers go alone, since they were in a group that failed.
    alone: usize,
}

/// What of a group waits for its commit.
#[derive(Default)]
struct Group {
    works: Vec<Box<dyn AnyTask>>,
    handlers: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// Handlers whose events are in the inbox, perhaps by one of this group: that counts when it is committed.
    duplicates: Vec<oneshot::Sender<Result<Loan, StoreError>>>,
    lent: usize,
    fences: Fences,
    /// The savepoint of the last handler is still open; what it did is kept.
    kept_open: bool,
}

/// Why a group cannot be committed.
enum Failed {
    /// A work: the others are not to suffer from it.
    Work(Box<dyn AnyTask>, StoreError),
    /// The transaction as a whole.
    All(StoreError),
}

impl Worker {
    async fn work(mut self) {
        loop {
            let large = self.place.wal_bytes() > WAL_BOUND;
            let next =
                if large { tokio::time::timeout(WAL_IDLE, self.jobs.recv()).await } else { Ok(self.jobs.recv().await) };
            match next {
                Ok(Some(first)) => {
                    self.group(first).await;
                    if self.place.wal_bytes() > self.wal_bound {
                        self.begin_wal_anew("restart").await;
                    }
                }
                Ok(None) => return,
                Err(_) => self.begin_wal_anew("truncate").await,
            }
        }
    }

    /// Moves the write-ahead log into the file and goes back to its beginning. SQLite does so by itself only when nobody
    /// reads at that moment, which under load may never be. A reader that holds an old state for long keeps it from
    /// happening; it is not waited for, and it is tried again when there is more.
    async fn begin_wal_anew(&mut self, how: &'static str) {
        let (Ok(_turn), Some(connection)) = (self.turnstile.enter(WAL_PATIENCE).await, &mut self.connection) else {
            return;
        };
        let sql = format!(
            "pragma busy_timeout = {}; pragma wal_checkpoint({how}); pragma busy_timeout = {}",
            WAL_PATIENCE.as_millis(),
            BUSY.as_millis()
        );
        if let Err(error) = sqlx::raw_sql(assembled(sql)).execute(connection).await {
            tracing::warn!(file = %self.path.display(), %error, "the write-ahead log cannot be moved into the file; it is tried again");
            self.connection = None;
        }
        let bytes = self.place.look_at_wal();
        self.wal_bound = bytes + WAL_STEP;
    }

    /// One commit, and what must go alone if it fails.
    async fn group(&mut self, first: Job) {
        let mut group = Group::default();
        let failed = match self.turn_and_begin().await {
            Err(error) => {
                // Who waits by now bears the news, so that nobody waits for one after another; they try again from outside.
                let mut next = Some(first);
                while let Some(job) = next {
                    job.refuse(&error);
                    next = self.jobs.try_recv().ok();
                }
                return;
            }
            Ok(_turn) => match self.fill(first, &mut group).await {
                Ok(()) => match self.commit_group(&mut group).await {
                    Ok(()) => return self.committed(group),
                    Err(error) => Failed::All(error),
                },
                Err(failed) => failed,
            },
        };
        self.roll_back().await;
        self.one_by_one(group, failed).await;
    }

    fn committed(&mut self, group: Group) {
        if self.place.wal_bytes() <= WAL_BOUND {
            self.wal_bound = WAL_BOUND;
        }
        self.changed.send_modify(|n| *n = n.wrapping_add(1));
        group.works.into_iter().for_each(|work| work.answer(Ok(())));
        group.handlers.into_iter().for_each(|handler| drop(handler.send(Ok(()))));
        group.duplicates.into_iter().for_each(|handler| drop(handler.send(Ok(Loan::Duplicate))));
    }

    /// Runs the first job and those that come while it runs.
    async fn fill(&mut self, first: Job, group: &mut Group) -> Result<(), Failed> {
        let began = Instant::now();
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Work(mut work) => {
                    let Some(connection) = &mut self.connection else { return Err(Failed::All(closed())) };
                    // Fails if the handler before it has ended the transaction, outside which no work may run.
                    if std::mem::take(&mut group.kept_open)
                        && let Err(error) = run("release aq_handler", connection).await
                    {
                        group.works.push(work);
                        return Err(Failed::All(explain(&self.path, error)));
                    }
                    if let Err(error) = work.run(connection).await {
                        return Err(Failed::Work(work, error));
                    }
                    group.works.push(work);
                    // It may have raised a fence.
                    group.fences = Fences::default();
                }
                Job::Handler(entry, borrower) => {
                    group.lent += 1;
                    self.alone = self.alone.saturating_sub(1);
                    self.lend(entry, borrower, group).await.map_err(Failed::All)?;
                }
            }
            let full = group.works.len() >= GROUP_WORKS_MAX
                || group.lent >= GROUP_HANDLERS_MAX
                || group.lent > 0 && self.alone > 0;
            if !full && began.elapsed() < GROUP_TIME {
                next = self.jobs.try_recv().ok();
            }
        }
        Ok(())
    }

    /// Lends the connection to one handler, inside a savepoint, and waits until it is back.
    async fn lend(
        &mut self,
        entry: Entry,
        borrower: oneshot::Sender<Result<Loan, StoreError>>,
        group: &mut Group,
    ) -> Result<(), StoreError> {
        let Some(mut connection) = self.connection.take() else { return Err(closed()) };
        let entered = entry.enter(&mut connection, &mut group.fences, group.kept_open).await;
        match entered.map_err(|e| explain(&self.path, e))? {
            Entered::New => group.kept_open = true,
            Entered::Duplicate => {
                // Its savepoint holds nothing.
                group.kept_open = true;
                group.duplicates.push(borrower);
                self.connection = Some(connection);
                return Ok(());
            }
            Entered::Fenced(held) => {
                drop(borrower.send(Err(entry.fenced(held))));
                self.connection = Some(connection);
                return Ok(());
            }
        }
        let (back, returned) = oneshot::channel();
        self.holder.until.store(self.clock.boot().after(self.limit).0, Ordering::Release);
        let until = Instant::now() + self.limit;
        let lent = Lent { connection: Some(connection), back: Some(back), holder: Arc::clone(&self.holder), until };
        // A borrower that has gone drops it, which gives it back.
        drop(borrower.send(Ok(Loan::Lent(lent))));
        let Ok(Ok(returned)) = tokio::time::timeout(self.limit + GRACE, returned).await else {
            self.holder.until.store(0, Ordering::Release);
            return Err(unavailable("a handler did not give its transaction back"));
        };
        let connection = self.connection.insert(returned.connection);
        let undone = if returned.keep.is_none() {
            group.kept_open = false;
            run("rollback to aq_handler; release aq_handler", connection).await.map_err(|e| explain(&self.path, e))
        } else {
            Ok(())
        };
        self.holder.until.store(0, Ordering::Release);
        undone?;
        // A savepoint of its own that it has dropped is still being rolled back.
        if Transactions::get_transaction_depth(connection) != 1 {
            connection.ping().await.map_err(|e| explain(&self.path, e))?;
        }
        if Transactions::get_transaction_depth(connection) != 1 {
            return Err(StoreError::Refused(ENDED.into()));
        }
        group.handlers.extend(returned.keep);
        Ok(())
    }

    /// After a group has failed: everybody whose work can be repeated here goes alone, and handlers run again.
    async fn one_by_one(&mut self, group: Group, failed: Failed) {
        self.alone = self.alone.max(group.lent);
        // Who was alone in a commit that failed would only fail again.
        let (error, alone) = match failed {
            Failed::Work(work, error) => {
                let text = format!("another write in the same commit failed: {error}");
                work.answer(Err(error));
                (unavailable(&text), false)
            }
            Failed::All(error) => (error, group.works.len() == 1 && group.lent == 0),
        };
        let text = format!("the commit failed, and the handler runs again: {error}");
        // Only one that was alone is known to be at fault.
        let at_fault = group.lent == 1 && matches!(error, StoreError::Refused(_));
        let answer = || if at_fault { Err(same(&error)) } else { Err(unavailable(&text)) };
        group.handlers.into_iter().for_each(|handler| drop(handler.send(answer())));
        group.duplicates.into_iter().for_each(|handler| drop(handler.send(Err(unavailable(&text)))));
        let mut down = alone.then_some(error);
        for mut work in group.works {
            let answer = match &down {
                Some(error) => Err(same(error)),
                None => self.single(&mut *work).await,
            };
            // The file itself: nobody waits for that once for each work.
            if let Err(error @ StoreError::Unavailable(_)) = &answer {
                down = Some(same(error));
            }
            work.answer(answer);
        }
    }

    async fn single(&mut self, work: &mut dyn AnyTask) -> Result<(), StoreError> {
        let _turn = self.turn_and_begin().await?;
        let Some(connection) = &mut self.connection else { return Err(closed()) };
        let done = match work.run(connection).await {
            Ok(()) => self.commit().await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => self.changed.send_modify(|n| *n = n.wrapping_add(1)),
            Err(_) => self.roll_back().await,
        }
        done
    }

    /// Waits for the turn to write, and begins a transaction.
    async fn turn_and_begin(&mut self) -> Result<super::turn::Turn, StoreError> {
        let turn = self.turnstile.enter(BUSY).await.map_err(|e| self.turn_failed(e))?;
        self.place.check()?;
        if self.connection.is_none() {
            self.connection = Some(self.connect().await.map_err(|e| explain(&self.path, e))?);
        }
        let Some(connection) = &mut self.connection else { return Err(closed()) };
        if let Err(error) = Transactions::begin(connection, Some("begin immediate".into_sql_str())).await {
            self.connection = None;
            return Err(explain(&self.path, error));
        }
        Ok(turn)
    }

    fn turn_failed(&self, error: std::io::Error) -> StoreError {
        if error.kind() == std::io::ErrorKind::TimedOut {
            let text =
                format!("{}: another process has been writing for {BUSY:?}: is it stopped?", self.path.display());
            return StoreError::Unavailable(text.into());
        }
        explain(&self.path, error.into())
    }

    /// A connection that stops a handler's statement when its time is over.
    async fn connect(&self) -> Result<SqliteConnection, sqlx::Error> {
        let mut connection = self.options.connect().await?;
        let (holder, clock) = (Arc::clone(&self.holder), self.clock.clone());
        let goes_on = move || match holder.until.load(Ordering::Acquire) {
            0 => true,
            until => clock.boot() < Boot(until),
        };
        let holder = Arc::clone(&self.holder);
        let mut handle = connection.lock_handle().await?;
        handle.set_progress_handler(STEPS_BETWEEN_LOOKS, goes_on);
        // Where the disk is full SQLite may roll back the transaction that a handler is inside. What the handler writes
        // then would be committed statement by statement, without its inbox record.
        handle.set_commit_hook(move || holder.commits.load(Ordering::Acquire));
        drop(handle);
        Ok(connection)
    }

    /// Lets the last savepoint go before the commit. That fails if its handler has lost the transaction without a word:
    /// what would be committed then is not what was done.
    async fn commit_group(&mut self, group: &mut Group) -> Result<(), StoreError> {
        if std::mem::take(&mut group.kept_open) {
            let Some(connection) = &mut self.connection else { return Err(closed()) };
            let released = run("release aq_handler", connection).await;
            released.map_err(|e| ended(&e).unwrap_or_else(|| explain(&self.path, e)))?;
        }
        self.commit().await
    }

    async fn commit(&mut self) -> Result<(), StoreError> {
        let Some(connection) = &mut self.connection else { return Err(closed()) };
        self.holder.commits.store(true, Ordering::Release);
        let committed = Transactions::commit(connection).await;
        self.holder.commits.store(false, Ordering::Release);
        committed.map_err(|e| ended(&e).unwrap_or_else(|| explain(&self.path, e)))?;
        self.place.check_committed()
    }

    /// Leaves no transaction open: if that cannot be had by asking, the connection is closed.
    async fn roll_back(&mut self) {
        if let Some(connection) = &mut self.connection {
            // Fails where SQLite has rolled back already, and leaves nothing open then; else closing it does.
            if Transactions::rollback(connection).await.is_err() {
                self.connection = None;
            }
        }
    }
}
