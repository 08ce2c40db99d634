//! The broker and the store in memory keep the contracts of their ports.

use std::sync::Arc;
use std::time::Duration;

use aqueduct::Clock;
use aqueduct::broker::memory::LeaseTimes;
use aqueduct::broker::{MemoryBroker, Ownership};
use aqueduct::store::MemoryStore;
use aqueduct::testing::broker_suite::{self, Ground};
use aqueduct::testing::store_suite;

#[tokio::test]
async fn the_memory_store_keeps_the_contract_of_stores() {
    store_suite::run(async |_case| Arc::new(MemoryStore::new()) as _).await;
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
