//! What is looked up outside a transaction: what is due, and rows for people.
//!
//! A row that is damaged is never served. It is told to the log, and the others are served all the same.

use super::codec::floor_ms;
use super::commands;
use super::dialect::{Session, SqlRow, Value};
use super::ops::fenced;
use super::rows::{self, AFTER_ROW, row_columns};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::store::{Claim, CommandId, Due, Listed, Query, StoredLane, TakeOver};
use crate::topic::{LaneId, Partition, Position, Text, Topic};

/// How many rows [`browse`] answers when the query does not say.
const BROWSE_LIMIT: usize = 100;

/// Lanes that are read at a time.
const LANES_PAGE: usize = 10_000;

/// The earliest heads, with the rows of those that are due.
const HEADS: &str = concat!(
    "select ",
    row_columns!(),
    ", l.next_at, l.lane, l.head_position, l.head_index
     from (select shard, lane, next_at, head_position, head_index from aq_lanes
         where shard = ? and next_at is not null order by next_at, head_position, head_index limit ?) l
     left join aq_rows r on r.shard = l.shard and r.position = l.head_position and r.idx = l.head_index
         and l.next_at <= ?
     order by l.next_at, l.head_position, l.head_index"
);

const LANES: &str = "select lane, case when head_position is null then 0 else 1 end, mark
    from aq_lanes where shard = ? and lane >= ? order by lane limit ?";

const FIRST_DUE: &str = "select next_at from aq_lanes where shard = ? and next_at is not null order by next_at limit 1";

const SHARDS: &str = "select id, consumer, topic, number from aq_shards
    where (? is null or consumer = ?) and (? is null or topic = ?) and (? is null or number = ?)";

macro_rules! rows_of {
    ($of_state:literal) => {
        concat!(
            "select ",
            row_columns!(),
            " from aq_rows r where r.shard = ? and (r.position, r.idx) > (?, ?) and (? is null or r.key = ?)",
            $of_state,
            " order by r.position, r.idx limit ?"
        )
    };
}
const ROWS: &str = rows_of!("");
const ROWS_DEAD: &str = rows_of!(" and r.state in (1, 2)");
const ROWS_PARKED: &str = rows_of!(" and r.state = 0");

/// Every statement of this file that must not walk through a table, for the test of their plans.
#[cfg(test)]
pub(super) const ALL: [&str; 6] = [HEADS, LANES, FIRST_DUE, ROWS, ROWS_DEAD, ROWS_PARKED];

/// What was found to be due, and what of it is damaged: lanes with their heads, and commands.
pub(super) struct Found {
    pub(super) due: Due,
    pub(super) shard: i64,
    pub(super) heads: Vec<[Value; 3]>,
    pub(super) commands: Vec<(CommandId, StoreError)>,
}

pub(super) async fn due(
    session: &mut dyn Session,
    claim: &Claim,
    now: Timestamp,
    limit: usize,
) -> Result<Found, StoreError> {
    let shard = fenced(session, claim).await?;
    let (mut due, mut heads) = (Due::default(), Vec::new());
    let args = [shard, sql_limit(limit.saturating_add(1)), floor_ms(now)].map(Value::Int);
    for row in session.fetch(HEADS, args.into()).await? {
        if row.int_or_null(0)?.is_none() || due.heads.len() + heads.len() == limit {
            due.next_at = Some(Timestamp::from_unix_ms(row.int(AFTER_ROW)?));
            break;
        }
        match rows::read(&row, &claim.partition) {
            Ok(row) => due.heads.push(row),
            Err(error) => {
                tracing::error!(%error, consumer = %claim.consumer, "a row is damaged; its lane waits until it is discarded");
                heads.push([1, 2, 3].map(|column| row.0[AFTER_ROW + column].clone()));
            }
        }
    }
    let (good, commands) = commands::waiting(session, shard, sql_limit(limit)).await?;
    due.commands = good;
    Ok(Found { due, shard, heads, commands })
}

/// What a new owner must know; read in pages, so that a million lanes take the memory of their answer alone.
pub(super) async fn lanes(
    session: &mut dyn Session,
    shard: i64,
    floor: Option<Position>,
) -> Result<TakeOver, StoreError> {
    let mut taken = TakeOver::default();
    let mut from = Some(i64::MIN);
    while let Some(lane) = from.take() {
        let page = session.fetch(LANES, [shard, lane, sql_limit(LANES_PAGE)].map(Value::Int).into()).await?;
        for row in &page {
            let lane = LaneId(row.int(0)?.cast_unsigned());
            let mark = row.int_or_null(2)?.map(|mark| Position(mark.cast_unsigned()));
            let mark = mark.filter(|mark| Some(*mark) > floor);
            taken.lanes.push(StoredLane { lane, holds: row.int(1)? > 0, mark });
        }
        if let Some(last) = page.last().filter(|_| page.len() == LANES_PAGE) {
            from = last.int(0)?.checked_add(1);
        }
    }
    let first = session.fetch(FIRST_DUE, vec![shard.into()]).await?;
    taken.next_at = first.first().map(|row| row.int(0).map(Timestamp::from_unix_ms)).transpose()?;
    Ok(taken)
}

/// The rows that a query asks for. Damaged ones are left out, unless there are no others: then their error is the answer.
pub(super) async fn browse(session: &mut dyn Session, query: &Query) -> Result<Vec<Listed>, StoreError> {
    let limit = if query.limit == 0 { BROWSE_LIMIT } else { query.limit };
    let (mut found, mut damage) = (Vec::new(), None);
    for (shard, consumer, partition) in shards(session, query).await? {
        for row in session.fetch(of_state(query.dead), narrowed(shard, query, limit)).await? {
            match rows::read(&row, &partition) {
                Ok(row) => found.push(Listed { consumer: consumer.clone(), partition: partition.clone(), row }),
                Err(error) => {
                    tracing::error!(%error, %consumer, "a row is damaged");
                    damage.get_or_insert(error);
                }
            }
        }
        found.sort_by_key(|listed| listed.row.place);
        found.truncate(limit);
    }
    damage.filter(|_| found.is_empty()).map_or(Ok(found), Err)
}

fn of_state(dead: Option<bool>) -> &'static str {
    match dead {
        None => ROWS,
        Some(true) => ROWS_DEAD,
        Some(false) => ROWS_PARKED,
    }
}

fn narrowed(shard: i64, query: &Query, limit: usize) -> Vec<Value> {
    let beyond = (i64::MAX, i64::from(u32::MAX));
    let (position, index) = query.after.map_or((-1, 0), |after| rows::columns_of(after).unwrap_or(beyond));
    let key = Value::from(query.key.as_ref().map(Text::from));
    vec![shard.into(), position.into(), index.into(), key.clone(), key, sql_limit(limit).into()]
}

/// The shards that a query is about, in the order of their names.
async fn shards(session: &mut dyn Session, query: &Query) -> Result<Vec<(i64, Text, Partition)>, StoreError> {
    let consumer = Value::from(query.consumer.as_ref());
    let topic = Value::from(query.partition.as_ref().map(|p| Text::from(p.topic.clone())));
    let number = Value::from(query.partition.as_ref().map(|p| i64::from(p.index)));
    let args = vec![consumer.clone(), consumer, topic.clone(), topic, number.clone(), number];
    let read = |row: &SqlRow| {
        let partition = Partition { topic: Topic::from(row.text(2)?), index: rows::small(row.int(3)?)? };
        Ok((row.int(0)?, row.text(1)?, partition))
    };
    let mut shards = session.fetch(SHARDS, args).await?.iter().map(read).collect::<Result<Vec<_>, StoreError>>()?;
    shards.sort_by(|(_, a, b), (_, c, d)| (a, b).cmp(&(c, d)));
    Ok(shards)
}

/// A number of rows as SQL has it.
pub(super) fn sql_limit(limit: usize) -> i64 {
    i64::try_from(limit).unwrap_or(i64::MAX)
}
