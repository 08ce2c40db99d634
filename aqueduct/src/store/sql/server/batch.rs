//! Handlers that share a transaction: those of `TxBatch<Postgres>` and `TxBatch<MySql>`.
//!
//! A task has the transaction of a group and lends it to one handler after another, in the order in which they asked, each
//! behind a savepoint. It is a task of its own since no handler that is cancelled may take a commit with it that others wait
//! for. The fences of all partitions in the group are locked and compared last, together with the commit, as for `Tx`. When a
//! group is lost nobody in it has had an effect; they run again, and so many go alone then: whatever it was that lost the
//! group, the others get on.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use parking_lot::Mutex;
use sqlx_core::transaction::TransactionManager;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};

use super::errors::{Meaning, broken, meaning};
use super::pool::Numbered;
use super::tx::{Ended, Entered, Entry, GONE_ON, Limits, ServerTx, epochs};
use super::{Server, ServerDatabase};
use crate::error::{Error, Result, StoreError};
use crate::topic::Epoch;

/// Handlers in one commit. PostgreSQL has no more savepoints that have written at hand (`PGPROC_MAX_CACHED_SUBXIDS`); with
/// more, all others who read become slower.
const GROUP_MAX: usize = 64;

/// No handler joins a group that is so old: locks are held, and the first waits for its commit.
pub(super) const GROUP_TIME: Duration = Duration::from_millis(20);

/// Statements before, between and after handlers. To release a savepoint fails if the transaction that it was made in is
/// over, and if a statement has failed since, where that is the end of a transaction.
const SAVE: &str = "savepoint aq_handler";
const KEEP: &str = "release savepoint aq_handler; savepoint aq_handler";
const UNDO: &str = "rollback to savepoint aq_handler";

/// What a handler may not do.
const ENDED: &str = "a handler ended the transaction that it shares with others, or went on after an error with which the database had done so: no `commit` or `rollback` of its own, but `tx.begin()`, and end that; and return the error";

const GIVEN_UP: &str = "the transaction that handlers share was given up";
const OTHERS: &str = "the transaction that handlers share was not free in time: the handlers of others take it";
const REPLACED: &str = "another partition in the transaction that handlers share has a new owner";
const CANCELLED: &str = "a handler that shared the transaction was cancelled or has panicked";
const TOO_LONG: &str = "a handler that shared the transaction held it for longer than an attempt may take";
const NO_ANSWER: &str = "the database did not answer in time";

/// What a handler gets.
enum Lent<DB: Server> {
    Held(ServerTx<DB>),
    /// Its event has taken effect before, or will have with this group: that is known at its end.
    Duplicate(oneshot::Receiver<Result<()>>),
}

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
    back: oneshot::Sender<Result<Lent<DB>>>,
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
}

/// Waits for the turn of an attempt, for half of its time at the most: that others are slow spends no attempt. None if the
/// event has taken effect before.
pub(super) async fn lend<DB: Server>(
    database: &ServerDatabase<DB>,
    entry: Entry,
    deadline: Option<Instant>,
) -> Result<Option<ServerTx<DB>>> {
    let (back, lent) = oneshot::channel();
    {
        let state = &mut *database.0.batch.0.lock();
        state.waiting.push_back(Waiting { entry, deadline, back });
        // It is finished and there still if its runtime was shut down.
        if state.task.as_ref().is_none_or(JoinHandle::is_finished) {
            state.task = Some(tokio::spawn(serve(database.clone())));
        }
    }
    database.steps().reach("waits");
    let lent = async {
        match lent.await.unwrap_or_else(|_| Err(lost(database, GIVEN_UP)))? {
            Lent::Held(held) => Ok(Some(held)),
            Lent::Duplicate(ended) => ended.await.unwrap_or_else(|_| Err(lost(database, GIVEN_UP))).map(|()| None),
        }
    };
    timeout(Limits::until(deadline).lock, lent).await.unwrap_or_else(|_| Err(lost(database, OTHERS)))
}

async fn serve<DB: Server>(database: ServerDatabase<DB>) {
    while let Some((first, most)) = database.0.batch.first() {
        let limits = Limits::until(first.deadline);
        let until = Instant::now() + limits.whole;
        let begun = database.begin_attempt(false, limits, SAVE).await;
        match begun.and_then(|(connection, begun)| begun.map(|_| connection).map_err(|e| database.explain(&e))) {
            Ok(connection) => {
                database.steps().reach("begun");
                let (database, begun) = (database.clone(), Instant::now());
                let group = Group { database, members: Vec::new(), begun, until, turns: 0, most };
                group.run(connection, first).await;
            }
            // Nobody else would get one now.
            Err(error) => {
                let others = std::mem::take(&mut database.0.batch.0.lock().waiting);
                for waiting in others.into_iter().chain([first]) {
                    let _ = waiting.back.send(Err(uncounted(&error)));
                }
            }
        }
    }
}

/// Where a handler gives the transaction back.
pub(super) struct Seat<DB: Server> {
    /// An error if what it has done is to be undone.
    back: oneshot::Sender<Result<Numbered<DB>, Numbered<DB>>>,
    ended: oneshot::Receiver<Result<()>>,
    deadline: Option<Instant>,
    database: ServerDatabase<DB>,
}

impl<DB: Server> Seat<DB> {
    /// Waits for the commit of the group, but not to the end of the attempt, which would count. Whether it was committed then
    /// shows when the event comes again, behind the group in the queue.
    pub(super) async fn done(self, connection: Numbered<DB>) -> Result<()> {
        if self.back.send(Ok(connection)).is_err() {
            return Err(lost(&self.database, TOO_LONG));
        }
        match timeout(Limits::until(self.deadline).whole * 3 / 4, self.ended).await {
            Ok(Ok(ended)) => ended,
            Ok(Err(_)) => Err(lost(&self.database, GIVEN_UP)),
            Err(_) => Err(lost(&self.database, TOO_LONG)),
        }
    }

    pub(super) fn undone(self, connection: Numbered<DB>) {
        // If nobody takes it any more it is closed.
        let _ = self.back.send(Err(connection));
    }
}

/// Who waits for the end of the group.
struct Member {
    entry: Entry,
    entered: Entered,
    answer: oneshot::Sender<Result<()>>,
}

impl Member {
    fn answer(self, ended: Result<()>) {
        // Who does not wait any more does not need it.
        let _ = self.answer.send(ended);
    }
}

/// What is committed together.
struct Group<DB: Server> {
    database: ServerDatabase<DB>,
    members: Vec<Member>,
    begun: Instant,
    /// The end of the attempt that began it, for which the database's limits are.
    until: Instant,
    turns: usize,
    most: usize,
}

/// The connection, or why the transaction on it is lost.
type Back<DB> = Result<Numbered<DB>, StoreError>;

impl<DB: Server> Group<DB> {
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
    fn next(&self) -> Option<Waiting<DB>> {
        if self.turns >= self.most || self.begun.elapsed() >= self.database.steps().group_time() {
            return None;
        }
        let ours = self.until.saturating_duration_since(Instant::now());
        let suits = |waiting: &Waiting<DB>| {
            let theirs = Limits::until(waiting.deadline).whole;
            theirs * 4 >= ours * 3 && ours * 4 >= theirs * 3
        };
        let state = &mut *self.database.0.batch.0.lock();
        let at = state.waiting.iter().position(suits)?;
        state.waiting.remove(at)
    }

    /// Lends the transaction to a handler and takes it back.
    async fn turn(&mut self, mut connection: Numbered<DB>, waiting: Waiting<DB>) -> Back<DB> {
        let Waiting { entry, deadline, back } = waiting;
        if back.is_closed() {
            return Ok(connection);
        }
        if let Err(error) = self.database.floors().check(entry.shard) {
            let _ = back.send(Err(Error::from(error).uncounted()));
            return Ok(connection);
        }
        self.turns += 1;
        let (answer, ended) = oneshot::channel();
        match timeout_at(self.until, entry.enter(&self.database, &mut connection.connection, None)).await {
            Ok(Ok(Entered::New)) => {}
            Ok(Ok(entered)) => {
                // Perhaps by one of this group.
                let _ = back.send(Ok(Lent::Duplicate(ended)));
                self.members.push(Member { entry, entered, answer });
                return if entered == Entered::Elsewhere { self.undo(connection).await } else { Ok(connection) };
            }
            Ok(Err(error)) => {
                let _ = back.send(Err(error));
                return self.undo(connection).await;
            }
            Err(_) => return Err(self.lost(NO_ANSWER)),
        }
        let (give, given) = oneshot::channel();
        let seat = Seat { back: give, ended, deadline, database: self.database.clone() };
        let (database, connection) = (self.database.clone(), Some(connection));
        let held = ServerTx { database, entry: entry.clone(), connection, seat: Some(seat), reads: false };
        if let Err(Ok(Lent::Held(ServerTx { connection: Some(connection), .. }))) = back.send(Ok(Lent::Held(held))) {
            return self.undo(connection).await;
        }
        match timeout_at(self.until, given).await {
            Ok(Ok(Ok(connection))) => self.keep(connection, Member { entry, entered: Entered::New, answer }).await,
            Ok(Ok(Err(connection))) => self.undo(connection).await,
            Ok(Err(_)) => Err(self.lost(CANCELLED)),
            Err(_) => Err(self.lost(TOO_LONG)),
        }
    }

    /// Takes a handler's work into the group.
    async fn keep(&mut self, mut connection: Numbered<DB>, member: Member) -> Back<DB> {
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
                let why = self.database.explain(&error);
                member.answer(Err(uncounted(&why)));
                Err(why)
            }
            _ => {
                member.answer(Err(Error::msg(ENDED)));
                Err(self.lost(ENDED))
            }
        }
    }

    /// Undoes what has been done since the last savepoint. It fails if the database has undone everything, as MySQL does with
    /// a deadlock.
    async fn undo(&self, mut connection: Numbered<DB>) -> Back<DB> {
        let undone = self.send(&mut connection, UNDO).await;
        undone.map(|()| connection).map_err(|error| self.database.explain(&error))
    }

    async fn send(&self, connection: &mut Numbered<DB>, sql: &'static str) -> Result<(), sqlx::Error> {
        let sent = timeout_at(self.until, DB::send(&mut connection.connection, sql.to_owned())).await;
        let late = |_| Err(std::io::Error::new(std::io::ErrorKind::TimedOut, NO_ANSWER).into());
        sent.unwrap_or_else(late).map(drop)
    }

    fn lost(&self, why: &str) -> StoreError {
        self.database.pools().unavailable(why)
    }

    /// Commits, if no owner was replaced, and tells everybody.
    async fn end(self, mut connection: Numbered<DB>) {
        let database = self.database.clone();
        let new = || self.members.iter().filter(|member| member.entered == Entered::New).map(|member| &member.entry);
        let fences: BTreeSet<(i64, Epoch)> = new().map(Entry::fence).collect();
        let fences: Vec<(i64, Epoch)> = fences.into_iter().collect();
        let fence = database.one(DB::FENCE);
        database.steps().reach("ends");
        let ended = DB::end(&mut connection.connection, &fence, &fences);
        let ended = timeout_at(self.until, ended).await.map_err(|_| self.lost(NO_ANSWER));
        match ended.and_then(|ended| ended.map_err(|error| database.explain(&error))) {
            Ok(Ended::Committed) => {
                let number = database.pools().number_of(connection.number);
                let ours = self.members.iter().filter(|member| member.entered != Entered::Elsewhere);
                ours.for_each(|member| member.entry.has_effect(&database, number, member.entered));
                database.pools().give_back(connection);
                self.members.into_iter().for_each(|member| member.answer(Ok(())));
            }
            Ok(Ended::Replaced) => {
                // Before anything else: fences are locked.
                drop(connection);
                self.refused(&fences).await;
            }
            Ok(Ended::Before | Ended::Gone) => self.lose(&database.pools().unavailable(ENDED)),
            Err(why) => self.lose(&why),
        }
    }

    /// Nobody has had an effect.
    fn lose(self, why: &StoreError) {
        self.go_alone();
        self.members.into_iter().for_each(|member| member.answer(Err(uncounted(why))));
    }

    /// Neither; and some are told that their partitions have other owners.
    async fn refused(self, fences: &[(i64, Epoch)]) {
        self.go_alone();
        let shards = fences.iter().map(|(shard, _)| *shard).collect();
        let held = epochs(&self.database, shards).await;
        for member in self.members {
            let (shard, ours) = member.entry.fence();
            let refused = match &held {
                Ok(held) if member.entered == Entered::New && held.get(&shard) != Some(&ours.0.cast_signed()) => {
                    member.entry.replaced(held.get(&shard).copied())
                }
                _ => lost(&self.database, REPLACED),
            };
            member.answer(Err(refused));
        }
    }

    /// Its members come again, and whoever lost it.
    fn go_alone(&self) {
        let state = &mut *self.database.0.batch.0.lock();
        state.alone = state.alone.max(self.members.len() + 1);
    }
}

fn lost<DB: Server>(database: &ServerDatabase<DB>, why: &str) -> Error {
    uncounted(&database.pools().unavailable(why))
}

/// Why each of several attempts has had no effect, through no fault of its own.
fn uncounted(why: &StoreError) -> Error {
    let text = match why {
        StoreError::Unavailable(why) => why.to_string(),
        why => why.to_string(),
    };
    Error::from(StoreError::Unavailable(text.into())).uncounted()
}
