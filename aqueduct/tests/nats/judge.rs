//! Judges what the instances of a consumer have written down: nothing lost (I1), keys in order (I4), one at a time (I5).

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;

use crate::history::History;

/// Since when a process stood still, by the clock that all processes share.
#[derive(Clone, Debug)]
pub(crate) struct Still {
    pub(crate) process: String,
    pub(crate) from: u64,
}

/// A handler's run that came to its effect.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) process: String,
    pub(crate) key: u64,
    pub(crate) number: u64,
    epoch: u64,
    start: u64,
    /// When the poll began that had the effect.
    polled: u64,
    pub(crate) effect: u64,
}

/// What a fleet has done.
#[derive(Default)]
pub(crate) struct Story {
    /// In the order of their effects.
    pub(crate) runs: Vec<Run>,
    /// Every start: when, by whom, of which key.
    starts: BTreeMap<u64, Vec<(u64, String)>>,
}

fn number(line: &Value, name: &str) -> u64 {
    line[name].as_u64().unwrap()
}

fn key_and_number(id: &str) -> (u64, u64) {
    let (key, number) = id.split_once('-').unwrap();
    (key.parse().unwrap(), number.parse().unwrap())
}

impl Story {
    pub(crate) fn read<'a>(folder: &Path, processes: impl IntoIterator<Item = &'a String>) -> Self {
        let mut story = Self::default();
        for process in processes {
            let mut started = BTreeMap::new();
            for line in History::read(&folder.join(format!("{process}.jsonl"))) {
                if let Some(id) = line["start"].as_str() {
                    started.insert(id.to_owned(), number(&line, "ns"));
                    let of_key = story.starts.entry(key_and_number(id).0).or_default();
                    of_key.push((number(&line, "ns"), process.clone()));
                } else if let Some(id) = line["effect"].as_str() {
                    let (process, (key, of_key)) = (process.clone(), key_and_number(id));
                    let (start, epoch) = (started[id], number(&line, "epoch"));
                    let (polled, effect) = (number(&line, "polled"), number(&line, "ns"));
                    story.runs.push(Run { process, key, number: of_key, epoch, start, polled, effect });
                }
            }
        }
        story.runs.sort_by_key(|run| run.effect);
        story
    }

    /// How many of a key's events have not had their effect.
    pub(crate) fn missing(&self, keys: u64, each: u64) -> u64 {
        let there: BTreeSet<(u64, u64)> = self.runs.iter().map(|run| (run.key, run.number)).collect();
        keys * each - there.len() as u64
    }

    pub(crate) fn repeats(&self) -> usize {
        let there: BTreeSet<(u64, u64)> = self.runs.iter().map(|run| (run.key, run.number)).collect();
        self.runs.len() - there.len()
    }

    /// Everything that breaks a promise; a process that was stopped may finish the one poll that it was inside. Where events are
    /// settled one by one, a server that dies may forget what was settled of one and not of the next: then single ones repeat, and
    /// order is that of the first effects.
    pub(crate) fn faults(&self, stills: &[Still], (keys, each): (u64, u64), one_by_one: bool) -> Vec<String> {
        let is_inside = |run: &Run| {
            let mut stills = stills.iter().filter(|still| still.process == run.process);
            stills.any(|still| run.polled <= still.from && still.from <= run.effect)
        };
        let mut faults = Vec::new();
        let missing = self.missing(keys, each);
        if missing > 0 {
            faults.push(format!("{missing} events had no effect"));
        }
        let mut of_keys: BTreeMap<u64, Vec<&Run>> = BTreeMap::new();
        let mut seen = BTreeSet::new();
        let mut is_again = |run: &Run| !seen.insert((run.key, run.number)) && one_by_one;
        for run in self.runs.iter().filter(|run| !is_inside(run) && !is_again(run)) {
            of_keys.entry(run.key).or_default().push(run);
        }
        for (key, runs) in of_keys {
            faults.extend(runs.iter().take(1).filter(|run| run.number > 0).map(|run| format!("begins late: {run:?}")));
            faults.extend(runs.windows(2).filter_map(|two| order(two[0], two[1])));
            faults.extend(runs.last().filter(|run| run.number + 1 < each).map(|run| format!("ends early: {run:?}")));
            for run in runs {
                let starts = self.starts[&key].iter().filter(|(at, _)| *at > run.start && *at < run.effect);
                faults.extend(
                    starts.map(|(at, process)| format!("{process} starts the same key at {at} during {run:?}")),
                );
            }
        }
        faults
    }

    /// The longest time without an effect in any partition that has some, between two points of time, in ms.
    pub(crate) fn longest_standstill(&self, (from, to): (u64, u64), partition: impl Fn(u64) -> u32) -> u64 {
        let mut last: BTreeMap<u32, u64> = self.runs.iter().map(|run| (partition(run.key), from)).collect();
        let mut longest = 0;
        for run in self.runs.iter().filter(|run| (from..to).contains(&run.effect)) {
            let last = last.insert(partition(run.key), run.effect).unwrap_or(from);
            longest = longest.max(run.effect - last);
        }
        last.values().map(|last| to - last).fold(longest, u64::max) / 1_000_000
    }

    /// From a process's last effect in each partition to the next one there by another, the longest, in ms.
    pub(crate) fn longest_pause(&self, process: &str, partition: impl Fn(u64) -> u32) -> u64 {
        let mut last: BTreeMap<u32, u64> = BTreeMap::new();
        let mut pauses: BTreeMap<u32, u64> = BTreeMap::new();
        for run in &self.runs {
            let at = partition(run.key);
            if run.process == process {
                last.insert(at, run.effect);
                pauses.remove(&at);
            } else if let Some(last) = last.get(&at) {
                pauses.entry(at).or_insert(run.effect - last);
            }
        }
        pauses.values().max().map_or(0, |ns| ns / 1_000_000)
    }
}

/// What is wrong with one effect of a key after another.
fn order(before: &Run, after: &Run) -> Option<String> {
    if after.number > before.number + 1 {
        return Some(format!("skips ahead: {before:?} {after:?}"));
    }
    (after.epoch < before.epoch).then(|| format!("an owner from before: {before:?} {after:?}"))
}
