//! The modules' envelope: one JSON object in the body.

use bytes::Bytes;
use serde_json::value::RawValue;

use crate::clock::Timestamp;
use crate::compat::header;
use crate::compat::json::{as_go, compact};
use crate::event::Event;
use crate::format::object::{Fields, is_null, string};
use crate::format::{Decoded, Format, FormatError, FormatErrorKind};
use crate::message::Message;
use crate::topic::{Key, Text, Topic};

/// The JSON envelope of tupic's Go modules.
///
/// | event | envelope |
/// |---|---|
/// | `id` | `id`, and the message's id, by which the server drops repeats |
/// | `source` | `source`, the application's slug |
/// | `time` | `timestamp`, to the millisecond |
/// | `data` | `data`, any JSON |
/// | header `ce-version` | `version`. Defaults to that of the format |
/// | `kind` | the subject without the prefix |
/// | `key` | the key of the message, which the modules do not know |
///
/// Everything may be missing when it is read, names are read in any case, and the types are as strict as those of the
/// modules, which drop what does not have them. Without `data` the data is `null`. Headers stay.
///
/// The traps: the type does not travel but as the subject, so give each type a subject of its own. The server knows repeats
/// by the id alone, whatever the source. The data is compared as JSON, never as bytes: on its way it passes through a
/// database and Go's encoder.
///
/// ```
/// use aqueduct::compat::tupic::Envelope;
/// use aqueduct::format::{Decoded, Format};
/// use aqueduct::{Event, Timestamp, Topic};
/// # fn main() -> aqueduct::Result<()> {
/// let event = Event::new("events.asset.validated", "a<b")?.id("1").source("assets").time(Timestamp::from_unix_ms(7));
/// let message = Envelope::new("acme").encode(&event, &Topic::from("acme.events.asset.validated"))?;
/// assert_eq!(message.body, r#"{"id":"1","version":"1","source":"assets","timestamp":7,"data":"a\u003cb"}"#);
/// let Decoded::One(read) = Envelope::new("acme").decode(&message)? else { unreachable!() };
/// assert_eq!((read.kind.as_str(), read.json::<String>()?.as_str()), ("events.asset.validated", "a<b"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    prefix: Text,
    version: Text,
    wrapped: bool,
    whole: bool,
}

const FORMAT: &str = "tupic";
/// The header of events with the version, and what it is without one.
pub(super) const VERSION: &str = "ce-version";
pub(super) const FIRST: &str = "1";
const VERSION_CHARS_MAX: usize = 20;
/// What data of tasks is wrapped in up to version 0.1.2.
const TASK: &str = "Task";

impl Envelope {
    /// The envelope of applications whose subjects have this prefix.
    pub fn new(prefix: impl Into<Text>) -> Self {
        Self { prefix: prefix.into(), version: Text::from_static(FIRST), wrapped: false, whole: false }
    }

    /// The version of events that do not say one, at most 20 characters. Defaults to `1`.
    pub fn version(mut self, version: impl Into<Text>) -> Self {
        self.version = version.into();
        self
    }

    /// Whether this is for tasks of the modules up to version 0.1.2, whose data is in an object `{"Task": ...}`. It is
    /// taken out when it is read, where it is there. Events are not wrapped: give them a format of their own. Defaults to
    /// false.
    pub fn wrapped_tasks(mut self, wrapped: bool) -> Self {
        self.wrapped = wrapped;
        self
    }

    /// Whether the data of an event is a whole envelope, as in the rows of an [outbox](crate::compat): it is sent as it is,
    /// under the event's id, and read as it is. Defaults to false.
    pub fn whole(mut self, whole: bool) -> Self {
        self.whole = whole;
        self
    }

    /// The body that an event is sent with.
    fn body(&self, event: &Event) -> Result<Bytes, FormatError> {
        if self.whole {
            let fields = serde_json::from_slice(&event.data).map(|_: Fields<'_>| event.data.clone());
            return fields.map_err(|e| FormatError::json(FORMAT, &e));
        }
        let version = header::text(FORMAT, &event.headers, VERSION)?.unwrap_or(self.version.as_str());
        if version.chars().count() > VERSION_CHARS_MAX {
            let problem =
                "it is longer than 20 characters, and a task that fails would leave no row: take a shorter one";
            return Err(error(FormatErrorKind::Unsupported, "version", problem));
        }
        let data: &RawValue = serde_json::from_slice(&event.data).map_err(|e| FormatError::json(FORMAT, &e))?;
        let data = if self.wrapped { format!("{{\"{TASK}\":{}}}", data.get()) } else { data.get().to_owned() };
        let texts = [event.id.as_str(), version, event.source.as_str()];
        Ok(write(texts, event.time.map(Timestamp::unix_ms), &data).into())
    }

    /// The data inside `{"Task": ...}`, or what was given.
    fn unwrapped(&self, data: Bytes) -> Bytes {
        let fields = if self.wrapped { serde_json::from_slice::<Fields<'_>>(&data).ok() } else { None };
        let inner = fields.filter(|fields| fields.0.len() == 1).and_then(|fields| fields.get(&data, TASK));
        inner.map(|inner| data.slice_ref(inner.get().as_bytes())).unwrap_or(data)
    }
}

impl Format for Envelope {
    fn encode(&self, event: &Event, topic: &Topic) -> Result<Message, FormatError> {
        header::check_value(FORMAT, "id", &event.id)?;
        if event.source.is_empty() {
            return Err(error(FormatErrorKind::Missing, "source", "it is required and is missing or empty"));
        }
        let headers = header::others(&event.headers, |name| !name.eq_ignore_ascii_case(VERSION));
        Ok(Message {
            topic: topic.clone(),
            key: event.key.as_ref().map(Key::bytes),
            headers: headers.map(|(name, value)| (name, value.clone())).collect(),
            body: self.body(event)?,
            dedup_id: Some(event.id.clone()),
            stored_at: None,
        })
    }

    fn decode(&self, message: &Message) -> Result<Decoded, FormatError> {
        let body = &message.body;
        let fields = match serde_json::from_slice::<Option<Fields<'_>>>(body) {
            Ok(fields) => fields.unwrap_or_else(|| Fields(Vec::new())),
            Err(e) => return Err(FormatError::json(FORMAT, &e)),
        };
        let read = |name| text(&fields, body, name);
        let id = read("id")?.or_else(|| header::message_id(message)).unwrap_or_default();
        let time = timestamp(&fields, body)?;
        let data = last(&fields, body, "data", |_| true).map(|data| body.slice_ref(data.get().as_bytes()));
        let data = self.unwrapped(data.unwrap_or_else(|| Bytes::from_static(b"null")));
        let data = if self.whole { body.clone() } else { data };
        let key = message.key().map(|key| Text::try_from(key.clone())).transpose();
        let key = key.map_err(|e| error(FormatErrorKind::Malformed, "key of the message", e.to_string()))?;
        let subject = message.topic.as_str();
        let rest = subject.strip_prefix(self.prefix.as_str()).and_then(|rest| rest.strip_prefix('.'));
        let headers = header::others(&message.headers, |name| !name.eq_ignore_ascii_case(VERSION));
        let mut event = Event {
            id,
            source: read("source")?.unwrap_or_default(),
            kind: rest.unwrap_or(subject).into(),
            time,
            topic: Some(message.topic.clone()),
            key: key.and_then(Key::new),
            headers: headers.map(|(name, value)| (name, value.clone())).collect(),
            data,
            ..Event::default()
        };
        if let Some(version) = read("version")?.filter(|version| *version != self.version) {
            event.headers.add(Text::from_static(VERSION), version.bytes());
        }
        Ok(Decoded::One(event))
    }
}

/// The envelope as Go's encoder writes it: id, version and source, when it happened, and the data.
pub(super) fn write(texts: [&str; 3], unix_ms: Option<i64>, data: &str) -> String {
    let [id, version, source] = texts.map(|text| as_go(&serde_json::Value::from(text).to_string()));
    let time = unix_ms.map_or_else(String::new, |ms| format!("\"timestamp\":{ms},"));
    let data = as_go(&compact(data));
    format!(r#"{{"id":{id},"version":{version},"source":{source},{time}"data":{data}}}"#)
}

/// The last value of a field, whose name may be written in any case; a `null` counts only where it is wanted.
fn last<'a>(fields: &Fields<'a>, body: &Bytes, name: &str, counts: impl Fn(&RawValue) -> bool) -> Option<&'a RawValue> {
    let named = |field: &RawValue| string(body, field).is_ok_and(|field| field.as_str().eq_ignore_ascii_case(name));
    fields.0.iter().rev().find(|(field, value)| named(field) && counts(value)).map(|(_, value)| *value)
}

fn text(fields: &Fields<'_>, body: &Bytes, name: &'static str) -> Result<Option<Text>, FormatError> {
    let Some(value) = last(fields, body, name, |value| !is_null(value)) else { return Ok(None) };
    let text = string(body, value).map_err(|_| {
        error(
            FormatErrorKind::Malformed,
            format!("field {name:?}"),
            "a string is expected: the modules drop anything else",
        )
    })?;
    Ok(Some(text).filter(|text| !text.is_empty()))
}

fn timestamp(fields: &Fields<'_>, body: &Bytes) -> Result<Option<Timestamp>, FormatError> {
    let Some(value) = last(fields, body, "timestamp", |value| !is_null(value)) else { return Ok(None) };
    let ms: i64 = value.get().parse().map_err(|_| {
        let problem = "milliseconds since 1970 are expected, an integer without fraction or exponent";
        error(FormatErrorKind::Malformed, "field \"timestamp\"", problem)
    })?;
    Ok(Some(Timestamp::from_unix_ms(ms)))
}

fn error(kind: FormatErrorKind, at: impl Into<Text>, problem: impl Into<Text>) -> FormatError {
    FormatError { kind, format: FORMAT, at: at.into(), problem: problem.into() }
}
