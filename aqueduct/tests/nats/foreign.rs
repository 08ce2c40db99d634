//! Streams that others have made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use aqueduct::broker::{Broker, Subscription};
use aqueduct::nats::{ForeignStream, NatsForeign};
use aqueduct::testing::broker_suite::{self, Ground};
use aqueduct::{BrokerError, Consumer, Error, Event, Router, Topic};
use async_nats::jetstream::consumer::{AckPolicy, pull, push};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use async_nats::jetstream::{AckKind, Context};
use futures_util::StreamExt;

use crate::consume::{Instance, LONG, Seen, handled, publish_all};
use crate::fresh::{pass, raw, shared, topic};

const SECOND: Duration = Duration::from_secs(1);

/// A stream with one subject, which is its name.
async fn stream(raw: &Context, topic: &Topic, retention: RetentionPolicy) {
    let (name, subjects) = (topic.to_string(), vec![topic.to_string()]);
    raw.create_stream(Config { name, subjects, retention, ..Config::default() }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn durables_of_others_pass_the_suite() {
    let raw = raw().await;
    broker_suite::run(async |case| {
        let topic = topic();
        stream(&raw, &topic, RetentionPolicy::Limits).await;
        let broker =
            shared().await.foreign().read(topic.clone(), ForeignStream::new(topic.as_str()).ack_wait(2 * SECOND));
        let consumer = format!("{topic}-{case}");
        Ground::new(Arc::new(broker), topic, consumer)
    })
    .await;
}

/// What a durable is to be like that others have made.
fn durable(name: &str) -> pull::Config {
    pull::Config { durable_name: Some(name.to_owned()), ack_wait: SECOND, ..pull::Config::default() }
}

/// A work queue that is read through a durable of the name `workers`.
async fn queue(config: pull::Config) -> (Context, NatsForeign, Topic) {
    let (raw, topic) = (raw().await, topic());
    stream(&raw, &topic, RetentionPolicy::WorkQueue).await;
    raw.create_consumer_on_stream(config, topic.as_str()).await.unwrap();
    let source = ForeignStream::new(topic.as_str()).durable("workers");
    (raw, shared().await.foreign().read(topic.clone(), source), topic)
}

async fn left(raw: &Context, topic: &Topic) -> u64 {
    raw.get_stream(topic.as_str()).await.unwrap().cached_info().state.messages
}

/// Waits until the queue is empty: what is settled is gone from it.
async fn until_empty(raw: &Context, topic: &Topic) {
    let empty = async { while left(raw, topic).await > 0 {} };
    tokio::time::timeout(LONG, empty).await.expect("everything is settled");
}

fn serve<H, T>(broker: &NatsForeign, topic: &Topic, handler: H) -> Instance
where
    H: aqueduct::Handler<T, ()>,
    T: 'static,
{
    let router = Router::new().on("order.placed", handler);
    Instance::start(Consumer::new(topic.as_str(), broker.clone()).topics([topic.clone()]).serve(router))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_takes_longer_than_the_durable_waits_runs_once() {
    let (raw, broker, topic) = queue(durable("workers")).await;
    let (tell, mut seen) = Seen::new();
    let handler = async move |event: Event| {
        tell.send(handled(0, &event)).unwrap();
        pass(3 * SECOND).await;
    };
    let instance = serve(&broker, &topic, handler);
    publish_all(&broker, &topic, 10, 0..2).await;
    until_empty(&raw, &topic).await;
    instance.stop().await;
    seen.all(10, 2).await;
    seen.check_once(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_a_durable_waits_for_its_retry() {
    let (raw, broker, topic) = queue(durable("workers")).await;
    let (tell, mut seen) = Seen::new();
    let failed = Arc::new(AtomicBool::new(false));
    let handler = async move |event: Event| -> aqueduct::Result<()> {
        let handled = handled(0, &event);
        if handled.1 == "k0" && !failed.swap(true, Ordering::Relaxed) {
            return Err(Error::msg("not yet").retry_after(Duration::from_millis(200)));
        }
        tell.send(handled).unwrap();
        Ok(())
    };
    let instance = serve(&broker, &topic, handler);
    publish_all(&broker, &topic, 10, 0..5).await;
    seen.all(10, 5).await;
    until_empty(&raw, &topic).await;
    instance.stop().await;
    seen.check_once(5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_delivery_of_a_durable_is_tried_for_as_long_as_any() {
    let (raw, broker, topic) = queue(pull::Config { max_deliver: 2, ..durable("workers") }).await;
    let (tell, mut seen) = Seen::new();
    let attempts = Arc::new(AtomicU32::new(0));
    let counted = attempts.clone();
    let handler = async move |event: Event| -> aqueduct::Result<()> {
        if counted.fetch_add(1, Ordering::Relaxed) < 6 {
            return Err(Error::msg("not yet").retry_after(Duration::from_millis(50)));
        }
        tell.send(handled(0, &event)).unwrap();
        Ok(())
    };
    let instance = serve(&broker, &topic, handler);
    publish_all(&broker, &topic, 1, 0..2).await;
    seen.all(1, 2).await;
    until_empty(&raw, &topic).await;
    instance.stop().await;
    seen.check_once(2);
    assert_eq!(attempts.load(Ordering::Relaxed), 8);
}

/// A program takes the last delivery of an event and is gone.
async fn taken_for_the_last_time(raw: &Context, topic: &Topic) {
    let consumer = raw.get_consumer_from_stream::<pull::Config, _, _>("workers", topic.as_str()).await.unwrap();
    let mut taken = consumer.fetch().max_messages(1).messages().await.unwrap();
    assert!(taken.next().await.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_event_whose_last_delivery_nobody_settled_is_handled_all_the_same() {
    let (raw, broker, topic) = queue(pull::Config { max_deliver: 1, ..durable("workers") }).await;
    publish_all(&broker, &topic, 1, 0..1).await;
    taken_for_the_last_time(&raw, &topic).await;
    // In hand still when it is asked for again.
    let (tell, mut seen) = Seen::new();
    let other = tell.clone();
    let instance = serve(&broker, &topic, async move |event: Event| drop(tell.send(handled(0, &event))));
    seen.all(1, 1).await;
    until_empty(&raw, &topic).await;
    instance.stop().await;
    // Given up by the server before.
    publish_all(&broker, &topic, 1, 1..2).await;
    taken_for_the_last_time(&raw, &topic).await;
    let consumer = raw.get_consumer_from_stream::<pull::Config, _, _>("workers", topic.as_str()).await.unwrap();
    let nothing = consumer.batch().max_messages(1).expires(2 * SECOND).messages().await.unwrap();
    assert_eq!(nothing.count().await, 0);
    assert_eq!((consumer.get_info().await.unwrap().num_ack_pending, left(&raw, &topic).await), (0, 1));
    let instance = serve(&broker, &topic, async move |event: Event| drop(other.send(handled(0, &event))));
    seen.all(1, 2).await;
    until_empty(&raw, &topic).await;
    instance.stop().await;
    seen.check_once(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_left_behind_long_ago_is_handled_before_what_came_after_it() {
    let (raw, broker, topic) = queue(pull::Config { max_deliver: 1, ..durable("workers") }).await;
    publish_all(&broker, &topic, 1, 0..5).await;
    let consumer = raw.get_consumer_from_stream::<pull::Config, _, _>("workers", topic.as_str()).await.unwrap();
    taken_for_the_last_time(&raw, &topic).await;
    let mut others = consumer.fetch().max_messages(3).messages().await.unwrap();
    let second = others.next().await.unwrap().unwrap();
    let third = others.next().await.unwrap().unwrap();
    third.double_ack().await.unwrap();
    second.double_ack().await.unwrap();
    drop(others);
    // The server gives up the first, and the fourth, too: all that was delivered counts as settled for it.
    let given_up = async {
        while consumer.get_info().await.unwrap().num_ack_pending > 0 {
            let nothing = consumer.batch().max_messages(1).expires(SECOND).messages().await.unwrap();
            drop(nothing.take(1).collect::<Vec<_>>().await);
        }
    };
    tokio::time::timeout(LONG, given_up).await.expect("they are given up");
    let (tell, mut seen) = Seen::new();
    let instance = serve(&broker, &topic, async move |event: Event| drop(tell.send(handled(0, &event))));
    until_empty(&raw, &topic).await;
    seen.until("three", |seen| seen.keys.get("k0").is_some_and(|of_key| of_key.len() == 3)).await;
    assert_eq!(seen.keys["k0"], [0, 3, 4]);
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_in_another_order_comes_in_its_own() {
    let (raw, broker, topic) = queue(durable("workers")).await;
    publish_all(&broker, &topic, 1, 0..5).await;
    let consumer = raw.get_consumer_from_stream::<pull::Config, _, _>("workers", topic.as_str()).await.unwrap();
    let taken: Vec<_> = consumer.fetch().max_messages(5).messages().await.unwrap().collect().await;
    // The first is worked on for longer than the others.
    for _ in 0..4 {
        pass(SECOND / 2).await;
        taken[0].as_ref().unwrap().ack_with(AckKind::Progress).await.unwrap();
    }
    let (tell, mut seen) = Seen::new();
    let instance = serve(&broker, &topic, async move |event: Event| drop(tell.send(handled(0, &event))));
    seen.all(1, 5).await;
    until_empty(&raw, &topic).await;
    instance.stop().await;
    seen.check_once(5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_may_be_in_hand_is_worked_on_slowly_and_once() {
    let (raw, broker, topic) = queue(pull::Config { max_ack_pending: 20, ..durable("workers") }).await;
    publish_all(&broker, &topic, 60, 0..1).await;
    let (tell, mut seen) = Seen::new();
    let handler = async move |event: Event| {
        pass(4 * SECOND).await;
        tell.send(handled(0, &event)).unwrap();
    };
    let instance = serve(&broker, &topic, handler);
    seen.all(60, 1).await;
    until_empty(&raw, &topic).await;
    instance.stop().await;
    seen.check_once(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_another_has_in_hand_comes_first_and_in_order() {
    let (raw, broker, topic) = queue(pull::Config { ack_wait: LONG, ..durable("workers") }).await;
    publish_all(&broker, &topic, 5, 0..40).await;
    let consumer = raw.get_consumer_from_stream::<pull::Config, _, _>("workers", topic.as_str()).await.unwrap();
    let taken: Vec<_> = consumer.fetch().max_messages(100).messages().await.unwrap().collect().await;
    assert_eq!(taken.len(), 100);
    let (tell, mut seen) = Seen::new();
    let instance = serve(&broker, &topic, async move |event: Event| drop(tell.send(handled(0, &event))));
    seen.all(5, 40).await;
    until_empty(&raw, &topic).await;
    instance.stop().await;
    seen.check_once(40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_that_cannot_be_used_says_why_and_what_to_do() {
    let (raw, topic) = (raw().await, topic());
    stream(&raw, &topic, RetentionPolicy::Limits).await;
    let nanosecond = pull::Config { backoff: vec![Duration::from_nanos(1)], max_deliver: 5, ..durable("ruby") };
    raw.create_consumer_on_stream(nanosecond, topic.as_str()).await.unwrap();
    let all = pull::Config { ack_policy: AckPolicy::All, ..durable("all") };
    raw.create_consumer_on_stream(all, topic.as_str()).await.unwrap();
    let push = push::Config {
        durable_name: Some("push".to_owned()),
        deliver_subject: format!("{topic}.deliver"),
        ..push::Config::default()
    };
    raw.create_consumer_on_stream(push, topic.as_str()).await.unwrap();
    let join = async |source: ForeignStream, topic: Topic| {
        let broker = shared().await.foreign().read(topic.clone(), source);
        broker.join(Subscription::new("stock", vec![topic])).await.map(drop).unwrap_err().to_string()
    };
    for (name, why) in [
        ("ruby", "nats consumer edit"),
        ("all", "explicit"),
        ("push", "only pulling ones"),
        ("missing", "nats consumer add"),
    ] {
        let error = join(ForeignStream::new(topic.as_str()).durable(name), topic.clone()).await;
        assert!(error.contains(why), "{error}");
    }
    let error = join(ForeignStream::new("nowhere"), topic.clone()).await;
    assert!(error.contains("does not exist"), "{error}");
    let broker = shared().await.foreign();
    let error = broker.join(Subscription::new("stock", vec![topic.clone()])).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("NatsForeign::read"), "{error}");
    let missing = broker.check_topic(&"no.such.subject".into()).await;
    assert!(matches!(missing, Err(BrokerError::NoSuchTopic { .. })), "{missing:?}");
}
