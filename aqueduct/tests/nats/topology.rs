//! A topology is planned, applied, verified, and changes nothing that is not declared.

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::time::Duration;

use aqueduct::format::PlainJson;
use aqueduct::nats::{NatsBroker, NatsTopic};
use aqueduct::topology::{Action, NatsDurable, NatsSource, NatsStream, Plan, Retention, Topology, Weight};
use aqueduct::{Consumer, Event, Router};
use aqueduct_servers::{Nats, NatsCluster, Options};
use async_nats::jetstream::Context;
use async_nats::jetstream::response::Response;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::fresh::{message, publish, raw, raw_at, shared, topic};

/// The settings of a stream, all that the server has.
async fn config(raw: &Context, stream: &str) -> Value {
    asked(raw, format!("STREAM.INFO.{stream}"), &json!({})).await["config"].clone()
}

async fn asked(raw: &Context, request: String, body: &Value) -> Value {
    match raw.request(request, body).await.unwrap() {
        Response::Ok(answer) => answer,
        Response::Err { error } => panic!("{error}"),
    }
}

async fn make(raw: &Context, stream: &str, config: Value) {
    let mut config = config;
    config["name"] = stream.into();
    asked(raw, format!("STREAM.CREATE.{stream}"), &config).await;
}

async fn plan(broker: &NatsBroker, topology: &Topology) -> Plan {
    topology.plan(broker).await.unwrap()
}

async fn apply(broker: &NatsBroker, topology: &Topology) {
    let plan = plan(broker, topology).await;
    plan.apply(broker).await.unwrap_or_else(|error| panic!("{error}\n{plan}"));
}

/// What is found of a weight, as lines.
fn found(plan: &Plan, weight: Weight) -> String {
    let findings = plan.findings().iter().filter(|finding| finding.weight == weight);
    findings.map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn what_is_declared_is_made_and_found_again() {
    let (broker, raw, t) = (shared().await, raw().await, topic());
    let (jobs, audit, copy, dead) =
        (format!("{t}_jobs"), format!("{t}_audit"), format!("{t}_copy"), format!("{t}_dead"));
    // Declared before what they take from.
    let topology = Topology::new()
        .stream(NatsStream::new(&audit).source(NatsSource::new(&jobs).filter(format!("{jobs}.paid.>"))))
        .stream(NatsStream::new(format!("{t}_far")).source(NatsSource::new("far").api_prefix("$JS.hub.API")))
        .stream(NatsStream::new(&copy).mirror(NatsSource::new(t.as_str())))
        .stream(NatsStream::new(&jobs).subjects([format!("{jobs}.>")]).retention(Retention::WorkQueue))
        .dead_letters(NatsStream::new(&dead).subjects([format!("{dead}.>")]))
        .durable(NatsDurable::new(&jobs, "billing").filter(format!("{jobs}.paid.>")).ack_wait(Duration::from_secs(9)))
        .topic(NatsTopic::new(t.clone()).partitions(4).max_age(Duration::from_hours(100)))
        .consumer(t.as_str(), [t.clone()]);
    let planned = plan(&broker, &topology).await;
    assert_eq!(planned.steps().len(), 8);
    assert!(planned.steps().iter().all(|step| step.action == Action::Create), "{planned}");
    let text = planned.agreed().unwrap_err().to_string();
    assert!(text.contains(&format!("stream {t} is missing")), "{text}");
    planned.apply(&broker).await.unwrap();
    let again = topology.verify(&broker).await.unwrap();
    assert!(again.steps().is_empty() && again.to_string().contains("nothing to do"), "{again}");
    again.agreed().unwrap();
    assert_eq!(
        config(&raw, &audit).await["sources"],
        json!([{"name": jobs, "filter_subject": format!("{jobs}.paid.>")}])
    );
    assert_eq!(config(&raw, &copy).await["mirror"], json!({"name": t.as_str()}));
    assert_eq!(
        (&config(&raw, &jobs).await["retention"], &config(&raw, &dead).await["discard"]),
        (&json!("workqueue"), &json!("new"))
    );
    let durable = asked(&raw, format!("CONSUMER.INFO.{jobs}.billing"), &json!({})).await;
    assert_eq!(durable["config"]["ack_wait"], json!(9_000_000_000_u64));
    // Publishers and consumers find what they would have made themselves.
    shared().await.declare(NatsTopic::new(t.clone()).partitions(4)).await.unwrap();
    assert_eq!(config(&raw, &format!("KV_aq_{t}")).await["max_msgs_per_subject"], json!(1));
}

#[tokio::test]
async fn an_update_touches_nothing_that_is_not_declared() {
    let (broker, raw, t) = (shared().await, raw().await, topic());
    let stream = t.as_str();
    // The client does not know `allow_batched`.
    let settings = json!({
        "subjects": [format!("{t}.a"), format!("{t}.b")],
        "description": "somebody's",
        "compression": "s2",
        "max_msg_size": 1_000,
        "allow_batched": true,
        "allow_rollup_hdrs": true,
        "max_consumers": 7,
        "metadata": {"owner": "somebody"},
        "republish": {"src": format!("{t}.a"), "dest": format!("{t}_republished")},
        "duplicate_window": 5_000_000_000_u64,
    });
    make(&raw, stream, settings).await;
    let mut before = config(&raw, stream).await;
    let topology =
        Topology::new().stream(NatsStream::new(stream).max_age(Duration::from_hours(1)).setting("max_msgs", "9"));
    let planned = plan(&broker, &topology).await;
    let [step] = planned.steps() else { panic!("{planned}") };
    let fields: Vec<_> = step.changes.iter().map(|change| (change.field.as_str(), change.is.as_str())).collect();
    assert_eq!((step.action, fields), (Action::Update, vec![("max_age", "0ns"), ("max_msgs", "-1")]));
    planned.apply(&broker).await.unwrap();
    before["max_age"] = json!(3_600_000_000_000_u64);
    before["max_msgs"] = json!(9);
    assert_eq!(config(&raw, stream).await, before);
    // A topic takes it over, and leaves the other subjects and metadata.
    apply(&broker, &Topology::new().topic(t.clone())).await;
    let after = config(&raw, stream).await;
    let subjects = json!([format!("{t}.16.*.>"), format!("{t}.a"), format!("{t}.b")]);
    assert_eq!((&after["subjects"], &after["description"]), (&subjects, &before["description"]));
    assert_eq!(
        (&after["metadata"]["owner"], &after["metadata"]["aqueduct.partitions"]),
        (&json!("somebody"), &json!("16"))
    );
    publish(&broker, message(&t, "a", "x")).await.unwrap();
}

#[tokio::test]
async fn a_durable_is_changed_and_keeps_what_is_not_declared() {
    let (broker, raw, t) = (shared().await, raw().await, topic());
    make(&raw, t.as_str(), json!({"subjects": [format!("{t}.>")]})).await;
    let settings = json!({
        "durable_name": "d", "ack_policy": "explicit", "description": "somebody's", "max_deliver": 5,
        "backoff": [1_000, 5_000], "filter_subject": format!("{t}.a"),
    });
    let body = json!({"stream_name": t.as_str(), "config": settings, "action": "create"});
    asked(&raw, format!("CONSUMER.CREATE.{t}.d.{t}.a"), &body).await;
    let durable = NatsDurable::new(t.as_str(), "d").filter(format!("{t}.b")).filter(format!("{t}.c"));
    let durable = durable.ack_wait(Duration::from_secs(30)).setting("backoff", "null");
    apply(&broker, &Topology::new().durable(durable.clone())).await;
    let info = asked(&raw, format!("CONSUMER.INFO.{t}.d"), &json!({})).await;
    let after = &info["config"];
    assert_eq!(after["filter_subjects"], json!([format!("{t}.b"), format!("{t}.c")]));
    assert_eq!((&after["ack_wait"], &after["backoff"]), (&json!(30_000_000_000_u64), &Value::Null));
    assert_eq!((&after["description"], &after["max_deliver"]), (&json!("somebody's"), &json!(5)));
    let refused = found(&plan(&broker, &Topology::new().durable(durable.only_new())).await, Weight::Refused);
    assert!(refused.contains("deliver_policy is all") && refused.contains("nats consumer info"), "{refused}");
}

#[tokio::test]
async fn what_cannot_be_changed_is_refused_with_the_way_out_and_nothing_is_done() {
    let (broker, raw, t) = (shared().await, raw().await, topic());
    let (mirror, other) = (format!("{t}_mirror"), format!("{t}_other"));
    make(&raw, t.as_str(), json!({"subjects": [t.as_str()], "deny_delete": true})).await;
    make(&raw, &mirror, json!({"mirror": {"name": t.as_str()}})).await;
    let named = |stream: &str| NatsStream::new(stream);
    for (stream, parts) in [
        (named(t.as_str()).setting("storage", "\"memory\""), ["storage is file", "as its source"]),
        (named(t.as_str()).retention(Retention::WorkQueue), ["retention is limits", "under another name"]),
        (named(t.as_str()).setting("deny_delete", "false"), ["deny_delete is true", "cannot be taken back"]),
        (named(&mirror).mirror(NatsSource::new(t.as_str()).filter(t.as_str())), ["mirror is", "nats stream rm"]),
    ] {
        let topology =
            Topology::new().stream(stream.replicas(1).max_age(Duration::from_hours(1))).stream(named(&other));
        let before = (config(&raw, t.as_str()).await, config(&raw, &mirror).await);
        let planned = plan(&broker, &topology).await;
        let refused = found(&planned, Weight::Refused);
        assert!(parts.iter().all(|part| refused.contains(part)), "{planned}");
        let text = planned.apply(&broker).await.unwrap_err().to_string();
        assert!(text.contains("nothing was changed") && text.contains(parts[0]), "{text}");
        assert_eq!((config(&raw, t.as_str()).await, config(&raw, &mirror).await), before);
        raw.get_stream(&other).await.unwrap_err();
    }
    // The server says so too.
    let mut settings = config(&raw, t.as_str()).await;
    settings["storage"] = "memory".into();
    let answer: Response<Value> = raw.request(format!("STREAM.UPDATE.{t}"), &settings).await.unwrap();
    assert!(matches!(answer, Response::Err { .. }));
}

#[tokio::test]
async fn overlaps_are_found_before_the_server_is_asked() {
    let (broker, raw, t) = (shared().await, raw().await, topic());
    make(&raw, &format!("{t}_there"), json!({"subjects": [format!("{t}.*.paid")]})).await;
    let stream = |name: &str, subjects: &[&str]| {
        NatsStream::new(format!("{t}_{name}")).subjects(subjects.iter().map(|subject| format!("{t}.{subject}")))
    };
    let topology = Topology::new().stream(stream("a", &["orders.>"])).stream(stream("b", &["x.y", "orders.new"]));
    let refused = found(&plan(&broker, &topology).await, Weight::Refused);
    assert!(
        refused.contains(&format!("its subject {t}.orders.> overlaps {t}.*.paid of the stream {t}_there")),
        "{refused}"
    );
    assert!(
        refused.contains(&format!("its subject {t}.orders.new overlaps {t}.orders.> of the stream {t}_a")),
        "{refused}"
    );
    // Near misses are none.
    let topology =
        Topology::new().stream(stream("a", &["orders.*", "*.paid.>"])).stream(stream("b", &["orders", "orders.*.*"]));
    let refused = found(&plan(&broker, &topology).await, Weight::Refused);
    assert!(refused.contains(&format!("{t}.orders.*.* overlaps")), "{refused}");
    let topology =
        Topology::new().stream(stream("a", &["orders.*", "*.paid.>"])).stream(stream("b", &["orders", "x.*.*"]));
    let refused = found(&plan(&broker, &topology).await, Weight::Refused);
    assert!(refused.contains(&format!("{t}.x.*.* overlaps {t}.*.paid.>")), "{refused}");
    let fine = Topology::new().stream(stream("a", &["orders.*.*", "*.new"])).stream(stream("b", &["orders", "x.*.*"]));
    apply(&broker, &fine).await;
    let text = Topology::new().stream(stream("c", &["a.*", "*.b"])).plan(&broker).await.unwrap_err().to_string();
    assert!(text.contains("overlap, which the server refuses"), "{text}");
}

#[tokio::test]
async fn overlaps_are_found_among_more_streams_than_the_server_lists_at_once() {
    let server = Nats::start(Options::new()).unwrap();
    let (broker, raw) = (NatsBroker::connect(server.url()).await.unwrap(), raw_at(&server.url()).await);
    for number in 0..600 {
        make(&raw, &format!("s{number:03}"), json!({"storage": "memory"})).await;
    }
    let topology = Topology::new().stream(NatsStream::new("mine").subjects(["s000", "s300", "s599"]));
    let refused = found(&plan(&broker, &topology).await, Weight::Refused);
    assert_eq!(refused.lines().count(), 3, "{refused}");
}

#[tokio::test]
async fn on_a_cluster_the_number_of_copies_is_changed() {
    let cluster = NatsCluster::start(&Options::new()).unwrap();
    let broker = NatsBroker::connect(cluster.url()).await.unwrap();
    let topology = |replicas: usize| {
        let stream = |name: &str| NatsStream::new(name).subjects([format!("{name}.>")]).replicas(replicas);
        Topology::new()
            .topic(NatsTopic::new("orders").replicas(replicas))
            .consumer("stock", ["orders"])
            .stream(stream("jobs"))
            .dead_letters(stream("dead"))
            .stream(NatsStream::new("copy").mirror(NatsSource::new("orders")).replicas(replicas))
            .durable(NatsDurable::new("jobs", "billing").filter("jobs.>"))
    };
    for replicas in [1, 3, 1] {
        apply(&broker, &topology(replicas)).await;
        let planned = topology(replicas).verify(&broker).await.unwrap();
        planned.agreed().unwrap();
        let raw = raw_at(&cluster.url()).await;
        for stream in ["orders", "KV_aq_stock", "copy"] {
            assert_eq!(config(&raw, stream).await["num_replicas"], json!(replicas), "{stream}");
        }
        assert_eq!(found(&planned, Weight::Warning).lines().count(), if replicas == 1 { 4 } else { 0 }, "{planned}");
    }
}

#[tokio::test]
async fn a_subject_moves_from_one_stream_to_another() {
    let (broker, t) = (shared().await, topic());
    let stream = |name: &str, subjects: &[&str]| {
        NatsStream::new(format!("{t}_{name}")).subjects(subjects.iter().map(|subject| format!("{t}.{subject}")))
    };
    apply(&broker, &Topology::new().stream(stream("z", &["a", "b"])).stream(stream("y", &["c"]))).await;
    apply(
        &broker,
        &Topology::new().stream(stream("x", &["b"])).stream(stream("y", &["a", "c"])).stream(stream("z", &["d"])),
    )
    .await;
}

#[tokio::test]
async fn what_the_server_takes_and_never_does_is_refused() {
    let (broker, t) = (shared().await, topic());
    let jobs = || NatsStream::new(t.as_str()).subjects([format!("{t}.>")]).retention(Retention::WorkQueue);
    let durable = |name: &str| NatsDurable::new(t.as_str(), name);
    for (topology, part) in [
        (
            Topology::new().stream(NatsStream::new(format!("{t}_m")).mirror(NatsSource::new("nowhere"))),
            "wait for it for ever",
        ),
        (
            Topology::new().stream(jobs().max_age(Duration::from_secs(9)).dedup_window(Duration::from_mins(1))),
            "60s is longer than its max_age of 9s",
        ),
        (Topology::new().durable(durable("d")), "there is no such stream"),
        (
            Topology::new().stream(jobs()).durable(durable("d").filter("elsewhere.>")),
            "matches none of the stream's subjects",
        ),
        (Topology::new().stream(jobs()).durable(durable("d")).durable(durable("e")), "each goes to one durable"),
        (Topology::new().stream(jobs()).durable(durable("d").only_new()), "reads everything"),
    ] {
        let planned = plan(&broker, &topology).await;
        assert!(found(&planned, Weight::Refused).contains(part), "{part}: {planned}");
    }
}

#[tokio::test]
async fn drift_is_an_error_unless_it_is_allowed() {
    let (broker, raw, t) = (shared().await, raw().await, topic());
    let declared =
        || NatsStream::new(t.as_str()).subjects([t.as_str()]).max_age(Duration::from_hours(1)).max_bytes(1 << 20);
    apply(&broker, &Topology::new().stream(declared())).await;
    let mut settings = config(&raw, t.as_str()).await;
    settings["max_age"] = json!(0);
    asked(&raw, format!("STREAM.UPDATE.{t}"), &settings).await;
    let settings = config(&raw, t.as_str()).await;
    let of_topic = NatsTopic::new(format!("{t}_topic")).max_bytes(1 << 20);
    broker.declare(of_topic.clone()).await.unwrap();
    let other = of_topic.max_bytes(1 << 21);
    broker.declare(other.clone()).await.unwrap_err();
    broker.declare(other.allow_drift("max_bytes")).await.unwrap();
    let text = Topology::new().stream(declared()).verify(&broker).await.unwrap().agreed().unwrap_err().to_string();
    assert!(text.contains("max_age is 0ns and was declared as 3600s") && !text.contains("max_bytes"), "{text}");
    let allowed = Topology::new().stream(declared().allow_drift("max_age").max_bytes(1 << 21));
    let planned = plan(&broker, &allowed).await;
    assert!(found(&planned, Weight::Warning).contains("declared as 3600s, which is allowed"), "{planned}");
    planned.apply(&broker).await.unwrap();
    let after = config(&raw, t.as_str()).await;
    assert_eq!((&after["max_age"], &after["max_bytes"]), (&settings["max_age"], &json!(1 << 21)));
    allowed.verify(&broker).await.unwrap().agreed().unwrap();
}

#[tokio::test]
async fn a_plan_whose_ground_has_changed_is_not_applied() {
    let (broker, raw, t) = (shared().await, raw().await, topic());
    apply(&broker, &Topology::new().topic(t.clone())).await;
    let planned = plan(&broker, &Topology::new().topic(NatsTopic::new(t.clone()).max_bytes(1 << 20))).await;
    let mut settings = config(&raw, t.as_str()).await;
    settings["description"] = "changed meanwhile".into();
    asked(&raw, format!("STREAM.UPDATE.{t}"), &settings).await;
    let settings = config(&raw, t.as_str()).await;
    let text = planned.apply(&broker).await.unwrap_err().to_string();
    assert!(text.contains("not as it was when the plan was made"), "{text}");
    assert_eq!(config(&raw, t.as_str()).await, settings);
}

#[tokio::test]
async fn a_topic_keeps_its_partitions() {
    let (broker, t) = (shared().await, topic());
    apply(&broker, &Topology::new().topic(t.clone())).await;
    let planned = plan(&broker, &Topology::new().topic(NatsTopic::new(t.clone()).partitions(8))).await;
    let refused = found(&planned, Weight::Refused);
    assert!(refused.contains("16 partitions") && refused.contains("declare 16 partitions, or a topic"), "{planned}");
}

#[tokio::test]
async fn what_the_server_itself_refuses_counts_what_is_done() {
    let (broker, t) = (shared().await, topic());
    let topology = Topology::new().topic(t.clone()).stream(NatsStream::new(format!("{t}_three")).replicas(3));
    let text = plan(&broker, &topology).await.apply(&broker).await.unwrap_err().to_string();
    assert!(text.contains("1 of 2 steps are done") && text.contains("or run a cluster"), "{text}");
    broker.declare(t).await.unwrap();
}

#[tokio::test]
async fn plain_publishers_meet_ours_in_the_partition_of_their_key() {
    let (broker, raw, t) = (shared().await, raw().await, topic());
    let plain = format!("{t}_plain.eu.*");
    apply(&broker, &Topology::new().topic(NatsTopic::new(t.clone()).plain_subjects(&plain))).await;
    let mut partitions = BTreeSet::new();
    for number in 0..64 {
        let key = format!("key-{number}");
        let ours = publish(&broker, message(&t, &key, "{}")).await.unwrap();
        let theirs = raw.publish(format!("{t}_plain.eu.{key}"), "{}".into()).await.unwrap().await.unwrap();
        let stored = raw.get_stream(t.as_str()).await.unwrap().get_raw_message(theirs.sequence).await.unwrap();
        assert_eq!(stored.subject.as_str(), format!("{t}.16.{}._.{key}", ours.partition.index));
        partitions.insert(ours.partition.index);
    }
    assert!(partitions.len() > 8, "{partitions:?}");
    // Who declares the topic without them still finds it.
    shared().await.declare(t).await.unwrap();
    for (subjects, part) in
        [("a.*.*", "for the key"), ("a.>", "for the key"), ("a..*", "dot"), ("a.16.*.b", "the topic's own")]
    {
        let topology = Topology::new().topic(NatsTopic::new("a").plain_subjects(subjects));
        let text = topology.plan(&broker).await.unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_events_are_handled_in_the_order_of_the_key_in_their_subject() {
    let (broker, raw, t) = (shared().await, raw().await, topic());
    let plain = format!("{t}_plain.*");
    apply(
        &broker,
        &Topology::new().topic(NatsTopic::new(t.clone()).plain_subjects(&plain)).consumer(t.as_str(), [t.clone()]),
    )
    .await;
    for number in 0..30 {
        let subject = format!("{t}_plain.order-{}", number % 3);
        raw.publish(subject, number.to_string().into()).await.unwrap().await.unwrap();
    }
    let (tell, mut told) = mpsc::unbounded_channel();
    let router = Router::new().on(t.as_str(), async move |event: Event| {
        let number: u32 = String::from_utf8_lossy(&event.data).parse().unwrap();
        drop(tell.send((event.key.unwrap().to_string(), number)));
    });
    let serve = Consumer::new(t.as_str(), broker).topics([t.clone()]).format(PlainJson::new()).serve(router);
    let serving = tokio::spawn(serve.into_future());
    let mut last = BTreeMap::new();
    for _ in 0..30 {
        let (key, number) =
            tokio::time::timeout(Duration::from_mins(1), told.recv()).await.expect("it is handled").unwrap();
        assert_eq!(key, format!("order-{}", number % 3));
        assert!(last.insert(key, number).is_none_or(|last| last + 3 == number));
    }
    serving.abort();
}
