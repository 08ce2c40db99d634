//! Which rows are meant, and reading them in pages, so that a million of them take the memory of a few.

use std::collections::{BTreeSet, VecDeque};

use aqueduct::store::{Listed, Query};
use aqueduct::{Clock, Key, Partition, Place, Text, Timestamp};
use clap::Args;

use super::{Kind, event_of, id_of, place_of};
use crate::config::Span;
use crate::database::AnyStore;
use crate::failure::{Exit, Failure};
use crate::output::note;
use crate::suggest::did_you_mean;

/// How much a page of rows may take, and how many they are at most.
const PAGE_BYTES: usize = 8 << 20;
const PAGE_MAX: usize = 1_000;
const PAGE_FIRST: usize = 50;

/// Narrows down which events are meant. All that is given must fit.
#[derive(Args, Clone, Default, Debug)]
#[command(next_help_heading = "Which events")]
pub(crate) struct Filter {
    /// Of this group.
    #[arg(short, long)]
    pub(super) group: Option<String>,
    /// Of this topic.
    #[arg(long)]
    topic: Option<String>,
    /// Of this partition of the topic.
    #[arg(long, requires = "topic", value_name = "N")]
    partition: Option<u32>,
    /// Of this key.
    #[arg(long)]
    key: Option<String>,
    /// Of this type.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// From this source.
    #[arg(long)]
    source: Option<String>,
    /// With this id.
    #[arg(long)]
    id: Option<String>,
    /// Whose last error has this in it.
    #[arg(long, value_name = "TEXT")]
    error: Option<String>,
    /// Parked longer ago than this.
    #[arg(long, value_name = "TIME")]
    older: Option<Span>,
    /// Parked no longer ago than this.
    #[arg(long, value_name = "TIME")]
    newer: Option<Span>,
}

impl Filter {
    /// True if it restricts anything.
    pub(super) fn restricts(&self) -> bool {
        let Self { group, topic, key, kind, source, id, error, older, newer, .. } = self;
        [group, topic, key, kind, source, id, error].iter().any(|text| text.is_some())
            || older.is_some()
            || newer.is_some()
    }

    fn fits(&self, listed: &Listed, now: Timestamp) -> bool {
        let (row, age) = (&listed.row, now.since(listed.row.parked_at));
        let event = event_of(listed);
        let is = |wanted: &Option<String>, of: &dyn Fn(&aqueduct::Event) -> &Text| {
            wanted.as_ref().is_none_or(|wanted| event.is_some_and(|event| of(event) == wanted.as_str()))
        };
        let failed_with = |text: &String| row.history.back().is_some_and(|last| last.error.as_str().contains(text));
        is(&self.kind, &|event| &event.kind)
            && is(&self.source, &|event| &event.source)
            && is(&self.id, &|event| &event.id)
            && self.error.as_ref().is_none_or(failed_with)
            && self.older.is_none_or(|older| age >= older.0)
            && self.newer.is_none_or(|newer| age <= newer.0)
    }
}

/// The rows that fit, partition by partition, each in its order.
pub(super) struct Pages<'a> {
    store: &'a AnyStore,
    filter: &'a Filter,
    /// Ids or places, one of which must be the row's; none if any may.
    events: &'a [String],
    kind: Kind,
    now: Timestamp,
    shards: VecDeque<(Text, Partition)>,
    after: Option<Place>,
    limit: usize,
}

impl<'a> Pages<'a> {
    pub(super) async fn new(
        store: &'a AnyStore,
        filter: &'a Filter,
        events: &'a [String],
        kind: Kind,
    ) -> Result<Self, Failure> {
        let shards = store.shards().await?;
        let groups: BTreeSet<&str> = shards.iter().map(|shard| shard.consumer.as_str()).collect();
        if let Some(group) = filter.group.as_ref().filter(|group| !groups.contains(group.as_str())) {
            // Not a failure: it may just have nothing here.
            if let Some(question) = did_you_mean(group, groups) {
                note(format_args!("group `{group}` has nothing in the store; {question}"));
            }
        }
        let wanted = |consumer: &Text, partition: &Partition| {
            filter.group.as_ref().is_none_or(|group| *consumer == group.as_str())
                && filter.topic.as_ref().is_none_or(|topic| partition.topic == topic.as_str())
                && filter.partition.is_none_or(|index| partition.index == index)
        };
        let holds = |kind| move |parked: u64, dead: u64| if kind == Kind::Dead { dead > 0 } else { parked > 0 };
        let shards = shards
            .into_iter()
            .filter(|shard| holds(kind)(shard.parked, shard.dead) && wanted(&shard.consumer, &shard.partition))
            .map(|shard| (shard.consumer, shard.partition))
            .collect();
        let now = Clock::system().now();
        Ok(Self { store, filter, events, kind, now, shards, after: None, limit: PAGE_FIRST })
    }

    /// The next rows that fit; it may be empty. None at the end.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Listed>>, Failure> {
        let Some((consumer, partition)) = self.shards.front().cloned() else { return Ok(None) };
        let mut query = Query::default();
        (query.consumer, query.partition) = (Some(consumer), Some(partition));
        (query.dead, query.after, query.limit) = (Some(self.kind == Kind::Dead), self.after, self.limit);
        query.key = self.filter.key.as_ref().and_then(|key| Key::new(key.as_str()));
        let mut page = match self.store.store().browse(&query).await {
            Ok(page) => page,
            Err(aqueduct::StoreError::Refused(why)) => {
                note(format_args!("the rest of this partition is left out: {why}"));
                Vec::new()
            }
            Err(error) => return Err(error.into()),
        };
        self.after = page.last().map(|listed| listed.row.place);
        if page.is_empty() {
            self.shards.pop_front();
        } else {
            let bytes: usize = page.iter().map(|listed| listed.row.content.size()).sum();
            self.limit = (PAGE_BYTES / (bytes / page.len()).max(1)).clamp(1, PAGE_MAX);
        }
        page.retain(|listed| self.filter.fits(listed, self.now) && self.is_named(listed));
        Ok(Some(page))
    }

    fn is_named(&self, listed: &Listed) -> bool {
        let place = place_of(listed);
        self.events.is_empty() || self.events.iter().any(|event| *event == id_of(listed) || *event == place)
    }

    /// The only row that fits; an error says that there is none, or which ones there are.
    pub(super) async fn only(mut self) -> Result<Listed, Failure> {
        let mut found = Vec::new();
        while let Some(page) = self.next().await? {
            found.extend(page);
            if found.len() > 5 {
                break;
            }
        }
        let (kind, what) = (self.kind.command(), self.events.join(" "));
        match found.len() {
            0 => Err(nothing(self.kind, &what)),
            1 => found.pop().ok_or_else(|| nothing(self.kind, &what)),
            _ => {
                let place = |listed: &Listed| format!("{} --group {}", place_of(listed), listed.consumer);
                let places: Vec<String> = found.iter().map(place).collect();
                Err(Failure::new(Exit::Usage, format!("several are `{what}`: {}", places.join(", ")))
                    .fix(format!("name one by its place and its group; `aqueduct {kind} list` shows both")))
            }
        }
    }
}

/// There is no such row.
pub(super) fn nothing(kind: Kind, what: &str) -> Failure {
    let (name, other) = match kind {
        Kind::Parked => ("parked event", "dead-letters"),
        Kind::Dead => ("dead letter", "parked"),
    };
    let failure = Failure::new(Exit::Missing, format!("there is no {name} `{what}`"));
    failure.fix(format!("`aqueduct {} list` shows what there is, `aqueduct {other} list` the others", kind.command()))
}
