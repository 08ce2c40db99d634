//! `aqueduct outbox`: the table that services leave events in, and mending what cannot be published.

mod act;
mod insert;
mod list;

use std::time::Duration;

use aqueduct::{Clock, OutboxStatus, OutboxTable, Timestamp};
use clap::{ArgMatches, Args, Subcommand};
use indicatif::HumanCount;
use serde_json::{Value, json};

use crate::cli::Global;
use crate::config::{Flags, OutboxSettings, load};
use crate::failure::Failure;
use crate::output::{Output, print};
use crate::table::{Table, age};

const SQL: &str = include_str!("../help/outbox-sql.txt");

const STATUS: &str = include_str!("../help/outbox-status.txt");

const LIST: &str = include_str!("../help/outbox-list.txt");

const ACT: &str = include_str!("../help/outbox-act.txt");

/// Looks at the events that wait in the database to be published, and mends those that cannot be.
#[derive(Args)]
pub(crate) struct Outbox {
    #[command(subcommand)]
    action: Action,
    #[command(flatten)]
    table: OutboxSettings,
}

#[derive(Subcommand)]
enum Action {
    /// Prints the SQL with which programs in other languages write an event.
    #[command(after_long_help = SQL)]
    Sql,
    /// Shows how many rows wait, since when, and how many are parked.
    #[command(after_long_help = STATUS)]
    Status,
    /// Lists the rows that cannot be published, with the reason: the first of each key.
    #[command(after_long_help = LIST)]
    List(list::List),
    /// Tries parked rows again at once.
    #[command(after_long_help = ACT)]
    Retry(act::Retry),
    /// Deletes parked rows, whose events are then never published.
    #[command(after_long_help = ACT)]
    Discard(act::Discard),
}

impl Outbox {
    pub(crate) async fn run(self, global: &Global, matches: &ArgMatches) -> Result<(), Failure> {
        let settings = load(global, Flags::of("relay", &self.table, matches))?.settings;
        let (database, prefix) = (settings.database()?, settings.table_prefix.as_str());
        let output = global.output.unwrap_or_default();
        if let Action::Sql = self.action {
            return insert::print_sql(database.kind(), prefix, output);
        }
        let table = database.open(prefix).await?.outbox(&settings.relay.table)?;
        match self.action {
            Action::Sql => Ok(()),
            Action::Status => status(&table, output).await,
            Action::List(list) => list.run(&table, output).await,
            Action::Retry(retry) => retry.run(&table, output).await,
            Action::Discard(discard) => discard.run(&table, output).await,
        }
    }
}

async fn status(table: &OutboxTable, output: Output) -> Result<(), Failure> {
    let (status, now) = (table.status().await?, Clock::system().now());
    print(&match output {
        Output::Json => format!("{}\n", status_json(&status, now)),
        Output::Text => status_text(&status, now),
    })
}

fn status_text(status: &OutboxStatus, now: Timestamp) -> String {
    let about = if status.counted { "" } else { "about " };
    let mut table = Table::new(&["PENDING", "OLDEST", "PARKED", "KEYS"]);
    table.row(&[
        format!("{about}{}", HumanCount(status.pending)),
        age(status.oldest, now),
        HumanCount(status.parked).to_string(),
        HumanCount(status.parked_lines).to_string(),
    ]);
    table.text(true)
}

fn status_json(status: &OutboxStatus, now: Timestamp) -> Value {
    json!({
        "at": now.to_string(), "pending": status.pending, "pending_is_estimate": !status.counted,
        "oldest": status.oldest.map(|at| at.to_string()),
        "oldest_age_s": status.oldest.map(|at| now.since(at)).as_ref().map(Duration::as_secs),
        "parked": status.parked, "parked_keys": status.parked_lines,
    })
}
