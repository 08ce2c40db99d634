//! A stream that is no topic: other programs' subjects, dead letters, mirrors and sources.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use super::subjects::{covers, overlap};
use super::wanted::{Fields, Id, Purpose, Wanted, check_name, check_subjects, nanos};
use crate::error::BrokerError;

/// What a stream keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retention {
    /// Everything, within its limits.
    Limits,
    /// What a durable has not settled yet; nothing while there is no durable.
    Interest,
    /// What nobody has settled yet; each event goes to one durable.
    WorkQueue,
}

/// What a stream is to be like.
///
/// Streams of events that `Publisher` and `Consumer` carry are declared as [topics](crate::nats::NatsTopic). What is not set
/// is neither compared with a stream that is there already, nor changed there; a new one has the server's defaults.
///
/// ```
/// use aqueduct::topology::{NatsSource, NatsStream, Retention};
/// let jobs = NatsStream::new("jobs").subjects(["jobs.>"]).retention(Retention::WorkQueue).replicas(3);
/// let audit = NatsStream::new("audit").source(NatsSource::new("jobs").filter("jobs.paid.>"));
/// ```
#[derive(Clone, Debug)]
pub struct NatsStream {
    name: String,
    declared: Fields,
    settings: Vec<(String, String)>,
    free: BTreeSet<String>,
}

impl NatsStream {
    /// A stream with this name, of which nothing is declared yet.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), declared: Fields::new(), settings: Vec::new(), free: BTreeSet::new() }
    }

    /// The subjects that it takes, all of them: others are taken out. Defaults to its name.
    pub fn subjects<S: Into<String>>(self, subjects: impl IntoIterator<Item = S>) -> Self {
        let subjects: Vec<String> = subjects.into_iter().map(Into::into).collect();
        self.set("subjects", subjects)
    }

    /// What it keeps. Between work queues and others a stream cannot be changed. Defaults to [`Retention::Limits`].
    pub fn retention(self, retention: Retention) -> Self {
        let name = match retention {
            Retention::Limits => "limits",
            Retention::Interest => "interest",
            Retention::WorkQueue => "workqueue",
        };
        self.set("retention", name)
    }

    /// How many servers of a cluster keep a copy. Defaults to 1.
    pub fn replicas(self, count: usize) -> Self {
        self.set("num_replicas", count)
    }

    /// How long messages are kept. Defaults to for ever.
    pub fn max_age(self, age: Duration) -> Self {
        self.set("max_age", nanos(age))
    }

    /// How many bytes are kept; what happens beyond is said by [`drop_oldest`](Self::drop_oldest). Defaults to no limit.
    pub fn max_bytes(self, bytes: u64) -> Self {
        self.set("max_bytes", i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// Whether a full stream drops its oldest messages, read or not; otherwise it refuses new ones. Defaults to the server's
    /// default, which is to drop, but for dead letters.
    pub fn drop_oldest(self, drop: bool) -> Self {
        self.set("discard", if drop { "old" } else { "new" })
    }

    /// For how long a repeat is recognised. Defaults to 2 minutes.
    pub fn dedup_window(self, window: Duration) -> Self {
        self.set("duplicate_window", nanos(window))
    }

    /// Keeps a copy of another stream, under the positions that messages have there. Nobody can publish to a mirror, and it
    /// has no subjects. Defaults to none.
    pub fn mirror(self, origin: NatsSource) -> Self {
        self.set("mirror", origin.config())
    }

    /// Takes what comes into another stream, under positions of its own; may be given several times. Defaults to none.
    pub fn source(mut self, origin: NatsSource) -> Self {
        let sources = self.declared.entry("sources").or_insert_with(|| json!([]));
        if let Value::Array(sources) = sources {
            sources.push(origin.config());
        }
        self
    }

    /// Stores messages under other subjects: `{{partition(16,1)}}` and `{{wildcard(1)}}` of the server stand for what it
    /// computes of the tokens that `*` matches. Defaults to the subjects that they were published on.
    pub fn transform(self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.set("subject_transform", json!({"src": from.into(), "dest": to.into()}))
    }

    /// Any other setting of the server, as a name and JSON, such as `("compression", "\"s2\"")`. Defaults to none.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// A setting that others may change: what is declared of it holds for a stream that is made, and is not enforced on one that
    /// is there. Takes the server's name of it, such as `max_age`; may be given several times. Defaults to none.
    pub fn allow_drift(mut self, setting: impl Into<String>) -> Self {
        self.free.insert(setting.into());
        self
    }

    fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.declared.insert(field.to_owned(), value.into());
        self
    }

    pub(super) fn wanted(&self, purpose: Purpose) -> Result<Wanted, BrokerError> {
        check_name("stream", &self.name)?;
        let (id, mut declared) = (Id::Stream(self.name.clone()), self.declared.clone());
        set_json(&id, &mut declared, &self.settings)?;
        let wanted = match purpose {
            Purpose::DeadLetters => {
                Wanted::new(id, purpose, declared, [("storage", "file".into()), ("discard", "new".into())])
            }
            _ => Wanted::new(id, purpose, declared, [("storage", "file".into())]),
        };
        self.check(&wanted)?;
        Ok(Wanted { free: self.free.clone(), ..wanted })
    }

    fn check(&self, wanted: &Wanted) -> Result<(), BrokerError> {
        let subjects = wanted.list("subjects");
        check_subjects(&wanted.id, &subjects)?;
        let refused = |why: String| Err(BrokerError::Refused(format!("{}: {why}", wanted.id)));
        for (at, one) in subjects.iter().enumerate() {
            if let Some(other) = subjects[..at].iter().find(|other| overlap(one, other)) {
                let fix = match (covers(&[one], other), covers(&[other], one)) {
                    (true, _) => format!("leave out {other}"),
                    (_, true) => format!("leave out {one}"),
                    _ => "let each subject be in one of them".to_owned(),
                };
                return refused(format!("its subjects {other} and {one} overlap, which the server refuses: {fix}"));
            }
        }
        let more = !subjects.is_empty() || self.declared.contains_key("sources");
        if more && self.declared.contains_key("mirror") {
            return refused("a mirror has neither subjects nor sources: declare another stream for them".to_owned());
        }
        Ok(())
    }
}

/// Adds settings that are given as JSON.
pub(super) fn set_json(id: &Id, declared: &mut Fields, settings: &[(String, String)]) -> Result<(), BrokerError> {
    for (name, text) in settings {
        let value = serde_json::from_str(text);
        let wrong = |error| format!("{id}: the setting {name} is no JSON: {error}; a text stands in quotes");
        declared.insert(name.clone(), value.map_err(|error| BrokerError::Refused(wrong(error)))?);
    }
    Ok(())
}

/// The stream that a mirror or another stream takes its messages from.
#[derive(Clone, Debug)]
pub struct NatsSource {
    stream: String,
    filter: Option<String>,
    transforms: Vec<(String, String)>,
    api: Option<String>,
}

impl NatsSource {
    /// All messages of this stream.
    pub fn new(stream: impl Into<String>) -> Self {
        Self { stream: stream.into(), filter: None, transforms: Vec::new(), api: None }
    }

    /// Takes only these subjects. Defaults to all.
    pub fn filter(mut self, subjects: impl Into<String>) -> Self {
        self.filter = Some(subjects.into());
        self
    }

    /// Takes these subjects, and stores them under others; may be given several times, and takes the place of a filter.
    /// Defaults to none.
    pub fn transform(mut self, from: impl Into<String>, to: impl Into<String>) -> Self {
        self.transforms.push((from.into(), to.into()));
        self
    }

    /// Where the stream is in another JetStream domain or account: what the subjects of its API begin with there, such as
    /// `$JS.hub.API`. Defaults to this one's.
    pub fn api_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.api = Some(prefix.into());
        self
    }

    fn config(self) -> Value {
        let mut config = Fields::new();
        config.insert("name".into(), self.stream.into());
        if let Some(filter) = self.filter {
            config.insert("filter_subject".into(), filter.into());
        }
        if !self.transforms.is_empty() {
            let transforms = self.transforms.into_iter().map(|(from, to)| json!({"src": from, "dest": to}));
            config.insert("subject_transforms".into(), transforms.collect());
        }
        if let Some(api) = self.api {
            config.insert("external".into(), json!({"api": api, "deliver": ""}));
        }
        Value::Object(config)
    }
}
