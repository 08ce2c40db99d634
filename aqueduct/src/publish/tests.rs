//! The publisher against a broker that does as it is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use proptest::prelude::*;
use tokio::sync::{Semaphore, mpsc};

use super::*;
use crate::broker::{Abilities, Membership, Ownership, Subscription};
use crate::format::PlainJson;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::topic::{Key, Partition, Position};

/// Answers as its script says, and records what it was asked.
#[derive(Clone)]
struct Scripted(Arc<Inner>);

struct Inner {
    abilities: Abilities,
    seen: Mutex<Seen>,
    /// One permit lets one call answer; closed lets all.
    go: Semaphore,
    /// The ids of each call as it arrives.
    calls: mpsc::UnboundedSender<Vec<String>>,
}

#[derive(Default)]
struct Seen {
    /// How often each id is answered with `Unavailable` first.
    unavailable: BTreeMap<String, u32>,
    /// Ids that are refused.
    refused: Vec<String>,
    stored: Vec<(Option<String>, String)>,
    tries: BTreeMap<String, u32>,
    in_flight: BTreeMap<String, usize>,
    in_flight_max: usize,
    largest_call: usize,
}

impl Scripted {
    fn new(abilities: Abilities) -> (Self, mpsc::UnboundedReceiver<Vec<String>>) {
        let (calls, arrived) = mpsc::unbounded_channel();
        let inner = Inner { abilities, seen: Mutex::default(), go: Semaphore::new(0), calls };
        (Self(Arc::new(inner)), arrived)
    }

    /// Answers at once.
    fn free() -> Self {
        let (broker, _) = Self::new(Abilities::new(Ownership::Floor));
        broker.0.go.close();
        broker
    }

    fn unavailable(self, id: &str, times: u32) -> Self {
        self.0.seen.lock().unavailable.insert(id.to_owned(), times);
        self
    }

    fn refused(self, id: &str) -> Self {
        self.0.seen.lock().refused.push(id.to_owned());
        self
    }

    fn stored(&self) -> Vec<String> {
        self.0.seen.lock().stored.iter().map(|(_, id)| id.clone()).collect()
    }

    fn tries(&self, id: &str) -> u32 {
        self.0.seen.lock().tries.get(id).copied().unwrap_or(0)
    }

    fn answer(&self, message: &Message, failed: &mut Vec<String>) -> Result<Receipt, BrokerError> {
        let mut seen = self.0.seen.lock();
        let (key, id) = names(message);
        *seen.tries.entry(id.clone()).or_default() += 1;
        // As Kafka's idempotent producer: what comes after a failure of its partition fails too.
        let behind = self.0.abilities.ordered_publish && key.as_ref().is_some_and(|key| failed.contains(key));
        let left = seen.unavailable.get_mut(&id).filter(|left| **left > 0);
        let unavailable = left.map(|left| *left -= 1).is_some();
        if behind || unavailable || seen.refused.contains(&id) {
            failed.extend(key);
            return Err(if unavailable || behind {
                BrokerError::Unavailable("as the script says".into())
            } else {
                BrokerError::Refused("as the script says".into())
            });
        }
        let duplicate = seen.stored.iter().any(|(_, stored)| *stored == id);
        seen.stored.push((key, id));
        let partition = Partition { topic: message.topic.clone(), index: 0 };
        Ok(Receipt::new(partition, Position(seen.stored.len() as u64), duplicate))
    }
}

fn names(message: &Message) -> (Option<String>, String) {
    let key = message.key().map(|key| String::from_utf8(key.to_vec()).unwrap());
    (key, message.headers.text("ce-id").unwrap().to_owned())
}

/// What is in flight while a call to the broker has not ended, in whatever way.
struct InFlight(Scripted, Vec<String>);

impl InFlight {
    fn new(broker: &Scripted, messages: &[Message]) -> Self {
        let keys: Vec<String> = messages.iter().filter_map(|message| names(message).0).collect();
        let seen = &mut *broker.0.seen.lock();
        for key in &keys {
            let count = seen.in_flight.entry(key.clone()).or_default();
            *count += 1;
            seen.in_flight_max = seen.in_flight_max.max(*count);
        }
        seen.largest_call = seen.largest_call.max(messages.len());
        Self(broker.clone(), keys)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut seen = self.0.0.seen.lock();
        for key in &self.1 {
            *seen.in_flight.get_mut(key).unwrap() -= 1;
        }
    }
}

impl Broker for Scripted {
    fn abilities(&self) -> Abilities {
        self.0.abilities
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        Box::pin(async move {
            let _in_flight = InFlight::new(self, &messages);
            let _ = self.0.calls.send(messages.iter().map(|message| names(message).1).collect());
            if let Ok(permit) = self.0.go.acquire().await {
                permit.forget();
            }
            let mut failed = Vec::new();
            messages.iter().map(|message| self.answer(message, &mut failed)).collect()
        })
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        let known = topic.as_str() != "missing";
        let answer = if known { Ok(()) } else { Err(BrokerError::NoSuchTopic { topic: topic.clone() }) };
        Box::pin(std::future::ready(answer))
    }

    fn join(&self, _: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(std::future::ready(Err(BrokerError::Closed)))
    }
}

fn event(id: &str, key: &str) -> Event {
    Event::raw("t", "{}").id(id).key(key).topic("topic")
}

fn publisher(broker: &Scripted) -> Publisher {
    Publisher::new("test", broker.clone()).clock(Clock::simulated(1))
}

/// What became of each event, in a word.
fn words(answers: &[Answer]) -> Vec<&'static str> {
    let word = |answer: &Answer| match answer {
        Ok(receipt) if receipt.duplicate => "duplicate",
        Ok(_) => "stored",
        Err(PublishError::Unconfirmed { .. }) => "unconfirmed",
        Err(PublishError::EarlierFailed { .. }) => "earlier failed",
        Err(PublishError::Broker(_)) => "refused",
        Err(PublishError::TooLarge { .. }) => "too large",
        Err(PublishError::NoTopic { .. }) => "no topic",
        Err(PublishError::Topic(_)) => "bad topic",
        Err(PublishError::Format(_)) => "format",
        Err(PublishError::Routes(_)) => "routes",
    };
    answers.iter().map(word).collect()
}

#[tokio::test(start_paused = true)]
async fn what_is_unset_is_filled_in() {
    let publisher = publisher(&Scripted::free()).route("order.*", "orders");
    let (lane, prepared) = publisher.config.prepare(Event::raw("order.placed", "{}").key("k"));
    let event = prepared.unwrap_or_else(|e| panic!("{e}")).event;
    assert_eq!(uuid::Uuid::parse_str(event.id.as_str()).unwrap().get_version_num(), 7);
    assert_eq!((event.source.as_str(), event.topic), ("test", Some("orders".into())));
    assert_eq!(event.time.unwrap().to_string(), "2026-01-01T00:00:00Z");
    assert_eq!(lane, Some(("orders".into(), Key::new("k").unwrap())));

    let given = Event::raw("order.placed", "").id("1").source("s").topic("mine").time(crate::Timestamp::UNIX_EPOCH);
    let (_, prepared) = publisher.config.prepare(given.clone());
    assert_eq!(prepared.unwrap_or_else(|e| panic!("{e}")).event, given);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_sent_says_why_and_is_not_sent() {
    let mut abilities = Abilities::new(Ownership::Floor);
    abilities.message_bytes_max = 300;
    let (broker, _calls) = Scripted::new(abilities);
    broker.0.go.close();
    let publisher = publisher(&broker).route("x.*", "x y");
    let answers = publisher
        .publish_all(vec![
            Event::raw("t", ""),
            Event::raw("x.a", ""),
            event("big", "").header("x", vec![b'x'; 300]),
            event("bad", "").header("ce-id", "2"),
            event("good", ""),
        ])
        .await;
    assert_eq!(words(&answers), ["no topic", "bad topic", "too large", "format", "stored"]);
    let texts: Vec<String> = answers.iter().filter_map(|answer| Some(answer.as_ref().err()?.to_string())).collect();
    for (text, part) in texts.iter().zip([".topic(..)", "\"x y\"", "the broker takes 300", "header \"ce-id\""]) {
        assert!(text.contains(part), "{text}");
    }
    assert!(texts[0].contains(".route(\"t\", ..)"), "{}", texts[0]);
    assert_eq!(broker.stored(), ["good"]);
}

#[tokio::test(start_paused = true)]
async fn answers_are_in_the_order_of_the_events_and_calls_are_bounded() {
    let broker = Scripted::free();
    let events: Vec<Event> = (0..2_500).map(|n| event(&format!("{n}"), ["", "a", "b"][n % 3])).collect();
    let answers = publisher(&broker).publish_all(events).await;
    let stored = broker.stored();
    assert_eq!(answers.len(), 2_500);
    for (n, answer) in answers.iter().enumerate() {
        let position = answer.as_ref().unwrap().position.0;
        assert_eq!(stored[usize::try_from(position).unwrap() - 1], n.to_string());
    }
    assert_eq!(broker.0.seen.lock().largest_call, 834 + 2, "all without a key, and one of each key");
    assert_eq!(broker.0.seen.lock().in_flight_max, 1);
    let broker = Scripted::free();
    publisher(&broker).publish_all((0..2_500).map(|n| event(&format!("{n}"), "")).collect()).await;
    assert_eq!(broker.0.seen.lock().largest_call, 1_000);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_keys_go_out_at_once() {
    let broker = Scripted::free();
    let events = (0..1_000).map(|n| event(&format!("{n}"), &format!("{n}"))).collect();
    assert_eq!(words(&publisher(&broker).publish_all(events).await), ["stored"; 1_000]);
    assert_eq!(broker.0.seen.lock().largest_call, 1_000);
}

#[tokio::test(start_paused = true)]
async fn an_unavailable_broker_is_tried_again_with_the_same_id_and_the_key_waits() {
    let broker = Scripted::free().unavailable("a1", 5);
    let events = vec![event("a1", "a"), event("a2", "a"), event("b1", "b"), event("n1", "")];
    let answers = publisher(&broker).publish_all(events).await;
    assert_eq!(words(&answers), ["stored"; 4]);
    assert_eq!(broker.stored(), ["b1", "n1", "a1", "a2"]);
    assert_eq!((broker.tries("a1"), broker.tries("a2")), (6, 1));
}

#[tokio::test(start_paused = true)]
async fn when_tries_run_out_the_event_comes_back_with_its_id() {
    let broker = Scripted::free();
    let publisher = publisher(&broker);
    let start = tokio::time::Instant::now();
    let lost = Event::raw("t", "{}").key("a").topic("topic");
    // The id is not known before it is drawn, so the whole script is for whatever id comes first.
    let id = Clock::simulated(1).uuid().to_string();
    let _ = broker.clone().unavailable(&id, 6);
    let answers = publisher.publish_all(vec![lost, event("a2", "a"), event("a3", "a"), event("b1", "b")]).await;
    assert_eq!(words(&answers), ["unconfirmed", "earlier failed", "earlier failed", "stored"]);
    assert!(start.elapsed() <= Duration::from_millis(3_100));
    assert_eq!((broker.tries("a2"), broker.tries("a3")), (0, 0));
    let Some(Err(PublishError::Unconfirmed { event, tries, .. })) = answers.into_iter().next() else { panic!() };
    assert_eq!((event.id.as_str(), tries), (id.as_str(), 6));
    assert!(publisher.publish(*event).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refused_event_fails_the_later_ones_of_its_key_only() {
    let broker = Scripted::free().refused("a2");
    let events = ["a1", "b1", "a2", "a3", "n1", "b2", "a4"].map(|id| event(id, id[..1].trim_matches('n')));
    let answers = publisher(&broker).publish_all(events.into()).await;
    let failed = "earlier failed";
    assert_eq!(words(&answers), ["stored", "stored", "refused", failed, "stored", "stored", failed]);
    assert_eq!(broker.tries("a2"), 1);
    let text = answers[3].as_ref().unwrap_err().to_string();
    assert!(text.contains("\"a\"") && text.contains("\"topic\""), "{text}");
}

#[tokio::test(start_paused = true)]
async fn an_event_that_cannot_be_written_fails_the_later_ones_of_its_key() {
    let broker = Scripted::free();
    let events = vec![event("a1", "a"), event("a2", "a").header("ce-id", "x"), event("a3", "a"), event("b1", "b")];
    let answers = publisher(&broker).publish_all(events).await;
    assert_eq!(words(&answers), ["stored", "format", "earlier failed", "stored"]);
}

#[tokio::test(start_paused = true)]
async fn clones_take_turns_on_a_key_and_nothing_else_waits() {
    let (broker, mut calls) = Scripted::new(Abilities::new(Ownership::Floor));
    let publisher = publisher(&broker);
    let mut tasks = Vec::new();
    let start = |id: &'static str, key: &'static str| {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish(event(id, key)).await.map(|receipt| receipt.position) })
    };
    tasks.push(start("a1", "a"));
    assert_eq!(calls.recv().await.unwrap(), ["a1"]);
    tasks.push(start("a2", "a"));
    tasks.push(start("b1", "b"));
    assert_eq!(calls.recv().await.unwrap(), ["b1"]);
    tasks.push(start("n1", ""));
    tasks.push(start("n2", ""));
    assert_eq!((calls.recv().await.unwrap(), calls.recv().await.unwrap()), (vec!["n1".into()], vec!["n2".into()]));
    assert_eq!(publisher.gate.lanes(), 2);
    broker.0.go.close();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(calls.recv().await.unwrap(), ["a2"]);
    assert_eq!(broker.0.seen.lock().in_flight_max, 1);
    assert_eq!(publisher.gate.lanes(), 0);
}

#[tokio::test(start_paused = true)]
async fn one_who_comes_late_waits_for_one_who_waited() {
    let (broker, mut calls) = Scripted::new(Abilities::new(Ownership::Floor));
    let publisher = publisher(&broker);
    let start = |id: &'static str| {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish(event(id, "a")).await.map(|receipt| receipt.position) })
    };
    let first = start("a1");
    assert_eq!(calls.recv().await.unwrap(), ["a1"]);
    let second = start("a2");
    tokio::task::yield_now().await;
    broker.0.go.add_permits(1);
    first.await.unwrap().unwrap();
    assert_eq!(calls.recv().await.unwrap(), ["a2"]);
    let third = start("a3");
    tokio::task::yield_now().await;
    assert!(calls.try_recv().is_err(), "a3 is sent while a2 is unconfirmed");
    broker.0.go.close();
    second.await.unwrap().unwrap();
    third.await.unwrap().unwrap();
    assert_eq!((broker.stored(), publisher.gate.lanes()), (["a1", "a2", "a3"].map(str::to_owned).to_vec(), 0));
}

#[tokio::test(start_paused = true)]
async fn callers_who_give_up_leave_the_gate_open() {
    let (broker, mut calls) = Scripted::new(Abilities::new(Ownership::Floor));
    let publisher = publisher(&broker);
    let start = |id: &'static str| {
        let publisher = publisher.clone();
        tokio::spawn(async move { publisher.publish(event(id, "a")).await.map(|receipt| receipt.position) })
    };
    let running = start("a1");
    assert_eq!(calls.recv().await.unwrap(), ["a1"]);
    let waiting = start("a2");
    let patient = start("a3");
    tokio::task::yield_now().await;
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    running.abort();
    assert_eq!(calls.recv().await.unwrap(), ["a3"]);
    broker.0.go.close();
    patient.await.unwrap().unwrap();
    assert_eq!((broker.stored(), publisher.gate.lanes()), (vec!["a3".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn batches_with_the_same_keys_in_other_orders_both_end() {
    let broker = Scripted::free().unavailable("1a", 2).unavailable("2b", 2);
    let publisher = publisher(&broker);
    let one = publisher.publish_all(vec![event("1a", "a"), event("1b", "b"), event("1c", "a")]);
    let two = publisher.publish_all(vec![event("2b", "b"), event("2a", "a"), event("2c", "b")]);
    let (one, two) = tokio::join!(one, two);
    assert_eq!((words(&one), words(&two)), (vec!["stored"; 3], vec!["stored"; 3]));
    assert_eq!(broker.0.seen.lock().in_flight_max, 1);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_keeps_order_gets_a_key_at_once_and_again_from_where_it_failed() {
    let mut abilities = Abilities::new(Ownership::Floor);
    abilities.ordered_publish = true;
    let (broker, mut calls) = Scripted::new(abilities);
    broker.0.go.close();
    let broker = broker.unavailable("a2", 1);
    let answers = publisher(&broker).publish_all(["a1", "a2", "a3"].map(|id| event(id, "a")).into()).await;
    assert_eq!(words(&answers), ["stored"; 3]);
    assert_eq!(calls.recv().await.unwrap(), ["a1", "a2", "a3"]);
    assert_eq!(calls.recv().await.unwrap(), ["a2", "a3"]);
    assert_eq!(broker.stored(), ["a1", "a2", "a3"]);
}

#[tokio::test(start_paused = true)]
async fn the_check_at_start_names_the_route() {
    let publisher = publisher(&Scripted::free()).route("a", "topic");
    publisher.check().await.unwrap();
    for (pattern, topic, part) in
        [("b.>", "missing", "does not exist"), ("b.>", "x y", "white space"), ("b.", "x", "empty")]
    {
        let text = publisher.clone().route(pattern, topic).check().await.unwrap_err().to_string();
        assert!(text.contains(part) && text.contains(pattern) && text.contains("tests.rs"), "{text}");
    }
    let answer = publisher.clone().route("b.", "x").publish(Event::raw("a", "")).await;
    assert_eq!(words(&[answer]), ["routes"]);
}

#[tokio::test(start_paused = true)]
async fn another_format_is_written_by_another_publisher() {
    let publisher = publisher(&Scripted::free()).format(PlainJson::new());
    assert_eq!(words(&[publisher.publish(Event::raw("t", "{").topic("topic")).await]), ["format"]);
}

#[test]
fn what_became_of_the_events_is_counted() {
    let recorder = Counts::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    metrics::with_local_recorder(&recorder, || {
        runtime.block_on(async {
            let broker = Scripted::free().refused("x");
            publisher(&broker).publish_all(["1", "2", "1", "x"].map(|id| event(id, "")).into()).await
        })
    });
    let expected = [("duplicate", 1), ("failed", 1), ("stored", 2)]
        .map(|(outcome, n)| (format!("aqueduct_published_total publisher=test outcome={outcome}"), n));
    assert_eq!(*recorder.0.lock(), BTreeMap::from(expected));
}

#[derive(Clone, Default)]
struct Counts(Arc<Mutex<BTreeMap<String, u64>>>);

struct Count(Counts, String);

impl metrics::CounterFn for Count {
    fn increment(&self, value: u64) {
        *self.0.0.lock().entry(self.1.clone()).or_default() += value;
    }

    fn absolute(&self, value: u64) {
        self.0.0.lock().insert(self.1.clone(), value);
    }
}

impl metrics::Recorder for Counts {
    fn describe_counter(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_gauge(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}
    fn describe_histogram(&self, _: metrics::KeyName, _: Option<metrics::Unit>, _: metrics::SharedString) {}

    fn register_counter(&self, key: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Counter {
        let labels = key.labels().map(|label| format!("{}={}", label.key(), label.value()));
        let name: Vec<String> = std::iter::once(key.name().to_owned()).chain(labels).collect();
        metrics::Counter::from_arc(Arc::new(Count(self.clone(), name.join(" "))))
    }

    fn register_gauge(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Gauge {
        metrics::Gauge::noop()
    }

    fn register_histogram(&self, _: &metrics::Key, _: &metrics::Metadata<'_>) -> metrics::Histogram {
        metrics::Histogram::noop()
    }
}

/// What happens to one event: key, times unavailable, refused.
fn script() -> impl Strategy<Value = Vec<(usize, u32, bool)>> {
    let times = prop_oneof![4 => Just(0), 2 => 1_u32..6, 1 => 6_u32..12];
    proptest::collection::vec((0_usize..4, times, prop::bool::weighted(0.1)), 0..20)
}

/// Checks one batch against what is stored: each lane is stored in order up to its first failure.
fn check_lanes(ids: &[(String, &str)], answers: &[Answer], stored: &[String], ordered: bool) {
    let mut failed: BTreeMap<&str, bool> = BTreeMap::new();
    let mut last: BTreeMap<&str, usize> = BTreeMap::new();
    for ((id, key), answer) in ids.iter().zip(answers) {
        let places: Vec<usize> = (0..stored.len()).filter(|n| stored[*n] == *id).collect();
        assert_eq!(places.len(), usize::from(answer.is_ok()), "{id} is stored once if it is confirmed");
        let lane = if key.is_empty() { id.as_str() } else { key };
        if let Some(place) = places.first() {
            assert!(!failed.contains_key(lane), "{id} is stored after a failure of its key");
            assert!(last.insert(lane, *place).is_none_or(|before| before < *place), "{id} is out of order");
        } else if failed.insert(lane, true).is_some() && !ordered {
            assert!(matches!(answer, Err(PublishError::EarlierFailed { .. })), "{id}: {answer:?}");
        }
    }
}

proptest! {
    #[test]
    fn keys_keep_their_order_whatever_fails(scripts in proptest::collection::vec(script(), 1..4), ordered: bool, seed: u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut abilities = Abilities::new(Ownership::Floor);
            abilities.ordered_publish = ordered;
            let (broker, _calls) = Scripted::new(abilities);
            broker.0.go.close();
            let publisher = Publisher::new("test", broker.clone()).clock(Clock::simulated(seed));
            let mut tasks = Vec::new();
            for (batch, script) in scripts.iter().enumerate() {
                let mut ids = Vec::new();
                for (n, (key, unavailable, refused)) in script.iter().enumerate() {
                    let id = format!("{batch}-{n}");
                    let _ = broker.clone().unavailable(&id, *unavailable);
                    if *refused {
                        let _ = broker.clone().refused(&id);
                    }
                    ids.push((id, ["", "a", "b", "c"][*key]));
                }
                let events = ids.iter().map(|(id, key)| event(id, key)).collect();
                let publisher = publisher.clone();
                tasks.push((ids, tokio::spawn(async move { publisher.publish_all(events).await })));
            }
            for (ids, task) in tasks {
                check_lanes(&ids, &task.await.unwrap(), &broker.stored(), ordered);
            }
            assert!(ordered || broker.0.seen.lock().in_flight_max <= 1);
            assert_eq!(publisher.gate.lanes(), 0);
        });
    }
}
