//! The inbox: which events have taken effect, written in the same transaction as the effect.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use super::sqlite::SqliteFile;
use super::writer::Task;
use crate::call::{Call, Origin};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::event::Event;
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Partition, Position, Text};

/// How long an effect is remembered at least.
const RETENTION: Duration = Duration::from_hours(24 * 7);

/// How often what is older is looked for.
pub(super) const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// Rows deleted in one commit; others write between two.
const CHUNK: i64 = 1_000;

/// Statements of a handler's beginning. The savepoint of the handler before it, which is kept, is let go with the next
/// statement that has to be sent anyway.
const BEGIN: &str = "savepoint aq_handler;
    insert into aq_inbox (consumer, source, id, topic, number, position, at) values (?, ?, ?, ?, ?, ?, ?)
    on conflict do nothing returning 1";
const GO_ON: &str = "release aq_handler; savepoint aq_handler;
    insert into aq_inbox (consumer, source, id, topic, number, position, at) values (?, ?, ?, ?, ?, ?, ?)
    on conflict do nothing returning 1";

/// The attempt that a transaction is for.
pub(super) struct Entry {
    origin: Arc<Origin>,
    event: Arc<Event>,
    position: Position,
    now: Timestamp,
}

/// Whether it may have the transaction.
pub(super) enum Entered {
    /// Yes, and its event is in the inbox, inside its savepoint.
    New,
    /// Its event has taken effect before.
    Duplicate,
    /// Its owner has been replaced by one with this epoch.
    Fenced(Epoch),
}

/// The fences of a transaction: nobody else writes until its commit, so what was read holds until then.
#[derive(Default)]
pub(super) struct Fences(BTreeMap<(Text, Partition), Option<Epoch>>);

impl Entry {
    pub(super) fn new(call: &Call, now: Timestamp) -> Self {
        let (origin, event) = (Arc::clone(call.origin()), Arc::clone(call.event_arc()));
        Self { origin, event, position: call.place().position, now }
    }

    /// Opens a savepoint and writes the event into the inbox. `after_another` says that the savepoint of the handler
    /// before it is still open.
    pub(super) async fn enter(
        &self,
        connection: &mut SqliteConnection,
        fences: &mut Fences,
        after_another: bool,
    ) -> Result<Entered, sqlx::Error> {
        let Origin { consumer, partition, epoch, .. } = &*self.origin;
        if let Some(held) = fences.get(connection, consumer, partition).await?.filter(|held| held != epoch) {
            return Ok(Entered::Fenced(held));
        }
        let inserted = sqlx::query(if after_another { GO_ON } else { BEGIN })
            .bind(consumer.as_str().to_owned())
            .bind(self.event.source.as_str().to_owned())
            .bind(self.event.id.as_str().to_owned())
            .bind(partition.topic.as_str().to_owned())
            .bind(i64::from(partition.index))
            .bind(self.position.0.cast_signed())
            .bind(self.now.unix_ms())
            .fetch_all(connection)
            .await?;
        Ok(if inserted.is_empty() { Entered::Duplicate } else { Entered::New })
    }

    pub(super) fn fenced(&self, held: Epoch) -> StoreError {
        StoreError::Fenced { partition: self.origin.partition.clone(), held, ours: self.origin.epoch }
    }
}

impl Fences {
    /// The epoch that the store was last taken over under; none if it never was.
    async fn get(
        &mut self,
        connection: &mut SqliteConnection,
        consumer: &Text,
        partition: &Partition,
    ) -> Result<Option<Epoch>, sqlx::Error> {
        let key = (consumer.clone(), partition.clone());
        if let Some(known) = self.0.get(&key) {
            return Ok(*known);
        }
        let row = sqlx::query("select epoch from aq_shards where consumer = ? and topic = ? and number = ?")
            .bind(consumer.as_str().to_owned())
            .bind(partition.topic.as_str().to_owned())
            .bind(i64::from(partition.index))
            .fetch_optional(connection)
            .await?;
        let epoch = row.map(|row| row.try_get::<i64, _>(0).map(|epoch| Epoch(epoch.cast_unsigned()))).transpose()?;
        self.0.insert(key, epoch);
        Ok(epoch)
    }
}

/// Forgets effects that cannot be asked for again: older than the retention, at or below their consumer's floor, and
/// without a row of the same event. Answers true if there may be more.
pub(super) struct Sweep {
    pub(super) now: Timestamp,
    pub(super) file: SqliteFile,
}

impl Task for Sweep {
    type Answer = bool;

    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<bool, StoreError>> {
        let before = self.now.unix_ms().saturating_sub(i64::try_from(RETENTION.as_millis()).unwrap_or(i64::MAX));
        Box::pin(async move {
            let done = sqlx::query(
                "delete from aq_inbox where (consumer, source, id) in (
                   select i.consumer, i.source, i.id from aq_inbox i
                   join aq_topics t on t.name = i.topic
                   join aq_floors f on f.consumer = i.consumer and f.topic = t.id and f.number = i.number
                   where i.at < ? and i.position <= f.floor and not exists
                     (select 1 from aq_rows r where r.source = i.source and r.event_id = i.id)
                   order by i.at limit ?)",
            )
            .bind(before)
            .bind(CHUNK)
            .execute(connection)
            .await
            .map_err(|e| self.file.explain(e))?;
            Ok(done.rows_affected() == CHUNK.unsigned_abs())
        })
    }
}
