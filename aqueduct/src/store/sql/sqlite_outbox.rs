//! Writing events into an SQLite file inside a transaction: into the log, or into the table that a relay reads.

use sqlx::sqlite::SqliteConnection;

use super::append::Append;
use super::outbox::{How, admit};
use super::outgoing;
use super::sqlite::SqliteFile;
use super::store::HomeCalls;
use crate::broker::Receipt;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::message::Message;
use crate::topic::Topic;

const INSERT: &str =
    "insert into aq_outbox (topic, key, event_id, type, source, content, written_at) values (?, ?, ?, ?, ?, ?, ?)";

pub(super) async fn write(
    file: &SqliteFile,
    how: &How,
    transaction: &mut SqliteConnection,
    events: Vec<(Topic, Event)>,
) -> Result<Vec<Option<Receipt>>> {
    if how.relayed {
        return write_rows(file, transaction, events).await;
    }
    let messages = events.into_iter().map(|(topic, event)| message(how, &topic, &event)).collect::<Result<Vec<_>>>()?;
    let (known, now) = (std::collections::BTreeMap::new(), file.clock().now());
    // Without a turn of its own an event without a key goes where its identity says.
    let turn = messages.first().and_then(|m| m.dedup_id.as_ref()).map_or(0, |id| id.as_str().len() as u64);
    let append = Append {
        messages: &messages.iter().collect::<Vec<_>>(),
        topics: &known,
        create: file.create(),
        turn,
        now,
        inserts: file.inserts(),
    };
    let appended = append.run(transaction).await?;
    appended.answers.into_iter().map(|answer| answer.map(Some).map_err(|e| Error::from(e).permanent())).collect()
}

fn message(how: &How, topic: &Topic, event: &Event) -> Result<Message> {
    let message = how.format.encode(event, topic).map_err(|e| Error::from(e).permanent())?;
    admit(event, message.size())?;
    Ok(message)
}

/// Leaves events to a relay, and tells those of this process.
async fn write_rows(
    file: &SqliteFile,
    transaction: &mut SqliteConnection,
    events: Vec<(Topic, Event)>,
) -> Result<Vec<Option<Receipt>>> {
    let (now, count) = (file.clock().now().unix_ms(), events.len());
    for (topic, event) in events {
        let query = sqlx::query(INSERT)
            .bind(topic.as_str().to_owned())
            .bind(event.key.as_ref().map(|key| key.as_str().to_owned()))
            .bind(event.id.as_str().to_owned())
            .bind(event.kind.as_str().to_owned())
            .bind(event.source.as_str().to_owned())
            .bind(Vec::from(outgoing::content(&event)))
            .bind(now);
        query.execute(&mut *transaction).await?;
    }
    file.hint().give();
    Ok(vec![None; count])
}
