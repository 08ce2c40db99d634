//! The outbox table of another system as relays see it, written once for all of them.
//!
//! All rows are in one shard, whose lease and fence are in Aqueduct's own tables: whatever a relay is called, no two work on
//! one table at once. What is parked stays in the table, marked in its column for errors; a row is read as long as it says
//! that it waits, lowest id first and without a cursor, since ids commit out of order.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::marks::{self, Mark};
use super::words::{Words, check_table};
use crate::clock::{Clock, Timestamp};
use crate::error::StoreError;
use crate::event::Event;
use crate::outcome::BoxFuture;
use crate::sql::{Server, ServerDatabase, SqlStore};
use crate::store::outbox::{
    Fate, Keeper, OutboxRow, OutboxSource, OutboxStatus, OutboxTable, ParkedLine, Settled, Settlement, lane_of,
};
use crate::store::sql::dialect::{Session, SqlRow, Value};
use crate::store::sql::{HomeCalls, Step, check_fence, join};
use crate::topic::{Key, LaneId, Text};

/// What a system's outbox table looks like. In what is put in, `{now}` is the time of the settlement.
pub(super) struct Shape {
    pub(super) table: String,
    /// What an event is made of; in the row that is read they come after [`OWN_COLUMNS`] others.
    pub(super) columns: Vec<String>,
    /// The condition that a row waits to be published; may have `{before}`, a time that long ago.
    pub(super) pending: String,
    pub(super) before: std::time::Duration,
    /// That it has failed, whoever says so, and that it is not published.
    pub(super) failed: &'static str,
    pub(super) unsent: &'static str,
    /// The column for errors, and the one for when a row was written.
    pub(super) error: &'static str,
    pub(super) written: &'static str,
    /// What is set when it is published, when it has failed, with the error last, and when it waits again.
    pub(super) sent: &'static str,
    pub(super) parked: &'static str,
    pub(super) reset: &'static str,
    /// What counts a try, if there is a column for it.
    pub(super) counted: &'static str,
}

/// The columns that are read before those of the shape: id, error, when it was written.
pub(super) const OWN_COLUMNS: usize = 3;

/// A row as an event.
pub(super) struct Found {
    pub(super) topic: Text,
    pub(super) id: Text,
    pub(super) kind: Text,
    pub(super) key: Option<Key>,
    /// Rows that have the same here and the same topic are published in order; empty for one that is in no order.
    pub(super) order: Text,
    /// The event, or why the row is none.
    pub(super) event: Result<Event, Text>,
}

/// Makes an event of a row.
pub(super) trait Reader: Send + Sync + 'static {
    fn read(&self, row: &SqlRow, written: Timestamp) -> Result<Found, StoreError>;
}

/// Rows are counted up to here; counting more would take longer than it is worth.
const COUNTED_MAX: i64 = 10_000;

/// What a row takes in memory beside its event, more or less.
const ROW_BYTES: usize = 512;

/// The only part of the lease.
const PART: &str = "0";

/// The statements on one table. They live as long as the program, as all of the library's own do, which are known by where
/// they are.
#[derive(Clone, Copy)]
struct Texts {
    read: &'static str,
    read_others: &'static str,
    lanes: &'static str,
    read_parked: &'static str,
    sent: &'static str,
    refused: &'static str,
    behind: &'static str,
    count: &'static str,
    oldest: &'static str,
    count_parked: &'static str,
    list: &'static str,
    one: &'static str,
    retry: &'static str,
    retry_all: &'static str,
    reset: &'static str,
    discard: &'static str,
}

impl Texts {
    fn new(shape: &Shape, words: Words) -> Self {
        let Shape { table, error, failed, unsent, counted, .. } = shape;
        let (marked, [lane, due]) = (marks::is_marked(error), marks::parts(error));
        let (ours, by_id) = (format!("{failed} and {marked}"), words.by_id());
        let put = |text: &str| text.replace("{now}", words.time()).replace("{before}", words.time());
        let keep = |text: String| -> &'static str { text.leak() };
        let columns = [&[words.text(error), words.unix_ms(shape.written)], &shape.columns[..]].concat().join(", ");
        let pending = put(&shape.pending);
        let [sent, parked, reset] = [shape.sent, shape.parked, shape.reset].map(put);
        let heads = format!("select min(id) as head, count(*) as number from {table} where {ours} group by {lane}");
        let update = |set: &str, which: &str| keep(format!("update {table}{by_id} set {set} where {which}"));
        Self {
            read: keep(format!("select id, {columns} from {table} where {pending} order by id limit ?")),
            read_others: keep(format!(
                "select id, {columns} from {table} where {pending} and not (id in_ints(?)) order by id limit ?"
            )),
            lanes: keep(format!("select {lane}, {due} from {table} join ({heads}) h on h.head = id")),
            read_parked: keep(format!(
                "select id, {columns} from {table} where {ours} and {error} like ? order by id limit ?"
            )),
            sent: update(&format!("{counted}{sent}"), &format!("id in_ints(?) and {unsent}")),
            // The same again changes nothing, so it is not counted twice.
            refused: update(
                &format!("{counted}{parked}"),
                &format!("id = ? and {unsent} and coalesce({error}, '') <> ?"),
            ),
            behind: update(&parked, &format!("id in_ints(?) and {unsent}")),
            count: keep(format!(
                "select count(*) from (select 1 as one from {table} where {pending} limit {}) counted",
                COUNTED_MAX + 1
            )),
            oldest: keep(format!(
                "select {} from {table} where {pending} order by id limit 1",
                words.unix_ms(shape.written)
            )),
            count_parked: keep(format!("select count(*), count(distinct {lane}) from {table} where {ours}")),
            list: keep(format!(
                "select id, {columns}, h.number from {table} join ({heads}) h on h.head = id order by id limit ?"
            )),
            one: keep(format!(
                "select id, {columns}, (select count(*) from {table} where {ours} and {error} like ?) from {table}
                 where id = ? and {ours}"
            )),
            retry: update(
                &format!("{error} = {}", marks::redated(error)),
                &format!("{ours} and {due} > ? and id in_ints(?)"),
            ),
            retry_all: keep(format!(
                "update {table} set {error} = {} where {ours} and {due} > ?",
                marks::redated(error)
            )),
            reset: update(
                &reset,
                &format!(
                    "{failed} and not ({}) and id in_ints(?)",
                    marks::is_marked(&format!("coalesce({error}, '')"))
                ),
            ),
            discard: update(&parked, &format!("id = ? and {ours}")),
        }
    }
}

/// The outbox table of another system.
struct Foreign<DB: Server> {
    store: SqlStore<ServerDatabase<DB>>,
    table: Arc<Table>,
}

/// What a settlement needs of it.
struct Table {
    shape: Shape,
    texts: Texts,
    /// The group of the lease.
    group: Text,
    reader: Box<dyn Reader>,
}

/// The outbox table of another system in the database of a store.
pub(super) fn open<DB: Server>(
    store: &SqlStore<ServerDatabase<DB>>,
    shape: Shape,
    reader: impl Reader,
) -> Result<OutboxTable, StoreError> {
    check_table(&shape.table)?;
    let (home, texts) = (store.home(), Texts::new(&shape, Words::of::<DB>()));
    let group = format!("outbox {}", shape.table).into();
    let table = Arc::new(Table { shape, texts, group, reader: Box::new(reader) });
    Ok(OutboxTable::new(Arc::new(Foreign { store: store.clone(), table }), home.hint().clone(), home.clock().clone()))
}

impl Table {
    fn row(&self, sql: &SqlRow) -> Result<(Found, OutboxRow), StoreError> {
        let id = sql.int(0)?;
        let mark = sql.bytes_or_null(1)?.and_then(|text| Mark::read(&String::from_utf8_lossy(&text)));
        let written = Timestamp::from_unix_ms(sql.int_or_null(2)?.unwrap_or(0));
        let mut found = self.reader.read(sql, written)?;
        let event = std::mem::replace(&mut found.event, Err(Text::default())).map(Box::new);
        // What is no event is in no order: it keeps nobody waiting.
        let order = if event.is_ok() { found.order.as_str() } else { "" };
        let lane = lane_of(found.topic.as_str().as_bytes(), order.as_bytes(), id);
        let (lane, parked) = mark.map_or((lane, None), |mark| (mark.lane, Some(mark.refused)));
        let bytes = ROW_BYTES + event.as_ref().map_or(0, |event| event.size());
        Ok((found, OutboxRow { id, shard: 0, lane, parked, event, bytes }))
    }

    fn line(&self, sql: &SqlRow) -> Result<ParkedLine, StoreError> {
        let (found, row) = self.row(sql)?;
        let error = String::from_utf8_lossy(&sql.bytes_or_null(1)?.unwrap_or_default()).into_owned();
        let none = || Mark { lane: row.lane, due: Timestamp::UNIX_EPOCH, refused: 0, why: error.clone() };
        let mark = Mark::read(&error).unwrap_or_else(none);
        Ok(ParkedLine {
            id: row.id,
            topic: found.topic,
            key: found.key,
            event_id: found.id,
            kind: found.kind,
            rows: sql.int(OWN_COLUMNS + self.shape.columns.len())?.cast_unsigned(),
            written_at: Timestamp::from_unix_ms(sql.int_or_null(2)?.unwrap_or(0)),
            attempts: mark.refused,
            next_at: mark.due,
            why: mark.why.into(),
        })
    }

    /// The argument of `{before}`, if there is one.
    fn before(&self, now: Timestamp) -> Vec<Value> {
        let before = i64::try_from(self.shape.before.as_millis()).unwrap_or(i64::MAX);
        let times = self.shape.pending.matches("{before}").count();
        vec![now.unix_ms().saturating_sub(before).into(); times]
    }
}

/// The arguments of a text with `{now}`.
fn now(text: &str, now: Timestamp) -> Vec<Value> {
    vec![now.unix_ms().into(); text.matches("{now}").count()]
}

fn limit(limit: usize) -> Value {
    i64::try_from(limit).unwrap_or(i64::MAX).into()
}

impl<DB: Server> Foreign<DB> {
    async fn fetch(&self, sql: &'static str, args: Vec<Value>) -> Result<Vec<SqlRow>, StoreError> {
        self.store.read().await?.fetch(sql, args).await
    }

    async fn count(&self, sql: &'static str, args: Vec<Value>) -> Result<Vec<Option<i64>>, StoreError> {
        let rows = self.fetch(sql, args).await?;
        let row = rows.first().map_or(&[][..], |row| &row.0[..]);
        Ok(row.iter().map(|value| if let Value::Int(int) = value { Some(*int) } else { None }).collect())
    }
}

impl<DB: Server> OutboxSource for Foreign<DB> {
    fn shards(&self) -> u32 {
        1
    }

    /// The group of relays is that of the table, whatever they are called: two of different names must not share it.
    fn join<'a>(&'a self, _: &'a Text, clock: &'a Clock) -> BoxFuture<'a, Result<Arc<dyn Keeper>, StoreError>> {
        let keeper = join(self.store.home(), self.table.group.clone(), vec![PART.into()], clock);
        Box::pin(std::future::ready(Ok(keeper)))
    }

    fn read<'a>(
        &'a self,
        _: &'a [u32],
        limit_each: usize,
        except: &'a [i64],
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        Box::pin(async move {
            let (texts, mut args) = (&self.table.texts, self.table.before(self.store.home().clock().now()));
            // An empty list is no list in MySQL.
            let text = if except.is_empty() { texts.read } else { texts.read_others };
            args.extend((!except.is_empty()).then(|| Value::Ints(except.to_vec())));
            args.push(limit(limit_each));
            let unparked = |sql: &SqlRow| {
                let row = self.table.row(sql)?.1;
                // It may have been marked once, and made to wait again by its application.
                Ok(OutboxRow { parked: None, ..row })
            };
            self.fetch(text, args).await?.iter().map(unparked).collect()
        })
    }

    fn parked_lanes(&self, _: u32) -> BoxFuture<'_, Result<BTreeMap<LaneId, Timestamp>, StoreError>> {
        Box::pin(async move {
            let mut lanes = BTreeMap::new();
            for row in self.fetch(self.table.texts.lanes, vec![]).await? {
                let (lane, due) = (row.text(0)?, row.text(1)?);
                if let (Ok(lane), Ok(due)) = (u64::from_str_radix(lane.as_str(), 16), due.as_str().parse()) {
                    lanes.insert(LaneId(lane), Timestamp::from_unix_ms(due));
                }
            }
            Ok(lanes)
        })
    }

    fn read_parked<'a>(
        &'a self,
        _: u32,
        lanes: &'a [LaneId],
        limit_each: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        Box::pin(async move {
            let mut rows = Vec::new();
            for lane in lanes {
                let args = vec![begins(*lane), limit(limit_each)];
                for sql in self.fetch(self.table.texts.read_parked, args).await? {
                    rows.push(self.table.row(&sql)?.1);
                }
            }
            Ok(rows)
        })
    }

    fn settle<'a>(&'a self, settlement: &'a Arc<Settlement>) -> BoxFuture<'a, Result<Vec<(u32, LaneId)>, StoreError>> {
        let (settlement, table) = (Arc::clone(settlement), Arc::clone(&self.table));
        Box::pin(self.store.write(Settle { settlement, table }))
    }

    /// They are the application's.
    fn forget_sent(&self, _: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(std::future::ready(Ok(false)))
    }

    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, StoreError>> {
        Box::pin(async move {
            let (texts, before) = (&self.table.texts, self.table.before(self.store.home().clock().now()));
            let pending = self.count(texts.count, before.clone()).await?;
            let oldest = self.count(texts.oldest, before).await?;
            let parked = self.count(texts.count_parked, vec![]).await?;
            let number = |counts: &[Option<i64>], at: usize| counts.get(at).copied().flatten().unwrap_or(0);
            Ok(OutboxStatus {
                pending: number(&pending, 0).cast_unsigned(),
                counted: number(&pending, 0) <= COUNTED_MAX,
                oldest: oldest.first().copied().flatten().map(Timestamp::from_unix_ms),
                parked: number(&parked, 0).cast_unsigned(),
                parked_lines: number(&parked, 1).cast_unsigned(),
            })
        })
    }

    fn list_parked(&self, limit_lines: usize) -> BoxFuture<'_, Result<Vec<ParkedLine>, StoreError>> {
        Box::pin(async move {
            let rows = self.fetch(self.table.texts.list, vec![limit(limit_lines)]).await?;
            rows.iter().map(|sql| self.table.line(sql)).collect()
        })
    }

    /// Rows that have failed elsewhere wait again too, if they are named.
    fn retry_now<'a>(&'a self, heads: Option<&'a [i64]>, now: Timestamp) -> BoxFuture<'a, Result<u64, StoreError>> {
        let (table, heads) = (Arc::clone(&self.table), heads.map(<[i64]>::to_vec));
        Box::pin(self.store.write(Retry { table, heads, now }))
    }

    /// Its row stays, as one that has failed for good.
    fn discard(&self, id: i64) -> BoxFuture<'_, Result<Option<ParkedLine>, StoreError>> {
        let now = self.store.home().clock().now();
        Box::pin(self.store.write(Discard { table: Arc::clone(&self.table), id, now }))
    }
}

/// The pattern of a lane's marks.
fn begins(lane: LaneId) -> Value {
    Value::Text(format!("{}%", marks::begin(lane)).into())
}

struct Settle {
    settlement: Arc<Settlement>,
    table: Arc<Table>,
}

impl Step for Settle {
    type Answer = Vec<(u32, LaneId)>;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let (settlement, table) = (&self.settlement, &*self.table);
            let of = |fate: &Fate| settlement.rows.iter().filter(|row| row.fate == *fate).cloned().collect::<Vec<_>>();
            let sent: Vec<i64> = of(&Fate::Sent).iter().map(|row| row.id).collect();
            if !sent.is_empty() {
                let args = [now(table.shape.sent, settlement.now), vec![sent.into()]].concat();
                session.execute(table.texts.sent, args).await?;
            }
            for row in &settlement.rows {
                if let Fate::Refused { attempts, next_at, why } = &row.fate {
                    let mark = Mark { lane: row.lane, due: *next_at, refused: *attempts, why: why.to_string() };
                    let mark = Value::Text(mark.write().into());
                    let mut args = now(table.shape.parked, settlement.now);
                    args.extend([mark.clone(), row.id.into(), mark]);
                    session.execute(table.texts.refused, args).await?;
                }
            }
            for (lane, ids) in lanes(of(&Fate::Behind)) {
                // Due as soon as it is the head.
                let why = "it stands behind one of its key that was refused".to_owned();
                let mark = Mark { lane, due: settlement.now, refused: 0, why };
                let mut args = now(table.shape.parked, settlement.now);
                args.extend([Value::Text(mark.write().into()), ids.into()]);
                session.execute(table.texts.behind, args).await?;
            }
            let still_parked = still_parked(session, table, settlement).await?;
            check_fence(session, &table.group, &settlement.claims).await?;
            Ok(still_parked)
        })
    }
}

/// The rows of each lane that are parked only now.
fn lanes(rows: Vec<Settled>) -> BTreeMap<LaneId, Vec<i64>> {
    let mut lanes: BTreeMap<LaneId, Vec<i64>> = BTreeMap::new();
    for row in rows.into_iter().filter(|row| !row.parked) {
        lanes.entry(row.lane).or_default().push(row.id);
    }
    lanes
}

async fn still_parked(
    session: &mut dyn Session,
    table: &Table,
    settlement: &Settlement,
) -> Result<Vec<(u32, LaneId)>, StoreError> {
    let mut still = Vec::new();
    for lane in settlement.unparked(0) {
        if !session.fetch(table.texts.read_parked, vec![begins(lane), limit(1)]).await?.is_empty() {
            still.push((0, lane));
        }
    }
    Ok(still)
}

struct Retry {
    table: Arc<Table>,
    heads: Option<Vec<i64>>,
    now: Timestamp,
}

impl Step for Retry {
    type Answer = u64;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(async move {
            let (texts, due) = (&self.table.texts, Value::Text(marks::due(self.now).into()));
            let Some(heads) = &self.heads else {
                return session.execute(texts.retry_all, vec![due.clone(), due]).await;
            };
            let ours = session.execute(texts.retry, vec![due.clone(), due, heads.clone().into()]).await?;
            let args = [now(self.table.shape.reset, self.now), vec![heads.clone().into()]].concat();
            Ok(ours + session.execute(texts.reset, args).await?)
        })
    }
}

struct Discard {
    table: Arc<Table>,
    id: i64,
    now: Timestamp,
}

impl Step for Discard {
    type Answer = Option<ParkedLine>;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let table = &self.table;
            // Its lane is not known before it is read.
            let found = session.fetch(table.texts.one, vec![Value::Text("%".into()), self.id.into()]).await?;
            let Some(row) = found.first() else { return Ok(None) };
            let marks = begins(table.row(row)?.1.lane);
            let found = session.fetch(table.texts.one, vec![marks, self.id.into()]).await?;
            let Some(line) = found.first().map(|row| table.line(row)).transpose()? else { return Ok(None) };
            let mut args = now(table.shape.parked, self.now);
            args.extend([Value::Text(format!("discarded: {}", line.why).into()), self.id.into()]);
            session.execute(table.texts.discard, args).await?;
            Ok(Some(line))
        })
    }
}
