//! Up to where partitions are settled, as the database knows: written before the broker is told, those of all partitions at
//! once, a few times a second.
//!
//! So the database is never behind the broker, unless it has lost something that it had confirmed: a standby that lagged has
//! taken over, or a backup was restored. That is looked for with each write, by the floors themselves and by what was confirmed
//! since the write before; and, before anybody uses it, on every new connection, which may be to another server. What is lost
//! is the end of what a server wrote, so of the effects of one connection, which all went to one server, the last tells: if it
//! is there, all are. The last of all connections would not do: it may have been committed by the new server.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Server, ServerDatabase, Statement, named};
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::sql::dialect::{Session, Value};
use crate::store::sql::ops::{fence, fenced, one};
use crate::store::sql::rows;
use crate::store::sql::store::{HomeCalls, SqlStore, Step};
use crate::store::{Applied, Claim, Op, Standing};
use crate::topic::{Epoch, Partition, Place, Position, Text, Topic};

/// Floors are written so often at most.
const PERIOD: Duration = Duration::from_millis(100);

const KNOWN: &str = "select stream, floor from aq_settled where shard = ?";

const BEGIN: &str =
    "insert into aq_settled (shard, stream, floor, at) values (?, ?, ?, ?) on conflict (shard) do nothing";

/// The fence is compared too; the floor before is, lest it be another's.
const MOVE: &str = "update aq_settled set floor = ?, at = ?
    where shard = ? and coalesce(floor, -1) = ? and exists (select 1 from aq_shards s where s.id = ? and s.epoch = ?)";

const WHY: &str = "select s.epoch, f.floor from aq_shards s left join aq_settled f on f.shard = s.id where s.id = ?";

/// So many are looked for at a time; what the last are short of is filled up with the same again.
const LOOKS: usize = 8;
const FLOORS: usize = 100;

macro_rules! effect {
    () => {
        "select 1 as there from aq_inbox where consumer = ? and source = ? and id = ?"
    };
}

/// Whoever has replaced the owner of its shard may have finished it.
macro_rules! row {
    () => {
        "select 1 as there from aq_shards s where s.id = ? and (s.epoch > ? or exists (
            select 1 from aq_rows r where r.shard = s.id and r.position = ? and r.idx = ?))"
    };
}

macro_rules! eight {
    ($each:ident) => {
        eight!($each!() " union all ")
    };
    ($each:ident!() $and:literal) => {
        concat!(
            "select count(*) from (", $each!(), $and, $each!(), $and, $each!(), $and, $each!(), $and, $each!(), $and,
            $each!(), $and, $each!(), $and, $each!(), ") found"
        )
    };
}

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
    /// The partitions that were taken over here, by shard; and those of them that must be again, since something was lost.
    taken: BTreeSet<i64>,
    lost: BTreeMap<i64, String>,
    /// The partitions that have had a floor here, of which none may be without.
    had: BTreeSet<(Text, Partition)>,
    recent: Recent,
}

/// What was confirmed since floors were written last.
#[derive(Clone, Default)]
struct Recent {
    /// The last effect of each connection: consumer, source and id.
    effects: BTreeMap<u64, Effect>,
    /// Rows that are there: shard, the epoch of its owner, position and index.
    rows: BTreeSet<[i64; 4]>,
}

pub(super) type Effect = (Text, Text, Text);

/// What is missing.
type What = &'static str;

const A_FLOOR: What = "a floor";
const AN_EFFECT: What = "an effect";
const A_ROW: What = "a parked event";

struct Pending {
    claim: Claim,
    floor: Position,
    waiting: Vec<oneshot::Sender<Result<(), StoreError>>>,
}

impl Floors {
    /// An effect is in the database, as this connection says. One that was there before tells less than one that is new.
    pub(super) fn effect(&self, connection: u64, effect: Effect, new: bool) {
        let effects = &mut self.0.lock().recent.effects;
        if new {
            effects.insert(connection, effect);
        } else {
            effects.entry(connection).or_insert(effect);
        }
    }

    /// Rows are about to be deleted; whether they were is not known if the answer is lost.
    pub(super) fn rows_go(&self, shard: i64, claim: &Claim, ops: &[Op]) {
        for op in ops {
            self.deletes(shard, claim, op);
        }
    }

    fn deletes(&self, shard: i64, claim: &Claim, op: &Op) {
        match op {
            Op::Finish(row) => {
                if let Some(row) = place(shard, claim, row.place) {
                    self.0.lock().recent.rows.remove(&row);
                }
            }
            // They may delete any, or any up to there.
            Op::Operate { .. } => self.rows_gone(shard, None),
            Op::Floor(floor) => self.rows_gone(shard, Some(*floor)),
            _ => {}
        }
    }

    fn rows_gone(&self, shard: i64, up_to: Option<Position>) {
        let up_to = up_to.map_or(i64::MAX, |floor| sql(Some(floor)));
        self.0.lock().recent.rows.retain(|row| row[0] != shard || row[2] > up_to);
    }

    /// Rows were written.
    pub(super) fn rows_come(&self, shard: i64, claim: &Claim, ops: &[Op], answers: &[Applied]) {
        for (op, answer) in ops.iter().zip(answers) {
            let written = match op {
                Op::Put(rows) => rows.as_slice(),
                Op::Append { row, .. } if *answer != Applied::Finished => std::slice::from_ref(row),
                _ => {
                    self.deletes(shard, claim, op);
                    continue;
                }
            };
            self.0.lock().recent.rows.extend(written.iter().filter_map(|row| place(shard, claim, row.place)));
        }
    }

    fn confirm(&self, shard: i64, floor: Option<Position>) {
        self.0.lock().confirmed.insert(shard, floor);
    }

    /// Floors were written, and what was looked for is there.
    fn found(&self, looked_for: &Recent) {
        let recent = &mut self.0.lock().recent;
        recent.effects.retain(|connection, effect| looked_for.effects.get(connection) != Some(effect));
        recent.rows.retain(|row| !looked_for.rows.contains(row));
    }

    /// Somebody has forgotten what a consumer has had of a topic on purpose.
    pub(super) fn none_is_missed(&self, consumer: &Text, topic: &Topic) {
        let state = &mut *self.0.lock();
        state.recent = Recent::default();
        state.had.retain(|(whose, partition)| whose != consumer || partition.topic != *topic);
    }

    /// Everything is looked at anew: nothing is written for a partition until it has been taken over again.
    fn forget(&self, why: &str) {
        let state = &mut *self.0.lock();
        state.confirmed.clear();
        state.recent = Recent::default();
        state.lost.extend(std::mem::take(&mut state.taken).into_iter().map(|shard| (shard, why.to_owned())));
    }

    pub(super) fn took_over(&self, shard: i64) {
        self.rows_gone(shard, None);
        let mut state = self.0.lock();
        state.lost.remove(&shard);
        state.taken.insert(shard);
    }

    /// Refuses what is to be written for a partition about which something was lost.
    pub(super) fn check(&self, shard: i64) -> Result<(), StoreError> {
        match self.0.lock().lost.get(&shard) {
            Some(why) => Err(StoreError::Lost(why.clone())),
            None => Ok(()),
        }
    }

    /// Looks on a new connection whether its server has what was confirmed to this process. If not, the end is lost before
    /// anything else is written, so that no event takes effect before an earlier one of its key that was lost.
    pub(super) async fn look<DB: Server>(
        &self,
        connection: &mut DB::Connection,
        prefix: &str,
        address: &str,
    ) -> Result<(), sqlx::Error> {
        let mut known = {
            let state = self.0.lock();
            (state.confirmed.clone(), state.recent.clone())
        };
        while let Some(what) = missing::<DB>(connection, prefix, &known).await? {
            let before = known.0.len() + known.1.len();
            known.1 = self.still(&known.1);
            {
                let state = self.0.lock();
                known.0.retain(|shard, _| state.confirmed.contains_key(shard));
            }
            if known.0.len() + known.1.len() == before {
                self.forget(&lost(address, what));
                return Ok(());
            }
        }
        Ok(())
    }

    /// What of this is still to be there: rows go, and what was looked for elsewhere need not be looked for again.
    fn still(&self, known: &Recent) -> Recent {
        let recent = &self.0.lock().recent;
        let effects =
            known.effects.iter().filter(|(connection, effect)| recent.effects.get(connection) == Some(effect));
        let effects = effects.map(|(connection, effect)| (*connection, effect.clone())).collect();
        Recent { effects, rows: known.rows.intersection(&recent.rows).copied().collect() }
    }
}

/// What of it is not there.
async fn missing<DB: Server>(
    connection: &mut DB::Connection,
    prefix: &str,
    (confirmed, recent): &(BTreeMap<i64, Option<Position>>, Recent),
) -> Result<Option<What>, sqlx::Error> {
    for Look { what, sql, args, least } in
        [floors_there(confirmed), recent.effects_there(), recent.rows_there()].concat()
    {
        let statement = Statement::once(&named(prefix, &DB::translate(&sql)));
        let rows = DB::fetch(connection, &statement, args).await?;
        let found = rows.first().and_then(|row| row.int(0).ok()).unwrap_or(0);
        if usize::try_from(found).is_ok_and(|found| found < least) {
            return Ok(Some(what));
        }
    }
    Ok(None)
}

/// Something that must be there, and how often.
#[derive(Clone)]
struct Look {
    what: What,
    sql: String,
    args: Vec<Value>,
    least: usize,
}

/// Numbers are no harm in a statement.
fn floors_there(confirmed: &BTreeMap<i64, Option<Position>>) -> Vec<Look> {
    let floors: Vec<(&i64, i64)> = confirmed.iter().map(|(shard, floor)| (shard, sql(*floor))).collect();
    let look = |some: &[(&i64, i64)]| {
        let each = some.iter().map(|(shard, floor)| format!("(shard = {shard} and coalesce(floor, -1) >= {floor})"));
        let each = each.collect::<Vec<_>>().join(" or ");
        let sql = format!("select count(*) from aq_settled where {each}");
        Look { what: A_FLOOR, sql, args: vec![], least: some.len() }
    };
    floors.chunks(FLOORS).map(look).collect()
}

impl Recent {
    fn len(&self) -> usize {
        self.effects.len() + self.rows.len()
    }

    fn effects_there(&self) -> Vec<Look> {
        let effects: BTreeSet<&Effect> = self.effects.values().collect();
        let args = |(consumer, source, id): &Effect| [consumer.into(), source.into(), id.into()];
        looks(AN_EFFECT, effect!(), &effects.into_iter().map(args).collect::<Vec<_>>())
    }

    fn rows_there(&self) -> Vec<Look> {
        let rows = self.rows.iter().map(|row| row.map(Value::Int));
        looks(A_ROW, row!(), &rows.collect::<Vec<_>>())
    }
}

fn looks<const N: usize>(what: What, each: &str, all: &[[Value; N]]) -> Vec<Look> {
    let look = |some: &[[Value; N]]| Look {
        what,
        sql: format!("select count(*) from ({}) found", vec![each; some.len()].join(" union all ")),
        args: some.concat(),
        least: some.len(),
    };
    all.chunks(LOOKS).map(look).collect()
}

impl<DB: Server> ServerDatabase<DB> {
    /// Where the partition stands in this database, compared with where the broker has it.
    pub(super) async fn resume(&self, claim: &Claim, at: &Standing) -> Result<Option<Position>, StoreError> {
        let name = (claim.consumer.clone(), claim.partition.clone());
        let had = self.floors().0.lock().had.contains(&name);
        let step = Resume { claim: claim.clone(), at: at.clone(), had, now: self.clock().now().unix_ms() };
        let (shard, stream, floor) = SqlStore::new(self).write(step).await?;
        if let Err(why) = compare(claim, at, &stream, floor) {
            // Whoever deletes the floor then means it.
            self.floors().0.lock().had.remove(&name);
            return Err(StoreError::Refused(format!("{}: {why}", self.address())));
        }
        let mut state = self.floors().0.lock();
        state.had.insert(name);
        state.confirmed.insert(shard, floor);
        Ok(floor)
    }

    /// Moves a floor, with those of other partitions.
    pub(super) async fn settled(&self, claim: &Claim, floor: Position) -> Result<(), StoreError> {
        let shard = self.shard(&claim.consumer, &claim.partition).await?;
        self.floors().check(shard)?;
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
            let mut moves = Vec::new();
            for (shard, pending) in std::mem::take(&mut state.pending) {
                match state.confirmed.get(&shard) {
                    Some(before) => moves.push((shard, *before, pending)),
                    None => pending.answer(|| Err(StoreError::Lost(lost(database.address(), A_FLOOR)))),
                }
            }
            Moves { all: moves, recent: state.recent.clone(), now: database.clock().now().unix_ms() }
        };
        moves.write(&database).await;
    }
}

impl Pending {
    fn answer(self, answer: impl Fn() -> Result<(), StoreError>) {
        for back in self.waiting {
            // Who does not wait any more does not need the answer.
            let _ = back.send(answer());
        }
    }
}

/// Floors on their way to the database: shard, the floor before, and the new one.
struct Moves {
    all: Vec<(i64, Option<Position>, Pending)>,
    recent: Recent,
    now: i64,
}

impl Moves {
    fn step(&self, address: &str) -> Write {
        let moves = self.all.iter().map(|(shard, before, Pending { claim, floor, .. })| Move {
            shard: *shard,
            claim: claim.clone(),
            before: *before,
            floor: *floor,
        });
        Write { moves: moves.collect(), recent: self.recent.clone(), now: self.now, address: address.to_owned() }
    }

    async fn write<DB: Server>(mut self, database: &ServerDatabase<DB>) {
        let written = loop {
            let written = SqlStore::new(database).write(self.step(database.address())).await;
            match &written {
                Ok(_) => database.floors().found(&self.recent),
                Err(StoreError::Lost(why)) => {
                    let still = database.floors().still(&self.recent);
                    if still.len() < self.recent.len() {
                        self.recent = still;
                        continue;
                    }
                    database.floors().forget(why);
                }
                Err(_) => {}
            }
            break written;
        };
        let mut answers = written.as_ref().ok().map(|answers| answers.iter());
        for (shard, _, pending) in self.all {
            let held = answers.as_mut().and_then(|answers| answers.next().copied()).flatten();
            if written.is_ok() && held.is_none() {
                database.floors().confirm(shard, Some(pending.floor));
            }
            let claim = pending.claim.clone();
            pending.answer(|| match (&written, held) {
                (Ok(_), None) => Ok(()),
                (Ok(_), Some(held)) => Err(fence(&claim, Some(held.0.cast_signed()))),
                (Err(StoreError::Refused(why)), _) => Err(StoreError::Refused(why.clone())),
                (Err(StoreError::Lost(why)), _) => Err(StoreError::Lost(why.clone())),
                (Err(StoreError::Unavailable(why)), _) => Err(StoreError::Unavailable(why.to_string().into())),
                (Err(error), _) => Err(StoreError::Unavailable(error.to_string().into())),
            });
        }
    }
}

struct Move {
    shard: i64,
    claim: Claim,
    before: Option<Position>,
    floor: Position,
}

struct Write {
    moves: Vec<Move>,
    recent: Recent,
    now: i64,
    address: String,
}

impl Step for Write {
    /// For each floor the epoch of who has replaced its owner, if somebody has.
    type Answer = Vec<Option<Epoch>>;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(self.moves.len());
            for step in &self.moves {
                answers.push(step.run(session, self.now, &self.address).await?);
            }
            let effects: BTreeSet<&Effect> = self.recent.effects.values().collect();
            let effects = effects.into_iter().map(|(consumer, source, id)| [consumer.into(), source.into(), id.into()]);
            self.are_there(session, AN_EFFECT, eight!(effect), effects.collect()).await?;
            let rows = self.recent.rows.iter().map(|row| row.map(Value::Int));
            self.are_there(session, A_ROW, eight!(row), rows.collect()).await?;
            Ok(answers)
        })
    }
}

impl Write {
    async fn are_there<const N: usize>(
        &self,
        session: &mut dyn Session,
        what: What,
        sql: &'static str,
        all: Vec<[Value; N]>,
    ) -> Result<(), StoreError> {
        for some in all.chunks(LOOKS) {
            let args = some.iter().cycle().take(LOOKS).flatten().cloned().collect();
            let count = one(&session.fetch(sql, args).await?)?.int(0)?;
            if usize::try_from(count) != Ok(LOOKS) {
                return Err(StoreError::Lost(lost(&self.address, what)));
            }
        }
        Ok(())
    }
}

impl Move {
    async fn run(&self, session: &mut dyn Session, now: i64, address: &str) -> Result<Option<Epoch>, StoreError> {
        let epoch = self.claim.epoch.0.cast_signed();
        let args = [sql(Some(self.floor)), now, self.shard, sql(self.before), self.shard, epoch].map(Value::Int);
        if session.execute(MOVE, args.into()).await? > 0 {
            return Ok(None);
        }
        let found = session.fetch(WHY, vec![self.shard.into()]).await?;
        let Some(row) = found.first() else { return Err(StoreError::Lost(lost(address, A_FLOOR))) };
        match row.int_or_null(0)? {
            Some(held) if held != epoch => Ok(Some(Epoch(held.cast_unsigned()))),
            // The floor is where it was to go: the answer of the write before was lost.
            Some(_) if row.int_or_null(1)? == Some(sql(Some(self.floor))) => Ok(None),
            _ => Err(StoreError::Lost(lost(address, A_FLOOR))),
        }
    }
}

fn place(shard: i64, claim: &Claim, place: Place) -> Option<[i64; 4]> {
    rows::columns_of(place).map(|(position, index)| [shard, claim.epoch.0.cast_signed(), position, index])
}

fn lost(address: &str, what: What) -> String {
    format!("{address}: {what} is missing; a standby that lagged has taken over, or a backup was restored")
}

/// A floor as SQL has it; -1 for none.
fn sql(floor: Option<Position>) -> i64 {
    floor.map_or(-1, |floor| i64::try_from(floor.0).unwrap_or(i64::MAX))
}

/// A floor as the program has it.
fn shown(floor: Option<Position>) -> String {
    floor.map_or("none".to_owned(), |floor| floor.0.to_string())
}

struct Resume {
    claim: Claim,
    at: Standing,
    /// There was a floor.
    had: bool,
    now: i64,
}

impl Step for Resume {
    /// The shard, its stream and its floor.
    type Answer = (i64, Text, Option<Position>);

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let shard = fenced(session, &self.claim).await?;
            let stream = self.at.stream.clone().unwrap_or_default();
            let Some(row) = session.fetch(KNOWN, vec![shard.into()]).await?.pop() else {
                let floor = self.at.floor.filter(|_| !self.had);
                let value = Value::from(floor.map(|floor| sql(Some(floor))));
                session.execute(BEGIN, vec![shard.into(), (&stream).into(), value, self.now.into()]).await?;
                return Ok((shard, stream, floor));
            };
            let floor = row.int_or_null(1)?.map(|floor| Position(floor.cast_unsigned()));
            Ok((shard, row.text(0)?, floor))
        })
    }
}

/// What is wrong if the broker has another stream, or its floor is above the database's, and what to do.
fn compare(claim: &Claim, at: &Standing, known: &Text, floor: Option<Position>) -> Result<(), String> {
    let Claim { consumer, partition, .. } = claim;
    let forget = format!("`aqueduct inbox forget --group {consumer} --topic {}`", partition.topic);
    if let Some(stream) = at.stream.as_ref().filter(|stream| !known.is_empty() && *stream != known) {
        return Err(format!(
            "{partition} is another stream ({stream}) than the one that {consumer} has settled up to {} ({known}): it was made anew, and its positions begin anew. If that is meant, {forget} and go on: its events count as new",
            shown(floor)
        ));
    }
    if at.floor > floor {
        let (broker, database) = (shown(at.floor), shown(floor));
        return Err(format!(
            "{partition} is settled up to {broker} at the broker and up to {database} in the database, which has lost its end: a standby that lagged has taken over, or a backup was restored. `aqueduct rewind --group {consumer} --topic {} --partition {} --to {database}` reads again from the database's floor; {forget} takes the loss as it is",
            partition.topic, partition.index
        ));
    }
    Ok(())
}
