//! `aqueduct`: publish and consume reliable events from the command line, with programs in any language as handlers.

mod broker;
mod cli;
mod commands;
mod config;
mod confirm;
mod database;
mod failure;
mod handler;
mod input;
mod location;
mod nats;
mod output;
mod program;
mod service;
mod suggest;
mod table;

use std::process::ExitCode;

use clap::FromArgMatches;

use cli::Cli;
use failure::{Exit, Failure};

fn main() -> ExitCode {
    let plain = std::env::args_os().any(|argument| argument == "--no-color");
    if plain {
        anstream::ColorChoice::Never.write_global();
    }
    let matches = cli::command(plain).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    output::listen(cli.global.verbose);
    let output = cli.global.output.unwrap_or_default();
    match run(cli, &matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(output);
            failure.exit().into()
        }
    }
}

fn run(cli: Cli, matches: &clap::ArgMatches) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::new(Exit::Failed, "the runtime does not start").because(&e))?;
    let ended = runtime.block_on(commands::run(cli, matches));
    // A read from a terminal or a pipe cannot be interrupted, and must not keep the program from ending.
    runtime.shutdown_background();
    ended
}
