//! The tables of `jetstream_bridge`, a Ruby gem.

use std::time::Duration;

use bytes::Bytes;
use serde_json::value::RawValue;

use super::format::{Envelope, envelope, scalar};
use crate::OutboxTable;
use crate::clock::Timestamp;
use crate::compat::json::compact;
use crate::compat::outbox::{Found, OWN_COLUMNS, Reader, Shape, open};
use crate::compat::words::{Words, check_table};
use crate::error::{StoreError, without_values};
use crate::event::Event;
use crate::format::Format;
use crate::format::object::Fields;
use crate::outcome::BoxFuture;
use crate::sql::{Server, ServerDatabase, ServerOptions, SqlStore};
use crate::store::sql::Beside;
use crate::store::sql::dialect::{Session, SqlRow, Value};
use crate::topic::{Partition, Text, Topic};

/// How long a row may say `publishing` before the process that wrote it counts as gone: the gem tries for some seconds.
const ABANDONED: Duration = Duration::from_mins(5);

/// The outbox table of a Rails application that has used the gem: rows that say `pending` are published, each under the
/// subject of its row, with the envelope of its payload as the body, and say `sent` then.
///
/// Events of the same resource (`resource_type` and `resource_id`) and subject keep their order. One that is refused says
/// `failed`, with the later ones of its resource, until it is taken; the reason is in `last_error`, behind a mark in brackets
/// by which the relay knows them again. What is no event says `failed` alone, and keeps nobody waiting. A row
/// that is [discarded](OutboxTable::discard) stays, as one that has failed. Aqueduct's own tables are in the same database.
///
/// On NATS the relay wants the format [`Envelope`] with [`whole`](Envelope::whole): with another one the gem's
/// consumers may lose their dead letters.
///
/// The traps: the gem writes a row only as `publishing`, and publishes it itself; so the application writes `pending` rows in
/// its transactions instead, and calls the gem's `publish` no more. A row that says `publishing` may be in the hands of a
/// Rails process, and is left alone for five minutes, while later rows of its resource pass it; published after that, it may be
/// in the stream twice, under one id.
/// And a row that the gem has marked `failed` is not touched, since its application was told so and later events have
/// passed it: [retry](OutboxTable::retry) it by its id, or use the gem's `retry_failed`.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn f() -> aqueduct::Result<()> {
/// use aqueduct::{MemoryBroker, Relay, compat::jetstream_bridge, postgres::PgStore};
/// let store = PgStore::connect("postgres://shop:secret@localhost/shop").await?;
/// let table = jetstream_bridge::Outbox::new().open(&store)?;
/// let format = jetstream_bridge::Envelope::new().whole(true);
/// Relay::new(table, MemoryBroker::new()).format(format).serve().await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it is a description until it is opened"]
pub struct Outbox {
    table: String,
    abandoned: Duration,
}

impl Outbox {
    /// The table as it is from version 7.0.3 on.
    pub fn new() -> Self {
        Self { table: "jetstream_bridge_outbox_events".to_owned(), abandoned: ABANDONED }
    }

    /// The name of the table; `jetstream_outbox_events` before 7.0.3. All relays on it call it the same. Defaults to
    /// `jetstream_bridge_outbox_events`.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// How long a row may say `publishing` without a change before it is published from here. Longer than the gem's own tries
    /// take, or both publish it at the same time. Defaults to 5 minutes.
    pub fn abandoned_after(mut self, wait: Duration) -> Self {
        self.abandoned = wait;
        self
    }

    /// The table, to be given to a relay. Refused if its name cannot be a table's; what is missing is told by the relay.
    pub fn open<DB: Server>(self, store: &SqlStore<ServerDatabase<DB>>) -> Result<OutboxTable, StoreError> {
        let words = Words::of::<DB>();
        let shape = Shape {
            table: self.table,
            columns: ["event_id", "subject", "payload"].map(|column| words.text(column)).into(),
            pending: "status in ('pending', 'publishing') and (status = 'pending' or updated_at < {before})".to_owned(),
            before: self.abandoned,
            failed: "status = 'failed'",
            unsent: "status <> 'sent'",
            error: "last_error",
            written: "created_at",
            sent: "status = 'sent', last_error = null, sent_at = {now}, updated_at = {now}",
            parked: "status = 'failed', updated_at = {now}, last_error = ?",
            reset: "status = 'pending', last_error = null, updated_at = {now}",
            counted: "attempts = attempts + 1, ",
        };
        open(store, shape, Rows)
    }
}

impl Default for Outbox {
    fn default() -> Self {
        Self::new()
    }
}

/// Reads id, subject and payload.
struct Rows;

impl Reader for Rows {
    fn read(&self, row: &SqlRow, written: Timestamp) -> Result<Found, StoreError> {
        let text = |column| {
            let bytes = row.bytes_or_null(OWN_COLUMNS + column)?.unwrap_or_default();
            Ok::<_, StoreError>(Text::from(String::from_utf8_lossy(&bytes).into_owned()))
        };
        let (id, topic, payload) = (text(0)?, text(1)?, text(2)?);
        let (kind, key, event) = match body(payload.as_str()).and_then(|body| event(&body)) {
            Ok(event) => (event.kind.clone(), event.key.clone(), Ok(event)),
            Err(why) => (Text::default(), None, Err(why)),
        };
        let event = event.and_then(|event| {
            if id.is_empty() {
                return Err(Text::from_static("its column `event_id` is empty"));
            }
            let time = event.time.unwrap_or(written);
            // Where the gem looks for the id. In exact case its consumers would lose their dead letters.
            let event = event.header("nats-msg-id", id.bytes());
            Ok(event.id(id.clone()).time(time).topic(Topic::from(topic.clone())))
        });
        let order = key.as_ref().map(Text::from).unwrap_or_default();
        Ok(Found { topic, id, kind, key, order, event })
    }
}

/// The body of an event: the payload, or what is inside it, since the gem puts a JSON string into its JSON column.
fn body(payload: &str) -> Result<Bytes, Text> {
    let wrong = |e| Text::from(format!("its column `payload` is no JSON: {}", without_values(&e)));
    let json: &RawValue = serde_json::from_str(payload).map_err(wrong)?;
    if json.get().starts_with('"') {
        return serde_json::from_str::<String>(json.get()).map(Bytes::from).map_err(wrong);
    }
    Ok(compact(json.get()).into())
}

/// The event of an envelope, but for its id and topic. Its data is the envelope.
fn event(body: &Bytes) -> Result<Event, Text> {
    let fields: Fields<'_> = serde_json::from_slice(body)
        .map_err(|e| Text::from(format!("its column `payload` holds no JSON object: {}", without_values(&e))))?;
    let mut event = envelope(&fields, body)
        .map_err(|_| Text::from_static("the envelope in its column `payload` has no `event_type`"))?;
    event.data = body.clone();
    Ok(event.content_type("application/json"))
}

/// The inbox table of a Rails application that has used the gem, kept beside Aqueduct's own: in the transaction of a handler
/// with [`Tx`](crate::Tx) its row is looked at and written too, so that what either has processed the other skips.
///
/// A row that has a `processed_at`, or says `processed`, means that the event is skipped; else it is written, or changed, to say
/// `processed`, and is there if the handler's transaction is committed. The id is that of the header `nats-msg-id`, else
/// the event's own, as with the gem.
///
/// The traps: the table knows nothing of consumers, so give it to the database of one consumer alone, or the second one skips
/// what the first has handled. Up to version 4.1 a row also says `processed` when the gem's handler failed once: those
/// events are lost, here as there. And the gem cannot tell that a handler here is at work: stop its consumer first, or both may
/// run at the same time, one of which fails then.
///
/// ```no_run
/// # #[cfg(feature = "postgres")]
/// # async fn f() -> aqueduct::Result<()> {
/// use aqueduct::{compat::jetstream_bridge::Inbox, postgres::{PgDatabase, PgStore}};
/// let options = PgDatabase::options("postgres://shop:secret@localhost/shop");
/// let database = Inbox::new().keep(options)?.connect().await?;
/// let store = PgStore::new(&database);
/// # drop(store); Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it is a description until it is kept"]
pub struct Inbox {
    table: String,
    before_7: bool,
}

impl Inbox {
    /// The table as it is from version 7.0.3 on.
    pub fn new() -> Self {
        Self { table: "jetstream_bridge_inbox_events".to_owned(), before_7: false }
    }

    /// The table as it is before version 7, which is called `jetstream_inbox_events` and has fewer columns.
    pub fn before_7() -> Self {
        Self { table: "jetstream_inbox_events".to_owned(), before_7: true }
    }

    /// The name of the table. Defaults to that of its version.
    pub fn table(mut self, name: impl Into<String>) -> Self {
        self.table = name.into();
        self
    }

    /// A database that keeps it. Refused if its name cannot be a table's.
    pub fn keep<DB: Server>(self, options: ServerOptions<DB>) -> Result<ServerOptions<DB>, StoreError> {
        check_table(&self.table)?;
        let (words, table) = (Words::of::<DB>(), &self.table);
        let error = if self.before_7 { "last_error" } else { "error_message" };
        let (mut columns, mut values) = (vec!["event_id", "subject", "headers"], vec!["?", "?", words.json()]);
        columns.push("payload");
        values.push(if self.before_7 { words.json() } else { "?" });
        if !self.before_7 {
            columns.extend(["event_type", "resource_type", "resource_id", "processing_attempts"]);
            values.extend(["?", "?", "?", "1"]);
        }
        columns.extend(["status", "received_at", "processed_at", "created_at", "updated_at"]);
        values.extend(["'processed'", words.time(), words.time(), words.time(), words.time()]);
        let (columns, values, now) = (columns.join(", "), values.join(", "), words.time());
        let keep = |text: String| -> &'static str { text.leak() };
        Ok(options.beside(Effects {
            before_7: self.before_7,
            find: keep(format!(
                "select case when processed_at is null and status <> 'processed' then 0 else 1 end from {table}
                 where event_id = ? for update"
            )),
            insert: keep(format!("insert into {table} ({columns}) values ({values})")),
            update: keep(format!(
                "update {table} set status = 'processed', {error} = null, processed_at = {now}, updated_at = {now}
                 where event_id = ?"
            )),
        }))
    }
}

impl Default for Inbox {
    fn default() -> Self {
        Self::new()
    }
}

/// The statements on an inbox table.
struct Effects {
    before_7: bool,
    find: &'static str,
    insert: &'static str,
    update: &'static str,
}

impl Effects {
    fn new_row(&self, id: Text, subject: Text, event: &Event, now: Value) -> Vec<Value> {
        let event_data = whole(event, &id, &subject);
        let data = String::from_utf8_lossy(&event_data);
        // The gem puts texts into its JSON columns.
        let string = |text: &str| Value::Text(serde_json::Value::from(text).to_string().into());
        let headers = serde_json::json!({ "nats-msg-id": id.as_str() }).to_string();
        let mut args = vec![Value::Text(id), Value::Text(subject), string(&headers)];
        if self.before_7 {
            args.push(string(&data));
        } else {
            let fields = serde_json::from_slice::<Fields<'_>>(&event_data).ok();
            let field = |name| fields.as_ref().and_then(|fields| scalar(fields.get(&event_data, name)?, &event_data));
            args.extend([Value::Text(data.into_owned().into()), Value::Text(event.kind.clone())]);
            args.extend(["resource_type", "resource_id"].map(|name| Value::from(field(name))));
        }
        args.extend(std::iter::repeat_n(now, 4));
        args
    }
}

/// The whole envelope of an event: its data, or, if that is the payload alone, what it was sent as.
fn whole(event: &Event, id: &Text, subject: &Text) -> Bytes {
    let fields = serde_json::from_slice::<Fields<'_>>(&event.data).ok();
    let inner = fields.and_then(|fields| envelope(&fields, &event.data).ok());
    if inner.is_some_and(|inner| inner.kind == event.kind) {
        return event.data.clone();
    }
    let sent = Envelope::new().encode(&event.clone().id(id.clone()), &Topic::from(subject.clone()));
    sent.map_or_else(|_| event.data.clone(), |message| message.body)
}

impl Beside for Effects {
    fn enter<'a>(
        &'a self,
        session: &'a mut dyn Session,
        partition: &'a Partition,
        event: &'a Event,
        now: Timestamp,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        Box::pin(async move {
            let id = event.headers.text("nats-msg-id").map_or_else(|| event.id.clone(), Text::from);
            let (found, now) = (session.fetch(self.find, vec![(&id).into()]).await?, Value::Int(now.unix_ms()));
            match found.first().map(|row| row.int(0)).transpose()? {
                Some(0) => session.execute(self.update, vec![now.clone(), now, id.into()]).await.map(|_| false),
                Some(_) => Ok(true),
                None => {
                    let subject = Text::from(partition.topic.clone());
                    session.execute(self.insert, self.new_row(id, subject, event, now)).await.map(|_| false)
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(payload: &str) -> Found {
        let values = ["e1", "orders.sync.warehouse", payload].map(|text| Value::Text(text.into()));
        let mut row = vec![Value::Int(1), Value::Int(0), Value::Int(0)];
        row.extend(values);
        Rows.read(&SqlRow(row), Timestamp::from_unix_ms(1_000)).unwrap()
    }

    const BODY: &str = r#"{"event_id":"e1","event_type":"order.paid","producer":"orders","resource_id":7,"occurred_at":"2026-01-02T03:04:05+01:00","resource_type":"order","payload":{"b":2.50,"a":"é"}}"#;

    #[test]
    fn the_envelope_is_the_body_whether_it_is_a_string_or_an_object() {
        let string = found(&serde_json::to_string(BODY).unwrap()).event.unwrap();
        assert_eq!(string.data, BODY);
        assert_eq!((string.kind.as_str(), string.source.as_str(), string.id.as_str()), ("order.paid", "orders", "e1"));
        assert_eq!(string.key.clone().unwrap().as_str(), "order/7");
        assert_eq!(string.time.unwrap().to_string(), "2026-01-02T02:04:05Z");
        assert_eq!(string.topic.clone().unwrap().as_str(), "orders.sync.warehouse");
        assert_eq!(string.headers.text("nats-msg-id"), Some("e1"));
        let object =
            found(&BODY.replace(':', ": ").replace("2026-01-02T03: 04: 05+01: 00", "2026-01-02T03:04:05+01:00"));
        assert_eq!(object.event.unwrap(), string);
    }

    #[test]
    fn an_event_of_no_resource_has_no_key_and_takes_the_time_of_its_row() {
        let event =
            found(r#"{"event_type":"created","resource_type":"event","resource_id":"","payload":{}}"#).event.unwrap();
        assert_eq!((event.key, event.time), (None, Some(Timestamp::from_unix_ms(1_000))));
    }

    #[test]
    fn an_inbox_row_has_the_whole_envelope_whichever_way_the_event_was_read() {
        let effects = Effects { before_7: false, find: "", insert: "", update: "" };
        let mut message = crate::message::Message::new("orders.sync.warehouse", BODY);
        message.headers.add("nats-msg-id", "e1");
        let rows = [false, true].map(|whole| {
            let read = Envelope::new().whole(whole).decode(&message).unwrap();
            let crate::format::Decoded::One(event) = read else { panic!("one event") };
            effects.new_row(event.id.clone(), "s".into(), &event, Value::Int(1))
        });
        let text = |value: &Value| format!("{value:?}");
        assert_eq!(
            rows[0].iter().skip(4).map(text).collect::<Vec<_>>(),
            rows[1].iter().skip(4).map(text).collect::<Vec<_>>()
        );
        assert!(text(&rows[0][3]).contains("resource_id") && text(&rows[0][3]).contains("2.50"));
        assert_eq!(text(&rows[0][6]), text(&Value::Text("7".into())));
    }

    #[test]
    fn what_is_no_envelope_says_why_and_shows_nothing_of_it() {
        for (payload, why) in [
            ("", "no JSON"),
            ("\"not json\"", "no JSON object"),
            ("[\"4111\"]", "no JSON object"),
            ("\"\\\"4111\\\"\"", "no JSON object"),
            ("{}", "`event_type`"),
            ("{\"event_type\":4111}", "`event_type`"),
            ("\"{\\\"event_type\\\":\\\"\\\"}\"", "`event_type`"),
        ] {
            let found = found(payload).event.unwrap_err();
            assert!(found.as_str().contains(why) && !found.as_str().contains("4111"), "{payload}: {found}");
        }
    }
}
