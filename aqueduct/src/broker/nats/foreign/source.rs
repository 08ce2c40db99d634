//! What a foreign topic is read from, and whether it can be.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::consumer::pull::Config;
use async_nats::jetstream::consumer::{self, AckPolicy, Consumer};
use async_nats::jetstream::context::{ConsumerInfoErrorKind, GetStreamErrorKind};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::{RetentionPolicy, Stream};
use serde_json::{Value, json};

use super::super::declare::api_error;
use super::super::layout::Layout;
use super::super::reader::begin_at;
use super::super::{Shared, names};
use crate::broker::{Start, Subscription};
use crate::error::{BoxError, BrokerError};
use crate::topic::{Text, Topic};

/// How long a durable that is made here waits for an event to be settled or extended, unless it is told otherwise.
const ACK_WAIT: Duration = Duration::from_secs(10);

/// A durable that hands events out again sooner leaves no time to extend them.
const ACK_WAIT_MIN: Duration = Duration::from_millis(500);

/// What a topic of others is read from; [`NatsForeign::read`](super::NatsForeign::read) takes it.
#[derive(Clone, Debug)]
pub struct ForeignStream {
    stream: Text,
    durable: Option<Text>,
    ack_wait: Duration,
}

/// A durable as it was found.
#[derive(Debug)]
pub(in super::super) struct Durable {
    pub(super) stream: Text,
    pub(super) name: Text,
    pub(super) topic: Topic,
}

impl ForeignStream {
    /// A stream, read through a durable of the consumer's name, which is made where it is missing: with explicit acks, the topic's
    /// subject as its filter.
    pub fn new(stream: impl Into<Text>) -> Self {
        Self { stream: stream.into(), durable: None, ack_wait: ACK_WAIT }
    }

    /// Reads through this durable, which must be there; it is used as it is and never changed. Defaults to one of the consumer's name.
    pub fn durable(mut self, name: impl Into<Text>) -> Self {
        self.durable = Some(name.into());
        self
    }

    /// After how long a durable that is made hands an event out again that its instance does not extend any more. Short means
    /// that events of an instance which has crashed come soon, if no other instance is there to ask for them; below a second
    /// a pause of the machine suffices. Defaults to 10 s.
    pub fn ack_wait(mut self, wait: Duration) -> Self {
        self.ack_wait = wait;
        self
    }

    /// The durable, made if it is to be, and how many copies its stream has.
    pub(super) async fn find(
        &self,
        shared: &Shared,
        topic: &Topic,
        subscription: &Subscription,
    ) -> Result<(Durable, usize), BrokerError> {
        Layout::plain(topic)?;
        shared.ready().await?;
        let own = || names::plain(subscription.consumer.as_str()).into();
        let name = self.durable.clone().unwrap_or_else(own);
        let durable = Durable { stream: self.stream.clone(), name, topic: topic.clone() };
        let stream = durable.stream(shared).await?;
        match durable.consumer(&stream).await? {
            Some(consumer) => {
                durable.check(consumer.cached_info())?;
                let retention = stream.cached_info().config.retention;
                if consumer.cached_info().config.max_deliver > 0 && retention != RetentionPolicy::WorkQueue {
                    tracing::warn!(
                        stream = %durable.stream, durable = %durable.name,
                        "an event is lost to this durable whose last delivery ends while no instance runs: set its max_deliver to -1"
                    );
                }
            }
            None if self.durable.is_some() => return Err(durable.missing()),
            None => durable.make(&stream, subscription.start, self.ack_wait).await?,
        }
        Ok((durable, stream.cached_info().config.num_replicas))
    }
}

impl Durable {
    pub(super) async fn stream(&self, shared: &Shared) -> Result<Stream, BrokerError> {
        let subject = format!("{}.STREAM.INFO.{}", shared.link.api, self.stream);
        let found = shared.link.context.get_stream(self.stream.as_str());
        let found = shared.link.answer(shared.link.mark(), &subject, found).await?;
        found.map_err(|error| match error.kind() {
            GetStreamErrorKind::JetStream(error) if error.error_code() == ErrorCode::STREAM_NOT_FOUND => {
                BrokerError::NoSuchTopic { topic: self.topic.clone() }
            }
            _ => BrokerError::Unavailable(format!("the stream {} cannot be looked at: {error}", self.stream).into()),
        })
    }

    /// The consumer of that name, if there is one.
    pub(super) async fn consumer(&self, stream: &Stream) -> Result<Option<Consumer<Config>>, BrokerError> {
        let away = |error: BoxError| {
            BrokerError::Unavailable(format!("the durable {} cannot be looked at: {error}", self.name).into())
        };
        match stream.consumer_info(self.name.as_str()).await {
            Err(error) if error.kind() == ConsumerInfoErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(away(error.into())),
            Ok(info) if info.config.deliver_subject.is_some() => {
                return Err(BrokerError::Refused(format!(
                    "the durable {} of the stream {} pushes, and only pulling ones can be shared: name another",
                    self.name, self.stream
                )));
            }
            Ok(_) => {}
        }
        stream.get_consumer(self.name.as_str()).await.map(Some).map_err(away)
    }

    fn missing(&self) -> BrokerError {
        BrokerError::Refused(format!(
            "the stream {} has no durable {}: make it with `nats consumer add {} {} --pull --ack explicit --filter {}`, or leave the name \
             out and one is made",
            self.stream, self.name, self.stream, self.name, self.topic
        ))
    }

    /// Whether events can be settled one by one through it, and worked on meanwhile.
    pub(super) fn check(&self, info: &consumer::Info) -> Result<(), BrokerError> {
        let (config, name, stream) = (&info.config, &self.name, &self.stream);
        if config.ack_policy != AckPolicy::Explicit {
            return Err(BrokerError::Refused(format!(
                "the durable {name} of the stream {stream} has the ack policy {:?}: events are settled one by one, which needs explicit",
                config.ack_policy
            )));
        }
        too_soon(stream.as_str(), name.as_str(), config).map_or(Ok(()), |why| Err(BrokerError::Refused(why)))
    }

    async fn make(&self, stream: &Stream, start: Start, ack_wait: Duration) -> Result<(), BrokerError> {
        let info = stream.cached_info();
        let queue = info.config.retention == RetentionPolicy::WorkQueue;
        let begin = begin_at(start, None, info.state.last_sequence);
        let (deliver_policy, _) = begin.map_err(BrokerError::Unavailable)?;
        let config = Config {
            durable_name: Some(self.name.to_string()),
            description: Some("by Aqueduct".to_owned()),
            // A work queue takes no other.
            deliver_policy: if queue { consumer::DeliverPolicy::All } else { deliver_policy },
            ack_policy: AckPolicy::Explicit,
            ack_wait,
            filter_subject: self.topic.to_string(),
            ..Config::default()
        };
        let made = stream.create_consumer_strict(config).await;
        match made {
            Ok(_) => Ok(()),
            // Another instance was quicker.
            Err(_) if self.consumer(stream).await?.is_some() => Ok(()),
            Err(error) => Err(BrokerError::Refused(format!(
                "the durable {} cannot be made on the stream {}: {error}; name one that is there with `ForeignStream::durable`",
                self.name, self.stream
            ))),
        }
    }
}

/// What is wrong with a durable that leaves no time to work on an event, as those are that get a backoff beside their `ack_wait`.
pub(in super::super) fn too_soon(stream: &str, name: &str, config: &consumer::Config) -> Option<String> {
    let soon = config.ack_policy == AckPolicy::Explicit && config.ack_wait < ACK_WAIT_MIN;
    soon.then(|| {
        format!(
            "the durable {name} of the stream {stream} hands an event out again after {:?}: set it right with `nats consumer edit {stream} \
             {name} --wait 30s` and take away its backoff, which stands in for it",
            config.ack_wait
        )
    })
}

impl Shared {
    /// Says whether a stream has a subject.
    pub(super) async fn check_subject(&self, topic: &Topic) -> Result<(), BrokerError> {
        let subject = Layout::plain(topic)?;
        self.ready().await?;
        let asked = json!({"subject": subject.topic().as_str()});
        match self.ask::<Value>("STREAM.NAMES".to_owned(), &asked).await? {
            Response::Ok(found) if found["streams"].as_array().is_some_and(|names| !names.is_empty()) => Ok(()),
            Response::Ok(_) => Err(BrokerError::NoSuchTopic { topic: topic.clone() }),
            Response::Err { error } => Err(api_error(&error)),
        }
    }
}
