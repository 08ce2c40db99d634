//! Which messages the log holds already, by their identities.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::batch::{Batch, Unreadable, batch_columns};
use super::log::{PartitionEntry, damage};
use crate::message::Message;
use crate::topic::{Text, Topic};

/// Where an identity is: the partition's number and the position.
type Place = (i64, i64);

/// What is known of some identities.
pub(super) struct Known {
    /// By topic and identity.
    places: BTreeMap<i64, BTreeMap<String, Place>>,
    partitions: BTreeMap<(i64, i64), PartitionEntry>,
    /// What was read last of each partition: repeats mostly come in the order of what they repeat.
    read: BTreeMap<(i64, i64), (Batch, Vec<Message>)>,
}

impl Known {
    /// Looks up identities, each with its topic.
    pub(super) async fn look<'a>(
        connection: &mut SqliteConnection,
        identities: impl Iterator<Item = (i64, &'a Text)>,
    ) -> Result<Self, sqlx::Error> {
        let mut asked: BTreeMap<i64, Vec<&str>> = BTreeMap::new();
        for (topic, id) in identities {
            asked.entry(topic).or_default().push(id.as_str());
        }
        let mut places = BTreeMap::new();
        for (topic, ids) in asked {
            let rows = sqlx::query(
                "select i.dedup_id, i.number, i.position from json_each(?) as asked
                 join aq_identities i on i.topic = ? and i.dedup_id = asked.value",
            )
            .bind(list(&ids)?)
            .bind(topic)
            .fetch_all(&mut *connection)
            .await?;
            let place = |row: &sqlx::sqlite::SqliteRow| Ok((row.try_get(0)?, (row.try_get(1)?, row.try_get(2)?)));
            places.insert(topic, rows.iter().map(place).collect::<Result<_, sqlx::Error>>()?);
        }
        Ok(Self { places, partitions: BTreeMap::new(), read: BTreeMap::new() })
    }

    /// Where the log holds an identity, and the body of its message; none if it does not.
    pub(super) async fn find(
        &mut self,
        connection: &mut SqliteConnection,
        (topic, name): (i64, &Topic),
        id: &Text,
    ) -> Result<Option<(Place, Bytes)>, sqlx::Error> {
        let place = self.places.get(&topic).and_then(|places| places.get(id.as_str()));
        let Some(&(number, position)) = place else { return Ok(None) };
        let broken = || damage(format!("what is known of the identity {:?} on topic {name:?} is not so", id.as_str()));
        let entry = match self.partitions.get(&(topic, number)) {
            Some(entry) => *entry,
            None => PartitionEntry::find(connection, topic, number).await?,
        };
        self.partitions.insert((topic, number), entry);
        if position < 1 || position >= entry.next {
            return Err(broken());
        }
        if position < entry.first {
            return Ok(None);
        }
        // What is known of it may be damaged: only the message itself counts.
        let (batch, messages) = self.batch(connection, (topic, name), (number, position)).await?.ok_or_else(broken)?;
        let at = usize::try_from(position - batch.first()).ok();
        let message = at.and_then(|at| messages.get(at)).filter(|found| found.dedup_id.as_ref() == Some(id));
        message.map(|message| Some(((number, position), message.body.clone()))).ok_or_else(broken)
    }

    /// The batch of a position, with its messages; none if there is none behind it.
    async fn batch(
        &mut self,
        connection: &mut SqliteConnection,
        (topic, name): (i64, &Topic),
        (number, position): Place,
    ) -> Result<Option<&(Batch, Vec<Message>)>, sqlx::Error> {
        let holds = |batch: &Batch| (batch.first()..=batch.last).contains(&position);
        if !self.read.get(&(topic, number)).is_some_and(|(batch, _)| holds(batch)) {
            let row = sqlx::query(concat!(
                "select ",
                batch_columns!(),
                " from aq_log where topic = ? and number = ? and last >= ? order by last limit 1"
            ))
            .bind(topic)
            .bind(number)
            .bind(position);
            let Some(row) = row.fetch_optional(connection).await? else { return Ok(None) };
            let batch = Batch::read(&row, topic, number)?.map_err(|unreadable| match unreadable {
                Unreadable::Damaged => {
                    damage(format!("the checksum of the batch at {name}/{number}:{position} is wrong"))
                }
                Unreadable::TooNew(version) => {
                    damage(format!("the batch at {name}/{number}:{position} has version {version}, of a newer program"))
                }
            })?;
            let messages = batch.messages(name).map_err(|e| sqlx::Error::Decode(e.into()))?;
            self.read.insert((topic, number), (batch, messages));
        }
        Ok(self.read.get(&(topic, number)))
    }
}

/// Forgets those of these identities that a partition has at these positions.
pub(crate) async fn forget(
    connection: &mut SqliteConnection,
    (topic, number): (i64, i64),
    ids: &[&str],
    positions: RangeInclusive<i64>,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "delete from aq_identities where topic = ? and dedup_id in (select value from json_each(?))
         and number = ? and position between ? and ?",
    )
    .bind(topic)
    .bind(list(ids)?)
    .bind(number)
    .bind(*positions.start())
    .bind(*positions.end())
    .execute(connection)
    .await
    .map(drop)
}

fn list(ids: &[&str]) -> Result<String, sqlx::Error> {
    serde_json::to_string(ids).map_err(|e| sqlx::Error::Encode(e.into()))
}
