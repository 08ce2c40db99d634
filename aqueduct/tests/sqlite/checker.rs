//! Judges what processes did, by what they wrote down and by what is in the file.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use aqueduct::broker::Start;
use aqueduct::sqlite::{SqliteBroker, SqliteStore};
use aqueduct::store::{Content, Listed, Query, RowState, Store};
use aqueduct::{Message, Partition};

use crate::history::{Step, What};
use crate::worker::{FOLLOW_UPS, Fate, TOPIC, database, event_id, fate, follow_up_id, key_of, parts};

/// The log as it is at the end: the ids of each key in their order.
pub(crate) struct Log {
    keys: BTreeMap<String, Vec<String>>,
    unordered: Vec<String>,
}

impl Log {
    pub(crate) async fn read(folder: &Path) -> Self {
        let (mut keys, mut unordered) = (BTreeMap::<String, Vec<String>>::new(), Vec::new());
        for message in messages(folder, TOPIC).await {
            let id = message.dedup_id.as_ref().unwrap().as_str().strip_prefix("github#").unwrap().to_owned();
            match message.key {
                Some(key) => keys.entry(String::from_utf8(key.to_vec()).unwrap()).or_default().push(id),
                None => unordered.push(id),
            }
        }
        Self { keys, unordered }
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &String> {
        self.keys.values().flatten().chain(&self.unordered)
    }

    /// Holds exactly these events, each once, and those of one publisher in its order.
    pub(crate) fn check(&self, published: &BTreeSet<String>) {
        let ids: BTreeSet<&String> = self.ids().collect();
        assert_eq!(self.ids().count(), ids.len(), "an event is in the log twice");
        let lost: Vec<_> = published.iter().filter(|id| !ids.contains(id)).collect();
        let phantoms: Vec<_> = ids.iter().filter(|id| !published.contains(**id)).collect();
        assert!(lost.is_empty() && phantoms.is_empty(), "lost: {lost:?}, never published: {phantoms:?}");
        for (key, ids) in &self.keys {
            let mut reached = BTreeMap::new();
            for (by, number) in ids.iter().map(|id| parts(id)) {
                let before = reached.insert(by, number);
                assert!(before < Some(number), "{key}: {by} published {number} before {before:?}");
            }
        }
    }
}

/// What a consumer did, and what it was to do.
pub(crate) struct Consumed<'a> {
    pub(crate) consumer: &'a str,
    pub(crate) log: &'a Log,
    /// An operator has seen to the events that can be mended.
    pub(crate) mended: bool,
    /// Attempts in the order in which they were made.
    pub(crate) steps: &'a [Step],
    /// Event and process, in the order of the effects.
    pub(crate) effects: &'a [(String, usize)],
    /// With `Tx`: nothing happens twice.
    pub(crate) once: bool,
}

impl Consumed<'_> {
    fn is_dead(&self, id: &str) -> bool {
        match fate(parts(id).1) {
            Fate::Poison | Fate::Refused => true,
            Fate::Mendable => !self.mended,
            _ => false,
        }
    }

    /// True if its turn is its own: what an operator replays runs late.
    fn is_exempt(id: &str) -> bool {
        fate(parts(id).1) == Fate::Mendable
    }

    /// Everything; answers how many effects were repeats.
    pub(crate) async fn check(&self, folder: &Path) -> usize {
        self.check_runs();
        let repeats = self.check_effects();
        self.check_dead(folder).await;
        self.check_follow_ups(folder).await;
        repeats
    }

    /// No two attempts on one key at the same time.
    fn check_runs(&self) {
        let keys = self.log.keys.iter();
        let of: BTreeMap<&str, &str> =
            keys.flat_map(|(key, ids)| ids.iter().map(|id| (id.as_str(), key.as_str()))).collect();
        let mut running: BTreeMap<&str, &Step> = BTreeMap::new();
        for step in self.steps {
            let Some(key) = of.get(step.event.as_str()) else { continue };
            if matches!(step.what, What::Start { .. }) {
                let before = running.insert(key, step);
                let overlaps = before.filter(|before| before.life == step.life);
                assert!(overlaps.is_none(), "{key}: {step:?} while there was {overlaps:?}");
            } else {
                let began = running.remove(key);
                assert_eq!(began.map(|b| &b.event), Some(&step.event), "{key}: {step:?} after {began:?}");
            }
        }
    }

    /// Nothing is lost, nothing was never published, and each key goes in its order.
    fn check_effects(&self) -> usize {
        let mut done: BTreeMap<&str, usize> = BTreeMap::new();
        for (id, _) in self.effects {
            *done.entry(id).or_default() += 1;
        }
        let expected: BTreeSet<&str> = self.log.ids().map(String::as_str).filter(|id| !self.is_dead(id)).collect();
        let found: BTreeSet<&str> = done.keys().copied().collect();
        let (lost, phantom) = (expected.difference(&found), found.difference(&expected));
        let (lost, phantom): (Vec<_>, Vec<_>) = (lost.collect(), phantom.collect());
        assert!(lost.is_empty() && phantom.is_empty(), "{}: no effect: {lost:?}; wrong: {phantom:?}", self.consumer);
        if self.once {
            let twice: Vec<_> = done.iter().filter(|(_, times)| **times > 1).collect();
            assert!(twice.is_empty(), "{}: more than one effect: {twice:?}", self.consumer);
        }
        for key in self.log.keys.keys() {
            self.check_order(key);
        }
        self.effects.len() - found.len()
    }

    /// Effects rise one by one. After a crash they may restart at an earlier one, and go on from there to the end.
    fn check_order(&self, key: &str) {
        let ordered = |id: &&String| !self.is_dead(id) && !Self::is_exempt(id);
        let ids: Vec<&String> = self.log.keys[key].iter().filter(ordered).collect();
        let places: BTreeMap<&str, usize> = ids.iter().enumerate().map(|(at, id)| (id.as_str(), at)).collect();
        let (mut next, mut last_life) = (0, 0);
        for (id, life) in self.effects {
            let Some(&at) = places.get(id.as_str()) else { continue };
            let again = at < next && *life > last_life;
            assert!(
                at == next || again,
                "{}, key {key}, process {life}: {id} is number {at}, and {next} was to come",
                self.consumer
            );
            (next, last_life) = (at + 1, *life);
        }
        assert_eq!(next, ids.len(), "{}: {key} does not end on its latest event", self.consumer);
    }

    /// Exactly what cannot be handled is a dead letter.
    async fn check_dead(&self, folder: &Path) {
        let rows = rows(folder, self.consumer).await;
        let mut found: Vec<String> = rows.iter().map(event_id).collect();
        found.sort();
        let mut expected: Vec<String> = self.log.ids().filter(|id| self.is_dead(id)).cloned().collect();
        expected.sort();
        assert_eq!(found, expected, "{}: dead letters", self.consumer);
        assert!(rows.iter().all(|listed| matches!(listed.row.state, RowState::Dead(_))));
        assert!(rows.iter().all(|listed| !listed.row.history.is_empty()));
    }

    /// What handlers publish is there once for each effect.
    async fn check_follow_ups(&self, folder: &Path) {
        let prefix = format!("worker#{}", follow_up_id(self.consumer, ""));
        let ids = messages(folder, FOLLOW_UPS).await.into_iter().filter_map(|message| message.dedup_id);
        let mut found: Vec<String> = ids.filter_map(|id| Some(id.as_str().strip_prefix(&prefix)?.to_owned())).collect();
        found.sort();
        let mut expected: Vec<String> = self.log.ids().filter(|id| !self.is_dead(id)).cloned().collect();
        expected.sort();
        assert_eq!(found, expected, "{}: follow-ups", self.consumer);
    }
}

/// All messages of a topic, those of each partition in their order, each in its place.
async fn messages(folder: &Path, topic: &'static str) -> Vec<Message> {
    let sql =
        "select coalesce(sum(next - 1), 0) from aq_partitions p join aq_topics t on t.id = p.topic where t.name = ?";
    let mut connection = crate::store::other(&database(folder)).await;
    let count: i64 = sqlx::query_scalar(sql).bind(topic).fetch_one(&mut connection).await.unwrap();
    if count == 0 {
        return Vec::new();
    }
    let broker = SqliteBroker::open(database(folder)).await.unwrap();
    let mut reader = broker.read(topic, Start::Beginning).await.unwrap();
    let mut partitions = BTreeMap::<Partition, Vec<Message>>::new();
    loop {
        let found = reader.read(1_000).await.unwrap();
        if found.is_empty() {
            break;
        }
        for logged in found {
            let messages = partitions.entry(logged.partition).or_default();
            messages.push(logged.message);
            assert_eq!(logged.position.0, messages.len() as u64);
        }
    }
    let messages: Vec<Message> = partitions.into_values().flatten().collect();
    assert_eq!(messages.len(), usize::try_from(count).unwrap());
    messages
}

/// All rows that a consumer has in the store.
pub(crate) async fn rows(folder: &Path, consumer: &str) -> Vec<Listed> {
    let store = SqliteStore::open(database(folder)).await.unwrap();
    let mut query = Query::default();
    (query.consumer, query.limit) = (Some(consumer.into()), usize::MAX);
    store.browse(&query).await.unwrap()
}

/// What was parked when a process was killed is there, with its attempts and why they failed, and the next process goes on
/// with it from the store and never from memory.
pub(crate) fn check_parked(parked: &[Listed], next: &[Step]) {
    for listed in parked.iter().filter(|listed| listed.row.state == RowState::Parked) {
        let (id, row) = (event_id(listed), &listed.row);
        let attempts = u64::from(row.attempts);
        if !row.replay {
            assert!(row.history.len() as u64 >= attempts, "{id} was tried {attempts} times: {:?}", row.history);
        }
        if let Content::Event(event) = &row.content {
            assert!(event.size() > 500 && key_of(event).is_none_or(|key| !key.is_empty()), "{id} is not whole");
        }
        let starts = next.iter().filter(|step| step.event == id);
        let mut starts = starts.filter_map(|step| match step.what {
            What::Start { attempt, stored } => Some((attempt, stored)),
            _ => None,
        });
        if let Some((attempt, stored)) = starts.next() {
            assert_eq!((attempt, stored), (attempts + 1, true), "{id} had {attempts} attempts when it was parked");
        }
        assert!(starts.all(|(_, stored)| stored), "{id} was parked, and then run from memory");
    }
}
