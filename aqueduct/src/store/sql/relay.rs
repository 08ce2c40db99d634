//! The outbox of a SQL database as relays see it, written once for all databases.
//!
//! A settlement is one short transaction whose last statement locks and compares the fence: checked first without a lock, a
//! relay that was stopped would pass and commit later; locked first, it would hold up its successor.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::dialect::{Session, Value};
use super::lease::SqlLeases;
use super::outgoing::{self, whole_columns};
use super::relay_status;
use super::store::{Home, SqlStore, Step};
use crate::clock::{Clock, Timestamp};
use crate::error::StoreError;
use crate::lease;
use crate::outcome::BoxFuture;
use crate::store::outbox::{
    Fate, Keeper, OutboxRow, OutboxSource, OutboxStatus, OutboxTable, ParkedLine, Settled, Settlement, ShardClaim,
    named,
};
use crate::topic::{Epoch, LaneId, Text};

/// The lowest rows of one shard; the arguments are (shard, limit).
macro_rules! select_lowest {
    () => {
        "select id, shard, content from aq_outbox where shard = ? order by id limit ?"
    };
}
const READ: &str = select_lowest!();

/// The same but for some rows; the arguments are (shard, ids, limit).
const READ_OTHERS: &str =
    "select id, shard, content from aq_outbox where shard = ? and not (id in_ints(?)) order by id limit ?";

macro_rules! lowest {
    () => {
        concat!("select * from (", select_lowest!(), ") lowest")
    };
    (4) => {
        concat!(lowest!(), " union all ", lowest!(), " union all ", lowest!(), " union all ", lowest!())
    };
}

/// The lowest rows of [`SHARDS_MAX`] shards, each a look into an index; the arguments are (shard, limit) for each.
const READ_MANY: &str =
    concat!(lowest!(4), " union all ", lowest!(4), " union all ", lowest!(4), " union all ", lowest!(4));

/// The most shards there are, and what stands for one where there are fewer.
const SHARDS_MAX: usize = 16;
const NO_SHARD: i64 = -1;

const READ_PARKED: &str =
    "select id, shard, content, attempts from aq_outbox_parked where shard = ? and lane = ? order by id limit ?";

/// Rows that have no content, or one that cannot be read.
const WHOLE: &str = concat!("select ", whole_columns!(), " from aq_outbox where shard = ? and id in_ints(?)");
const WHOLE_PARKED: &str =
    concat!("select ", whole_columns!(), " from aq_outbox_parked where shard = ? and id in_ints(?)");

/// Heads of lanes from one on; the arguments are (shard, lane, limit).
const LANES: &str = "select p.lane, p.next_at from aq_outbox_parked p
    join (select lane, min(id) as id from aq_outbox_parked where shard = ? and lane >= ?
        group by lane order by lane limit ?) h on h.id = p.id order by p.lane";

/// How many lanes are read at once.
const LANES_PAGE: usize = 10_000;

const DELETE: &str = "delete from aq_outbox where shard = ? and id in_ints(?)";
const DELETE_PARKED: &str = "delete from aq_outbox_parked where shard = ? and id in_ints(?)";

macro_rules! keep_sent {
    ($table:literal) => {
        concat!(
            "insert into aq_outbox_sent (id, topic, key, event_id, type, source, written_at, sent_at)
             select id, topic, key, event_id, type, source, written_at, ? from ",
            $table,
            " where shard = ? and id in_ints(?) on conflict (id) do nothing"
        )
    };
}
const KEEP: &str = keep_sent!("aq_outbox");
const KEEP_PARKED: &str = keep_sent!("aq_outbox_parked");

/// Moves rows to the line of their lane; the arguments are (lane, attempts, when due, error, shard, ids, shard,
/// ids).
const PARK: &str = "
    insert into aq_outbox_parked (id, shard, lane, topic, key, event_id, type, source, time, content_type, headers, data,
        content, written_at, attempts, next_at, error)
    select id, shard, ?, topic, key, event_id, type, source, time, content_type, headers, data,
        content, written_at, ?, ?, ? from aq_outbox where shard = ? and id in_ints(?)
    on conflict (id) do nothing;
    delete from aq_outbox where shard = ? and id in_ints(?)";

const REFUSED_AGAIN: &str =
    "update aq_outbox_parked set attempts = ?, next_at = ?, error = ? where id = ? and shard = ?";

const STILL_PARKED: &str = "select lane from aq_outbox_parked where shard = ? and lane in_ints(?) group by lane";

/// The epochs of [`SHARDS_MAX`] shards of a group.
const FENCE: &str = "select part, epoch from aq_leases
    where grp = ? and part in (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) /*lock*/";

/// Not `delete .. limit`, which few databases know, so in two steps.
const OLD_SENT: &str = "select id from aq_outbox_sent where sent_at < ? limit ?";
const FORGET: &str = "delete from aq_outbox_sent where id in_ints(?)";
const FORGET_CHUNK: usize = 1_000;

/// Every statement of this file, for the test of their plans.
#[cfg(test)]
pub(super) const ALL: [&str; 17] = [
    READ,
    READ_OTHERS,
    READ_MANY,
    READ_PARKED,
    WHOLE,
    WHOLE_PARKED,
    LANES,
    DELETE,
    DELETE_PARKED,
    KEEP,
    KEEP_PARKED,
    PARK,
    REFUSED_AGAIN,
    STILL_PARKED,
    FENCE,
    OLD_SENT,
    FORGET,
];

/// The outbox table of a database.
pub(crate) struct SqlOutbox<H: Home>(SqlStore<H>);

impl<H: Home> From<&SqlStore<H>> for OutboxTable {
    fn from(store: &SqlStore<H>) -> Self {
        let home = store.home();
        Self::new(Arc::new(SqlOutbox(store.clone())), home.hint().clone(), home.clock().clone())
    }
}

/// Becomes one of the relays that share these parts, by leases in the database.
pub(crate) fn join<H: Home>(home: &H, group: Text, parts: Vec<Text>, clock: &Clock) -> Arc<dyn Keeper> {
    let table = Arc::new(SqlLeases::new(Arc::new(home.clone())));
    let info = format!("pid {}", std::process::id()).into();
    Arc::new(lease::Keeper::start(table, group, parts, info, clock.clone()))
}

impl<H: Home> OutboxSource for SqlOutbox<H> {
    fn shards(&self) -> u32 {
        H::SHARDS
    }

    fn join<'a>(&'a self, group: &'a Text, clock: &'a Clock) -> BoxFuture<'a, Result<Arc<dyn Keeper>, StoreError>> {
        let parts = (0..H::SHARDS).map(|shard| Text::from(shard.to_string())).collect();
        Box::pin(std::future::ready(Ok(join(self.0.home(), group.clone(), parts, clock))))
    }

    fn read<'a>(
        &'a self,
        shards: &'a [u32],
        limit_each: usize,
        except: &'a [i64],
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        Box::pin(async move {
            let mut session = self.0.read().await?;
            let limit = sql_limit(limit_each);
            let found = match shards {
                [shard] if except.is_empty() => session.fetch(READ, vec![i64::from(*shard).into(), limit]).await?,
                [shard] => {
                    let args = vec![i64::from(*shard).into(), except.to_vec().into(), limit];
                    session.fetch(READ_OTHERS, args).await?
                }
                _ => {
                    let numbers = shards.iter().map(|shard| i64::from(*shard)).chain(std::iter::repeat(NO_SHARD));
                    let args = numbers.take(SHARDS_MAX).flat_map(|shard| [shard.into(), limit.clone()]);
                    session.fetch(READ_MANY, args.collect()).await?
                }
            };
            let mut rows = found.iter().map(|row| outgoing::brief(row, false)).collect::<Result<Vec<_>, _>>()?;
            read_whole(&mut *session, WHOLE, &mut rows).await?;
            Ok(rows)
        })
    }

    fn parked_lanes(&self, shard: u32) -> BoxFuture<'_, Result<BTreeMap<LaneId, Timestamp>, StoreError>> {
        Box::pin(async move {
            let (mut lanes, mut from) = (BTreeMap::new(), Some(i64::MIN));
            while let Some(first) = from {
                let args = vec![i64::from(shard).into(), first.into(), sql_limit(LANES_PAGE)];
                let page = self.0.read().await?.fetch(LANES, args).await?;
                for row in &page {
                    lanes.insert(LaneId(row.int(0)?.cast_unsigned()), Timestamp::from_unix_ms(row.int(1)?));
                }
                let last = page.last().filter(|_| page.len() == LANES_PAGE);
                from = last.map(|row| row.int(0)).transpose()?.and_then(|last| last.checked_add(1));
            }
            Ok(lanes)
        })
    }

    fn read_parked<'a>(
        &'a self,
        shard: u32,
        lanes: &'a [LaneId],
        limit_each: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        Box::pin(async move {
            let mut session = self.0.read().await?;
            let mut rows = Vec::new();
            for lane in lanes {
                let args = vec![i64::from(shard).into(), lane.0.cast_signed().into(), sql_limit(limit_each)];
                for row in session.fetch(READ_PARKED, args).await? {
                    rows.push(outgoing::brief(&row, true)?);
                }
            }
            read_whole(&mut *session, WHOLE_PARKED, &mut rows).await?;
            Ok(rows)
        })
    }

    fn settle<'a>(&'a self, settlement: &'a Arc<Settlement>) -> BoxFuture<'a, Result<Vec<(u32, LaneId)>, StoreError>> {
        Box::pin(self.0.write(Settle(Arc::clone(settlement))))
    }

    fn forget_sent(&self, before: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>> {
        Box::pin(async move {
            let args = vec![before.unix_ms().into(), sql_limit(FORGET_CHUNK)];
            let old = self.0.read().await?.fetch(OLD_SENT, args).await?;
            let ids: Vec<i64> = old.iter().map(|row| row.int(0)).collect::<Result<_, _>>()?;
            let more = ids.len() == FORGET_CHUNK;
            if !ids.is_empty() {
                self.0.write(Change { sql: FORGET, args: vec![ids.into()] }).await?;
            }
            Ok(more)
        })
    }

    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, StoreError>> {
        Box::pin(async move { relay_status::status(&mut *self.0.read().await?, H::SHARDS).await })
    }

    fn list_parked(&self, limit: usize) -> BoxFuture<'_, Result<Vec<ParkedLine>, StoreError>> {
        Box::pin(async move { relay_status::list(&mut *self.0.read().await?, sql_limit(limit)).await })
    }

    fn retry_now<'a>(&'a self, heads: Option<&'a [i64]>, now: Timestamp) -> BoxFuture<'a, Result<u64, StoreError>> {
        let (sql, mut args) = (relay_status::retry(heads.is_some()), vec![now.unix_ms().into(), now.unix_ms().into()]);
        args.extend(heads.map(|ids| Value::Ints(ids.to_vec())));
        Box::pin(self.0.write(Change { sql, args }))
    }

    fn discard(&self, id: i64) -> BoxFuture<'_, Result<Option<ParkedLine>, StoreError>> {
        Box::pin(self.0.write(relay_status::Discard(id)))
    }
}

pub(super) fn sql_limit(limit: usize) -> Value {
    i64::try_from(limit).unwrap_or(i64::MAX).into()
}

/// Reads the rest of rows whose content was of no use.
async fn read_whole(session: &mut dyn Session, sql: &'static str, rows: &mut Vec<OutboxRow>) -> Result<(), StoreError> {
    let mut shards: BTreeMap<u32, Vec<i64>> = BTreeMap::new();
    for row in rows.iter().filter(|row| row.event.is_err()) {
        shards.entry(row.shard).or_default().push(row.id);
    }
    if shards.is_empty() {
        return Ok(());
    }
    let mut found = BTreeMap::new();
    for (shard, ids) in shards {
        for columns in session.fetch(sql, vec![i64::from(shard).into(), ids.into()]).await? {
            found.insert(columns.int(0)?, columns);
        }
    }
    // Somebody has deleted what is not there any more.
    rows.retain(|row| row.event.is_ok() || found.contains_key(&row.id));
    for row in rows.iter_mut().filter(|row| row.event.is_err()) {
        if let Some(columns) = found.get(&row.id) {
            outgoing::whole(columns, row)?;
        }
    }
    Ok(())
}

/// One statement, which answers how many rows it has changed.
struct Change {
    sql: &'static str,
    args: Vec<Value>,
}

impl Step for Change {
    type Answer = u64;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<u64, StoreError>> {
        session.execute(self.sql, self.args.clone())
    }
}

struct Settle(Arc<Settlement>);

impl Step for Settle {
    type Answer = Vec<(u32, LaneId)>;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let mut still_parked = Vec::new();
            for claim in &self.0.claims {
                let shard = OneShard { session: &mut *session, settlement: &self.0, shard: claim.shard };
                still_parked.extend(shard.settle().await?);
            }
            check_fence(session, &self.0.group, &self.0.claims).await?;
            Ok(still_parked)
        })
    }
}

/// The rows of one shard, inside the transaction.
struct OneShard<'a> {
    session: &'a mut dyn Session,
    settlement: &'a Settlement,
    shard: u32,
}

impl OneShard<'_> {
    async fn settle(mut self) -> Result<Vec<(u32, LaneId)>, StoreError> {
        let (settlement, shard) = (self.settlement, self.shard);
        let (mut sent, mut sent_parked) = (Vec::new(), Vec::new());
        let mut behind: BTreeMap<LaneId, Vec<i64>> = BTreeMap::new();
        for row in settlement.rows.iter().filter(|row| row.shard == shard) {
            match &row.fate {
                Fate::Sent if row.parked => sent_parked.push(row.id),
                Fate::Sent => sent.push(row.id),
                Fate::Refused { attempts, next_at, why } => self.refused(row, *attempts, *next_at, why).await?,
                Fate::Behind if row.parked => {}
                Fate::Behind => behind.entry(row.lane).or_default().push(row.id),
            }
        }
        for (lane, ids) in behind {
            // Due as soon as it is the head.
            self.park(lane, ids, [0, settlement.now.unix_ms()], None).await?;
        }
        self.delete_sent(sent, [KEEP, DELETE]).await?;
        self.delete_sent(sent_parked, [KEEP_PARKED, DELETE_PARKED]).await?;
        self.still_parked(&settlement.unparked(shard)).await
    }

    async fn refused(
        &mut self,
        row: &Settled,
        attempts: u32,
        next_at: Timestamp,
        why: &Text,
    ) -> Result<(), StoreError> {
        let numbers = [i64::from(attempts), super::codec::ceil_ms(next_at)];
        if !row.parked {
            return self.park(row.lane, vec![row.id], numbers, Some(why)).await;
        }
        let mut args: Vec<Value> = numbers.map(Value::Int).into();
        args.extend([why.into(), row.id.into(), i64::from(self.shard).into()]);
        self.session.execute(REFUSED_AGAIN, args).await.map(drop)
    }

    async fn park(
        &mut self,
        lane: LaneId,
        ids: Vec<i64>,
        [attempts, next_at]: [i64; 2],
        why: Option<&Text>,
    ) -> Result<(), StoreError> {
        let shard = Value::Int(self.shard.into());
        let mut args = vec![lane.0.cast_signed().into(), attempts.into(), next_at.into(), Value::from(why)];
        args.extend([shard.clone(), ids.clone().into(), shard, ids.into()]);
        self.session.execute(PARK, args).await.map(drop)
    }

    async fn delete_sent(&mut self, ids: Vec<i64>, [keep, delete]: [&'static str; 2]) -> Result<(), StoreError> {
        if ids.is_empty() {
            return Ok(());
        }
        let shard = Value::Int(self.shard.into());
        if self.settlement.keep_sent {
            let args = vec![self.settlement.now.unix_ms().into(), shard.clone(), ids.clone().into()];
            self.session.execute(keep, args).await?;
        }
        self.session.execute(delete, vec![shard, ids.into()]).await.map(drop)
    }

    async fn still_parked(&mut self, lanes: &[LaneId]) -> Result<Vec<(u32, LaneId)>, StoreError> {
        if lanes.is_empty() {
            return Ok(Vec::new());
        }
        let lanes: Vec<i64> = lanes.iter().map(|lane| lane.0.cast_signed()).collect();
        let found = self.session.fetch(STILL_PARKED, vec![i64::from(self.shard).into(), lanes.into()]).await?;
        found.iter().map(|row| Ok((self.shard, LaneId(row.int(0)?.cast_unsigned())))).collect()
    }
}

/// Locks the fences of these shards until the commit, and compares them.
pub(crate) async fn check_fence(
    session: &mut dyn Session,
    group: &Text,
    claims: &[ShardClaim],
) -> Result<(), StoreError> {
    let nothing = std::iter::repeat(Text::default());
    let parts = claims.iter().map(|claim| Text::from(claim.shard.to_string())).chain(nothing).take(SHARDS_MAX);
    let args = std::iter::once(group.clone()).chain(parts).map(Value::Text).collect();
    let mut held = BTreeMap::new();
    for row in session.fetch(FENCE, args).await? {
        if let Ok(shard) = row.text(0)?.as_str().parse::<u32>() {
            held.insert(shard, Epoch(row.int(1)?.cast_unsigned()));
        }
    }
    for ShardClaim { shard, epoch } in claims {
        let held = held.get(shard).copied().unwrap_or(Epoch(0));
        if held != *epoch {
            return Err(StoreError::Fenced { partition: named(*shard), held, ours: *epoch });
        }
    }
    Ok(())
}
