//! I10: running, buffered and attempts stay inside their limits; duplicates only after a disruption.

use std::collections::{BTreeMap, BTreeSet};

use super::checker::{Index, Invariant, RunInfo, Truth, Violation};
use super::history::{EventNo, Instance, Record, Run, What};
use crate::broker::Ownership;
use crate::topic::{Partition, Position};

/// Checks all limits.
pub(crate) fn check(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let mut found = running(records, truth);
    found.extend(held(records, truth, index));
    found.extend(attempts(records, truth, index));
    found.extend(duplicates(records, truth, index));
    found
}

fn running(records: &[Record], truth: &Truth) -> Vec<Violation> {
    let mut running: BTreeMap<Instance, BTreeSet<Run>> = BTreeMap::new();
    let mut found = Vec::new();
    for (n, record) in records.iter().enumerate() {
        let of = running.entry(record.instance).or_default();
        match &record.what {
            What::Started { run, .. } => {
                of.insert(*run);
                if of.len() > truth.concurrency {
                    let text =
                        format!("instance {} runs {}, its limit is {}", record.instance, of.len(), truth.concurrency);
                    found.push(Violation::new(Invariant::Bounds, text, [n]));
                }
            }
            What::Ended { run } => {
                of.remove(run);
            }
            _ => {}
        }
    }
    found
}

/// An instance asks for no more than its buffer holds, and is given no more than it asked for.
fn asked(records: &[Record], truth: &Truth) -> Vec<Violation> {
    let too_many = |(n, record): (usize, &Record)| {
        let What::Overfull { deliveries } = record.what else { return None };
        let text = format!("{deliveries} deliveries asked for or given, the buffer is {}", truth.buffer);
        Some(Violation::new(Invariant::Bounds, text, [n]))
    };
    records.iter().enumerate().filter_map(too_many).collect()
}

/// What an instance has been handed and has neither finished nor stored, beside what it asked for.
fn held(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let mut held: BTreeMap<Instance, BTreeSet<(Partition, Position)>> = BTreeMap::new();
    let mut found = asked(records, truth);
    if truth.ownership != Ownership::Floor {
        // Deliveries that are given back leave the buffer some time before the broker is told, or never, in a crash.
        return found;
    }
    let limit = truth.buffer + truth.concurrency;
    // A lane is written in order: what stands before a row that is done by now was finished, and is let go at once.
    let mut finished: BTreeMap<(Instance, &str), Position> = BTreeMap::new();
    // What the store knows to be settled is let go at once too.
    let mut remembered: BTreeMap<(Instance, &Partition), Position> = BTreeMap::new();
    let lane = |partition: &Partition, at: Position| {
        let event = index.at(partition, at)?;
        Some(truth.events.get(event as usize)?.lane.as_str())
    };
    for (n, record) in records.iter().enumerate() {
        let of = held.entry(record.instance).or_default();
        match &record.what {
            What::Delivered { partition, positions } => {
                let known = |p: &Position| {
                    let row = lane(partition, *p).and_then(|lane| finished.get(&(record.instance, lane)));
                    let settled = remembered.get(&(record.instance, partition));
                    row.max(settled).is_some_and(|settled| p <= settled)
                };
                of.extend(positions.iter().filter(|p| !known(p)).map(|p| (partition.clone(), *p)));
                if of.len() > limit {
                    let text = format!("instance {} holds {}, its limit is {limit}", record.instance, of.len());
                    found.push(Violation::new(Invariant::Bounds, text, [n]));
                }
            }
            What::Effect { run } => {
                let Some((partition, position)) = index.run(*run).and_then(|run| index.home(run.event)) else {
                    continue;
                };
                let row = !of.remove(&(partition.clone(), *position));
                if let Some(lane) = lane(partition, *position).filter(|_| row) {
                    let highest = finished.entry((record.instance, lane)).or_insert(*position);
                    *highest = (*highest).max(*position);
                }
            }
            What::Stored { partition, position, .. }
            | What::Known { partition, position }
            | What::Done { partition, position }
            | What::Again { partition, position } => {
                of.remove(&(partition.clone(), *position));
            }
            What::Remembered { partition, position } => {
                remembered.insert((record.instance, partition), *position);
            }
            What::Floor { partition, position } => of.retain(|(p, at)| p != partition || at > position),
            What::Assigned { partition, .. } | What::Lost { partition } | What::Released { partition } => {
                of.retain(|(p, _)| p != partition);
            }
            _ => {}
        }
    }
    found
}

/// Each attempt's number. For competing consumers the broker counts deliveries, those of crashed instances too.
fn attempts(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let mut found = Vec::new();
    if truth.ownership == Ownership::Competing {
        return failures(records, truth, index);
    }
    for (n, record) in records.iter().enumerate() {
        if let What::Started { event, attempt, .. } = &record.what
            && (*attempt > truth.attempts_max || *attempt == 0)
        {
            let text = format!("attempt {attempt} of {}, the policy allows {}", truth.name(*event), truth.attempts_max);
            found.push(Violation::new(Invariant::Bounds, text, [n]));
        }
    }
    found.extend(failures(records, truth, index));
    found
}

/// Failed attempts of an event are at most what the policy allows for each life of its partition's owners.
fn failures(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let mut failed: BTreeMap<(EventNo, Instance), Vec<usize>> = BTreeMap::new();
    for (n, record) in records.iter().enumerate() {
        if let What::Failed { run } = record.what
            && let Some(run) = index.run(run)
        {
            failed.entry((run.event, run.instance)).or_default().push(n);
        }
    }
    let disturbed = |instance: Instance| {
        let disturbs = |what: &What| match what {
            // An owner that comes again counts from the start.
            What::Frozen | What::Lost { .. } | What::Released { .. } => true,
            // A competing consumer is given again what it could not settle in time.
            What::Fault { point } => truth.ownership == Ownership::Competing && point.starts_with("settle"),
            _ => false,
        };
        records.iter().any(|r| r.instance == instance && disturbs(&r.what))
    };
    let replays = |event: EventNo| {
        let of = |r: &&Record| match &r.what {
            What::Replayed { partition, position } => index.at(partition, *position) == Some(event),
            _ => false,
        };
        records.iter().filter(of).count()
    };
    let allowed = |event: EventNo| (truth.attempts_max as usize).saturating_mul(1 + replays(event));
    let too_many =
        failed.into_iter().filter(|((event, instance), at)| at.len() > allowed(*event) && !disturbed(*instance));
    too_many
        .map(|((event, _), at)| {
            let text =
                format!("{} failed {} times, the policy allows {}", truth.name(event), at.len(), truth.attempts_max);
            Violation::new(Invariant::Bounds, text, at)
        })
        .collect()
}

fn duplicates(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let mut effects: BTreeMap<EventNo, (usize, &RunInfo)> = BTreeMap::new();
    let mut stored: BTreeMap<EventNo, (usize, Instance)> = BTreeMap::new();
    let mut found = Vec::new();
    for (n, record) in records.iter().enumerate() {
        let run = match &record.what {
            What::Effect { run } => index.run(*run),
            What::Stored { partition, position, .. } => {
                if let Some(event) = index.at(partition, *position) {
                    stored.entry(event).or_insert((n, record.instance));
                }
                None
            }
            _ => None,
        };
        let Some(run) = run else { continue };
        let Some((first, by)) = effects.insert(run.event, (n, run)) else { continue };
        let cut_off = |from: usize, instance: Instance| disrupted(&records[from..n], instance, &run.partition, index);
        let excused = match truth.ownership {
            // Competing instances may have been handed one event at the same time: what delays either of them counts.
            Ownership::Competing => {
                [by, run].iter().any(|who| cut_off(0, who.instance) || stops_late(&records[..n], who.instance, truth))
            }
            Ownership::Floor if unfinished_at_leave(&records[..n], by, truth, index) => true,
            // Who stored it may have been cut off before the broker knew, or had died with the write on the wire.
            _ => {
                cut_off(by.record, by.instance)
                    || stops_late(&records[..n], by.instance, truth)
                    || stored.get(&run.event).is_some_and(|(at, who)| {
                        let dead = |r: &Record| r.instance == *who && r.what == What::Crashed;
                        cut_off(*at, *who) || records[..*at].iter().any(dead)
                    })
            }
        };
        if !excused {
            let text = format!("{} took effect twice without a crash, timeout or disconnect", truth.name(run.event));
            found.push(Violation::new(Invariant::Bounds, text, [first, n]));
        }
    }
    found
}

/// True if the owner stops, or gives the partition up, and could not finish what stands before finished events: there is
/// no store to put an event into that failed, or the time was over. A floor cannot tell the next owner what is done above.
fn unfinished_at_leave(records: &[Record], run: &RunInfo, truth: &Truth, index: &Index) -> bool {
    hands_over(records, run) && (fails_at_leave(records, run, truth, index) || stops_late(records, run.instance, truth))
}

/// True if there is no store and an event before this one has failed last, or timed out.
fn fails_at_leave(records: &[Record], run: &RunInfo, truth: &Truth, index: &Index) -> bool {
    if truth.has_store {
        return false;
    }
    // It may be the next owner too, and finish it then.
    let gone = What::Released { partition: run.partition.clone() };
    let left = |r: &Record| r.instance == run.instance && r.what == gone;
    let end = records[run.record..].iter().position(left).map_or(records.len(), |n| run.record + n);
    let mut failed: BTreeSet<EventNo> = BTreeSet::new();
    for record in records[..end].iter().filter(|r| r.instance == run.instance) {
        match &record.what {
            What::Started { event, .. } => drop(failed.insert(*event)),
            What::Effect { run } => drop(index.run(*run).map(|run| failed.remove(&run.event))),
            _ => {}
        }
    }
    index
        .events_of(&run.partition)
        .take_while(|(_, event)| *event != run.event)
        .any(|(_, event)| failed.contains(&event))
}

/// True if a graceful stop took so long that it was cut short.
fn stops_late(records: &[Record], instance: Instance, truth: &Truth) -> bool {
    let mut own = records.iter().filter(|r| r.instance == instance);
    let asked = own.find(|r| r.what == What::Stopping).map(|r| r.at);
    let stopped = own.find(|r| matches!(r.what, What::Stopped { .. })).or(records.last()).map(|r| r.at);
    asked.zip(stopped).is_some_and(|(asked, stopped)| stopped.since(asked) >= truth.shutdown.mul_f64(0.8))
}

/// True if the owner stops, or gives the partition up.
fn hands_over(records: &[Record], run: &RunInfo) -> bool {
    records[run.record..].iter().any(|r| match &r.what {
        What::Released { partition } => r.instance == run.instance && *partition == run.partition,
        _ => false,
    }) || records.iter().any(|r| r.instance == run.instance && r.what == What::Stopping)
}

/// True if an event had its effect with one competing instance and was given up by another, and one of them was cut off
/// so that both had been given it.
pub(super) fn were_given_both(records: &[Record], effect: usize, truth: &Truth, index: &Index) -> bool {
    let What::Effect { run } = records[effect].what else { return false };
    let Some(run) = index.run(run).filter(|_| truth.ownership == Ownership::Competing) else { return false };
    let gave_up = records.iter().filter(|r| match &r.what {
        What::Stored { partition, position, .. } => index.at(partition, *position) == Some(run.event),
        _ => false,
    });
    let mut both = gave_up.map(|r| r.instance).chain([run.instance]);
    both.any(|instance| disrupted(records, instance, &run.partition, index) || stops_late(records, instance, truth))
}

/// True if something cut the instance off after this effect, so that not everybody may know of it.
pub(super) fn is_cut_off(records: &[Record], effect: usize, index: &Index) -> bool {
    let What::Effect { run } = records[effect].what else { return false };
    index.run(run).is_some_and(|run| disrupted(&records[effect..], run.instance, &run.partition, index))
}

/// True if something happened to an instance, and its work on a partition, that excuses a repeat.
fn disrupted(records: &[Record], instance: Instance, partition: &Partition, index: &Index) -> bool {
    let mut outcome: BTreeSet<Run> = BTreeSet::new();
    records.iter().any(|record| {
        let same = record.instance == instance;
        match &record.what {
            What::Crashed | What::Frozen | What::Stopped { error: Some(_) } => same,
            What::Lost { partition: lost } => same && lost == partition,
            What::Fault { point } => same && cuts_off(point),
            What::Effect { run } | What::Failed { run } => {
                outcome.insert(*run);
                false
            }
            // Dropped before it had an outcome: a timeout, or cancelled at the end of a stop.
            What::Ended { run } => {
                same && !outcome.contains(run) && index.run(*run).is_some_and(|run| run.partition == *partition)
            }
            _ => false,
        }
    })
}

/// Faults by which an instance cannot tell what it has done.
fn cuts_off(point: &str) -> bool {
    ["settle", "release", "leave", "apply.finish", "apply.floor"].iter().any(|call| point.starts_with(call))
}
