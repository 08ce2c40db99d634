//! `retry` and `discard`: asked about first.

use aqueduct::{Key, OutboxTable, ParkedLine};
use clap::Args;
use serde_json::json;

use super::list::line_json;
use crate::confirm::{Account, confirm};
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, print};
use crate::table::{count, one_line};

#[derive(Args)]
pub(crate) struct Retry {
    /// The rows, by their numbers as `list` shows them.
    #[arg(value_name = "ROW", conflicts_with = "all")]
    rows: Vec<i64>,
    /// All that are parked.
    #[arg(long)]
    all: bool,
    /// Says what would be done, and does nothing.
    #[arg(long)]
    dry_run: bool,
    /// Does not ask.
    #[arg(short, long)]
    yes: bool,
}

#[derive(Args)]
pub(crate) struct Discard {
    /// The rows, by their numbers as `list` shows them.
    #[arg(value_name = "ROW", required = true)]
    rows: Vec<i64>,
    /// Says what would be done, and does nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    account: Account,
    /// Does not ask.
    #[arg(short, long)]
    yes: bool,
}

impl Retry {
    pub(super) async fn run(self, table: &OutboxTable, output: Output) -> Result<(), Failure> {
        if self.rows.is_empty() && !self.all {
            return Err(Failure::new(Exit::Usage, "which rows are to be tried again is not said")
                .fix("name them by their numbers, which `aqueduct outbox list` shows, or say --all"));
        }
        let rows = named(&self.rows);
        let parked = table.status().await?;
        let (many, what) = if self.all {
            (parked.parked_lines, format!("{} of {}", count(parked.parked, "row"), count(parked.parked_lines, "key")))
        } else {
            (rows.len() as u64, count(rows.len() as u64, "parked row"))
        };
        if self.dry_run {
            return would("retry", many, &what, output);
        }
        if many > 1 && !confirm(&format!("retry {what}"), self.yes)? {
            note("nothing was done");
            return Ok(());
        }
        let done = if self.all { table.retry_all().await? } else { table.retry(&rows).await? };
        print(&match output {
            Output::Json => format!("{}\n", json!({ "action": "retry", "made_due": done })),
            Output::Text => format!("retry: {} made due\n", count(done, "row")),
        })?;
        if self.all || done == rows.len() as u64 {
            return Ok(());
        }
        // One that was due already is none that was made due.
        let heads = table.parked(usize::MAX).await?;
        let gone = rows.into_iter().filter(|row| heads.iter().all(|head| head.id != *row)).collect();
        missing(gone)
    }
}

impl Discard {
    pub(super) async fn run(self, table: &OutboxTable, output: Output) -> Result<(), Failure> {
        let rows = named(&self.rows);
        let (many, what) = (rows.len() as u64, count(rows.len() as u64, "row"));
        if self.dry_run {
            return would("discard", many, &what, output);
        }
        if !confirm(&format!("discard {what}, whose events are then never published"), self.yes)? {
            note("nothing was done");
            return Ok(());
        }
        let (who, why, mut gone) = (self.account.who(), self.account.why(), Vec::new());
        for row in rows {
            match table.discard(row, &who, &why).await? {
                Some(line) => print(&discarded(&line, &who, &why, output))?,
                None => gone.push(row),
            }
        }
        missing(gone)
    }
}

/// Each row once.
fn named(rows: &[i64]) -> Vec<i64> {
    let mut rows = rows.to_vec();
    rows.sort_unstable();
    rows.dedup();
    rows
}

fn would(verb: &str, many: u64, what: &str, output: Output) -> Result<(), Failure> {
    print(&match output {
        Output::Json => format!("{}\n", json!({ "would": verb, "rows": many })),
        Output::Text => format!("would {verb} {what}\n"),
    })
}

/// What a discarded row was: nothing else knows it any more.
fn discarded(line: &ParkedLine, who: &str, why: &str, output: Output) -> String {
    if output == Output::Json {
        return format!("{}\n", json!({ "action": "discard", "discarded": line_json(line), "who": who, "why": why }));
    }
    let key = line.key.as_ref().map_or("-", Key::as_str);
    let what = format!("row {}: topic {}, key {key}, id {}, type {}", line.id, line.topic, line.event_id, line.kind);
    format!("discarded {}\n", one_line(&what))
}

/// A failure if there is no such row.
fn missing(rows: Vec<i64>) -> Result<(), Failure> {
    let rows: Vec<String> = rows.iter().map(i64::to_string).collect();
    if rows.is_empty() {
        return Ok(());
    }
    let failure = Failure::new(Exit::Missing, format!("no parked row has the number {}", rows.join(" or ")));
    Err(failure.fix("`aqueduct outbox list` shows what is parked; a row that was published is gone"))
}
