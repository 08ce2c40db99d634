//! What to do when an attempt fails, and every default in one table.

use std::fmt;
use std::time::Duration;

use crate::error::{Error, Fault};
use crate::store::Hold;

/// Every default, in one place. All but the fixed ones are options of [`Consumer`](crate::Consumer) or [`Policy`].
pub mod defaults {
    use std::time::Duration;

    /// Handlers that run at the same time.
    pub const CONCURRENCY: usize = 32;
    /// Deliveries held in memory, all keys together.
    pub const BUFFER: usize = 1_024;
    /// Deliveries of one key held in memory.
    pub const BUFFER_PER_KEY: usize = 64;
    /// Attempts in quick succession before an event is parked.
    pub const QUICK_ATTEMPTS: u32 = 3;
    /// The longest wait after the first quick attempt; it doubles.
    pub const QUICK_DELAY: Duration = Duration::from_millis(20);
    /// The wait before the first parked attempt; it doubles.
    pub const PARKED_DELAY: Duration = Duration::from_secs(1);
    /// The longest wait between parked attempts.
    pub const PARKED_DELAY_MAX: Duration = Duration::from_hours(1);
    /// The longest [`PARKED_DELAY_MAX`] that can be set. Fixed.
    pub const PARKED_DELAY_LIMIT: Duration = Duration::from_hours(24);
    /// Parked attempts before an event is dead.
    pub const PARKED_ATTEMPTS: u32 = 20;
    /// How long one attempt may take.
    pub const TIMEOUT: Duration = Duration::from_secs(30);
    /// A running attempt is reported as stuck after this.
    pub const STALL: Duration = Duration::from_mins(5);
    /// How long a graceful stop may take: four fifths of it to finish, the rest to clean up after what was cancelled.
    pub const SHUTDOWN: Duration = Duration::from_secs(30);
    /// Positions above the floor of a partition before it waits. Fixed.
    pub const ABOVE_FLOOR: usize = 65_536;
    /// The longest time for which a delivery is extended. Fixed.
    pub const EXTEND_MAX: Duration = Duration::from_hours(24);
    /// How often an event is published again after the broker could not be reached. Fixed.
    pub const PUBLISH_RETRIES: u32 = 5;
    /// The longest wait before it is published again; it doubles. Fixed.
    pub const PUBLISH_DELAY: Duration = Duration::from_millis(100);
    /// Messages handed to the broker at once. Fixed.
    pub const PUBLISH_WAVE: usize = 1_000;
    /// How often the store is asked for operators' commands. Fixed.
    pub const COMMAND_POLL: Duration = Duration::from_secs(1);
}

/// What to do when an attempt fails.
///
/// ```
/// use aqueduct::Policy;
/// use std::time::Duration;
/// let payments = Policy::ordered().max_attempts(50).parked_delay(Duration::from_secs(5)).block();
/// # let _ = payments;
/// ```
#[derive(Clone)]
pub struct Policy {
    pub(crate) kind: Kind,
    pub(crate) quick_attempts: u32,
    pub(crate) quick_delay: Duration,
    pub(crate) parked_attempts: u32,
    pub(crate) parked_delay: Duration,
    pub(crate) parked_delay_max: Duration,
    pub(crate) hold: Hold,
    pub(crate) classify: Option<Classify>,
}

/// Decides whether trying again can help.
pub(crate) type Classify = fn(&Error) -> Fault;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ordered,
    Fast,
    BestEffort,
}

impl Policy {
    /// Keeps keys in order: quick attempts, then the event is parked and its key waits behind it; when the attempts run
    /// out it becomes a dead letter and its key goes on. The default.
    pub fn ordered() -> Self {
        Self {
            kind: Kind::Ordered,
            quick_attempts: defaults::QUICK_ATTEMPTS,
            quick_delay: defaults::QUICK_DELAY,
            parked_attempts: defaults::PARKED_ATTEMPTS,
            parked_delay: defaults::PARKED_DELAY,
            parked_delay_max: defaults::PARKED_DELAY_MAX,
            hold: Hold::Skip,
            classify: None,
        }
    }

    /// Parks nothing: quick attempts, then a dead letter.
    pub fn fast() -> Self {
        Self { kind: Kind::Fast, ..Self::ordered() }
    }

    /// Loses what fails: quick attempts, then a line in the log. Exempt from every promise about loss.
    pub fn best_effort() -> Self {
        Self { kind: Kind::BestEffort, ..Self::ordered() }
    }

    /// A dead letter holds its key: the events behind it wait until somebody resolves it. Defaults to letting them pass.
    pub fn block(mut self) -> Self {
        self.hold = Hold::Block;
        self
    }

    /// Attempts after parking before an event is dead. Defaults to 20.
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.parked_attempts = attempts;
        self
    }

    /// Attempts in quick succession, the first included; 0 counts as 1. Defaults to 3.
    pub fn quick_attempts(mut self, attempts: u32) -> Self {
        self.quick_attempts = attempts.max(1);
        self
    }

    /// The longest wait after the first quick attempt; it doubles from there. Defaults to 20 ms.
    pub fn quick_delay(mut self, delay: Duration) -> Self {
        self.quick_delay = delay;
        self
    }

    /// The wait before the first parked attempt; it doubles from there. Defaults to 1 s.
    pub fn parked_delay(mut self, delay: Duration) -> Self {
        self.parked_delay = delay;
        self
    }

    /// The longest wait between parked attempts, at most 24 h. Defaults to 1 h.
    pub fn parked_delay_max(mut self, delay: Duration) -> Self {
        self.parked_delay_max = delay.min(defaults::PARKED_DELAY_LIMIT);
        self
    }

    /// Decides whether trying again can help, for errors that do not say so themselves. Defaults to
    /// [`Fault::Transient`] for all.
    pub fn classify(mut self, classify: fn(&Error) -> Fault) -> Self {
        self.classify = Some(classify);
        self
    }

    /// What an error means under this policy: its own word first, then [`classify`](Self::classify).
    pub fn fault(&self, error: &Error) -> Fault {
        fault_of(error, self.classify)
    }

    /// The longest wait after quick attempt `attempt` (from 1); the actual one is random between zero and this.
    pub(crate) fn quick_wait(&self, attempt: u32) -> Duration {
        doubled(self.quick_delay, attempt.saturating_sub(1)).min(self.parked_delay_max)
    }

    /// The wait before parked attempt `attempt` (from 1).
    pub(crate) fn parked_wait(&self, attempt: u32) -> Duration {
        doubled(self.parked_delay, attempt.saturating_sub(1)).min(self.parked_delay_max)
    }
}

/// The error's own word first, then the policy's.
pub(crate) fn fault_of(error: &Error, classify: Option<Classify>) -> Fault {
    error.fault().unwrap_or_else(|| classify.map_or(Fault::Transient, |classify| classify(error)))
}

fn doubled(d: Duration, times: u32) -> Duration {
    d.checked_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).unwrap_or(Duration::MAX)
}

impl Default for Policy {
    fn default() -> Self {
        Self::ordered()
    }
}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy")
            .field("kind", &self.kind)
            .field("quick_attempts", &self.quick_attempts)
            .field("parked_attempts", &self.parked_attempts)
            .field("hold", &self.hold)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_cap() {
        let p = Policy::ordered();
        assert_eq!([1, 2, 3].map(|n| p.quick_wait(n).as_millis()), [20, 40, 80]);
        assert_eq!([1, 2, 12, 13, 99].map(|n| p.parked_wait(n).as_secs()), [1, 2, 2048, 3600, 3600]);
        assert_eq!(p.parked_delay_max(Duration::MAX).parked_delay_max, defaults::PARKED_DELAY_LIMIT);
    }

    #[test]
    fn the_error_speaks_before_the_policy() {
        let p = Policy::ordered().classify(|_| Fault::Permanent);
        assert_eq!(p.fault(&Error::msg("x")), Fault::Permanent);
        let later = Fault::RetryAfter(Duration::from_secs(1));
        assert_eq!(p.fault(&Error::msg("x").retry_after(Duration::from_secs(1))), later);
    }
}
