//! What somebody tried in order to refute the promises, and succeeded with once.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aqueduct::broker::{Broker, MemoryBroker, Ownership};
use aqueduct::format::{CloudEvents, Format};
use aqueduct::{Attempt, Consumer, Event, Fault, FaultExt, Message, Policy, Result, Router};
use tokio::sync::mpsc;

use crate::faults::FaultyBroker;

fn message(id: u64, key: &str, kind: &str) -> Message {
    let event = Event::raw(kind, id.to_string()).id(id.to_string()).source("test").key(key);
    CloudEvents::binary().encode(&event, &"t".into()).unwrap()
}

async fn publish(broker: &MemoryBroker, messages: Vec<Message>) {
    for receipt in broker.publish(messages).await {
        receipt.unwrap();
    }
}

/// Handles one event of type `bad` by `bad` and ten of type `fine` behind it; fails if the fine ones do not all end.
async fn the_others_are_handled(
    options: impl FnOnce(Consumer) -> Consumer,
    bad: impl Fn() -> Result<()> + Clone + Send + Sync + 'static,
) {
    let broker = MemoryBroker::new();
    publish(&broker, vec![message(0, "bad", "bad")]).await;
    publish(&broker, (1..11).map(|n| message(n, "fine", "fine")).collect()).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let failed = tell.clone();
    let router = Router::new().on("fine", async move || tell.send(()).unwrap()).on("bad", async move || {
        failed.send(()).unwrap();
        bad()
    });
    let consumer = options(Consumer::new("c", broker).topics(["t"]).concurrency(1));
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serve = consumer.serve(router).with_graceful_shutdown(async { drop(stopped.await) });
    let serving = tokio::spawn(serve.into_future());
    for _ in 0..11 {
        let next = tokio::time::timeout(Duration::from_secs(5), told.recv()).await;
        next.expect("the service stands still").expect("the service has ended");
    }
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(5), serving).await.expect("it does not stop").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_without_end_are_taken_as_such() {
    the_others_are_handled(|c| c.timeout(Duration::MAX), || Ok(())).await;
    the_others_are_handled(|c| c.shutdown(Duration::MAX), || Ok(())).await;
    the_others_are_handled(|c| c.concurrency(usize::MAX).buffer(usize::MAX), || Ok(())).await;
    for policy in [Policy::ordered(), Policy::fast(), Policy::best_effort()] {
        let later = || Err("later").retry_after(Duration::MAX);
        the_others_are_handled(|c| c.policy(policy.clone()).shutdown(Duration::from_millis(200)), later).await;
        let options = |c: Consumer| c.policy(policy.parked_delay(Duration::MAX).quick_delay(Duration::MAX));
        the_others_are_handled(|c| options(c).shutdown(Duration::from_millis(200)), later).await;
    }
}

/// An error that does not behave.
#[derive(Debug)]
enum Nasty {
    /// It cannot be written.
    Unwritable,
    /// It is its own cause.
    Circle,
}

impl fmt::Display for Nasty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unwritable => panic!("no words"),
            Self::Circle => f.write_str("round and round"),
        }
    }
}

impl std::error::Error for Nasty {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        matches!(self, Self::Circle).then_some(self)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_cannot_be_written_or_judged_stops_nobody_else() {
    the_others_are_handled(|c| c, || Err(Nasty::Unwritable.into())).await;
    let unjudged = Policy::fast().classify(|_| -> Fault { panic!("no opinion") });
    the_others_are_handled(|c| c.policy(unjudged), || Err(aqueduct::Error::msg("x"))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_that_is_its_own_cause_stops_nobody_else() {
    the_others_are_handled(|c| c, || Err(Nasty::Circle.into())).await;
}

/// A message with two events, whose types are their ids, and their keys.
fn batch(events: [(&str, &str); 2]) -> Message {
    let events = events.map(|(id, key)| {
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"s","type":"{id}","partitionkey":"{key}"}}"#)
    });
    let mut batch = message(99, "k", "a");
    batch.headers = [("content-type", "application/cloudevents-batch+json")].into_iter().collect();
    batch.body = format!("[{}]", events.join(",")).into();
    batch
}

/// A, which fails slowly at its second delivery, and B, which is slow at its first, come in one message.
#[tokio::test(start_paused = true)]
async fn an_event_given_back_with_its_batch_is_not_settled_by_what_ran_before() {
    let broker = MemoryBroker::new().ownership(Ownership::Competing);
    let batch = batch([("a", "k"), ("b", "k")]);
    publish(&broker, vec![batch]).await;
    let (tell, mut told) = mpsc::unbounded_channel();
    let (tries, slow) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let a = async move |_: Attempt| -> Result<()> {
        match tries.fetch_add(1, Ordering::Relaxed) {
            0 => Err(aqueduct::Error::msg("at once")),
            1 => {
                tokio::time::sleep(Duration::from_secs(5)).await;
                Err(aqueduct::Error::msg("slowly"))
            }
            _ => Ok(tell.send(())?),
        }
    };
    let b = async move || {
        if slow.fetch_add(1, Ordering::Relaxed) == 0 {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    let serve = Consumer::new("c", broker).topics(["t"]).serve(Router::new().on("a", a).on("b", b));
    let serving = tokio::spawn(serve.into_future());
    tokio::time::timeout(Duration::from_mins(10), told.recv()).await.expect("the event is lost").unwrap();
    serving.abort();
}

/// E of key k waits at the broker when A of the same key and B of another come in one message.
#[tokio::test(start_paused = true)]
async fn an_event_that_comes_with_one_that_must_wait_is_handled_once() {
    let memory = MemoryBroker::new().ownership(Ownership::AckEach);
    let mut broker = FaultyBroker::new(&memory);
    broker.durable = true;
    let (tell, mut told) = mpsc::unbounded_channel();
    let tell = move |what: &'static str| tell.send(what).unwrap();
    let (e, a, b) = (tell.clone(), tell.clone(), tell);
    let router = Router::new()
        .on("e", async move |attempt: Attempt| -> Result<()> {
            e("e");
            if attempt.number == 1 { Err(aqueduct::Error::msg("once")) } else { Ok(()) }
        })
        .on("a", async move || a("a"))
        .on("b", async move || b("b"));
    let policy = Policy::ordered().quick_attempts(1).parked_delay(Duration::from_secs(1));
    let serve = Consumer::new("c", broker).topics(["t"]).policy(policy).serve(router);
    let serving = tokio::spawn(serve.into_future());
    publish(&memory, vec![message(0, "k", "e")]).await;
    assert_eq!(told.recv().await, Some("e"));
    tokio::time::sleep(Duration::from_millis(100)).await;
    publish(&memory, vec![batch([("a", "k"), ("b", "other")])]).await;
    memory.wait_settled("c").await;
    serving.abort();
    let mut rest = Vec::new();
    while let Ok(what) = told.try_recv() {
        rest.push(what);
    }
    rest[1..].sort_unstable();
    assert_eq!(rest, ["e", "a", "b"]);
}
