//! Looks for failures that no fixed test knows of.

use anyhow::Result;

use crate::run::{cargo, show};
use crate::servers::Servers;
use crate::sim;

/// Runs fresh seeds of the simulator for some seconds, then kills processes so many times, and the program with programs as
/// handlers a tenth as often. Relays are killed and stopped for about as long as the simulator runs.
pub(crate) fn run(seconds: u64, rounds: u64) -> Result<()> {
    sim::chaos(seconds)?;
    processes(seconds / 2, rounds)?;
    relays(seconds)?;
    programs(rounds.div_ceil(10))
}

/// The tests with real processes, longer than in a usual run. One after another, since they measure.
fn processes(seconds: u64, rounds: u64) -> Result<()> {
    let test = ["test", "--package", "aqueduct", "--all-features", "--test", "sqlite", "processes::"];
    let mut command = cargo(&test);
    command.args(["--", "--nocapture", "--test-threads", "1"]);
    command.env("AQUEDUCT_CHAOS_SECONDS", seconds.to_string()).env("AQUEDUCT_CHAOS_ROUNDS", rounds.to_string());
    let servers = Servers::for_sources(&["aqueduct/tests/sqlite"])?;
    show(command.envs(servers.iter().flat_map(Servers::env)))
}

/// Events that relays publish in a second while they are killed and stopped, in four tests one after another.
const EVENTS_A_SECOND: u64 = 400 / 4;

/// The tests that kill and stop relays.
fn relays(seconds: u64) -> Result<()> {
    let test = ["test", "--package", "aqueduct", "--all-features", "--test", "databases", "whatever_happens_to_relays"];
    let mut command = cargo(&test);
    command.args(["--", "--nocapture", "--test-threads", "1"]);
    command.env("AQUEDUCT_CHAOS_EVENTS", (seconds * EVENTS_A_SECOND).to_string());
    show(command.envs(Servers::start()?.env()))
}

/// The tests that kill `aqueduct consume --exec`.
fn programs(rounds: u64) -> Result<()> {
    let mut command = cargo(&["test", "--package", "aqueduct-cli", "--test", "cli", "kill::killed"]);
    command.args(["--", "--nocapture"]).env("AQUEDUCT_CHAOS_ROUNDS", rounds.to_string());
    show(&mut command)
}
