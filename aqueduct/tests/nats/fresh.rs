//! Brokers and topics for one test, and what the server has of them, read with the raw client.

use std::time::Duration;

use aqueduct::broker::{Broker, Receipt};
use aqueduct::nats::{NatsBroker, NatsOptions, NatsTopic};
use aqueduct::{BrokerError, Message, Topic};
use aqueduct_servers::{Nats, Options, fresh_name, nats_url};
use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::{self, Context};

/// A broker on the shared server.
pub(crate) async fn shared() -> NatsBroker {
    NatsBroker::connect(nats_url().unwrap()).await.unwrap()
}

/// The raw client on the shared server.
pub(crate) async fn raw() -> Context {
    raw_at(&nats_url().unwrap()).await
}

pub(crate) async fn raw_at(url: &str) -> Context {
    let urls: Vec<async_nats::ServerAddr> = url.split(',').map(|url| url.parse().unwrap()).collect();
    jetstream::new(async_nats::connect(urls).await.unwrap())
}

/// A topic that no other test has, without a dot.
pub(crate) fn topic() -> Topic {
    fresh_name().unwrap().into()
}

/// A broker on the shared server, and a topic that is there.
pub(crate) async fn declared() -> (NatsBroker, Topic) {
    let (broker, topic) = (shared().await, topic());
    broker.declare(NatsTopic::new(topic.clone())).await.unwrap();
    (broker, topic)
}

/// A server of the test's own, with a setting.
pub(crate) fn server(name: &str, value: &str) -> Nats {
    Nats::start(Options::new().setting(name, value)).unwrap()
}

/// Options for a server of the test's own that give up soon.
pub(crate) fn impatient(server: &Nats) -> NatsOptions {
    NatsOptions::new(server.url()).publish_timeout(Duration::from_millis(500))
}

pub(crate) fn message(topic: &Topic, key: &str, body: impl Into<String>) -> Message {
    let mut message = Message::new(topic, body.into());
    message.key = Some(key.to_owned().into());
    message
}

pub(crate) async fn publish(broker: &NatsBroker, message: Message) -> Result<Receipt, BrokerError> {
    broker.publish(vec![message]).await.remove(0)
}

/// What the server has at a receipt's place.
pub(crate) async fn stored(raw: &Context, receipt: &Receipt) -> StreamMessage {
    let stream = raw.get_stream(receipt.partition.topic.as_str()).await.unwrap();
    stream.get_raw_message(receipt.position.0).await.unwrap()
}

/// The bodies of a stream, in order, from a server that has just lost its leader too.
pub(crate) async fn bodies(raw: &Context, stream: &str) -> Vec<String> {
    let stream = led(|| raw.get_stream(stream)).await;
    let (mut bodies, last) = (Vec::new(), stream.cached_info().state.last_sequence);
    for sequence in 1..=last {
        let message = led(|| stream.get_raw_message(sequence)).await;
        bodies.push(String::from_utf8(message.payload.to_vec()).unwrap());
    }
    bodies
}

/// What a cluster answers once it has a leader, asked again until then.
async fn led<T, E: std::fmt::Debug, F: Future<Output = Result<T, E>>>(ask: impl Fn() -> F) -> T {
    let answer = async {
        loop {
            match ask().await {
                Ok(answer) => return answer,
                Err(error) => println!("asked again: {error:?}"),
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), answer).await.expect("the cluster has a leader again")
}

/// Lets time pass as a fault, or as work: nothing is waited for.
pub(crate) async fn pass(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}
