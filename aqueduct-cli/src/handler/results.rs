//! `--publish-results`: events that a handler answers with are published before its attempt counts as done.

use std::collections::BTreeMap;

use aqueduct::{Error, Event, PublishError, Publisher, Result, Topic};
use bytes::Bytes;
use serde_json::value::RawValue;

use super::Delivery;
use crate::input::read_event;

/// Where results go.
pub(crate) struct Results {
    publisher: Publisher,
    topic: Topic,
}

impl Results {
    pub(crate) fn new(publisher: Publisher, topic: &str) -> Self {
        Self { publisher, topic: topic.into() }
    }

    /// Publishes all, in their order. They may be published again with the next attempt, under the same ids.
    pub(crate) async fn publish(&self, mut events: Vec<Event>) -> Result<()> {
        for event in &mut events {
            event.topic = Some(self.topic.clone());
        }
        for answer in self.publisher.publish_all(events).await {
            answer.map_err(|error| match error {
                // The file is full or locked: the event that was handled is not at fault.
                PublishError::Unconfirmed { .. } => Error::from(error).uncounted(),
                other => Error::from(other),
            })?;
        }
        Ok(())
    }
}

impl Delivery {
    /// The events of an answer: objects one a line, or an array of them. Blank is none.
    pub(crate) fn results(&self, answer: &[u8]) -> Result<Vec<Event>> {
        let answer = answer.trim_ascii();
        if answer.starts_with(b"[") {
            let array: Vec<Box<RawValue>> = serde_json::from_slice(answer).map_err(|e| no_events(&e.to_string()))?;
            return self.results_of(&array);
        }
        let lines = answer.split(|byte| *byte == b'\n').filter(|line| !line.trim_ascii().is_empty());
        let results = lines.enumerate().map(|(n, line)| {
            let at = |reason: String| no_events(&format!("line {}, `{}`: {reason}", n + 1, excerpt(line)));
            self.result(n, line).map_err(at)
        });
        results.collect()
    }

    /// The events of an answer that is JSON already.
    pub(crate) fn results_of(&self, objects: &[Box<RawValue>]) -> Result<Vec<Event>> {
        let result = |(n, object): (usize, &RawValue)| {
            self.result(n, object.get().as_bytes()).map_err(|reason| no_events(&format!("event {}: {reason}", n + 1)))
        };
        objects.iter().map(|object| &**object).enumerate().map(result).collect()
    }

    /// One event. What it leaves out is filled in, and its id is the same in every attempt.
    fn result(&self, n: usize, object: &[u8]) -> Result<Event, String> {
        let mut fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(object).map_err(|e| e.to_string())?;
        let (group, event) = (&self.origin.consumer, &self.event);
        let id = format!("{}#{}#{}", event.source, event.id, n + 1);
        for (name, value) in [("specversion", "1.0"), ("id", &id), ("source", group.as_str())] {
            if !fields.contains_key(name) {
                fields.insert(name.to_owned(), serde_json::value::to_raw_value(value).map_err(|e| e.to_string())?);
            }
        }
        let whole = serde_json::to_vec(&fields).map_err(|e| e.to_string())?;
        read_event(&self.origin.partition.topic, &Bytes::from(whole))
    }
}

fn no_events(reason: &str) -> Error {
    Error::msg(format!("its answer is to be events to publish, CloudEvents in JSON one a line: {reason}"))
}

/// The beginning of what a program wrote, for an error.
pub(crate) fn excerpt(text: &[u8]) -> String {
    const BYTES: usize = 120;
    let shown = String::from_utf8_lossy(&text[..text.len().min(BYTES)]);
    let shown: String = shown.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.len() > BYTES { format!("{shown}...") } else { shown }
}
