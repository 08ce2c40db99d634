//! The gem's envelope: one JSON object in the body.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::Generation;
use crate::compat::header::{self, MESSAGE_ID};
use crate::compat::json::compact;
use crate::event::Event;
use crate::format::object::{Fields, is_null, is_number, string};
use crate::format::{Decoded, Format, FormatError, FormatErrorKind};
use crate::message::Message;
use crate::topic::{Key, Text, Topic};

/// The JSON envelope of the gem `jetstream_bridge`.
///
/// | event | envelope |
/// |---|---|
/// | `id` | `event_id`, and the header that carries it, which counts where they differ |
/// | `kind`, `source`, `time` | `event_type`, `producer`, `occurred_at` |
/// | `key` | `resource_type` and `resource_id`, as in `order/7` |
/// | `data` | `payload`, any JSON |
/// | header `ce-schemaversion` | `schema_version`. Defaults to 1 |
/// | header `ce-resourcetype` | `resource_type`. Defaults to what is before the `/` of the key, else to what is before the first dot of the type, else to `event` |
/// | header `ce-resourceid` | `resource_id`. Defaults to the rest of the key, else to `id` (or `resource_id`) of the payload, else to an empty text |
/// | header `ce-traceid` | `trace_id`. Defaults to the end of the trace id in `traceparent`, else to a hash of the id |
///
/// An event that is read has such a header only where the envelope says something else than the default, so that it is
/// written again as it was, whatever types its values have: a header that is JSON stands as it is, any other text as a
/// string. Other headers stay. Only `event_type` must be there; an event without an id is known by its position. The key of
/// the message is the one that is read.
///
/// The traps: the key that is read begins with the resource type, so a key `7` comes back as `order/7`. Subject, schema and
/// content type do not travel. And up to version 2.0 the id is in `Nats-Msg-Id`, by which the server drops repeats; later
/// fleets have it in lower case, where the server does not look, since a dead letter in the same stream would be dropped as
/// a repeat of its own original. So choose the right [`Generation`], and expect an event twice.
///
/// ```
/// use aqueduct::compat::jetstream_bridge::Envelope;
/// use aqueduct::format::{Decoded, Format};
/// use aqueduct::{Event, Topic};
/// # fn main() -> aqueduct::Result<()> {
/// let event = Event::new("order.paid", &["sku-1"])?.id("e1").source("orders").key("order/7").header("ce-traceid", "abc");
/// let message = Envelope::new().encode(&event, &Topic::from("orders.sync.warehouse"))?;
/// assert_eq!(
///     message.body,
///     r#"{"event_id":"e1","schema_version":1,"event_type":"order.paid","producer":"orders","resource_id":"7","trace_id":"abc","resource_type":"order","payload":["sku-1"]}"#
/// );
/// let Decoded::One(read) = Envelope::new().decode(&message)? else { unreachable!() };
/// assert_eq!((read.key, read.data), (event.key, event.data));
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    generation: Generation,
    whole: bool,
}

pub(super) const FORMAT: &str = "jetstream_bridge";

/// Headers of events for what an event has no field for, and the fields of the envelope.
const EXTRAS: [(&str, &str); 4] = [
    ("ce-schemaversion", "schema_version"),
    ("ce-resourcetype", "resource_type"),
    ("ce-resourceid", "resource_id"),
    ("ce-traceid", "trace_id"),
];

impl Envelope {
    /// The envelope of the latest generation.
    pub fn new() -> Self {
        Self::default()
    }

    /// Which versions of the gem are to read what is written. All are read. Defaults to [`Generation::V4_5`].
    pub fn generation(mut self, generation: Generation) -> Self {
        self.generation = generation;
        self
    }

    /// Whether the data of an event is a whole envelope, as in the rows of an [outbox](crate::compat): it is sent as it is,
    /// under the event's id, and read as it is. Defaults to false.
    pub fn whole(mut self, whole: bool) -> Self {
        self.whole = whole;
        self
    }

    /// The body that an event is sent with.
    fn body(self, event: &Event) -> Result<Bytes, FormatError> {
        if self.whole {
            return Ok(event.data.clone());
        }
        let payload: &RawValue = serde_json::from_slice(&event.data).map_err(|e| FormatError::json(FORMAT, &e))?;
        Ok(write(event, &self.extras(event)?, payload.get()).into())
    }

    /// What is written of an event that has no field for it, as JSON, in the order of [`EXTRAS`].
    fn extras(self, event: &Event) -> Result<[String; 4], FormatError> {
        let said = |n: usize| Ok(header::text(FORMAT, &event.headers, EXTRAS[n].0)?.map(as_json));
        let key = event.key.as_ref().map(Key::as_str).unwrap_or_default();
        let said_type: Option<String> = said(1)?;
        let (of, id) = match &said_type {
            Some(of) => {
                let text = serde_json::from_str::<String>(of).unwrap_or_else(|_| of.clone());
                (of.clone(), key.strip_prefix(&text).and_then(|rest| rest.strip_prefix('/')).unwrap_or(key))
            }
            None => match key.split_once('/').filter(|(of, id)| !of.is_empty() && !id.is_empty()) {
                Some((of, id)) => (quoted(of), id),
                None => (quoted(default_type(event.kind.as_str())), key),
            },
        };
        let id = match said(2)? {
            Some(id) => id,
            None if id.is_empty() => quoted(&self.default_id(&event.data)),
            None => quoted(id),
        };
        let trace = said(3)?.unwrap_or_else(|| quoted(&default_trace(event)));
        Ok([said(0)?.unwrap_or_else(|| "1".to_owned()), of, id, trace])
    }

    /// What the gem takes for the resource's id if nobody says: from version 4.1 on it looks at two fields.
    fn default_id(self, payload: &Bytes) -> String {
        let Ok(fields) = serde_json::from_slice::<Fields<'_>>(payload) else { return String::new() };
        let names: &[&str] = if self.generation < Generation::V4_0 { &["id"] } else { &["id", "resource_id"] };
        let values = names.iter().filter_map(|name| fields.get(payload, name));
        values.filter_map(|value| scalar(value, payload)).map(|id| id.to_string()).next().unwrap_or_default()
    }
}

impl Format for Envelope {
    fn encode(&self, event: &Event, topic: &Topic) -> Result<Message, FormatError> {
        header::check_value(FORMAT, "id", &event.id)?;
        for (at, value) in [("type", &event.kind), ("source", &event.source)] {
            if value.is_empty() {
                return Err(error(FormatErrorKind::Missing, at, "it is required and is missing or empty"));
            }
        }
        let body = self.body(event)?;
        let (mut headers, mut dedup_id) = (crate::headers::Headers::new(), None);
        if self.generation < Generation::V2_1 {
            dedup_id = Some(event.id.clone());
        } else {
            headers.add(Text::from_static(MESSAGE_ID), event.id.bytes());
        }
        for (name, value) in header::others(&event.headers, is_no_extra) {
            headers.add(name, value.clone());
        }
        let fields: Fields<'_> = serde_json::from_slice(&body).map_err(|e| FormatError::json(FORMAT, &e))?;
        let key = envelope(&fields, &body)?.key.as_ref().map(Key::bytes);
        Ok(Message { topic: topic.clone(), key, headers, body, dedup_id, stored_at: None })
    }

    fn decode(&self, message: &Message) -> Result<Decoded, FormatError> {
        let body = &message.body;
        let fields: Fields<'_> = serde_json::from_slice(body).map_err(|e| FormatError::json(FORMAT, &e))?;
        let mut event = envelope(&fields, body)?;
        event.id = header::message_id(message).unwrap_or(event.id);
        event.topic = Some(message.topic.clone());
        event.headers = header::others(&message.headers, is_no_extra).map(|(n, v)| (n, v.clone())).collect();
        if self.whole {
            event.data = body.clone();
            return Ok(Decoded::One(event));
        }
        event.data = match fields.get(body, "payload") {
            Some(payload) => body.slice_ref(payload.get().as_bytes()),
            None => Bytes::from_static(b"null"),
        };
        for ((header, field), written) in EXTRAS.into_iter().zip(self.extras(&event)?) {
            if let Some(said) = fields.get(body, field).filter(|said| said.get() != written) {
                event.headers.set(Text::from_static(header), as_text(said));
            }
        }
        Ok(Decoded::One(event))
    }
}

fn is_no_extra(name: &str) -> bool {
    !EXTRAS.iter().any(|(extra, _)| name.eq_ignore_ascii_case(extra))
}

/// The event of an envelope, but for what is beside the body, its headers and its data.
pub(super) fn envelope(fields: &Fields<'_>, body: &Bytes) -> Result<Event, FormatError> {
    let value = |name| fields.get(body, name).and_then(|value| scalar(value, body));
    let said = |name| fields.get(body, name).filter(|kind| !is_null(kind));
    let Some(kind) = said("event_type").or_else(|| said("type")) else {
        let problem = "it is required and is missing: the envelope says with it what has happened";
        return Err(error(FormatErrorKind::Missing, "field \"event_type\"", problem));
    };
    let kind = string(body, kind).ok().filter(|kind| !kind.is_empty()).ok_or_else(|| {
        error(FormatErrorKind::Malformed, "field \"event_type\"", "a string that is not empty is expected")
    })?;
    let mut event = Event { kind, id: value("event_id").unwrap_or_default(), ..Event::default() };
    let of = value("resource_type").unwrap_or_else(|| Text::from_static(EVENT));
    event.key = value("resource_id").and_then(|id| Key::new(format!("{of}/{id}")));
    event.source = value("producer").unwrap_or_default();
    event.time = value("occurred_at").and_then(|time| time.as_str().parse().ok());
    Ok(event)
}

/// A text or number as text; none for an empty one, and for anything else.
pub(super) fn scalar(value: &RawValue, body: &Bytes) -> Option<Text> {
    if is_number(value) { Some(value.get().into()) } else { string(body, value).ok().filter(|text| !text.is_empty()) }
}

fn write(event: &Event, [version, of, id, trace]: &[String; 4], payload: &str) -> String {
    let time = event.time.map_or_else(String::new, |time| format!(r#""occurred_at":"{time}","#));
    let [event_id, kind, source] = [&event.id, &event.kind, &event.source].map(|text| quoted(text.as_str()));
    let payload = compact(payload);
    format!(
        r#"{{"event_id":{event_id},"schema_version":{version},"event_type":{kind},"producer":{source},"resource_id":{id},{time}"trace_id":{trace},"resource_type":{of},"payload":{payload}}}"#
    )
}

const EVENT: &str = "event";

/// What the gem takes for the type of the resource if nobody says.
fn default_type(kind: &str) -> &str {
    kind.split_once('.').map(|(of, _)| of).filter(|of| !of.is_empty()).unwrap_or(EVENT)
}

/// Sixteen hexadecimal digits, which the gem draws by lot: here those that tracing would show, or always the same for an id.
fn default_trace(event: &Event) -> String {
    let trace = event.headers.text("traceparent").and_then(|parent| parent.split('-').nth(1));
    match trace.filter(|trace| trace.len() == 32 && trace.bytes().all(|b| b.is_ascii_hexdigit())) {
        Some(trace) => trace[16..].to_owned(),
        None => format!("{:016x}", xxhash_rust::xxh3::xxh3_64(event.id.as_str().as_bytes())),
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The value of a header as JSON.
fn as_json(text: &str) -> String {
    if serde_json::from_str::<&RawValue>(text).is_ok() { compact(text) } else { quoted(text) }
}

/// JSON as the value of a header: the text of a string, unless it would pass for some other JSON.
fn as_text(json: &RawValue) -> Bytes {
    let text = serde_json::from_str::<String>(json.get()).ok();
    let text = text.filter(|text| serde_json::from_str::<&RawValue>(text).is_err());
    text.unwrap_or_else(|| compact(json.get())).into()
}

fn error(kind: FormatErrorKind, at: &'static str, problem: &'static str) -> FormatError {
    FormatError { kind, format: FORMAT, at: Text::from_static(at), problem: Text::from_static(problem) }
}
