//! A store whose calls go wrong, and that keeps record of what it holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::faults::{Faults, Port};
use super::history::What;
use super::life::Life;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::store::{
    Action, Applied, Claim, Command, CommandId, CommandState, Due, Hold, Listed, MemoryStore, Next, Op, Query, Row,
    RowState, Standing, Store, StoreAbilities, TakeOver,
};
use crate::topic::{Partition, Position, Text};

/// Up to where each partition is settled.
pub(crate) type Floors = Arc<Mutex<BTreeMap<Partition, Position>>>;

/// The memory store as one instance sees it.
pub(crate) struct FaultyStore {
    pub(crate) inner: MemoryStore,
    /// Up to where partitions are settled, as every instance's store knows.
    pub(crate) floors: Floors,
    pub(crate) faults: Faults,
}

impl Store for FaultyStore {
    fn abilities(&self) -> StoreAbilities {
        self.inner.abilities()
    }

    fn take_over<'a>(
        &'a self,
        claim: &'a Claim,
        floor: Option<Position>,
    ) -> BoxFuture<'a, Result<TakeOver, StoreError>> {
        let work = self.inner.take_over(claim, floor);
        Box::pin(self.faults.through(Port::Store, &["take_over"], work, StoreError::Unavailable))
    }

    fn resume<'a>(&'a self, claim: &'a Claim, at: &'a Standing) -> BoxFuture<'a, Result<Option<Position>, StoreError>> {
        let work = async move {
            let settled = self.floors.lock().get(&claim.partition).copied();
            // Store first, broker last.
            assert!(at.floor <= settled, "the store has {settled:?} and the broker {:?}", at.floor);
            if let Some(position) = settled {
                self.faults.life().note(What::Remembered { partition: claim.partition.clone(), position });
            }
            Ok(settled)
        };
        Box::pin(self.faults.through(Port::Store, &["resume"], work, StoreError::Unavailable))
    }

    fn settled<'a>(&'a self, claim: &'a Claim, floor: Position) -> BoxFuture<'a, Result<(), StoreError>> {
        let work = async move {
            // The fence stands before the floor as before everything else.
            self.inner.apply(claim, &[]).await?;
            let mut floors = self.floors.lock();
            let settled = floors.entry(claim.partition.clone()).or_insert(floor);
            *settled = floor.max(*settled);
            Ok(())
        };
        Box::pin(self.faults.through(Port::Store, &["settled"], work, StoreError::Unavailable))
    }

    fn apply<'a>(&'a self, claim: &'a Claim, ops: &'a [Op]) -> BoxFuture<'a, Result<Vec<Applied>, StoreError>> {
        Box::pin(self.pass_on(claim, ops))
    }

    fn bury<'a>(
        &'a self,
        consumer: &'a Text,
        partition: &'a Partition,
        rows: &'a [Row],
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        let work = async move {
            self.inner.bury(consumer, partition, rows).await?;
            for row in rows {
                note_row(self.faults.life(), partition, row);
            }
            Ok(())
        };
        Box::pin(self.faults.through(Port::Store, &["bury"], work, StoreError::Unavailable))
    }

    fn due<'a>(&'a self, claim: &'a Claim, now: Timestamp, limit: usize) -> BoxFuture<'a, Result<Due, StoreError>> {
        let work = self.inner.due(claim, now, limit);
        Box::pin(self.faults.through(Port::Store, &["due"], work, StoreError::Unavailable))
    }

    fn browse<'a>(&'a self, query: &'a Query) -> BoxFuture<'a, Result<Vec<Listed>, StoreError>> {
        self.inner.browse(query)
    }

    fn command<'a>(&'a self, command: &'a Command) -> BoxFuture<'a, Result<CommandId, StoreError>> {
        self.inner.command(command)
    }

    fn command_result(&self, id: CommandId) -> BoxFuture<'_, Result<Option<CommandState>, StoreError>> {
        self.inner.command_result(id)
    }
}

impl FaultyStore {
    async fn pass_on(&self, claim: &Claim, ops: &[Op]) -> Result<Vec<Applied>, StoreError> {
        let mut calls: Vec<&'static str> = ops.iter().map(call_of).collect();
        calls.sort_unstable();
        calls.dedup();
        if self.faults.dies_before(&calls) {
            self.leave_on_the_wire(claim, ops);
            self.faults.die().await;
        }
        let work = apply(&self.inner, self.faults.life(), claim, ops);
        self.faults.carry(Port::Store, &calls, work, StoreError::Unavailable).await
    }

    /// What a dying process has sent may still arrive, also after another has taken over.
    fn leave_on_the_wire(&self, claim: &Claim, ops: &[Op]) {
        if self.faults.life().is_dead() || self.faults.pick(2) == 0 {
            return;
        }
        let (store, life, claim, ops) = (self.inner.clone(), self.faults.life().clone(), claim.clone(), ops.to_vec());
        let late = Duration::from_millis(self.faults.pick(2_000) as u64);
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            // Nobody waits for the answer.
            let _ = apply(&store, &life, &claim, &ops).await;
        });
    }
}

async fn apply(store: &MemoryStore, life: &Life, claim: &Claim, ops: &[Op]) -> Result<Vec<Applied>, StoreError> {
    let before = waiting(store, ops);
    let answers = store.apply(claim, ops).await?;
    for command in before.into_iter().filter_map(|id| carried_out(store, id)) {
        note_command(life, &command);
    }
    for (op, answer) in ops.iter().zip(&answers) {
        note_op(life, &claim.partition, op, *answer);
    }
    Ok(answers)
}

/// The commands among the operations that nobody has carried out yet.
fn waiting(store: &MemoryStore, ops: &[Op]) -> Vec<CommandId> {
    let ids: Vec<CommandId> =
        ops.iter().filter_map(|op| if let Op::Operate { id, .. } = op { Some(*id) } else { None }).collect();
    if ids.is_empty() {
        return ids;
    }
    let waits = |(id, _, state): (CommandId, Command, CommandState)| {
        (state == CommandState::Waiting && ids.contains(&id)).then_some(id)
    };
    store.audit().into_iter().filter_map(waits).collect()
}

/// The command, if it was carried out.
fn carried_out(store: &MemoryStore, id: CommandId) -> Option<Command> {
    let done =
        |(at, _, state): &(CommandId, Command, CommandState)| *at == id && matches!(state, CommandState::Done { .. });
    store.audit().into_iter().find(done).map(|(_, command, _)| command)
}

fn note_command(life: &Life, command: &Command) {
    let (partition, position) = (command.partition.clone(), command.row.place.position);
    let state = match command.action {
        Action::Replay => return life.note(What::Replayed { partition, position }),
        Action::Skip => RowState::Dead(Hold::Skip),
        Action::Discard => RowState::Discarded,
        Action::Edit(_) => return,
    };
    life.note(What::Stored { partition, position, state });
}

fn call_of(op: &Op) -> &'static str {
    match op.name() {
        "park" => "apply.park",
        "dead" => "apply.dead",
        "append" => "apply.append",
        "finish" => "apply.finish",
        "redate" => "apply.redate",
        "give_up" => "apply.give_up",
        "floor" => "apply.floor",
        _ => "apply.operate",
    }
}

fn note_op(life: &Life, partition: &Partition, op: &Op, answer: Applied) {
    let partition = partition.clone();
    match op {
        Op::Put(rows) => {
            for row in rows {
                note_row(life, &partition, row);
            }
        }
        Op::Append { row, .. } if matches!(answer, Applied::Appended) => note_row(life, &partition, row),
        Op::Append { row, .. } => life.note(What::Known { partition, position: row.place.position }),
        Op::Finish(row) if !matches!(answer, Applied::Conflict) => {
            life.note(What::Finished { partition, position: row.place.position });
        }
        Op::Update { row, to: Next::Dead(hold), .. } if !matches!(answer, Applied::Conflict) => {
            life.note(What::Stored { partition, position: row.place.position, state: RowState::Dead(*hold) });
        }
        _ => {}
    }
}

fn note_row(life: &Life, partition: &Partition, row: &Row) {
    life.note(What::Stored { partition: partition.clone(), position: row.place.position, state: row.state });
}
