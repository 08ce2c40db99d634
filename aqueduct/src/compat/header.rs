//! Headers as the peers on NATS have them.

use bytes::Bytes;

use crate::format::{FormatError, FormatErrorKind};
use crate::headers::Headers;
use crate::message::Message;
use crate::topic::Text;

/// The name of the header with a message's id, in the case that the server does not look at.
pub(super) const MESSAGE_ID: &str = "nats-msg-id";

/// The message's id: its header, in any case, or what a broker keeps beside the headers.
pub(super) fn message_id(message: &Message) -> Option<Text> {
    let header = message.headers.get(MESSAGE_ID).and_then(|id| Text::try_from(id.clone()).ok());
    header.or_else(|| message.dedup_id.clone()).filter(|id| !id.is_empty())
}

/// The headers that are neither orders to the server nor what it notes down, and that are `wanted`.
pub(super) fn others(headers: &Headers, wanted: impl Fn(&str) -> bool) -> impl Iterator<Item = (&Text, &Bytes)> {
    headers.iter().filter(move |(name, _)| !is_of_the_server(name.as_str()) && wanted(name.as_str()))
}

fn is_of_the_server(name: &str) -> bool {
    name.get(..5).is_some_and(|begin| begin.eq_ignore_ascii_case("nats-"))
}

/// A header of an event as text.
pub(super) fn text<'a>(format: &'static str, headers: &'a Headers, name: &str) -> Result<Option<&'a str>, FormatError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    std::str::from_utf8(value).map(Some).map_err(|e| {
        let at = format!("header {name:?}");
        FormatError { kind: FormatErrorKind::Malformed, format, at: at.into(), problem: e.to_string().into() }
    })
}

/// Refuses what is missing, and what would come out of a header as something else.
pub(super) fn check_value(format: &'static str, at: &'static str, value: &Text) -> Result<(), FormatError> {
    let text = value.as_str();
    let (kind, problem) = if text.is_empty() {
        (FormatErrorKind::Missing, "it is required and is missing or empty")
    } else if text.trim().len() < text.len() || text.contains(char::is_control) {
        (FormatErrorKind::Unsupported, "it travels as a header: take the blanks around it and the line breaks out")
    } else {
        return Ok(());
    };
    Err(FormatError { kind, format, at: Text::from_static(at), problem: Text::from_static(problem) })
}
