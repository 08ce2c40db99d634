//! What the gem says of a dead letter.

use bytes::Bytes;
use serde_json::value::RawValue;

use super::format::{FORMAT, scalar};
use crate::clock::Timestamp;
use crate::format::object::{Fields, is_null};
use crate::format::{FormatError, FormatErrorKind};
use crate::headers::Headers;
use crate::topic::Text;

/// What the headers of a dead letter say of it, from version 2.4 of the gem on.
///
/// A dead letter is the message as it came, with these headers. Those of older versions are copies and nothing else, and
/// with `Nats-Msg-Id` among the headers the server dropped them.
///
/// The traps: an event may have several dead letters, one for each delivery; and where the original has no `nats-msg-id`, the gem
/// makes the `event_id` up.
///
/// ```
/// use aqueduct::{Headers, compat::jetstream_bridge::{DeadLetter, Reason}};
/// let mut headers = Headers::new();
/// assert_eq!(DeadLetter::read(&headers)?, None);
/// headers.add("x-dead-letter", "true");
/// headers.add("x-dlq-reason", "unrecoverable");
/// headers.add("x-dlq-context", r#"{"error_class": "ArgumentError", "original_subject": "orders.sync.warehouse"}"#);
/// let dead = DeadLetter::read(&headers)?.unwrap();
/// assert_eq!((dead.reason, dead.original_subject.as_str()), (Reason::Unrecoverable, "orders.sync.warehouse"));
/// # Ok::<(), aqueduct::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetter {
    /// Why it is one.
    pub reason: Reason,
    /// The number of the delivery that was the last.
    pub deliveries: Option<u64>,
    /// The id of the event.
    pub event_id: Text,
    /// The class of the error, such as `ArgumentError`.
    pub error_class: Text,
    /// What the error says.
    pub error_message: Text,
    /// The subject that it was published to.
    pub original_subject: Text,
    /// The stream that it was in.
    pub stream: Text,
    /// The durable consumer that gave it up.
    pub consumer: Text,
    /// Its sequence in the stream; none if the gem keeps an inbox.
    pub stream_sequence: Option<u64>,
    /// The sequence of the delivery; none if the gem keeps an inbox.
    pub consumer_sequence: Option<u64>,
    /// When the dead letter was published.
    pub published_at: Option<Timestamp>,
}

/// Why an event is a dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The body is no JSON.
    MalformedJson,
    /// The handler failed in a way that no repetition mends, or the body is no object.
    Unrecoverable,
    /// The last delivery failed.
    MaxDeliverExceeded,
    /// Something that the gem did not say up to version 7.1.
    Other(Text),
}

impl DeadLetter {
    /// What the headers of a message or event say; none if it is no dead letter. An error if the context is no JSON object.
    pub fn read(headers: &Headers) -> Result<Option<Self>, FormatError> {
        if headers.text("x-dead-letter") != Some("true") {
            return Ok(None);
        }
        let context = headers.get("x-dlq-context").cloned().unwrap_or_else(|| Bytes::from_static(b"{}"));
        let fields: Fields<'_> = serde_json::from_slice(&context).map_err(|e| in_context(&e))?;
        let text = |name| fields.get(&context, name).and_then(|value| scalar(value, &context)).unwrap_or_default();
        let [stream_sequence, consumer_sequence] = match fields.get(&context, "sequence").filter(|v| !is_null(v)) {
            Some(sequence) => sequences(&context, sequence)?,
            None => [None, None],
        };
        Ok(Some(Self {
            reason: Reason::from(headers.text("x-dlq-reason").unwrap_or_default()),
            deliveries: headers.text("x-deliveries").and_then(|n| n.parse().ok()),
            event_id: text("event_id"),
            error_class: text("error_class"),
            error_message: text("error_message"),
            original_subject: text("original_subject"),
            stream: text("stream"),
            consumer: text("consumer"),
            stream_sequence,
            consumer_sequence,
            published_at: text("published_at").as_str().parse().ok(),
        }))
    }
}

/// The sequences in stream and consumer.
fn sequences(context: &Bytes, value: &RawValue) -> Result<[Option<u64>; 2], FormatError> {
    let fields: Fields<'_> = serde_json::from_str(value.get()).map_err(|e| in_context(&e))?;
    Ok(["stream", "consumer"].map(|name| fields.get(context, name).and_then(|n| n.get().parse().ok())))
}

fn in_context(e: &serde_json::Error) -> FormatError {
    let error = FormatError::json(FORMAT, e);
    FormatError { kind: FormatErrorKind::Malformed, at: format!("header x-dlq-context, {}", error.at).into(), ..error }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        match text {
            "malformed_json" => Self::MalformedJson,
            "unrecoverable" => Self::Unrecoverable,
            "max_deliver_exceeded" => Self::MaxDeliverExceeded,
            other => Self::Other(other.into()),
        }
    }
}
