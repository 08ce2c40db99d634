//! `list`.

use aqueduct::store::{Hold, Listed, RowState};
use aqueduct::{Clock, Timestamp};
use clap::Args;
use serde_json::{Value, json};

use super::filter::{Filter, Pages};
use super::{Existing, Kind, event_of, id_of, is_dead, place_of};
use crate::failure::Failure;
use crate::output::{Output, note, write};
use crate::table::{Table, age, span};

/// How many rows a table has at most; the next one has widths of its own.
const TABLE_ROWS: usize = 200;

#[derive(Args)]
pub(crate) struct List {
    /// At most so many; 0 is all [default: 100, with --output json all].
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    filter: Filter,
}

impl List {
    pub(super) async fn run(self, opened: &Existing, kind: Kind, output: Output) -> Result<(), Failure> {
        let limit = self.limit.unwrap_or(if output == Output::Json { 0 } else { 100 });
        let limit = if limit == 0 { usize::MAX } else { limit };
        let mut pages = Pages::new(&opened.store, &self.filter, &[], kind).await?;
        let (mut shown, mut more, mut waiting) = (0, false, Vec::new());
        while let Some(page) = pages.next().await? {
            more = page.len() > limit - shown;
            for listed in page.into_iter().take(limit - shown) {
                shown += 1;
                match output {
                    Output::Json if !write(&format!("{}\n", row_json(&listed)))? => return Ok(()),
                    Output::Json => {}
                    Output::Text => waiting.push(cells(&listed, kind)),
                }
            }
            if waiting.len() >= TABLE_ROWS {
                let first = shown == waiting.len();
                if !write(&table(&std::mem::take(&mut waiting), kind, first))? {
                    return Ok(());
                }
            }
            if more {
                break;
            }
        }
        if !waiting.is_empty() {
            let first = shown == waiting.len();
            write(&table(&waiting, kind, first))?;
        }
        match (output, shown, more) {
            (Output::Text, 0, _) if kind == Kind::Dead => note("there are no such dead letters"),
            (Output::Text, 0, _) => note("there are no such parked events"),
            (_, _, true) => note(format_args!("there are more than these {shown}: --limit 0 shows all")),
            _ => {}
        }
        Ok(())
    }
}

fn table(rows: &[Vec<String>], kind: Kind, with_head: bool) -> String {
    let last = if kind == Kind::Dead { "BLOCKS" } else { "NEXT" };
    let mut table = Table::new(&["PLACE", "GROUP", "ID", "KEY", "TYPE", "TRIES", "AGE", last, "ERROR"]).last_beneath();
    for row in rows {
        table.row(row);
    }
    table.text(with_head)
}

fn cells(listed: &Listed, kind: Kind) -> Vec<String> {
    let (row, now) = (&listed.row, Clock::system().now());
    let (key, what) = match event_of(listed) {
        Some(event) => (event.key.as_ref().map_or("-", |key| key.as_str()), event.kind.as_str()),
        None => ("-", "(undecodable)"),
    };
    let last = match kind {
        Kind::Dead => if row.state == RowState::Dead(Hold::Block) { "yes" } else { "no" }.to_owned(),
        // It was never tried: it came in behind another of its key.
        Kind::Parked if row.attempts == 0 && !row.replay => "in turn".to_owned(),
        Kind::Parked => in_time(row.next_at, now),
    };
    let error = row.history.back().map_or("", |last| last.error.as_str());
    vec![
        place_of(listed),
        listed.consumer.to_string(),
        id_of(listed).to_owned(),
        key.to_owned(),
        what.to_owned(),
        row.attempts.to_string(),
        age(Some(row.parked_at), now),
        last,
        error.to_owned(),
    ]
}

/// When it is tried again.
pub(crate) fn in_time(at: Timestamp, now: Timestamp) -> String {
    if at <= now { "due".to_owned() } else { format!("in {}", span(at.since(now))) }
}

/// A row for programs.
pub(super) fn row_json(listed: &Listed) -> Value {
    let (row, event) = (&listed.row, event_of(listed));
    let last = row.history.back();
    json!({
        "group": listed.consumer.as_str(),
        "topic": listed.partition.topic.as_str(),
        "partition": listed.partition.index,
        "place": place_of(listed),
        "state": if is_dead(listed) { "dead" } else { "parked" },
        "key_waits": row.holds(),
        "key": event.and_then(|event| event.key.as_ref()).map(aqueduct::Key::as_str),
        "id": event.map(|event| event.id.as_str()),
        "source": event.map(|event| event.source.as_str()),
        "type": event.map(|event| event.kind.as_str()),
        "attempts": row.attempts,
        "version": row.version,
        "parked_at": row.parked_at.to_string(),
        "next_at": (!is_dead(listed)).then(|| row.next_at.to_string()),
        "error": last.map(|last| last.error.as_str()),
        "failed_at": last.map(|last| last.at.to_string()),
    })
}
