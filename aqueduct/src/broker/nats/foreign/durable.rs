//! Reads a durable for as long as it is owned, and settles its events one by one.
//!
//! A new owner asks for all that was in hand again, by a nak for each, before its first pull: so it comes first, and in order. Whatever is
//! not as expected (an error, a heartbeat that stays away, a gap in the durable's sequence) begins it anew in this way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::{BatchConfig, Config};
use async_nats::jetstream::consumer::{Consumer, Info};
use async_nats::jetstream::stream::{RetentionPolicy, Stream};
use async_nats::{StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::super::connect::Mark;
use super::super::member::{AHEAD_MAX, Inner, Task};
use super::super::reader::{ACK, OPEN_AGAIN, ends};
use super::super::wire;
use super::Durable;
use super::last::{LEFT, SEQUENCE};
use crate::broker::{Delivery, Settle, Ticket};
use crate::error::{BoxError, BrokerError};
use crate::message::Message;
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
    /// Where what was left behind is deleted, if it is a work queue.
    delete: Option<String>,
    /// Last deliveries, by their tags: they are not given back.
    last: BTreeMap<u64, Message>,
}

/// What is to be done about what became of a delivery.
pub(in super::super) enum Said {
    /// To tell the server.
    Word(String, Bytes),
    /// To hand it out again here.
    Again(Delivery, Duration),
}

impl Singles {
    /// What became of a delivery; none where there is nothing to say.
    pub(in super::super) fn settled(&mut self, settle: &Settle) -> Option<Said> {
        let (ticket, word) = match settle {
            Settle::Done(ticket) => {
                self.last.remove(&ticket.tag);
                if ticket.tag & LEFT > 0 {
                    let body = format!("{{\"seq\": {}, \"no_erase\": true}}", ticket.position.0);
                    return self.delete.clone().map(|subject| Said::Word(subject, body.into()));
                }
                (ticket, ACK)
            }
            Settle::Again(ticket, delay) => {
                if let Some(message) = self.last.remove(&ticket.tag) {
                    return Some(Said::Again(Delivery { message, ticket: *ticket }, *delay));
                }
                (ticket, format!("-NAK {{\"delay\": {}}}", delay.as_nanos().max(1)).into_bytes().into())
            }
            Settle::Extend(ticket) if ticket.tag & LEFT == 0 => (ticket, PROGRESS),
            _ => return None,
        };
        let ((begin, end), tag) = (self.ends.as_ref()?, ticket.tag & SEQUENCE);
        Some(Said::Word(format!("{begin}.{}.{}.{tag}.0.0{end}", ticket.deliveries, ticket.position.0), word))
    }

    /// Takes note of a delivery that is handed out, perhaps the last one of its event.
    pub(in super::super) fn handed_out(&mut self, delivery: &Delivery, is_last: bool) {
        if is_last {
            self.last.insert(delivery.ticket.tag, delivery.message.clone());
        }
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
    let Err(anomaly) = reader.read(&inner, &task, &durable).await;
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
    let (info, connection) = (&consumer.cached_info().clone(), inner.shared.link.mark());
    durable.check(info)?;
    let (inbox, client) = (inner.shared.link.client.new_inbox(), &inner.shared.link.client);
    let messages = client.subscribe(inbox.clone()).await.map_err(away)?;
    let advisories = client.subscribe(durable.advisories()).await.map_err(away)?;
    if !task.lease.holds(&inner.clock) {
        return Err(away("its lease has lapsed"));
    }
    ask_again(inner, durable, info).await?;
    let settings = &stream.cached_info().config;
    let queue = settings.retention == RetentionPolicy::WorkQueue;
    let delete = queue.then(|| format!("{}.STREAM.MSG.DELETE.{}", inner.shared.link.api, durable.stream));
    let identity: Text = format!("{}/{}", durable.stream, stream.cached_info().created.unix_timestamp_nanos()).into();
    inner.settles_singly(task, Singles { ends: None, delete, last: BTreeMap::new() });
    let floor = info.ack_floor.stream_sequence;
    inner.opened(task, identity, Some(Position(floor)).filter(|floor| floor.0 > 0));
    let (sequence, last) = (info.delivered.consumer_sequence, info.delivered.stream_sequence);
    let (ack_wait, deliveries_max) = (info.config.ack_wait, info.config.max_deliver);
    let (resuming, left) = (Some(BTreeSet::new()), BTreeSet::new());
    Ok(Reader {
        stream,
        consumer,
        inbox,
        messages,
        advisories,
        connection,
        sequence,
        last,
        ack_wait,
        deliveries_max,
        queue,
        asked: 0,
        resuming,
        left,
    })
}

/// Asks for everything that is in hand again, in order.
async fn ask_again(inner: &Inner, durable: &Durable, info: &Info) -> Result<(), BrokerError> {
    let client = &inner.shared.link.client;
    let (floor, last) = (info.ack_floor.stream_sequence, info.delivered.stream_sequence);
    if info.num_ack_pending == 0 {
        return Ok(());
    }
    let begin = format!("$JS.ACK.{}.{}.1", durable.stream, durable.name);
    let end = format!("{}.0.0", info.delivered.consumer_sequence);
    for position in floor + 1..last {
        client.publish(format!("{begin}.{position}.{end}"), NAK).await.map_err(away)?;
    }
    // Answered when it and all before it have been looked at.
    let last = client.request(format!("{begin}.{last}.{end}"), NAK);
    tokio::time::timeout(inner.shared.options.ack_timeout, last).await.map_err(away)?.map_err(away)?;
    Ok(())
}

struct Reader {
    stream: Stream,
    consumer: Consumer<Config>,
    inbox: String,
    messages: Subscriber,
    advisories: Subscriber,
    connection: Mark,
    /// Of the last delivery.
    sequence: u64,
    /// The last position that was delivered before.
    last: u64,
    ack_wait: Duration,
    /// Not above 0 if there is no end.
    deliveries_max: i64,
    queue: bool,
    /// Messages that were asked for and have not come.
    asked: usize,
    /// What has come, until all that was in hand before has.
    resuming: Option<BTreeSet<u64>>,
    /// What was found to be left behind.
    left: BTreeSet<Position>,
}

/// What comes from the server.
enum Came {
    Message(async_nats::Message),
    /// There is nothing more for a pull.
    End,
    Heartbeat,
    /// An event was left behind.
    Advisory(async_nats::Message),
}

impl Reader {
    /// Reads until it is to be begun anew.
    async fn read(
        &mut self,
        inner: &Arc<Inner>,
        task: &Task,
        durable: &Durable,
    ) -> Result<std::convert::Infallible, BoxError> {
        let mut extended = Instant::now();
        loop {
            if self.asked == 0 {
                self.asked = self.room(inner, task).await?;
                self.pull().await?;
            }
            match self.next().await? {
                Came::Message(message) => {
                    self.asked -= 1;
                    self.take(inner, task, message)?;
                }
                Came::End => {
                    self.asked = 0;
                    if let Some(came) = self.resuming.take() {
                        self.resume(inner, task, durable, &came).await?;
                    }
                }
                Came::Advisory(advisory) => {
                    let told = durable.told(&self.stream, &advisory).await?;
                    self.left_behind(inner, task, told);
                }
                Came::Heartbeat => {}
            }
            if extended.elapsed() > self.ack_wait / 3 {
                extended = Instant::now();
                inner.extend_queued(task).await?;
            }
        }
    }

    /// Asks for messages: at first for what is there, what has come again before what is new.
    async fn pull(&self) -> Result<(), BoxError> {
        let pull = BatchConfig { batch: self.asked, ..BatchConfig::default() };
        let pull = if self.resuming.is_some() {
            BatchConfig { no_wait: true, ..pull }
        } else {
            BatchConfig { expires: Some(EXPIRES), idle_heartbeat: HEARTBEAT, ..pull }
        };
        Ok(self.consumer.request_batch(pull, self.inbox.clone().into()).await?)
    }

    /// All that was in hand before has come again, but for what the durable does not know any more.
    async fn resume(
        &mut self,
        inner: &Inner,
        task: &Task,
        durable: &Durable,
        came: &BTreeSet<u64>,
    ) -> Result<(), BoxError> {
        if self.queue && self.deliveries_max > 0 {
            let filter = &self.consumer.cached_info().config.filter_subject;
            let filter = if filter.is_empty() { ">" } else { filter };
            let found = durable.left_behind(&self.stream, filter, self.last, came).await?;
            self.left_behind(inner, task, found);
        }
        inner.resumed(task);
        Ok(())
    }

    /// Hands out what was left behind, once.
    fn left_behind(&mut self, inner: &Inner, task: &Task, found: impl IntoIterator<Item = Delivery>) {
        for delivery in found {
            if self.left.insert(delivery.ticket.position) {
                inner.push(&task.partition, task.epoch, delivery, true);
            }
        }
    }

    /// How many messages there is room for, at least one. Those that wait for room are extended meanwhile.
    async fn room(&self, inner: &Arc<Inner>, task: &Task) -> Result<usize, BoxError> {
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
        let message = tokio::select! {
            biased;
            Some(advisory) = self.advisories.next() => return Ok(Came::Advisory(advisory)),
            () = self.connection.lost() => return Err("the connection is lost".into()),
            message = tokio::time::timeout(SILENT, self.messages.next()) => message,
        };
        let message = message.map_err(|_| "the server is silent")?.ok_or("the connection was closed")?;
        match message.status {
            None | Some(StatusCode::OK) => Ok(Came::Message(message)),
            Some(StatusCode::IDLE_HEARTBEAT) => Ok(Came::Heartbeat),
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => Ok(Came::End),
            Some(status) => Err(format!("{status} {}", message.description.as_deref().unwrap_or_default()).into()),
        }
    }

    fn take(&mut self, inner: &Inner, task: &Task, message: async_nats::Message) -> Result<(), BoxError> {
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
        if let Some(came) = &mut self.resuming {
            came.insert(info.stream_sequence);
        }
        let nanos = info.published.unix_timestamp_nanos();
        let message = wire::foreign_message(&task.partition.topic, &read.message, nanos);
        let mut ticket = Ticket::new(Position(info.stream_sequence), self.sequence);
        ticket.deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
        ticket.ack_wait = Some(self.ack_wait);
        let is_last = self.deliveries_max > 0 && info.delivered >= self.deliveries_max;
        let delivery = Delivery { message, ticket };
        let reply = read.message.reply.as_deref().unwrap_or_default();
        let noted = inner.note(task, |singles| {
            singles.ends.get_or_insert_with(|| ends(reply));
            singles.handed_out(&delivery, is_last);
        });
        let taken = noted && inner.push(&task.partition, task.epoch, delivery, true);
        taken.then_some(()).ok_or_else(|| "it is another's".into())
    }
}
