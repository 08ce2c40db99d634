//! Publishing inside a transaction: on the log's own file that is the insert itself.

use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;

use super::append::Append;
use super::sqlite::SqliteFile;
use crate::broker::{Abilities, Ownership, Receipt};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::{CloudEvents, Format};
use crate::message::Message;
use crate::topic::Text;

/// Publishes events inside the application's own transaction: they are in the log if it commits, and never were if it is
/// rolled back.
///
/// On the file of the embedded broker the outbox is the log itself: there is no second table, and nothing to relay. What an
/// event leaves unset is filled in as [`Publisher`](crate::Publisher) does, but for the topic, which it must name.
///
/// The trap: a transaction that reads before it publishes can find that another has written meanwhile, and fails with
/// `database is locked`. Begin it with `begin immediate`.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> aqueduct::Result<()> {
/// # let folder = tempfile::tempdir()?; let path = folder.path().join("shop.db");
/// use aqueduct::{Event, Outbox, sqlite::SqliteFile};
/// use sqlx::{Connection, SqliteConnection};
///
/// let outbox = Outbox::new("shop", &SqliteFile::open(&path).await?);
/// let mut connection = SqliteConnection::connect(path.to_str().unwrap()).await?;
/// sqlx::query("create table orders (id text)").execute(&mut connection).await?;
///
/// let mut tx = connection.begin_with("begin immediate").await?;
/// sqlx::query("insert into orders (id) values ('order-7')").execute(&mut *tx).await?;
/// outbox.publish(&mut tx, Event::new("order.placed", "order-7")?.topic("orders").key("order-7")).await?;
/// tx.commit().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Outbox {
    name: Text,
    file: SqliteFile,
    format: Arc<dyn Format>,
}

impl Outbox {
    /// An outbox of this name, which is the source of events that name none.
    pub fn new(name: impl Into<Text>, file: &SqliteFile) -> Self {
        Self { name: name.into(), file: file.clone(), format: Arc::new(CloudEvents::default()) }
    }

    /// How events look on the wire. Defaults to [`CloudEvents::binary`].
    pub fn format(mut self, format: impl Format) -> Self {
        self.format = Arc::new(format);
        self
    }

    /// Publishes an event if the transaction commits.
    pub async fn publish(&self, transaction: &mut SqliteConnection, event: Event) -> Result<Receipt> {
        let mut receipts = self.publish_all(transaction, vec![event]).await?;
        receipts.pop().ok_or_else(|| Error::msg("the log did not answer"))
    }

    /// Publishes events if the transaction commits, in their order. If one is refused none is published, and the
    /// transaction must be rolled back.
    pub async fn publish_all(&self, transaction: &mut SqliteConnection, events: Vec<Event>) -> Result<Vec<Receipt>> {
        let messages = events.into_iter().map(|event| self.message(event)).collect::<Result<Vec<_>>>()?;
        let (known, now) = (std::collections::BTreeMap::new(), self.file.clock().now());
        // Without a turn of its own an event without a key goes where its identity says.
        let turn = messages.first().and_then(|m| m.dedup_id.as_ref()).map_or(0, |id| id.as_str().len() as u64);
        let append = Append {
            messages: &messages.iter().collect::<Vec<_>>(),
            topics: &known,
            create: self.file.create(),
            turn,
            now,
            inserts: self.file.inserts(),
        };
        let appended = append.run(transaction).await?;
        appended.answers.into_iter().map(|answer| answer.map_err(|e| Error::from(e).permanent())).collect()
    }

    /// Fills in what the event leaves unset and writes it as a message.
    fn message(&self, mut event: Event) -> Result<Message> {
        let Some(topic) = event.topic.clone() else {
            let text = format!("events of type {:?} have no topic: give the event one with `.topic(..)`", event.kind);
            return Err(Error::msg(text).permanent());
        };
        topic.check().map_err(|e| Error::from(e).permanent())?;
        if event.id.is_empty() {
            event.id = self.file.clock().uuid().into();
        }
        if event.source.is_empty() {
            event.source = self.name.clone();
        }
        event.time.get_or_insert_with(|| self.file.clock().now());
        let message = self.format.encode(&event, &topic).map_err(|e| Error::from(e).permanent())?;
        let (bytes, limit) = (message.size(), Abilities::new(Ownership::Floor).message_bytes_max);
        if bytes > limit {
            let text = format!(
                "{:?} event {:?} has {bytes} bytes and the log takes {limit}: publish a reference to the data instead",
                event.kind, event.id
            );
            return Err(Error::msg(text).permanent());
        }
        Ok(message)
    }
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("name", &self.name).field("file", &self.file).finish_non_exhaustive()
    }
}
