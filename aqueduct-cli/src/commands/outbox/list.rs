//! `list`.

use aqueduct::{Clock, Key, OutboxTable, ParkedLine, Timestamp};
use clap::Args;
use serde_json::{Value, json};

use super::super::rows::in_time;
use crate::failure::Failure;
use crate::output::{Output, note, write};
use crate::table::{Table, age};

#[derive(Args)]
pub(crate) struct List {
    /// At most so many; 0 is all [default: 100, with --output json all].
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
}

impl List {
    pub(super) async fn run(self, table: &OutboxTable, output: Output) -> Result<(), Failure> {
        let limit = self.limit.unwrap_or(if output == Output::Json { 0 } else { 100 });
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut lines = table.parked(limit.saturating_add(1)).await?;
        let more = lines.len() > limit;
        lines.truncate(limit);
        let text = match output {
            Output::Json => lines.iter().map(|line| format!("{}\n", line_json(line))).collect(),
            Output::Text if lines.is_empty() => String::new(),
            Output::Text => as_table(&lines),
        };
        if !write(&text)? {
            return Ok(());
        }
        match (output, lines.is_empty()) {
            (Output::Text, true) => note("no row is parked"),
            _ if more => note(format_args!("there are more than these {limit}: --limit 0 shows all")),
            _ => {}
        }
        Ok(())
    }
}

fn as_table(lines: &[ParkedLine]) -> String {
    let now = Clock::system().now();
    let head = ["ROW", "TOPIC", "KEY", "ID", "TYPE", "ROWS", "TRIES", "AGE", "NEXT", "ERROR"];
    let mut table = Table::new(&head).last_beneath();
    for line in lines {
        table.row(&cells(line, now));
    }
    table.text(true)
}

fn cells(line: &ParkedLine, now: Timestamp) -> [String; 10] {
    [
        line.id.to_string(),
        line.topic.to_string(),
        line.key.as_ref().map_or("-", Key::as_str).to_owned(),
        line.event_id.to_string(),
        line.kind.to_string(),
        line.rows.to_string(),
        line.attempts.to_string(),
        age(Some(line.written_at), now),
        in_time(line.next_at, now),
        line.why.to_string(),
    ]
}

/// A parked row for programs. `rows` counts those of its key.
pub(super) fn line_json(line: &ParkedLine) -> Value {
    json!({
        "row": line.id, "topic": line.topic.as_str(), "key": line.key.as_ref().map(Key::as_str),
        "id": line.event_id.as_str(), "type": line.kind.as_str(), "rows": line.rows, "attempts": line.attempts,
        "written_at": line.written_at.to_string(), "next_at": line.next_at.to_string(), "error": line.why.as_str(),
    })
}
