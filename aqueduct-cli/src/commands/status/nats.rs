//! How things stand on NATS: what the server says of topics and groups, and what the store holds.

use std::collections::BTreeMap;
use std::io::IsTerminal;

use aqueduct::nats::{NatsBroker, NatsStatus, NatsTopicStatus};
use aqueduct::sqlite::ShardStatus;
use aqueduct::{Clock, Text, Timestamp};
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};

use super::{SECOND, Stored, holds};
use crate::database::AnyStore;
use crate::failure::Failure;
use crate::output::{Output, write};
use crate::table::{Table, age};

/// How things stand.
struct Seen {
    now: Timestamp,
    server: NatsStatus,
    shards: Vec<ShardStatus>,
}

/// Shows it once, or again each second.
pub(super) async fn run(
    broker: &NatsBroker,
    store: Option<&AnyStore>,
    watch: bool,
    output: Output,
) -> Result<(), Failure> {
    let clear = if watch && std::io::stdout().is_terminal() { "\x1b[H\x1b[J" } else { "" };
    loop {
        let server = broker.status().await?;
        let shards = match store {
            Some(store) => store.shards().await?,
            None => Vec::new(),
        };
        let seen = Seen { now: Clock::system().now(), server, shards };
        let text = match output {
            Output::Json => format!("{}\n", seen.json()),
            Output::Text => format!("{clear}{}", seen.text()),
        };
        if !write(&text)? || !watch {
            return Ok(());
        }
        tokio::time::sleep(SECOND).await;
    }
}

impl Seen {
    /// What each group has not settled. Groups that the server does not know may have rows in the store all the same.
    fn groups(&self) -> BTreeMap<Text, u64> {
        let mut groups = BTreeMap::new();
        for consumer in &self.server.consumers {
            *groups.entry(consumer.consumer.clone()).or_default() += consumer.lag;
        }
        for shard in self.shards.iter().filter(|shard| holds(shard)) {
            groups.entry(shard.consumer.clone()).or_default();
        }
        groups
    }

    fn text(&self) -> String {
        let mut topics = Table::new(&["TOPIC", "EVENTS", "SIZE", "OLDEST", "NEWEST"]);
        for topic in &self.server.topics {
            let (events, bytes) = (HumanCount(topic.events).to_string(), HumanBytes(topic.bytes).to_string());
            let (oldest, newest) = (age(topic.oldest, self.now), age(topic.newest, self.now));
            topics.row(&[topic.topic.to_string(), events, bytes, oldest, newest]);
        }
        let mut groups = Table::new(&["GROUP", "LAG", "PARKED", "DEAD", "OLDEST"]);
        for (name, lag) in self.groups() {
            let stored = Stored::of(&name, &self.shards);
            let (lag, parked) = (HumanCount(lag).to_string(), HumanCount(stored.parked).to_string());
            groups.row(&[name.to_string(), lag, parked, stored.dead(), age(stored.oldest, self.now)]);
        }
        format!("{}\n{}", topics.text(true), groups.text(true))
    }

    fn json(&self) -> Value {
        let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
        let topic = |topic: &NatsTopicStatus| {
            json!({ "topic": topic.topic.as_str(), "events": topic.events, "bytes": topic.bytes, "partitions": topic.partitions,
                "oldest": time(topic.oldest), "newest": time(topic.newest) })
        };
        let group = |(name, lag): (Text, u64)| {
            let stored = Stored::of(&name, &self.shards);
            json!({ "group": name.as_str(), "lag": lag, "parked": stored.parked, "dead": stored.dead, "blocking": stored.blocking,
                "oldest": time(stored.oldest), "commands_waiting": stored.waiting })
        };
        let topics: Vec<Value> = self.server.topics.iter().map(topic).collect();
        let groups: Vec<Value> = self.groups().into_iter().map(group).collect();
        json!({ "at": self.now.to_string(), "topics": topics, "groups": groups })
    }
}
