//! The broker and the store in memory keep the contracts of their ports.

use std::sync::Arc;

use aqueduct::store::MemoryStore;
use aqueduct::testing::store_suite;

#[tokio::test]
async fn the_memory_store_keeps_the_contract_of_stores() {
    store_suite::run(async |_case| Arc::new(MemoryStore::new()) as _).await;
}
