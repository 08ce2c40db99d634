//! The permissions that a topology prints are enough, and none of them is too much.

use std::collections::BTreeSet;
use std::future::IntoFuture;
use std::time::Duration;

use aqueduct::broker::{Broker, Subscription};
use aqueduct::nats::{NatsBroker, NatsOptions, NatsTopic};
use aqueduct::topology::{Access, NatsDurable, NatsSource, NatsStream, Permissions, Plan, Retention, Topology, Weight};
use aqueduct::{BrokerError, Consumer, Event, Publisher, Router, Topic};
use aqueduct_servers::{Nats, Options};
use async_nats::ConnectOptions;
use async_nats::jetstream::kv::CreateErrorKind;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::fresh::{message, publish};

const LONG: Duration = Duration::from_mins(1);

fn topology() -> Topology {
    Topology::new()
        .topic(NatsTopic::new("orders").partitions(4).plain_subjects("shop.*"))
        .consumer("stock", ["orders"])
        .stream(NatsStream::new("jobs").subjects(["jobs.>"]).retention(Retention::WorkQueue))
        .stream(NatsStream::new("audit").source(NatsSource::new("jobs")))
        .dead_letters(NatsStream::new("dead").subjects(["dead.>"]))
        .durable(NatsDurable::new("jobs", "billing").filter("jobs.paid"))
        .durable(NatsDurable::new("jobs", "mail").filter("jobs.new").filter("jobs.old"))
}

/// A server whose log has what was published, with the user `root`, and `shop` with these permissions.
fn server(permissions: &str) -> Nats {
    let users =
        format!("{{ users: [{{ user: root, password: root }}, {{ user: shop, password: shop, {permissions} }}] }}");
    Nats::start(Options::new().setting("authorization", &users).setting("trace", "true")).unwrap()
}

fn options(server: &Nats, user: &str) -> NatsOptions {
    NatsOptions::new(server.url()).user(user, user).name(user).publish_timeout(Duration::from_secs(20))
}

async fn broker(server: &Nats, user: &str) -> NatsBroker {
    options(server, user).connect().await.unwrap()
}

/// The raw client.
async fn raw(server: &Nats, user: &str) -> Context {
    let options = ConnectOptions::with_user_and_password(user.to_owned(), user.to_owned()).name(user);
    jetstream::new(options.connect(server.url()).await.unwrap())
}

fn permitted(access: &Access) -> Permissions {
    topology().permissions(access, &NatsOptions::new("nats://anywhere")).unwrap()
}

async fn apply(broker: &NatsBroker) {
    topology().plan(broker).await.unwrap().apply(broker).await.unwrap();
}

fn matches(pattern: &str, subject: &str) -> bool {
    let (mut pattern, mut subject) = (pattern.split('.'), subject.split('.'));
    loop {
        match (pattern.next(), subject.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some(p), Some(s)) if p == "*" || p == s => {}
            _ => return false,
        }
    }
}

/// Nothing was refused, and every permission was used.
fn check(server: &Nats, permissions: &Permissions) {
    let log = server.log_tail(1_000_000);
    let violations: Vec<_> = log.lines().filter(|line| line.contains("Violation")).collect();
    assert!(violations.is_empty(), "{violations:#?}");
    let of_shop = log.lines().filter(|line| line.contains(":shop") || line.contains("\"shop"));
    let published = of_shop.filter_map(|line| line.split_once("PUB ")?.1.split(' ').next());
    let published: BTreeSet<&str> = published.collect();
    let unused = |pattern: &&String| !published.iter().any(|subject| matches(pattern, subject));
    let unused: Vec<&String> = permissions.publish().iter().filter(unused).collect();
    assert!(unused.is_empty(), "{unused:?} of {published:#?}");
}

/// An instance of the consumer, until it is stopped.
struct Instance {
    stop: oneshot::Sender<()>,
    serving: JoinHandle<()>,
}

impl Instance {
    fn start(broker: NatsBroker, tell: mpsc::UnboundedSender<String>) -> Self {
        let (stop, stopped) = oneshot::channel::<()>();
        let router = Router::new().on("order.placed", async move |event: Event| {
            drop(tell.send(event.key.map(|key| key.to_string()).unwrap_or_default()));
        });
        let serve = Consumer::new("stock", broker).topics(["orders"]).serve(router);
        let serving = serve.with_graceful_shutdown(async { drop(stopped.await) }).into_future();
        Self { stop, serving: tokio::spawn(async { serving.await.unwrap() }) }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap();
    }
}

async fn handled(told: &mut mpsc::UnboundedReceiver<String>, keys: usize) {
    for _ in 0..keys {
        tokio::time::timeout(LONG, told.recv()).await.expect("it is handled").unwrap();
    }
}

fn order(key: usize) -> Event {
    Event::new("order.placed", &7).unwrap().topic("orders").key(format!("key-{key}"))
}

#[tokio::test]
async fn who_publishes_needs_no_more() {
    let permissions = permitted(&Access::Publish);
    let server = server(&permissions.to_string());
    let (root, shop) = (broker(&server, "root").await, broker(&server, "shop").await);
    apply(&root).await;
    shop.declare(NatsTopic::new("orders").partitions(4)).await.unwrap();
    let publisher = Publisher::new("shop", shop.clone());
    for key in 0..8 {
        publisher.publish(order(key)).await.unwrap();
    }
    let mut sent = message(&"orders".into(), "a", "x");
    sent.dedup_id = Some("shop#1".into());
    publish(&shop, sent.clone()).await.unwrap();
    sent.body = "another".into();
    let reused = publish(&shop, sent).await;
    assert!(matches!(reused, Err(BrokerError::IdentityReused { .. })), "{reused:?}");
    check(&server, &permissions);
    let joined = shop.join(Subscription::new("stock", vec![Topic::from("orders")])).await;
    let text = joined.err().unwrap().to_string();
    assert!(text.contains("no permission for $JS.API.STREAM.INFO.KV_aq_stock"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_consumes_needs_no_more() {
    let permissions = permitted(&Access::Consume("stock".into()));
    let server = server(&permissions.to_string());
    let root = broker(&server, "root").await;
    apply(&root).await;
    // So much that the server asks whoever watches the bucket to say how far it is.
    let store = raw(&server, "root").await.get_key_value("aq_stock").await.unwrap();
    for number in 0..64 {
        store.put(format!("big.{number}"), vec![b'x'; 1 << 16].into()).await.unwrap();
    }
    let publisher = Publisher::new("shop", root.clone());
    let (tell, mut told) = mpsc::unbounded_channel();
    let of_shop = || NatsOptions::partitions(options(&server, "shop"), 4);
    let one = Instance::start(of_shop().connect().await.unwrap(), tell.clone());
    for key in 0..32 {
        publisher.publish(order(key)).await.unwrap();
    }
    handled(&mut told, 32).await;
    server.kill().unwrap();
    server.start_again().unwrap();
    for key in 0..32 {
        publisher.publish(order(key)).await.unwrap();
    }
    handled(&mut told, 32).await;
    let other = Instance::start(of_shop().connect().await.unwrap(), tell);
    one.stop().await;
    for key in 0..32 {
        publisher.publish(order(key)).await.unwrap();
    }
    handled(&mut told, 32).await;
    other.stop().await;
    // What happens only when two make a key at one time, and what sessions leave behind, an hour later.
    let shop = raw(&server, "shop").await;
    let store = shop.get_key_value("aq_stock").await.unwrap();
    let again = store.create("big.0", "x".into()).await.unwrap_err();
    assert_eq!(again.kind(), CreateErrorKind::AlreadyExists);
    store.stream.purge().filter("$KV.aq_stock.none").await.unwrap();
    check(&server, &permissions);
}

#[tokio::test]
async fn who_applies_and_who_verifies_needs_no_more() {
    let permissions = permitted(&Access::Apply);
    let applying = server(&permissions.to_string());
    let shop = broker(&applying, "shop").await;
    apply(&shop).await;
    let raw = raw(&applying, "root").await;
    // Each of them drifts.
    for stream in ["orders", "KV_aq_stock", "jobs", "audit", "dead"] {
        let mut config = raw.get_stream(stream).await.unwrap().cached_info().config.clone();
        (config.allow_rollup, config.subject_transform, config.sources) = (false, None, None);
        if matches!(stream, "jobs" | "dead") {
            config.subjects = vec![stream.to_owned()];
        }
        raw.update_stream(config).await.unwrap();
    }
    apply(&shop).await;
    check(&applying, &permissions);

    let permissions = permitted(&Access::Verify);
    let verifying = server(&permissions.to_string());
    apply(&broker(&verifying, "root").await).await;
    let shop = broker(&verifying, "shop").await;
    let plan = topology().verify(&shop).await.unwrap();
    plan.agreed().unwrap();
    assert!(plan.findings().iter().all(|finding| finding.weight == Weight::Warning), "{plan}");
    check(&verifying, &permissions);
}

/// What could not be seen of an object.
fn unseen<'a>(plan: &'a Plan, object: &str) -> &'a str {
    let finding = plan.findings().iter().find(|found| found.weight == Weight::Unseen && found.object == object);
    &finding.unwrap_or_else(|| panic!("{plan}")).text
}

#[tokio::test]
async fn with_no_right_to_the_api_it_is_verified_who_takes_the_subjects() {
    let server =
        server("permissions { publish { allow: [\"orders.>\", \"shop.*\"] }, subscribe { allow: \"_INBOX.>\" } }");
    let (root, shop) = (broker(&server, "root").await, broker(&server, "shop").await);
    let plan = topology().verify(&shop).await.unwrap();
    let text = plan.agreed().unwrap_err().to_string();
    assert!(text.contains("no stream takes its subject orders.4.*.>"), "{text}");
    apply(&root).await;
    let plan = topology().verify(&shop).await.unwrap();
    plan.agreed().unwrap();
    let text = unseen(&plan, "stream orders");
    assert!(text.contains("no permission for $JS.API.STREAM.INFO.orders"), "{text}");
    assert!(text.contains("it does take orders.4.*.>, shop.*"), "{text}");
    let text = unseen(&plan, "stream dead");
    assert!(text.contains("not known either") && text.contains("no permission for dead.0"), "{text}");
    assert!(unseen(&plan, "durable billing of stream jobs").contains("$JS.API.CONSUMER.INFO.jobs.billing"));
    let text = plan.apply(&shop).await.unwrap_err().to_string();
    assert!(text.contains("nothing was changed") && text.contains("$JS.API.STREAM.INFO.orders"), "{text}");
    let raw = raw(&server, "root").await;
    assert_eq!(raw.get_stream("orders").await.unwrap().cached_info().state.last_sequence, 0, "nothing is stored");
    // Another stream has the subjects now.
    raw.delete_stream("orders").await.unwrap();
    let config =
        Config { name: "thief".into(), subjects: vec!["orders.>".into(), "shop.>".into()], ..Default::default() };
    raw.create_stream(config).await.unwrap();
    let text = topology().verify(&shop).await.unwrap().agreed().unwrap_err().to_string();
    assert!(text.contains("is taken by the stream thief"), "{text}");
}

#[tokio::test]
async fn who_may_not_list_streams_can_apply_all_the_same() {
    let all = permitted(&Access::Apply).to_string().replace("      \"$JS.API.STREAM.LIST\",\n", "");
    let server = server(&all);
    let shop = broker(&server, "shop").await;
    let plan = topology().plan(&shop).await.unwrap();
    assert!(plan.to_string().contains("no permission for $JS.API.STREAM.LIST"), "{plan}");
    plan.apply(&shop).await.unwrap();
}

#[test]
fn permissions_are_written_for_servers_and_for_nsc() {
    let topology = Topology::new().topic("a.b").consumer("mail", ["a.b"]);
    let options = NatsOptions::new("nats://n1").domain("hub").inbox_prefix("mail.inbox").partitions(2);
    let permissions = topology.permissions(&Access::Publish, &options).unwrap();
    assert_eq!(
        permissions.to_string(),
        "permissions {\n  publish {\n    allow: [\n      \"$JS.hub.API.STREAM.INFO.a~b\",\n      \
         \"$JS.hub.API.STREAM.MSG.GET.a~b\",\n      \"a.b.2.*.>\"\n    ]\n  }\n  subscribe {\n    allow: [\n      \
         \"mail.inbox.>\"\n    ]\n  }\n}"
    );
    assert_eq!(
        permissions.nsc("shop"),
        "nsc edit user --name 'shop' --allow-pub '$JS.hub.API.STREAM.INFO.a~b,$JS.hub.API.STREAM.MSG.GET.a~b,a.b.2.*.>' \
         --allow-sub 'mail.inbox.>'"
    );
    let text = topology.permissions(&Access::Consume("post".into()), &options).unwrap_err().to_string();
    assert!(text.contains("no consumer \"post\""), "{text}");
}
