//! NATS JetStream beside the same work written by hand with async-nats.
//!
//! `cargo xtask bench nats`; each line is `name: value (bar B)`, and a bar that is missed ends it with an error. Rounds alternate
//! between both sides, and what is compared is the median of each side. Arguments choose figures (`layout`, `each`, `handlers`,
//! `publish`, `latency`, `heartbeat`).

#![allow(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::future::IntoFuture;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aqueduct::broker::{Broker, Start};
use aqueduct::format::{CloudEvents, Format};
use aqueduct::nats::{NatsBroker, NatsOptions, NatsTopic};
use aqueduct::{Consumer, Event, Message, Router, Topic};
use aqueduct_servers::{Nats, Options};
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, AckKind, Context};
use futures_util::{StreamExt, TryStreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

const ROUNDS: usize = 5;
const KEYS: u64 = 10_000;
const PARTITIONS: u32 = 16;

/// Events that are read in a round, and those that a handler works on.
const EVENTS: u64 = 200_000;
const WORKED_ON: u64 = 30_000;

/// Handlers at once.
const CONCURRENCY: usize = 256;

/// Confirmations that are waited for at once.
const WINDOW: usize = 1_000;
const PUBLISHED: u64 = 50_000;

const TOPIC: &str = "orders";

/// What all rounds share.
struct Bench {
    server: Nats,
    broker: NatsBroker,
    raw: Context,
    round: AtomicU64,
}

fn event(topic: &Topic, number: u64) -> Message {
    let event = Event::raw("order.placed", vec![b'x'; 200]).id(number.to_string()).source("bench");
    CloudEvents::binary().encode(&event.key(format!("key-{}", number % KEYS)), topic).expect("an event")
}

/// Counts to the end, and how long it took from the first to the last.
#[derive(Default)]
struct Count {
    done: AtomicU64,
    end: u64,
    first: OnceLock<Instant>,
    last: OnceLock<Instant>,
    all: Notify,
}

impl Count {
    fn to(end: u64) -> Arc<Self> {
        Arc::new(Self { end, ..Self::default() })
    }

    fn one(&self) {
        match self.done.fetch_add(1, Ordering::Relaxed) + 1 {
            1 => drop(self.first.set(Instant::now())),
            done if done == self.end => {
                let _ = self.last.set(Instant::now());
                self.all.notify_one();
            }
            _ => {}
        }
    }

    fn rate(&self) -> f64 {
        let [first, last] = [&self.first, &self.last].map(|at| *at.get().expect("an end"));
        f64::from(u32::try_from(self.end).unwrap_or(u32::MAX)) / last.duration_since(first).as_secs_f64()
    }
}

impl Bench {
    async fn new() -> Self {
        let server = Nats::start(Options::new()).expect("a server");
        let broker = NatsOptions::new(server.url()).connect().await.expect("a connection");
        broker.declare(NatsTopic::new(TOPIC).partitions(PARTITIONS)).await.expect("a topic");
        let client = async_nats::connect(server.url()).await.expect("a connection");
        let bench = Self { server, broker, raw: jetstream::new(client), round: AtomicU64::new(0) };
        bench.fill(TOPIC, 0..EVENTS).await;
        bench
    }

    async fn fill(&self, topic: &str, numbers: std::ops::Range<u64>) {
        let topic = Topic::from(topic);
        let numbers: Vec<u64> = numbers.collect();
        for some in numbers.chunks(WINDOW) {
            for receipt in self.broker.publish(some.iter().map(|number| event(&topic, *number)).collect()).await {
                receipt.expect("a confirmation");
            }
        }
    }

    /// A name that no round before had.
    fn name(&self) -> String {
        format!("round-{}", self.round.fetch_add(1, Ordering::Relaxed))
    }

    async fn consumer(&self, config: pull::Config) -> jetstream::consumer::Consumer<pull::Config> {
        let stream = self.raw.get_stream(TOPIC).await.expect("a stream");
        let name = self.name();
        stream.create_consumer(pull::Config { durable_name: Some(name), ..config }).await.expect("a consumer")
    }

    /// Events a second of the library, with a handler that takes so long.
    async fn library(&self, events: u64, work: Duration) -> f64 {
        let count = Count::to(events);
        let counted = Arc::clone(&count);
        let handler = async move |_: Event| {
            if !work.is_zero() {
                tokio::time::sleep(work).await;
            }
            counted.one();
        };
        let consumer = Consumer::new(self.name(), self.broker.clone()).topics([TOPIC]).concurrency(CONCURRENCY);
        let serve = consumer.serve(Router::new().on("order.placed", handler));
        let all = Arc::clone(&count);
        serve.with_graceful_shutdown(async move { all.all.notified().await }).await.expect("a service");
        count.rate()
    }

    /// A reader for each partition, and an ack for all up to it each 64 events or 20 ms.
    async fn same_layout(&self, events: u64) -> f64 {
        let count = Count::to(events);
        let mut readers = JoinSet::new();
        for partition in 0..PARTITIONS {
            let filter_subject = format!("{TOPIC}.{PARTITIONS}.{partition}.>");
            let config = pull::Config {
                ack_policy: AckPolicy::All,
                filter_subject,
                max_ack_pending: -1,
                ..pull::Config::default()
            };
            let (consumer, count) = (self.consumer(config).await, Arc::clone(&count));
            readers.spawn(async move {
                let mut messages = consumer.stream().max_messages_per_batch(256).messages().await.expect("messages");
                let (mut unsettled, mut last, mut acked) = (0, None, Instant::now());
                while let Some(message) = messages.next().await {
                    let message = message.expect("a message");
                    unsettled += 1;
                    if unsettled >= 64 || acked.elapsed() > Duration::from_millis(20) {
                        message.ack_with(AckKind::Ack).await.expect("an ack");
                        (unsettled, acked) = (0, Instant::now());
                    } else {
                        last = Some(message);
                    }
                    count.one();
                }
                drop(last);
            });
        }
        count.all.notified().await;
        count.rate()
    }

    /// One consumer of the whole stream, and an ack for each event.
    async fn ack_each(&self, events: u64) -> f64 {
        let count = Count::to(events);
        let consumer = self.consumer(pull::Config { max_ack_pending: -1, ..pull::Config::default() }).await;
        let mut messages = consumer.stream().max_messages_per_batch(256).messages().await.expect("messages");
        for _ in 0..events {
            messages.next().await.expect("a message").expect("a message").ack().await.expect("an ack");
            count.one();
        }
        count.rate()
    }

    /// As many handlers at once, in whatever order.
    async fn no_order(&self, events: u64, work: Duration) -> f64 {
        let (count, permits) = (Count::to(events), Arc::new(Semaphore::new(CONCURRENCY)));
        let consumer = self.consumer(pull::Config { max_ack_pending: -1, ..pull::Config::default() }).await;
        let mut messages = consumer.stream().max_messages_per_batch(256).messages().await.expect("messages");
        let mut handlers = JoinSet::new();
        for _ in 0..events {
            let message = messages.next().await.expect("a message").expect("a message");
            let permit = Arc::clone(&permits).acquire_owned().await.expect("a permit");
            while handlers.try_join_next().is_some() {}
            let count = Arc::clone(&count);
            handlers.spawn(async move {
                tokio::time::sleep(work).await;
                count.one();
                message.ack().await.expect("an ack");
                drop(permit);
            });
        }
        while handlers.join_next().await.is_some() {}
        count.rate()
    }

    async fn publishes(&self) -> f64 {
        let topic = format!("{}-out", self.name());
        self.broker.declare(NatsTopic::new(topic.as_str()).partitions(PARTITIONS)).await.expect("a topic");
        let since = Instant::now();
        self.fill(&topic, 0..PUBLISHED).await;
        let rate = rate(PUBLISHED, since);
        self.raw.delete_stream(&topic).await.expect("a stream");
        rate
    }

    /// The same messages with the same window, in groups as the library is given them.
    async fn publishes_by_hand(&self) -> f64 {
        let topic = format!("{}-out", self.name());
        self.broker.declare(NatsTopic::new(topic.as_str()).partitions(PARTITIONS)).await.expect("a topic");
        let since = Instant::now();
        let numbers: Vec<u64> = (0..PUBLISHED).collect();
        for some in numbers.chunks(WINDOW) {
            let mut acks = Vec::with_capacity(WINDOW);
            for number in some {
                let mut headers = async_nats::HeaderMap::new();
                let (id, key) = (format!("bench#{number}"), format!("key-{}", number % KEYS));
                headers.insert("Nats-Msg-Id", id.as_str());
                headers.insert("Aqueduct-Key", key.as_str());
                for (name, value) in [("ce-specversion", "1.0"), ("ce-type", "order.placed"), ("ce-source", "bench")] {
                    headers.insert(name, value);
                }
                headers.insert("ce-id", number.to_string().as_str());
                headers.insert("ce-partitionkey", key.as_str());
                headers.insert("ce-time", "2026-11-28T10:11:12.123Z");
                let subject = format!("{topic}.{PARTITIONS}.{}.order.placed", number % u64::from(PARTITIONS));
                let sent = self.raw.publish_with_headers(subject, headers, vec![b'x'; 200].into());
                acks.push(sent.await.expect("sent"));
            }
            for ack in acks {
                ack.await.expect("a confirmation");
            }
        }
        let rate = rate(PUBLISHED, since);
        self.raw.delete_stream(&topic).await.expect("a stream");
        rate
    }

    /// From before an event is published to its handler, at so many a second: the median and the 99th percentile, in us.
    async fn latency(&self, per_second: u64, by_hand: bool) -> (f64, f64) {
        let events = per_second * 5;
        let (count, times, zero) = (Count::to(events), Arc::new(Mutex::new(Vec::new())), Instant::now());
        let (counted, noted) = (Arc::clone(&count), Arc::clone(&times));
        let topic = Topic::from(format!("{}-in", self.name()));
        self.broker.declare(NatsTopic::new(topic.clone()).partitions(PARTITIONS)).await.expect("a topic");
        let note = move |id: &str| {
            let sent = Duration::from_micros(id.split('-').next().and_then(|us| us.parse().ok()).unwrap_or(0));
            noted.lock().push(zero.elapsed().saturating_sub(sent).as_secs_f64() * 1e6);
            counted.one();
        };
        let mut tasks = JoinSet::new();
        if by_hand {
            for partition in 0..PARTITIONS {
                let stream = self.raw.get_stream(topic.as_str()).await.expect("a stream");
                let filter_subject = format!("{topic}.{PARTITIONS}.{partition}.>");
                let (ack_policy, deliver_policy) = (AckPolicy::All, DeliverPolicy::All);
                let config = pull::Config {
                    ack_policy,
                    deliver_policy,
                    filter_subject,
                    max_ack_pending: -1,
                    ..pull::Config::default()
                };
                let (consumer, note) = (stream.create_consumer(config).await.expect("a consumer"), note.clone());
                tasks.spawn(async move {
                    let mut messages = consumer.messages().await.expect("messages");
                    while let Ok(Some(message)) = messages.try_next().await {
                        let headers = message.headers.as_ref().expect("headers");
                        note(headers.get("ce-id").expect("an id").as_str());
                        message.ack().await.expect("an ack");
                    }
                });
            }
        } else {
            let handler = async move |event: Event| note(event.id.as_str());
            let consumer =
                Consumer::new(self.name(), self.broker.clone()).topics([topic.clone()]).start(Start::Beginning);
            let serve = consumer.serve(Router::new().on("order.placed", handler)).into_future();
            tasks.spawn(async move { serve.await.expect("a service") });
        }
        // It owns and reads everything by then.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let mut pace = tokio::time::interval(Duration::from_millis(1));
        let mut publishing = JoinSet::new();
        for at in 0..events {
            if at.is_multiple_of(per_second / 1_000) {
                pace.tick().await;
            }
            let (broker, topic) = (self.broker.clone(), topic.clone());
            publishing.spawn(async move {
                let event =
                    Event::raw("order.placed", vec![b'x'; 200]).source("bench").key(format!("key-{}", at % KEYS));
                let event = event.id(format!("{}-{at}", zero.elapsed().as_micros()));
                let message = CloudEvents::binary().encode(&event, &topic).expect("an event");
                broker.publish(vec![message]).await.remove(0).expect("a confirmation");
            });
        }
        while publishing.join_next().await.is_some() {}
        count.all.notified().await;
        tasks.shutdown().await;
        self.raw.delete_stream(topic.as_str()).await.expect("a stream");
        let mut times: Vec<f64> = times.lock().clone();
        times.sort_by(f64::total_cmp);
        (times[times.len() / 2], times[times.len() * 99 / 100])
    }

    /// The share of a core that five idle instances and their server take.
    async fn heartbeat(&self) -> f64 {
        let pid = self.server.pid().expect("a process");
        let used = || cpu("self") + cpu(&pid.to_string());
        let watched = Duration::from_secs(20);
        let idle_before = {
            let before = used();
            tokio::time::sleep(watched).await;
            used() - before
        };
        let (name, mut serving) = (self.name(), JoinSet::new());
        self.broker.declare(NatsTopic::new("quiet").partitions(PARTITIONS)).await.expect("a topic");
        for _ in 0..5 {
            let broker = NatsOptions::new(self.server.url()).connect().await.expect("a connection");
            let router = Router::new().on("order.placed", async |_: Event| {});
            let serve = Consumer::new(name.clone(), broker).topics(["quiet"]).serve(router);
            serving.spawn(async move { serve.await.expect("a service") });
        }
        // They have shared the partitions among them by then.
        tokio::time::sleep(Duration::from_secs(10)).await;
        let before = used();
        tokio::time::sleep(watched).await;
        let share = (used() - before - idle_before) / watched.as_secs_f64();
        serving.shutdown().await;
        share
    }
}

/// Seconds of CPU that a process has taken.
fn cpu(process: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("a process");
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = [11, 12].map(|at| fields[at].parse::<f64>().expect("a number"));
    (ticks[0] + ticks[1]) / 100.0
}

fn rate(events: u64, since: Instant) -> f64 {
    f64::from(u32::try_from(events).unwrap_or(u32::MAX)) / since.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Prints how one side compares with the other; true if the bar is reached.
fn compare(name: &str, ours: Vec<f64>, theirs: Vec<f64>, bar: f64) -> bool {
    let (ours, theirs) = (median(ours), median(theirs));
    let ratio = ours / theirs;
    println!("{name}: {ratio:.2} (bar {bar}), {ours:.0}/s beside {theirs:.0}/s");
    ratio >= bar
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| wanted == name);
    let (bench, mut good) = (Bench::new().await, true);
    let (mut library, mut layout, mut each) = (Vec::new(), Vec::new(), Vec::new());
    if wants("layout") || wants("each") {
        for _ in 0..ROUNDS {
            library.push(bench.library(EVENTS, Duration::ZERO).await);
            layout.push(bench.same_layout(EVENTS).await);
            each.push(bench.ack_each(EVENTS).await);
        }
        good &= compare("the same layout and acknowledgement by hand", library.clone(), layout, 0.9);
        good &= compare("an ack for each event by hand, on one stream", library, each, 1.5);
    }
    for ms in [1, 5].into_iter().filter(|_| wants("handlers")) {
        let (mut ours, mut theirs, work) = (Vec::new(), Vec::new(), Duration::from_millis(ms));
        for _ in 0..ROUNDS {
            ours.push(bench.library(WORKED_ON, work).await);
            theirs.push(bench.no_order(WORKED_ON, work).await);
        }
        good &=
            compare(&format!("handlers of {ms} ms, {CONCURRENCY} at once, without order by hand"), ours, theirs, 0.9);
    }
    if wants("publish") {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            ours.push(bench.publishes().await);
            theirs.push(bench.publishes_by_hand().await);
        }
        good &= compare("publishing with a window of 1,000 by hand", ours, theirs, 0.95);
    }
    for per_second in [1_000, 10_000].into_iter().filter(|_| wants("latency")) {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            ours.push(bench.latency(per_second, false).await);
            theirs.push(bench.latency(per_second, true).await);
        }
        let middle = |all: &[(f64, f64)]| median(all.iter().map(|(p50, _)| *p50).collect());
        let (a, b) = (middle(&ours), middle(&theirs));
        println!(
            "latency at {per_second} a second: {:.2} (bar 1.2), p50 {a:.0} us beside {b:.0} us; p99 {ours:?} beside {theirs:?}",
            a / b
        );
        good &= a / b <= 1.2;
    }
    if wants("heartbeat") {
        let share = bench.heartbeat().await * 100.0;
        println!("five idle instances and their server: {share:.2} % of a core (bar 2)");
        good &= share < 2.0;
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
