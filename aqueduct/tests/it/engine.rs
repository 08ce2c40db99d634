//! The engine as its users see it, on the memory broker and store.

use std::collections::BTreeMap;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{Broker, MemoryBroker, Ownership};
use aqueduct::format::{CloudEvents, Format};
use aqueduct::store::{Hold, MemoryStore, Query, RowState, Store};
use aqueduct::{Attempt, Consumer, Error, Event, FaultExt, Message, Policy, Result, Router, Serve};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

fn message(id: u64, key: &str, kind: &str) -> Message {
    let event = Event::raw(kind, id.to_string()).id(id.to_string()).source("test").key(key);
    CloudEvents::binary().encode(&event, &"t".into()).unwrap()
}

async fn publish(broker: &MemoryBroker, messages: Vec<Message>) {
    for receipt in broker.publish(messages).await {
        receipt.unwrap();
    }
}

/// Serves until the receiver has `count` events, then stops gracefully.
async fn serve_until<T>(serve: Serve, seen: &mut mpsc::UnboundedReceiver<T>, count: usize) -> Vec<T> {
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve.with_graceful_shutdown(async { drop(stopped.await) }).into_future());
    let mut got = Vec::new();
    while got.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(20), seen.recv()).await;
        got.push(next.unwrap_or_else(|_| panic!("only {} of {count}", got.len())).unwrap());
    }
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
    got
}

fn by_key(seen: &[(String, u64)]) -> BTreeMap<&str, Vec<u64>> {
    let mut keys: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (key, id) in seen {
        keys.entry(key).or_default().push(*id);
    }
    keys
}

fn id_of(event: &Event) -> (String, u64) {
    (event.key.as_ref().map(ToString::to_string).unwrap_or_default(), event.id.as_str().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_event_is_handled_once_and_each_key_in_order() {
    for ownership in [Ownership::Floor, Ownership::AckEach, Ownership::Competing] {
        let broker = MemoryBroker::new().ownership(ownership);
        publish(&broker, (0..5_000).map(|n| message(n, &format!("k{}", n % 97), "a.b")).collect()).await;
        let (tell, mut told) = mpsc::unbounded_channel();
        let router = Router::new().on("a.*", async move |event: Event| tell.send(id_of(&event)).unwrap());
        let serve = Consumer::new("c", broker.clone()).topics(["t"]).serve(router);
        let seen = serve_until(serve, &mut told, 5_000).await;
        for (key, ids) in by_key(&seen) {
            let mut sorted = ids.clone();
            sorted.sort_unstable();
            sorted.dedup();
            assert_eq!(sorted.len(), ids.len(), "{ownership:?} {key}");
            if ownership != Ownership::Competing {
                assert_eq!(sorted, ids, "{ownership:?} {key}");
            }
        }
        assert!(told.try_recv().is_err(), "something came twice");
        assert_eq!(broker.lag("c"), Some(0), "{ownership:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failing_event_is_parked_and_its_key_waits_behind_it() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    publish(&broker, (0..40).map(|n| message(n, &format!("k{}", n % 4), "a")).collect()).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let policy = Policy::ordered().quick_delay(Duration::from_millis(1)).parked_delay(Duration::from_millis(20));
    let handler = async move |event: Event, attempt: Attempt| -> Result<()> {
        if event.id == "4" && attempt.number < 6 {
            return Err(Error::msg("not yet"));
        }
        tell.send(id_of(&event))?;
        Ok(())
    };
    let serve = Consumer::new("c", broker.clone())
        .topics(["t"])
        .store(store.clone())
        .policy(policy)
        .serve(Router::new().on("a", handler));
    let seen = serve_until(serve, &mut told, 40).await;
    for ids in by_key(&seen).values() {
        assert!(ids.is_sorted(), "{ids:?}");
        assert_eq!(ids.len(), 10);
    }
    assert!(store.browse(&Query::default()).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hopeless_event_is_a_dead_letter_with_its_history_and_its_key_goes_on() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    publish(&broker, (0..10).map(|n| message(n, "k", if n == 3 { "bad" } else { "a" })).collect()).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let router = Router::new()
        .on("a", async move |event: Event| tell.send(id_of(&event)).unwrap())
        .on("bad", async || -> Result<()> { Err(Error::msg("no such sku")).permanent() });
    let serve = Consumer::new("c", broker.clone()).topics(["t"]).store(store.clone()).serve(router);
    let seen = serve_until(serve, &mut told, 9).await;
    assert!(seen.is_sorted());
    let rows = store.browse(&Query::default()).await.unwrap();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0].row.state, RowState::Dead(Hold::Skip));
    assert!(rows[0].row.history[0].error.as_str().contains("no such sku"));
    assert_eq!(broker.lag("c"), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_key_that_fails_and_one_that_blocks_its_thread_hurt_no_other() {
    let (broker, store) = (MemoryBroker::new(), MemoryStore::new());
    let mut messages: Vec<Message> = (0..501).map(|n| message(n, "bad", "fails")).collect();
    messages.push(message(10_000, "blocker", "blocks"));
    messages.extend((0..2_000).map(|n| message(20_000 + n, &format!("k{}", n % 200), "fine")));
    publish(&broker, messages).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let (unblock, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let router = Router::new()
        .on("fails", async || -> Result<()> { Err(Error::msg("always")) })
        .on("blocks", async move || {
            let _ = blocked.lock().recv();
        })
        .on("fine", async move |event: Event| tell.send(id_of(&event)).unwrap());
    let serve = Consumer::new("c", broker.clone()).topics(["t"]).store(store.clone()).serve(router);
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = tokio::spawn(serve.with_graceful_shutdown(async { drop(stopped.await) }).into_future());
    for _ in 0..2_000 {
        tokio::time::timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap();
    }
    unblock.send(()).unwrap();
    stop.send(()).unwrap();
    serving.await.unwrap().unwrap();
}
