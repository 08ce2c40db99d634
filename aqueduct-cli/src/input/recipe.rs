//! What becomes of a line: an event, or why not.

use aqueduct::format::{CloudEvents, Decoded, Format};
use aqueduct::{Event, Headers, Message, Topic};
use bytes::Bytes;
use serde::de::IgnoredAny;

use super::Path;

/// How lines become events for one topic.
pub(crate) struct Recipe {
    pub(crate) topic: Topic,
    /// Lines are any JSON, and this is the type of their events; none if they are CloudEvents.
    pub(crate) kind: Option<String>,
    /// The first that leads to something counts.
    pub(crate) key: Vec<Path>,
    pub(crate) id: Option<Path>,
    /// Its time is part of what is compared when it is published again, so it must not be that of publishing.
    pub(crate) needs_time: bool,
}

impl Recipe {
    /// The event of a line, or what is wrong with it.
    pub(crate) fn event(&self, line: &Bytes) -> Result<Event, String> {
        let mut event = match &self.kind {
            None => read_event(&self.topic, line).map_err(|reason| plainly(reason, line))?,
            Some(kind) => Event::raw(kind.as_str(), line.clone()).content_type("application/json"),
        };
        if let Some(path) = &self.id {
            let id = path.find(line)?.ok_or_else(|| format!("it has no id: there is nothing at `{path}`"))?;
            event = event.id(id);
        }
        if !self.key.is_empty() {
            event = event.key(self.key(line)?);
        }
        if self.needs_time && event.time.is_none() {
            return Err("it has no time, which the structured encoding needs: published again it would differ".into());
        }
        event.topic = Some(self.topic.clone());
        Ok(event)
    }

    fn key(&self, line: &Bytes) -> Result<String, String> {
        for path in &self.key {
            if let Some(key) = path.find(line)? {
                return Ok(key);
            }
        }
        let paths: Vec<String> = self.key.iter().map(|path| format!("`{path}`")).collect();
        Err(format!("it has no key: there is nothing at {}; a further --key is tried next", paths.join(" or ")))
    }
}

/// Says first that a line is something else altogether.
fn plainly(reason: String, line: &Bytes) -> String {
    let is_object = line.trim_ascii_start().starts_with(b"{") && serde_json::from_slice::<IgnoredAny>(line).is_ok();
    let other = is_object && memchr::memmem::find(line, b"\"specversion\"").is_none();
    if other { "it is JSON but no CloudEvent, which has an attribute `specversion`".into() } else { reason }
}

/// Reads a `CloudEvent` written as JSON.
pub(crate) fn read_event(topic: &Topic, json: &Bytes) -> Result<Event, String> {
    const STRUCTURED: Bytes = Bytes::from_static(b"application/cloudevents+json");
    let headers: Headers = [("content-type", STRUCTURED)].into_iter().collect();
    let message = Message { headers, ..Message::new(topic.clone(), json.clone()) };
    match CloudEvents::structured().decode(&message) {
        Ok(Decoded::One(event)) => Ok(event),
        Ok(Decoded::Batch(_)) => Err("it is a batch".into()),
        // A line has one line, so its number says nothing.
        Err(error) => Err(format!("{}: {}", error.at, error.problem).replacen("line 1 column", "column", 1)),
    }
}
