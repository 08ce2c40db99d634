//! Leases in an SQLite file: the suite that every table of leases passes, and consumers that are owned by them.

use std::path::Path;
use std::time::Duration;

use aqueduct::broker::{Arrival, Broker, Lease, Membership, Room, Settle, Subscription};
use aqueduct::sqlite::{SqliteBroker, SqliteFile};
use aqueduct::testing::lease_suite;
use aqueduct::{BrokerError, Clock, Epoch, Message, Partition, Position};

#[tokio::test]
async fn a_file_is_a_table_of_leases() {
    let folder = tempfile::tempdir().unwrap();
    lease_suite::run(async |case| {
        let file = SqliteFile::open(folder.path().join(case)).await.unwrap();
        [&file].into_iter().collect()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_is_opened_three_times_is_one_table_of_leases() {
    let folder = tempfile::tempdir().unwrap();
    lease_suite::run(async |case| {
        let mut files = Vec::new();
        for _ in 0..3 {
            files.push(SqliteFile::options(folder.path().join(case)).relaxed().open().await.unwrap());
        }
        files.iter().collect()
    })
    .await;
}

/// A broker whose consumers are leased in another file, so that who is stopped on the one does not hold the other.
async fn leased(folder: &Path) -> SqliteBroker {
    let [log, leases] = ["aqueduct.db", "leases.db"].map(|name| SqliteFile::options(folder.join(name)).partitions(1));
    let (log, leases) = (log.open().await.unwrap(), leases.open().await.unwrap());
    SqliteBroker::new(&log).lease_in(&leases)
}

fn subscription() -> Subscription {
    Subscription::new("reader", vec!["orders".into()])
}

async fn publish(broker: &SqliteBroker, bodies: &[&'static str]) {
    let messages = bodies.iter().map(|body| Message::new("orders", *body)).collect();
    broker.publish(messages).await.into_iter().for_each(|receipt| drop(receipt.unwrap()));
}

async fn next(member: &dyn Membership) -> Arrival {
    tokio::time::timeout(Duration::from_mins(1), member.next(Room::new(100, &[]))).await.expect("it comes").unwrap()
}

/// The ownership of the one partition, as its member is told.
struct Told {
    epoch: Epoch,
    floor: Option<Position>,
    lease: Lease,
}

async fn assigned(member: &dyn Membership) -> Told {
    match next(member).await {
        Arrival::Assigned { epoch, floor, lease, .. } => Told { epoch, floor, lease },
        other => panic!("{other:?}"),
    }
}

async fn bodies(member: &dyn Membership) -> Vec<String> {
    match next(member).await {
        Arrival::Batch { deliveries, .. } => {
            deliveries.iter().map(|d| String::from_utf8_lossy(&d.message.body).into_owned()).collect()
        }
        other => panic!("{other:?}"),
    }
}

fn partition() -> Partition {
    Partition { topic: "orders".into(), index: 0 }
}

async fn settle(member: &dyn Membership, floor: u64) -> Result<(), BrokerError> {
    member.settle(&partition(), &[Settle::Floor(Position(floor))]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leased_consumer_goes_to_who_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let (one, other) = (leased(folder.path()).await, leased(folder.path()).await);
    // An instance with the lock has had higher epochs than any lease.
    for _ in 0..3 {
        SqliteBroker::new(one.file()).join(subscription()).await.unwrap().leave().await.unwrap();
    }
    publish(&one, &["a", "b"]).await;
    let first = one.join(subscription()).await.unwrap();
    let told = assigned(&*first).await;
    assert!(told.epoch > Epoch(3) && told.lease.holds(&Clock::system()) && !told.lease.is_forever());
    assert_eq!(bodies(&*first).await, ["a", "b"]);
    settle(&*first, 1).await.unwrap();
    let waiting = tokio::spawn(async move { other.join(subscription()).await.unwrap() });
    first.release(&partition(), None).await.unwrap();
    let again = assigned(&*first).await;
    assert!(again.epoch > told.epoch && !waiting.is_finished());
    first.leave().await.unwrap();
    assert!(!again.lease.holds(&Clock::system()));
    let second = waiting.await.unwrap();
    let told = assigned(&*second).await;
    assert_eq!((told.epoch > again.epoch, told.floor), (true, Some(Position(1))));
    assert_eq!(bodies(&*second).await, ["b"]);
    second.leave().await.unwrap();
}

#[test]
fn who_was_stopped_for_longer_than_its_lease_finds_its_consumer_another_s() {
    let folder = tempfile::tempdir().unwrap();
    // Whoever's runtime nobody drives is stopped.
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (stopped, running) = (runtime(), runtime());
    let (first, old) = stopped.block_on(async {
        let broker = leased(folder.path()).await;
        publish(&broker, &["a", "b"]).await;
        let member = broker.join(subscription()).await.unwrap();
        let told = assigned(&*member).await;
        assert_eq!(bodies(&*member).await, ["a", "b"]);
        (member, told)
    });
    let (second, new) = running.block_on(async {
        let member = leased(folder.path()).await.join(subscription()).await.unwrap();
        assert!(!old.lease.holds(&Clock::system()), "nobody owns it before the lease has lapsed");
        let told = assigned(&*member).await;
        settle(&*member, 1).await.unwrap();
        (member, told)
    });
    assert!(new.epoch > old.epoch && new.lease.holds(&Clock::system()));
    // Its own settle may come before it knows.
    stopped.block_on(async {
        assert!(matches!(settle(&*first, 2).await, Err(BrokerError::Lost { .. })));
        assert!(matches!(next(&*first).await, Arrival::Lost { .. }));
        assert!(!old.lease.holds(&Clock::system()));
    });
    running.block_on(async {
        assert_eq!(bodies(&*second).await, ["a", "b"]);
        settle(&*second, 2).await.unwrap();
        second.leave().await.unwrap();
    });
    stopped.block_on(async {
        let told = assigned(&*first).await;
        assert_eq!((told.epoch > new.epoch, told.floor), (true, Some(Position(2))));
        first.leave().await.unwrap();
    });
}
