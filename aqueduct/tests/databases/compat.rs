//! Tables of other systems, made as their migrations make them, with rows as their libraries write them.

use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{Abilities, Broker, Membership, Receipt, Subscription};
use aqueduct::compat::{jetstream_bridge, tupic};
use aqueduct::extract::FromCall;
use aqueduct::sql::{ServerDatabase, SqlStore};
use aqueduct::store::Store;
use aqueduct::{
    BoxFuture, BrokerError, Consumer, Error, Event, MemoryBroker, Message, OutboxTable, Policy, Publisher, Relay,
    Router, Topic, Tx, TxBatch,
};
use tokio::sync::{Notify, mpsc, watch};

use crate::fresh::{TestDatabase, tables};
use crate::relay_cases::Running;

/// A database with a table of another system in it, named `{t}` in statements.
struct Site<DB: TestDatabase> {
    database: ServerDatabase<DB>,
    prefix: String,
    table: String,
    connection: tokio::sync::Mutex<DB::Connection>,
}

const BRIDGE: &str = "create table {t} (id {serial}, event_id varchar(255) not null, subject varchar(255) not null,
    payload {json} not null, headers {json} not null, status varchar(255) not null default 'pending',
    attempts integer not null default 0, last_error text, enqueued_at {time}, sent_at {time},
    created_at {time} not null, updated_at {time} not null, unique (event_id))";

const TUPIC: &str = "create table {t} (id {serial}, message_id char(36) not null unique, subject varchar(255) not null,
    version varchar(20) not null, payload {json} not null, occurred_at {time} not null, published_at {time},
    error text, failed_at {time})";

/// An envelope of the gem, as it was captured.
const CAPTURED: &str = r#"{"event_id":"00000000-0000-4000-8000-000000000001","schema_version":1,"event_type":"created","producer":"orders","resource_id":"o-1","occurred_at":"2026-01-02T03:04:05Z","trace_id":"abcdef0123456789","resource_type":"order","payload":{"id":"o-1","total":12.5}}"#;

const SUBJECT: &str = "orders.sync.warehouse";

/// An event of one of these resources, numbered in its payload.
fn envelope(n: usize, resources: usize) -> String {
    format!(
        r#"{{"event_id":"e{n}","schema_version":1,"event_type":"order.changed","producer":"orders","resource_id":"{}","occurred_at":"2026-01-02T03:04:05Z","trace_id":"abcdef0123456789","resource_type":"order","payload":{{"n":{n}}}}}"#,
        n % resources
    )
}

impl<DB: TestDatabase> Site<DB> {
    async fn new(name: &str, create: &str) -> Self {
        let (database, prefix) = tables::<DB>().await;
        let connection = tokio::sync::Mutex::new(DB::connect().await);
        let site = Self { database, table: format!("{prefix}{name}"), prefix, connection };
        let [json, time, serial] = if DB::NAME == "PostgreSQL" {
            ["jsonb", "timestamp(6)", "bigserial primary key"]
        } else {
            ["json", "datetime(6)", "bigint auto_increment primary key"]
        };
        let create = create.replace("{json}", json).replace("{time}", time).replace("{serial}", serial);
        site.run(&create).await;
        site
    }

    fn store(&self) -> SqlStore<ServerDatabase<DB>> {
        SqlStore::new(&self.database)
    }

    fn bridge(&self) -> OutboxTable {
        jetstream_bridge::Outbox::new().table(&self.table).open(&self.store()).unwrap()
    }

    fn tupic(&self) -> OutboxTable {
        tupic::Outbox::new("acme", "svc").table(&self.table).open(&self.store()).unwrap()
    }

    fn quoted(text: &str) -> String {
        let text = text.replace('\'', "''");
        // A word of the language in strings of MySQL.
        format!("'{}'", if DB::NAME == "MySQL" { text.replace('\\', "\\\\") } else { text })
    }

    async fn run(&self, sql: &str) {
        DB::run(&mut *self.connection.lock().await, sql.replace("{t}", &self.table).replace("{p}", &self.prefix))
            .await
            .unwrap();
    }

    async fn count(&self, condition: &str) -> i64 {
        let sql = format!("select count(*) from {} where {condition}", self.table);
        DB::number(&mut *self.connection.lock().await, sql).await.unwrap()
    }

    async fn until(&self, condition: &str, wanted: i64) {
        let reached = async {
            while self.count(condition).await != wanted {
                // The database does not tell of its changes, so it is asked again; not all the time, which would leave none to relays.
                let pause = Duration::from_millis(10);
                let _ = tokio::time::timeout(pause, std::future::pending::<()>()).await;
            }
        };
        let in_time = tokio::time::timeout(Duration::from_mins(2), reached).await;
        assert!(in_time.is_ok(), "{condition}: {}, and {wanted} is wanted", self.count(condition).await);
    }

    /// Writes a row of the gem's; its payload is as given, or a JSON string with the text inside, as the gem has it.
    async fn bridge_row(&self, id: &str, subject: &str, payload: &str, status: &str) {
        let payload = serde_json_string(payload);
        let values = [id, subject, &payload, status].map(Self::quoted).join(", ");
        let sql = "insert into {t} (event_id, subject, payload, status, headers, created_at, updated_at) values";
        self.run(&format!("{sql} ({values}, '{{}}', '2026-01-02 03:04:05.678', {})", now::<DB>())).await;
    }

    async fn bridge_rows(&self, numbers: std::ops::Range<usize>, resources: usize, subject: &str) {
        for n in numbers {
            self.bridge_row(&format!("e{n}"), subject, &envelope(n, resources), "pending").await;
        }
    }

    async fn tupic_row(&self, id: &str, subject: &str, payload: &str) {
        let values = [id, subject, "1", payload].map(Self::quoted).join(", ");
        let sql = "insert into {t} (message_id, subject, version, payload, occurred_at) values";
        self.run(&format!("{sql} ({values}, '2026-01-02 03:04:05.678901')")).await;
    }
}

fn now<DB: TestDatabase>() -> &'static str {
    if DB::NAME == "PostgreSQL" { "now() at time zone 'utc'" } else { "utc_timestamp(6)" }
}

/// A JSON string with the text inside.
fn serde_json_string(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// A broker of one partition, which has topics that are declared alone.
fn broker() -> MemoryBroker {
    MemoryBroker::new().partitions(1).require_topics().declare(SUBJECT)
}

fn bodies(broker: &MemoryBroker, topic: &str) -> Vec<String> {
    let log = broker.log(&Topic::from(topic));
    log.into_iter().map(|(_, _, message)| String::from_utf8(message.body.to_vec()).unwrap()).collect()
}

/// The numbers of the events of each resource in the order of the stream.
fn numbers(broker: &MemoryBroker, topic: &str, resources: usize) -> Vec<Vec<usize>> {
    let mut found = vec![Vec::new(); resources];
    for body in bodies(broker, topic) {
        let n: usize = body.rsplit_once("\"n\":").unwrap().1.trim_end_matches('}').parse().unwrap();
        assert_eq!(body, envelope(n, resources));
        found[n % resources].push(n);
    }
    found
}

fn expected(numbers: std::ops::Range<usize>, resources: usize) -> Vec<Vec<usize>> {
    (0..resources).map(|r| numbers.clone().filter(|n| n % resources == r).collect()).collect()
}

async fn rows_of_the_gem_are_published_in_order_and_once<DB: TestDatabase>() {
    let site = Site::<DB>::new("bridge", BRIDGE).await;
    site.bridge_rows(0..300, 10, SUBJECT).await;
    for (id, status) in [("sent", "sent"), ("failed", "failed"), ("in hand", "publishing")] {
        site.bridge_row(id, SUBJECT, CAPTURED, status).await;
    }
    let table = site.bridge();
    let status = table.status().await.unwrap();
    assert_eq!((status.pending, status.counted, status.parked), (300, true, 0));
    assert_eq!(status.oldest.unwrap().to_string(), "2026-01-02T03:04:05.678Z");
    let (broker, (told, mut heard)) = (broker(), mpsc::unbounded_channel());
    let mute = Mute { inner: broker.clone(), told, answers: Arc::new(Notify::new()) };
    mute.answers.notify_one();
    // Whatever they are called, one of them has the table.
    let relays = [
        Running::start(Relay::new(site.bridge(), mute.clone()).name("one")),
        Running::start(Relay::new(site.bridge(), mute).name("two")),
    ];
    site.until("status = 'sent'", 301).await;
    assert_eq!(numbers(&broker, SUBJECT, 10), expected(0..300, 10));
    assert_eq!(
        site.count("status = 'sent' and attempts = 1 and sent_at is not null and updated_at = sent_at").await,
        300
    );
    assert_eq!(site.count("status = 'failed' and last_error is null").await, 1);
    assert_eq!(site.count("status = 'publishing' and attempts = 0").await, 1);
    let log = broker.log(&SUBJECT.into());
    assert_eq!(log[0].2.headers.text("nats-msg-id"), Some("e0"));
    for relay in relays {
        relay.stop().await;
    }
    let mut calls = 0;
    while let Some(bodies) = heard.recv().await {
        calls += bodies.len();
    }
    assert_eq!(calls, 300, "none was handed to the broker twice");
}

/// The process that had it in hand is gone: its row is published, and so is one that failed once somebody says so.
async fn a_row_that_was_abandoned_is_published<DB: TestDatabase>() {
    let site = Site::<DB>::new("bridge", BRIDGE).await;
    site.bridge_row("gone", SUBJECT, CAPTURED, "publishing").await;
    site.run("update {t} set updated_at = '2026-01-02 03:04:05', attempts = 1").await;
    site.bridge_row("failed", SUBJECT, CAPTURED, "failed").await;
    let broker = broker();
    let relay = Running::start(Relay::new(site.bridge(), broker.clone()));
    site.until("status = 'sent'", 1).await;
    assert_eq!(bodies(&broker, SUBJECT), [CAPTURED]);
    assert_eq!(site.bridge().retry(&[2]).await.unwrap(), 1);
    site.until("status = 'sent'", 2).await;
    relay.stop().await;
}

async fn a_refused_row_holds_its_resource_and_no_other<DB: TestDatabase>() {
    let site = Site::<DB>::new("bridge", BRIDGE).await;
    let (broker, table) = (broker(), site.bridge());
    site.bridge_rows(0..10, 2, "later").await;
    site.bridge_rows(10..20, 2, SUBJECT).await;
    site.bridge_row("no event", SUBJECT, "[1]", "pending").await;
    site.bridge_rows(20..30, 2, "later").await;
    let relay = Running::start(Relay::new(site.bridge(), broker.clone()));
    site.until("status = 'failed'", 21).await;
    site.until("status = 'sent'", 10).await;
    assert_eq!(numbers(&broker, SUBJECT, 2), expected(10..20, 2));
    let lines = table.parked(10).await.unwrap();
    let seen: Vec<_> = lines.iter().map(|line| (line.id, line.topic.as_str(), line.rows)).collect();
    assert_eq!(seen, [(1, "later", 10), (2, "later", 10), (21, SUBJECT, 1)]);
    assert!(lines[0].why.as_str().contains("does not exist") && lines[0].attempts >= 1, "{:?}", lines[0]);
    assert_eq!((lines[0].key.as_ref().unwrap().as_str(), lines[0].event_id.as_str()), ("order/0", "e0"));
    assert!(lines[2].why.as_str().contains("no JSON object"), "{:?}", lines[2]);
    let status = table.status().await.unwrap();
    assert_eq!((status.pending, status.parked, status.parked_lines), (0, 21, 3));
    assert_eq!(table.discard(21, "ann", "it never was an event").await.unwrap().unwrap().id, 21);
    assert_eq!(table.discard(21, "ann", "again").await.unwrap(), None);
    drop(broker.clone().declare("later"));
    assert!(table.retry_all().await.unwrap() >= 1);
    site.until("status = 'sent'", 30).await;
    relay.stop().await;
    let mut wanted = expected(0..10, 2);
    wanted.iter_mut().zip(expected(20..30, 2)).for_each(|(all, later)| all.extend(later));
    assert_eq!(numbers(&broker, "later", 2), wanted);
    assert_eq!(site.count("status = 'failed' and last_error like 'discarded: %'").await, 1);
    // Refusals are counted where the gem counts its tries.
    assert_eq!(site.count("id in (1, 2) and status = 'sent' and attempts >= 2 and last_error is null").await, 2);
}

/// A relay that is gone between what it published and the note of it publishes the same once more, and loses nothing.
async fn a_crash_before_the_note_repeats_at_most<DB: TestDatabase>() {
    let site = Site::<DB>::new("bridge", BRIDGE).await;
    site.bridge_rows(0..40, 4, SUBJECT).await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let mute = Mute { inner: broker(), told, answers: Arc::new(Notify::new()) };
    tokio::select! {
        biased;
        served = Relay::new(site.bridge(), mute.clone()).serve().into_future() => served.unwrap(),
        first = heard.recv() => assert_eq!(first.unwrap().len(), 4),
    }
    assert_eq!(site.count("status = 'pending'").await, 40);
    let mut published: Vec<String> = Vec::new();
    mute.answers.notify_one();
    let relay = Running::start(Relay::new(site.bridge(), mute.clone()));
    site.until("status = 'sent'", 40).await;
    relay.stop().await;
    while let Ok(bodies) = heard.try_recv() {
        published.extend(bodies);
    }
    published.sort();
    published.dedup();
    assert_eq!(published.len(), 40);
    assert_eq!(numbers(&mute.inner, SUBJECT, 4), expected(0..40, 4), "the broker dropped what was repeated");
}

/// A relay whose lease went to another says nothing of what it had published by then: that is published again.
async fn a_relay_that_was_replaced_settles_nothing<DB: TestDatabase>() {
    let site = Site::<DB>::new("bridge", BRIDGE).await;
    site.bridge_rows(0..40, 4, SUBJECT).await;
    let (told, mut heard) = mpsc::unbounded_channel();
    let mute = Mute { inner: broker(), told, answers: Arc::new(Notify::new()) };
    let relay = Running::start(Relay::new(site.bridge(), mute.clone()));
    let first = heard.recv().await.unwrap();
    site.run("update {p}leases set epoch = epoch + 1, session = null where grp like 'outbox %'").await;
    mute.answers.notify_one();
    site.until("status = 'sent'", 40).await;
    relay.stop().await;
    let mut later = Vec::new();
    while let Ok(bodies) = heard.try_recv() {
        later.extend(bodies);
    }
    assert!(first.iter().all(|body| later.contains(body)), "{first:?}");
    assert_eq!(site.count("attempts = 1").await, 40);
    assert_eq!(numbers(&mute.inner, SUBJECT, 4), expected(0..40, 4));
}

/// Publishes, and does not answer before it is told to.
#[derive(Clone)]
struct Mute {
    inner: MemoryBroker,
    told: mpsc::UnboundedSender<Vec<String>>,
    answers: Arc<Notify>,
}

impl Broker for Mute {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(async move {
            let bodies = messages.iter().map(|message| String::from_utf8(message.body.to_vec()).unwrap()).collect();
            let answers = self.inner.publish(messages).await;
            self.told.send(bodies).unwrap();
            self.answers.notified().await;
            self.answers.notify_one();
            answers
        })
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.check_topic(topic)
    }

    fn join(
        &self,
        subscription: Subscription,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<dyn Membership>, BrokerError>> + Send + '_>> {
        self.inner.join(subscription)
    }
}

/// A row as it was captured, and the message that the modules' own relay made of it.
const TUPIC_ID: &str = "01a1fcc7-e61a-7f2b-8b46-84660f0c810f";
const TUPIC_PAYLOAD: &str = r#"{"zeta": 1, "alpha": {"y": 2, "x": [1, 2.50, 1e3]}, "b": "x"}"#;
const TUPIC_BODY: &str = r#"{"id":"01a1fcc7-e61a-7f2b-8b46-84660f0c810f","version":"1","source":"svc","timestamp":1767323045678,"data":{"b":"x","zeta":1,"alpha":{"x":[1,2.50,1000],"y":2}}}"#;

async fn rows_of_the_modules_are_published_as_by_their_relay<DB: TestDatabase>() {
    let site = Site::<DB>::new("modules", TUPIC).await;
    site.tupic_row(TUPIC_ID, "events.asset.validated", TUPIC_PAYLOAD).await;
    site.tupic_row("2", "events.asset.validated", "2").await;
    site.tupic_row("3", "other.thing", "\"just a string\"").await;
    site.tupic_row("4", "events.asset.validated", "4").await;
    site.run(
        "insert into {t} (message_id, subject, version, payload, occurred_at, error, failed_at)
        values ('5', 'events.asset.validated', '1', '5', '2026-01-02 03:04:05', 'json: no', '2026-01-02 03:04:05')",
    )
    .await;
    let broker = MemoryBroker::new().partitions(1).require_topics().declare("acme.events.asset.validated");
    let (relay, table) = (Running::start(Relay::new(site.tupic(), broker.clone())), site.tupic());
    site.until("published_at is not null", 3).await;
    site.until("published_at is null and failed_at is not null", 2).await;
    let bodies = bodies(&broker, "acme.events.asset.validated");
    if DB::NAME == "PostgreSQL" {
        assert_eq!(bodies[0], TUPIC_BODY);
    }
    assert!(bodies[1].ends_with("\"data\":2}") && bodies[2].ends_with("\"data\":4}"), "{bodies:?}");
    let log = broker.log(&"acme.events.asset.validated".into());
    assert_eq!(log[0].2.headers.text("Nats-Msg-Id"), Some(TUPIC_ID));
    let lines = table.parked(10).await.unwrap();
    assert_eq!((lines.len(), lines[0].event_id.as_str().trim(), lines[0].kind.as_str()), (1, "3", "other.thing"));
    drop(broker.clone().declare("acme.other.thing"));
    table.retry(&[3]).await.unwrap();
    site.until("published_at is not null", 4).await;
    assert_eq!(site.count("error is null and failed_at is null").await, 4);
    relay.stop().await;
}

const INBOX: &str =
    "create table {t} (id {serial}, event_id varchar(255) not null unique, event_type varchar(255) not null,
    resource_type varchar(255), resource_id varchar(255), payload text not null, subject varchar(255), headers {json},
    stream varchar(255), stream_seq bigint, deliveries integer, status varchar(255) not null default 'received',
    error_message text, processing_attempts integer not null default 0, received_at {time}, processed_at {time},
    failed_at {time}, created_at {time} not null, updated_at {time} not null)";

const OLD_INBOX: &str =
    "create table {t} (id {serial}, event_id varchar(255) not null unique, subject varchar(255) not null,
    payload {json} not null, headers {json} not null, stream varchar(255), stream_seq bigint, deliveries integer,
    status varchar(255) not null default 'received', last_error text, received_at {time}, processed_at {time},
    created_at {time} not null, updated_at {time} not null)";

/// A site whose inbox has one event that is done and one that has failed.
async fn site_with_inbox<DB: TestDatabase>() -> (Site<DB>, jetstream_bridge::Inbox) {
    let site = Site::<DB>::new("gem_inbox", INBOX).await;
    let row = |id: &str, status: &str, processed: &str| {
        format!(
            "insert into {{t}} (event_id, event_type, payload, status, processed_at, created_at, updated_at)
             values ('{id}', 'order.changed', '', '{status}', {processed}, {now}, {now})",
            now = now::<DB>()
        )
    };
    site.run(&row("e1", "processed", now::<DB>())).await;
    site.run(&row("e2", "failed", "null")).await;
    let inbox = jetstream_bridge::Inbox::new().table(&site.table);
    (site, inbox)
}

async fn the_inbox_of_the_gem_is_kept<DB: TestDatabase>() {
    let (site, inbox) = site_with_inbox::<DB>().await;
    handled::<DB, Tx<DB>>(&site, inbox, false).await;
    let kept = "event_id = 'e3' and event_type = 'order.changed' and resource_type = 'order' and resource_id = '0'
        and processing_attempts = 1 and payload like '%\"n\":3}}' and received_at is not null";
    assert_eq!(site.count(kept).await, 1);
}

/// What is skipped takes nothing of the others' with it.
async fn the_inbox_of_the_gem_is_kept_in_a_shared_transaction<DB: TestDatabase>() {
    let (site, inbox) = site_with_inbox::<DB>().await;
    handled::<DB, TxBatch<DB>>(&site, inbox, true).await;
    let mut connection = site.connection.lock().await;
    let inbox = format!("select count(*) from {}inbox", site.prefix);
    assert_eq!(DB::number(&mut connection, inbox).await.unwrap(), 2, "one has taken effect elsewhere");
}

async fn the_inbox_of_an_old_gem_is_kept<DB: TestDatabase>() {
    let site = Site::<DB>::new("gem_inbox", OLD_INBOX).await;
    let insert = format!(
        "insert into {{t}} (event_id, subject, payload, headers, status, processed_at, created_at, updated_at)
         values ('e1', 's', '{{}}', '{{}}', 'processed', {now}, {now}, {now})",
        now = now::<DB>()
    );
    site.run(&insert).await;
    handled::<DB, Tx<DB>>(&site, jetstream_bridge::Inbox::before_7().table(&site.table), false).await;
    if DB::NAME == "PostgreSQL" {
        // A JSON string, as the gem has it.
        let kept = "event_id = 'e3' and (payload #>> '{}')::jsonb ->> 'event_id' = 'e3'";
        assert_eq!(site.count(kept).await, 1);
    }
}

/// Handles three events, of which the first has taken effect by the table, and says that of all of them then.
async fn handled<DB, T>(site: &Site<DB>, inbox: jetstream_bridge::Inbox, shared: bool)
where
    DB: TestDatabase,
    T: FromCall<()> + 'static,
{
    let (asked, all) = watch::channel(0);
    let options = inbox.keep(DB::options().prefix(&site.prefix)).unwrap();
    let options = options.steps(move |step| asked.send_modify(|asked| *asked += usize::from(step == "waits")));
    let (database, broker) = (options.connect().await.unwrap(), MemoryBroker::new());
    let publisher = Publisher::new("orders", broker.clone());
    for n in [2, 1, 3] {
        let event = Event::raw("order.changed", envelope(n, 3)).topic(SUBJECT).key(n.to_string());
        // The header counts, as with the gem.
        publisher.publish(event.header("nats-msg-id", format!("e{n}"))).await.unwrap();
    }
    let (told, mut heard) = mpsc::unbounded_channel();
    let handler = move |event: Event, _: T| {
        told.send(event.headers.text("nats-msg-id").unwrap_or_default().to_owned()).unwrap();
        let mut all = all.clone();
        async move {
            // All of them share the first one's transaction.
            if shared {
                all.wait_for(|asked| *asked >= 3).await?;
            }
            Ok::<_, Error>(())
        }
    };
    let consumer = Consumer::new("stock", broker.clone()).topics([SUBJECT]).store(SqlStore::new(&database));
    let serve = consumer.serve(Router::new().on("order.changed", handler));
    let settled = async move { broker.wait_settled("stock").await };
    serve.with_graceful_shutdown(settled).await.unwrap();
    let mut seen = Vec::new();
    while let Some(id) = heard.recv().await {
        seen.push(id);
    }
    assert!(!seen.contains(&"e1".to_owned()) && seen.contains(&"e3".to_owned()), "{seen:?}");
    assert_eq!(site.count("status = 'processed' and processed_at is not null").await, 3);
    assert_eq!(site.count("1 = 1").await, 3);
}

const FAILED_TASKS: &str = "create table {t} (id char(36) primary key, type varchar(255) not null,
    version varchar(20) not null, payload {json} not null, attempts int not null, last_error text not null,
    failed_at {time} not null)";

async fn dead_letters_are_failed_tasks<DB: TestDatabase>() {
    let site = Site::<DB>::new("tasks", FAILED_TASKS).await;
    let first = "00000000-0000-4000-8000-000000000001";
    site.run(&format!("insert into {{t}} values ('{first}', 't', '1', 'null', 11, 'the first', {})", now::<DB>()))
        .await;
    let options = DB::options().prefix(crate::fresh::prefix());
    let options = tupic::FailedTasks::new("acme").table(&site.table).keep(options).unwrap();
    let (database, broker) = (options.connect().await.unwrap(), MemoryBroker::new());
    let topic = "acme.queues.default.fails";
    let publisher = Publisher::new("svc", broker.clone());
    let own = "01a1fcc7-e626-7d24-b091-fb85047b08c3";
    let envelope = format!(r#"{{"id":"{own}","version":"2","source":"svc","timestamp":1,"data":{{"data":"f"}}}}"#);
    for (id, kind, data) in [(first, "rejected", "1"), (own, "fails", &envelope), ("no uuid", "rejected", "not json")] {
        publisher.publish(Event::raw(kind, data.to_owned()).id(id).topic(topic)).await.unwrap();
    }
    let policy = Policy::ordered().quick_attempts(1).max_attempts(1).parked_delay(Duration::from_millis(1));
    let consumer = Consumer::new("svc", broker).topics([topic]).store(SqlStore::new(&database)).policy(policy);
    let app = Router::new()
        .on("rejected", async || Err::<(), _>(Error::msg("no such asset").permanent()))
        .on("fails", async || Err::<(), _>(Error::msg("db down")));
    let end = Arc::new(Notify::new());
    let stopped = Arc::clone(&end);
    let serve = consumer.serve(app).with_graceful_shutdown(async move { stopped.notified().await });
    let served = tokio::spawn(serve.into_future());
    site.until("1 = 1", 3).await;
    // They are dead letters too; that of the first has no row of its own.
    let (store, mut dead) = (SqlStore::new(&database), aqueduct::store::Query::default());
    dead.dead = Some(true);
    while store.browse(&dead).await.unwrap().len() < 3 {
        tokio::task::yield_now().await;
    }
    end.notify_one();
    served.await.unwrap().unwrap();
    assert_eq!(site.count("last_error = 'the first'").await, 1);
    let text = if DB::NAME == "PostgreSQL" { "payload::text" } else { "payload" };
    let gave_up = format!(
        "id = '{own}' and type = 'queues.default.fails' and version = '2' and attempts = 2
        and last_error like '%db down%' and {text} like '{{\"data\":%\"f\"}}'"
    );
    assert_eq!(site.count(&gave_up).await, 1);
    let made = format!("version = '' and attempts = 1 and last_error like '%no such asset%' and {text} = 'null'");
    assert_eq!(site.count(&made).await, 1);
}

crate::fresh::on_servers!(
    the_inbox_of_the_gem_is_kept,
    the_inbox_of_the_gem_is_kept_in_a_shared_transaction,
    the_inbox_of_an_old_gem_is_kept,
    dead_letters_are_failed_tasks,
    rows_of_the_gem_are_published_in_order_and_once,
    a_row_that_was_abandoned_is_published,
    a_refused_row_holds_its_resource_and_no_other,
    a_crash_before_the_note_repeats_at_most,
    a_relay_that_was_replaced_settles_nothing,
    rows_of_the_modules_are_published_as_by_their_relay,
);
