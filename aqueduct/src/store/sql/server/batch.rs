//! Handlers that share a transaction: those of `TxBatch<Postgres>` and `TxBatch<MySql>`.
//!
//! A task has the transaction of a group and lends it to one handler after another, in the order in which they asked, each
//! behind a savepoint. It is a task of its own since no handler that is cancelled may take a commit with it that others wait
//! for. The fences of all partitions in the group are locked and compared last, together with the commit, as for `Tx`. When a
//! group is lost nobody in it has had an effect; they run again, and so many go alone then: whatever it was that lost the
//! group, the others get on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx_core::transaction::TransactionManager;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::errors::{Meaning, broken, meaning};
use super::pool::Numbered;
use super::tx::{End, Ended, Entry, GONE_ON, Limits, ROLLED_BACK, ServerTx, remaining};
use super::{Server, ServerDatabase};
use crate::error::{Error, Result, StoreError};
use crate::store::sql::dialect::{Database, Value};
use crate::topic::Epoch;

/// Handlers in one commit. PostgreSQL has no more savepoints that have written at hand (`PGPROC_MAX_CACHED_SUBXIDS`); with
/// more, all others who read become slower.
const GROUP_MAX: usize = 64;

/// No handler joins a group that is so old: locks are held, and the first waits for its commit.
const GROUP_TIME: Duration = Duration::from_millis(20);

/// Statements before, between and after handlers. To release a savepoint fails if the transaction that it was made in is
/// over, and if a statement has failed since, where that is the end of a transaction.
const SAVE: &str = "; savepoint aq_handler";
const KEEP: &str = "release savepoint aq_handler; savepoint aq_handler";
const UNDO: &str = "rollback to savepoint aq_handler";

const EPOCHS: &str = "select id, epoch from aq_shards where id in_ints(?)";

/// What a handler may not do.
const ENDED: &str = "a handler ended the transaction that it shares with others, or went on after an error with which the database had done so: no `commit` or `rollback` of its own, but `tx.begin()`, and end that; and return the error";

const CANCELLED: &str = "a handler that shared the transaction was cancelled or has panicked";
const TOO_LONG: &str = "a handler that shared the transaction held it for longer than an attempt may take";
const NO_ANSWER: &str = "the database did not answer in time";

/// What is lent; nothing if the event has taken effect before.
type Lending<DB> = Result<Option<ServerTx<DB>>>;

/// Handlers that wait for their turn.
pub(super) struct Queue<DB: Server>(Mutex<State<DB>>);

struct State<DB: Server> {
    waiting: VecDeque<Waiting<DB>>,
    /// It serves who waits; none if nobody does.
    task: Option<JoinHandle<()>>,
    /// So many handlers go alone.
    alone: usize,
}

struct Waiting<DB: Server> {
    entry: Entry,
    deadline: Option<Instant>,
    back: oneshot::Sender<Lending<DB>>,
}

impl<DB: Server> Default for Queue<DB> {
    fn default() -> Self {
        Self(Mutex::new(State { waiting: VecDeque::new(), task: None, alone: 0 }))
    }
}

impl<DB: Server> Queue<DB> {
    /// Who begins the next group, and how many it may have; nobody ends the task that asks.
    fn first(&self) -> Option<(Waiting<DB>, usize)> {
        let state = &mut *self.0.lock();
        let Some(first) = state.waiting.pop_front() else {
            state.task = None;
            return None;
        };
        let most = if state.alone > 0 { 1 } else { GROUP_MAX };
        state.alone = state.alone.saturating_sub(1);
        Some((first, most))
    }

    /// Everybody who waits.
    fn all(&self) -> VecDeque<Waiting<DB>> {
        std::mem::take(&mut self.0.lock().waiting)
    }
}

/// Waits for the turn of an attempt, for half of its time at the most: that others are slow spends no attempt.
pub(super) async fn lend<DB: Server>(
    database: &ServerDatabase<DB>,
    entry: Entry,
    deadline: Option<Instant>,
) -> Lending<DB> {
    let (back, lent) = oneshot::channel();
    {
        let state = &mut *database.batch().0.lock();
        state.waiting.push_back(Waiting { entry, deadline, back });
        // It is finished and there still if its runtime was shut down.
        if state.task.as_ref().is_none_or(JoinHandle::is_finished) {
            state.task = Some(tokio::spawn(serve(database.clone())));
        }
    }
    database.steps().reach("waits");
    let wait = Limits::until(deadline).lock;
    match timeout(wait, lent).await {
        Ok(Ok(lent)) => lent,
        Ok(Err(_)) => Err(lost(database, "the transaction that handlers share was given up")),
        Err(_) => {
            let text = format!(
                "the transaction that handlers share was not free for {wait:?}: the handlers of others take it"
            );
            Err(lost(database, &text))
        }
    }
}

async fn serve<DB: Server>(database: ServerDatabase<DB>) {
    while let Some((first, most)) = database.batch().first() {
        let limits = Limits::until(first.deadline);
        let until = Instant::now() + limits.idle;
        match database.begin_attempt(limits, SAVE).await {
            Ok(connection) => {
                database.steps().reach("begun");
                let group = Group::new(database.clone(), until, most);
                group.run(connection, first).await;
            }
            // Nobody else would get one now.
            Err(error) => {
                let text = error.to_string();
                let _ = first.back.send(Err(Error::from(error).uncounted()));
                for waiting in database.batch().all() {
                    let _ = waiting.back.send(Err(uncounted(text.clone())));
                }
            }
        }
    }
}

/// Where a handler gives the transaction back.
pub(super) struct Seat<DB: Server> {
    back: oneshot::Sender<(Numbered<DB>, Turn)>,
    ended: oneshot::Receiver<Result<()>>,
    deadline: Option<Instant>,
    database: ServerDatabase<DB>,
}

/// How a handler has left the transaction.
enum Turn {
    Done,
    Failed,
}

impl<DB: Server> Seat<DB> {
    /// Waits for the commit of the group, but not to the end of the attempt, which would count. Whether it was committed then
    /// shows when the event comes again, behind the group in the queue.
    pub(super) async fn done(self, connection: Numbered<DB>) -> Result<()> {
        if self.back.send((connection, Turn::Done)).is_err() {
            return Err(lost(&self.database, TOO_LONG));
        }
        let wait = Limits::until(self.deadline).idle * 3 / 4;
        match timeout(wait, self.ended).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(lost(&self.database, "the transaction that handlers share was given up")),
            Err(_) => Err(lost(&self.database, &format!("it was not committed for {wait:?}: {TOO_LONG}"))),
        }
    }

    pub(super) fn undone(self, connection: Numbered<DB>) {
        // If nobody takes it any more it is closed.
        let _ = self.back.send((connection, Turn::Failed));
    }
}

/// Who waits for the end of the group.
struct Member<DB: Server> {
    entry: Entry,
    answer: Answer<DB>,
}

enum Answer<DB: Server> {
    Handler(oneshot::Sender<Result<()>>),
    /// Its event has taken effect before, or will have with this group.
    Duplicate(oneshot::Sender<Lending<DB>>),
}

impl<DB: Server> Member<DB> {
    fn is_new(&self) -> bool {
        matches!(self.answer, Answer::Handler(_))
    }

    fn answer(self, ended: Result<()>) {
        // Who does not wait any more does not need it.
        match self.answer {
            Answer::Handler(back) => drop(back.send(ended)),
            Answer::Duplicate(back) => drop(back.send(ended.map(|()| None))),
        }
    }
}

/// What is committed together.
struct Group<DB: Server> {
    database: ServerDatabase<DB>,
    members: Vec<Member<DB>>,
    begun: Instant,
    time: Duration,
    /// The end of the attempt that began it, for which the database's limits are.
    until: Instant,
    turns: usize,
    most: usize,
}

impl<DB: Server> Group<DB> {
    fn new(database: ServerDatabase<DB>, until: Instant, most: usize) -> Self {
        #[cfg(any(test, feature = "testing"))]
        let time = database.steps().group_time.unwrap_or(GROUP_TIME);
        #[cfg(not(any(test, feature = "testing")))]
        let time = GROUP_TIME;
        Self { database, members: Vec::new(), begun: Instant::now(), time, until, turns: 0, most }
    }

    async fn run(mut self, mut connection: Numbered<DB>, first: Waiting<DB>) {
        let mut next = Some(first);
        while let Some(waiting) = next {
            match self.turn(connection, waiting).await {
                Ok(back) => connection = back,
                Err(why) => return self.lose(&why),
            }
            next = self.next();
        }
        self.end(connection).await;
    }

    /// Who has waited longest of those that may join. Others have much more or less time than the database gives this group,
    /// and begin the next one.
    fn next(&mut self) -> Option<Waiting<DB>> {
        if self.turns >= self.most || self.begun.elapsed() >= self.time {
            return None;
        }
        let ours = self.until.saturating_duration_since(Instant::now());
        let suits = |waiting: &Waiting<DB>| {
            let theirs = Limits::until(waiting.deadline).idle;
            theirs * 4 >= ours * 3 && ours * 4 >= theirs * 3
        };
        let state = &mut *self.database.batch().0.lock();
        let at = state.waiting.iter().position(suits)?;
        state.waiting.remove(at)
    }

    /// Lends the transaction to a handler and takes it back, or says why it is lost.
    async fn turn(&mut self, mut connection: Numbered<DB>, waiting: Waiting<DB>) -> Result<Numbered<DB>, String> {
        let Waiting { entry, deadline, back } = waiting;
        if back.is_closed() {
            return Ok(connection);
        }
        if let Err(error) = self.database.floors().check(entry.shard) {
            let _ = back.send(Err(Error::from(error).uncounted()));
            return Ok(connection);
        }
        self.turns += 1;
        match timeout_at(self.until, entry.enter(&self.database, &mut connection.connection)).await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => {
                self.members.push(Member { entry, answer: Answer::Duplicate(back) });
                return Ok(connection);
            }
            Ok(Err(error)) => {
                let _ = back.send(Err(error));
                return self.undo(connection).await;
            }
            Err(_) => return Err(NO_ANSWER.to_owned()),
        }
        let (give, given) = oneshot::channel();
        let (answer, ended) = oneshot::channel();
        let seat = Seat { back: give, ended, deadline, database: self.database.clone() };
        let (database, connection) = (self.database.clone(), Some(connection));
        let held = ServerTx { database, entry: entry.clone(), connection, seat: Some(seat) };
        if let Err(Ok(Some(ServerTx { connection: Some(connection), .. }))) = back.send(Ok(Some(held))) {
            return self.undo(connection).await;
        }
        match timeout_at(self.until, given).await {
            Ok(Ok((connection, Turn::Done))) => {
                self.keep(connection, Member { entry, answer: Answer::Handler(answer) }).await
            }
            Ok(Ok((connection, Turn::Failed))) => self.undo(connection).await,
            Ok(Err(_)) => Err(CANCELLED.to_owned()),
            Err(_) => Err(TOO_LONG.to_owned()),
        }
    }

    /// Takes a handler's work into the group.
    async fn keep(&mut self, mut connection: Numbered<DB>, member: Member<DB>) -> Result<Numbered<DB>, String> {
        let kept = self.send(&mut connection, KEEP).await;
        // One that it has begun and not ended would be committed in place of the group's.
        let depth = DB::Manager::get_transaction_depth(&connection.connection);
        match kept {
            Ok(()) if depth == 1 => {
                self.members.push(member);
                Ok(connection)
            }
            Err(error) if meaning::<DB>(&error) == Some(Meaning::Aborted) => {
                member.answer(Err(Error::msg(GONE_ON)));
                self.undo(connection).await
            }
            Err(error) if broken::<DB>(&error) => {
                let why = self.database.explain(&error).to_string();
                member.answer(Err(uncounted(why.clone())));
                Err(why)
            }
            _ => {
                member.answer(Err(Error::msg(ENDED)));
                Err(ENDED.to_owned())
            }
        }
    }

    /// Undoes what has been done since the last savepoint. It fails if the database has undone everything, as MySQL does with
    /// a deadlock.
    async fn undo(&self, mut connection: Numbered<DB>) -> Result<Numbered<DB>, String> {
        let undone = self.send(&mut connection, UNDO).await;
        undone.map(|()| connection).map_err(|error| self.database.explain(&error).to_string())
    }

    async fn send(&self, connection: &mut Numbered<DB>, sql: &'static str) -> Result<(), sqlx::Error> {
        let sent = timeout_at(self.until, DB::send(&mut connection.connection, sql)).await;
        sent.unwrap_or_else(|_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, NO_ANSWER).into()))
    }

    /// Commits, if no owner was replaced, and tells everybody.
    async fn end(self, mut connection: Numbered<DB>) {
        let database = self.database.clone();
        let new = || self.members.iter().filter(|member| member.is_new());
        let fences: BTreeSet<(i64, Epoch)> = new().map(|member| member.entry.fence()).collect();
        let fences: Vec<(i64, Epoch)> = fences.into_iter().collect();
        let Some(left) = new().map(|member| remaining(&member.entry.origin.lease, &database)).min() else {
            return self.leave(connection).await;
        };
        let (fence, end) = (database.one(DB::FENCE), End { fences: &fences, left });
        let ended = DB::end(&mut connection.connection, &fence, end, database.steps());
        match timeout_at(self.until, ended).await {
            Ok(Ok(Ended::Committed)) => self.has_ended(connection),
            Ok(Ok(Ended::Replaced(_))) => {
                // Before anything else: fences are locked.
                drop(connection);
                self.refused(&fences).await;
            }
            Ok(Ok(Ended::Before)) => self.lose(ENDED),
            Ok(Err(error)) => self.lose(&database.explain(&error).to_string()),
            Err(_) => self.lose(NO_ANSWER),
        }
    }

    /// Nothing is to be committed.
    async fn leave(self, mut connection: Numbered<DB>) {
        let done = timeout(ROLLED_BACK, DB::Manager::rollback(&mut connection.connection)).await;
        match done {
            Ok(Ok(())) => self.has_ended(connection),
            Ok(Err(error)) => {
                let why = self.database.explain(&error).to_string();
                self.lose(&why);
            }
            Err(_) => self.lose(NO_ANSWER),
        }
    }

    /// What its members wanted is in the database.
    fn has_ended(self, connection: Numbered<DB>) {
        let number = self.database.pools().number_of(connection.number);
        for member in &self.members {
            member.entry.has_effect(&self.database, number);
        }
        self.database.pools().give_back(connection);
        self.members.into_iter().for_each(|member| member.answer(Ok(())));
    }

    /// Nobody has had an effect.
    fn lose(self, why: &str) {
        self.go_alone();
        let database = self.database;
        self.members.into_iter().for_each(|member| member.answer(Err(lost(&database, why))));
    }

    /// Neither; and some are told that their partitions have other owners.
    async fn refused(self, fences: &[(i64, Epoch)]) {
        self.go_alone();
        let shards = fences.iter().map(|(shard, _)| *shard).collect();
        let held = epochs(&self.database, shards).await;
        for member in self.members {
            let (shard, ours) = member.entry.fence();
            let refused = match &held {
                Ok(held) if member.is_new() && held.get(&shard) != Some(&ours.0.cast_signed()) => {
                    member.entry.replaced(held.get(&shard).copied())
                }
                _ => lost(&self.database, "another partition in the transaction that handlers share has a new owner"),
            };
            member.answer(Err(refused));
        }
    }

    /// Its members come again, and whoever lost it.
    fn go_alone(&self) {
        let state = &mut *self.database.batch().0.lock();
        state.alone = state.alone.max(self.members.len() + 1);
    }
}

/// The epochs in the database, by shard.
async fn epochs<DB: Server>(database: &ServerDatabase<DB>, shards: Vec<i64>) -> Result<BTreeMap<i64, i64>, StoreError> {
    let rows = database.read().await?.fetch(EPOCHS, vec![Value::Ints(shards)]).await?;
    rows.iter().map(|row| Ok((row.int(0)?, row.int(1)?))).collect()
}

/// Why an attempt has had no effect through no fault of its own.
fn lost<DB: Server>(database: &ServerDatabase<DB>, why: &str) -> Error {
    uncounted(format!("{}: {why}", database.address()))
}

fn uncounted(why: String) -> Error {
    Error::from(StoreError::Unavailable(why.into())).uncounted()
}
