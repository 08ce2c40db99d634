//! Publishing: what several publishers bring while the writer is busy is appended at once, as if it were of one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use super::broker_error;
use crate::broker::Receipt;
use crate::error::{BrokerError, StoreError};
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::store::sql::append::{Append, Appended};
use crate::store::sql::log::TopicEntry;
use crate::store::sql::sqlite::SqliteFile;
use crate::store::sql::writer::AnyTask;
use crate::topic::Topic;

/// Publishers that wait for the writer; more wait for these.
const WAITING_MAX: usize = 1_024;

/// One append takes in no further publisher when it has so many messages.
const APPEND_MAX: usize = 4_096;

type Answers = Vec<Result<Receipt, BrokerError>>;

/// What is to be appended to the log of a file.
#[derive(Clone)]
pub(super) struct Appends(Arc<Shared>);

struct Shared {
    file: SqliteFile,
    /// Topics that are known to be in the file, where they stay.
    topics: Mutex<BTreeMap<Topic, TopicEntry>>,
    waiting: Mutex<VecDeque<Part>>,
    room: Arc<Semaphore>,
    /// Where the next message without a key goes.
    turn: Mutex<u64>,
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
        let (file, room) = (file.clone(), Arc::new(Semaphore::new(WAITING_MAX)));
        Self(Arc::new(Shared { file, topics: Mutex::default(), waiting: Mutex::default(), room, turn: Mutex::new(0) }))
    }

    /// The topic's entry, if it is known to be in the file.
    pub(super) fn known(&self, topic: &Topic) -> Option<TopicEntry> {
        self.0.topics.lock().get(topic).cloned()
    }

    pub(super) fn know(&self, topic: Topic, entry: TopicEntry) {
        self.0.topics.lock().insert(topic, entry);
    }

    /// Appends the messages of one publisher, in their order.
    pub(super) async fn append(&self, messages: Vec<Message>) -> Answers {
        if messages.is_empty() {
            return Vec::new();
        }
        let count = messages.len();
        let (back, answers) = oneshot::channel();
        let room = Arc::clone(&self.0.room).acquire_owned().await.ok();
        let first = {
            let mut waiting = self.0.waiting.lock();
            waiting.push_back(Part { messages, back, _room: room });
            waiting.len() == 1
        };
        if first {
            self.go();
        }
        answers.await.unwrap_or_else(|_| (0..count).map(|_| Err(BrokerError::Closed)).collect())
    }

    /// Has what waits appended. In a task, since the publisher that comes first may go while others wait with it.
    fn go(&self) {
        let appends = self.clone();
        tokio::spawn(async move {
            let file = appends.0.file.clone();
            file.hand_in(Box::new(AppendAll { appends, parts: Vec::new(), appended: None })).await;
        });
    }

    /// Takes those that wait, as far as one append goes.
    fn take(&self) -> Vec<Part> {
        let mut waiting = self.0.waiting.lock();
        let (mut parts, mut count) = (Vec::new(), 0);
        while count < APPEND_MAX
            && let Some(part) = waiting.pop_front()
        {
            count += part.messages.len();
            parts.push(part);
        }
        if !waiting.is_empty() {
            self.go();
        }
        parts
    }
}

/// Appends what waits when its turn comes.
struct AppendAll {
    appends: Appends,
    /// What was taken; nothing before that.
    parts: Vec<Part>,
    appended: Option<Appended>,
}

impl AppendAll {
    async fn append(&mut self, connection: &mut SqliteConnection) -> Result<(), StoreError> {
        if self.parts.is_empty() {
            self.parts = self.appends.take();
        }
        let shared = &self.appends.0;
        let all: Vec<&Message> = self.parts.iter().flat_map(|part| &part.messages).collect();
        let (file, topics) = (&shared.file, shared.topics.lock().clone());
        let turn = {
            let mut turn = shared.turn.lock();
            *turn = turn.wrapping_add(all.len() as u64);
            *turn
        };
        let (create, now, inserts) = (file.create(), file.clock().now(), file.inserts());
        let append = Append { messages: &all, topics: &topics, create, turn, now, inserts };
        self.appended = Some(append.run(connection).await.map_err(|e| file.explain(e))?);
        Ok(())
    }

    /// Nobody suffers from what is wrong with another's messages: each goes alone.
    fn separate(self) {
        for part in self.parts {
            let task = AppendAll { appends: self.appends.clone(), parts: vec![part], appended: None };
            let file = self.appends.0.file.clone();
            tokio::spawn(async move { file.hand_in(Box::new(task)).await });
        }
    }
}

impl AnyTask for AppendAll {
    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.append(connection))
    }

    fn answer(mut self: Box<Self>, committed: Result<(), StoreError>) {
        // Refused before its turn came: those that wait for it are told.
        if self.parts.is_empty() {
            self.parts = self.appends.take();
        }
        match (committed, self.appended.take()) {
            (Ok(()), Some(appended)) => {
                self.appends.0.topics.lock().extend(appended.topics);
                let mut answers = appended.answers.into_iter();
                for Part { messages, back, .. } in self.parts {
                    // Who does not wait any more does not need the answer.
                    drop(back.send(answers.by_ref().take(messages.len()).collect()));
                }
            }
            (Err(error), _) if self.parts.len() == 1 || matches!(error, StoreError::Unavailable(_)) => {
                for Part { messages, back, .. } in self.parts {
                    drop(back.send(messages.iter().map(|_| Err(broker_error(&error))).collect()));
                }
            }
            _ => self.separate(),
        }
    }
}
