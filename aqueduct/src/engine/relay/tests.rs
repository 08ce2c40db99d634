//! The relay on a table and a broker in memory, on a paused clock: what is slow, away, late or lost is said by the test.

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::{Relay, RelayServe};
use crate::broker::{Abilities, Broker, Membership, Ownership, Receipt, Subscription};
use crate::clock::{Boot, Clock, Lease, Timestamp};
use crate::engine::serve::ServeError;
use crate::error::{BrokerError, StoreError};
use crate::event::Event;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::store::outbox::{
    Fate, Held, Hint, Keeper, OutboxRow, OutboxSource, OutboxStatus, OutboxTable, ParkedLine, Settled, Settlement,
    lane_of, named,
};
use crate::topic::{Epoch, LaneId, Partition, Position, Text, Topic};

const SHARDS: u32 = 4;

/// An outbox table in memory.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    rows: BTreeMap<i64, Stored>,
    parked: BTreeMap<i64, (Stored, u32, Timestamp)>,
    sent: Vec<i64>,
    epochs: BTreeMap<u32, Epoch>,
    /// Reads of rows that are not parked.
    reads: usize,
    /// Rows that were read and not settled, at the most.
    unsettled: usize,
    unsettled_max: usize,
    /// The bug: a read begins behind the last row that was read.
    cursor: Option<i64>,
    /// Settlements that take effect and answer that they may not have.
    lost_answers: usize,
    owned: Option<watch::Sender<BTreeMap<Text, Held>>>,
    lease: Option<Lease>,
}

#[derive(Clone)]
struct Stored {
    key: String,
    shard: u32,
}

impl Stored {
    fn row(&self, id: i64, parked: Option<u32>) -> OutboxRow {
        let event = Event::raw("order.placed", self.key.clone()).id(id.to_string()).source("shop").topic("orders");
        let event = Ok(Box::new(event.key(self.key.clone())));
        let lane = lane_of(b"orders", self.key.as_bytes(), id);
        OutboxRow { id, shard: self.shard, lane, parked, event, bytes: 100 }
    }
}

impl Table {
    /// What another transaction commits.
    fn commit(&self, rows: impl IntoIterator<Item = (i64, String)>) {
        let mut state = self.0.lock();
        for (id, key) in rows {
            let LaneId(lane) = lane_of(b"orders", key.as_bytes(), id);
            let shard = u32::try_from(lane % u64::from(SHARDS)).unwrap();
            state.rows.insert(id, Stored { key, shard });
        }
    }

    fn is_empty(&self) -> bool {
        let state = self.0.lock();
        state.rows.is_empty() && state.parked.is_empty()
    }

    /// Another owner has raised the fence of every shard; this one learns of it, or not yet.
    fn take_over(&self, epoch: u64, told: bool) {
        let mut state = self.0.lock();
        state.epochs = (0..SHARDS).map(|shard| (shard, Epoch(epoch))).collect();
        if told && let Some(owned) = &state.owned {
            owned.send_replace(held(epoch, &Lease::forever()));
        }
    }
}

fn held(epoch: u64, lease: &Lease) -> BTreeMap<Text, Held> {
    let held = Held { epoch: Epoch(epoch), lease: lease.clone(), revoking: false, floor: None };
    (0..SHARDS).map(|shard| (shard.to_string().into(), held.clone())).collect()
}

struct Member {
    table: Table,
    owned: watch::Receiver<BTreeMap<Text, Held>>,
}

impl Keeper for Member {
    fn owned(&self) -> watch::Receiver<BTreeMap<Text, Held>> {
        self.owned.clone()
    }

    fn let_go<'a>(&'a self, shard: &'a Text) -> BoxFuture<'a, ()> {
        if let Some(owned) = &self.table.0.lock().owned {
            owned.send_modify(|held| drop(held.remove(shard)));
        }
        Box::pin(std::future::ready(()))
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

fn now<T: Send + 'static>(value: T) -> BoxFuture<'static, Result<T, StoreError>> {
    Box::pin(async move {
        // A round trip.
        tokio::time::sleep(Duration::from_micros(200)).await;
        Ok(value)
    })
}

impl OutboxSource for Table {
    fn shards(&self) -> u32 {
        SHARDS
    }

    fn join<'a>(&'a self, _: &'a Text, _: &'a Clock) -> BoxFuture<'a, Result<Arc<dyn Keeper>, StoreError>> {
        let mut state = self.0.lock();
        let epoch = state.epochs.get(&0).map_or(1, |epoch| epoch.0 + 1);
        state.epochs = (0..SHARDS).map(|shard| (shard, Epoch(epoch))).collect();
        let lease = state.lease.insert(Lease::forever()).clone();
        let (sender, owned) = watch::channel(held(epoch, &lease));
        state.owned = Some(sender);
        now(Arc::new(Member { table: self.clone(), owned }) as Arc<dyn Keeper>)
    }

    fn read<'a>(
        &'a self,
        shards: &'a [u32],
        limit_each: usize,
        except: &'a [i64],
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        let mut state = self.0.lock();
        state.reads += 1;
        let from = state.cursor.map_or(i64::MIN, |last| last + 1);
        let mut found = Vec::new();
        for shard in shards {
            let others = state.rows.range(from..).filter(|(id, _)| !except.contains(id));
            let of_shard = others.filter(|(_, row)| row.shard == *shard);
            found.extend(of_shard.take(limit_each).map(|(id, row)| row.row(*id, None)));
        }
        if state.cursor.is_some() {
            state.cursor = state.cursor.max(found.iter().map(|row| row.id).max());
        }
        state.unsettled += found.len();
        state.unsettled_max = state.unsettled_max.max(state.unsettled);
        now(found)
    }

    fn parked_lanes(&self, shard: u32) -> BoxFuture<'_, Result<BTreeMap<LaneId, Timestamp>, StoreError>> {
        let mut lanes = BTreeMap::new();
        for (id, (row, attempts, next_at)) in self.0.lock().parked.iter().filter(|(_, (row, ..))| row.shard == shard) {
            lanes.entry(row.row(*id, Some(*attempts)).lane).or_insert(*next_at);
        }
        now(lanes)
    }

    fn read_parked<'a>(
        &'a self,
        _: u32,
        lanes: &'a [LaneId],
        limit_each: usize,
    ) -> BoxFuture<'a, Result<Vec<OutboxRow>, StoreError>> {
        let state = self.0.lock();
        let rows: Vec<_> = state.parked.iter().map(|(id, (row, attempts, _))| row.row(*id, Some(*attempts))).collect();
        let of_lane = |lane: &LaneId| {
            let lane = *lane;
            rows.iter().filter(move |row| row.lane == lane).take(limit_each).cloned().collect::<Vec<_>>()
        };
        now(lanes.iter().flat_map(of_lane).collect())
    }

    fn settle<'a>(&'a self, settlement: &'a Arc<Settlement>) -> BoxFuture<'a, Result<Vec<(u32, LaneId)>, StoreError>> {
        Box::pin(async move {
            tokio::time::sleep(Duration::from_micros(500)).await;
            let mut state = self.0.lock();
            state.unsettled = state.unsettled.saturating_sub(settlement.rows.len());
            for claim in &settlement.claims {
                let held = state.epochs[&claim.shard];
                if held != claim.epoch {
                    return Err(StoreError::Fenced { partition: named(claim.shard), held, ours: claim.epoch });
                }
            }
            settlement.rows.iter().for_each(|row| state.settle(row, settlement.now));
            if state.lost_answers > 0 {
                state.lost_answers -= 1;
                return Err(StoreError::Unavailable("the connection is gone".into()));
            }
            let still =
                |row: &&Settled| state.parked.iter().any(|(id, (stored, ..))| stored.row(*id, None).lane == row.lane);
            Ok(settlement.rows.iter().filter(still).map(|row| (row.shard, row.lane)).collect())
        })
    }

    fn forget_sent(&self, _: Timestamp) -> BoxFuture<'_, Result<bool, StoreError>> {
        now(false)
    }

    fn status(&self) -> BoxFuture<'_, Result<OutboxStatus, StoreError>> {
        now(OutboxStatus::default())
    }

    fn list_parked(&self, _: usize) -> BoxFuture<'_, Result<Vec<ParkedLine>, StoreError>> {
        now(Vec::new())
    }

    fn retry_now<'a>(&'a self, _: Option<&'a [i64]>, at: Timestamp) -> BoxFuture<'a, Result<u64, StoreError>> {
        self.0.lock().parked.values_mut().for_each(|(_, _, next_at)| *next_at = at);
        now(0)
    }

    fn discard(&self, id: i64) -> BoxFuture<'_, Result<Option<ParkedLine>, StoreError>> {
        self.0.lock().parked.remove(&id);
        now(None)
    }
}

impl State {
    fn settle(&mut self, row: &Settled, at: Timestamp) {
        match &row.fate {
            Fate::Sent => {
                let found = if row.parked {
                    self.parked.remove(&row.id).is_some()
                } else {
                    self.rows.remove(&row.id).is_some()
                };
                self.sent.extend(found.then_some(row.id));
            }
            Fate::Refused { attempts, next_at, .. } if row.parked => {
                if let Some(parked) = self.parked.get_mut(&row.id) {
                    (parked.1, parked.2) = (*attempts, *next_at);
                }
            }
            Fate::Behind if row.parked => {}
            fate => {
                let Some(stored) = self.rows.remove(&row.id) else { return };
                let due = match fate {
                    Fate::Refused { attempts, next_at, .. } => (*attempts, *next_at),
                    _ => (0, at),
                };
                self.parked.insert(row.id, (stored, due.0, due.1));
            }
        }
    }
}

/// A broker that does as it is told, and remembers.
#[derive(Clone, Default)]
struct Stream(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    /// What was published: id and key, in order, and when.
    published: Vec<(i64, String, Option<Instant>)>,
    away: bool,
    refused: BTreeSet<String>,
    takes: Duration,
    /// Of each key no two were unconfirmed at once.
    calls: usize,
}

impl Broker for Stream {
    fn abilities(&self) -> Abilities {
        Abilities::new(Ownership::Floor)
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(async move {
            let takes = {
                let mut told = self.0.lock();
                told.calls += 1;
                told.takes
            };
            tokio::time::sleep(takes / 2).await;
            let answers: Vec<_> = messages.iter().map(|message| self.0.lock().answer(message)).collect();
            let keys: BTreeSet<_> = messages.iter().filter_map(Message::key).collect();
            assert_eq!(keys.len(), messages.len(), "two of a key at once");
            tokio::time::sleep(takes / 2).await;
            answers
        })
    }

    fn check_topic<'a>(&'a self, _: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn join(&self, _: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(std::future::ready(Err(BrokerError::Closed)))
    }
}

impl Told {
    fn answer(&mut self, message: &Message) -> Result<Receipt, BrokerError> {
        let key = String::from_utf8(message.body.to_vec()).unwrap();
        let id = message.headers.text("ce-id").unwrap().parse().unwrap();
        if self.away {
            return Err(BrokerError::Unavailable("gone".into()));
        }
        if self.refused.contains(&key) {
            return Err(BrokerError::Refused("no such thing".into()));
        }
        let duplicate = self.published.iter().any(|(known, ..)| *known == id);
        self.published.push((id, key, Some(Instant::now())));
        Ok(Receipt::new(Partition { topic: "orders".into(), index: 0 }, Position(1), duplicate))
    }
}

impl Stream {
    fn set<T>(&self, set: impl FnOnce(&mut Told) -> T) -> T {
        set(&mut self.0.lock())
    }

    /// The ids of each key in the order of the stream, repeats left out.
    fn keys(&self) -> BTreeMap<String, Vec<i64>> {
        let (mut keys, mut seen) = (BTreeMap::new(), BTreeSet::new());
        for (id, key, _) in &self.0.lock().published {
            if seen.insert(*id) {
                keys.entry(key.clone()).or_insert_with(Vec::new).push(*id);
            }
        }
        keys
    }

    fn count(&self) -> usize {
        self.keys().values().map(Vec::len).sum()
    }

    #[track_caller]
    fn is_in_order(&self) {
        for (key, ids) in self.keys() {
            assert!(ids.is_sorted(), "{key}: {ids:?}");
        }
    }
}

/// A relay that runs by itself.
struct Running {
    task: JoinHandle<Result<(), ServeError>>,
    stop: Arc<Notify>,
    health: crate::engine::Health,
}

struct Setup {
    table: Table,
    stream: Stream,
    hint: Hint,
    clock: Clock,
}

impl Setup {
    fn new() -> Self {
        let (table, stream) = (Table::default(), Stream::default());
        Self { table, stream, hint: Hint::default(), clock: Clock::simulated(7) }
    }

    fn serve(&self) -> RelayServe {
        let table = OutboxTable::new(Arc::new(self.table.clone()), self.hint.clone(), self.clock.clone());
        Relay::new(table, self.stream.clone()).serve()
    }

    fn start(&self) -> Running {
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let serve = self.serve().with_graceful_shutdown(async move { stopped.notified().await });
        let health = serve.health();
        Running { task: tokio::spawn(serve.into_future()), stop, health }
    }

    fn keyed(ids: impl Iterator<Item = i64>, keys: i64) -> Vec<(i64, String)> {
        ids.map(|id| (id, format!("key {}", id % keys))).collect()
    }
}

impl Running {
    async fn stop(self) {
        self.stop.notify_one();
        self.task.await.unwrap().unwrap();
    }
}

async fn pass(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[tokio::test(start_paused = true)]
async fn a_backlog_is_published_in_the_order_of_ids_with_bounded_memory() {
    let setup = Setup::new();
    setup.table.commit(Setup::keyed(1..20_001, 700));
    let relay = setup.start();
    while !setup.table.is_empty() {
        pass(10).await;
    }
    relay.stop().await;
    setup.stream.is_in_order();
    assert_eq!((setup.stream.count(), setup.stream.0.lock().published.len()), (20_000, 20_000));
    let most = setup.table.0.lock().unsettled_max;
    // Four rounds, of which one may settle rows and read others.
    assert!(most <= 2_500, "{most} rows in memory");
}

/// Rows whose transactions commit in another order than that of their ids; answers how many are never published.
async fn lost_of_late_commits(cursor: Option<i64>) -> usize {
    let setup = Setup::new();
    setup.table.0.lock().cursor = cursor;
    let relay = setup.start();
    let mut ids: Vec<i64> = (1..401).collect();
    // Each window of ten is committed backwards; a key's rows are never in one window, as if it was locked.
    ids.chunks_mut(10).for_each(<[i64]>::reverse);
    for id in ids {
        setup.table.commit(Setup::keyed(std::iter::once(id), 50));
        setup.hint.give();
        pass(3).await;
    }
    pass(60_000).await;
    relay.stop().await;
    setup.stream.is_in_order();
    400 - setup.stream.count()
}

#[tokio::test(start_paused = true)]
async fn rows_that_commit_late_are_not_lost_and_a_cursor_would_lose_them() {
    assert_eq!(lost_of_late_commits(None).await, 0);
    assert!(lost_of_late_commits(Some(0)).await > 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_table_is_looked_into_once_in_ten_seconds() {
    let setup = Setup::new();
    let relay = setup.start();
    pass(60_000).await;
    let before = setup.table.0.lock().reads;
    pass(3_600_000).await;
    let reads = setup.table.0.lock().reads - before;
    assert!((350..=361).contains(&reads), "{reads} in an hour");
    relay.stop().await;
}

/// How long it takes from a commit to the broker, in milliseconds.
async fn latency(setup: &Setup, id: i64, transaction_ms: u64, hinted: bool) -> u128 {
    if hinted {
        setup.hint.give();
    }
    pass(transaction_ms).await;
    let committed = Instant::now();
    setup.table.commit([(id, "k".to_owned())]);
    while setup.stream.count() < usize::try_from(id).unwrap() {
        pass(1).await;
    }
    let at = setup.stream.set(|told| told.published.last().unwrap().2.unwrap());
    at.duration_since(committed).as_millis()
}

#[tokio::test(start_paused = true)]
async fn a_hint_brings_a_row_to_the_broker_in_milliseconds() {
    let setup = Setup::new();
    let relay = setup.start();
    let mut id = 0;
    for idle_ms in [1, 100, 10_000, 600_000] {
        for transaction_ms in [0, 1, 3, 10, 100] {
            pass(idle_ms).await;
            id += 1;
            let ms = latency(&setup, id, transaction_ms, true).await;
            assert!(ms <= 8 + u128::from(transaction_ms), "{ms} ms after {idle_ms} and {transaction_ms}");
            pass(1_000).await;
            id += 1;
            // Of another process, without a hint, while there is something to do.
            let ms = latency(&setup, id, transaction_ms, false).await;
            assert!(ms <= 250, "{ms} ms");
        }
    }
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_refused_row_parks_its_key_and_no_other_and_goes_on_in_order() {
    let setup = Setup::new();
    setup.stream.set(|told| told.refused.insert("key 3".into()));
    setup.table.commit(Setup::keyed(1..101, 10));
    let relay = setup.start();
    pass(500).await;
    assert_eq!(setup.stream.count(), 90);
    setup.table.commit(Setup::keyed(101..201, 10));
    pass(20_000).await;
    assert_eq!(setup.stream.count(), 180);
    let attempts = setup.table.0.lock().parked.values().map(|(_, attempts, _)| *attempts).collect::<Vec<_>>();
    assert!(attempts[0] >= 4 && attempts[1..] == [0; 19], "{attempts:?}");
    setup.stream.set(|told| told.refused.clear());
    pass(60_000).await;
    assert!(setup.table.is_empty());
    setup.stream.is_in_order();
    assert_eq!(setup.stream.count(), 200);
    // The key is open again.
    setup.table.commit([(203, "key 3".to_owned())]);
    pass(10_000).await;
    assert_eq!((setup.stream.count(), setup.table.is_empty()), (201, true));
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn what_an_operator_discards_lets_the_rows_behind_it_pass() {
    let setup = Setup::new();
    setup.stream.set(|told| told.refused.insert("k".into()));
    setup.table.commit((1..4).map(|id| (id, "k".to_owned())));
    let relay = setup.start();
    pass(40_000).await;
    setup.stream.set(|told| told.refused.clear());
    setup.table.discard(1).await.unwrap();
    pass(11_000).await;
    assert_eq!(setup.stream.keys()["k"], [2, 3]);
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn an_outage_parks_nothing_and_is_told() {
    let setup = Setup::new();
    setup.stream.set(|told| told.away = true);
    setup.table.commit(Setup::keyed(1..2_001, 100));
    let relay = setup.start();
    pass(3_600_000).await;
    assert!(!relay.health.is_ready() && relay.health.reason().contains("gone"), "{}", relay.health.reason());
    let state = |of: fn(&State) -> usize| of(&setup.table.0.lock());
    assert_eq!((state(|state| state.rows.len()), state(|state| state.parked.len())), (2_000, 0));
    assert!(state(|state| state.reads) < 1_600, "{} reads in an hour", state(|state| state.reads));
    setup.stream.set(|told| told.away = false);
    pass(10_000).await;
    assert!(setup.table.is_empty() && relay.health.is_ready());
    setup.stream.is_in_order();
    relay.stop().await;
}

/// A relay in the middle of a line, when its lease lapses and nobody tells it; answers how often it had published by then.
async fn lapsed(setup: &Setup) -> (Running, usize) {
    setup.stream.set(|told| told.takes = Duration::from_millis(100));
    setup.table.commit((1..101).map(|id| (id, "k".to_owned())));
    let relay = setup.start();
    pass(250).await;
    setup.table.0.lock().lease.as_ref().unwrap().renew(Boot(0));
    let calls = setup.stream.0.lock().calls;
    (relay, calls)
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_while_the_lease_has_lapsed_and_it_goes_on_when_it_is_renewed() {
    let setup = Setup::new();
    let (relay, calls) = lapsed(&setup).await;
    pass(60_000).await;
    assert_eq!(setup.stream.0.lock().calls, calls);
    setup.table.0.lock().lease.as_ref().unwrap().renew(Boot(u64::MAX));
    pass(20_000).await;
    assert!(setup.table.is_empty());
    setup.stream.is_in_order();
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_was_replaced_settles_nothing_of_what_it_had_published() {
    let setup = Setup::new();
    let (relay, calls) = lapsed(&setup).await;
    setup.table.take_over(2, false);
    pass(60_000).await;
    assert_eq!((setup.stream.0.lock().calls, setup.table.0.lock().rows.len()), (calls, 100));
    // It owns them again.
    setup.table.take_over(3, true);
    pass(60_000).await;
    assert!(setup.table.is_empty());
    setup.stream.is_in_order();
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_fenced_relay_waits_until_it_owns_under_another_epoch() {
    let setup = Setup::new();
    let relay = setup.start();
    pass(50).await;
    setup.table.take_over(9, false);
    setup.table.commit(Setup::keyed(1..11, 3));
    pass(20_000).await;
    let calls = setup.stream.0.lock().calls;
    pass(60_000).await;
    assert_eq!((setup.table.0.lock().rows.len(), setup.stream.0.lock().calls), (10, calls));
    setup.table.take_over(10, true);
    pass(1_000).await;
    assert!(setup.table.is_empty());
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_settlement_whose_answer_was_lost_is_made_again() {
    let setup = Setup::new();
    setup.stream.set(|told| told.refused.insert("key 1".into()));
    setup.table.0.lock().lost_answers = 5;
    setup.table.commit(Setup::keyed(1..31, 3));
    let relay = setup.start();
    pass(10_000).await;
    setup.stream.set(|told| told.refused.clear());
    setup.table.0.lock().lost_answers = 3;
    pass(60_000).await;
    assert!(setup.table.is_empty());
    assert_eq!(setup.stream.0.lock().published.len(), 30, "none twice");
    setup.stream.is_in_order();
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_and_whenever_it_ends_nothing_is_lost_and_keys_keep_their_order() {
    for seed in 0..30 {
        let setup = Setup::new();
        let mut random = fastrand::Rng::with_seed(seed);
        setup.stream.set(|told| told.takes = Duration::from_micros(random.u64(0..3_000)));
        let (mut next, mut open): (i64, Vec<(i64, String)>) = (1, Vec::new());
        for _ in 0..random.usize(5..15) {
            let relay = setup.start();
            for _ in 0..random.usize(1..20) {
                // A key that is written in an open transaction is locked until that commits.
                for _ in 0..random.usize(0..40) {
                    let key = format!("key {}", random.u8(0..30));
                    if open.iter().all(|(_, locked)| *locked != key) {
                        open.push((next, key));
                        next += 1;
                    }
                }
                random.shuffle(&mut open);
                let committed = open.split_off(random.usize(0..=open.len()));
                setup.table.commit(committed);
                setup.hint.give();
                let (away, key) = (random.u8(0..4) == 0, format!("key {}", random.u8(0..30)));
                setup.stream.set(|told| {
                    told.away = away;
                    if !told.refused.remove(&key) && told.refused.len() < 5 {
                        told.refused.insert(key);
                    }
                });
                setup.table.0.lock().lost_answers = random.usize(0..2);
                pass(random.u64(0..1_500)).await;
            }
            // As a crash would.
            relay.task.abort();
            let _ = relay.task.await;
        }
        setup.table.commit(std::mem::take(&mut open));
        setup.stream.set(|told| (told.away, told.refused) = (false, BTreeSet::new()));
        let relay = setup.start();
        pass(7_200_000).await;
        assert!(setup.table.is_empty(), "seed {seed}");
        assert_eq!(setup.stream.count(), usize::try_from(next - 1).unwrap(), "seed {seed}");
        setup.stream.is_in_order();
        relay.stop().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_in_the_middle_of_a_backlog_holds_its_key_in_order() {
    let setup = Setup::new();
    setup.stream.set(|told| told.refused.insert("key 3".into()));
    setup.table.commit(Setup::keyed(1..8_001, 20));
    let relay = setup.start();
    pass(100).await;
    setup.stream.set(|told| told.refused.clear());
    setup.table.commit(Setup::keyed(8_001..12_001, 20));
    pass(60_000).await;
    assert!(setup.table.is_empty());
    setup.stream.is_in_order();
    assert_eq!((setup.stream.count(), setup.stream.0.lock().published.len()), (12_000, 12_000));
    relay.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_is_revoked_is_given_up_when_nothing_is_under_way_on_it() {
    let setup = Setup::new();
    setup.stream.set(|told| told.takes = Duration::from_millis(100));
    setup.table.commit((1..101).map(|id| (id, "k".to_owned())));
    let relay = setup.start();
    pass(250).await;
    let owned = setup.table.0.lock().owned.clone().unwrap();
    owned.send_modify(|held| held.values_mut().for_each(|held| held.revoking = true));
    pass(300).await;
    assert!(owned.borrow().is_empty());
    // What was sent by then was settled first, and nothing was sent later.
    let sent = setup.table.0.lock().sent.len();
    pass(60_000).await;
    assert_eq!((setup.stream.count(), setup.table.0.lock().rows.len()), (sent, 100 - sent));
    relay.stop().await;
}
