//! What operators see of the outbox, and what they can do about parked rows.

use super::dialect::{Session, SqlRow, Value};
use super::ops::one;
use super::rows::small;
use super::store::Step;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::outbox::{OutboxStatus, ParkedLine};
use crate::topic::{Key, Text};

/// Rows are counted up to here; counting more would take longer than it is worth.
const COUNTED_MAX: i64 = 10_000;

const COUNT: &str = "select count(*) from (select 1 as one from aq_outbox limit ?) counted";

/// The ends of a shard and when its first row was written: three looks into an index.
const ENDS: &str = "select (select id from aq_outbox where shard = ? order by id limit 1),
    (select id from aq_outbox where shard = ? order by id desc limit 1),
    (select written_at from aq_outbox where shard = ? order by id limit 1)";

const COUNT_PARKED: &str = "select count(*), count(distinct lane) from aq_outbox_parked";

/// Columns of a line, but for the number of its rows.
macro_rules! line_columns {
    () => {
        "p.id, p.topic, p.key, p.event_id, p.type, p.written_at, p.attempts, p.next_at, p.error"
    };
}

const LIST: &str = concat!(
    "select ",
    line_columns!(),
    ", h.number from aq_outbox_parked p
     join (select shard, lane, min(id) as id, count(*) as number from aq_outbox_parked group by shard, lane) h
         on h.id = p.id order by p.id limit ?"
);

const ONE: &str = concat!(
    "select ",
    line_columns!(),
    ", (select count(*) from aq_outbox_parked o where o.shard = p.shard and o.lane = p.lane)
     from aq_outbox_parked p where p.id = ?"
);

const DISCARD: &str = "delete from aq_outbox_parked where id = ?";

const RETRY: &str = "update aq_outbox_parked set next_at = ? where next_at > ? and id in_ints(?)";
const RETRY_ALL: &str = "update aq_outbox_parked set next_at = ? where next_at > ?";

/// The statement that makes rows due, some or all; the arguments are the time, twice, and the ids of some.
pub(super) fn retry(some: bool) -> &'static str {
    if some { RETRY } else { RETRY_ALL }
}

pub(super) async fn status(session: &mut dyn Session, shards: u32) -> Result<OutboxStatus, StoreError> {
    let (mut first, mut last, mut oldest) = (i64::MAX, i64::MIN, None::<Timestamp>);
    for shard in 0..i64::from(shards) {
        let ends = session.fetch(ENDS, [shard; 3].map(Value::Int).into()).await?;
        let ends = one(&ends)?;
        if let (Some(low), Some(high), Some(at)) = (ends.int_or_null(0)?, ends.int_or_null(1)?, ends.int_or_null(2)?) {
            (first, last) = (first.min(low), last.max(high));
            let at = Timestamp::from_unix_ms(at);
            oldest = Some(oldest.map_or(at, |oldest| oldest.min(at)));
        }
    }
    let counted = session.fetch(COUNT, vec![(COUNTED_MAX + 1).into()]).await?;
    let count = one(&counted)?.int(0)?;
    let counted = count <= COUNTED_MAX;
    let pending = if counted { count } else { last.saturating_sub(first).saturating_add(1).max(count) };
    let parked = session.fetch(COUNT_PARKED, vec![]).await?;
    let [parked, parked_lines] = [one(&parked)?.int(0)?, one(&parked)?.int(1)?].map(i64::cast_unsigned);
    Ok(OutboxStatus { pending: pending.cast_unsigned(), counted, oldest, parked, parked_lines })
}

pub(super) async fn list(session: &mut dyn Session, limit: Value) -> Result<Vec<ParkedLine>, StoreError> {
    session.fetch(LIST, vec![limit]).await?.iter().map(line).collect()
}

/// What does not read as text is shown as far as it does: the row is parked because something is wrong with it.
fn line(row: &SqlRow) -> Result<ParkedLine, StoreError> {
    let text = |column| {
        let bytes = row.bytes_or_null(column)?.unwrap_or_default();
        Ok::<_, StoreError>(Text::from(String::from_utf8_lossy(&bytes).into_owned()))
    };
    Ok(ParkedLine {
        id: row.int(0)?,
        topic: text(1)?,
        key: Key::new(text(2)?),
        event_id: text(3)?,
        kind: text(4)?,
        written_at: Timestamp::from_unix_ms(row.int(5)?),
        attempts: small(row.int(6)?)?,
        next_at: Timestamp::from_unix_ms(row.int(7)?),
        why: text(8)?,
        rows: row.int(9)?.cast_unsigned(),
    })
}

/// Takes a row out of its line.
pub(super) struct Discard(pub(super) i64);

impl Step for Discard {
    type Answer = Option<ParkedLine>;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let found = session.fetch(ONE, vec![self.0.into()]).await?;
            session.execute(DISCARD, vec![self.0.into()]).await?;
            found.first().map(line).transpose()
        })
    }
}
