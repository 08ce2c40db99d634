//! `replay`, `skip` and `discard`: counted first, then asked about, then commanded.

use std::collections::{BTreeMap, BTreeSet};

use aqueduct::Text;
use aqueduct::store::{Action, Command, Listed};
use clap::Args;
use serde_json::json;

use super::carry::{Carry, Outcome};
use super::filter::{Filter, Pages, nothing};
use super::{Existing, Kind, is_dead};
use crate::config::Span;
use crate::confirm::{Account, confirm};
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, print};
use crate::table::count;

/// So many keys are told from each other; more are just many.
const KEYS_MAX: usize = 100_000;

#[derive(Args)]
pub(crate) struct Act {
    /// Their ids, or their places as `list` shows them.
    #[arg(value_name = "EVENT")]
    events: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All of them.
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    by: By,
}

/// On whose account.
#[derive(Args)]
#[command(next_help_heading = "How")]
pub(super) struct By {
    /// Says what would be done, and does nothing.
    #[arg(long)]
    pub(super) dry_run: bool,
    #[command(flatten)]
    pub(super) account: Account,
    /// Does not ask.
    #[arg(short, long)]
    pub(super) yes: bool,
    /// How long is waited for whoever runs the group, while it does nothing.
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pub(super) wait: Span,
}

/// What is done to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Replay,
    Skip,
    Discard,
}

impl Verb {
    fn action(self) -> Action {
        match self {
            Self::Replay => Action::Replay,
            Self::Skip => Action::Skip,
            Self::Discard => Action::Discard,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Replay => "replay",
            Self::Skip => "skip",
            Self::Discard => "discard",
        }
    }

    fn past(self) -> &'static str {
        match self {
            Self::Replay => "replayed",
            Self::Skip => "skipped",
            Self::Discard => "discarded",
        }
    }

    /// Only a dead letter that its key waits behind can be skipped; others need not be.
    fn applies(self, listed: &Listed) -> bool {
        self != Self::Skip || is_dead(listed) && listed.row.holds()
    }
}

/// What was counted.
#[derive(Default)]
struct Counted {
    events: u64,
    lanes: BTreeSet<(Text, u32, u64)>,
    /// Those that fit, and that this cannot be done to.
    passed_over: u64,
    /// Of each group.
    groups: BTreeMap<Text, u64>,
}

impl Counted {
    fn add(&mut self, listed: &Listed) {
        self.events += 1;
        *self.groups.entry(listed.consumer.clone()).or_default() += 1;
        if self.lanes.len() < KEYS_MAX {
            self.lanes.insert((listed.consumer.clone(), listed.partition.index, listed.row.lane.0));
        }
    }

    fn keys(&self) -> String {
        let more = if self.lanes.len() == KEYS_MAX { " or more" } else { "" };
        format!("{}{more}", count(self.lanes.len() as u64, "key"))
    }

    fn text(&self) -> String {
        let groups: Vec<&str> = self.groups.keys().map(Text::as_str).collect();
        let of = if groups.len() == 1 { "group" } else { "groups" };
        format!("{} of {}, {of} {}", count(self.events, "event"), self.keys(), groups.join(", "))
    }

    /// Says what would be done.
    fn dry_run(&self, verb: Verb, output: Output) -> Result<(), Failure> {
        let groups: BTreeMap<&str, u64> = self.groups.iter().map(|(group, n)| (group.as_str(), *n)).collect();
        let text = match output {
            Output::Json => {
                let keys = self.lanes.len();
                let what = verb.name();
                format!("{}\n", json!({ "would": what, "events": self.events, "keys": keys, "groups": groups }))
            }
            Output::Text if self.events == 0 => format!("would {} nothing\n", verb.name()),
            Output::Text => format!("would {} {}\n", verb.name(), self.text()),
        };
        print(&text)
    }
}

impl Act {
    pub(super) async fn run(self, opened: &Existing, kind: Kind, verb: Verb, output: Output) -> Result<(), Failure> {
        if self.events.is_empty() && !self.filter.restricts() && !self.all {
            return Err(Failure::new(Exit::Usage, format!("which ones are to be {} is not said", verb.past()))
                .fix("name them by id or place, narrow them down with --group, --key and so on, or say --all"));
        }
        let counted = self.count(opened, kind, verb).await?;
        if self.by.dry_run {
            return counted.dry_run(verb, output);
        }
        if counted.events == 0 {
            return self.none(kind, verb, &counted, output);
        }
        let asks = counted.events > 1 || verb == Verb::Discard;
        if asks && !confirm(&format!("{} {}", verb.name(), counted.text()), self.by.yes)? {
            note("nothing was done");
            return Ok(());
        }
        let outcome = self.act(opened, kind, verb, &counted).await?;
        outcome.print(verb.name(), &counted.keys(), output)
    }

    async fn count(&self, opened: &Existing, kind: Kind, verb: Verb) -> Result<Counted, Failure> {
        let mut pages = Pages::new(&opened.store, &self.filter, &self.events, kind).await?;
        let mut counted = Counted::default();
        while let Some(page) = pages.next().await? {
            for listed in &page {
                if verb.applies(listed) {
                    counted.add(listed);
                } else {
                    counted.passed_over += 1;
                }
            }
        }
        Ok(counted)
    }

    /// Nothing fits: a failure if it was named.
    fn none(&self, kind: Kind, verb: Verb, counted: &Counted, output: Output) -> Result<(), Failure> {
        if counted.passed_over > 0 {
            note(
                "only a dead letter that blocks can be skipped, and none of these does: their keys go on without them",
            );
        } else if !self.events.is_empty() {
            return Err(nothing(kind, &self.events.join(" ")));
        }
        Outcome::default().print(verb.name(), "0 keys", output)
    }

    /// Commands all that were counted, in the order of their places, and no more than those.
    async fn act(&self, opened: &Existing, kind: Kind, verb: Verb, counted: &Counted) -> Result<Outcome, Failure> {
        let (who, why) = (Text::from(self.by.account.who()), Text::from(self.by.account.why()));
        let mut pages = Pages::new(&opened.store, &self.filter, &self.events, kind).await?;
        let mut carry = Carry::new(opened, counted.events, self.by.wait.0);
        let mut left = usize::try_from(counted.events).unwrap_or(usize::MAX);
        while let Some(page) = pages.next().await? {
            let wanted: Vec<&Listed> = page.iter().filter(|listed| verb.applies(listed)).take(left).collect();
            left -= wanted.len();
            let command = |listed: &&Listed| Command::new(listed, verb.action(), who.clone(), why.clone());
            carry.give(wanted.iter().map(command).collect()).await?;
            if left == 0 || carry.is_stuck() {
                break;
            }
        }
        Ok(carry.finish().await?.left_out(left as u64))
    }
}
