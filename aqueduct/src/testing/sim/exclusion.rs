//! I5: no attempt is polled after its owner's lease, and two runs of one key never overlap.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::checker::{Index, Invariant, Truth, Violation};
use super::history::{Record, Run, What};
use crate::clock::Boot;

/// Checks every poll against the lease, and against the latest run of the same key.
pub(crate) fn check(records: &[Record], truth: &Truth, index: &Index) -> Vec<Violation> {
    let mut latest: BTreeMap<&str, Run> = BTreeMap::new();
    let mut ended: BTreeSet<Run> = BTreeSet::new();
    let mut found = Vec::new();
    for (n, record) in records.iter().enumerate() {
        let (run, lease) = match &record.what {
            What::Ended { run } => {
                ended.insert(*run);
                continue;
            }
            What::Started { run, lease, .. } | What::Polled { run, lease } => (*run, *lease),
            _ => continue,
        };
        let Some(info) = index.run(run) else { continue };
        if let Some(text) = overdue(record.at, lease) {
            let text = format!("run {run} of {} was polled {text}", truth.name(info.event));
            found.push(Violation::new(Invariant::Exclusion, text, [info.record, n]));
        }
        let Some(told) = truth.events.get(info.event as usize) else { continue };
        let started = matches!(record.what, What::Started { .. });
        let other = latest.get(told.lane.as_str()).copied().filter(|other| *other != run);
        if let Some(other) = other.and_then(|other| index.run(other).map(|info| (other, info))) {
            // A run elsewhere that has not been dropped may be frozen: it counts when it is polled again.
            let overlaps =
                if started { other.1.instance == record.instance && !ended.contains(&other.0) } else { true };
            if overlaps {
                let text = format!(
                    "run {run} of {} and run {} of {} overlap",
                    truth.name(info.event),
                    other.0,
                    truth.name(other.1.event)
                );
                found.push(Violation::new(Invariant::Exclusion, text, [other.1.record, n]));
            }
        }
        if started {
            latest.insert(&told.lane, run);
        }
    }
    found
}

fn overdue(at: Boot, lease: Boot) -> Option<String> {
    let late = Duration::from_nanos(at.0.checked_sub(lease.0)?);
    Some(format!("{late:?} after the lease of its owner"))
}
