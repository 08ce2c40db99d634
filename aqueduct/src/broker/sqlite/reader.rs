//! Reading ahead, in a task of its own: what a member is asked for next has been read and decoded by then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};
use tokio::sync::watch;
use tokio::time::Instant;

use super::broker_error;
use super::consumer::Enter;
use super::member::Inner;
use crate::broker::Start;
use crate::error::{BrokerError, StoreError};
use crate::store::sql::batch::Slice;
use crate::store::sql::log::{PartitionEntry, topic_names};
use crate::store::sql::sqlite::{SqliteFile, assembled};
use crate::topic::Topic;

/// The pages that the reader keeps, in KiB: enough for what it reads ahead, whose messages of several partitions share pages.
const CACHE: &str = "pragma cache_size = -16384";

/// How often other processes' commits are looked for while something happens, and at the longest.
const LOOK: Duration = Duration::from_millis(25);
const LOOK_MAX: Duration = Duration::from_secs(1);
/// Quiet for so long, it is looked for less often.
const QUIET: Duration = Duration::from_secs(10);

/// The connection that reads the log, and what it knows of changes.
pub(super) struct Reader {
    connection: SqliteConnection,
    changes: watch::Receiver<u64>,
    /// SQLite's own count of other connections' commits.
    data_version: i64,
    /// True if the heads of the partitions may have moved since they were looked at.
    stale: bool,
    /// When a message came last.
    busy_at: Instant,
    looked_at: Instant,
    /// The statement that reads the heads of all partitions, for these topics.
    heads: String,
    /// The highest number of a topic that was looked at.
    topics_seen: i64,
}

/// The statement that reads the heads of these topics. Numbers are all that goes into it.
fn heads_of(topics: impl Iterator<Item = i64>) -> String {
    let topics: Vec<String> = topics.map(|id| id.to_string()).collect();
    format!("select {} from aq_partitions p where p.topic in ({})", PartitionEntry::COLUMNS, topics.join(", "))
}

impl Reader {
    /// A reader, and all topics that there are when it begins.
    pub(super) async fn open(file: &SqliteFile) -> Result<(Self, Vec<(i64, Topic, u32)>), StoreError> {
        let failed = |e| file.explain(e);
        let changes = file.changes();
        let mut connection = file.connect().await?;
        sqlx::query(CACHE).execute(&mut connection).await.map_err(failed)?;
        let names = topic_names(&mut connection).await.map_err(failed)?;
        let topics_seen = names.last().map_or(0, |(id, ..)| *id);
        let (now, heads) = (Instant::now(), String::new());
        let reader = Self {
            connection,
            changes,
            data_version: 0,
            stale: true,
            busy_at: now,
            looked_at: now,
            heads,
            topics_seen,
        };
        Ok((reader, names))
    }

    /// Reads these topics from now on.
    pub(super) fn reads(&mut self, topics: impl Iterator<Item = i64>) {
        self.heads = heads_of(topics);
    }

    /// Reads ahead for as long as the member is there.
    pub(super) async fn run(mut self, member: Arc<Inner>) {
        loop {
            let failed = self.step(&member).await.err();
            let wait = failed.is_some();
            member.state.lock().failed = failed;
            if wait {
                member.arrived.notify_one();
                // Whoever is told knows how long to wait before it asks again.
                member.wanted.notified().await;
            }
        }
    }

    async fn step(&mut self, member: &Inner) -> Result<(), BrokerError> {
        let wants = member.state.lock().wants();
        if wants || self.stale {
            self.stale = true;
            self.fill(member).await?;
            self.stale = false;
            member.arrived.notify_one();
            return Ok(());
        }
        tokio::select! {
            biased;
            () = member.wanted.notified() => {
                self.stale = true;
                Ok(())
            }
            waited = self.wait(&member.file) => waited,
        }
    }

    /// Reads ahead, of every partition that has more: in one snapshot, as their messages share pages.
    async fn fill(&mut self, member: &Inner) -> Result<(), BrokerError> {
        let failed = |e| broker_error(&member.file.explain(e));
        if !member.patterns.is_empty() {
            self.find_topics(member).await?;
        }
        let heads = assembled(self.heads.clone());
        let mut snapshot = self.connection.begin().await.map_err(failed)?;
        let rows = sqlx::query(heads).fetch_all(&mut *snapshot).await.map_err(failed)?;
        let entries = rows.iter().filter_map(PartitionEntry::read).map(|entry| ((entry.topic, entry.number), entry));
        let entries: BTreeMap<_, _> = entries.collect();
        let wants = member.state.lock().look(&entries);
        let mut trouble = None;
        for want in wants {
            let Some(entry) = entries.get(&(want.topic, i64::from(want.partition.index))) else { continue };
            let slice = Slice {
                partition: &want.partition,
                topic: want.topic,
                after: want.after,
                limit: want.limit,
                bytes: want.bytes,
            };
            let read = slice.read(&mut snapshot, entry).await;
            match read.map_err(|e| member.file.explain(e)).and_then(std::convert::identity) {
                Ok(messages) => {
                    member.state.lock().keep(&want, messages);
                    member.arrived.notify_one();
                }
                // The others have their turn.
                Err(StoreError::Unavailable(source)) => trouble = Some(source),
                Err(error) => member.state.lock().stop(&want.partition, Some(want.epoch), error.to_string()),
            }
            self.busy_at = Instant::now();
        }
        snapshot.commit().await.map_err(failed)?;
        trouble.map_or(Ok(()), |source| Err(BrokerError::Unavailable(source)))
    }

    /// Takes in topics that were created since and match a pattern.
    async fn find_topics(&mut self, member: &Inner) -> Result<(), BrokerError> {
        let right = member.state.lock().right.clone();
        if !right.holds() {
            return Ok(());
        }
        let failed = |e| broker_error(&member.file.explain(e));
        let row = sqlx::query("select coalesce(max(id), 0) from aq_topics").fetch_one(&mut self.connection).await;
        let highest: i64 = row.and_then(|row| row.try_get(0)).map_err(failed)?;
        if highest == self.topics_seen {
            return Ok(());
        }
        let names = topic_names(&mut self.connection).await.map_err(failed)?;
        let known: Vec<i64> = member.state.lock().parts.values().map(|part| part.topic).collect();
        let is_new = |(id, topic, _): &(i64, Topic, u32)| !known.contains(id) && member.reads(topic);
        let topics: Vec<_> = names.into_iter().filter(is_new).collect();
        if !topics.is_empty() {
            let epoch = member.state.lock().parts.values().map(|part| part.epoch).max();
            // A topic that is new has nothing old.
            let start = if member.start == Start::New { Start::Beginning } else { member.start };
            let (consumer, file) = (member.consumer.clone(), member.file.clone());
            let enter = Enter { consumer, topics: topics.clone(), start, epoch, right, file };
            let (epoch, floors) = member.file.write_with(enter).await.map_err(|e| broker_error(&e))?;
            member.state.lock().assign(epoch, floors);
        }
        let all = known.into_iter().chain(topics.iter().map(|(id, ..)| *id));
        self.reads(all.collect::<std::collections::BTreeSet<_>>().into_iter());
        self.topics_seen = highest;
        Ok(())
    }

    /// Waits for a commit of this process, or until it is time to look for one of another.
    async fn wait(&mut self, file: &SqliteFile) -> Result<(), BrokerError> {
        let quiet = self.busy_at.elapsed();
        let every = if quiet < QUIET { LOOK } else { (quiet / 50).min(LOOK_MAX) };
        tokio::select! {
            biased;
            // An error means that the file is gone, and with it this member.
            _ = self.changes.changed() => self.stale = true,
            () = tokio::time::sleep_until(self.looked_at + every) => {
                self.looked_at = Instant::now();
                file.check_place().map_err(|e| broker_error(&e))?;
                let row = sqlx::query("pragma data_version").fetch_one(&mut self.connection).await;
                let version: i64 = row.and_then(|row| row.try_get(0)).map_err(|e| broker_error(&file.explain(e)))?;
                self.stale = std::mem::replace(&mut self.data_version, version) != version;
            }
        }
        Ok(())
    }
}
