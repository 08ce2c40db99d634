//! From what is declared and what is there to the steps between them: pure, but for the looking.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::Topology;
use super::compare::{Change, change, changes, sentence, target};
use super::look::{Look, Streams, look, streams};
use super::wanted::{Fields, Id, Purpose, Wanted};
use super::{refuse, warn};
use crate::broker::nats::NatsBroker;
use crate::error::BrokerError;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Action {
    /// Makes what is missing.
    Create,
    /// Changes what is otherwise than declared, and nothing else.
    Update,
}

/// One thing to be done.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Step {
    /// What is done.
    pub action: Action,
    /// To what, such as `stream orders`.
    pub object: String,
    /// The settings that it gets.
    pub changes: Vec<Change>,
    pub(super) id: Id,
    /// What was there when the plan was made.
    pub(super) seen: Option<Fields>,
    /// What there is to be.
    pub(super) config: Fields,
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Weight {
    /// The server would not do it, or it would not work: the plan cannot be applied.
    Refused,
    /// It could not be looked at: a permission is missing.
    Unseen,
    /// It works, and a promise holds less far than one may think.
    Warning,
}

/// Something to know about a plan.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// What it means.
    pub weight: Weight,
    /// What it is about, such as `stream orders`.
    pub object: String,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub fix: String,
}

impl Finding {
    pub(super) fn new(weight: Weight, id: &Id, text: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { weight, object: id.to_string(), text: text.into(), fix: fix.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.object, self.text)?;
        if self.fix.is_empty() { Ok(()) } else { write!(f, "; {}", self.fix) }
    }
}

/// What has to be done so that all is as declared, and what speaks against it.
///
/// Printed, it is a list for eyes.
#[derive(Clone, Debug)]
#[must_use = "a plan changes nothing until `apply` is awaited"]
pub struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) findings: Vec<Finding>,
    pub(super) wanted: Vec<Wanted>,
}

impl Topology {
    /// Looks at what is there, and says what has to be done.
    ///
    /// Streams are listed only where something is missing or subjects change, to find overlaps before the server refuses them. From
    /// then on the broker knows how many partitions the topics have, as after [`declare`](NatsBroker::declare).
    pub async fn plan(&self, broker: &NatsBroker) -> Result<Plan, BrokerError> {
        let wanted = self.wanted(broker.0.options.partitions)?;
        broker.0.ready().await?;
        plan(broker, wanted).await
    }
}

pub(super) async fn plan(broker: &NatsBroker, wanted: Vec<Wanted>) -> Result<Plan, BrokerError> {
    let mut looks = Vec::new();
    for wanted in &wanted {
        looks.push(look(broker, &wanted.id).await?);
    }
    let moves = |(wanted, look): (&Wanted, &Look)| match (&wanted.id, look) {
        (Id::Stream(_), Look::There(there)) => {
            let fields = ["subjects", "mirror", "sources"];
            changes(&wanted.enforced(), there).iter().any(|change| fields.contains(&change.field.as_str()))
        }
        (_, look) => matches!(look, Look::Missing),
    };
    let streams = if wanted.iter().zip(&looks).any(moves) { Some(streams(broker).await?) } else { None };
    let plan = compare(wanted, looks, streams.as_ref(), broker.0.options.publish_timeout);
    plan.remember(broker);
    Ok(plan)
}

/// What has to be done, from what was found.
pub(super) fn compare(
    wanted: Vec<Wanted>,
    looks: Vec<Look>,
    streams: Option<&Streams>,
    publish_timeout: Duration,
) -> Plan {
    let (mut steps, mut findings, mut finals) = (Vec::new(), Vec::new(), Vec::new());
    for (wanted, look) in wanted.iter().zip(looks) {
        let config = match look {
            Look::Unseen(why) => {
                findings.push(Finding::new(Weight::Unseen, &wanted.id, format!("it could not be compared: {why}"), ""));
                None
            }
            Look::Missing => Some(create(wanted, &mut steps)),
            Look::There(there) => Some(update(wanted, there, &mut steps, &mut findings)),
        };
        findings.extend(config.iter().flat_map(|config| warn::warnings(wanted, config, publish_timeout)));
        finals.push(config);
    }
    findings.extend(refuse::refusals(&wanted, &finals, &steps, streams));
    // Subjects are given up before others take them.
    let gives_up = |step: &Step| {
        let subjects = |config: &Fields| config.get("subjects").map(super::wanted::texts).unwrap_or_default();
        let after = subjects(&step.config);
        step.seen.as_ref().is_some_and(|seen| subjects(seen).iter().any(|subject| !after.contains(subject)))
    };
    steps.sort_by_key(|step| !gives_up(step));
    findings.sort_by_key(|finding| finding.weight);
    Plan { steps, findings, wanted }
}

fn create(wanted: &Wanted, steps: &mut Vec<Step>) -> Fields {
    let config = wanted.config();
    let settings = config.iter().filter(|(field, _)| !matches!(field.as_str(), "name" | "durable_name"));
    let changes = settings.map(|(field, value)| change(field, None, Some(value))).collect();
    let (object, id) = (wanted.id.to_string(), wanted.id.clone());
    steps.push(Step { action: Action::Create, object, changes, id, seen: None, config: config.clone() });
    config
}

fn update(wanted: &Wanted, there: Fields, steps: &mut Vec<Step>, findings: &mut Vec<Finding>) -> Fields {
    for change in changes(&wanted.freed(), &there) {
        let text = format!("{}, which is allowed", sentence(&change));
        findings.push(Finding::new(Weight::Warning, &wanted.id, text, ""));
    }
    let enforced = wanted.enforced();
    let changes = changes(&enforced, &there);
    if changes.is_empty() {
        return there;
    }
    let config = target(&enforced, &there);
    findings.extend(refuse::immutable(&enforced, &there, &config, &changes));
    let (object, id) = (wanted.id.to_string(), wanted.id.clone());
    steps.push(Step { action: Action::Update, object, changes, id, seen: Some(there), config: config.clone() });
    config
}

impl Plan {
    /// What has to be done, in this order; nothing if all is as declared.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// What speaks against it, could not be looked at, or is to be known; the gravest first.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Fails where something is missing or otherwise than declared. What could not be looked at does not fail, and nor do warnings:
    /// they are in [`findings`](Self::findings).
    pub fn agreed(&self) -> Result<(), BrokerError> {
        let refused = self.refused();
        let drift = self.steps.iter().map(|step| match step.action {
            Action::Create => format!("{} is missing", step.object),
            Action::Update => {
                format!("of the {} {}", step.object, step.changes.iter().map(sentence).collect::<Vec<_>>().join(", "))
            }
        });
        let all: Vec<String> = refused.into_iter().chain(drift).collect();
        if all.is_empty() {
            return Ok(());
        }
        let text = format!(
            "the topology is not as declared: {}; apply it, declare what is there, or allow the drift",
            all.join("; ")
        );
        Err(BrokerError::Refused(text))
    }

    /// Who has looked knows how many partitions topics have, as who has declared them.
    fn remember(&self, broker: &NatsBroker) {
        for wanted in &self.wanted {
            let refused =
                self.findings.iter().any(|f| f.weight == Weight::Refused && f.object == wanted.id.to_string());
            if let Purpose::Topic(layout) = &wanted.purpose
                && !refused
            {
                broker.0.remember(Arc::clone(layout));
            }
        }
    }

    /// What cannot be done.
    pub(super) fn refused(&self) -> Vec<String> {
        self.findings.iter().filter(|finding| finding.weight == Weight::Refused).map(Finding::to_string).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let word = if step.action == Action::Create { "create" } else { "update" };
            writeln!(f, "{word} {}", step.object)?;
            for change in &step.changes {
                match step.action {
                    Action::Create => writeln!(f, "  {}: {}", change.field, change.declared)?,
                    Action::Update => writeln!(f, "  {}: {} -> {}", change.field, change.is, change.declared)?,
                }
            }
        }
        // What is the same for several is said once.
        let same = |one: &Finding, other: &Finding| {
            (one.weight, &one.text, &one.fix) == (other.weight, &other.text, &other.fix)
        };
        for (at, finding) in self.findings.iter().enumerate() {
            if self.findings[..at].iter().any(|before| same(before, finding)) {
                continue;
            }
            let word = match finding.weight {
                Weight::Refused => "refused",
                Weight::Unseen => "not seen",
                Weight::Warning => "warning",
            };
            let objects =
                self.findings[at..].iter().filter(|other| same(other, finding)).map(|other| other.object.as_str());
            let all = Finding { object: objects.collect::<Vec<_>>().join(", "), ..finding.clone() };
            writeln!(f, "{word}: {all}")?;
        }
        if self.steps.is_empty() { writeln!(f, "nothing to do") } else { Ok(()) }
    }
}
