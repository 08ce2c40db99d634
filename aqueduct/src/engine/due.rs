//! Parked events come in again by the front door: rows that are due are offered to their lanes.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::core::Core;
use super::item::{Item, Stored, Target};
use super::lanes::LaneKey;
use super::mailbox::Note;
use super::owned::Stage;
use super::writer::After;
use crate::broker::Ownership;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::format::Decoded;
use crate::policy::defaults;
use crate::store::{Action, Applied, Command, CommandId, Content, Due, Op, Row};
use crate::topic::{LaneId, Place, Text};

impl Core {
    /// Asks the store what is due, if it is time.
    pub(super) fn ask_due(&mut self, slot: u32, now: Instant, wall: Timestamp) {
        if !self.has_store || self.ownership == Ownership::Competing || self.stop.is_asked() {
            return;
        }
        let room = self.room_for_rows();
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        if owned.stage == Stage::Loading && owned.due.asking.is_none() && owned.writer.retry_at.is_none() {
            return self.take_over(slot);
        }
        let poll = owned.due.poll_at.is_none_or(|at| at <= now);
        let due = room > 0 && owned.due.resumed && owned.due.next_at.is_some_and(|at| at <= wall);
        if !(poll || due) || owned.due.asking.is_some() || !owned.is_open(&self.clock) || owned.writer.is_failing() {
            return;
        }
        owned.due.answered();
        owned.due.next_at = None;
        owned.due.poll_at = Some(now + defaults::COMMAND_POLL);
        // Heads that cannot be offered may come along: in memory, under a command, or behind what is being inserted. They
        // must not crowd others out.
        let inserted = if self.ownership == Ownership::AckEach { owned.writer.events() } else { 0 };
        let limit = room + owned.due.busy.len() + owned.due.commands.len() + inserted;
        let (store, claim, mailbox) = (Arc::clone(&self.stores.rows), owned.claim.clone(), Arc::clone(&self.mailbox));
        owned.due.asking = Some(self.tasks.spawn(async move {
            let result = store.due(&claim, wall, limit).await;
            mailbox.push(Note::Due { slot, result });
        }));
    }

    /// How many more rows may be in memory.
    fn room_for_rows(&self) -> usize {
        self.settings.concurrency.saturating_mul(2).saturating_sub(self.stored_in_memory)
    }

    pub(super) fn has_room_for_rows(&self) -> bool {
        self.room_for_rows() > 0
    }

    pub(super) fn due_answered(&mut self, slot: u32, result: Result<Due, StoreError>) {
        let now = self.clock.now();
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        owned.due.asking = None;
        owned.due.failing = result.is_err();
        match result {
            Ok(due) => {
                owned.due.by(due.next_at);
                due.heads.into_iter().for_each(|row| self.offer(slot, row));
                due.commands.into_iter().for_each(|(id, command)| self.obey(slot, id, &command));
                if let Some(owned) = self.owned.get_mut(&slot) {
                    owned.due.answered();
                }
            }
            Err(StoreError::Fenced { held, .. }) => return self.give_up_partition(slot, Some(held)),
            Err(error) => {
                self.metrics.store_errors.increment(1);
                if self.health.failing(&owned.partition, &error) {
                    tracing::warn!(partition = %owned.partition, %error, "the store does not say what is due; it is asked again");
                }
                owned
                    .due
                    .by(Some(now.after(Duration::from_millis(200) + self.clock.jitter(Duration::from_millis(300)))));
            }
        }
        self.soon();
    }

    /// Puts a row into its lane, unless it is there, or has changed since the store looked.
    fn offer(&mut self, slot: u32, row: Row) {
        let now = self.clock.now();
        let room = self.has_room_for_rows();
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        // A row with a command on its way is asked for again when that has been carried out.
        if owned.due.busy.contains(&row.place) || owned.due.commands.values().any(|place| *place == row.place) {
            return;
        }
        if self.ownership == Ownership::AckEach && owned.parked.is_written(row.lane) {
            // What is being inserted may belong before it; when it is in, the store is asked again.
            return;
        }
        let changed = owned.due.touched.contains(&row.place)
            || self.ownership == Ownership::AckEach && owned.due.grown.contains(&row.lane);
        if !room || !owned.due.resumed || changed {
            return owned.due.by(Some(now));
        }
        let Row { place, lane, content, version, attempts, replay, .. } = row;
        owned.due.busy.insert(place);
        let (content, target) = self.aim(content);
        let item =
            Item { place, content, target, attempts, stored: Some(Stored { version, replay }), failures: Vec::new() };
        self.stored_in_memory += 1;
        if let Some(lane) = self.lanes.push(LaneKey { slot, lane }, item) {
            self.scheduler.ready(lane);
        }
    }

    /// Where a row is going; what could not be decoded is tried again, since formats may have been added.
    fn aim(&self, content: Content) -> (Content, Target) {
        let message = match content {
            Content::Event(event) => {
                let target = self.target(&event);
                return (Content::Event(event), target);
            }
            Content::Undecodable(message) => message,
        };
        match self.decode(&message) {
            Ok(Decoded::One(event)) => {
                let target = self.target(&event);
                (Content::Event(Arc::new(event)), target)
            }
            Ok(Decoded::Batch(_)) => {
                let problem = Text::from("a batch cannot be handled as one dead letter: publish its events again");
                (Content::Undecodable(message), Target::Undecodable(problem))
            }
            Err(problem) => (Content::Undecodable(message), Target::Undecodable(problem)),
        }
    }

    /// Carries out an operator's command in the lane of its row.
    fn obey(&mut self, slot: u32, id: CommandId, command: &Command) {
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        let (place, lane) = (command.row.place, command.row.lane);
        if owned.due.commands.insert(id, place).is_some() {
            return;
        }
        let running = owned.due.busy.contains(&place);
        let refused = running.then(|| Text::from("an attempt on it is running: look at it again when that has ended"));
        let action = (!running).then(|| command.action.clone());
        let op = Op::Operate { id, refused, now: self.clock.now() };
        self.write(slot, op, After::Operated { id, lane, place, action });
    }

    pub(super) fn operated(&mut self, slot: u32, id: CommandId, row: (LaneId, Place, Option<Action>), answer: Applied) {
        let (lane, place, action) = row;
        let now = self.clock.now();
        let Some(owned) = self.owned.get_mut(&slot) else { return };
        owned.due.commands.remove(&id);
        let Applied::Lane { holds, .. } = answer else { return };
        if owned.due.asking.is_some() {
            owned.due.touched.insert(place);
        }
        if owned.parked.contains(lane) {
            owned.parked.holds(lane, holds);
            let above = owned.ledger.floor().is_none_or(|floor| place.position > floor);
            if above && matches!(action, Some(Action::Skip | Action::Discard)) {
                owned.parked.close(lane, false, Some(place.position));
            }
            owned.parked.try_open(lane, true);
        }
        owned.due.by(Some(now));
        self.soon();
    }
}
