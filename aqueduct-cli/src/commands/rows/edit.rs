//! `edit`: another event in the place of one that was given up.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aqueduct::store::{Action, Command, Content, Listed};
use aqueduct::{Event, Text};
use bytes::Bytes;
use clap::Args;
use serde::de::IgnoredAny;

use super::act::By;
use super::carry::Carry;
use super::filter::{Filter, Pages};
use super::show::event_json;
use super::{Existing, Kind, event_of};
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::input::read_event;
use crate::output::{Output, note};
use crate::table::{lines, pretty};

#[derive(Args)]
pub(crate) struct Edit {
    /// Its id, or its place as `list` shows it.
    event: String,
    /// Takes new data from this file, and leaves everything else; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with = "whole")]
    data: Option<PathBuf>,
    /// Takes the whole event from this file, as CloudEvents JSON; `-` is standard input.
    #[arg(long = "event", value_name = "FILE")]
    whole: Option<PathBuf>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    by: By,
}

impl Edit {
    pub(super) async fn run(self, opened: &Existing, kind: Kind, output: Output) -> Result<(), Failure> {
        let named = std::slice::from_ref(&self.event);
        let listed = Pages::new(&opened.store, &self.filter, named, kind).await?.only().await?;
        let before = text_of(&listed);
        let new = self.new_event(&listed, &before).await?;
        let mut after = listed.clone();
        after.row.content = Content::Event(Arc::new(new.clone()));
        let after = text_of(&after);
        if listed.row.content == Content::Event(Arc::new(new.clone())) {
            note("nothing was changed");
            return Ok(());
        }
        anstream::eprint!("{}", lines(&difference(&before, &after)));
        if self.by.dry_run || !confirm("change the event like this", self.by.yes)? {
            note("nothing was done");
            return Ok(());
        }
        let action = Action::Edit(Arc::new(new));
        let command = Command::new(&listed, action, self.by.account.who(), self.by.account.why());
        let mut carry = Carry::new(opened, 1, self.by.wait.0);
        carry.give(vec![command]).await?;
        carry.finish().await?.print("edit", "1 key", output)?;
        let group = listed.consumer.as_str();
        note(format_args!("try it again with: aqueduct {} replay {} --group {group}", kind.command(), self.event));
        Ok(())
    }

    async fn new_event(&self, listed: &Listed, before: &str) -> Result<Event, Failure> {
        let old = event_of(listed);
        match (&self.data, &self.whole, old) {
            (Some(file), _, Some(old)) => with_data(old, read(file)?),
            (None, Some(file), _) => checked(listed, before, &read(file)?),
            (None, None, Some(_)) => in_editor(listed, before).await,
            (_, _, None) => {
                Err(Failure::new(Exit::Usage, "no format could read this message, so there is no event to edit")
                    .fix("put a whole event in its place with --event FILE; it has no key"))
            }
        }
    }
}

/// The event of a text, if it may take the place of the one that is there.
fn checked(listed: &Listed, before: &str, json: &Bytes) -> Result<Event, Failure> {
    let (new, old) = (parse(listed, json)?, event_of(listed));
    let new = old.map_or(Ok(new.clone()), |old| keep(old, new, before, listed))?;
    let key = |event: &Event| event.key.as_ref().map_or("none".to_owned(), |key| format!("`{}`", key.as_str()));
    let (was, is) = (old.map_or("none".to_owned(), |old| key(old)), key(&new));
    if was != is {
        return Err(Failure::new(Exit::Data, format!("an edit keeps the key: it was {was} and would be {is}"))
            .fix("discard this event, and publish one with the other key"));
    }
    Ok(new)
}

/// What JSON does not show stays as it was.
fn keep(old: &Event, mut new: Event, before: &str, listed: &Listed) -> Result<Event, Failure> {
    let shown = parse(listed, &Bytes::from(before.to_owned()))?;
    for (name, value) in old.headers.iter().filter(|(name, _)| shown.headers.get(name.as_str()).is_none()) {
        new.headers.add(name.clone(), value.clone());
    }
    if new.source == shown.source {
        new.source = old.source.clone();
    }
    if new.id == shown.id {
        new.id = old.id.clone();
    }
    if new.data == shown.data {
        new.data = old.data.clone();
    }
    new.topic.clone_from(&old.topic);
    Ok(new)
}

/// The event as it is edited.
fn text_of(listed: &Listed) -> String {
    let json = match &listed.row.content {
        Content::Event(event) => event_json(listed, event).unwrap_or_default(),
        Content::Undecodable(message) => message.body.clone(),
    };
    pretty(&String::from_utf8_lossy(&json)) + "\n"
}

fn parse(listed: &Listed, json: &Bytes) -> Result<Event, Failure> {
    read_event(&listed.partition.topic, json).map_err(|reason| {
        Failure::new(Exit::Data, format!("this is no event: {reason}"))
            .fix("write it as CloudEvents JSON, as `show` does")
    })
}

/// The event with other data. JSON stays JSON.
fn with_data(old: &Event, data: Bytes) -> Result<Event, Failure> {
    let mut new = old.clone();
    new.data = data;
    if old.content_type.as_ref().map_or("application/json", Text::as_str).contains("json") {
        serde_json::from_slice::<IgnoredAny>(&new.data).map_err(|error| {
            Failure::new(Exit::Data, format!("the new data is no JSON: {error}"))
                .fix("mend it, or change `datacontenttype` as well with --event FILE")
        })?;
        // The end of the last line is the file's, not the data's.
        new.data = Bytes::copy_from_slice(new.data.trim_ascii());
    }
    Ok(new)
}

fn read(file: &Path) -> Result<Bytes, Failure> {
    let mut data = Vec::new();
    let read = if file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut data)
    } else {
        File::open(file).and_then(|mut file| file.read_to_end(&mut data))
    };
    read.map_err(|e| Failure::new(Exit::Missing, format!("{} cannot be read", file.display())).because(&e))?;
    Ok(data.into())
}

/// Lets somebody edit the text. What is no event afterwards stays in the file, so that it is not lost.
async fn in_editor(listed: &Listed, text: &str) -> Result<Event, Failure> {
    let named = ["VISUAL", "EDITOR"].iter().find_map(|name| std::env::var(name).ok()).filter(|e| !e.is_empty());
    let editor = named.ok_or_else(|| {
        Failure::new(Exit::Usage, "there is no editor").fix("set EDITOR, or give a file with --data or --event")
    })?;
    let failed = |e: &std::io::Error| Failure::new(Exit::Failed, "the event cannot be edited").because(e);
    let name = format!("aqueduct-{}-{}.json", std::process::id(), listed.row.place.position.0);
    let path = std::env::temp_dir().join(name);
    let made = File::options().write(true).create_new(true).mode(0o600).open(&path);
    made.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|e| failed(&e))?;
    let words = shlex::split(&editor).unwrap_or_default();
    let (program, arguments) = words.split_first().unwrap_or((&editor, &[]));
    let status = tokio::process::Command::new(program).args(arguments).arg(&path).status().await;
    let event = match status {
        Ok(status) if status.success() => read(&path).and_then(|edited| checked(listed, text, &edited)),
        Ok(status) => Err(Failure::new(Exit::Failed, format!("`{editor}` ended with {status}"))),
        Err(error) => Err(Failure::new(Exit::NoProgram, format!("`{editor}` cannot be started")).because(&error)),
    };
    match (event, std::fs::read(&path).is_ok_and(|now| now == text.as_bytes())) {
        (Err(failure), false) => {
            Err(failure.then(format!("nothing was done; what you wrote is in {}", path.display())))
        }
        (event, _) => {
            std::fs::remove_file(&path).map_err(|e| failed(&e))?;
            event
        }
    }
}

/// The lines that differ, between those that are the same at both ends.
fn difference(before: &str, after: &str) -> String {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let same = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
    let at_end = before.iter().rev().zip(after.iter().rev()).take_while(|(a, b)| a == b).count();
    let at_end = at_end.min(before.len().min(after.len()) - same);
    let mut text = String::new();
    for (lines, mark) in [(&before, '-'), (&after, '+')] {
        for line in &lines[same..lines.len() - at_end] {
            let _ = writeln!(text, "{mark} {line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_what_differs() {
        assert_eq!(difference("a\nb\nc\n", "a\nx\ny\nc\n"), "- b\n+ x\n+ y\n");
        assert_eq!(difference("a\na\n", "a\n"), "- a\n");
        assert_eq!(difference("a\n", "a\n"), "");
    }
}
