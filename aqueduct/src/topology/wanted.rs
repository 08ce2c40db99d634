//! Streams and durables as what the server is to have: fields of their configurations.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};

use super::subjects;
use crate::broker::nats::layout::Layout;
use crate::error::BrokerError;
use crate::topic::Topic;

/// The fields of a configuration, as the server names them.
pub(super) type Fields = Map<String, Value>;

/// The server's limit.
const NAME_BYTES_MAX: usize = 255;

/// Which stream, or which durable of a stream.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Id {
    Stream(String),
    Durable(String, String),
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream(stream) => write!(f, "stream {stream}"),
            Self::Durable(stream, durable) => write!(f, "durable {durable} of stream {stream}"),
        }
    }
}

/// What it is for: it says which promises hang on it.
#[derive(Clone, Debug)]
pub(super) enum Purpose {
    Topic(Arc<Layout>),
    DeadLetters,
    Other,
}

impl Purpose {
    pub(super) fn topic(&self) -> Option<&Topic> {
        match self {
            Self::Topic(layout) => Some(layout.topic()),
            _ => None,
        }
    }
}

/// What something on the server is to be like.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) id: Id,
    pub(super) purpose: Purpose,
    /// What is compared, and written where it differs; null is the server's default.
    pub(super) declared: Fields,
    /// What else it is made with.
    pub(super) usual: Fields,
    /// Fields that may be otherwise, and are left so.
    pub(super) free: BTreeSet<String>,
}

impl Wanted {
    pub(super) fn new<const N: usize>(id: Id, purpose: Purpose, declared: Fields, usual: [(&str, Value); N]) -> Self {
        let usual = usual.into_iter().map(|(field, value)| (field.to_owned(), value)).collect();
        Self { id, purpose, declared, usual, free: BTreeSet::new() }
    }

    /// What it is made with where there is none.
    pub(super) fn config(&self) -> Fields {
        let mut config = self.usual.clone();
        write(&mut config, &self.declared);
        let name = match &self.id {
            Id::Stream(stream) => ("name", stream),
            Id::Durable(_, durable) => ("durable_name", durable),
        };
        config.insert(name.0.to_owned(), name.1.as_str().into());
        config
    }

    /// Without the fields that may be otherwise.
    pub(super) fn enforced(&self) -> Self {
        let mut enforced = self.clone();
        enforced.declared.retain(|field, _| !self.free.contains(field));
        enforced
    }

    /// With nothing but the fields that may be otherwise.
    pub(super) fn freed(&self) -> Self {
        let mut freed = self.clone();
        freed.declared.retain(|field, _| self.free.contains(field));
        freed
    }

    /// How many copies are declared.
    pub(super) fn replicas(&self) -> Option<u64> {
        self.declared.get("num_replicas").and_then(Value::as_u64)
    }

    /// A list of texts among what is declared.
    pub(super) fn list(&self, field: &str) -> Vec<String> {
        self.declared.get(field).map(texts).unwrap_or_default()
    }
}

/// Writes fields into a configuration.
pub(super) fn write(config: &mut Fields, fields: &Fields) {
    for (field, value) in fields {
        match value {
            Value::Null => {
                config.remove(field);
            }
            value => {
                config.insert(field.clone(), value.clone());
            }
        }
    }
}

/// The texts of a list.
pub(super) fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A time as the server has it.
pub(super) fn nanos(duration: Duration) -> Value {
    u64::try_from(duration.as_nanos()).unwrap_or(i64::MAX as u64).into()
}

/// Refuses names that the server does not take.
pub(super) fn check_name(what: &str, name: &str) -> Result<(), BrokerError> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '.' | '*' | '>' | '/' | '\\');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.contains(bad) {
        let text = format!(
            "{name:?} cannot be the name of a {what}: it must have 1 to {NAME_BYTES_MAX} bytes, without white space, `.`, `*`, \
             `>`, `/` and `\\`"
        );
        return Err(BrokerError::Refused(text));
    }
    Ok(())
}

/// Refuses texts that are no subjects.
pub(super) fn check_subjects(of: &Id, all: &[String]) -> Result<(), BrokerError> {
    let wrong = all.iter().find_map(|subject| Some((subject, subjects::fault(subject)?)));
    wrong.map_or(Ok(()), |(subject, fault)| {
        Err(BrokerError::Refused(format!("{of}: {subject:?} is no subject: {fault}")))
    })
}
