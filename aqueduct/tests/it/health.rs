//! What a service says of itself, at every stage and in every trouble; and how it stops.

use std::collections::BTreeSet;
use std::future::IntoFuture;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{Broker, MemoryBroker};
use aqueduct::format::{CloudEvents, Format};
use aqueduct::store::{Query, Store};
use aqueduct::{
    Attempt, BrokerError, Clock, Consumer, Error, Event, Health, MemoryStore, Policy, Result, Router, Serve,
    ServeError, serve_all,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::faults::{FaultyBroker, FaultyStore};

async fn publish(broker: &MemoryBroker, events: impl IntoIterator<Item = (u64, &str, &str)>) {
    let encode = |(id, key, kind): (u64, &str, &str)| {
        let event = Event::raw(kind, "").id(id.to_string()).source("test").key(key);
        CloudEvents::binary().encode(&event, &"t".into()).unwrap()
    };
    for receipt in broker.publish(events.into_iter().map(encode).collect()).await {
        receipt.unwrap();
    }
}

fn consumer(broker: impl Broker) -> Consumer {
    Consumer::new("c", broker).topics(["t"]).clock(Clock::simulated(1))
}

/// A service that runs.
struct Running {
    health: Health,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Running {
    fn new(serve: Serve) -> Self {
        let health = serve.health();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(serve.with_graceful_shutdown(async { drop(stopped.await) }).into_future());
        Self { health, stop, task }
    }

    async fn stop(self) -> Result<(), ServeError> {
        self.stop.send(()).unwrap();
        self.task.await.unwrap()
    }
}

/// Lets virtual time pass until the health is as wanted; an hour is too long.
async fn until(health: &Health, what: &str, wanted: impl Fn(&Health) -> bool) {
    let begin = Instant::now();
    while !wanted(health) {
        assert!(begin.elapsed() < Duration::from_hours(1), "never {what}: {health:?}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn until_ready(health: &Health) {
    until(health, "ready", |h| h.is_ready() && h.reason().is_empty()).await;
}

/// A router whose events of type `a` are told by their ids.
fn telling(tell: &mpsc::UnboundedSender<String>) -> Router {
    let tell = tell.clone();
    Router::new().on("a", async move |event: Event| tell.send(event.id.to_string()).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_service_waits_for_a_broker_that_is_down_and_starts_when_it_is_back() {
    let memory = MemoryBroker::new();
    publish(&memory, [(1, "k", "a")]).await;
    let broker = FaultyBroker::new(&memory);
    broker.outage.begin();
    let service = Running::new(consumer(broker.clone()).serve(Router::new().on("a", async || ())));
    assert_eq!(service.health.reason(), "it has not been started");
    tokio::time::sleep(Duration::from_mins(10)).await;
    let reason = service.health.reason();
    assert!(service.health.is_live() && !service.health.is_ready());
    assert!(reason.contains("it waits for the broker") && reason.contains("no route to broker"), "{reason}");
    let back = Instant::now();
    broker.outage.end();
    until_ready(&service.health).await;
    assert!(back.elapsed() < Duration::from_secs(10), "{:?}", back.elapsed());
    memory.wait_settled("c").await;
    let health = service.health.clone();
    service.stop().await.unwrap();
    assert!(!health.is_live() && !health.is_ready());
    assert_eq!(health.reason(), "it has stopped");
}

#[tokio::test(start_paused = true)]
async fn a_service_is_ready_again_after_an_outage_though_nothing_arrives() {
    let broker = FaultyBroker::new(&MemoryBroker::new().declare("t"));
    let service = Running::new(consumer(broker.clone()).serve(Router::new().on("a", async || ())));
    until_ready(&service.health).await;
    broker.outage.begin();
    until(&service.health, "unready", |h| h.reason().contains("no route to broker")).await;
    broker.outage.end();
    until_ready(&service.health).await;
    service.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_service_that_waits_for_its_broker_can_be_stopped() {
    let broker = FaultyBroker::new(&MemoryBroker::new());
    broker.outage.begin();
    let service = Running::new(consumer(broker).serve(Router::new().on("a", async || ())));
    let health = service.health.clone();
    until(&health, "waiting", |h| h.reason().contains("no route to broker")).await;
    let asked = Instant::now();
    service.stop().await.unwrap();
    assert!(asked.elapsed() < Duration::from_millis(1) && !health.is_live());
}

#[tokio::test(start_paused = true)]
async fn what_a_broker_refuses_for_good_ends_the_service_at_once() {
    let broker = MemoryBroker::new().require_topics();
    let service = Running::new(consumer(broker).serve(Router::new().on("a", async || ())));
    let error = service.task.await.unwrap().unwrap_err();
    assert!(matches!(error, ServeError::Broker(BrokerError::NoSuchTopic { .. })), "{error}");
    assert!(!service.health.is_live());
}

#[tokio::test(start_paused = true)]
async fn a_service_that_is_dropped_is_not_live() {
    let service = Running::new(consumer(MemoryBroker::new()).serve(Router::new().on("a", async || ())));
    until_ready(&service.health).await;
    service.task.abort();
    assert!(service.task.await.unwrap_err().is_cancelled());
    assert!(!service.health.is_live() && !service.health.is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_gives_nothing_makes_it_unready_until_it_gives_again() {
    let memory = MemoryBroker::new();
    let broker = FaultyBroker::new(&memory);
    let (tell, mut told) = mpsc::unbounded_channel();
    let service = Running::new(consumer(broker.clone()).serve(telling(&tell)));
    until_ready(&service.health).await;
    broker.outage.begin();
    until(&service.health, "unready", |h| !h.is_ready()).await;
    assert!(service.health.is_live());
    assert!(service.health.reason().contains("no route to broker"), "{:?}", service.health);
    publish(&memory, [(1, "k", "a")]).await;
    broker.outage.end();
    assert_eq!(told.recv().await.unwrap(), "1");
    until_ready(&service.health).await;
    service.stop().await.unwrap();
    assert_eq!(memory.lag("c"), Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_partition_does_not_start_before_its_store_can_be_read() {
    let memory = MemoryBroker::new().partitions(1);
    publish(&memory, [(1, "k", "a")]).await;
    let store = FaultyStore::new();
    store.outage.begin();
    let (tell, mut told) = mpsc::unbounded_channel();
    let service = Running::new(consumer(memory).store(store.clone()).serve(telling(&tell)));
    until(&service.health, "unready", |h| h.reason().contains("no route to store")).await;
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert!(service.health.is_live() && !service.health.is_ready());
    assert!(service.health.reason().starts_with("t/0: the store is unavailable"), "{:?}", service.health);
    assert!(told.try_recv().is_err(), "it was handled before the parked keys were known");
    store.outage.end();
    assert_eq!(told.recv().await.unwrap(), "1");
    until_ready(&service.health).await;
    service.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn while_the_store_takes_no_parked_event_nothing_is_lost_and_other_keys_go_on() {
    let memory = MemoryBroker::new().partitions(1);
    let store = FaultyStore::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let router = telling(&tell).on("fails", async || -> Result<()> { Err(Error::msg("not today")) });
    let policy = Policy::ordered().quick_attempts(1).parked_delay(Duration::from_hours(1));
    let service = Running::new(consumer(memory.clone()).store(store.clone()).policy(policy).serve(router));
    until_ready(&service.health).await;
    store.outage.begin();
    publish(&memory, [(1, "bad", "fails"), (2, "good", "a"), (3, "bad", "a")]).await;
    assert_eq!(told.recv().await.unwrap(), "2");
    until(&service.health, "unready", |h| h.reason().contains("no route to store")).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(!service.health.is_ready() && service.health.is_live());
    assert_eq!(memory.lag("c"), Some(3), "settled though it is not in the store");
    store.outage.end();
    until_ready(&service.health).await;
    memory.wait_settled("c").await;
    let rows = store.browse(&Query::default()).await.unwrap();
    assert_eq!(rows.iter().map(|listed| listed.row.place.position.0).collect::<Vec<_>>(), [1, 3]);
    assert!(told.try_recv().is_err(), "an event of the parked key was handled before its head");
    service.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_store_that_does_not_say_what_is_due_keeps_it_unready_all_the_time() {
    let store = FaultyStore::new();
    let broker = MemoryBroker::new().partitions(1);
    let service = Running::new(consumer(broker).store(store.clone()).serve(Router::new().on("a", async || ())));
    until_ready(&service.health).await;
    store.outage.begin();
    until(&service.health, "unready", |h| !h.is_ready()).await;
    for _ in 0..1_000 {
        tokio::time::sleep(Duration::from_millis(10)).await;
        assert!(!service.health.is_ready(), "it forgot that the store fails");
    }
    store.outage.end();
    until_ready(&service.health).await;
    service.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_key_without_a_durable_store_makes_its_partition_wait_and_no_other() {
    let memory = MemoryBroker::new().partitions(2);
    let mut broker = FaultyBroker::new(&memory);
    broker.durable = true;
    let (tell, mut told) = mpsc::unbounded_channel();
    let gate = Arc::new(Notify::new());
    let (open, slow) = (Arc::clone(&gate), tell.clone());
    let router = telling(&tell).on("slow", async move |event: Event| {
        open.notified().await;
        open.notify_one();
        slow.send(event.id.to_string()).unwrap();
    });
    let serve = consumer(broker).buffer_per_key(4).timeout(Duration::from_hours(10)).serve(router);
    let service = Running::new(serve);
    until_ready(&service.health).await;
    publish(&memory, (0..20).map(|id| (id, "full", "slow"))).await;
    until(&service.health, "waiting", |h| h.reason().contains("a key has more events")).await;
    let (full, _, _) = memory.log(&"t".into()).remove(0);
    let reason = service.health.reason();
    assert!(reason.starts_with(&format!("{full}: ")) && reason.contains(".store(..)"), "{reason}");
    assert!(service.health.is_ready(), "one key that waits is no reason to take the service out");
    let keys: Vec<String> = (0..40).map(|n| format!("k{n}")).collect();
    publish(&memory, (100..).zip(&keys).map(|(id, key)| (id, key.as_str(), "a"))).await;
    let log = memory.log(&"t".into());
    let elsewhere = log.iter().filter(|(partition, ..)| *partition != full).count();
    assert!((1..40).contains(&elsewhere), "the keys are all in one partition");
    for _ in 0..elsewhere {
        let id: u64 = told.recv().await.unwrap().parse().unwrap();
        assert!(id >= 100);
    }
    gate.notify_one();
    memory.wait_settled("c").await;
    until_ready(&service.health).await;
    let rest: BTreeSet<String> = std::iter::from_fn(|| told.try_recv().ok()).collect();
    assert_eq!(rest.len(), 60 - elsewhere);
    service.stop().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_reported_until_it_ends() {
    let memory = MemoryBroker::new();
    publish(&memory, [(1, "k", "a")]).await;
    let gate = Arc::new(Notify::new());
    let open = Arc::clone(&gate);
    let router = Router::new().on("a", async move || open.notified().await);
    let serve = consumer(memory.clone()).timeout(Duration::from_hours(10)).stall(Duration::from_mins(5)).serve(router);
    let (service, begin) = (Running::new(serve), Instant::now());
    until(&service.health, "stuck", |h| h.reason().contains("1 attempts run longer than the stall threshold")).await;
    let after = begin.elapsed();
    assert!((Duration::from_mins(5)..Duration::from_secs(303)).contains(&after), "{after:?}");
    assert!(service.health.is_live() && service.health.is_ready());
    gate.notify_one();
    until_ready(&service.health).await;
    service.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn an_attempt_that_blocks_its_thread_is_reported_and_abandoned_at_the_end() {
    let memory = MemoryBroker::new();
    publish(&memory, [(1, "k", "blocks")]).await;
    let (unblock, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Arc::new(Mutex::new(blocked));
    let router = Router::new().on("blocks", async move || {
        let _ = blocked.lock().recv();
    });
    let times = (Duration::from_millis(1), Duration::from_millis(200));
    let serve = Consumer::new("c", memory.clone()).topics(["t"]).stall(times.0).shutdown(times.1).serve(router);
    let service = Running::new(serve);
    let stuck = async {
        while !service.health.reason().contains("1 attempts run longer") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), stuck).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(20), service.stop()).await;
    assert!(matches!(ended, Ok(Err(ServeError::Abandoned { running: 1 }))), "{ended:?}");
    assert_eq!(memory.lag("c"), Some(1), "it was settled though it had not ended");
    unblock.send(()).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_stop_lets_running_attempts_finish_and_starts_no_other() {
    let memory = MemoryBroker::new();
    publish(&memory, [(1, "k", "a"), (2, "k", "a")]).await;
    let (begun, gate) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, open) = (Arc::clone(&begun), Arc::clone(&gate));
    let router = Router::new().on("a", async move || {
        begins.notify_one();
        open.notified().await;
    });
    let Running { health, stop, task } = Running::new(consumer(memory.clone()).serve(router));
    begun.notified().await;
    stop.send(()).unwrap();
    until(&health, "stopping", |h| h.reason() == "it is stopping").await;
    assert!(health.is_live() && !health.is_ready());
    gate.notify_one();
    task.await.unwrap().unwrap();
    assert_eq!(health.reason(), "it has stopped");
    assert_eq!(memory.lag("c"), Some(1), "the first one is settled and the second one was not started");
}

#[tokio::test(start_paused = true)]
async fn at_four_fifths_of_the_stop_pending_attempts_are_cancelled_and_do_not_count() {
    let (memory, store) = (MemoryBroker::new(), MemoryStore::new());
    publish(&memory, [(1, "k", "a")]).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let handler = async move |attempt: Attempt| -> Result<()> {
        tell.send(attempt.number)?;
        if attempt.number == 1 { Err(Error::msg("park it")) } else { std::future::pending().await }
    };
    let serve = |handler| {
        let policy = Policy::ordered().quick_attempts(1).parked_delay(Duration::ZERO);
        consumer(memory.clone()).store(store.clone()).policy(policy).timeout(Duration::from_hours(1)).serve(handler)
    };
    let router = || Router::new().on("a", handler.clone());
    for attempts in [vec![1, 2], vec![2]] {
        let service = Running::new(serve(router()));
        for number in attempts {
            assert_eq!(told.recv().await, Some(number));
        }
        let asked = Instant::now();
        service.stop().await.unwrap();
        let took = asked.elapsed();
        assert!((Duration::from_secs(24)..Duration::from_secs(25)).contains(&took), "{took:?}");
    }
    let rows = store.browse(&Query::default()).await.unwrap();
    assert_eq!((rows[0].row.attempts, rows.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn several_consumers_stop_on_one_signal() {
    let memory = MemoryBroker::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let serve = |name: &str| {
        let (tell, told) = (tell.clone(), name.to_owned());
        let router = Router::new().on("a", async move || tell.send(told.clone()).unwrap());
        Consumer::new(name, memory.clone()).topics(["t"]).serve(router)
    };
    let services = [serve("stock"), serve("mail")];
    let healths = services.each_ref().map(Serve::health);
    let (stop, stopped) = oneshot::channel::<()>();
    let all = tokio::spawn(serve_all(services, async { drop(stopped.await) }));
    for health in &healths {
        until_ready(health).await;
    }
    publish(&memory, [(1, "k", "a")]).await;
    let names = BTreeSet::from([told.recv().await.unwrap(), told.recv().await.unwrap()]);
    assert_eq!(names, BTreeSet::from(["mail".to_owned(), "stock".to_owned()]));
    stop.send(()).unwrap();
    all.await.unwrap().unwrap();
    assert!(healths.iter().all(|health| !health.is_live()));
    assert_eq!((memory.lag("stock"), memory.lag("mail")), (Some(0), Some(0)));
}

#[tokio::test(start_paused = true)]
async fn a_consumer_that_fails_stops_the_others_gracefully_and_its_error_is_the_result() {
    let memory = MemoryBroker::new();
    publish(&memory, [(1, "k", "a")]).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let (begun, late) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (begins, open) = (Arc::clone(&begun), Arc::clone(&late));
    let good = consumer(memory.clone()).serve(Router::new().on("a", async move || {
        begins.notify_one();
        open.notified().await;
        tell.send(()).unwrap();
    }));
    let down = FaultyBroker::new(&MemoryBroker::new().require_topics());
    down.outage.begin();
    let bad = Consumer::new("bad", down.clone()).topics(["none"]).serve(Router::new().on("a", async || ()));
    let health = good.health();
    let all = tokio::spawn(serve_all([good, bad], std::future::pending()));
    begun.notified().await;
    down.outage.end();
    until(&health, "stopping", |h| h.reason() == "it is stopping").await;
    late.notify_one();
    let error = all.await.unwrap().unwrap_err();
    assert!(
        matches!(&error, ServeError::Broker(BrokerError::NoSuchTopic { topic }) if topic.as_str() == "none"),
        "{error}"
    );
    told.recv().await.unwrap();
    assert_eq!(memory.lag("c"), Some(0), "what ran was finished and settled");
}
