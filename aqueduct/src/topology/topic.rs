//! A topic: a stream in the layout that publishers and consumers know.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::response::Response;
use serde_json::{Value, json};

use super::compare::{changes, sentence};
use super::look::{Look, look};
use super::subjects::{fault, overlap};
use super::wanted::{Fields, Id, Purpose, Wanted, nanos};
use crate::broker::nats::NatsBroker;
use crate::broker::nats::declare::{api_error, check_layout, metadata};
use crate::broker::nats::layout::Layout;
use crate::error::BrokerError;
use crate::topic::Topic;

/// How long the server recognises a repeat, unless it is told otherwise.
const DEDUP_WINDOW: Duration = Duration::from_mins(2);

/// What a topic is to be like; [`NatsBroker::declare`] makes it, or a [`Topology`](super::Topology) does.
///
/// What is not set is neither compared with a stream that is there already, nor changed there.
#[derive(Clone, Debug)]
pub struct NatsTopic {
    pub(super) topic: Topic,
    pub(super) partitions: Option<u32>,
    plain: Option<String>,
    max_age: Duration,
    declared: Fields,
    free: BTreeSet<String>,
}

impl NatsTopic {
    /// A topic with the usual settings.
    pub fn new(topic: impl Into<Topic>) -> Self {
        let (topic, declared, free) = (topic.into(), Fields::new(), BTreeSet::new());
        Self { topic, partitions: None, plain: None, max_age: Duration::ZERO, declared, free }
    }

    /// How many partitions it has: a power of two, the most instances that can share its work. It is part of the subjects, and
    /// cannot be changed by declaring it anew. Defaults to the broker's, [`NatsOptions::partitions`](crate::nats::NatsOptions::partitions).
    pub fn partitions(mut self, count: u32) -> Self {
        self.partitions = Some(count);
        self
    }

    /// How many servers of a cluster keep a copy. With one, what was confirmed is gone with its disk. Defaults to 1.
    pub fn replicas(self, count: usize) -> Self {
        self.set("num_replicas", count)
    }

    /// How long events are kept. What a consumer has not read by then is lost to it. Defaults to for ever.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self.set("max_age", nanos(age))
    }

    /// How many bytes are kept; beyond it publishing is refused, and nothing that is there is dropped. Defaults to no limit.
    pub fn max_bytes(self, bytes: u64) -> Self {
        self.set("max_bytes", i64::try_from(bytes).unwrap_or(i64::MAX)).set("discard", "new")
    }

    /// For how long an event that is published again is recognised. Keep it above the time for which publishing is tried, and
    /// the outage after which a relay goes on. Defaults to 2 minutes, or `max_age` if that is less.
    pub fn dedup_window(self, window: Duration) -> Self {
        self.set("duplicate_window", nanos(window))
    }

    /// The subjects of plain NATS publishers, in which one `*` stands for the key, such as `shop.orders.*`: the server puts what
    /// is published there into the key's partition of this topic, with the hash that ours use, so that events of one key stay
    /// in order whoever publishes them. Defaults to none.
    ///
    /// The trap: such events are what their publisher made of them. Read bodies of JSON without an envelope with
    /// [`PlainJson`](crate::format::PlainJson), and let publishers set `Nats-Msg-Id`, or a repeat is stored twice.
    pub fn plain_subjects(mut self, subjects: impl Into<String>) -> Self {
        self.plain = Some(subjects.into());
        self
    }

    /// A setting of its stream that others may change: what is declared of it holds for a topic that is made, and is not enforced
    /// on one that is there. Takes the server's name of it, such as `max_age`; may be given several times. Defaults to none.
    pub fn allow_drift(mut self, setting: impl Into<String>) -> Self {
        self.free.insert(setting.into());
        self
    }

    fn set(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.declared.insert(field.to_owned(), value.into());
        self
    }

    /// The layout; topics that do not say how many partitions they have have as many as others.
    pub(super) fn layout(&self, partitions: u32) -> Result<Arc<Layout>, BrokerError> {
        Layout::new(&self.topic, self.partitions.unwrap_or(partitions)).map(Arc::new)
    }

    pub(super) fn wanted(&self, layout: &Arc<Layout>) -> Result<Wanted, BrokerError> {
        let (mut declared, mut subjects) = (self.declared.clone(), vec![layout.subjects()]);
        if let Some(plain) = &self.plain {
            self.check_plain(plain, &layout.subjects())?;
            declared.insert("subject_transform".into(), json!({"src": plain, "dest": layout.transform()}));
            subjects.push(plain.clone());
        }
        declared.insert("subjects".into(), subjects.into());
        declared.insert("retention".into(), "limits".into());
        declared.insert("storage".into(), "file".into());
        let metadata: Fields =
            metadata(layout).into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        declared.insert("metadata".into(), metadata.into());
        let window = if self.max_age.is_zero() { DEDUP_WINDOW } else { DEDUP_WINDOW.min(self.max_age) };
        let usual = [
            // Dropping the oldest would lose what no consumer has read.
            ("discard", "new".into()),
            ("num_replicas", 1.into()),
            ("max_age", 0.into()),
            ("max_bytes", (-1).into()),
            ("max_msgs", (-1).into()),
            ("max_msgs_per_subject", (-1).into()),
            ("duplicate_window", nanos(window)),
            ("allow_direct", true.into()),
        ];
        let purpose = Purpose::Topic(Arc::clone(layout));
        let wanted = Wanted::new(Id::Stream(layout.stream().to_owned()), purpose, declared, usual);
        Ok(Wanted { free: self.free.clone(), ..wanted })
    }

    fn check_plain(&self, plain: &str, own: &str) -> Result<(), BrokerError> {
        let one = plain.split('.').filter(|token| *token == "*").count() == 1 && !plain.contains('>');
        let fault = fault(plain).or((!one).then_some("one token must be `*`, for the key, and none `>`"));
        let fault = fault.or(overlap(plain, own).then_some("they overlap the topic's own: begin them otherwise"));
        let text = |fault| format!("topic {:?}: {plain:?} cannot be its plain subjects: {fault}", self.topic);
        fault.map_or(Ok(()), |fault| Err(BrokerError::Refused(text(fault))))
    }
}

impl From<&str> for NatsTopic {
    fn from(topic: &str) -> Self {
        Self::new(topic)
    }
}

impl From<Topic> for NatsTopic {
    fn from(topic: Topic) -> Self {
        Self::new(topic)
    }
}

impl NatsBroker {
    /// Makes a topic, or compares it with what is there.
    ///
    /// A stream that is there already is never changed: what differs is an error that names it. Every program that publishes
    /// to a topic with another number of partitions than the usual one must declare it, so that it knows.
    ///
    /// ```no_run
    /// # async fn declare(broker: aqueduct::nats::NatsBroker) -> Result<(), aqueduct::BrokerError> {
    /// use aqueduct::nats::NatsTopic;
    /// let week = std::time::Duration::from_secs(7 * 24 * 3600);
    /// broker.declare(NatsTopic::new("orders").partitions(32).replicas(3).max_age(week)).await?;
    /// # Ok(()) }
    /// ```
    pub async fn declare(&self, topic: impl Into<NatsTopic>) -> Result<(), BrokerError> {
        let topic = topic.into();
        let layout = topic.layout(self.0.options.partitions)?;
        let wanted = topic.wanted(&layout)?;
        self.0.ready().await?;
        let there = match look(self, &wanted.id).await? {
            Look::Missing => self.made(&layout, &wanted).await?,
            Look::There(there) => there,
            Look::Unseen(why) => return Err(BrokerError::Refused(why)),
        };
        let config = serde_json::from_value(Value::Object(there.clone()));
        let unreadable = |e| BrokerError::Refused(format!("the stream {} cannot be understood: {e}", layout.stream()));
        check_layout(&config.map_err(unreadable)?, &layout)?;
        let drift = changes(&wanted.enforced(), &there);
        if !drift.is_empty() {
            let (stream, drift) = (layout.stream(), drift.iter().map(sentence).collect::<Vec<_>>().join(", "));
            let text = format!(
                "topic {:?} is not as declared, and is left as it is: of its stream {stream} {drift}; declare what is there, or \
                 change it with `nats stream edit {stream}` or as a topology",
                topic.topic
            );
            return Err(BrokerError::Refused(text));
        }
        self.0.remember(layout);
        Ok(())
    }

    /// Makes a stream. One that somebody else has made meanwhile is as good.
    async fn made(&self, layout: &Layout, wanted: &Wanted) -> Result<Fields, BrokerError> {
        let request = format!("STREAM.CREATE.{}", layout.stream());
        let error = match self.0.ask::<Fields>(request, &wanted.config()).await? {
            Response::Ok(made) => return Ok(super::look::config(made)),
            Response::Err { error } => error,
        };
        if error.error_code() == ErrorCode::STREAM_SUBJECT_OVERLAP {
            let (topic, subjects) = (layout.topic(), layout.subjects());
            return Err(BrokerError::Refused(format!(
                "topic {topic:?} needs the subjects {subjects}, and another stream has some of them: `nats stream find --subject` \
                 shows it; choose another name, or take them out of that stream"
            )));
        }
        match look(self, &wanted.id).await? {
            Look::There(there) if error.error_code() == ErrorCode::STREAM_NAME_EXIST => Ok(there),
            _ => Err(api_error(&error)),
        }
    }
}
