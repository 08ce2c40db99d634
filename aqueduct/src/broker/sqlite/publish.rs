//! Publishing: what several publishers bring while the writer is busy is appended at once, as if it were of one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

use super::broker_error;
use super::merge::{Merge, Merged};
use crate::broker::Receipt;
use crate::error::{BrokerError, StoreError};
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::store::sql::append::{Append, Appended};
use crate::store::sql::log::TopicEntry;
use crate::store::sql::sqlite::SqliteFile;
use crate::topic::Topic;

/// Publishers that wait for the writer; more wait for these.
const WAITING_MAX: usize = 1_024;

/// What a message costs beside its bytes, so that one append holds neither too many messages nor too large ones: others wait
/// for the writer meanwhile.
const MESSAGE_COST: usize = 2_048;

type Answers = Vec<Result<Receipt, BrokerError>>;

/// What is to be appended to the log of a file.
pub(super) struct Appends {
    merged: Merged<Appending>,
    room: Arc<Semaphore>,
}

#[derive(Default)]
struct Appending {
    /// Topics that are known to be in the file, where they stay.
    topics: Mutex<BTreeMap<Topic, TopicEntry>>,
    /// Where the next message without a key goes.
    turn: AtomicU64,
}

/// The messages of one publisher.
struct Part {
    messages: Vec<Message>,
    back: oneshot::Sender<Answers>,
    /// Its room among those that wait.
    _room: Option<OwnedSemaphorePermit>,
}

impl Appends {
    pub(super) fn new(file: &SqliteFile) -> Self {
        Self { merged: Merged::new(file, Appending::default()), room: Arc::new(Semaphore::new(WAITING_MAX)) }
    }

    /// The topic's entry, if it is known to be in the file.
    pub(super) fn known(&self, topic: &Topic) -> Option<TopicEntry> {
        self.merged.merge().topics.lock().get(topic).cloned()
    }

    pub(super) fn know(&self, topic: Topic, entry: TopicEntry) {
        self.merged.merge().topics.lock().insert(topic, entry);
    }

    /// Appends the messages of one publisher, in their order.
    pub(super) async fn append(&self, messages: Vec<Message>) -> Answers {
        if messages.is_empty() {
            return Vec::new();
        }
        let count = messages.len();
        let (back, answers) = oneshot::channel();
        let room = Arc::clone(&self.room).acquire_owned().await.ok();
        self.merged.push(Part { messages, back, _room: room });
        answers.await.unwrap_or_else(|_| (0..count).map(|_| Err(BrokerError::Closed)).collect())
    }
}

impl Merge for Appending {
    type Part = Part;
    type Done = Appended;

    const COST_MAX: usize = 8 << 20;

    fn cost(part: &Part) -> usize {
        part.messages.iter().map(|message| message.size() + MESSAGE_COST).sum()
    }

    fn not_before(&self) -> Option<Instant> {
        None
    }

    fn run<'a>(
        &'a self,
        file: &'a SqliteFile,
        parts: &'a [Part],
        connection: &'a mut SqliteConnection,
    ) -> BoxFuture<'a, Result<Appended, StoreError>> {
        Box::pin(async move {
            let all: Vec<&Message> = parts.iter().flat_map(|part| &part.messages).collect();
            let topics = self.topics.lock().clone();
            let turn = self.turn.fetch_add(all.len() as u64, Ordering::Relaxed);
            let (create, now, inserts) = (file.create(), file.clock().now(), file.inserts());
            let append = Append { messages: &all, topics: &topics, create, turn, now, inserts };
            append.run(connection).await.map_err(|e| file.explain(e))
        })
    }

    fn answer(&self, parts: Vec<Part>, done: Result<Appended, StoreError>) -> Vec<Part> {
        match done {
            Ok(appended) => {
                self.topics.lock().extend(appended.topics);
                let mut answers = appended.answers.into_iter();
                for Part { messages, back, .. } in parts {
                    // Who does not wait any more does not need the answer.
                    drop(back.send(answers.by_ref().take(messages.len()).collect()));
                }
            }
            // Nobody suffers from what is wrong with another's messages.
            Err(error) if parts.len() > 1 && !matches!(error, StoreError::Unavailable(_)) => return parts,
            Err(error) => {
                for Part { messages, back, .. } in parts {
                    drop(back.send(messages.iter().map(|_| Err(broker_error(&error))).collect()));
                }
            }
        }
        Vec::new()
    }
}
