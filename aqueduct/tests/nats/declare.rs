//! A declared topic is made, compared, and never changed behind anybody's back.

use std::time::Duration;

use aqueduct::nats::{NatsOptions, NatsTopic};
use aqueduct::{BrokerError, Topic, broker::Broker};
use aqueduct_servers::nats_url;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType};

use crate::fresh::{declared, message, publish, raw, server, shared, topic};

#[tokio::test]
async fn a_topic_is_made_as_declared_and_found_again() {
    let (broker, topic, raw) = (shared().await, topic(), raw().await);
    let hour = Duration::from_hours(1);
    let spec = NatsTopic::new(topic.clone()).partitions(4).max_age(hour).dedup_window(hour).max_bytes(1 << 20);
    broker.declare(spec.clone()).await.unwrap();
    broker.check_topic(&topic).await.unwrap();
    let made = raw.get_stream(topic.as_str()).await.unwrap().cached_info().config.clone();
    assert_eq!(made.subjects, [format!("{topic}.4.*.>")]);
    assert_eq!((made.retention, made.storage), (RetentionPolicy::Limits, StorageType::File));
    assert_eq!((made.max_age, made.duplicate_window, made.max_bytes), (hour, hour, 1 << 20));
    assert_eq!((made.discard, made.num_replicas, made.allow_direct), (DiscardPolicy::New, 1, true));
    assert_eq!(made.metadata["aqueduct.partitions"], "4");
    shared().await.declare(spec).await.unwrap();
    let what_is_not_set_is_not_compared = NatsTopic::new(topic.clone()).partitions(4);
    broker.declare(what_is_not_set_is_not_compared).await.unwrap();
}

#[tokio::test]
async fn many_that_declare_at_once_agree() {
    let topic = topic();
    let brokers = [shared().await, shared().await, shared().await];
    let declare = |n: usize| brokers[n].declare(NatsTopic::new(topic.clone()).max_bytes(1 << 20));
    let (one, two, three) = tokio::join!(declare(0), declare(1), declare(2));
    for done in [one, two, three] {
        done.unwrap();
    }
}

#[tokio::test]
async fn drift_is_named_and_the_stream_left_as_it_is() {
    let ((broker, topic), raw) = (declared().await, raw().await);
    let before = raw.get_stream(topic.as_str()).await.unwrap().cached_info().config.clone();
    let other = NatsTopic::new(topic.clone()).replicas(3).max_age(Duration::from_mins(1)).max_bytes(1 << 20);
    let text = broker.declare(other).await.unwrap_err().to_string();
    for part in [
        "replicas is 1 and was declared as 3",
        "max_age is 0ns",
        "declared as 60s",
        "max_bytes is -1",
        "nats stream edit",
    ] {
        assert!(text.contains(part), "{text}");
    }
    let text = broker.declare(NatsTopic::new(topic.clone()).partitions(8)).await.unwrap_err().to_string();
    assert!(text.contains("16 partitions") && text.contains("this program 8"), "{text}");
    assert_eq!(raw.get_stream(topic.as_str()).await.unwrap().cached_info().config, before);
    publish(&broker, message(&topic, "a", "the broker still knows 16")).await.unwrap();
}

#[tokio::test]
async fn a_stream_of_somebody_else_is_refused() {
    let (broker, topic, raw) = (shared().await, topic(), raw().await);
    raw.create_stream(Config { name: topic.to_string(), ..Config::default() }).await.unwrap();
    for error in [broker.declare(topic.clone()).await.unwrap_err(), broker.check_topic(&topic).await.unwrap_err()] {
        let text = error.to_string();
        assert!(text.contains("was not made by") && text.contains(&format!("{topic}.16.*.>")), "{text}");
    }
    let inside = Topic::from(format!("{topic}.events"));
    let config = Config { name: format!("{topic}_all"), subjects: vec![format!("{topic}.>")], ..Config::default() };
    raw.create_stream(config).await.unwrap();
    let text = broker.declare(inside.clone()).await.unwrap_err().to_string();
    assert!(text.contains("another stream has some of them") && text.contains("nats stream find"), "{text}");
    // The other stream takes it, where no consumer of the topic would look.
    let text = publish(&broker, message(&inside, "a", "x")).await.unwrap_err().to_string();
    assert!(text.contains(&format!("{topic}_all")), "{text}");
}

#[tokio::test]
async fn a_layout_of_a_newer_version_is_refused_with_both_numbers() {
    let ((broker, topic), raw) = (declared().await, raw().await);
    let mut config = raw.get_stream(topic.as_str()).await.unwrap().cached_info().config.clone();
    config.metadata.insert("aqueduct.layout".into(), "2".into());
    raw.update_stream(config).await.unwrap();
    let text = broker.check_topic(&topic).await.unwrap_err().to_string();
    assert!(text.contains("layout 2") && text.contains("knows 1"), "{text}");
}

#[tokio::test]
async fn a_topic_with_dots_is_a_stream_without() {
    let (broker, topic) = (shared().await, Topic::from(format!("{}.eu", topic())));
    broker.declare(topic.clone()).await.unwrap();
    publish(&broker, message(&topic, "a", "x")).await.unwrap();
    raw().await.get_stream(topic.as_str().replace('.', "~")).await.unwrap();
}

#[tokio::test]
async fn an_account_without_jetstream_is_told_so() {
    let server = server("accounts", "{ A: { users: [{ user: a, password: a }] } }");
    let options = NatsOptions::new(server.url()).user("a", "a").publish_timeout(Duration::from_secs(5));
    let broker = options.connect().await.unwrap();
    let text = broker.declare("orders").await.unwrap_err().to_string();
    assert!(text.contains("JetStream") && text.contains("account"), "{text}");
}

#[tokio::test]
async fn a_custom_prefix_of_the_api_is_used() {
    let options =
        NatsOptions::new(nats_url().unwrap()).api_prefix("elsewhere.API").publish_timeout(Duration::from_secs(1));
    let error = options.connect().await.unwrap().check_topic(&"orders".into()).await.unwrap_err();
    assert!(matches!(&error, BrokerError::Unavailable(_)) && error.to_string().contains("elsewhere.API"), "{error}");
}
