//! A database behind `PgBouncer` in transaction mode: each transaction may have another connection.

use std::sync::Arc;

use aqueduct::Event;
use aqueduct::postgres::{PgDatabase, Postgres};
use aqueduct::sql::SqlStore;
use aqueduct::testing::store_suite;
use aqueduct_servers::{PgBouncer, postgres_database};

use crate::fresh::{postgres_url, prefix};
use crate::logs::logged;
use crate::service::Service;

#[tokio::test(flavor = "multi_thread")]
async fn a_store_behind_a_pooler_keeps_the_contract_of_stores() {
    let (pooler, database) = (PgBouncer::start(&postgres_url()).unwrap(), postgres_database().unwrap());
    let url = pooler.url(database.name());
    store_suite::run(async |_| {
        let options = PgDatabase::options(&url).behind_pooler().prefix(prefix());
        Arc::new(SqlStore::new(&options.connect().await.unwrap())) as _
    })
    .await;
}

/// Thirty handlers on ten connections of the pooler, which is killed in between.
#[test]
fn a_service_behind_a_pooler_loses_nothing_and_does_nothing_twice() {
    logged(async |logs| {
        let (pooler, database) = (PgBouncer::start(&postgres_url()).unwrap(), postgres_database().unwrap());
        let options = PgDatabase::options(pooler.url(database.name())).behind_pooler().handler_connections(30);
        let service = Service::<Postgres>::new(&logs, options, database.url()).await.concurrency(30);
        let service = service.work(Arc::new(|tx, event, _| {
            Box::pin(async move {
                tx.publish(Event::raw("stock.reserved", "").id(event.id.clone()).topic("stock").key("k")).await
            })
        }));
        service.publish(1_500).await;
        let running = service.start().await;
        running.handled(500).await;
        pooler.kill().unwrap();
        pooler.start_again().unwrap();
        service.settle_all(running).await;
        service.check().await;
        assert_eq!(service.number("select count(*) from aq_outbox").await, 1_500);
        assert_eq!(service.attempts(), 1, "{}", logs.text());
        logs.wait_for(&["WARN", &format!("127.0.0.1:{}", pooler.port())]).await;
    });
}
