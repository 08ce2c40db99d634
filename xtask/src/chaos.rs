//! Looks for failures that no fixed test knows of.

use anyhow::Result;

use crate::run::{cargo, show};
use crate::servers::Servers;
use crate::sim;

/// Runs fresh seeds of the simulator for some seconds, then kills processes so many times on each database, and the program
/// with programs as handlers a tenth as often. Instances on NATS are killed and stopped for as many seconds as the simulator runs. Relays are killed and stopped until so many events are published.
pub(crate) fn run(seconds: u64, rounds: u64, events: u64) -> Result<()> {
    sim::chaos(seconds)?;
    processes(seconds / 2, rounds)?;
    jetstream(seconds)?;
    databases(rounds)?;
    relays(events)?;
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

/// Instances on NATS that join, leave, are killed and stopped, and their servers, one test after another.
fn jetstream(seconds: u64) -> Result<()> {
    let mut command = cargo(&["test", "--package", "aqueduct", "--all-features", "--test", "nats", "chaos::"]);
    command.args(["--", "--nocapture", "--test-threads", "1"]).env("AQUEDUCT_CHAOS_SECONDS", seconds.to_string());
    let servers = Servers::for_sources(&["aqueduct/tests/nats"])?;
    show(command.envs(servers.iter().flat_map(Servers::env)))
}

/// Services with their transactions in each database, each killed so many times.
fn databases(rounds: u64) -> Result<()> {
    let mut command = cargo(&["test", "--package", "aqueduct", "--all-features", "--test", "databases", "kills::"]);
    command.args(["--", "--nocapture"]).env("AQUEDUCT_CHAOS_ROUNDS", rounds.to_string());
    let servers = Servers::for_sources(&["aqueduct/tests/databases"])?;
    show(command.envs(servers.iter().flat_map(Servers::env)))
}

/// The tests that kill and stop relays, one after another: four with so many events each.
fn relays(events: u64) -> Result<()> {
    let test = ["test", "--package", "aqueduct", "--all-features", "--test", "databases", "whatever_happens_to_relays"];
    let mut command = cargo(&test);
    command.args(["--", "--nocapture", "--test-threads", "1"]).env("AQUEDUCT_CHAOS_EVENTS", events.to_string());
    let servers = Servers::for_sources(&["aqueduct/tests/databases"])?;
    show(command.envs(servers.iter().flat_map(Servers::env)))
}

/// The tests that kill `aqueduct consume --exec`.
fn programs(rounds: u64) -> Result<()> {
    let mut command = cargo(&["test", "--package", "aqueduct-cli", "--test", "cli", "kill::killed"]);
    command.args(["--", "--nocapture"]).env("AQUEDUCT_CHAOS_ROUNDS", rounds.to_string());
    show(&mut command)
}
