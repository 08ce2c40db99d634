//! How a message looks on NATS: key, dedup id and headers as NATS headers.

use std::borrow::Cow;

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue};
use bytes::{Bytes, BytesMut};

use super::layout::{key_of, percent};
use super::publish::Expected;
use crate::clock::Timestamp;
use crate::error::BrokerError;
use crate::message::Message;
use crate::topic::{Text, Topic};

/// The header with the key: a subject could not hold each.
pub(super) const KEY: &str = "Aqueduct-Key";

/// Matched by the server byte by byte.
pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";

/// The header with the event's type, where the format has one.
pub(super) const TYPE: &str = "ce-type";

/// What begins a value that is percent-encoded, since it could not stand in a header as it is.
const ENCODED: &str = "%:";

/// What the block of headers has beside them: its first line and its last.
const FRAME_BYTES: usize = "NATS/1.0\r\n\r\n".len();

/// The headers of a message, and how many bytes they are on the wire.
///
/// Headers that begin with `Nats-` are orders to the server, and came with an event that was read from NATS: copied, they would
/// make the server drop the message as a repeat, or refuse it. They are left out; those that are written otherwise mean
/// nothing to the server, and something to others.
pub(super) fn headers(
    message: &Message,
    id: Option<&Text>,
    expected: Option<Expected>,
) -> Result<(HeaderMap, usize), BrokerError> {
    let (mut headers, mut bytes) = (HeaderMap::new(), FRAME_BYTES);
    let mut add = |name: &str, value: &[u8]| {
        let header = (name.parse::<HeaderName>(), encode(value).parse::<HeaderValue>());
        let (Ok(name), Ok(value)) = header else {
            let text =
                format!("the header {name:?} cannot travel on NATS: its name must be printable ASCII without `:`");
            return Err(BrokerError::Refused(text));
        };
        let name_bytes: &[u8] = name.as_ref();
        bytes += name_bytes.len() + value.as_str().len() + ": \r\n".len();
        headers.append(name, value);
        Ok(())
    };
    if let Some(id) = id {
        add(MESSAGE_ID, id.as_str().as_bytes())?;
    }
    if let Some(key) = message.key() {
        add(KEY, key)?;
    }
    if let Some(expected) = expected {
        let (name, position) = expected.header();
        add(name, position.0.to_string().as_bytes())?;
    }
    for (name, value) in message.headers.iter().filter(|(name, _)| !is_reserved(name.as_str())) {
        add(name.as_str(), value)?;
    }
    Ok((headers, bytes))
}

fn is_reserved(name: &str) -> bool {
    name.starts_with("Nats-") || name.eq_ignore_ascii_case(KEY)
}

/// A value as it can stand in a header: as it is wherever possible, since others read it too.
fn encode(value: &[u8]) -> Cow<'_, str> {
    match std::str::from_utf8(value) {
        Ok(text) if is_plain(text) => Cow::Borrowed(text),
        _ => {
            let mut encoded = ENCODED.to_owned();
            percent(&mut encoded, value);
            Cow::Owned(encoded)
        }
    }
}

/// Line ends would end the header; clients drop space around a value.
fn is_plain(text: &str) -> bool {
    text.trim().len() == text.len() && !text.contains(char::is_control) && !text.starts_with(ENCODED)
}

/// The value that [`encode`] was given; what others wrote is as they wrote it.
pub(super) fn decode(value: &str) -> Bytes {
    let decoded = value.strip_prefix(ENCODED).and_then(from_percent);
    decoded.map_or_else(|| Bytes::copy_from_slice(value.as_bytes()), Bytes::from)
}

/// The bytes of a text in which some are `%XX`; none if a `%` begins no such number.
pub(super) fn from_percent(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(&part.as_bytes()[2..]);
    }
    Some(bytes)
}

/// The message that was read, and stored at so many nanoseconds since 1970. Its key is a header, or a token of the subject where
/// a plain NATS publisher sent it.
pub(super) fn message(topic: &Topic, read: &async_nats::Message, stored_at: i128) -> Message {
    let mut message = Message::new(topic, read.payload.clone());
    let ms = i64::try_from(stored_at.div_euclid(1_000_000)).unwrap_or(i64::MAX);
    message.stored_at = Some(Timestamp::from_unix_ms(ms));
    let all = || {
        let headers = read.headers.iter().flat_map(HeaderMap::iter);
        headers.flat_map(|(name, values)| values.iter().map(move |value| (AsRef::<str>::as_ref(name), value.as_str())))
    };
    // One allocation for all of them.
    let mut block = BytesMut::with_capacity(all().map(|(name, value)| name.len() + value.len()).sum());
    for (name, value) in all() {
        let mut value = || match value.strip_prefix(ENCODED).and_then(from_percent) {
            Some(decoded) => decoded.into(),
            None => piece(&mut block, value),
        };
        if name.eq_ignore_ascii_case(KEY) {
            message.key = Some(value());
        } else if !is_reserved(name) {
            let value = value();
            if let Ok(name) = Text::try_from(piece(&mut block, name)) {
                message.headers.add(name, value);
            }
        }
    }
    if message.key.is_none() {
        message.key = key_of(topic, &read.subject).map(|key| Bytes::copy_from_slice(key.as_bytes()));
    }
    message
}

/// A text as a part of a larger block of memory.
fn piece(block: &mut BytesMut, text: &str) -> Bytes {
    block.extend_from_slice(text.as_bytes());
    block.split().freeze()
}

/// The same of a stream that others have made, with the id under which the server knows it: some formats have no other.
pub(super) fn foreign_message(topic: &Topic, read: &async_nats::Message, stored_at: i128) -> Message {
    let mut message = message(topic, read, stored_at);
    let id = read.headers.as_ref().and_then(|headers| headers.get(MESSAGE_ID));
    message.dedup_id = id.and_then(|id| String::from_utf8(decode(id.as_str()).into()).ok()).map(Text::from);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_value_survives_and_most_are_as_they_were() {
        for (value, on_the_wire) in [
            (b"shop#1".as_slice(), "shop#1"),
            ("ключ".as_bytes(), "ключ"),
            (b"50%", "50%"),
            (b"", ""),
            (b" a", "%:%20%61"),
            (b"a\r\nb", "%:%61%0D%0A%62"),
            (&[0xff], "%:%FF"),
            (b"%:a", "%:%25%3A%61"),
        ] {
            assert_eq!(encode(value), on_the_wire);
            assert_eq!(decode(&encode(value)), value);
        }
        assert_eq!(decode("%:%zz"), "%:%zz");
    }

    #[test]
    fn orders_to_the_server_are_not_copied() {
        let mut message = Message::new("a", "b");
        message.key = Some("k".into());
        for name in ["nats-msg-id", "Nats-Rollup", "aqueduct-key", "natsy"] {
            message.headers.add(name, "1");
        }
        let (headers, bytes) = headers(&message, Some(&"id".into()), None).unwrap();
        let names = headers.iter().map(|(name, _)| name.to_string()).collect::<std::collections::BTreeSet<_>>();
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), [KEY, MESSAGE_ID, "nats-msg-id", "natsy"]);
        assert_eq!(bytes, "NATS/1.0\r\nNats-Msg-Id: id\r\nAqueduct-Key: k\r\nnats-msg-id: 1\r\nnatsy: 1\r\n\r\n".len());
        message.headers.add("a b", "1");
        assert!(super::headers(&message, Some(&"id".into()), None).unwrap_err().to_string().contains("a b"));
    }
}
