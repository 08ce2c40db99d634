//! Reading a topic without being a consumer of it.

use std::time::Duration;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};

use super::consumer::first_floor;
use super::{SqliteBroker, broker_error};
use crate::broker::Start;
use crate::error::{BrokerError, StoreError};
use crate::message::Message;
use crate::store::sql::batch::Slice;
use crate::store::sql::log::PartitionEntry;
use crate::store::sql::sqlite::SqliteFile;
use crate::topic::{Partition, Position, Topic};

/// How often commits are looked for.
const LOOK: Duration = Duration::from_millis(50);

/// What is read of one partition at a time, at most.
const READ_BYTES: usize = 4 << 20;

/// Reads a topic; made by [`SqliteBroker::read`]. Nothing is settled and nothing remembered: it leaves no trace in the file,
/// and retention does not wait for it.
pub struct LogReader {
    file: SqliteFile,
    connection: SqliteConnection,
    topic: Topic,
    id: i64,
    /// For each partition, what was read last.
    cursors: Vec<u64>,
    data_version: i64,
}

/// A message that was read.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Logged {
    /// The partition it is in.
    pub partition: Partition,
    /// Where it stands there.
    pub position: Position,
    /// The message.
    pub message: Message,
}

impl SqliteBroker {
    /// Reads a topic that exists, from `start` on, for people and tools that must not change anything by looking.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> aqueduct::Result<()> {
    /// # let folder = tempfile::tempdir()?; let path = folder.path().join("aqueduct.db");
    /// use aqueduct::{Event, Publisher, broker::Start, sqlite::SqliteBroker};
    /// let broker = SqliteBroker::open(&path).await?;
    /// Publisher::new("shop", broker.clone()).publish(Event::new("order.placed", &7)?.topic("orders")).await?;
    /// let mut reader = broker.read("orders", Start::Beginning).await?;
    /// assert_eq!(reader.next(100).await?.len(), 1);
    /// assert!(reader.read(100).await?.is_empty());
    /// # Ok(()) }
    /// ```
    pub async fn read(&self, topic: impl Into<Topic>, start: Start) -> Result<LogReader, BrokerError> {
        let (topic, file) = (topic.into(), self.0.file.clone());
        let (mut connection, entry) = self.existing(&topic).await?;
        let failed = |e| broker_error(&file.explain(e));
        let (id, mut cursors) = (entry.id, Vec::new());
        for number in 0..i64::from(entry.partitions) {
            cursors.push(first_floor(&mut connection, (id, number), start).await.map_err(failed)?.cast_unsigned());
        }
        Ok(LogReader { file, connection, topic, id, cursors, data_version: -1 })
    }
}

impl LogReader {
    /// Goes back by so many messages in every partition.
    pub fn rewind(&mut self, count: u64) {
        self.cursors.iter_mut().for_each(|cursor| *cursor = cursor.saturating_sub(count));
        self.data_version = -1;
    }

    /// What is there to be read now, about `limit` messages of each partition at most; nothing at the end. The order is that
    /// of the times at which they were stored, and within a partition that of their positions. Dropping the future
    /// loses nothing.
    pub async fn read(&mut self, limit: usize) -> Result<Vec<Logged>, BrokerError> {
        let failed = |e| broker_error(&self.file.explain(e));
        let (mut found, mut snapshot) = (Vec::new(), self.connection.begin().await.map_err(failed)?);
        let mut cursors = self.cursors.clone();
        for (index, cursor) in (0..).zip(&mut cursors) {
            let entry = PartitionEntry::find(&mut snapshot, self.id, i64::from(index)).await.map_err(failed)?;
            let last = entry.next.cast_unsigned() - 1;
            if *cursor >= last {
                continue;
            }
            let partition = Partition { topic: self.topic.clone(), index };
            let slice = Slice { partition: &partition, topic: self.id, after: *cursor, limit, bytes: READ_BYTES };
            let read = slice.read(&mut snapshot, &entry).await.map_err(failed)?;
            let read = read.map_err(|e: StoreError| broker_error(&e))?;
            *cursor = read.last().map_or(last, |(position, _)| position.0);
            let logged = |(position, message)| Logged { partition: partition.clone(), position, message };
            found.push(read.into_iter().map(logged).collect::<Vec<_>>());
        }
        // Nothing is waited for between this and the answer.
        self.cursors = cursors;
        Ok(merged(found))
    }

    /// The same, but waits until there is something. Dropping the future loses nothing.
    pub async fn next(&mut self, limit: usize) -> Result<Vec<Logged>, BrokerError> {
        loop {
            let row = sqlx::query("pragma data_version").fetch_one(&mut self.connection).await;
            let version: i64 = row.and_then(|row| row.try_get(0)).map_err(|e| broker_error(&self.file.explain(e)))?;
            if version != self.data_version {
                let found = self.read(limit).await?;
                if !found.is_empty() {
                    return Ok(found);
                }
                self.data_version = version;
            }
            tokio::time::sleep(LOOK).await;
            self.file.check_place().map_err(|e| broker_error(&e))?;
        }
    }
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader").field("topic", &self.topic).field("cursors", &self.cursors).finish_non_exhaustive()
    }
}

/// Those of all partitions by their times; each partition's stay in their order, even where a clock went back.
fn merged(partitions: Vec<Vec<Logged>>) -> Vec<Logged> {
    let mut partitions: Vec<_> = partitions.into_iter().map(|found| found.into_iter().peekable()).collect();
    let mut all = Vec::new();
    loop {
        let heads = partitions.iter_mut().filter_map(|part| Some((part.peek()?.message.stored_at, part)));
        let Some((_, first)) = heads.min_by_key(|(stored_at, _)| *stored_at) else { return all };
        all.extend(first.next());
    }
}
