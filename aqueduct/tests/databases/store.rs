//! The store keeps the contract of its port on every database.

use std::sync::Arc;

use aqueduct::sql::SqlStore;
use aqueduct::testing::store_suite;

use proptest::prelude::*;

use crate::{fresh, store_model};

#[tokio::test(flavor = "multi_thread")]
async fn postgres_keeps_the_contract_of_stores() {
    store_suite::run(async |_| Arc::new(SqlStore::new(&fresh::postgres().await)) as _).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn mysql_keeps_the_contract_of_stores() {
    store_suite::run(async |_| Arc::new(SqlStore::new(&fresh::mysql().await)) as _).await;
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations_leaves_them_as_it_leaves_the_model(steps in store_model::steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            store_model::compare(&SqlStore::new(&fresh::postgres().await), steps.clone()).await?;
            store_model::compare(&SqlStore::new(&fresh::mysql().await), steps).await
        })?;
    }
}
