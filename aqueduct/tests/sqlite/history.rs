//! What processes write down about themselves, so that a test can judge them when they are dead.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};

/// A file of JSON lines, each one written with a single call: what is written stays when the process is killed.
#[derive(Clone)]
pub(crate) struct History(Arc<File>);

impl History {
    pub(crate) fn append_to(path: &Path) -> Self {
        Self(Arc::new(File::options().create(true).append(true).open(path).unwrap()))
    }

    /// Writes a line, with the monotonic time.
    pub(crate) fn note(&self, mut line: Value) {
        line["ns"] = json!(aqueduct::Clock::system().boot().0);
        (&*self.0).write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    /// The lines of a file, none if there is no file. A last one that is torn was never written.
    pub(crate) fn read(path: &Path) -> Vec<Value> {
        let text = std::fs::read(path).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// An attempt on an event, or its end, as one process wrote it down.
#[derive(Debug)]
pub(crate) struct Step {
    /// Which process: they are numbered in the order of their starts.
    pub(crate) life: usize,
    pub(crate) event: String,
    pub(crate) what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum What {
    Start { attempt: u64, stored: bool },
    Failed,
    Returned,
    Effect,
}

/// The steps of a consumer in one process.
pub(crate) fn steps(life: usize, lines: &[Value]) -> Vec<Step> {
    let step = |line: &Value| {
        let (what, event) = [
            (
                "start",
                What::Start {
                    attempt: line["attempt"].as_u64().unwrap_or(0),
                    stored: line["stored"].as_bool().unwrap_or(false),
                },
            ),
            ("failed", What::Failed),
            ("returned", What::Returned),
            ("effect", What::Effect),
        ]
        .into_iter()
        .find_map(|(name, what)| Some((what, line[name].as_str()?)))?;
        Some(Step { life, event: event.to_owned(), what })
    };
    lines.iter().filter_map(step).collect()
}
