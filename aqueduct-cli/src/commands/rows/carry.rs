//! Carrying commands out: whoever runs the group does, and where nobody does this program stands in.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use aqueduct::sqlite::{Owner, SqliteBroker, StandIn};
use aqueduct::store::{Command, CommandId, CommandState, Op};
use aqueduct::{Clock, Partition, StoreError, Text};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use tokio::time::Instant;

use super::Existing;
use crate::database::AnyStore;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, print};
use crate::table::{count, one_line};

/// Commands that wait at the same time: far fewer than the store takes.
const WAITING_MAX: usize = 1_000;
/// Commands that are written, or carried out, in one transaction.
const CHUNK: usize = 200;
/// How often results are looked for.
const LOOK: Duration = Duration::from_millis(50);
/// After so long without any it is looked whether there still is an owner.
const OWNER_LOOK: Duration = Duration::from_secs(1);
/// Refusals that are told one by one.
const TOLD_MAX: usize = 20;

/// Commands on their way.
pub(super) struct Carry<'a> {
    /// The embedded one; on another nobody can be seen, nor stood in for.
    broker: Option<&'a SqliteBroker>,
    store: &'a AnyStore,
    wait: Duration,
    waiting: VecDeque<(CommandId, Text, Partition)>,
    /// The groups that this program stands in for, and the partitions that it has taken over.
    stand_ins: BTreeMap<Text, (StandIn, BTreeSet<Partition>)>,
    tried_at: Option<Instant>,
    stuck: bool,
    outcome: Outcome,
    bar: ProgressBar,
}

/// What became of commands.
#[derive(Default)]
pub(super) struct Outcome {
    done: u64,
    refused: u64,
    waiting: u64,
    /// Those that are told one by one: where, and why.
    refusals: Vec<(String, String)>,
    /// The groups for which this program stood in.
    stood_in: BTreeSet<Text>,
    /// Who had the group when nothing went on.
    stuck_on: BTreeSet<String>,
}

impl<'a> Carry<'a> {
    pub(super) fn new(opened: &'a Existing, total: u64, wait: Duration) -> Self {
        let form = "{bar:30} {pos}/{len}, {eta} left";
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        let style = ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar());
        Self {
            broker: opened.broker.as_ref(),
            store: &opened.store,
            wait,
            waiting: VecDeque::new(),
            stand_ins: BTreeMap::new(),
            tried_at: None,
            stuck: false,
            outcome: Outcome::default(),
            bar: bar.with_style(style),
        }
    }

    /// Leaves commands in their order, and waits until not too many wait.
    pub(super) async fn give(&mut self, mut commands: Vec<Command>) -> Result<(), Failure> {
        while !commands.is_empty() && !self.is_stuck() {
            let rest = commands.split_off(commands.len().min(CHUNK));
            let chunk = std::mem::replace(&mut commands, rest);
            let about: Vec<_> = chunk.iter().map(|c| (c.consumer.clone(), c.partition.clone(), c.row.place)).collect();
            let answers = self.store.command_all(chunk).await?;
            for ((consumer, partition, place), answer) in about.into_iter().zip(answers) {
                match answer {
                    Ok(id) => self.waiting.push_back((id, consumer, partition)),
                    Err(error) => self.refused(&format!("{partition}/{}", place.position.0), &error.to_string()),
                }
            }
            self.settle(WAITING_MAX).await?;
        }
        Ok(())
    }

    /// True if nothing has gone on for as long as it is waited.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// Waits for what is still on its way.
    pub(super) async fn finish(mut self) -> Result<Outcome, Failure> {
        self.settle(0).await?;
        self.bar.finish_and_clear();
        self.outcome.waiting = self.waiting.len() as u64;
        if self.outcome.waiting > 0 {
            self.outcome.stuck_on = self.owners().await?;
        }
        Ok(self.outcome)
    }

    /// Who has the groups that commands wait for.
    async fn owners(&self) -> Result<BTreeSet<String>, Failure> {
        let waits_for = |group: &Text| self.waiting.iter().any(|(_, of, _)| of == group);
        let Some(broker) = self.broker else {
            let groups = self.waiting.iter().map(|(_, group, _)| format!("whoever runs {group}"));
            return Ok(groups.collect());
        };
        let consumers = broker.status().await?.consumers;
        Ok(consumers.iter().filter(|c| waits_for(&c.consumer)).map(|c| owner(&c.owner)).collect())
    }

    /// Waits until at most so many commands wait, or nothing goes on.
    async fn settle(&mut self, waiting_max: usize) -> Result<(), Failure> {
        let mut moved_at = Instant::now();
        loop {
            self.stand_in().await?;
            if self.collect().await? {
                moved_at = Instant::now();
            }
            self.stuck = self.waiting.len() > waiting_max && moved_at.elapsed() >= self.wait;
            if self.waiting.len() <= waiting_max || self.stuck {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Owns what nobody owns, and carries out what waits there.
    async fn stand_in(&mut self) -> Result<(), Failure> {
        let Some(broker) = self.broker else { return Ok(()) };
        let groups: BTreeSet<Text> = self.waiting.iter().map(|(_, consumer, _)| consumer.clone()).collect();
        // Whoever runs the group is given its time: to look again and again could be in the way of one that starts.
        let looks = self.tried_at.is_none_or(|at| at.elapsed() >= OWNER_LOOK);
        for group in groups {
            if !self.stand_ins.contains_key(&group) && looks {
                self.tried_at = Some(Instant::now());
                let Some(stand_in) = broker.stand_in(group.clone()).await? else { continue };
                self.outcome.stood_in.insert(group.clone());
                self.stand_ins.insert(group.clone(), (stand_in, BTreeSet::new()));
            }
            let partitions: BTreeSet<Partition> =
                self.waiting.iter().filter(|(_, of, _)| *of == group).map(|(_, _, p)| p.clone()).collect();
            for partition in partitions {
                self.obey(&group, &partition).await?;
            }
        }
        Ok(())
    }

    /// Carries out what waits for the owner of a partition, if this program is that.
    async fn obey(&mut self, group: &Text, partition: &Partition) -> Result<(), StoreError> {
        let Some((stand_in, taken)) = self.stand_ins.get_mut(group) else { return Ok(()) };
        let (claim, floor) = stand_in.claim(partition);
        if taken.insert(partition.clone()) {
            self.store.store().take_over(&claim, floor).await?;
        }
        loop {
            let now = Clock::system().now();
            let due = self.store.store().due(&claim, now, CHUNK).await?;
            if due.commands.is_empty() {
                return Ok(());
            }
            let operate = |(id, _): &(CommandId, Command)| Op::Operate { id: *id, refused: None, now };
            self.store.store().apply(&claim, &due.commands.iter().map(operate).collect::<Vec<_>>()).await?;
        }
    }

    /// Takes in results. True if there were any.
    async fn collect(&mut self) -> Result<bool, StoreError> {
        const LOOKED_AT: usize = 64;
        let (before, mut still) = (self.count(), VecDeque::new());
        while let Some((id, consumer, partition)) = self.waiting.pop_front() {
            match self.store.store().command_result(id).await? {
                Some(CommandState::Waiting) => still.push_back((id, consumer, partition)),
                Some(CommandState::Refused { why, .. }) => self.refused(&partition.to_string(), why.as_str()),
                _ => self.outcome.done += 1,
            }
            if still.len() == LOOKED_AT {
                break;
            }
        }
        // What was looked at is looked at last, so that one owner that stands still hides no other.
        self.waiting.extend(still);
        self.bar.set_position(self.count());
        Ok(self.count() > before)
    }

    fn count(&self) -> u64 {
        self.outcome.done + self.outcome.refused
    }

    fn refused(&mut self, place: &str, why: &str) {
        self.outcome.refused += 1;
        if self.outcome.refusals.len() < TOLD_MAX {
            self.outcome.refusals.push((place.to_owned(), why.to_owned()));
        }
    }
}

impl Outcome {
    /// So many were not even commanded.
    pub(super) fn left_out(mut self, events: u64) -> Self {
        if self.waiting > 0 {
            self.waiting += events;
        }
        self
    }

    /// Says what was done. A failure unless all was.
    pub(super) fn print(self, verb: &str, keys: &str, output: Output) -> Result<(), Failure> {
        let Self { done, refused, waiting, refusals, stood_in, stuck_on } = self;
        let groups: Vec<&str> = stood_in.iter().map(Text::as_str).collect();
        if output == Output::Json {
            let refusals: Vec<_> = refusals.iter().map(|(place, why)| json!({ "place": place, "why": why })).collect();
            print(&format!(
                "{}\n",
                json!({ "action": verb, "done": done, "refused": refused, "waiting": waiting, "refusals": refusals,
                    "stood_in_for": groups })
            ))?;
        } else {
            print(&format!("{verb}: {} done, {refused} refused ({keys})\n", count(done, "event")))?;
            for (place, why) in &refusals {
                note(one_line(&format!("refused, {place}: {why}")));
            }
            if refused > refusals.len() as u64 {
                note(format_args!("and {} refusals more", refused - refusals.len() as u64));
            }
            if !groups.is_empty() && done > 0 {
                let later = if verb == "replay" { "; what is replayed runs when it is started" } else { "" };
                note(format_args!("nobody runs {}, so this program did it{later}", groups.join(", ")));
            }
        }
        if waiting > 0 {
            let by: Vec<_> = stuck_on.into_iter().collect();
            return Err(Failure::new(
                Exit::Failed,
                format!("{} still wait for {}", count(waiting, "event"), by.join(", ")),
            )
            .fix(
                "it has not answered: look at it with `aqueduct status`; what was commanded is done as soon as it does",
            ));
        }
        if refused > 0 {
            let failure = Failure::new(Exit::Failed, format!("{} refused", count(refused, "event")));
            return Err(failure.fix("they have changed since they were looked at, or are being handled: look again"));
        }
        Ok(())
    }
}

/// Who runs a group, in words.
pub(crate) fn owner(owner: &Owner) -> String {
    match owner {
        Owner::Nobody => "nobody".to_owned(),
        Owner::Process { pid, command } => one_line(&format!("{command} (pid {pid})")),
        Owner::Orphans { of, pids } => {
            let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
            format!("orphans of pid {of}: {}", pids.join(" "))
        }
        _ => "somebody unseen".to_owned(),
    }
}
