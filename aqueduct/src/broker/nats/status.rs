//! What operators look at: topics, how far consumers are, and durables that cannot be read from.

use std::collections::BTreeMap;

use async_nats::jetstream::consumer::Info as ConsumerInfo;
use async_nats::jetstream::response::Response;
use async_nats::jetstream::stream::Info;
use serde_core::de::DeserializeOwned;
use serde_json::{Value, json};

use super::declare::{api_error, check_layout, declared};
use super::foreign::too_soon;
use super::layout::Layout;
use super::names::described;
use super::{NatsBroker, Shared};
use crate::clock::Timestamp;
use crate::error::BrokerError;
use crate::topic::{Text, Topic};

/// How things stand on a server, as [`NatsBroker::status`] has seen it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct NatsStatus {
    /// The declared topics.
    pub topics: Vec<NatsTopicStatus>,
    /// The consumers of this library, once for each topic that they read.
    pub consumers: Vec<NatsConsumerStatus>,
    /// What is wrong with the durables of others, one sentence each.
    pub faults: Vec<String>,
}

/// A declared topic.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NatsTopicStatus {
    /// The topic.
    pub topic: Topic,
    /// How many partitions it has.
    pub partitions: u32,
    /// How many events there are.
    pub events: u64,
    /// How many bytes they take.
    pub bytes: u64,
    /// When the first of them was stored.
    pub oldest: Option<Timestamp>,
    /// When the last of them was stored.
    pub newest: Option<Timestamp>,
}

/// How far a consumer is in a topic.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct NatsConsumerStatus {
    /// The consumer.
    pub consumer: Text,
    /// The topic.
    pub topic: Topic,
    /// How many events it has not settled yet, of the partitions that it has ever read.
    pub lag: u64,
}

impl NatsBroker {
    /// Looks at a declared topic, and goes by the number of partitions that it has from now on; for programs that are not told.
    pub async fn find(&self, topic: impl Into<Topic>) -> Result<NatsTopicStatus, BrokerError> {
        let topic = topic.into();
        let usual = Layout::new(&topic, self.0.options.partitions)?;
        self.0.ready().await?;
        let info = self.0.info(&usual).await?.ok_or_else(|| BrokerError::NoSuchTopic { topic: topic.clone() })?;
        let partitions = declared(&info.config).map_or(usual.partitions(), |(_, partitions)| partitions);
        let layout = Layout::new(&topic, partitions)?;
        check_layout(&info.config, &layout)?;
        self.0.remember(layout.into());
        Ok(topic_status(topic, partitions, &info))
    }

    /// Looks at everything that there is. The user must be permitted to list streams and their consumers.
    pub async fn status(&self) -> Result<NatsStatus, BrokerError> {
        self.0.ready().await?;
        let mut status = NatsStatus::default();
        for info in self.0.list::<Info>("STREAM.LIST", "streams").await? {
            let topic = declared(&info.config);
            let consumers =
                self.0.list::<ConsumerInfo>(&format!("CONSUMER.LIST.{}", info.config.name), "consumers").await?;
            let soon = |info: &ConsumerInfo| too_soon(&info.stream_name, &info.name, &info.config);
            status.faults.extend(consumers.iter().filter_map(soon));
            if let Some((topic, partitions)) = topic {
                status.consumers.extend(lags(&topic, &consumers));
                status.topics.push(topic_status(topic, partitions, &info));
            }
        }
        status.topics.sort_by(|a, b| a.topic.cmp(&b.topic));
        Ok(status)
    }
}

fn topic_status(topic: Topic, partitions: u32, info: &Info) -> NatsTopicStatus {
    let state = &info.state;
    let (events, bytes) = (state.messages, state.bytes);
    let time = |nanos: i128| {
        let ms = i64::try_from(nanos / 1_000_000).unwrap_or_default();
        (events > 0).then(|| Timestamp::from_unix_ms(ms))
    };
    let oldest = time(state.first_timestamp.unix_timestamp_nanos());
    let newest = time(state.last_timestamp.unix_timestamp_nanos());
    NatsTopicStatus { topic, partitions, events, bytes, oldest, newest }
}

/// Of the readers of a partition the one with the highest epoch counts; both end its name.
fn lags(topic: &Topic, readers: &[ConsumerInfo]) -> Vec<NatsConsumerStatus> {
    let mut latest = BTreeMap::<(&str, u64), (u64, u64)>::new();
    for reader in readers {
        let mut parts = reader.name.rsplitn(4, '_');
        let mut number = || parts.next()?.parse::<u64>().ok();
        let (Some(epoch), Some(partition)) = (number(), number()) else { continue };
        let Some(consumer) = reader.config.description.as_deref().and_then(described) else { continue };
        let lag = reader.num_pending + u64::try_from(reader.num_ack_pending).unwrap_or_default();
        let known = latest.entry((consumer, partition)).or_default();
        *known = (*known).max((epoch, lag));
    }
    let mut lags = BTreeMap::<&str, u64>::new();
    for ((consumer, _), (_, lag)) in latest {
        *lags.entry(consumer).or_default() += lag;
    }
    let status =
        |(consumer, lag): (&str, u64)| NatsConsumerStatus { consumer: consumer.into(), topic: topic.clone(), lag };
    lags.into_iter().map(status).collect()
}

impl Shared {
    /// All pages of a list. What this client does not understand is left out: newer servers have kinds of their own.
    async fn list<T: DeserializeOwned>(&self, request: &str, what: &str) -> Result<Vec<T>, BrokerError> {
        let (mut all, mut seen) = (Vec::new(), 0);
        loop {
            let mut page = match self.ask::<Value>(request.to_owned(), &json!({"offset": seen})).await? {
                Response::Ok(page) => page,
                Response::Err { error } => return Err(api_error(&error)),
            };
            let items = page[what].as_array_mut().map(std::mem::take).unwrap_or_default();
            seen += items.len();
            let end = items.is_empty() || seen as u64 >= page["total"].as_u64().unwrap_or_default();
            all.extend(items.into_iter().filter_map(|item| serde_json::from_value::<T>(item).ok()));
            if end {
                return Ok(all);
            }
        }
    }
}
