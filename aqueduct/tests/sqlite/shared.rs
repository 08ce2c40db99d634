//! What publishers and settles share, so that nobody suffers from another: from its runtime, its mistakes or its size.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use aqueduct::broker::{Arrival, Broker, Receipt, Room, Subscription};
use aqueduct::sqlite::{Retention, SqliteBroker, SqliteFile};
use aqueduct::{BrokerError, Message, Position};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::store::run;

const LONG: Duration = Duration::from_mins(1);

type Publish<'a> = Pin<Box<dyn Future<Output = Vec<Result<Receipt, BrokerError>>> + Send + 'a>>;

async fn fresh() -> (TempDir, SqliteBroker) {
    let folder = tempfile::tempdir().unwrap();
    let file = SqliteFile::options(folder.path().join("aqueduct.db")).partitions(1).relaxed().open().await.unwrap();
    (folder, SqliteBroker::new(&file))
}

fn message(topic: &str, id: &str) -> Message {
    let mut message = Message::new(topic, id.to_owned());
    (message.key, message.dedup_id) = (Some("k".into()), Some(id.to_owned().into()));
    message
}

fn runtime(threads: bool) -> Runtime {
    let mut builder = if threads {
        tokio::runtime::Builder::new_multi_thread()
    } else {
        tokio::runtime::Builder::new_current_thread()
    };
    builder.enable_all().build().unwrap()
}

/// Asks once and does not wait.
fn poll_once(publish: &mut Publish<'_>) {
    let asked = publish.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
    assert!(asked.is_pending());
}

#[test]
fn a_publisher_that_goes_with_its_runtime_or_has_none_holds_nobody_up() {
    let main = runtime(true);
    let (_folder, broker) = main.block_on(fresh());
    let side = runtime(false);
    side.block_on(async { poll_once(&mut broker.publish(vec![message("t", "gone")])) });
    drop(side);
    // Nothing of tokio drives this one either.
    poll_once(&mut broker.publish(vec![message("t", "without")]));
    let published =
        main.block_on(async { tokio::time::timeout(LONG, broker.publish(vec![message("t", "here")])).await });
    assert!(published.expect("it hangs").remove(0).is_ok());
}

#[test]
fn publishers_are_told_when_the_files_runtime_has_ended() {
    let main = runtime(false);
    let (_folder, broker) = main.block_on(fresh());
    let side = runtime(false);
    let mut waiting = broker.publish(vec![message("t", "1")]);
    poll_once(&mut waiting);
    drop(main);
    for publish in [waiting, broker.publish(vec![message("t", "2")])] {
        let answers = side.block_on(async { tokio::time::timeout(LONG, publish).await });
        assert!(matches!(answers.expect("it hangs")[..], [Err(_)]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_one_message_hurts_no_other_and_moves_none() {
    for _ in 0..10 {
        let (folder, broker) = fresh().await;
        for topic in ["bad", "t"] {
            broker.publish(vec![message(topic, "first")]).await.remove(0).unwrap();
        }
        let path = folder.path().join("aqueduct.db");
        run(&path, "update aq_log set content = zeroblob(20) where topic = 1").await;
        run(&path, "update aq_partitions set seal = 0 where topic = 1").await;
        let numbers: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let mut all: Vec<Publish<'_>> = vec![broker.publish(vec![message("bad", "first")])];
        all.extend(numbers.iter().map(|id| broker.publish(vec![message("t", id), message("t", "first")])));
        let mut answers = join_all(all).await.into_iter();
        let error = answers.next().unwrap().remove(0).unwrap_err();
        assert!(error.to_string().contains("damaged") || error.to_string().contains("changed by itself"), "{error}");
        let positions = answers.map(|answers| {
            let [new, repeat] = &answers[..] else { panic!("{answers:?}") };
            assert!(repeat.as_ref().unwrap().duplicate);
            new.as_ref().unwrap().position
        });
        let expected: Vec<Position> = (2..22).map(Position).collect();
        assert_eq!(positions.collect::<Vec<_>>(), expected, "in the order in which they were published");
    }
}

async fn join_all<T>(futures: Vec<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> Vec<T> {
    let mut all: Vec<_> = futures.into_iter().map(|future| (future, None)).collect();
    std::future::poll_fn(|cx| {
        for (future, found) in all.iter_mut().filter(|(_, found)| found.is_none()) {
            if let Poll::Ready(value) = future.as_mut().poll(cx) {
                *found = Some(value);
            }
        }
        if all.iter().all(|(_, found)| found.is_some()) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    all.into_iter().filter_map(|(_, found)| found).collect()
}

#[tokio::test]
async fn an_identity_whose_batch_is_damaged_fails_alone() {
    let (folder, broker) = fresh().await;
    broker.publish(vec![message("t", "1")]).await.remove(0).unwrap();
    run(&folder.path().join("aqueduct.db"), "update aq_log set content = zeroblob(20)").await;
    let answers = broker.publish(vec![message("t", "2"), message("t", "1"), message("t", "3")]).await;
    let [Ok(_), Err(error), Ok(_)] = &answers[..] else { panic!("{answers:?}") };
    assert!(error.to_string().contains("damaged"), "{error}");
}

#[tokio::test]
async fn damage_is_deleted_with_what_is_around_it_and_counts_no_more() {
    let (folder, broker) = fresh().await;
    let path = folder.path().join("aqueduct.db");
    let large = |n: usize| Message { body: vec![1; 30_000].into(), ..message("t", &n.to_string()) };
    for n in 0..70 {
        broker.publish(vec![large(n)]).await.remove(0).unwrap();
    }
    // More than are deleted at once.
    run(&path, "update aq_log set content = zeroblob(20) where last <= 60").await;
    broker.delete_now(Retention::new().bytes(0)).await.unwrap();
    let left = "select (select count(*) from aq_log) * 1000000 + sum(bytes) from aq_partitions";
    let mut connection = crate::store::other(&path).await;
    let count: i64 = sqlx::query_scalar(left).fetch_one(&mut connection).await.unwrap();
    assert_eq!(count, 0);
    for n in 0..5 {
        broker.publish(vec![message("t", &format!("small {n}"))]).await.remove(0).unwrap();
    }
    broker.delete_now(Retention::new().bytes(200_000)).await.unwrap();
    let count: i64 = sqlx::query_scalar("select sum(count) from aq_log").fetch_one(&mut connection).await.unwrap();
    assert_eq!(count, 5);
}

#[tokio::test]
async fn everything_before_damage_is_delivered() {
    let (folder, broker) = fresh().await;
    for n in 0..60 {
        broker.publish(vec![message("t", &n.to_string())]).await.remove(0).unwrap();
    }
    run(&folder.path().join("aqueduct.db"), "update aq_log set content = zeroblob(20) where last = 51").await;
    let member = broker.join(Subscription::new("reader", vec!["t".into()])).await.unwrap();
    let mut delivered = 0;
    let why = loop {
        match member.next(Room::new(1_000, &[])).await.unwrap() {
            Arrival::Batch { deliveries, .. } => delivered += deliveries.len(),
            Arrival::Stopped { why, .. } => break why,
            _ => {}
        }
    };
    assert!(delivered == 50 && why.contains("t/0:51"), "{delivered}: {why}");
}
