//! What every [`Store`] must do, sentence by sentence of the port's documentation.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! use std::sync::Arc;
//! use aqueduct::{store::MemoryStore, testing::store_suite};
//! store_suite::run(async |_case| Arc::new(MemoryStore::new()) as _).await;
//! # }
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::event::Event;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::store::{
    Action, Applied, Claim, Command, CommandId, CommandState, Content, Failure, HISTORY_MAX, Hold, Late, Listed, Next,
    Op, Query, Row, RowRef, RowState, Store, StoredLane, TakeOver,
};
use crate::topic::{Epoch, Key, LaneId, Partition, Place, Position, Text};

type Case = (&'static str, fn(Arc<dyn Store>) -> BoxFuture<'static, ()>);

const CASES: &[Case] = super::cases![
    only_the_highest_epoch_may_write,
    a_fenced_apply_changes_nothing,
    consumers_and_partitions_do_not_see_each_other,
    a_row_comes_back_as_it_was_written,
    a_put_leaves_rows_that_are_there_as_they_are,
    an_append_says_where_the_row_stands,
    a_row_of_any_state_is_the_end_of_its_lane,
    finish_deletes_only_the_version_it_names,
    update_re_dates_or_gives_up_only_the_version_it_names,
    a_row_remembers_its_last_failures,
    every_operation_can_be_repeated,
    times_may_be_finer_than_what_a_database_keeps,
    operations_see_those_before_them,
    only_heads_are_due_earliest_first,
    a_blocking_head_holds_its_lane_and_is_never_due,
    events_of_one_message_keep_their_order,
    taking_over_tells_which_lanes_have_rows,
    a_mark_follows_what_becomes_of_its_row,
    a_lane_may_have_any_hash,
    the_floor_deletes_marks_and_nothing_else,
    commands_wait_for_their_partitions_owner,
    each_command_does_what_it_says,
    a_command_brings_back_a_row_of_any_state,
    what_became_of_a_command_stays,
    a_command_that_cannot_be_carried_out_says_why,
    a_command_names_a_row_in_a_version_that_is_there,
    browsing_finds_what_it_is_asked_for,
    burying_needs_no_claim_and_keeps_what_is_there,
    a_row_that_is_too_large_is_refused,
    partitions_are_written_at_the_same_time,
];

/// Runs every case, each on a store of its own that has no rows. The factory gets the case's name.
pub async fn run(fresh: impl AsyncFn(&'static str) -> Arc<dyn Store>) {
    for (name, case) in CASES {
        println!("store_suite: {name}");
        case(fresh(name).await).await;
    }
}

/// One partition of one consumer under one epoch.
struct Owner {
    store: Arc<dyn Store>,
    claim: Claim,
}

impl Owner {
    /// The owner under epoch 1, which has taken over.
    async fn of(store: &Arc<dyn Store>) -> Self {
        let owner = Self { store: store.clone(), claim: claim(1) };
        owner.take_over(None).await.unwrap();
        owner
    }

    async fn take_over(&self, floor: Option<u64>) -> Result<TakeOver, StoreError> {
        self.store.take_over(&self.claim, floor.map(Position)).await
    }

    async fn apply(&self, op: Op) -> Applied {
        self.all(&[op]).await[0]
    }

    async fn all(&self, ops: &[Op]) -> Vec<Applied> {
        let applied = self.store.apply(&self.claim, ops).await.unwrap();
        assert_eq!(applied.len(), ops.len(), "one answer for each operation");
        applied
    }

    async fn put(&self, rows: &[Row]) -> Applied {
        self.apply(Op::Put(rows.to_vec())).await
    }

    async fn append(&self, row: Row, late: Late) -> Applied {
        self.apply(Op::Append { row, late }).await
    }

    async fn due(&self, now: Timestamp, limit: usize) -> (Vec<u64>, Option<Timestamp>) {
        let due = self.store.due(&self.claim, now, limit).await.unwrap();
        (due.heads.iter().map(|row| row.place.position.0).collect(), due.next_at)
    }

    async fn rows(&self) -> Vec<Row> {
        let Claim { consumer, partition, .. } = self.claim.clone();
        let query = Query { consumer: Some(consumer), partition: Some(partition), ..Query::default() };
        self.store.browse(&query).await.unwrap().into_iter().map(|listed| listed.row).collect()
    }

    async fn row(&self, position: u64) -> Row {
        let found = self.rows().await.into_iter().find(|row| row.place.position == Position(position));
        found.expect("the row is there")
    }

    async fn places(&self) -> Vec<u64> {
        self.rows().await.iter().map(|row| row.place.position.0).collect()
    }

    async fn command(&self, row: &Row, action: Action) -> CommandId {
        self.store.command(&self.command_on(row, action)).await.unwrap()
    }

    fn command_on(&self, row: &Row, action: Action) -> Command {
        let Claim { consumer, partition, .. } = self.claim.clone();
        Command::new(&Listed { consumer, partition, row: row.clone() }, action, "ann", "because")
    }

    /// Gives a command and carries it out.
    async fn operate(&self, position: u64, action: Action) -> (Applied, CommandState) {
        let id = self.command(&self.row(position).await, action).await;
        let applied = self.apply(Op::Operate { id, refused: None, now: at(50) }).await;
        (applied, self.state(id).await)
    }

    async fn state(&self, id: CommandId) -> CommandState {
        self.store.command_result(id).await.unwrap().expect("the command is known")
    }
}

fn claim(epoch: u64) -> Claim {
    Claim { consumer: "billing".into(), partition: partition(0), epoch: Epoch(epoch) }
}

fn partition(index: u32) -> Partition {
    Partition { topic: "orders".into(), index }
}

/// So many seconds after the suite's own beginning of time; whole milliseconds, which every database can keep.
fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_ms(1_800_000_000_000 + seconds * 1_000)
}

fn lane(key: &str) -> LaneId {
    Key::new(key).unwrap().lane()
}

/// A parked row of a key, due at second 10.
fn row(position: u64, key: &str) -> Row {
    row_at(position, key, 10)
}

fn row_at(position: u64, key: &str, due: i64) -> Row {
    let event = Event::raw("order.placed", format!("data {position}")).id(position.to_string()).key(key);
    Row::new(Place::at(position), lane(key), Content::Event(Arc::new(event)), at(due))
}

fn dead(position: u64, key: &str, hold: Hold) -> Row {
    let mut row = row(position, key);
    row.state = RowState::Dead(hold);
    row
}

fn discarded(position: u64, key: &str) -> Row {
    let mut row = row(position, key);
    row.state = RowState::Discarded;
    row
}

fn named(row: &Row) -> RowRef {
    RowRef { place: row.place, lane: row.lane, version: row.version }
}

fn failure(attempt: u32) -> Failure {
    let took = Duration::from_millis(5);
    Failure { at: at(20 + i64::from(attempt)), attempt, took, error: format!("no. {attempt}").into() }
}

fn update(row: &Row, to: Next) -> Op {
    Op::Update { row: named(row), failure: failure(row.attempts + 1), to }
}

const fn stands(holds: bool, next_at: Option<Timestamp>) -> Applied {
    Applied::Lane { holds, next_at }
}

/// A lane without anything that holds it.
const FREE: Applied = stands(false, None);

fn assert_fenced<T: std::fmt::Debug>(answer: Result<T, StoreError>, held: u64, ours: u64) {
    match answer.unwrap_err() {
        StoreError::Fenced { held: h, ours: o, .. } => assert_eq!((h, o), (Epoch(held), Epoch(ours))),
        other => panic!("expected a fence at {held} against {ours}, found {other}"),
    }
}

async fn only_the_highest_epoch_may_write(store: Arc<dyn Store>) {
    store.take_over(&claim(5), None).await.unwrap();
    assert_fenced(store.take_over(&claim(4), None).await, 5, 4);
    assert_fenced(store.apply(&claim(4), &[Op::Floor(Position(1))]).await, 5, 4);
    assert_fenced(store.due(&claim(4), at(0), 10).await, 5, 4);
    assert_fenced(store.apply(&claim(6), &[Op::Floor(Position(1))]).await, 5, 6);
    store.take_over(&claim(5), None).await.expect("the same epoch may take over again");
    store.take_over(&claim(7), None).await.unwrap();
    assert_fenced(store.apply(&claim(5), &[Op::Put(vec![row(1, "a")])]).await, 7, 5);
    store.apply(&claim(7), &[Op::Put(vec![row(1, "a")])]).await.unwrap();
}

async fn a_fenced_apply_changes_nothing(store: Arc<dyn Store>) {
    let old = Owner::of(&store).await;
    old.put(&[row(1, "a")]).await;
    let id = old.command(&row(1, "a"), Action::Discard).await;
    let new = Owner { store: store.clone(), claim: claim(2) };
    new.take_over(None).await.unwrap();
    let ops = [
        Op::Put(vec![row(2, "a")]),
        Op::Append { row: row(3, "b"), late: Late::Insert },
        Op::Finish(named(&row(1, "a"))),
        Op::Operate { id, refused: None, now: at(1) },
    ];
    for op in &ops {
        assert_fenced(store.apply(&old.claim, std::slice::from_ref(op)).await, 2, 1);
    }
    assert_eq!(new.rows().await, [row(1, "a")]);
    assert_eq!(new.state(id).await, CommandState::Waiting);
}

async fn consumers_and_partitions_do_not_see_each_other(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row(1, "a")]).await;
    let mut other_consumer = claim(1);
    other_consumer.consumer = "shipping".into();
    let mut other_partition = claim(1);
    other_partition.partition = partition(1);
    for claim in [other_consumer, other_partition] {
        let other = Owner { store: store.clone(), claim };
        assert_eq!(other.take_over(None).await.unwrap(), TakeOver::default());
        assert_eq!(other.due(at(99), 10).await, (vec![], None));
        assert_eq!(
            other.put(&[row(1, "b")]).await,
            stands(true, Some(at(10))),
            "a place is unique in its partition only"
        );
        assert_eq!(other.apply(Op::Finish(named(&row(1, "b")))).await, FREE);
    }
    assert_eq!(owner.places().await, [1]);
    let third = Claim { epoch: Epoch(9), ..claim(1) };
    store.take_over(&Claim { partition: partition(3), ..third }, None).await.unwrap();
    owner.put(&[row(2, "a")]).await;
}

async fn a_row_comes_back_as_it_was_written(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    let event = Event::raw("order.placed", vec![0, 159, 146, 150]).id("7").source("shop").time(at(-5)).topic("orders");
    let event = event.key("ключ").subject("s").schema("urn:x").content_type("application/cbor");
    let event = event.header("ce-x", "1").header("raw", vec![0xff, 0]);
    let key = event.key.clone().unwrap();
    let place = Place { position: Position(3), index: 2 };
    let mut full = Row::new(place, key.lane(), Content::Event(Arc::new(event)), at(10));
    (full.state, full.version, full.attempts, full.replay) = (RowState::Dead(Hold::Block), 4, 9, true);
    full.parked_at = at(3);
    full.remember(failure(8));
    full.remember(failure(9));
    let mut message = Message::new("orders", vec![1, 2, 0xfe]);
    message.key = Some(vec![0xff].into());
    message.headers.add("Repeats", "1");
    message.headers.add("repeats", vec![0x80]);
    (message.dedup_id, message.stored_at) = (Some("shop#7".into()), Some(at(1)));
    let place = Place::at(u64::try_from(i64::MAX).unwrap());
    let undecodable = Row::new(place, place.lane(), Content::Undecodable(Arc::new(message)), at(11));
    owner.put(std::slice::from_ref(&full)).await;
    owner.append(undecodable.clone(), Late::Finished).await;
    assert_eq!(owner.rows().await, [full, undecodable.clone()]);
    assert_eq!(store.due(&owner.claim, at(11), 10).await.unwrap().heads, [undecodable]);
}

async fn a_put_leaves_rows_that_are_there_as_they_are(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    assert_eq!(owner.put(&[row_at(1, "a", 30), row_at(2, "a", 20)]).await, stands(true, Some(at(30))));
    let again = [row_at(1, "a", 99), row_at(2, "a", 99), row_at(4, "a", 99)];
    assert_eq!(owner.put(&again).await, stands(true, Some(at(30))));
    assert_eq!(owner.rows().await, [row_at(1, "a", 30), row_at(2, "a", 20), row_at(4, "a", 99)]);
    assert_eq!(owner.put(&[dead(7, "b", Hold::Skip)]).await, FREE);
}

async fn an_append_says_where_the_row_stands(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    assert_eq!(owner.append(row(5, "a"), Late::Finished).await, Applied::Appended, "the lane has no rows");
    assert_eq!(owner.append(row(9, "a"), Late::Finished).await, Applied::Appended);
    assert_eq!(owner.append(row(9, "a"), Late::Finished).await, Applied::Present { holds: true });
    assert_eq!(owner.append(row(5, "a"), Late::Insert).await, Applied::Present { holds: true });
    assert_eq!(owner.append(row(7, "a"), Late::Finished).await, Applied::Finished);
    assert_eq!(owner.append(row(2, "b"), Late::Finished).await, Applied::Appended, "another lane has its own end");
    assert_eq!(owner.places().await, [2, 5, 9], "what was finished is not written");
    assert_eq!(owner.append(row(7, "a"), Late::Insert).await, Applied::Appended);
    assert_eq!(owner.places().await, [2, 5, 7, 9]);
}

async fn a_row_of_any_state_is_the_end_of_its_lane(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    let ends = [dead(5, "a", Hold::Skip), dead(15, "b", Hold::Block), discarded(25, "c")];
    for (end, key) in ends.into_iter().zip(["a", "b", "c"]) {
        let (position, holds) = (end.place.position.0, end.holds());
        owner.put(&[end]).await;
        assert_eq!(owner.append(row(position - 1, key), Late::Finished).await, Applied::Finished);
        assert_eq!(owner.append(row(position, key), Late::Finished).await, Applied::Present { holds });
        assert_eq!(owner.append(row(position + 1, key), Late::Finished).await, Applied::Appended);
    }
}

async fn finish_deletes_only_the_version_it_names(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row_at(1, "a", 10), row_at(2, "a", 20)]).await;
    let other = RowRef { version: 2, ..named(&row(1, "a")) };
    assert_eq!(owner.apply(Op::Finish(other)).await, Applied::Conflict);
    assert_eq!(owner.apply(Op::Finish(named(&row(1, "a")))).await, stands(true, Some(at(20))));
    assert_eq!(owner.apply(Op::Finish(named(&row(2, "a")))).await, FREE);
    assert_eq!(owner.apply(Op::Finish(named(&row(2, "a")))).await, FREE, "gone already");
    assert_eq!(owner.places().await, [] as [u64; 0]);
}

async fn update_re_dates_or_gives_up_only_the_version_it_names(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    let mut replayed = row(1, "a");
    replayed.replay = true;
    owner.put(&[replayed.clone(), row_at(2, "a", 15)]).await;
    assert_eq!(owner.apply(update(&replayed, Next::Retry(at(40)))).await, stands(true, Some(at(40))));
    let parked = owner.row(1).await;
    assert_eq!((parked.state, parked.next_at, parked.version, parked.attempts), (RowState::Parked, at(40), 2, 1));
    assert_eq!((parked.replay, parked.history.back()), (false, Some(&failure(1))));
    let stale = Op::Update { row: named(&replayed), failure: failure(7), to: Next::Retry(at(1)) };
    assert_eq!(owner.apply(stale).await, Applied::Conflict);
    assert_eq!(owner.row(1).await, parked);
    assert_eq!(owner.apply(update(&parked, Next::Dead(Hold::Skip))).await, stands(true, Some(at(15))));
    let gone = Op::Update { row: named(&row(9, "a")), failure: failure(1), to: Next::Dead(Hold::Skip) };
    assert_eq!(owner.apply(gone).await, Applied::Conflict);
    let second = owner.row(2).await;
    assert_eq!(owner.apply(update(&second, Next::Dead(Hold::Block))).await, stands(true, None));
    assert_eq!(owner.row(2).await.state, RowState::Dead(Hold::Block));
}

async fn a_row_remembers_its_last_failures(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row(1, "a")]).await;
    let attempts = u32::try_from(HISTORY_MAX).unwrap() + 2;
    for _ in 0..attempts {
        owner.apply(update(&owner.row(1).await, Next::Retry(at(1)))).await;
    }
    let history: Vec<u32> = owner.row(1).await.history.iter().map(|failure| failure.attempt).collect();
    assert_eq!(history, (3..=attempts).collect::<Vec<_>>(), "oldest first, the oldest forgotten");
}

async fn every_operation_can_be_repeated(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row(4, "c"), row(5, "c")]).await;
    let id = owner.command(&row(5, "c"), Action::Skip).await;
    let edit = owner.command(&row(4, "c"), Action::Discard).await;
    let ops = [
        (Op::Put(vec![row(1, "a"), row(2, "a")]), stands(true, Some(at(10)))),
        (update(&row(1, "a"), Next::Retry(at(30))), stands(true, Some(at(30)))),
        (Op::Finish(named(&row(2, "a"))), stands(true, Some(at(30)))),
        (Op::Operate { id, refused: None, now: at(9) }, stands(true, Some(at(10)))),
        (Op::Operate { id: edit, refused: None, now: at(9) }, stands(true, Some(at(10)))),
    ];
    for (op, answer) in &ops {
        for time in ["first", "second"] {
            assert_eq!(owner.apply(op.clone()).await, *answer, "{} for the {time} time", op.name());
        }
    }
    let append = || owner.append(row(3, "b"), Late::Finished);
    assert_eq!((append().await, append().await), (Applied::Appended, Applied::Present { holds: true }));
    assert_eq!(owner.places().await, [1, 3, 4, 5]);
    assert_eq!((owner.row(1).await.version, owner.row(1).await.attempts), (2, 1));
    assert_eq!(owner.row(4).await.version, 2);
}

/// A repeat is recognised although the store keeps less of a time than it was given.
async fn times_may_be_finer_than_what_a_database_keeps(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    let fine = |seconds| at(seconds).after(Duration::from_nanos(1_999));
    let mut first = row(1, "a");
    first.next_at = fine(10);
    owner.put(&[first]).await;
    assert_eq!(owner.due(at(10), 10).await.0, [] as [u64; 0], "a row is never due early");
    assert_eq!(owner.due(at(11), 10).await.0, [1]);
    let failure = Failure { at: fine(12), attempt: 1, took: Duration::from_nanos(7), error: "broken".into() };
    let update = Op::Update { row: named(&row(1, "a")), failure: failure.clone(), to: Next::Retry(fine(20)) };
    let answer = owner.apply(update.clone()).await;
    assert!(matches!(answer, Applied::Lane { holds: true, next_at: Some(next) } if next >= fine(20)), "{answer:?}");
    assert_eq!(owner.apply(update).await, answer, "the second time it finds its work done");
    assert_eq!((owner.row(1).await.version, owner.row(1).await.history), (2, [failure].into()));
    assert_eq!(owner.due(at(20), 10).await.0, [] as [u64; 0]);
}

async fn operations_see_those_before_them(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    let ops = [
        Op::Put(vec![row_at(1, "a", 10)]),
        Op::Append { row: row_at(2, "a", 20), late: Late::Finished },
        Op::Finish(named(&row(1, "a"))),
        Op::Append { row: row(1, "a"), late: Late::Finished },
        Op::Put(vec![row_at(9, "b", 5)]),
    ];
    let answers = [
        stands(true, Some(at(10))),
        Applied::Appended,
        stands(true, Some(at(20))),
        Applied::Finished,
        stands(true, Some(at(5))),
    ];
    assert_eq!(owner.all(&ops).await, answers);
    assert_eq!(owner.all(&[]).await, []);
}

async fn only_heads_are_due_earliest_first(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row_at(1, "a", 30), row_at(2, "a", 1)]).await;
    owner.put(&[row_at(3, "b", 20)]).await;
    owner.put(&[row_at(4, "c", 40)]).await;
    owner.put(&[dead(5, "d", Hold::Skip), row_at(6, "d", 10)]).await;
    assert_eq!(owner.due(at(9), 10).await, (vec![], Some(at(10))));
    assert_eq!(owner.due(at(30), 10).await, (vec![6, 3, 1], Some(at(40))), "a head due at this very time is due");
    assert_eq!(owner.due(at(30), 2).await, (vec![6, 3], Some(at(30))), "a head cut off by the limit is the next");
    assert_eq!(owner.due(at(99), 10).await, (vec![6, 3, 1, 4], None));
    assert_eq!(owner.due(at(99), 0).await, (vec![], Some(at(10))));
    owner.apply(Op::Finish(named(&row(1, "a")))).await;
    assert_eq!(owner.due(at(1), 10).await, (vec![2], Some(at(10))), "the next of the lane is the head");
    owner.apply(update(&row_at(3, "b", 20), Next::Retry(at(0)))).await;
    assert_eq!(owner.due(at(1), 10).await, (vec![3, 2], Some(at(10))));
}

async fn a_blocking_head_holds_its_lane_and_is_never_due(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    assert_eq!(owner.put(&[dead(1, "a", Hold::Block), row(2, "a")]).await, stands(true, None));
    assert_eq!(owner.due(at(99), 10).await, (vec![], None));
    assert_eq!(owner.append(row(3, "a"), Late::Finished).await, Applied::Appended);
    assert_eq!(owner.apply(Op::Finish(named(&row(1, "a")))).await, stands(true, Some(at(10))));
    assert_eq!(owner.due(at(99), 10).await, (vec![2], None));
    owner.put(&[row(7, "b"), dead(8, "b", Hold::Block)]).await;
    assert_eq!(owner.apply(Op::Finish(named(&row(7, "b")))).await, stands(true, None));
}

async fn events_of_one_message_keep_their_order(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    let nth = |index, due| {
        let mut row = row_at(5, "a", due);
        row.place.index = index;
        row
    };
    owner.put(&[nth(1, 30), nth(3, 10)]).await;
    assert_eq!(owner.append(nth(2, 10), Late::Finished).await, Applied::Finished);
    assert_eq!(owner.append(nth(3, 10), Late::Finished).await, Applied::Present { holds: true });
    assert_eq!(owner.append(nth(0, 20), Late::Insert).await, Applied::Appended, "it is the head from now on");
    assert_eq!(owner.append(nth(4, 10), Late::Finished).await, Applied::Appended);
    assert_eq!(owner.due(at(29), 10).await, (vec![5], None));
    assert_eq!(owner.apply(Op::Finish(named(&nth(0, 20)))).await, stands(true, Some(at(30))));
    let query = Query { after: Some(nth(1, 0).place), ..Query::default() };
    let after: Vec<u32> = store.browse(&query).await.unwrap().iter().map(|listed| listed.row.place.index).collect();
    assert_eq!(after, [3, 4]);
}

async fn taking_over_tells_which_lanes_have_rows(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row_at(1, "parked", 30), row_at(2, "parked", 5)]).await;
    owner.put(&[dead(3, "skip", Hold::Skip)]).await;
    owner.put(&[dead(4, "block", Hold::Block), row_at(5, "block", 1)]).await;
    owner.put(&[discarded(6, "discarded")]).await;
    owner.put(&[dead(7, "mixed", Hold::Skip), row_at(8, "mixed", 20), discarded(9, "mixed")]).await;
    let expected = |floor: Option<u64>| {
        let above = |position: u64| Some(Position(position)).filter(|_| Some(position) > floor);
        let mut lanes = vec![
            (lane("parked"), true, None),
            (lane("skip"), false, above(3)),
            (lane("block"), true, above(4)),
            (lane("discarded"), false, above(6)),
            (lane("mixed"), true, above(9)),
        ];
        lanes.sort();
        lanes
    };
    for (epoch, floor) in [(2, None), (3, Some(2)), (4, Some(5))] {
        let owner = Owner { store: store.clone(), claim: claim(epoch) };
        let taken = owner.take_over(floor).await.unwrap();
        assert_eq!(taken.next_at, Some(at(20)));
        let mut lanes: Vec<_> =
            taken.lanes.iter().map(|StoredLane { lane, holds, mark }| (*lane, *holds, *mark)).collect();
        lanes.sort();
        assert_eq!(lanes, expected(floor));
    }
}

async fn a_mark_follows_what_becomes_of_its_row(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[dead(1, "a", Hold::Block), dead(3, "a", Hold::Skip), row(5, "a"), row(7, "a")]).await;
    let mark = async || owner.take_over(None).await.unwrap().lanes[0].mark.map(|mark| mark.0);
    assert_eq!(mark().await, Some(3));
    owner.apply(update(&row(5, "a"), Next::Dead(Hold::Skip))).await;
    assert_eq!(mark().await, Some(5));
    owner.operate(7, Action::Discard).await;
    assert_eq!(mark().await, Some(7));
    owner.operate(7, Action::Replay).await;
    assert_eq!(mark().await, Some(5));
    owner.apply(Op::Finish(RowRef { version: 2, ..named(&row(5, "a")) })).await;
    owner.apply(Op::Finish(named(&row(3, "a")))).await;
    assert_eq!(mark().await, Some(1));
    owner.operate(1, Action::Replay).await;
    assert_eq!(mark().await, None);
}

async fn a_lane_may_have_any_hash(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    let hashes = [0, 1, u64::MAX >> 1, 1 << 63, u64::MAX];
    for (position, hash) in (1..).zip(hashes) {
        owner.put(&[Row { lane: LaneId(hash), ..row(position, "a") }]).await;
    }
    let mut lanes: Vec<u64> = owner.take_over(None).await.unwrap().lanes.iter().map(|stored| stored.lane.0).collect();
    lanes.sort_unstable();
    assert_eq!(lanes, hashes);
    assert_eq!(owner.due(at(10), 10).await.0, [1, 2, 3, 4, 5]);
}

async fn the_floor_deletes_marks_and_nothing_else(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[discarded(1, "a"), dead(2, "a", Hold::Skip), discarded(3, "a"), row(4, "a"), discarded(5, "a")]).await;
    owner.put(&[discarded(6, "b")]).await;
    owner.apply(Op::Floor(Position(2))).await;
    assert_eq!(owner.places().await, [2, 3, 4, 5, 6]);
    owner.apply(Op::Floor(Position(3))).await;
    owner.apply(Op::Floor(Position(1))).await;
    assert_eq!(owner.places().await, [2, 4, 5, 6]);
    let taken = owner.take_over(Some(6)).await.unwrap();
    assert_eq!(owner.places().await, [2, 4], "dead and parked rows stay at any floor");
    assert_eq!(taken.lanes, [StoredLane { lane: lane("a"), holds: true, mark: None }]);
    assert_eq!(owner.append(row(3, "b"), Late::Finished).await, Applied::Appended, "the lane is forgotten");
}

async fn commands_wait_for_their_partitions_owner(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row(1, "a"), row(2, "a"), row(3, "a")]).await;
    let mut ids = Vec::new();
    for position in [3, 1, 2] {
        ids.push(owner.command(&row(position, "a"), Action::Replay).await);
    }
    let waiting = |due: crate::store::Due| due.commands.iter().map(|(id, _)| *id).collect::<Vec<_>>();
    let due = store.due(&owner.claim, at(0), 10).await.unwrap();
    assert_eq!(due.commands[0].1, owner.command_on(&row(3, "a"), Action::Replay));
    assert_eq!(waiting(due), ids, "oldest first");
    assert_eq!(waiting(store.due(&owner.claim, at(0), 2).await.unwrap()), ids[..2]);
    assert_eq!(owner.state(ids[0]).await, CommandState::Waiting);
    let other = Owner { store: store.clone(), claim: Claim { partition: partition(1), ..claim(1) } };
    other.take_over(None).await.unwrap();
    assert!(waiting(store.due(&other.claim, at(0), 10).await.unwrap()).is_empty());
    assert_eq!(other.apply(Op::Operate { id: ids[0], refused: None, now: at(1) }).await, Applied::Conflict);
    owner.apply(Op::Operate { id: ids[0], refused: None, now: at(1) }).await;
    assert_eq!(waiting(store.due(&owner.claim, at(0), 10).await.unwrap()), ids[1..]);
    let unknown = CommandId(ids.iter().map(|id| id.0).max().unwrap() + 1_000);
    assert_eq!(store.command_result(unknown).await.unwrap(), None);
}

async fn each_command_does_what_it_says(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    let mut tried = dead(1, "a", Hold::Block);
    tried.attempts = 20;
    owner.put(&[tried, dead(2, "a", Hold::Block), row(3, "a")]).await;
    let done = CommandState::Done { at: at(50) };
    assert_eq!(owner.operate(1, Action::Replay).await, (stands(true, Some(at(50))), done.clone()));
    let replayed = owner.row(1).await;
    assert_eq!((replayed.state, replayed.next_at), (RowState::Parked, at(50)));
    assert_eq!((replayed.attempts, replayed.replay, replayed.version), (0, true, 2));
    assert_eq!(owner.operate(1, Action::Discard).await, (stands(true, None), done.clone()));
    assert_eq!((owner.row(1).await.state, owner.row(1).await.version), (RowState::Discarded, 3));
    assert_eq!(owner.operate(2, Action::Skip).await, (stands(true, Some(at(10))), done.clone()));
    assert_eq!((owner.row(2).await.state, owner.row(2).await.version), (RowState::Dead(Hold::Skip), 2));
    let edited = Arc::new(Event::raw("order.placed", "mended").id("3").key("a"));
    assert_eq!(owner.operate(3, Action::Edit(edited.clone())).await, (stands(true, Some(at(10))), done));
    assert_eq!((owner.row(3).await.content, owner.row(3).await.version), (Content::Event(edited), 2));
}

async fn a_command_brings_back_a_row_of_any_state(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[dead(1, "a", Hold::Skip), discarded(2, "a")]).await;
    owner.put(&[row(3, "b")]).await;
    for (position, key) in [(2, "a"), (1, "a"), (3, "b")] {
        let (answer, state) = owner.operate(position, Action::Replay).await;
        assert_eq!((answer, state), (stands(true, Some(at(50))), CommandState::Done { at: at(50) }), "{key}");
        assert_eq!(owner.row(position).await.state, RowState::Parked);
    }
    owner.apply(Op::Floor(Position(9))).await;
    assert_eq!(owner.places().await, [1, 2, 3], "what was brought back is no mark");
}

async fn what_became_of_a_command_stays(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row(1, "a"), row(2, "a")]).await;
    let done = owner.command(&row(1, "a"), Action::Discard).await;
    let refused = owner.command(&row(2, "a"), Action::Discard).await;
    let operate = async |id, refused: Option<&str>, now| {
        owner.apply(Op::Operate { id, refused: refused.map(Text::from), now: at(now) }).await
    };
    operate(done, None, 1).await;
    operate(refused, Some("first"), 1).await;
    assert_eq!(operate(done, Some("too late"), 2).await, stands(true, Some(at(10))));
    assert_eq!(operate(refused, None, 2).await, stands(true, Some(at(10))));
    assert_eq!(owner.state(done).await, CommandState::Done { at: at(1) });
    assert_eq!(owner.state(refused).await, CommandState::Refused { at: at(1), why: "first".into() });
    assert_eq!((owner.row(1).await.state, owner.row(2).await.state), (RowState::Discarded, RowState::Parked));
    owner.apply(Op::Finish(named(&row(2, "a")))).await;
    assert_eq!(operate(refused, None, 3).await, Applied::Conflict, "the row has changed since");
}

async fn a_command_that_cannot_be_carried_out_says_why(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row(1, "a"), dead(2, "b", Hold::Skip)]).await;
    let other_key = Action::Edit(Arc::new(Event::raw("order.placed", "x").key("other")));
    for (position, action) in [(1, Action::Skip), (2, Action::Skip), (1, other_key)] {
        let (_, state) = owner.operate(position, action.clone()).await;
        assert!(matches!(state, CommandState::Refused { .. }), "{action:?} on {position} ended as {state:?}");
    }
    let id = owner.command(&row(1, "a"), Action::Discard).await;
    let why = Text::from("it is running");
    let refuse = Op::Operate { id, refused: Some(why.clone()), now: at(7) };
    assert_eq!(owner.apply(refuse).await, stands(true, Some(at(10))));
    assert_eq!(owner.state(id).await, CommandState::Refused { at: at(7), why });
    assert_eq!(owner.rows().await, [row(1, "a"), dead(2, "b", Hold::Skip)], "nothing has changed");
    let stale = owner.command(&row(1, "a"), Action::Discard).await;
    owner.apply(update(&row(1, "a"), Next::Retry(at(60)))).await;
    let gone = owner.command(&dead(2, "b", Hold::Skip), Action::Discard).await;
    owner.apply(Op::Finish(named(&dead(2, "b", Hold::Skip)))).await;
    for id in [stale, gone] {
        assert_eq!(owner.apply(Op::Operate { id, refused: None, now: at(8) }).await, Applied::Conflict);
        assert!(matches!(owner.state(id).await, CommandState::Refused { .. }));
    }
    assert_eq!(owner.row(1).await.state, RowState::Parked);
}

async fn a_command_names_a_row_in_a_version_that_is_there(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row(1, "a")]).await;
    let mut newer = row(1, "a");
    newer.version = 3;
    let mut commands: Vec<_> = [newer, row(2, "a"), Row { lane: lane("b"), ..row(1, "a") }]
        .map(|missing| owner.command_on(&missing, Action::Discard))
        .into();
    commands.push(Command { partition: partition(9), ..owner.command_on(&row(1, "a"), Action::Discard) });
    for command in commands {
        let answer = store.command(&command).await;
        assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
    }
    assert!(store.due(&owner.claim, at(0), 10).await.unwrap().commands.is_empty());
}

async fn browsing_finds_what_it_is_asked_for(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    owner.put(&[row(3, "a"), row(5, "a")]).await;
    owner.put(&[dead(4, "b", Hold::Skip), dead(6, "b", Hold::Block), discarded(8, "b")]).await;
    store.bury(&"shipping".into(), &partition(1), &[dead(7, "a", Hold::Skip)]).await.unwrap();
    let found = async |narrow: fn(&mut Query)| {
        let mut query = Query::default();
        narrow(&mut query);
        let listed = store.browse(&query).await.unwrap();
        listed.iter().map(|listed| listed.row.place.position.0).collect::<Vec<_>>()
    };
    assert_eq!(found(|_| ()).await, [3, 4, 5, 6, 7, 8], "in the order of their places");
    assert_eq!(found(|q| q.consumer = Some("shipping".into())).await, [7]);
    assert_eq!(found(|q| q.consumer = Some("nobody".into())).await, [] as [u64; 0]);
    assert_eq!(found(|q| q.partition = Some(partition(0))).await, [3, 4, 5, 6, 8]);
    assert_eq!(found(|q| q.key = Key::new("a")).await, [3, 5, 7]);
    assert_eq!(found(|q| q.dead = Some(true)).await, [4, 6, 7]);
    assert_eq!(found(|q| q.dead = Some(false)).await, [3, 5]);
    assert_eq!(found(|q| q.after = Some(Place::at(5))).await, [6, 7, 8]);
    assert_eq!(found(|q| q.limit = 2).await, [3, 4]);
    let listed = store.browse(&Query { consumer: Some("shipping".into()), ..Query::default() }).await.unwrap();
    assert_eq!((&listed[0].consumer, &listed[0].partition), (&"shipping".into(), &partition(1)));
    let place = Place::at(9);
    let message = Content::Undecodable(Arc::new(Message::new("orders", "?")));
    owner.put(&[Row::new(place, place.lane(), message, at(1))]).await;
    assert_eq!(found(|q| q.key = Key::new("a")).await, [3, 5, 7], "what could not be decoded has no key");
    assert_eq!(
        found(|q| (q.key, q.dead, q.after, q.limit) = (Key::new("a"), Some(false), Some(Place::at(3)), 1)).await,
        [5]
    );
    let many: Vec<Row> = (100..220).map(|position| row(position, "many")).collect();
    owner.put(&many).await;
    assert_eq!(found(|_| ()).await.len(), 100, "no limit means 100");
}

async fn burying_needs_no_claim_and_keeps_what_is_there(store: Arc<dyn Store>) {
    let first = dead(1, "a", Hold::Skip);
    let mut changed = first.clone();
    changed.attempts = 7;
    store.bury(&claim(1).consumer, &partition(0), std::slice::from_ref(&first)).await.unwrap();
    store.bury(&claim(1).consumer, &partition(0), &[changed, dead(2, "a", Hold::Skip)]).await.unwrap();
    let owner = Owner { store: store.clone(), claim: claim(1) };
    let taken = owner.take_over(None).await.expect("burying raises no fence");
    assert_eq!(owner.rows().await, [first, dead(2, "a", Hold::Skip)]);
    assert_eq!(taken.lanes, [StoredLane { lane: lane("a"), holds: false, mark: Some(Position(2)) }]);
    let id = owner.command(&dead(1, "a", Hold::Skip), Action::Replay).await;
    owner.apply(Op::Operate { id, refused: None, now: at(1) }).await;
    assert_eq!(owner.due(at(1), 10).await, (vec![1], None), "whoever takes over can replay it");
    let others = [dead(5, "b", Hold::Skip), dead(6, "a", Hold::Skip), dead(7, "b", Hold::Block)];
    store.bury(&claim(1).consumer, &partition(0), &others).await.unwrap();
    let mut lanes = owner.take_over(None).await.unwrap().lanes;
    lanes.sort_by_key(|stored| stored.mark);
    let expected = [("a", 6), ("b", 7)].map(|(key, mark)| (lane(key), true, Some(Position(mark))));
    assert_eq!(lanes.iter().map(|stored| (stored.lane, stored.holds, stored.mark)).collect::<Vec<_>>(), expected);
}

async fn a_row_that_is_too_large_is_refused(store: Arc<dyn Store>) {
    let owner = Owner::of(&store).await;
    let bytes = store.abilities().row_bytes_max + 1;
    let mut large = row(2, "a");
    large.content = Content::Event(Arc::new(Event::raw("order.placed", vec![0; bytes]).key("a")));
    let ops = [Op::Put(vec![row(1, "a"), large.clone()]), Op::Append { row: large.clone(), late: Late::Insert }];
    for op in ops {
        let answer = store.apply(&owner.claim, &[op]).await;
        assert!(matches!(answer, Err(StoreError::Refused(_))), "{answer:?}");
    }
    assert_eq!(owner.places().await, [] as [u64; 0], "nothing of the lane is written");
    assert!(matches!(store.bury(&claim(1).consumer, &partition(0), &[large]).await, Err(StoreError::Refused(_))));
}

/// Writers may share a commit; a refusal is nobody else's.
async fn partitions_are_written_at_the_same_time(store: Arc<dyn Store>) {
    let mut tasks = Vec::new();
    for index in 0..16 {
        let owner = Owner { store: store.clone(), claim: Claim { partition: partition(index), ..claim(1) } };
        tasks.push(tokio::spawn(async move {
            owner.take_over(None).await.unwrap();
            for position in 1..20 {
                if index % 4 == 0 {
                    let older = Claim { epoch: Epoch(0), ..owner.claim.clone() };
                    assert_fenced(owner.store.apply(&older, &[Op::Put(vec![row(99, "a")])]).await, 1, 0);
                }
                let answer = owner.append(row(position, "a"), Late::Finished).await;
                assert_eq!(answer, Applied::Appended);
            }
            let Applied::Lane { holds: true, .. } = owner.apply(Op::Finish(named(&row(1, "a")))).await else {
                panic!("the lane has rows")
            };
            assert_eq!(owner.places().await, (2..20).collect::<Vec<_>>());
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
}
