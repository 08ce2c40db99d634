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

/// The pause before a durable is read anew that somebody else reads, too.
const SHARED: Duration = Duration::from_secs(5);

/// So much that comes again is put in order; if there is more, the rest comes in the server's.
const RESUMED_MAX: usize = 65_536;

/// Naks that are sent before the server is asked whether it has them.
const NAKS: u64 = 1_000;

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
    /// Last deliveries, by their positions, with their tags: they are not given back.
    last: BTreeMap<Position, (u64, Message)>,
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
                self.last.remove(&ticket.position);
                if ticket.tag & LEFT > 0 {
                    let body = format!("{{\"seq\": {}, \"no_erase\": true}}", ticket.position.0);
                    return self.delete.clone().map(|subject| Said::Word(subject, body.into()));
                }
                (ticket, ACK)
            }
            Settle::Again(ticket, delay) => {
                if self.last.get(&ticket.position).is_some_and(|(tag, _)| *tag == ticket.tag) {
                    let (_, message) = self.last.remove(&ticket.position)?;
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
            self.last.insert(delivery.ticket.position, (delivery.ticket.tag, delivery.message.clone()));
        } else {
            self.last.remove(&delivery.ticket.position);
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
    if reader.shared {
        // Each time is a delivery of all that is in hand, the other's too.
        tokio::time::sleep(SHARED).await;
    }
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
    // Below the floor of a work queue may lie what was left behind.
    let whole = queue && info.config.max_deliver > 0;
    inner.opened(task, identity, Some(Position(floor)).filter(|floor| floor.0 > 0 && !whole));
    let (sequence, last) = (info.delivered.consumer_sequence, info.delivered.stream_sequence);
    let (ack_wait, deliveries_max) = (info.config.ack_wait, info.config.max_deliver);
    let (resuming, left) = (Some(BTreeMap::new()), BTreeSet::new());
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
        shared: false,
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
    for position in floor + 1..=last {
        let subject = format!("{begin}.{position}.{end}");
        if position < last && position % NAKS > 0 {
            client.publish(subject, NAK).await.map_err(away)?;
            continue;
        }
        // Answered when it and all before it have been looked at.
        let answer = tokio::time::timeout(inner.shared.options.ack_timeout, client.request(subject, NAK));
        answer.await.map_err(away)?.map_err(away)?;
    }
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
    /// What has come, by its position, until all that was in hand before has: the server sends what had expired before in an order of
    /// its own.
    resuming: Option<BTreeMap<u64, (Delivery, bool)>>,
    /// What was found to be left behind.
    left: BTreeSet<Position>,
    /// Another program reads through it, too.
    shared: bool,
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
                    self.asked = self.asked.saturating_sub(1);
                    self.take(inner, task, durable, message).await?;
                }
                Came::End => {
                    self.asked = 0;
                    self.resume(inner, task, durable).await?;
                }
                Came::Advisory(advisory) => self.advised(inner, task, durable, &advisory).await?,
                Came::Heartbeat => {}
            }
            if extended.elapsed() > self.ack_wait / 3 {
                extended = Instant::now();
                inner.extend_queued(task).await?;
                let held = self.resuming.iter().flat_map(BTreeMap::values);
                let held: Vec<Settle> = held.map(|(delivery, _)| Settle::Extend(delivery.ticket)).collect();
                inner.settle(&task.partition, &held).await?;
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

    /// All that was in hand before has come again, but for what the durable does not know any more. It is handed out in its order.
    async fn resume(&mut self, inner: &Inner, task: &Task, durable: &Durable) -> Result<(), BoxError> {
        let Some(mut came) = self.resuming.take() else { return Ok(()) };
        if self.queue && self.deliveries_max > 0 {
            let filter = &self.consumer.cached_info().config.filter_subject;
            let filter = if filter.is_empty() { ">" } else { filter };
            let known: BTreeSet<u64> = came.keys().copied().collect();
            for delivery in durable.left_behind(&self.stream, filter, self.last, &known).await? {
                self.left.insert(delivery.ticket.position);
                came.insert(delivery.ticket.position.0, (delivery, true));
            }
        }
        for (delivery, is_last) in came.into_values() {
            inner.push(&task.partition, task.epoch, delivery, is_last);
        }
        inner.resumed(task);
        Ok(())
    }

    /// An event was left behind. In a work queue it is found where it stands when the durable is begun anew; elsewhere it is handed out.
    async fn advised(
        &mut self,
        inner: &Inner,
        task: &Task,
        durable: &Durable,
        advisory: &async_nats::Message,
    ) -> Result<(), BoxError> {
        // What is left behind while it resumes is found then.
        if self.resuming.is_some() {
            return Ok(());
        }
        match durable.told(&self.stream, advisory).await? {
            Some(delivery) if !self.left.insert(delivery.ticket.position) => Ok(()),
            Some(_) if self.queue => Err("an event was left behind after its last delivery".into()),
            Some(delivery) => {
                inner.push(&task.partition, task.epoch, delivery, true);
                Ok(())
            }
            None => Ok(()),
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
        // Where as much is in hand as may be, the server says nothing to a pull that does not wait.
        let limit = if self.resuming.is_some() { HEARTBEAT } else { SILENT };
        let message = tokio::select! {
            biased;
            Some(advisory) = self.advisories.next() => return Ok(Came::Advisory(advisory)),
            () = self.connection.lost() => return Err("the connection is lost".into()),
            message = tokio::time::timeout(limit, self.messages.next()) => message,
        };
        let message = match message {
            Ok(message) => message.ok_or("the connection was closed")?,
            Err(_) if self.resuming.is_some() => return Ok(Came::End),
            Err(_) => return Err("the server is silent".into()),
        };
        match message.status {
            None | Some(StatusCode::OK) => Ok(Came::Message(message)),
            Some(StatusCode::IDLE_HEARTBEAT) => Ok(Came::Heartbeat),
            Some(StatusCode::NOT_FOUND | StatusCode::TIMEOUT) => Ok(Came::End),
            Some(status) => Err(format!("{status} {}", message.description.as_deref().unwrap_or_default()).into()),
        }
    }

    async fn take(
        &mut self,
        inner: &Inner,
        task: &Task,
        durable: &Durable,
        message: async_nats::Message,
    ) -> Result<(), BoxError> {
        let read = async_nats::jetstream::Message { message, context: inner.shared.link.context.clone() };
        let info = read.info()?;
        let (position, sequence) = (info.stream_sequence, info.consumer_sequence);
        if sequence != self.sequence + 1 {
            self.shared = true;
            let before = self.sequence;
            return Err(format!(
                "the delivery {sequence} follows {before}; does another program read through this durable?"
            )
            .into());
        }
        self.sequence = sequence;
        let nanos = info.published.unix_timestamp_nanos();
        let mut ticket = Ticket::new(Position(position), sequence);
        ticket.deliveries = u32::try_from(info.delivered).unwrap_or(u32::MAX);
        ticket.ack_wait = Some(self.ack_wait);
        let is_last = self.deliveries_max > 0 && info.delivered >= self.deliveries_max;
        let message = wire::foreign_message(&task.partition.topic, &read.message, nanos);
        let delivery = Delivery { message, ticket };
        let reply = read.message.reply.as_deref().unwrap_or_default();
        inner.note(task, |singles| {
            singles.ends.get_or_insert_with(|| ends(reply));
        });
        match &mut self.resuming {
            Some(came) if position <= self.last && came.len() < RESUMED_MAX => {
                came.insert(position, (delivery, is_last));
                return Ok(());
            }
            // What is new comes behind all that comes again.
            _ => self.resume(inner, task, durable).await?,
        }
        let taken = inner.push(&task.partition, task.epoch, delivery, is_last);
        taken.then_some(()).ok_or_else(|| "it is another's".into())
    }
}
