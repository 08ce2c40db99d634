//! The way back into the loop: what tasks have to tell it.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::attempt::Ending;
use super::lanes::LaneRef;
use super::runs::RunId;
use super::stores::{NotSettled, Taken};
use crate::error::StoreError;
use crate::store::{Applied, Due};

/// What a task tells the loop.
#[derive(Debug)]
pub(crate) enum Note {
    /// An attempt has ended, and its future has been dropped.
    Ended { run: RunId, ending: Ending },
    /// An attempt was still pending after its first poll, and has a task of its own now.
    Spawned { run: RunId, task: AbortOnDrop },
    /// A partition's fence is raised and its lanes are known.
    TakenOver { slot: u32, result: Result<Taken, StoreError> },
    /// The store has answered the writes in flight.
    Applied { slot: u32, result: Result<Vec<Applied>, StoreError> },
    /// The store has said what is due.
    Due { slot: u32, result: Result<Due, StoreError> },
    /// The broker has answered the settles in flight.
    Settled { slot: u32, result: Result<(), NotSettled> },
    /// The store has taken the dead letter of a competing consumer.
    Buried { slot: u32, lane: LaneRef },
    /// The broker has been told that a partition is given up.
    Released { slot: u32 },
}

/// Notes for the loop, in the order in which they were written.
#[derive(Default)]
pub(crate) struct Mailbox {
    notes: Mutex<Vec<Note>>,
    /// The loop is about to wait, or waits.
    asleep: AtomicBool,
    bell: Notify,
}

impl Mailbox {
    /// Leaves a note. Answers true if that had to wake the loop.
    pub(crate) fn push(&self, note: Note) -> bool {
        self.notes.lock().push(note);
        let rang = self.asleep.swap(false, Ordering::AcqRel);
        if rang {
            self.bell.notify_one();
        }
        rang
    }

    /// Takes all notes; `into` must be empty, and its memory is used again.
    pub(crate) fn take(&self, into: &mut Vec<Note>) {
        std::mem::swap(&mut *self.notes.lock(), into);
    }

    /// Resolves at once if there are notes, else when the next one is written.
    pub(crate) async fn wait(&self) {
        self.asleep.store(true, Ordering::Release);
        if self.notes.lock().is_empty() {
            self.bell.notified().await;
        }
        self.asleep.store(false, Ordering::Release);
    }
}

/// Ends a task when it is dropped.
#[derive(Debug)]
pub(crate) struct AbortOnDrop(pub(crate) AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
