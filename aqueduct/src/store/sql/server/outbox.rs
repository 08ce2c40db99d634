//! Writing events into a server's outbox table inside a transaction.

use super::{Server, ServerDatabase};
use crate::broker::Receipt;
use crate::error::Result;
use crate::event::Event;
use crate::store::sql::outbox::How;
use crate::store::sql::outgoing;
use crate::store::sql::store::HomeCalls;
use crate::topic::{Text, Topic};

/// A row of the outbox as it is written: topic, key, id, type, source, and the event whole.
pub(crate) type Written = (Text, Option<Text>, Text, Text, Text, Vec<u8>);

pub(super) async fn write<DB: Server>(
    database: &ServerDatabase<DB>,
    how: &How,
    transaction: &mut DB::Connection,
    events: Vec<(Topic, Event)>,
) -> Result<Vec<Option<Receipt>>> {
    let rows: Vec<Written> = events.into_iter().map(row).collect();
    let (count, kept) = (rows.len(), database.keeps_statements());
    if how.serialize_keys {
        let mut keys: Vec<i64> = rows.iter().filter_map(|row| row.1.as_ref().map(|key| lock_of(&row.0, key))).collect();
        // In one order, so that two transactions do not wait for each other.
        keys.sort_unstable();
        keys.dedup();
        DB::lock_keys(transaction, database.prefix(), keys, kept).await?;
    }
    DB::insert_events(transaction, database.prefix(), rows, kept).await?;
    database.hint().give();
    Ok(vec![None; count])
}

fn row((topic, event): (Topic, Event)) -> Written {
    let key = event.key.as_ref().map(Text::from);
    let content = outgoing::content(&event).into();
    (topic.into(), key, event.id, event.kind, event.source, content)
}

/// The number of the lock of a key.
fn lock_of(topic: &Text, key: &Text) -> i64 {
    crate::store::outbox::lane_of(topic.as_str().as_bytes(), key.as_str().as_bytes(), 0).0.cast_signed()
}
