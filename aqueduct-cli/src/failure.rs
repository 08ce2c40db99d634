//! How a command fails: what it says, what to do about it, and the exit code. The only place that prints an error.

use std::error::Error;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use aqueduct::{BrokerError, ServeError, StoreError};
use serde_json::json;

use crate::output::Output;

/// An exit code; `aqueduct --help` documents each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Failed = 1,
    Usage = 2,
    Data = 65,
    Missing = 66,
    Unusable = 69,
    Output = 74,
    Busy = 75,
    Config = 78,
    NoProgram = 127,
    Stopped = 130,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    exit: Exit,
    text: String,
    causes: Vec<String>,
    fix: Option<String>,
    state: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Self {
        Self { exit, text: text.into(), causes: Vec::new(), fix: None, state: None }
    }

    /// Adds an error and its causes. A cause that is part of the text before it is left out.
    pub(crate) fn because(mut self, error: &dyn Error) -> Self {
        for cause in std::iter::successors(Some(error), |e| (*e).source()).take(16) {
            let cause = cause.to_string();
            if !self.causes.last().unwrap_or(&self.text).contains(&cause) {
                self.causes.push(cause);
            }
        }
        self
    }

    /// Says what to do.
    pub(crate) fn fix(mut self, fix: impl Into<String>) -> Self {
        self.fix = Some(fix.into());
        self
    }

    /// Says how things stand now.
    pub(crate) fn then(mut self, state: impl Into<String>) -> Self {
        self.state = Some(state.into());
        self
    }

    pub(crate) fn with_exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn advice(&self) -> Option<&str> {
        self.fix.as_deref()
    }

    pub(crate) fn exit(&self) -> Exit {
        self.exit
    }

    /// Prints it on standard error.
    pub(crate) fn print(&self, output: Output) {
        if output == Output::Json {
            let Self { exit, text, causes, fix, state } = self;
            let line = json!({ "error": text, "causes": causes, "fix": fix, "state": state, "exit": *exit as u8 });
            anstream::eprintln!("{line}");
            return;
        }
        let (red, dim) = (AnsiColor::Red.on_default().bold(), Style::new().bold());
        anstream::eprintln!("{red}error:{red:#} {}", self.text);
        for cause in &self.causes {
            anstream::eprintln!("  {dim}because:{dim:#} {cause}");
        }
        for (label, text) in [("now:", &self.state), ("fix:", &self.fix)] {
            if let Some(text) = text {
                anstream::eprintln!("  {dim}{label}{dim:#} {text}");
            }
        }
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::new(Exit::Unusable, error.to_string()).because(&error)
    }
}

impl From<BrokerError> for Failure {
    fn from(error: BrokerError) -> Self {
        let exit = match error {
            BrokerError::NoSuchTopic { .. } => Exit::Missing,
            BrokerError::Topic(_) => Exit::Usage,
            _ => Exit::Unusable,
        };
        Self::new(exit, error.to_string()).because(&error)
    }
}

impl From<ServeError> for Failure {
    fn from(error: ServeError) -> Self {
        match error {
            ServeError::Broker(error) => error.into(),
            ServeError::Wiring(error) => {
                // The place in this program's source says nothing to who runs it.
                let text = error.to_string();
                Self::new(Exit::Usage, text.lines().next().unwrap_or_default())
            }
            other => Self::new(Exit::Failed, other.to_string()).because(&other),
        }
    }
}

/// Standard output cannot be written to.
pub(crate) fn unwritable(error: &std::io::Error) -> Failure {
    Failure::new(Exit::Output, "standard output cannot be written").because(error)
}
