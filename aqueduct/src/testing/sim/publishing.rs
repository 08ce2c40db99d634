//! Publishing with a real publisher, to a broker that fails or whose confirmation is lost.

use std::sync::Arc;

use parking_lot::Mutex;

use super::history::{History, NOBODY, What};
use super::probe::Numbers;
use crate::broker::{Abilities, Broker, Membership, MemoryBroker, Receipt, Subscription};
use crate::error::BrokerError;
use crate::event::Event;
use crate::format::{CloudEvents, Decoded, Format};
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::publish::{PublishError, Publisher};
use crate::topic::Topic;

/// The memory broker as the publisher sees it.
pub(crate) struct PublishPort {
    pub(crate) inner: MemoryBroker,
    pub(crate) history: History,
    pub(crate) numbers: Numbers,
    /// Of a thousand publishes so many fail.
    pub(crate) fails: u32,
    pub(crate) rng: Mutex<fastrand::Rng>,
}

impl Broker for PublishPort {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(async move {
            if self.chance("publish/before") {
                return messages.iter().map(|_| failed()).collect();
            }
            let answers = self.inner.publish(messages.clone()).await;
            for (message, receipt) in messages.iter().zip(&answers).filter_map(|(m, a)| Some((m, a.as_ref().ok()?))) {
                self.note(message, receipt);
            }
            if self.chance("publish/after") { messages.iter().map(|_| failed()).collect() } else { answers }
        })
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.check_topic(topic)
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        self.inner.join(subscription)
    }
}

fn failed() -> Result<Receipt, BrokerError> {
    Err(BrokerError::Unavailable("a simulated fault of a publish".into()))
}

impl PublishPort {
    fn chance(&self, point: &str) -> bool {
        let fails = self.rng.lock().u32(0..1_000) < self.fails;
        if fails {
            self.history.note(NOBODY, What::Fault { point: point.to_owned() });
        }
        fails
    }

    /// An event is published when it is stored, whether or not anybody learns of it.
    fn note(&self, message: &Message, receipt: &Receipt) {
        let Ok(Decoded::One(event)) = CloudEvents::binary().decode(message) else { return };
        let number = self.numbers.get(&(event.source.clone(), event.id.clone()));
        if let Some(event) = number.copied().filter(|_| !receipt.duplicate) {
            let (partition, position) = (receipt.partition.clone(), receipt.position);
            self.history.note(NOBODY, What::Published { event, partition, position });
        }
    }
}

/// Publishes an event, again and again while it is not confirmed.
pub(crate) async fn publish(publisher: &Publisher, mut event: Event) -> Result<(), PublishError> {
    loop {
        match publisher.publish(event).await {
            Ok(_) => return Ok(()),
            Err(PublishError::Unconfirmed { event: unconfirmed, .. }) => event = *unconfirmed,
            Err(error) => return Err(error),
        }
    }
}
