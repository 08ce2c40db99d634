//! The embedded broker: the suite that every broker passes, and what is its own.

use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{Arrival, Broker, Membership, Room, Settle, Start, Subscription};
use aqueduct::sqlite::{Retention, SqliteBroker, SqliteFile, SqliteOptions};
use aqueduct::testing::broker_suite::{self, Ground};
use aqueduct::{BrokerError, Message, Partition, Position, Topic};
use tempfile::TempDir;

/// A broker on a file of its own; the folder goes with the test.
async fn fresh() -> (TempDir, SqliteBroker) {
    with(|options| options).await
}

async fn with(set: impl FnOnce(SqliteOptions) -> SqliteOptions) -> (TempDir, SqliteBroker) {
    let folder = tempfile::tempdir().unwrap();
    let file = set(SqliteFile::options(folder.path().join("aqueduct.db"))).open().await.unwrap();
    (folder, SqliteBroker::new(&file))
}

async fn ground(case: &'static str, folders: &std::cell::RefCell<Vec<TempDir>>) -> Ground {
    let (folder, broker) = fresh().await;
    folders.borrow_mut().push(folder);
    Ground::new(Arc::new(broker), case, case)
}

#[tokio::test]
async fn it_passes_the_suite() {
    let folders = std::cell::RefCell::default();
    broker_suite::run(async |case| ground(case, &folders).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_passes_the_suite_on_several_threads_with_topics_that_must_exist() {
    let folders = std::cell::RefCell::<Vec<TempDir>>::default();
    broker_suite::run(async |case| {
        let (folder, broker) = with(SqliteOptions::require_topics).await;
        folders.borrow_mut().push(folder);
        broker.declare(case).await.unwrap();
        let mut ground = Ground::new(Arc::new(broker), case, case);
        ground.missing = Some("missing".into());
        ground
    })
    .await;
}

fn message(topic: &str, key: &str, body: impl Into<bytes::Bytes>) -> Message {
    let mut message = Message::new(topic, body);
    message.key = Some(key.to_owned().into());
    message
}

async fn publish(broker: &SqliteBroker, messages: Vec<Message>) {
    broker.publish(messages).await.into_iter().for_each(|receipt| drop(receipt.unwrap()));
}

async fn join(broker: &SqliteBroker, topics: &[&str]) -> Arc<dyn Membership> {
    join_from(broker, topics, Start::Beginning).await
}

async fn join_from(broker: &SqliteBroker, topics: &[&str], start: Start) -> Arc<dyn Membership> {
    let mut subscription = Subscription::new("reader", topics.iter().map(|topic| Topic::from(*topic)).collect());
    subscription.start = start;
    broker.join(subscription).await.unwrap()
}

/// The next so many bodies, in the order in which they come.
async fn bodies(member: &dyn Membership, count: usize) -> Vec<String> {
    let mut found = Vec::new();
    while found.len() < count {
        let next = member.next(Room::new(1_000, &[]));
        let arrival = tokio::time::timeout(Duration::from_secs(20), next).await.expect("it comes").unwrap();
        if let Arrival::Batch { deliveries, .. } = arrival {
            found.extend(deliveries.iter().map(|d| String::from_utf8_lossy(&d.message.body).into_owned()));
        }
    }
    found
}

#[tokio::test]
async fn a_pattern_joins_topics_that_are_there_and_those_that_come() {
    let (_folder, broker) = fresh().await;
    publish(&broker, vec![message("orders.eu", "k", "1"), message("other", "k", "x")]).await;
    let member = join(&broker, &["orders.*"]).await;
    assert_eq!(bodies(&*member, 1).await, ["1"]);
    publish(&broker, vec![message("orders.us", "k", "2"), message("orders.us.west", "k", "y")]).await;
    assert_eq!(bodies(&*member, 1).await, ["2"]);
    publish(&broker, vec![message("orders.eu", "k", "3")]).await;
    assert_eq!(bodies(&*member, 1).await, ["3"]);
    let refused = broker.publish(vec![message("orders.*", "k", "4")]).await.remove(0);
    assert!(matches!(&refused, Err(BrokerError::Refused(why)) if why.contains("without `*`")), "{refused:?}");
}

#[tokio::test]
async fn it_names_the_topics_there_are() {
    let (_folder, broker) = fresh().await;
    assert!(broker.topics().await.unwrap().is_empty());
    broker.declare("orders").await.unwrap();
    publish(&broker, vec![message("mails", "k", "1")]).await;
    assert_eq!(broker.topics().await.unwrap(), ["orders", "mails"].map(Topic::from));
}

#[tokio::test]
async fn a_consumer_may_start_at_a_time() {
    let (_folder, broker) = with(|options| options.partitions(1)).await;
    publish(&broker, (0..50).map(|n| message("orders", "k", format!("old {n}"))).collect()).await;
    let mut time = broker.file().path().metadata().unwrap().modified().unwrap().into();
    // Times are whole milliseconds: wait for the next one by looking at what is stored.
    loop {
        let receipt = broker.publish(vec![message("orders", "k", "probe")]).await.remove(0).unwrap();
        let reader = join_from(&broker, &["orders"], Start::Position(receipt.position)).await;
        let Some(stored) = stored_at(&*reader).await else { continue };
        reader.leave().await.unwrap();
        broker.forget("reader").await.unwrap();
        if stored > time {
            time = stored;
            break;
        }
    }
    publish(&broker, vec![message("orders", "k", "new")]).await;
    let member = join_from(&broker, &["orders"], Start::Time(time)).await;
    let found = bodies(&*member, 2).await;
    assert_eq!(found, ["probe", "new"]);
}

async fn stored_at(member: &dyn Membership) -> Option<aqueduct::Timestamp> {
    loop {
        if let Arrival::Batch { deliveries, .. } = member.next(Room::new(1, &[])).await.unwrap() {
            return deliveries[0].message.stored_at;
        }
    }
}

#[tokio::test]
async fn retention_keeps_what_a_consumer_has_not_settled_unless_told() {
    let (_folder, broker) = with(|options| options.partitions(1)).await;
    publish(&broker, (0..1_200).map(|n| message("orders", "k", format!("{n:0>1000}"))).collect()).await;
    let member = join(&broker, &["orders"]).await;
    bodies(&*member, 1_200).await;
    let partition = Partition { topic: "orders".into(), index: 0 };
    member.settle(&partition, &[Settle::Floor(Position(700))]).await.unwrap();
    member.leave().await.unwrap();
    let keep = Retention::new().bytes(100_000);
    broker.delete_now(keep).await.unwrap();
    let member = join(&broker, &["orders"]).await;
    assert_eq!(bodies(&*member, 500).await[0], format!("{:0>1000}", 700), "from the first that was not settled");
    member.leave().await.unwrap();
    broker.delete_now(keep.drop_unread()).await.unwrap();
    let member = join(&broker, &["orders"]).await;
    let left = bodies(&*member, 50).await;
    assert!(left[0] > format!("{:0>1000}", 1_050), "the oldest went first: {}", left[0].trim_start_matches('0'));
    assert_eq!(broker.publish(vec![message("orders", "k", "x")]).await.remove(0).unwrap().position, Position(1_201));
}

#[tokio::test]
async fn what_is_published_twice_is_there_once_after_any_time_and_restart() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aqueduct.db");
    let sent: Vec<Message> = (0..500)
        .map(|n| {
            let mut message = message("orders", &format!("key {}", n % 7), n.to_string());
            message.dedup_id = Some(format!("shop#{n}").into());
            message
        })
        .collect();
    let first = SqliteBroker::open(&path).await.unwrap();
    publish(&first, sent[..300].to_vec()).await;
    let again = SqliteBroker::open(&path).await.unwrap();
    let receipts = again.publish(sent.clone()).await;
    let duplicates = receipts.iter().map(|receipt| receipt.as_ref().unwrap().duplicate);
    assert_eq!(duplicates.collect::<Vec<_>>(), (0..500).map(|n| n < 300).collect::<Vec<_>>());
    let member = join(&again, &["orders"]).await;
    let mut found: Vec<usize> = bodies(&*member, 500).await.iter().map(|body| body.parse().unwrap()).collect();
    found.sort_unstable();
    assert_eq!(found, (0..500).collect::<Vec<_>>());
    let mut reused = sent[3].clone();
    reused.body = "another".into();
    let answers = again.publish(vec![reused, message("orders", "k", "fresh")]).await;
    assert!(matches!(&answers[0], Err(BrokerError::IdentityReused { dedup_id }) if dedup_id == "shop#3"));
    assert!(!answers[1].as_ref().unwrap().duplicate, "the others of the batch are stored");
}

/// A message on one partition, of a size that depends on its number.
fn sized(n: usize) -> Message {
    let mut message = message("orders", "k", format!("{n} {}", "x".repeat([0, 10, 700, 5_000, 40_000][n * n % 5])));
    message.dedup_id = Some(format!("shop#{n}").into());
    message.headers.add("n", n.to_string());
    message
}

#[tokio::test]
async fn messages_without_a_key_take_turns_among_the_partitions() {
    let (_folder, broker) = with(|options| options.partitions(4).relaxed()).await;
    let mut partitions = Vec::new();
    for count in [3, 3, 1, 1, 4, 2, 6] {
        let receipts = broker.publish(vec![Message::new("orders", "x"); count]).await;
        partitions.extend(receipts.into_iter().map(|receipt| receipt.unwrap().partition.index));
    }
    assert_eq!(partitions, (0..20).map(|n| n % 4).collect::<Vec<u32>>());
}

#[tokio::test]
async fn messages_of_all_sizes_are_read_from_any_position_in_any_portions() {
    const COUNT: usize = 300;
    let (_folder, broker) = with(|options| options.partitions(1).relaxed()).await;
    let mut from = 0;
    // Appends of one message, of a few, and of more than a batch holds.
    for size in [1, 1, 3, 100, 2, 65, 64, 63, 1] {
        publish(&broker, (from..from + size).map(sized).collect()).await;
        from += size;
    }
    assert_eq!(from, COUNT);
    for (start, portion) in [(1, 1), (2, 7), (3, 64), (50, 65), (105, 1_000), (171, 10), (300, 5)] {
        let member = join_from(&broker, &["orders"], Start::Position(Position(start))).await;
        let mut expected = start;
        while expected <= COUNT as u64 {
            let Arrival::Batch { deliveries, .. } = member.next(Room::new(portion, &[])).await.unwrap() else {
                continue;
            };
            assert!(deliveries.len() <= portion);
            for delivery in deliveries {
                let (found, sent) = (delivery.message, sized(usize::try_from(expected).unwrap() - 1));
                assert_eq!(delivery.ticket.position.0, expected);
                assert!((found.key, found.headers, found.body) == (sent.key, sent.headers, sent.body), "{expected}");
                expected += 1;
            }
        }
        member.leave().await.unwrap();
        broker.forget("reader").await.unwrap();
    }
}

#[tokio::test]
async fn an_identity_is_forgotten_with_its_message_and_not_before() {
    let small = |n: usize| Message { body: n.to_string().into(), ..sized(n) };
    let (_folder, broker) = with(|options| options.partitions(1)).await;
    publish(&broker, (0..10).map(small).collect()).await;
    publish(&broker, (10..20).map(small).collect()).await;
    let duplicates = async |range: std::ops::Range<usize>| {
        let receipts = broker.publish(range.map(small).collect()).await.into_iter().map(Result::unwrap);
        receipts.map(|receipt| receipt.duplicate).collect::<Vec<_>>()
    };
    assert_eq!(duplicates(5..15).await, [true; 10]);
    let member = join(&broker, &["orders"]).await;
    let Arrival::Assigned { partition, .. } = member.next(Room::new(0, &[])).await.unwrap() else { unreachable!() };
    // In the middle of the second batch, which stays as a whole.
    member.settle(&partition, &[Settle::Floor(Position(15))]).await.unwrap();
    member.leave().await.unwrap();
    broker.delete_now(Retention::new().bytes(1)).await.unwrap();
    let expected: Vec<bool> = (0..20).map(|n| n >= 10).collect();
    assert_eq!(duplicates(0..20).await, expected, "what the log holds no more is new");
    assert_eq!(duplicates(0..20).await, [true; 20], "and counts from now on");
    broker.forget("reader").await.unwrap();
    let found = bodies(&*join(&broker, &["orders"]).await, 20).await;
    let numbers = found.iter().map(|body| body.parse::<usize>().unwrap());
    assert_eq!(numbers.collect::<Vec<_>>(), (10..20).chain(0..10).collect::<Vec<_>>());
}

#[tokio::test]
async fn who_is_overtaken_by_another_instance_delivers_nothing_more() {
    let (folder, broker) = with(|options| options.partitions(1)).await;
    publish(&broker, (0..10).map(sized).collect()).await;
    let member = join(&broker, &["orders"]).await;
    let Arrival::Assigned { partition, .. } = member.next(Room::new(0, &[])).await.unwrap() else { unreachable!() };
    bodies(&*member, 1).await;
    // As another instance does, which the lock keeps away unless somebody deletes it.
    crate::store::run(&folder.path().join("aqueduct.db"), "update aq_floors set epoch = epoch + 1").await;
    let lost = member.settle(&partition, &[Settle::Floor(Position(1))]).await;
    assert!(matches!(&lost, Err(BrokerError::Lost { .. })), "{lost:?}");
    let Arrival::Stopped { why, .. } = member.next(Room::new(100, &[])).await.unwrap() else { panic!("it goes on") };
    assert!(why.contains("another instance"), "{why}");
}

#[tokio::test]
async fn repeats_inside_one_append_are_told_from_what_is_new() {
    let (_folder, broker) = with(|options| options.partitions(1)).await;
    publish(&broker, vec![sized(1)]).await;
    let mut other = sized(2);
    other.body = "another".into();
    let answers = broker.publish(vec![sized(2), sized(1), sized(2), other, sized(3)]).await;
    let told: Vec<Option<(u64, bool)>> =
        answers.iter().map(|answer| answer.as_ref().ok().map(|r| (r.position.0, r.duplicate))).collect();
    assert_eq!(told, [Some((2, false)), Some((1, true)), Some((2, true)), None, Some((3, false))]);
    assert!(matches!(&answers[3], Err(BrokerError::IdentityReused { dedup_id }) if dedup_id == "shop#2"));
    let member = join(&broker, &["orders"]).await;
    assert_eq!(bodies(&*member, 3).await.len(), 3);
}

#[tokio::test]
async fn several_handles_write_at_the_same_time_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aqueduct.db");
    let brokers: Vec<SqliteBroker> = {
        let mut opened = Vec::new();
        for _ in 0..4 {
            opened
                .push(SqliteFile::options(&path).relaxed().open().await.map(|file| SqliteBroker::new(&file)).unwrap());
        }
        opened
    };
    let publishers = brokers.iter().enumerate().map(|(who, broker)| async move {
        for n in 0..100 {
            publish(broker, vec![message("orders", &format!("key {who}"), format!("{who} {n:0>3}"))]).await;
        }
    });
    let member = join(&brokers[0], &["orders"]).await;
    let ((), found) = tokio::join!(futures(publishers), bodies(&*member, 400));
    for who in 0..4 {
        let of_key: Vec<_> = found.iter().filter(|body| body.starts_with(&who.to_string())).collect();
        assert!(of_key.len() == 100 && of_key.is_sorted(), "{of_key:?}");
    }
}

async fn futures(all: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut all: Vec<_> = all.map(Box::pin).collect();
    std::future::poll_fn(|cx| {
        all.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if all.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}
