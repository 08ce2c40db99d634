//! Operations on the rows of one shard, inside a transaction.
//!
//! A lane's row keeps its head, so that what is due is found without looking at rows, and its mark, so that taking over
//! reads lanes only. Both are found anew by an index after each change: no operation costs more with a longer lane.

use super::commands;
use super::dialect::{Session, SqlRow, Value};
use super::rows::{self, insert_row, row_columns, update_row};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::store::{Applied, Claim, Failure, Late, Next, Op, Row, RowRef, RowState};
use crate::topic::{Epoch, LaneId, Partition, Place, Position, Text};

/// The shard of a consumer and partition, with its fence.
pub(super) const SHARD: &str = "select id, epoch from aq_shards where consumer = ? and topic = ? and number = ?";

/// Finds head and mark of a lane, and forgets a lane without rows. The arguments are (shard, lane), [`REFRESH_PAIRS`] times.
macro_rules! refresh_lane {
    () => {
        "insert into aq_lanes (shard, lane, head_position, head_index, next_at, mark)
         select ?, ?, h.position, h.idx, case when h.state = 0 then h.next_at end, m.position
         from (select max(position) as position from (
             select max(position) as position from aq_rows where shard = ? and lane = ? and state = 1
             union all select max(position) from aq_rows where shard = ? and lane = ? and state = 2
             union all select max(position) from aq_rows where shard = ? and lane = ? and state = 3) marks) m
         left join (select * from (
             select * from (select position, idx, state, next_at from aq_rows
                 where shard = ? and lane = ? and state = 0 order by position, idx limit 1) parked
             union all select * from (select position, idx, state, next_at from aq_rows
                 where shard = ? and lane = ? and state = 2 order by position, idx limit 1) blocking) heads
             order by position, idx limit 1) h on true
         where true
         on conflict (shard, lane) do update set head_position = excluded.head_position,
             head_index = excluded.head_index, next_at = excluded.next_at, mark = excluded.mark;
         delete from aq_lanes where shard = ? and lane = ? and head_position is null and mark is null;\n"
    };
}
const REFRESH_PAIRS: usize = 7;

/// How a lane stands; the arguments are (shard, lane). Answers one row.
macro_rules! lane_stands {
    () => {
        "select count(head_position), min(next_at) from aq_lanes where shard = ? and lane = ?"
    };
}

const LANE: &str = lane_stands!();
const REFRESH: &str = concat!(refresh_lane!(), lane_stands!());
const INSERT: &str = insert_row!();
const INSERT_AND_REFRESH: &str = concat!(insert_row!(), refresh_lane!(), lane_stands!());
const UPDATE_AND_REFRESH: &str = concat!(update_row!(), refresh_lane!(), lane_stands!());

/// Deletes a row in its version, and asks whether another version is there.
const FINISH: &str = concat!(
    "delete from aq_rows where shard = ? and position = ? and idx = ? and lane = ? and revision = ?;\n",
    refresh_lane!(),
    "select count(head_position), min(next_at),
         (select count(*) from aq_rows where shard = ? and position = ? and idx = ?)
     from aq_lanes where shard = ? and lane = ?"
);

/// Where a row that is to be appended would stand: whether it is there, the head of its lane, and whether one is behind it.
const STAND: &str = "select (select count(*) from aq_rows where shard = ? and position = ? and idx = ?),
        (select head_position from aq_lanes where shard = ? and lane = ?),
        (select head_index from aq_lanes where shard = ? and lane = ?),
        case when exists (select 1 from aq_rows
            where shard = ? and lane = ? and state in (0, 1, 2, 3) and (position, idx) > (?, ?)) then 1 else 0 end";

/// Deletes the discarded rows that the floor has passed, after their lanes know what else they have.
const FORGET_MARKS: &str = "
    update aq_lanes set mark = (select max(position) from (
        select max(r.position) as position from aq_rows r
            where r.shard = aq_lanes.shard and r.lane = aq_lanes.lane and r.state = 1
        union all select max(r.position) from aq_rows r
            where r.shard = aq_lanes.shard and r.lane = aq_lanes.lane and r.state = 2
        union all select max(r.position) from aq_rows r
            where r.shard = aq_lanes.shard and r.lane = aq_lanes.lane and r.state = 3 and r.position > ?) marks)
    where shard = ? and lane in (select lane from aq_rows where shard = ? and position <= ? and state = 3);
    delete from aq_lanes where head_position is null and mark is null
        and shard = ? and lane in (select lane from aq_rows where shard = ? and position <= ? and state = 3);
    delete from aq_rows where shard = ? and position <= ? and state = 3";

/// A row, to be changed.
pub(super) const ROW: &str =
    concat!("select ", row_columns!(), " from aq_rows r where r.shard = ? and r.position = ? and r.idx = ?");

/// Every statement of this file, for the test of their plans.
#[cfg(test)]
pub(super) const ALL: [&str; 9] =
    [SHARD, LANE, REFRESH, INSERT_AND_REFRESH, UPDATE_AND_REFRESH, FINISH, STAND, FORGET_MARKS, ROW];

/// One shard, inside a transaction.
pub(super) struct Shard<'a> {
    pub(super) session: &'a mut dyn Session,
    pub(super) id: i64,
    pub(super) partition: &'a Partition,
}

/// The arguments that name a shard.
pub(super) fn names(consumer: &Text, partition: &Partition) -> Vec<Value> {
    vec![consumer.into(), Value::Text(partition.topic.clone().into()), i64::from(partition.index).into()]
}

/// The shard of a claim that is the highest that took over.
pub(super) async fn fenced(session: &mut dyn Session, claim: &Claim) -> Result<i64, StoreError> {
    let found = session.fetch(SHARD, names(&claim.consumer, &claim.partition)).await?;
    let held = match found.first() {
        Some(shard) => shard.int_or_null(1)?,
        None => None,
    };
    match (found.first(), held) {
        (Some(shard), Some(held)) if Epoch(held.cast_unsigned()) == claim.epoch => shard.int(0),
        _ => Err(fence(claim, held)),
    }
}

pub(super) fn fence(claim: &Claim, held: Option<i64>) -> StoreError {
    let held = Epoch(held.unwrap_or(0).cast_unsigned());
    StoreError::Fenced { partition: claim.partition.clone(), held, ours: claim.epoch }
}

/// The first row of an answer that always has one.
pub(super) fn one(rows: &[SqlRow]) -> Result<&SqlRow, StoreError> {
    rows.first().ok_or_else(|| StoreError::Refused("the database gives no answer where it must".into()))
}

fn stands(row: &SqlRow) -> Result<Applied, StoreError> {
    let next_at = row.int_or_null(1)?.map(Timestamp::from_unix_ms);
    Ok(Applied::Lane { holds: row.int(0)? > 0, next_at })
}

impl Shard<'_> {
    pub(super) async fn apply(&mut self, op: &Op) -> Result<Applied, StoreError> {
        match op {
            Op::Put(rows) => self.put(rows).await,
            Op::Append { row, late } => self.append(row, *late).await,
            Op::Finish(row) => self.finish(*row).await,
            Op::Update { row, failure, to } => self.update(*row, failure, *to).await,
            Op::Floor(floor) => self.forget_marks(*floor).await,
            Op::Operate { id, refused, now } => commands::operate(self, *id, refused.as_ref(), *now).await,
        }
    }

    /// Writes rows and answers how the lane of the first one stands.
    pub(super) async fn put(&mut self, rows: &[Row]) -> Result<Applied, StoreError> {
        let mut answer = Applied::Lane { holds: false, next_at: None };
        for (index, row) in rows.iter().enumerate() {
            let mut args = rows::new(self.id, self.partition, row)?;
            if rows[index + 1..].iter().any(|later| later.lane == row.lane) {
                self.session.execute(INSERT, args).await?;
                continue;
            }
            self.name(&mut args, row.lane, REFRESH_PAIRS + 1);
            let lane = stands(one(&self.session.fetch(INSERT_AND_REFRESH, args).await?)?)?;
            if row.lane == rows[0].lane {
                answer = lane;
            }
        }
        Ok(answer)
    }

    async fn append(&mut self, row: &Row, late: Late) -> Result<Applied, StoreError> {
        let mut args = rows::new(self.id, self.partition, row)?;
        let [position, index] = [1, 2].map(|arg: usize| args[arg].clone());
        let mut at = vec![self.id.into(), position.clone(), index.clone()];
        self.name(&mut at, row.lane, 3);
        at.extend([position, index]);
        let stand = self.session.fetch(STAND, at).await?;
        let stand = one(&stand)?;
        let head = stand.int_or_null(1)?.zip(stand.int_or_null(2)?);
        if stand.int(0)? > 0 {
            return Ok(Applied::Present { holds: head.is_some() });
        }
        if late == Late::Finished && stand.int(3)? > 0 {
            return Ok(Applied::Finished);
        }
        let behind_a_head = head.is_some() && head < rows::columns_of(row.place);
        if behind_a_head && row.state == RowState::Parked {
            self.session.execute(INSERT, args).await?;
        } else {
            self.name(&mut args, row.lane, REFRESH_PAIRS + 1);
            self.session.fetch(INSERT_AND_REFRESH, args).await?;
        }
        Ok(Applied::Appended)
    }

    async fn finish(&mut self, row: RowRef) -> Result<Applied, StoreError> {
        let Some((position, index)) = rows::columns_of(row.place) else { return self.lane(row.lane).await };
        let place = [self.id, position, index].map(Value::Int);
        let mut args = Vec::from(place.clone());
        args.extend([row.lane.0.cast_signed(), row.version.into()].map(Value::Int));
        self.name(&mut args, row.lane, REFRESH_PAIRS);
        args.extend(place);
        self.name(&mut args, row.lane, 1);
        let answer = self.session.fetch(FINISH, args).await?;
        let answer = one(&answer)?;
        if answer.int(2)? > 0 { Ok(Applied::Conflict) } else { stands(answer) }
    }

    async fn update(&mut self, named: RowRef, failure: &Failure, to: Next) -> Result<Applied, StoreError> {
        let Some(found) = self.row(named.place).await? else { return Ok(Applied::Conflict) };
        let mut row = match rows::read(&found, self.partition) {
            Ok(row) => row,
            Err(error) => {
                // It was whole when it was served. The owner lets go of it, and finds it held back when it asks again.
                tracing::error!(%error, "a row cannot be changed");
                return Ok(Applied::Conflict);
            }
        };
        if row.has_failed(named, failure) {
            return self.lane(row.lane).await;
        }
        if row.named() != named {
            return Ok(Applied::Conflict);
        }
        row.fail(failure, to);
        self.change(&row).await
    }

    /// A row as its columns.
    pub(super) async fn row(&mut self, place: Place) -> Result<Option<SqlRow>, StoreError> {
        let Some((position, index)) = rows::columns_of(place) else { return Ok(None) };
        let args = [self.id, position, index].map(Value::Int).into();
        Ok(self.session.fetch(ROW, args).await?.pop())
    }

    /// Writes a row that has changed and answers how its lane stands.
    pub(super) async fn change(&mut self, row: &Row) -> Result<Applied, StoreError> {
        let mut args = rows::changed(self.id, self.partition, row)?;
        self.name(&mut args, row.lane, REFRESH_PAIRS + 1);
        stands(one(&self.session.fetch(UPDATE_AND_REFRESH, args).await?)?)
    }

    pub(super) async fn forget_marks(&mut self, floor: Position) -> Result<Applied, StoreError> {
        let floor = i64::try_from(floor.0).unwrap_or(i64::MAX);
        let passed = [self.id, floor];
        let args = [&[floor, self.id][..], &passed, &[self.id], &passed, &passed].concat();
        self.session.execute(FORGET_MARKS, args.into_iter().map(Value::Int).collect()).await?;
        Ok(Applied::Lane { holds: false, next_at: None })
    }

    /// How a lane stands.
    pub(super) async fn lane(&mut self, lane: LaneId) -> Result<Applied, StoreError> {
        let mut args = Vec::new();
        self.name(&mut args, lane, 1);
        stands(one(&self.session.fetch(LANE, args).await?)?)
    }

    /// Finds head and mark of a lane anew.
    pub(super) async fn refresh(&mut self, lane: LaneId) -> Result<Applied, StoreError> {
        let mut args = Vec::new();
        self.name(&mut args, lane, REFRESH_PAIRS + 1);
        stands(one(&self.session.fetch(REFRESH, args).await?)?)
    }

    /// Adds the arguments (shard, lane) so many times.
    fn name(&self, args: &mut Vec<Value>, lane: LaneId, times: usize) {
        let pair = [self.id, lane.0.cast_signed()].map(Value::Int);
        (0..times).for_each(|_| args.extend(pair.clone()));
    }
}
