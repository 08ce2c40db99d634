//! Reads a durable for as long as it is owned, and settles its events one by one.
//!
//! A new owner asks for all that was in hand again, by a nak for each, before its first pull: so it comes first, and in order. Whatever is
//! not as expected (an error, a heartbeat that stays away, a gap in the durable's sequence) begins it anew in this way.

use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::Consumer;
use async_nats::jetstream::consumer::pull::{BatchConfig, Config};
use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::super::member::{AHEAD_MAX, Inner, Task};
use super::super::reader::{ACK, OPEN_AGAIN, ends};
use super::super::wire;
use super::Durable;
use crate::broker::{Delivery, Settle, Ticket};
use crate::error::{BoxError, BrokerError};
use crate::topic::{Position, Text};

/// Below what it takes to be struck off, so that no pull of a predecessor is open when another takes over.
const EXPIRES: Duration = Duration::from_secs(5);
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The server is silent for longer than its heartbeats are late.
const SILENT: Duration = Duration::from_secs(3);

const NAK: Bytes = Bytes::from_static(b"-NAK");
const PROGRESS: Bytes = Bytes::from_static(b"+WPI");

/// How the events of a durable are settled.
#[derive(Debug, Default)]
pub(in super::super) struct Singles {
    /// What the subjects of its acks begin and end with.
    ends: Option<(String, String)>,
}

impl Singles {
    fn learn(&mut self, reply: &str) {
        if self.ends.is_none() {
            self.ends = Some(ends(reply));
        }
    }

    /// The subject and the word for what became of a delivery; none where there is nothing to say.
    pub(in super::super) fn settled(&self, settle: &Settle) -> Option<(String, Bytes)> {
        let (ticket, word) = match settle {
            Settle::Done(ticket) => (ticket, ACK),
            Settle::Again(ticket, delay) => {
                (ticket, format!("-NAK {{\"delay\": {}}}", delay.as_nanos().max(1)).into_bytes().into())
            }
            Settle::Extend(ticket) => (ticket, PROGRESS),
            _ => return None,
        };
        let (begin, end) = self.ends.as_ref()?;
        Some((format!("{begin}.{}.{}.{}.0.0{end}", ticket.deliveries, ticket.position.0, ticket.tag), word))
    }
}

/// Opens a durable and reads it until it is not owned any more, when the task is ended.
pub(in super::super) async fn run(inner: Arc<Inner>, task: Task, durable: Arc<Durable>) {
    let mut failed = false;
    let mut reader = loop {
        match open(&inner, &task, &durable).await {
            Ok(reader) => break reader,
            Err(BrokerError::Refused(why)) => return inner.stop(&task, why),
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(partition = %task.partition, %error, "a durable cannot be read; it is tried again");
                }
                tokio::time::sleep(OPEN_AGAIN).await;
            }
        }
    };
    let Err(anomaly) = reader.read(&inner, &task).await;
    tracing::warn!(partition = %task.partition, %anomaly, "a durable is read anew");
    inner.reopen(&task, None, None).await;
}

fn away(error: impl Into<BoxError>) -> BrokerError {
    BrokerError::Unavailable(error.into())
}

async fn open(inner: &Inner, task: &Task, durable: &Durable) -> Result<Reader, BrokerError> {
    let stream = durable.stream(&inner.shared).await?;
    let consumer = durable.consumer(&stream).await?;
    let Some(consumer) = consumer else {
        return Err(BrokerError::Refused(format!(
            "the durable {} of the stream {} was deleted: make it again with `nats consumer add`, from where it is to go on, or start the \
             instances anew to begin with what the stream has",
            durable.name, durable.stream
        )));
    };
    let info = consumer.cached_info();
    durable.check(info)?;
    let (inbox, client) = (inner.shared.link.client.new_inbox(), &inner.shared.link.client);
    let messages = client.subscribe(inbox.clone()).await.map_err(away)?;
    if !task.lease.holds(&inner.clock) {
        return Err(away("its lease has lapsed"));
    }
    let (floor, last) = (info.ack_floor.stream_sequence, info.delivered.stream_sequence);
    if info.num_ack_pending > 0 {
        let begin = format!("$JS.ACK.{}.{}.1", durable.stream, durable.name);
        let end = format!("{}.0.0", info.delivered.consumer_sequence);
        for position in floor + 1..last {
            client.publish(format!("{begin}.{position}.{end}"), NAK).await.map_err(away)?;
        }
        // Answered when it and all before it have been looked at.
        let last = client.request(format!("{begin}.{last}.{end}"), NAK);
        let limit = inner.shared.options.ack_timeout;
        tokio::time::timeout(limit, last).await.map_err(away)?.map_err(away)?;
    }
    let identity: Text = format!("{}/{}", durable.stream, stream.cached_info().created.unix_timestamp_nanos()).into();
    inner.opened(task, identity, Some(Position(floor)).filter(|floor| floor.0 > 0));
    let (sequence, ack_wait) = (info.delivered.consumer_sequence, info.config.ack_wait);
    Ok(Reader { consumer, inbox, messages, sequence, ack_wait, asked: 0 })
}

struct Reader {
    consumer: Consumer<Config>,
    inbox: String,
    messages: Subscriber,
    /// Of the last delivery.
    sequence: u64,
    ack_wait: Duration,
    /// Messages that were asked for and have not come.
    asked: usize,
}

/// What comes for a pull.
enum Came {
    Message(Message),
    /// There is nothing more for it.
    End,
    Heartbeat,
}

impl Reader {
    /// Reads until it is to be begun anew.
    async fn read(&mut self, inner: &Inner, task: &Task) -> Result<std::convert::Infallible, BoxError> {
        // What is there now: first what has come again, then what is new.
        let mut resumed = false;
        let mut extended = Instant::now();
        loop {
            if self.asked == 0 {
                self.asked = self.room(inner, task).await?;
                let pull = BatchConfig { batch: self.asked, ..BatchConfig::default() };
                let pull = if resumed {
                    BatchConfig { expires: Some(EXPIRES), idle_heartbeat: HEARTBEAT, ..pull }
                } else {
                    BatchConfig { no_wait: true, ..pull }
                };
                self.consumer.request_batch(pull, self.inbox.clone().into()).await?;
            }
            match self.next().await? {
                Came::Message(message) => {
                    self.asked -= 1;
                    self.take(inner, task, message)?;
                }
                Came::End => {
                    self.asked = 0;
                    if !std::mem::replace(&mut resumed, true) {
                        inner.resumed(task);
                    }
                }
                Came::Heartbeat => {}
            }
            if extended.elapsed() > self.ack_wait / 3 {
                extended = Instant::now();
                inner.extend_queued(task).await?;
            }
        }
    }

    /// How many messages there is room for, at least one. Those that wait for room are extended meanwhile.
    async fn room(&self, inner: &Inner, task: &Task) -> Result<usize, BoxError> {
        loop {
            match inner.room(task) {
                None => return Err("it is another's".into()),
                Some(room) if room >= AHEAD_MAX / 4 => return Ok(room),
                Some(_) => {}
            }
            if tokio::time::timeout(self.ack_wait / 3, task.room.notified()).await.is_err() {
                inner.extend_queued(task).await?;
            }
        }
    }

    async fn next(&mut self) -> Result<Came, BoxError> {
        let message = tokio::time::timeout(SILENT, self.messages.next()).await;
        let message = message.map_err(|_| "the server is silent")?.ok_or("the connection was closed")?;
        match message.status {
            None | Some(StatusCode::OK) => Ok(Came::Message(message)),
            Some(StatusCode::IDLE_HEARTBEAT) => Ok(Came::Heartbeat),
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => Ok(Came::End),
            Some(status) => Err(format!("{status} {}", message.description.as_deref().unwrap_or_default()).into()),
        }
    }

    fn take(&mut self, inner: &Inner, task: &Task, message: Message) -> Result<(), BoxError> {
        let read = async_nats::jetstream::Message { message, context: inner.shared.link.context.clone() };
        let info = read.info()?;
        if info.consumer_sequence != self.sequence + 1 {
            return Err(format!(
                "the delivery {} follows {}; does another program read through this durable?",
                info.consumer_sequence, self.sequence
            )
            .into());
        }
        self.sequence = info.consumer_sequence;
        let mut message = wire::message(&task.partition.topic, &read.message, info.published.unix_timestamp_nanos());
        // Formats of others have no other identity.
        if let Some(id) = read.message.headers.as_ref().and_then(|headers| headers.get(wire::MESSAGE_ID)) {
            message.headers.add(wire::MESSAGE_ID, wire::decode(id.as_str()));
        }
        let mut ticket = Ticket::new(Position(info.stream_sequence), self.sequence);
        ticket.deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
        ticket.ack_wait = Some(self.ack_wait);
        let reply = read.message.reply.as_deref().unwrap_or_default();
        let taken = inner.push(task, Delivery { message, ticket }, |singles| singles.learn(reply));
        taken.then_some(()).ok_or_else(|| "it is another's".into())
    }
}
