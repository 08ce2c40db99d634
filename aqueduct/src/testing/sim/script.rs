//! Handlers that do what a script says for each event.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::history::EventNo;
use super::life::Life;
use super::probe::Numbers;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::router::Router;

/// What the handler does with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Script {
    /// Succeeds at once.
    Done,
    /// Succeeds after so many rests of so long.
    Rest(u32, Duration),
    /// Fails so many times.
    Fail(u32),
    /// Fails so many times after a rest.
    FailLate(u32, Duration),
    /// Asks so many times to be tried again after a delay.
    RetryAfter(u32, Duration),
    /// Fails always.
    FailAlways,
    /// Fails for good.
    Permanent,
    /// Panics so many times.
    Panic(u32),
    /// Hangs so many times.
    Hang(u32),
    /// Blocks its thread so long, the first time; to a single thread that is a process that stands still.
    Block(Duration),
}

impl Script {
    /// True if it takes effect in the end, given attempts enough.
    pub(crate) fn heals(self) -> bool {
        !matches!(self, Self::FailAlways | Self::Permanent)
    }

    /// How many attempts fail, if the policy allows so many.
    pub(crate) fn failures(self) -> u32 {
        match self {
            Self::Done | Self::Rest(..) => 0,
            Self::Fail(n) | Self::FailLate(n, _) | Self::RetryAfter(n, _) | Self::Panic(n) | Self::Hang(n) => n,
            Self::FailAlways => u32::MAX,
            Self::Permanent | Self::Block(_) => 1,
        }
    }

    /// How long an attempt takes at most.
    pub(crate) fn takes(self, timeout: Duration) -> Duration {
        match self {
            Self::Rest(n, rest) => rest * n,
            Self::FailLate(_, rest) | Self::RetryAfter(_, rest) | Self::Block(rest) => rest,
            Self::Hang(_) => timeout,
            _ => Duration::ZERO,
        }
    }
}

/// The scripts of all events, and how far each has come; shared by all instances.
#[derive(Clone)]
pub(crate) struct Stage(Arc<Inner>);

struct Inner {
    scripts: BTreeMap<EventNo, Script>,
    numbers: Numbers,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    tries: BTreeMap<EventNo, u32>,
    /// What took effect once does so again, if it is repeated.
    done: BTreeSet<EventNo>,
}

impl Stage {
    pub(crate) fn new(scripts: BTreeMap<EventNo, Script>, numbers: Numbers) -> Self {
        Self(Arc::new(Inner { scripts, numbers, progress: Mutex::default() }))
    }

    /// The router of one life of an instance.
    pub(crate) fn router(&self, life: &Life) -> Router {
        let (stage, life) = (self.clone(), life.clone());
        Router::new().on("sim.event", move |event: Event| {
            let (stage, life) = (stage.clone(), life.clone());
            async move { stage.act(&event, &life).await }
        })
    }

    async fn act(&self, event: &Event, life: &Life) -> Result<()> {
        let number = self.0.numbers.get(&(event.source.clone(), event.id.clone())).copied();
        let Some((number, script)) = number.and_then(|n| Some((n, *self.0.scripts.get(&n)?))) else {
            return Err(Error::msg("an event without a script").permanent());
        };
        let (tried, done) = {
            let mut progress = self.0.progress.lock();
            let count = progress.tries.entry(number).or_default();
            let tried = *count;
            *count = tried.saturating_add(1);
            (tried, progress.done.contains(&number))
        };
        if !done {
            play(script, tried, life).await?;
        }
        self.0.progress.lock().done.insert(number);
        Ok(())
    }
}

async fn play(script: Script, tried: u32, life: &Life) -> Result<()> {
    let fails = Err(Error::msg("the script says so"));
    match script {
        Script::Rest(times, rest) => {
            for _ in 0..times {
                tokio::time::sleep(rest).await;
            }
        }
        Script::Fail(n) if tried < n => return fails,
        Script::FailLate(n, rest) if tried < n => {
            tokio::time::sleep(rest).await;
            return fails;
        }
        Script::RetryAfter(n, delay) if tried < n => return fails.map_err(|e| e.retry_after(delay)),
        Script::FailAlways => return fails,
        Script::Permanent => return fails.map_err(Error::permanent),
        // As `panic!` does, without the message on the screen.
        Script::Panic(n) if tried < n => resume_unwind(Box::new("the script says so")),
        Script::Hang(n) if tried < n => std::future::pending::<()>().await,
        Script::Block(span) if tried == 0 => {
            life.freeze(span);
            tokio::task::yield_now().await;
        }
        _ => {}
    }
    Ok(())
}
