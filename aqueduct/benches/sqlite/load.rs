//! What both sides of the comparison share: the events, the clock, and how figures are told.

use std::time::Instant;

use aqueduct::Clock;

/// Events in one batch of a publisher.
pub(crate) const BATCH: u64 = 1_000;

/// Events in one commit of handlers written by hand.
pub(crate) const GROUP: i64 = 100;

/// Rows of one multi-row insert written by hand.
pub(crate) const ROWS: usize = 64;

/// Rows in one read written by hand.
pub(crate) const READ: i64 = 256;

/// What is written by hand: one log in one order, one unique identity, and what a consumer has to remember.
pub(crate) const SCHEMA: &str = "
    create table log (
        position integer primary key, id text not null unique, key blob, headers blob not null, body blob not null
    );
    create table offsets (consumer text primary key, position integer not null) without rowid;
    insert into offsets (consumer, position) values ('stock', 0);
    create table inbox (
        consumer text not null, id text not null, at integer not null, primary key (consumer, id)
    ) without rowid;";

/// What handlers write, on both sides.
pub(crate) const EFFECTS: &str = "create table effects (event text not null, bytes integer not null)";

/// As the library sets it too: 16 MiB of write-ahead log.
pub(crate) const CHECKPOINT_PAGES: u32 = 4_000;

/// The ids of events.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// UUIDs of version 7.
    Ordered,
    /// As UUIDs of version 4.
    Random,
}

impl Ids {
    pub(crate) fn next(self, clock: &Clock) -> String {
        match self {
            Self::Ordered => clock.uuid().to_string(),
            Self::Random => {
                let [a, b] = [clock.random(u64::MAX), clock.random(u64::MAX)];
                format!(
                    "{:08x}-{:04x}-4{:03x}-a{:03x}-{:012x}",
                    a >> 32,
                    a >> 16 & 0xffff,
                    a & 0xfff,
                    b >> 48 & 0xfff,
                    b & 0xffff_ffff_ffff
                )
            }
        }
    }
}

/// The body of every event: 1 KB.
pub(crate) fn body() -> Vec<u8> {
    vec![b'x'; 1_000]
}

/// One of 10,000 keys.
pub(crate) fn key_of(n: u64) -> String {
    ((n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % 10_000).to_string()
}

/// Headers as somebody would store them who writes this by hand, with what an event needs besides its body.
pub(crate) fn headers(id: &str, clock: &Clock) -> Vec<u8> {
    let at = clock.now().unix_ms();
    format!("ce-specversion:1.0\nce-id:{id}\nce-source:shop\nce-type:order.placed\nce-time:{at}\ncontent-type:application/json\n")
        .into_bytes()
}

/// `insert into log ... values` with so many rows.
pub(crate) fn insert(rows: usize) -> String {
    format!("insert into log (id, key, headers, body) values {}", vec!["(?, ?, ?, ?)"; rows].join(", "))
}

/// CPU seconds of this process so far, all threads together.
pub(crate) fn cpu_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    std::time::Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0)).as_secs_f64()
}

/// How fast something went.
#[derive(Clone, Copy)]
pub(crate) struct Speed {
    /// Events a second.
    pub(crate) rate: f64,
    /// CPU microseconds an event, all threads together.
    pub(crate) cpu: f64,
}

/// Measures from its start to [`of`](Self::of).
pub(crate) struct Stopwatch(Instant, f64);

impl Stopwatch {
    pub(crate) fn start() -> Self {
        Self(Instant::now(), cpu_seconds())
    }

    /// The speed of so many events since the start.
    pub(crate) fn of(&self, events: u64) -> Speed {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        let events = events as f64;
        Speed { rate: events / self.0.elapsed().as_secs_f64(), cpu: (cpu_seconds() - self.1) * 1e6 / events }
    }
}
