//! The records of messages, configurations and rows that the real libraries made.

use aqueduct::format::{Decoded, Format};
use aqueduct::{Event, Headers, Message};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use serde_json::Value;

pub(crate) fn vectors(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// One record.
pub(crate) struct Case(pub(crate) Value);

/// All records of a system.
pub(crate) fn cases(system: &str) -> Vec<Case> {
    let all = vectors(include_str!("../vectors/captured-nats.json"));
    let Value::Array(all) = all else { panic!("a list is expected") };
    assert_eq!(all.len(), 127);
    all.into_iter().filter(|case| case["system"] == system).map(Case).collect()
}

/// Runs the checks over all records of a system. Each says what it has checked; those of which nothing is checked are named.
pub(crate) fn check_all(system: &str, count: usize, check: impl Fn(&Case) -> Vec<&'static str>, unchecked: &[&str]) {
    let cases = cases(system);
    assert_eq!(cases.len(), count);
    let nothing: Vec<_> = cases.iter().filter(|case| check(case).is_empty()).map(Case::what).collect();
    assert_eq!(nothing, unchecked);
}

impl Case {
    pub(crate) fn what(&self) -> &str {
        self.0["what"].as_str().unwrap()
    }

    pub(crate) fn text(&self, name: &str) -> &str {
        self.0[name].as_str().unwrap()
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.0.get(name).is_some()
    }

    pub(crate) fn body(&self) -> Option<Bytes> {
        let text = self.0.get("body_utf8").map(|text| Bytes::from(text.as_str().unwrap().to_owned()));
        let encoded = || Some(BASE64_STANDARD.decode(self.0.get("body_base64")?.as_str()?).unwrap().into());
        text.or_else(encoded)
    }

    pub(crate) fn headers(&self) -> Headers {
        let pairs = self.0["headers"].as_array().into_iter().flatten();
        pairs.map(|pair| (pair[0].as_str().unwrap(), pair[1].as_str().unwrap().to_owned())).collect()
    }

    /// The message as it is read from the stream; none if the record has no body.
    pub(crate) fn message(&self) -> Option<Message> {
        let body = self.body()?;
        let mut message = Message::new(self.text("subject"), body);
        message.headers = self.headers();
        Some(message)
    }

    /// What was settled: the number of a delivery, and how.
    pub(crate) fn acks(&self) -> Vec<(u64, &str)> {
        let acks = self.0["acks"].as_array().into_iter().flatten();
        acks.map(|ack| (ack["delivery"].as_u64().unwrap(), ack["payload"].as_str().unwrap())).collect()
    }
}

/// The headers that go to the server: those of the message, and its dedup id where the server looks for it. Their order is free.
pub(crate) fn on_the_wire(message: &Message) -> Vec<(String, String)> {
    let text = |value: &Bytes| String::from_utf8(value.to_vec()).unwrap();
    let mut pairs: Vec<_> = message.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    pairs.extend(message.dedup_id.iter().map(|id| ("Nats-Msg-Id".to_owned(), id.to_string())));
    pairs.sort();
    pairs
}

/// The event of a message.
#[track_caller]
pub(crate) fn read(format: &dyn Format, message: &Message) -> Event {
    match format.decode(message) {
        Ok(Decoded::One(event)) => event,
        other => panic!("one event is expected of {message:?}, not {other:?}"),
    }
}

pub(crate) fn json(data: &[u8]) -> Value {
    serde_json::from_slice(data).unwrap()
}
