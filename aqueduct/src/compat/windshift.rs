//! windshift, a Go library and service: Protobuf with what it needs to know in headers (feature `proto`).
//!
//! ```
//! use aqueduct::compat::windshift::{self, Protobuf};
//! use aqueduct::{Event, MemoryBroker, Publisher};
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> aqueduct::Result<()> {
//! windshift::check_subject("orders.placed")?;
//! let orders = Publisher::new("orders", MemoryBroker::new()).format(Protobuf::new());
//! orders.publish(Event::from_proto(&"sku-1".to_owned()).topic("orders.placed")).await?;
//! # Ok(()) }
//! ```

use bytes::Bytes;

use super::NameError;
use super::header::{check_value, message_id, others};
use crate::event::Event;
use crate::format::{Decoded, Format, FormatError, FormatErrorKind};
use crate::headers::Headers;
use crate::message::Message;
use crate::topic::{Key, Text, Topic};

/// The messages of windshift: the body is a message of Protobuf.
///
/// | event | message |
/// |---|---|
/// | `kind` | `WS-Data-Type`, the full name of the message's type; what is before a `/` in it is dropped |
/// | `time` | `WS-Published-Time`; when the broker stored it, where that is missing or no time |
/// | headers `traceparent`, `tracestate` | `WS-Trace-Parent`, `WS-Trace-State` |
/// | `id` | the idempotency key, by which the server drops repeats; without one an event is known by its position |
/// | `key` | the key of the message, which windshift does not know |
/// | `data` | the body, as it is |
///
/// Other headers stay. Data becomes a value by [`Proto`](crate::Proto) or [`Event::proto`], and a value data by
/// [`Event::from_proto`].
///
/// The traps: source, subject, schema and content type do not travel, and the server knows repeats by the id alone,
/// whatever the source. windshift's handlers fail on a type that is not linked into their program. What it expects to be
/// the last sequence in a stream is not part of the format: `NatsBroker::publish_expecting` says that to the server.
///
/// ```
/// use aqueduct::compat::windshift::Protobuf;
/// use aqueduct::format::{Decoded, Format};
/// use aqueduct::{Event, Topic};
/// # fn main() -> aqueduct::Result<()> {
/// let event = Event::from_proto(&7_u32).id("123").source("orders").time("2026-01-02T03:04:05.5Z".parse()?);
/// let message = Protobuf::new().encode(&event, &Topic::from("orders.placed"))?;
/// assert_eq!(message.headers.text("WS-Data-Type"), Some("google.protobuf.UInt32Value"));
/// assert_eq!(message.headers.text("WS-Published-Time"), Some("2026-01-02T03:04:05.5Z"));
/// let Decoded::One(read) = Protobuf::new().decode(&message)? else { unreachable!() };
/// assert_eq!((read.id, read.time, read.data), (event.id, event.time, event.data));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Protobuf {}

const FORMAT: &str = "windshift";
const DATA_TYPE: &str = "WS-Data-Type";
const PUBLISHED_TIME: &str = "WS-Published-Time";
/// Headers of an event, and their names there.
const TRACE: [(&str, &str); 2] = [("traceparent", "WS-Trace-Parent"), ("tracestate", "WS-Trace-State")];

impl Protobuf {
    /// The format.
    pub fn new() -> Self {
        Self {}
    }
}

impl Format for Protobuf {
    fn encode(&self, event: &Event, topic: &Topic) -> Result<Message, FormatError> {
        check_value(FORMAT, "id", &event.id)?;
        let kind = without_url(&event.kind);
        if kind.is_empty() || !kind.split('.').all(is_identifier) {
            let problem = "it must be the full name of a Protobuf type, such as acme.Order: use `Event::from_proto`";
            return Err(error(FormatErrorKind::Unsupported, "type", problem));
        }
        check_subject(topic.as_str()).map_err(|e| error(FormatErrorKind::Unsupported, "topic", e.problem()))?;
        let mut headers = Headers::new();
        headers.add(Text::from_static(DATA_TYPE), Bytes::copy_from_slice(kind.as_bytes()));
        if let Some(time) = event.time {
            headers.add(Text::from_static(PUBLISHED_TIME), time.to_string());
        }
        for (name, value) in others(&event.headers, |name| !is_own(name)) {
            let trace = TRACE.iter().find(|(w3c, _)| name.as_str().eq_ignore_ascii_case(w3c));
            let name = trace.map_or_else(|| name.clone(), |(_, own)| Text::from_static(own));
            headers.add(name, value.clone());
        }
        let (key, body) = (event.key.as_ref().map(Key::bytes), event.data.clone());
        Ok(Message { topic: topic.clone(), key, headers, body, dedup_id: Some(event.id.clone()), stored_at: None })
    }

    fn decode(&self, message: &Message) -> Result<Decoded, FormatError> {
        let Some(kind) = message.headers.get(DATA_TYPE) else {
            let problem = "it is missing, and says what the body is";
            return Err(error(FormatErrorKind::NotMine, "header WS-Data-Type", problem));
        };
        let kind = text(kind, "header WS-Data-Type")?;
        let kind = without_url(&kind);
        if kind.is_empty() {
            return Err(error(
                FormatErrorKind::Missing,
                "header WS-Data-Type",
                "it is empty, and says what the body is",
            ));
        }
        let time = message.headers.text(PUBLISHED_TIME).and_then(|time| time.parse().ok());
        let key = message.key().map(|key| text(key, "key of the message")).transpose()?;
        Ok(Decoded::One(Event {
            id: message_id(message).unwrap_or_default(),
            kind: kind.into(),
            time: time.or(message.stored_at),
            topic: Some(message.topic.clone()),
            key: key.and_then(Key::new),
            headers: headers(message),
            data: message.body.clone(),
            ..Event::default()
        }))
    }
}

/// The headers of an event: traces under the names that everybody else reads, in place of others of these names.
fn headers(message: &Message) -> Headers {
    let named = |name: &str, other: &str| name.eq_ignore_ascii_case(other);
    let replaced = |name: &str| TRACE.iter().any(|(w3c, own)| named(name, w3c) && message.headers.get(own).is_some());
    let kept = |name: &str| !named(name, DATA_TYPE) && !named(name, PUBLISHED_TIME) && !replaced(name);
    let usual = |name: &Text| {
        let trace = TRACE.iter().find(|(_, own)| named(name.as_str(), own));
        trace.map_or_else(|| name.clone(), |(w3c, _)| Text::from_static(w3c))
    };
    others(&message.headers, kept).map(|(name, value)| (usual(name), value.clone())).collect()
}

/// True for headers that are made of an event's fields.
fn is_own(name: &str) -> bool {
    [DATA_TYPE, PUBLISHED_TIME, TRACE[0].1, TRACE[1].1].iter().any(|own| name.eq_ignore_ascii_case(own))
}

/// The name of a type without a prefix such as `type.googleapis.com/`.
fn without_url(kind: &Text) -> &str {
    kind.as_str().rsplit('/').next().unwrap_or_default()
}

fn is_identifier(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Says what is wrong with the subject of an event, if anything: windshift wants letters, digits, `_` and `-`, with single
/// dots between them.
///
/// ```
/// use aqueduct::compat::windshift::check_subject;
/// assert!(check_subject("orders.placed").is_ok());
/// assert!(check_subject("orders.*").unwrap_err().to_string().contains("check_pattern"));
/// ```
pub fn check_subject(subject: impl AsRef<str>) -> Result<(), NameError> {
    let subject = subject.as_ref();
    let problem = if subject.contains(['*', '>']) {
        "an event has one subject: take `*` and `>` out; `check_pattern` is for subscriptions"
    } else if !subject.split('.').all(is_token) {
        TOKENS
    } else {
        return Ok(());
    };
    Err(NameError::new("subject", subject, Text::from_static(problem)))
}

/// Says what is wrong with what a consumer subscribes to, if anything: a subject in which `*` may stand for one part, and
/// `>` at the end for one or more.
///
/// ```
/// use aqueduct::compat::windshift::check_pattern;
/// assert!(check_pattern("orders.*.placed").is_ok() && check_pattern("orders.>").is_ok());
/// assert!(check_pattern("orders.>.placed").unwrap_err().to_string().contains("at the end"));
/// ```
pub fn check_pattern(pattern: impl AsRef<str>) -> Result<(), NameError> {
    let pattern = pattern.as_ref();
    let parts = pattern.strip_suffix(".>").unwrap_or(if pattern == ">" { "*" } else { pattern });
    let problem = if parts.contains('>') {
        "`>` stands at the end and alone between dots: put `*` there, or end with `.>`"
    } else if parts.split('.').any(|part| part.contains('*') && part != "*") {
        "`*` stands alone between dots: it is a whole part of a subject"
    } else if !parts.split('.').all(|part| part == "*" || is_token(part)) {
        TOKENS
    } else {
        return Ok(());
    };
    Err(NameError::new("pattern", pattern, Text::from_static(problem)))
}

const TOKENS: &str = "it has letters, digits, `_` and `-`, with single dots between them: take out what else there is";

fn is_token(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
}

fn text(value: &Bytes, at: &'static str) -> Result<Text, FormatError> {
    Text::try_from(value.clone()).map_err(|e| error(FormatErrorKind::Malformed, at, e.to_string()))
}

fn error(kind: FormatErrorKind, at: &'static str, problem: impl Into<Text>) -> FormatError {
    FormatError { kind, format: FORMAT, at: Text::from_static(at), problem: problem.into() }
}
