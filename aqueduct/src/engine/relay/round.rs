//! One round: read the lowest rows of some shards, publish them in waves, and settle what became of them.
//!
//! Where a single shard has many rows the next are read and published while the last are settled, a few times over; they are
//! the lowest but for those that are being settled, so that what commits late is found all the same.
//!
//! The shards travel with the round and come back with it, so nobody else works on them meanwhile and there is nothing to
//! lock. What a round leaves undone, for whatever reason, is where it was and comes again with the next.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::lines::{Letter, Lines, Outcome};
use super::parked::ParkedLanes;
use crate::broker::{Broker, Receipt};
use crate::clock::{Clock, Lease, Timestamp};
use crate::error::{BrokerError, StoreError};
use crate::format::Format;
use crate::message::Message;
use crate::store::outbox::{Fate, OutboxRow, OutboxSource, Settled, Settlement, ShardClaim};
use crate::telemetry::RelayMetrics;
use crate::topic::{Epoch, LaneId, Text};

/// Rows that are read at once.
pub(super) const ROWS_MAX: usize = 500;

/// How often rows are read in one round, where no other has to be begun meanwhile.
pub(super) const BATCHES_MAX: usize = 8;

/// How many bytes they are meant to have in memory.
const BYTES: usize = 12 << 20;

/// Parked lanes that are tried in one round, and rows of each.
const PARKED_LANES_MAX: usize = 50;
const PARKED_ROWS_MAX: usize = 10;

/// How long the broker may take to confirm a wave.
const PUBLISH_MAX: Duration = Duration::from_secs(30);

/// How long a settlement that got no answer waits before it is made again, at the most.
const SETTLE_AGAIN_MAX: Duration = Duration::from_secs(1);

/// After how long the parked lanes are read again, since operators may have changed them: so long, and more where there are
/// many.
const RELOAD: Duration = Duration::from_secs(10);
const RELOAD_EACH_LANE: Duration = Duration::from_millis(1);

/// What all rounds of a relay work with.
pub(super) struct Tools {
    pub(super) source: Arc<dyn OutboxSource>,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) format: Arc<dyn Format>,
    pub(super) clock: Clock,
    pub(super) metrics: RelayMetrics,
    pub(super) group: Text,
    /// The source of rows that name none.
    pub(super) origin: Text,
    pub(super) keep_sent: bool,
    /// There were rows since somebody asked.
    pub(super) saw_rows: AtomicBool,
}

/// A shard that this relay owns.
pub(super) struct Shard {
    pub(super) claim: ShardClaim,
    pub(super) lease: Lease,
    parked: ParkedLanes,
    /// When they were read; none if they are not known.
    loaded: Option<Instant>,
    /// It has more rows than were read of it last.
    pub(super) deep: bool,
    /// The mean size of its rows lately.
    row_bytes: usize,
}

impl Shard {
    pub(super) fn new(shard: u32, epoch: Epoch, lease: Lease) -> Self {
        let (claim, parked) = (ShardClaim { shard, epoch }, ParkedLanes::default());
        Self { claim, lease, parked, loaded: None, deep: false, row_bytes: 0 }
    }

    pub(super) fn number(&self) -> u32 {
        self.claim.shard
    }

    /// When the first parked lane is due, if there is one.
    pub(super) fn due(&self) -> Option<Timestamp> {
        self.parked.first_due()
    }

    fn is_stale(&self, now: Instant) -> bool {
        let lanes = u32::try_from(self.parked.len()).unwrap_or(u32::MAX);
        let fresh = RELOAD + RELOAD_EACH_LANE * lanes;
        self.loaded.is_none_or(|loaded| lanes > 0 && now.duration_since(loaded) >= fresh)
    }

    /// Remembers how large rows are: larger ones count at once, smaller ones bit by bit.
    fn measure(&mut self, rows: usize, bytes: usize) {
        if let Some(mean) = bytes.checked_div(rows) {
            self.row_bytes = mean.max(self.row_bytes - self.row_bytes / 4);
        }
    }
}

/// One round, to be run.
pub(super) struct Round {
    pub(super) tools: Arc<Tools>,
    pub(super) shards: Vec<Shard>,
    /// Rows to be read at once, all shards together.
    pub(super) rows_max: usize,
    /// How often rows are read.
    pub(super) batches_max: usize,
    /// Set when no further wave is to be sent. What was sent is settled all the same.
    pub(super) halt: Arc<AtomicBool>,
}

/// A round that has ended.
#[derive(Default)]
pub(super) struct Ended {
    pub(super) shards: Vec<Shard>,
    /// Rows that were read, and those that were published or parked.
    pub(super) read: usize,
    pub(super) moved: usize,
    pub(super) outage: Option<BrokerError>,
    pub(super) store: Option<StoreError>,
}

impl Round {
    pub(super) async fn run(mut self) -> Ended {
        let mut ended = Ended::default();
        if let Err(error) = self.work(&mut ended).await {
            for shard in &mut self.shards {
                // What the store has done is not known.
                (shard.loaded, shard.deep) = (None, false);
            }
            ended.store = Some(error);
        }
        ended.shards = self.shards;
        ended
    }

    async fn work(&mut self, ended: &mut Ended) -> Result<(), StoreError> {
        self.load().await?;
        let due = self.read_due().await?;
        let mut outcome = self.batch(due, &[], ended).await?;
        for batch in 1.. {
            if outcome.settled.is_empty() {
                break;
            }
            let settlement = self.settlement(std::mem::take(&mut outcome.settled));
            let ids: Vec<i64> = settlement.rows.iter().map(|row| row.id).collect();
            let goes_on = batch < self.batches_max && ended.outage.is_none() && self.is_deep();
            let settle = self.settle(Arc::clone(&settlement));
            let (still_parked, next) = tokio::join!(settle, async {
                if goes_on { self.batch(Vec::new(), &ids, ended).await } else { Ok(Outcome::default()) }
            });
            self.reopen(&settlement, &still_parked?);
            outcome = next?;
        }
        Ok(())
    }

    /// True for a single shard with more rows, of which more may be published.
    fn is_deep(&self) -> bool {
        matches!(&self.shards[..], [shard] if shard.deep) && !self.halt.load(Ordering::Acquire)
    }

    /// Reads rows and publishes them, after those that are due.
    async fn batch(
        &mut self,
        mut rows: Vec<OutboxRow>,
        except: &[i64],
        ended: &mut Ended,
    ) -> Result<Outcome, StoreError> {
        rows.extend(self.read(except).await?);
        ended.read += rows.len();
        if rows.is_empty() {
            return Ok(Outcome::default());
        }
        self.tools.saw_rows.store(true, Ordering::Relaxed);
        let mut outcome = self.publish(rows).await;
        self.count(&outcome.settled, outcome.duplicates);
        ended.moved += outcome.settled.len();
        ended.outage = outcome.outage.take();
        Ok(outcome)
    }

    fn count(&self, settled: &[Settled], duplicates: u64) {
        let count = |which: fn(&&Settled) -> bool| settled.iter().filter(which).count() as u64;
        let sent = count(|row| row.fate == Fate::Sent);
        self.tools.metrics.published(sent.saturating_sub(duplicates), duplicates);
        self.tools.metrics.refused.increment(count(|row| matches!(row.fate, Fate::Refused { .. })));
        for row in settled {
            if let Fate::Refused { attempts: 1, why, .. } = &row.fate {
                tracing::warn!(shard = row.shard, id = row.id, %why, "a row of the outbox was refused; its key waits behind it");
            }
        }
    }

    /// Learns the parked lanes of shards that are new or have not been looked at for a while.
    async fn load(&mut self) -> Result<(), StoreError> {
        let now = Instant::now();
        for shard in self.shards.iter_mut().filter(|shard| shard.is_stale(now)) {
            shard.parked = ParkedLanes::new(self.tools.source.parked_lanes(shard.claim.shard).await?);
            shard.loaded = Some(now);
        }
        Ok(())
    }

    /// The first rows of parked lanes that are due.
    async fn read_due(&mut self) -> Result<Vec<OutboxRow>, StoreError> {
        let (now, mut rows) = (self.tools.clock.now(), Vec::new());
        for shard in &mut self.shards {
            let lanes = shard.parked.due(now, PARKED_LANES_MAX);
            if lanes.is_empty() {
                continue;
            }
            let found = self.tools.source.read_parked(shard.number(), &lanes, PARKED_ROWS_MAX).await?;
            let present: BTreeSet<LaneId> = found.iter().map(|row| row.lane).collect();
            // An operator has discarded the rest: only the owner adds rows, so the lane is open.
            lanes.iter().filter(|lane| !present.contains(lane)).for_each(|lane| shard.parked.open(*lane));
            rows.extend(found);
        }
        Ok(rows)
    }

    async fn read(&mut self, except: &[i64]) -> Result<Vec<OutboxRow>, StoreError> {
        let numbers: Vec<u32> = self.shards.iter().map(Shard::number).collect();
        let row_bytes = self.shards.iter().map(|shard| shard.row_bytes).max().unwrap_or(0);
        let rows_max = self.rows_max.min(BYTES / row_bytes.max(1)).max(1);
        let limit_each = rows_max.div_ceil(numbers.len().max(1));
        let rows = self.tools.source.read(&numbers, limit_each, except).await?;
        for shard in &mut self.shards {
            let of_shard = rows.iter().filter(|row| row.shard == shard.claim.shard);
            let (count, bytes) = of_shard.fold((0, 0), |(count, bytes), row| (count + 1, bytes + row.bytes));
            shard.deep = count >= limit_each;
            shard.measure(count, bytes);
        }
        Ok(rows)
    }

    async fn publish(&self, rows: Vec<OutboxRow>) -> Outcome {
        let ordered = self.tools.broker.abilities().ordered_publish;
        let mut behind = Vec::new();
        let mut letters = Vec::with_capacity(rows.len());
        for row in rows {
            if row.parked.is_none() && self.is_parked(&row) {
                behind.push(row);
            } else {
                letters.push(self.tools.letter(row));
            }
        }
        let mut lines = Lines::new(letters, ordered, self.tools.clock.clone());
        loop {
            let wave = lines.next_wave();
            if wave.is_empty() {
                break;
            }
            match self.send(wave).await {
                Some(answers) => lines.answered(answers),
                None => break,
            }
        }
        let mut outcome = lines.end();
        outcome.settled.extend(behind.iter().map(|row| row.settled(Fate::Behind)));
        outcome
    }

    fn is_parked(&self, row: &OutboxRow) -> bool {
        let shard = self.shards.iter().find(|shard| shard.number() == row.shard);
        shard.is_some_and(|shard| shard.parked.contains(row.lane))
    }

    /// Sends a wave while all shards are owned; none if they are not, or nothing more is to be sent.
    async fn send(&self, wave: Vec<Message>) -> Option<Vec<Result<Receipt, BrokerError>>> {
        if self.halt.load(Ordering::Acquire) || !self.is_owner() {
            return None;
        }
        let mut sending = std::pin::pin!(tokio::time::timeout(PUBLISH_MAX, self.tools.broker.publish(wave)));
        // A process that was stopped in the middle finds out before it does the next step.
        let owned = std::future::poll_fn(|cx| {
            if self.is_owner() { sending.as_mut().poll(cx).map(Some) } else { std::task::Poll::Ready(None) }
        });
        let late = |_| vec![Err(BrokerError::Unavailable(format!("no answer within {PUBLISH_MAX:?}").into()))];
        owned.await.map(|answers| answers.unwrap_or_else(late))
    }

    fn is_owner(&self) -> bool {
        self.shards.iter().all(|shard| shard.lease.holds(&self.tools.clock))
    }

    /// What is to be settled; rows behind those that were refused follow them from now on.
    fn settlement(&mut self, rows: Vec<Settled>) -> Arc<Settlement> {
        let Tools { group, keep_sent, clock, .. } = &*self.tools;
        let (group, keep_sent, now, mut claims) = (group.clone(), *keep_sent, clock.now(), Vec::new());
        for shard in &mut self.shards {
            for row in rows.iter().filter(|row| row.shard == shard.claim.shard) {
                match &row.fate {
                    Fate::Sent => {}
                    Fate::Refused { next_at, .. } => shard.parked.date(row.lane, *next_at),
                    Fate::Behind => shard.parked.append(row.lane, now),
                }
                if claims.last() != Some(&shard.claim) {
                    claims.push(shard.claim);
                }
            }
        }
        Arc::new(Settlement { group, claims, rows, keep_sent, now })
    }

    /// Makes the settlement, again if it got no answer, for as long as the shards are owned: until it is known nothing else
    /// may happen to its rows.
    fn settle(
        &self,
        settlement: Arc<Settlement>,
    ) -> impl Future<Output = Result<Vec<(u32, LaneId)>, StoreError>> + use<> {
        let tools = Arc::clone(&self.tools);
        let leases: Vec<Lease> = self.shards.iter().map(|shard| shard.lease.clone()).collect();
        let mut wait = Duration::from_millis(20);
        async move {
            loop {
                match tools.source.settle(&settlement).await {
                    Err(StoreError::Unavailable(error)) if leases.iter().all(|lease| lease.holds(&tools.clock)) => {
                        tools.metrics.store_errors.increment(1);
                        tracing::warn!(%error, "what was published could not be settled; it is tried again");
                        tokio::time::sleep(wait / 2 + tools.clock.jitter(wait / 2)).await;
                        wait = (wait * 2).min(SETTLE_AGAIN_MAX);
                    }
                    answer => return answer,
                }
            }
        }
    }

    /// Lanes whose parked heads were published are open, or their next heads are due.
    fn reopen(&mut self, settlement: &Settlement, still_parked: &[(u32, LaneId)]) {
        for shard in &mut self.shards {
            let number = shard.number();
            for lane in settlement.unparked(number) {
                let refused =
                    |row: &Settled| row.shard == number && row.lane == lane && matches!(row.fate, Fate::Refused { .. });
                if !still_parked.contains(&(number, lane)) {
                    shard.parked.open(lane);
                } else if !settlement.rows.iter().any(refused) {
                    shard.parked.date(lane, settlement.now);
                }
            }
        }
    }
}

impl Tools {
    /// The row as it goes over the wire.
    fn letter(&self, row: OutboxRow) -> Letter {
        let OutboxRow { id, shard, lane, parked, event, .. } = row;
        let message = event.and_then(|mut event| {
            if event.source.is_empty() {
                event.source = self.origin.clone();
            }
            let Some(topic) = event.topic.take() else { return Err(Text::from_static("it has no topic")) };
            topic.check().map_err(|e| Text::from(e.to_string()))?;
            self.format.encode(&event, &topic).map_err(|e| Text::from(e.to_string()))
        });
        let limit = self.broker.abilities().message_bytes_max;
        let message = message.and_then(|message| match message.size() {
            bytes if bytes > limit => Err(BrokerError::TooLarge { bytes, limit }.to_string().into()),
            _ => Ok(message),
        });
        Letter { id, shard, lane, parked, message }
    }
}
