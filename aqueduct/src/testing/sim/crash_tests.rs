//! A crash at every step: each named point, on each kind of ownership that has the step.

use std::collections::BTreeSet;

use super::faults::CALLS;
use super::run::run_crash;
use crate::broker::Ownership;

/// The calls of an ownership by which its work becomes durable or is handed on, in the order in which an event goes.
const OWNED: [&str; 14] = [
    "join",
    "take_over",
    "next",
    "settle",
    "apply.park",
    "apply.append",
    "due",
    "apply.redate",
    "apply.finish",
    "apply.give_up",
    "apply.dead",
    "apply.floor",
    "apply.operate",
    "release",
];
const COMPETING: [&str; 4] = ["join", "next", "settle", "bury"];

/// The calls of a graceful stop: what runs ends and is written, what ended is told, the rest goes back.
const STOP_OWNED: [&str; 6] = ["apply.park", "apply.finish", "apply.redate", "apply.dead", "settle", "leave"];
const STOP_COMPETING: [&str; 3] = ["bury", "settle", "leave"];

/// Runs that crash at each point.
const RUNS: usize = 5;
/// Which time that the point is reached, by seed: some are reached once in a run.
const NTH: [u32; 4] = [1, 2, 1, 4];
/// Seeds tried to get there.
const SEEDS: u64 = 4_000;

/// Asserts that the instance crashed at a point in different runs, and that each of them kept every promise.
fn crashes_at(ownership: Ownership, point: &str) {
    let mut runs = BTreeSet::new();
    for seed in 0..SEEDS {
        let report = run_crash(seed, ownership, point, NTH[usize::try_from(seed).unwrap() % NTH.len()]);
        assert!(report.is_ok(), "{ownership:?}, crash at {point}: {report}");
        if report.crashes == 1 {
            assert!(report.points.contains(point), "{ownership:?}: a crash, but not at {point}");
            runs.insert(report.digest);
        }
        if runs.len() == RUNS {
            return;
        }
    }
    panic!("{ownership:?}: {point} was reached by {} of {SEEDS} seeds, {RUNS} are wanted", runs.len());
}

fn crashes_at_all(ownership: Ownership, calls: &[&str], stop: &[&str]) {
    for side in ["before", "after"] {
        for call in calls {
            crashes_at(ownership, &format!("{call}/{side}"));
        }
        for call in stop {
            crashes_at(ownership, &format!("stop.{call}/{side}"));
        }
    }
}

#[test]
fn a_crash_at_any_step_keeps_every_promise_where_partitions_have_a_floor() {
    crashes_at_all(Ownership::Floor, &OWNED, &STOP_OWNED);
}

#[test]
fn a_crash_at_any_step_keeps_every_promise_where_deliveries_are_acked_one_by_one() {
    crashes_at_all(Ownership::AckEach, &OWNED, &STOP_OWNED);
}

#[test]
fn a_crash_at_any_step_keeps_every_promise_where_consumers_compete() {
    crashes_at_all(Ownership::Competing, &COMPETING, &STOP_COMPETING);
}

#[test]
fn every_call_has_its_place_among_the_steps() {
    let named: BTreeSet<&str> =
        [OWNED.as_slice(), &COMPETING, &STOP_OWNED, &STOP_COMPETING].concat().into_iter().collect();
    assert_eq!(named, BTreeSet::from(CALLS));
}
