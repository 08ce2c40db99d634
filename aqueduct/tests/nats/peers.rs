//! A fleet of the gem `jetstream_bridge`, 4.5 or later, beside a service with Aqueduct. What the gem does is done by hand with the raw
//! client, as it was recorded: a fetch of 25, `+ACK` and a bare `-NAK`, dead letters with the original headers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aqueduct::compat::jetstream_bridge::{DeadLetter, Envelope, Names, Reason};
use aqueduct::nats::ForeignStream;
use aqueduct::{Consumer, Error, Event, FaultExt, Handler, Policy, Publisher, Router, State};
use aqueduct_servers::{Nats, Options};
use async_nats::HeaderMap;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use async_nats::jetstream::stream::{Config, RetentionPolicy};
use async_nats::jetstream::{AckKind, Context};
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::consume::{Instance, LONG};
use crate::fresh::raw_at;

const STREAM: &str = "jetstream-bridge-stream";

/// The envelope as the gem writes it.
fn envelope(id: &str, kind: &str, resource: &str) -> Value {
    json!({
        "event_id": id, "schema_version": 1, "event_type": kind, "producer": "shop", "resource_id": resource,
        "occurred_at": "2026-11-28T10:11:12Z", "trace_id": "00112233445566aa", "resource_type": "order",
        "payload": {"id": resource, "total": 12},
    })
}

async fn gem_publishes(raw: &Context, subject: &str, id: &str, body: Vec<u8>) {
    let mut headers = HeaderMap::new();
    headers.insert("nats-msg-id", id);
    raw.publish_with_headers(subject.to_owned(), headers, body.into()).await.unwrap().await.unwrap();
}

/// A worker of the gem: it handles what its application gets until it has had so many, and gives each its first try in vain.
async fn gem_works(raw: Context, durable: &'static str, count: usize) -> Vec<Value> {
    let consumer = raw.get_consumer_from_stream::<pull::Config, _, _>(durable, STREAM).await.unwrap();
    let (mut handled, mut tried) = (Vec::new(), BTreeSet::new());
    while handled.len() < count {
        let mut fetched = consumer.fetch().max_messages(25).messages().await.unwrap();
        while let Some(Ok(message)) = fetched.next().await {
            assert!(
                message
                    .headers
                    .iter()
                    .flat_map(HeaderMap::iter)
                    .all(|(name, _)| !name.to_string().starts_with("Nats-"))
            );
            let body: Value = serde_json::from_slice(&message.payload).unwrap();
            if tried.insert(body["event_id"].to_string()) {
                message.ack_with(AckKind::Nak(None)).await.unwrap();
            } else {
                handled.push(body);
                message.ack().await.unwrap();
            }
        }
    }
    handled
}

/// What the gem does with an event that it cannot handle.
async fn gem_gives_up(raw: &Context, original: &Value) {
    let mut headers = HeaderMap::new();
    let context = json!({
        "event_id": original["event_id"], "reason": "unrecoverable", "error_class": "ArgumentError", "error_message": "no such order",
        "deliveries": 1, "original_subject": "stock.sync.shop", "sequence": {"stream": 7, "consumer": 3}, "consumer": "shop-workers",
        "stream": STREAM, "published_at": "2026-11-28T10:11:13Z",
    });
    headers.insert("nats-msg-id", original["event_id"].as_str().unwrap());
    headers.insert("x-dead-letter", "true");
    headers.insert("x-dlq-reason", "unrecoverable");
    headers.insert("x-deliveries", "1");
    headers.insert("x-dlq-context", context.to_string().as_str());
    let body = original.to_string();
    raw.publish_with_headers("shop.sync.dlq", headers, body.into()).await.unwrap().await.unwrap();
}

/// The fleet's stream and durables: all subjects, and a sound `ack_wait`, before anybody starts.
async fn provision(raw: &Context) {
    let subjects =
        ["shop.sync.stock", "stock.sync.shop", "shop.sync.dlq", "stock.sync.dlq"].map(str::to_owned).to_vec();
    let retention = RetentionPolicy::WorkQueue;
    raw.create_stream(Config { name: STREAM.to_owned(), subjects, retention, ..Config::default() }).await.unwrap();
    for (durable, filter) in
        [("stock-workers", "shop.sync.stock"), ("shop-workers", "stock.sync.shop"), ("dead-workers", "shop.sync.dlq")]
    {
        let config = pull::Config {
            durable_name: Some(durable.to_owned()),
            filter_subject: filter.to_owned(),
            ack_policy: AckPolicy::Explicit,
            ack_wait: Duration::from_secs(5),
            max_deliver: 5,
            ..pull::Config::default()
        };
        raw.create_consumer_on_stream(config, STREAM).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_joins_a_fleet_of_the_gem_and_both_read_what_the_other_writes() {
    let server = Nats::start(Options::new()).unwrap();
    let raw = raw_at(&server.url()).await;
    provision(&raw).await;
    let names = Names::new("stock", "shop").unwrap();
    let nats = aqueduct::nats::NatsBroker::connect(server.url()).await.unwrap();
    let broker = nats.foreign().read(names.subscribe.clone(), ForeignStream::new(STREAM).durable("stock-workers"));
    let replies = Publisher::new("stock", broker.clone()).format(Envelope::new());
    let (failures, replies_to) = (Arc::new(AtomicU32::new(0)), names.publish.clone());
    let counted = failures.clone();
    let reserve = async move |event: Event, State(replies): State<Arc<Publisher>>| -> aqueduct::Result<()> {
        if event.key.as_ref().is_some_and(|key| key.as_str() == "order/13") {
            return Err(Error::msg("no such sku")).permanent();
        }
        if counted.fetch_add(1, Ordering::Relaxed) % 7 == 3 {
            return Err(Error::msg("not this time"));
        }
        let order: Value = serde_json::from_slice(&event.data)?;
        let reply = Event::new("stock.reserved", &order)?.id(format!("after {}", event.id)).topic(replies_to.clone());
        replies.publish(reply.key(event.key.clone().unwrap())).await?;
        Ok(())
    };
    let router = Router::new().on("order.placed", reserve.policy(Policy::fast())).with_state(Arc::new(replies));
    let consumer = Consumer::new("stock", broker).topics([names.subscribe.clone()]).format(Envelope::new());
    let instance = Instance::start(consumer.dead_letters_to(names.dead_letters.clone()).serve(router));
    let worker = tokio::spawn(gem_works(raw.clone(), "shop-workers", 39));
    for n in 0..40 {
        let (id, resource) = (format!("event-{n}"), (n % 20).to_string());
        let resource = if n == 20 {
            "13".to_owned()
        } else if n == 13 {
            "0".to_owned()
        } else {
            resource
        };
        if n == 33 {
            // So that only one is of the order that is not there.
            gem_publishes(&raw, "shop.sync.stock", &id, envelope(&id, "order.placed", "1").to_string().into()).await;
            continue;
        }
        gem_publishes(&raw, "shop.sync.stock", &id, envelope(&id, "order.placed", &resource).to_string().into()).await;
    }
    let handled = tokio::time::timeout(LONG, worker).await.expect("the fleet gets its answers").unwrap();
    let answered: BTreeSet<String> = handled.iter().map(|body| body["event_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(answered, (0..40).filter(|n| *n != 20).map(|n| format!("after event-{n}")).collect());
    for body in &handled {
        assert_eq!((&body["event_type"], &body["producer"]), (&json!("stock.reserved"), &json!("stock")));
        assert_eq!(body["payload"]["total"], 12, "{body}");
    }
    let dead = raw.get_stream(STREAM).await.unwrap().get_last_raw_message_by_subject("stock.sync.dlq").await.unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&dead.payload).unwrap(), envelope("event-20", "order.placed", "13"));
    assert!(dead.headers.get("aqueduct-dead-error").unwrap().as_str().contains("no such sku"));
    instance.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_of_the_gem_are_read_and_replayed() {
    let server = Nats::start(Options::new()).unwrap();
    let raw = raw_at(&server.url()).await;
    provision(&raw).await;
    let original = envelope("event-1", "stock.reserved", "1");
    gem_gives_up(&raw, &original).await;
    let nats = aqueduct::nats::NatsBroker::connect(server.url()).await.unwrap();
    let broker = nats.foreign().read("shop.sync.dlq", ForeignStream::new(STREAM).durable("dead-workers"));
    let again = Arc::new(Publisher::new("operator", broker.clone()).format(Envelope::new()));
    let (tell, mut told) = mpsc::unbounded_channel();
    let replay = async move |event: Event, State(again): State<Arc<Publisher>>| -> aqueduct::Result<()> {
        let dead = DeadLetter::read(&event.headers)?.ok_or_else(|| Error::msg("no dead letter"))?;
        again.publish(event.topic(dead.original_subject.as_str())).await?;
        tell.send(dead).unwrap();
        Ok(())
    };
    let router = Router::new().on("stock.*", replay).with_state(again);
    let consumer = Consumer::new("operator", broker).topics(["shop.sync.dlq"]).format(Envelope::new());
    let instance = Instance::start(consumer.serve(router));
    let dead = tokio::time::timeout(LONG, told.recv()).await.expect("it is read").unwrap();
    assert_eq!((dead.reason, dead.error_message.as_str()), (Reason::Unrecoverable, "no such order"));
    let worker = tokio::spawn(gem_works(raw, "shop-workers", 1));
    let handled = tokio::time::timeout(LONG, worker).await.expect("the fleet gets it again").unwrap();
    assert_eq!(handled, [original]);
    instance.stop().await;
}
