//! Waiting while the broker or the database is away: ever longer, up to an end, and told once.

use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Clock;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(5);

/// Whether something is away, and when it is tried again.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
    until: Option<Instant>,
}

impl Backoff {
    /// It has failed. True if it had not before: then somebody should be told.
    pub(super) fn failed(&mut self, now: Instant, clock: &Clock) -> bool {
        let wait = (FIRST * (1 << self.failures.min(10))).min(LONGEST);
        self.until = Some(now + wait / 2 + clock.jitter(wait / 2));
        self.failures = self.failures.saturating_add(1);
        self.failures == 1
    }

    /// It has answered. True if it was away.
    pub(super) fn answered(&mut self) -> bool {
        self.until = None;
        std::mem::take(&mut self.failures) > 0
    }

    /// True from the first failure to the next answer.
    pub(super) fn is_failing(&self) -> bool {
        self.failures > 0
    }

    /// When it is tried again; none if it is well.
    pub(super) fn until(&self) -> Option<Instant> {
        self.until
    }
}
