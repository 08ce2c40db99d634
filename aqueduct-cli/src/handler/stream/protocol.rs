//! The lines between this program and a worker.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aqueduct::{Error, Result};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::oneshot;

use crate::handler::Delivery;
use crate::handler::results::excerpt;

/// The events that a worker answered with, or how its attempt failed.
pub(super) type Answer = Result<Vec<Box<RawValue>>>;

/// An event on its way to a worker.
pub(super) struct Ask {
    pub(super) number: u64,
    pub(super) line: Vec<u8>,
    /// Set by who takes it, the worker or the attempt that gives it up.
    pub(super) taken: Arc<AtomicBool>,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// The line of an event, with its end.
pub(super) fn ask(number: u64, delivery: &Delivery) -> Result<Vec<u8>> {
    let event = delivery.json()?;
    let (attempt, epoch) = (delivery.attempt.number, delivery.origin.epoch.0);
    let topic = serde_json::to_string(delivery.topic())?;
    let mut line = Vec::with_capacity(event.len() + topic.len() + 80);
    line.extend_from_slice(
        format!(r#"{{"id":{number},"attempt":{attempt},"epoch":{epoch},"topic":{topic},"event":"#).as_bytes(),
    );
    line.extend_from_slice(&event);
    line.extend_from_slice(b"}\n");
    Ok(line)
}

/// The line of a result.
#[derive(Deserialize)]
pub(super) struct Reply {
    pub(super) id: u64,
    result: Outcome,
    error: Option<String>,
    retry_after_ms: Option<u64>,
    #[serde(default)]
    publish: Vec<Box<RawValue>>,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Done,
    Transient,
    Permanent,
}

impl Reply {
    pub(super) fn parse(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| {
            format!(
                "wrote `{}`, which is no result ({error}): standard output is for results, one JSON object a line; what else it has to say belongs on standard error",
                excerpt(line.trim_ascii())
            )
        })
    }

    pub(super) fn answer(self) -> Answer {
        let error = Error::msg(self.error.unwrap_or_else(|| "its worker did not say why".into()));
        match (self.result, self.retry_after_ms) {
            (Outcome::Done, _) => Ok(self.publish),
            (Outcome::Permanent, _) => Err(error.permanent()),
            (Outcome::Transient, Some(ms)) => Err(error.retry_after(Duration::from_millis(ms))),
            (Outcome::Transient, None) => Err(error),
        }
    }
}
