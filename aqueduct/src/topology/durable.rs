//! A durable: the server's side of a consumer that is not ours, such as the work queue of a Rails fleet.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::stream::set_json;
use super::subjects::overlap;
use super::wanted::{Fields, Id, Purpose, Wanted, check_name, check_subjects, nanos};
use crate::error::BrokerError;

/// What a durable is to be like: a pull consumer whose messages are acknowledged one by one.
///
/// Consumers of this library need none: their instances make what they read with, under the name of the consumer. Declare what
/// other programs read with, and cannot be trusted to make as it should be. What is not set is neither compared nor changed.
///
/// ```
/// use std::time::Duration;
/// use aqueduct::topology::NatsDurable;
/// let workers = NatsDurable::new("jobs", "billing-workers").filter("billing.sync.>").ack_wait(Duration::from_secs(30));
/// ```
#[derive(Clone, Debug)]
pub struct NatsDurable {
    stream: String,
    name: String,
    filters: Vec<String>,
    declared: Fields,
    settings: Vec<(String, String)>,
    free: BTreeSet<String>,
}

impl NatsDurable {
    /// A durable with this name on a stream, of which nothing is declared yet.
    pub fn new(stream: impl Into<String>, name: impl Into<String>) -> Self {
        let (stream, name, free) = (stream.into(), name.into(), BTreeSet::new());
        Self { stream, name, filters: Vec::new(), declared: Fields::new(), settings: Vec::new(), free }
    }

    /// The subjects that it reads; may be given several times, and they must not overlap. Defaults to all of the stream.
    pub fn filter(mut self, subjects: impl Into<String>) -> Self {
        self.filters.push(subjects.into());
        self
    }

    /// How long a message may be worked on before it is delivered again. Defaults to 30 s.
    pub fn ack_wait(self, wait: Duration) -> Self {
        self.set("ack_wait", nanos(wait))
    }

    /// How often a message is delivered at most. Afterwards the server leaves it alone, and a work queue keeps it for ever.
    /// Defaults to no limit.
    pub fn max_deliver(self, count: u32) -> Self {
        self.set("max_deliver", count)
    }

    /// How many messages may be worked on at once. Defaults to 1,000.
    pub fn max_ack_pending(self, count: u32) -> Self {
        self.set("max_ack_pending", count)
    }

    /// Reads only what comes after it was made; it cannot be changed later. Defaults to everything that is there.
    pub fn only_new(self) -> Self {
        self.set("deliver_policy", "new")
    }

    /// Any other setting of the server, as a name and JSON, such as `("headers_only", "true")`. Defaults to none.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// A setting that others may change, by the server's name of it; may be given several times. Defaults to none.
    pub fn allow_drift(mut self, setting: impl Into<String>) -> Self {
        self.free.insert(setting.into());
        self
    }

    fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.declared.insert(field.to_owned(), value.into());
        self
    }

    pub(super) fn wanted(&self) -> Result<Wanted, BrokerError> {
        check_name("stream", &self.stream)?;
        check_name("durable", &self.name)?;
        let (id, mut declared) = (Id::Durable(self.stream.clone(), self.name.clone()), self.declared.clone());
        check_subjects(&id, &self.filters)?;
        let pairs = self
            .filters
            .iter()
            .enumerate()
            .flat_map(|(at, one)| self.filters[..at].iter().map(move |other| (other, one)));
        if let Some((one, other)) = pairs.into_iter().find(|(one, other)| overlap(one, other)) {
            let text = format!(
                "{id}: its filters {one} and {other} overlap, which the server refuses: leave out what is in both"
            );
            return Err(BrokerError::Refused(text));
        }
        // The server keeps one filter and several in different fields.
        let (one, several) = match self.filters.as_slice() {
            [] => (None, None),
            [one] => (Some(Value::from(one.as_str())), Some(Value::Null)),
            several => (Some(Value::Null), Some(several.into())),
        };
        declared.extend(one.map(|filter| ("filter_subject".to_owned(), filter)));
        declared.extend(several.map(|filters| ("filter_subjects".to_owned(), filters)));
        declared.insert("ack_policy".into(), "explicit".into());
        set_json(&id, &mut declared, &self.settings)?;
        let wanted = Wanted::new(id, Purpose::Other, declared, [("deliver_policy", "all".into())]);
        Ok(Wanted { free: self.free.clone(), ..wanted })
    }
}
