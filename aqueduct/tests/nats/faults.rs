//! The server is away, dies, hangs, or hands over to another: what was confirmed is there, once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use aqueduct::Topic;
use aqueduct::broker::Broker;
use aqueduct::nats::{NatsBroker, NatsOptions, NatsTopic};
use aqueduct_servers::{Nats, NatsCluster, Options};
use tokio::sync::watch;

use crate::fresh::{bodies, message, publish, raw_at};

fn options(url: impl AsRef<str>) -> NatsOptions {
    let second = Duration::from_secs(1);
    NatsOptions::new(url).ack_timeout(second).publish_timeout(Duration::from_mins(2)).ping_interval(second / 4)
}

#[tokio::test]
async fn a_server_that_comes_later_is_waited_for() {
    let server = Nats::start(Options::new()).unwrap();
    options(server.url()).connect().await.unwrap().declare("orders").await.unwrap();
    server.stop().unwrap();
    let broker = options(server.url()).connect().await.unwrap();
    let connection = broker.connection();
    assert!(!connection.connected && connection.why.is_some(), "{connection:?}");
    let impatient = options(server.url()).publish_timeout(Duration::from_millis(200)).connect().await.unwrap();
    let text = publish(&impatient, message(&"orders".into(), "a", "0")).await.unwrap_err().to_string();
    assert!(text.contains("no connection to NATS at nats://127.0.0.1:"), "{text}");
    let waiting = tokio::spawn(async move { publish(&broker, message(&"orders".into(), "a", "1")).await });
    server.start_again().unwrap();
    assert!(!waiting.await.unwrap().unwrap().duplicate);
    assert_eq!(bodies(&raw_at(&server.url()).await, "orders").await, ["1"]);
}

/// Publishers that go on until they are told to stop, each with its own keys, and what was confirmed to them.
struct Load {
    stop: Arc<AtomicBool>,
    confirmed: watch::Receiver<usize>,
    tasks: Vec<tokio::task::JoinHandle<BTreeMap<String, u64>>>,
}

impl Load {
    fn begin(broker: &NatsBroker, topic: &Topic) -> Self {
        let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (tell, confirmed) = watch::channel(0);
        let tasks = (0..2).map(|publisher| {
            let (broker, topic, stop) = (broker.clone(), topic.clone(), stop.clone());
            let (count, tell) = (count.clone(), tell.clone());
            tokio::spawn(async move {
                let mut all = BTreeMap::new();
                for round in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let names: Vec<String> = (0..10).map(|key| format!("{publisher}-{key}-{round}")).collect();
                    let messages = names.iter().enumerate().map(|(key, name)| {
                        let mut message = message(&topic, &format!("{publisher}-{key}"), name.clone());
                        message.dedup_id = Some(name.into());
                        message
                    });
                    for (name, receipt) in names.iter().zip(broker.publish(messages.collect()).await) {
                        all.insert(name.clone(), receipt.unwrap().position.0);
                        tell.send_replace(count.fetch_add(1, Ordering::Relaxed) + 1);
                    }
                }
                all
            })
        });
        let tasks = tasks.collect();
        Self { stop, confirmed, tasks }
    }

    /// Waits until so many more are confirmed.
    async fn more(&mut self, events: usize) {
        let now = *self.confirmed.borrow();
        let wait = self.confirmed.wait_for(|confirmed| *confirmed >= now + events);
        tokio::time::timeout(Duration::from_mins(1), wait).await.expect("publishing goes on").unwrap();
    }

    /// Ends it; all that was confirmed is in the stream, where it was said to be, once, and keys are in order.
    async fn check(self, url: &str, topic: &Topic) {
        self.stop.store(true, Ordering::Relaxed);
        let mut confirmed = BTreeMap::new();
        for task in self.tasks {
            confirmed.extend(task.await.unwrap());
        }
        let stored = bodies(&raw_at(url).await, topic.as_str()).await;
        assert_eq!(stored.iter().collect::<BTreeSet<_>>().len(), stored.len(), "something is there twice");
        for (name, position) in &confirmed {
            let there = stored.get(usize::try_from(*position).unwrap() - 1);
            assert_eq!(there, Some(name), "confirmed at {position}");
        }
        assert_eq!(stored.len(), confirmed.len());
        println!("{} events", stored.len());
        let mut rounds = BTreeMap::<&str, usize>::new();
        for name in &stored {
            let (key, round) = name.rsplit_once('-').unwrap();
            let next = rounds.entry(key).or_default();
            assert_eq!(round.parse::<usize>().unwrap(), *next, "of key {key}");
            *next += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_server_has_confirmed_is_there_once() {
    let server = Nats::start(Options::new()).unwrap();
    let (broker, topic) = (options(server.url()).connect().await.unwrap(), Topic::from("orders"));
    broker.declare(topic.clone()).await.unwrap();
    let mut load = Load::begin(&broker, &topic);
    for _ in 0..5 {
        load.more(200).await;
        server.kill().unwrap();
        server.start_again().unwrap();
    }
    load.more(200).await;
    load.check(&server.url(), &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_hangs_is_given_up_and_found_again() {
    let server = Nats::start(Options::new()).unwrap();
    let (broker, topic) = (options(server.url()).connect().await.unwrap(), Topic::from("orders"));
    broker.declare(topic.clone()).await.unwrap();
    let mut load = Load::begin(&broker, &topic);
    load.more(200).await;
    server.suspend().unwrap();
    let gone = async {
        while broker.connection().connected {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_mins(1), gone).await.expect("a hanging server is noticed");
    server.resume().unwrap();
    load.more(200).await;
    load.check(&server.url(), &topic).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_loses_one_server_after_another_and_no_event() {
    let cluster = NatsCluster::start(&Options::new()).unwrap();
    let (broker, topic) = (options(cluster.url()).connect().await.unwrap(), Topic::from("orders"));
    broker.declare(NatsTopic::new(topic.clone()).replicas(3)).await.unwrap();
    let mut load = Load::begin(&broker, &topic);
    for server in cluster.servers() {
        load.more(200).await;
        server.kill().unwrap();
        load.more(200).await;
        server.start_again().unwrap();
    }
    load.more(200).await;
    load.check(&cluster.url(), &topic).await;
}
