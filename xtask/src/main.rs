//! The workshop door: everything that is run around the library, as `cargo xtask <command>`.

mod bench;
mod chaos;
mod deny;
mod promise;
mod run;
mod servers;
mod sim;
mod steps;
mod toolchain;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// The workshop of Aqueduct.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Prepares what is needed and passes all tests: all that CI runs.
    Test {
        /// Only these steps, in their usual order.
        #[arg(long, value_name = "STEP")]
        only: Vec<String>,
        /// Shows the steps and runs none.
        #[arg(long)]
        list: bool,
    },
    /// Runs the simulator over seeds, on all cores.
    Sim {
        /// How many seeds.
        #[arg(long)]
        seeds: u64,
        /// The first seed.
        #[arg(long, default_value_t = 0)]
        from: u64,
    },
    /// Looks for failures with fresh seeds of the simulator, and then with real processes that are killed.
    Chaos {
        /// How long the simulator runs; processes that share a file run half as long.
        #[arg(long, default_value_t = 120)]
        seconds: u64,
        /// How often a process is killed at random.
        #[arg(long, default_value_t = 200)]
        rounds: u64,
        /// How many events relays publish while they are killed and stopped, in each of four tests.
        #[arg(long, default_value_t = 20_000)]
        events: u64,
    },
    /// Runs benchmarks and prints a line `name: value (bar B)` for each figure.
    Bench {
        /// Only this one.
        name: Option<String>,
    },
    /// Starts the servers that tests share, for work by hand, until Ctrl-C; installs what is missing.
    Servers,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<()> {
    match command {
        Command::Test { list: true, .. } => {
            steps::list();
            Ok(())
        }
        Command::Test { only, list: false } => steps::run(&only),
        Command::Sim { seeds, from } => sim::seeds(from, seeds),
        Command::Chaos { seconds, rounds, events } => chaos::run(seconds, rounds, events),
        Command::Bench { name } => bench::run(name.as_deref()),
        Command::Servers => servers::run(),
    }
}
