//! The tables of tupic, a set of Go modules.

use std::time::Duration;

use super::json::{as_go, compact};
use super::outbox::{Found, OWN_COLUMNS, Reader, Shape, open};
use super::words::Words;
use crate::OutboxTable;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::event::Event;
use crate::sql::{Server, ServerDatabase, SqlStore};
use crate::store::sql::dialect::SqlRow;
use crate::topic::{Text, Topic};

/// The outbox table of a Go service that has used the modules: rows that are neither published nor failed are published under
/// the prefix and their subject, in the envelope that its peers read, and have a `published_at` then.
///
/// Events of a subject keep their order, as with the modules' own relay; there is nothing else to order by. One that
/// is refused has a `failed_at`, with the later ones of its subject, until it is taken; the reason is in `error`, behind a mark in
/// brackets by which the relay knows them again. One that is [discarded](OutboxTable::discard) keeps both.
/// Aqueduct's own tables are in the same database.
///
/// The traps: the service must not run its own relay at the same time, or events are published twice, and out of order. Rows
/// stay when they are published, so give the table an index on `id` with the condition
/// `published_at is null and failed_at is null`: without it every look reads all of them, as it did before.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn f() -> aqueduct::Result<()> {
/// use aqueduct::{MemoryBroker, Relay, compat::tupic, postgres::PgStore};
/// let store = PgStore::connect("postgres://assets:secret@localhost/assets").await?;
/// let table = tupic::Outbox::new("acme", "assets").open(&store)?;
/// Relay::new(table, MemoryBroker::new()).serve().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it is a description until it is opened"]
pub struct Outbox {
    table: String,
    prefix: Text,
    source: Text,
}

impl Outbox {
    /// The table of a service whose subjects have this prefix, and which calls itself `source`: the app's slug.
    pub fn new(prefix: impl Into<Text>, source: impl Into<Text>) -> Self {
        Self { table: "outbox_events".to_owned(), prefix: prefix.into(), source: source.into() }
    }

    /// The name of the table. Defaults to `outbox_events`.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// The table, to be given to a relay. Refused without a prefix, or if its name cannot be a table's; what is missing
    /// is told by the relay.
    pub fn open<DB: Server>(self, store: &SqlStore<ServerDatabase<DB>>) -> Result<OutboxTable, StoreError> {
        if self.prefix.is_empty() {
            return Err(StoreError::Refused("tupic's subjects have no prefix: say which one it is".to_owned()));
        }
        let words = Words::of::<DB>();
        let mut columns: Vec<String> =
            ["message_id", "subject", "version", "payload"].map(|column| words.text(column)).into();
        columns.push(words.unix_ms("occurred_at"));
        let shape = Shape {
            table: self.table,
            columns,
            pending: "published_at is null and failed_at is null".to_owned(),
            before: Duration::ZERO,
            failed: "published_at is null and failed_at is not null",
            unsent: "published_at is null",
            error: "error",
            written: "occurred_at",
            sent: "published_at = {now}, failed_at = null, error = null",
            parked: "failed_at = {now}, error = ?",
            reset: "failed_at = null, error = null",
            counted: "",
        };
        open(store, shape, Rows { prefix: self.prefix, source: self.source })
    }
}

/// Reads id, subject, version, payload, and when it happened.
struct Rows {
    prefix: Text,
    source: Text,
}

impl Reader for Rows {
    fn read(&self, row: &SqlRow, _: Timestamp) -> Result<Found, StoreError> {
        let text = |column| {
            let bytes = row.bytes_or_null(OWN_COLUMNS + column)?.unwrap_or_default();
            Ok::<_, StoreError>(Text::from(String::from_utf8_lossy(&bytes).into_owned()))
        };
        let (id, subject, version, payload) = (text(0)?, text(1)?, text(2)?, text(3)?);
        let at = row.int(OWN_COLUMNS + 4)?;
        let topic = Text::from(format!("{}.{subject}", self.prefix));
        let event = if id.is_empty() {
            Err(Text::from_static("its column `message_id` is empty"))
        } else if subject.is_empty() {
            Err(Text::from_static("its column `subject` is empty"))
        } else if serde_json::from_str::<serde_core::de::IgnoredAny>(payload.as_str()).is_err() {
            Err(Text::from_static("its column `payload` is no JSON"))
        } else {
            let body = envelope([&id, &version, &self.source], at, payload.as_str());
            let event = Event::raw(subject.clone(), body).content_type("application/json").source(self.source.clone());
            let event = event.time(Timestamp::from_unix_ms(at)).header("Nats-Msg-Id", id.bytes());
            Ok(event.id(id.clone()).topic(Topic::from(topic.clone())))
        };
        Ok(Found { topic, id, kind: subject.clone(), key: None, order: subject, event })
    }
}

/// The envelope as Go's encoder writes it.
fn envelope(texts: [&Text; 3], at: i64, payload: &str) -> String {
    let [id, version, source] = texts.map(|text| as_go(&serde_json::Value::from(text.as_str()).to_string()));
    let data = as_go(&compact(payload));
    format!(r#"{{"id":{id},"version":{version},"source":{source},"timestamp":{at},"data":{data}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::sql::dialect::Value;

    fn found(id: &str, subject: &str, payload: &str) -> Found {
        let mut row = vec![Value::Int(1), Value::Int(0), Value::Int(0)];
        row.extend([id, subject, "v3", payload].map(|text| Value::Text(text.into())));
        row.push(Value::Int(1_767_323_045_678));
        Rows { prefix: "acme".into(), source: "svc".into() }.read(&SqlRow(row), Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn the_body_is_what_go_sends() {
        let found = found("01a1", "other.thing", r#"{"b": "<x>", "zeta": [1, 2.50, 1000], "n": null}"#);
        let event = found.event.unwrap();
        assert_eq!(
            event.data,
            r#"{"id":"01a1","version":"v3","source":"svc","timestamp":1767323045678,"data":{"b":"\u003cx\u003e","zeta":[1,2.50,1000],"n":null}}"#
        );
        assert_eq!((found.topic.as_str(), event.kind.as_str(), event.key), ("acme.other.thing", "other.thing", None));
        assert_eq!((event.source.as_str(), event.headers.text("Nats-Msg-Id")), ("svc", Some("01a1")));
    }

    #[test]
    fn what_is_no_event_says_why() {
        for (id, subject, payload, why) in
            [("", "s", "1", "message_id"), ("1", "", "1", "subject"), ("1", "s", "4111 rubbish", "payload")]
        {
            let why_not = found(id, subject, payload).event.unwrap_err();
            assert!(why_not.as_str().contains(why) && !why_not.as_str().contains("4111"), "{why_not}");
        }
    }
}
