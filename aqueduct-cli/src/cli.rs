//! The command line: what all commands share, and their names.

use std::path::PathBuf;

use clap::{Args, ColorChoice, CommandFactory, Parser, Subcommand};

use crate::commands::{
    completions, config, consume, demo, doctor, forget, inbox, init, man, migrate, outbox, publish, purge, relay,
    rewind, rows, status, tail, topology,
};
use crate::output::Output;

const EXAMPLES: &str = include_str!("commands/help/aqueduct.txt");

/// Reliable events from the command line: nothing is lost, keys stay in order, one bad key hurts nobody else.
///
/// Broker and store are an SQLite file, `aqueduct.db` in the current folder, so nothing needs to be installed or started.
/// Programs in any language handle events: see `aqueduct consume --help`.
#[derive(Parser)]
#[command(name = "aqueduct", version, max_term_width = 100, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What every command takes.
#[derive(Args, Clone)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// Where events travel: sqlite:PATH, or NATS servers as nats:// or tls://, between commas [default: sqlite:aqueduct.db]. A
    /// password is better in the variable `AQUEDUCT_BROKER`, which others do not see.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) broker: Option<String>,
    /// A file with the JWT and the seed of a NATS user.
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) credentials: Option<PathBuf>,
    /// Where parked events and dead letters live [default: the database if there is one, else the broker's file; on NATS
    /// there is none then, and events that fail wait at the broker].
    #[arg(long, global = true, value_name = "sqlite:PATH")]
    pub(crate) store: Option<String>,
    /// The database of your services: postgres://, mysql://, mariadb:// or sqlite:PATH. A password is better in the variable
    /// `AQUEDUCT_DATABASE`, which others do not see.
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) database: Option<String>,
    /// What the names of Aqueduct's tables in the database begin with [default: aq_].
    #[arg(long, global = true, value_name = "PREFIX")]
    pub(crate) table_prefix: Option<String>,
    /// The configuration file [default: aqueduct.toml, if it is there].
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) config: Option<PathBuf>,
    /// For people or for programs [default: text].
    #[arg(long, global = true, value_name = "FORM", hide_possible_values = true, value_enum)]
    pub(crate) output: Option<Output>,
    /// No colours; the variable `NO_COLOR` does the same.
    #[arg(long, global = true)]
    pub(crate) no_color: bool,
    /// Says more of what the library does; again, even more.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    Publish(publish::Publish),
    Consume(Box<consume::Consume>),
    Status(status::Status),
    /// Looks at parked events, which are tried again later, and mends them.
    Parked(rows::Rows),
    /// Looks at dead letters, which were given up, and mends them. Short: `dlq`.
    #[command(visible_alias = "dlq")]
    DeadLetters(rows::Rows),
    Tail(tail::Tail),
    Purge(purge::Purge),
    Forget(forget::Forget),
    Rewind(rewind::Rewind),
    Relay(relay::Relaying),
    Outbox(outbox::Outbox),
    Inbox(inbox::Inbox),
    Topology(topology::Topology),
    Migrate(migrate::Migrate),
    Doctor(doctor::Doctor),
    Demo(demo::Demo),
    Init(init::Init),
    Config(config::Config),
    Completions(completions::Completions),
    Man(man::Man),
}

/// The whole command line, as the parser, the completions and the man page need it.
pub(crate) fn command(plain: bool) -> clap::Command {
    let command = Cli::command().after_long_help(EXAMPLES);
    command.color(if plain { ColorChoice::Never } else { ColorChoice::Auto })
}
