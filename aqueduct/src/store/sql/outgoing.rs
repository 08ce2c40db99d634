//! A row of the outbox to and from its columns.
//!
//! A row of the library carries its whole event in `content`; the columns beside it are for the shard and for people, and
//! are not read. A row that a program in another language wrote has no content, and its event is made of the columns. What is
//! wrong with a row is told as its own fault: it never keeps others from being read.

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

/// What [`whole`] reads of a row.
macro_rules! whole_columns {
    () => {
        "id, written_at, topic, key, event_id, type, source, time, content_type, headers, data,
         case when content is null then 1 else 0 end"
    };
}
pub(super) use whole_columns;

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

/// Reads a row by its id, shard and content, and the number of its attempts if it is parked: that is enough for those of the
/// library. One that has no event then must be read [`whole`].
pub(super) fn brief(sql: &SqlRow, parked: bool) -> Result<OutboxRow, StoreError> {
    let (id, shard) = (sql.int(0)?, small(sql.int(1)?)?);
    let parked = if parked { Some(small(sql.int(3)?)?) } else { None };
    let event = match sql.bytes_or_null(2)? {
        Some(content) => read_content(content).map(Box::new).map_err(|e| Text::from(e.to_string())),
        None => Err(Text::default()),
    };
    let topic = event.as_ref().ok().and_then(|event| event.topic.as_ref());
    let key = event.as_ref().ok().and_then(|event| event.key.as_ref()).map_or("", Key::as_str);
    let lane = lane_of(topic.map_or("", Topic::as_str).as_bytes(), key.as_bytes(), id);
    let bytes = ROW_BYTES + event.as_ref().map_or(0, |event| event.size());
    Ok(OutboxRow { id, shard, lane, parked, event, bytes })
}

/// Reads a row by all its columns but the content, once that was of no use.
pub(super) fn whole(sql: &SqlRow, row: &mut OutboxRow) -> Result<(), StoreError> {
    let written_at = Timestamp::from_unix_ms(sql.int(1)?);
    let topic = sql.bytes_or_null(2)?.unwrap_or_default();
    let key = sql.bytes_or_null(3)?.unwrap_or_default();
    row.lane = lane_of(&topic, &key, row.id);
    if sql.int(11)? != 0 {
        row.event = columns(sql, &topic, key, written_at).map(Box::new);
        row.bytes += row.event.as_ref().map_or(0, |event| event.size());
    }
    Ok(())
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
    let mut event = Event::raw(column("type", 5)?.unwrap_or_default(), Bytes::new());
    if event.kind.is_empty() {
        return Err(Text::from_static(
            "its column `type` is empty: write what kind of event it is, such as 'order.placed'",
        ));
    }
    let topic = Topic::from(text("topic", topic.clone())?);
    topic.check().map_err(|e| Text::from(e.to_string()))?;
    (event.topic, event.key) = (Some(topic), Key::new(text("key", key)?));
    event.id = column("event_id", 4)?.unwrap_or_default();
    event.source = column("source", 6)?.unwrap_or_default();
    let time = column("time", 7)?.map(|time| time.as_str().parse::<Timestamp>()).transpose();
    event.time = Some(time.map_err(|e| Text::from(format!("its column `time`: {e}")))?.unwrap_or(written_at));
    event.content_type = column("content_type", 8)?;
    event.headers = column("headers", 9)?.map(|json| headers(&json)).transpose()?.unwrap_or_default();
    event.data = sql.bytes_or_null(10).map_err(|e| Text::from(e.to_string()))?.unwrap_or_default();
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
        let mut row = brief(&SqlRow(vec![Value::Int(7), Value::Int(3), Value::Null(Kind::Blob)]), false).unwrap();
        assert!(row.event.is_err());
        let mut columns = vec![Value::Null(Kind::Text); 12];
        (columns[0], columns[1], columns[11]) = (Value::Int(7), Value::Int(1_000), Value::Int(1));
        (columns[2], columns[3], columns[4]) = (text("orders"), text("k"), text("id"));
        columns[5] = text("order.placed");
        set(&mut columns);
        whole(&SqlRow(columns), &mut row).unwrap();
        row
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
            columns[7] = Value::Text("2026-01-05T09:00:07Z".into());
            columns[9] = Value::Text(r#"{"a":"1"}"#.into());
            columns[10] = Value::Blob(Bytes::from("data"));
        });
        let event = full.event.unwrap();
        assert_eq!((event.headers.text("a"), &event.data[..]), (Some("1"), &b"data"[..]));
        assert_eq!(event.time.unwrap().to_string(), "2026-01-05T09:00:07Z");
    }

    #[test]
    fn an_invalid_row_says_why_and_keeps_its_lane() {
        let text = |text: &'static str| Value::Text(Text::from_static(text));
        let cases = [
            (2, text("two words"), "white space"),
            (3, Value::Blob(Bytes::from_static(&[255])), "`key` is not UTF-8"),
            (5, text(""), "`type` is empty"),
            (7, text("yesterday"), "`time`"),
            (9, text("[1]"), "`headers`"),
            (9, text(r#"{"card":4111}"#), "expected a string"),
        ];
        for (column, value, why) in cases {
            let row = row(|columns| columns[column] = value.clone());
            let found = row.event.unwrap_err();
            assert!(found.as_str().contains(why) && !found.as_str().contains("4111"), "{found}");
            let expected = if column == 2 { lane_of(b"two words", b"k", 7) } else { lane_of(b"orders", b"k", 7) };
            assert_eq!(row.lane == expected, column != 3, "{found}");
        }
        let content = [Value::Int(7), Value::Int(3), Value::Blob(Bytes::from_static(b"rubbish that is long enough"))];
        let mut damaged = brief(&SqlRow(content.into()), false).unwrap();
        let columns = [text("orders"), text("k"), text("7"), text("order.placed")];
        let mut all = vec![Value::Int(7), Value::Int(1_000)];
        all.extend(columns);
        all.resize(11, Value::Null(Kind::Text));
        all.push(Value::Int(0));
        whole(&SqlRow(all), &mut damaged).unwrap();
        assert_eq!(damaged.lane, lane_of(b"orders", b"k", 7));
        assert!(damaged.event.unwrap_err().as_str().contains("version"));
    }
}
