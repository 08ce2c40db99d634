//! What the other processes of these tests do: this test binary, started again with a task.

use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{Abilities, Arrival, Broker, Lease, Membership, Receipt, Room, Settle, Subscription};
use aqueduct::nats::{ForeignStream, NatsOptions};
use aqueduct::{BoxFuture, BrokerError, Clock, Consumer, Epoch, Event, Message, Partition, Router, Topic};
use serde_json::{Value, json};
use tracing_subscriber::layer::SubscriberExt;

use crate::fresh::pass;
use crate::history::History;
use crate::process::Warnings;

/// Names the file with the task.
pub(crate) const TASK: &str = "AQUEDUCT_NATS_WORKER";

pub(crate) const TOPIC: &str = "orders";

#[test]
#[ignore = "a part of other tests, which run it in a process of its own"]
fn process() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task: Value = serde_json::from_slice(&std::fs::read(task).unwrap()).unwrap();
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Warnings)).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(consume(&task));
}

/// An instance of a consumer that writes down when a handler starts and when it has its effect, in another poll.
async fn consume(task: &Value) {
    let text = |name: &str| task[name].as_str().unwrap().to_owned();
    let process = text("process");
    let history = History::append_to(&std::path::Path::new(&text("folder")).join(format!("{process}.jsonl")));
    let broker = options(&text("url")).name(process).connect().await.unwrap();
    let inner: Arc<dyn Broker> = match task["stream"].as_str() {
        Some(stream) => Arc::new(broker.foreign().read(TOPIC, ForeignStream::new(stream))),
        None => Arc::new(broker),
    };
    let broker = MaybeUnguarded { inner, unguarded: task["unguarded"] == true };
    // How long a handler waits, at most, between its two polls.
    let (clock, longest) = (Clock::system(), task["work_us"].as_u64().unwrap());
    let handler = async move |event: Event, Epoch(epoch): Epoch| {
        let (id, work) = (event.id.as_str(), Duration::from_micros(clock.random(longest)));
        history.note(json!({"start": id, "epoch": epoch}));
        pass(work).await;
        let polled = clock.boot();
        history.note(json!({"effect": id, "epoch": epoch, "polled": polled.0}));
    };
    println!("\n@up");
    let consumer =
        Consumer::new(text("consumer"), broker).topics([TOPIC]).serve(Router::new().on("order.placed", handler));
    consumer.with_graceful_shutdown(told_to_leave()).await.unwrap();
}

/// Options with which a server that is away is noticed soon.
pub(crate) fn options(url: &str) -> NatsOptions {
    let second = Duration::from_secs(1);
    NatsOptions::new(url).ack_timeout(second).publish_timeout(Duration::from_mins(5)).ping_interval(second / 4)
}

/// The end of the test is the process's, too.
async fn told_to_leave() {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        if std::io::stdin().read_line(&mut line).is_ok_and(|read| read > 0) {
            let _ = tell.send(());
        } else {
            std::process::exit(1);
        }
    });
    let _ = told.await;
}

/// A broker whose partitions may be handed to the engine as though they were owned for ever: so it polls handlers
/// whatever has become of their lease.
struct MaybeUnguarded {
    inner: Arc<dyn Broker>,
    unguarded: bool,
}

impl Broker for MaybeUnguarded {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        self.inner.publish(messages)
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.check_topic(topic)
    }

    fn join(&self, subscription: Subscription) -> BoxFuture<'_, Result<Arc<dyn Membership>, BrokerError>> {
        Box::pin(async move {
            let inner = self.inner.join(subscription).await?;
            Ok(if self.unguarded { Arc::new(Unguarded(inner)) } else { inner })
        })
    }
}

struct Unguarded(Arc<dyn Membership>);

impl Membership for Unguarded {
    fn next<'a>(&'a self, room: Room<'a>) -> BoxFuture<'a, Result<Arrival, BrokerError>> {
        Box::pin(async move {
            let mut arrival = self.0.next(room).await?;
            if let Arrival::Assigned { lease, .. } = &mut arrival {
                *lease = Lease::forever();
            }
            Ok(arrival)
        })
    }

    fn settle<'a>(&'a self, partition: &'a Partition, settles: &'a [Settle]) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.0.settle(partition, settles)
    }

    fn release<'a>(&'a self, partition: &'a Partition, above: Option<Epoch>) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.0.release(partition, above)
    }

    fn leave(&self) -> BoxFuture<'_, Result<(), BrokerError>> {
        self.0.leave()
    }
}
