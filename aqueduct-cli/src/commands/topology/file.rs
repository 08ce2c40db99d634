//! The file in which a topology is declared.

use std::collections::BTreeMap;
use std::path::Path;

use aqueduct::nats::NatsTopic;
use aqueduct::topology::{NatsDurable, NatsSource, NatsStream, Retention, Topology};
use figment::Figment;
use figment::providers::{Format, Toml};
use serde::Deserialize;

use crate::config::Span;
use crate::failure::{Exit, Failure};

/// Everything that is declared.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Declared {
    topic: Vec<TopicTable>,
    consumer: Vec<ConsumerTable>,
    stream: Vec<StreamTable>,
    dead_letters: Vec<StreamTable>,
    durable: Vec<DurableTable>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TopicTable {
    name: String,
    partitions: Option<u32>,
    replicas: Option<usize>,
    max_age: Option<Span>,
    max_bytes: Option<u64>,
    dedup_window: Option<Span>,
    plain_subjects: Option<String>,
    #[serde(default)]
    allow_drift: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConsumerTable {
    name: String,
    topics: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamTable {
    name: String,
    subjects: Option<Vec<String>>,
    retention: Option<RetentionName>,
    replicas: Option<usize>,
    max_age: Option<Span>,
    max_bytes: Option<u64>,
    drop_oldest: Option<bool>,
    dedup_window: Option<Span>,
    mirror: Option<SourceTable>,
    #[serde(default)]
    sources: Vec<SourceTable>,
    transform: Option<TransformTable>,
    #[serde(default)]
    settings: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    allow_drift: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RetentionName {
    Limits,
    Interest,
    WorkQueue,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SourceTable {
    stream: String,
    filter: Option<String>,
    #[serde(default)]
    transforms: Vec<TransformTable>,
    api_prefix: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct TransformTable {
    from: String,
    to: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct DurableTable {
    stream: String,
    name: String,
    #[serde(default)]
    filters: Vec<String>,
    ack_wait: Option<Span>,
    max_deliver: Option<u32>,
    max_ack_pending: Option<u32>,
    #[serde(default)]
    only_new: bool,
    #[serde(default)]
    settings: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    allow_drift: Vec<String>,
}

/// Reads a file.
pub(super) fn read(path: &Path) -> Result<Declared, Failure> {
    if !path.exists() {
        return Err(Failure::new(Exit::Missing, format!("there is no file {}", path.display()))
            .fix("name one with --file; `aqueduct topology --help` has an example"));
    }
    let wrong = |error: figment::Error| {
        let place = if error.path.is_empty() { String::new() } else { format!("`{}`: ", error.path.join(".")) };
        Failure::new(Exit::Config, format!("{}: {place}{}", path.display(), error.kind))
            .fix("`aqueduct topology --help` has an example")
    };
    Figment::from(Toml::file_exact(path)).extract().map_err(wrong)
}

/// Calls a method of a builder for a value that is set.
fn set<B, V>(builder: B, value: Option<V>, method: impl FnOnce(B, V) -> B) -> B {
    match value {
        Some(value) => method(builder, value),
        None => builder,
    }
}

impl Declared {
    /// The names of the consumers.
    pub(super) fn consumers(&self) -> Vec<String> {
        self.consumer.iter().map(|consumer| consumer.name.clone()).collect()
    }

    pub(super) fn topology(self) -> Topology {
        let topology = self.topic.into_iter().fold(Topology::new(), |all, one| all.topic(one.declared()));
        let topology = self.consumer.into_iter().fold(topology, |all, one| all.consumer(one.name, one.topics));
        let topology = self.stream.into_iter().fold(topology, |all, one| all.stream(one.declared()));
        let topology = self.dead_letters.into_iter().fold(topology, |all, one| all.dead_letters(one.declared()));
        self.durable.into_iter().fold(topology, |all, one| all.durable(one.declared()))
    }
}

impl TopicTable {
    fn declared(self) -> NatsTopic {
        let topic = set(NatsTopic::new(self.name), self.partitions, NatsTopic::partitions);
        let topic = set(topic, self.replicas, NatsTopic::replicas);
        let topic = set(topic, self.max_age, |topic, Span(age)| topic.max_age(age));
        let topic = set(topic, self.max_bytes, NatsTopic::max_bytes);
        let topic = set(topic, self.dedup_window, |topic, Span(window)| topic.dedup_window(window));
        let topic = set(topic, self.plain_subjects, NatsTopic::plain_subjects);
        self.allow_drift.into_iter().fold(topic, NatsTopic::allow_drift)
    }
}

impl StreamTable {
    fn declared(self) -> NatsStream {
        let retention = self.retention.map(|name| match name {
            RetentionName::Limits => Retention::Limits,
            RetentionName::Interest => Retention::Interest,
            RetentionName::WorkQueue => Retention::WorkQueue,
        });
        let stream = set(NatsStream::new(self.name), self.subjects, NatsStream::subjects);
        let stream = set(stream, retention, NatsStream::retention);
        let stream = set(stream, self.replicas, NatsStream::replicas);
        let stream = set(stream, self.max_age, |stream, Span(age)| stream.max_age(age));
        let stream = set(stream, self.max_bytes, NatsStream::max_bytes);
        let stream = set(stream, self.drop_oldest, NatsStream::drop_oldest);
        let stream = set(stream, self.dedup_window, |stream, Span(window)| stream.dedup_window(window));
        let stream = set(stream, self.mirror, |stream, mirror| stream.mirror(mirror.declared()));
        let stream = set(stream, self.transform, |stream, transform| stream.transform(transform.from, transform.to));
        let stream = self.sources.into_iter().fold(stream, |stream, source| stream.source(source.declared()));
        let stream =
            self.settings.into_iter().fold(stream, |stream, (name, value)| stream.setting(name, value.to_string()));
        self.allow_drift.into_iter().fold(stream, NatsStream::allow_drift)
    }
}

impl SourceTable {
    fn declared(self) -> NatsSource {
        let source = set(NatsSource::new(self.stream), self.filter, NatsSource::filter);
        let source = set(source, self.api_prefix, NatsSource::api_prefix);
        self.transforms.into_iter().fold(source, |source, transform| source.transform(transform.from, transform.to))
    }
}

impl DurableTable {
    fn declared(self) -> NatsDurable {
        let durable = NatsDurable::new(self.stream, self.name);
        let durable = self.filters.into_iter().fold(durable, NatsDurable::filter);
        let durable = set(durable, self.ack_wait, |durable, Span(wait)| durable.ack_wait(wait));
        let durable = set(durable, self.max_deliver, NatsDurable::max_deliver);
        let durable = set(durable, self.max_ack_pending, NatsDurable::max_ack_pending);
        let durable = if self.only_new { durable.only_new() } else { durable };
        let durable =
            self.settings.into_iter().fold(durable, |durable, (name, value)| durable.setting(name, value.to_string()));
        self.allow_drift.into_iter().fold(durable, NatsDurable::allow_drift)
    }
}
