//! A row of the outbox to and from its columns.
//!
//! A row of the library carries its whole event in `content`; the columns beside it are for the shard, the lane and people. A
//! row that a program in another language wrote has no content, and its event is made of the columns. What is wrong with
//! such a row is told as the row's own fault: it never keeps others from being read.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::codec::{Decoder, Encoder, VERSION, checksum};
use super::dialect::SqlRow;
use super::rows::{damaged, known, read_event, small, write_event};
use crate::clock::Timestamp;
use crate::error::{StoreError, without_values};
use crate::event::Event;
use crate::headers::Headers;
use crate::store::outbox::{OutboxRow, lane_of};
use crate::topic::{Key, Text, Topic};

/// What [`read`] reads of a row, and the first column after it. What is in the content too does not travel twice.
macro_rules! outgoing_columns {
    () => {
        "id, shard, written_at, topic, key, content, case when content is null then event_id end,
         case when content is null then type end, case when content is null then source end,
         time, content_type, headers, data"
    };
}
pub(super) use outgoing_columns;
const AFTER_ROW: usize = 13;

/// The event of a row of the library; its version and its checksum stand behind it.
pub(super) fn content(event: &Event) -> Bytes {
    let mut to = Encoder::default();
    to.reserve(event.size() + 256);
    write_event(&mut to, event);
    let sum = checksum(&[VERSION], &[to.written()]);
    to.int(VERSION.cast_unsigned()).int(sum.cast_unsigned());
    to.finish()
}

fn read_content(mut bytes: Bytes) -> Result<Event, StoreError> {
    const SEAL: usize = 16;
    let Some(length) = bytes.len().checked_sub(SEAL) else { return Err(damaged("it ends too early")) };
    let body = bytes.split_to(length);
    let mut seal = Decoder(bytes);
    let (version, sum) = (seal.int()?.cast_signed(), seal.int()?.cast_signed());
    known(version)?;
    if checksum(&[version], &[&body]) != sum {
        return Err(damaged("its checksum is another"));
    }
    read_event(&mut Decoder(body))
}

/// Reads a row, whatever is in it; `parked` if the number of its attempts follows.
pub(super) fn read(sql: &SqlRow, parked: bool) -> Result<OutboxRow, StoreError> {
    let (id, shard) = (sql.int(0)?, small(sql.int(1)?)?);
    let written_at = Timestamp::from_unix_ms(sql.int(2)?);
    let topic = sql.bytes_or_null(3)?.unwrap_or_default();
    let key = sql.bytes_or_null(4)?.unwrap_or_default();
    let parked = if parked { Some(small(sql.int(AFTER_ROW)?)?) } else { None };
    let lane = lane_of(&topic, &key, id);
    let event = match sql.bytes_or_null(5)? {
        Some(content) => read_content(content).map_err(|e| Text::from(e.to_string())),
        None => columns(sql, &topic, key, written_at),
    };
    let bytes = ROW_BYTES + topic.len() + event.as_ref().map_or(0, Event::size);
    Ok(OutboxRow { id, shard, lane, parked, event: event.map(Box::new), bytes })
}

/// What a row takes beside its data and headers, more or less.
const ROW_BYTES: usize = 512;

/// The event of a row without content.
fn columns(sql: &SqlRow, topic: &Bytes, key: Bytes, written_at: Timestamp) -> Result<Event, Text> {
    let text = |name: &str, bytes: Bytes| {
        Text::try_from(bytes).map_err(|_| Text::from(format!("its column `{name}` is not UTF-8")))
    };
    let column = |name: &str, number: usize| {
        let found = sql.bytes_or_null(number).map_err(|e| Text::from(e.to_string()))?;
        found.map(|bytes| text(name, bytes)).transpose()
    };
    let mut event = Event::raw(column("type", 7)?.unwrap_or_default(), Bytes::new());
    if event.kind.is_empty() {
        return Err(Text::from_static(
            "its column `type` is empty: write what kind of event it is, such as 'order.placed'",
        ));
    }
    let topic = Topic::from(text("topic", topic.clone())?);
    topic.check().map_err(|e| Text::from(e.to_string()))?;
    (event.topic, event.key) = (Some(topic), Key::new(text("key", key)?));
    event.id = column("event_id", 6)?.unwrap_or_default();
    event.source = column("source", 8)?.unwrap_or_default();
    let time = column("time", 9)?.map(|time| time.as_str().parse::<Timestamp>()).transpose();
    event.time = Some(time.map_err(|e| Text::from(format!("its column `time`: {e}")))?.unwrap_or(written_at));
    event.content_type = column("content_type", 10)?;
    event.headers = column("headers", 11)?.map(|json| headers(&json)).transpose()?.unwrap_or_default();
    event.data = sql.bytes_or_null(12).map_err(|e| Text::from(e.to_string()))?.unwrap_or_default();
    Ok(event)
}

fn headers(json: &Text) -> Result<Headers, Text> {
    let found: BTreeMap<String, String> = serde_json::from_str(json.as_str())
        .map_err(|e| Text::from(format!("its column `headers` is no JSON object of texts: {}", without_values(&e))))?;
    Ok(found.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::super::dialect::{Kind, Value};
    use super::*;

    fn row(set: impl FnOnce(&mut Vec<Value>)) -> OutboxRow {
        let text = |text: &'static str| Value::Text(Text::from_static(text));
        let mut columns = vec![Value::Null(Kind::Text); AFTER_ROW];
        (columns[0], columns[1], columns[2]) = (Value::Int(7), Value::Int(3), Value::Int(1_000));
        (columns[3], columns[4], columns[6]) = (text("orders"), text("k"), text("id"));
        columns[7] = text("order.placed");
        set(&mut columns);
        read(&SqlRow(columns), false).unwrap()
    }

    #[test]
    fn an_event_comes_back_as_it_was_and_damage_is_found() {
        let event = Event::raw("order.placed", "data").id("1").source("shop").topic("orders").key("k").header("a", "b");
        let sealed = content(&event);
        assert_eq!(read_content(sealed.clone()).unwrap(), event);
        for at in 0..sealed.len() {
            let mut damaged = sealed.to_vec();
            damaged[at] ^= 1;
            assert!(read_content(damaged.into()).is_err(), "byte {at}");
            assert!(read_content(sealed.slice(..at)).is_err(), "{at} bytes");
        }
    }

    #[test]
    fn a_row_of_another_language_is_read_from_its_columns() {
        let plain = row(|_| ());
        let event = plain.event.unwrap();
        assert_eq!((event.id.as_str(), event.source.as_str(), event.kind.as_str()), ("id", "", "order.placed"));
        assert_eq!((event.time, plain.shard), (Some(Timestamp::from_unix_ms(1_000)), 3));
        let full = row(|columns| {
            columns[9] = Value::Text("2026-01-05T09:00:07Z".into());
            columns[11] = Value::Text(r#"{"a":"1"}"#.into());
            columns[12] = Value::Blob(Bytes::from("data"));
        });
        let event = full.event.unwrap();
        assert_eq!((event.headers.text("a"), &event.data[..]), (Some("1"), &b"data"[..]));
        assert_eq!(event.time.unwrap().to_string(), "2026-01-05T09:00:07Z");
    }

    #[test]
    fn an_invalid_row_says_why_and_keeps_its_lane() {
        let text = |text: &'static str| Value::Text(Text::from_static(text));
        let cases = [
            (3, text("two words"), "white space"),
            (4, Value::Blob(Bytes::from_static(&[255])), "`key` is not UTF-8"),
            (5, Value::Blob(Bytes::from_static(b"rubbish")), "damaged"),
            (7, text(""), "`type` is empty"),
            (9, text("yesterday"), "`time`"),
            (11, text("[1]"), "`headers`"),
            (11, text(r#"{"card":4111}"#), "expected a string"),
        ];
        for (column, value, why) in cases {
            let row = row(|columns| columns[column] = value.clone());
            let found = row.event.unwrap_err();
            assert!(found.as_str().contains(why) && !found.as_str().contains("4111"), "{found}");
            let expected = if column == 3 { lane_of(b"two words", b"k", 7) } else { lane_of(b"orders", b"k", 7) };
            assert_eq!(row.lane == expected, column != 4, "{found}");
        }
    }
}
