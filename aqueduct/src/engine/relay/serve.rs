//! Relays: what one is made of, and serving it.

use std::fmt;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::core::Core;
use super::duties;
use super::round::Tools;
use crate::broker::Broker;
use crate::clock::Clock;
use crate::engine::health::Health;
use crate::engine::serve::ServeError;
use crate::engine::tasks::Tasks;
use crate::error::{StoreError, WiringError};
use crate::format::{CloudEvents, Format};
use crate::outcome::BoxFuture;
use crate::store::outbox::{Keeper, OutboxTable, named};
use crate::telemetry::RelayMetrics;
use crate::topic::Text;

/// Publishes the events of an outbox table to a broker: those whose transactions are committed, and no others, in the order
/// of their ids for each key.
///
/// Run it inside a service or by itself, as often as you like: instances share the shards of the table. It looks at once
/// when a row is written in this process, and for rows of other processes within 250 ms while there is something to do,
/// within 10 s otherwise.
///
/// A row that the broker refuses is parked with the later rows of its key, and no others; it is tried again for ever, at most an
/// hour apart, until it is taken or [discarded](OutboxTable::discard). A broker that is away parks nothing.
///
/// The traps: after a crash rows may be published again, under the same identity; brokers that know it drop the repeat,
/// and an inbox does. And the order of ids is the order of commits only for transactions that lock the same row before they
/// publish.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> aqueduct::Result<()> {
/// # let folder = tempfile::tempdir()?; let path = folder.path().join("shop.db");
/// use aqueduct::{MemoryBroker, Relay, sqlite::SqliteStore};
/// # async fn shutdown_signal() {}
/// let store = SqliteStore::open(&path).await?;
/// Relay::new(&store, MemoryBroker::new()).serve().with_graceful_shutdown(shutdown_signal()).await?;
/// # Ok(()) }
/// ```
#[must_use = "a relay does nothing until it is served"]
pub struct Relay {
    table: OutboxTable,
    broker: Arc<dyn Broker>,
    format: Arc<dyn Format>,
    clock: Clock,
    name: Text,
    source: Option<Text>,
    audit: Option<Duration>,
}

impl Relay {
    /// A relay from an outbox table, such as that of `&store`, to a broker.
    pub fn new(table: impl Into<OutboxTable>, broker: impl Broker) -> Self {
        let table = table.into();
        let clock = table.clock.clone();
        Self {
            table,
            broker: Arc::new(broker),
            format: Arc::new(CloudEvents::default()),
            clock,
            name: Text::from_static("relay"),
            source: None,
            audit: None,
        }
    }

    /// The name by which instances find each other, and under which metrics stand. All instances on a table have the same
    /// one. Defaults to `relay`.
    pub fn name(mut self, name: impl Into<Text>) -> Self {
        self.name = name.into();
        self
    }

    /// How events look on the wire. Defaults to [`CloudEvents::binary`].
    pub fn format(mut self, format: impl Format) -> Self {
        self.format = Arc::new(format);
        self
    }

    /// The source of rows that name none, which only programs in other languages write. Defaults to the name.
    pub fn source(mut self, source: impl Into<Text>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Keeps what identifies published rows in `aq_outbox_sent` for so long. Each row then costs a second write. Defaults to
    /// deleting them.
    pub fn audit(mut self, retention: Duration) -> Self {
        self.audit = Some(retention);
        self
    }

    /// Where time and randomness come from. Defaults to the table's.
    pub fn clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Makes it a service, to be awaited.
    #[track_caller]
    pub fn serve(self) -> RelayServe {
        let at = std::panic::Location::caller();
        RelayServe { relay: self, at, health: Health::new(), stop: Box::pin(std::future::pending()) }
    }
}

impl fmt::Debug for Relay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relay").field("name", &self.name).field("table", &self.table).finish_non_exhaustive()
    }
}

/// A relay that is ready to run: await it.
///
/// Dropping the future stops everything at once, as a crash would: nothing is lost, and what was not settled is published
/// again by the next.
#[must_use = "a relay does nothing until it is awaited"]
pub struct RelayServe {
    relay: Relay,
    at: &'static std::panic::Location<'static>,
    health: Health,
    stop: BoxFuture<'static, ()>,
}

impl RelayServe {
    /// When `signal` resolves it publishes nothing more, settles what was published, and leaves. Defaults to never.
    pub fn with_graceful_shutdown(mut self, signal: impl Future<Output = ()> + Send + 'static) -> Self {
        self.stop = Box::pin(signal);
        self
    }

    /// How it is doing.
    pub fn health(&self) -> Health {
        self.health.clone()
    }

    async fn run(self) -> Result<(), ServeError> {
        let Self { relay, at, health, mut stop } = self;
        let _stopped = health.stopped_when_dropped();
        let Relay { table, broker, format, clock, name, source, audit } = relay;
        if name.is_empty() {
            return Err(WiringError::new("the relay has no name: its instances find each other by it").at(at).into());
        }
        // Before joining, so that no hint is missed.
        let hints = table.hint.heed();
        let tools = Arc::new(Tools {
            source: Arc::clone(&table.source),
            broker,
            format,
            clock,
            metrics: RelayMetrics::new(name.as_str()),
            origin: source.unwrap_or_else(|| name.clone()),
            group: name,
            keep_sent: audit.is_some(),
            saw_rows: AtomicBool::new(false),
        });
        health.joining();
        let Some(keeper) = join(&tools, &health, &mut stop).await? else { return Ok(()) };
        health.serving();
        let tasks = Tasks::default();
        let _gauges = tasks.spawn(duties::gauge(Arc::clone(&tools)));
        let _clean_up =
            audit.map(|retention| tasks.spawn(duties::forget(Arc::clone(&tools), keeper.owned(), retention)));
        Core::new(tools, keeper, hints, health).run(stop).await;
        Ok(())
    }
}

/// Joins as soon as the database answers; none if the relay is to stop before that.
async fn join(
    tools: &Tools,
    health: &Health,
    stop: &mut BoxFuture<'static, ()>,
) -> Result<Option<Arc<dyn Keeper>>, ServeError> {
    let mut backoff = Backoff::default();
    loop {
        let joined = tokio::select! {
            biased;
            joined = tools.source.join(&tools.group, &tools.clock) => joined,
            () = &mut *stop => return Ok(None),
        };
        let error = match joined {
            Err(error @ StoreError::Unavailable(_)) => error,
            joined => return Ok(joined.map(Some)?),
        };
        tools.metrics.store_errors.increment(1);
        health.failing(&named(0), &error);
        let now = Instant::now();
        if backoff.failed(now, &tools.clock) {
            tracing::warn!(relay = %tools.group, %error, "the outbox cannot be reached; it is tried again");
        }
        tokio::select! {
            biased;
            () = &mut *stop => return Ok(None),
            () = tokio::time::sleep_until(backoff.until().unwrap_or(now)) => {}
        }
    }
}

impl IntoFuture for RelayServe {
    type Output = Result<(), ServeError>;
    type IntoFuture = BoxFuture<'static, Result<(), ServeError>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(self.run())
    }
}

impl fmt::Debug for RelayServe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayServe").field("relay", &self.relay).field("health", &self.health).finish_non_exhaustive()
    }
}
