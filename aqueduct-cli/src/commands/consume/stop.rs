//! Signals: the first stops gracefully, the second at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::failure::{Exit, Failure};

/// How often a signal has come.
#[derive(Clone)]
pub(super) struct Stop(watch::Receiver<u32>);

impl Stop {
    /// Listens for TERM and INT.
    pub(super) fn on_signals() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|e| Failure::new(Exit::Failed, "signals cannot be listened for").because(&e));
        let (mut term, mut int) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
        let (tell, told) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    biased;
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
                tell.send_modify(|count| *count += 1);
            }
        });
        Ok(Self(told))
    }

    pub(super) async fn graceful(self) {
        self.reached(1).await;
    }

    pub(super) async fn at_once(self) {
        self.reached(2).await;
    }

    async fn reached(mut self, count: u32) {
        if self.0.wait_for(|signals| *signals >= count).await.is_err() {
            // Nobody listens any more, so no signal will come.
            std::future::pending::<()>().await;
        }
    }
}
