//! `show`: everything about one row.

use std::fmt::Write;

use aqueduct::format::{CloudEvents, Format};
use aqueduct::store::{Action, Command, CommandId, CommandState, Content, Listed};
use aqueduct::{Clock, Event, Text};
use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::filter::{Filter, Pages};
use super::list::{in_time, row_json};
use super::{Existing, Kind, id_of, is_dead, place_of};
use crate::failure::Failure;
use crate::output::{Output, print};
use crate::table::{age, lines, one_line, pretty};

type Kept = (CommandId, Command, CommandState);

#[derive(Args)]
pub(crate) struct Show {
    /// Its id, or its place as `list` shows it.
    event: String,
    #[command(flatten)]
    filter: Filter,
}

impl Show {
    pub(super) async fn run(self, opened: &Existing, kind: Kind, output: Output) -> Result<(), Failure> {
        let listed = Pages::new(&opened.store, &self.filter, &[self.event], kind).await?.only().await?;
        let commands = opened.store.commands_on(&listed).await?;
        let text = match output {
            Output::Json => format!("{}\n", all_json(&listed, &commands)),
            Output::Text => all_text(&listed, kind, &commands),
        };
        print(&text)
    }
}

/// An event as `CloudEvents` JSON. It was published in some format, so what it lacks for this one is filled in.
pub(super) fn event_json(listed: &Listed, event: &Event) -> Option<Bytes> {
    let mut whole = event.clone();
    if whole.source.is_empty() {
        whole.source = Text::from(listed.partition.topic.as_str());
    }
    if whole.id.is_empty() {
        whole.id = place_of(listed).into();
    }
    CloudEvents::structured().encode(&whole, &listed.partition.topic).ok().map(|message| message.body)
}

fn all_json(listed: &Listed, commands: &[Kept]) -> Value {
    let mut all = row_json(listed);
    let failure = |f: &aqueduct::store::Failure| {
        let ms = u64::try_from(f.took.as_millis()).unwrap_or(u64::MAX);
        json!({ "attempt": f.attempt, "at": f.at.to_string(), "took_ms": ms, "error": f.error.as_str() })
    };
    let command = |(id, command, state): &Kept| {
        let (result, at, refusal) = outcome(state);
        json!({
            "id": id.0, "action": name(&command.action), "who": command.who.as_str(), "why": command.why.as_str(),
            "result": result, "at": at, "refusal": refusal,
        })
    };
    let (event, body) = match &listed.row.content {
        Content::Event(event) => (event_json(listed, event), None),
        Content::Undecodable(message) => (None, Some(String::from_utf8_lossy(&message.body).into_owned())),
    };
    all["history"] = listed.row.history.iter().map(failure).collect();
    all["commands"] = commands.iter().map(command).collect();
    all["event"] = event.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    all["undecodable_body"] = body.into();
    all
}

fn all_text(listed: &Listed, kind: Kind, commands: &[Kept]) -> String {
    let (row, now, mut text) = (&listed.row, Clock::system().now(), String::new());
    let state = match (is_dead(listed), row.holds()) {
        (false, _) => "Parked event",
        (true, true) => "Dead letter, behind which its key waits,",
        (true, false) => "Dead letter",
    };
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let _ = writeln!(text, "  {name:<9} {}", one_line(value));
        }
    };
    if let Content::Event(event) = &row.content {
        line("id", event.id.as_str());
        line("type", event.kind.as_str());
        line("source", event.source.as_str());
        line("key", event.key.as_ref().map_or("(none)", |key| key.as_str()));
        line("subject", event.subject.as_ref().map_or("", Text::as_str));
        line("time", &event.time.map(|time| time.to_string()).unwrap_or_default());
        for (name, value) in event.headers.iter() {
            line("header", &format!("{name}: {}", String::from_utf8_lossy(value)));
        }
    }
    line("parked", &format!("{}, {} ago", row.parked_at, age(Some(row.parked_at), now)));
    if !is_dead(listed) {
        line("next", &format!("{}, {}", row.next_at, in_time(row.next_at, now)));
    }
    line("version", &row.version.to_string());
    let title = format!("{state} {} of group {}", place_of(listed), listed.consumer);
    let mut whole = format!("{}\n{text}\nFailed attempts{}:\n", one_line(&title), last_of(listed));
    for f in &row.history {
        let _ = writeln!(whole, "  {} at {}, after {:?}: {}", f.attempt, f.at, f.took, one_line(f.error.as_str()));
    }
    whole.push_str(&data(&row.content));
    if !commands.is_empty() {
        whole.push_str("\nDone about it:\n");
    }
    for (_, command, state) in commands {
        let (result, at, refusal) = outcome(state);
        let refusal = refusal.map(|why| format!(": {why}")).unwrap_or_default();
        let (who, why) = (&command.who, &command.why);
        let said = format!("{} by {who} ({why}): {result}{refusal}", name(&command.action));
        let _ = writeln!(whole, "  {} {}", at.unwrap_or_else(|| "(not yet)".to_owned()), one_line(&said));
    }
    let (command, named) =
        (kind.command(), if id_of(listed).is_empty() { place_of(listed) } else { id_of(listed).into() });
    let _ =
        writeln!(whole, "\nTry it again: aqueduct {command} replay {} --group {}", one_line(&named), listed.consumer);
    whole
}

/// Says so where not all attempts are remembered.
fn last_of(listed: &Listed) -> String {
    let (attempts, kept) = (listed.row.attempts as usize, listed.row.history.len());
    if kept < attempts { format!(", the last {kept} of {attempts}") } else { String::new() }
}

fn data(content: &Content) -> String {
    let (bytes, what) = match content {
        Content::Event(event) => (&event.data, event.content_type.as_ref().map_or("no content type", Text::as_str)),
        Content::Undecodable(message) => (&message.body, "a message that no format could read"),
    };
    let shown = match std::str::from_utf8(bytes) {
        Ok(text) if serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok() => pretty(text),
        Ok(text) => lines(text),
        Err(_) => format!("{:?}...", bytes.slice(..bytes.len().min(200))),
    };
    format!("\nData, {what}, {} bytes:\n{shown}\n", bytes.len())
}

fn name(action: &Action) -> &'static str {
    match action {
        Action::Replay => "replay",
        Action::Skip => "skip",
        Action::Discard => "discard",
        Action::Edit(_) => "edit",
        _ => "other",
    }
}

/// What became of a command, when, and why not.
fn outcome(state: &CommandState) -> (&'static str, Option<String>, Option<&str>) {
    match state {
        CommandState::Done { at } => ("done", Some(at.to_string()), None),
        CommandState::Refused { at, why } => ("refused", Some(at.to_string()), Some(why.as_str())),
        _ => ("waiting", None, None),
    }
}
