//! What the store holds, counted; and commands, many at once and those on a row.

use std::collections::BTreeMap;

use super::commands;
use super::dialect::Session;
use super::rows::small;
use super::store::{Home, SqlStore, Step};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::{Command, CommandId, CommandState, Listed};
use crate::topic::{Partition, Text, Topic};

/// What the store holds of a consumer's partition.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ShardStatus {
    /// The consumer.
    pub consumer: Text,
    /// The partition.
    pub partition: Partition,
    /// Parked events.
    pub parked: u64,
    /// Dead letters.
    pub dead: u64,
    /// Those of the dead letters that hold their lanes.
    pub blocking: u64,
    /// When the row that stands first was parked.
    pub oldest: Option<Timestamp>,
    /// Commands that wait for the partition's owner.
    pub waiting: u64,
}

/// All shards. They are few, one for each partition of a consumer that ever parked something.
const SHARDS: &str = "select s.id, s.consumer, s.topic, s.number,
    (select r.parked_at from aq_rows r where r.shard = s.id order by r.position, r.idx limit 1)
    from aq_shards s order by s.consumer, s.topic, s.number";

/// Walks through an index, once.
const COUNT_ROWS: &str = "select shard, state, count(*) from aq_rows group by shard, state";

const COUNT_COMMANDS: &str = "select shard, count(*) from aq_commands where state = 0 group by shard";

impl<H: Home> SqlStore<H> {
    /// What it holds of each consumer and partition, in the order of their names. The counts take a moment where there are
    /// a million rows.
    ///
    /// ```
    /// # #[cfg(feature = "sqlite")]
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> aqueduct::Result<()> {
    /// # let folder = tempfile::tempdir()?; let path = folder.path().join("aqueduct.db");
    /// let store = aqueduct::sqlite::SqliteStore::open(&path).await?;
    /// assert_eq!(store.shards().await?.iter().map(|shard| shard.dead).sum::<u64>(), 0);
    /// # Ok(()) }
    /// ```
    pub async fn shards(&self) -> Result<Vec<ShardStatus>, StoreError> {
        let mut session = self.read().await?;
        let mut shards: BTreeMap<i64, ShardStatus> = BTreeMap::new();
        for row in session.fetch(SHARDS, vec![]).await? {
            let partition = Partition { topic: Topic::from(row.text(2)?), index: small(row.int(3)?)? };
            let (consumer, oldest) = (row.text(1)?, row.int_or_null(4)?.map(Timestamp::from_unix_ms));
            let (parked, dead, blocking, waiting) = (0, 0, 0, 0);
            shards.insert(row.int(0)?, ShardStatus { consumer, partition, parked, dead, blocking, oldest, waiting });
        }
        for row in session.fetch(COUNT_ROWS, vec![]).await? {
            let (Some(shard), count) = (shards.get_mut(&row.int(0)?), row.int(2)?.cast_unsigned()) else { continue };
            match row.int(1)? {
                0 => shard.parked += count,
                1 => shard.dead += count,
                2 => (shard.dead, shard.blocking) = (shard.dead + count, shard.blocking + count),
                _ => {}
            }
        }
        for row in session.fetch(COUNT_COMMANDS, vec![]).await? {
            if let Some(shard) = shards.get_mut(&row.int(0)?) {
                shard.waiting = row.int(1)?.cast_unsigned();
            }
        }
        let mut shards: Vec<ShardStatus> = shards.into_values().collect();
        shards.sort_by(|a, b| (&a.consumer, &a.partition).cmp(&(&b.consumer, &b.partition)));
        Ok(shards)
    }

    /// Leaves many commands at once, in their order, and answers each: its id, or why the store does not take it, such as
    /// that the row has changed since.
    pub async fn command_all(&self, commands: Vec<Command>) -> Result<Vec<Result<CommandId, StoreError>>, StoreError> {
        self.write(GiveAll(commands)).await
    }

    /// The commands that were ever given on a row, oldest first.
    pub async fn commands_on(&self, listed: &Listed) -> Result<Vec<(CommandId, Command, CommandState)>, StoreError> {
        commands::on_row(&mut *self.read().await?, listed).await
    }
}

struct GiveAll(Vec<Command>);

impl Step for GiveAll {
    type Answer = Vec<Result<CommandId, StoreError>>;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let mut answers = Vec::with_capacity(self.0.len());
            for command in &self.0 {
                match commands::give(session, command).await {
                    // Nothing of it was written, and the others may be.
                    Err(StoreError::Refused(why)) => answers.push(Err(StoreError::Refused(why))),
                    answer => answers.push(Ok(answer?)),
                }
            }
            Ok(answers)
        })
    }
}
