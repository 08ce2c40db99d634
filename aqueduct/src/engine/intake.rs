//! Intake: what comes in from the broker, up to its lane.

use std::sync::Arc;
use std::time::Duration;

use super::core::Core;
use super::item::{Item, Target};
use super::lanes::{Head, LaneKey, LaneRef};
use super::ledger::{Ledger, Seated};
use super::mailbox::Note;
use super::owned::{DueState, FinishedRows, Owned, ParkedKeys, Returned, Settling, Stage};
use super::planted::Planted;
use super::stores::Taken;
use super::writer::{After, Writer};
use crate::broker::{Arrival, Delivery, Lease, Ownership, Settle};
use crate::call::Origin;
use crate::error::StoreError;
use crate::event::Event;
use crate::format::{Decoded, FormatErrorKind};
use crate::message::Message;
use crate::policy::defaults;
use crate::router::Found;
use crate::store::{Claim, Content, Late, Op, Row, RowState, Standing};
use crate::topic::{Epoch, LaneId, Partition, Place, Position, Text};

/// When a delivery comes again that was given back because others of its key must come first.
const RETURN_DELAY: Duration = Duration::from_millis(50);

impl Core {
    pub(super) fn arrive(&mut self, arrival: Arrival) {
        match arrival {
            Arrival::Assigned { partition, epoch, floor, lease } => self.assigned(partition, epoch, floor, lease),
            Arrival::Batch { partition, deliveries } => {
                if let Some(&slot) = self.slots.get(&partition) {
                    self.metrics.received.increment(deliveries.len() as u64);
                    for delivery in deliveries {
                        self.delivered(slot, delivery);
                    }
                    self.bound_floor(slot);
                }
            }
            Arrival::Resumed { partition } => {
                if let Some(owned) = self.slots.get(&partition).and_then(|slot| self.owned.get_mut(slot)) {
                    owned.due.resumed = true;
                    self.soon();
                }
            }
            Arrival::Revoking { partition, until } => {
                if let Some(&slot) = self.slots.get(&partition) {
                    self.close_partition(slot, Stage::Draining { until });
                }
            }
            Arrival::Stopped { partition, why } => {
                if let Some(&slot) = self.slots.get(&partition) {
                    tracing::error!(%partition, why, "the partition is stopped");
                    self.drop_partition(slot);
                }
                self.health.stopped_partition(&partition, why);
            }
            Arrival::Lost { partition } => {
                if let Some(&slot) = self.slots.get(&partition) {
                    tracing::warn!(%partition, "the partition is lost; what was in hand goes to its next owner");
                    self.drop_partition(slot);
                }
            }
        }
    }

    fn assigned(&mut self, partition: Partition, epoch: Epoch, floor: Option<Position>, lease: Lease) {
        if let Some(&slot) = self.slots.get(&partition) {
            self.drop_partition(slot);
        }
        self.releases.remove(&partition);
        let consumer = self.settings.name.clone();
        let origin =
            Origin::new(consumer.clone(), partition.clone(), epoch, lease).with_store(self.stores.transactions.clone());
        let loads = self.has_store && self.ownership != Ownership::Competing;
        let slot = self.new_slot(Owned {
            claim: Claim { consumer, partition: partition.clone(), epoch },
            partition,
            origin: Arc::new(origin),
            stage: if loads { Stage::Loading } else { Stage::Open },
            ledger: Ledger::new(floor, self.ownership != Ownership::Competing),
            parked: ParkedKeys::default(),
            finished: FinishedRows::default(),
            writer: Writer::default(),
            due: DueState { resumed: self.ownership != Ownership::AckEach, ..DueState::default() },
            settling: Settling { told_floor: floor, ..Settling::default() },
            returned: Returned::default(),
            burying: std::collections::BTreeSet::new(),
            letters: Vec::new(),
            held: std::collections::VecDeque::new(),
            finish_below: None,
            suspended: Vec::new(),
            lapsed: false,
            outage: None,
        });
        self.update_paused();
        self.soon();
        if loads {
            self.take_over(slot);
        }
    }

    /// Raises the fence, then loads the parked keys; only then is anything fetched.
    pub(super) fn take_over(&mut self, slot: u32) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        let (stores, claim, mailbox) = (self.stores.clone(), owned.claim.clone(), Arc::clone(&self.mailbox));
        let at = Standing::new(self.membership.stream(&claim.partition), owned.ledger.floor());
        owned.due.asking = Some(self.tasks.spawn(async move {
            let result = stores.take_over(&claim, &at).await;
            mailbox.push(Note::TakenOver { slot, result });
        }));
    }

    pub(super) fn taken_over(&mut self, slot: u32, result: Result<Taken, StoreError>) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        owned.due.asking = None;
        match result {
            Ok(Taken { loaded, settled }) => {
                owned.ledger.begin_above(settled);
                for lane in loaded.lanes {
                    if lane.holds || lane.mark.is_some() {
                        owned.parked.close(lane.lane, lane.holds, lane.mark);
                    }
                }
                owned.due.by(loaded.next_at);
                if owned.stage == Stage::Loading {
                    owned.stage = Stage::Open;
                }
                self.health.well(&owned.partition);
                if settled > owned.settling.told_floor {
                    self.settle_soon(slot);
                }
                self.update_paused();
                self.soon();
            }
            Err(StoreError::Fenced { held, .. }) => self.give_up_partition(slot, Some(held)),
            Err(error) => {
                self.metrics.store_errors.increment(1);
                // It is asked again a few times a second, and said once.
                let is_new = self.health.failing(&owned.partition, &error);
                match error {
                    StoreError::Unavailable(_) if is_new => {
                        tracing::warn!(partition = %owned.partition, %error, "the partition does not start: the store cannot be read");
                    }
                    _ if is_new => {
                        tracing::error!(partition = %owned.partition, %error, "the partition stands until somebody does what the error says");
                    }
                    _ => {}
                }
                let at = self.now + Duration::from_millis(200) + self.clock.jitter(Duration::from_millis(300));
                owned.writer.retry_at = Some(at);
                self.wake_by(at);
            }
        }
    }

    /// Takes one delivery in hand.
    fn delivered(&mut self, slot: u32, delivery: Delivery) {
        let Delivery { message, ticket } = delivery;
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        match owned.ledger.arrive(ticket) {
            Seated::New => {}
            Seated::InHand => return self.extender.renew(slot, ticket),
            Seated::Settled => {
                if self.ownership != Ownership::Floor {
                    owned.settling.settles.push(Settle::Done(ticket));
                    self.settle_soon(slot);
                }
                return;
            }
        }
        self.extender.hold(slot, &owned.partition, ticket);
        let position = ticket.position;
        match self.decode(&message) {
            Ok(Decoded::One(event)) => self.event_arrived(slot, Place { position, index: 0 }, event),
            Ok(Decoded::Batch(events)) if events.is_empty() => self.settle_at(slot, Place { position, index: 0 }),
            Ok(Decoded::Batch(events)) if self.return_batch(slot, position, &events) => {}
            Ok(Decoded::Batch(events)) => {
                if let Some(owned) = self.owned.get_mut(&slot) {
                    owned.ledger.carries(position, u32::try_from(events.len()).unwrap_or(u32::MAX));
                }
                for (index, event) in (0..).zip(events) {
                    self.event_arrived(slot, Place { position, index }, event);
                }
            }
            Err(problem) => {
                let place = Place { position, index: 0 };
                let item = self.new_item(place, Content::Undecodable(Arc::new(message)), Target::Undecodable(problem));
                self.enter(slot, place.lane(), item);
            }
        }
    }

    /// Gives a message back as a whole if one of its events must wait for what has not come again: true if so. Then the
    /// keys of all of them are closed, for none of them was let in.
    fn return_batch(&mut self, slot: u32, position: Position, events: &[Event]) -> bool {
        if self.ownership != Ownership::AckEach {
            return false;
        }
        let ignored = |event: &Event| self.target(event) == Target::Unknown(crate::router::Unknown::Ignore);
        let handled = (0..).zip(events).filter(|(_, event)| !self.settings.filters_out(event) && !ignored(event));
        let places = handled.map(|(index, event)| {
            let place = Place { position, index };
            (event.key.as_ref().map_or_else(|| place.lane(), crate::topic::Key::lane), place)
        });
        let places: Vec<(LaneId, Place)> = places.collect();
        let Some(owned) = self.owned.get_mut(&slot) else { return false };
        if !places.iter().any(|(lane, place)| owned.returned.is_closed(*lane, *place)) {
            return false;
        }
        let now = self.now;
        let delays = places.iter().map(|(lane, place)| owned.returned.close(*lane, *place, now, RETURN_DELAY));
        let delay = delays.max().unwrap_or(RETURN_DELAY);
        for (lane, place) in places {
            owned.returned.close(lane, place, now, delay);
        }
        self.return_delivery(slot, Place { position, index: 0 }, delay);
        true
    }

    /// Asks each format in turn.
    pub(super) fn decode(&self, message: &Message) -> Result<Decoded, Text> {
        let mut problems = String::new();
        for format in &self.settings.formats {
            match format.decode(message) {
                Ok(decoded) => return Ok(decoded),
                Err(error) => {
                    if !problems.is_empty() {
                        problems.push_str("; ");
                    }
                    problems.push_str(&error.to_string());
                    if error.kind != FormatErrorKind::NotMine {
                        break;
                    }
                }
            }
        }
        Err(Text::from(problems))
    }

    fn event_arrived(&mut self, slot: u32, place: Place, mut event: Event) {
        if self.settings.filters_out(&event) {
            self.metrics.filtered.increment(1);
            return self.settle_at(slot, place);
        }
        if event.id.is_empty() {
            let Some(owned) = self.owned.get(&slot) else { return };
            event.id = Text::from(format!("{}/{}/{}", owned.partition, place.position.0, place.index));
        }
        let lane = event.key.as_ref().map_or_else(|| place.lane(), crate::topic::Key::lane);
        let target = self.target(&event);
        if target == Target::Unknown(crate::router::Unknown::Ignore) {
            self.metrics.filtered.increment(1);
            return self.settle_at(slot, place);
        }
        let lane = if self.ownership == Ownership::Competing { place.lane() } else { lane };
        let item = self.new_item(place, Content::Event(Arc::new(event)), target);
        self.enter(slot, lane, item);
    }

    pub(super) fn target(&self, event: &Event) -> Target {
        match self.workers.app.find(event.kind.as_str()) {
            Found::Route(id) => Target::Route(id),
            Found::Unknown(unknown) => Target::Unknown(unknown),
        }
    }

    fn new_item(&mut self, place: Place, content: Content, target: Target) -> Item {
        self.buffered += 1;
        Item { place, content, target, attempts: 0, stored: None, failures: Vec::new() }
    }

    /// Puts an event from the broker into its lane: in memory, or in the store if its key has rows there.
    pub(super) fn enter(&mut self, slot: u32, lane: LaneId, mut item: Item) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        if owned.finished.covers(lane, item.place) {
            self.buffered -= 1;
            return self.settle_at(slot, item.place);
        }
        if self.ownership == Ownership::Competing {
            item.attempts = owned.ledger.ticket(item.place.position).map_or(0, |t| t.deliveries.saturating_sub(1));
        }
        if self.ownership == Ownership::AckEach {
            if owned.returned.closed_for(lane, item.place) {
                self.buffered -= 1;
                let delay = owned.returned.close(lane, item.place, self.now, RETURN_DELAY);
                return self.return_delivery(slot, item.place, delay);
            }
            if let Some((attempts, failures)) = owned.returned.tries.remove(&item.place) {
                (item.attempts, item.failures) = (attempts, failures);
            }
        }
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        if owned.parked.contains(lane) {
            return self.append(slot, lane, item);
        }
        let key = LaneKey { slot, lane };
        let full = self.lanes.find(key).is_some_and(|l| self.lanes.count(l) >= self.settings.buffer_per_key);
        if full && self.has_store && self.ownership != Ownership::Competing {
            return self.spill(key, item);
        }
        let alone = owned.ledger.is_alone(item.place.position);
        if full && alone && owned.held.is_empty() && self.ownership == Ownership::AckEach {
            // The broker keeps what does not fit; the key is closed above it until it has come again.
            self.buffered -= 1;
            let delay = owned.returned.close(lane, item.place, self.now, RETURN_DELAY);
            return self.return_delivery(slot, item.place, delay);
        }
        if full || !owned.held.is_empty() {
            owned.held.push_back(item);
            return self.update_paused();
        }
        if let Some(lane) = self.lanes.push(key, item) {
            self.scheduler.ready(lane);
        }
    }

    /// Lets in what was held, as far as there is room.
    pub(super) fn admit_held(&mut self, slot: u32) {
        while let Some(owned) = self.owned.get_mut(&slot) {
            let Some(item) = owned.held.front() else { break };
            let lane = item.content.key().map_or_else(|| item.place.lane(), crate::topic::Key::lane);
            let key = LaneKey { slot, lane };
            if self.lanes.find(key).is_some_and(|l| self.lanes.count(l) >= self.settings.buffer_per_key) {
                return;
            }
            let Some(item) = owned.held.pop_front() else { break };
            if let Some(lane) = self.lanes.push(key, item) {
                self.scheduler.ready(lane);
            }
        }
        self.update_paused();
    }

    fn append(&mut self, slot: u32, lane: LaneId, item: Item) {
        let stray = if self.ownership == Ownership::Floor { Late::Finished } else { Late::Insert };
        let place = item.place;
        let row = self.row(lane, item);
        if let Some(owned) = self.owned.get_mut(&slot) {
            owned.parked.write_begins(lane);
        }
        self.write(slot, Op::Append { row, late: stray }, After::Appended { lane, place });
    }

    /// A lane is full: all of it goes to the store, from its unfinished head on, and the newcomer with it.
    fn spill(&mut self, key: LaneKey, newcomer: Item) {
        let Some(lane) = self.lanes.find(key) else { return };
        let Some((_, head)) = self.lanes.look(lane) else { return };
        let mut items = match head {
            Head::Running | Head::Writing => self.lanes.take_tail(lane),
            Head::Waiting | Head::Suspended => self.lanes.take(lane),
        };
        items.push(newcomer);
        let running = (head == Head::Running).then(|| self.store_running_head(key, lane)).flatten();
        self.put_lane(key, running, items);
    }

    /// The row of a head that goes on running as a row of the store.
    fn store_running_head(&mut self, key: LaneKey, lane: LaneRef) -> Option<Row> {
        let now = self.clock.now();
        let item = self.lanes.head(lane).filter(|i| i.stored.is_none())?;
        item.stored = Some(super::item::Stored { version: 1, replay: false });
        let mut row = Row::new(item.place, key.lane, item.content.clone(), now);
        row.attempts = item.attempts;
        item.failures.drain(..).for_each(|failure| row.remember(failure));
        self.stored_in_memory += 1;
        if let Some(owned) = self.owned.get_mut(&key.slot) {
            owned.due.busy.insert(item.place);
        }
        Some(row)
    }

    /// Writes a whole lane into the store in one apply. Rows among the items are there already.
    pub(super) fn put_lane(&mut self, key: LaneKey, head: Option<Row>, items: Vec<Item>) {
        let mut rows: Vec<Row> = head.into_iter().collect();
        for item in items {
            if item.stored.is_some() {
                self.forget_row(key.slot, item.place);
            } else {
                rows.push(self.row(key.lane, item));
            }
        }
        self.metrics.parked.increment(rows.len() as u64);
        let mut settle: Vec<Place> = rows.iter().map(|r| r.place).collect();
        if self.planted(Planted::AckBeforeParking) {
            self.buffered -= settle.len();
            settle.drain(..).for_each(|place| self.settle_at(key.slot, place));
        }
        if let Some(owned) = self.owned.get_mut(&key.slot) {
            owned.parked.close(key.lane, true, None);
            owned.parked.write_begins(key.lane);
        }
        self.write(key.slot, Op::Put(rows), After::Parked { lane: key.lane, settle });
    }

    /// A row that was in memory waits in the store again.
    pub(super) fn forget_row(&mut self, slot: u32, place: Place) {
        self.stored_in_memory -= 1;
        if let Some(owned) = self.owned.get_mut(&slot) {
            owned.due.leaves(place);
            owned.due.by(Some(self.clock.now()));
        }
    }

    /// The row that an event becomes.
    pub(super) fn row(&self, lane: LaneId, item: Item) -> Row {
        let mut row = Row::new(item.place, lane, item.content, self.clock.now());
        row.attempts = item.attempts;
        row.state = RowState::Parked;
        item.failures.into_iter().for_each(|failure| row.remember(failure));
        row
    }

    /// Pauses a partition with too much above its floor.
    fn bound_floor(&mut self, slot: u32) {
        if self.owned.get(&slot).is_some_and(|o| o.ledger.above_floor() >= defaults::ABOVE_FLOOR) {
            self.update_paused();
        }
    }
}
