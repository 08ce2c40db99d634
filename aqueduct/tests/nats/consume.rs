//! Consumers on topics: the suites that every broker and every table of leases pass, and what happens to owners.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aqueduct::broker::Broker;
use aqueduct::format::{CloudEvents, Format};
use aqueduct::nats::{NatsBroker, NatsOptions, NatsTopic};
use aqueduct::testing::broker_suite::{self, Ground};
use aqueduct::testing::lease_suite;
use aqueduct::{Consumer, Error, Event, Message, Router, Serve, ServeError, Topic};
use aqueduct_servers::{Nats, Options};
use async_nats::jetstream::Context;
use futures_util::TryStreamExt;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::fresh::{declared, raw, shared, topic};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buckets_are_a_table_of_leases() {
    let servers = RefCell::new(Vec::new());
    lease_suite::run(async |_| {
        // The suite's groups have the same names in all cases.
        let server = Nats::start(Options::new()).unwrap();
        let mut brokers = Vec::new();
        for _ in 0..3 {
            brokers.push(NatsBroker::connect(server.url()).await.unwrap());
        }
        servers.borrow_mut().push(server);
        brokers.as_slice().into()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_passes_the_suite() {
    broker_suite::run(async |case| {
        let (broker, topic) = (shared().await, topic());
        broker.declare(NatsTopic::new(topic.clone()).partitions(4)).await.unwrap();
        let consumer = format!("{topic}-{case}");
        let mut ground = Ground::new(Arc::new(broker), topic, consumer);
        ground.missing = Some("missing".into());
        ground
    })
    .await;
}

pub(crate) const LONG: Duration = Duration::from_mins(1);

/// What was handled: which instance, key and number.
pub(crate) type Handled = (usize, String, u64);

/// What all instances have handled, as it happened.
pub(crate) struct Seen {
    told: mpsc::UnboundedReceiver<Handled>,
    pub(crate) keys: BTreeMap<String, Vec<u64>>,
    pub(crate) instances: BTreeSet<usize>,
}

impl Seen {
    pub(crate) fn new() -> (mpsc::UnboundedSender<Handled>, Self) {
        let (tell, told) = mpsc::unbounded_channel();
        (tell, Self { told, keys: BTreeMap::new(), instances: BTreeSet::new() })
    }

    /// Waits until something holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            while !holds(self) {
                let (instance, key, number) = self.told.recv().await.unwrap();
                self.instances.insert(instance);
                self.keys.entry(key).or_default().push(number);
            }
        };
        let waited = tokio::time::timeout(LONG, wait).await;
        assert!(waited.is_ok(), "waited {LONG:?} for {what}: {:?}", self.keys);
    }

    /// Waits until so many of each key were handled.
    pub(crate) async fn all(&mut self, keys: u64, each: u64) {
        let is_all = |seen: &Self| {
            let full = seen.keys.values().filter(|of_key| of_key.iter().max().is_some_and(|max| max + 1 == each));
            full.count() as u64 == keys
        };
        self.until("all", is_all).await;
    }

    /// Each key was handled in order, once.
    pub(crate) fn check_once(&self, each: u64) {
        for (key, of_key) in &self.keys {
            assert!(of_key.iter().copied().eq(0..each), "of key {key}: {of_key:?}");
        }
    }

    /// Nothing was left out: after each comes the next, or one that was handled before and what followed it.
    pub(crate) fn check_order(&self) {
        for (key, of_key) in &self.keys {
            assert_eq!(of_key[0], 0, "of key {key}: {of_key:?}");
            let next = |two: &[u64]| two[1] <= two[0] + 1;
            assert!(of_key.windows(2).all(next), "of key {key}: {of_key:?}");
        }
    }

    pub(crate) fn repeats(&self) -> usize {
        self.keys.values().map(|of_key| of_key.len() - of_key.iter().collect::<BTreeSet<_>>().len()).sum()
    }
}

pub(crate) fn event(topic: &Topic, key: u64, number: u64) -> Message {
    let event = Event::raw("order.placed", number.to_string()).id(format!("{key}-{number}")).source("shop");
    CloudEvents::binary().encode(&event.key(format!("k{key}")), topic).unwrap()
}

/// Publishes the next numbers of all keys, one of a key at a time.
pub(crate) async fn publish_all(broker: &impl Broker, topic: &Topic, keys: u64, numbers: std::ops::Range<u64>) {
    for number in numbers {
        for receipt in broker.publish((0..keys).map(|key| event(topic, key, number)).collect()).await {
            receipt.unwrap();
        }
    }
}

/// A publisher that goes on until it is told to stop.
pub(crate) struct Publishing {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Publishing {
    pub(crate) fn start(broker: &NatsBroker, topic: &Topic, keys: u64, first: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (broker, topic, stopped) = (broker.clone(), topic.clone(), stop.clone());
        let task = tokio::spawn(async move {
            let mut number = first;
            while !stopped.load(Ordering::Relaxed) {
                publish_all(&broker, &topic, keys, number..number + 1).await;
                number += 1;
            }
            number
        });
        Self { stop, task }
    }

    /// Ends it; answers how many of each key there are.
    pub(crate) async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

pub(crate) fn handled(instance: usize, event: &Event) -> Handled {
    let number = String::from_utf8_lossy(&event.data).parse().unwrap();
    (instance, event.key.as_ref().unwrap().to_string(), number)
}

/// An instance of a consumer that is named as its topic.
pub(crate) fn serve(
    broker: &NatsBroker,
    topic: &Topic,
    instance: usize,
    tell: mpsc::UnboundedSender<Handled>,
) -> Serve {
    let router = Router::new().on("order.placed", async move |event: Event| drop(tell.send(handled(instance, &event))));
    Consumer::new(topic.as_str(), broker.clone()).topics([topic.clone()]).serve(router)
}

pub(crate) struct Instance {
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServeError>>,
}

impl Instance {
    pub(crate) fn start(serve: Serve) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(serve.with_graceful_shutdown(async { drop(stopped.await) }).into_future());
        Self { stop, serving }
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_of_many_keys_are_handled_once_and_in_order() {
    let (broker, topic) = declared().await;
    let (tell, mut seen) = Seen::new();
    publish_all(&broker, &topic, 50, 0..20).await;
    let instance = Instance::start(serve(&broker, &topic, 0, tell.clone()));
    publish_all(&broker, &topic, 50, 20..40).await;
    seen.all(50, 40).await;
    instance.stop().await;
    let instance = Instance::start(serve(&broker, &topic, 1, tell));
    publish_all(&broker, &topic, 50, 40..41).await;
    seen.all(50, 41).await;
    instance.stop().await;
    seen.check_once(41);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_hands_over_at_once_and_nothing_is_lost_or_repeated() {
    let (broker, topic) = declared().await;
    let (tell, mut seen) = Seen::new();
    let leaver = Instance::start(serve(&broker, &topic, 0, tell.clone()));
    publish_all(&broker, &topic, 40, 0..10).await;
    seen.all(40, 10).await;
    let other = shared().await;
    let stayer = Instance::start(serve(&other, &topic, 1, tell));
    let publishing = Publishing::start(&broker, &topic, 40, 10);
    seen.until("both to work", |seen| seen.instances.len() == 2).await;
    leaver.stop().await;
    let left = Instant::now();
    let each = publishing.stop().await;
    seen.all(40, each).await;
    println!("the other has everything {:?} after one has left", left.elapsed());
    assert!(left.elapsed() < Duration::from_secs(3), "nothing waits for a lease to lapse");
    stayer.stop().await;
    seen.check_once(each);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_crashed_instance_owned_goes_to_the_other_in_order() {
    let (broker, topic) = declared().await;
    let (tell, mut seen) = Seen::new();
    let survivor = Instance::start(serve(&broker, &topic, 0, tell.clone()));
    publish_all(&broker, &topic, 40, 0..10).await;
    seen.all(40, 10).await;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let of_topic = topic.clone();
    runtime.spawn(async move { serve(&shared().await, &of_topic, 1, tell).await });
    let publishing = Publishing::start(&broker, &topic, 40, 10);
    seen.until("both to work", |seen| seen.instances.len() == 2).await;
    runtime.shutdown_background();
    let crashed = Instant::now();
    let each = publishing.stop().await;
    seen.all(40, each).await;
    println!("the other has everything {:?} after the crash, with {} repeats", crashed.elapsed(), seen.repeats());
    assert!(crashed.elapsed() < Duration::from_secs(8), "it took {:?}", crashed.elapsed());
    survivor.stop().await;
    seen.check_order();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_killed_under_load_loses_nothing() {
    let server = Nats::start(Options::new()).unwrap();
    let options = || {
        let second = Duration::from_secs(1);
        NatsOptions::new(server.url()).ack_timeout(second).publish_timeout(2 * LONG).ping_interval(second / 4)
    };
    let (broker, other, topic) =
        (options().connect().await.unwrap(), options().connect().await.unwrap(), Topic::from("orders"));
    broker.declare(topic.clone()).await.unwrap();
    let (tell, mut seen) = Seen::new();
    let instances = [&broker, &other].into_iter().enumerate().map(|(n, broker)| serve(broker, &topic, n, tell.clone()));
    let instances: Vec<_> = instances.map(Instance::start).collect();
    let mut each = 0;
    for _ in 0..3 {
        let (publisher, of_topic) = (broker.clone(), topic.clone());
        let publishing = tokio::spawn(async move { publish_all(&publisher, &of_topic, 20, each..each + 100).await });
        let reached =
            |seen: &Seen| seen.keys.values().any(|of_key| of_key.iter().max().is_some_and(|n| *n >= each + 50));
        seen.until("half of them", reached).await;
        server.kill().unwrap();
        server.start_again().unwrap();
        publishing.await.unwrap();
        each += 100;
    }
    seen.all(20, each).await;
    println!("{} repeats in {} events", seen.repeats(), 20 * each);
    for instance in instances {
        instance.stop().await;
    }
    seen.check_order();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_waits_for_its_retry_and_others_do_not() {
    let (broker, topic) = declared().await;
    let (tell, mut seen) = Seen::new();
    let (others, failed) = (Arc::new(Semaphore::new(0)), Arc::new(AtomicBool::new(false)));
    let (waiting, failing) = (others.clone(), failed.clone());
    let router = Router::new().on("order.placed", async move |event: Event| -> aqueduct::Result<()> {
        let handled = handled(0, &event);
        if handled.1 == "k0" && handled.2 == 0 && !failing.swap(true, Ordering::Relaxed) {
            return Err(Error::msg("not yet").retry_after(Duration::from_millis(200)));
        }
        // The key goes on when all others have finished.
        if handled.1 == "k0" {
            waiting.acquire().await.unwrap().forget();
        }
        tell.send(handled).unwrap();
        Ok(())
    });
    let instance = Instance::start(Consumer::new(topic.as_str(), broker.clone()).topics([topic.clone()]).serve(router));
    publish_all(&broker, &topic, 10, 0..5).await;
    seen.until("the other keys", |seen| seen.keys.values().filter(|of_key| of_key.len() == 5).count() == 9).await;
    others.add_permits(5);
    seen.all(10, 5).await;
    instance.stop().await;
    assert!(failed.load(Ordering::Relaxed));
    seen.check_once(5);
}

async fn readers(raw: &Context, topic: &Topic) -> Vec<String> {
    let stream = raw.get_stream(topic.as_str()).await.unwrap();
    stream.consumer_names().try_collect().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_and_leases_that_are_deleted_are_made_again() {
    let ((broker, topic), raw) = (declared().await, raw().await);
    let (tell, mut seen) = Seen::new();
    let instance = Instance::start(serve(&broker, &topic, 0, tell));
    publish_all(&broker, &topic, 20, 0..10).await;
    seen.all(20, 10).await;
    let stream = raw.get_stream(topic.as_str()).await.unwrap();
    let first = readers(&raw, &topic).await;
    assert_eq!(first.len(), 16);
    for reader in first {
        stream.delete_consumer(&reader).await.unwrap();
    }
    publish_all(&broker, &topic, 20, 10..20).await;
    seen.all(20, 20).await;
    let bucket = format!("aq_{topic}");
    let before = readers(&raw, &topic).await;
    raw.delete_key_value(&bucket).await.unwrap();
    let publishing = Publishing::start(&broker, &topic, 20, 20);
    // Its leases have not lapsed yet; the readers are made again when it has joined anew.
    while readers(&raw, &topic).await.iter().any(|reader| before.contains(reader)) {}
    let each = publishing.stop().await;
    seen.all(20, each).await;
    publish_all(&broker, &topic, 20, each..each + 1).await;
    seen.all(20, each + 1).await;
    instance.stop().await;
    seen.check_order();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quiet_partition_is_not_stopped_because_others_have_expired() {
    let (broker, topic, raw) = (shared().await, topic(), raw().await);
    broker.declare(NatsTopic::new(topic.clone()).max_age(Duration::from_secs(2))).await.unwrap();
    let (tell, mut seen) = Seen::new();
    let instance = Instance::start(serve(&broker, &topic, 0, tell.clone()));
    publish_all(&broker, &topic, 20, 0..10).await;
    seen.all(20, 10).await;
    let before = readers(&raw, &topic).await;
    assert_eq!(before.len(), 16);
    // All but the partition of the last event.
    let begun_anew =
        async { while readers(&raw, &topic).await.iter().filter(|reader| before.contains(reader)).count() > 1 {} };
    tokio::time::timeout(LONG, begun_anew).await.expect("they are begun anew");
    instance.stop().await;
    let instance = Instance::start(serve(&broker, &topic, 1, tell));
    publish_all(&broker, &topic, 20, 10..11).await;
    seen.all(20, 11).await;
    instance.stop().await;
    seen.check_once(11);
}
