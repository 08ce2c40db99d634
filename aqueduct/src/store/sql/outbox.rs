//! Publishing inside a transaction: on the log's own file that is the insert itself, otherwise a row for a relay.

use std::sync::Arc;

use sqlx::sqlite::SqliteConnection;

use super::append::Append;
use super::outgoing;
use super::sqlite::SqliteFile;
use crate::broker::{Abilities, Ownership, Receipt};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::{CloudEvents, Format};
use crate::message::Message;
use crate::topic::{Partition, Position, Text, Topic};

const INSERT: &str =
    "insert into aq_outbox (topic, key, event_id, type, source, content, written_at) values (?, ?, ?, ?, ?, ?, ?)";

/// Publishes events inside the application's own transaction: they are in the log if it commits, and never were if it is
/// rolled back.
///
/// On the file of the embedded broker the outbox is the log itself: there is no second table, and nothing to relay. For
/// another broker events are written to a table ([`relayed`](Self::relayed)), and a [`Relay`](crate::Relay) publishes them. What an
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
    /// A relay publishes, and has the format.
    relayed: bool,
}

impl Outbox {
    /// An outbox of this name, which is the source of events that name none.
    pub fn new(name: impl Into<Text>, file: &SqliteFile) -> Self {
        Self { name: name.into(), file: file.clone(), format: Arc::new(CloudEvents::default()), relayed: false }
    }

    /// Writes events to the table `aq_outbox`, from where a [`Relay`](crate::Relay) publishes them to whatever broker it has, in
    /// its format. Defaults to the log of the file.
    ///
    /// A receipt then says where the row stands in the outbox: what the broker says is known to the relay alone.
    pub fn relayed(mut self) -> Self {
        self.relayed = true;
        self
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
        if self.relayed {
            return self.write_rows(transaction, events).await;
        }
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

    /// Leaves events to a relay, and tells those of this process.
    async fn write_rows(&self, transaction: &mut SqliteConnection, events: Vec<Event>) -> Result<Vec<Receipt>> {
        let events = events.into_iter().map(|event| self.filled_in(event)).collect::<Result<Vec<_>>>()?;
        let now = self.file.clock().now().unix_ms();
        let mut receipts = Vec::with_capacity(events.len());
        for (topic, event) in events {
            admit(&event, event.size())?;
            let query = sqlx::query(INSERT)
                .bind(topic.as_str().to_owned())
                .bind(event.key.as_ref().map(|key| key.as_str().to_owned()))
                .bind(event.id.as_str().to_owned())
                .bind(event.kind.as_str().to_owned())
                .bind(event.source.as_str().to_owned())
                .bind(Vec::from(outgoing::content(&event)))
                .bind(now);
            let id = query.execute(&mut *transaction).await?.last_insert_rowid();
            receipts.push(Receipt::new(Partition { topic, index: 0 }, Position(id.cast_unsigned()), false));
        }
        self.file.hint().give();
        Ok(receipts)
    }

    /// Fills in what the event leaves unset and writes it as a message.
    fn message(&self, event: Event) -> Result<Message> {
        let (topic, event) = self.filled_in(event)?;
        let message = self.format.encode(&event, &topic).map_err(|e| Error::from(e).permanent())?;
        admit(&event, message.size())?;
        Ok(message)
    }

    fn filled_in(&self, mut event: Event) -> Result<(Topic, Event)> {
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
        Ok((topic, event))
    }
}

fn admit(event: &Event, bytes: usize) -> Result<()> {
    let limit = Abilities::new(Ownership::Floor).message_bytes_max;
    if bytes <= limit {
        return Ok(());
    }
    let text = format!(
        "{:?} event {:?} has {bytes} bytes and a message may have {limit}: publish a reference to the data instead",
        event.kind, event.id
    );
    Err(Error::msg(text).permanent())
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("name", &self.name).field("file", &self.file).finish_non_exhaustive()
    }
}
