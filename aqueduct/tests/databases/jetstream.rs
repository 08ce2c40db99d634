//! From a transaction through the outbox and NATS JetStream to an effect, and on to what its handler publishes, while services and the
//! server are killed.

use std::collections::{BTreeMap, BTreeSet};
use std::future::IntoFuture;
use std::time::Duration;

use aqueduct::broker::{Arrival, Broker, Room, Subscription};
use aqueduct::nats::{NatsBroker, NatsOptions};
use aqueduct::sql::SqlStore;
use aqueduct::{Consumer, Event, OutboxTable, Relay, Router, Text, Tx};
use aqueduct_servers::{Nats, Options};
use sqlx::Connection as _;
use tokio::runtime::Runtime;

use crate::fresh::{TestDatabase, prefix};
use crate::logs::BOUND;

const KEYS: usize = 20;
const EVENTS: usize = 2_000;

/// One of so many transactions is rolled back.
const ROLLED_BACK: usize = 10;

async fn broker(url: &str) -> NatsBroker {
    let second = Duration::from_secs(1);
    let options = NatsOptions::new(url).partitions(8).ack_timeout(second).publish_timeout(BOUND);
    options.ping_interval(second / 4).connect().await.unwrap()
}

/// A relay and a consumer with transactions, in a runtime of their own that can end at any point.
fn service<DB: TestDatabase>(url: String, prefix: String) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.spawn(async move {
        let home = DB::options().prefix(prefix.clone()).connect().await.unwrap();
        let (broker, store) = (broker(&url).await, SqlStore::new(&home));
        let relay = tokio::spawn(Relay::new(OutboxTable::from(&store), broker.clone()).serve().into_future());
        let handler = move |event: Event, mut tx: Tx<DB>| {
            let prefix = prefix.clone();
            async move {
                let (id, key) = (event.id.as_str(), event.key.as_ref().map_or("", |key| key.as_str()));
                let number = String::from_utf8_lossy(&event.data);
                let row = format!("insert into {prefix}effects (event, lane, counter)");
                DB::run(&mut tx, format!("{row} values ('{id}', '{key}', {number})")).await?;
                let done = Event::raw("order.done", "").id(format!("after {id}")).topic("done").key(key.to_owned());
                tx.publish(done).await.map(drop)
            }
        };
        let router = Router::new().on("order.placed", handler);
        Consumer::new("stock", broker).topics(["orders"]).store(store).serve(router).await.unwrap();
        relay.await.unwrap().unwrap();
    });
    runtime
}

/// The ids in a topic, each time that one is there.
async fn ids(broker: &NatsBroker, topic: &str, count: usize) -> Vec<Text> {
    let membership = broker.join(Subscription::new("reader", vec![topic.into()])).await.unwrap();
    let mut ids = Vec::new();
    while ids.len() < count {
        if let Arrival::Batch { deliveries, .. } = membership.next(Room::new(1_000, &[])).await.unwrap() {
            ids.extend(deliveries.iter().map(|delivery| delivery.message.headers.text("ce-id").unwrap().into()));
        }
    }
    ids
}

async fn from_a_transaction_to_an_effect<DB: TestDatabase>() {
    let (nats, prefix) = (Nats::start(Options::new()).unwrap(), prefix());
    let home = DB::options().prefix(prefix.clone()).connect().await.unwrap();
    let outbox = DB::outbox("shop", &home);
    let mut connection = DB::connect().await;
    // No constraint that would hide a second effect.
    let columns = format!("{}, event varchar(100), lane varchar(100), counter bigint", DB::SERIAL);
    DB::run(&mut connection, format!("create table {prefix}effects ({columns})")).await.unwrap();
    let broker = broker(&nats.url()).await;
    broker.declare("orders").await.unwrap();
    broker.declare("done").await.unwrap();
    let mut committed = BTreeMap::<usize, usize>::new();
    let mut running = service::<DB>(nats.url(), prefix.clone());
    for at in 0..EVENTS {
        let key = at % KEYS;
        let number = committed.get(&key).copied().unwrap_or(0);
        let event = Event::raw("order.placed", number.to_string()).id(at.to_string()).topic("orders");
        let mut tx = connection.begin().await.unwrap();
        DB::publish_all(&outbox, &mut tx, vec![event.key(format!("key {key}"))]).await.unwrap();
        // Not of the same keys each time.
        if (at / KEYS + key).is_multiple_of(ROLLED_BACK) {
            tx.rollback().await.unwrap();
        } else {
            tx.commit().await.unwrap();
            committed.insert(key, number + 1);
        }
        match at * 8 / EVENTS {
            part if at * 8 % EVENTS >= 8 || part == 0 => {}
            part if part % 2 == 1 => {
                running.shutdown_background();
                running = service::<DB>(nats.url(), prefix.clone());
            }
            _ => {
                nats.kill().unwrap();
                nats.start_again().unwrap();
            }
        }
    }
    let count: usize = committed.values().sum();
    let effects = format!("select count(*) from {prefix}effects");
    let all =
        async { while DB::number(&mut connection, effects.clone()).await.unwrap() < i64::try_from(count).unwrap() {} };
    tokio::time::timeout(BOUND, all).await.expect("everything has its effect");
    let done = tokio::time::timeout(BOUND, ids(&broker, "done", count)).await.expect("everything is published");
    running.shutdown_background();
    assert_eq!(done.iter().collect::<BTreeSet<_>>().len(), count, "each effect is followed by one event");
    let mut sum = async |sql: &str| DB::number(&mut connection, sql.replace("aq_", &prefix)).await.unwrap();
    let all = i64::try_from(count).unwrap();
    assert_eq!(sum("select count(*) from aq_effects").await, all);
    assert_eq!(sum("select count(distinct event) from aq_effects").await, all, "once");
    let places = "select counter, row_number() over (partition by lane order by id) as place from aq_effects";
    let misplaced = format!("select count(*) from ({places}) p where counter <> place - 1");
    assert_eq!(sum(&misplaced).await, 0, "in order");
    println!(
        "{}: {count} committed, {} rolled back, {} published for their effects",
        DB::NAME,
        EVENTS - count,
        done.len()
    );
}

mod postgres {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_committed_has_one_effect_whatever_is_killed() {
        super::from_a_transaction_to_an_effect::<aqueduct::postgres::Postgres>().await;
    }
}

mod mysql {
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_committed_has_one_effect_whatever_is_killed() {
        super::from_a_transaction_to_an_effect::<aqueduct::mysql::MySql>().await;
    }
}
