//! Carries out what [`settle`](super::settle) decides, and tells the broker.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::core::Core;
use super::item::Target;
use super::lanes::{Head, LaneKey, LaneRef};
use super::mailbox::Note;
use super::owned::Stage;
use super::planted::Planted;
use super::settle::{Case, End, Step, settle};
use super::stores::NotSettled;
use super::writer::After;
use crate::broker::{Ownership, Settle};
use crate::clock::later;
use crate::error::{BrokerError, Fault, StoreError};
use crate::policy::Policy;
use crate::router::Unknown;
use crate::store::{HISTORY_MAX, Hold, Next, Op, RowRef, RowState};
use crate::topic::Place;

/// Settled deliveries before the broker is told.
const SETTLES: usize = 64;
/// How long a settled delivery waits at most until the broker is told.
const SETTLE_DELAY: Duration = Duration::from_millis(20);
/// How long the log is not told again why attempts fail that are not counted, and how many reasons it is told in that time.
const OUTAGE_QUIET: Duration = Duration::from_secs(10);
const OUTAGES_MAX: usize = 8;

impl Core {
    /// The attempt on the head of a lane has ended: decides what becomes of it, and does it.
    pub(super) fn conclude(&mut self, key: LaneKey, lane: LaneRef, end: End, error: Option<(String, Duration)>) {
        let counts = end != End::Failed(Fault::Uncounted);
        self.note_outage(key.slot, error.as_ref().filter(|_| !counts).map(|(text, _)| text));
        let attempts = self.lanes.head(lane).map_or(0, |item| item.attempts) + u32::from(counts);
        let failure = error.map(|(text, took)| self.failure(attempts, &text, took));
        let alone = self.alone(key.slot, lane);
        let policy = self.policy_of(lane).clone();
        let Some(item) = self.lanes.head(lane) else { return };
        item.attempts = attempts;
        let case = Case {
            end,
            attempts,
            stored: item.stored.is_some(),
            policy: &policy,
            ownership: self.ownership,
            store: self.has_store,
            letters: self.letters.is_some(),
            alone,
        };
        let step = settle(&case);
        if let Some(failure) = failure {
            tracing::debug!(consumer = %self.settings.name, place = ?item.place, ?step, error = %failure.error, "an attempt failed");
            if item.failures.len() >= HISTORY_MAX {
                item.failures.remove(0);
            }
            item.failures.extend(counts.then_some(failure));
        }
        self.take_step(key, lane, step);
    }

    /// An outage lasts until an attempt ends otherwise.
    fn note_outage(&mut self, slot: u32, outage: Option<&String>) {
        const WHAT: &str = "attempts fail through no fault of their events and are not counted";
        let Some(owned) = self.owned.get_mut(&slot).filter(|owned| outage.is_some() || owned.outage.is_some()) else {
            return;
        };
        owned.outage = outage.map(|text| format!("{WHAT}: {text}"));
        match &owned.outage {
            Some(why) => {
                self.health.waits(&owned.partition, why.clone());
                let now = self.now;
                self.outages.retain(|(at, _)| *at + OUTAGE_QUIET > now);
                if self.outages.len() < OUTAGES_MAX && self.outages.iter().all(|(_, told)| told != why) {
                    tracing::warn!(partition = %owned.partition, error = outage, "{WHAT}");
                    self.outages.push((now, why.clone()));
                }
            }
            None => self.health.waits_no_more(&owned.partition),
        }
    }

    fn take_step(&mut self, key: LaneKey, lane: LaneRef, step: Step) {
        match step {
            Step::Settle => self.done(key, lane),
            Step::Drop => {
                self.metrics.dropped.increment(1);
                if let Some(item) = self.lanes.head(lane) {
                    let error = item.failures.last().map_or("", |f| f.error.as_str());
                    tracing::error!(place = ?item.place, error, "an event is given up, as its policy says");
                }
                self.done(key, lane);
            }
            Step::Quick(most) => {
                let wait = self.clock.jitter(most);
                if self.planted(Planted::NextDuringRetry) {
                    return self.overtaken(key, lane, wait);
                }
                self.wait(lane, wait);
            }
            Step::Wait(delay) => {
                self.report_waiting(key.slot);
                self.wait(lane, delay);
            }
            Step::Park(delay) => self.park(key, lane, delay),
            Step::Dead(hold) => self.dead(key, lane, hold),
            Step::GiveBack(delay) => self.give_back(key, lane, delay),
        }
    }

    /// Holds the key in memory, without a permit.
    fn wait(&mut self, lane: LaneRef, delay: Duration) {
        let at = later(self.now, delay);
        self.lanes.set(lane, Head::Waiting);
        self.scheduler.delay(lane, at);
        self.wake_by(at);
    }

    /// The planted bug: others of the key run while its head waits.
    fn overtaken(&mut self, key: LaneKey, lane: LaneRef, delay: Duration) {
        let Some(item) = self.lanes.pop(lane) else { return };
        if self.lanes.exists(lane) {
            self.scheduler.ready(lane);
        }
        if let Some(lane) = self.lanes.push(key, item) {
            self.wait(lane, delay);
        }
    }

    fn done(&mut self, key: LaneKey, lane: LaneRef) {
        let Some(item) = self.lanes.head(lane) else { return };
        let (place, stored) = (item.place, item.stored);
        match stored {
            None => self.finish_head(key.slot, lane, place),
            Some(stored) => {
                self.lanes.set(lane, Head::Writing);
                let by_floor = self.ownership == Ownership::Floor;
                let owned = self.owned.get_mut(&key.slot).filter(|o| by_floor && o.ledger.is_to_come(place.position));
                if let Some(owned) = owned {
                    owned.finished.insert(key.lane, place);
                }
                let row = RowRef { place, lane: key.lane, version: stored.version };
                self.write(key.slot, Op::Finish(row), After::Row { lane, id: key.lane, place, dies: false });
            }
        }
    }

    /// Takes a settled delivery off its lane, which goes on.
    pub(super) fn finish_head(&mut self, slot: u32, lane: LaneRef, place: Place) {
        if self.lanes.pop(lane).is_none() {
            return;
        }
        self.buffered -= 1;
        self.settle_at(slot, place);
        if self.lanes.exists(lane) {
            self.scheduler.ready(lane);
        }
        if self.owned.get(&slot).is_some_and(|o| !o.held.is_empty()) {
            self.admit_held(slot);
        }
    }

    fn park(&mut self, key: LaneKey, lane: LaneRef, delay: Duration) {
        let next_at = self.clock.now().after(delay);
        let Some(item) = self.lanes.head(lane) else { return };
        if item.stored.is_some() {
            return self.update_row(key, lane, Next::Retry(next_at));
        }
        let mut items = self.lanes.take(lane);
        let head = items.remove(0);
        let mut row = self.row(key.lane, head);
        row.next_at = next_at;
        self.put_lane(key, Some(row), items);
    }

    fn update_row(&mut self, key: LaneKey, lane: LaneRef, to: Next) {
        let Some(item) = self.lanes.head(lane) else { return };
        let (Some(stored), place) = (item.stored, item.place) else { return };
        let Some(failure) = item.failures.pop() else { return };
        self.lanes.set(lane, Head::Writing);
        let row = RowRef { place, lane: key.lane, version: stored.version };
        let dies = matches!(to, Next::Dead(_));
        self.write(key.slot, Op::Update { row, failure, to }, After::Row { lane, id: key.lane, place, dies });
    }

    fn dead(&mut self, key: LaneKey, lane: LaneRef, hold: Hold) {
        self.metrics.dead.increment(1);
        let now = self.clock.now();
        let Some(item) = self.lanes.head(lane) else { return };
        let error = item.failures.last().map_or("", |f| f.error.as_str());
        tracing::error!(place = ?item.place, attempts = item.attempts, ?hold, error, "an event is a dead letter");
        if let Some(letters) = self.letters.clone().filter(|_| hold == Hold::Skip) {
            return self.send_letter(key, lane, letters);
        }
        if item.stored.is_some() {
            return self.update_row(key, lane, Next::Dead(hold));
        }
        if hold == Hold::Block && self.ownership != Ownership::Competing {
            let mut items = self.lanes.take(lane);
            let head = items.remove(0);
            let mut row = self.row(key.lane, head);
            row.state = RowState::Dead(hold);
            return self.put_lane(key, Some(row), items);
        }
        let mut row = crate::store::Row::new(item.place, key.lane, item.content.clone(), now);
        row.attempts = item.attempts;
        row.state = RowState::Dead(Hold::Skip);
        item.failures.iter().for_each(|failure| row.remember(failure.clone()));
        let place = item.place;
        self.lanes.set(lane, Head::Writing);
        if self.ownership == Ownership::Competing {
            return self.bury(key.slot, lane, row);
        }
        self.write(key.slot, Op::Put(vec![row]), After::Buried { lane, place });
        if self.planted(Planted::DeadLetterNotAwaited) {
            self.finish_head(key.slot, lane, place);
        }
    }

    /// A dead letter of a competing consumer: a row written without a claim.
    fn bury(&mut self, slot: u32, lane: LaneRef, row: crate::store::Row) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        owned.burying.insert(row.place.position);
        let (store, mailbox, partition) =
            (Arc::clone(&self.stores.rows), Arc::clone(&self.mailbox), owned.partition.clone());
        let (consumer, clock, errors) =
            (self.settings.name.clone(), self.clock.clone(), self.metrics.store_errors.clone());
        self.errands.push(self.tasks.spawn(async move {
            while let Err(error) = store.bury(&consumer, &partition, std::slice::from_ref(&row)).await {
                errors.increment(1);
                tracing::warn!(%partition, %error, "the store does not take a dead letter; it is tried again and nothing is lost");
                tokio::time::sleep(Duration::from_millis(200) + clock.jitter(Duration::from_millis(800))).await;
            }
            mailbox.push(Note::Buried { slot, lane });
        }));
    }

    pub(super) fn buried(&mut self, slot: u32, lane: LaneRef) {
        if let (Some((key, Head::Writing)), Some(item)) = (self.lanes.look(lane), self.lanes.head(lane)) {
            let place = item.place;
            if let Some(owned) = self.owned.get_mut(&slot) {
                owned.burying.remove(&place.position);
            }
            self.done(key, lane);
        }
    }

    /// Gives the head back to the broker, and on an ordered lane its tail with it: never the head alone.
    fn give_back(&mut self, key: LaneKey, lane: LaneRef, delay: Duration) {
        if self.ownership == Ownership::AckEach {
            self.report_waiting(key.slot);
        }
        let items = if self.planted(Planted::HeadWithoutTail) {
            let head = self.lanes.pop(lane);
            if self.lanes.exists(lane) {
                self.scheduler.ready(lane);
            }
            head.into_iter().collect()
        } else {
            self.lanes.take(lane)
        };
        let now = self.now;
        for item in items {
            if item.stored.is_some() {
                self.forget_row(key.slot, item.place);
                continue;
            }
            self.buffered -= 1;
            let ordered = self.ownership == Ownership::AckEach && !self.planted(Planted::HeadWithoutTail);
            if let Some(owned) = self.owned.get_mut(&key.slot).filter(|_| ordered) {
                owned.returned.close(key.lane, item.place, now, delay);
                owned.returned.tries.insert(item.place, (item.attempts, item.failures));
            }
            self.return_delivery(key.slot, item.place, delay);
        }
        self.admit_held(key.slot);
    }

    /// Gives one delivery back.
    pub(super) fn return_delivery(&mut self, slot: u32, place: Place, delay: Duration) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        if let Some(ticket) = owned.ledger.give_back(place.position) {
            self.extender.release(slot, place.position);
            owned.settling.settles.push(Settle::Again(ticket, delay));
            self.settle_soon(slot);
        }
    }

    /// An event that no handler is for: its fallback, or its format error, is its ending.
    pub(super) fn unroutable(&mut self, key: LaneKey, lane: LaneRef) {
        let Some(item) = self.lanes.head(lane) else { return };
        let (fault, text) = match &item.target {
            Target::Route(_) => return,
            Target::Undecodable(problem) => (Fault::Permanent, problem.to_string()),
            Target::Unknown(unknown) => {
                let kind = match &item.content {
                    crate::store::Content::Event(event) => event.kind.as_str(),
                    crate::store::Content::Undecodable(_) => "",
                };
                let text = format!(
                    "no route for events of type {kind:?}: add one with `Router::on`, or choose with `Router::fallback` what becomes of them"
                );
                (if *unknown == Unknown::Park { Fault::Transient } else { Fault::Permanent }, text)
            }
        };
        self.conclude(key, lane, End::Failed(fault), Some((text, Duration::ZERO)));
    }

    /// The policy of the event at the head.
    pub(super) fn policy_of(&mut self, lane: LaneRef) -> &Policy {
        let route = self.lanes.head(lane).and_then(|item| item.target.route());
        route.and_then(|id| self.workers.app.route(id).policy.as_ref()).unwrap_or(&self.settings.policy)
    }

    /// True if giving the lane's deliveries back brings no other event again, and leaves none of the lane behind.
    fn alone(&self, slot: u32, lane: LaneRef) -> bool {
        let Some(owned) = self.owned.get(&slot).filter(|_| self.ownership == Ownership::AckEach) else { return true };
        owned.held.is_empty() && self.lanes.items(lane).all(|item| owned.ledger.is_alone(item.place.position))
    }

    /// One event of a delivery is settled.
    pub(super) fn settle_at(&mut self, slot: u32, place: Place) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        let was_paused = owned.ledger.above_floor() >= crate::policy::defaults::ABOVE_FLOOR;
        let Some(ticket) = owned.ledger.settle(place) else { return };
        if self.ownership != Ownership::Floor {
            self.extender.release(slot, place.position);
            owned.settling.settles.push(Settle::Done(ticket));
        }
        if was_paused {
            self.update_paused();
        }
        self.settle_soon(slot);
    }

    /// The broker is told in a while, or now if there is much to tell.
    pub(super) fn settle_soon(&mut self, slot: u32) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        owned.settling.count += 1;
        let now = self.now;
        if owned.settling.count >= SETTLES {
            owned.settling.flush_at = Some(now);
            self.flush(slot, now);
        } else if owned.settling.flush_at.is_none() {
            owned.settling.flush_at = Some(now + SETTLE_DELAY);
            self.wake_by(now + SETTLE_DELAY);
        }
    }

    /// Tells the broker what is settled, if it is time.
    pub(super) fn flush(&mut self, slot: u32, now: Instant) {
        let highest = self.planted(Planted::HighestFloor);
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        let settling = &mut owned.settling;
        if settling.in_flight.is_some()
            || settling.flush_at.is_none_or(|at| at > now)
            || !owned.origin.holds(&self.clock)
        {
            return;
        }
        settling.flush_at = None;
        settling.count = 0;
        let mut settles = std::mem::take(&mut settling.settles);
        if self.ownership == Ownership::Floor {
            let floor = if highest { owned.ledger.highest_settled() } else { owned.ledger.floor() };
            if floor > settling.told_floor {
                settles.extend(floor.map(Settle::Floor));
            }
        }
        if settles.is_empty() {
            return;
        }
        let settles = Arc::new(settles);
        let (membership, mailbox) = (Arc::clone(&self.membership), Arc::clone(&self.mailbox));
        let (claim, told) = (owned.claim.clone(), Arc::clone(&settles));
        let stores = self.stores.clone();
        let task = self.tasks.spawn(async move {
            let result = stores.settle(&*membership, &claim, &told).await;
            mailbox.push(Note::Settled { slot, result });
        });
        settling.in_flight = Some((task, settles));
    }

    /// The broker has answered.
    pub(super) fn settled(&mut self, slot: u32, result: Result<(), NotSettled>) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        let Some((_, settles)) = owned.settling.in_flight.take() else { return };
        owned.settling.failed = result.is_err();
        match result {
            Ok(()) => {
                if let Some(Settle::Floor(floor)) = settles.last() {
                    owned.settling.told_floor = Some(*floor);
                }
                let floor =
                    if self.ownership == Ownership::Floor { owned.settling.told_floor } else { owned.ledger.floor() };
                if let Some(floor) = floor {
                    owned.finished.floor_passes(floor);
                }
                if let Some(floor) = floor.filter(|floor| owned.parked.floor_passes(*floor)) {
                    self.write(slot, Op::Floor(floor), After::Floor);
                }
            }
            // Not released: an owner may own it again by the time that the broker hears of it. A competitor asks for it
            // again by that.
            Err(NotSettled::Broker(BrokerError::Lost { .. })) if self.ownership != Ownership::Competing => {
                self.drop_partition(slot);
            }
            Err(NotSettled::Broker(BrokerError::Lost { .. })) => self.give_up_partition(slot, None),
            Err(NotSettled::Store(StoreError::Fenced { held, .. })) => self.give_up_partition(slot, Some(held)),
            Err(NotSettled::Store(error @ (StoreError::Refused(_) | StoreError::Lost(_)))) => {
                self.take_over_anew(slot, &error);
            }
            Err(error) => {
                if matches!(error, NotSettled::Broker(_)) {
                    self.metrics.broker_errors.increment(1);
                } else {
                    self.metrics.store_errors.increment(1);
                }
                if self.health.failing(&owned.partition, &error) {
                    tracing::warn!(partition = %owned.partition, %error, "the broker was not told what is settled; it is told again");
                }
                let again: Vec<Settle> = settles.iter().filter(|s| !matches!(s, Settle::Floor(_))).copied().collect();
                owned.settling.settles.splice(0..0, again);
                owned.settling.count += 1;
                let at = self.now + Duration::from_millis(100) + self.clock.jitter(Duration::from_millis(200));
                owned.settling.flush_at = Some(at);
                self.wake_by(at);
            }
        }
        self.flush(slot, self.now);
        if self.stop.is_asked() || self.owned.get(&slot).is_some_and(|o| o.stage != Stage::Open) {
            self.soon();
        }
    }
}
