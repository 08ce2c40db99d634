//! A row to and from its columns.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::codec::{Decoder, Encoder, VERSION, ceil_ms, checksum, floor_ms};
use super::dialect::{Kind, SqlRow, Value};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::event::Event;
use crate::message::Message;
use crate::store::{Content, Failure, Hold, Row, RowState};
use crate::topic::{Key, LaneId, Partition, Place, Position, Text, Topic};

/// Writes a row unless its place is taken; the arguments are [`new`]'s.
macro_rules! insert_row {
    () => {
        "insert into aq_rows (shard, position, idx, lane, parked_at, state, revision, attempts, next_at, replay,
             key, source, event_id, kind, content, history, checksum, version)
         values (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
         on conflict (shard, position, idx) do nothing;\n"
    };
}

/// Writes a row that has changed; the arguments are [`changed`]'s.
macro_rules! update_row {
    () => {
        "update aq_rows set state = ?, revision = ?, attempts = ?, next_at = ?, replay = ?,
             key = ?, source = ?, event_id = ?, kind = ?, content = ?, history = ?, checksum = ?, version = ?
         where shard = ? and position = ? and idx = ?;\n"
    };
}

/// What [`read`] reads, and the first column after it. The identity is for people: it is part of the content too.
macro_rules! row_columns {
    () => {
        "r.shard, r.position, r.idx, r.lane, r.state, r.revision, r.attempts, r.next_at, r.parked_at, r.replay,
             r.version, r.checksum, r.content, r.history"
    };
}
pub(super) const AFTER_ROW: usize = 14;

pub(super) use {insert_row, row_columns, update_row};

/// The numbers of a row that its checksum covers, in the order of their columns.
type Numbers = [i64; 11];

const EVENT: u8 = 0;
const UNDECODABLE: u8 = 1;

/// The arguments of a new row.
pub(super) fn new(shard: i64, partition: &Partition, row: &Row) -> Result<Vec<Value>, StoreError> {
    let numbers = numbers(shard, partition, row)?;
    let [_, position, index, lane, .., parked_at, _, _] = numbers;
    let mut args: Vec<Value> = [shard, position, index, lane, parked_at].map(Value::Int).into();
    args.extend(changing(&numbers, row));
    Ok(args)
}

/// The arguments of a row that has changed.
pub(super) fn changed(shard: i64, partition: &Partition, row: &Row) -> Result<Vec<Value>, StoreError> {
    let numbers = numbers(shard, partition, row)?;
    let mut args = changing(&numbers, row);
    args.extend(numbers[..3].iter().copied().map(Value::Int));
    Ok(args)
}

fn changing(numbers: &Numbers, row: &Row) -> Vec<Value> {
    let [_, _, _, _, state, revision, attempts, next_at, _, replay, version] = *numbers;
    let (content, history) = (content(&row.content), history(&row.history));
    let sum = checksum(numbers, &[&content, &history]);
    let mut args: Vec<Value> = [state, revision, attempts, next_at, replay].map(Value::Int).into();
    args.extend(identity(&row.content));
    args.extend([content.into(), history.into(), sum.into(), version.into()]);
    args
}

fn numbers(shard: i64, partition: &Partition, row: &Row) -> Result<Numbers, StoreError> {
    let Some((position, index)) = columns_of(row.place) else {
        let place = row.place;
        return Err(StoreError::Refused(format!(
            "the position of {place:?} of {partition} is above what SQL can count"
        )));
    };
    Ok([
        shard,
        position,
        index,
        row.lane.0.cast_signed(),
        state_code(row.state),
        row.version.into(),
        row.attempts.into(),
        ceil_ms(row.next_at),
        floor_ms(row.parked_at),
        row.replay.into(),
        VERSION,
    ])
}

/// The two columns of a place; none above what SQL can count.
pub(super) fn columns_of(place: Place) -> Option<(i64, i64)> {
    Some((i64::try_from(place.position.0).ok()?, place.index.into()))
}

fn state_code(state: RowState) -> i64 {
    match state {
        RowState::Parked => 0,
        RowState::Dead(Hold::Skip) => 1,
        RowState::Dead(Hold::Block) => 2,
        RowState::Discarded => 3,
    }
}

/// Key, source, id and type: for people, and for who looks for the row of an event.
fn identity(content: &Content) -> [Value; 4] {
    let Content::Event(event) = content else { return [const { Value::Null(Kind::Text) }; 4] };
    let known = |text: &Text| Value::from(Some(text).filter(|text| !text.is_empty()));
    let key = Value::from(event.key.as_ref().map(Text::from));
    [key, known(&event.source), known(&event.id), known(&event.kind)]
}

/// Reads a row and verifies it: one that is damaged is refused, by partition and place.
pub(super) fn read(sql: &SqlRow, partition: &Partition) -> Result<Row, StoreError> {
    decode(sql).map_err(|problem| {
        let [position, index, lane, revision] = [1, 2, 3, 5].map(|column| sql.int(column).unwrap_or(-1));
        let why = match problem {
            StoreError::Refused(why) => why,
            other => other.to_string(),
        };
        StoreError::Refused(format!(
            "the row at position {position}, index {index} of {partition} (lane {}, version {revision}) is not served: {why}",
            lane.cast_unsigned()
        ))
    })
}

fn decode(sql: &SqlRow) -> Result<Row, StoreError> {
    let mut numbers: Numbers = [0; 11];
    for (column, number) in numbers.iter_mut().enumerate() {
        *number = sql.int(column)?;
    }
    let [_, position, index, lane, state, revision, attempts, next_at, parked_at, replay, version] = numbers;
    known(version)?;
    let (content, history) = (sql.blob(12)?, sql.blob(13)?);
    if checksum(&numbers, &[&content, &history]) != sql.int(11)? {
        return Err(damaged("its checksum is another"));
    }
    let state = match state {
        0 => RowState::Parked,
        1 => RowState::Dead(Hold::Skip),
        2 => RowState::Dead(Hold::Block),
        3 => RowState::Discarded,
        _ => return Err(damaged("its state is none that there is")),
    };
    let place = Place { position: Position(position.cast_unsigned()), index: small(index)? };
    let (lane, content) = (LaneId(lane.cast_unsigned()), read_content(content)?);
    let mut row = Row::new(place, lane, content, Timestamp::from_unix_ms(next_at));
    row.parked_at = Timestamp::from_unix_ms(parked_at);
    (row.state, row.version, row.attempts, row.replay) = (state, small(revision)?, small(attempts)?, replay != 0);
    row.history = read_history(history)?;
    Ok(row)
}

/// Refuses an encoding that is newer than this program.
pub(super) fn known(version: i64) -> Result<(), StoreError> {
    if version <= VERSION {
        return Ok(());
    }
    Err(StoreError::Refused(format!(
        "it is encoded in version {version} and this program knows {VERSION}: use a newer version of the program"
    )))
}

pub(super) fn small(number: i64) -> Result<u32, StoreError> {
    u32::try_from(number).map_err(|_| damaged("a number is out of range"))
}

pub(super) fn damaged(why: &str) -> StoreError {
    StoreError::Refused(format!("it is damaged, {why}: restore a backup of the database, or discard it"))
}

/// What a row carries, as bytes.
pub(super) fn content(content: &Content) -> Bytes {
    let mut to = Encoder::default();
    match content {
        Content::Event(event) => {
            to.byte(EVENT);
            write_event(&mut to, event);
        }
        Content::Undecodable(message) => {
            to.byte(UNDECODABLE);
            write_message(&mut to, message);
        }
    }
    to.finish()
}

pub(super) fn read_content(bytes: Bytes) -> Result<Content, StoreError> {
    let mut from = Decoder(bytes);
    match from.byte()? {
        EVENT => read_event(&mut from).map(|event| Content::Event(Arc::new(event))),
        UNDECODABLE => read_message(&mut from).map(|message| Content::Undecodable(Arc::new(message))),
        _ => Err(damaged("its content is of no kind that there is")),
    }
}

pub(super) fn write_event(to: &mut Encoder, event: &Event) {
    let Event { id, source, kind, time, topic, key, subject, schema, content_type, headers, data } = event;
    for text in [id, source, kind] {
        to.bytes(text.as_str().as_bytes());
    }
    to.optional_time(*time);
    to.optional(topic.as_ref().map(|topic| topic.as_str().as_bytes()));
    to.optional(key.as_ref().map(|key| key.as_str().as_bytes()));
    for text in [subject, schema, content_type] {
        to.optional(text.as_ref().map(|text| text.as_str().as_bytes()));
    }
    to.headers(headers).bytes(data);
}

pub(super) fn read_event(from: &mut Decoder) -> Result<Event, StoreError> {
    let mut event = Event::default();
    (event.id, event.source, event.kind) = (from.text()?, from.text()?, from.text()?);
    event.time = from.optional_time()?;
    event.topic = from.optional_text()?.map(Topic::from);
    event.key = from.optional_text()?.and_then(Key::new);
    (event.subject, event.schema, event.content_type) =
        (from.optional_text()?, from.optional_text()?, from.optional_text()?);
    (event.headers, event.data) = (from.headers()?, from.bytes()?);
    Ok(event)
}

fn write_message(to: &mut Encoder, message: &Message) {
    let Message { topic, key, headers, body, dedup_id, stored_at } = message;
    to.bytes(topic.as_str().as_bytes()).optional(key.as_deref()).headers(headers).bytes(body);
    to.optional(dedup_id.as_ref().map(|id| id.as_str().as_bytes())).optional_time(*stored_at);
}

fn read_message(from: &mut Decoder) -> Result<Message, StoreError> {
    let topic = Topic::from(from.text()?);
    let (key, headers, body) = (from.optional()?, from.headers()?, from.bytes()?);
    let (dedup_id, stored_at) = (from.optional_text()?, from.optional_time()?);
    Ok(Message { topic, key, headers, body, dedup_id, stored_at })
}

fn history(failures: &VecDeque<Failure>) -> Bytes {
    let mut to = Encoder::default();
    for Failure { at, attempt, took, error } in failures {
        to.byte(1).time(*at).int(u64::from(*attempt)).int(took.as_secs()).int(u64::from(took.subsec_nanos()));
        to.bytes(error.as_str().as_bytes());
    }
    to.byte(0);
    to.finish()
}

fn read_history(bytes: Bytes) -> Result<VecDeque<Failure>, StoreError> {
    let (mut from, mut failures) = (Decoder(bytes), VecDeque::new());
    while from.byte()? != 0 {
        let (at, attempt) = (from.time()?, small(from.int()?.cast_signed())?);
        let (seconds, nanos) = (from.int()?, small(from.int()?.cast_signed())?);
        let took = Duration::from_secs(seconds).saturating_add(Duration::from_nanos(nanos.into()));
        failures.push_back(Failure { at, attempt, took, error: from.text()? });
    }
    Ok(failures)
}
