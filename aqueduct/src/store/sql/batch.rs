//! Batches: messages of one partition behind one another in one row, and reading them.
//!
//! A row costs more than a message in it: one row for many makes reading and writing cheap. A batch is small enough that a
//! message that stays in memory, which keeps its whole batch there, does not hold much.

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::codec::{Decoder, Encoder, VERSION, checksum};
use super::log::PartitionEntry;
use super::sqlite::MEND;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::message::Message;
use crate::topic::{Partition, Position, Text, Topic};

/// The messages of a batch at most.
pub(crate) const MESSAGES_MAX: i64 = 64;

/// A batch takes in no further message when it would be longer than this.
const BYTES_MAX: usize = 32 * 1_024;

/// The columns that [`Batch::read`] reads.
macro_rules! batch_columns {
    () => {
        "last, count, bytes, stored_at, checksum, version, content"
    };
}
pub(crate) use batch_columns;

/// A batch as it is in its row.
pub(crate) struct Batch {
    pub(crate) topic: i64,
    pub(crate) number: i64,
    /// The position of the last message.
    pub(crate) last: i64,
    pub(crate) count: i64,
    /// What its messages have together.
    pub(crate) bytes: i64,
    pub(crate) stored_at: i64,
    pub(crate) content: Bytes,
}

impl Batch {
    /// Where its first message stands.
    pub(crate) fn first(&self) -> i64 {
        self.last - self.count + 1
    }

    pub(crate) fn checksum(&self) -> i64 {
        let Self { topic, number, last, count, bytes, stored_at, content } = self;
        checksum(&[*topic, *number, *last, *count, *bytes, *stored_at], &[content])
    }

    /// A row of [`batch_columns`]; an error if it is not as it was written, which says what is wrong.
    pub(crate) fn read(row: &SqliteRow, topic: i64, number: i64) -> Result<Result<Self, Unreadable>, sqlx::Error> {
        let version: i64 = row.try_get(5)?;
        if version > VERSION {
            return Ok(Err(Unreadable::TooNew(version)));
        }
        let content: Vec<u8> = row.try_get(6)?;
        let (last, count, bytes, stored_at) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let batch = Self { topic, number, last, count, bytes, stored_at, content: content.into() };
        let sealed = batch.checksum() == row.try_get::<i64, _>(4)?;
        Ok(if sealed { Ok(batch) } else { Err(Unreadable::Damaged) })
    }

    /// Its messages, in their order. They share its memory.
    pub(crate) fn messages(&self, topic: &Topic) -> Result<Vec<Message>, StoreError> {
        let mut content = Decoder(self.content.clone());
        let stored_at = Some(Timestamp::from_unix_ms(self.stored_at));
        let message = |_| {
            let (key, dedup_id) = (content.optional()?, content.optional_text()?);
            let (headers, body) = (content.headers()?, content.bytes()?);
            Ok(Message { topic: topic.clone(), key, headers, body, dedup_id, stored_at })
        };
        (0..self.count).map(message).collect()
    }

    /// The identities of its messages.
    pub(crate) fn identities(&self) -> Result<Vec<Text>, StoreError> {
        let messages = self.messages(&Topic::from(""))?;
        Ok(messages.into_iter().filter_map(|message| message.dedup_id).collect())
    }
}

/// Why a row cannot be served.
pub(crate) enum Unreadable {
    /// It has changed by itself.
    Damaged,
    TooNew(i64),
}

/// Puts messages of one partition into batches, in their order.
pub(crate) struct Batches {
    topic: i64,
    number: i64,
    now: Timestamp,
    done: Vec<Batch>,
    content: Encoder,
    last: i64,
    count: i64,
    bytes: i64,
}

impl Batches {
    pub(crate) fn new(topic: i64, number: i64, now: Timestamp) -> Self {
        Self { topic, number, now, done: Vec::new(), content: Encoder::default(), last: 0, count: 0, bytes: 0 }
    }

    /// Takes in a message. Its position is the next one.
    pub(crate) fn push(&mut self, message: &Message, position: i64) {
        let size = message.size();
        if self.count == MESSAGES_MAX || self.content.len() + size > BYTES_MAX {
            self.end();
        }
        if self.count == 1 {
            // There are several: it will be long.
            self.content.reserve(BYTES_MAX);
        }
        let dedup_id = message.dedup_id.as_ref().map(|id| id.as_str().as_bytes());
        self.content.optional(message.key().map(|key| &**key)).optional(dedup_id);
        self.content.headers(&message.headers).bytes(&message.body);
        (self.last, self.count) = (position, self.count + 1);
        self.bytes = self.bytes.saturating_add(i64::try_from(size).unwrap_or(i64::MAX));
    }

    fn end(&mut self) {
        if self.count > 0 {
            let content = std::mem::take(&mut self.content).finish();
            let (count, bytes) = (std::mem::take(&mut self.count), std::mem::take(&mut self.bytes));
            let Self { topic, number, last, .. } = *self;
            self.done.push(Batch { topic, number, last, count, bytes, stored_at: self.now.unix_ms(), content });
        }
    }

    pub(crate) fn finish(mut self) -> Vec<Batch> {
        self.end();
        self.done
    }
}

/// What is read of a partition.
pub(crate) struct Slice<'a> {
    pub(crate) partition: &'a Partition,
    pub(crate) topic: i64,
    /// Only above this position.
    pub(crate) after: u64,
    /// So many messages, and the rest of the last one's batch.
    pub(crate) limit: usize,
    /// No further batch when those before it have so many bytes.
    pub(crate) bytes: usize,
}

impl Slice<'_> {
    /// The messages with their positions, in order and without a gap, from the first that has not been deleted. The entry
    /// says what the partition holds, and must be of the same snapshot.
    pub(crate) async fn read(
        &self,
        snapshot: &mut SqliteConnection,
        entry: &PartitionEntry,
    ) -> Result<Result<Vec<(Position, Message)>, StoreError>, sqlx::Error> {
        let after = self.after.cast_signed();
        if entry.next <= after {
            let what = "the partition ends before it: has an older copy taken the file's place?";
            return Ok(Err(self.damaged(after, what)));
        }
        let start = entry.first.max(after + 1);
        let end = entry.next.min(start.saturating_add(i64::try_from(self.limit).unwrap_or(i64::MAX)));
        // Positions have no gaps: these are the batches from the one of the first position to the one of the last.
        let rows = sqlx::query(concat!(
            "select ",
            batch_columns!(),
            " from aq_log where topic = ?1 and number = ?2 and last >= ?3 and last <= (select max(last) from (
                 select last, sum(bytes) over (order by last) - bytes as before from aq_log
                 where topic = ?1 and number = ?2 and last >= ?3 and last < ?4 + ?5 and last - count < ?4 - 1
             ) where before < ?6) order by last"
        ))
        .bind(self.topic)
        .bind(i64::from(self.partition.index))
        .bind(start)
        .bind(end)
        .bind(MESSAGES_MAX)
        .bind(i64::try_from(self.bytes).unwrap_or(i64::MAX))
        .fetch_all(snapshot)
        .await?;
        let (mut expected, mut messages) = (start, Vec::with_capacity(self.limit));
        for row in &rows {
            let batch = match Batch::read(row, self.topic, i64::from(self.partition.index))? {
                Ok(batch) => batch,
                // What was read before it is served first.
                Err(_) if !messages.is_empty() => break,
                Err(unreadable) => return Ok(Err(self.unreadable(&unreadable, expected))),
            };
            let first = batch.first();
            if first > expected || first < expected && expected > start {
                break;
            }
            match batch.messages(&self.partition.topic) {
                Ok(found) => {
                    let wanted = expected..entry.next;
                    messages.extend((first..).zip(found).filter(|(at, _)| wanted.contains(at)));
                }
                Err(error) => return Ok(Err(error)),
            }
            expected = batch.last + 1;
        }
        let read = |(at, message): (i64, Message)| (Position(at.cast_unsigned()), message);
        Ok(if expected >= end || !messages.is_empty() {
            Ok(messages.into_iter().map(read).collect())
        } else {
            Err(self.damaged(expected, "it is not there"))
        })
    }

    fn unreadable(&self, unreadable: &Unreadable, expected: i64) -> StoreError {
        match unreadable {
            Unreadable::TooNew(version) => {
                let [found, known] = [*version, VERSION].map(|v| u32::try_from(v).unwrap_or(u32::MAX));
                StoreError::TooNew { found, known }
            }
            Unreadable::Damaged => self.damaged(expected, "the checksum of its batch is wrong"),
        }
    }

    fn damaged(&self, position: i64, what: &str) -> StoreError {
        StoreError::Refused(format!("the message at {}:{position} is damaged ({what}): {MEND}", self.partition))
    }
}
