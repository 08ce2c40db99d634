//! Time, randomness and ids: the only place the library gets them from.
//!
//! Everything above takes a [`Clock`], so that the simulator can run the whole engine on a paused clock with one seed.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

/// A point in wall-clock time with nanosecond resolution, written as RFC 3339 in UTC.
///
/// ```
/// let t: aqueduct::Timestamp = "2026-01-05T10:00:07.25+01:00".parse()?;
/// assert_eq!(t.to_string(), "2026-01-05T09:00:07.25Z");
/// # Ok::<(), aqueduct::TimestampError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(jiff::Timestamp);

impl Timestamp {
    /// 1970-01-01T00:00:00Z.
    pub const UNIX_EPOCH: Self = Self(jiff::Timestamp::UNIX_EPOCH);

    /// The timestamp `ms` milliseconds after the Unix epoch; out of range saturates.
    pub fn from_unix_ms(ms: i64) -> Self {
        let bound = if ms < 0 { jiff::Timestamp::MIN } else { jiff::Timestamp::MAX };
        Self(jiff::Timestamp::from_millisecond(ms).unwrap_or(bound))
    }

    /// Milliseconds since the Unix epoch, negative before it.
    pub fn unix_ms(self) -> i64 {
        self.0.as_millisecond()
    }

    /// This time plus `d`; saturates at the end of time.
    pub fn after(self, d: Duration) -> Self {
        let later = jiff::SignedDuration::try_from(d).ok().and_then(|d| self.0.checked_add(d).ok());
        Self(later.unwrap_or(jiff::Timestamp::MAX))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::try_from(self.0.duration_since(earlier.0)).unwrap_or(Duration::ZERO)
    }
}

impl From<SystemTime> for Timestamp {
    fn from(t: SystemTime) -> Self {
        Self(jiff::Timestamp::try_from(t).unwrap_or(jiff::Timestamp::MAX))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A text that is no RFC 3339 time.
#[derive(Debug, thiserror::Error)]
#[error("{text:?} is not an RFC 3339 time such as 2026-01-05T09:00:07Z")]
pub struct TimestampError {
    text: String,
}

impl FromStr for Timestamp {
    type Err = TimestampError;

    fn from_str(s: &str) -> Result<Self, TimestampError> {
        s.parse().map(Self).map_err(|_| TimestampError { text: s.chars().take(64).collect() })
    }
}

/// This point plus `d`, or plus 30 years if that is less: an [`Instant`](tokio::time::Instant) panics at its end.
pub(crate) fn later(at: tokio::time::Instant, d: Duration) -> tokio::time::Instant {
    const FAR: Duration = Duration::from_hours(24 * 365 * 30);
    at + d.min(FAR)
}

/// Nanoseconds on a monotonic clock that goes on while the machine is suspended; leases are measured on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Boot(pub u64);

impl Boot {
    /// This point plus `d`; saturates.
    pub fn after(self, d: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Where the library takes the time, random numbers and new ids from; cheap to clone.
#[derive(Clone)]
pub struct Clock(Arc<Inner>);

struct Inner {
    rng: Mutex<fastrand::Rng>,
    /// Simulated clocks count from here in tokio's (paused) time; the system clock has none.
    paused: Option<(tokio::time::Instant, SystemTime)>,
}

impl Clock {
    /// The machine's clocks and a generator seeded by the operating system.
    pub fn system() -> Self {
        Self(Arc::new(Inner { rng: Mutex::new(fastrand::Rng::new()), paused: None }))
    }

    /// A clock that starts at 2026-01-01T00:00:00Z and follows tokio's time, with a generator seeded by `seed`.
    ///
    /// Needs a tokio runtime; with its clock paused, everything drawn from this clock repeats exactly.
    #[cfg(any(test, feature = "testing"))]
    pub fn simulated(seed: u64) -> Self {
        let start = SystemTime::UNIX_EPOCH + Duration::from_hours(490_896);
        let rng = Mutex::new(fastrand::Rng::with_seed(seed));
        Self(Arc::new(Inner { rng, paused: Some((tokio::time::Instant::now(), start)) }))
    }

    /// Now, on the wall clock. It may jump; measure spans with [`boot`](Self::boot).
    pub fn now(&self) -> Timestamp {
        match self.0.paused {
            None => SystemTime::now().into(),
            Some((start, wall)) => (wall + start.elapsed()).into(),
        }
    }

    /// Now, on the monotonic clock that counts suspension. Costs about 25 ns.
    pub fn boot(&self) -> Boot {
        match self.0.paused {
            None => system_boot(),
            Some((start, _)) => Boot(0).after(start.elapsed()),
        }
    }

    /// A random duration from zero to `max`: "full jitter" (Brooker, AWS Architecture Blog, 2015).
    pub fn jitter(&self, max: Duration) -> Duration {
        let ns = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(self.0.rng.lock().u64(0..=ns))
    }

    /// A random number below `end`, 0 if `end` is 0.
    pub fn random(&self, end: u64) -> u64 {
        if end == 0 { 0 } else { self.0.rng.lock().u64(0..end) }
    }

    /// A new UUID version 7 (RFC 9562): its order is the order of time, to the millisecond.
    pub fn uuid(&self) -> uuid::Uuid {
        let ms = u64::try_from(self.now().unix_ms()).unwrap_or(0);
        let mut random = [0; 10];
        self.0.rng.lock().fill(&mut random);
        uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::system()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.paused.is_some() { "Clock(simulated)" } else { "Clock(system)" })
    }
}

/// `CLOCK_BOOTTIME` on Linux; Apple's `CLOCK_MONOTONIC` counts sleep as well.
#[cfg(unix)]
fn system_boot() -> Boot {
    #[cfg(target_os = "linux")]
    const ID: rustix::time::ClockId = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    const ID: rustix::time::ClockId = rustix::time::ClockId::Monotonic;
    let t = rustix::time::clock_gettime(ID);
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(t.tv_nsec).unwrap_or(0);
    Boot(secs.saturating_mul(1_000_000_000).saturating_add(nanos))
}

/// The performance counter, which goes on while Windows sleeps.
#[cfg(not(unix))]
fn system_boot() -> Boot {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    Boot(0).after(START.get_or_init(std::time::Instant::now).elapsed())
}

/// Until when an ownership holds: a deadline that the adapter's heartbeat moves and the engine reads before every poll of
/// a handler.
#[derive(Clone)]
pub struct Lease(Arc<AtomicU64>);

impl Lease {
    /// An ownership that needs no renewal.
    pub fn forever() -> Self {
        Self::until(Boot(u64::MAX))
    }

    /// An ownership until this point unless renewed.
    pub fn until(deadline: Boot) -> Self {
        Self(Arc::new(AtomicU64::new(deadline.0)))
    }

    /// Moves the deadline.
    pub fn renew(&self, deadline: Boot) {
        self.0.store(deadline.0, Ordering::Release);
    }

    /// The deadline.
    pub fn deadline(&self) -> Boot {
        Boot(self.0.load(Ordering::Acquire))
    }

    /// True if it needs no renewal.
    pub fn is_forever(&self) -> bool {
        self.deadline().0 == u64::MAX
    }

    /// True while it holds.
    pub fn holds(&self, clock: &Clock) -> bool {
        let deadline = self.deadline();
        deadline.0 == u64::MAX || clock.boot() < deadline
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:?})", self.deadline())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_never_goes_back_and_uuids_are_version_seven() {
        let clock = Clock::system();
        let (a, b) = (clock.boot(), clock.boot());
        assert!(a <= b);
        assert_eq!(clock.uuid().get_version_num(), 7);
        assert_ne!(clock.uuid(), clock.uuid());
    }

    #[tokio::test(start_paused = true)]
    async fn a_seed_repeats_everything() {
        let (a, b) = (Clock::simulated(7), Clock::simulated(7));
        assert_eq!((a.now(), a.uuid(), a.jitter(Duration::MAX)), (b.now(), b.uuid(), b.jitter(Duration::MAX)));
    }

    #[test]
    fn timestamps_saturate_and_report_rubbish() {
        assert!(Timestamp::from_unix_ms(i64::MAX) > Timestamp::UNIX_EPOCH);
        assert_eq!(Timestamp::UNIX_EPOCH.since(Timestamp::from_unix_ms(5)), Duration::ZERO);
        assert_eq!(Timestamp::from_unix_ms(5).since(Timestamp::UNIX_EPOCH), Duration::from_millis(5));
        let err = "yesterday".parse::<Timestamp>().unwrap_err();
        assert!(err.to_string().contains("2026-01-05T09:00:07Z"));
    }
}
