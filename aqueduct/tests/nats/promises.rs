//! Handlers that take long, hang or block, dead letters that are not taken, credentials that expire and disks that are full.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aqueduct::broker::Broker;
use aqueduct::nats::{NatsOptions, NatsTopic};
use aqueduct::{Consumer, Error, Event, FaultExt, Handler, Policy, Router, Topic};
use aqueduct_servers::{Nats, Options};
use async_nats::jetstream::stream::Config;
use futures_util::TryStreamExt;

use crate::consume::{Instance, LONG, Publishing, Seen, event, handled, publish_all, serve};
use crate::fresh::{bodies, declared, pass, raw, topic};
use crate::jwt::Operator;

/// How long a lease holds that is not renewed.
const LEASE: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_takes_longer_than_a_lease_runs_once() {
    let (broker, topic) = declared().await;
    let (tell, mut seen) = Seen::new();
    let handler = async move |event: Event| {
        tell.send(handled(0, &event)).unwrap();
        pass(3 * LEASE).await;
    };
    let router = Router::new().on("order.placed", handler.timeout(LONG));
    let instance = Instance::start(Consumer::new(topic.as_str(), broker.clone()).topics([topic.clone()]).serve(router));
    publish_all(&broker, &topic, 10, 0..2).await;
    seen.all(10, 2).await;
    instance.stop().await;
    seen.check_once(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_hangs_is_cancelled_and_one_that_blocks_its_thread_disturbs_no_other_key() {
    let (broker, topic) = declared().await;
    let (tell, mut seen) = Seen::new();
    let attempts = Arc::new(AtomicU32::new(0));
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let (counted, wait) = (attempts.clone(), Arc::new(parking_lot::Mutex::new(wait)));
    let handler = async move |event: Event| {
        let (instance, key, number) = handled(0, &event);
        if key == "k0" && number == 0 && counted.fetch_add(1, Ordering::Relaxed) == 0 {
            std::future::pending::<()>().await;
        }
        if key == "k1" && number == 0 {
            let _ = wait.lock().recv();
        }
        tell.send((instance, key, number)).unwrap();
    };
    let router = Router::new().on("order.placed", handler.timeout(Duration::from_secs(1)));
    let instance = Instance::start(Consumer::new(topic.as_str(), broker.clone()).topics([topic.clone()]).serve(router));
    publish_all(&broker, &topic, 20, 0..20).await;
    let others = |seen: &Seen| seen.keys.values().filter(|of_key| of_key.len() == 20).count() == 19;
    seen.until("all but the key whose thread is blocked", others).await;
    assert_eq!(attempts.load(Ordering::Relaxed), 2, "what hung was tried again");
    assert!(!seen.keys.contains_key("k1"));
    drop(go);
    seen.until("the rest", |seen| seen.keys.get("k1").is_some_and(|of_key| of_key.contains(&19))).await;
    instance.stop().await;
    seen.check_order();
}

fn fails(event: &Event) -> aqueduct::Result<()> {
    if event.data.starts_with(b"0") { Err(Error::msg("no such customer")).permanent() } else { Ok(()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_for_dead_letters_that_is_missing_is_found_at_start() {
    let (broker, topic) = declared().await;
    let router = Router::new().on("order.placed", async |event: Event| fails(&event));
    let consumer = Consumer::new(topic.as_str(), broker).topics([topic]).dead_letters_to("no-such-topic");
    let error = consumer.serve(router).await.unwrap_err().to_string();
    assert!(error.contains("no-such-topic") && error.contains("does not exist"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_for_dead_letters_that_is_full_loses_none() {
    let ((broker, topic), dead, raw) = (declared().await, topic(), raw().await);
    broker.declare(NatsTopic::new(dead.clone()).max_bytes(64)).await.unwrap();
    let (tell, mut seen) = Seen::new();
    let handler = async move |event: Event| -> aqueduct::Result<()> {
        fails(&event)?;
        tell.send(handled(0, &event)).unwrap();
        Ok(())
    };
    let router = Router::new().on("order.placed", handler.policy(Policy::fast()));
    let consumer = Consumer::new(topic.as_str(), broker.clone()).topics([topic.clone()]).dead_letters_to(dead.clone());
    let serve = consumer.serve(router);
    let health = serve.health();
    let instance = Instance::start(serve);
    publish_all(&broker, &topic, 1, 0..2).await;
    let told = async {
        while !health.reason().contains("is not taken by topic") {
            pass(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, told).await.expect("it says why");
    assert!(seen.keys.is_empty(), "its key waits");
    let settled = async |topic: &str| {
        let stream = raw.get_stream(topic).await.unwrap();
        let consumers: Vec<_> = stream.consumers().try_collect().await.unwrap();
        consumers.iter().map(|info| info.ack_floor.stream_sequence).max().unwrap()
    };
    assert_eq!(settled(topic.as_str()).await, 0, "the event stays");
    let config = raw.get_stream(dead.as_str()).await.unwrap().cached_info().config.clone();
    raw.update_stream(Config { max_bytes: -1, ..config }).await.unwrap();
    seen.until("the key to go on", |seen| !seen.keys.is_empty()).await;
    assert_eq!(bodies(&raw, dead.as_str()).await, ["0"]);
    instance.stop().await;
    assert_eq!(settled(topic.as_str()).await, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn consuming_goes_on_with_other_credentials() {
    let operator = Operator::new();
    let server = Nats::start(Options::new().settings(&operator.settings()).setting("debug", "true")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (file, topic) = (folder.path().join("shop.creds"), Topic::from("orders"));
    std::fs::write(&file, operator.credentials(Some(Duration::from_secs(3)))).unwrap();
    let broker = NatsOptions::new(server.url()).credentials_file(&file).connect().await.unwrap();
    broker.declare(topic.clone()).await.unwrap();
    let (tell, mut seen) = Seen::new();
    let instance = Instance::start(serve(&broker, &topic, 0, tell));
    publish_all(&broker, &topic, 20, 0..10).await;
    seen.all(20, 10).await;
    std::fs::write(&file, operator.credentials(None)).unwrap();
    let publishing = Publishing::start(&broker, &topic, 20, 10);
    let expired = async {
        while !server.log_tail(10_000).contains("Authentication Expired") {
            pass(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, expired).await.expect("the session ends");
    let each = publishing.stop().await;
    publish_all(&broker, &topic, 20, each..each + 5).await;
    seen.all(20, each + 5).await;
    instance.stop().await;
    seen.check_order();
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_under_the_server_loses_nothing() {
    use crate::small_disk::{fill, on_small_disk};
    on_small_disk("promises::a_full_disk_under_the_server_loses_nothing", 64 << 20, async |disk| {
        let server = Nats::start(Options::new().folder(disk.path("nats"))).unwrap();
        let (ballast, topic) = (disk.path("ballast"), Topic::from("orders"));
        let options = || NatsOptions::new(server.url()).ack_timeout(Duration::from_millis(500));
        let broker = options().publish_timeout(Duration::from_secs(2)).connect().await.unwrap();
        broker.declare(topic.clone()).await.unwrap();
        let (tell, mut seen) = Seen::new();
        let consuming = options().connect().await.unwrap();
        let instance = Instance::start(serve(&consuming, &topic, 0, tell));
        publish_all(&broker, &topic, 20, 0..10).await;
        seen.all(20, 10).await;
        fill(&ballast);
        let (mut confirmed, mut number) = (10, 10);
        let error = loop {
            let receipts = broker.publish((0..20).map(|key| event(&topic, key, number)).collect()).await;
            match receipts.into_iter().collect::<Result<Vec<_>, _>>() {
                Ok(_) => confirmed = number + 1,
                Err(error) => break error,
            }
            number += 1;
            assert!(number < 100_000, "the disk is full");
        };
        assert!(error.is_transient(), "{error}");
        std::fs::remove_file(&ballast).unwrap();
        // It does not find its disk well again by itself.
        server.kill().unwrap();
        server.start_again().unwrap();
        let broker = options().publish_timeout(LONG).connect().await.unwrap();
        publish_all(&broker, &topic, 20, confirmed..confirmed + 10).await;
        seen.all(20, confirmed + 10).await;
        instance.stop().await;
        seen.check_order();
        println!("{error}");
    });
}
