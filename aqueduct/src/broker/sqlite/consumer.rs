//! A consumer in the file: its epoch, and up to where it has settled each partition.

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::Topic;
use crate::broker::Start;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::sql::sqlite::SqliteFile;
use crate::store::sql::writer::Task;
use crate::topic::{Epoch, Partition, Text};

/// A partition as its consumer has it.
#[derive(Clone, Debug)]
pub(super) struct Floor {
    pub(super) partition: Partition,
    pub(super) topic: i64,
    /// Everything up to here is settled; positions begin at 1.
    pub(super) settled: u64,
}

/// A consumer starts, or finds more topics: every partition gets a floor, unless it has one.
pub(super) struct Enter {
    pub(super) consumer: Text,
    pub(super) topics: Vec<(i64, Topic)>,
    pub(super) start: Start,
    /// The epoch that the consumer runs under; none to raise it.
    pub(super) epoch: Option<Epoch>,
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
            None => raise(connection, &self.consumer, Epoch(0)).await?,
        };
        let mut floors = Vec::new();
        for (id, topic) in &self.topics {
            self.set_floors(connection, *id, epoch).await?;
            let rows = sqlx::query("select number, floor from aq_floors where consumer = ? and topic = ?")
                .bind(self.consumer.as_str().to_owned())
                .bind(*id)
                .fetch_all(&mut *connection)
                .await?;
            for row in rows {
                let partition = Partition { topic: topic.clone(), index: row.try_get(0)? };
                floors.push(Floor { partition, topic: *id, settled: row.try_get::<i64, _>(1)?.cast_unsigned() });
            }
        }
        Ok((epoch, floors))
    }

    /// Gives each partition of a topic a floor, unless it has one, and the epoch.
    async fn set_floors(&self, connection: &mut SqliteConnection, topic: i64, epoch: Epoch) -> Result<(), sqlx::Error> {
        let partitions = sqlx::query(
            "select p.number, p.next from aq_partitions p where p.topic = ? and not exists
             (select 1 from aq_floors f where f.consumer = ? and f.topic = p.topic and f.number = p.number)",
        )
        .bind(topic)
        .bind(self.consumer.as_str().to_owned())
        .fetch_all(&mut *connection)
        .await?;
        for row in partitions {
            let (number, next): (i64, i64) = (row.try_get(0)?, row.try_get(1)?);
            let floor = match self.start {
                Start::Beginning => 0,
                Start::New => next - 1,
                Start::Position(position) => position.0.cast_signed().saturating_sub(1).clamp(0, next - 1),
                Start::Time(time) => first_since(connection, (topic, number), next, time).await? - 1,
            };
            sqlx::query("insert into aq_floors (consumer, topic, number, epoch, floor) values (?, ?, ?, 0, ?)")
                .bind(self.consumer.as_str().to_owned())
                .bind(topic)
                .bind(number)
                .bind(floor)
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

/// Raises the epoch of a consumer above what it was and above `above`.
async fn raise(connection: &mut SqliteConnection, consumer: &Text, above: Epoch) -> Result<Epoch, sqlx::Error> {
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
        let row = sqlx::query(
            "select position, stored_at from aq_log where topic = ? and number = ? and position >= ?
             order by position limit 1",
        )
        .bind(topic)
        .bind(number)
        .bind(middle)
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = row else { return Ok(next) };
        if row.try_get::<i64, _>(1)? >= time.unix_ms() {
            high = middle;
        } else {
            low = row.try_get::<i64, _>(0)? + 1;
        }
    }
    Ok(low)
}

/// Writes down up to where a partition is settled. Answers false if it is owned under another epoch.
pub(super) struct Settle {
    pub(super) consumer: Text,
    pub(super) topic: i64,
    pub(super) number: u32,
    pub(super) epoch: Epoch,
    pub(super) floor: u64,
    pub(super) file: SqliteFile,
}

impl Task for Settle {
    type Answer = bool;

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let done = sqlx::query(
                "update aq_floors set floor = max(floor, ?) where consumer = ? and topic = ? and number = ? and epoch = ?",
            )
            .bind(self.floor.cast_signed())
            .bind(self.consumer.as_str().to_owned())
            .bind(self.topic)
            .bind(i64::from(self.number))
            .bind(self.epoch.0.cast_signed())
            .execute(connection)
            .await
            .map_err(|e| self.file.explain(e))?;
            Ok(done.rows_affected() > 0)
        })
    }
}

/// A partition begins anew under an epoch above another. Answers the epoch and the floor.
pub(super) struct Restart {
    pub(super) consumer: Text,
    pub(super) topic: i64,
    pub(super) number: u32,
    pub(super) above: Epoch,
    pub(super) file: SqliteFile,
}

impl Task for Restart {
    type Answer = (Epoch, u64);

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move { self.restart(connection).await.map_err(|e| self.file.explain(e)) })
    }
}

impl Restart {
    async fn restart(&self, connection: &mut SqliteConnection) -> Result<(Epoch, u64), sqlx::Error> {
        let epoch = raise(connection, &self.consumer, self.above).await?;
        let row = sqlx::query(
            "update aq_floors set epoch = ? where consumer = ? and topic = ? and number = ? returning floor",
        )
        .bind(epoch.0.cast_signed())
        .bind(self.consumer.as_str().to_owned())
        .bind(self.topic)
        .bind(i64::from(self.number))
        .fetch_one(connection)
        .await?;
        Ok((epoch, row.try_get::<i64, _>(0)?.cast_unsigned()))
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
