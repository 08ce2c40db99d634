//! The port to a wire format: how an event looks in a message.

use crate::error::without_values;
use crate::event::Event;
use crate::message::Message;
use crate::topic::{Text, Topic};

pub mod cloudevents;
pub mod json;
pub(crate) mod object;

pub use cloudevents::CloudEvents;
pub use json::PlainJson;

/// How events look on the wire: one function each way.
pub trait Format: Send + Sync + 'static {
    /// Writes an event as a message for `topic`. The event has an id and a source.
    fn encode(&self, event: &Event, topic: &Topic) -> Result<Message, FormatError>;

    /// Reads what a message carries.
    ///
    /// A consumer that reads several formats asks each in turn until one does not answer
    /// [`NotMine`](FormatErrorKind::NotMine). Broken input is an error, never a panic.
    fn decode(&self, message: &Message) -> Result<Decoded, FormatError>;
}

/// What a message carries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "one event a message is the rule, and boxing it would allocate")]
pub enum Decoded {
    /// One event.
    One(Event),
    /// Several events, in order; may be none.
    Batch(Vec<Event>),
}

/// Why a message cannot be read, or an event cannot be written: what is wrong and where.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{format}: {at}: {problem}")]
pub struct FormatError {
    /// The kind of problem.
    pub kind: FormatErrorKind,
    /// The format's name.
    pub format: &'static str,
    /// Where: a header, an attribute, or a line and column of the body.
    pub at: Text,
    /// What is wrong there.
    pub problem: Text,
}

impl FormatError {
    /// An error in JSON, at its line and column.
    pub(crate) fn json(format: &'static str, e: &serde_json::Error) -> Self {
        let at = format!("line {} column {}", e.line(), e.column());
        let problem = without_values(e);
        let problem = problem.strip_suffix(&format!(" at {at}")).unwrap_or(&problem).into();
        Self { kind: FormatErrorKind::Malformed, format, at: at.into(), problem }
    }
}

/// The kinds of problems with a format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FormatErrorKind {
    /// The message is in some other format.
    NotMine,
    /// A required attribute is missing or empty.
    Missing,
    /// Something is there and is not what it should be.
    Malformed,
    /// The event has something that this format cannot carry.
    Unsupported,
}
