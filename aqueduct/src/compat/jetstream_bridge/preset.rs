//! The gem's presets.

use std::time::Duration;

use crate::policy::Policy;

/// What one of the gem's presets sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// Whether the gem keeps an outbox, and an inbox, and publishes dead letters.
    pub outbox: bool,
    #[expect(missing_docs, reason = "the line above says it")]
    pub inbox: bool,
    #[expect(missing_docs, reason = "the line above says it")]
    pub dead_letters: bool,
    /// How often an event is delivered.
    pub max_deliver: u32,
    /// How long a delivery may take.
    pub ack_wait: Duration,
    /// What the gem means to wait between deliveries. It sends them in wrong units, so its consumers never did.
    pub backoff: &'static [Duration],
}

const fn seconds<const N: usize>(seconds: [u64; N]) -> [Duration; N] {
    let (mut all, mut n) = ([Duration::ZERO; N], 0);
    while n < N {
        all[n] = Duration::from_secs(seconds[n]);
        n += 1;
    }
    all
}

impl Preset {
    /// All of them, as of version 7.1.
    pub const ALL: [Self; 6] = [
        Self::new("development", [false, false, false], 3, 10, &seconds([1, 2, 5])),
        Self::new("test", [false, false, false], 2, 5, &[Duration::from_millis(100), Duration::from_millis(500)]),
        Self::new("staging", [true, true, true], 3, 15, &seconds([1, 5, 15])),
        Self::new("production", [true, true, true], 5, 30, &seconds([1, 5, 15, 30, 60])),
        Self::new("high_throughput", [false, false, true], 3, 10, &seconds([1, 2, 5])),
        Self::new(
            "maximum_reliability",
            [true, true, true],
            10,
            60,
            &seconds([1, 5, 15, 30, 60, 120, 300, 600, 1_200, 1_800]),
        ),
    ];

    const fn new(
        name: &'static str,
        [outbox, inbox, dead_letters]: [bool; 3],
        max_deliver: u32,
        ack_wait: u64,
        backoff: &'static [Duration],
    ) -> Self {
        Self { name, outbox, inbox, dead_letters, max_deliver, ack_wait: Duration::from_secs(ack_wait), backoff }
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|preset| preset.name == name)
    }

    /// A policy with as many attempts, whose waits double from the first to the last of the preset's. Give the
    /// consumer [`ack_wait`](Self::ack_wait) as its [timeout](crate::Consumer::timeout).
    ///
    /// ```
    /// use aqueduct::{Consumer, MemoryBroker, compat::jetstream_bridge::Preset};
    /// let preset = Preset::named("production").unwrap();
    /// let consumer = Consumer::new("warehouse", MemoryBroker::new()).policy(preset.policy()).timeout(preset.ack_wait);
    /// # drop(consumer);
    /// ```
    pub fn policy(&self) -> Policy {
        let [first, last] = [self.backoff.first(), self.backoff.last()].map(|wait| wait.copied().unwrap_or_default());
        let policy = Policy::ordered().quick_attempts(1).parked_delay(first).parked_delay_max(last);
        policy.max_attempts(self.max_deliver.saturating_sub(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_become_policies_of_as_many_attempts() {
        let preset = Preset::named("production").unwrap();
        assert_eq!((preset.max_deliver, preset.ack_wait.as_secs(), preset.backoff.len()), (5, 30, 5));
        let policy = preset.policy();
        assert_eq!((policy.quick_attempts, policy.parked_attempts), (1, 4));
        assert_eq!([1, 3, 9].map(|attempt| policy.parked_wait(attempt).as_secs()), [1, 4, 60]);
        assert_eq!(Preset::named("nonsense"), None);
    }
}
