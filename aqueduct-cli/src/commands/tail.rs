//! `aqueduct tail`: the events of a topic, for people, without a group.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{Lease, Start};
use aqueduct::format::{CloudEvents, Decoded, Format, FormatErrorKind};
use aqueduct::sqlite::{LogReader, Logged};
use aqueduct::{Attempt, Epoch, Message, Origin, Place};
use clap::Args;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::rows::existing_broker;
use crate::cli::Global;
use crate::config::{ConsumeSettings, Flags, FormatName, From, load};
use crate::failure::Failure;
use crate::handler::Delivery;
use crate::output::{delivered, note};
use crate::suggest::did_you_mean;

const EXAMPLES: &str = include_str!("help/tail.txt");

/// What to do on NATS.
const INSTEAD: &str = "print events with `aqueduct consume TOPIC --group NAME --from new`, under a group of its own";

/// Messages of a partition that are read at a time.
const READ: usize = 200;

/// The most that --lines goes back.
const LINES_MAX: u64 = 100_000;

/// Prints the events of a topic as they come. Leaves no trace: no group reads them.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Tail {
    /// The topic.
    topic: String,
    /// Where to begin: `beginning`, `new`, or a time such as 2026-01-05T09:00:07Z [default: new].
    #[arg(long, value_name = "WHERE")]
    from: Option<From>,
    /// Begins with the last so many.
    #[arg(short = 'n', long, value_name = "N", conflicts_with = "from", value_parser = clap::value_parser!(u64).range(..=LINES_MAX))]
    lines: Option<u64>,
    /// Stops at the end instead of waiting for more.
    #[arg(long)]
    no_follow: bool,
}

impl Tail {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let settings = load(global, Flags::none())?.settings;
        let broker = existing_broker(global, INSTEAD).await?;
        let topics = broker.topics().await?;
        if !topics.iter().any(|topic| topic.as_str() == self.topic) {
            let failure = settings.broker.lacks(&self.topic);
            let question = did_you_mean(&self.topic, topics.iter().map(aqueduct::Topic::as_str));
            return Err(failure.fix(question.unwrap_or_else(|| "`aqueduct status` lists the topics".into())));
        }
        let start = self.from.map_or(Start::New, |from| from.0);
        let mut reader = broker.read(self.topic.as_str(), start).await?;
        let formats = formats(&settings.consume);
        if let Some(lines) = self.lines {
            let lines = usize::try_from(lines).unwrap_or(usize::MAX);
            if !print(&last(&mut reader, lines).await?, &formats)? {
                return Ok(());
            }
        }
        loop {
            let found = if self.no_follow { reader.read(READ).await? } else { follow(&mut reader).await? };
            if found.is_empty() || !print(&found, &formats)? {
                return Ok(());
            }
        }
    }
}

/// Waits for more; nothing if nobody reads the output any more.
async fn follow(reader: &mut LogReader) -> Result<Vec<Logged>, Failure> {
    const LOOK: Duration = Duration::from_millis(500);
    loop {
        let waited = tokio::time::timeout(LOOK, reader.next(READ)).await;
        match waited {
            Ok(found) => return Ok(found?),
            Err(_) if is_closed() => return Ok(Vec::new()),
            Err(_) => {}
        }
    }
}

/// True if the output is a pipe that nobody reads.
fn is_closed() -> bool {
    let out = std::io::stdout();
    let mut watched = [PollFd::new(&out, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut watched, Some(&now)).is_ok() && watched[0].revents().contains(PollFlags::ERR)
}

/// The last so many of all partitions together.
async fn last(reader: &mut LogReader, lines: usize) -> Result<Vec<Logged>, Failure> {
    reader.rewind(lines as u64);
    let mut all: Vec<Logged> = Vec::new();
    loop {
        let found = reader.read(READ).await?;
        if found.is_empty() {
            return Ok(all);
        }
        all.extend(found);
        // Each read is in order already; those of several may have to be put between each other.
        all.sort_by_key(|logged| logged.message.stored_at);
        all.drain(..all.len().saturating_sub(lines));
    }
}

/// The formats that events are read in, as the settings of `consume` say.
fn formats(settings: &ConsumeSettings) -> Vec<Box<dyn Format>> {
    let format = |name: &FormatName| -> Box<dyn Format> {
        match name {
            FormatName::Cloudevents => Box::new(CloudEvents::binary()),
            FormatName::CloudeventsStructured => Box::new(CloudEvents::structured()),
            FormatName::Json => Box::new(settings.plain_json()),
        }
    };
    settings.format.iter().map(format).collect()
}

/// Prints messages. False if nobody reads any more.
fn print(messages: &[Logged], formats: &[Box<dyn Format>]) -> Result<bool, Failure> {
    let mut lines = Vec::new();
    for logged in messages {
        match line(logged, formats) {
            Ok(text) => lines.extend_from_slice(&text),
            Err(reason) => note(format_args!("{}/{} is no event: {reason}", logged.partition, logged.position.0)),
        }
    }
    let mut out = std::io::stdout().lock();
    delivered(out.write_all(&lines).and_then(|()| out.flush()))
}

/// The events of a message, as lines.
fn line(logged: &Logged, formats: &[Box<dyn Format>]) -> Result<Vec<u8>, String> {
    let events = match decode(&logged.message, formats)? {
        Decoded::One(event) => vec![event],
        Decoded::Batch(events) => events,
    };
    let (partition, position) = (&logged.partition, logged.position);
    let origin = Arc::new(Origin::new("", partition.clone(), Epoch(0), Lease::forever()));
    let mut lines = Vec::new();
    for (index, mut event) in (0_u32..).zip(events) {
        if event.id.is_empty() {
            event.id = format!("{partition}/{}/{index}", position.0).into();
        }
        let (place, attempt) = (Place { position, index }, Attempt::fresh(1));
        let delivery = Delivery { event: Arc::new(event), origin: Arc::clone(&origin), place, attempt };
        lines.extend_from_slice(&delivery.json().map_err(|e| e.to_string())?);
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Asks each format in turn, as a consumer does.
fn decode(message: &Message, formats: &[Box<dyn Format>]) -> Result<Decoded, String> {
    let mut problems = Vec::new();
    for format in formats {
        match format.decode(message) {
            Ok(decoded) => return Ok(decoded),
            Err(error) => {
                problems.push(error.to_string());
                if error.kind != FormatErrorKind::NotMine {
                    break;
                }
            }
        }
    }
    Err(problems.join("; "))
}
