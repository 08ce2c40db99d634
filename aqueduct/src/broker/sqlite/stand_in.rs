//! Owning a consumer that nobody runs, to carry out what operators have asked for.

use std::collections::BTreeMap;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::consumer::{FloorEntry, raise};
use super::lock::ConsumerLock;
use super::{SqliteBroker, broker_error};
use crate::error::{BrokerError, StoreError};
use crate::outcome::BoxFuture;
use crate::store::Claim;
use crate::store::sql::log::topic_names;
use crate::store::sql::sqlite::SqliteFile;
use crate::store::sql::writer::Task;
use crate::topic::{Epoch, Partition, Position, Text, Topic};

/// The ownership of a consumer that nobody else runs; made by [`SqliteBroker::stand_in`]. Dropping it ends it.
#[derive(Debug)]
#[must_use = "dropping it ends the ownership"]
pub struct StandIn {
    consumer: Text,
    epoch: Epoch,
    floors: BTreeMap<Partition, Position>,
    _lock: ConsumerLock,
}

impl StandIn {
    /// The claim under which the store may be written for a partition, and the partition's floor, for
    /// [`Store::take_over`](crate::store::Store::take_over).
    pub fn claim(&self, partition: &Partition) -> (Claim, Option<Position>) {
        let Self { consumer, epoch, floors, .. } = self;
        let claim = Claim { consumer: consumer.clone(), partition: partition.clone(), epoch: *epoch };
        (claim, floors.get(partition).copied())
    }
}

impl SqliteBroker {
    /// Owns a consumer as its instance would, by its lock and a new epoch, but handles nothing: for a program that carries out
    /// commands while no instance runs. None while one runs, which carries them out itself; [`status`](Self::status) says
    /// who that is. Answers at once.
    ///
    /// A consumer that has settled nothing, or was forgotten, does not come to hold the log by this.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> aqueduct::Result<()> {
    /// # let folder = tempfile::tempdir()?; let path = folder.path().join("aqueduct.db");
    /// use aqueduct::{Clock, Partition, sqlite::{SqliteBroker, SqliteFile, SqliteStore}, store::{Op, Store}};
    /// let file = SqliteFile::open(&path).await?;
    /// let (broker, store) = (SqliteBroker::new(&file), SqliteStore::new(&file));
    /// if let Some(stand_in) = broker.stand_in("mail").await? {
    ///     let (claim, floor) = stand_in.claim(&Partition { topic: "orders".into(), index: 0 });
    ///     store.take_over(&claim, floor).await?;
    ///     let now = Clock::system().now();
    ///     for (id, _) in store.due(&claim, now, 100).await?.commands {
    ///         store.apply(&claim, &[Op::Operate { id, refused: None, now }]).await?;
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn stand_in(&self, consumer: impl Into<Text>) -> Result<Option<StandIn>, BrokerError> {
        let (consumer, file) = (consumer.into(), &self.0.file);
        let taken = ConsumerLock::try_take(file.path(), consumer.as_str());
        let Ok(lock) = taken.map_err(|e| broker_error(&file.explain(e.into())))? else { return Ok(None) };
        let task = Raise { consumer: consumer.clone(), file: file.clone() };
        let (epoch, floors) = file.write_with(task).await.map_err(|e| broker_error(&e))?;
        Ok(Some(StandIn { consumer, epoch, floors, _lock: lock }))
    }
}

/// Raises the epoch of a consumer and of all floors that it has.
struct Raise {
    consumer: Text,
    file: SqliteFile,
}

impl Task for Raise {
    type Answer = (Epoch, BTreeMap<Partition, Position>);

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move { self.raise(connection).await.map_err(|e| self.file.explain(e)) })
    }
}

impl Raise {
    async fn raise(
        &self,
        connection: &mut SqliteConnection,
    ) -> Result<(Epoch, BTreeMap<Partition, Position>), sqlx::Error> {
        let epoch = raise(connection, &self.consumer, Epoch(0)).await?;
        let topics = topic_names(connection).await?;
        let topics: BTreeMap<i64, Topic> = topics.into_iter().map(|(id, topic, _)| (id, topic)).collect();
        let rows = sqlx::query(
            "update aq_floors set epoch = ? where consumer = ? returning consumer, topic, number, floor, seal",
        )
        .bind(epoch.0.cast_signed())
        .bind(self.consumer.as_str().to_owned())
        .fetch_all(connection)
        .await?;
        let mut floors = BTreeMap::new();
        for row in &rows {
            // A floor that is damaged is none: no mark is forgotten by it.
            let Some(entry) = FloorEntry::read(row) else { continue };
            let Some(topic) = topics.get(&row.try_get(1)?).cloned() else { continue };
            if entry.floor > 0 {
                floors.insert(Partition { topic, index: entry.number }, Position(entry.floor.cast_unsigned()));
            }
        }
        Ok((epoch, floors))
    }
}
