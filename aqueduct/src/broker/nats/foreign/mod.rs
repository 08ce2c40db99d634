//! Streams that others have made: plain subjects, and durables that settle one by one.

mod durable;
mod last;
mod source;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::member::{self, Parts, Source};
use super::{NatsBroker, Shared};
use crate::broker::{Abilities, Broker, Membership, Ownership, Receipt, Subscription};
use crate::error::BrokerError;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::topic::{Partition, Text, Topic};

pub(super) use durable::{Said, Singles, run};
pub(super) use last::hand_out_again;
pub use source::ForeignStream;
pub(super) use source::{Durable, too_soon};

/// Streams that others have made, on the connection of a [`NatsBroker`]: topics are plain subjects.
///
/// An event is published to the subject that its topic names, and to no other. A topic is read through a durable consumer of the
/// server's, which is said by [`read`](Self::read): work queues, interest and limits alike. One instance reads at a time, with all keys
/// in parallel inside it, and the others stand by; they agree on it in a key-value bucket as instances on declared topics do. Who takes
/// over asks for everything again that was in hand, and has it before anything new. Events are settled one by one, and extended while
/// they are worked on, so a handler may take longer than the durable's `ack_wait`.
///
/// The trap: a server that dies may forget that one event was settled and remember the next. Then single events are handled again, behind
/// later ones of their key, and so is one whose instance was away for `ack_wait`. Only a handler with a transaction, whose inbox
/// knows them, has its effect once and in order.
///
/// ```no_run
/// # async fn consume(router: aqueduct::Router) -> aqueduct::Result<()> {
/// use aqueduct::{Consumer, nats::{NatsBroker, ForeignStream}};
/// let nats = NatsBroker::connect("nats://localhost:4222").await?;
/// let source = ForeignStream::new("jetstream-bridge-stream").durable("stock-workers");
/// let broker = nats.foreign().read("shop.sync.stock", source);
/// Consumer::new("stock", broker).topics(["shop.sync.stock"]).serve(router).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct NatsForeign {
    broker: NatsBroker,
    sources: BTreeMap<Topic, ForeignStream>,
}

impl NatsBroker {
    /// The streams that others have made, on this connection.
    pub fn foreign(&self) -> NatsForeign {
        NatsForeign { broker: self.clone(), sources: BTreeMap::new() }
    }
}

impl NatsForeign {
    /// Says what a topic is read from.
    pub fn read(mut self, topic: impl Into<Topic>, source: ForeignStream) -> Self {
        self.sources.insert(topic.into(), source);
        self
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.broker.0
    }
}

impl Broker for NatsForeign {
    fn abilities(&self) -> Abilities {
        let abilities = Abilities::new(Ownership::AckEach);
        Abilities { durable: true, dedup: true, message_bytes_max: self.shared().message_bytes_max(), ..abilities }
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(self.shared().publish_plain(messages))
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(self.shared().check_subject(topic))
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(async move {
            let (mut parts, mut replicas) = (Parts::new(), 1);
            for topic in &subscription.topics {
                let Some(source) = self.sources.get(topic) else {
                    return Err(BrokerError::Refused(format!(
                        "nothing says what topic {topic:?} is read from: name its stream with `NatsForeign::read`"
                    )));
                };
                let (durable, copies) = source.find(self.shared(), topic, &subscription).await?;
                replicas = replicas.max(copies);
                let partition = Partition { topic: topic.clone(), index: 0 };
                parts.insert(Text::from(topic.to_string()), (partition, Source::Foreign(Arc::new(durable))));
            }
            let member = member::share(self.shared(), subscription, parts, replicas).await?;
            Ok(Arc::new(member) as Arc<dyn Membership>)
        })
    }
}
