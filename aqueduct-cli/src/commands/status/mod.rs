//! `aqueduct status`: topics, groups, who runs them, and what waits.

mod nats;

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::Duration;

use aqueduct::sqlite::{ConsumerStatus, Owner, PartitionStatus, ShardStatus, SqliteBroker, SqliteStatus};
use aqueduct::{Clock, Text, Timestamp};
use clap::Args;
use indicatif::{HumanBytes, HumanCount};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::rows::{Existing, check_store, open_existing, owner};
use crate::broker::open_store;
use crate::cli::Global;
use crate::config::{Flags, load};
use crate::database::AnyStore;
use crate::failure::Failure;
use crate::location::Location;
use crate::nats::connect;
use crate::output::{Output, write};
use crate::table::{Table, age, span};

const EXAMPLES: &str = include_str!("../help/status.txt");

/// How long a group is looked at that seems to stand still.
const SECOND: Duration = Duration::from_secs(1);

/// Shows topics, groups, who runs them, how far they are, and what is parked or dead.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Status {
    /// Again each second: in place on a terminal, elsewhere one after another.
    #[arg(short, long)]
    watch: bool,
}

/// How things stand.
struct Seen {
    now: Timestamp,
    log: SqliteStatus,
    shards: Vec<ShardStatus>,
}

/// How far each group was, and since when.
#[derive(Default)]
struct Progress(BTreeMap<Text, (u64, Instant)>);

impl Status {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let output = global.output.unwrap_or_default();
        let settings = load(global, Flags::none())?.settings;
        if let Location::Nats(servers) = &settings.broker {
            check_store(&settings)?;
            let (broker, store) = (connect(servers, &settings).await?, open_store(&settings, None).await?);
            return nats::run(&broker, store.as_ref(), self.watch, output).await;
        }
        let opened = open_existing(global).await?;
        let Existing { broker: Some(broker), store } = &opened else { return Ok(()) };
        let mut progress = Progress::default();
        let mut seen = see(broker, store).await?;
        progress.take_in(&seen);
        let seems_stuck = |group: &ConsumerStatus| group.lag() > 0 && matches!(group.owner, Owner::Process { .. });
        if !self.watch && seen.log.consumers.iter().any(seems_stuck) {
            tokio::time::sleep(SECOND).await;
            seen = see(broker, store).await?;
            progress.take_in(&seen);
        }
        let clear = if self.watch && std::io::stdout().is_terminal() { "\x1b[H\x1b[J" } else { "" };
        loop {
            let text = match output {
                Output::Json => format!("{}\n", seen.json(&progress)),
                Output::Text => format!("{clear}{}", seen.text(&progress)),
            };
            if !write(&text)? || !self.watch {
                return Ok(());
            }
            tokio::time::sleep(SECOND).await;
            seen = see(broker, store).await?;
            progress.take_in(&seen);
        }
    }
}

async fn see(broker: &SqliteBroker, store: &AnyStore) -> Result<Seen, Failure> {
    let (log, shards) = (broker.status().await?, store.shards().await?);
    Ok(Seen { now: Clock::system().now(), log, shards })
}

impl Progress {
    fn take_in(&mut self, seen: &Seen) {
        for group in &seen.log.consumers {
            let settled = group.floors.iter().map(|floor| floor.floor.0).sum();
            let known = self.0.entry(group.consumer.clone()).or_insert((settled, Instant::now()));
            if known.0 != settled || group.lag() == 0 || !matches!(group.owner, Owner::Process { .. }) {
                *known = (settled, Instant::now());
            }
        }
    }

    /// For how long a group has settled nothing, if there was something to settle and somebody to do it.
    fn standing(&self, group: &Text) -> Option<Duration> {
        let since = self.0.get(group).map(|(_, since)| since.elapsed());
        since.filter(|since| *since >= SECOND)
    }
}

/// What the store holds of a group.
#[derive(Default)]
struct Stored {
    parked: u64,
    dead: u64,
    blocking: u64,
    waiting: u64,
    oldest: Option<Timestamp>,
}

impl Stored {
    fn of(group: &Text, shards: &[ShardStatus]) -> Self {
        let mut all = Self::default();
        for shard in shards.iter().filter(|shard| shard.consumer == *group) {
            all.parked += shard.parked;
            all.dead += shard.dead;
            all.blocking += shard.blocking;
            all.waiting += shard.waiting;
            all.oldest = [all.oldest, shard.oldest].into_iter().flatten().min();
        }
        all
    }

    /// The dead letters, and how many of them block.
    fn dead(&self) -> String {
        let blocking = if self.blocking > 0 { format!(", {} block", self.blocking) } else { String::new() };
        format!("{}{blocking}", HumanCount(self.dead))
    }
}

/// True if there is anything in it.
fn holds(shard: &ShardStatus) -> bool {
    shard.parked + shard.dead + shard.waiting > 0
}

impl Seen {
    fn stored(&self, group: &Text) -> Stored {
        Stored::of(group, &self.shards)
    }

    /// Groups that the log does not know may have rows in the store all the same.
    fn groups(&self) -> Vec<Text> {
        let known = self.log.consumers.iter().filter(|group| !group.floors.is_empty());
        let mut groups: Vec<Text> = known.map(|group| group.consumer.clone()).collect();
        groups.extend(self.shards.iter().filter(|shard| holds(shard)).map(|shard| shard.consumer.clone()));
        groups.sort();
        groups.dedup();
        groups
    }

    fn group(&self, name: &Text) -> Option<&ConsumerStatus> {
        self.log.consumers.iter().find(|group| group.consumer == *name)
    }

    /// The partitions of each topic.
    fn topics(&self) -> Vec<(&str, Vec<&PartitionStatus>)> {
        let mut topics: Vec<(&str, Vec<&PartitionStatus>)> = Vec::new();
        for partition in &self.log.partitions {
            let name = partition.partition.topic.as_str();
            match topics.last_mut().filter(|(last, _)| *last == name) {
                Some((_, partitions)) => partitions.push(partition),
                None => topics.push((name, vec![partition])),
            }
        }
        topics
    }

    fn text(&self, progress: &Progress) -> String {
        let mut topics = Table::new(&["TOPIC", "EVENTS", "SIZE", "OLDEST", "NEWEST"]);
        for (name, partitions) in self.topics() {
            let (events, bytes) = sums(&partitions);
            let oldest = partitions.iter().filter_map(|p| p.oldest).min();
            let newest = partitions.iter().filter_map(|p| p.newest).max();
            let (events, bytes) = (HumanCount(events).to_string(), HumanBytes(bytes).to_string());
            topics.row(&[name.to_owned(), events, bytes, age(oldest, self.now), age(newest, self.now)]);
        }
        let mut groups = Table::new(&["GROUP", "LAG", "PARKED", "DEAD", "OLDEST", "STATE"]).last_beneath();
        for name in self.groups() {
            let (stored, group) = (self.stored(&name), self.group(&name));
            groups.row(&[
                name.to_string(),
                HumanCount(group.map_or(0, ConsumerStatus::lag)).to_string(),
                HumanCount(stored.parked).to_string(),
                stored.dead(),
                age(stored.oldest, self.now),
                state(group, progress),
            ]);
        }
        format!("{}\n{}", topics.text(true), groups.text(true))
    }

    fn json(&self, progress: &Progress) -> Value {
        let topic = |(name, partitions): (&str, Vec<&PartitionStatus>)| {
            let (events, bytes) = sums(&partitions);
            let time = |time: Option<Timestamp>| time.map(|time| time.to_string());
            let partition = |p: &&PartitionStatus| {
                json!({ "partition": p.partition.index, "first": p.first.0, "next": p.next.0, "bytes": p.bytes,
                    "oldest": time(p.oldest), "newest": time(p.newest) })
            };
            let partitions: Vec<Value> = partitions.iter().map(partition).collect();
            json!({ "topic": name, "events": events, "bytes": bytes, "partitions": partitions })
        };
        let group = |name: Text| {
            let (stored, group) = (self.stored(&name), self.group(&name));
            let floor = |f: &aqueduct::sqlite::FloorStatus| json!({ "topic": f.partition.topic.as_str(), "partition": f.partition.index, "floor": f.floor.0, "lag": f.lag });
            let floors: Vec<Value> = group.iter().flat_map(|group| &group.floors).map(floor).collect();
            json!({
                "group": name.as_str(), "owner": owner_json(group.map(|group| &group.owner)), "lag": group.map_or(0, ConsumerStatus::lag),
                "parked": stored.parked, "dead": stored.dead, "blocking": stored.blocking,
                "oldest": stored.oldest.map(|time| time.to_string()), "commands_waiting": stored.waiting,
                "stands_still_s": progress.standing(&name).map(|since| since.as_secs()), "partitions": floors,
            })
        };
        let topics: Vec<Value> = self.topics().into_iter().map(topic).collect();
        let groups: Vec<Value> = self.groups().into_iter().map(group).collect();
        json!({ "at": self.now.to_string(), "topics": topics, "groups": groups })
    }
}

fn sums(partitions: &[&PartitionStatus]) -> (u64, u64) {
    (partitions.iter().map(|p| p.messages()).sum(), partitions.iter().map(|p| p.bytes).sum())
}

/// What a group does, in words.
fn state(group: Option<&ConsumerStatus>, progress: &Progress) -> String {
    let Some(group) = group else { return "not of this broker".to_owned() };
    let by = owner(&group.owner);
    match (&group.owner, progress.standing(&group.consumer)) {
        (Owner::Nobody, _) if group.floors.is_empty() => "forgotten".to_owned(),
        (Owner::Nobody, _) => "nobody runs it".to_owned(),
        (Owner::Process { .. }, Some(since)) => format!("NOTHING SETTLED for {}: {by}", span(since)),
        (Owner::Process { .. }, None) => by,
        _ => format!("waits for {by}"),
    }
}

fn owner_json(owner: Option<&Owner>) -> Value {
    match owner {
        Some(Owner::Process { pid, command }) => json!({ "kind": "process", "pid": pid, "command": command }),
        Some(Owner::Orphans { of, pids }) => json!({ "kind": "orphans", "pid": of, "orphans": pids }),
        Some(Owner::Nobody) => json!({ "kind": "nobody" }),
        _ => json!({ "kind": "unseen" }),
    }
}
