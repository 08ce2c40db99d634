//! A message: an event as it is on the wire.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::headers::Headers;
use crate::topic::{Text, Topic};

/// What a broker carries: topic, key, headers and a body that only a [`Format`](crate::format::Format) understands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Where it is published, or came from.
    pub topic: Topic,
    /// The ordering key as bytes; empty counts as none.
    pub key: Option<Bytes>,
    /// Names and values beside the body.
    pub headers: Headers,
    /// The body.
    pub body: Bytes,
    /// What the broker may recognise a repeat by (CloudEvents: `source#id`); chosen by the format.
    pub dedup_id: Option<Text>,
    /// When the broker stored it; none before that.
    pub stored_at: Option<Timestamp>,
}

impl Message {
    /// A message with a body and nothing else.
    pub fn new(topic: impl Into<Topic>, body: impl Into<Bytes>) -> Self {
        let (topic, body) = (topic.into(), body.into());
        Self { topic, key: None, headers: Headers::new(), body, dedup_id: None, stored_at: None }
    }

    /// The ordering key, unless it is empty.
    pub fn key(&self) -> Option<&Bytes> {
        self.key.as_ref().filter(|k| !k.is_empty())
    }

    /// The bytes of key, headers and body.
    pub fn size(&self) -> usize {
        self.key.as_ref().map_or(0, Bytes::len) + self.headers.size() + self.body.len()
    }
}
