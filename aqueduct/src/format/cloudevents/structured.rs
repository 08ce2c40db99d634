//! Structured mode: the body is a JSON object with the attributes and the data. Batched mode: an array of them.

use bytes::Bytes;
use serde_core::ser::{SerializeMap, Serializer};
use serde_json::value::RawValue;

use super::{
    Attributes, CONTENT_TYPE, DATACONTENTTYPE, FORMAT, NAMES, STRUCTURED, TRACE, VERSION, add_trace, attribute, base64,
    error, event, extension, media_type, place,
};
use crate::event::Event;
use crate::format::object::{Fields, is_null, string};
use crate::format::{FormatError, FormatErrorKind};
use crate::headers::Headers;
use crate::message::Message;
use crate::topic::Text;

/// Reads the one event of a message.
pub(super) fn read(message: &Message) -> Result<Event, FormatError> {
    let fields = serde_json::from_slice(&message.body).map_err(|e| FormatError::json(FORMAT, &e))?;
    read_object(&fields, message, &headers_beside(message), &place)
}

/// Reads all events of a message. One that is broken makes the whole message an error, which names it.
pub(super) fn read_batch(message: &Message) -> Result<Vec<Event>, FormatError> {
    let batch: Vec<Fields<'_>> = serde_json::from_slice(&message.body).map_err(|e| FormatError::json(FORMAT, &e))?;
    let headers = headers_beside(message);
    let read = |(n, fields): (usize, &Fields<'_>)| {
        read_object(fields, message, &headers, &|name| format!("event {}, {}", n + 1, place(name)).into())
    };
    batch.iter().enumerate().map(read).collect()
}

/// The headers of a message; attributes among them are left out, since the body has them.
fn headers_beside(message: &Message) -> Headers {
    let ours = |name: &Text| attribute(name.as_str()).is_none() && !name.as_str().eq_ignore_ascii_case(CONTENT_TYPE);
    message.headers.iter().filter(|(name, _)| ours(name)).map(|(name, value)| (name, value.clone())).collect()
}

fn read_object(
    fields: &Fields<'_>,
    message: &Message,
    headers: &Headers,
    at: &dyn Fn(&str) -> Text,
) -> Result<Event, FormatError> {
    let body = &message.body;
    let mut attributes = Attributes::default();
    let (mut data, mut data_base64) = (None, None);
    let mut headers = headers.clone();
    let (mut trace, mut extensions) = ([None, None], Vec::new());
    let names = names(fields, body, at)?;
    for (name, (_, value)) in names.iter().zip(&fields.0).filter(|(n, (_, v))| *n == "data" || !is_null(v)) {
        let name = name.as_str();
        if name == "data" {
            data = Some(*value);
        } else if name == "data_base64" {
            data_base64 = Some(text(body, value, name, at)?);
        } else if let Some(n) = NAMES.iter().position(|n| *n == name) {
            attributes[n] = Some(text(body, value, name, at)?);
        } else if let Some(n) = TRACE.iter().position(|t| t.eq_ignore_ascii_case(name)) {
            trace[n] = Some(scalar(body, value, name, at)?.bytes());
        } else {
            extensions.push((name.to_ascii_lowercase(), scalar(body, value, name, at)?));
        }
    }
    for (name, value) in TRACE.into_iter().zip(trace) {
        add_trace(&mut headers, name, value);
    }
    for (name, value) in extensions {
        headers.add(format!("ce-{name}"), value.bytes());
    }
    let json = is_json(attributes[DATACONTENTTYPE].as_ref());
    let data = match (data, data_base64) {
        (None, None) => Bytes::new(),
        (Some(raw), None) if json => body.slice_ref(raw.get().as_bytes()),
        (Some(raw), None) => string(body, raw).map_or_else(|_| body.slice_ref(raw.get().as_bytes()), |s| s.bytes()),
        (None, Some(text)) => base64::decode(text.as_str())
            .ok_or_else(|| error(FormatErrorKind::Malformed, at("data_base64"), "it is not Base64"))?
            .into(),
        (Some(_), Some(_)) => {
            return Err(error(FormatErrorKind::Malformed, at("data_base64"), "`data` is there as well"));
        }
    };
    event(attributes, message, headers, data, at)
}

/// The names of the fields; an error if one occurs twice.
fn names(fields: &Fields<'_>, body: &Bytes, at: &dyn Fn(&str) -> Text) -> Result<Vec<Text>, FormatError> {
    let names: Result<Vec<Text>, _> = fields.0.iter().map(|(name, _)| string(body, name)).collect();
    let names = names.map_err(|e| error(FormatErrorKind::Malformed, "name of an attribute", e.to_string()))?;
    match repeated(names.iter().map(Text::as_str)) {
        Some(name) => Err(error(FormatErrorKind::Malformed, at(name), "it occurs twice")),
        None => Ok(names),
    }
}

/// A name that occurs more than once.
fn repeated<'a>(names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let mut sorted: Vec<&str> = names.collect();
    sorted.sort_unstable();
    sorted.windows(2).find(|pair| pair[0] == pair[1]).map(|pair| pair[0])
}

/// A value that must be a string.
fn text(body: &Bytes, value: &RawValue, name: &str, at: &dyn Fn(&str) -> Text) -> Result<Text, FormatError> {
    string(body, value).map_err(|_| {
        let found = match value.get().as_bytes().first() {
            Some(b'[') => "an array",
            Some(b'{') => "an object",
            Some(b't' | b'f') => "a boolean",
            Some(b'n') => "null",
            Some(b'"') => "a broken one",
            _ => "a number",
        };
        error(FormatErrorKind::Malformed, at(name), format!("a JSON string is expected, not {found}"))
    })
}

/// The value of an extension as text: of a string what is in it, of a number or a boolean what is written.
fn scalar(body: &Bytes, value: &RawValue, name: &str, at: &dyn Fn(&str) -> Text) -> Result<Text, FormatError> {
    if value.get().starts_with(['"', '{', '[']) {
        return text(body, value, name, at);
    }
    Ok(value.get().into())
}

/// True if data of this content type is JSON; without a content type it is.
fn is_json(content_type: Option<&Text>) -> bool {
    let Some(content_type) = content_type.filter(|c| !c.is_empty()) else { return true };
    let subtype = media_type(content_type.as_str()).split_once('/').map_or("", |(_, subtype)| subtype);
    let suffix = subtype.len().checked_sub("+json".len()).and_then(|n| subtype.get(n..));
    subtype.eq_ignore_ascii_case("json") || suffix.is_some_and(|s| s.eq_ignore_ascii_case("+json"))
}

/// The headers and the body that an event travels with.
pub(super) fn write(event: &Event) -> Result<(Headers, Bytes), FormatError> {
    let mut headers = Headers::new();
    headers.add(Text::from_static(CONTENT_TYPE), Bytes::from_static(STRUCTURED.as_bytes()));
    let mut extensions = Vec::new();
    for (name, value) in event.headers.iter() {
        match extension(name.as_str())? {
            None => headers.add(name, value.clone()),
            Some(extension) => extensions.push((extension, extension_text(name, value)?)),
        }
    }
    if let Some(name) = repeated(extensions.iter().map(|(name, _)| name.as_str())) {
        return Err(error(FormatErrorKind::Unsupported, place(name), "it occurs twice"));
    }
    let mut body = Vec::with_capacity(event.data.len() + 256);
    write_object(event, &extensions, &mut body).map_err(|e| FormatError::json(FORMAT, &e))?;
    Ok((headers, body.into()))
}

fn extension_text<'a>(name: &Text, value: &'a Bytes) -> Result<&'a str, FormatError> {
    std::str::from_utf8(value)
        .map_err(|e| error(FormatErrorKind::Unsupported, format!("header {:?}", name.as_str()), e.to_string()))
}

fn write_object(event: &Event, extensions: &[(String, &str)], body: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let mut serializer = serde_json::Serializer::new(body);
    let mut map = serializer.serialize_map(None)?;
    map.serialize_entry("specversion", VERSION)?;
    map.serialize_entry("id", event.id.as_str())?;
    map.serialize_entry("source", event.source.as_str())?;
    map.serialize_entry("type", event.kind.as_str())?;
    let time = event.time.map(|t| t.to_string());
    for (name, value) in [
        ("time", time.as_deref()),
        ("subject", event.subject.as_ref().map(Text::as_str)),
        ("dataschema", event.schema.as_ref().map(Text::as_str)),
        ("datacontenttype", event.content_type.as_ref().map(Text::as_str)),
        ("partitionkey", event.key.as_ref().map(crate::topic::Key::as_str)),
    ] {
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            map.serialize_entry(name, value)?;
        }
    }
    for (name, value) in extensions {
        map.serialize_entry(name, value)?;
    }
    match json_data(event) {
        Some(data) => map.serialize_entry("data", data)?,
        None if event.data.is_empty() => {}
        None => map.serialize_entry("data_base64", &base64::encode(&event.data))?,
    }
    map.end()
}

/// The data if it can stand in a JSON object and come out of it byte by byte.
fn json_data(event: &Event) -> Option<&RawValue> {
    let raw: &RawValue = is_json(event.content_type.as_ref()).then(|| serde_json::from_slice(&event.data).ok())??;
    (raw.get().len() == event.data.len()).then_some(raw)
}
