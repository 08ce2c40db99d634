//! The topics of the embedded broker's log and their partitions: what each holds, and where its next message goes.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::codec::checksum;
use super::sqlite::{MEND, assembled};
use crate::error::StoreError;
use crate::topic::{Partition, Text, Topic};

/// A topic as it is in the file. Its partitions never change.
#[derive(Clone, Debug)]
pub(crate) struct TopicEntry {
    pub(crate) id: i64,
    pub(crate) partitions: u32,
}

/// The topic's entry; none if it does not exist.
pub(crate) async fn find_topic(
    connection: &mut SqliteConnection,
    name: &Topic,
) -> Result<Option<TopicEntry>, sqlx::Error> {
    let row = sqlx::query("select id, partitions, checksum from aq_topics where name = ?")
        .bind(name.as_str().to_owned())
        .fetch_optional(connection)
        .await?;
    row.map(|row| topic_entry(name.as_str(), row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)).transpose()
}

fn topic_entry(name: &str, id: i64, partitions: i64, found: i64) -> Result<TopicEntry, sqlx::Error> {
    match u32::try_from(partitions) {
        Ok(partitions) if topic_checksum(name, id, partitions) == found => Ok(TopicEntry { id, partitions }),
        _ => Err(damage(format!("the entry of topic {name:?} has changed by itself"))),
    }
}

fn topic_checksum(name: &str, id: i64, partitions: u32) -> i64 {
    checksum(&[id, i64::from(partitions)], &[name.as_bytes()])
}

/// Creates a topic that does not exist.
pub(crate) async fn create_topic(
    connection: &mut SqliteConnection,
    name: &Topic,
    partitions: u32,
) -> Result<TopicEntry, sqlx::Error> {
    // Not found by the index does not mean that it is not there, in a file that is damaged.
    if topic_names(connection).await?.iter().any(|(_, known, _)| known == name) {
        return Err(damage(format!("the index does not find topic {:?}", name.as_str())));
    }
    let partitions = partitions.max(1);
    let row = sqlx::query("insert into aq_topics (name, partitions, checksum) values (?, ?, 0) returning id")
        .bind(name.as_str().to_owned())
        .bind(i64::from(partitions))
        .fetch_one(&mut *connection)
        .await?;
    let id: i64 = row.try_get(0)?;
    sqlx::query("update aq_topics set checksum = ? where id = ?")
        .bind(topic_checksum(name.as_str(), id, partitions))
        .bind(id)
        .execute(&mut *connection)
        .await?;
    for number in 0..i64::from(partitions) {
        let entry = PartitionEntry { topic: id, number, first: 1, next: 1, bytes: 0 };
        sqlx::query("insert into aq_partitions (topic, number, first, next, bytes, seal) values (?, ?, 1, 1, 0, ?)")
            .bind(id)
            .bind(number)
            .bind(entry.seal())
            .execute(&mut *connection)
            .await?;
    }
    Ok(TopicEntry { id, partitions })
}

/// Something in the file is not as it was written. The text goes between the file's name and what to do.
pub(crate) fn damage(what: String) -> sqlx::Error {
    sqlx::Error::Decode(what.into())
}

/// What is in a partition: all positions from `first` up to, not including, `next`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionEntry {
    pub(crate) topic: i64,
    pub(crate) number: i64,
    pub(crate) first: i64,
    pub(crate) next: i64,
    pub(crate) bytes: i64,
}

impl PartitionEntry {
    /// What [`read`](Self::read) reads, from a table named `p`.
    pub(crate) const COLUMNS: &'static str = "p.topic, p.number, p.first, p.next, p.bytes, p.seal";

    /// A sum instead of a hash, so that the statement of [`grow`] moves it along.
    pub(crate) fn seal(&self) -> i64 {
        let terms = [(self.next, 31), (self.bytes, 7), (self.first, 17), (self.topic, 5), (self.number, 3)];
        terms.into_iter().fold(1, |sum, (term, weight)| sum.wrapping_add(term.wrapping_mul(weight)))
    }

    /// The first columns of a row; none if they are not as they were written.
    pub(crate) fn read(row: &SqliteRow) -> Option<Self> {
        let mut columns = [0_i64; 6];
        for (n, column) in columns.iter_mut().enumerate() {
            *column = row.try_get(n).ok()?;
        }
        let [topic, number, first, next, bytes, seal] = columns;
        let entry = Self { topic, number, first, next, bytes };
        (entry.seal() == seal && 0 < first && first <= next).then_some(entry)
    }

    /// The entry of a partition.
    pub(crate) async fn find(connection: &mut SqliteConnection, topic: i64, number: i64) -> Result<Self, sqlx::Error> {
        let columns = Self::COLUMNS;
        let sql = format!("select {columns} from aq_partitions p where p.topic = ? and p.number = ?");
        let row = sqlx::query(assembled(sql)).bind(topic).bind(number).fetch_optional(connection).await?;
        row.as_ref().and_then(Self::read).ok_or_else(|| partition_damage(topic, number))
    }

    /// Writes what has changed.
    pub(crate) async fn write(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        sqlx::query("update aq_partitions set first = ?, next = ?, bytes = ?, seal = ? where topic = ? and number = ?")
            .bind(self.first)
            .bind(self.next)
            .bind(self.bytes)
            .bind(self.seal())
            .bind(self.topic)
            .bind(self.number)
            .execute(connection)
            .await
            .map(drop)
    }
}

pub(super) fn partition_damage(topic: i64, number: i64) -> sqlx::Error {
    damage(format!(
        "the entry of partition {number} of topic {topic} in `aq_partitions` has changed by itself, or is gone"
    ))
}

/// What the file says of a partition itself is damaged.
pub(crate) fn entry_damaged(partition: &Partition) -> StoreError {
    StoreError::Refused(format!("the entry of partition {partition} in `aq_partitions` is damaged: {MEND}"))
}

/// All topics, by their numbers.
pub(crate) async fn topic_names(connection: &mut SqliteConnection) -> Result<Vec<(i64, Topic, u32)>, sqlx::Error> {
    let rows =
        sqlx::query("select id, name, partitions, checksum from aq_topics order by id").fetch_all(connection).await?;
    let read = |row: &SqliteRow| {
        let name: String = row.try_get(1)?;
        let entry = topic_entry(&name, row.try_get(0)?, row.try_get(2)?, row.try_get(3)?)?;
        Ok((entry.id, Topic::from(Text::from(name)), entry.partitions))
    };
    rows.iter().map(read).collect()
}
