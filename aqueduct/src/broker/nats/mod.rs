//! The broker on NATS JetStream.

mod connect;
pub(crate) mod declare;
mod foreign;
pub(crate) mod layout;
mod lease;
mod member;
pub(crate) mod names;
mod options;
mod publish;
mod reader;
mod status;
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use async_nats::jetstream::stream::Config;
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::broker::{Abilities, Broker, Membership, Ownership, Receipt, Subscription};
use crate::error::BrokerError;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::topic::Topic;
use connect::Link;
use layout::Layout;

pub use foreign::{ForeignStream, NatsForeign};
pub use options::NatsOptions;
pub use publish::Expected;
pub use status::{NatsConsumerStatus, NatsStatus, NatsTopicStatus};

/// Of what the server takes, so much is kept for the key, the dedup id and what stands between headers.
const OVERHEAD_BYTES: usize = 4_096;

/// A broker on a NATS server or cluster with JetStream, 2.12 or later.
///
/// A topic is a stream, which [`declare`](Self::declare) makes, with 16 partitions unless it says otherwise. Each event is
/// confirmed by the server; where the confirmation stays away it is sent again under the same id, which the server recognises
/// within the stream's dedup window. A connection that is lost is made again, for ever; publishing waits for it for as long as
/// [`publish_timeout`](NatsOptions::publish_timeout) says.
///
/// The trap: the server confirms what its kernel has. A machine that dies takes up to two minutes of confirmed events with it,
/// unless the topic has [`replicas`](crate::nats::NatsTopic::replicas), or the server `sync_interval: always`.
///
/// ```no_run
/// # async fn publish() -> aqueduct::Result<()> {
/// use aqueduct::{Event, Publisher, nats::{NatsBroker, NatsTopic}};
/// let broker = NatsBroker::connect("nats://localhost:4222").await?;
/// broker.declare(NatsTopic::new("orders").replicas(3)).await?;
/// let event = Event::new("order.placed", "order-7")?.topic("orders").key("order-7");
/// Publisher::new("shop", broker).publish(event).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct NatsBroker(pub(crate) Arc<Shared>);

pub(crate) struct Shared {
    pub(crate) link: Link,
    pub(crate) options: NatsOptions,
    /// How many events may still be sent.
    window: Arc<Semaphore>,
    /// Of topics that were declared or published to.
    layouts: RwLock<BTreeMap<Topic, Arc<Layout>>>,
}

/// Whether there is a connection to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NatsConnection {
    /// There is one.
    pub connected: bool,
    /// Why there is none.
    pub why: Option<String>,
}

impl NatsBroker {
    /// The broker at these addresses, with the usual [options](NatsOptions), which say how addresses are written.
    pub async fn connect(urls: impl AsRef<str>) -> Result<Self, BrokerError> {
        NatsOptions::new(urls).connect().await
    }

    #[cfg(feature = "testing")]
    pub(crate) fn leases(&self) -> Arc<dyn crate::lease::LeaseTable> {
        Arc::new(lease::NatsLeases::new(Arc::clone(&self.0), 1))
    }

    fn with(link: Link, options: NatsOptions) -> Self {
        let window = Arc::new(Semaphore::new(options.window));
        Self(Arc::new(Shared { link, options, window, layouts: RwLock::default() }))
    }

    /// Whether there is a connection, and why not; for readiness probes.
    pub fn connection(&self) -> NatsConnection {
        self.0.link.connection()
    }

    /// Publishes a message only if nothing else was published since a position; otherwise it is refused.
    ///
    /// A repeat of the same identity is a duplicate, and so a success, for as long as nothing came after it.
    ///
    /// The trap: later it is refused, since the server compares what was expected first, and identities afterwards.
    ///
    /// ```no_run
    /// # async fn publish(broker: aqueduct::nats::NatsBroker, message: aqueduct::Message) -> Result<(), aqueduct::BrokerError> {
    /// use aqueduct::{Position, nats::Expected};
    /// let receipt = broker.publish_expecting(message, Expected::Topic(Position(41))).await?;
    /// assert_eq!(receipt.position, Position(42));
    /// # Ok(()) }
    /// ```
    pub async fn publish_expecting(&self, message: Message, expected: Expected) -> Result<Receipt, BrokerError> {
        let answers = self.0.publish(vec![(message, Some(expected))]).await;
        answers.into_iter().next().unwrap_or(Err(BrokerError::Closed))
    }

    /// Waits for the confirmations of what is on its way, takes nothing more, and closes the connection of this broker and its
    /// clones. Waits no longer than publishing does.
    pub async fn drain(&self) -> Result<(), BrokerError> {
        let all = u32::try_from(self.0.options.window).unwrap_or(u32::MAX);
        let confirmed = tokio::time::timeout(self.0.options.publish_timeout, self.0.window.acquire_many(all)).await;
        self.0.window.close();
        let closed = async {
            let _ = self.0.link.client.flush().await;
            self.0.link.client.drain().await
        };
        let _ = tokio::time::timeout(self.0.options.ack_timeout, closed).await;
        match confirmed {
            Ok(_) => Ok(()),
            Err(_) => Err(self.0.link.away()),
        }
    }
}

impl Shared {
    fn layout(&self, topic: &Topic) -> Result<Arc<Layout>, BrokerError> {
        if let Some(layout) = self.layouts.read().get(topic) {
            return Ok(layout.clone());
        }
        let layout = Arc::new(Layout::new(topic, self.options.partitions)?);
        self.layouts.write().insert(topic.clone(), layout.clone());
        Ok(layout)
    }

    /// Publishers and consumers use this layout from now on.
    pub(crate) fn remember(&self, layout: Arc<Layout>) {
        self.layouts.write().insert(layout.topic().clone(), layout);
    }

    fn message_bytes_max(&self) -> usize {
        let bytes = self.link.client.max_payload();
        bytes - OVERHEAD_BYTES.min(bytes / 2)
    }

    pub(crate) async fn ready(&self) -> Result<(), BrokerError> {
        if self.window.is_closed() {
            return Err(BrokerError::Closed);
        }
        self.link.ready(Instant::now() + self.options.publish_timeout).await
    }

    /// The layout of a topic that is there, and the stream's settings.
    async fn checked(&self, topic: &Topic) -> Result<(Arc<Layout>, Config), BrokerError> {
        let layout = self.layout(topic)?;
        self.ready().await?;
        let there = self.stream(&layout).await?;
        let there = there.ok_or_else(|| BrokerError::NoSuchTopic { topic: topic.clone() })?;
        declare::check_layout(&there, &layout)?;
        Ok((layout, there))
    }
}

impl Broker for NatsBroker {
    fn abilities(&self) -> Abilities {
        let abilities = Abilities::new(Ownership::Floor);
        Abilities { durable: true, dedup: true, message_bytes_max: self.0.message_bytes_max(), ..abilities }
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(self.0.publish(messages.into_iter().map(|message| (message, None)).collect()))
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move { self.0.checked(topic).await.map(drop) })
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(async move {
            let member = member::join(&self.0, subscription).await?;
            Ok(Arc::new(member) as Arc<dyn Membership>)
        })
    }
}

impl std::fmt::Debug for NatsBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NatsBroker").field("servers", &self.0.link.servers).finish_non_exhaustive()
    }
}
