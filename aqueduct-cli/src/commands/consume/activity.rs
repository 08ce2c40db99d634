//! What is going on: how many events are done, whether there are enough, and for how long there was nothing to do.

use std::sync::Arc;
use std::time::Duration;

use aqueduct::{Error, Result};
use tokio::sync::watch;
use tokio::time::Instant;

#[derive(Clone, Copy)]
struct State {
    running: u64,
    done: u64,
    failed: u64,
    /// How many may be done.
    done_max: u64,
    /// When something last began or ended.
    at: Instant,
}

/// Attempts as they begin and end.
pub(super) struct Activity {
    state: watch::Sender<State>,
}

/// An attempt. Unless it is [done](Self::done) it has failed.
pub(super) struct Turn {
    activity: Arc<Activity>,
    done: bool,
}

impl Activity {
    pub(super) fn new(done_max: Option<u64>) -> Self {
        let done_max = done_max.unwrap_or(u64::MAX);
        let state = State { running: 0, done: 0, failed: 0, done_max, at: Instant::now() };
        Self { state: watch::Sender::new(state) }
    }

    /// Begins an attempt. No more than are wanted run at the same time, lest one too many be done.
    pub(super) async fn begin(self: &Arc<Self>) -> Result<Turn> {
        // Shorter than any limit of an attempt.
        const WAIT: Duration = Duration::from_secs(1);
        if !self.try_begin() {
            let mut states = self.state.subscribe();
            let before = states.borrow().done_max;
            let free = states.wait_for(|state| state.done_max != before || state.done + state.running < before);
            // Whatever came of it, the engine decides anew what is to run.
            let _ = tokio::time::timeout(WAIT, free).await;
            return Err(Error::msg("as many events as are wanted are being handled").uncounted());
        }
        Ok(Turn { activity: Arc::clone(self), done: false })
    }

    fn try_begin(&self) -> bool {
        self.state.send_if_modified(|state| {
            let free = state.done + state.running < state.done_max;
            if free {
                (state.running, state.at) = (state.running + 1, Instant::now());
            }
            free
        })
    }

    /// Waits until so many are done as are wanted. From then on there is no limit: what the engine still runs is what stands
    /// before events that are done, lest they come again.
    pub(super) async fn enough(&self) {
        // The sender is this struct's own.
        let _ = self.state.subscribe().wait_for(|state| state.done >= state.done_max).await;
        self.state.send_modify(|state| state.done_max = u64::MAX);
    }

    /// Waits until nothing has run for so long while `ready` was true.
    pub(super) async fn idle(&self, quiet: Duration, ready: impl Fn() -> bool) {
        const LOOK_MAX: Duration = Duration::from_millis(100);
        let mut since = Instant::now();
        loop {
            let state = *self.state.borrow();
            let now = Instant::now();
            since = if state.running > 0 || !ready() { now } else { since.max(state.at) };
            let left = quiet.saturating_sub(now.duration_since(since));
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_MAX)).await;
        }
    }

    pub(super) fn count_done(&self) -> u64 {
        self.state.borrow().done
    }

    pub(super) fn count_failed(&self) -> u64 {
        self.state.borrow().failed
    }
}

impl Turn {
    pub(super) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.activity.state.send_modify(|state| {
            state.running -= 1;
            state.at = Instant::now();
            if self.done {
                state.done += 1;
            } else {
                state.failed += 1;
            }
        });
    }
}
