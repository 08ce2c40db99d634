//! `aqueduct publish`: the lines of a file or of the input become events.

use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use aqueduct::broker::Broker;
use aqueduct::format::{CloudEvents, PlainJson};
use aqueduct::{BrokerError, Event, PublishError, Publisher};
use clap::{ArgMatches, Args};
use indicatif::ProgressBar;
use serde::Serialize;
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::broker::{Absent, AnyBroker, open_broker};
use crate::cli::Global;
use crate::config::{Flags, FormatName, PublishSettings, Settings, load};
use crate::failure::{Exit, Failure};
use crate::input::{Line, Lines, Path, Recipe};
use crate::output::{Output, print, progress};

const EXAMPLES: &str = include_str!("help/publish.txt");

/// Events in one call of the library.
const BATCH: usize = 1_000;

/// Bytes in one call, so that what waits is bounded whatever the size of events.
const BATCH_BYTES: usize = 4 << 20;

/// Publishes the lines of a file, or of standard input, as events: in order per key, each confirmed by the broker.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Publish {
    /// The file, one JSON object a line; `-` is standard input.
    #[arg(default_value = "-", hide_default_value = true)]
    file: PathBuf,
    /// The topic; it is created if it does not exist, but on NATS, where it is declared with `aqueduct topology apply`.
    #[arg(long)]
    topic: String,
    /// Lines are any JSON, and their events are of this type.
    #[arg(long = "type", value_name = "TYPE", requires = "id")]
    kind: Option<String>,
    /// Where in a line the key is: what orders events. Given again, the next one is tried where the first finds nothing
    /// [default: the attribute partitionkey].
    #[arg(long, value_name = "PATH")]
    key: Vec<Path>,
    /// Where in a line the id is [default: the attribute id].
    #[arg(long, value_name = "PATH")]
    id: Option<Path>,
    /// Goes on after a bad line, which is reported, instead of stopping there.
    #[arg(long)]
    skip_bad: bool,
    #[command(flatten)]
    settings: PublishSettings,
}

/// What became of the lines so far.
#[derive(Default, Serialize)]
struct Summary {
    read: u64,
    confirmed: u64,
    duplicates: u64,
    bad: u64,
}

/// Lines and their events, and what was found behind them.
#[derive(Default)]
struct Batch {
    lines: Vec<Line>,
    events: Vec<Event>,
    bytes: usize,
    bad: Option<(u64, String)>,
}

impl Publish {
    pub(crate) async fn run(self, global: &Global, matches: &ArgMatches) -> Result<(), Failure> {
        let settings = load(global, Flags::of("publish", &self.settings, matches))?.settings;
        let (input, bytes) = self.input()?;
        let absent = if settings.publish.existing_topic { Absent::Refuse } else { Absent::Create };
        let broker = open_broker(&settings, absent).await?;
        if let AnyBroker::Nats(_) = broker {
            check(&broker, &self.topic, &settings).await?;
        }
        let publisher = Publisher::new(settings.publish.source.as_str(), broker.shared());
        let publisher = match settings.publish.format {
            FormatName::Cloudevents => publisher,
            FormatName::CloudeventsStructured => publisher.format(CloudEvents::structured()),
            FormatName::Json => publisher.format(PlainJson::new()),
        };
        let (send, batches) = channel(2);
        let topic = self.topic.as_str().into();
        let needs_time = settings.publish.format == FormatName::CloudeventsStructured;
        let recipe = Arc::new(Recipe { topic, kind: self.kind, key: self.key, id: self.id, needs_time });
        let (by, bar, slow) = (Arc::clone(&recipe), progress(bytes), bytes.is_none());
        let reading = tokio::task::spawn_blocking(move || read(input, slow, &by, &send));
        let (skip_bad, summary) = (self.skip_bad, Summary::default());
        let mut publishing = Publishing { publisher, recipe, skip_bad, summary, bar };
        let done = publishing.run(batches).await;
        publishing.bar.finish_and_clear();
        done.map_err(|failure| publishing.summary.explain(failure))?;
        match reading.await {
            Ok(Err(error)) => return Err(publishing.summary.explain(unreadable(&self.file, &error))),
            Ok(Ok(())) => {}
            Err(error) => return Err(Failure::new(Exit::Failed, "reading ended too early").because(&error)),
        }
        publishing.summary.print(global.output.unwrap_or_default())
    }

    /// What to read, and how long it is if that is known.
    fn input(&self) -> Result<(Box<dyn Read + Send>, Option<u64>), Failure> {
        if self.file.as_os_str() == "-" {
            return Ok((Box::new(io::stdin()), None));
        }
        let opened = File::open(&self.file).and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = opened.map_err(|error| unreadable(&self.file, &error))?;
        Ok((Box::new(file), metadata.is_file().then_some(metadata.len())))
    }
}

/// Nothing on NATS comes into being by being published to: streams are declared, and what they cost is for operators to say.
async fn check(broker: &AnyBroker, topic: &str, settings: &Settings) -> Result<(), Failure> {
    broker.shared().check_topic(&topic.into()).await.map_err(|error| match error {
        BrokerError::NoSuchTopic { .. } => settings.broker.lacks(topic),
        other => other.into(),
    })
}

fn unreadable(file: &std::path::Path, error: &io::Error) -> Failure {
    Failure::new(Exit::Missing, format!("{} cannot be read", file.display())).because(error)
}

/// Reads lines and makes batches of them, ahead of publishing, until nobody takes them any more. Of an input that may be slow
/// what is there is published before more is waited for.
fn read(input: Box<dyn Read + Send>, slow: bool, recipe: &Recipe, send: &Sender<Batch>) -> io::Result<()> {
    let (mut lines, mut batch) = (Lines::new(input), Batch::default());
    while let Some(line) = lines.next()? {
        match recipe.event(&line.text) {
            Ok(event) => {
                batch.bytes += line.text.len();
                batch.lines.push(line);
                batch.events.push(event);
            }
            Err(reason) => batch.bad = Some((line.number, reason)),
        }
        let waits = slow && !lines.has_line();
        let full = batch.events.len() == BATCH || batch.bytes > BATCH_BYTES || batch.bad.is_some();
        if (full || waits) && send.blocking_send(std::mem::take(&mut batch)).is_err() {
            return Ok(());
        }
    }
    let _ = send.blocking_send(batch);
    Ok(())
}

struct Publishing {
    publisher: Publisher,
    recipe: Arc<Recipe>,
    skip_bad: bool,
    summary: Summary,
    bar: ProgressBar,
}

impl Publishing {
    async fn run(&mut self, mut batches: Receiver<Batch>) -> Result<(), Failure> {
        while let Some(batch) = batches.recv().await {
            let (bytes, bad) = (batch.bytes, batch.bad);
            self.summary.read += batch.lines.len() as u64;
            self.publish(batch.lines, batch.events).await?;
            if let Some((line, reason)) = bad {
                self.summary.read += 1;
                self.bad(line, &reason)?;
            }
            self.bar.inc(bytes as u64);
            self.bar.set_message(format!("{} confirmed", self.summary.confirmed + self.summary.duplicates));
        }
        Ok(())
    }

    /// Publishes a batch. What was not sent because an earlier line of its key is bad goes out once more, in order.
    async fn publish(&mut self, mut lines: Vec<Line>, mut events: Vec<Event>) -> Result<(), Failure> {
        while !events.is_empty() {
            let answers = self.publisher.publish_all(std::mem::take(&mut events)).await;
            let (mut held, mut bad) = (Vec::new(), Vec::new());
            for (line, answer) in lines.into_iter().zip(answers) {
                match answer {
                    Ok(receipt) if receipt.duplicate => self.summary.duplicates += 1,
                    Ok(_) => self.summary.confirmed += 1,
                    Err(PublishError::EarlierFailed { .. }) => held.push(line),
                    Err(error) if is_of_the_line(&error) => bad.push((line.number, error.to_string())),
                    Err(error) => return Err(unpublished(&error)),
                }
            }
            for (line, reason) in bad {
                self.bad(line, &reason)?;
            }
            events = held.iter().filter_map(|line| self.recipe.event(&line.text).ok()).collect();
            lines = held;
        }
        Ok(())
    }

    /// Reports a bad line; the end unless it is to be skipped.
    fn bad(&mut self, line: u64, reason: &str) -> Result<(), Failure> {
        self.summary.bad += 1;
        if !self.skip_bad {
            let failure = Failure::new(Exit::Data, format!("line {line} is bad: {reason}"));
            return Err(failure.fix(advice(reason)));
        }
        self.bar.suspend(|| anstream::eprintln!("line {line} is bad: {reason}"));
        Ok(())
    }
}

/// What is to be done about a bad line.
fn advice(reason: &str) -> &'static str {
    if reason.contains("EOF while parsing") {
        "write each event on one line (`jq -c . FILE` does), or go on after bad lines with --skip-bad"
    } else if reason.contains("`specversion`") {
        "lines are CloudEvents unless you give --type and --id, with which they may be any JSON; see `aqueduct publish --help`"
    } else {
        "mend the line, or go on after bad lines with --skip-bad"
    }
}

/// True if the line is at fault, and another one may be published.
fn is_of_the_line(error: &PublishError) -> bool {
    match error {
        PublishError::Format(_) | PublishError::TooLarge { .. } => true,
        PublishError::Broker(error) => {
            matches!(error, BrokerError::TooLarge { .. } | BrokerError::IdentityReused { .. })
        }
        _ => false,
    }
}

fn unpublished(error: &PublishError) -> Failure {
    match error {
        PublishError::Unconfirmed { source, .. } => Failure::new(Exit::Unusable, source.to_string()).because(source),
        PublishError::Broker(BrokerError::NoSuchTopic { topic }) => {
            Failure::new(Exit::Missing, format!("topic `{topic}` does not exist"))
                .fix("correct the name, or leave out --existing-topic and it is created")
        }
        PublishError::Topic(error) => Failure::new(Exit::Usage, error.to_string()),
        other => Failure::new(Exit::Unusable, other.to_string()).because(other),
    }
}

impl Summary {
    /// Says what was confirmed before a failure.
    fn explain(&self, failure: Failure) -> Failure {
        let Self { confirmed, duplicates, .. } = self;
        if confirmed + duplicates == 0 {
            return failure.then("nothing was published");
        }
        let already = if *duplicates > 0 { format!(", and {duplicates} were there already") } else { String::new() };
        failure.then(format!(
            "confirmed: {confirmed}{already}. Run the same command again afterwards: what is confirmed adds nothing"
        ))
    }

    fn print(&self, output: Output) -> Result<(), Failure> {
        let Self { read, confirmed, duplicates, bad } = self;
        match output {
            Output::Json => print(&format!("{}\n", serde_json::to_string(self).unwrap_or_default())),
            Output::Text => print(&format!("read {read}, confirmed {confirmed}, duplicates {duplicates}, bad {bad}\n")),
        }
    }
}
