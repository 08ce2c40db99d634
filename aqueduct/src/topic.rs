//! Where an event is published: topic, key, partition and position.

use std::fmt;

use bytestring::ByteString;

/// Where events are published: a NATS subject below a stream, a Kafka topic, a log of the embedded broker.
///
/// Any text converts into a topic; it is checked where it is used: not empty, at most 249 bytes, no white space or
/// control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(ByteString);

/// The longest name every broker we speak to accepts: Kafka's limit.
const TOPIC_BYTES_MAX: usize = 249;

impl Topic {
    /// The topic's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Says what is wrong with the name, if anything.
    pub fn check(&self) -> Result<(), TopicError> {
        let fault = match self.as_str() {
            "" => "it is empty",
            t if t.len() > TOPIC_BYTES_MAX => "it is longer than 249 bytes",
            t if t.chars().any(|c| c.is_whitespace() || c.is_control()) => "it has white space or a control character",
            _ => return Ok(()),
        };
        Err(TopicError { topic: self.clone(), fault })
    }
}

/// A topic name that no broker accepts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("topic {topic:?} cannot be used: {fault}")]
pub struct TopicError {
    topic: Topic,
    fault: &'static str,
}

/// What orders events within a topic: never empty, since an empty key is no key.
///
/// ```
/// use aqueduct::Key;
/// assert_eq!(Key::new("order-7").unwrap().as_str(), "order-7");
/// assert!(Key::new("").is_none());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(ByteString);

impl Key {
    /// The key with this text, or none if the text is empty.
    pub fn new(text: impl Into<Text>) -> Option<Self> {
        let text = text.into().0;
        (!text.is_empty()).then_some(Self(text))
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The key's text as shared bytes.
    pub fn bytes(&self) -> bytes::Bytes {
        self.0.as_bytes().clone()
    }

    /// The name of the lane that this key's events form.
    pub fn lane(&self) -> LaneId {
        LaneId(xxhash_rust::xxh3::xxh3_64(self.0.as_bytes()))
    }
}

/// Shared text, cheap to clone: a reference-counted slice that is known to be UTF-8.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Text(ByteString);

impl Text {
    /// Text that lives as long as the program, without an allocation.
    pub const fn from_static(s: &'static str) -> Self {
        Self(ByteString::from_static(s))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text as shared bytes.
    pub fn bytes(&self) -> bytes::Bytes {
        self.0.as_bytes().clone()
    }

    /// True if there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl TryFrom<bytes::Bytes> for Text {
    type Error = std::str::Utf8Error;

    fn try_from(b: bytes::Bytes) -> Result<Self, Self::Error> {
        ByteString::try_from(b).map(Self)
    }
}

macro_rules! text {
    ($name:ident, $wrap:path) => {
        impl From<&str> for $name {
            fn from(s: &str) -> Self {
                $wrap(ByteString::from(s))
            }
        }
        impl From<&String> for $name {
            fn from(s: &String) -> Self {
                $wrap(ByteString::from(s.as_str()))
            }
        }
        impl From<String> for $name {
            fn from(s: String) -> Self {
                $wrap(ByteString::from(s))
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self.as_str(), f)
            }
        }
        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.as_str() == other
            }
        }
        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.as_str() == *other
            }
        }
    };
}

text!(Topic, Topic);
text!(Text, Text);

impl From<&Text> for Text {
    fn from(t: &Text) -> Self {
        t.clone()
    }
}

impl From<uuid::Uuid> for Text {
    fn from(u: uuid::Uuid) -> Self {
        Self(ByteString::from(u.hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()) as &str))
    }
}

impl From<Text> for Topic {
    fn from(t: Text) -> Self {
        Self(t.0)
    }
}

impl From<&Topic> for Topic {
    fn from(t: &Topic) -> Self {
        t.clone()
    }
}

impl From<Topic> for Text {
    fn from(t: Topic) -> Self {
        Self(t.0)
    }
}

impl From<Key> for Text {
    fn from(k: Key) -> Self {
        Self(k.0)
    }
}

impl From<&Key> for Text {
    fn from(k: &Key) -> Self {
        Self(k.0.clone())
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// The name of a lane, in memory and in the store alike: the XXH3-64 hash of its key.
///
/// Keys that collide share a lane: they are handled one after the other, and nothing worse. The hash is part of what is
/// stored and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneId(pub u64);

/// The unit of ownership: one numbered part of a topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition {
    /// The topic it is a part of.
    pub topic: Topic,
    /// Its number, from 0.
    pub index: u32,
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.topic, self.index)
    }
}

/// Where a message stands in its partition: an offset, a stream sequence, a row of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub u64);

/// Where an event stands in its partition: the position of its message, and its number within a batch (0 if alone).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The position of the message that brought it.
    pub position: Position,
    /// Its number within that message.
    pub index: u32,
}

impl Place {
    /// The place of the only event of the message at `position`.
    pub const fn at(position: u64) -> Self {
        Self { position: Position(position), index: 0 }
    }

    /// The lane of an event without a key: a lane of its own, named by its place.
    pub fn lane(self) -> LaneId {
        let mut name = [0xff; 13];
        name[1..9].copy_from_slice(&self.position.0.to_be_bytes());
        name[9..].copy_from_slice(&self.index.to_be_bytes());
        LaneId(xxhash_rust::xxh3::xxh3_64(&name))
    }
}

/// Counts the owners of a partition: it grows at each change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_topic_says_why() {
        assert!(Topic::from("orders.eu").check().is_ok());
        for (bad, why) in [("", "empty"), ("a b", "white space"), ("a\u{7}", "control")] {
            let text = Topic::from(bad).check().unwrap_err().to_string();
            assert!(text.contains(why), "{text}");
        }
        assert!(Topic::from("x".repeat(250)).check().is_err());
    }

    #[test]
    fn lane_names_are_stable() {
        assert_eq!(Key::new("order-7").unwrap().lane(), LaneId(xxhash_rust::xxh3::xxh3_64(b"order-7")));
        assert_ne!(Place::at(1).lane(), Place { position: Position(1), index: 1 }.lane());
    }
}
