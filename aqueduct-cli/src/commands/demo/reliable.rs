//! The demo with Aqueduct.

use std::path::Path;
use std::time::Duration;

use aqueduct::sqlite::{Sqlite, SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::store::{Content, Query, Store};
use aqueduct::{Attempt, Consumer, Event, Policy, Publisher, Result, Router, State, Tx};

use super::story::{Story, Webhook, handle, number};
use super::{Scene, effects, worked};

pub(super) const TOPIC: &str = "webhooks";
pub(super) const GROUP: &str = "demo";

/// The broker, as the program that publishes sees it.
pub(super) struct Reliable {
    file: SqliteFile,
    publisher: Publisher,
}

impl Reliable {
    pub(super) async fn new(path: &Path) -> Result<Self> {
        let file = SqliteFile::open(path).await?;
        let broker = SqliteBroker::new(&file);
        broker.declare(TOPIC).await?;
        Ok(Self { file, publisher: Publisher::new("github", broker) })
    }

    /// The numbers of events that are parked, or of those that are dead.
    async fn stored(&self, dead: bool) -> Result<Vec<String>> {
        let mut query = Query::default();
        (query.consumer, query.dead, query.limit) = (Some(GROUP.into()), Some(dead), usize::MAX);
        let rows = SqliteStore::new(&self.file).browse(&query).await?;
        let of = |content: &Content| if let Content::Event(event) = content { Some(number(event)) } else { None };
        Ok(rows.iter().filter_map(|listed| of(&listed.row.content)).collect())
    }
}

impl Scene for Reliable {
    async fn publish(&mut self, webhook: &Webhook) -> Result<()> {
        self.publisher.publish(webhook.event.clone().topic(TOPIC)).await?;
        Ok(())
    }

    async fn waiting(&mut self) -> Result<usize> {
        Ok(self.stored(false).await?.len())
    }

    async fn dead(&mut self) -> Result<Vec<String>> {
        self.stored(true).await
    }

    async fn is_through(&mut self, published: usize, handled: usize) -> Result<bool> {
        Ok(handled + self.stored(true).await?.len() >= published)
    }
}

/// The process that handles the events, until it is told to stop.
pub(super) async fn work(path: &Path, story: Story, stop: impl Future<Output = ()> + Send + 'static) -> Result<()> {
    let file = SqliteFile::open(path).await?;
    let handler =
        async |event: Event, attempt: Attempt, State(story): State<Story>, mut tx: Tx<Sqlite>| -> Result<()> {
            handle(&event, attempt.number, &story)?;
            effects::insert(&mut tx, &event).await?;
            worked(&event);
            Ok(())
        };
    let policy = Policy::ordered()
        .quick_delay(Duration::from_millis(20))
        .parked_delay(story.share(1.0 / 60.0))
        .parked_delay_max(story.share(1.0 / 12.0));
    let app = Router::new().on(">", handler).policy(policy).with_state(story);
    let consumer = Consumer::new(GROUP, SqliteBroker::new(&file)).topics([TOPIC]).store(SqliteStore::new(&file));
    consumer.serve(app).with_graceful_shutdown(stop).await?;
    Ok(())
}
