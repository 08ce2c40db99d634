//! What a run has shown.

use std::collections::BTreeSet;
use std::fmt::{self, Write};

use xxhash_rust::xxh3::Xxh3;

use super::checker::Violation;
use super::history::{Record, What};

/// What a run has shown.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Report {
    /// The seed: running it again repeats everything.
    pub seed: u64,
    /// What the run was made of, in short.
    pub scenario: String,
    /// The promises that were broken; none if all is well.
    pub failures: Vec<Violation>,
    /// Events published.
    pub events: usize,
    /// Attempts started.
    pub attempts: usize,
    /// Instances that crashed.
    pub crashes: usize,
    /// The points of calls that were reached, such as `apply.park/before`.
    pub points: BTreeSet<String>,
    /// A hash of everything that happened.
    pub digest: u64,
    /// Everything that happened, a line a record, if a promise was broken.
    pub trace: Vec<String>,
}

impl Report {
    pub(crate) fn new(
        seed: u64,
        scenario: String,
        records: &[Record],
        failures: Vec<Violation>,
        points: BTreeSet<String>,
    ) -> Self {
        let count = |is: fn(&What) -> bool| records.iter().filter(|r| is(&r.what)).count();
        let trace = if failures.is_empty() { Vec::new() } else { trace(records) };
        Self {
            seed,
            scenario,
            failures,
            events: count(|w| matches!(w, What::Published { .. })),
            attempts: count(|w| matches!(w, What::Started { .. })),
            crashes: count(|w| matches!(w, What::Crashed)),
            points,
            digest: digest(records),
            trace,
        }
    }

    /// True if every promise was kept.
    pub fn is_ok(&self) -> bool {
        self.failures.is_empty()
    }

    /// Panics with the report, the seed above all, if a promise was broken.
    ///
    /// # Panics
    ///
    /// If a promise was broken: it is an assertion for tests.
    #[track_caller]
    pub fn assert_ok(&self) {
        assert!(self.is_ok(), "{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, events, attempts, crashes, digest, .. } = self;
        let verdict = if self.is_ok() { "ok" } else { "FAILED" };
        write!(
            f,
            "seed {seed} {verdict}: {events} events, {attempts} attempts, {crashes} crashes, digest {digest:016x}"
        )?;
        if !self.is_ok() {
            write!(f, "\n  {}", self.scenario)?;
        }
        for failure in &self.failures {
            write!(f, "\n  {failure}")?;
        }
        if !self.is_ok() {
            write!(f, "\n  it replays exactly: Sim::new({seed}), or cargo xtask sim --seeds 1 --from {seed}")?;
        }
        Ok(())
    }
}

fn trace(records: &[Record]) -> Vec<String> {
    records.iter().enumerate().map(|(n, record)| format!("{n:>5} {record}")).collect()
}

/// Feeds text to the hash as it is written.
struct Sink(Xxh3);

impl Write for Sink {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.0.update(s.as_bytes());
        Ok(())
    }
}

fn digest(records: &[Record]) -> u64 {
    let mut sink = Sink(Xxh3::new());
    for record in records {
        // The sink takes everything.
        let _ = writeln!(sink, "{} {record}", record.at.0);
    }
    sink.0.digest()
}
