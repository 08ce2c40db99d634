//! The log of the embedded broker: appending to it, inside whatever transaction, and reading it.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Row};
use xxhash_rust::xxh3::xxh3_64;

use super::codec::{Decoder, Encoder, VERSION, checksum};
use super::sqlite::{MEND, assembled};
use crate::broker::Receipt;
use crate::clock::Timestamp;
use crate::error::{BrokerError, StoreError};
use crate::message::Message;
use crate::topic::{Partition, Position, Text, Topic};

/// Statements that insert so many rows: many share the cost of one, and few different ones have to be prepared.
pub(crate) struct Inserts([(usize, Arc<str>); 4]);

impl Default for Inserts {
    fn default() -> Self {
        Self([250, 50, 10, 1].map(|rows| (rows, insert_statement(rows).into())))
    }
}

/// The values of a row.
const COLUMNS: usize = 9;

/// A topic as it is in the file. Its partitions never change.
#[derive(Clone, Debug)]
pub(crate) struct TopicEntry {
    pub(crate) id: i64,
    pub(crate) partitions: u32,
}

/// What is appended and how.
pub(crate) struct Append<'a> {
    pub(crate) messages: &'a [Message],
    /// Topics that are known to be committed.
    pub(crate) topics: &'a BTreeMap<Topic, TopicEntry>,
    /// How many partitions a topic gets that does not exist; none to refuse it.
    pub(crate) create: Option<u32>,
    /// Where the first message without a key goes.
    pub(crate) turn: u64,
    pub(crate) now: Timestamp,
    pub(crate) inserts: &'a Inserts,
}

/// What came of it.
pub(crate) struct Appended {
    pub(crate) answers: Vec<Result<Receipt, BrokerError>>,
    /// Topics that were looked up or created; they count when the transaction is committed.
    pub(crate) topics: BTreeMap<Topic, TopicEntry>,
}

/// A message on its way into the file.
struct Entry<'a> {
    /// Its place among the answers.
    number: usize,
    message: &'a Message,
    topic: i64,
    partition: u32,
    position: i64,
    /// As they go into the file; nothing once they have been handed to a statement.
    headers: Vec<u8>,
}

/// The positions that one append takes of a partition.
struct Share {
    base: i64,
    rows: i64,
    bytes: i64,
}

impl Append<'_> {
    /// Appends all messages that can be, in their order, and answers each.
    pub(crate) async fn run(&self, connection: &mut SqliteConnection) -> Result<Appended, sqlx::Error> {
        let mut answers: Vec<Option<Result<Receipt, BrokerError>>> = self.messages.iter().map(|_| None).collect();
        let mut topics = BTreeMap::new();
        let mut entries = Vec::with_capacity(self.messages.len());
        for (number, message) in self.messages.iter().enumerate() {
            match self.topic(connection, &mut topics, &message.topic).await? {
                None => {
                    let topic = message.topic.clone();
                    answers[number] = Some(Err(BrokerError::NoSuchTopic { topic }));
                }
                Some(topic) => {
                    let partition = self.partition(message, number, topic.partitions);
                    let headers = encoded(message);
                    entries.push(Entry { number, message, topic: topic.id, partition, position: 0, headers });
                }
            }
        }
        let shares = reserve(connection, &mut entries).await?;
        if insert(connection, self.inserts, &mut entries, self.now).await? == entries.len() as u64 {
            for entry in &entries {
                answers[entry.number] = Some(Ok(entry.receipt(false)));
            }
        } else {
            insert_singly(connection, self.inserts, &mut entries, (shares, self.now), &mut answers).await?;
        }
        let unanswered = || Err(BrokerError::Closed);
        Ok(Appended { answers: answers.into_iter().map(|a| a.unwrap_or_else(unanswered)).collect(), topics })
    }

    /// The topic's entry: known, looked up or created; none if it does not exist and is not to be created.
    async fn topic(
        &self,
        connection: &mut SqliteConnection,
        found: &mut BTreeMap<Topic, TopicEntry>,
        name: &Topic,
    ) -> Result<Option<TopicEntry>, sqlx::Error> {
        if let Some(entry) = self.topics.get(name).or_else(|| found.get(name)) {
            return Ok(Some(entry.clone()));
        }
        let entry = match (find_topic(connection, name).await?, self.create) {
            (Some(entry), _) => entry,
            (None, None) => return Ok(None),
            (None, Some(partitions)) => create_topic(connection, name, partitions).await?,
        };
        found.insert(name.clone(), entry.clone());
        Ok(Some(entry))
    }

    fn partition(&self, message: &Message, number: usize, count: u32) -> u32 {
        let chosen = match message.key() {
            Some(key) => xxh3_64(key),
            None => self.turn.wrapping_add(number as u64),
        };
        u32::try_from(chosen % u64::from(count.max(1))).unwrap_or(0)
    }
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut headers = Encoder::default();
    headers.headers(&message.headers);
    headers.finish().into()
}

impl Entry<'_> {
    /// Hands the values of its row to a statement.
    fn give(&mut self, row: &mut SqliteArguments, now: Timestamp) -> Result<(), BoxDynError> {
        let checksum = self.checksum(now);
        row.add(self.topic)?;
        row.add(i64::from(self.partition))?;
        row.add(self.position)?;
        row.add(self.message.key().map(|key| key.to_vec()))?;
        row.add(self.message.dedup_id.as_ref().map(|id| id.as_str().to_owned()))?;
        row.add(std::mem::take(&mut self.headers))?;
        row.add(self.message.body.to_vec())?;
        row.add(now.unix_ms())?;
        row.add(checksum)
    }

    fn receipt(&self, duplicate: bool) -> Receipt {
        receipt(&self.message.topic, i64::from(self.partition), self.position, duplicate)
    }

    fn size(&self) -> i64 {
        let key = self.message.key().map_or(0, Bytes::len);
        i64::try_from(key + self.headers.len() + self.message.body.len()).unwrap_or(i64::MAX)
    }

    fn checksum(&self, now: Timestamp) -> i64 {
        let key = self.message.key().map_or(&[][..], |key| key);
        let numbers = [self.topic, i64::from(self.partition), self.position, now.unix_ms()];
        checksum(&numbers, &[key, &self.headers, &self.message.body])
    }
}

fn receipt(topic: &Topic, partition: i64, position: i64, duplicate: bool) -> Receipt {
    let partition = Partition { topic: topic.clone(), index: u32::try_from(partition).unwrap_or(0) };
    Receipt::new(partition, Position(position.cast_unsigned()), duplicate)
}

/// The topic's entry; none if it does not exist.
pub(crate) async fn find_topic(
    connection: &mut SqliteConnection,
    name: &Topic,
) -> Result<Option<TopicEntry>, sqlx::Error> {
    let row = sqlx::query("select id, partitions, checksum from aq_topics where name = ?")
        .bind(name.as_str().to_owned())
        .fetch_optional(connection)
        .await?;
    row.map(|row| topic_entry(name.as_str(), row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)).transpose()
}

fn topic_entry(name: &str, id: i64, partitions: i64, found: i64) -> Result<TopicEntry, sqlx::Error> {
    match u32::try_from(partitions) {
        Ok(partitions) if topic_checksum(name, id, partitions) == found => Ok(TopicEntry { id, partitions }),
        _ => Err(damage(format!("the entry of topic {name:?} has changed by itself"))),
    }
}

fn topic_checksum(name: &str, id: i64, partitions: u32) -> i64 {
    checksum(&[id, i64::from(partitions)], &[name.as_bytes()])
}

/// Creates a topic that does not exist.
pub(crate) async fn create_topic(
    connection: &mut SqliteConnection,
    name: &Topic,
    partitions: u32,
) -> Result<TopicEntry, sqlx::Error> {
    // Not found by the index does not mean that it is not there, in a file that is damaged.
    if topic_names(connection).await?.iter().any(|(_, known, _)| known == name) {
        return Err(damage(format!("the index does not find topic {:?}", name.as_str())));
    }
    let partitions = partitions.max(1);
    let row = sqlx::query("insert into aq_topics (name, partitions, checksum) values (?, ?, 0) returning id")
        .bind(name.as_str().to_owned())
        .bind(i64::from(partitions))
        .fetch_one(&mut *connection)
        .await?;
    let id: i64 = row.try_get(0)?;
    sqlx::query("update aq_topics set checksum = ? where id = ?")
        .bind(topic_checksum(name.as_str(), id, partitions))
        .bind(id)
        .execute(&mut *connection)
        .await?;
    for number in 0..i64::from(partitions) {
        let entry = PartitionEntry { topic: id, number, first: 1, next: 1, bytes: 0 };
        sqlx::query("insert into aq_partitions (topic, number, first, next, bytes, seal) values (?, ?, 1, 1, 0, ?)")
            .bind(id)
            .bind(number)
            .bind(entry.seal())
            .execute(&mut *connection)
            .await?;
    }
    Ok(TopicEntry { id, partitions })
}

/// Something in the file is not as it was written. The text goes between the file's name and what to do.
pub(crate) fn damage(what: String) -> sqlx::Error {
    sqlx::Error::Decode(what.into())
}

/// What is in a partition: all positions from `first` up to, not including, `next`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PartitionEntry {
    pub(crate) topic: i64,
    pub(crate) number: i64,
    pub(crate) first: i64,
    pub(crate) next: i64,
    pub(crate) bytes: i64,
}

impl PartitionEntry {
    /// What [`read`](Self::read) reads, from a table named `p`.
    pub(crate) const COLUMNS: &'static str = "p.topic, p.number, p.first, p.next, p.bytes, p.seal";

    /// A sum instead of a hash, so that the statement of [`grow`] moves it along.
    pub(crate) fn seal(&self) -> i64 {
        let terms = [(self.next, 31), (self.bytes, 7), (self.first, 17), (self.topic, 5), (self.number, 3)];
        terms.into_iter().fold(1, |sum, (term, weight)| sum.wrapping_add(term.wrapping_mul(weight)))
    }

    /// The first columns of a row; none if they are not as they were written.
    pub(crate) fn read(row: &SqliteRow) -> Option<Self> {
        let mut columns = [0_i64; 6];
        for (n, column) in columns.iter_mut().enumerate() {
            *column = row.try_get(n).ok()?;
        }
        let [topic, number, first, next, bytes, seal] = columns;
        let entry = Self { topic, number, first, next, bytes };
        (entry.seal() == seal && 0 < first && first <= next).then_some(entry)
    }

    /// The entry of a partition.
    pub(crate) async fn find(connection: &mut SqliteConnection, topic: i64, number: i64) -> Result<Self, sqlx::Error> {
        let columns = Self::COLUMNS;
        let sql = format!("select {columns} from aq_partitions p where p.topic = ? and p.number = ?");
        let row = sqlx::query(assembled(sql)).bind(topic).bind(number).fetch_optional(connection).await?;
        row.as_ref().and_then(Self::read).ok_or_else(|| partition_damage(topic, number))
    }

    /// Writes what has changed.
    pub(crate) async fn write(&self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        sqlx::query("update aq_partitions set first = ?, next = ?, bytes = ?, seal = ? where topic = ? and number = ?")
            .bind(self.first)
            .bind(self.next)
            .bind(self.bytes)
            .bind(self.seal())
            .bind(self.topic)
            .bind(self.number)
            .execute(connection)
            .await
            .map(drop)
    }
}

fn partition_damage(topic: i64, number: i64) -> sqlx::Error {
    damage(format!(
        "the entry of partition {number} of topic {topic} in `aq_partitions` has changed by itself, or is gone"
    ))
}

/// Takes positions for all entries. The first statement writes, so that a transaction that has only read so far waits for
/// its turn here and does not fail later.
async fn reserve(
    connection: &mut SqliteConnection,
    entries: &mut [Entry<'_>],
) -> Result<BTreeMap<(i64, u32), Share>, sqlx::Error> {
    let mut shares: BTreeMap<(i64, u32), Share> = BTreeMap::new();
    for entry in entries.iter() {
        let share = shares.entry((entry.topic, entry.partition)).or_insert(Share { base: 0, rows: 0, bytes: 0 });
        share.rows += 1;
        share.bytes = share.bytes.saturating_add(entry.size());
    }
    for (at, next) in grow(connection, &shares).await? {
        if let Some(share) = shares.get_mut(&at) {
            share.base = next - share.rows;
        }
    }
    let mut next: BTreeMap<(i64, u32), i64> = shares.iter().map(|(at, share)| (*at, share.base)).collect();
    for entry in entries {
        if let Some(next) = next.get_mut(&(entry.topic, entry.partition)) {
            entry.position = *next;
            *next += 1;
        }
    }
    Ok(shares)
}

/// Adds the rows and bytes of all shares to their partitions, in one statement; answers where each ends then.
async fn grow(
    connection: &mut SqliteConnection,
    shares: &BTreeMap<(i64, u32), Share>,
) -> Result<Vec<((i64, u32), i64)>, sqlx::Error> {
    let share = |((topic, number), share): (&(i64, u32), &Share)| {
        let Share { rows, bytes, .. } = share;
        format!("[{topic},{number},{rows},{bytes}]")
    };
    let list = format!("[{}]", shares.iter().map(share).collect::<Vec<_>>().join(","));
    let rows = sqlx::query(
        "update aq_partitions set next = next + (share.value ->> 2), bytes = bytes + (share.value ->> 3),
         seal = seal + 31 * (share.value ->> 2) + 7 * (share.value ->> 3)
         from json_each(?) as share where topic = share.value ->> 0 and number = share.value ->> 1
         returning topic, number, first, next, bytes, seal",
    )
    .bind(list)
    .fetch_all(connection)
    .await?;
    let grown: BTreeMap<(i64, i64), i64> =
        rows.iter().filter_map(PartitionEntry::read).map(|entry| ((entry.topic, entry.number), entry.next)).collect();
    let next = |(topic, number): &(i64, u32)| {
        let next = grown.get(&(*topic, i64::from(*number))).copied();
        next.map(|next| ((*topic, *number), next)).ok_or_else(|| partition_damage(*topic, i64::from(*number)))
    };
    shares.keys().map(next).collect()
}

/// Inserts entries whose identity is new; answers how many were.
async fn insert(
    connection: &mut SqliteConnection,
    inserts: &Inserts,
    entries: &mut [Entry<'_>],
    now: Timestamp,
) -> Result<u64, sqlx::Error> {
    let (mut inserted, mut next) = (0, inserts.chunk(entries, now)?);
    while let Some(Chunk { statement, values, rest }) = next {
        let insert = sqlx::query_with(AssertSqlSafe(statement), values).execute(&mut *connection);
        // While SQLite's own thread inserts one chunk the next is put together.
        let (done, following) = tokio::join!(insert, async { inserts.chunk(rest, now) });
        inserted += done?.rows_affected();
        next = following?;
    }
    Ok(inserted)
}

/// A statement that inserts some entries, with their values, and the entries behind them.
struct Chunk<'e, 'm> {
    statement: Arc<str>,
    values: SqliteArguments,
    rest: &'e mut [Entry<'m>],
}

impl Inserts {
    /// As many of the first entries as one statement takes; none if there are none left.
    fn chunk<'e, 'm>(
        &self,
        entries: &'e mut [Entry<'m>],
        now: Timestamp,
    ) -> Result<Option<Chunk<'e, 'm>>, sqlx::Error> {
        let Some((rows, statement)) = self.0.iter().find(|(rows, _)| *rows <= entries.len()) else { return Ok(None) };
        let (chunk, rest) = entries.split_at_mut(*rows);
        let mut values = SqliteArguments::default();
        values.reserve(rows * COLUMNS, 0);
        for entry in chunk {
            entry.give(&mut values, now).map_err(sqlx::Error::Encode)?;
        }
        Ok(Some(Chunk { statement: Arc::clone(statement), values, rest }))
    }
}

fn insert_statement(rows: usize) -> String {
    let row = format!("(?, ?, ?, ?, ?, ?, ?, ?, ?, {VERSION})");
    let values = vec![row; rows].join(", ");
    format!(
        "insert into aq_log (topic, number, position, key, dedup_id, headers, body, stored_at, checksum, version)
         values {values} on conflict (topic, dedup_id) where dedup_id is not null do nothing"
    )
}

/// Some identities are there already: takes back what was inserted, and goes one by one.
async fn insert_singly(
    connection: &mut SqliteConnection,
    inserts: &Inserts,
    entries: &mut [Entry<'_>],
    (mut shares, now): (BTreeMap<(i64, u32), Share>, Timestamp),
    answers: &mut [Option<Result<Receipt, BrokerError>>],
) -> Result<(), sqlx::Error> {
    for ((topic, partition), share) in &mut shares {
        sqlx::query("delete from aq_log where topic = ? and number = ? and position >= ?")
            .bind(*topic)
            .bind(i64::from(*partition))
            .bind(share.base)
            .execute(&mut *connection)
            .await?;
        (share.rows, share.bytes) = (-share.rows, share.bytes.saturating_neg());
    }
    for entry in entries {
        entry.headers = encoded(entry.message);
        let answer = if let Some(answer) = find_identity(connection, entry).await? {
            answer
        } else {
            let Some(share) = shares.get_mut(&(entry.topic, entry.partition)) else { continue };
            entry.position = share.base;
            share.base += 1;
            share.rows += 1;
            share.bytes = share.bytes.saturating_add(entry.size());
            insert(connection, inserts, std::slice::from_mut(entry), now).await?;
            Ok(entry.receipt(false))
        };
        answers[entry.number] = Some(answer);
    }
    grow(connection, &shares).await.map(drop)
}

/// What is to be answered to an entry whose identity is there already; none if it is not.
async fn find_identity(
    connection: &mut SqliteConnection,
    entry: &Entry<'_>,
) -> Result<Option<Result<Receipt, BrokerError>>, sqlx::Error> {
    let Some(id) = &entry.message.dedup_id else { return Ok(None) };
    let found = sqlx::query("select at from aq_log where topic = ? and dedup_id = ?")
        .bind(entry.topic)
        .bind(id.as_str().to_owned())
        .fetch_optional(&mut *connection)
        .await?;
    let Some(found) = found else { return Ok(None) };
    // By its number the row comes from the table: what the index says of it may be damaged.
    let row = sqlx::query(
        "select topic, dedup_id, number, position, key, headers, body, stored_at, checksum from aq_log where at = ?",
    )
    .bind(found.try_get::<i64, _>(0)?)
    .fetch_optional(connection)
    .await?;
    let topic = &entry.message.topic;
    let broken =
        || damage(format!("what the index says of the identity {:?} on topic {topic:?} is not so", id.as_str()));
    let Some(row) = row else { return Err(broken()) };
    if row.try_get::<i64, _>(0)? != entry.topic || row.try_get::<Option<&str>, _>(1)? != Some(id.as_str()) {
        return Err(broken());
    }
    let (number, position): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
    let (key, headers, body): (Option<&[u8]>, &[u8], &[u8]) = (row.try_get(4)?, row.try_get(5)?, row.try_get(6)?);
    if body == entry.message.body {
        return Ok(Some(Ok(receipt(topic, number, position, true))));
    }
    let numbers = [entry.topic, number, position, row.try_get(7)?];
    if checksum(&numbers, &[key.unwrap_or_default(), headers, body]) != row.try_get::<i64, _>(8)? {
        return Err(damage(format!("the checksum of the message at {topic}/{number}:{position} is wrong")));
    }
    Ok(Some(Err(BrokerError::IdentityReused { dedup_id: id.to_string() })))
}

/// What is read of a partition.
pub(crate) struct Slice<'a> {
    pub(crate) partition: &'a Partition,
    pub(crate) topic: i64,
    /// Only above this position.
    pub(crate) after: u64,
    /// At most so many messages.
    pub(crate) limit: usize,
}

impl Slice<'_> {
    /// The messages with their positions, in order and without a gap, from the first that has not been deleted. The entry
    /// says what the partition holds, and must be of the same snapshot.
    pub(crate) async fn read(
        &self,
        snapshot: &mut SqliteConnection,
        entry: &PartitionEntry,
    ) -> Result<Result<Vec<(Position, Message)>, StoreError>, sqlx::Error> {
        let (after, limit) = (self.after.cast_signed(), i64::try_from(self.limit).unwrap_or(i64::MAX));
        if entry.next <= after {
            let what = "the partition ends before it: has an older copy taken the file's place?";
            return Ok(Err(self.damaged(after, what)));
        }
        let rows = sqlx::query(
            "select position, key, headers, body, stored_at, checksum, version from aq_log
             where topic = ? and number = ? and position > ? order by position limit ?",
        )
        .bind(self.topic)
        .bind(i64::from(self.partition.index))
        .bind(after)
        .bind(limit)
        .fetch_all(snapshot)
        .await?;
        let mut expected = entry.first.max(after + 1);
        let end = entry.next.min(expected.saturating_add(limit));
        let mut messages = Vec::with_capacity(rows.len());
        for row in &rows {
            let position = row.try_get(0)?;
            if position != expected || position >= end {
                break;
            }
            match self.message(row, position)? {
                Ok(message) => messages.push((Position(position.cast_unsigned()), message)),
                Err(error) => return Ok(Err(error)),
            }
            expected += 1;
        }
        Ok(if expected == end { Ok(messages) } else { Err(self.damaged(expected, "it is not there")) })
    }

    fn message(&self, row: &SqliteRow, position: i64) -> Result<Result<Message, StoreError>, sqlx::Error> {
        let version: i64 = row.try_get(6)?;
        if version > VERSION {
            let [found, known] = [version, VERSION].map(|v| u32::try_from(v).unwrap_or(u32::MAX));
            return Ok(Err(StoreError::TooNew { found, known }));
        }
        let key: Option<Vec<u8>> = row.try_get(1)?;
        let (headers, body): (Vec<u8>, Vec<u8>) = (row.try_get(2)?, row.try_get(3)?);
        let (stored_at, expected): (i64, i64) = (row.try_get(4)?, row.try_get(5)?);
        let numbers = [self.topic, i64::from(self.partition.index), position, stored_at];
        if checksum(&numbers, &[key.as_deref().unwrap_or_default(), &headers, &body]) != expected {
            return Ok(Err(self.damaged(position, "its checksum is wrong")));
        }
        let headers = match Decoder(headers.into()).headers() {
            Ok(headers) => headers,
            Err(error) => return Ok(Err(error)),
        };
        let topic = self.partition.topic.clone();
        let stored_at = Some(Timestamp::from_unix_ms(stored_at));
        Ok(Ok(Message { topic, key: key.map(Bytes::from), headers, body: body.into(), dedup_id: None, stored_at }))
    }

    fn damaged(&self, position: i64, what: &str) -> StoreError {
        StoreError::Refused(format!("the message at {}:{position} is damaged ({what}): {MEND}", self.partition))
    }
}

/// What the file says of a partition itself is damaged.
pub(crate) fn entry_damaged(partition: &Partition) -> StoreError {
    StoreError::Refused(format!("the entry of partition {partition} in `aq_partitions` is damaged: {MEND}"))
}

/// All topics, by their numbers.
pub(crate) async fn topic_names(connection: &mut SqliteConnection) -> Result<Vec<(i64, Topic, u32)>, sqlx::Error> {
    let rows =
        sqlx::query("select id, name, partitions, checksum from aq_topics order by id").fetch_all(connection).await?;
    let read = |row: &SqliteRow| {
        let name: String = row.try_get(1)?;
        let entry = topic_entry(&name, row.try_get(0)?, row.try_get(2)?, row.try_get(3)?)?;
        Ok((entry.id, Topic::from(Text::from(name)), entry.partitions))
    };
    rows.iter().map(read).collect()
}
