//! The store over any SQL database.

use std::sync::Arc;

use parking_lot::Mutex;

use super::beside::{Beside, Kept};
use super::commands;
use super::dialect::{Database, Session, Value, Work};
use super::lookup::{self, sql_limit};
use super::ops::{Shard, fence, fenced, names, one};
use super::tx::TxDatabase;
use crate::clock::{Clock, Timestamp};
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::outbox::Hint;
use crate::store::{
    Applied, Claim, Command, CommandId, CommandState, Due, Listed, Op, Query, Row, Standing, Store, StoreAbilities,
    TakeOver,
};
use crate::topic::{Partition, Position, Text};

/// A database that has Aqueduct's tables: where a [`SqlStore`] keeps its rows, and where transactions come from.
///
/// It is an [`SqliteFile`](crate::sqlite::SqliteFile), a `PgDatabase` or a `MySqlDatabase`; the trait is not for others.
#[expect(private_bounds, reason = "the calls of a database are the library's own")]
pub trait Home: Database + Clone + std::fmt::Debug + HomeCalls {
    /// The database of sqlx.
    type Sql: TxDatabase<Home = Self>;
}

/// What a database has beside its tables.
pub(crate) trait HomeCalls {
    /// Over how many shards its outbox spreads its rows, 16 at the most.
    const SHARDS: u32;

    /// Where times and ids come from.
    fn clock(&self) -> &Clock;

    /// Tells the relays of this process about rows of the outbox.
    fn hint(&self) -> &Hint;

    /// The tables of other systems that are kept with its own.
    fn beside(&self) -> Arc<[Arc<dyn Beside>]> {
        Arc::default()
    }

    // How it keeps up to where partitions are settled. Where the log is in the same file there is no need.

    fn resume<'a>(&'a self, _: &'a Claim, _: &'a Standing) -> BoxFuture<'a, Result<Option<Position>, StoreError>> {
        Box::pin(std::future::ready(Ok(None)))
    }

    fn settled<'a>(&'a self, _: &'a Claim, _: Position) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// A partition has this shard, which may be another than before if the database has lost something.
    fn took_over(&self, _: &Claim, _shard: i64) {}

    /// These are about to be written.
    fn applying(&self, _: &Claim, _: &[Op]) -> Result<(), StoreError> {
        Ok(())
    }

    /// These were written.
    fn applied(&self, _shard: i64, _: &Claim, _: &[Op], _: &[Applied]) {}
}

/// A store in an SQL database: parked events, dead letters and commands, there after a crash.
///
/// Clones share the database. Every write is one transaction. The tables begin with `aq_` and may be read with any tool;
/// only the store writes them. It is called `SqliteStore`, `PgStore` or `MySqlStore`, after its database.
#[derive(Clone)]
pub struct SqlStore<H: Home> {
    home: H,
}

impl<H: Home> SqlStore<H> {
    /// A store in a database that is open.
    pub fn new(home: &H) -> Self {
        Self { home: home.clone() }
    }

    /// The database that it is in.
    pub fn home(&self) -> &H {
        &self.home
    }

    /// The last commands that were given, at most `limit`, oldest first, with who gave each, why, and what became of it.
    /// All are kept.
    pub async fn audit(&self, limit: usize) -> Result<Vec<(CommandId, Command, CommandState)>, StoreError> {
        commands::last(&mut *self.read().await?, sql_limit(limit)).await
    }

    pub(crate) async fn read(&self) -> Result<Box<dyn Session>, StoreError> {
        self.home.read().await
    }

    /// Runs a step in a transaction of its own and answers when it is committed.
    pub(crate) async fn write<S: Step>(&self, step: S) -> Result<S::Answer, StoreError> {
        write(&self.home, step).await
    }

    fn kept(&self) -> Kept {
        Kept { tables: self.home.beside(), now: self.home.clock().now() }
    }

    /// Says whether these rows may be written: before the first of them is, so that a refusal changes nothing.
    fn admit<'a>(&self, partition: &Partition, rows: impl Iterator<Item = &'a Row>) -> Result<(), StoreError> {
        let limit = self.abilities().row_bytes_max;
        for row in rows {
            let bytes = row.content.size();
            if bytes > limit {
                return Err(StoreError::Refused(format!(
                    "the row at {:?} of {partition} has {bytes} bytes and the store takes {limit}: publish a reference to the data instead",
                    row.place
                )));
            }
        }
        Ok(())
    }
}

impl<H: Home> std::fmt::Debug for SqlStore<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("SqlStore").field(&self.home).finish()
    }
}

impl<H: Home> Store for SqlStore<H> {
    fn abilities(&self) -> StoreAbilities {
        StoreAbilities::new(true)
    }

    fn take_over<'a>(
        &'a self,
        claim: &'a Claim,
        floor: Option<Position>,
    ) -> BoxFuture<'a, Result<TakeOver, StoreError>> {
        Box::pin(async move {
            let shard = self.write(RaiseFence { claim: claim.clone(), floor }).await?;
            self.home.took_over(claim, shard);
            // Only the owner writes from here on, so this needs no transaction and keeps nobody else from writing.
            lookup::lanes(&mut *self.home.read().await?, shard, floor).await
        })
    }

    fn resume<'a>(&'a self, claim: &'a Claim, at: &'a Standing) -> BoxFuture<'a, Result<Option<Position>, StoreError>> {
        self.home.resume(claim, at)
    }

    fn settled<'a>(&'a self, claim: &'a Claim, floor: Position) -> BoxFuture<'a, Result<(), StoreError>> {
        self.home.settled(claim, floor)
    }

    fn apply<'a>(&'a self, claim: &'a Claim, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Applied>, StoreError>> {
        Box::pin(async move {
            let rows = ops.iter().flat_map(|op| match op {
                Op::Put(rows) => rows.as_slice(),
                Op::Append { row, .. } => std::slice::from_ref(row),
                _ => &[],
            });
            self.admit(&claim.partition, rows)?;
            self.home.applying(claim, ops)?;
            let (shard, answers) =
                self.write(Apply { claim: claim.clone(), ops: ops.to_vec(), kept: self.kept() }).await?;
            self.home.applied(shard, claim, ops, &answers);
            Ok(answers)
        })
    }

    fn bury<'a>(
        &'a self,
        consumer: &'a Text,
        partition: &'a Partition,
        rows: &'a [Row],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            self.admit(partition, rows.iter())?;
            let (consumer, partition, rows) = (consumer.clone(), partition.clone(), rows.to_vec());
            self.write(Bury { consumer, partition, rows, kept: self.kept() }).await
        })
    }

    fn due<'a>(&'a self, claim: &'a Claim, now: Timestamp, limit: usize) -> BoxFuture<'a, Result<Due, StoreError>> {
        Box::pin(async move {
            loop {
                let mut session = self.home.read().await?;
                let found = lookup::due(&mut *session, claim, now, limit).await?;
                drop(session);
                if found.heads.is_empty() && found.commands.is_empty() {
                    return Ok(found.due);
                }
                let lookup::Found { shard, heads, commands, .. } = found;
                self.write(HoldBack { shard, heads, commands, now }).await?;
            }
        })
    }

    fn browse<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        Box::pin(async move { lookup::browse(&mut *self.home.read().await?, query).await })
    }

    fn command<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<CommandId, StoreError>> {
        Box::pin(async move { self.write(Give(command.clone())).await })
    }

    fn command_result(&self, id: CommandId) -> BoxFuture<'_, Result<Option<CommandState>, StoreError>> {
        Box::pin(async move { commands::result(&mut *self.home.read().await?, id).await })
    }
}

/// Work that has an answer.
pub(crate) trait Step: Send + 'static {
    type Answer: Send;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>>;
}

/// Runs a step in a transaction of its own and answers when it is committed.
pub(super) async fn write<S: Step>(database: &dyn Database, step: S) -> Result<S::Answer, StoreError> {
    let found = Arc::new(Mutex::new(None));
    database.write(Box::new(Answered { step, found: Arc::clone(&found) })).await?;
    let answer = found.lock().take();
    answer.ok_or_else(|| StoreError::Unavailable("the transaction was committed without its work".into()))
}

struct Answered<S: Step> {
    step: S,
    found: Arc<Mutex<Option<S::Answer>>>,
}

impl<S: Step> Work for Answered<S> {
    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let answer = self.step.run(session).await?;
            *self.found.lock() = Some(answer);
            Ok(())
        })
    }
}

/// Raises the fence, never lowers it, and answers the shard.
const RAISE_FENCE: &str = "
    insert into aq_shards (consumer, topic, number, epoch) values (?, ?, ?, ?)
    on conflict (consumer, topic, number) do update set epoch =
        case when aq_shards.epoch is null or aq_shards.epoch < excluded.epoch then excluded.epoch else aq_shards.epoch end;
    select id, epoch from aq_shards where consumer = ? and topic = ? and number = ?";

/// Finds the shard of rows that are buried; it has no fence if nobody has taken over yet.
const FIND_SHARD: &str = "
    insert into aq_shards (consumer, topic, number) values (?, ?, ?) on conflict (consumer, topic, number) do nothing;
    select id from aq_shards where consumer = ? and topic = ? and number = ?";

/// A lane whose head is damaged waits as behind a dead letter that blocks.
const HOLD_BACK: &str =
    "update aq_lanes set next_at = null where shard = ? and lane = ? and head_position = ? and head_index = ?";

struct RaiseFence {
    claim: Claim,
    floor: Option<Position>,
}

impl Step for RaiseFence {
    type Answer = i64;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<i64, StoreError>> {
        Box::pin(async move {
            let Claim { consumer, partition, epoch } = &self.claim;
            let Ok(ours) = i64::try_from(epoch.0) else {
                return Err(StoreError::Refused(format!(
                    "epoch {} of {partition} is above what SQL can count",
                    epoch.0
                )));
            };
            let mut args = names(consumer, partition);
            args.push(ours.into());
            args.extend(names(consumer, partition));
            let found = session.fetch(RAISE_FENCE, args).await?;
            let (id, held) = (one(&found)?.int(0)?, one(&found)?.int_or_null(1)?);
            if held != Some(ours) {
                return Err(fence(&self.claim, held));
            }
            if let Some(floor) = self.floor {
                Shard { session, id, partition }.forget_marks(floor).await?;
            }
            Ok(id)
        })
    }
}

struct Apply {
    claim: Claim,
    ops: Vec<Op>,
    kept: Kept,
}

impl Step for Apply {
    type Answer = (i64, Vec<Applied>);

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let id = fenced(session, &self.claim).await?;
            let mut shard = Shard { session, id, partition: &self.claim.partition };
            let mut answers = Vec::with_capacity(self.ops.len());
            for op in &self.ops {
                let answer = shard.apply(op).await?;
                self.kept.told(&mut shard, op, answer).await?;
                answers.push(answer);
            }
            Ok((id, answers))
        })
    }
}

struct Bury {
    consumer: Text,
    partition: Partition,
    rows: Vec<Row>,
    kept: Kept,
}

impl Step for Bury {
    type Answer = ();

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let (consumer, partition) = (&self.consumer, &self.partition);
            let args = [names(consumer, partition), names(consumer, partition)].concat();
            let id = one(&session.fetch(FIND_SHARD, args).await?)?.int(0)?;
            let mut shard = Shard { session, id, partition };
            shard.put(&self.rows).await?;
            self.kept.died(&mut shard, &self.rows).await
        })
    }
}

struct Give(Command);

impl Step for Give {
    type Answer = CommandId;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<CommandId, StoreError>> {
        Box::pin(commands::give(session, &self.0))
    }
}

/// Lets nothing wait behind what is damaged but its own lane.
struct HoldBack {
    shard: i64,
    heads: Vec<[Value; 3]>,
    commands: Vec<(CommandId, StoreError)>,
    now: Timestamp,
}

impl Step for HoldBack {
    type Answer = ();

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            for head in &self.heads {
                let args = [&[Value::Int(self.shard)], &head[..]].concat();
                session.execute(HOLD_BACK, args).await?;
            }
            for (id, error) in &self.commands {
                let refused = CommandState::Refused { at: self.now, why: error.to_string().into() };
                commands::end(session, *id, &refused).await?;
            }
            Ok(())
        })
    }
}

#[cfg(all(test, feature = "sqlite"))]
mod tests {
    use super::super::sqlite::SqliteFile;
    use super::super::{lease, lookup, ops, relay};
    use super::*;

    /// What a plan may walk through: results in between. The index of the few commands that wait may be walked too.
    const WALKED: [&str; 10] =
        ["marks", "heads", "parked", "blocking", "lowest", "m", "h", "l", "CONSTANT", "json_each"];

    #[tokio::test]
    async fn no_statement_walks_through_a_table() {
        let folder = tempfile::tempdir().unwrap();
        let file = SqliteFile::open(folder.path().join("plans.db")).await.unwrap();
        let mut session = Database::read(&file).await.unwrap();
        let own = [RAISE_FENCE, FIND_SHARD, HOLD_BACK];
        let statements = [&own[..], &ops::ALL, &lookup::ALL, &commands::ALL, &relay::ALL, &lease::ALL].concat();
        for statement in statements.iter().flat_map(|text| text.split(';')).filter(|text| !text.trim().is_empty()) {
            let statement = statement.replace("in_ints(?)", "in (select value from json_each(?))");
            let explained = Box::leak(format!("explain query plan {statement}").into_boxed_str());
            let plan = session.fetch(explained, vec![]).await.unwrap();
            let plan: Vec<Text> = plan.iter().map(|step| step.text(3).unwrap()).collect();
            for step in plan.iter().map(Text::as_str).filter(|step| step.starts_with("SCAN")) {
                let table = step.split(' ').nth(1).unwrap();
                let fits = WALKED.contains(&table) || table.starts_with('(') || step.contains("aq_commands_waiting");
                assert!(fits, "{statement}\n{plan:#?}");
            }
        }
    }
}
