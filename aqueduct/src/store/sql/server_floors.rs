//! Up to where partitions are settled, as the database knows: written before the broker is told, those of all partitions at
//! once, a few times a second.
//!
//! So the database is never behind the broker, unless it has lost something that it had confirmed: a standby that lagged has
//! taken over, or a backup was restored. That is looked for with each write, by the floors themselves and by the last things
//! that were confirmed: what is lost is the end of what was written, so if the last is there all is.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::dialect::{Session, Value};
use super::ops::{fence, fenced};
use super::server::{Server, ServerDatabase};
use super::store::{HomeCalls, SqlStore, Step};
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::{Claim, Standing};
use crate::topic::{Epoch, Position, Text};

/// Floors are written so often at most.
const PERIOD: Duration = Duration::from_millis(100);

const KNOWN: &str = "select stream, floor from aq_settled where shard = ?";

const BEGIN: &str =
    "insert into aq_settled (shard, stream, floor, at) values (?, ?, ?, ?) on conflict (shard) do nothing";

/// The fence is compared too; the floor before is, lest it be another's.
const MOVE: &str = "update aq_settled set floor = ?, at = ?
    where shard = ? and coalesce(floor, -1) = ? and exists (select 1 from aq_shards s where s.id = ? and s.epoch = ?)";

const WHY: &str = "select s.epoch, f.floor from aq_shards s left join aq_settled f on f.shard = s.id where s.id = ?";

const EFFECT: &str = "select 1 from aq_inbox where consumer = ? and source = ? and id = ?";

/// Whoever has replaced its owner may have finished it.
const ROW: &str = "select 1 from aq_shards s where s.id = ? and (s.epoch > ? or exists (
    select 1 from aq_rows where shard = ? and position = ? and idx = ?))";

/// What was confirmed, and what waits to be written.
#[derive(Default)]
pub(super) struct Floors(Mutex<State>);

#[derive(Default)]
struct State {
    /// The floors that the database has confirmed to this process, by shard.
    confirmed: BTreeMap<i64, Option<Position>>,
    pending: BTreeMap<i64, Pending>,
    /// A task writes them, or will in a moment.
    writing: bool,
    written_at: Option<Instant>,
    /// The last effect that was committed.
    effect: Option<Effect>,
    /// The last row that was parked: shard, position, index, and the epoch of its owner.
    row: Option<[i64; 4]>,
}

/// An effect as the inbox has it, and where its event stood.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Effect {
    pub(super) consumer: Text,
    pub(super) source: Text,
    pub(super) id: Text,
    pub(super) shard: i64,
    pub(super) position: Position,
}

struct Pending {
    claim: Claim,
    floor: Position,
    waiting: Vec<oneshot::Sender<Result<(), StoreError>>>,
}

impl Floors {
    pub(super) fn effect(&self, effect: Effect) {
        self.0.lock().effect = Some(effect);
    }

    /// A row was written, or will not be there any more.
    pub(super) fn row(&self, row: Option<[i64; 4]>) {
        self.0.lock().row = row;
    }

    fn confirm(&self, shard: i64, floor: Option<Position>) {
        self.0.lock().confirmed.insert(shard, floor);
    }

    /// The effect is there. If its floor is too, which was written later, that is what will be compared: the inbox may forget
    /// the effect when its time is over.
    fn found(&self, effect: &Effect) {
        let mut state = self.0.lock();
        let passed = state.confirmed.get(&effect.shard).is_some_and(|floor| *floor >= Some(effect.position));
        if passed && state.effect.as_ref() == Some(effect) {
            state.effect = None;
        }
    }

    /// Somebody has forgotten effects or rows on purpose.
    pub(super) fn none_is_missed(&self) {
        let mut state = self.0.lock();
        (state.effect, state.row) = (None, None);
    }

    /// Everything is looked at anew.
    fn forget(&self) {
        self.0.lock().confirmed.clear();
        self.none_is_missed();
    }
}

impl<DB: Server> ServerDatabase<DB> {
    /// Where the partition stands in this database, compared with where the broker has it.
    pub(super) async fn resume(&self, claim: &Claim, at: &Standing) -> Result<Option<Position>, StoreError> {
        let (claim, at, now) = (claim.clone(), at.clone(), self.clock().now().unix_ms());
        let step = Resume { claim, at, now };
        let (shard, floor) = SqlStore::new(self).write(step).await?;
        self.floors().confirm(shard, floor);
        Ok(floor)
    }

    /// Moves a floor, with those of other partitions.
    pub(super) async fn settled(&self, claim: &Claim, floor: Position) -> Result<(), StoreError> {
        let shard = self.shard(&claim.consumer, &claim.partition).await?;
        let (back, answer) = oneshot::channel();
        let starts = {
            let mut state = self.floors().0.lock();
            let pending = state.pending.entry(shard);
            let pending = pending.or_insert_with(|| Pending { claim: claim.clone(), floor, waiting: Vec::new() });
            (pending.claim, pending.floor) = (claim.clone(), floor);
            pending.waiting.push(back);
            !std::mem::replace(&mut state.writing, true)
        };
        if starts {
            tokio::spawn(write_floors(self.clone()));
        }
        answer.await.unwrap_or_else(|_| Err(StoreError::Unavailable("the floors' writer has ended".into())))
    }
}

/// Writes what is pending until nothing is.
async fn write_floors<DB: Server>(database: ServerDatabase<DB>) {
    loop {
        let due = database.floors().0.lock().written_at.map(|at| at + PERIOD);
        if let Some(due) = due {
            tokio::time::sleep_until(due).await;
        }
        let moves = {
            let mut state = database.floors().0.lock();
            state.written_at = Some(Instant::now());
            if state.pending.is_empty() {
                state.writing = false;
                return;
            }
            let pending = std::mem::take(&mut state.pending);
            let confirmed = |shard: &i64| state.confirmed.get(shard).copied().flatten();
            let moves = pending.into_iter().map(|(shard, pending)| (shard, confirmed(&shard), pending)).collect();
            Moves { all: moves, effect: state.effect.clone(), row: state.row, now: database.clock().now().unix_ms() }
        };
        moves.write(&database).await;
    }
}

/// Floors on their way to the database: shard, the floor before, and the new one.
struct Moves {
    all: Vec<(i64, Option<Position>, Pending)>,
    effect: Option<Effect>,
    row: Option<[i64; 4]>,
    now: i64,
}

impl Moves {
    async fn write<DB: Server>(self, database: &ServerDatabase<DB>) {
        let moves = self.all.iter().map(|(shard, before, Pending { claim, floor, .. })| Move {
            shard: *shard,
            claim: claim.clone(),
            before: *before,
            floor: *floor,
        });
        let (moves, effect, database) = (moves.collect(), self.effect.clone(), database.clone());
        let step = Write { moves, effect, row: self.row, now: self.now, database: database.clone() };
        let written = SqlStore::new(&database).write(step).await;
        if matches!(written, Err(StoreError::Refused(_))) {
            database.floors().forget();
        }
        let mut answers = written.as_ref().ok().map(|answers| answers.iter());
        for (shard, _, Pending { claim, floor, waiting }) in self.all {
            let held = answers.as_mut().and_then(|answers| answers.next().copied()).flatten();
            if written.is_ok() && held.is_none() {
                database.floors().confirm(shard, Some(floor));
            }
            for back in waiting {
                let answer = match (&written, held) {
                    (Ok(_), None) => Ok(()),
                    (Ok(_), Some(held)) => Err(fence(&claim, Some(held.0.cast_signed()))),
                    (Err(StoreError::Refused(why)), _) => Err(StoreError::Refused(why.clone())),
                    (Err(error), _) => Err(StoreError::Unavailable(error.to_string().into())),
                };
                // Who does not wait any more does not need the answer.
                let _ = back.send(answer);
            }
        }
        if let (Ok(_), Some(effect)) = (&written, self.effect) {
            database.floors().found(&effect);
        }
    }
}

struct Move {
    shard: i64,
    claim: Claim,
    before: Option<Position>,
    floor: Position,
}

struct Write<DB: Server> {
    moves: Vec<Move>,
    effect: Option<Effect>,
    row: Option<[i64; 4]>,
    now: i64,
    database: ServerDatabase<DB>,
}

impl<DB: Server> Step for Write<DB> {
    /// For each floor the epoch of who has replaced its owner, if somebody has.
    type Answer = Vec<Option<Epoch>>;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(self.moves.len());
            for step in &self.moves {
                answers.push(step.run(session, self.now).await?);
            }
            if let Some(Effect { consumer, source, id, .. }) = &self.effect {
                let args = vec![consumer.into(), source.into(), id.into()];
                there(session, EFFECT, args).await?;
            }
            if let Some(row @ [shard, .., epoch]) = self.row {
                let args = [shard, epoch, shard, row[1], row[2]].map(Value::Int);
                let missing = session.fetch(ROW, args.into()).await?.is_empty();
                // Unless it has been finished meanwhile.
                if missing && self.database.floors().0.lock().row == self.row {
                    return Err(lost());
                }
            }
            Ok(answers)
        })
    }
}

impl Move {
    async fn run(&self, session: &mut dyn Session, now: i64) -> Result<Option<Epoch>, StoreError> {
        let epoch = self.claim.epoch.0.cast_signed();
        let args = [sql(Some(self.floor)), now, self.shard, sql(self.before), self.shard, epoch].map(Value::Int);
        if session.execute(MOVE, args.into()).await? > 0 {
            return Ok(None);
        }
        let found = session.fetch(WHY, vec![self.shard.into()]).await?;
        let Some(row) = found.first() else { return Err(lost()) };
        match row.int_or_null(0)? {
            Some(held) if held != epoch => Ok(Some(Epoch(held.cast_unsigned()))),
            // The floor is where it was to go: the answer of the write before was lost.
            Some(_) if row.int_or_null(1)? == Some(sql(Some(self.floor))) => Ok(None),
            _ => Err(lost()),
        }
    }
}

async fn there(session: &mut dyn Session, sql: &'static str, args: Vec<Value>) -> Result<(), StoreError> {
    if session.fetch(sql, args).await?.is_empty() { Err(lost()) } else { Ok(()) }
}

fn lost() -> StoreError {
    StoreError::Refused(
        "the database has lost the end of what it had confirmed: a standby that lagged has taken over, or a backup was restored"
            .into(),
    )
}

/// A floor as SQL has it; -1 for none.
fn sql(floor: Option<Position>) -> i64 {
    floor.map_or(-1, |floor| i64::try_from(floor.0).unwrap_or(i64::MAX))
}

struct Resume {
    claim: Claim,
    at: Standing,
    now: i64,
}

impl Step for Resume {
    type Answer = (i64, Option<Position>);

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let shard = fenced(session, &self.claim).await?;
            let stream = self.at.stream.clone().unwrap_or_default();
            let Some(row) = session.fetch(KNOWN, vec![shard.into()]).await?.pop() else {
                let floor = Value::from(self.at.floor.map(|floor| sql(Some(floor))));
                session.execute(BEGIN, vec![shard.into(), (&stream).into(), floor, self.now.into()]).await?;
                return Ok((shard, self.at.floor));
            };
            let (known, floor) = (row.text(0)?, row.int_or_null(1)?.map(|floor| Position(floor.cast_unsigned())));
            self.compare(&known, floor).map(|()| (shard, floor))
        })
    }
}

impl Resume {
    fn compare(&self, known: &Text, floor: Option<Position>) -> Result<(), StoreError> {
        let Claim { consumer, partition, .. } = &self.claim;
        let forget = format!("`aqueduct inbox forget --group {consumer} --topic {}`", partition.topic);
        if let Some(stream) = self.at.stream.as_ref().filter(|stream| !known.is_empty() && *stream != known) {
            return Err(StoreError::Refused(format!(
                "{partition} is another stream ({stream}) than the one that {consumer} has settled up to {} ({known}): it was made anew, and its positions begin anew. If that is meant, {forget} and go on: its events count as new",
                sql(floor)
            )));
        }
        if self.at.floor > floor {
            let (broker, database) = (sql(self.at.floor), sql(floor));
            return Err(StoreError::Refused(format!(
                "{partition} is settled up to {broker} at the broker and up to {database} in the database, which has lost its end: a standby that lagged has taken over, or a backup was restored. `aqueduct rewind --group {consumer} --topic {} --partition {} --to {database}` reads again from the database's floor; {forget} takes the loss as it is",
                partition.topic, partition.index
            )));
        }
        Ok(())
    }
}
