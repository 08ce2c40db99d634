//! The attempts that run now.

use tokio::time::Instant;

use super::lanes::{LaneKey, LaneRef};
use super::mailbox::AbortOnDrop;
use crate::topic::Partition;

/// Names a run; the name of one that has ended finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunId {
    index: u32,
    generation: u32,
}

/// An attempt that runs.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) key: LaneKey,
    pub(crate) lane: LaneRef,
    pub(crate) began: Instant,
    /// Its task, once it has one of its own.
    pub(crate) task: Option<AbortOnDrop>,
    /// Its partition is gone; nobody waits for its ending but the next owner of its key in this process.
    pub(crate) orphan: Option<Partition>,
    pub(crate) stuck: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Runs {
    slots: Vec<(u32, Option<Run>)>,
    free: Vec<u32>,
    orphans: usize,
}

impl Runs {
    pub(crate) fn begin(&mut self, key: LaneKey, lane: LaneRef, began: Instant) -> RunId {
        let run = Run { key, lane, began, task: None, orphan: None, stuck: false };
        if let Some(index) = self.free.pop() {
            let slot = &mut self.slots[index as usize];
            slot.1 = Some(run);
            return RunId { index, generation: slot.0 };
        }
        self.slots.push((0, Some(run)));
        RunId { index: u32::try_from(self.slots.len() - 1).unwrap_or(u32::MAX), generation: 0 }
    }

    pub(crate) fn get_mut(&mut self, id: RunId) -> Option<&mut Run> {
        self.slots.get_mut(id.index as usize).filter(|s| s.0 == id.generation)?.1.as_mut()
    }

    pub(crate) fn end(&mut self, id: RunId) -> Option<Run> {
        let slot = self.slots.get_mut(id.index as usize).filter(|s| s.0 == id.generation)?;
        let run = slot.1.take()?;
        slot.0 = slot.0.wrapping_add(1);
        self.free.push(id.index);
        self.orphans -= usize::from(run.orphan.is_some());
        Some(run)
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Run> {
        self.slots.iter_mut().filter_map(|s| s.1.as_mut())
    }

    /// How many run for a partition that is still owned.
    pub(crate) fn of_slot(&self, slot: u32) -> usize {
        self.slots.iter().filter_map(|s| s.1.as_ref()).filter(|r| r.key.slot == slot && r.orphan.is_none()).count()
    }

    /// Leaves the runs of a partition that is gone to themselves.
    pub(crate) fn orphan(&mut self, slot: u32, partition: &Partition) {
        for run in self.slots.iter_mut().filter_map(|s| s.1.as_mut()) {
            if run.key.slot == slot && run.orphan.is_none() {
                run.orphan = Some(partition.clone());
                run.task = None;
                self.orphans += 1;
            }
        }
    }

    /// True if a run of this lane goes on from an earlier ownership of its partition.
    pub(crate) fn has_orphan(&self, partition: &Partition, key: LaneKey) -> bool {
        let same = |r: &Run| r.key.lane == key.lane && r.orphan.as_ref() == Some(partition);
        self.orphans > 0 && self.slots.iter().filter_map(|s| s.1.as_ref()).any(same)
    }
}
