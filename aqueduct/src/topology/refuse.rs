//! What the server would refuse, or take and never do, found before it is asked; each with the way out.

use std::time::Duration;

use serde_json::Value;

use super::compare::Change;
use super::look::Streams;
use super::plan::{Action, Finding, Step, Weight};
use super::subjects::{overlap, transformed};
use super::wanted::{Fields, Id, Purpose, Wanted, texts};
use crate::broker::nats::declare::check_layout;

fn refused(id: &Id, text: impl Into<String>, fix: impl Into<String>) -> Finding {
    Finding::new(Weight::Refused, id, text, fix)
}

/// Changes that the server does not make.
pub(super) fn immutable(wanted: &Wanted, there: &Fields, target: &Fields, changes: &[Change]) -> Vec<Finding> {
    let mut findings: Vec<Finding> = layout(wanted, there).into_iter().collect();
    for Change { field, is, declared, .. } in changes {
        if let Some(fix) = way_out(&wanted.id, field, there.get(field), target.get(field)) {
            let text = format!("{field} is {is} and was declared as {declared}, and the server cannot change it");
            findings.push(refused(&wanted.id, text, fix));
        }
    }
    findings
}

/// A topic keeps its layout.
fn layout(wanted: &Wanted, there: &Fields) -> Option<Finding> {
    let Purpose::Topic(layout) = &wanted.purpose else { return None };
    let is = there.get("metadata").and_then(|all| all.get("aqueduct.partitions"))?;
    let config = serde_json::from_value(Value::Object(there.clone())).ok()?;
    let fault = check_layout(&config, layout).err()?;
    let fix = format!("declare {} partitions, or a topic with another name", is.as_str().unwrap_or_default());
    Some(refused(&wanted.id, fault.to_string(), fix))
}

/// What to do in place of a change that the server does not make; none if it does.
fn way_out(id: &Id, field: &str, is: Option<&Value>, declared: Option<&Value>) -> Option<String> {
    let on = |value: Option<&Value>| value == Some(&Value::Bool(true));
    let work_queue = |value: Option<&Value>| value.and_then(Value::as_str) == Some("workqueue");
    match id {
        Id::Durable(stream, durable) => match field {
            "ack_policy" | "deliver_policy" | "opt_start_seq" | "opt_start_time" | "replay_policy" | "max_waiting"
            | "mem_storage" => Some(format!(
                "declare what is there; or declare another durable, let it begin where this one stands (`deliver_policy` \
                 \"by_start_sequence\", and `opt_start_seq` one above the ack floor of `nats consumer info {stream} {durable}`), \
                 move its workers over, and delete this one"
            )),
            _ => None,
        },
        Id::Stream(stream) => match field {
            "storage" | "persist_mode" | "allow_msg_counter" => Some(move_to_another(stream)),
            "retention" if work_queue(is) || work_queue(declared) => Some(move_to_another(stream)),
            "deny_delete" | "deny_purge" | "allow_msg_ttl" | "allow_msg_schedules" | "sealed" if on(is) => {
                Some(format!("it cannot be taken back: declare it as true, or {}", move_to_another(stream)))
            }
            "mirror" if declared.is_some() => Some(format!(
                "delete it with `nats stream rm {stream}`, and apply again: it is filled anew from its origin, as far back as that \
                 goes"
            )),
            _ => None,
        },
    }
}

fn move_to_another(stream: &str) -> String {
    format!(
        "declare a stream under another name that has {stream} as its source; once it has caught up, move the subjects and \
         the consumers over, and delete this one with `nats stream rm {stream}`"
    )
}

/// What is wrong with all of it together. `finals` is what each will be, where that is known.
pub(super) fn refusals(
    wanted: &[Wanted],
    finals: &[Option<Fields>],
    steps: &[Step],
    streams: Option<&Streams>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let all = Together { wanted, finals, streams };
    for step in steps {
        match &step.id {
            Id::Stream(name) => {
                let differs = |field: &str| step.changes.iter().any(|change| change.field == field);
                if step.action == Action::Create || differs("subjects") {
                    findings.extend(all.overlaps(&step.id, name, &subjects(name, &step.config)));
                }
                findings.extend(all.origins(&step.id, &step.config));
                findings.extend(window(&step.id, &step.config));
            }
            Id::Durable(stream, durable) => findings.extend(all.durable(&step.id, stream, durable, &step.config)),
        }
    }
    if let (Some(Streams::Unseen(why)), Some(step)) = (streams, steps.first()) {
        let text = format!(
            "streams that are not declared could not be listed, to find overlaps before the server does: {why}"
        );
        findings.push(Finding::new(Weight::Warning, &step.id, text, ""));
    }
    findings
}

/// Repeats cannot be recognised for longer than they are kept.
fn window(id: &Id, config: &Fields) -> Option<Finding> {
    let nanos = |field: &str| config.get(field).and_then(Value::as_u64).unwrap_or_default();
    let (age, window) = (nanos("max_age"), nanos("duplicate_window"));
    (age > 0 && window > age).then(|| {
        let [age, window] = [age, window].map(Duration::from_nanos);
        let text = format!("its duplicate_window of {window:?} is longer than its max_age of {age:?}");
        refused(id, text, "declare a `dedup_window` that is no longer than `max_age`")
    })
}

/// The subjects that a stream takes.
fn subjects(name: &str, config: &Fields) -> Vec<String> {
    let own = config.get("subjects").map(texts).unwrap_or_default();
    let fed = config.contains_key("mirror") || config.contains_key("sources");
    if own.is_empty() && !fed { vec![name.to_owned()] } else { own }
}

/// Everything that is declared, and the streams that are there.
struct Together<'a> {
    wanted: &'a [Wanted],
    finals: &'a [Option<Fields>],
    streams: Option<&'a Streams>,
}

impl Together<'_> {
    fn declared(&self, name: &str) -> Option<&Fields> {
        let at = self.wanted.iter().position(|wanted| matches!(&wanted.id, Id::Stream(stream) if stream == name))?;
        self.finals[at].as_ref()
    }

    fn is_declared(&self, name: &str) -> bool {
        self.wanted.iter().any(|wanted| matches!(&wanted.id, Id::Stream(stream) if stream == name))
    }

    fn seen(&self) -> &[(String, Vec<String>)] {
        match self.streams {
            Some(Streams::Seen(streams)) => streams,
            _ => &[],
        }
    }

    /// Subjects that two streams would have.
    fn overlaps(&self, id: &Id, name: &str, own: &[String]) -> Vec<Finding> {
        let declared = self.wanted.iter().zip(self.finals).filter_map(|(wanted, config)| match &wanted.id {
            Id::Stream(stream) => Some((stream.clone(), subjects(stream, config.as_ref()?), true)),
            Id::Durable(..) => None,
        });
        let there = self.seen().iter().filter(|(stream, _)| !self.is_declared(stream));
        let there = there.map(|(stream, subjects)| (stream.clone(), subjects.clone(), false));
        let mut findings = Vec::new();
        for (other, theirs, is_declared) in declared.chain(there).filter(|(other, ..)| other != name) {
            let pairs = own.iter().flat_map(|one| theirs.iter().map(move |their| (one, their)));
            for (one, their) in pairs.filter(|(one, their)| overlap(one, their)) {
                let text = format!("its subject {one} overlaps {their} of the stream {other}");
                let fix = if is_declared {
                    "declare each subject for one stream, and let the other take it as a source".to_owned()
                } else {
                    format!("choose another subject, or take it out with `nats stream edit {other} --subjects ...`")
                };
                findings.push(refused(id, text, fix));
            }
        }
        findings
    }

    /// Origins of mirrors and sources that are not there: the server takes them all the same, and waits for ever.
    fn origins(&self, id: &Id, config: &Fields) -> Vec<Finding> {
        let Some(Streams::Seen(seen)) = self.streams else { return Vec::new() };
        let sources = config.get("sources").and_then(Value::as_array).into_iter().flatten();
        let origins = sources.chain(config.get("mirror")).filter(|origin| origin.get("external").is_none());
        let names = origins.filter_map(|origin| origin.get("name")?.as_str());
        let missing = names.filter(|name| !self.is_declared(name) && !seen.iter().any(|(stream, _)| stream == name));
        let finding = |name: &str| {
            let text = format!(
                "it takes messages from the stream {name}, which is not there: the server would wait for it for ever"
            );
            refused(id, text, format!("declare {name}, correct its name, or set its `api_prefix` if it is elsewhere"))
        };
        missing.map(finding).collect()
    }

    fn durable(&self, id: &Id, stream: &str, durable: &str, config: &Fields) -> Vec<Finding> {
        let mut findings = Vec::new();
        let listed = self.seen().iter().any(|(name, _)| name == stream);
        if matches!(self.streams, Some(Streams::Seen(_))) && !listed && !self.is_declared(stream) {
            findings.push(refused(id, "there is no such stream", format!("declare the stream {stream} too")));
        }
        let Some(of) = self.declared(stream) else { return findings };
        let (filters, stored) = (filters(config), stored(stream, of));
        for filter in
            filters.iter().filter(|filter| !stored.is_empty() && !stored.iter().any(|one| overlap(one, filter)))
        {
            let text = format!("its filter {filter} matches none of the stream's subjects, {}", stored.join(", "));
            findings.push(refused(id, text, "correct the filter, or add the subject to the stream"));
        }
        if of.get("retention").and_then(Value::as_str) == Some("workqueue") {
            findings.extend(self.shares(id, stream, durable, &filters));
            if config.get("deliver_policy").and_then(Value::as_str).is_some_and(|policy| policy != "all") {
                findings.push(refused(id, "on a work queue a durable reads everything", "leave out `only_new`"));
            }
        }
        findings
    }

    /// On a work queue each message goes to one durable.
    fn shares(&self, id: &Id, stream: &str, durable: &str, own: &[String]) -> Vec<Finding> {
        let others = self.wanted.iter().zip(self.finals).filter_map(|(wanted, config)| match &wanted.id {
            Id::Durable(of, name) if of == stream && name != durable => Some((name, filters(config.as_ref()?))),
            _ => None,
        });
        let all = |list: &[String]| if list.is_empty() { vec![">".to_owned()] } else { list.to_vec() };
        let meets = |theirs: &[String]| all(own).iter().any(|one| all(theirs).iter().any(|other| overlap(one, other)));
        let shared = others.filter(|(_, theirs)| meets(theirs)).map(|(name, _)| {
            let text = format!(
                "it would read messages of the durable {name} too, and on a work queue each goes to one durable"
            );
            refused(id, text, "give them filters that do not overlap, or let their workers share one durable")
        });
        shared.collect()
    }
}

fn filters(config: &Fields) -> Vec<String> {
    let one = config.get("filter_subject").and_then(Value::as_str).filter(|filter| !filter.is_empty());
    let several = config.get("filter_subjects").map(texts).unwrap_or_default();
    one.map(str::to_owned).into_iter().chain(several).collect()
}

/// The subjects under which a stream stores messages; none if that is not known.
fn stored(name: &str, config: &Fields) -> Vec<String> {
    if config.contains_key("mirror") || config.contains_key("sources") {
        return Vec::new();
    }
    let own = subjects(name, config);
    let text = |field: &str| config.get("subject_transform")?.get(field)?.as_str();
    match (text("src"), text("dest")) {
        (Some(from), Some(to)) => transformed(from, to, &own),
        _ => own,
    }
}
