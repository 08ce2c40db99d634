//! What happens to databases and their connections, under load: nothing is lost, nothing is twice, and the log says what it was.

use std::sync::Arc;
use std::time::Duration;

use aqueduct::sql::{Isolation, ServerOptions};
use aqueduct_servers::{Database, Options};
use sqlx::Connection as _;
use tokio::sync::watch;

use crate::fresh::{OwnServer, TestDatabase};
use crate::logs::{Logs, logged_on_servers};
use crate::proxy::Proxy;
use crate::service::Service;

/// A service on a server of its own, with a database on it.
pub(crate) async fn on_own<DB: TestDatabase>(logs: &Logs, settings: Options) -> (DB::Own, Database, Service<DB>) {
    let server = DB::Own::start(settings);
    let database = server.database();
    let options = DB::options_for(&database.url()).handler_connections(4);
    let service = Service::<DB>::new(logs, options, database.url()).await;
    (server, database, service)
}

/// A service on the server that all tests share, with a database of its own.
pub(crate) async fn on_shared<DB: TestDatabase>(
    logs: &Logs,
    options: impl FnOnce(ServerOptions<DB>) -> ServerOptions<DB>,
) -> (Database, Service<DB>) {
    let database = DB::shared();
    let service = Service::<DB>::new(logs, options(DB::options_for(&database.url())), database.url()).await;
    (database, service)
}

/// The server ends in the orderly way, and comes back.
async fn restarted<DB: TestDatabase>(logs: Logs) {
    let (server, _database, service) = on_own::<DB>(&logs, Options::new()).await;
    service.publish(2_000).await;
    let running = service.start().await;
    running.handled(300).await;
    server.stop();
    let address = format!("127.0.0.1:{}", server.port());
    logs.wait_for(&["WARN", &address]).await;
    server.start_again();
    service.settle_all(running).await;
    service.check().await;
    assert_eq!(service.attempts(), 1, "an outage spends nothing\n{}", logs.text());
}

/// The server is killed, three times.
pub(crate) async fn outlives_kills<DB: TestDatabase>(server: &DB::Own, service: &Service<DB>) {
    service.publish(2_000).await;
    let running = service.start().await;
    for _ in 0..3 {
        running.handled(running.count() + 200).await;
        server.kill();
        server.start_again();
    }
    service.settle_all(running).await;
    service.check().await;
    assert_eq!(service.attempts(), 1, "an outage spends nothing\n{}", service.logs.text());
}

async fn killed<DB: TestDatabase>(logs: Logs) {
    let (server, _database, service) = on_own::<DB>(&logs, Options::new()).await;
    outlives_kills(&server, &service).await;
    logs.wait_for(&["WARN", &format!("127.0.0.1:{}", server.port())]).await;
}

/// Somebody has raised the fences, and gone: nothing can be committed until the partitions are taken over anew.
async fn fences_raised<DB: TestDatabase>(logs: Logs) {
    let (_database, service) = on_shared::<DB>(&logs, |options| options).await;
    service.publish(1_000).await;
    let running = service.start().await;
    running.handled(200).await;
    service.run("update aq_shards set epoch = epoch + 100").await;
    service.settle_all(running).await;
    service.check().await;
    assert_eq!(service.attempts(), 1, "it is no event's fault\n{}", logs.text());
    logs.wait_for(&["WARN", "a commit was refused", "was taken over under epoch"]).await;
}

/// The connection is cut after a commit was sent: nobody knows what became of it, until it is tried again.
async fn cut_after_commit<DB: TestDatabase>(logs: Logs) {
    let port = outlives_cuts::<DB>(&logs, |service| service, 5).await;
    logs.wait_for(&["WARN", &format!("127.0.0.1:{port}"), "closed the connection"]).await;
}

/// Connections are cut after commits were sent, some at a time; answers the port that they go to.
pub(crate) async fn outlives_cuts<DB: TestDatabase>(
    logs: &Logs,
    set: impl FnOnce(Service<DB>) -> Service<DB>,
    connections: usize,
) -> u16 {
    let server = DB::Own::start(Options::new());
    let database = server.database();
    let proxy = Proxy::to(server.port()).await;
    let url = database.url().replace(&server.port().to_string(), &proxy.port().to_string());
    let service = set(Service::<DB>::new(logs, DB::options_for(&url), database.url()).await);
    service.publish(2_000).await;
    let running = service.start().await;
    for _ in 0..10 {
        running.handled(running.count() + 50).await;
        proxy.cut_commits(connections).await;
    }
    service.settle_all(running).await;
    service.check().await;
    assert_eq!(service.attempts(), 1, "a cut spends nothing\n{}", logs.text());
    proxy.port()
}

/// A statement that takes longer than its attempt may is ended by the database; others go on meanwhile.
async fn a_statement_too_slow<DB: TestDatabase>(logs: Logs) {
    let (_database, service) = on_shared::<DB>(&logs, |options| options).await;
    let service = service.timeout(Duration::from_secs(2)).work(Arc::new(|tx, event, attempt| {
        Box::pin(async move {
            if event.id.as_str() == "event 7" && attempt.number == 1 {
                DB::run(tx, format!("select {}(50)", DB::SLEEP)).await?;
            }
            Ok(())
        })
    }));
    service.publish(500).await;
    let running = service.start().await;
    // All but those behind it in its key.
    running.handled(490).await;
    service.settle_all(running).await;
    service.check().await;
    assert!(service.attempts() > 1, "its attempt was counted");
    logs.wait_for(&["an attempt failed", "position: Position"]).await;
    // Its connection is gone since, and the server has noticed.
    while service.number(DB::SLEEPING).await > 0 {
        tokio::task::yield_now().await;
    }
}

/// Two connections for 32 handlers that want one; and both are held for longer than others wait.
async fn connections_all_in_use<DB: TestDatabase>(logs: Logs) {
    let (_database, service) = on_shared::<DB>(&logs, |options| options.handler_connections(2)).await;
    let (release, held) = watch::channel(false);
    let service = service.concurrency(32).work(Arc::new(move |_, event, _| {
        let mut held = held.clone();
        Box::pin(async move {
            if matches!(event.id.as_str(), "event 0" | "event 1") {
                held.wait_for(|released| *released).await?;
            }
            Ok(())
        })
    }));
    service.publish(500).await;
    let running = service.start().await;
    logs.wait_for(&["WARN", "127.0.0.1:", "all connections for handlers are in use"]).await;
    release.send(true).unwrap();
    service.settle_all(running).await;
    service.check().await;
    assert_eq!(service.attempts(), 1, "to wait for a connection spends nothing\n{}", logs.text());
}

/// Others have all connections that the server allows, for some seconds.
async fn connections_taken_by_others<DB: TestDatabase>(logs: Logs) {
    let (server, database, service) = on_own::<DB>(&logs, Options::new().setting(DB::CONNECTIONS_MAX, "12")).await;
    let mut others = Vec::new();
    while let Ok(other) = DB::connect_to(&database.url()).await {
        others.push(other);
    }
    service.publish(500).await;
    let running = service.start().await;
    let address = format!("127.0.0.1:{}", server.port());
    logs.wait_for(&["WARN", &address, "too many connections"]).await;
    for other in others {
        other.close().await.unwrap();
    }
    service.settle_all(running).await;
    service.check().await;
    assert_eq!(service.attempts(), 1, "it spends nothing\n{}", logs.text());
}

/// Which event it is.
pub(crate) fn number(event: &aqueduct::Event) -> usize {
    event.id.as_str().strip_prefix("event ").unwrap().parse().unwrap()
}

/// Handlers that take the same rows in another order.
async fn deadlocks<DB: TestDatabase>(logs: Logs) {
    let (database, service) = on_shared::<DB>(&logs, |options| options).await;
    DB::find_deadlocks_soon(&database);
    service.run("create table stock (id bigint primary key, free bigint)").await;
    service.run("insert into stock values (0, 0), (1, 0), (2, 0)").await;
    let service = service.work(Arc::new(|tx, event, _| {
        Box::pin(async move {
            let n = number(event);
            for id in [n % 3, (n + 1) % 3] {
                DB::run(tx, format!("update stock set free = free + 1 where id = {id}")).await?;
                tokio::task::yield_now().await;
            }
            Ok(())
        })
    }));
    service.publish(300).await;
    let running = service.start().await;
    service.settle_all(running).await;
    service.check().await;
    assert_eq!(service.number(&format!("select cast(sum(free) as {}) from stock", DB::INTEGER)).await, 600);
    assert_eq!(service.attempts(), 1, "a deadlock spends nothing\n{}", logs.text());
    logs.wait_for(&["WARN", "eadlock"]).await;
}

/// Handlers that read what others write, as if they ran one after another.
async fn serializable<DB: TestDatabase>(logs: Logs) {
    let (_database, service) = on_shared::<DB>(&logs, |options| options.isolation(Isolation::Serializable)).await;
    service.run("create table stock (id bigint primary key, free bigint)").await;
    service.run("insert into stock values (0, 0), (1, 0), (2, 0)").await;
    service.run("create table sums (total bigint)").await;
    let service = service.concurrency(6).work(Arc::new(|tx, event, _| {
        Box::pin(async move {
            let n = number(event);
            let sum = format!("select cast(sum(free) as {}) from stock", DB::INTEGER);
            let total = DB::number(tx, sum).await?;
            tokio::task::yield_now().await;
            DB::run(tx, format!("insert into sums values ({total})")).await?;
            DB::run(tx, format!("update stock set free = free + 1 where id = {}", n % 3)).await?;
            Ok(())
        })
    }));
    service.publish(200).await;
    let running = service.start().await;
    service.settle_all(running).await;
    service.check().await;
    assert_eq!(service.number("select count(distinct total) from sums").await, 200, "each has seen all before it");
    assert_eq!(service.attempts(), 1, "a conflict spends nothing\n{}", logs.text());
    logs.wait_for(&["WARN", "not counted"]).await;
}

logged_on_servers!(
    restarted,
    killed,
    fences_raised,
    cut_after_commit,
    a_statement_too_slow,
    connections_all_in_use,
    connections_taken_by_others,
    deadlocks,
    serializable,
);
