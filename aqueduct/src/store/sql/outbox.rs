//! Publishing inside a transaction: a row for a relay, or on the log's own file the insert itself.

use std::sync::Arc;

use super::store::{Home, HomeCalls};
use super::tx::TxDatabase;
use crate::broker::{Abilities, Ownership, Receipt};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::format::{CloudEvents, Format};
use crate::topic::{Text, Topic};

/// Publishes events inside the application's own transaction: they are published if it commits, and never if it is rolled
/// back.
///
/// On PostgreSQL and MySQL events are rows of the table `aq_outbox`, which a [`Relay`](crate::Relay) publishes. On the file of the
/// embedded broker the outbox is the log itself, and there is nothing to relay, unless it is [`relayed`](Self::relayed) to
/// another broker. What an event leaves unset is filled in as [`Publisher`](crate::Publisher) does, but for the topic, which
/// it must name.
///
/// Events of one key are published in the order in which they were inserted. The trap: that is the order of their commits
/// only if their transactions lock the same row before they publish, such as the row that the event is about, or with
/// [`serialize_keys`](Self::serialize_keys). And on SQLite: a transaction that reads before it publishes can find that another
/// has written meanwhile, and fails with `database is locked`. Begin it with `begin immediate`.
///
/// ```
/// # #[cfg(feature = "sqlite")]
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
/// # #[cfg(not(feature = "sqlite"))] fn main() {}
/// ```
pub struct Outbox<DB: TxDatabase> {
    name: Text,
    home: DB::Home,
    how: How,
}

/// How an outbox writes.
#[derive(Clone)]
pub(crate) struct How {
    /// For the log; a relay has its own.
    pub(crate) format: Arc<dyn Format>,
    /// A relay publishes.
    pub(crate) relayed: bool,
    /// Who publishes under a key waits for the commit of whoever did so before.
    pub(crate) serialize_keys: bool,
}

impl<DB: TxDatabase> Outbox<DB> {
    /// An outbox of this name, which is the source of events that name none.
    #[expect(private_bounds, reason = "what a database is to this library is its own")]
    pub fn new<H: Home<Sql = DB>>(name: impl Into<Text>, home: &H) -> Self
    where
        DB: TxDatabase<Home = H>,
    {
        let how = How { format: Arc::new(CloudEvents::default()), relayed: false, serialize_keys: false };
        Self { name: name.into(), home: home.clone(), how }
    }

    /// Makes transactions that publish under one key wait for each other until their commit, so that the key's events are
    /// published in the order of the commits whatever else the transactions do. The trap: two transactions that publish under
    /// the same keys in another order can wait for each other, and one is given up. Defaults to no waiting.
    pub fn serialize_keys(mut self, serialize: bool) -> Self {
        self.how.serialize_keys = serialize;
        self
    }

    /// Writes events to the table `aq_outbox`, from where a [`Relay`](crate::Relay) publishes them to whatever broker it has, in
    /// its format. Defaults to that on servers, and on SQLite to the log of the file.
    pub fn relayed(mut self) -> Self {
        self.how.relayed = true;
        self
    }

    /// How events look on the wire in the log of the file; a relay has a format of its own. Defaults to
    /// [`CloudEvents::binary`].
    pub fn format(mut self, format: impl Format) -> Self {
        self.how.format = Arc::new(format);
        self
    }

    /// Publishes an event if the transaction commits. The answer is where it stands, if the database is the log itself; else
    /// a relay publishes it later.
    pub async fn publish(&self, transaction: &mut DB::Connection, event: Event) -> Result<Option<Receipt>> {
        let mut receipts = self.publish_all(transaction, vec![event]).await?;
        receipts.pop().ok_or_else(|| Error::msg("the database did not answer"))
    }

    /// Publishes events if the transaction commits, in their order, with as few statements as can be. If one is refused none
    /// is published, and the transaction must be rolled back.
    pub async fn publish_all(
        &self,
        transaction: &mut DB::Connection,
        events: Vec<Event>,
    ) -> Result<Vec<Option<Receipt>>> {
        let events = events.into_iter().map(|event| self.filled_in(event)).collect::<Result<Vec<_>>>()?;
        DB::write(&self.home, &self.how, transaction, events).await
    }

    /// Fills in what the event leaves unset.
    fn filled_in(&self, mut event: Event) -> Result<(Topic, Event)> {
        let Some(topic) = event.topic.clone() else {
            let text = format!("events of type {:?} have no topic: give the event one with `.topic(..)`", event.kind);
            return Err(Error::msg(text).permanent());
        };
        topic.check().map_err(|e| Error::from(e).permanent())?;
        if event.id.is_empty() {
            event.id = self.home.clock().uuid().into();
        }
        if event.source.is_empty() {
            event.source = self.name.clone();
        }
        event.time.get_or_insert_with(|| self.home.clock().now());
        admit(&event, event.size())?;
        Ok((topic, event))
    }
}

/// Whether a message may have so many bytes.
pub(super) fn admit(event: &Event, bytes: usize) -> Result<()> {
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

impl<DB: TxDatabase> Clone for Outbox<DB> {
    fn clone(&self) -> Self {
        Self { name: self.name.clone(), home: self.home.clone(), how: self.how.clone() }
    }
}

impl<DB: TxDatabase> std::fmt::Debug for Outbox<DB> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("name", &self.name).field("home", &self.home).finish_non_exhaustive()
    }
}
