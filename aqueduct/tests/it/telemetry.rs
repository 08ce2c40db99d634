//! Metrics and spans are those that the table in `telemetry.rs` names, and nothing of an event's content is in them.
#![expect(clippy::float_cmp, reason = "whole numbers, recorded as floats")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{Broker, MemoryBroker};
use aqueduct::format::{CloudEvents, Format};
use aqueduct::{
    Attempt, Clock, Consumer, Error, Event, FaultExt, Handler, Json, Message, Policy, Publisher, Result, Router, Serve,
    Unknown,
};
use metrics_util::debugging::{DebugValue, DebuggingRecorder, Snapshotter};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Metadata, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::faults::{FaultyBroker, FaultyStore};

/// Runs on this thread with the clock paused.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(future)
}

fn message(id: u64, key: &str, kind: &str) -> Message {
    let event = Event::raw(kind, "{}").id(id.to_string()).source("test").key(key);
    CloudEvents::binary().encode(&event, &"t".into()).unwrap()
}

async fn publish(broker: &MemoryBroker, kinds: &[&str]) {
    let messages = (0..).zip(kinds).map(|(n, kind)| message(n, &format!("k{n}"), kind)).collect();
    for receipt in broker.publish(messages).await {
        receipt.unwrap();
    }
}

fn consumer(broker: impl Broker) -> Consumer {
    Consumer::new("c", broker).topics(["t"]).clock(Clock::simulated(1))
}

/// Serves while `until` runs, then stops gracefully.
async fn serve_during(serve: Serve, until: impl Future<Output = ()>) {
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve.with_graceful_shutdown(async { drop(stopped.await) }).into_future());
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        biased;
        ended = &mut serving => panic!("it ended before it was stopped: {ended:?}"),
        () = until => {}
    }
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}

/// A metric as it was recorded: its kind and its labels, by name and value.
type Series = (String, &'static str, BTreeMap<String, String>);

fn series(snapshotter: &Snapshotter) -> BTreeMap<Series, f64> {
    let of = |(key, _, _, value): (metrics_util::CompositeKey, _, _, DebugValue)| {
        let labels = key.key().labels().map(|l| (l.key().to_owned(), l.value().to_owned())).collect();
        let name = key.key().name().to_owned();
        match value {
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            DebugValue::Counter(count) => ((name, "counter", labels), count as f64),
            DebugValue::Gauge(level) => ((name, "gauge", labels), level.into_inner()),
            #[expect(clippy::cast_precision_loss, reason = "small counts")]
            DebugValue::Histogram(values) => ((name, "histogram", labels), values.len() as f64),
        }
    };
    snapshotter.snapshot().into_vec().into_iter().map(of).collect()
}

/// The value of a metric with these labels, in addition to the consumer's name.
#[track_caller]
fn value(metrics: &BTreeMap<Series, f64>, name: &str, labels: &[(&str, &str)]) -> f64 {
    let wanted = |labels: &[(&str, &str)]| labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let wanted: BTreeMap<String, String> = wanted(labels);
    let found = metrics.iter().find(|((n, _, l), _)| n == name && *l == wanted);
    *found.unwrap_or_else(|| panic!("no {name} {labels:?} in {metrics:#?}")).1
}

const C: (&str, &str) = ("consumer", "c");

fn recorded(scenario: impl AsyncFnOnce(&Snapshotter)) -> BTreeMap<Series, f64> {
    let recorder = DebuggingRecorder::new();
    let snapshotter = recorder.snapshotter();
    metrics::with_local_recorder(&recorder, || block_on(scenario(&snapshotter)));
    series(&snapshotter)
}

/// Attempts that end in each of the ways there are, under a policy that gives up what fails.
async fn all_ends(_: &Snapshotter) {
    let broker = MemoryBroker::new();
    publish(&broker, &["fine", "fine", "fails", "panics", "hangs", "waits"]).await;
    let router = Router::new()
        .on("fine", async || ())
        .on("fails", async || -> Result<()> { Err(Error::msg("no")) })
        .on("panics", async || -> Result<()> { panic!("on purpose") })
        .on("hangs", async || -> Result<()> { std::future::pending().await })
        .on("waits", Handler::timeout(std::future::pending::<()>, Duration::from_hours(1)));
    let policy = Policy::best_effort().quick_attempts(1);
    let serve = consumer(broker.clone()).policy(policy).timeout(Duration::from_secs(1)).serve(router);
    serve_during(serve, tokio::time::sleep(Duration::from_secs(3))).await;
    assert_eq!(broker.lag("c"), Some(1));
}

#[test]
fn attempts_are_counted_by_how_they_ended() {
    let metrics = recorded(all_ends);
    assert_eq!(value(&metrics, "aqueduct_received_total", &[C]), 6.0);
    for (outcome, count) in [("done", 2.0), ("failed", 1.0), ("panicked", 1.0), ("timed_out", 1.0), ("cancelled", 1.0)]
    {
        assert_eq!(value(&metrics, "aqueduct_attempts_total", &[C, ("outcome", outcome)]), count, "{outcome}");
    }
    assert_eq!(value(&metrics, "aqueduct_attempt_seconds", &[C]), 6.0);
    assert_eq!(value(&metrics, "aqueduct_dropped_total", &[C]), 3.0);
}

/// One event that is parked twice, one that dies, one of a type that is filtered out and one of an ignored type.
async fn all_fates(_: &Snapshotter) {
    let broker = MemoryBroker::new();
    publish(&broker, &["parks", "dies", "unknown"]).await;
    let own = Publisher::new("own", broker.clone());
    own.publish(Event::raw("dies", "").topic("t")).await.unwrap();
    let parks =
        async |attempt: Attempt| -> Result<()> { if attempt.number < 3 { Err(Error::msg("later")) } else { Ok(()) } };
    let router = Router::new()
        .on("parks", parks)
        .on("dies", async || -> Result<()> { Err(Error::msg("never")).permanent() })
        .fallback(Unknown::Ignore);
    let policy = Policy::ordered().quick_attempts(1);
    let serve = consumer(broker.clone()).policy(policy).skip_source("own").serve(router);
    serve_during(serve, async {
        broker.wait_settled("c").await;
        tokio::time::sleep(Duration::from_mins(1)).await;
    })
    .await;
}

#[test]
fn parked_dead_and_filtered_events_are_counted() {
    let metrics = recorded(all_fates);
    assert_eq!(value(&metrics, "aqueduct_parked_total", &[C]), 1.0);
    assert_eq!(value(&metrics, "aqueduct_dead_total", &[C]), 1.0);
    assert_eq!(value(&metrics, "aqueduct_filtered_total", &[C]), 2.0);
    assert_eq!(value(&metrics, "aqueduct_attempts_total", &[C, ("outcome", "failed")]), 3.0);
}

/// Three events of one key, of which the first takes too long.
async fn all_levels(snapshotter: &Snapshotter) {
    let broker = MemoryBroker::new().partitions(2);
    let messages = (0..3).map(|n| message(n, "k", "waits")).collect();
    broker.publish(messages).await.into_iter().for_each(|receipt| drop(receipt.unwrap()));
    let router = Router::new().on("waits", async || -> Result<()> { std::future::pending().await });
    let stall = Duration::from_mins(1);
    let serve = consumer(broker).timeout(Duration::from_hours(1)).stall(stall).serve(router);
    serve_during(serve, async {
        tokio::time::sleep(Duration::from_secs(30)).await;
        let early = series(snapshotter);
        tokio::time::sleep(Duration::from_mins(1)).await;
        let late = series(snapshotter);
        for (name, level) in [("running", 1.0), ("buffered", 3.0), ("partitions", 2.0)] {
            assert_eq!(value(&early, &format!("aqueduct_{name}"), &[C]), level, "{name}");
        }
        assert_eq!(value(&early, "aqueduct_stuck", &[C]), 0.0);
        assert_eq!(value(&late, "aqueduct_stuck", &[C]), 1.0);
    })
    .await;
}

#[test]
fn gauges_say_what_is_in_hand_and_fall_to_zero_when_it_stops() {
    let metrics = recorded(all_levels);
    for name in ["running", "buffered", "partitions", "stuck"] {
        assert_eq!(value(&metrics, &format!("aqueduct_{name}"), &[C]), 0.0, "{name}");
    }
}

/// A broker and a store that fail for a while, at the start and when an event is to be parked.
async fn all_troubles(_: &Snapshotter) {
    let (memory, store) = (MemoryBroker::new(), FaultyStore::new());
    let broker = FaultyBroker::new(&memory);
    let router = Router::new().on("fails", async || -> Result<()> { Err(Error::msg("no")) });
    let policy = Policy::ordered().quick_attempts(1).parked_delay(Duration::from_hours(1));
    let serve = consumer(broker.clone()).store(store.clone()).policy(policy).serve(router);
    broker.outage.begin();
    serve_during(serve, async {
        tokio::time::sleep(Duration::from_secs(3)).await;
        broker.outage.end();
        tokio::time::sleep(Duration::from_secs(20)).await;
        store.outage.begin();
        publish(&memory, &["fails"]).await;
        tokio::time::sleep(Duration::from_secs(3)).await;
        store.outage.end();
        memory.wait_settled("c").await;
    })
    .await;
}

#[test]
fn calls_that_fail_and_are_tried_again_are_counted() {
    let metrics = recorded(all_troubles);
    assert!(value(&metrics, "aqueduct_broker_errors_total", &[C]) >= 2.0);
    assert!(value(&metrics, "aqueduct_store_errors_total", &[C]) >= 2.0);
    assert_eq!(value(&metrics, "aqueduct_parked_total", &[C]), 1.0);
}

/// An event that is stored, the same again, and one without a topic.
async fn all_publishes(_: &Snapshotter) {
    let publisher = Publisher::new("p", MemoryBroker::new()).route("a", "t");
    let event = Event::raw("a", "1").id("1");
    assert!(!publisher.publish(event.clone()).await.unwrap().duplicate);
    assert!(publisher.publish(event).await.unwrap().duplicate);
    publisher.publish(Event::raw("b", "2")).await.unwrap_err();
}

#[test]
fn published_events_are_counted_by_what_became_of_them() {
    let metrics = recorded(all_publishes);
    for outcome in ["stored", "duplicate", "failed"] {
        let labels = [("publisher", "p"), ("outcome", outcome)];
        assert_eq!(value(&metrics, "aqueduct_published_total", &labels), 1.0, "{outcome}");
    }
}

/// The cells of the rows of the tables in the documentation of `telemetry.rs`.
fn documented() -> Vec<Vec<&'static str>> {
    let lines = include_str!("../../src/telemetry.rs").lines();
    let rows = lines.filter_map(|line| line.strip_prefix("//! | `aqueduct")).map(|row| row.split(" | "));
    rows.map(Iterator::collect).collect()
}

/// The words between backticks.
fn quoted(text: &str) -> BTreeSet<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn the_table_of_metrics_and_the_code_have_the_same_names_kinds_and_labels() {
    let metrics = recorded(async |snapshotter: &Snapshotter| {
        all_ends(snapshotter).await;
        all_fates(snapshotter).await;
        all_levels(snapshotter).await;
        all_troubles(snapshotter).await;
        all_publishes(snapshotter).await;
    });
    let mut emitted: BTreeMap<(String, &str), BTreeSet<String>> = BTreeMap::new();
    for (name, kind, labels) in metrics.into_keys() {
        let of = |(label, value): (String, String)| if label == "outcome" { value } else { label };
        emitted.entry((name, kind)).or_default().extend(labels.into_iter().map(of));
    }
    let mut table: BTreeMap<(String, &str), BTreeSet<String>> = BTreeMap::new();
    for row in documented().into_iter().filter(|row| row.len() == 4) {
        let name = format!("aqueduct{}", row[0].trim_end_matches('`'));
        let owner = row[2].split(',').next().unwrap().to_owned();
        // A relay needs a database, and these tests have none.
        if owner == "relay" {
            continue;
        }
        let labels = quoted(row[2]).into_iter().map(str::to_owned).chain([owner]).collect();
        table.insert((name, row[1]), labels);
    }
    assert_eq!(emitted, table);
}

/// What a subscriber was told.
#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Told>>);

#[derive(Default)]
struct Told {
    spans: Vec<(Id, &'static str, BTreeMap<String, String>)>,
    declared: BTreeMap<String, BTreeSet<String>>,
    texts: Vec<String>,
}

struct Fields<'a>(&'a mut BTreeMap<String, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}"));
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Heard {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("aqueduct")
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let (mut fields, metadata) = (BTreeMap::new(), attributes.metadata());
        attributes.record(&mut Fields(&mut fields));
        let mut told = self.0.lock();
        told.texts.push(format!("{fields:?}"));
        let names = metadata.fields().iter().map(|field| field.name().to_owned()).collect();
        told.declared.insert(format!("{} {}", metadata.name(), metadata.level()), names);
        told.spans.push((id.clone(), metadata.name(), fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut told = self.0.lock();
        let last = told.spans.iter_mut().rev().find(|span| span.0 == *id);
        values.record(&mut Fields(&mut last.unwrap().2));
        let mut fields = BTreeMap::new();
        values.record(&mut Fields(&mut fields));
        told.texts.push(format!("{fields:?}"));
    }

    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let mut fields = BTreeMap::new();
        event.record(&mut Fields(&mut fields));
        self.0.lock().texts.push(format!("{fields:?}"));
    }
}

fn heard(scenario: impl Future<Output = ()>) -> Told {
    let heard = Heard::default();
    tracing::subscriber::with_default(tracing_subscriber::registry().with(heard.clone()), || block_on(scenario));
    std::mem::take(&mut *heard.0.lock())
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// Publishes an event that belongs to a trace, and handles it in two attempts.
async fn traced() {
    let broker = MemoryBroker::new();
    let publisher = Publisher::new("p", broker.clone()).route("a", "t");
    let header = format!("00-{TRACE}-{PARENT}-01");
    publisher.publish(Event::raw("a", "").id("7").key("k").header("traceparent", header)).await.unwrap();
    let router = Router::new().on("a", async |attempt: Attempt| -> Result<()> {
        if attempt.number == 1 { Err(Error::msg("again")) } else { Ok(()) }
    });
    serve_during(consumer(broker.clone()).serve(router), broker.wait_settled("c")).await;
}

#[test]
fn spans_have_the_fields_of_the_table() {
    let told = heard(traced());
    let of = |name: &str| told.spans.iter().filter(|span| span.1 == name).map(|span| &span.2).collect::<Vec<_>>();
    let fields = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    };
    assert_eq!(of("aqueduct.publish"), [&fields(&[("publisher", "\"p\""), ("events", "1")])]);
    let attempt = |number: &str, names: [&str; 2]| {
        fields(&[
            ("consumer", "\"c\""),
            ("topic", "\"t\""),
            ("type", "\"a\""),
            ("id", "\"7\""),
            ("attempt", number),
            (names[0], &format!("{TRACE:?}")),
            (names[1], &format!("{PARENT:?}")),
        ])
    };
    let mut attempts = of("aqueduct.handle");
    attempts.sort();
    let (first, second) = (attempt("1", ["trace_id", "parent_id"]), attempt("2", ["link_trace_id", "link_parent_id"]));
    assert_eq!(attempts, [&first, &second]);
    let mut table = BTreeMap::new();
    for row in documented().into_iter().filter(|row| row.len() == 3) {
        let name = format!("aqueduct{} {}", row[0].trim_end_matches('`'), row[1].to_uppercase());
        let mut names: BTreeSet<String> = quoted(row[2]).into_iter().map(str::to_owned).collect();
        names.remove("traceparent");
        table.insert(name, names);
    }
    assert_eq!(told.declared, table);
}

const SECRET: &str = "s3cr3t";

/// Events with a secret in their data and headers meet everything that can go wrong.
async fn in_trouble() {
    let (memory, store) = (MemoryBroker::new(), FaultyStore::new());
    let broker = FaultyBroker::new(&memory);
    let publisher = Publisher::new("p", memory.clone()).route("*", "t");
    let kinds = ["fine", "json", "kind", "fails", "panics", "hangs", "dies", "unknown"];
    for kind in kinds {
        let event = Event::raw(kind, format!("\"{SECRET}\"")).key(kind).header("authorization", SECRET);
        publisher.publish(event.header("ce-extension", SECRET)).await.unwrap();
    }
    let mut undecodable = vec![Message::new("t", format!("{{\"data\": \"{SECRET}\", {SECRET}"))];
    undecodable.push(Message::new("t", format!("{{\"specversion\": \"{SECRET}\", \"id\": [\"{SECRET}\"]}}")));
    undecodable
        .push(Message::new("t", format!("{{\"specversion\": \"1.0\", \"id\": \"\", \"data_base64\": \"{SECRET}\"}}")));
    undecodable.push(Message::new("t", format!("\"{SECRET}\"")));
    for message in &mut undecodable {
        message.headers.set("content-type", "application/cloudevents+json");
    }
    let mut unreadable = Message::new("t", SECRET);
    for (name, value) in [("id", "1"), ("source", "s"), ("type", "fine"), ("specversion", "1.0"), ("time", "today")] {
        unreadable.headers.set(format!("ce-{name}"), value);
    }
    undecodable.push(unreadable);
    memory.publish(undecodable).await.into_iter().for_each(|receipt| drop(receipt.unwrap()));
    let router = Router::new()
        .on("fine", async || ())
        .on("json", async |_: Json<u32>| ())
        .on("kind", async |_: Json<std::net::IpAddr>| ())
        .on("fails", async || -> Result<()> { Err(Error::msg("no")) })
        .on("panics", async || -> Result<()> { panic!("on purpose") })
        .on("hangs", async || -> Result<()> { std::future::pending().await })
        .on("dies", async || -> Result<()> { Err(Error::msg("never")).permanent() });
    let serve = consumer(broker.clone()).store(store.clone()).timeout(Duration::from_secs(5)).serve(router);
    serve_during(serve, async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        broker.outage.begin();
        store.outage.begin();
        tokio::time::sleep(Duration::from_secs(2)).await;
        broker.outage.end();
        store.outage.end();
        memory.wait_settled("c").await;
        tokio::time::sleep(Duration::from_mins(5)).await;
    })
    .await;
}

#[test]
fn nothing_of_data_and_headers_is_in_spans_or_log_lines() {
    let told = heard(in_trouble());
    let texts: Vec<&String> = told.texts.iter().collect();
    for expected in ["an event is a dead letter", "an attempt failed", "the store does not", "the broker gives nothing"]
    {
        assert!(texts.iter().any(|text| text.contains(expected)), "{expected}: {texts:#?}");
    }
    let leaks: Vec<_> = texts.iter().filter(|text| text.contains(SECRET)).collect();
    assert!(leaks.is_empty(), "{leaks:#?}");
}

#[cfg(feature = "opentelemetry")]
mod traces {
    use opentelemetry::trace::{SpanId, TraceId, TracerProvider};
    use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
    use tracing::Instrument;

    use super::*;

    /// The spans that a scenario exports, oldest first.
    fn exported(scenario: impl Future<Output = ()>) -> Vec<SpanData> {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || block_on(scenario));
        provider.force_flush().unwrap();
        let mut spans = exporter.get_finished_spans().unwrap();
        spans.sort_by_key(|span| span.start_time);
        spans
    }

    #[test]
    fn the_trace_in_the_headers_is_the_first_attempts_parent_and_a_link_of_the_second() {
        let spans = exported(traced());
        let attempts: Vec<_> = spans.iter().filter(|span| span.name == "aqueduct.handle").collect();
        let [first, second] = attempts[..] else { panic!("{spans:#?}") };
        let (trace, parent) = (TraceId::from_hex(TRACE).unwrap(), SpanId::from_hex(PARENT).unwrap());
        assert_eq!((first.span_context.trace_id(), first.parent_span_id), (trace, parent));
        assert!(first.parent_span_is_remote && first.links.is_empty());
        assert_ne!(second.span_context.trace_id(), trace);
        assert_eq!(second.parent_span_id, SpanId::INVALID);
        let links: Vec<_> = second.links.iter().map(|link| &link.span_context).collect();
        assert_eq!(links.len(), 1);
        assert_eq!((links[0].trace_id(), links[0].span_id(), links[0].is_remote()), (trace, parent, true));
    }

    #[test]
    fn a_replay_or_parked_attempt_has_a_link_and_no_parent() {
        let spans = exported(async {
            let broker = MemoryBroker::new();
            let event =
                Event::raw("a", "").id("1").source("s").header("traceparent", format!("00-{TRACE}-{PARENT}-01"));
            let message = CloudEvents::binary().encode(&event, &"t".into()).unwrap();
            broker.publish(vec![message]).await.pop().unwrap().unwrap();
            let router = Router::new().on("a", async |attempt: Attempt| -> Result<()> {
                if attempt.stored { Ok(()) } else { Err(Error::msg("later")) }
            });
            let policy = Policy::ordered().quick_attempts(1);
            let serve = consumer(broker).policy(policy).serve(router);
            serve_during(serve, tokio::time::sleep(Duration::from_mins(1))).await;
        });
        let links: Vec<usize> = spans.iter().map(|span| span.links.len()).collect();
        assert_eq!(links, [0, 1], "{spans:#?}");
    }

    #[test]
    fn an_event_published_inside_a_span_carries_its_trace_to_the_handler() {
        let broker = MemoryBroker::new();
        let spans = exported(async {
            let publisher = Publisher::new("p", broker.clone()).route("a", "t");
            let own = format!("00-{TRACE}-{PARENT}-00");
            let events = vec![Event::raw("a", "1").id("1"), Event::raw("a", "2").id("2").header("traceparent", own)];
            let work = tracing::info_span!("work");
            publisher.publish_all(events).instrument(work).await.into_iter().for_each(|answer| drop(answer.unwrap()));
            let router = Router::new().on("a", async |event: Event| {
                tracing::info_span!("inside", id = event.id.as_str()).in_scope(|| ());
            });
            serve_during(consumer(broker.clone()).serve(router), broker.wait_settled("c")).await;
        });
        let named = |name: &str| spans.iter().filter(|span| span.name == name).collect::<Vec<_>>();
        let (work, publish, handled) = (named("work")[0], named("aqueduct.publish")[0], named("aqueduct.handle"));
        assert_eq!(publish.parent_span_id, work.span_context.span_id());
        let [own] = handled[..] else { panic!("{spans:#?}") };
        assert_eq!(own.span_context.trace_id(), work.span_context.trace_id());
        assert_eq!(own.parent_span_id, publish.span_context.span_id());
        assert_eq!(named("inside")[0].parent_span_id, own.span_context.span_id());
        let messages: Vec<_> = broker.log(&"t".into());
        assert!(messages.is_empty(), "both were consumed");
    }

    #[test]
    fn a_trace_state_goes_through_and_no_trace_is_made_up() {
        let broker = MemoryBroker::new();
        let publisher = Publisher::new("p", broker.clone()).route("a", "t");
        block_on(publisher.publish(Event::raw("a", "1").id("1"))).unwrap();
        let plain = broker.log(&"t".into()).remove(0).2;
        assert_eq!(plain.headers.get("traceparent"), None);
        exported(async {
            let remote = Event::raw("a", "2").id("2").source("s");
            let remote = remote.header("traceparent", format!("00-{TRACE}-{PARENT}-01")).header("tracestate", "v=1");
            publisher.publish(remote).await.unwrap();
            let forward = publisher.clone();
            let router = Router::new().on("a", async move |event: Event| -> Result<()> {
                if event.id == "2" {
                    forward.publish(Event::raw("b", "3").topic("u")).await?;
                }
                Ok(())
            });
            serve_during(consumer(broker.clone()).serve(router), broker.wait_settled("c")).await;
        });
        let sent = broker.log(&"u".into()).remove(0).2;
        assert!(sent.headers.text("traceparent").unwrap().starts_with(&format!("00-{TRACE}-")));
        assert_eq!(sent.headers.text("tracestate"), Some("v=1"));
    }
}
