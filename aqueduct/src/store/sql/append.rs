//! Appending to the log, inside whatever transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::error::BoxDynError;
use sqlx::sqlite::{SqliteArguments, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe};
use xxhash_rust::xxh3::xxh3_64;

use super::batch::{Batch, Batches};
use super::codec::VERSION;
use super::identities::{Known, forget};
use super::log::{PartitionEntry, TopicEntry, create_topic, find_topic, partition_damage};
use super::sqlite::MEND;
use crate::broker::Receipt;
use crate::clock::Timestamp;
use crate::error::BrokerError;
use crate::message::Message;
use crate::topic::{Partition, Position, Text, Topic};

/// What is appended and how.
pub(crate) struct Append<'a> {
    pub(crate) messages: &'a [&'a Message],
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
}

/// The positions that one append takes of each partition.
type Shares = BTreeMap<(i64, u32), Share>;

#[derive(Default)]
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
        for (number, message) in self.messages.iter().copied().enumerate() {
            match self.topic(connection, &mut topics, &message.topic).await? {
                None => {
                    let topic = message.topic.clone();
                    answers[number] = Some(Err(BrokerError::NoSuchTopic { topic }));
                }
                Some(topic) => {
                    let partition = self.partition(message, number, topic.partitions);
                    entries.push(Entry { number, message, topic: topic.id, partition, position: 0 });
                }
            }
        }
        let shares = reserve(connection, &mut entries).await?;
        // While SQLite's own thread looks at the identities the batches are put together.
        let identities = insert_identities(connection, self.inserts, &entries);
        let (all_new, mut batches) = tokio::join!(identities, async { batches(&entries, self.now) });
        if !all_new? {
            entries = self.only_new(connection, entries, shares, &mut answers).await?;
            batches = self::batches(&entries, self.now);
        }
        insert_batches(connection, self.inserts, &mut batches).await?;
        for entry in &entries {
            answers[entry.number] = Some(Ok(entry.receipt(entry.partition, entry.position, false)));
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

    /// Some identities are there already: answers those messages, and gives the others the positions that they get then.
    async fn only_new<'m>(
        &self,
        connection: &mut SqliteConnection,
        entries: Vec<Entry<'m>>,
        mut shares: Shares,
        answers: &mut [Option<Result<Receipt, BrokerError>>],
    ) -> Result<Vec<Entry<'m>>, sqlx::Error> {
        let mut mine: BTreeMap<(i64, u32), Vec<&str>> = BTreeMap::new();
        for (entry, id) in entries.iter().filter_map(Entry::identity) {
            mine.entry((entry.topic, entry.partition)).or_default().push(id.as_str());
        }
        for ((topic, partition), ids) in &mine {
            let base = shares.get(&(*topic, *partition)).map_or(i64::MAX, |share| share.base);
            forget(connection, (*topic, i64::from(*partition)), ids, base..=i64::MAX).await?;
        }
        let asked = entries.iter().filter_map(Entry::identity).map(|(entry, id)| (entry.topic, id));
        let mut known = Known::look(connection, asked).await?;
        for share in shares.values_mut() {
            (share.rows, share.bytes) = (-share.rows, share.bytes.saturating_neg());
        }
        let mut new: Vec<Entry<'m>> = Vec::new();
        let mut places: BTreeMap<(i64, &Text), usize> = BTreeMap::new();
        for mut entry in entries {
            let id = entry.message.dedup_id.as_ref();
            let before = id.and_then(|id| places.get(&(entry.topic, id))).map(|place| &new[*place]);
            let found = match (before, id) {
                (Some(before), _) => Some(entry.repeats(&before.message.body, before.partition, before.position)),
                (None, Some(id)) => {
                    match known.find(connection, (entry.topic, &entry.message.topic), id).await {
                        Ok(found) => found
                            .map(|((number, at), body)| entry.repeats(&body, u32::try_from(number).unwrap_or(0), at)),
                        // Only who has this identity suffers from it.
                        Err(sqlx::Error::Decode(what)) => {
                            Some(Err(BrokerError::Refused(format!("the file is damaged, {what}: {MEND}"))))
                        }
                        Err(error) => return Err(error),
                    }
                }
                (None, None) => None,
            };
            if found.is_some() {
                answers[entry.number] = found;
                continue;
            }
            let share = shares.entry((entry.topic, entry.partition)).or_default();
            entry.position = share.base;
            share.base += 1;
            share.rows += 1;
            share.bytes = share.bytes.saturating_add(entry.size());
            if let Some(id) = id {
                entry.set_identity(connection, id).await?;
                places.insert((entry.topic, id), new.len());
            }
            new.push(entry);
        }
        grow(connection, &shares).await?;
        Ok(new)
    }
}

impl Entry<'_> {
    /// Itself with its identity, if it has one.
    fn identity(&self) -> Option<(&Self, &Text)> {
        Some((self, self.message.dedup_id.as_ref()?))
    }

    fn receipt(&self, partition: u32, position: i64, duplicate: bool) -> Receipt {
        let partition = Partition { topic: self.message.topic.clone(), index: partition };
        Receipt::new(partition, Position(position.cast_unsigned()), duplicate)
    }

    fn size(&self) -> i64 {
        i64::try_from(self.message.size()).unwrap_or(i64::MAX)
    }

    /// The answer if another message has its identity.
    fn repeats(&self, body: &[u8], partition: u32, position: i64) -> Result<Receipt, BrokerError> {
        if body == self.message.body {
            return Ok(self.receipt(partition, position, true));
        }
        let id = self.message.dedup_id.as_ref().map_or_else(String::new, ToString::to_string);
        Err(BrokerError::IdentityReused { dedup_id: id })
    }

    /// The identity is this entry's, whoever had it before that the log does not hold any more.
    async fn set_identity(&self, connection: &mut SqliteConnection, id: &Text) -> Result<(), sqlx::Error> {
        sqlx::query(
            "insert into aq_identities (topic, dedup_id, number, position) values (?, ?, ?, ?)
             on conflict (topic, dedup_id) do update set number = excluded.number, position = excluded.position",
        )
        .bind(self.topic)
        .bind(id.as_str().to_owned())
        .bind(i64::from(self.partition))
        .bind(self.position)
        .execute(connection)
        .await
        .map(drop)
    }
}

/// Takes positions for all entries. The first statement writes, so that a transaction that has only read so far waits for
/// its turn here and does not fail later.
async fn reserve(connection: &mut SqliteConnection, entries: &mut [Entry<'_>]) -> Result<Shares, sqlx::Error> {
    let mut shares = Shares::new();
    for entry in entries.iter() {
        let share = shares.entry((entry.topic, entry.partition)).or_default();
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
async fn grow(connection: &mut SqliteConnection, shares: &Shares) -> Result<Vec<((i64, u32), i64)>, sqlx::Error> {
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

fn batches(entries: &[Entry<'_>], now: Timestamp) -> Vec<Batch> {
    let mut partitions: BTreeMap<(i64, u32), Batches> = BTreeMap::new();
    for entry in entries {
        let (topic, number) = (entry.topic, i64::from(entry.partition));
        let batches = partitions.entry((topic, entry.partition)).or_insert_with(|| Batches::new(topic, number, now));
        batches.push(entry.message, entry.position);
    }
    partitions.into_values().flat_map(Batches::finish).collect()
}

/// Statements that insert so many rows: many share the cost of one, and few different ones have to be prepared.
pub(crate) struct Inserts {
    identities: [(usize, Arc<str>); 4],
    batches: [(usize, Arc<str>); 3],
}

impl Default for Inserts {
    fn default() -> Self {
        let identity = "insert into aq_identities (topic, dedup_id, number, position) values ";
        let identities = |rows| vec!["(?, ?, ?, ?)"; rows].join(", ");
        let batch =
            "insert into aq_log (topic, number, last, count, bytes, stored_at, checksum, version, content) values ";
        let batches = |rows| vec![format!("(?, ?, ?, ?, ?, ?, ?, {VERSION}, ?)"); rows].join(", ");
        Self {
            identities: [250, 50, 10, 1].map(|rows| {
                (rows, format!("{identity}{} on conflict (topic, dedup_id) do nothing", identities(rows)).into())
            }),
            batches: [16, 4, 1].map(|rows| (rows, format!("{batch}{}", batches(rows)).into())),
        }
    }
}

/// Inserts the identities that nobody has; true if those are all.
async fn insert_identities(
    connection: &mut SqliteConnection,
    inserts: &Inserts,
    entries: &[Entry<'_>],
) -> Result<bool, sqlx::Error> {
    let mut known: Vec<(&Entry<'_>, &Text)> = entries.iter().filter_map(Entry::identity).collect();
    let count = known.len();
    let inserted = insert(connection, &inserts.identities, &mut known, |(entry, id), row| {
        row.add(entry.topic)?;
        row.add(id.as_str().to_owned())?;
        row.add(i64::from(entry.partition))?;
        row.add(entry.position)
    });
    Ok(inserted.await? == count as u64)
}

async fn insert_batches(
    connection: &mut SqliteConnection,
    inserts: &Inserts,
    batches: &mut [Batch],
) -> Result<(), sqlx::Error> {
    let inserted = insert(connection, &inserts.batches, batches, |batch, row| {
        row.add(batch.topic)?;
        row.add(batch.number)?;
        row.add(batch.last)?;
        row.add(batch.count)?;
        row.add(batch.bytes)?;
        row.add(batch.stored_at)?;
        row.add(batch.checksum())?;
        row.add(Vec::from(std::mem::take(&mut batch.content)))
    });
    inserted.await.map(drop)
}

/// Inserts rows with as few statements as it takes; answers how many it were.
async fn insert<R>(
    connection: &mut SqliteConnection,
    statements: &[(usize, Arc<str>)],
    mut rows: &mut [R],
    give: impl Fn(&mut R, &mut SqliteArguments) -> Result<(), BoxDynError>,
) -> Result<u64, sqlx::Error> {
    let mut next = || -> Result<_, sqlx::Error> {
        let Some((count, statement)) = statements.iter().find(|(count, _)| *count <= rows.len()) else {
            return Ok(None);
        };
        let (chunk, rest) = std::mem::take(&mut rows).split_at_mut(*count);
        rows = rest;
        let mut values = SqliteArguments::default();
        chunk.iter_mut().try_for_each(|row| give(row, &mut values)).map_err(sqlx::Error::Encode)?;
        Ok(Some(sqlx::query_with(AssertSqlSafe(Arc::clone(statement)), values)))
    };
    let (mut inserted, mut statement) = (0, next()?);
    while let Some(insert) = statement {
        // While SQLite's own thread inserts some rows the next are put together.
        let (done, following) = tokio::join!(insert.execute(&mut *connection), async { next() });
        inserted += done?.rows_affected();
        statement = following?;
    }
    Ok(inserted)
}
