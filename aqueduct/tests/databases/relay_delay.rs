//! How long an event takes from its commit to the broker, and what a relay with nothing to do asks of the database.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{Abilities, Broker, Membership, Receipt, Subscription};
use aqueduct::{BoxFuture, BrokerError, Clock, MemoryBroker, Message, Relay, Topic};
use parking_lot::Mutex;
use serde_json::json;

use crate::fresh::TestDatabase;
use crate::relay::Server;
use crate::relay_cases::{Running, Site, WAITING, until};
use crate::relay_worker::{Process, id_of, order, pass};

const EVENTS: usize = 3_000;

/// From one commit to the next.
const PACE: Duration = Duration::from_millis(10);

/// When each event was committed, on the clock that all processes share, in nanoseconds.
async fn write_at_a_pace(site: &impl Site) -> Vec<u64> {
    let (mut committed, clock) = (Vec::with_capacity(EVENTS), Clock::system());
    let mut pace = tokio::time::interval(PACE);
    for n in 0..EVENTS {
        pace.tick().await;
        site.write(vec![order(0).id(n.to_string()).key(format!("key {}", n % 100))]).await;
        committed.push(clock.boot().0);
    }
    until(site, WAITING, 0).await;
    committed
}

fn print(what: &str, committed: &[u64], came: &BTreeMap<usize, u64>) {
    assert_eq!(came.len(), EVENTS);
    let mut took: Vec<u64> = committed.iter().enumerate().map(|(n, at)| came[&n].saturating_sub(*at) / 1_000).collect();
    took.sort_unstable();
    let [median, most, all] = [EVENTS / 2, EVENTS * 99 / 100, EVENTS - 1].map(|at| took[at]);
    println!("{what}: from commit to broker p50 {median} us, p99 {most} us, at most {all} us");
}

/// Writes down when events come.
#[derive(Clone)]
struct Watch {
    inner: MemoryBroker,
    came: Arc<Mutex<BTreeMap<usize, u64>>>,
}

impl Broker for Watch {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        let now = Clock::system().boot().0;
        self.came.lock().extend(messages.iter().map(|message| (id_of(message).parse().unwrap(), now)));
        self.inner.publish(messages)
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.check_topic(topic)
    }

    fn join(
        &self,
        subscription: Subscription,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<dyn Membership>, BrokerError>> + Send + '_>> {
        self.inner.join(subscription)
    }
}

async fn delay<DB: TestDatabase>() {
    let site = Server::<DB>::new().await;
    let watch = Watch { inner: MemoryBroker::new(), came: Arc::default() };
    let relay = Running::start(Relay::new(site.table(), watch.clone()));
    let committed = write_at_a_pace(&site).await;
    relay.stop().await;
    print(&format!("{}, the same process", DB::NAME), &committed, &watch.came.lock());

    let (site, folder) = (Server::<DB>::new().await, tempfile::tempdir().unwrap());
    let mut relay = Process::start::<DB>("relay", &site.prefix, folder.path(), &json!({"times": true}));
    relay.wait_for("@up").await;
    let committed = write_at_a_pace(&site).await;
    let mut came = BTreeMap::new();
    for line in relay.leave().await {
        let Some((at, id)) = line.strip_prefix("@at ").and_then(|rest| rest.split_once(' ')) else { continue };
        came.entry(id.parse().unwrap()).or_insert_with(|| at.parse().unwrap());
    }
    print(&format!("{}, another process", DB::NAME), &committed, &came);
}

/// What the server has done for all its clients.
fn counter(database: &str) -> [&'static str; 2] {
    if database == "MySQL" {
        let sql = "select cast(variable_value as signed) from information_schema.global_status where variable_name = 'questions'";
        return ["statements", sql];
    }
    let sql = "select sum(xact_commit)::bigint from pg_stat_database where datname = current_database()";
    ["transactions", sql]
}

/// What an idle relay asks for, from the server's own counters: nobody else may use it meanwhile.
async fn idle<DB: TestDatabase>() {
    let (site, folder) = (Server::<DB>::new().await, tempfile::tempdir().unwrap());
    let mut relay = Process::start::<DB>("relay", &site.prefix, folder.path(), &json!({}));
    relay.wait_for("@up").await;
    let [what, counter] = counter(DB::NAME);
    let (settle, measured) = (Duration::from_secs(20), Duration::from_mins(2));
    pass(settle).await;
    let before = site.count(counter).await;
    pass(measured).await;
    // What asks is counted too, and beats of two minutes hide it.
    let count = site.count(counter).await - before;
    println!("{}: an idle relay made {count} {what} in {measured:?}", DB::NAME);
    relay.leave().await;
}

crate::fresh::on_servers!(
    #[ignore = "a measurement, to be run alone"]
    delay,
    #[ignore = "a measurement, to be run alone on a server"]
    idle,
);
