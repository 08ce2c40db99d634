//! Keepers of several instances on one table in memory, under faults, in paused time: no part is ever owned twice.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::{Beat, Held, Keeper, LastWords, LeaseError, LeaseTable, Member, Record, Take, View};
use crate::clock::{Clock, Lease};
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Position, Text};

/// How often it is looked who owns what.
const LOOK: Duration = Duration::from_millis(10);

/// What a call to a table that is well takes at most, both ways.
const SLOW: Duration = Duration::from_millis(10);

/// The table: rows, and whether it can be reached.
struct World {
    rows: Mutex<View>,
    clock: Clock,
    down: Mutex<bool>,
    /// One in so many calls takes longer than its caller may wait, there or back, and takes place all the same; none at 0.
    stalls: Mutex<u64>,
    /// Tells when something was let go of; none for a table that does not.
    changes: Option<watch::Sender<u64>>,
    /// Calls that took place.
    calls: Mutex<u64>,
}

/// One instance's way to the table.
#[derive(Clone)]
struct Door {
    world: Arc<World>,
    way: Arc<Mutex<Way>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Way {
    #[default]
    Open,
    /// Calls take place, and their answers are lost.
    NoAnswers,
    Cut,
}

impl Door {
    /// There, something done to the rows, and back.
    fn call<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut View) -> T + Send + 'static,
    ) -> BoxFuture<'static, Result<T, LeaseError>> {
        let door = self.clone();
        Box::pin(async move {
            let lost = || LeaseError::Unavailable("the way is cut".into());
            let (there, back) = (door.takes(), door.takes());
            let there = tokio::spawn(async move {
                tokio::time::sleep(there).await;
                if *door.way.lock() == Way::Cut || *door.world.down.lock() {
                    return None;
                }
                *door.world.calls.lock() += 1;
                let done = change(&mut door.world.rows.lock());
                Some((done, door))
            });
            let (done, door) = there.await.unwrap().ok_or_else(lost)?;
            tokio::time::sleep(back).await;
            if *door.way.lock() == Way::Open && !*door.world.down.lock() { Ok(done) } else { Err(lost()) }
        })
    }

    fn takes(&self) -> Duration {
        let World { clock, stalls, .. } = &*self.world;
        let one_in = *stalls.lock();
        let stalled = one_in > 0 && clock.random(one_in) == 0;
        clock.jitter(if stalled { Duration::from_secs(5) } else { SLOW / 2 })
    }

    fn free(&self, change: impl FnOnce(&mut View) + Send + 'static) -> BoxFuture<'static, Result<(), LeaseError>> {
        let (call, world) = (self.call(change), Arc::clone(&self.world));
        Box::pin(async move {
            let done = call.await;
            world.changes.iter().for_each(|changes| changes.send_modify(|count| *count += 1));
            done
        })
    }
}

fn free_all(rows: &mut View, session: &Text) {
    let own = rows.records.values_mut().filter(|record| record.session.as_ref() == Some(session));
    own.for_each(|record| record.session = None);
}

impl LeaseTable for Door {
    fn beat<'a>(&'a self, member: &'a Member, beat: Beat) -> BoxFuture<'a, Result<View, LeaseError>> {
        let session = member.session.clone();
        self.call(move |rows| {
            if beat.joins {
                rows.sessions.entry(session.clone()).or_default();
            }
            if let Some(count) = rows.sessions.get_mut(&session) {
                *count = beat.number.max(*count);
            }
            rows.clone()
        })
    }

    fn take<'a>(&'a self, member: &'a Member, takes: &'a [Take]) -> BoxFuture<'a, Result<(), LeaseError>> {
        let (session, takes) = (member.session.clone(), takes.to_vec());
        self.call(move |rows| {
            for Take { part, from, to } in takes {
                if rows.records.get(&part).map(|record| record.epoch) == from {
                    let record = Record { epoch: to, session: Some(session.clone()), floor: None };
                    rows.records.insert(part, record);
                }
            }
        })
    }

    fn let_go<'a>(
        &'a self,
        member: &'a Member,
        part: &'a Text,
        epoch: Epoch,
        _: Option<Position>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        let (session, part) = (member.session.clone(), part.clone());
        self.free(move |rows| {
            let record = rows.records.get_mut(&part).filter(|record| record.epoch == epoch);
            if let Some(record) = record.filter(|record| record.session.as_ref() == Some(&session)) {
                record.session = None;
            }
        })
    }

    fn strike<'a>(&'a self, _: &'a Text, session: &'a Text, beat: u64) -> BoxFuture<'a, Result<(), LeaseError>> {
        let session = session.clone();
        self.free(move |rows| {
            if rows.sessions.get(&session) == Some(&beat) {
                rows.sessions.remove(&session);
                free_all(rows, &session);
            }
        })
    }

    fn leave<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, Result<(), LeaseError>> {
        let session = member.session.clone();
        self.free(move |rows| {
            rows.sessions.remove(&session);
            free_all(rows, &session);
        })
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        self.world.changes.as_ref().map(watch::Sender::subscribe)
    }
}

/// A process that can be stopped: what is pinned in it is not polled meanwhile.
#[derive(Clone, Default)]
struct Process(Arc<Mutex<(bool, Vec<Waker>)>>);

impl Process {
    fn freeze(&self) {
        self.0.lock().0 = true;
    }

    fn resume(&self) {
        let mut state = self.0.lock();
        state.0 = false;
        state.1.drain(..).for_each(Waker::wake);
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        tokio::spawn(Stoppable(self.clone(), Box::pin(task))).abort_handle()
    }
}

struct Stoppable(Process, BoxFuture<'static, ()>);

impl Future for Stoppable {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.0.lock();
        if state.0 {
            state.1.push(context.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        self.1.as_mut().poll(context)
    }
}

/// An instance: its keeper, and a user that lets go of what it is asked for after a while.
struct Instance {
    keeper: Arc<Keeper>,
    process: Process,
    door: Door,
    user: AbortHandle,
}

impl Instance {
    fn start(world: &Arc<World>, parts: &[Text]) -> Self {
        let door = Door { world: Arc::clone(world), way: Arc::default() };
        let process = Process::default();
        let (table, names) = (Arc::new(door.clone()), ("group".into(), "test".into()));
        let clock = world.clock.clone();
        let keeper = Keeper::start_on(table, names, parts.to_vec(), clock.clone(), |task| process.spawn(task));
        let keeper = Arc::new(keeper);
        let user = process.spawn(drain(Arc::clone(&keeper), clock));
        Self { keeper, process, door, user }
    }

    fn held(&self) -> BTreeMap<Text, Held> {
        self.keeper.owned().borrow().clone()
    }
}

/// All at once, as a process that is killed.
impl Drop for Instance {
    fn drop(&mut self) {
        self.user.abort();
    }
}

/// Lets go of what another is to have, once its work has ended.
async fn drain(keeper: Arc<Keeper>, clock: Clock) {
    let mut owned = keeper.owned();
    loop {
        let revoking: Vec<Text> =
            owned.borrow_and_update().iter().filter(|(_, held)| held.revoking).map(|(part, _)| part.clone()).collect();
        for part in &revoking {
            tokio::time::sleep(clock.jitter(Duration::from_millis(300))).await;
            keeper.let_go(part, LastWords::default()).await;
        }
        if revoking.is_empty() && owned.changed().await.is_err() {
            return;
        }
    }
}

/// Instances on one table, and what was seen of them.
struct Ground {
    world: Arc<World>,
    parts: Vec<Text>,
    instances: BTreeMap<usize, Instance>,
    started: usize,
    /// Every ownership that there ever was: whoever still has its lease may go by it.
    seen: BTreeMap<(Text, Epoch), (usize, Lease)>,
}

impl Ground {
    fn new(seed: u64, parts: usize, tells: bool) -> Self {
        let world = Arc::new(World {
            rows: Mutex::default(),
            clock: Clock::simulated(seed),
            down: Mutex::default(),
            stalls: Mutex::default(),
            changes: tells.then(|| watch::Sender::new(0)),
            calls: Mutex::default(),
        });
        let parts = (0..parts).map(|n| Text::from(format!("part-{n:02}"))).collect();
        Self { world, parts, instances: BTreeMap::new(), started: 0, seen: BTreeMap::new() }
    }

    fn start(&mut self) -> usize {
        self.started += 1;
        self.instances.insert(self.started, Instance::start(&self.world, &self.parts));
        self.started
    }

    fn start_all(&mut self, count: u64) {
        for _ in 0..count {
            self.start();
        }
    }

    fn crash(&mut self, instance: usize) {
        drop(self.instances.remove(&instance).unwrap());
    }

    /// Looks who owns what: nothing has two owners, and each epoch one, which is above those before.
    fn look(&mut self) {
        for (n, instance) in &self.instances {
            for (part, held) in instance.held() {
                let ownership = (part.clone(), held.epoch);
                if let Some((owner, _)) = self.seen.get(&ownership) {
                    assert_eq!(owner, n, "{part} has two owners under {:?}", held.epoch);
                    continue;
                }
                let last = self.seen.keys().filter(|(p, _)| *p == part).map(|(_, epoch)| *epoch).max();
                assert!(Some(held.epoch) > last, "{part}: {:?} after {last:?}", held.epoch);
                self.seen.insert(ownership, (*n, held.lease));
            }
        }
        let mut owned = BTreeSet::new();
        for ((part, _), (_, lease)) in &self.seen {
            assert!(!lease.holds(&self.world.clock) || owned.insert(part), "{part} is owned twice");
        }
    }

    async fn pass(&mut self, time: Duration) {
        let until = self.world.clock.boot().after(time);
        while self.world.clock.boot() < until {
            tokio::time::sleep(LOOK).await;
            self.look();
        }
    }

    /// The parts that nobody owns now.
    fn orphans(&self) -> Vec<Text> {
        let clock = &self.world.clock;
        let held: Vec<_> = self.instances.values().flat_map(Instance::held).collect();
        let is_owned = |part: &Text| held.iter().any(|(p, held)| p == part && held.lease.holds(clock));
        self.parts.iter().filter(|part| !is_owned(part)).cloned().collect()
    }

    fn is_whole(&self) -> bool {
        self.orphans().is_empty()
    }

    /// Waits until every part is owned.
    async fn whole_within(&mut self, time: Duration) -> Duration {
        let since = self.world.clock.boot();
        while !self.is_whole() {
            self.pass(LOOK).await;
            let passed = self.world.clock.boot().since(since);
            assert!(passed <= time, "not every part is owned after {passed:?}: {:?}", self.world.rows.lock());
        }
        self.world.clock.boot().since(since)
    }

    fn counts(&self) -> Vec<usize> {
        self.instances.values().map(|instance| instance.held().len()).collect()
    }

    async fn balanced_within(&mut self, time: Duration) {
        let (since, parts, n) = (self.world.clock.boot(), self.parts.len(), self.instances.len());
        loop {
            let range = parts / n..=parts.div_ceil(n);
            if self.is_whole() && self.counts().iter().all(|count| range.contains(count)) {
                return;
            }
            self.pass(LOOK).await;
            assert!(self.world.clock.boot().since(since) <= time, "{:?}", self.counts());
        }
    }
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

#[tokio::test(start_paused = true)]
async fn one_has_everything_and_shares_it_with_those_that_join() {
    let mut ground = Ground::new(1, 16, false);
    ground.start();
    ground.whole_within(ms(100)).await;
    ground.start();
    ground.balanced_within(ms(6_000)).await;
    ground.start();
    ground.balanced_within(ms(6_000)).await;
    let before = *ground.world.calls.lock();
    ground.pass(ms(10_000)).await;
    assert!((29..=31).contains(&(*ground.world.calls.lock() - before)), "one call a second each");
}

#[tokio::test(start_paused = true)]
async fn everything_is_owned_again_seven_seconds_after_a_crash() {
    for seed in 0..40 {
        let mut ground = Ground::new(seed, 16, seed % 2 == 0);
        let first = ground.start();
        ground.whole_within(ms(100)).await;
        let others = seed % 3;
        ground.start_all(1 + others);
        ground.pass(ms(8_000 + seed * 77)).await;
        ground.crash(first);
        assert!(!ground.is_whole());
        // The last beat may have been seen a second late; then a strike, a view, a take, a view.
        ground.whole_within(ms(7_000) + 5 * (SLOW + ms(20))).await;
        ground.balanced_within(ms(5_000)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_is_owned_again_at_once_where_the_table_tells_and_after_a_beat_where_not() {
    for seed in 0..40 {
        let tells = seed % 2 == 0;
        let mut ground = Ground::new(seed, 16, tells);
        let first = ground.start();
        ground.start();
        ground.balanced_within(ms(8_000)).await;
        ground.pass(ms(seed * 31)).await;
        let leaving = ground.instances.remove(&first).unwrap();
        leaving.keeper.leave().await;
        assert!(leaving.held().is_empty());
        ground.whole_within(if tells { ms(500) } else { ms(1_200) }).await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_let_go_of_is_owned_again_within_half_a_second() {
    for seed in 0..40 {
        let mut ground = Ground::new(seed, 1 + usize::try_from(seed).unwrap() % 8 * 2, seed % 2 == 0);
        ground.start();
        ground.whole_within(ms(100)).await;
        ground.start();
        let mut orphaned: BTreeMap<Text, u32> = BTreeMap::new();
        for _ in 0..600 {
            ground.pass(LOOK).await;
            let orphans = ground.orphans();
            orphaned.retain(|part, _| orphans.contains(part));
            for part in orphans {
                *orphaned.entry(part).or_default() += 1;
            }
            assert!(orphaned.values().all(|looks| LOOK * *looks <= ms(500)), "{orphaned:?}");
        }
        ground.balanced_within(ms(0)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_part_that_nobody_else_is_to_have_comes_back_under_a_higher_epoch() {
    let mut ground = Ground::new(3, 1, false);
    let first = ground.start();
    ground.whole_within(ms(100)).await;
    let part = ground.parts[0].clone();
    let instance = &ground.instances[&first];
    let before = instance.held()[&part].clone();
    instance.keeper.let_go(&part, LastWords::default()).await;
    assert!(instance.held().is_empty() && !before.lease.holds(&ground.world.clock));
    ground.whole_within(ms(1_200)).await;
    assert!(ground.instances[&first].held()[&part].epoch > before.epoch);
    assert!(!before.lease.holds(&ground.world.clock));
}

#[tokio::test(start_paused = true)]
async fn who_was_stopped_has_lost_everything_and_joins_again() {
    let mut ground = Ground::new(4, 4, false);
    let first = ground.start();
    ground.whole_within(ms(100)).await;
    ground.start();
    ground.balanced_within(ms(6_000)).await;
    let before = ground.world.rows.lock().sessions.clone();
    ground.instances[&first].process.freeze();
    ground.pass(ms(9_000)).await;
    assert_eq!(ground.instances.values().last().unwrap().held().len(), 4);
    ground.instances[&first].process.resume();
    ground.balanced_within(ms(3_000)).await;
    let known = ground.world.rows.lock().sessions.keys().filter(|session| before.contains_key(*session)).count();
    assert_eq!(known, 1, "what was sent to the old session must not reach the new one");
}

#[tokio::test(start_paused = true)]
async fn a_table_that_was_away_costs_nobody_anything() {
    let mut ground = Ground::new(5, 6, false);
    ground.start_all(3);
    ground.balanced_within(ms(8_000)).await;
    ground.pass(ms(3_000)).await;
    let epochs = ground.seen.len();
    *ground.world.down.lock() = true;
    ground.pass(ms(60_000)).await;
    assert!(!ground.is_whole() && ground.counts() == [2, 2, 2], "leases lapse by themselves");
    *ground.world.down.lock() = false;
    ground.whole_within(ms(2_500)).await;
    ground.pass(ms(20_000)).await;
    assert_eq!(ground.seen.len(), epochs, "nobody else could have owned anything");
}

#[tokio::test(start_paused = true)]
async fn who_is_heard_is_not_struck_off_though_it_gets_no_answers() {
    let mut ground = Ground::new(7, 4, false);
    let first = ground.start();
    ground.start();
    ground.balanced_within(ms(8_000)).await;
    let epochs = ground.seen.len();
    *ground.instances[&first].door.way.lock() = Way::NoAnswers;
    ground.pass(ms(30_000)).await;
    assert!(!ground.is_whole(), "its lease has lapsed");
    *ground.instances[&first].door.way.lock() = Way::Open;
    ground.whole_within(ms(2_500)).await;
    assert_eq!(ground.seen.len(), epochs, "nobody else could have owned its parts");
}

#[tokio::test(start_paused = true)]
async fn leaving_ends_where_the_table_does_not_answer() {
    let mut ground = Ground::new(6, 2, false);
    let first = ground.start();
    ground.whole_within(ms(100)).await;
    *ground.world.down.lock() = true;
    let since = ground.world.clock.boot();
    ground.instances[&first].keeper.leave().await;
    assert!(ground.world.clock.boot().since(since) <= ms(5_010));
}

/// One fault, drawn from the seed.
async fn fault(ground: &mut Ground, clock: &Clock) {
    let pick = usize::try_from(clock.random(1 << 30)).unwrap();
    let one = ground.instances.keys().nth(pick % ground.instances.len().max(1)).copied();
    match (clock.random(12), one) {
        (0 | 1, _) if ground.instances.len() < 4 => ground.start_all(1),
        (2, Some(one)) => ground.crash(one),
        (3, Some(one)) => {
            let leaving = ground.instances.remove(&one).unwrap();
            leaving.process.resume();
            leaving.keeper.leave().await;
        }
        (4, Some(one)) => ground.instances[&one].process.freeze(),
        (5 | 6, Some(one)) => {
            let ways = [Way::Open, Way::NoAnswers, Way::Cut];
            *ground.instances[&one].door.way.lock() = ways[pick % 3];
        }
        (7, _) => *ground.world.down.lock() ^= true,
        (8, _) => *ground.world.stalls.lock() = clock.random(6),
        (9 | 10, Some(one)) => {
            let (keeper, held) = (Arc::clone(&ground.instances[&one].keeper), ground.instances[&one].held());
            let part = held.into_keys().next();
            drop(part.map(|part| tokio::spawn(async move { keeper.let_go(&part, LastWords::default()).await })));
        }
        (_, Some(one)) => ground.instances[&one].process.resume(),
        _ => {}
    }
}

async fn under_faults(seed: u64) {
    let mut ground = Ground::new(seed, 5, seed.is_multiple_of(2));
    let clock = ground.world.clock.clone();
    ground.start_all(3);
    for _ in 0..60 {
        ground.pass(clock.jitter(ms(4_000))).await;
        fault(&mut ground, &clock).await;
    }
    *ground.world.down.lock() = false;
    *ground.world.stalls.lock() = 0;
    ground.start();
    for instance in ground.instances.values() {
        instance.process.resume();
        *instance.door.way.lock() = Way::Open;
    }
    ground.pass(ms(20_000)).await;
    ground.balanced_within(ms(0)).await;
}

#[tokio::test(start_paused = true)]
async fn under_any_faults_no_part_is_owned_twice_and_all_are_owned_in_the_end() {
    for seed in 0..100 {
        println!("seed {seed}");
        under_faults(seed).await;
    }
}
