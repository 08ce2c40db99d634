//! A consumer in the file: its epoch, and up to where it has settled each partition.

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use xxhash_rust::xxh3::xxh3_64;

use super::Topic;
use crate::broker::Start;
use crate::clock::{Clock, Lease, Timestamp};
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::sql::log::{PartitionEntry, damage};
use crate::store::sql::sqlite::SqliteFile;
use crate::store::sql::writer::Task;
use crate::topic::{Epoch, Partition, Position, Text};

/// By what right an instance owns a consumer.
#[derive(Clone, Debug)]
pub(super) struct Right {
    /// For ever with the consumer's lock.
    pub(super) lease: Lease,
    pub(super) clock: Clock,
    /// The consumer's epochs are not below this one, the lease's own.
    pub(super) least: Epoch,
}

impl Right {
    pub(super) fn by_lock(clock: &Clock) -> Self {
        Self { lease: Lease::forever(), clock: clock.clone(), least: Epoch(0) }
    }

    pub(super) fn holds(&self) -> bool {
        self.lease.holds(&self.clock)
    }

    /// Raises the epoch of a consumer above what it was and above `above`. The right is looked at inside the transaction,
    /// in which no other owner can write: who was stopped before, and resumes, raises nothing above its successor.
    async fn raise(
        &self,
        connection: &mut SqliteConnection,
        consumer: &Text,
        above: Epoch,
    ) -> Result<Epoch, sqlx::Error> {
        if !self.holds() {
            return Err(sqlx::Error::Io(std::io::Error::other("the lease on the consumer has lapsed")));
        }
        raise(connection, consumer, above.max(Epoch(self.least.0.saturating_sub(1)))).await
    }
}

/// A partition as its consumer has it.
#[derive(Clone, Debug)]
pub(super) struct Floor {
    pub(super) partition: Partition,
    pub(super) topic: i64,
    /// Everything up to here is settled; positions begin at 1. None if that is not known, since it is damaged.
    pub(super) settled: Option<u64>,
}

/// A floor as it stands in the file.
#[derive(Debug)]
pub(super) struct FloorEntry {
    pub(super) number: u32,
    pub(super) floor: i64,
}

impl FloorEntry {
    /// A sum, so that one statement moves it along with the floor; small enough to be moved without an overflow.
    fn seal(consumer: &str, topic: i64, number: i64, floor: i64) -> i64 {
        let name = (xxh3_64(consumer.as_bytes()) >> 16).cast_signed();
        let terms = [(floor, 31), (topic, 5), (number, 3)];
        terms.into_iter().fold(name, |sum, (term, weight)| sum.wrapping_add(term.wrapping_mul(weight)))
    }

    /// A row of consumer, topic, number, floor and seal; none if they are not as they were written.
    pub(super) fn read(row: &SqliteRow) -> Option<Self> {
        let consumer: &str = row.try_get(0).ok()?;
        let (topic, number, floor): (i64, i64, i64) =
            (row.try_get(1).ok()?, row.try_get(2).ok()?, row.try_get(3).ok()?);
        let sealed = Self::seal(consumer, topic, number, floor) == row.try_get::<i64, _>(4).ok()?;
        let number = u32::try_from(number).ok()?;
        sealed.then_some(Self { number, floor })
    }
}

pub(super) fn floor_damage() -> sqlx::Error {
    damage("up to where a consumer has settled has changed by itself, or is gone".to_owned())
}

/// Refuses to go on if a consumer has no floor where it must have one, or one that is damaged.
pub(super) async fn check_floors(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let rows =
        sqlx::query("select consumer, topic, number, floor, seal from aq_floors").fetch_all(&mut *connection).await?;
    if rows.iter().any(|row| FloorEntry::read(row).is_none()) {
        return Err(floor_damage());
    }
    let short = sqlx::query(
        "select 1 from (select topic, count(*) as count from aq_floors group by consumer, topic) f
         left join aq_topics t on t.id = f.topic where t.partitions is not f.count limit 1",
    );
    if short.fetch_optional(connection).await?.is_some() { Err(floor_damage()) } else { Ok(()) }
}

/// A consumer starts, or finds more topics: every partition gets a floor, unless it has one.
pub(super) struct Enter {
    pub(super) consumer: Text,
    /// Each with its number and how many partitions it has.
    pub(super) topics: Vec<(i64, Topic, u32)>,
    pub(super) start: Start,
    /// The epoch that the consumer runs under; none to raise it.
    pub(super) epoch: Option<Epoch>,
    pub(super) right: Right,
    pub(super) file: SqliteFile,
}

impl Task for Enter {
    type Answer = (Epoch, Vec<Floor>);

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move { self.enter(connection).await.map_err(|e| self.file.explain(e)) })
    }
}

impl Enter {
    async fn enter(&self, connection: &mut SqliteConnection) -> Result<(Epoch, Vec<Floor>), sqlx::Error> {
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => self.right.raise(connection, &self.consumer, Epoch(0)).await?,
        };
        let mut floors = Vec::new();
        for (id, topic, partitions) in &self.topics {
            self.set_floors(connection, (*id, *partitions), epoch).await?;
            let rows = sqlx::query(
                "select consumer, topic, number, floor, seal from aq_floors where consumer = ? and topic = ?",
            )
            .bind(self.consumer.as_str().to_owned())
            .bind(*id)
            .fetch_all(&mut *connection)
            .await?;
            let mut found = BTreeMap::new();
            for entry in rows.iter().filter_map(FloorEntry::read) {
                found.insert(entry.number, entry.floor.cast_unsigned());
            }
            for index in 0..*partitions {
                let partition = Partition { topic: topic.clone(), index };
                floors.push(Floor { partition, topic: *id, settled: found.get(&index).copied() });
            }
        }
        Ok((epoch, floors))
    }

    /// Gives each partition of a topic a floor, unless it has one, and the epoch.
    async fn set_floors(
        &self,
        connection: &mut SqliteConnection,
        (topic, partitions): (i64, u32),
        epoch: Epoch,
    ) -> Result<(), sqlx::Error> {
        let known = sqlx::query("select 1 from aq_floors where consumer = ? and topic = ? limit 1")
            .bind(self.consumer.as_str().to_owned())
            .bind(topic)
            .fetch_optional(&mut *connection)
            .await?;
        // A consumer that is new to the topic gets all of them; some that are missing later are damage.
        let new = if known.is_none() { partitions } else { 0 };
        for number in 0..i64::from(new) {
            let floor = first_floor(connection, (topic, number), self.start).await?;
            sqlx::query(
                "insert into aq_floors (consumer, topic, number, epoch, floor, seal) values (?, ?, ?, 0, ?, ?)",
            )
            .bind(self.consumer.as_str().to_owned())
            .bind(topic)
            .bind(number)
            .bind(floor)
            .bind(FloorEntry::seal(self.consumer.as_str(), topic, number, floor))
            .execute(&mut *connection)
            .await?;
        }
        sqlx::query("update aq_floors set epoch = ? where consumer = ? and topic = ?")
            .bind(epoch.0.cast_signed())
            .bind(self.consumer.as_str().to_owned())
            .bind(topic)
            .execute(connection)
            .await
            .map(drop)
    }
}

/// Behind which position one begins that is new to a partition.
pub(super) async fn first_floor(
    connection: &mut SqliteConnection,
    (topic, number): (i64, i64),
    start: Start,
) -> Result<i64, sqlx::Error> {
    if start == Start::Beginning {
        return Ok(0);
    }
    let next = PartitionEntry::find(connection, topic, number).await?.next;
    Ok(match start {
        Start::Beginning => 0,
        Start::New => next - 1,
        Start::Position(position) => position.0.cast_signed().saturating_sub(1).clamp(0, next - 1),
        Start::Time(time) => first_since(connection, (topic, number), next, time).await? - 1,
    })
}

/// Raises the epoch of a consumer above what it was and above `above`.
pub(super) async fn raise(
    connection: &mut SqliteConnection,
    consumer: &Text,
    above: Epoch,
) -> Result<Epoch, sqlx::Error> {
    let row = sqlx::query(
        "insert into aq_consumers (name, epoch) values (?1, ?2 + 1)
         on conflict (name) do update set epoch = max(epoch, ?2) + 1 returning epoch",
    )
    .bind(consumer.as_str().to_owned())
    .bind(above.0.cast_signed())
    .fetch_one(connection)
    .await?;
    Ok(Epoch(row.try_get::<i64, _>(0)?.cast_unsigned()))
}

/// The first position of a partition that was stored at or after a time: found by halving, as times rise with positions.
async fn first_since(
    connection: &mut SqliteConnection,
    (topic, number): (i64, i64),
    next: i64,
    time: Timestamp,
) -> Result<i64, sqlx::Error> {
    let (mut low, mut high) = (1, next);
    while low < high {
        let middle = low + (high - low) / 2;
        // All messages of a batch were stored at once.
        let row = sqlx::query(
            "select last, count, stored_at from aq_log where topic = ? and number = ? and last >= ? order by last limit 1",
        )
        .bind(topic)
        .bind(number)
        .bind(middle)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { return Ok(next) };
        let (last, count): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
        if row.try_get::<i64, _>(2)? >= time.unix_ms() {
            high = middle.min(last - count + 1);
        } else {
            low = last + 1;
        }
    }
    Ok(low)
}

/// A partition begins anew under an epoch above another. Answers the epoch and the floor.
pub(super) struct Restart {
    pub(super) consumer: Text,
    pub(super) topic: i64,
    pub(super) number: u32,
    pub(super) above: Epoch,
    pub(super) right: Right,
    pub(super) file: SqliteFile,
}

impl Task for Restart {
    type Answer = (Epoch, Option<u64>);

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move { self.restart(connection).await.map_err(|e| self.file.explain(e)) })
    }
}

impl Restart {
    async fn restart(&self, connection: &mut SqliteConnection) -> Result<(Epoch, Option<u64>), sqlx::Error> {
        let epoch = self.right.raise(connection, &self.consumer, self.above).await?;
        let row = sqlx::query(
            "update aq_floors set epoch = ? where consumer = ? and topic = ? and number = ?
             returning consumer, topic, number, floor, seal",
        )
        .bind(epoch.0.cast_signed())
        .bind(self.consumer.as_str().to_owned())
        .bind(self.topic)
        .bind(i64::from(self.number))
        .fetch_optional(connection)
        .await?;
        Ok((epoch, row.as_ref().and_then(FloorEntry::read).map(|entry| entry.floor.cast_unsigned())))
    }
}

/// Deletes what is known of a consumer, but for its epoch, which never falls.
pub(super) struct Forget {
    pub(super) consumer: Text,
    pub(super) file: SqliteFile,
}

impl Task for Forget {
    type Answer = ();

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let delete =
                sqlx::query("delete from aq_floors where consumer = ?").bind(self.consumer.as_str().to_owned());
            delete.execute(connection).await.map(drop).map_err(|e| self.file.explain(e))
        })
    }
}

/// Moves a floor back.
pub(super) struct Rewind {
    pub(super) consumer: Text,
    pub(super) partition: Partition,
    pub(super) to: Position,
    pub(super) file: SqliteFile,
}

impl Task for Rewind {
    type Answer = ();

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let Self { consumer, partition, to, file } = self;
            let moved = sqlx::query(
                "update aq_floors set floor = ?1, seal = seal + 31 * (?1 - floor) where consumer = ?2 and number = ?3
                 and floor >= ?1 and topic = (select id from aq_topics where name = ?4)",
            )
            .bind(i64::try_from(to.0).unwrap_or(i64::MAX))
            .bind(consumer.as_str().to_owned())
            .bind(i64::from(partition.index))
            .bind(partition.topic.as_str().to_owned());
            let moved = moved.execute(connection).await.map_err(|e| file.explain(e))?;
            if moved.rows_affected() == 0 {
                let text =
                    format!("{partition} cannot be read again from {} by {consumer}: it is not settled that far", to.0);
                return Err(StoreError::Refused(text));
            }
            Ok(())
        })
    }
}
