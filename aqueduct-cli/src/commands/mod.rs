//! The commands, a file each.

pub(crate) mod completions;
pub(crate) mod config;
pub(crate) mod consume;
pub(crate) mod demo;
pub(crate) mod doctor;
pub(crate) mod forget;
pub(crate) mod inbox;
pub(crate) mod init;
pub(crate) mod man;
pub(crate) mod migrate;
pub(crate) mod outbox;
pub(crate) mod publish;
pub(crate) mod purge;
pub(crate) mod relay;
pub(crate) mod rewind;
pub(crate) mod rows;
pub(crate) mod status;
pub(crate) mod tail;
pub(crate) mod topology;

use clap::ArgMatches;

use crate::cli::{Cli, Command};
use crate::failure::Failure;

/// Runs the command that was asked for.
pub(crate) async fn run(cli: Cli, matches: &ArgMatches) -> Result<(), Failure> {
    let Cli { global, command } = cli;
    match command {
        Command::Publish(publish) => publish.run(&global, of("publish", matches)).await,
        Command::Consume(consume) => consume.run(&global, of("consume", matches)).await,
        Command::Status(status) => status.run(&global).await,
        Command::Parked(rows) => rows.run(&global, rows::Kind::Parked).await,
        Command::DeadLetters(rows) => rows.run(&global, rows::Kind::Dead).await,
        Command::Tail(tail) => tail.run(&global).await,
        Command::Purge(purge) => purge.run(&global).await,
        Command::Forget(forget) => forget.run(&global).await,
        Command::Rewind(rewind) => rewind.run(&global).await,
        Command::Relay(relay) => relay.run(&global, of("relay", matches)).await,
        Command::Outbox(outbox) => outbox.run(&global, of("outbox", matches)).await,
        Command::Inbox(inbox) => inbox.run(&global).await,
        Command::Topology(topology) => topology.run(&global).await,
        Command::Migrate(migrate) => migrate.run(&global).await,
        Command::Doctor(doctor) => doctor.run(&global).await,
        Command::Demo(demo) => demo.run(&global).await,
        Command::Init(init) => init.run(&global),
        Command::Config(config) => config.run(&global),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
    }
}

/// What was given to a command.
fn of<'a>(command: &str, matches: &'a ArgMatches) -> &'a ArgMatches {
    matches.subcommand_matches(command).unwrap_or(matches)
}
