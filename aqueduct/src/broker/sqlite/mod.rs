//! The embedded broker: a durable log in an SQLite file.

mod consumer;
mod floors;
mod leased;
mod lock;
mod log_reader;
mod member;
mod merge;
mod publish;
mod reader;
mod retention;
mod stand_in;
mod state;
mod status;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;

use crate::broker::{Abilities, Broker, Membership, Ownership, Receipt, Subscription};
use crate::error::{BrokerError, StoreError};
use crate::lease::LeaseTable;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::pattern::Pattern;
use crate::store::sql::log::{TopicEntry, create_topic, find_topic, topic_names};
use crate::store::sql::sqlite::{PARTITIONS, SqliteFile};
use crate::store::sql::writer::Task;
use crate::topic::{Partition, Position, Text, Topic};

use publish::Appends;
use retention::Deleted;

pub use lock::{ChildRecord, Children, Owner};
pub use log_reader::{LogReader, Logged};
pub use retention::Retention;
pub use stand_in::StandIn;
pub use status::{ConsumerStatus, FloorStatus, PartitionStatus, SqliteStatus};

/// A durable broker in an [`SqliteFile`]: for development, tests, edge and small services, without a server.
///
/// Topics are logs with partitions, which keep what they hold until [`retention`](Self::retention) says otherwise. A
/// message is confirmed when its commit is; what comes in while a commit is under way shares the next. Publishing the same
/// identity again is recognised for as long as the log holds it.
///
/// A consumer has **one instance at a time**, in one process, which is held by an OS file lock beside the file: a second
/// one says who has it, and waits. Another process's publish wakes a consumer within 50 ms; after 10 s without any it looks
/// less and less often, down to once a second.
///
/// A subscription may name topics by pattern: `orders.*` is every topic of two segments that begins with `orders`, `>` is
/// every topic; those that are created later are joined too.
///
/// The trap: SQLite's locks need a local disk.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> aqueduct::Result<()> {
/// # let folder = tempfile::tempdir()?; let path = folder.path().join("aqueduct.db");
/// use aqueduct::{Event, Publisher, sqlite::SqliteBroker};
/// let broker = SqliteBroker::open(&path).await?;
/// let event = Event::new("order.placed", "order-7")?.topic("orders").key("order-7");
/// assert!(!Publisher::new("shop", broker).publish(event).await?.duplicate);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct SqliteBroker(Arc<Shared>);

struct Shared {
    file: SqliteFile,
    /// Another instance of a consumer is waited for.
    waits: bool,
    /// Where consumers are leased; none if they are locked.
    leases: Option<Arc<dyn LeaseTable>>,
    appends: Appends,
    retention: Mutex<Option<tokio::task::AbortHandle>>,
    /// Of the consumers that were joined here, where the programs of their handlers are recorded.
    children: Mutex<BTreeMap<Text, Children>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(task) = self.retention.lock().take() {
            task.abort();
        }
    }
}

impl SqliteBroker {
    /// The broker in a file.
    pub fn new(file: &SqliteFile) -> Self {
        Self::with(file.clone(), true, None)
    }

    /// The broker in the file at this path, which is created unless it exists.
    pub async fn open(path: impl AsRef<Path>) -> Result<Self, StoreError> {
        SqliteFile::open(path).await.map(|file| Self::new(&file))
    }

    fn with(file: SqliteFile, waits: bool, leases: Option<Arc<dyn LeaseTable>>) -> Self {
        let (appends, retention, children) = (Appends::new(&file), Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { file, waits, leases, appends, retention, children }))
    }

    /// Lets a consumer have its one instance by a lease in this database in place of its lock, for tests of processes that
    /// are stopped and resumed: a lock would never let go of them. Joining waits for the lease.
    #[cfg(any(test, feature = "testing"))]
    #[doc(hidden)]
    pub fn lease_in<H: crate::store::sql::Home>(self, home: &H) -> Self {
        let leases = crate::store::sql::SqlLeases::new(Arc::new(home.clone()));
        Self::with(self.0.file.clone(), self.0.waits, Some(Arc::new(leases)))
    }

    /// The file it is in.
    pub fn file(&self) -> &SqliteFile {
        &self.0.file
    }

    /// Refuses to join while another instance of the consumer runs, so that its service ends with an error that says who
    /// that is. Defaults to waiting for it.
    pub fn refuse_to_wait(self) -> Self {
        Self::with(self.0.file.clone(), false, self.0.leases.clone())
    }

    /// What is deleted from the log, and when: once a minute from now on, for as long as this broker or a clone of it
    /// lives. Defaults to keeping everything.
    ///
    /// Needs a tokio runtime.
    pub fn retention(self, retention: Retention) -> Self {
        let task = tokio::spawn(retention::keep(self.0.file.clone(), retention));
        if let Some(before) = self.0.retention.lock().replace(task.abort_handle()) {
            before.abort();
        }
        self
    }

    /// Deletes now what is over the limits.
    pub async fn delete_now(&self, retention: Retention) -> Result<(), BrokerError> {
        retention::delete_all(&self.0.file, None, retention).await.map(drop).map_err(|e| broker_error(&e))
    }

    /// Deletes now what of a topic is over the limits, and answers what that was: of each partition.
    pub async fn purge(&self, topic: &Topic, retention: Retention) -> Result<Vec<Purged>, BrokerError> {
        let (_, entry) = self.existing(topic).await?;
        let deleted = retention::delete_all(&self.0.file, Some(entry.id), retention).await;
        Ok(Purged::all(topic, deleted.map_err(|e| broker_error(&e))?))
    }

    /// What [`purge`](Self::purge) would delete now.
    pub async fn would_purge(&self, topic: &Topic, retention: Retention) -> Result<Vec<Purged>, BrokerError> {
        let (file, (mut connection, entry)) = (&self.0.file, self.existing(topic).await?);
        let failed = |e| broker_error(&file.explain(e));
        let mut snapshot = connection.begin().await.map_err(failed)?;
        let counted = retention::count_all(&mut snapshot, entry.id, retention, file.clock().now()).await;
        Ok(Purged::all(topic, counted.map_err(failed)?))
    }

    /// A connection that reads, and the entry of a topic that exists.
    async fn existing(&self, topic: &Topic) -> Result<(SqliteConnection, TopicEntry), BrokerError> {
        let mut connection = self.0.file.connect().await.map_err(|e| broker_error(&e))?;
        let found = find_topic(&mut connection, topic).await.map_err(|e| broker_error(&self.0.file.explain(e)))?;
        let entry = found.ok_or_else(|| BrokerError::NoSuchTopic { topic: topic.clone() })?;
        Ok((connection, entry))
    }

    /// Creates a topic unless it exists.
    pub async fn declare(&self, topic: impl Into<Topic>) -> Result<(), BrokerError> {
        let topic = topic.into();
        topic.check()?;
        let task = Find {
            topic: topic.clone(),
            create: Some(self.0.file.create().unwrap_or(PARTITIONS)),
            file: self.0.file.clone(),
        };
        if let Some(entry) = self.0.file.write_with(task).await.map_err(|e| broker_error(&e))? {
            self.0.appends.know(topic, entry);
        }
        Ok(())
    }

    /// The topics there are, in the order in which they were created.
    pub async fn topics(&self) -> Result<Vec<Topic>, BrokerError> {
        let mut connection = self.0.file.connect().await.map_err(|e| broker_error(&e))?;
        let names = topic_names(&mut connection).await.map_err(|e| broker_error(&self.0.file.explain(e)))?;
        Ok(names.into_iter().map(|(_, topic, _)| topic).collect())
    }

    /// Where the programs are recorded that handlers of this consumer start; none if it was not joined by this broker or a
    /// clone of it.
    pub fn children(&self, consumer: &str) -> Option<Children> {
        self.0.children.lock().get(&Text::from(consumer)).cloned()
    }

    /// Forgets a consumer that is gone for good: up to where it had settled, so that retention does not wait for it any
    /// more. Started again it would begin like a new one. Refused while an instance runs.
    pub async fn forget(&self, consumer: impl Into<Text>) -> Result<(), BrokerError> {
        let (consumer, file) = (consumer.into(), self.0.file.clone());
        let _lock = member::take_lock(&file, &consumer, false).await?;
        let forget = consumer::Forget { consumer, file: file.clone() };
        file.write_with(forget).await.map_err(|e| broker_error(&e))
    }

    /// Moves a consumer back in a partition: everything above `to` is delivered again. For a database that has lost the end of
    /// what the consumer had done, such as a standby that took over: `to` is then up to where the database knows it as settled,
    /// and what has taken effect above it is skipped. Refused while an instance runs, and for what is not behind the consumer.
    ///
    /// The trap: without an inbox, effects happen again.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> aqueduct::Result<()> {
    /// # let folder = tempfile::tempdir()?; let path = folder.path().join("aqueduct.db");
    /// use aqueduct::{Partition, Position, sqlite::SqliteBroker};
    /// let broker = SqliteBroker::open(&path).await?;
    /// let partition = Partition { topic: "orders".into(), index: 0 };
    /// let refused = broker.rewind("mail", &partition, Position(7)).await.unwrap_err();
    /// assert!(refused.to_string().contains("is not settled that far"));
    /// # Ok(()) }
    /// ```
    pub async fn rewind(
        &self,
        consumer: impl Into<Text>,
        partition: &Partition,
        to: Position,
    ) -> Result<(), BrokerError> {
        let (consumer, file) = (consumer.into(), self.0.file.clone());
        let _lock = member::take_lock(&file, &consumer, false).await?;
        let rewind = consumer::Rewind { consumer, partition: partition.clone(), to, file: file.clone() };
        file.write_with(rewind).await.map_err(|e| broker_error(&e))
    }

    async fn publish_all(&self, messages: Vec<Message>) -> Vec<Result<Receipt, BrokerError>> {
        if self.0.file.is_held_here() {
            return messages.iter().map(|_| Err(BrokerError::Refused(INSIDE.into()))).collect();
        }
        let limit = self.abilities().message_bytes_max;
        let refusals: Vec<Option<BrokerError>> = messages.iter().map(|m| check_message(m, limit).err()).collect();
        let good = messages.into_iter().zip(&refusals).filter(|(_, refusal)| refusal.is_none());
        let mut answers = self.0.appends.append(good.map(|(message, _)| message).collect()).await.into_iter();
        let answer = |refusal: Option<BrokerError>| match refusal {
            Some(error) => Err(error),
            None => answers.next().unwrap_or(Err(BrokerError::Closed)),
        };
        refusals.into_iter().map(answer).collect()
    }

    /// Says whether a topic can be used; creates one that is missing where that is wanted.
    async fn find(&self, topic: &Topic) -> Result<TopicEntry, BrokerError> {
        if let Some(entry) = self.0.appends.known(topic) {
            return Ok(entry);
        }
        let task = Find { topic: topic.clone(), create: self.0.file.create(), file: self.0.file.clone() };
        let found = self.0.file.write_with(task).await.map_err(|e| broker_error(&e))?;
        let entry = found.ok_or_else(|| BrokerError::NoSuchTopic { topic: topic.clone() })?;
        self.0.appends.know(topic.clone(), entry.clone());
        Ok(entry)
    }
}

impl Broker for SqliteBroker {
    fn abilities(&self) -> Abilities {
        let abilities = Abilities::new(Ownership::Floor);
        Abilities { durable: true, ordered_publish: true, dedup: true, one_instance: true, ..abilities }
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(self.publish_all(messages))
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        Box::pin(async move {
            match wildcard(topic)? {
                Some(_) => Ok(()),
                None => self.find(topic).await.map(drop),
            }
        })
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(async move { Ok(Arc::new(member::join(self, subscription).await?) as Arc<dyn Membership>) })
    }
}

impl std::fmt::Debug for SqliteBroker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteBroker").field("file", &self.0.file).finish_non_exhaustive()
    }
}

/// What was deleted of a partition, or would be.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Purged {
    /// The partition.
    pub partition: Partition,
    /// Everything up to here.
    pub last: Position,
    /// So many messages.
    pub messages: u64,
    /// Their keys, headers and bodies together.
    pub bytes: u64,
}

impl Purged {
    /// Those partitions of which something was deleted.
    fn all(topic: &Topic, deleted: Vec<((i64, i64), Deleted)>) -> Vec<Self> {
        let purged = |((_, number), deleted): ((i64, i64), Deleted)| {
            let partition = Partition { topic: topic.clone(), index: u32::try_from(number).unwrap_or(u32::MAX) };
            let [last, messages, bytes] =
                [deleted.last, deleted.messages, deleted.bytes].map(|n| u64::try_from(n).unwrap_or(0));
            Self { partition, last: Position(last), messages, bytes }
        };
        deleted.into_iter().map(purged).filter(|purged| purged.messages > 0).collect()
    }
}

/// Why a publish from inside a transaction on the same file cannot be waited for.
const INSIDE: &str = "this handler holds a transaction on the same file, which a publish of its own would wait for: use `tx.publish(event)`, which commits with it";

fn check_message(message: &Message, limit: usize) -> Result<(), BrokerError> {
    if wildcard(&message.topic)?.is_some() {
        let text = format!("{:?} stands for many topics: publish to one without `*` and `>`", message.topic);
        return Err(BrokerError::Refused(text));
    }
    let bytes = message.size();
    if bytes > limit { Err(BrokerError::TooLarge { bytes, limit }) } else { Ok(()) }
}

/// The pattern that a topic's name is, if it has a wildcard.
fn wildcard(topic: &Topic) -> Result<Option<Pattern>, BrokerError> {
    topic.check()?;
    let segments = topic.as_str().split('.');
    if !segments.into_iter().any(|segment| matches!(segment, "*" | ">")) {
        return Ok(None);
    }
    Pattern::parse(topic.as_str()).map(Some).map_err(|e| BrokerError::Refused(format!("topic {topic:?}: {e}")))
}

fn broker_error(error: &StoreError) -> BrokerError {
    match error {
        StoreError::Unavailable(source) => BrokerError::Unavailable(source.to_string().into()),
        other => BrokerError::Refused(other.to_string()),
    }
}

/// Finds a topic, or creates it.
struct Find {
    topic: Topic,
    create: Option<u32>,
    file: SqliteFile,
}

impl Task for Find {
    type Answer = Option<TopicEntry>;

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<Self::Answer, StoreError>> {
        Box::pin(async move {
            let found = match (find_topic(connection, &self.topic).await, self.create) {
                (Ok(None), Some(partitions)) => create_topic(connection, &self.topic, partitions).await.map(Some),
                (found, _) => found,
            };
            found.map_err(|e| self.file.explain(e))
        })
    }
}
