//! What a relay must do on the outbox table of whatever database; each runs these cases on its own.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aqueduct::broker::{Abilities, Broker, Membership, Receipt, Subscription};
use aqueduct::format::PlainJson;
use aqueduct::{BoxFuture, BrokerError, Event, MemoryBroker, Message, OutboxTable, Relay, ServeError, Topic};
use tokio::sync::Notify;

/// An outbox table in a database of its own.
pub(crate) trait Site: Sync {
    fn table(&self) -> OutboxTable;

    /// Writes events to the outbox, in a transaction of the application's.
    fn write(&self, events: Vec<Event>) -> impl Future<Output = ()> + Send;

    /// Runs a statement that is the same in all databases.
    fn run(&self, sql: &'static str) -> impl Future<Output = ()> + Send;

    fn count(&self, sql: &'static str) -> impl Future<Output = i64> + Send;

    /// Resolves when something may have changed since the call.
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

pub(crate) const WAITING: &str = "select (select count(*) from aq_outbox) + (select count(*) from aq_outbox_parked)";

/// Waits until a count is what it should be.
pub(crate) async fn until(site: &impl Site, sql: &'static str, wanted: i64) {
    let reached = async {
        loop {
            let changed = site.changed();
            if site.count(sql).await == wanted {
                return;
            }
            changed.await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_mins(2), reached).await;
    assert!(in_time.is_ok(), "{sql}: {}, and {wanted} is wanted", site.count(sql).await);
}

pub(crate) fn events(ids: impl Iterator<Item = usize>, keys: usize) -> Vec<Event> {
    let event = |n: usize| {
        let event = Event::raw("order.placed", n.to_string()).id(n.to_string()).topic("orders");
        event.key(format!("key {}", n % keys))
    };
    ids.map(event).collect()
}

/// A relay that runs until it is told to stop.
pub(crate) struct Running {
    stop: Arc<Notify>,
    served: tokio::task::JoinHandle<Result<(), ServeError>>,
}

impl Running {
    pub(crate) fn start(relay: Relay) -> Self {
        let stop = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop);
        let serve = relay.serve().with_graceful_shutdown(async move { stopped.notified().await });
        Self { stop, served: tokio::spawn(serve.into_future()) }
    }

    pub(crate) async fn stop(self) {
        self.stop.notify_one();
        tokio::time::timeout(Duration::from_mins(1), self.served).await.expect("it hangs").unwrap().unwrap();
    }
}

/// What a broker of one partition holds: the numbers of the events of each key in their order.
fn keys(broker: &MemoryBroker, topic: &str) -> BTreeMap<String, Vec<usize>> {
    let mut keys: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (_, _, message) in broker.log(&Topic::from(topic)) {
        let key = message.key.map(|key| String::from_utf8(key.to_vec()).unwrap()).unwrap_or_default();
        let number = std::str::from_utf8(&message.body).unwrap().parse().unwrap();
        keys.entry(key).or_default().push(number);
    }
    keys
}

#[track_caller]
fn complete_and_in_order(broker: &MemoryBroker, count: usize) {
    let keys = keys(broker, "orders");
    assert_eq!(keys.values().map(Vec::len).sum::<usize>(), count);
    for (key, numbers) in keys {
        assert!(numbers.is_sorted_by(|a, b| a < b), "{key}: {numbers:?}");
    }
}

pub(crate) async fn a_backlog_is_drained_in_order(site: &impl Site, rows: usize) {
    let ids: Vec<usize> = (0..rows).collect();
    for chunk in ids.chunks(10_000) {
        site.write(events(chunk.iter().copied(), 1_000)).await;
    }
    let status = site.table().status().await.unwrap();
    assert_eq!((status.pending, status.counted), (rows as u64, rows <= 10_000));
    assert!(status.oldest.is_some());
    let broker = MemoryBroker::new().partitions(4);
    let relay = Running::start(Relay::new(site.table(), broker.clone()));
    until(site, WAITING, 0).await;
    relay.stop().await;
    complete_and_in_order(&broker, rows);
    assert_eq!(site.table().status().await.unwrap().pending, 0);
}

/// A hint makes the relay look; without one it would sleep for seconds by now.
pub(crate) async fn a_row_is_published_at_once(site: &impl Site) {
    let broker = MemoryBroker::new();
    let relay = Running::start(Relay::new(site.table(), broker.clone()));
    for n in 0..50 {
        let began = tokio::time::Instant::now();
        site.write(events(std::iter::once(n), 10)).await;
        until(site, WAITING, 0).await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
    relay.stop().await;
    complete_and_in_order(&broker, 50);
}

/// A topic that does not exist refuses its rows: their keys wait and no others, until it is there.
pub(crate) async fn a_refused_row_parks_its_key_and_no_other(site: &impl Site) {
    let broker = MemoryBroker::new().require_topics().declare("orders");
    let relay = Running::start(Relay::new(site.table(), broker.clone()));
    let later = |n: usize| Event::raw("order.placed", n.to_string()).topic("later").key(format!("key {}", n % 2));
    let mut mixed = events(0..40, 4);
    mixed.extend((40..60).map(later));
    site.write(mixed).await;
    until(site, "select count(*) from aq_outbox", 0).await;
    site.write((60..70).map(later).chain(events(70..80, 4)).collect()).await;
    until(site, "select count(*) from aq_outbox", 0).await;
    complete_and_in_order(&broker, 50);
    let lines = site.table().parked(10).await.unwrap();
    assert_eq!(lines.len(), 2);
    for line in &lines {
        assert_eq!((line.topic.as_str(), line.rows), ("later", 15));
        assert!(line.attempts >= 1 && line.why.as_str().contains("does not exist"), "{line:?}");
    }
    let status = site.table().status().await.unwrap();
    assert_eq!((status.parked, status.parked_lines), (30, 2));
    drop(broker.clone().declare("later"));
    site.table().retry(&lines.iter().map(|line| line.id).collect::<Vec<_>>()).await.unwrap();
    until(site, WAITING, 0).await;
    relay.stop().await;
    let later = keys(&broker, "later");
    assert_eq!(later["key 0"], (40..70).filter(|n| n % 2 == 0).collect::<Vec<_>>());
    assert_eq!(later["key 1"], (40..70).filter(|n| n % 2 == 1).collect::<Vec<_>>());
}

/// Rows that programs in other languages write, some of them wrongly.
pub(crate) async fn rows_of_other_languages_are_events_or_say_why_not(site: &impl Site) {
    site.run("insert into aq_outbox (topic, key, event_id, type, source, headers, data) values ('orders', 'a', 'e1', 'order.placed', 'rails', '{\"tenant\":\"7\"}', '1')").await;
    site.run("insert into aq_outbox (topic, key, type, data) values ('orders', 'b', '', '2')").await;
    site.run("insert into aq_outbox (topic, key, type, headers, data) values ('orders', 'a', 'order.placed', 'rubbish', '3')").await;
    site.run("insert into aq_outbox (topic, key, type, data) values ('orders', 'b', 'order.placed', '4')").await;
    site.run("insert into aq_outbox (topic, key, type, time, data) values ('orders', 'c', 'order.placed', '2026-01-05T09:00:07Z', '5')").await;
    let broker = MemoryBroker::new();
    let relay = Running::start(Relay::new(site.table(), broker.clone()).source("elsewhere"));
    until(site, "select count(*) from aq_outbox", 0).await;
    let log = broker.log(&"orders".into());
    let [one, five] = [b"1", b"5"].map(|body| log.iter().find(|(_, _, message)| &message.body[..] == body).unwrap());
    let header = |(_, _, message): &(_, _, Message), name| message.headers.text(name).unwrap_or_default().to_owned();
    assert_eq!([header(one, "ce-id"), header(one, "ce-source"), header(one, "tenant")], ["e1", "rails", "7"]);
    assert_eq!([header(five, "ce-time"), header(five, "ce-source")], ["2026-01-05T09:00:07Z", "elsewhere"]);
    assert_eq!(log.len(), 2);
    let lines = site.table().parked(10).await.unwrap();
    let whys: Vec<_> = lines.iter().map(|line| line.why.as_str()).collect();
    assert!(whys[0].contains("`type` is empty") && whys[1].contains("`headers`"), "{whys:?}");
    for line in &lines {
        let gone = site.table().discard(line.id, "ann", "it never was an event").await.unwrap().unwrap();
        assert_eq!((gone.id, gone.rows), (line.id, line.rows));
        assert_eq!(site.table().discard(line.id, "ann", "again").await.unwrap(), None);
    }
    until(site, WAITING, 0).await;
    relay.stop().await;
    assert_eq!(keys(&broker, "orders")["b"], [4]);
}

/// Relays that are dropped in the middle, whatever they are doing, and new ones that take over from them.
pub(crate) async fn relays_that_are_killed_lose_nothing(site: &impl Site, rows: usize) {
    let broker = MemoryBroker::new();
    let counting = Counting { inner: broker.clone(), calls: Arc::default(), called: Arc::default() };
    let mut written = 0;
    for round in 0..12_usize {
        site.write(events(written..written + rows, 100)).await;
        written += rows;
        let relay = Relay::new(site.table(), counting.clone());
        let wanted = counting.calls.load(Ordering::SeqCst) + round % 4;
        let killed = async {
            while counting.calls.load(Ordering::SeqCst) < wanted {
                counting.called.notified().await;
            }
        };
        tokio::select! {
            biased;
            served = relay.serve().into_future() => served.unwrap(),
            () = killed => {}
        }
    }
    // The one that goes on does not know of the one before it.
    let others = [
        Running::start(Relay::new(site.table(), broker.clone())),
        Running::start(Relay::new(site.table(), broker.clone())),
    ];
    until(site, WAITING, 0).await;
    for other in others {
        other.stop().await;
    }
    complete_and_in_order(&broker, written);
}

/// What was published is kept for as long as it is asked for.
pub(crate) async fn an_audit_keeps_what_was_published(site: &impl Site) {
    let broker = MemoryBroker::new();
    let relay = Running::start(
        Relay::new(site.table(), broker.clone()).audit(Duration::from_hours(1)).format(PlainJson::default()),
    );
    site.write(events(0..700, 10)).await;
    until(site, WAITING, 0).await;
    relay.stop().await;
    let kept = "select count(*) from aq_outbox_sent where topic = 'orders' and type = 'order.placed' and sent_at >= written_at";
    assert_eq!(site.count(kept).await, 700);
}

/// Counts its calls.
#[derive(Clone)]
struct Counting {
    inner: MemoryBroker,
    calls: Arc<AtomicUsize>,
    called: Arc<Notify>,
}

impl Broker for Counting {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.called.notify_one();
        self.inner.publish(messages)
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
