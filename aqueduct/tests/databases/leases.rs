//! The table of leases keeps the contract of its port on every database.

use aqueduct::sql::ServerDatabase;
use aqueduct::testing::lease_suite;

use crate::fresh::{TestDatabase, prefix};

async fn it_keeps_the_contract_of_tables_of_leases<DB: TestDatabase>() {
    lease_suite::run(async |_| {
        let prefix = prefix();
        let open = || async { DB::options().prefix(prefix.clone()).connect().await.unwrap() };
        let two: [ServerDatabase<DB>; 2] = [open().await, open().await];
        two.iter().collect()
    })
    .await;
}

crate::fresh::on_servers!(it_keeps_the_contract_of_tables_of_leases);
