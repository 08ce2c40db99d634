//! What the modules call things on the broker.

use std::collections::BTreeMap;

use crate::compat::NameError;
use crate::topic::{Text, Topic};

const SUBJECT_CHARS_MAX: usize = 255;

/// The subject of an event: below the prefix. Refused if it could not be one.
///
/// ```
/// use aqueduct::compat::tupic::event_subject;
/// assert_eq!(event_subject("acme", "events.asset.validated")?.as_str(), "acme.events.asset.validated");
/// assert!(event_subject("acme", "events..validated").is_err());
/// # Ok::<(), aqueduct::Error>(())
/// ```
pub fn event_subject(prefix: impl AsRef<str>, subject: impl AsRef<str>) -> Result<Topic, NameError> {
    below(prefix.as_ref(), subject.as_ref())
}

/// The subject of a task: `queues`, its channel and its name below the prefix. Refused if one could not be part of a
/// subject. The modules call the usual channel `default`.
///
/// The trap: up to version 0.1.2 there are no channels, and a task names its subject itself, `queue.` and its name as a
/// rule: that is an [`event_subject`].
///
/// ```
/// use aqueduct::compat::tupic::task_subject;
/// assert_eq!(task_subject("acme", "default", "validate-asset")?.as_str(), "acme.queues.default.validate-asset");
/// # Ok::<(), aqueduct::Error>(())
/// ```
pub fn task_subject(
    prefix: impl AsRef<str>,
    channel: impl AsRef<str>,
    name: impl AsRef<str>,
) -> Result<Topic, NameError> {
    let channel = channel.as_ref();
    if channel.contains('.') {
        return Err(NameError::new("channel", channel, "it is one part of a subject: take the dots out"));
    }
    below(prefix.as_ref(), &format!("queues.{channel}.{}", name.as_ref()))
}

fn below(prefix: &str, rest: &str) -> Result<Topic, NameError> {
    let subject = format!("{prefix}.{rest}");
    let problem = if prefix.is_empty() {
        "it has no prefix: say which one the modules have"
    } else if subject.split('.').any(str::is_empty) {
        "there is nothing between two of its dots, or at an end: name each part"
    } else if subject.contains(|c: char| matches!(c, '*' | '>') || c.is_whitespace() || c.is_control()) {
        "an event has one subject: take `*`, `>`, blanks and control characters out"
    } else if subject.chars().count() > SUBJECT_CHARS_MAX {
        "it is longer than 255 characters, which the modules' tables do not take: take a shorter one"
    } else {
        return Ok(subject.into());
    };
    Err(NameError::new("subject", &subject, problem))
}

/// The name of the durable consumer that an application makes of a subject: of events with the prefix, of tasks without it.
///
/// The trap: never take such a name for a durable of your own. The application then fails to start, and while it runs
/// nobody else can read from it.
///
/// ```
/// use aqueduct::compat::tupic::durable;
/// assert_eq!(durable("assets", "acme.events.asset.*").as_str(), "assets-acme-events-asset-wild");
/// assert_eq!(durable("assets", "queues.default.validate").as_str(), "assets-queues-default-validate");
/// ```
pub fn durable(app: impl AsRef<str>, subject: impl AsRef<str>) -> Text {
    let rest = subject.as_ref().replace('.', "-").replace('*', "wild").replace('>', "all");
    format!("{}-{rest}", app.as_ref()).into()
}

/// The [`durable`]s of all subjects of an application. Refused if two subjects have the same: the application would not
/// start with both.
///
/// ```
/// use aqueduct::compat::tupic::durables;
/// assert!(durables("assets", ["queues.default.a", "queues.default.b"]).is_ok());
/// assert!(durables("assets", ["foo.bar", "foo-bar"]).unwrap_err().to_string().contains("foo.bar"));
/// ```
pub fn durables<S: AsRef<str>>(
    app: impl AsRef<str>,
    subjects: impl IntoIterator<Item = S>,
) -> Result<Vec<Text>, NameError> {
    let (mut taken, mut all) = (BTreeMap::<Text, String>::new(), Vec::new());
    for subject in subjects {
        let (subject, name) = (subject.as_ref(), durable(app.as_ref(), subject.as_ref()));
        if let Some(other) = taken.insert(name.clone(), subject.to_owned()).filter(|other| other != subject) {
            let problem = format!("{other:?} has the same durable consumer, {name:?}: rename one of the two");
            return Err(NameError::new("subject", subject, problem));
        }
        all.push(name);
    }
    Ok(all)
}
