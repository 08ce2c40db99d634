//! The least that somebody must be permitted.

use std::fmt;

use super::Topology;
use super::apply::durable_request;
use super::wanted::{Id, Wanted};
use crate::broker::nats::NatsOptions;
use crate::broker::nats::names::bucket;
use crate::error::BrokerError;
use crate::topic::Text;

/// What somebody does with a topology.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Access {
    /// Publishes to its topics.
    Publish,
    /// Is an instance of this consumer.
    Consume(Text),
    /// Compares what is there.
    Verify,
    /// Plans and applies.
    Apply,
}

/// The subjects on which somebody must be able to publish and to subscribe, and no others.
///
/// Printed, it is the block `permissions` of a user in the configuration of nats-server.
///
/// ```
/// # fn main() -> Result<(), aqueduct::BrokerError> {
/// use aqueduct::nats::NatsOptions;
/// use aqueduct::topology::{Access, Topology};
/// let topology = Topology::new().topic("orders").consumer("stock", ["orders"]);
/// let publishing = topology.permissions(&Access::Publish, &NatsOptions::new("nats://localhost"))?;
/// assert!(publishing.publish().contains(&"orders.16.*.>".to_owned()));
/// println!("{publishing}\n{}", publishing.nsc("shop"));
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    publish: Vec<String>,
    subscribe: Vec<String>,
}

impl Topology {
    /// The least that somebody must be permitted, on a server that is reached with these options: their domain or prefix of
    /// JetStream's API, prefix of the inbox and number of partitions count, and nothing is connected.
    ///
    /// Consumers are counted on the bucket of their leases to be there, which an applied topology has made.
    ///
    /// The trap: rights on the readers of a stream cannot be told apart by their names. Who may consume a topic can disturb
    /// other consumers of it.
    pub fn permissions(&self, access: &Access, options: &NatsOptions) -> Result<Permissions, BrokerError> {
        let (mut asks, mut publish) = (Vec::new(), Vec::new());
        match access {
            Access::Publish => {
                for topic in &self.topics {
                    let layout = topic.layout(options.partitions)?;
                    publish.push(layout.subjects());
                    // To check the topic, and to compare a repeat with what is there.
                    asks.extend(["INFO", "MSG.GET"].map(|what| format!("STREAM.{what}.{}", layout.stream())));
                }
            }
            Access::Consume(consumer) => {
                let Some(topics) = self.consumers.get(consumer) else {
                    let text = format!("the topology has no consumer {consumer:?}: declare it, with its topics");
                    return Err(BrokerError::Refused(text));
                };
                let leases = bucket(consumer);
                asks.extend(watch(&format!("KV_{leases}")));
                publish.extend([format!("$KV.{leases}.>"), format!("$JS.FC.KV_{leases}.>")]);
                for layout in self.layouts(topics, options.partitions)? {
                    asks.extend(read(layout.stream()));
                    publish.push(format!("$JS.ACK.{}.>", layout.stream()));
                }
            }
            Access::Verify => asks.extend(self.wanted(options.partitions)?.iter().map(|wanted| look(&wanted.id))),
            Access::Apply => {
                let wanted = self.wanted(options.partitions)?;
                asks.push("STREAM.LIST".to_owned());
                asks.extend(wanted.iter().flat_map(change));
            }
        }
        let api = options.api.subjects();
        publish.extend(asks.into_iter().map(|ask| format!("{api}.{ask}")));
        publish.sort();
        publish.dedup();
        Ok(Permissions { publish, subscribe: vec![format!("{}.>", options.inbox())] })
    }
}

/// Of the bucket with leases: it is opened and watched, a key that somebody else has just made is read, and what is left of
/// sessions that ended is cleared away.
fn watch(stream: &str) -> Vec<String> {
    let asks = [
        "STREAM.INFO.{}",
        "STREAM.PURGE.{}",
        "DIRECT.GET.{}.>",
        "CONSUMER.CREATE.{}",
        "CONSUMER.CREATE.{}.>",
        "CONSUMER.DELETE.{}.*",
    ];
    asks.map(|ask| ask.replace("{}", stream)).into()
}

/// Of a topic's stream: readers of the owners before are found and deleted, and a new one is made and read.
fn read(stream: &str) -> Vec<String> {
    let asks = [
        "STREAM.INFO.{}",
        "CONSUMER.NAMES.{}",
        "CONSUMER.INFO.{}.*",
        "CONSUMER.CREATE.{}.>",
        "CONSUMER.DELETE.{}.*",
        "CONSUMER.MSG.NEXT.{}.*",
    ];
    asks.map(|ask| ask.replace("{}", stream)).into()
}

fn look(id: &Id) -> String {
    match id {
        Id::Stream(stream) => format!("STREAM.INFO.{stream}"),
        Id::Durable(stream, durable) => format!("CONSUMER.INFO.{stream}.{durable}"),
    }
}

fn change(wanted: &Wanted) -> Vec<String> {
    let more = match &wanted.id {
        Id::Stream(stream) => vec![format!("STREAM.CREATE.{stream}"), format!("STREAM.UPDATE.{stream}")],
        Id::Durable(stream, durable) => vec![durable_request(stream, durable, &wanted.declared)],
    };
    more.into_iter().chain([look(&wanted.id)]).collect()
}

impl Permissions {
    /// Where to publish must be allowed.
    pub fn publish(&self) -> &[String] {
        &self.publish
    }

    /// Where to subscribe must be allowed.
    pub fn subscribe(&self) -> &[String] {
        &self.subscribe
    }

    /// The same as a line for `nsc`, for a user with this name.
    pub fn nsc(&self, user: &str) -> String {
        let list = |subjects: &[String]| format!("'{}'", subjects.join(","));
        let (publish, subscribe) = (list(&self.publish), list(&self.subscribe));
        format!("nsc edit user --name '{user}' --allow-pub {publish} --allow-sub {subscribe}")
    }
}

impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "permissions {{")?;
        for (what, subjects) in [("publish", &self.publish), ("subscribe", &self.subscribe)] {
            let lines: Vec<String> = subjects.iter().map(|subject| format!("      \"{subject}\"")).collect();
            writeln!(f, "  {what} {{\n    allow: [\n{}\n    ]\n  }}", lines.join(",\n"))?;
        }
        write!(f, "}}")
    }
}
