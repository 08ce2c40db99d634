//! Publishing: many events on their way at once, each confirmed, and sent again under its id where the confirmation stays away.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::context::{PublishAckFuture, PublishError, PublishErrorKind};
use async_nats::jetstream::message::{PublishMessage, StreamMessage};
use async_nats::jetstream::publish::PublishAck;
use async_nats::jetstream::{self, ErrorCode};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::connect::Mark;
use super::declare::{api_error, check_layout};
use super::layout::Layout;
use super::wire;
use crate::broker::Receipt;
use crate::error::BrokerError;
use crate::message::Message;
use crate::topic::{Partition, Position, Text, Topic};

/// The longest pause before events are sent again.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A message to be published only if nothing else was in the meantime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// The last position in the whole topic.
    Topic(Position),
    /// The last position among the events of this type in this partition; 0 if there is none.
    Subject(Position),
}

impl Expected {
    pub(super) fn header(self) -> (&'static str, Position) {
        match self {
            Self::Topic(position) => ("Nats-Expected-Last-Sequence", position),
            Self::Subject(position) => ("Nats-Expected-Last-Subject-Sequence", position),
        }
    }
}

/// A message on its way.
struct Job {
    message: Message,
    expected: Option<Expected>,
    layout: Arc<Layout>,
    partition: u32,
    subject: String,
    /// None where it is plain and its format gives none: then a repeat is not recognised.
    id: Option<Text>,
    /// For the first time that it is sent.
    headers: Option<HeaderMap>,
    /// How it ended; or why it is to be sent again, while it is [`BrokerError::Unavailable`].
    answer: Result<Receipt, BrokerError>,
}

/// A job that was sent.
struct Sent {
    job: usize,
    ack: PublishAckFuture,
    mark: Mark,
    until: Instant,
    _place: OwnedSemaphorePermit,
}

/// What is known about topics whose events nobody took.
type Missing = BTreeMap<Topic, String>;

impl Shared {
    /// Publishes to declared topics.
    pub(super) async fn publish(
        &self,
        messages: Vec<(Message, Option<Expected>)>,
    ) -> Vec<Result<Receipt, BrokerError>> {
        let jobs = messages.into_iter().map(|(message, expected)| {
            let layout = self.layout(&message.topic)?;
            self.job(message, expected, layout)
        });
        self.publish_jobs(jobs.collect()).await
    }

    /// Publishes to topics that are plain subjects.
    pub(super) async fn publish_plain(&self, messages: Vec<Message>) -> Vec<Result<Receipt, BrokerError>> {
        let jobs = messages.into_iter().map(|message| {
            let layout = Arc::new(Layout::plain(&message.topic)?);
            self.job(message, None, layout)
        });
        self.publish_jobs(jobs.collect()).await
    }

    async fn publish_jobs(&self, mut jobs: Vec<Result<Job, BrokerError>>) -> Vec<Result<Receipt, BrokerError>> {
        let deadline = Instant::now() + self.options.publish_timeout;
        let mut pause = Duration::from_millis(10);
        loop {
            self.round(&mut jobs, deadline).await;
            let open = jobs.iter().flatten().any(Job::is_open);
            let wake = Instant::now() + pause / 2 + self.options.clock.jitter(pause / 2);
            if !open || wake >= deadline {
                break;
            }
            tokio::time::sleep_until(wake).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
        jobs.into_iter().map(|job| job.and_then(|job| job.answer)).collect()
    }

    fn job(&self, message: Message, expected: Option<Expected>, layout: Arc<Layout>) -> Result<Job, BrokerError> {
        let (bytes, limit) = (message.size(), self.message_bytes_max());
        if bytes > limit {
            return Err(BrokerError::TooLarge { bytes, limit });
        }
        // Without an id of its own a message gets one that holds for this call: it may be sent more than once.
        let own = || (!layout.is_plain()).then(|| self.options.clock.uuid().into());
        let id: Option<Text> = message.dedup_id.clone().or_else(own);
        let (headers, header_bytes) = wire::headers(&message, id.as_ref(), expected)?;
        let (bytes, limit) = (header_bytes + message.body.len(), self.link.client.max_payload());
        if bytes > limit {
            return Err(BrokerError::TooLarge { bytes, limit });
        }
        let id_bytes = id.as_ref().map_or("", Text::as_str).as_bytes();
        let partition = layout.partition(message.key().map_or(id_bytes, |key| key));
        let subject = layout.subject(partition, message.headers.text(wire::TYPE));
        let answer = Err(BrokerError::Unavailable("it was not sent".into()));
        Ok(Job { message, expected, layout, partition, subject, id, headers: Some(headers), answer })
    }

    /// Sends everything that is open once, and waits for what becomes of it.
    async fn round(&self, jobs: &mut [Result<Job, BrokerError>], deadline: Instant) {
        let open: Vec<usize> = (0..jobs.len()).filter(|i| jobs[*i].as_ref().is_ok_and(Job::is_open)).collect();
        if open.is_empty() {
            return;
        }
        if let Err(error) = self.link.ready(deadline).await {
            let text = error.to_string();
            for job in jobs.iter_mut().flatten().filter(|job| job.is_open()) {
                job.answer = Err(BrokerError::Unavailable(text.clone().into()));
            }
            return;
        }
        let (mut waiting, mut missing) = (VecDeque::new(), Missing::new());
        for i in open {
            let place = loop {
                if let Ok(place) = self.window.clone().try_acquire_owned() {
                    break Ok(place);
                }
                match waiting.pop_front() {
                    Some(sent) => self.settle(jobs, sent, &mut missing).await,
                    None => break self.window.clone().acquire_owned().await,
                }
            };
            let Ok(job) = &mut jobs[i] else { continue };
            let Ok(place) = place else {
                job.answer = Err(BrokerError::Closed);
                continue;
            };
            let mark = self.link.mark();
            match self.send(job).await {
                Ok(ack) => {
                    let until = deadline.min(Instant::now() + self.options.ack_timeout);
                    waiting.push_back(Sent { job: i, ack, mark, until, _place: place });
                }
                Err(failure) => job.answer = Err(failure),
            }
        }
        for sent in waiting {
            self.settle(jobs, sent, &mut missing).await;
        }
    }

    async fn send(&self, job: &mut Job) -> Result<PublishAckFuture, BrokerError> {
        let headers = match job.headers.take() {
            Some(headers) => headers,
            None => wire::headers(&job.message, job.id.as_ref(), job.expected)?.0,
        };
        let message = PublishMessage::build().payload(job.message.body.clone()).headers(headers);
        let sent = self.link.context.send_publish(job.subject.clone(), message).await;
        sent.map_err(|error| match error.kind() {
            PublishErrorKind::MaxPayloadExceeded => {
                BrokerError::TooLarge { bytes: job.message.size(), limit: self.link.client.max_payload() }
            }
            _ => BrokerError::Unavailable(Box::new(error)),
        })
    }

    /// Waits for the confirmation of what was sent.
    async fn settle(&self, jobs: &mut [Result<Job, BrokerError>], sent: Sent, missing: &mut Missing) {
        let Ok(job) = &mut jobs[sent.job] else { return };
        let answer = self.link.answer(sent.mark, &job.subject, sent.ack.into_future());
        job.answer = match timeout_at(sent.until, answer).await {
            Ok(Ok(Ok(ack))) => self.confirmed(job, ack).await,
            Ok(Ok(Err(error))) => self.failed(job, &error, missing).await,
            Ok(Err(error)) => Err(error),
            Err(_) => Err(unconfirmed(&job.subject)),
        };
    }

    async fn confirmed(&self, job: &Job, ack: PublishAck) -> Result<Receipt, BrokerError> {
        let (topic, stream) = (job.layout.topic(), job.layout.stream());
        if ack.stream != *stream && !job.layout.is_plain() {
            let text = format!(
                "topic {topic:?}: the stream {} has the event, and consumers read {stream}: take {} out of its subjects",
                ack.stream,
                job.layout.subjects()
            );
            return Err(BrokerError::Refused(text));
        }
        if ack.duplicate && self.has_another_body(job, &ack).await {
            let dedup_id = job.id.as_ref().map(Text::to_string).unwrap_or_default();
            return Err(BrokerError::IdentityReused { dedup_id });
        }
        let partition = Partition { topic: topic.clone(), index: job.partition };
        Ok(Receipt::new(partition, Position(ack.sequence), ack.duplicate))
    }

    /// Compares a repeat with what the server has: it looks at ids only. Where that cannot be read, or is gone, they count as
    /// the same.
    async fn has_another_body(&self, job: &Job, ack: &PublishAck) -> bool {
        let stored = self.stored(&ack.stream, ack.sequence).await;
        stored.is_some_and(|stored| stored.payload != job.message.body)
    }

    /// Where the same message is that was refused because another position was expected, if it was sent before: the server
    /// compares positions first, and ids only afterwards.
    async fn sent_before(&self, job: &Job, error: &jetstream::Error) -> Option<u64> {
        let sequence = match job.expected? {
            Expected::Topic(position) => position.0 + 1,
            Expected::Subject(_) => last_number(&error.to_string())?,
        };
        let stored = self.stored(job.layout.stream(), sequence).await?;
        let id = stored.headers.get(wire::MESSAGE_ID)?.as_str();
        (wire::decode(id) == job.id.as_ref()?.as_str()).then_some(sequence)
    }

    /// The message at a position, if it is there and may be read.
    pub(super) async fn stored(&self, name: &str, sequence: u64) -> Option<StreamMessage> {
        let link = &self.link;
        let subject = format!("{}.STREAM.MSG.GET.{name}", link.api);
        let read = async {
            let stream = link.context.get_stream_no_info(name).await.ok()?;
            stream.get_raw_message(sequence).await.ok()
        };
        link.answer(link.mark(), &subject, read).await.ok()?
    }

    /// What an error in place of a confirmation means.
    async fn failed(&self, job: &Job, error: &PublishError, missing: &mut Missing) -> Result<Receipt, BrokerError> {
        let server = std::error::Error::source(error).and_then(|e| e.downcast_ref::<jetstream::Error>());
        let Some(server) = server else {
            return Err(match error.kind() {
                PublishErrorKind::StreamNotFound => self.nobody(&job.layout, missing).await,
                PublishErrorKind::TimedOut => unconfirmed(&job.subject),
                _ => BrokerError::Unavailable(error.to_string().into()),
            });
        };
        if server.error_code() == ErrorCode::STREAM_WRONG_LAST_SEQUENCE
            && let Some(sequence) = self.sent_before(job, server).await
        {
            let stream = job.layout.stream().to_owned();
            return self
                .confirmed(job, PublishAck { stream, sequence, duplicate: true, ..PublishAck::default() })
                .await;
        }
        Err(rejected(job.layout.topic(), server, job))
    }

    /// Why nobody took an event: there is no such stream, or one with other partitions, or its servers are electing a leader.
    async fn nobody(&self, layout: &Layout, missing: &mut Missing) -> BrokerError {
        let topic = layout.topic().clone();
        if layout.is_plain() {
            let text = format!(
                "no stream takes the subject {topic}, or its servers are electing a leader: add it to a stream"
            );
            return BrokerError::Unavailable(text.into());
        }
        if !missing.contains_key(&topic) {
            let why = match self.stream(layout).await {
                Ok(None) => return BrokerError::NoSuchTopic { topic },
                Ok(Some(there)) => match check_layout(&there, layout) {
                    Ok(()) => "its stream takes nothing just now".to_owned(),
                    Err(error) => return error,
                },
                Err(error) => error.to_string(),
            };
            missing.insert(topic.clone(), why);
        }
        let why = missing.get(&topic).cloned().unwrap_or_default();
        let text = format!("nobody takes events of topic {topic:?}: {why}; if there is no such stream, declare it");
        BrokerError::Unavailable(text.into())
    }
}

impl Job {
    fn is_open(&self) -> bool {
        matches!(self.answer, Err(BrokerError::Unavailable(_)))
    }
}

fn unconfirmed(subject: &str) -> BrokerError {
    let text = format!(
        "the server did not confirm an event on {subject} in time: it is slow or away, or this user may not publish there; \
         the event may have been stored"
    );
    BrokerError::Unavailable(text.into())
}

/// As in `wrong last sequence: 2 (code 400, error code 10071)`.
fn last_number(text: &str) -> Option<u64> {
    text.split_once("sequence: ")?.1.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

/// What the server says of an event that it did not store.
fn rejected(topic: &Topic, error: &jetstream::Error, job: &Job) -> BrokerError {
    let text = error.to_string();
    match error.error_code() {
        ErrorCode::STREAM_WRONG_LAST_SEQUENCE | ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT => {
            let expected = job.expected.map(Expected::header);
            let position = expected.map_or(0, |(_, position)| position.0);
            BrokerError::Refused(format!(
                "something else was published to topic {topic:?} since position {position}: {text}; read again, and decide anew"
            ))
        }
        ErrorCode::STREAM_MESSAGE_EXCEEDS_MAXIMUM | ErrorCode::STREAM_HEADER_EXCEEDS_MAXIMUM => {
            let bytes = job.message.size();
            BrokerError::Refused(format!(
                "the message has {bytes} bytes, more than the stream of topic {topic:?} takes ({text}): raise its max_msg_size, or \
                 publish a reference to the data instead"
            ))
        }
        ErrorCode::STREAM_STORE_FAILED if text.contains("exceeded") => BrokerError::Full { topic: topic.clone() },
        ErrorCode::INSUFFICIENT_RESOURCES
        | ErrorCode::STORAGE_RESOURCES_EXCEEDED
        | ErrorCode::MEMORY_RESOURCES_EXCEEDED
        | ErrorCode::ACCOUNT_RESOURCES_EXCEEDED => BrokerError::Full { topic: topic.clone() },
        // A server that has just become leader still looks for an earlier one with this id.
        ErrorCode::STREAM_DUPLICATE_MESSAGE_CONFLICT => BrokerError::Unavailable(text.into()),
        ErrorCode::STREAM_SEALED => BrokerError::Refused(format!("the stream of topic {topic:?} is sealed for ever")),
        _ => api_error(error),
    }
}
