//! When the outbox is looked into: at once while rows come, then ever more rarely.

use std::time::Duration;

use tokio::time::Instant;

/// The first wait after a look that found nothing.
const FIRST: Duration = Duration::from_millis(10);

/// The first wait after a hint: it is given when a row is written, and its transaction commits a moment later.
const AFTER_HINT: Duration = Duration::from_millis(2);

/// The longest wait while rows were seen lately, and how long that is.
const BUSY: Duration = Duration::from_millis(250);
const LATELY: Duration = Duration::from_secs(5);

/// The longest wait.
const IDLE: Duration = Duration::from_secs(10);

/// The pace of one relay.
#[derive(Debug)]
pub(super) struct Pace {
    next: Instant,
    wait: Duration,
    looked: Instant,
    /// When there was something last: a row, or a hint of one.
    busy: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { next: now, wait: FIRST, looked: now, busy: now }
    }

    /// When to look next.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// True if there was a row lately.
    pub(super) fn is_busy(&self, now: Instant) -> bool {
        now.duration_since(self.busy) < LATELY
    }

    /// A look begins; until it has ended there is no other.
    pub(super) fn look(&mut self, now: Instant) {
        self.looked = now;
        self.next = now + self.wait;
    }

    /// A look has ended.
    pub(super) fn looked(&mut self, now: Instant, found: bool) {
        if found {
            (self.next, self.wait, self.busy) = (now, FIRST, now);
            return;
        }
        // A hint that came meanwhile counts.
        let longest = if self.is_busy(now) { BUSY } else { IDLE };
        self.next = now + self.wait.min(longest);
        self.wait = (self.wait * 2).min(longest);
    }

    /// Rows were written, or will be in a moment.
    pub(super) fn hinted(&mut self, now: Instant) {
        (self.wait, self.busy) = (AFTER_HINT, now);
        self.next = self.next.min((self.looked + AFTER_HINT).max(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// The waits between looks that find nothing.
    fn waits(pace: &mut Pace, now: &mut Instant, count: usize) -> Vec<u128> {
        let wait = |_| {
            let before = *now;
            *now = pace.next().max(*now);
            pace.look(*now);
            pace.looked(*now, false);
            now.duration_since(before).as_millis()
        };
        (0..count).map(wait).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn it_slows_down_to_a_quarter_of_a_second_and_then_to_ten_seconds() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(waits(&mut pace, &mut now, 8), [0, 10, 20, 40, 80, 160, 250, 250]);
        let later = waits(&mut pace, &mut now, 30);
        assert!(later[..16].iter().all(|wait| *wait <= 250), "{later:?}");
        assert_eq!(later[25..], [10_000; 5]);
        pace.looked(now, true);
        assert_eq!(waits(&mut pace, &mut now, 3), [0, 10, 20]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hint_is_followed_at_once_and_then_at_short_steps() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        waits(&mut pace, &mut now, 60);
        now += ms(5_000);
        pace.hinted(now);
        assert_eq!(waits(&mut pace, &mut now, 6), [0, 2, 4, 8, 16, 32]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_hints_does_not_become_a_flood_of_looks() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut looks = 0;
        for step in 0..1_000 {
            let now = start + Duration::from_micros(100 * step);
            pace.hinted(now);
            if pace.next() <= now {
                pace.look(now);
                pace.looked(now, false);
                looks += 1;
            }
        }
        assert!((40..=51).contains(&looks), "{looks} looks in 100 ms");
    }
}
