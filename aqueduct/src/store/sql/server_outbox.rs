//! Writing events into the outbox table inside the application's transaction.

use super::rows;
use super::server::{Server, ServerDatabase};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::store::Content;
use crate::topic::Text;

/// A row of the outbox as it is written: topic, key, id, type, source, and the event whole.
pub(crate) type Written = (Text, Option<Text>, Text, Text, Text, Vec<u8>);

/// Publishes events if the transaction commits, in their order.
pub(super) async fn publish<DB: Server>(
    database: &ServerDatabase<DB>,
    name: &Text,
    connection: &mut DB::Connection,
    events: Vec<Event>,
) -> Result<()> {
    let rows = events.into_iter().map(|event| row(database, name, event)).collect::<Result<Vec<_>>>()?;
    DB::insert_events(connection, database.prefix(), rows, database.keeps_statements()).await?;
    Ok(())
}

fn row<DB: Server>(database: &ServerDatabase<DB>, name: &Text, mut event: Event) -> Result<Written> {
    let Some(topic) = event.topic.clone() else {
        let text = format!("events of type {:?} have no topic: give the event one with `.topic(..)`", event.kind);
        return Err(Error::msg(text).permanent());
    };
    topic.check().map_err(|e| Error::from(e).permanent())?;
    if event.id.is_empty() {
        event.id = database.clock().uuid().into();
    }
    if event.source.is_empty() {
        event.source = name.clone();
    }
    event.time.get_or_insert_with(|| database.clock().now());
    let key = event.key.as_ref().map(Text::from);
    let (id, kind, source) = (event.id.clone(), event.kind.clone(), event.source.clone());
    let content = rows::content(&Content::Event(std::sync::Arc::new(event)));
    Ok((topic.into(), key, id, kind, source, content.into()))
}
