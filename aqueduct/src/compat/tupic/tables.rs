//! The tables of tupic, a set of Go modules.

use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::format::{FIRST, VERSION, write};
use crate::OutboxTable;
use crate::clock::Timestamp;
use crate::compat::outbox::{Found, OWN_COLUMNS, Reader, Shape, open};
use crate::compat::words::{Words, check_table};
use crate::error::StoreError;
use crate::event::Event;
use crate::format::object::{Fields, string};
use crate::outcome::BoxFuture;
use crate::sql::{Server, ServerDatabase, ServerOptions, SqlStore};
use crate::store::sql::Beside;
use crate::store::sql::dialect::{Session, SqlRow, Value};
use crate::store::{Content, Row};
use crate::topic::{Partition, Text, Topic};

/// The outbox table of a Go service that has used the modules: rows that are neither published nor failed are published under
/// the prefix and their subject, in the envelope that its peers read, and have a `published_at` then.
///
/// Events of a subject keep their order, as with the modules' own relay; there is nothing else to order by. One that is
/// refused has a `failed_at`, with the later ones of its subject, until it is taken; the reason is in `error`, behind a
/// mark in brackets by which the relay knows them again. One that is [discarded](OutboxTable::discard) keeps both.
/// Aqueduct's own tables are in the same database.
///
/// On NATS the relay wants the format [`Envelope`](super::Envelope) with [`whole`](super::Envelope::whole), so that the
/// server knows events by the id that the modules give them.
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
/// let format = tupic::Envelope::new("acme").whole(true);
/// Relay::new(table, MemoryBroker::new()).format(format).serve().await?;
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

    /// The name of the table. All relays on it call it the same. Defaults to `outbox_events`.
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
            let body = write([&id, &version, &self.source].map(Text::as_str), Some(at), payload.as_str());
            let event = Event::raw(subject.clone(), body).content_type("application/json").source(self.source.clone());
            let event = event.time(Timestamp::from_unix_ms(at)).header("Nats-Msg-Id", id.bytes());
            Ok(event.id(id.clone()).topic(Topic::from(topic.clone())))
        };
        Ok(Found { topic, id, kind: subject.clone(), key: None, order: subject, event })
    }
}

/// The table `failed_tasks` of a Go service that has used the modules, kept beside Aqueduct's own: an event that becomes a dead
/// letter has a row there too, written in the same transaction.
///
/// The row has the event's id, or one made of its identity if that is no UUID; the topic without the prefix as its type;
/// version and payload of the envelope, or the header `ce-version` (1 without it) and the event's data, and a JSON null if
/// there is none; the number of attempts, the last error, and the time. The first row of an id stays.
///
/// The trap: what the table does not take, such as a payload that PostgreSQL cannot store, is told in the log alone; the dead
/// letter is in Aqueduct's store all the same.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn f() -> aqueduct::Result<()> {
/// use aqueduct::{compat::tupic::FailedTasks, postgres::{PgDatabase, PgStore}};
/// let options = PgDatabase::options("postgres://assets:secret@localhost/assets");
/// let database = FailedTasks::new("acme").keep(options)?.connect().await?;
/// let store = PgStore::new(&database);
/// # drop(store); Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it is a description until it is kept"]
pub struct FailedTasks {
    table: String,
    prefix: Text,
}

impl FailedTasks {
    /// The table of a service whose subjects have this prefix.
    pub fn new(prefix: impl Into<Text>) -> Self {
        Self { table: "failed_tasks".to_owned(), prefix: prefix.into() }
    }

    /// The name of the table. Defaults to `failed_tasks`.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// A database that keeps it. Refused if its name cannot be a table's.
    pub fn keep<DB: Server>(self, options: ServerOptions<DB>) -> Result<ServerOptions<DB>, StoreError> {
        check_table(&self.table)?;
        let (words, table) = (Words::of::<DB>(), &self.table);
        // PostgreSQL gives a transaction up for a statement that fails; MySQL does not, and cannot prepare this.
        let (begin, undo) = match words {
            Words::Postgres => ("savepoint beside; ", "rollback to savepoint beside"),
            Words::MySql => ("", ""),
        };
        let insert = format!(
            "{begin}insert into {table} (id, type, version, payload, attempts, last_error, failed_at)
             values (?, ?, ?, {}, ?, ?, {}) on conflict (id) do nothing",
            words.json(),
            words.time()
        );
        Ok(options.beside(Failures { prefix: self.prefix, insert: insert.leak(), undo }))
    }
}

/// What the columns take at most.
const TYPE_CHARS: usize = 255;
const VERSION_CHARS: usize = 20;

/// Writes rows of failures.
struct Failures {
    prefix: Text,
    insert: &'static str,
    /// Undoes one that failed; empty if there is nothing to undo.
    undo: &'static str,
}

impl Failures {
    fn values(&self, partition: &Partition, row: &Row, now: Timestamp) -> Vec<Value> {
        let (id, body, said) = match &row.content {
            Content::Event(event) => {
                (event.id.clone(), event.data.clone(), event.headers.text(VERSION).unwrap_or(FIRST))
            }
            Content::Undecodable(message) => (Text::default(), message.body.clone(), ""),
        };
        let subject = partition.topic.as_str();
        let rest = subject.strip_prefix(self.prefix.as_str()).and_then(|rest| rest.strip_prefix('.'));
        let (version, payload) = parts(&id, &body, said);
        let id = id.as_str().parse::<uuid::Uuid>().unwrap_or_else(|_| made_of(partition, row, &id));
        let error = row.history.back().map(|failure| failure.error.as_str().replace('\0', "")).unwrap_or_default();
        vec![
            Value::Text(id.to_string().into()),
            chars(rest.unwrap_or(subject), TYPE_CHARS),
            chars(&version, VERSION_CHARS),
            Value::Text(payload.into()),
            i64::from(row.attempts.max(1)).into(),
            Value::Text(error.into()),
            now.unix_ms().into(),
        ]
    }
}

fn chars(text: &str, most: usize) -> Value {
    Value::Text(text.chars().take(most).collect::<String>().into())
}

/// The same for the same event, however often it dies.
fn made_of(partition: &Partition, row: &Row, id: &Text) -> uuid::Uuid {
    let name = format!("{partition} {:?} {id}", row.place);
    uuid::Builder::from_custom_bytes(xxhash_rust::xxh3::xxh3_128(name.as_bytes()).to_be_bytes()).into_uuid()
}

/// Version and payload of an envelope, or what was said and the body itself if it is none.
fn parts(id: &Text, body: &Bytes, said: &str) -> (String, String) {
    let valid = |raw: &RawValue| Some(raw.get().to_owned()).filter(|json| !json.contains("\\u0000"));
    let Ok(raw) = serde_json::from_slice::<&RawValue>(body) else { return (String::new(), NULL.to_owned()) };
    if let Ok(fields) = serde_json::from_slice::<Fields<'_>>(body)
        && let Some(own) = fields.get(body, "id").and_then(|own| string(body, own).ok())
        && (own == *id || id.is_empty())
    {
        let version = fields.get(body, "version").and_then(|version| string(body, version).ok());
        let data = fields.get(body, "data").and_then(valid).unwrap_or_else(|| NULL.to_owned());
        return (version.map(|version| version.to_string()).unwrap_or_default(), data);
    }
    (said.to_owned(), valid(raw).unwrap_or_else(|| NULL.to_owned()))
}

const NULL: &str = "null";

impl Beside for Failures {
    fn died<'a>(
        &'a self,
        session: &'a mut dyn Session,
        partition: &'a Partition,
        row: &'a Row,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            // What the table refuses keeps no dead letter from being one.
            let done = session.execute(self.insert, self.values(partition, row, now)).await.map(drop);
            let Err(error @ StoreError::Refused(_)) = done else { return done };
            if !self.undo.is_empty() {
                session.execute(self.undo, vec![]).await?;
            }
            tracing::warn!(%partition, place = ?row.place, %error, "a dead letter could not be written to the table of failed tasks");
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
