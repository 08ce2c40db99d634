//! Plain JSON: the body is the data, and nothing says what it is but the topic.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::object::{Fields, is_null, is_number, string};
use super::{Decoded, Format, FormatError, FormatErrorKind};
use crate::event::Event;
use crate::headers::Headers;
use crate::message::Message;
use crate::topic::{Key, Text, Topic};

/// Bodies that are JSON values and nothing else, as systems without an envelope publish them.
///
/// The type of an event is the name of its topic. Its key is that of the message, and its id stays empty: it is known by
/// its position. Options take id and key from fields of the body. The header `content-type` is the event's content type,
/// other headers stay.
///
/// The trap: source, type, id, time, subject and schema of an event that is written do not travel. Every JSON body is
/// taken for one of ours, so in a list of formats this one comes last.
///
/// ```
/// use aqueduct::Message;
/// use aqueduct::format::{Decoded, Format, PlainJson};
/// # fn main() -> aqueduct::Result<()> {
/// let format = PlainJson::new().id_field("id").key_field("order");
/// let message = Message::new("orders.placed", r#"{"id": "1", "order": 7}"#);
/// let Decoded::One(event) = format.decode(&message)? else { unreachable!() };
/// assert_eq!((event.kind.as_str(), event.id.as_str()), ("orders.placed", "1"));
/// assert_eq!(event.key.unwrap().as_str(), "7");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct PlainJson {
    kind_from: fn(&Topic) -> Text,
    id_field: Option<Text>,
    key_field: Option<Text>,
}

const FORMAT: &str = "plain JSON";
const CONTENT_TYPE: &str = "content-type";

impl PlainJson {
    /// The type is the name of the topic, the key that of the message, and there are no ids.
    pub fn new() -> Self {
        Self { kind_from: |topic| topic.clone().into(), id_field: None, key_field: None }
    }

    /// Takes the type of an event from its topic. Defaults to the whole name of the topic.
    pub fn kind_from(mut self, kind_from: fn(&Topic) -> Text) -> Self {
        self.kind_from = kind_from;
        self
    }

    /// Takes the id from this field of the body, which is to be a string or a number; an event without it has no id.
    /// Defaults to no field.
    pub fn id_field(mut self, name: impl Into<Text>) -> Self {
        self.id_field = Some(name.into());
        self
    }

    /// Takes the key from this field of the body, which is to be a string or a number; an event without it has the key of
    /// the message. Defaults to no field.
    pub fn key_field(mut self, name: impl Into<Text>) -> Self {
        self.key_field = Some(name.into());
        self
    }

    /// Id and key as the body has them. An error if it is not JSON.
    fn read_fields(&self, body: &Bytes) -> Result<(Option<Text>, Option<Text>), FormatError> {
        let named = self.id_field.is_some() || self.key_field.is_some();
        if !named || !body.trim_ascii_start().starts_with(b"{") {
            return check_json(body).map(|()| (None, None));
        }
        let fields: Fields<'_> = serde_json::from_slice(body).map_err(|e| FormatError::json(FORMAT, &e))?;
        let read = |name: &Option<Text>| name.as_ref().map_or(Ok(None), |name| read_field(&fields, body, name));
        Ok((read(&self.id_field)?, read(&self.key_field)?))
    }
}

impl Default for PlainJson {
    fn default() -> Self {
        Self::new()
    }
}

impl Format for PlainJson {
    fn encode(&self, event: &Event, topic: &Topic) -> Result<Message, FormatError> {
        check_json(&event.data)?;
        let mut headers = event.headers.clone();
        if headers.get(CONTENT_TYPE).is_some() {
            let problem = "the content type is a field of the event: use `Event::content_type`";
            return Err(error(FormatErrorKind::Unsupported, "header \"content-type\"", problem));
        }
        if let Some(content_type) = &event.content_type {
            headers.add(Text::from_static(CONTENT_TYPE), content_type.bytes());
        }
        let dedup_id = (!event.id.is_empty()).then(|| format!("{}#{}", event.source, event.id).into());
        let key = event.key.as_ref().map(Key::bytes);
        Ok(Message { topic: topic.clone(), key, headers, body: event.data.clone(), dedup_id, stored_at: None })
    }

    fn decode(&self, message: &Message) -> Result<Decoded, FormatError> {
        let (id, key) = self.read_fields(&message.body)?;
        let key = match key.and_then(Key::new) {
            Some(key) => Some(key),
            None => message.key().map(|key| text(key, "key of the message")).transpose()?.and_then(Key::new),
        };
        let content_type = message.headers.get(CONTENT_TYPE);
        let other = |name: &Text| !name.as_str().eq_ignore_ascii_case(CONTENT_TYPE);
        let headers = message.headers.iter().filter(|(name, _)| other(name)).map(|(n, v)| (n, v.clone()));
        Ok(Decoded::One(Event {
            id: id.unwrap_or_default(),
            kind: (self.kind_from)(&message.topic),
            topic: Some(message.topic.clone()),
            key,
            content_type: content_type.map(|value| text(value, "header content-type")).transpose()?,
            headers: headers.collect::<Headers>(),
            data: message.body.clone(),
            ..Event::default()
        }))
    }
}

fn check_json(body: &Bytes) -> Result<(), FormatError> {
    serde_json::from_slice(body).map(|_: &RawValue| ()).map_err(|e| FormatError::json(FORMAT, &e))
}

/// The text of a field; none if it is missing, `null` or empty.
fn read_field(fields: &Fields<'_>, body: &Bytes, name: &Text) -> Result<Option<Text>, FormatError> {
    let Some(value) = fields.get(body, name.as_str()).filter(|v| !is_null(v)) else { return Ok(None) };
    if is_number(value) {
        return Ok(Some(value.get().into()));
    }
    let text = string(body, value).map_err(|_| {
        error(FormatErrorKind::Malformed, format!("field {:?}", name.as_str()), "a string or a number is expected")
    })?;
    Ok((!text.is_empty()).then_some(text))
}

fn text(value: &Bytes, at: &'static str) -> Result<Text, FormatError> {
    Text::try_from(value.clone()).map_err(|e| error(FormatErrorKind::Malformed, at, e.to_string()))
}

fn error(kind: FormatErrorKind, at: impl Into<Text>, problem: impl Into<Text>) -> FormatError {
    FormatError { kind, format: FORMAT, at: at.into(), problem: problem.into() }
}
