//! Reads one partition for as long as it is owned, with a consumer of its own on the server.
//!
//! Each owner makes a consumer whose name has its epoch, and deletes those of lower epochs: so the server refuses a
//! predecessor's pulls and forgets its acks, and everything that it has not settled comes again, in order. Whatever is not as
//! expected (an error, a heartbeat that stays away, a gap in the consumer's sequence) begins the partition anew in this way.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::pull::{Config, Stream as Pulled};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy};
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde_json::{Value, json};

use super::layout::Layout;
use super::member::{Inner, Task};
use super::{names, wire};
use crate::broker::{Delivery, Start, Ticket};
use crate::error::BoxError;
use crate::topic::{Epoch, Position, Text};

/// What settles.
pub(super) const ACK: Bytes = Bytes::from_static(b"+ACK");

/// Nothing comes again by itself: liveness is the lease.
const ACK_WAIT: Duration = Duration::from_hours(1);

/// Messages that are asked for at once, and how often the server says that it is there meanwhile.
const PULL: usize = 256;
const EXPIRES: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Longer than any lease.
const LEASE: Duration = Duration::from_secs(5);

/// The pause before it is tried again to open a partition.
pub(super) const OPEN_AGAIN: Duration = Duration::from_millis(500);

/// How often it is looked again before a partition stops.
const SURE: u32 = 6;

/// How often a partition that is quiet looks whether retention comes near to where it was settled last.
const QUIET: Duration = Duration::from_secs(10);

/// The acks of one reader: one settles everything up to it.
#[derive(Default)]
pub(super) struct Acks {
    /// What their subjects begin and end with.
    ends: Option<(String, String)>,
    /// What was delivered and is not settled: sequences in the stream and in the consumer.
    unsettled: VecDeque<(Position, u64)>,
}

impl Acks {
    pub(super) fn delivered(&mut self, ticket: Ticket, reply: &str) {
        if self.ends.is_none() {
            self.ends = Some(ends(reply));
        }
        self.unsettled.push_back((ticket.position, ticket.tag));
    }

    pub(super) fn is_idle(&self) -> bool {
        self.unsettled.is_empty()
    }

    /// The subject to which the ack of a floor goes; none if nothing was delivered that it settles.
    pub(super) fn settled(&mut self, floor: Position) -> Option<String> {
        let mut last = None;
        while let Some(settled) = self.unsettled.pop_front_if(|(position, _)| *position <= floor) {
            last = Some(settled);
        }
        let (Position(stream), consumer) = last?;
        let (begin, end) = self.ends.as_ref()?;
        Some(format!("{begin}.1.{stream}.{consumer}.0.0{end}"))
    }
}

/// What the subjects of a reader's acks begin and end with: `$JS.ACK.<stream>.<consumer>` and five numbers, or, in the newer
/// form, domain and account before the stream, and whatever after the numbers.
pub(super) fn ends(reply: &str) -> (String, String) {
    let tokens: Vec<&str> = reply.split('.').collect();
    let (begin, rest) = tokens.split_at(if tokens.len() <= 9 { tokens.len().min(4) } else { 6 });
    (begin.join("."), rest.iter().skip(5).flat_map(|token| [".", *token]).collect())
}

/// Why a partition was not opened.
enum Fault {
    /// It may succeed later.
    Later(BoxError),
    /// There is a reader with a higher epoch, or of this one.
    Above(Epoch),
    /// Somebody must decide how to go on.
    Stopped(String),
}

fn later(error: impl Into<BoxError>) -> Fault {
    Fault::Later(error.into())
}

/// Opens a partition and reads it until it is not owned any more, when the task is ended.
pub(super) async fn run(inner: Arc<Inner>, task: Task, layout: Arc<Layout>) {
    let (mut failed, mut stops) = (false, 0);
    let (reader, mut pulled) = loop {
        match open(&inner, &task, &layout).await {
            Ok(opened) => break opened,
            Err(Fault::Later(error)) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(partition = %task.partition, %error, "a partition cannot be opened; it is tried again");
                }
                tokio::time::sleep(OPEN_AGAIN).await;
            }
            Err(Fault::Above(epoch)) => {
                // The table was made anew: who owned it by the one before may still count on its lease.
                if epoch > task.epoch {
                    tokio::time::sleep(LEASE).await;
                }
                return inner.reopen(&task, None, Some(epoch)).await;
            }
            // A server of a cluster that has stood still may know less than was settled, for a moment.
            Err(Fault::Stopped(_)) if stops < SURE => {
                stops += 1;
                tokio::time::sleep(OPEN_AGAIN).await;
            }
            Err(Fault::Stopped(why)) => return inner.stop(&task, why),
        }
    };
    match reader.read(&inner, &task, &mut pulled).await {
        End::Anomaly(anomaly) => {
            tracing::warn!(partition = %task.partition, %anomaly, "a partition is read anew");
            inner.reopen(&task, None, None).await;
        }
        End::Behind(floor) => inner.reopen(&task, Some(floor), None).await,
    }
}

/// An open partition.
struct Reader {
    stream: String,
    filter: String,
}

/// Why a partition is not read any further.
enum End {
    /// Something was not as it should be.
    Anomaly(String),
    /// Nothing is there for it up to here, and retention has come past where it was settled.
    Behind(Position),
}

/// The readers of the owners before, and how far they are settled.
struct Before {
    readers: Vec<String>,
    settled: Option<Position>,
}

impl Before {
    async fn find(stream: &Stream, task: &Task, begin: &str) -> Result<Self, Fault> {
        let (mut readers, mut settled) = (Vec::new(), None);
        let names: Vec<String> = stream.consumer_names().try_collect().await.map_err(later)?;
        for name in names {
            let Some(epoch) = name.strip_prefix(begin).and_then(|epoch| epoch.parse().ok()).map(Epoch) else {
                continue;
            };
            // One of this very epoch was made by an attempt whose answer was lost.
            if epoch >= task.epoch {
                return Err(Fault::Above(epoch));
            }
            let info = stream.consumer_info(&name).await.map_err(later)?;
            settled = settled.max(Some(Position(info.ack_floor.stream_sequence)));
            readers.push(name);
        }
        Ok(Self { readers, settled })
    }
}

async fn open(inner: &Inner, task: &Task, layout: &Layout) -> Result<(Reader, Pulled), Fault> {
    let stream = inner.shared.link.context.get_stream(layout.stream()).await.map_err(later)?;
    let begin = names::readers(&inner.consumer, layout.partitions(), task.partition.index);
    let before = Before::find(&stream, task, &begin).await?;
    let floor = floor(&stream, task, &before)?;
    let (deliver_policy, floor) =
        begin_at(inner.start, floor, stream.cached_info().state.last_sequence).map_err(later)?;
    if !task.lease.holds(&inner.clock) {
        return Err(later("its lease has lapsed"));
    }
    let name = format!("{begin}{}", task.epoch.0);
    let config = Config {
        durable_name: Some(name.clone()),
        description: Some(names::description(&inner.consumer)),
        deliver_policy,
        ack_policy: AckPolicy::All,
        ack_wait: ACK_WAIT,
        max_ack_pending: -1,
        filter_subject: layout.filter(task.partition.index),
        ..Config::default()
    };
    let consumer = stream.create_consumer(config).await.map_err(later)?;
    for name in &before.readers {
        stream.delete_consumer(name).await.map_err(later)?;
    }
    let pulls = consumer.stream().max_messages_per_batch(PULL).expires(EXPIRES).heartbeat(HEARTBEAT);
    let pulled = pulls.messages().await.map_err(later)?;
    let identity: Text = format!("{}/{}", layout.stream(), stream.cached_info().created.unix_timestamp_nanos()).into();
    inner.opened(task, identity, floor.filter(|floor| floor.0 > 0));
    let (stream, filter) = (layout.stream().to_owned(), layout.filter(task.partition.index));
    Ok((Reader { stream, filter }, pulled))
}

/// Where a reader begins, and what counts as settled for it.
pub(super) fn begin_at(
    start: Start,
    floor: Option<Position>,
    last: u64,
) -> Result<(DeliverPolicy, Option<Position>), BoxError> {
    Ok(match (floor, start) {
        (Some(floor), _) => (from(floor.0 + 1), Some(floor)),
        (None, Start::Beginning) => (DeliverPolicy::All, None),
        (None, Start::New) => (from(last + 1), Some(Position(last))),
        (None, Start::Position(position)) => (from(position.0.max(1)), Some(Position(position.0.saturating_sub(1)))),
        (None, Start::Time(at)) => {
            let start_time = async_nats::datetime::from_nanos(i128::from(at.unix_ms()) * 1_000_000)?;
            (DeliverPolicy::ByStartTime { start_time }, None)
        }
    })
}

fn from(start_sequence: u64) -> DeliverPolicy {
    DeliverPolicy::ByStartSequence { start_sequence }
}

/// Everything up to here is settled. What is missing above it may have been deleted unread.
///
/// That a reader has nothing more to deliver does not say that there is nothing: in a cluster it is answered from a copy of the stream that
/// may lag behind.
fn floor(stream: &Stream, task: &Task, before: &Before) -> Result<Option<Position>, Fault> {
    let state = &stream.cached_info().state;
    let Some(settled) = before.settled.max(task.floor).filter(|floor| floor.0 > 0) else { return Ok(None) };
    let (first, last) = (state.first_sequence, state.last_sequence);
    let (partition, at) = (&task.partition, settled.0);
    if at > last {
        return Err(Fault::Stopped(format!(
            "{partition} is settled up to {at} and the stream {} ends at {last}: it was made anew or restored from an \
             older copy; to begin with what is there, delete the key-value bucket of the consumer and its readers on the stream",
            stream.cached_info().config.name
        )));
    }
    if first > at + 1 {
        return Err(Fault::Stopped(format!(
            "{partition} is settled up to {at} and the stream {} begins at {first}: what lay between was deleted, perhaps \
             unread; to go on with what is there, delete the key-value bucket of the consumer and its readers on the stream",
            stream.cached_info().config.name
        )));
    }
    Ok(Some(settled))
}

impl Reader {
    /// Reads until it is to be begun anew.
    async fn read(&self, inner: &Inner, task: &Task, pulled: &mut Pulled) -> End {
        let mut last = 0;
        loop {
            let message = match tokio::time::timeout(QUIET, pulled.next()).await {
                Ok(Some(Ok(message))) => message,
                Ok(Some(Err(error))) => return End::Anomaly(error.to_string()),
                Ok(None) => return End::Anomaly("the server has ended it".to_owned()),
                Err(_) => match self.behind(inner, task).await {
                    Some(floor) => return End::Behind(floor),
                    None => continue,
                },
            };
            let info = match message.info() {
                Ok(info) => info,
                Err(error) => return End::Anomaly(format!("a delivery cannot be told: {error}")),
            };
            if info.consumer_sequence != last + 1 {
                return End::Anomaly(format!("the delivery {} follows {last}", info.consumer_sequence));
            }
            last = info.consumer_sequence;
            let (position, nanos) = (Position(info.stream_sequence), info.published.unix_timestamp_nanos());
            let delivery = Delivery {
                message: wire::message(&task.partition.topic, &message.message, nanos),
                ticket: Ticket::new(position, last),
            };
            let (mut delivery, reply) = (Some(delivery), message.reply.as_deref().unwrap_or_default());
            loop {
                match inner.offer(task, &mut delivery, reply) {
                    Some(true) => break,
                    Some(false) => task.room.notified().await,
                    None => return End::Anomaly("it is another's".to_owned()),
                }
            }
        }
    }

    /// The end of the stream, if there is nothing of the partition up to there, and retention has deleted the place up to where it was
    /// settled: a later owner would take it for one whose events were deleted unread. Both are one answer of one server: two servers
    /// may know different ends.
    async fn behind(&self, inner: &Inner, task: &Task) -> Option<Position> {
        let floor = inner.idle_floor(task)?;
        let asked = json!({"subjects_filter": self.filter});
        let answer = inner.shared.ask::<Value>(format!("STREAM.INFO.{}", self.stream), &asked).await.ok()?;
        let Response::Ok(info) = answer else { return None };
        let state = &info["state"];
        let nothing = state["subjects"].as_object().is_none_or(serde_json::Map::is_empty);
        let (first, last) = (state["first_seq"].as_u64()?, state["last_seq"].as_u64()?);
        (nothing && first > floor.0 + 1).then_some(Position(last))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ack_settles_up_to_the_last_delivery_below_a_floor() {
        for (reply, ack) in [
            ("$JS.ACK.orders.stock_16_3_7.1.90.1.1700000000.4", "$JS.ACK.orders.stock_16_3_7.1.95.2.0.0"),
            ("$JS.ACK.hub.ACCT.orders.stock_16_3_7.1.90.1.170.4", "$JS.ACK.hub.ACCT.orders.stock_16_3_7.1.95.2.0.0"),
            ("$JS.ACK._.ACCT.orders.stock_16_3_7.1.90.1.170.4.x9", "$JS.ACK._.ACCT.orders.stock_16_3_7.1.95.2.0.0.x9"),
        ] {
            let mut acks = Acks::default();
            assert!(acks.is_idle() && acks.settled(Position(89)).is_none());
            for (position, consumer_sequence) in [(90, 1), (95, 2), (97, 3)] {
                acks.delivered(Ticket::new(Position(position), consumer_sequence), reply);
            }
            assert_eq!(acks.settled(Position(89)), None);
            assert_eq!(acks.settled(Position(96)).as_deref(), Some(ack));
            assert_eq!((acks.settled(Position(96)), acks.is_idle()), (None, false));
            assert!(acks.settled(Position(97)).is_some() && acks.is_idle());
        }
    }
}
