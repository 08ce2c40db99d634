//! Running until a signal comes: the first stops gracefully, the second at once; and telling how it is meanwhile.

use std::time::Duration;

use aqueduct::Health;
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::failure::{Exit, Failure};
use crate::output::note;

/// How often a signal has come.
#[derive(Clone)]
pub(crate) struct Stop(watch::Receiver<u32>);

impl Stop {
    /// Listens for TERM and INT.
    pub(crate) fn on_signals() -> Result<Self, Failure> {
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

    pub(crate) async fn graceful(self) {
        self.reached(1).await;
    }

    pub(crate) async fn at_once(self) {
        self.reached(2).await;
    }

    async fn reached(mut self, count: u32) {
        if self.0.wait_for(|signals| *signals >= count).await.is_err() {
            // Nobody listens any more, so no signal will come.
            std::future::pending::<()>().await;
        }
    }
}

/// The service manager, where it is to be told.
#[derive(Clone, Copy)]
pub(crate) struct Systemd(pub(crate) bool);

impl Systemd {
    pub(crate) fn stopping(self) {
        self.tell(NotifyState::Stopping);
    }

    fn tell(self, state: NotifyState<'_>) {
        if self.0
            && let Err(error) = sd_notify::notify(&[state])
        {
            note(format_args!("systemd cannot be told: {error}"));
        }
    }
}

/// Says once why it is not handling events, and again when the reason is another. Tells systemd when it first does.
pub(crate) async fn tell(health: Health, systemd: Systemd) {
    const LOOK: Duration = Duration::from_millis(200);
    let (mut told, mut was_ready) = (String::new(), false);
    loop {
        tokio::time::sleep(LOOK).await;
        if health.is_ready() && !std::mem::replace(&mut was_ready, true) {
            systemd.tell(NotifyState::Ready);
        }
        let reason = if health.is_live() && !health.is_ready() { health.reason() } else { String::new() };
        // It is said anew only if it is another one: the same trouble may come and go.
        if reason.contains(':') && reason != told {
            note(format_args!("waiting: {reason}"));
            systemd.tell(NotifyState::Status(&reason));
            told = reason;
        }
    }
}
