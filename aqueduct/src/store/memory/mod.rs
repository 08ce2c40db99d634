//! A store in memory: for tests, for trying things out, and beside a broker that is in memory too.

mod shard;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::{
    Applied, Claim, Command, CommandId, CommandState, Due, Listed, Op, Query, Row, Store, StoreAbilities, TakeOver,
};
use crate::topic::{Partition, Position, Text};
use shard::Shard;

/// How many commands are remembered; above it the oldest that are no longer waiting are forgotten.
const COMMANDS_MAX: usize = 10_000;

/// How many rows [`Store::browse`] answers when the query does not say.
const BROWSE_LIMIT: usize = 100;

/// A store that keeps everything in this process: as fast as it gets, and gone when the process ends.
///
/// Clones share their rows, so a clone that outlives a consumer is what a database is to a program that restarts. Beside
/// a durable broker it counts as no store at all: parking there would turn a confirmed event into one that a crash loses.
///
/// ```
/// use aqueduct::store::{MemoryStore, Store};
/// let store = MemoryStore::new().rows_max(10_000);
/// assert!(!store.abilities().durable);
/// ```
#[derive(Clone)]
pub struct MemoryStore(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    /// Told after every write and every command.
    changed: Notify,
}

struct Inner {
    shards: BTreeMap<(Text, Partition), Shard>,
    commands: BTreeMap<CommandId, (Command, CommandState)>,
    last_command: u64,
    rows_max: usize,
}

impl MemoryStore {
    /// A store without rows.
    pub fn new() -> Self {
        let (shards, commands) = (BTreeMap::new(), BTreeMap::new());
        let inner = Mutex::new(Inner { shards, commands, last_command: 0, rows_max: 1_000_000 });
        Self(Arc::new(Shared { inner, changed: Notify::new() }))
    }

    /// How many rows it takes, of all consumers together; a write above it answers [`StoreError::Unavailable`] and
    /// changes nothing. Defaults to 1,000,000.
    pub fn rows_max(self, rows: usize) -> Self {
        self.0.inner.lock().rows_max = rows;
        self
    }

    /// Resolves at the first write or command after this call, whether it was awaited by then or not: call it, look at
    /// the store, and await it if what you look for is not there yet.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), aqueduct::StoreError> {
    /// use aqueduct::store::{MemoryStore, Query, Store};
    ///
    /// async fn until_empty(store: &MemoryStore) -> Result<(), aqueduct::StoreError> {
    ///     loop {
    ///         let changed = store.changed();
    ///         if store.browse(&Query::default()).await?.is_empty() {
    ///             return Ok(());
    ///         }
    ///         changed.await;
    ///     }
    /// }
    /// until_empty(&MemoryStore::new()).await
    /// # }
    /// ```
    pub fn changed(&self) -> impl Future<Output = ()> + '_ {
        self.0.changed.notified()
    }

    /// Writes, and tells those who wait for a change.
    fn write<T>(&self, write: impl FnOnce(&mut Inner) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let written = write(&mut self.0.inner.lock());
        self.0.changed.notify_waiters();
        written
    }

    /// How many rows it holds, of every state.
    pub fn len(&self) -> usize {
        self.0.inner.lock().len()
    }

    /// True if it holds no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every command that was ever given, oldest first, with who gave it, why, and what became of it. Keeps the last
    /// 10,000.
    pub fn audit(&self) -> Vec<(CommandId, Command, CommandState)> {
        self.0
            .inner
            .lock()
            .commands
            .iter()
            .map(|(id, (command, state))| (*id, command.clone(), state.clone()))
            .collect()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").field("rows", &self.len()).finish()
    }
}

impl Store for MemoryStore {
    fn abilities(&self) -> StoreAbilities {
        StoreAbilities::new(false)
    }

    fn take_over<'a>(
        &'a self,
        claim: &'a Claim,
        floor: Option<Position>,
    ) -> BoxFuture<'a, Result<TakeOver, StoreError>> {
        Box::pin(async move { self.0.inner.lock().shard(&claim.consumer, &claim.partition).take_over(claim, floor) })
    }

    fn apply<'a>(&'a self, claim: &'a Claim, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Applied>, StoreError>> {
        Box::pin(async move { self.write(|inner| inner.apply(claim, ops)) })
    }

    fn bury<'a>(
        &'a self,
        consumer: &'a Text,
        partition: &'a Partition,
        rows: &'a [Row],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.write(|inner| inner.bury(consumer, partition, rows)) })
    }

    fn due<'a>(&'a self, claim: &'a Claim, now: Timestamp, limit: usize) -> BoxFuture<'a, Result<Due, StoreError>> {
        Box::pin(async move { self.0.inner.lock().due(claim, now, limit) })
    }

    fn browse<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        Box::pin(async move { Ok(self.0.inner.lock().browse(query)) })
    }

    fn command<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<CommandId, StoreError>> {
        Box::pin(async move { self.write(|inner| inner.command(command)) })
    }

    fn command_result(&self, id: CommandId) -> BoxFuture<'_, Result<Option<CommandState>, StoreError>> {
        Box::pin(async move { Ok(self.0.inner.lock().commands.get(&id).map(|(_, state)| state.clone())) })
    }
}

impl Inner {
    fn len(&self) -> usize {
        self.shards.values().map(Shard::len).sum()
    }

    fn shard(&mut self, consumer: &Text, partition: &Partition) -> &mut Shard {
        self.shards.entry((consumer.clone(), partition.clone())).or_default()
    }

    /// Says whether these rows may be written: checked before the first of them is, so that a refusal changes nothing.
    fn admit<'a>(
        &mut self,
        consumer: &Text,
        partition: &Partition,
        rows: impl Iterator<Item = &'a Row>,
    ) -> Result<(), StoreError> {
        let limit = StoreAbilities::new(false).row_bytes_max;
        let shard = self.shard(consumer, partition);
        let mut new = 0;
        for row in rows {
            let bytes = row.content.size();
            if bytes > limit {
                return Err(StoreError::Refused(format!(
                    "the row at {:?} of {partition} has {bytes} bytes and the memory store takes {limit}",
                    row.place
                )));
            }
            new += usize::from(shard.row(row.place).is_none());
        }
        if new > 0 && self.len() + new > self.rows_max {
            let text = format!(
                "the memory store holds {} rows of at most {}: finish some, or raise `rows_max`",
                self.len(),
                self.rows_max
            );
            return Err(StoreError::Unavailable(text.into()));
        }
        Ok(())
    }

    fn apply(&mut self, claim: &Claim, ops: &[Op]) -> Result<Vec<Applied>, StoreError> {
        self.shard(&claim.consumer, &claim.partition).fence(claim)?;
        let rows = ops.iter().flat_map(|op| match op {
            Op::Put(rows) => rows.as_slice(),
            Op::Append { row, .. } => std::slice::from_ref(row),
            _ => &[],
        });
        self.admit(&claim.consumer, &claim.partition, rows)?;
        Ok(ops.iter().map(|op| self.apply_one(claim, op)).collect())
    }

    fn apply_one(&mut self, claim: &Claim, op: &Op) -> Applied {
        let shard = self.shard(&claim.consumer, &claim.partition);
        match op {
            Op::Put(rows) => shard.put(rows),
            Op::Append { row, late } => shard.append(row, *late),
            Op::Finish(row) => shard.finish(*row),
            Op::Update { row, failure, to } => shard.update(*row, failure, *to),
            Op::Floor(floor) => shard.forget_marks(*floor),
            Op::Operate { id, refused, now } => self.operate(claim, *id, refused.as_ref(), *now),
        }
    }

    /// Carries out a command once: when it is asked for again, only the answer is given again.
    fn operate(&mut self, claim: &Claim, id: CommandId, refused: Option<&Text>, now: Timestamp) -> Applied {
        let Some((command, state)) = self.commands.get_mut(&id) else { return Applied::Conflict };
        if command.consumer != claim.consumer || command.partition != claim.partition {
            return Applied::Conflict;
        }
        let Some(shard) = self.shards.get_mut(&(claim.consumer.clone(), claim.partition.clone())) else {
            return Applied::Conflict;
        };
        let current = shard.current(command.row);
        let changed = current.is_err();
        if *state == CommandState::Waiting {
            shard.commands.remove(&id);
            let outcome = match refused {
                Some(why) => Err(why.clone()),
                None => current.and_then(|()| shard.act(command.row.place, &command.action, now)).map_err(Text::from),
            };
            *state = match outcome {
                Ok(()) => CommandState::Done { at: now },
                Err(why) => CommandState::Refused { at: now, why },
            };
        }
        let refused = matches!(state, CommandState::Refused { .. });
        if refused && changed { Applied::Conflict } else { shard.answer(command.row.lane) }
    }

    fn bury(&mut self, consumer: &Text, partition: &Partition, rows: &[Row]) -> Result<(), StoreError> {
        self.admit(consumer, partition, rows.iter())?;
        self.shard(consumer, partition).put(rows);
        Ok(())
    }

    fn due(&mut self, claim: &Claim, now: Timestamp, limit: usize) -> Result<Due, StoreError> {
        let shard = self.shard(&claim.consumer, &claim.partition);
        shard.fence(claim)?;
        let mut due = shard.due(now, limit);
        let waiting: Vec<_> = shard.commands.iter().take(limit).copied().collect();
        due.commands = waiting.into_iter().filter_map(|id| Some((id, self.commands.get(&id)?.0.clone()))).collect();
        Ok(due)
    }

    fn browse(&self, query: &Query) -> Vec<Listed> {
        let limit = if query.limit == 0 { BROWSE_LIMIT } else { query.limit };
        let mut found = Vec::new();
        for ((consumer, partition), shard) in &self.shards {
            if query.consumer.as_ref().is_some_and(|c| c != consumer)
                || query.partition.as_ref().is_some_and(|p| p != partition)
            {
                continue;
            }
            let rows = shard.matching(query).take(limit).cloned();
            found.extend(rows.map(|row| Listed { consumer: consumer.clone(), partition: partition.clone(), row }));
        }
        found.sort_by_key(|listed| listed.row.place);
        found.truncate(limit);
        found
    }

    fn command(&mut self, command: &Command) -> Result<CommandId, StoreError> {
        let shard = self.shard(&command.consumer, &command.partition);
        shard.current(command.row).map_err(StoreError::Refused)?;
        if self.commands.len() >= COMMANDS_MAX {
            let settled = self.commands.iter().find(|(_, (_, state))| *state != CommandState::Waiting);
            let Some(oldest) = settled.map(|(id, _)| *id) else {
                let text = format!("{COMMANDS_MAX} commands wait for their partitions' owners: is one running?");
                return Err(StoreError::Unavailable(text.into()));
            };
            self.commands.remove(&oldest);
        }
        self.last_command += 1;
        let id = CommandId(self.last_command);
        self.commands.insert(id, (command.clone(), CommandState::Waiting));
        self.shard(&command.consumer, &command.partition).commands.insert(id);
        Ok(id)
    }
}
