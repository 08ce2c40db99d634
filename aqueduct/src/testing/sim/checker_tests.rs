//! Histories written by hand: each way to break an invariant, and what looks like one and is allowed.

use std::time::Duration;

use super::checker::{Invariant, Told, Truth, check};
use super::history::{EventNo, Instance, NOBODY, Record, Run, What};
use crate::broker::Ownership;
use crate::clock::Boot;
use crate::store::{Hold, RowState};
use crate::topic::{Epoch, Partition, Position};

const SKIP: RowState = RowState::Dead(Hold::Skip);
const BLOCK: RowState = RowState::Dead(Hold::Block);
const FOREVER: u64 = u64::MAX;

/// A history in the making: events 0 to 3 are the four of key `k`, at positions 10 to 13 of one partition; 4 and 5 have
/// no key.
struct Story {
    records: Vec<Record>,
    truth: Truth,
    now: u64,
    runs: Run,
}

fn partition() -> Partition {
    Partition { topic: "t".into(), index: 0 }
}

fn place(event: EventNo) -> Position {
    Position(10 + u64::from(event))
}

impl Story {
    /// A story of that many of the events.
    fn of(published: EventNo) -> Self {
        let told = |lane: &str, counter| Told { lane: lane.to_owned(), counter };
        let mut events: Vec<Told> = (0..4).map(|n| told("k", n)).collect();
        events.extend([told("-4", 0), told("-5", 0)]);
        let patience = Duration::from_secs(10);
        let ownership = Ownership::Floor;
        let truth = Truth {
            ownership,
            has_store: true,
            events,
            concurrency: 2,
            buffer: 3,
            attempts_max: 2,
            shutdown: Duration::from_secs(1),
            patience,
        };
        let mut story = Self { records: Vec::new(), truth, now: 0, runs: 0 };
        for event in 0..published {
            story.say(NOBODY, What::Published { event, partition: partition(), position: place(event) });
        }
        story
    }

    fn owned(mut self, ownership: Ownership) -> Self {
        self.truth.ownership = ownership;
        self
    }

    fn say(&mut self, instance: Instance, what: What) -> &mut Self {
        self.now += 1;
        self.records.push(Record { at: Boot(self.now), instance, what });
        self
    }

    fn start_under(&mut self, instance: Instance, event: EventNo, attempt: u32, lease: u64) -> Run {
        let (run, lease) = (self.runs, Boot(lease));
        self.runs += 1;
        let (partition, epoch) = (partition(), Epoch(1));
        self.say(instance, What::Started { run, event, partition, epoch, attempt, lease });
        run
    }

    fn start(&mut self, instance: Instance, event: EventNo) -> Run {
        self.start_under(instance, event, 1, FOREVER)
    }

    fn poll(&mut self, instance: Instance, run: Run) -> &mut Self {
        self.say(instance, What::Polled { run, lease: Boot(FOREVER) })
    }

    fn end(&mut self, instance: Instance, run: Run) -> &mut Self {
        self.say(instance, What::Ended { run })
    }

    /// A whole successful attempt.
    fn does(&mut self, instance: Instance, event: EventNo) -> &mut Self {
        let run = self.start(instance, event);
        self.say(instance, What::Effect { run }).end(instance, run)
    }

    fn fails(&mut self, instance: Instance, event: EventNo) -> &mut Self {
        let run = self.start(instance, event);
        self.say(instance, What::Failed { run }).end(instance, run)
    }

    fn stores(&mut self, instance: Instance, event: EventNo, state: RowState) -> &mut Self {
        self.say(instance, What::Stored { partition: partition(), position: place(event), state })
    }

    fn leaves(&mut self, event: EventNo, state: RowState) -> &mut Self {
        self.say(NOBODY, What::Left { partition: partition(), position: place(event), state })
    }

    fn floor(&mut self, event: EventNo) -> &mut Self {
        self.say(0, What::Floor { partition: partition(), position: place(event) })
    }

    fn passes(&self) {
        assert_eq!(check(&self.records, &self.truth), []);
    }

    /// Asserts that this invariant is broken in these words, and no other.
    fn breaks(&self, invariant: Invariant, words: &str) {
        let found = check(&self.records, &self.truth);
        assert!(found.iter().any(|v| v.invariant == invariant && v.text.contains(words)), "{found:#?}");
        assert!(found.iter().all(|v| v.invariant == invariant), "{found:#?}");
    }
}

#[test]
fn a_run_in_order_passes() {
    let mut s = Story::of(6);
    s.does(0, 0).does(0, 1).does(0, 4).fails(0, 2).stores(0, 2, RowState::Parked).stores(0, 3, RowState::Parked);
    s.does(0, 5).floor(5).does(0, 2).does(0, 3).say(NOBODY, What::Calm).say(NOBODY, What::Settled).passes();
}

#[test]
fn an_event_without_any_end_is_lost() {
    Story::of(1).breaks(Invariant::NoLoss, "key k counter 0 (event 0) is lost");
}

#[test]
fn an_event_ends_in_exactly_one_way() {
    Story::of(5).does(0, 0).does(0, 1).does(0, 2).does(0, 3).stores(0, 4, SKIP).leaves(4, SKIP).passes();
    let mut s = Story::of(1);
    s.does(0, 0).stores(0, 0, SKIP).leaves(0, SKIP).breaks(Invariant::NoLoss, "has an effect and is a dead letter too");
    let mut s = Story::of(1);
    s.does(0, 0).leaves(0, RowState::Parked).breaks(Invariant::NoLoss, "still parked");
    let mut s = Story::of(1);
    s.does(0, 0).stores(0, 0, RowState::Discarded).breaks(Invariant::NoLoss, "discarded too");
    Story::of(1).stores(0, 0, RowState::Discarded).passes();
}

#[test]
fn a_parked_event_may_stay_only_behind_a_dead_letter_that_blocks() {
    let mut s = Story::of(2);
    s.stores(0, 0, BLOCK).stores(0, 1, RowState::Parked).leaves(0, BLOCK).leaves(1, RowState::Parked).passes();
    let mut s = Story::of(2);
    s.stores(0, 0, SKIP).stores(0, 1, RowState::Parked).leaves(0, SKIP).leaves(1, RowState::Parked);
    s.breaks(Invariant::NoLoss, "still parked and no dead letter holds its key");
}

#[test]
fn nothing_starts_before_what_is_earlier_in_its_key() {
    let mut s = Story::of(2);
    s.fails(0, 0).does(0, 1);
    s.does(0, 0);
    let found = check(&s.records, &s.truth);
    assert!(found.iter().any(|v| v.text.contains("counter 1 (event 1) started before key k counter 0")), "{found:#?}");
    assert!(found.iter().any(|v| v.text.contains("the last effect is key k counter 0")), "{found:#?}");
}

#[test]
fn other_keys_do_not_wait_and_dead_letters_are_passed() {
    let mut s = Story::of(5);
    s.does(0, 4).fails(0, 0).stores(0, 0, SKIP).does(0, 1).does(0, 2).does(0, 3).leaves(0, SKIP).passes();
}

#[test]
fn a_dead_letter_is_passed_only_once_it_is_written() {
    let mut s = Story::of(2);
    s.fails(0, 0).does(0, 1).stores(0, 0, SKIP).leaves(0, SKIP);
    s.breaks(Invariant::KeyOrder, "started before key k counter 0");
}

#[test]
fn nothing_passes_a_dead_letter_that_blocks() {
    let mut s = Story::of(2);
    s.stores(0, 0, BLOCK).leaves(0, BLOCK).does(0, 1).breaks(Invariant::KeyOrder, "behind the blocking dead letter");
}

#[test]
fn a_crash_may_repeat_a_suffix_to_its_end() {
    let mut s = Story::of(4);
    s.does(0, 0).does(0, 1).does(0, 2).say(0, What::Crashed);
    s.does(1, 1).does(1, 2).does(1, 3).passes();
}

#[test]
fn a_repeated_suffix_has_no_hole_and_ends_on_the_latest() {
    let mut s = Story::of(3);
    s.does(0, 0).does(0, 1).does(0, 2).say(0, What::Crashed).does(1, 0).does(1, 2);
    s.breaks(Invariant::KeyOrder, "left out key k counter 1");
    let mut s = Story::of(3);
    s.does(0, 0).does(0, 1).does(0, 2).say(0, What::Crashed).does(1, 0).does(1, 1);
    s.breaks(Invariant::KeyOrder, "the last effect is key k counter 1");
}

#[test]
fn a_repeat_may_end_before_what_was_given_up_in_it() {
    let repeat = |s: &mut Story, state| {
        s.does(0, 0).does(0, 1).say(0, What::Crashed).stores(1, 1, state).does(1, 0);
    };
    let mut s = Story::of(2);
    repeat(&mut s, RowState::Discarded);
    s.passes();
    let mut s = Story::of(2);
    repeat(&mut s, RowState::Parked);
    s.breaks(Invariant::KeyOrder, "the last effect is key k counter 0");
    let mut s = Story::of(2);
    s.stores(0, 1, RowState::Discarded).does(0, 0).does(0, 1).say(0, What::Crashed).does(1, 0);
    s.breaks(Invariant::KeyOrder, "the last effect is key k counter 0");
}

#[test]
fn single_acknowledgements_leave_no_hole_in_a_repeat() {
    let mut s = Story::of(3).owned(Ownership::AckEach);
    s.does(0, 0).does(0, 1).does(0, 2).say(0, What::Crashed).does(1, 0).does(1, 2);
    s.breaks(Invariant::KeyOrder, "left out key k counter 1");
}

#[test]
fn a_lease_ends_polling() {
    let mut s = Story::of(1);
    let run = s.start_under(0, 0, 1, 3);
    s.say(0, What::Polled { run, lease: Boot(3) }).say(0, What::Effect { run });
    s.breaks(Invariant::Exclusion, "after the lease of its owner");
    let mut s = Story::of(1);
    let run = s.start_under(0, 0, 1, 3);
    s.say(0, What::Polled { run, lease: Boot(9) }).say(0, What::Effect { run }).end(0, run).passes();
    let mut s = Story::of(1);
    s.now = 5;
    let run = s.start_under(0, 0, 1, 6);
    s.say(0, What::Effect { run }).end(0, run).breaks(Invariant::Exclusion, "was polled 0ns after the lease");
}

#[test]
fn two_runs_of_a_key_do_not_overlap_in_one_instance() {
    let mut s = Story::of(1);
    let (a, b) = (s.start(0, 0), s.start(0, 0));
    s.end(0, a).say(0, What::Effect { run: b }).end(0, b).breaks(Invariant::Exclusion, "overlap");
    let mut s = Story::of(1);
    let a = s.start(0, 0);
    s.end(0, a).does(0, 0).passes();
}

#[test]
fn a_frozen_run_may_linger_and_may_not_be_polled_again() {
    let mut s = Story::of(1);
    let a = s.start(0, 0);
    s.say(0, What::Frozen).does(1, 0).say(0, What::Thawed).end(0, a).passes();
    let mut s = Story::of(1);
    let a = s.start(0, 0);
    s.say(0, What::Frozen).does(1, 0).say(0, What::Thawed).poll(0, a).end(0, a);
    s.breaks(Invariant::Exclusion, "overlap");
}

#[test]
fn events_without_a_key_run_at_the_same_time() {
    let mut s = Story::of(6);
    s.does(0, 0).does(0, 1).does(0, 2).does(0, 3);
    let (a, b) = (s.start(0, 4), s.start(0, 5));
    s.poll(0, a)
        .poll(0, b)
        .say(0, What::Effect { run: a })
        .say(0, What::Effect { run: b })
        .end(0, a)
        .end(0, b)
        .passes();
}

#[test]
fn competing_instances_promise_no_order_and_no_exclusion() {
    let mut s = Story::of(2).owned(Ownership::Competing);
    let (a, b) = (s.start(0, 1), s.start(1, 0));
    s.poll(0, a).poll(1, b).say(0, What::Effect { run: a }).say(1, What::Effect { run: b });
    s.end(0, a).end(1, b).passes();
}

#[test]
fn an_acknowledgement_follows_effect_parked_copy_or_dead_letter() {
    let mut s = Story::of(2);
    s.does(0, 0).floor(1).does(0, 1).breaks(Invariant::Watermark, "floor 11 acknowledged, key k counter 1");
    let mut s = Story::of(2);
    s.does(0, 0).stores(0, 1, RowState::Parked).floor(1).does(0, 1).passes();
    let mut s = Story::of(1).owned(Ownership::AckEach);
    s.say(0, What::Done { partition: partition(), position: place(0) }).does(0, 0);
    s.breaks(Invariant::Watermark, "acknowledged before effect");
    let mut s = Story::of(1).owned(Ownership::Competing);
    s.say(0, What::Done { partition: partition(), position: place(0) }).does(0, 0);
    s.breaks(Invariant::Watermark, "acknowledged before effect");
}

#[test]
fn a_row_is_deleted_only_after_its_effect() {
    let deleted = What::Finished { partition: partition(), position: place(0) };
    let mut s = Story::of(1);
    s.stores(0, 0, RowState::Parked).say(0, deleted.clone()).does(0, 0).breaks(Invariant::Watermark, "deleted before");
    Story::of(1).stores(0, 0, RowState::Parked).does(0, 0).say(0, deleted).passes();
}

#[test]
fn everything_settles_in_time_after_the_faults() {
    let mut s = Story::of(1);
    s.does(0, 0).say(NOBODY, What::Calm).breaks(Invariant::Liveness, "settled never");
    s.now += 11_000_000_000;
    s.say(NOBODY, What::Settled).breaks(Invariant::Liveness, "settled too late: 10s allowed");
}

#[test]
fn concurrency_is_a_limit() {
    let mut s = Story::of(6);
    s.does(0, 0).does(0, 1).does(0, 2);
    let runs = [s.start(0, 3), s.start(0, 4), s.start(0, 5)];
    for run in runs {
        s.say(0, What::Effect { run }).end(0, run);
    }
    s.breaks(Invariant::Bounds, "instance 0 runs 3, its limit is 2");
}

#[test]
fn the_buffer_is_a_limit() {
    let mut s = Story::of(6);
    let positions: Vec<Position> = (0..6).map(place).collect();
    s.say(0, What::Delivered { partition: partition(), positions: positions.clone() });
    for event in 0..6 {
        s.does(0, event);
    }
    s.breaks(Invariant::Bounds, "holds 6, its limit is 5");
    let mut s = Story::of(6);
    s.say(0, What::Delivered { partition: partition(), positions: positions[..4].to_vec() }).does(0, 0).does(0, 1);
    s.say(0, What::Delivered { partition: partition(), positions: positions[4..].to_vec() });
    for event in 2..6 {
        s.does(0, event);
    }
    s.passes();
    s.say(0, What::Overfull { deliveries: 9 }).breaks(Invariant::Bounds, "9 deliveries");
}

#[test]
fn attempts_are_limited() {
    let mut s = Story::of(1);
    let run = s.start_under(0, 0, 3, FOREVER);
    s.say(0, What::Effect { run }).end(0, run).breaks(Invariant::Bounds, "attempt 3 of key k counter 0");
    let mut s = Story::of(1);
    s.fails(0, 0).fails(0, 0).fails(0, 0).does(0, 0).breaks(Invariant::Bounds, "failed 3 times, the policy allows 2");
    let mut s = Story::of(1);
    s.fails(0, 0).fails(0, 0).say(0, What::Crashed).fails(1, 0).does(1, 0).passes();
}

#[test]
fn a_second_effect_needs_a_disruption_that_involves_it() {
    let words = "took effect twice";
    Story::of(1).does(0, 0).does(0, 0).breaks(Invariant::Bounds, words);
    Story::of(1).does(0, 0).say(1, What::Crashed).does(0, 0).breaks(Invariant::Bounds, words);
    Story::of(1).say(0, What::Frozen).does(0, 0).does(1, 0).breaks(Invariant::Bounds, words);
    let elsewhere = Partition { index: 9, ..partition() };
    Story::of(1).does(0, 0).say(0, What::Lost { partition: elsewhere }).does(1, 0).breaks(Invariant::Bounds, words);
    let excuses = [
        What::Crashed,
        What::Frozen,
        What::Lost { partition: partition() },
        What::Stopped { error: Some("abandoned".into()) },
        What::Fault { point: "settle/after".into() },
    ];
    for what in excuses {
        Story::of(1).does(0, 0).say(0, what).does(1, 0).passes();
    }
    let mut s = Story::of(5);
    let hanging = s.start(0, 4);
    s.does(0, 0).end(0, hanging).does(1, 0).does(1, 4).does(1, 1).does(1, 2).does(1, 3).passes();
}

#[test]
fn a_handover_excuses_a_second_effect_only_after_what_could_not_be_finished() {
    for what in [What::Stopping, What::Released { partition: partition() }] {
        let mut s = Story::of(1);
        s.does(0, 0).say(0, what.clone()).does(1, 0).breaks(Invariant::Bounds, "took effect twice");
        for (has_store, excused) in [(true, false), (false, true)] {
            // Event 4, without a key, stands before 5, fails and keeps the floor below it.
            let mut s = Story::of(6);
            s.truth.has_store = has_store;
            for event in 0..4 {
                s.does(0, event);
            }
            s.fails(0, 4).does(0, 5).say(0, what.clone()).does(1, 4).does(1, 5);
            if excused { s.passes() } else { s.breaks(Invariant::Bounds, "took effect twice") }
        }
    }
}

#[test]
fn a_stop_that_was_cut_short_excuses_a_second_effect() {
    for (took, excused) in [(100, false), (900, true)] {
        let mut s = Story::of(1);
        s.does(0, 0).say(0, What::Stopping);
        s.now += u64::try_from(Duration::from_millis(took).as_nanos()).unwrap();
        s.say(0, What::Stopped { error: None }).does(1, 0);
        if excused { s.passes() } else { s.breaks(Invariant::Bounds, "took effect twice") }
    }
}

#[test]
fn one_competitor_may_finish_what_another_has_given_up_only_after_a_disruption() {
    let mut s = Story::of(1).owned(Ownership::Competing);
    s.does(0, 0).stores(1, 0, SKIP).leaves(0, SKIP).breaks(Invariant::NoLoss, "dead letter too");
    s.say(0, What::Frozen).passes();
}

#[test]
fn a_frozen_competitor_may_finish_what_another_has_done() {
    let mut s = Story::of(1).owned(Ownership::Competing);
    let run = s.start(0, 0);
    s.say(0, What::Frozen).does(1, 0).say(0, What::Thawed).say(0, What::Effect { run }).end(0, run).passes();
    Story::of(1).owned(Ownership::Competing).does(0, 0).does(1, 0).breaks(Invariant::Bounds, "took effect twice");
}

#[test]
fn a_repeated_delivery_does_not_excuse_a_second_effect() {
    let again = What::Fault { point: "deliver/again".into() };
    for ownership in [Ownership::Floor, Ownership::AckEach, Ownership::Competing] {
        let mut s = Story::of(1).owned(ownership);
        s.does(0, 0).say(0, again.clone()).does(0, 0).breaks(Invariant::Bounds, "took effect twice");
    }
}

#[test]
fn a_violation_names_its_invariant_and_records() {
    let mut s = Story::of(1);
    s.does(0, 0).does(0, 0);
    let text = check(&s.records, &s.truth)[0].to_string();
    assert!(text.starts_with("I10 Bounds: key k counter 0 (event 0) took effect twice"), "{text}");
    assert!(text.ends_with("(records [2, 5])"), "{text}");
}
