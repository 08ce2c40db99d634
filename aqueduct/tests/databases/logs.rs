//! What the library logs while a test runs: an operator has nothing else to go by.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing_subscriber::layer::SubscriberExt;

/// How long anything may take, on a machine that is busy with other things.
pub(crate) const BOUND: Duration = Duration::from_mins(1);

/// The lines of one test, each with its level, its message and its fields.
#[derive(Clone, Default)]
pub(crate) struct Logs(Arc<watch::Sender<Vec<String>>>);

impl Logs {
    /// Waits for a line with all of these words, and answers it.
    pub(crate) async fn wait_for(&self, words: &[&str]) -> String {
        let mut lines = self.0.subscribe();
        let found = |line: &&String| words.iter().all(|word| line.contains(word));
        let there = lines.wait_for(|lines| lines.iter().any(|line| found(&line)));
        let Ok(lines) = tokio::time::timeout(BOUND, there).await else {
            panic!("no line has {words:?}:\n{}", self.text());
        };
        lines.unwrap().iter().find(found).unwrap().clone()
    }

    /// Waits until more lines than so many have all of these words.
    pub(crate) async fn wait_for_more(&self, words: &[&str], than: usize) {
        let mut lines = self.0.subscribe();
        let found = |line: &&String| words.iter().all(|word| line.contains(word));
        let more = lines.wait_for(|lines| lines.iter().filter(found).count() > than);
        let more = tokio::time::timeout(BOUND, more).await.is_ok();
        assert!(more, "no more lines have {words:?}:\n{}", self.text());
    }

    /// The lines with all of these words, each once.
    pub(crate) fn all(&self, words: &[&str]) -> std::collections::BTreeSet<String> {
        let lines = self.0.borrow();
        lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).cloned().collect()
    }

    /// How many lines have all of these words.
    pub(crate) fn count(&self, words: &[&str]) -> usize {
        self.0.borrow().iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    /// All of them, for the message of a test that fails.
    pub(crate) fn text(&self) -> String {
        self.0.borrow().join("\n")
    }
}

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Logs {
    fn on_event(&self, event: &tracing::Event<'_>, _: tracing_subscriber::layer::Context<'_, S>) {
        struct Text(String);
        impl tracing::field::Visit for Text {
            fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
                let _ = write!(self.0, " {field}={value:?}");
            }
        }
        let metadata = event.metadata();
        if metadata.target().starts_with("aqueduct") && *metadata.level() <= tracing::Level::DEBUG {
            let mut text = Text(metadata.level().to_string());
            event.record(&mut text);
            self.0.send_modify(|lines| lines.push(text.0));
        }
    }
}

/// Runs a test on a runtime of its own, whose threads log into [`Logs`] of its own.
pub(crate) fn logged<F: Future>(test: impl FnOnce(Logs) -> F) -> F::Output {
    let logs = Logs::default();
    let dispatch = tracing::Dispatch::new(tracing_subscriber::registry().with(logs.clone()));
    let threads = dispatch.clone();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        // For as long as the thread lives.
        .on_thread_start(move || std::mem::forget(tracing::dispatcher::set_default(&threads)))
        .build()
        .unwrap();
    tracing::dispatcher::with_default(&dispatch, || runtime.block_on(test(logs)))
}

/// Each test on each server, with its log.
macro_rules! on_servers {
    ($($name:ident),* $(,)?) => {
        mod postgres {
            $(#[test]
            fn $name() {
                crate::logs::logged(super::$name::<aqueduct::postgres::Postgres>);
            })*
        }
        mod mysql {
            $(#[test]
            fn $name() {
                crate::logs::logged(super::$name::<aqueduct::mysql::MySql>);
            })*
        }
    };
}
pub(crate) use on_servers;
