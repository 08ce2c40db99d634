//! What a store answers, as a list that is searched from end to end: the model that each store is compared with.

use std::sync::Arc;
use std::time::Duration;

use aqueduct::store::{
    Action, Applied, Claim, Command, CommandId, CommandState, Content, Failure, Hold, Late, Listed, Next, Op, Query,
    Row, RowRef, RowState, Store, StoredLane,
};
use aqueduct::{Epoch, Event, LaneId, Partition, Place, Position, Timestamp};
use proptest::prelude::*;

const LANES: u64 = 3;
const POSITIONS: u64 = 15;

#[derive(Clone, Debug)]
pub(crate) enum Step {
    Put(u64, Vec<(u64, RowState)>),
    Append(u64, Late),
    /// Finishes the row in its version, or in another.
    Finish(u64, bool),
    Update(u64, bool, Next),
    Floor(u64),
    Command(u64, Action),
    Operate(usize, bool),
    TakeOver(Option<u64>),
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_ms(seconds * 1_000)
}

/// A place belongs to one lane for ever, as an event has one key.
fn lane(position: u64) -> LaneId {
    LaneId(position % LANES)
}

fn row(position: u64, state: RowState) -> Row {
    let event = Event::raw("t", "").key(lane(position).0.to_string());
    let due = i64::try_from(position * 7 % 10).unwrap();
    let mut row = Row::new(Place::at(position), lane(position), Content::Event(Arc::new(event)), at(due));
    row.state = state;
    row
}

/// The naive store.
#[derive(Default)]
struct Model {
    rows: Vec<Row>,
    commands: Vec<(CommandId, Command, CommandState)>,
}

impl Model {
    fn find(&mut self, place: Place) -> Option<&mut Row> {
        self.rows.iter_mut().find(|row| row.place == place)
    }

    fn lane(&self, lane: LaneId) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.lane == lane)
    }

    fn head(&self, lane: LaneId) -> Option<&Row> {
        self.lane(lane).filter(|row| row.holds()).min_by_key(|row| row.place)
    }

    fn stands(&self, lane: LaneId) -> Applied {
        let due = self.head(lane).filter(|row| row.state == RowState::Parked);
        Applied::Lane { holds: self.head(lane).is_some(), next_at: due.map(|row| row.next_at) }
    }

    fn apply(&mut self, op: &Op) -> Applied {
        match op {
            Op::Put(rows) => {
                for row in rows {
                    if self.find(row.place).is_none() {
                        self.rows.push(row.clone());
                    }
                }
                self.stands(rows[0].lane)
            }
            Op::Append { row, late } => {
                if self.find(row.place).is_some() {
                    let holds = self.lane(row.lane).any(Row::holds);
                    return Applied::Present { holds };
                }
                if *late == Late::Finished && self.lane(row.lane).any(|other| other.place > row.place) {
                    return Applied::Finished;
                }
                self.rows.push(row.clone());
                Applied::Appended
            }
            Op::Finish(named) => {
                if self.find(named.place).is_some_and(|row| row.version != named.version) {
                    return Applied::Conflict;
                }
                self.rows.retain(|row| row.place != named.place);
                self.stands(named.lane)
            }
            Op::Update { row: named, failure, to } => {
                let Some(row) = self.find(named.place).filter(|row| row.version == named.version) else {
                    return Applied::Conflict;
                };
                (row.version, row.attempts, row.replay) = (row.version + 1, row.attempts + 1, false);
                row.remember(failure.clone());
                match to {
                    Next::Retry(at) => (row.state, row.next_at) = (RowState::Parked, *at),
                    Next::Dead(hold) => row.state = RowState::Dead(*hold),
                    other => panic!("{other:?}"),
                }
                self.stands(named.lane)
            }
            Op::Floor(floor) => {
                self.rows.retain(|row| row.state != RowState::Discarded || row.place.position > *floor);
                Applied::Lane { holds: false, next_at: None }
            }
            Op::Operate { id, refused, now } => self.operate(*id, refused.is_some(), *now),
            other => panic!("{other:?}"),
        }
    }

    fn operate(&mut self, id: CommandId, refused: bool, now: Timestamp) -> Applied {
        let index = self.commands.iter().position(|(known, ..)| *known == id).unwrap();
        let (_, Command { row: named, action, .. }, state) = self.commands[index].clone();
        let current = self.find(named.place).is_some_and(|row| row.version == named.version);
        if state == CommandState::Waiting {
            let done = current && !refused && self.act(named.place, &action, now);
            let why = "any".into();
            self.commands[index].2 =
                if done { CommandState::Done { at: now } } else { CommandState::Refused { at: now, why } };
        }
        let done = matches!(self.commands[index].2, CommandState::Done { .. });
        if done || current { self.stands(named.lane) } else { Applied::Conflict }
    }

    fn act(&mut self, place: Place, action: &Action, now: Timestamp) -> bool {
        let row = self.find(place).unwrap();
        match action {
            Action::Replay => {
                (row.state, row.next_at, row.attempts, row.replay) = (RowState::Parked, now, 0, true);
            }
            Action::Skip if row.state == RowState::Dead(Hold::Block) => row.state = RowState::Dead(Hold::Skip),
            Action::Discard => row.state = RowState::Discarded,
            Action::Edit(event) if event.key.as_ref() == row.content.key() => {
                row.content = Content::Event(event.clone());
            }
            Action::Skip | Action::Edit(_) => return false,
            other => panic!("{other:?}"),
        }
        row.version += 1;
        true
    }

    fn lanes(&self, floor: Option<Position>) -> Vec<StoredLane> {
        let stored = (0..LANES).map(LaneId).filter(|lane| self.lane(*lane).next().is_some());
        let marks = |lane| {
            let settled = self.lane(lane).filter(|row| row.state != RowState::Parked);
            settled.map(|row| row.place.position).filter(|position| Some(*position) > floor).max()
        };
        stored.map(|lane| StoredLane { lane, holds: self.head(lane).is_some(), mark: marks(lane) }).collect()
    }

    /// The heads that can be due, earliest first.
    fn heads(&self) -> Vec<Row> {
        let heads = (0..LANES).filter_map(|lane| self.head(LaneId(lane)));
        let mut heads: Vec<Row> = heads.filter(|row| row.state == RowState::Parked).cloned().collect();
        heads.sort_by_key(|row| (row.next_at, row.place));
        heads
    }
}

/// The store beside its model.
struct Pair<'a> {
    store: &'a dyn Store,
    model: Model,
    claim: Claim,
    time: i64,
}

impl Pair<'_> {
    async fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        self.time += 1;
        match step {
            Step::Put(lane, rows) => {
                let rows = rows.into_iter().map(|(n, state)| row(n * LANES + lane, state)).collect::<Vec<_>>();
                self.apply(Op::Put(rows)).await
            }
            Step::Append(position, late) => self.apply(Op::Append { row: row(position, RowState::Parked), late }).await,
            Step::Finish(position, stale) => {
                let row = self.named(position, stale);
                self.apply(Op::Finish(row)).await
            }
            Step::Update(position, stale, to) => {
                let row = self.named(position, stale);
                let failure = Failure { at: at(self.time), attempt: 1, took: Duration::ZERO, error: "broken".into() };
                self.apply(Op::Update { row, failure, to }).await
            }
            Step::Floor(position) => self.apply(Op::Floor(Position(position))).await,
            Step::Operate(nth, refused) if !self.model.commands.is_empty() => {
                let id = self.model.commands[nth % self.model.commands.len()].0;
                let refused = refused.then(|| "no".into());
                self.apply(Op::Operate { id, refused, now: at(self.time) }).await
            }
            Step::Operate(..) => Ok(()),
            Step::Command(position, action) => self.command(position, action).await,
            Step::TakeOver(floor) => self.take_over(floor.map(Position)).await,
        }
    }

    fn named(&mut self, position: u64, stale: bool) -> RowRef {
        let version = self.model.find(Place::at(position)).map_or(1, |row| row.version);
        RowRef { place: Place::at(position), lane: lane(position), version: version + u32::from(stale) }
    }

    async fn apply(&mut self, op: Op) -> Result<(), TestCaseError> {
        let applied = self.store.apply(&self.claim, std::slice::from_ref(&op)).await.unwrap();
        prop_assert_eq!(applied, [self.model.apply(&op)], "{:?}", op);
        Ok(())
    }

    async fn command(&mut self, position: u64, action: Action) -> Result<(), TestCaseError> {
        let Claim { consumer, partition, .. } = self.claim.clone();
        let known = self.model.find(Place::at(position)).cloned();
        let row = known.clone().unwrap_or_else(|| row(position, RowState::Parked));
        let command = Command::new(&Listed { consumer, partition, row }, action, "ann", "because");
        let answer = self.store.command(&command).await;
        prop_assert_eq!(answer.is_ok(), known.is_some());
        if let Ok(id) = answer {
            prop_assert!(self.model.commands.last().is_none_or(|(last, ..)| *last < id));
            self.model.commands.push((id, command, CommandState::Waiting));
        }
        Ok(())
    }

    async fn take_over(&mut self, floor: Option<Position>) -> Result<(), TestCaseError> {
        self.claim.epoch = Epoch(self.claim.epoch.0 + 1);
        if let Some(floor) = floor {
            self.model.apply(&Op::Floor(floor));
        }
        let mut taken = self.store.take_over(&self.claim, floor).await.unwrap();
        taken.lanes.sort_by_key(|stored| stored.lane);
        prop_assert_eq!(taken.lanes, self.model.lanes(floor));
        prop_assert_eq!(taken.next_at, self.model.heads().first().map(|row| row.next_at));
        Ok(())
    }

    /// Everything that can be seen is the same.
    async fn compare(&mut self) -> Result<(), TestCaseError> {
        let mut query = Query::default();
        query.limit = 1_000;
        let listed = self.store.browse(&query).await.unwrap();
        self.model.rows.sort_by_key(|row| row.place);
        prop_assert_eq!(listed.into_iter().map(|listed| listed.row).collect::<Vec<_>>(), self.model.rows.clone());
        let heads = self.model.heads();
        for limit in [0, 1, 10] {
            let now = at(5);
            let mut due = self.store.due(&self.claim, now, limit).await.unwrap();
            let count = heads.iter().filter(|row| row.next_at <= now).count().min(limit);
            due.heads.sort_by_key(|row| (row.next_at, row.place));
            prop_assert_eq!(&due.heads, &heads[..count]);
            prop_assert_eq!(due.next_at, heads.get(count).map(|row| row.next_at));
            let waiting = self.model.commands.iter().filter(|(.., state)| *state == CommandState::Waiting);
            let waiting: Vec<_> = waiting.take(limit).map(|(id, command, _)| (*id, command.clone())).collect();
            prop_assert_eq!(due.commands, waiting);
        }
        for (id, _, expected) in &self.model.commands {
            let found = self.store.command_result(*id).await.unwrap().unwrap();
            prop_assert_eq!(std::mem::discriminant(&found), std::mem::discriminant(expected));
        }
        Ok(())
    }
}

fn state() -> impl Strategy<Value = RowState> {
    prop_oneof![
        3 => Just(RowState::Parked),
        1 => Just(RowState::Dead(Hold::Skip)),
        1 => Just(RowState::Dead(Hold::Block)),
        1 => Just(RowState::Discarded),
    ]
}

fn action() -> impl Strategy<Value = Action> {
    let edit = (0..LANES).prop_map(|key| Action::Edit(Arc::new(Event::raw("t", "new").key(key.to_string()))));
    prop_oneof![Just(Action::Replay), Just(Action::Skip), Just(Action::Discard), edit]
}

fn next() -> impl Strategy<Value = Next> {
    prop_oneof![
        2 => (0_i64..10).prop_map(|seconds| Next::Retry(at(seconds))),
        1 => Just(Next::Dead(Hold::Skip)),
        1 => Just(Next::Dead(Hold::Block)),
    ]
}

/// Any steps.
pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let rows = proptest::collection::btree_map(0..POSITIONS / LANES, state(), 1..4);
    let late = prop_oneof![3 => Just(Late::Finished), 1 => Just(Late::Insert)];
    let step = prop_oneof![
        3 => (0..LANES, rows).prop_map(|(lane, rows)| Step::Put(lane, rows.into_iter().collect())),
        3 => (0..POSITIONS, late).prop_map(|(position, late)| Step::Append(position, late)),
        3 => (0..POSITIONS, proptest::bool::weighted(0.2)).prop_map(|(p, stale)| Step::Finish(p, stale)),
        3 => (0..POSITIONS, proptest::bool::weighted(0.2), next()).prop_map(|(p, s, to)| Step::Update(p, s, to)),
        1 => (0..POSITIONS).prop_map(Step::Floor),
        3 => (0..POSITIONS, action()).prop_map(|(position, action)| Step::Command(position, action)),
        3 => (0_usize..20, proptest::bool::weighted(0.2)).prop_map(|(nth, refused)| Step::Operate(nth, refused)),
        1 => proptest::option::of(0..POSITIONS).prop_map(Step::TakeOver),
    ];
    proptest::collection::vec(step, 1..60)
}

/// Takes the steps on a store without rows and on the model, and compares everything that can be seen after each.
pub(crate) async fn compare(store: &dyn Store, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let partition = Partition { topic: "orders".into(), index: 0 };
    let claim = Claim { consumer: "billing".into(), partition, epoch: Epoch(0) };
    let mut pair = Pair { store, model: Model::default(), claim, time: 100 };
    pair.take_over(None).await?;
    for step in steps {
        pair.step(step).await?;
        pair.compare().await?;
    }
    Ok(())
}
