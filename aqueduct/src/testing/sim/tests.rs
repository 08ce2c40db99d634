//! Runs of the simulator.

use super::run::{Sim, run};

#[test]
fn the_same_seed_repeats_the_same_run() {
    for seed in 0..20 {
        let (a, b) = (run(seed), run(seed));
        assert_eq!((a.digest, a.attempts, a.crashes), (b.digest, b.attempts, b.crashes), "seed {seed}");
    }
}

#[test]
fn different_seeds_are_different_runs() {
    assert_ne!(run(1).digest, run(2).digest);
}

#[test]
fn a_run_without_faults_has_no_crash() {
    let report = Sim::new(3).without_faults().run();
    report.assert_ok();
    assert_eq!(report.crashes, 0);
    assert!(report.events >= 20 && report.attempts >= report.events / 2, "{report}");
}

#[test]
fn the_seeds_of_one_sitting_keep_every_promise() {
    (0..300).for_each(|seed| run(seed).assert_ok());
}

#[test]
fn a_crash_comes_at_the_point_that_was_named() {
    use crate::broker::Ownership;
    let report = super::run::run_crash(1, Ownership::Floor, "settle/before", 1);
    report.assert_ok();
    assert!(report.points.contains("settle/before"));
    assert_eq!(report.crashes, 1, "{report}");
    let report = super::run::run_crash(1, Ownership::Floor, "bury/before", 1);
    assert!(!report.points.contains("bury/before"), "only competing consumers bury");
    assert_eq!(report.crashes, 0, "{report}");
}
