//! What happened in a simulated run, in the order in which it happened.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::{Boot, Clock};
use crate::store::RowState;
use crate::topic::{Epoch, Partition, Position};

/// The number of an event in the simulation, from 0 in the order in which they are published.
pub(crate) type EventNo = u32;

/// The number of one life of an instance: one that is started again gets the next number.
pub(crate) type Instance = u32;

/// The number of an attempt in the whole simulation.
pub(crate) type Run = u32;

/// The instance of records that belong to none: the publisher and the simulator itself.
pub(crate) const NOBODY: Instance = Instance::MAX;

/// One thing that happened.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Record {
    /// When.
    pub(crate) at: Boot,
    /// To whom.
    pub(crate) instance: Instance,
    /// What.
    pub(crate) what: What,
}

/// What can happen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// The broker has confirmed an event.
    Published { event: EventNo, partition: Partition, position: Position },
    /// An instance was started.
    Joined,
    /// It was asked to stop.
    Stopping,
    /// It has stopped by itself; the error if it did so with one.
    Stopped { error: Option<String> },
    /// It was killed.
    Crashed,
    /// It is not polled from here on.
    Frozen,
    /// It is polled again.
    Thawed,
    /// It was told that it owns a partition.
    Assigned { partition: Partition, epoch: Epoch, floor: Option<Position> },
    /// It was told to give a partition up.
    Revoking { partition: Partition },
    /// It was told that a partition is gone.
    Lost { partition: Partition },
    /// It gives a partition up.
    Released { partition: Partition },
    /// It was handed events.
    Delivered { partition: Partition, positions: Vec<Position> },
    /// It asked for more events than its buffer holds, or was given more than it asked for.
    Overfull { deliveries: usize },
    /// A handler was polled for the first time.
    Started { run: Run, event: EventNo, partition: Partition, epoch: Epoch, attempt: u32, lease: Boot },
    /// A handler was polled again.
    Polled { run: Run, lease: Boot },
    /// The handler finished with success.
    Effect { run: Run },
    /// The handler finished with an error, or panicked.
    Failed { run: Run },
    /// The attempt's future was dropped.
    Ended { run: Run },
    /// The store holds the event from here on.
    Stored { partition: Partition, position: Position, state: RowState },
    /// An operator has the event tried again, whatever became of it.
    Replayed { partition: Partition, position: Position },
    /// The store was asked to hold the event, and says that it was finished before.
    Known { partition: Partition, position: Position },
    /// The store says that everything up to here is settled for ever.
    Remembered { partition: Partition, position: Position },
    /// The store has deleted the event's row.
    Finished { partition: Partition, position: Position },
    /// The instance tells the broker that everything up to here is settled.
    Floor { partition: Partition, position: Position },
    /// The instance tells the broker that this one is settled.
    Done { partition: Partition, position: Position },
    /// The instance gives this one back.
    Again { partition: Partition, position: Position },
    /// A call through a port was made to fail, or a delivery was repeated.
    Fault { point: String },
    /// No fault is injected from here on.
    Calm,
    /// Nothing is left to do.
    Settled,
    /// At the end the store holds this.
    Left { partition: Partition, position: Position, state: RowState },
}

/// The shared record of a run.
#[derive(Clone)]
pub(crate) struct History(Arc<Inner>);

struct Inner {
    clock: Clock,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    records: Vec<Record>,
    runs: Run,
}

impl History {
    pub(crate) fn new(clock: Clock) -> Self {
        Self(Arc::new(Inner { clock, log: Mutex::default() }))
    }

    /// Adds a record with the present time.
    pub(crate) fn note(&self, instance: Instance, what: What) {
        let at = self.0.clock.boot();
        self.0.log.lock().records.push(Record { at, instance, what });
    }

    /// The number of the next attempt.
    pub(crate) fn next_run(&self) -> Run {
        let mut log = self.0.log.lock();
        log.runs += 1;
        log.runs - 1
    }

    /// The clock that times are measured on.
    pub(crate) fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// All records; what is noted afterwards is lost with the history.
    pub(crate) fn take(&self) -> Vec<Record> {
        std::mem::take(&mut self.0.log.lock().records)
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = Duration::from_nanos(self.at.0);
        write!(f, "{:>9.3}s ", at.as_secs_f64())?;
        if self.instance == NOBODY {
            write!(f, " -  ")?;
        } else {
            write!(f, "#{:<3}", self.instance)?;
        }
        match &self.what {
            What::Published { event, partition, position } => {
                write!(f, "published event {event} at {partition}:{}", position.0)
            }
            What::Started { run, event, partition, epoch, attempt, lease } => {
                write!(f, "run {run} starts event {event} of {partition} epoch {} attempt {attempt}", epoch.0)?;
                write_lease(f, *lease)
            }
            What::Polled { run, lease } => {
                write!(f, "run {run} polled")?;
                write_lease(f, *lease)
            }
            What::Stored { partition, position, state } => write!(f, "stored {partition}:{} {state:?}", position.0),
            What::Replayed { partition, position } => write!(f, "replayed {partition}:{}", position.0),
            What::Known { partition, position } => write!(f, "store knows {partition}:{}", position.0),
            What::Finished { partition, position } => write!(f, "row deleted {partition}:{}", position.0),
            What::Floor { partition, position } => write!(f, "settles all up to {partition}:{}", position.0),
            What::Done { partition, position } => write!(f, "settles {partition}:{}", position.0),
            What::Again { partition, position } => write!(f, "gives back {partition}:{}", position.0),
            What::Left { partition, position, state } => write!(f, "left {partition}:{} {state:?}", position.0),
            What::Fault { point } => write!(f, "fault {point}"),
            What::Released { partition } => write!(f, "gives up {partition}"),
            What::Lost { partition } => write!(f, "loses {partition}"),
            What::Revoking { partition } => write!(f, "is to give up {partition}"),
            What::Assigned { partition, epoch, floor } => {
                write!(f, "owns {partition} epoch {} above {:?}", epoch.0, floor.map(|p| p.0))
            }
            What::Delivered { partition, positions } => {
                let positions: Vec<u64> = positions.iter().map(|p| p.0).collect();
                write!(f, "receives {partition}:{positions:?}")
            }
            other => write!(f, "{other:?}"),
        }
    }
}

fn write_lease(f: &mut fmt::Formatter<'_>, lease: Boot) -> fmt::Result {
    match lease.0 {
        u64::MAX => Ok(()),
        ns => write!(f, " lease to {:.3}s", Duration::from_nanos(ns).as_secs_f64()),
    }
}
