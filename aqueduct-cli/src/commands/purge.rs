//! `aqueduct purge`: deletes events of a topic, after saying which.

use std::collections::BTreeMap;
use std::fmt::Write;

use aqueduct::sqlite::{Purged, Retention, SqliteBroker, SqliteStatus};
use aqueduct::{Clock, Timestamp, Topic};
use clap::{ArgGroup, Args};
use indicatif::HumanBytes;
use serde_json::json;

use super::rows::existing_broker;
use crate::cli::Global;
use crate::config::Span;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::output::{Output, note, print};
use crate::table::count;

const EXAMPLES: &str = include_str!("help/purge.txt");

/// What to do on NATS.
const INSTEAD: &str = "let the server delete what is old, by max_age and max_bytes in the file of `aqueduct topology apply`, or delete it with `nats stream purge`";

/// Deletes events of a topic from the log, after saying how many. Nothing that a group has not read, unless it is said.
#[derive(Args)]
#[command(after_long_help = EXAMPLES, group = ArgGroup::new("which").required(true))]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(crate) struct Purge {
    /// The topic.
    topic: String,
    /// What was stored before this time.
    #[arg(long, value_name = "TIME", group = "which")]
    before: Option<Timestamp>,
    /// What was stored longer ago than this.
    #[arg(long, value_name = "TIME", group = "which")]
    older: Option<Span>,
    /// The oldest, until no more than this is left: bytes, or with K, M or G behind.
    #[arg(long, value_name = "N", group = "which", value_parser = bytes)]
    keep_bytes: Option<u64>,
    /// Everything.
    #[arg(long, group = "which")]
    all: bool,
    /// Deletes what groups have not read, too: it is lost to them.
    #[arg(long)]
    drop_unread: bool,
    /// Says how many there are, and deletes nothing.
    #[arg(long)]
    dry_run: bool,
    /// Does not ask.
    #[arg(short, long)]
    yes: bool,
}

fn bytes(text: &str) -> Result<u64, String> {
    let (number, shift) = match text.bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let parsed = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    parsed.ok_or_else(|| "it is no number of bytes such as 500000, 500K, 20M or 1G".to_owned())
}

/// So many events, and their size.
fn sums(purged: &[Purged]) -> (u64, u64) {
    (purged.iter().map(|part| part.messages).sum(), purged.iter().map(|part| part.bytes).sum())
}

impl Purge {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let broker = existing_broker(global, INSTEAD).await?;
        let (topic, output) = (Topic::from(self.topic.as_str()), global.output.unwrap_or_default());
        let limits = self.limits();
        let unread_too = broker.would_purge(&topic, limits.drop_unread()).await?;
        let (limits, would) = if self.drop_unread {
            (limits.drop_unread(), unread_too.clone())
        } else {
            (limits, broker.would_purge(&topic, limits).await?)
        };
        let ((events, size), kept) = (sums(&would), sums(&unread_too).0 - sums(&would).0);
        let lost = lost(&broker, &would).await?;
        if !self.dry_run && events > 0 {
            let mut question = format!("purge {} ({}) of topic {topic}", count(events, "event"), HumanBytes(size));
            for (group, unread) in &lost {
                let _ = write!(question, ", {unread} of which group {group} has not read");
            }
            if !confirm(&question, self.yes)? {
                note("nothing was deleted");
                return Ok(());
            }
        }
        let (verb, (events, size)) = if self.dry_run {
            ("would purge", (events, size))
        } else {
            ("purged", sums(&broker.purge(&topic, limits).await?))
        };
        match output {
            Output::Json => print(&format!(
                "{}\n",
                json!({ "topic": self.topic, "dry_run": self.dry_run, "events": events, "bytes": size, "kept_unread": kept,
                    "unread": lost })
            ))?,
            Output::Text => print(&format!("{verb} {} ({})\n", count(events, "event"), HumanBytes(size)))?,
        }
        if kept > 0 {
            note(format_args!(
                "{} stay, since a group has not read them: `aqueduct status` says which",
                count(kept, "event")
            ));
        }
        Ok(())
    }

    fn limits(&self) -> Retention {
        let limits = Retention::new();
        let age = self.before.map(|before| Clock::system().now().since(before)).or(self.older.map(|older| older.0));
        let bytes = if self.all { Some(0) } else { self.keep_bytes };
        let limits = age.into_iter().fold(limits, Retention::age);
        bytes.into_iter().fold(limits, Retention::bytes)
    }
}

/// How many events each group has not read of those that go.
async fn lost(broker: &SqliteBroker, purged: &[Purged]) -> Result<BTreeMap<String, u64>, Failure> {
    let SqliteStatus { partitions, consumers, .. } = broker.status().await?;
    let mut lost = BTreeMap::new();
    for consumer in consumers {
        for floor in consumer.floors {
            let first = partitions.iter().find(|p| p.partition == floor.partition).map_or(1, |p| p.first.0);
            let gone = purged.iter().find(|p| p.partition == floor.partition).map_or(0, |p| p.last.0);
            let unread = gone.saturating_sub(floor.floor.0.max(first - 1));
            if unread > 0 {
                *lost.entry(consumer.consumer.to_string()).or_default() += unread;
            }
        }
    }
    Ok(lost)
}
