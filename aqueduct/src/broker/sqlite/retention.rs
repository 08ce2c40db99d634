//! What is deleted from the log, and when.

use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::consumer::{FloorEntry, check_floors, floor_damage};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::sql::batch::{Batch, Unreadable, batch_columns};
use crate::store::sql::identities::forget;
use crate::store::sql::log::{PartitionEntry, damage};
use crate::store::sql::sqlite::SqliteFile;
use crate::store::sql::writer::Task;
use crate::topic::Text;

/// How often it is looked for what can be deleted.
const EVERY: Duration = Duration::from_mins(1);

/// Batches deleted in one commit; others write between two.
const CHUNK: i64 = 50;

/// Batches counted at a time.
const COUNT_PAGE: i64 = 10_000;

/// How long the log keeps its messages. Everything that is set must allow a message to stay. Messages that were appended
/// together, up to 64 of a partition, go together, when all of them may.
///
/// Nothing is deleted that a consumer has not settled, however old it is: a consumer that is gone for good holds the log
/// until it is [forgotten](crate::sqlite::SqliteBroker::forget), or [`drop_unread`](Self::drop_unread) says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "it is given to `SqliteBroker::retention`"]
pub struct Retention {
    age: Option<Duration>,
    bytes: Option<u64>,
    drop_unread: bool,
}

impl Retention {
    /// Keeps everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes messages that are older. Defaults to no limit.
    pub fn age(mut self, age: Duration) -> Self {
        self.age = Some(age);
        self
    }

    /// Deletes the oldest messages of a partition, one partition after another, while keys, headers and bodies of the whole
    /// topic are larger together. Defaults to no limit.
    pub fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Deletes messages that consumers have not settled too: what they had not read is lost to them, and a line in the log
    /// says so. Defaults to keeping them.
    pub fn drop_unread(mut self) -> Self {
        self.drop_unread = true;
        self
    }
}

/// Deletes what is over the limits, once in a while, for ever.
pub(super) async fn keep(file: SqliteFile, retention: Retention) {
    loop {
        if let Err(error) = delete_all(&file, None, retention).await {
            tracing::warn!(?file, %error, "old messages were not deleted; it is tried again");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Deletes all that is over the limits now, of one topic or of all. Answers what of each partition.
pub(super) async fn delete_all(
    file: &SqliteFile,
    topic: Option<i64>,
    retention: Retention,
) -> Result<Vec<((i64, i64), Deleted)>, StoreError> {
    let mut partitions = file.write_with(Partitions { topic, file: file.clone() }).await?;
    let mut all = Vec::new();
    while let Some((topic, number)) = partitions.pop() {
        let (delete, mut deleted) = (Delete { topic, number, retention, file: file.clone() }, Deleted::default());
        loop {
            let (more, chunk) = file.write_with(delete.clone()).await?;
            deleted.add(chunk);
            if !more {
                break;
            }
        }
        all.push(((topic, number), deleted));
    }
    Ok(all)
}

/// What is deleted of a partition.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Deleted {
    /// Up to here; 0 is nothing.
    pub(super) last: i64,
    pub(super) messages: i64,
    pub(super) bytes: i64,
}

impl Deleted {
    fn add(&mut self, more: Self) {
        let Self { last, messages, bytes } = more;
        (self.last, self.messages, self.bytes) = (self.last.max(last), self.messages + messages, self.bytes + bytes);
    }
}

/// What [`delete_all`] would delete of a topic.
pub(super) async fn count_all(
    connection: &mut SqliteConnection,
    topic: i64,
    retention: Retention,
    now: Timestamp,
) -> Result<Vec<((i64, i64), Deleted)>, sqlx::Error> {
    check_floors(connection).await?;
    let mut partitions = partitions(connection, Some(topic)).await?;
    let (mut excess, mut all) = (retention.excess(connection, topic).await?, Vec::new());
    while let Some(place) = partitions.pop() {
        let entry = PartitionEntry::find(connection, place.0, place.1).await?;
        let end = retention.end(connection, &entry).await?;
        let (mut deleted, mut page) = (Deleted::default(), COUNT_PAGE);
        while page == COUNT_PAGE {
            // No content is read.
            let rows = sqlx::query(
                "select last, count, bytes, stored_at from aq_log
                 where topic = ? and number = ? and last > ? and last <= ? order by last limit ?",
            )
            .bind(place.0)
            .bind(place.1)
            .bind(deleted.last)
            .bind(end)
            .bind(COUNT_PAGE)
            .fetch_all(&mut *connection)
            .await?;
            page = 0;
            for row in &rows {
                let (last, messages, bytes) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
                if retention.keeps(excess, row.try_get(3)?, now) {
                    break;
                }
                deleted.add(Deleted { last, messages, bytes });
                (page, excess) = (page + 1, excess - bytes);
            }
        }
        all.push((place, deleted));
    }
    Ok(all)
}

impl Retention {
    /// True if a batch that was stored then stays while the topic has so many bytes too many.
    fn keeps(&self, excess: i64, stored_at: i64, now: Timestamp) -> bool {
        let age = now.since(Timestamp::from_unix_ms(stored_at));
        excess <= 0 && self.age.is_none_or(|most| age <= most)
    }

    /// How many bytes a topic has too many.
    async fn excess(&self, connection: &mut SqliteConnection, topic: i64) -> Result<i64, sqlx::Error> {
        let Some(most) = self.bytes else { return Ok(0) };
        let row = sqlx::query("select coalesce(sum(bytes), 0) from aq_partitions where topic = ?")
            .bind(topic)
            .fetch_one(connection)
            .await?;
        Ok(row.try_get::<i64, _>(0)?.saturating_sub(i64::try_from(most).unwrap_or(i64::MAX)))
    }

    /// Up to where a partition may be deleted: where every consumer has settled it, unless that does not matter.
    async fn end(&self, connection: &mut SqliteConnection, entry: &PartitionEntry) -> Result<i64, sqlx::Error> {
        if self.drop_unread {
            return Ok(entry.next - 1);
        }
        let rows =
            sqlx::query("select consumer, topic, number, floor, seal from aq_floors where topic = ? and number = ?")
                .bind(entry.topic)
                .bind(entry.number)
                .fetch_all(connection)
                .await?;
        let floors = rows.iter().map(|row| FloorEntry::read(row).ok_or_else(floor_damage));
        let floors: Vec<FloorEntry> = floors.collect::<Result<_, _>>()?;
        Ok(floors.iter().map(|entry| entry.floor).min().unwrap_or(i64::MAX).min(entry.next - 1))
    }
}

/// All partitions, or those of a topic.
async fn partitions(connection: &mut SqliteConnection, topic: Option<i64>) -> Result<Vec<(i64, i64)>, sqlx::Error> {
    let rows = sqlx::query("select topic, number from aq_partitions where ?1 is null or topic = ?1")
        .bind(topic)
        .fetch_all(connection)
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).collect()
}

struct Partitions {
    topic: Option<i64>,
    file: SqliteFile,
}

impl Task for Partitions {
    type Answer = Vec<(i64, i64)>;

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            check_floors(connection).await.map_err(|e| self.file.explain(e))?;
            partitions(connection, self.topic).await.map_err(|e| self.file.explain(e))
        })
    }
}

/// Deletes a chunk of one partition; true if there may be more, and what was deleted.
#[derive(Clone)]
struct Delete {
    topic: i64,
    number: i64,
    retention: Retention,
    file: SqliteFile,
}

impl Task for Delete {
    type Answer = (bool, Deleted);

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        let now = self.file.clock().now();
        Box::pin(async move { self.delete(connection, now).await.map_err(|e| self.file.explain(e)) })
    }
}

impl Delete {
    async fn delete(&self, connection: &mut SqliteConnection, now: Timestamp) -> Result<(bool, Deleted), sqlx::Error> {
        let entry = PartitionEntry::find(connection, self.topic, self.number).await?;
        let end = self.retention.end(connection, &entry).await?;
        let rows = sqlx::query(concat!(
            "select ",
            batch_columns!(),
            " from aq_log where topic = ? and number = ? and last <= ? order by last limit ?"
        ))
        .bind(self.topic)
        .bind(self.number)
        .bind(end)
        .bind(CHUNK)
        .fetch_all(&mut *connection)
        .await?;
        let mut excess = self.retention.excess(connection, self.topic).await?;
        let (mut deleted, mut identities, mut damaged) = (Deleted::default(), Vec::new(), Vec::new());
        for row in &rows {
            let batch = match Batch::read(row, self.topic, self.number)? {
                Ok(batch) => batch,
                // It goes with those behind it. Its identities count no more once it is gone.
                Err(Unreadable::Damaged) => {
                    damaged.push(row.try_get::<i64, _>(0)?);
                    continue;
                }
                Err(Unreadable::TooNew(version)) => {
                    return Err(damage(format!("a batch has version {version}, which is newer than this program")));
                }
            };
            if self.retention.keeps(excess, batch.stored_at, now) {
                break;
            }
            deleted.add(Deleted { last: batch.last, messages: batch.count, bytes: batch.bytes });
            excess -= batch.bytes;
            identities.extend(batch.identities().map_err(|e| sqlx::Error::Decode(e.into()))?);
        }
        let full = rows.len() == usize::try_from(CHUNK).unwrap_or(usize::MAX);
        // Nothing behind a chunk of nothing but damage would ever be deleted.
        let stuck = full && damaged.len() == rows.len() && (excess > 0 || self.retention.age.is_some());
        if deleted.last == 0 && stuck {
            deleted.last = damaged.last().copied().unwrap_or(0);
        }
        let Deleted { last, bytes, .. } = deleted;
        if last == 0 {
            return Ok((false, deleted));
        }
        sqlx::query("delete from aq_log where topic = ? and number = ? and last <= ?")
            .bind(self.topic)
            .bind(self.number)
            .bind(last)
            .execute(&mut *connection)
            .await?;
        // One that was published again since stands higher.
        let identities: Vec<&str> = identities.iter().map(Text::as_str).collect();
        forget(connection, (self.topic, self.number), &identities, 0..=last).await?;
        let bytes = if damaged.is_empty() { (entry.bytes - bytes).max(0) } else { self.bytes(connection).await? };
        PartitionEntry { first: last + 1, bytes, ..entry }.write(connection).await?;
        Ok((full, deleted))
    }

    /// The bytes of what the partition holds, counted.
    async fn bytes(&self, connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
        let row = sqlx::query("select coalesce(sum(bytes), 0) from aq_log where topic = ? and number = ?")
            .bind(self.topic)
            .bind(self.number)
            .fetch_one(connection)
            .await?;
        row.try_get(0)
    }
}
