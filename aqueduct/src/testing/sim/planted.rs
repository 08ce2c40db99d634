//! Bugs planted in the engine: the checker must find each within a thousand seeds.

use super::checker::Invariant;
use super::run::Sim;
use crate::engine::planted::Planted;

/// Asserts that there is a seed at which the bug shows as one of these promises broken, and which is green without it.
fn is_found(bug: Planted, as_one_of: &[Invariant]) {
    let shows = |seed: &u64| {
        let failures = Sim::new(*seed).plant(bug).run().failures;
        failures.iter().any(|failure| as_one_of.contains(&failure.invariant)) && Sim::new(*seed).run().is_ok()
    };
    let seed = (0..1_000).find(shows);
    let seed = seed.unwrap_or_else(|| panic!("{bug:?} was not found within 1,000 seeds"));
    println!("{bug:?} shows at seed {seed}, after {} seeds", seed + 1);
}

#[test]
fn acknowledging_before_parking_is_found() {
    is_found(Planted::AckBeforeParking, &[Invariant::Watermark, Invariant::NoLoss]);
}

#[test]
fn starting_the_next_event_of_a_key_during_a_retry_is_found() {
    is_found(Planted::NextDuringRetry, &[Invariant::KeyOrder, Invariant::Exclusion]);
}

#[test]
fn a_floor_that_is_the_highest_instead_of_contiguous_is_found() {
    is_found(Planted::HighestFloor, &[Invariant::Watermark, Invariant::NoLoss]);
}

#[test]
fn opening_a_parked_lane_while_an_append_is_in_flight_is_found() {
    is_found(Planted::OpenedDuringAppend, &[Invariant::KeyOrder]);
}

#[test]
fn a_dead_letter_that_is_not_awaited_is_found() {
    is_found(Planted::DeadLetterNotAwaited, &[Invariant::Watermark, Invariant::KeyOrder, Invariant::NoLoss]);
}

#[test]
fn giving_an_unfinished_head_back_without_its_tail_is_found() {
    is_found(Planted::HeadWithoutTail, &[Invariant::KeyOrder]);
}

#[test]
fn fetching_before_the_parked_keys_are_loaded_is_found() {
    is_found(Planted::FetchBeforeLoad, &[Invariant::KeyOrder]);
}
