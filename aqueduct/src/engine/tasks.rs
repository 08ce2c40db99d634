//! The one place where the engine spawns.

use std::future::Future;

use super::mailbox::AbortOnDrop;

/// Spawns tasks that end when their handle is dropped.
#[derive(Clone, Default)]
pub(crate) struct Tasks {
    #[cfg(any(test, feature = "testing"))]
    gate: Option<super::gate::Gate>,
}

impl Tasks {
    /// Tasks that are polled only while the gate is open.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn gated(gate: Option<super::gate::Gate>) -> Self {
        Self { gate }
    }

    #[cfg_attr(
        not(any(test, feature = "testing")),
        expect(clippy::unused_self, reason = "only the test kit has a gate to poll through")
    )]
    #[must_use = "dropping the handle ends the task"]
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) -> AbortOnDrop {
        #[cfg(any(test, feature = "testing"))]
        if let Some(gate) = &self.gate {
            return AbortOnDrop(tokio::spawn(gate.wrap(future)).abort_handle());
        }
        AbortOnDrop(tokio::spawn(future).abort_handle())
    }
}
