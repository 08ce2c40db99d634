//! What is published lies where the layout says, once, or the error names the fix.

use std::collections::BTreeSet;

use aqueduct::broker::Broker;
use aqueduct::nats::{Expected, NatsOptions, NatsTopic};
use aqueduct::{BrokerError, Event, Message, Position, Publisher};
use aqueduct_servers::nats_url;
use async_nats::jetstream::stream::{Config, SubjectTransform};

use crate::fresh::{bodies, declared, message, publish, raw, shared, stored, topic};

#[tokio::test]
async fn an_event_lies_where_the_layout_says_with_key_id_and_headers() {
    let ((broker, topic), raw) = (declared().await, raw().await);
    let event = Event::new("order.placed", &7).unwrap().source("shop").id("1").topic(&topic).key("order 7");
    let receipt = Publisher::new("shop", broker.clone()).publish(event).await.unwrap();
    let found = stored(&raw, &receipt).await;
    assert_eq!(found.subject.as_str(), format!("{topic}.16.{}.order.placed", receipt.partition.index));
    let header = |name: &str| found.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(header("Nats-Msg-Id").as_deref(), Some("shop#1"));
    assert_eq!(header("Aqueduct-Key").as_deref(), Some("order 7"));
    assert_eq!(header("ce-type").as_deref(), Some("order.placed"));
    assert_eq!(found.payload, "7");
}

#[tokio::test]
async fn values_that_no_header_can_have_are_encoded() {
    let ((broker, topic), raw) = (declared().await, raw().await);
    let mut sent = message(&topic, "a\r\nb", "x");
    sent.headers.add("Repeats", "1");
    sent.headers.add("Repeats", " 2");
    sent.headers.add("Nats-Rollup", "all");
    let receipt = publish(&broker, sent).await.unwrap();
    // The client keeps only the last of repeated headers when it reads in the other way.
    let found = raw.get_stream(topic.as_str()).await.unwrap().direct_get(receipt.position.0).await.unwrap();
    assert_eq!(found.headers.get("Aqueduct-Key").unwrap().as_str(), "%:%61%0D%0A%62");
    let repeats: Vec<_> = found.headers.get_all("Repeats").map(|value| value.as_str().to_owned()).collect();
    assert_eq!(repeats, ["1", "%:%20%32"]);
    assert!(found.headers.get("Nats-Rollup").is_none());
    let mut bad = Message::new(&topic, "x");
    bad.headers.add("a:b", "1");
    let error = publish(&broker, bad).await.unwrap_err().to_string();
    assert!(error.contains("a:b") && error.contains("printable"), "{error}");
}

/// A plain publisher's key is a token of its subject; the server's transform puts it where Aqueduct does.
#[tokio::test]
async fn the_server_chooses_the_same_partitions_for_plain_publishers() {
    let ((broker, topic), raw) = (declared().await, raw().await);
    let from = format!("{topic}_plain");
    let transform = SubjectTransform {
        source: format!("{from}.*"),
        destination: format!("{from}.16.{{{{partition(16,1)}}}}.{{{{wildcard(1)}}}}"),
    };
    let config = Config {
        name: from.clone(),
        subjects: vec![format!("{from}.*")],
        subject_transform: Some(transform),
        ..Config::default()
    };
    let plain = raw.create_stream(config).await.unwrap();
    let keys: Vec<String> = (0..400).map(|n| format!("{}-{n}", ["k", "ключ", "ORDER_é", "0"][n % 4])).collect();
    let ours = broker.publish(keys.iter().map(|key| message(&topic, key, "x")).collect()).await;
    let mut partitions = BTreeSet::new();
    for (key, ours) in keys.iter().zip(ours) {
        let ack = raw.publish(format!("{from}.{key}"), "x".into()).await.unwrap().await.unwrap();
        let found = plain.get_raw_message(ack.sequence).await.unwrap();
        let partition = ours.unwrap().partition.index;
        assert_eq!(found.subject.as_str(), format!("{from}.16.{partition}.{key}"));
        partitions.insert(partition);
    }
    assert_eq!(partitions.len(), 16);
}

#[tokio::test]
async fn events_without_a_key_are_spread_by_their_ids() {
    let (broker, topic) = declared().await;
    let messages = (0..200).map(|n| {
        let mut message = Message::new(&topic, "x");
        message.dedup_id = Some(format!("shop#{n}").into());
        message
    });
    let receipts = broker.publish(messages.collect()).await;
    let partitions: BTreeSet<u32> = receipts.into_iter().map(|receipt| receipt.unwrap().partition.index).collect();
    assert_eq!(partitions.len(), 16);
    let one = Message::new(&topic, "x");
    assert!(!publish(&broker, one.clone()).await.unwrap().duplicate, "no id, no repeat");
    assert!(!publish(&broker, one).await.unwrap().duplicate);
}

#[tokio::test]
async fn a_repeat_is_a_success_that_says_so_and_another_body_is_an_error() {
    let ((broker, topic), raw) = (declared().await, raw().await);
    let mut sent = message(&topic, "a", "body");
    sent.dedup_id = Some("shop#1".into());
    let first = publish(&broker, sent.clone()).await.unwrap();
    let mut retried = sent.clone();
    retried.headers.add("traceparent", "another");
    let again = publish(&broker, retried).await.unwrap();
    assert_eq!((first.duplicate, again.duplicate), (false, true));
    assert_eq!((&again.partition, again.position), (&first.partition, first.position));
    sent.body = "another body".into();
    let error = publish(&broker, sent).await.unwrap_err();
    assert!(matches!(&error, BrokerError::IdentityReused { dedup_id } if dedup_id == "shop#1"), "{error}");
    assert_eq!(bodies(&raw, topic.as_str()).await, ["body"]);
}

#[tokio::test]
async fn many_more_than_the_window_are_all_confirmed_in_their_order() {
    let (broker, topic) = (shared().await, topic());
    broker.declare(NatsTopic::new(topic.clone()).partitions(1)).await.unwrap();
    let narrow = NatsOptions::new(nats_url().unwrap()).window(16).partitions(1).connect().await.unwrap();
    let batch = |from: usize| (from..from + 500).map(|n| message(&topic, "a", n.to_string())).collect::<Vec<_>>();
    let (one, two) = tokio::join!(narrow.publish(batch(0)), narrow.publish(batch(500)));
    for receipts in [one, two] {
        let positions: Vec<u64> = receipts.into_iter().map(|receipt| receipt.unwrap().position.0).collect();
        assert!(positions.is_sorted() && positions.len() == 500);
    }
    assert_eq!(bodies(&raw().await, topic.as_str()).await.into_iter().collect::<BTreeSet<_>>().len(), 1_000);
}

#[tokio::test]
async fn a_topic_without_a_stream_is_named() {
    let (broker, topic) = (shared().await, topic());
    let error = publish(&broker, message(&topic, "a", "x")).await.unwrap_err();
    assert!(matches!(&error, BrokerError::NoSuchTopic { topic: t } if *t == topic), "{error}");
    let error = broker.check_topic(&topic).await.unwrap_err();
    assert!(matches!(error, BrokerError::NoSuchTopic { .. }), "{error}");
    let error = publish(&broker, Message::new("no such name", "x")).await.unwrap_err();
    assert!(matches!(error, BrokerError::Topic(_)), "{error}");
}

#[tokio::test]
async fn a_publisher_with_another_number_of_partitions_is_told_both() {
    let (_, topic) = declared().await;
    let other = NatsOptions::new(nats_url().unwrap()).partitions(32).connect().await.unwrap();
    let published = publish(&other, message(&topic, "a", "x")).await.unwrap_err();
    for error in [published, other.check_topic(&topic).await.unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("16 partitions") && text.contains("this program 32") && !error.is_transient(), "{text}");
    }
}

#[tokio::test]
async fn a_message_that_is_too_large_is_refused_alone() {
    let (broker, topic) = declared().await;
    let limit = broker.abilities().message_bytes_max;
    let large = message(&topic, "a", "x".repeat(limit));
    let answers = broker.publish(vec![message(&topic, "a", "1"), large, message(&topic, "a", "2")]).await;
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    assert!(matches!(&answers[1], Err(BrokerError::TooLarge { bytes, limit: l }) if *bytes > limit && *l == limit));
    publish(&broker, message(&topic, "a", "x".repeat(limit - 1))).await.unwrap();
    let mut escaped = message(&topic, "a", "x".repeat(limit - 5_000));
    escaped.headers.add("x", vec![0xff; 4_000]);
    let error = publish(&broker, escaped).await.unwrap_err();
    assert!(matches!(error, BrokerError::TooLarge { .. }), "{error}");
}

#[tokio::test]
async fn a_message_that_is_too_large_for_its_stream_is_refused() {
    let ((broker, topic), raw) = (declared().await, raw().await);
    let mut config = raw.get_stream(topic.as_str()).await.unwrap().cached_info().config.clone();
    config.max_message_size = 1_000;
    raw.update_stream(config).await.unwrap();
    let error = publish(&broker, message(&topic, "a", "x".repeat(2_000))).await.unwrap_err();
    assert!(error.to_string().contains("max_msg_size") && !error.is_transient(), "{error}");
}

#[tokio::test]
async fn a_full_topic_refuses_and_drops_nothing() {
    let (broker, topic) = (shared().await, topic());
    broker.declare(NatsTopic::new(topic.clone()).max_bytes(20_000)).await.unwrap();
    let messages = (0..30).map(|n| message(&topic, "a", format!("{n:05}{}", "x".repeat(1_000))));
    let answers = broker.publish(messages.collect()).await;
    let confirmed = answers.iter().filter(|answer| answer.is_ok()).count();
    assert!((10..20).contains(&confirmed), "{confirmed}");
    let error = answers.into_iter().find_map(Result::err).unwrap();
    assert!(matches!(&error, BrokerError::Full { topic: t } if *t == topic) && error.is_transient(), "{error}");
    assert_eq!(bodies(&raw().await, topic.as_str()).await.len(), confirmed);
}

#[tokio::test]
async fn what_was_expected_is_compared_by_the_server() {
    let (broker, topic) = declared().await;
    let first = publish(&broker, message(&topic, "a", "1")).await.unwrap();
    let stale = broker.publish_expecting(message(&topic, "a", "x"), Expected::Topic(Position(0))).await;
    let error = stale.unwrap_err();
    assert!(error.to_string().contains("since position 0") && !error.is_transient(), "{error}");
    let mut last = first.position;
    for (n, expected) in [Expected::Subject as fn(Position) -> Expected, Expected::Topic].into_iter().enumerate() {
        let mut next = message(&topic, "a", n.to_string());
        next.dedup_id = Some(format!("shop#{n}").into());
        let receipt = broker.publish_expecting(next.clone(), expected(last)).await.unwrap();
        let repeat = broker.publish_expecting(next.clone(), expected(last)).await.unwrap();
        assert_eq!((receipt.duplicate, repeat.duplicate, repeat.position), (false, true, receipt.position));
        next.body = "another".into();
        let error = broker.publish_expecting(next, expected(last)).await.unwrap_err();
        assert!(matches!(error, BrokerError::IdentityReused { .. }), "{error}");
        last = receipt.position;
    }
}

#[tokio::test]
async fn after_a_drain_nothing_is_taken() {
    let (broker, topic) = declared().await;
    let (receipts, drained) =
        tokio::join!(broker.publish((0..100).map(|n| message(&topic, "a", n.to_string())).collect()), broker.drain());
    drained.unwrap();
    let confirmed = receipts.iter().filter(|receipt| receipt.is_ok()).count();
    assert_eq!(bodies(&raw().await, topic.as_str()).await.len(), confirmed);
    let error = publish(&broker, message(&topic, "a", "x")).await.unwrap_err();
    assert!(matches!(error, BrokerError::Closed), "{error}");
    assert!(matches!(broker.check_topic(&topic).await, Err(BrokerError::Closed)));
}

#[tokio::test]
async fn consuming_says_that_it_is_not_built_yet() {
    let (broker, topic) = declared().await;
    let subscription = aqueduct::broker::Subscription::new("mail", vec![topic]);
    let error = broker.join(subscription).await.err().unwrap();
    assert!(error.to_string().contains("not built yet"), "{error}");
}
