//! Topics as streams: made where they are missing, compared where they are not.

use std::time::Duration;

use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Info, RetentionPolicy, StorageType};
use async_nats::jetstream::{self, ErrorCode};
use serde_core::Serialize;
use serde_core::de::DeserializeOwned;

use super::Shared;
use super::layout::Layout;
use crate::error::BrokerError;
use crate::topic::Topic;

/// The version of the layout, in the stream's metadata.
const LAYOUT: u32 = 1;
const LAYOUT_KEY: &str = "aqueduct.layout";
const TOPIC_KEY: &str = "aqueduct.topic";
const PARTITIONS_KEY: &str = "aqueduct.partitions";

/// How long the server recognises a repeat, unless it is told otherwise.
const DEDUP_WINDOW: Duration = Duration::from_mins(2);

/// What a topic is to be like; [`NatsBroker::declare`](super::NatsBroker::declare) makes it.
///
/// What is not set is not compared with a stream that is there already.
#[derive(Clone, Debug)]
pub struct NatsTopic {
    pub(super) topic: Topic,
    pub(super) partitions: Option<u32>,
    replicas: Option<usize>,
    max_age: Option<Duration>,
    max_bytes: Option<u64>,
    dedup_window: Option<Duration>,
}

impl NatsTopic {
    /// A topic with the usual settings.
    pub fn new(topic: impl Into<Topic>) -> Self {
        let topic = topic.into();
        Self { topic, partitions: None, replicas: None, max_age: None, max_bytes: None, dedup_window: None }
    }

    /// How many partitions it has: a power of two, the most instances that can share its work. It is part of the subjects, and
    /// cannot be changed by declaring it anew. Defaults to the broker's, [`NatsOptions::partitions`](super::NatsOptions::partitions).
    pub fn partitions(mut self, count: u32) -> Self {
        self.partitions = Some(count);
        self
    }

    /// How many servers of a cluster keep a copy. With one, what was confirmed is gone with its disk. Defaults to 1.
    pub fn replicas(mut self, count: usize) -> Self {
        self.replicas = Some(count);
        self
    }

    /// How long events are kept. What a consumer has not read by then is lost to it. Defaults to for ever.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// How many bytes are kept; beyond it publishing is refused, and nothing that is there is dropped. Defaults to no limit.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    /// For how long an event that is published again is recognised. Keep it above the time for which publishing is tried, and
    /// the outage after which a relay goes on. Defaults to 2 minutes, or `max_age` if that is less.
    pub fn dedup_window(mut self, window: Duration) -> Self {
        self.dedup_window = Some(window);
        self
    }

    fn config(&self, layout: &Layout) -> Config {
        let max_age = self.max_age.unwrap_or_default();
        let window = if max_age.is_zero() { DEDUP_WINDOW } else { DEDUP_WINDOW.min(max_age) };
        let metadata = [
            (LAYOUT_KEY, LAYOUT.to_string()),
            (TOPIC_KEY, layout.topic().to_string()),
            (PARTITIONS_KEY, layout.partitions().to_string()),
        ];
        Config {
            name: layout.stream().to_owned(),
            subjects: vec![layout.subjects()],
            retention: RetentionPolicy::Limits,
            storage: StorageType::File,
            // Dropping the oldest would lose what no consumer has read.
            discard: DiscardPolicy::New,
            num_replicas: self.replicas.unwrap_or(1),
            max_age,
            max_bytes: self.max_bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
            max_messages: -1,
            max_messages_per_subject: -1,
            duplicate_window: self.dedup_window.unwrap_or(window),
            allow_direct: true,
            metadata: metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect(),
            ..Config::default()
        }
    }

    /// What a stream has otherwise than it was declared, each in a few words.
    fn drift(&self, there: &Config, layout: &Layout) -> Vec<String> {
        let wanted = self.config(layout);
        let mut drift = Vec::new();
        let mut compare = |set: bool, what: &str, is: String, wanted: String| {
            if set && is != wanted {
                drift.push(format!("{what} is {is} and was declared as {wanted}"));
            }
        };
        let debug = |value: &dyn std::fmt::Debug| format!("{value:?}");
        compare(true, "subjects", debug(&there.subjects), debug(&wanted.subjects));
        compare(true, "retention", debug(&there.retention), debug(&wanted.retention));
        compare(true, "storage", debug(&there.storage), debug(&wanted.storage));
        compare(self.replicas.is_some(), "replicas", debug(&there.num_replicas), debug(&wanted.num_replicas));
        compare(self.max_age.is_some(), "max_age", debug(&there.max_age), debug(&wanted.max_age));
        compare(self.max_bytes.is_some(), "max_bytes", debug(&there.max_bytes), debug(&wanted.max_bytes));
        compare(self.max_bytes.is_some(), "discard", debug(&there.discard), debug(&wanted.discard));
        let (is, wanted) = (&there.duplicate_window, &wanted.duplicate_window);
        compare(self.dedup_window.is_some(), "dedup_window", debug(is), debug(wanted));
        drift
    }
}

/// Says whether a stream is this topic's, in this layout.
pub(super) fn check_layout(there: &Config, layout: &Layout) -> Result<(), BrokerError> {
    let (topic, stream) = (layout.topic(), &there.name);
    let number = |key: &str| there.metadata.get(key).and_then(|value| value.parse::<u32>().ok());
    let refused = |why: String| Err(BrokerError::Refused(format!("topic {topic:?}: {why}")));
    match (number(LAYOUT_KEY), number(PARTITIONS_KEY)) {
        (Some(version), _) if version > LAYOUT => refused(format!(
            "the stream {stream} has layout {version} and this program knows {LAYOUT}: use a newer version of the program"
        )),
        (Some(_), Some(partitions)) if partitions != layout.partitions() => refused(format!(
            "the stream {stream} has {partitions} partitions and this program {}: set `partitions({partitions})`",
            layout.partitions()
        )),
        (Some(_), Some(_)) if there.subjects.contains(&layout.subjects()) => Ok(()),
        _ => refused(format!(
            "the stream {stream} was not made by `NatsBroker::declare`: it must have the subject {} and the metadata \
             {LAYOUT_KEY}={LAYOUT}, {PARTITIONS_KEY}={}",
            layout.subjects(),
            layout.partitions()
        )),
    }
}

impl Shared {
    pub(super) async fn declare(&self, spec: &NatsTopic, layout: &Layout) -> Result<(), BrokerError> {
        let there = match self.stream(layout).await? {
            None => self.create(spec, layout).await?,
            there => there,
        };
        let there = there.ok_or_else(|| BrokerError::NoSuchTopic { topic: spec.topic.clone() })?;
        check_layout(&there, layout)?;
        let drift = spec.drift(&there, layout);
        if drift.is_empty() {
            return Ok(());
        }
        let text = format!(
            "topic {:?} is not as declared, and is left as it is: of its stream {} {}; declare what is there, or change it with \
             `nats stream edit {}`",
            spec.topic,
            there.name,
            drift.join(", "),
            there.name
        );
        Err(BrokerError::Refused(text))
    }

    /// The stream of a topic, if there is one.
    pub(super) async fn stream(&self, layout: &Layout) -> Result<Option<Config>, BrokerError> {
        match self.ask::<Info>(format!("STREAM.INFO.{}", layout.stream()), &()).await? {
            Response::Ok(info) => Ok(Some(info.config)),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NOT_FOUND => Ok(None),
            Response::Err { error } => Err(api_error(&error)),
        }
    }

    /// Makes a stream. One that somebody else has made meanwhile is as good.
    async fn create(&self, spec: &NatsTopic, layout: &Layout) -> Result<Option<Config>, BrokerError> {
        match self.ask::<Info>(format!("STREAM.CREATE.{}", layout.stream()), &spec.config(layout)).await? {
            Response::Ok(info) => Ok(Some(info.config)),
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_NAME_EXIST => self.stream(layout).await,
            Response::Err { error } if error.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP => {
                Err(BrokerError::Refused(format!(
                    "topic {:?} needs the subjects {}, and another stream has some of them: `nats stream find --subject` shows it; \
                     choose another name, or take them out of that stream",
                    layout.topic(),
                    layout.subjects()
                )))
            }
            Response::Err { error } => Err(api_error(&error)),
        }
    }

    /// A request to JetStream's API.
    async fn ask<T: DeserializeOwned>(
        &self,
        request: String,
        body: &impl Serialize,
    ) -> Result<Response<T>, BrokerError> {
        let (link, subject) = (&self.link, format!("{}.{request}", self.link.api));
        let answer = link.answer(link.mark(), &subject, link.context.request(request, body)).await?;
        answer.map_err(|error| {
            let text = format!(
                "JetStream does not answer on {subject}: {error}; is it enabled on the server and for this account?"
            );
            BrokerError::Unavailable(text.into())
        })
    }
}

/// What JetStream answers, where it means the same for every request.
pub(super) fn api_error(error: &jetstream::Error) -> BrokerError {
    match error.error_code() {
        ErrorCode::JETSTREAM_NOT_ENABLED | ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT => {
            BrokerError::Refused(format!("{error}: enable JetStream on the server and for this account"))
        }
        _ if error.code() >= 500 => BrokerError::Unavailable(error.to_string().into()),
        _ => BrokerError::Refused(error.to_string()),
    }
}
