//! What operators' tools see of the embedded broker and store, and how they act where nobody runs a consumer.

use std::sync::Arc;

use aqueduct::broker::{Broker, Membership, Settle, Start, Subscription};
use aqueduct::sqlite::{Owner, Retention, SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::store::{Action, Command, CommandState, Content, Hold, Op, Query, Row, RowState, Store};
use aqueduct::{Event, Message, Partition, Place, Position, StoreError, Timestamp, Topic};
use tempfile::TempDir;

struct World {
    _folder: TempDir,
    broker: SqliteBroker,
    store: SqliteStore,
}

/// A file whose topics have two partitions.
async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let file = SqliteFile::options(folder.path().join("aqueduct.db")).partitions(2).open().await.unwrap();
    World { _folder: folder, broker: SqliteBroker::new(&file), store: SqliteStore::new(&file) }
}

fn message(key: &str, body: &str) -> Message {
    let mut message = Message::new("orders", body.to_owned());
    message.key = Some(key.to_owned().into());
    message
}

impl World {
    /// Publishes messages one after another, and answers where they are.
    async fn publish(&self, messages: Vec<Message>) -> Vec<(Partition, Position)> {
        let mut places = Vec::new();
        for message in messages {
            let receipt = self.broker.publish(vec![message]).await.remove(0).unwrap();
            places.push((receipt.partition, receipt.position));
        }
        places
    }

    async fn join(&self) -> Arc<dyn Membership> {
        self.broker.join(Subscription::new("mail", vec!["orders".into()])).await.unwrap()
    }

    /// A dead letter that the consumer `mail` has.
    async fn bury(&self, partition: &Partition, position: u64, hold: Hold) {
        let event = Event::raw("order.placed", "1").id(position.to_string()).source("shop").key("k");
        let lane = event.key.as_ref().unwrap().lane();
        let mut row = Row::new(Place::at(position), lane, Content::Event(Arc::new(event)), Timestamp::from_unix_ms(7));
        row.state = RowState::Dead(hold);
        self.store.bury(&"mail".into(), partition, &[row]).await.unwrap();
    }
}

#[tokio::test]
async fn the_status_says_what_there_is_and_who_runs_it() {
    let world = world().await;
    let places = world.publish(vec![message("a", "1"), message("b", "22"), message("a", "3")]).await;
    let status = world.broker.status().await.unwrap();
    assert_eq!(
        status.partitions.iter().map(|p| (p.messages(), p.bytes)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)),
        (3, 7)
    );
    assert!(status.partitions.iter().all(|p| (p.messages() > 0) == p.oldest.is_some() && p.oldest <= p.newest));
    assert!(status.consumers.is_empty());

    let member = world.join().await;
    let (partition, position) = &places[0];
    member.settle(partition, &[Settle::Floor(*position)]).await.unwrap();
    let status = world.broker.status().await.unwrap();
    let mail = &status.consumers[0];
    assert_eq!(mail.consumer, "mail");
    assert!(matches!(mail.owner, Owner::Process { pid, .. } if pid == std::process::id()), "{:?}", mail.owner);
    assert_eq!(mail.floors.iter().map(|floor| floor.lag).sum::<u64>(), 2);

    member.leave().await.unwrap();
    assert_eq!(world.broker.status().await.unwrap().consumers[0].owner, Owner::Nobody);
    world.broker.forget("mail").await.unwrap();
    assert!(world.broker.status().await.unwrap().consumers[0].floors.is_empty());
}

#[tokio::test]
async fn a_reader_leaves_nothing_behind_and_misses_nothing() {
    let world = world().await;
    world.publish((0..5).map(|n| message(&format!("k{n}"), &n.to_string())).collect()).await;
    let bodies = |found: Vec<aqueduct::sqlite::Logged>| {
        found.into_iter().map(|l| String::from_utf8(l.message.body.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    let mut reader = world.broker.read("orders", Start::Beginning).await.unwrap();
    let mut all = bodies(reader.read(100).await.unwrap());
    all.sort();
    assert_eq!(all, ["0", "1", "2", "3", "4"]);
    assert!(reader.read(100).await.unwrap().is_empty());
    let (next, _) = tokio::join!(reader.next(100), world.publish(vec![message("k", "new")]));
    assert_eq!(bodies(next.unwrap()), ["new"]);
    reader.rewind(1);
    assert_eq!(reader.read(100).await.unwrap().len(), 2);
    assert!(world.broker.read("orders", Start::New).await.unwrap().read(100).await.unwrap().is_empty());
    assert!(world.broker.read("missing", Start::New).await.is_err());
    assert!(world.broker.topics().await.unwrap() == [Topic::from("orders")]);
    assert!(world.broker.status().await.unwrap().consumers.is_empty());
}

#[tokio::test]
async fn what_a_purge_would_delete_is_what_it_deletes() {
    let world = world().await;
    let places = world.publish((0..40).map(|n| message(&format!("k{n}"), "x")).collect()).await;
    let topic = Topic::from("orders");
    let sum = |purged: Vec<aqueduct::sqlite::Purged>| purged.iter().map(|p| p.messages).sum::<u64>();
    // A consumer that has read some of one partition holds everything else.
    let member = world.join().await;
    let (partition, position) = &places[20];
    let settled = places.iter().filter(|(p, at)| p == partition && at <= position).count() as u64;
    member.settle(partition, &[Settle::Floor(*position)]).await.unwrap();
    let all = Retention::new().bytes(0);
    assert_eq!(sum(world.broker.would_purge(&topic, all).await.unwrap()), settled);
    assert_eq!(sum(world.broker.would_purge(&topic, all).await.unwrap()), settled);
    assert_eq!(sum(world.broker.purge(&topic, all).await.unwrap()), settled);
    assert_eq!(sum(world.broker.purge(&topic, all).await.unwrap()), 0);
    let some = all.bytes(40).drop_unread();
    let counted = sum(world.broker.would_purge(&topic, some).await.unwrap());
    assert!(counted > 0 && counted < 40 - settled, "{counted}");
    assert_eq!(sum(world.broker.purge(&topic, some).await.unwrap()), counted);
    assert!(world.broker.purge(&"missing".into(), all).await.is_err());
}

#[tokio::test]
async fn the_store_counts_what_it_holds() {
    let world = world().await;
    let partition = Partition { topic: "orders".into(), index: 1 };
    assert!(world.store.shards().await.unwrap().is_empty());
    world.bury(&partition, 3, Hold::Skip).await;
    world.bury(&partition, 5, Hold::Block).await;
    let listed = world.store.browse(&Query::default()).await.unwrap();
    world.store.command(&Command::new(&listed[0], Action::Replay, "ada", "mended")).await.unwrap();
    let shard = world.store.shards().await.unwrap().remove(0);
    assert_eq!((shard.parked, shard.dead, shard.blocking, shard.waiting), (0, 2, 1, 1));
    assert_eq!((shard.partition, shard.oldest), (partition, Some(Timestamp::from_unix_ms(7))));
}

#[tokio::test]
async fn commands_are_given_many_at_once_and_each_is_answered() {
    let world = world().await;
    let partition = Partition { topic: "orders".into(), index: 0 };
    world.bury(&partition, 3, Hold::Skip).await;
    world.bury(&partition, 5, Hold::Skip).await;
    let mut listed = world.store.browse(&Query::default()).await.unwrap();
    listed[0].row.version += 1;
    let commands = listed.iter().map(|row| Command::new(row, Action::Discard, "ada", "old")).collect();
    let answers = world.store.command_all(commands).await.unwrap();
    assert!(matches!(&answers[0], Err(StoreError::Refused(why)) if why.contains("look at it again")), "{answers:?}");
    let given = world.store.commands_on(&listed[1]).await.unwrap();
    assert_eq!(given.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), [*answers[1].as_ref().unwrap()]);
    assert!(world.store.commands_on(&listed[0]).await.unwrap().is_empty());
}

#[tokio::test]
async fn who_stands_in_carries_out_commands_and_an_instance_goes_on() {
    let world = world().await;
    let partition = world.publish(vec![message("k", "1"), message("k", "2")]).await.remove(0).0;
    let member = world.join().await;
    assert!(world.broker.stand_in("mail").await.unwrap().is_none(), "it runs");
    member.settle(&partition, &[Settle::Floor(Position(1))]).await.unwrap();
    member.leave().await.unwrap();
    world.bury(&partition, 1, Hold::Block).await;
    let listed = world.store.browse(&Query::default()).await.unwrap().remove(0);
    let id = world.store.command(&Command::new(&listed, Action::Replay, "ada", "mended")).await.unwrap();

    let stand_in = world.broker.stand_in("mail").await.unwrap().unwrap();
    assert!(world.broker.clone().refuse_to_wait().join(Subscription::new("mail", vec![])).await.is_err());
    let (claim, floor) = stand_in.claim(&partition);
    assert_eq!(floor, Some(Position(1)));
    world.store.take_over(&claim, floor).await.unwrap();
    let now = Timestamp::from_unix_ms(1_000);
    let due = world.store.due(&claim, now, 10).await.unwrap();
    let ops: Vec<Op> = due.commands.iter().map(|(id, _)| Op::Operate { id: *id, refused: None, now }).collect();
    world.store.apply(&claim, &ops).await.unwrap();
    assert_eq!(world.store.command_result(id).await.unwrap(), Some(CommandState::Done { at: now }));
    drop(stand_in);

    // The floor is where it was, and an instance is above all epochs before.
    let lag = world.broker.status().await.unwrap().consumers[0].floors.iter().map(|floor| floor.lag).sum::<u64>();
    assert_eq!(lag, 1);
    let member = world.join().await;
    member.leave().await.unwrap();
    // One that was never started, or is forgotten, holds nothing of the log.
    world.broker.forget("mail").await.unwrap();
    drop(world.broker.stand_in("mail").await.unwrap().unwrap());
    assert!(world.broker.status().await.unwrap().consumers[0].floors.is_empty());
}
