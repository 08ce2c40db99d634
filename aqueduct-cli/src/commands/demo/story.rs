//! What the demo tells: real events, and everything that goes wrong while they are handled.

use std::time::Duration;

use aqueduct::{Clock, Error, Event, FaultExt, Key, Result};
use bytes::Bytes;

use super::reliable::TOPIC;
use crate::input::read_event;

/// 329 deliveries of GitHub's webhooks, an event a line.
const WEBHOOKS: &str = include_str!("github-webhooks.ndjson");

/// The service behind this repository is down for a while.
pub(super) const DOWN: &str = "octo-org/octo-repo";
/// No attempt on this event can ever succeed.
const POISON: &str = "000140";
/// The handler of this event panics at first.
const PANICS: &str = "000100";

/// A webhook and where it stands among all.
#[derive(Clone)]
pub(super) struct Webhook {
    pub(super) number: String,
    /// Its ordering key, if it has one.
    pub(super) repository: Option<String>,
    pub(super) line: &'static str,
    pub(super) event: Event,
}

/// All webhooks, in their order.
pub(super) fn webhooks() -> Result<Vec<Webhook>> {
    WEBHOOKS.lines().map(webhook).collect()
}

/// A line as an event.
pub(super) fn webhook(line: &'static str) -> Result<Webhook> {
    let event = read(line)?;
    let repository = event.key.as_ref().map(Key::to_string);
    Ok(Webhook { number: number(&event), repository, line, event })
}

/// An event in the structured form of CloudEvents.
pub(super) fn read(line: &str) -> Result<Event> {
    read_event(&TOPIC.into(), &Bytes::copy_from_slice(line.as_bytes())).map_err(Error::msg)
}

/// The number of an event in the file.
pub(super) fn number(event: &Event) -> String {
    event.headers.text("ce-sequence").unwrap_or_default().to_owned()
}

/// When what happens. Everything is a share of the whole time.
#[derive(Clone, Copy)]
pub(super) struct Story {
    /// Milliseconds since 1970.
    pub(super) began: i64,
    pub(super) lasts: Duration,
}

impl Story {
    pub(super) fn begin(lasts: Duration) -> Self {
        Self { began: Clock::system().now().unix_ms(), lasts }
    }

    /// For how long it has gone on.
    pub(super) fn passed(&self) -> Duration {
        let passed = Clock::system().now().unix_ms().saturating_sub(self.began);
        Duration::from_millis(u64::try_from(passed).unwrap_or(0))
    }

    /// This share of the time.
    pub(super) fn share(&self, share: f64) -> Duration {
        self.lasts.mul_f64(share)
    }

    /// Whether the service behind [`DOWN`] is down now.
    pub(super) fn is_down(&self) -> bool {
        (self.share(DOWN_FROM)..self.share(DOWN_TO)).contains(&self.passed())
    }
}

/// All events are published by then.
pub(super) const PUBLISHED: f64 = 0.9;
pub(super) const DOWN_FROM: f64 = 0.1;
pub(super) const DOWN_TO: f64 = 0.7;
pub(super) const KILLED: f64 = 0.45;

/// The handler's work, and what goes wrong with it. The same for both sides.
pub(super) fn handle(event: &Event, attempt: u32, story: &Story) -> Result<()> {
    let number = number(event);
    if event.key.as_ref().is_some_and(|key| key.as_str() == DOWN) && story.is_down() {
        return Err(Error::msg(format!("the service behind {DOWN} refuses the connection")));
    }
    if number == POISON {
        return Err(Error::msg("this event makes no sense to anyone")).permanent();
    }
    assert!(number != PANICS || attempt > 2, "the handler of event {PANICS} panics, attempt {attempt}");
    Ok(())
}
