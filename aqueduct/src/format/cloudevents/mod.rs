//! CloudEvents 1.0: attributes as headers (binary), or the whole event as JSON in the body (structured).

use bytes::Bytes;

use super::{Decoded, Format, FormatError, FormatErrorKind};
use crate::clock::Timestamp;
use crate::event::Event;
use crate::headers::Headers;
use crate::message::Message;
use crate::topic::{Key, Text, Topic};

mod base64;
mod binary;
mod structured;

/// CloudEvents 1.0, the default format.
///
/// Reads binary, structured and batched messages, whatever it writes. In binary mode attributes are headers `ce-id`,
/// `ce-type` and so on (Kafka's `ce_id` is read as well) and the body is the data. In structured mode the body is a JSON
/// object.
///
/// | event | CloudEvents |
/// |---|---|
/// | `id`, `source`, `kind`, `time`, `subject` | `id`, `source`, `type`, `time`, `subject` |
/// | `schema`, `content_type` | `dataschema`, `datacontenttype` (the header `content-type`) |
/// | `key` | `partitionkey`, and the key of the message; the latter counts where the former is missing |
/// | header `ce-sequence` | extension attribute `sequence`; its value is read as text |
/// | any other header | a header beside the body, in both modes |
///
/// `traceparent` and `tracestate` travel as headers and are also accepted as extension attributes.
///
/// The trap: an extension attribute is a header whose name starts with `ce-`. CloudEvents allows only lower-case letters
/// and digits in the rest of it; what is not allowed is still read, but refused when written.
///
/// ```
/// use aqueduct::format::{CloudEvents, Decoded, Format};
/// use aqueduct::{Event, Topic};
/// # fn main() -> aqueduct::Result<()> {
/// let event = Event::new("order.placed", &7)?.id("1").source("shop").key("order-7").header("ce-sequence", "42");
/// let message = CloudEvents::binary().encode(&event, &Topic::from("orders"))?;
/// assert_eq!(message.headers.text("ce-type"), Some("order.placed"));
///
/// let Decoded::One(read) = CloudEvents::structured().decode(&message)? else { unreachable!() };
/// assert_eq!(read, event.topic("orders"));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CloudEvents {
    mode: Mode,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Mode {
    #[default]
    Binary,
    Structured,
}

impl CloudEvents {
    /// Writes attributes as headers and the data as the body. The default.
    pub fn binary() -> Self {
        Self { mode: Mode::Binary }
    }

    /// Writes the whole event as one JSON object: JSON data as it is, other data in Base64.
    pub fn structured() -> Self {
        Self { mode: Mode::Structured }
    }
}

impl Format for CloudEvents {
    fn encode(&self, event: &Event, topic: &Topic) -> Result<Message, FormatError> {
        for (name, value) in [(ID, &event.id), (SOURCE, &event.source), (TYPE, &event.kind)] {
            if value.is_empty() {
                return Err(missing(place(NAMES[name])));
            }
        }
        let (headers, body) = match self.mode {
            Mode::Binary => (binary::write(event)?, event.data.clone()),
            Mode::Structured => structured::write(event)?,
        };
        let dedup_id = Some(format!("{}#{}", event.source, event.id).into());
        let key = event.key.as_ref().map(Key::bytes);
        Ok(Message { topic: topic.clone(), key, headers, body, dedup_id, stored_at: None })
    }

    fn decode(&self, message: &Message) -> Result<Decoded, FormatError> {
        let content_type = message.headers.text(CONTENT_TYPE).unwrap_or_default();
        let media_type = media_type(content_type);
        if media_type.eq_ignore_ascii_case(STRUCTURED) {
            structured::read(message).map(Decoded::One)
        } else if media_type.eq_ignore_ascii_case(BATCHED) {
            structured::read_batch(message).map(Decoded::Batch)
        } else if media_type.get(..STRUCTURED_ANY.len()).is_some_and(|s| s.eq_ignore_ascii_case(STRUCTURED_ANY)) {
            let problem = format!("{media_type:?} is not read: only {STRUCTURED} and {BATCHED} are");
            Err(error(FormatErrorKind::NotMine, "header content-type", problem))
        } else {
            binary::read(message).map(Decoded::One)
        }
    }
}

const FORMAT: &str = "CloudEvents";
const VERSION: &str = "1.0";
const CONTENT_TYPE: &str = "content-type";
const STRUCTURED: &str = "application/cloudevents+json";
const BATCHED: &str = "application/cloudevents-batch+json";
const STRUCTURED_ANY: &str = "application/cloudevents";
/// Extensions of CloudEvents that travel as the plain headers that they stand for.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

/// The attributes that are fields of an event.
const NAMES: [&str; 9] =
    ["specversion", "id", "source", "type", "time", "subject", "dataschema", "datacontenttype", "partitionkey"];
const SPECVERSION: usize = 0;
const ID: usize = 1;
const SOURCE: usize = 2;
const TYPE: usize = 3;
const DATACONTENTTYPE: usize = 7;

/// The values of [`NAMES`], as read.
type Attributes = [Option<Text>; NAMES.len()];

/// An event made of its attributes; `at` names the place of an attribute.
fn event(
    attributes: Attributes,
    message: &Message,
    headers: Headers,
    data: Bytes,
    at: &dyn Fn(&str) -> Text,
) -> Result<Event, FormatError> {
    let [specversion, id, source, kind, time, subject, schema, content_type, key] =
        attributes.map(|value| value.filter(|v| !v.is_empty()));
    let required = |value: Option<Text>, name: usize| value.ok_or_else(|| missing(at(NAMES[name])));
    let version = required(specversion, SPECVERSION)?;
    if version != VERSION {
        let problem = format!("version {version:?} is found and only {VERSION:?} is known");
        return Err(error(FormatErrorKind::Malformed, at(NAMES[SPECVERSION]), problem));
    }
    let time = time.map(|t| t.as_str().parse::<Timestamp>()).transpose();
    Ok(Event {
        id: required(id, ID)?,
        source: required(source, SOURCE)?,
        kind: required(kind, TYPE)?,
        time: time.map_err(|e| error(FormatErrorKind::Malformed, at("time"), e.to_string()))?,
        topic: Some(message.topic.clone()),
        key: match key {
            Some(key) => Key::new(key),
            None => message_key(message)?,
        },
        subject,
        schema,
        content_type,
        headers,
        data,
    })
}

/// The key of the message itself.
fn message_key(message: &Message) -> Result<Option<Key>, FormatError> {
    let Some(key) = message.key() else { return Ok(None) };
    let text = Text::try_from(key.clone());
    text.map(Key::new).map_err(|e| error(FormatErrorKind::Malformed, "key of the message", e.to_string()))
}

/// The name of the extension attribute that a header stands for, in any case; none if it is an ordinary header.
fn attribute(header: &str) -> Option<&str> {
    let prefix = header.get(..3)?;
    (prefix.eq_ignore_ascii_case("ce-") || prefix.eq_ignore_ascii_case("ce_")).then(|| &header[3..])
}

/// The name of the extension attribute that a header of an event is to be written as, in lower case; none for an
/// ordinary header. An error if an event must not have this header.
fn extension(header: &str) -> Result<Option<String>, FormatError> {
    let Some(name) = attribute(header) else {
        if header.eq_ignore_ascii_case(CONTENT_TYPE) {
            return Err(unsupported(header, "the content type is a field of the event: use `Event::content_type`"));
        }
        return Ok(None);
    };
    let name = name.to_ascii_lowercase();
    if name.is_empty() || !name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
        return Err(unsupported(header, "the name of an extension has only letters and digits after `ce-`"));
    }
    if name == "data" || NAMES.contains(&name.as_str()) {
        return Err(unsupported(
            header,
            "CloudEvents gives this name a meaning of its own: set the field of the event",
        ));
    }
    Ok(Some(name))
}

/// Adds a trace header read from an extension, unless the plain header is there.
fn add_trace(headers: &mut Headers, name: &'static str, value: Option<Bytes>) {
    if let Some(value) = value.filter(|_| headers.get(name).is_none()) {
        headers.add(Text::from_static(name), value);
    }
}

/// A content type without its parameters.
fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

fn place(attribute: &str) -> Text {
    format!("attribute {attribute:?}").into()
}

fn error(kind: FormatErrorKind, at: impl Into<Text>, problem: impl Into<Text>) -> FormatError {
    FormatError { kind, format: FORMAT, at: at.into(), problem: problem.into() }
}

fn missing(at: Text) -> FormatError {
    error(FormatErrorKind::Missing, at, Text::from_static("it is required and is missing or empty"))
}

fn unsupported(header: &str, problem: &'static str) -> FormatError {
    error(FormatErrorKind::Unsupported, format!("header {header:?}"), Text::from_static(problem))
}
