//! The broker and the store in memory keep the contracts of their ports.

use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::memory::LeaseTimes;
use aqueduct::broker::{Arrival, Broker, Membership, MemoryBroker, Ownership, Receipt, Room, Settle, Subscription};
use aqueduct::store::{Claim, Content, Late, MemoryStore, Op, Row, RowRef, Store};
use aqueduct::testing::broker_suite::{self, Ground};
use aqueduct::testing::store_suite;
use aqueduct::{BrokerError, Clock, Epoch, Event, Message, Partition, Place, Position, StoreError, Timestamp, Topic};
use proptest::prelude::*;

use crate::store_model;

#[tokio::test]
async fn the_memory_store_keeps_the_contract_of_stores() {
    store_suite::run(async |_case| Arc::new(MemoryStore::new()) as _).await;
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn any_sequence_of_operations_leaves_the_memory_store_as_it_leaves_the_model(steps in store_model::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(store_model::compare(&MemoryStore::new(), steps))?;
    }
}

async fn run(broker: impl Fn() -> MemoryBroker) {
    broker_suite::run(async |case| {
        let broker = broker().require_topics().declare(case);
        let mut ground = Ground::new(Arc::new(broker), case, case);
        (ground.clock, ground.missing) = (Clock::simulated(1), Some("missing".into()));
        ground
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_broker_keeps_the_contract_of_brokers_with_a_floor() {
    run(MemoryBroker::new).await;
    run(|| MemoryBroker::new().partitions(1)).await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_broker_keeps_the_contract_of_brokers_that_settle_one_by_one() {
    run(|| MemoryBroker::new().ownership(Ownership::AckEach)).await;
    run(|| MemoryBroker::new().ownership(Ownership::AckEach).ack_wait(Duration::from_secs(3)).partitions(2)).await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_broker_keeps_the_contract_of_brokers_without_owners() {
    run(|| MemoryBroker::new().ownership(Ownership::Competing)).await;
}

#[tokio::test(start_paused = true)]
async fn the_memory_broker_keeps_the_contract_of_brokers_with_leases() {
    for ownership in [Ownership::Floor, Ownership::AckEach, Ownership::Competing] {
        run(|| MemoryBroker::new().ownership(ownership).leases(LeaseTimes::default())).await;
    }
}

fn orders() -> Topic {
    "orders".into()
}

fn keyed(key: &str, body: &str) -> Message {
    let mut message = Message::new(orders(), body.to_owned());
    message.key = Some(key.to_owned().into());
    message
}

async fn publish(broker: &MemoryBroker, message: Message) -> Result<Receipt, BrokerError> {
    broker.publish(vec![message]).await.remove(0)
}

/// Joins, on the clock.
async fn join(broker: &MemoryBroker, clock: &Clock) -> Arc<dyn Membership> {
    let mut subscription = Subscription::new("billing", vec![orders()]);
    subscription.clock = clock.clone();
    broker.join(subscription).await.unwrap()
}

async fn next(member: &Arc<dyn Membership>) -> Arrival {
    tokio::time::timeout(Duration::from_mins(1), member.next(Room::new(100, &[]))).await.unwrap().unwrap()
}

#[tokio::test]
async fn a_full_store_refuses_what_is_new_and_changes_nothing() {
    let store = MemoryStore::new().rows_max(2);
    let partition = Partition { topic: orders(), index: 0 };
    let claim = Claim { consumer: "billing".into(), partition, epoch: Epoch(1) };
    store.take_over(&claim, None).await.unwrap();
    let row = |position| {
        let event = Event::raw("t", "").key("a");
        let lane = event.key.as_ref().unwrap().lane();
        Row::new(Place::at(position), lane, Content::Event(Arc::new(event)), Timestamp::UNIX_EPOCH)
    };
    store.apply(&claim, &[Op::Put(vec![row(1)])]).await.unwrap();
    let answer = store.apply(&claim, &[Op::Put(vec![row(2), row(3)])]).await;
    assert!(matches!(&answer, Err(StoreError::Unavailable(e)) if e.to_string().contains("rows_max")), "{answer:?}");
    assert_eq!(store.len(), 1);
    store.apply(&claim, &[Op::Put(vec![row(1), row(2)])]).await.expect("what is there takes no room");
    let full = Op::Append { row: row(3), late: Late::Finished };
    assert!(store.apply(&claim, &[full]).await.is_err());
    let named = RowRef { place: Place::at(1), lane: row(1).lane, version: 1 };
    store.apply(&claim, &[Op::Finish(named)]).await.expect("finishing makes room");
    store.apply(&claim, &[Op::Put(vec![row(3)])]).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_full_topic_has_room_again_when_every_consumer_has_passed_its_messages() {
    let clock = Clock::simulated(1);
    let broker = MemoryBroker::new().partitions(1).messages_max(2).clock(clock.clone());
    for body in ["one", "two"] {
        publish(&broker, keyed("a", body)).await.unwrap();
    }
    assert!(matches!(publish(&broker, keyed("a", "three")).await, Err(BrokerError::Full { .. })));
    let member = join(&broker, &clock).await;
    let partition = Partition { topic: orders(), index: 0 };
    while !matches!(next(&member).await, Arrival::Batch { .. }) {}
    assert_eq!((broker.lag("billing"), broker.lag("nobody")), (Some(2), None));
    member.settle(&partition, &[Settle::Floor(Position(1))]).await.unwrap();
    assert_eq!(broker.log(&orders()).iter().map(|(_, at, _)| at.0).collect::<Vec<_>>(), [2]);
    publish(&broker, keyed("a", "three")).await.expect("room for one");
    assert!(matches!(publish(&broker, keyed("a", "four")).await, Err(BrokerError::Full { .. })));
    let settled = broker.wait_settled("billing");
    let finish = async {
        while !matches!(next(&member).await, Arrival::Batch { .. }) {}
        member.settle(&partition, &[Settle::Floor(Position(3))]).await.unwrap();
    };
    tokio::time::timeout(Duration::from_secs(1), async { tokio::join!(settled, finish) }).await.unwrap();
    assert_eq!((broker.lag("billing"), broker.floor("billing", &partition)), (Some(0), Some(Position(3))));
}

#[tokio::test]
async fn an_identity_is_remembered_for_a_bounded_while_and_only_with_its_body() {
    let broker = MemoryBroker::new().partitions(1);
    let identified = |n: usize, body: &str| {
        let mut message = keyed("a", body);
        message.dedup_id = Some(n.to_string().into());
        message
    };
    let receipts = broker.publish((0..65_536).map(|n| identified(n, "x")).collect()).await;
    assert!(receipts.iter().all(|receipt| receipt.as_ref().is_ok_and(|receipt| !receipt.duplicate)));
    assert!(publish(&broker, identified(0, "x")).await.unwrap().duplicate);
    let reused = publish(&broker, identified(0, "y")).await;
    assert!(matches!(&reused, Err(BrokerError::IdentityReused { dedup_id }) if dedup_id == "0"), "{reused:?}");
    publish(&broker, identified(65_536, "x")).await.unwrap();
    assert!(!publish(&broker, identified(0, "x")).await.unwrap().duplicate, "the oldest is forgotten");
    assert!(publish(&broker, identified(2, "x")).await.unwrap().duplicate);
}

#[tokio::test(start_paused = true)]
async fn a_silent_member_is_struck_off_after_its_lease_and_works_again_when_it_is_heard() {
    let clock = Clock::simulated(1);
    let times = LeaseTimes::default();
    let broker = MemoryBroker::new().partitions(1).leases(times).clock(clock.clone());
    publish(&broker, keyed("a", "one")).await.unwrap();
    let silent = join(&broker, &clock).await;
    let Arrival::Assigned { lease, epoch: first, .. } = next(&silent).await else { panic!("no assignment") };
    {
        let beating = silent.heartbeat();
        let ten_seconds = tokio::time::sleep(Duration::from_secs(10));
        tokio::select! { biased; () = beating => panic!("the heartbeat ended"), () = ten_seconds => {} }
    }
    assert!(lease.holds(&clock), "it was renewed for ten seconds");
    let heir = join(&broker, &clock).await;
    let heartbeat = tokio::spawn({
        let heir = heir.clone();
        async move { heir.heartbeat().await }
    });
    let before = clock.boot();
    let Arrival::Assigned { epoch: second, .. } = next(&heir).await else { panic!("no assignment") };
    assert!(clock.boot().since(before) + times.renew >= times.strike_off, "not before it was silent for long");
    assert!(second > first && !lease.holds(&clock));
    assert!(matches!(next(&silent).await, Arrival::Lost { .. }));
    let partition = Partition { topic: orders(), index: 0 };
    let late = silent.settle(&partition, &[Settle::Floor(Position(1))]).await;
    assert!(matches!(late, Err(BrokerError::Lost { .. })), "{late:?}");
    heir.leave().await.unwrap();
    heartbeat.abort();
    let (mut beating, arrival) = (silent.heartbeat(), next(&silent));
    let arrival = tokio::select! { biased; () = &mut beating => panic!("the heartbeat ended"), a = arrival => a };
    assert!(matches!(arrival, Arrival::Assigned { epoch, .. } if epoch > second), "{arrival:?}");
    assert!(!lease.holds(&clock), "the lease of an ownership that was lost is never renewed");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_is_to_be_given_up_brings_nothing_new() {
    let clock = Clock::simulated(1);
    let broker = MemoryBroker::new().partitions(2).clock(clock.clone());
    let old = join(&broker, &clock).await;
    for n in 0..2 {
        let receipt = publish(&broker, Message::new(orders(), "x")).await.unwrap();
        assert_eq!(receipt.partition.index, n, "messages without a key go round");
    }
    let _heir = join(&broker, &clock).await;
    let mut revoked = Vec::new();
    let mut from = Vec::new();
    while let Ok(arrival) = tokio::time::timeout(Duration::from_secs(20), old.next(Room::new(1, &[]))).await {
        match arrival.unwrap() {
            Arrival::Revoking { partition, .. } => revoked.push(partition),
            Arrival::Batch { partition, .. } => from.push(partition),
            _ => {}
        }
    }
    assert_eq!((revoked.len(), from.len()), (1, 1));
    assert_ne!(revoked, from);
}
