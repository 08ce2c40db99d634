//! Binary mode: attributes are headers, the body is the data.

use bytes::Bytes;

use super::{
    Attributes, CONTENT_TYPE, DATACONTENTTYPE, NAMES, SPECVERSION, TRACE, VERSION, add_trace, attribute, error, event,
    extension,
};
use crate::event::Event;
use crate::format::{FormatError, FormatErrorKind};
use crate::headers::Headers;
use crate::message::Message;
use crate::topic::Text;

/// Reads an event whose texts are slices of the message's headers; allocates only for headers that are no attributes.
pub(super) fn read(message: &Message) -> Result<Event, FormatError> {
    let mut found: [Option<&Bytes>; NAMES.len()] = [None; NAMES.len()];
    let mut others = false;
    for (name, value) in message.headers.iter() {
        match field(name.as_str()) {
            Some(field) => _ = found[field].get_or_insert(value),
            None => others = true,
        }
    }
    if found[SPECVERSION].is_none() {
        let problem = Text::from_static("it is missing, and the content type is no structured CloudEvents type");
        return Err(error(FormatErrorKind::NotMine, place(NAMES[SPECVERSION]), problem));
    }
    let mut attributes = Attributes::default();
    for (n, value) in found.into_iter().enumerate() {
        let text = value.map(|v| Text::try_from(v.clone())).transpose();
        attributes[n] = text.map_err(|e| error(FormatErrorKind::Malformed, place(NAMES[n]), e.to_string()))?;
    }
    let headers = if others { other_headers(message) } else { Headers::new() };
    event(attributes, message, headers, message.body.clone(), &place)
}

/// Which field of an event a header stands for.
fn field(header: &str) -> Option<usize> {
    match attribute(header) {
        Some(name) => NAMES.iter().position(|n| n.eq_ignore_ascii_case(name)),
        None => header.eq_ignore_ascii_case(CONTENT_TYPE).then_some(DATACONTENTTYPE),
    }
}

/// The headers that are no fields of an event, extensions under their usual names.
fn other_headers(message: &Message) -> Headers {
    let mut headers = Headers::new();
    let mut trace = [None, None];
    for (name, value) in message.headers.iter().filter(|(name, _)| field(name.as_str()).is_none()) {
        match attribute(name.as_str()) {
            None => headers.add(name, value.clone()),
            Some(extension) => match TRACE.iter().position(|t| t.eq_ignore_ascii_case(extension)) {
                Some(n) => trace[n] = Some(value.clone()),
                None => headers.add(usual(name, extension), value.clone()),
            },
        }
    }
    for (name, value) in TRACE.into_iter().zip(trace) {
        add_trace(&mut headers, name, value);
    }
    headers
}

/// The header's name if it is the usual one for this extension, else that.
fn usual(header: &Text, extension: &str) -> Text {
    let usual = header.as_str().starts_with("ce-") && !extension.bytes().any(|b| b.is_ascii_uppercase());
    if usual { header.clone() } else { format!("ce-{}", extension.to_ascii_lowercase()).into() }
}

fn place(attribute: &str) -> Text {
    if attribute == NAMES[DATACONTENTTYPE] {
        return Text::from_static("header content-type");
    }
    format!("header ce-{attribute}").into()
}

/// The headers that an event travels with.
pub(super) fn write(event: &Event) -> Result<Headers, FormatError> {
    let mut headers = Headers::new();
    let mut add = |name, value: &Text| headers.add(Text::from_static(name), value.bytes());
    add("ce-specversion", &Text::from_static(VERSION));
    add("ce-id", &event.id);
    add("ce-source", &event.source);
    add("ce-type", &event.kind);
    let time = event.time.map(|t| Text::from(t.to_string()));
    let key = event.key.as_ref().map(Text::from);
    for (name, value) in [
        ("ce-time", &time),
        ("ce-subject", &event.subject),
        ("ce-dataschema", &event.schema),
        ("ce-partitionkey", &key),
        (CONTENT_TYPE, &event.content_type),
    ] {
        if let Some(value) = value.as_ref().filter(|v| !v.is_empty()) {
            add(name, value);
        }
    }
    for (name, value) in event.headers.iter() {
        let name = extension(name.as_str())?.map_or_else(|| name.clone(), |extension| usual(name, &extension));
        headers.add(name, value.clone());
    }
    Ok(headers)
}
