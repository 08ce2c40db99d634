//! Streams that others have made.

use std::sync::Arc;
use std::time::Duration;

use aqueduct::Topic;
use aqueduct::nats::NatsSource;
use aqueduct::testing::broker_suite::{self, Ground};
use async_nats::jetstream::Context;
use async_nats::jetstream::stream::{Config, RetentionPolicy};

use crate::fresh::{raw, shared, topic};

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
        let broker = shared().await.foreign().read(topic.clone(), NatsSource::new(topic.as_str()).ack_wait(SECOND));
        let consumer = format!("{topic}-{case}");
        Ground::new(Arc::new(broker), topic, consumer)
    })
    .await;
}
