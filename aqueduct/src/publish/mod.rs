//! Publishing events straight to a broker.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;

use tracing::Instrument;

use crate::broker::{Broker, Receipt};
use crate::clock::Clock;
use crate::error::{BrokerError, WiringError};
use crate::event::Event;
use crate::format::{CloudEvents, Format, FormatError};
use crate::topic::{Text, Topic, TopicError};

mod batch;
mod gate;
mod routes;
#[cfg(test)]
mod tests;

use batch::{Batch, Prepared};
use gate::{Gate, LaneName};
use routes::Routes;

/// Publishes events and waits until the broker has confirmed them. Cheap to clone.
///
/// What an event leaves unset is filled in: the id with a UUIDv7, the source with the publisher's name, the time with the
/// present, the topic from the table made by [`route`](Self::route).
///
/// Events of a key stay in order: one is sent when the one before it is confirmed, within a batch and between calls on
/// clones of one publisher, unless the broker keeps order by itself. Two publishers know nothing of each other. Events
/// without a key never wait for others.
///
/// When the broker cannot be reached, an event is sent again up to 5 times under the same id, after random waits of 3.1 s
/// together at most. Then the error is [`Unconfirmed`](PublishError::Unconfirmed).
///
/// The trap: nothing ties this to a database transaction. What must be published exactly if a transaction commits belongs
/// into an outbox.
///
/// ```
/// # use aqueduct::{Event, PublishError, Publisher, broker::Broker};
/// async fn order_placed(shop: &Publisher, id: &str) -> aqueduct::Result<()> {
///     let receipt = shop.publish(Event::new("order.placed", id)?.key(id)).await?;
///     println!("stored in {} at {:?}", receipt.partition, receipt.position);
///     Ok(())
/// }
///
/// async fn connect(broker: impl Broker) -> aqueduct::Result<Publisher> {
///     let shop = Publisher::new("shop", broker).route("order.*", "orders").route("payment.>", "payments");
///     shop.check().await?;
///     Ok(shop)
/// }
/// ```
#[derive(Clone)]
pub struct Publisher {
    config: Arc<Config>,
    gate: Gate,
}

#[derive(Clone)]
struct Config {
    name: Text,
    broker: Arc<dyn Broker>,
    format: Arc<dyn Format>,
    clock: Clock,
    routes: Routes,
}

type Answer = Result<Receipt, PublishError>;

impl Publisher {
    /// A publisher of this name, which is the source of events that name none.
    pub fn new(name: impl Into<Text>, broker: impl Broker) -> Self {
        let config = Config {
            name: name.into(),
            broker: Arc::new(broker),
            format: Arc::new(CloudEvents::default()),
            clock: Clock::system(),
            routes: Routes::default(),
        };
        Self { config: Arc::new(config), gate: Gate::default() }
    }

    /// How events look on the wire. Defaults to [`CloudEvents::binary`].
    pub fn format(mut self, format: impl Format) -> Self {
        self.config_mut().format = Arc::new(format);
        self
    }

    /// Publishes events of the types that `pattern` matches to `topic`, unless an event names one itself.
    ///
    /// A pattern is a type in which `*` stands for one segment between dots and `>` at the end for one or more; the most
    /// specific one counts. A pattern that cannot be used makes [`check`](Self::check) and every publish fail, naming the
    /// line of this call. Defaults to no routes.
    #[track_caller]
    pub fn route(mut self, pattern: impl Into<Text>, topic: impl Into<Topic>) -> Self {
        self.config_mut().routes.add(&pattern.into(), topic.into(), Location::caller());
        self
    }

    /// Where time, random numbers and ids come from. Defaults to the system's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.config_mut().clock = clock;
        self
    }

    fn config_mut(&mut self) -> &mut Config {
        Arc::make_mut(&mut self.config)
    }

    /// Checks the routes and that the broker has their topics; meant for the start of a program.
    pub async fn check(&self) -> Result<(), WiringError> {
        self.config.routes.check()?;
        for (pattern, topic, at) in self.config.routes.iter() {
            let found = match topic.check() {
                Ok(()) => self.config.broker.check_topic(topic).await,
                Err(e) => Err(BrokerError::Topic(e)),
            };
            found.map_err(|e| WiringError::new(format!("route {pattern:?} to topic {topic:?}: {e}")).at(at))?;
        }
        Ok(())
    }

    /// Publishes one event.
    ///
    /// May be dropped before it has answered; then the event may or may not be published, and the next one of its key does
    /// not wait for it.
    pub async fn publish(&self, event: Event) -> Result<Receipt, PublishError> {
        let no_answer = || Err(PublishError::Broker(BrokerError::Closed));
        self.publish_all(vec![event]).await.pop().unwrap_or_else(no_answer)
    }

    /// Publishes events, at most 1,000 unconfirmed at a time; the answers are in the order of the events.
    ///
    /// A failing event fails the later ones of its key, which are not sent, and no others. (A broker that keeps order by
    /// itself may have been sent them already, and answers for them.)
    pub async fn publish_all(&self, events: Vec<Event>) -> Vec<Result<Receipt, PublishError>> {
        let span =
            tracing::info_span!("aqueduct.publish", publisher = self.config.name.as_str(), events = events.len());
        #[cfg(feature = "opentelemetry")]
        let events = in_trace(&span, events);
        let config = &*self.config;
        let prepared = events.into_iter().map(|event| config.prepare(event)).collect();
        let batch = Batch::new(config.broker.as_ref(), &config.clock, &self.gate, prepared);
        let answers = batch.run().instrument(span).await;
        config.count(&answers);
        answers
    }
}

/// Gives the events the trace context that is current within the span.
#[cfg(feature = "opentelemetry")]
fn in_trace(span: &tracing::Span, mut events: Vec<Event>) -> Vec<Event> {
    if let Some(context) = crate::telemetry::context::within(span) {
        for event in &mut events {
            crate::telemetry::context::inject(&context, &mut event.headers);
        }
    }
    events
}

impl Config {
    /// Fills in what the event leaves unset and writes it as a message. Names its lane too, if it has one.
    fn prepare(&self, mut event: Event) -> (Option<LaneName>, Result<Prepared, PublishError>) {
        let topic = match self.topic(&event) {
            Ok(topic) => topic,
            Err(e) => return (None, Err(e)),
        };
        let lane = event.key.clone().map(|key| (topic.clone(), key));
        if event.id.is_empty() {
            event.id = self.clock.uuid().into();
        }
        if event.source.is_empty() {
            event.source = self.name.clone();
        }
        event.time.get_or_insert_with(|| self.clock.now());
        event.topic = Some(topic.clone());
        (lane, self.encode(event, &topic))
    }

    fn topic(&self, event: &Event) -> Result<Topic, PublishError> {
        let topic = if let Some(topic) = &event.topic {
            topic
        } else {
            self.routes.check()?;
            let found = self.routes.find(event.kind.as_str());
            found.ok_or_else(|| PublishError::NoTopic { kind: event.kind.clone() })?
        };
        topic.check()?;
        Ok(topic.clone())
    }

    fn encode(&self, event: Event, topic: &Topic) -> Result<Prepared, PublishError> {
        let message = self.format.encode(&event, topic)?;
        let (bytes, limit) = (message.size(), self.broker.abilities().message_bytes_max);
        if bytes > limit {
            return Err(PublishError::TooLarge { kind: event.kind, id: event.id, bytes, limit });
        }
        Ok(Prepared { event, message })
    }

    fn count(&self, answers: &[Answer]) {
        let mut counts = [("stored", 0), ("duplicate", 0), ("failed", 0)];
        for answer in answers {
            let outcome = answer.as_ref().map_or(2, |receipt| usize::from(receipt.duplicate));
            counts[outcome].1 += 1;
        }
        for (outcome, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
            let name = self.name.as_str().to_owned();
            metrics::counter!("aqueduct_published_total", "publisher" => name, "outcome" => outcome).increment(count);
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("name", &self.config.name).finish_non_exhaustive()
    }
}

/// Why an event was not published.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// Nothing says where to publish it.
    #[error(
        "events of type {kind:?} have no topic: give the event one with `.topic(..)`, or the publisher with `.route({kind:?}, ..)`"
    )]
    NoTopic {
        /// The type of the event.
        kind: Text,
    },
    /// No broker takes the topic's name.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The route table cannot be used.
    #[error(transparent)]
    Routes(#[from] WiringError),
    /// The format cannot write it.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// It is larger than the broker takes; it was not sent.
    #[error(
        "{kind:?} event {id:?} has {bytes} bytes and the broker takes {limit}: publish a reference to the data instead"
    )]
    TooLarge {
        /// The type of the event.
        kind: Text,
        /// The id of the event.
        id: Text,
        /// The size of key, headers and body.
        bytes: usize,
        /// The largest size taken.
        limit: usize,
    },
    /// The broker refuses it.
    #[error(transparent)]
    Broker(BrokerError),
    /// The broker did not confirm it: it may be stored or not. Publishing `event` again is safe, since it has its id.
    #[error(
        "after {tries} tries {:?} event {:?} may or may not be published; publishing the event that comes with this error again is safe, as it has its id: {source}",
        event.kind, event.id
    )]
    Unconfirmed {
        /// The event, with everything that was filled in.
        event: Box<Event>,
        /// How often it was sent.
        tries: u32,
        /// The last error.
        source: BrokerError,
    },
    /// An earlier event of the same key in this batch failed, so this one was not sent.
    #[error(
        "not sent to {topic:?}, because an earlier event of key {key:?} in this batch failed: publish both again in their order"
    )]
    EarlierFailed {
        /// The topic.
        topic: Topic,
        /// The key.
        key: Text,
    },
}
