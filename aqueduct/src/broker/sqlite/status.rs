//! What there is to see: what the log holds, how far its consumers are, and who runs them.

use std::collections::BTreeMap;

use sqlx::sqlite::SqliteConnection;
use sqlx::{Connection, Row};

use super::consumer::FloorEntry;
use super::lock::{self, Owner};
use super::{SqliteBroker, broker_error};
use crate::clock::Timestamp;
use crate::error::{BrokerError, StoreError};
use crate::store::sql::log::{PartitionEntry, entry_damaged, topic_names};
use crate::store::sql::sqlite::{SqliteFile, assembled};
use crate::topic::{Partition, Position, Text, Topic};

/// What [`SqliteBroker::status`] sees, at one moment.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SqliteStatus {
    /// Every partition, those of a topic beside each other.
    pub partitions: Vec<PartitionStatus>,
    /// Every consumer that was ever started, in the order of their names.
    pub consumers: Vec<ConsumerStatus>,
}

/// What a partition holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PartitionStatus {
    /// The partition.
    pub partition: Partition,
    /// Where its oldest message stands, if it has one.
    pub first: Position,
    /// Where its next message will stand.
    pub next: Position,
    /// Keys, headers and bodies together.
    pub bytes: u64,
    /// When its oldest message was stored.
    pub oldest: Option<Timestamp>,
    /// When its newest message was stored.
    pub newest: Option<Timestamp>,
}

impl PartitionStatus {
    /// How many messages it holds.
    pub fn messages(&self) -> u64 {
        self.next.0 - self.first.0
    }
}

/// How far a consumer is.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ConsumerStatus {
    /// Its name.
    pub consumer: Text,
    /// Who runs it.
    pub owner: Owner,
    /// Its partitions; none once it was [forgotten](SqliteBroker::forget).
    pub floors: Vec<FloorStatus>,
}

impl ConsumerStatus {
    /// How many messages are there to be settled, in all its partitions.
    pub fn lag(&self) -> u64 {
        self.floors.iter().map(|floor| floor.lag).sum()
    }
}

/// How far a consumer is in a partition.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FloorStatus {
    /// The partition.
    pub partition: Partition,
    /// Everything up to here is settled.
    pub floor: Position,
    /// How many messages behind it are there to be settled.
    pub lag: u64,
}

impl SqliteBroker {
    /// What the log holds, how far its consumers are, and who runs them. Takes no lock, and keeps nobody from working.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> aqueduct::Result<()> {
    /// # let folder = tempfile::tempdir()?; let path = folder.path().join("aqueduct.db");
    /// use aqueduct::{Event, Publisher, sqlite::SqliteBroker};
    /// let broker = SqliteBroker::open(&path).await?;
    /// Publisher::new("shop", broker.clone()).publish(Event::new("order.placed", &7)?.topic("orders")).await?;
    /// let status = broker.status().await?;
    /// assert_eq!(status.partitions.iter().map(|partition| partition.messages()).sum::<u64>(), 1);
    /// assert_eq!(status.consumers.iter().map(|consumer| consumer.lag()).sum::<u64>(), 0);
    /// # Ok(()) }
    /// ```
    pub async fn status(&self) -> Result<SqliteStatus, BrokerError> {
        let file = &self.0.file;
        let mut connection = file.connect().await.map_err(|e| broker_error(&e))?;
        let failed = |e| broker_error(&file.explain(e));
        let mut snapshot = connection.begin().await.map_err(failed)?;
        let topics = topic_names(&mut snapshot).await.map_err(failed)?;
        let topics: BTreeMap<i64, Topic> = topics.into_iter().map(|(id, topic, _)| (id, topic)).collect();
        let partitions = partitions(&mut snapshot, file, &topics).await.map_err(|e| broker_error(&e))?;
        let consumers = consumers(&mut snapshot, file, &topics, &partitions).await.map_err(|e| broker_error(&e))?;
        Ok(SqliteStatus { partitions, consumers })
    }
}

async fn partitions(
    snapshot: &mut SqliteConnection,
    file: &SqliteFile,
    topics: &BTreeMap<i64, Topic>,
) -> Result<Vec<PartitionStatus>, StoreError> {
    let time = |order| {
        format!(
            "(select stored_at from aq_log l where l.topic = p.topic and l.number = p.number order by l.last {order} limit 1)"
        )
    };
    let (columns, oldest, newest) = (PartitionEntry::COLUMNS, time("asc"), time("desc"));
    let sql = format!("select {columns}, {oldest}, {newest} from aq_partitions p order by p.topic, p.number");
    let rows = sqlx::query(assembled(sql)).fetch_all(snapshot).await.map_err(|e| file.explain(e))?;
    let read = |row: &sqlx::sqlite::SqliteRow| {
        let (topic, number): (i64, i64) =
            row.try_get(0).and_then(|topic| Ok((topic, row.try_get(1)?))).map_err(|e| file.explain(e))?;
        let topic = topics.get(&topic).cloned().unwrap_or_else(|| Topic::from(format!("(topic {topic})")));
        let partition = Partition { topic, index: u32::try_from(number).unwrap_or(u32::MAX) };
        let entry = PartitionEntry::read(row).ok_or_else(|| entry_damaged(&partition))?;
        let at = |column| {
            let time: Option<i64> = row.try_get(column).map_err(|e| file.explain(e))?;
            Ok::<_, StoreError>(time.map(Timestamp::from_unix_ms))
        };
        Ok(PartitionStatus {
            partition,
            first: Position(entry.first.cast_unsigned()),
            next: Position(entry.next.cast_unsigned()),
            bytes: u64::try_from(entry.bytes).unwrap_or(0),
            oldest: at(6)?,
            newest: at(7)?,
        })
    };
    rows.iter().map(read).collect()
}

async fn consumers(
    snapshot: &mut SqliteConnection,
    file: &SqliteFile,
    topics: &BTreeMap<i64, Topic>,
    partitions: &[PartitionStatus],
) -> Result<Vec<ConsumerStatus>, StoreError> {
    let failed = |e| file.explain(e);
    let mut floors: BTreeMap<Text, Vec<FloorStatus>> = BTreeMap::new();
    let names = sqlx::query("select name from aq_consumers order by name").fetch_all(&mut *snapshot).await;
    for row in names.map_err(failed)? {
        floors.entry(Text::from(row.try_get::<String, _>(0).map_err(failed)?)).or_default();
    }
    let rows =
        sqlx::query("select consumer, topic, number, floor, seal from aq_floors order by consumer, topic, number");
    let held: BTreeMap<&Partition, &PartitionStatus> = partitions.iter().map(|p| (&p.partition, p)).collect();
    for row in rows.fetch_all(snapshot).await.map_err(failed)? {
        let entry = FloorEntry::read(&row).ok_or_else(|| file.explain(super::consumer::floor_damage()))?;
        let (consumer, topic): (String, i64) = (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
        let Some(topic) = topics.get(&topic).cloned() else { continue };
        let (partition, floor) = (Partition { topic, index: entry.number }, entry.floor.cast_unsigned());
        let lag = held.get(&partition).map_or(0, |p| (p.next.0 - 1).saturating_sub(floor.max(p.first.0 - 1)));
        floors.entry(consumer.into()).or_default().push(FloorStatus { partition, floor: Position(floor), lag });
    }
    let status = |(consumer, floors): (Text, Vec<FloorStatus>)| {
        let owner = lock::owner(file.path(), consumer.as_str()).map_err(|e| file.explain(e.into()))?;
        Ok(ConsumerStatus { consumer, owner, floors })
    };
    floors.into_iter().map(status).collect()
}
