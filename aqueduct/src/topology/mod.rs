//! What streams and durables of NATS JetStream are to be like, declared in code, and brought about as a plan (feature `nats`).
//!
//! A [`Topology`] says what there is to be. A [`Plan`] says what has to be done for it, and is applied or only looked at;
//! nothing that is not declared is changed, and nothing is ever deleted. With no right to change anything it can still be
//! verified, and [`Permissions`] says which rights who needs.

mod apply;
mod compare;
mod durable;
mod look;
mod permissions;
mod plan;
mod probe;
mod refuse;
mod stream;
mod subjects;
mod topic;
mod wanted;
mod warn;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use crate::broker::nats::layout::Layout;
use crate::broker::nats::names::bucket;
use crate::error::BrokerError;
use crate::topic::{Text, Topic};
use wanted::{Id, Purpose, Wanted};

pub use compare::Change;
pub use durable::NatsDurable;
pub use permissions::{Access, Permissions};
pub use plan::{Action, Finding, Plan, Step, Weight};
pub use stream::{NatsSource, NatsStream, Retention};
pub use topic::NatsTopic;

/// What is to be on a NATS server: topics, consumers, streams and durables.
///
/// What is declared is compared field by field, and so is what others have declared of the same stream left alone. A stream or
/// a field that is not declared is not touched.
///
/// The trap: taking something out of the declaration does not delete it.
///
/// ```no_run
/// # async fn deploy() -> Result<(), aqueduct::BrokerError> {
/// use aqueduct::nats::{NatsBroker, NatsTopic};
/// use aqueduct::topology::{NatsStream, Topology};
/// let topology = Topology::new()
///     .topic(NatsTopic::new("orders").replicas(3).plain_subjects("shop.orders.*"))
///     .consumer("stock", ["orders"])
///     .dead_letters(NatsStream::new("orders-dead").subjects(["orders-dead.>"]).replicas(3));
/// let broker = NatsBroker::connect("nats://localhost:4222").await?;
/// let plan = topology.plan(&broker).await?;
/// println!("{plan}");
/// plan.apply(&broker).await?;
/// // In the services, which may change nothing:
/// topology.verify(&broker).await?.agreed()?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
#[must_use = "nothing is looked at or changed until a plan of it is awaited"]
pub struct Topology {
    topics: Vec<NatsTopic>,
    consumers: BTreeMap<Text, Vec<Topic>>,
    streams: Vec<NatsStream>,
    dead_letters: Vec<NatsStream>,
    durables: Vec<NatsDurable>,
}

impl Topology {
    /// With nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a topic, for `Publisher` and `Consumer`.
    pub fn topic(mut self, topic: impl Into<NatsTopic>) -> Self {
        self.topics.push(topic.into());
        self
    }

    /// Adds a consumer, as `Consumer::new` names it, with its topics: the key-value bucket in which its instances share the
    /// work, so that they need no right to make one.
    pub fn consumer<T: Into<Topic>>(mut self, name: impl Into<Text>, topics: impl IntoIterator<Item = T>) -> Self {
        self.consumers.entry(name.into()).or_default().extend(topics.into_iter().map(Into::into));
        self
    }

    /// Adds a stream that is no topic.
    pub fn stream(mut self, stream: NatsStream) -> Self {
        self.streams.push(stream);
        self
    }

    /// Adds a stream for what was given up. It refuses what is too much for it, instead of dropping what nobody has looked at
    /// yet, and it is warned about everything by which one could be lost.
    pub fn dead_letters(mut self, stream: NatsStream) -> Self {
        self.dead_letters.push(stream);
        self
    }

    /// Adds a durable of another program.
    pub fn durable(mut self, durable: NatsDurable) -> Self {
        self.durables.push(durable);
        self
    }

    /// Everything, in the order in which it can be made; topics that do not say how many partitions they have have so many.
    fn wanted(&self, partitions: u32) -> Result<Vec<Wanted>, BrokerError> {
        let mut wanted = Vec::new();
        for topic in &self.topics {
            wanted.push(topic.wanted(&topic.layout(partitions)?)?);
        }
        let replicas = |topics: &[Topic]| {
            let of_them = |w: &&Wanted| w.purpose.topic().is_some_and(|topic| topics.contains(topic));
            wanted.iter().filter(of_them).filter_map(Wanted::replicas).max()
        };
        let buckets: Vec<_> = self.consumers.iter().map(|(name, topics)| leases(name, replicas(topics))).collect();
        wanted.extend(buckets);
        for (streams, purpose) in [(&self.streams, Purpose::Other), (&self.dead_letters, Purpose::DeadLetters)] {
            for stream in streams {
                wanted.push(stream.wanted(purpose.clone())?);
            }
        }
        // What takes from other streams comes after them.
        wanted.sort_by_key(|wanted| wanted.declared.contains_key("mirror") || wanted.declared.contains_key("sources"));
        for durable in &self.durables {
            wanted.push(durable.wanted()?);
        }
        let twice = wanted.iter().enumerate().find(|(at, one)| wanted[..*at].iter().any(|other| other.id == one.id));
        twice.map_or(Ok(()), |(_, twice)| {
            Err(BrokerError::Refused(format!("{} is declared twice: keep one of the declarations", twice.id)))
        })?;
        Ok(wanted)
    }

    /// The layouts of a consumer's topics.
    fn layouts(&self, topics: &[Topic], partitions: u32) -> Result<Vec<Arc<Layout>>, BrokerError> {
        let layout = |topic: &Topic| {
            let declared = self.topics.iter().find(|declared| declared.topic == *topic);
            declared
                .map_or_else(|| Layout::new(topic, partitions).map(Arc::new), |declared| declared.layout(partitions))
        };
        topics.iter().map(layout).collect()
    }
}

/// The bucket with the leases of a consumer, as its instances make it, with as many copies as are declared for its topics.
fn leases(consumer: &Text, replicas: Option<u64>) -> Wanted {
    let name = bucket(consumer);
    let declared = json!({
        "subjects": [format!("$KV.{name}.>")],
        "max_msgs_per_subject": 1,
        "discard": "new",
        "storage": "file",
        "allow_rollup_hdrs": true,
        "deny_delete": true,
        "allow_direct": true,
    });
    let mut declared = declared.as_object().cloned().unwrap_or_default();
    declared.extend(replicas.map(|replicas| ("num_replicas".to_owned(), replicas.into())));
    let usual = [("description", "leases of a consumer, by Aqueduct".into())];
    Wanted::new(Id::Stream(format!("KV_{name}")), Purpose::Other, declared, usual)
}
