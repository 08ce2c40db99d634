//! What is declared beside what is there.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::Value;

use super::wanted::{Fields, Purpose, Wanted, texts, write};

/// A setting that is otherwise than declared.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Change {
    /// Its name, as the server has it.
    pub field: String,
    /// What it is.
    pub is: String,
    /// What it was declared as.
    pub declared: String,
}

/// Fields whose numbers are nanoseconds.
const TIMES: [&str; 5] = ["ack_wait", "backoff", "duplicate_window", "inactive_threshold", "max_age"];

/// Lists whose order says nothing.
const SETS: [&str; 3] = ["filter_subjects", "sources", "subjects"];

/// What is otherwise than declared.
pub(super) fn changes(wanted: &Wanted, there: &Fields) -> Vec<Change> {
    let target = target(wanted, there);
    let differs = |field: &&String| !is_same(field, there.get(*field), target.get(*field));
    wanted.declared.keys().filter(differs).map(|field| change(field, there.get(field), target.get(field))).collect()
}

pub(super) fn change(field: &str, is: Option<&Value>, declared: Option<&Value>) -> Change {
    Change { field: field.to_owned(), is: shown(field, is), declared: shown(field, declared) }
}

/// A change in words.
pub(super) fn sentence(change: &Change) -> String {
    format!("{} is {} and was declared as {}", change.field, change.is, change.declared)
}

/// What is there, with what is declared written into it: everything else stays as it is.
pub(super) fn target(wanted: &Wanted, there: &Fields) -> Fields {
    let mut declared = wanted.declared.clone();
    if let (Some(Value::Object(ours)), Some(Value::Object(theirs))) =
        (declared.get_mut("metadata"), there.get("metadata"))
    {
        let others = theirs.iter().filter(|(name, _)| !ours.contains_key(*name));
        let others: Vec<_> = others.map(|(name, value)| (name.clone(), value.clone())).collect();
        ours.extend(others);
    }
    // Others may send plain events into a topic.
    if let (Purpose::Topic(_), Some(Value::Array(ours)), Some(Value::Array(theirs))) =
        (&wanted.purpose, declared.get_mut("subjects"), there.get("subjects"))
    {
        let others: Vec<_> = theirs.iter().filter(|subject| !ours.contains(subject)).cloned().collect();
        ours.extend(others);
    }
    let mut target = there.clone();
    write(&mut target, &declared);
    target
}

fn is_same(field: &str, is: Option<&Value>, declared: Option<&Value>) -> bool {
    let value = |value: Option<&Value>| value.filter(|value| !is_default(value)).cloned().unwrap_or_default();
    match (value(is), value(declared)) {
        (Value::Array(is), Value::Array(declared)) if SETS.contains(&field) => set(&is) == set(&declared),
        (is, declared) => is == declared,
    }
}

/// What the server leaves out where it is so.
fn is_default(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(true) => false,
    }
}

fn set(list: &[Value]) -> BTreeSet<String> {
    list.iter().map(Value::to_string).collect()
}

/// A value for eyes.
fn shown(field: &str, value: Option<&Value>) -> String {
    let time = |value: &Value| value.as_u64().map(|nanos| format!("{:?}", Duration::from_nanos(nanos)));
    match value {
        Some(value @ Value::Number(_)) if TIMES.contains(&field) => time(value).unwrap_or_default(),
        Some(Value::Array(list)) if TIMES.contains(&field) => {
            format!("{:?}", list.iter().filter_map(time).collect::<Vec<_>>())
        }
        Some(Value::Array(list)) if list.iter().all(Value::is_string) => texts(&Value::Array(list.clone())).join(", "),
        Some(Value::String(text)) => text.clone(),
        Some(value) if !value.is_null() => value.to_string(),
        _ => "not set".to_owned(),
    }
}
