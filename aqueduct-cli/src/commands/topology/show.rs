//! A plan in words and as JSON, and what it means for the exit code.

use aqueduct::topology::{Action, Change, Finding, Plan, Step, Weight};
use serde_json::{Value, json};

use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::table::count;

pub(super) fn plan(plan: &Plan, output: Output) -> String {
    match output {
        Output::Text => plan.to_string(),
        Output::Json => {
            let steps: Vec<Value> = plan.steps().iter().map(step).collect();
            let findings: Vec<Value> = plan.findings().iter().map(finding).collect();
            format!("{}\n", json!({ "steps": steps, "findings": findings }))
        }
    }
}

pub(super) fn applied(plan: &Plan, output: Output) -> String {
    let done = plan.steps().len() as u64;
    match output {
        Output::Text if done == 0 => String::new(),
        Output::Text => format!("done: {}, and all is as declared\n", count(done, "step")),
        Output::Json => {
            let steps: Vec<Value> = plan.steps().iter().map(step).collect();
            format!("{}\n", json!({ "applied": steps }))
        }
    }
}

fn step(step: &Step) -> Value {
    let action = if step.action == Action::Create { "create" } else { "update" };
    let change = |change: &Change| json!({ "field": change.field, "is": change.is, "declared": change.declared });
    json!({ "action": action, "object": step.object, "changes": step.changes.iter().map(change).collect::<Vec<_>>() })
}

fn finding(finding: &Finding) -> Value {
    let weight = match finding.weight {
        Weight::Refused => "refused",
        Weight::Unseen => "unseen",
        _ => "warning",
    };
    json!({ "weight": weight, "object": finding.object, "text": finding.text, "fix": finding.fix })
}

/// A failure if the plan cannot be applied as it is.
pub(super) fn refused(plan: &Plan) -> Result<(), Failure> {
    let refused = plan.findings().iter().filter(|finding| finding.weight == Weight::Refused).count() as u64;
    if refused == 0 {
        return Ok(());
    }
    let text = format!("it cannot be as declared: {} refused", count(refused, "setting"));
    Err(Failure::new(Exit::Config, text)
        .then("nothing was done")
        .fix("each line `refused` above ends with the way out"))
}

/// A failure if something is missing or otherwise than declared, and that is not allowed.
pub(super) fn drift(plan: &Plan, allowed: bool) -> Result<(), Failure> {
    let steps = plan.steps().len() as u64;
    if steps == 0 || allowed {
        return Ok(());
    }
    let text = format!("it is not as declared: {} missing or otherwise", count(steps, "object"));
    Err(Failure::new(Exit::Failed, text)
        .fix("bring it about with `aqueduct topology apply`, declare what is there, or add --allow-drift"))
}
