//! An event as programs see it: a line of JSON, and variables.

use std::borrow::Cow;

use aqueduct::format::{CloudEvents, Format};
use aqueduct::{Error, Event, Key, Result, Text};
use bytes::Bytes;

use super::Delivery;

/// The longest variable that is handed over: Linux takes 128 KiB, name included.
const VARIABLE_MAX: usize = 100 << 10;

/// Headers that travel in JSON as extension attributes, though they are no attributes in a message.
const TRACE: [&str; 2] = ["traceparent", "tracestate"];

impl Delivery {
    /// The event with an id and a source: what was published without an envelope is known by its place.
    pub(crate) fn whole(&self) -> Cow<'_, Event> {
        let event = &*self.event;
        let traced = TRACE.iter().any(|name| event.headers.get(name).is_some());
        if !event.id.is_empty() && !event.source.is_empty() && !traced {
            return Cow::Borrowed(event);
        }
        let mut whole = event.clone();
        if whole.id.is_empty() {
            whole.id = format!("{}-{}", self.origin.partition.index, self.place.position.0).into();
        }
        if whole.source.is_empty() {
            whole.source = self.topic().into();
        }
        for name in TRACE {
            if let Some(value) = event.headers.get(name) {
                whole.headers.add(format!("ce-{name}"), value.clone());
            }
        }
        Cow::Owned(whole)
    }

    pub(crate) fn topic(&self) -> &str {
        self.origin.partition.topic.as_str()
    }

    /// The event as `CloudEvents` JSON on one line, without an end of line.
    pub(crate) fn json(&self) -> Result<Bytes> {
        let message = CloudEvents::structured().encode(&self.whole(), &self.origin.partition.topic);
        let body = message.map_err(|e| Error::boxed(e.into()).permanent())?.body;
        // In JSON an end of line stands between values only, where a space says the same.
        if memchr::memchr2(b'\n', b'\r', &body).is_none() {
            return Ok(body);
        }
        Ok(body.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }).collect())
    }

    /// Attributes as `CE_ID`, `CE_TYPE` and so on, and what Aqueduct knows. One that no variable can hold is left out.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        let event = self.whole();
        let optional = |text: &Option<Text>| text.as_ref().map(|text| text.as_str().to_owned());
        let mut variables = vec![
            ("CE_SPECVERSION".to_owned(), Some("1.0".to_owned())),
            ("CE_ID".to_owned(), Some(event.id.to_string())),
            ("CE_SOURCE".to_owned(), Some(event.source.to_string())),
            ("CE_TYPE".to_owned(), Some(event.kind.to_string())),
            ("CE_TIME".to_owned(), event.time.map(|time| time.to_string())),
            ("CE_SUBJECT".to_owned(), optional(&event.subject)),
            ("CE_DATASCHEMA".to_owned(), optional(&event.schema)),
            ("CE_DATACONTENTTYPE".to_owned(), optional(&event.content_type)),
            ("CE_PARTITIONKEY".to_owned(), event.key.as_ref().map(|key: &Key| key.as_str().to_owned())),
            ("AQUEDUCT_TOPIC".to_owned(), Some(self.topic().to_owned())),
            ("AQUEDUCT_GROUP".to_owned(), Some(self.origin.consumer.to_string())),
            ("AQUEDUCT_ATTEMPT".to_owned(), Some(self.attempt.number.to_string())),
            ("AQUEDUCT_EPOCH".to_owned(), Some(self.origin.epoch.0.to_string())),
        ];
        for (name, value) in event.headers.iter() {
            let extension =
                name.as_str().strip_prefix("ce-").filter(|name| name.bytes().all(|b| b.is_ascii_alphanumeric()));
            if let Some(name) = extension {
                variables
                    .push((format!("CE_{}", name.to_uppercase()), std::str::from_utf8(value).ok().map(str::to_owned)));
            }
        }
        let kept = |value: &String| value.len() <= VARIABLE_MAX && !value.contains('\0');
        variables.into_iter().filter_map(|(name, value)| Some((name, value.filter(kept)?))).collect()
    }
}
