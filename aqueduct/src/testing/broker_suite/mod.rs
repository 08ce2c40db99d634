//! What every [`Broker`] must do, sentence by sentence of the port's documentation.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! use std::sync::Arc;
//! use aqueduct::{broker::MemoryBroker, testing::broker_suite::{self, Ground}};
//! broker_suite::run(async |case| Ground::new(Arc::new(MemoryBroker::new()), case, case)).await;
//! # }
//! ```

mod peer;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::broker::{Broker, Ownership, Receipt, Settle, Start, Subscription};
use crate::clock::Clock;
use crate::error::BrokerError;
use crate::message::Message;
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Partition, Position, Text, Topic};
use peer::{Peer, pump};

type Case = (&'static str, fn(Ground) -> BoxFuture<'static, ()>);

const CASES: &[Case] = super::cases![
    publishing_confirms_each_message_in_its_place,
    a_message_arrives_as_it_was_published,
    messages_of_a_key_share_a_partition_and_keep_their_order,
    messages_without_a_key_all_arrive,
    a_repeat_is_recognised,
    a_message_that_is_too_large_is_refused_alone,
    a_topic_that_cannot_be_is_refused,
    without_room_only_ownership_arrives,
    nothing_comes_from_a_paused_partition,
    a_dropped_next_loses_nothing,
    a_full_partition_does_not_starve_the_others,
    a_new_consumer_starts_where_it_asks_to,
    what_is_settled_does_not_come_again,
    what_is_undone_comes_again_to_the_next_owner_in_order,
    what_is_given_back_comes_again_after_its_delay,
    an_unsettled_delivery_comes_again_unless_it_is_extended,
    a_released_partition_comes_back_under_a_higher_epoch,
    members_share_the_work,
    an_owner_that_does_not_give_up_loses_its_partition,
    leaving_hands_over_at_once,
    a_second_instance_waits_for_the_first,
    consumers_do_not_see_each_other,
];

/// What a case runs on.
#[non_exhaustive]
pub struct Ground {
    /// The broker.
    pub broker: Arc<dyn Broker>,
    /// A topic without messages that can be published to. With one partition, cases about sharing are left out.
    pub topic: Topic,
    /// A consumer that has never joined; others are named after it.
    pub consumer: Text,
    /// A topic that does not exist and must be refused; none if the broker creates topics as they come.
    pub missing: Option<Topic>,
    /// The clock of the members. Defaults to the system's.
    pub clock: Clock,
    /// How long the suite waits for anything, longer than the broker takes to give a partition away. Defaults to 60 s.
    pub patience: Duration,
}

impl Ground {
    /// The ground for a case.
    pub fn new(broker: Arc<dyn Broker>, topic: impl Into<Topic>, consumer: impl Into<Text>) -> Self {
        let (topic, consumer) = (topic.into(), consumer.into());
        Self { broker, topic, consumer, missing: None, clock: Clock::system(), patience: Duration::from_mins(1) }
    }

    async fn join(&self) -> Peer {
        self.join_as(&self.consumer, Start::Beginning).await
    }

    async fn join_as(&self, consumer: &Text, start: Start) -> Peer {
        let mut subscription = Subscription::new(consumer, vec![self.topic.clone()]);
        (subscription.start, subscription.clock) = (start, self.clock.clone());
        Peer::new(self.broker.join(subscription).await.unwrap(), self)
    }

    async fn publish(&self, key: &str, body: impl Into<String>) -> Receipt {
        self.publish_message(message(&self.topic, key, body)).await.unwrap()
    }

    async fn publish_message(&self, message: Message) -> Result<Receipt, BrokerError> {
        self.broker.publish(vec![message]).await.remove(0)
    }

    /// Publishes `count` messages to one key, and answers their partition and positions.
    async fn fill(&self, count: u64) -> (Partition, Vec<u64>) {
        let mut positions = Vec::new();
        let mut partition = None;
        for n in 0..count {
            let receipt = self.publish("filled", n.to_string()).await;
            positions.push(receipt.position.0);
            partition = Some(receipt.partition);
        }
        (partition.unwrap(), positions)
    }

    /// One message for each of 64 keys; answers which positions each partition got.
    async fn scatter(&self) -> BTreeMap<Partition, Vec<u64>> {
        let messages = (0..64).map(|n| message(&self.topic, &format!("key-{n}"), n.to_string())).collect();
        let mut found = BTreeMap::<_, Vec<u64>>::new();
        for receipt in self.broker.publish(messages).await {
            let receipt = receipt.unwrap();
            found.entry(receipt.partition).or_default().push(receipt.position.0);
        }
        found
    }

    fn ownership(&self) -> Ownership {
        self.broker.abilities().ownership
    }

    fn has_one_instance(&self) -> bool {
        self.broker.abilities().one_instance
    }

    fn competes(&self) -> bool {
        self.ownership() == Ownership::Competing
    }
}

fn message(topic: &Topic, key: &str, body: impl Into<String>) -> Message {
    let mut message = Message::new(topic, body.into());
    message.key = Some(key.to_owned().into());
    message
}

/// Runs every case, each on a ground of its own. The factory gets the case's name.
pub async fn run(fresh: impl AsyncFn(&'static str) -> Ground) {
    for (name, case) in CASES {
        println!("broker_suite: {name}");
        case(fresh(name).await).await;
    }
}

async fn publishing_confirms_each_message_in_its_place(ground: Ground) {
    let first = ground.publish("a", "0").await;
    let messages = (1..9).map(|n| message(&ground.topic, "a", n.to_string())).collect();
    let mut last = first.position;
    for receipt in ground.broker.publish(messages).await {
        let receipt = receipt.unwrap();
        assert_eq!((&receipt.partition, receipt.duplicate), (&first.partition, false));
        assert!(receipt.position > last, "confirmed in their order: {:?} after {last:?}", receipt.position);
        last = receipt.position;
    }
    assert!(ground.broker.publish(Vec::new()).await.is_empty());
    ground.broker.check_topic(&ground.topic).await.unwrap();
}

async fn a_message_arrives_as_it_was_published(ground: Ground) {
    let mut sent = Message::new(&ground.topic, vec![0, 159, 0xff]);
    sent.key = Some("ключ".into());
    sent.headers.add("Repeats", "1");
    sent.headers.add("Repeats", "2");
    let receipt = ground.publish_message(sent.clone()).await.unwrap();
    let mut peer = ground.join().await;
    peer.take(1).await;
    let (partition, delivery) = &peer.got[0];
    assert_eq!((partition, delivery.ticket.position), (&receipt.partition, receipt.position));
    let came = &delivery.message;
    assert_eq!((&came.topic, came.key(), &came.body), (&sent.topic, sent.key(), &sent.body));
    let values: Vec<_> = came.headers.iter().filter(|(name, _)| *name == "Repeats").map(|(_, v)| v.clone()).collect();
    assert_eq!(values, ["1", "2"]);
    assert!(came.stored_at.is_some());
}

async fn messages_of_a_key_share_a_partition_and_keep_their_order(ground: Ground) {
    let keys = ["a", "b", "c"];
    let mut partitions = BTreeMap::<&str, BTreeSet<Partition>>::new();
    for n in 0..60 {
        for key in keys {
            partitions.entry(key).or_default().insert(ground.publish(key, n.to_string()).await.partition);
        }
    }
    assert!(partitions.values().all(|found| found.len() == 1), "{partitions:?}");
    let mut peer = ground.join().await;
    peer.take(180).await;
    for key in keys {
        let of_key = peer.got.iter().filter(|(_, d)| d.message.key().is_some_and(|k| *k == *key));
        let bodies: Vec<_> = of_key.map(|(_, d)| String::from_utf8_lossy(&d.message.body).into_owned()).collect();
        assert_eq!(bodies, (0..60).map(|n| n.to_string()).collect::<Vec<_>>(), "of key {key}");
    }
}

async fn messages_without_a_key_all_arrive(ground: Ground) {
    let mut sent = BTreeSet::new();
    for n in 0..40 {
        let mut message = Message::new(&ground.topic, n.to_string());
        message.key = (n % 2 == 0).then(Default::default);
        let receipt = ground.publish_message(message).await.unwrap();
        sent.insert((receipt.partition, receipt.position));
    }
    let mut peer = ground.join().await;
    peer.take(40).await;
    assert_eq!(peer.places(), sent);
    assert!(peer.got.iter().all(|(_, delivery)| delivery.message.key().is_none()));
}

async fn a_repeat_is_recognised(ground: Ground) {
    if !ground.broker.abilities().dedup {
        return;
    }
    let mut sent = message(&ground.topic, "a", "body");
    sent.dedup_id = Some("shop#1".into());
    let first = ground.publish_message(sent.clone()).await.unwrap();
    let mut retried = sent.clone();
    retried.headers.add("traceparent", "another");
    let again = ground.broker.publish(vec![sent.clone(), retried]).await;
    for receipt in again {
        let receipt = receipt.unwrap();
        assert!(receipt.duplicate && !first.duplicate);
        assert_eq!((&receipt.partition, receipt.position), (&first.partition, first.position));
    }
    sent.body = "another body".into();
    match ground.publish_message(sent.clone()).await {
        Ok(receipt) => assert!(receipt.duplicate),
        Err(error) => assert!(matches!(error, BrokerError::IdentityReused { .. }), "{error}"),
    }
    sent.dedup_id = Some("shop#2".into());
    assert!(!ground.publish_message(sent).await.unwrap().duplicate);
    let mut peer = ground.join().await;
    peer.take(2).await;
    peer.stays_quiet().await;
}

async fn a_message_that_is_too_large_is_refused_alone(ground: Ground) {
    let limit = ground.broker.abilities().message_bytes_max;
    let [before, after] = ["before", "after"].map(|body| message(&ground.topic, "a", body));
    let answers = ground.broker.publish(vec![before, message(&ground.topic, "a", "x".repeat(limit)), after]).await;
    assert!(answers[0].is_ok() && answers[2].is_ok(), "{answers:?}");
    assert!(matches!(&answers[1], Err(BrokerError::TooLarge { bytes, limit: l }) if *bytes > limit && *l == limit));
    let fits = message(&ground.topic, "a", "x".repeat(limit - 1));
    ground.publish_message(fits).await.unwrap();
}

async fn a_topic_that_cannot_be_is_refused(ground: Ground) {
    let bad = Topic::from("no such name");
    let answer = ground.publish_message(Message::new(&bad, "x")).await;
    assert!(matches!(answer, Err(BrokerError::Topic(_))), "{answer:?}");
    assert!(matches!(ground.broker.check_topic(&bad).await, Err(BrokerError::Topic(_))));
    let Some(missing) = &ground.missing else { return };
    let answer = ground.publish_message(Message::new(missing, "x")).await;
    assert!(matches!(answer, Err(BrokerError::NoSuchTopic { .. })), "{answer:?}");
    assert!(matches!(ground.broker.check_topic(missing).await, Err(BrokerError::NoSuchTopic { .. })));
    let joined = ground.broker.join(Subscription::new(&ground.consumer, vec![missing.clone()])).await;
    assert!(matches!(joined.err(), Some(BrokerError::NoSuchTopic { .. })));
}

async fn without_room_only_ownership_arrives(ground: Ground) {
    let (partition, _) = ground.fill(20).await;
    let mut peer = ground.join().await;
    peer.room = 0;
    pump(&mut [&mut peer], "ownership without room", |peers| peers[0].owned.contains_key(&partition)).await;
    peer.stays_quiet().await;
    peer.room = 3;
    let before = peer.got.len();
    pump(&mut [&mut peer], "deliveries", |peers| peers[0].got.len() > before).await;
    assert!(peer.got.len() - before <= 3, "{} deliveries into a room of 3", peer.got.len() - before);
    peer.room = 100;
    peer.take(20).await;
}

async fn nothing_comes_from_a_paused_partition(ground: Ground) {
    let scattered = ground.scatter().await;
    if scattered.len() < 2 {
        return;
    }
    let (paused, held_back) = scattered.first_key_value().unwrap();
    let mut peer = ground.join().await;
    peer.paused = vec![paused.clone()];
    peer.take(64 - held_back.len()).await;
    peer.stays_quiet().await;
    assert!(peer.got.iter().all(|(partition, _)| partition != paused));
    peer.paused.clear();
    peer.take(64).await;
    assert_eq!(peer.positions(paused), *held_back);
}

async fn a_dropped_next_loses_nothing(ground: Ground) {
    let mut peer = ground.join().await;
    peer.room = 2;
    let mut sent = BTreeSet::new();
    for n in 0..200 {
        let receipt = ground.publish(&format!("key-{}", n % 7), n.to_string()).await;
        sent.insert((receipt.partition, receipt.position));
        for _ in 0..3 {
            peer.poll_next_once().await;
        }
    }
    pump(&mut [&mut peer], "all that was published", |peers| peers[0].places() == sent).await;
    if !ground.competes() {
        for partition in sent.iter().map(|(partition, _)| partition) {
            assert!(peer.positions(partition).is_sorted(), "in order: {:?}", peer.positions(partition));
        }
    }
}

async fn a_full_partition_does_not_starve_the_others(ground: Ground) {
    let (full, _) = ground.fill(600).await;
    let scattered = ground.scatter().await;
    let mut peer = ground.join().await;
    peer.room = 16;
    peer.take(664).await;
    let last_of_full = peer.got.iter().rposition(|(partition, _)| *partition == full).unwrap();
    for partition in scattered.keys() {
        let first = peer.got.iter().position(|(p, _)| p == partition).unwrap();
        assert!(first < last_of_full, "{partition} waited until {full} was empty");
    }
}

async fn a_new_consumer_starts_where_it_asks_to(ground: Ground) {
    let (partition, old) = ground.fill(6).await;
    let late: Text = format!("{}-late", ground.consumer).into();
    let fourth: Text = format!("{}-fourth", ground.consumer).into();
    let mut late = ground.join_as(&late, Start::New).await;
    let mut fourth = ground.join_as(&fourth, Start::Position(Position(old[3]))).await;
    let mut all = ground.join().await;
    pump(&mut [&mut late, &mut fourth, &mut all], "ownership", |peers| {
        peers.iter().all(|peer| peer.owned.contains_key(&partition))
    })
    .await;
    let new = ground.publish("filled", "new").await.position.0;
    late.take(1).await;
    assert_eq!(late.positions(&partition), [new]);
    fourth.take(4).await;
    assert_eq!(fourth.positions(&partition), [old[3], old[4], old[5], new]);
    all.take(7).await;
    late.stays_quiet().await;
}

async fn what_is_settled_does_not_come_again(ground: Ground) {
    let (partition, positions) = ground.fill(10).await;
    let mut peer = ground.join().await;
    peer.take(10).await;
    peer.settle_first(6).await;
    peer.leave().await;
    let mut next = ground.join().await;
    next.take(4).await;
    let came: BTreeSet<u64> = next.positions(&partition).into_iter().collect();
    assert_eq!(came, positions[6..].iter().copied().collect(), "only what was not settled");
    let owned = &next.owned[&partition];
    assert_eq!(owned.floor, Some(Position(positions[5])));
    assert!(ground.competes() || owned.epoch > peer.last_epoch(&partition));
    next.settle_first(4).await;
    next.leave().await;
    ground.join().await.stays_quiet().await;
}

async fn what_is_undone_comes_again_to_the_next_owner_in_order(ground: Ground) {
    let (partition, positions) = ground.fill(12).await;
    let mut peer = ground.join().await;
    peer.room = 1;
    peer.take(8).await;
    peer.settle_first(3).await;
    if !matches!(ground.ownership(), Ownership::Floor) {
        let (_, sixth) = peer.got[5].clone();
        peer.membership.settle(&partition, &[Settle::Done(sixth.ticket)]).await.unwrap();
    }
    drop(peer);
    let mut next = ground.join().await;
    let undone = match ground.ownership() {
        Ownership::Floor => positions[3..].to_vec(),
        _ => [&positions[3..5], &positions[6..]].concat(),
    };
    next.take(undone.len()).await;
    let mut came = next.positions(&partition);
    if ground.competes() {
        came.sort_unstable();
    }
    assert_eq!(came, undone);
    next.stays_quiet().await;
}

async fn what_is_given_back_comes_again_after_its_delay(ground: Ground) {
    if ground.ownership() == Ownership::Floor {
        return;
    }
    let (partition, positions) = ground.fill(3).await;
    let mut peer = ground.join().await;
    peer.room = 1;
    peer.take(1).await;
    let (_, first) = peer.got[0].clone();
    let delay = Duration::from_millis(1_500);
    let since = ground.clock.boot();
    peer.membership.settle(&partition, &[Settle::Again(first.ticket, delay)]).await.unwrap();
    peer.take(4).await;
    assert!(ground.clock.boot().since(since) >= delay, "it came before its delay had passed");
    assert_eq!(peer.positions(&partition), [positions[0], positions[1], positions[2], positions[0]]);
    let again = peer.got[3].1.ticket;
    assert!(again.deliveries > first.ticket.deliveries && again.tag != first.ticket.tag, "{again:?}");
    let all: Vec<Settle> = peer.got.iter().map(|(_, delivery)| Settle::Done(delivery.ticket)).collect();
    peer.membership.settle(&partition, &all).await.unwrap();
    peer.stays_quiet().await;
}

async fn an_unsettled_delivery_comes_again_unless_it_is_extended(ground: Ground) {
    let (partition, _) = ground.fill(1).await;
    let mut peer = ground.join().await;
    peer.take(1).await;
    let (_, first) = peer.got[0].clone();
    let Some(ack_wait) = first.ticket.ack_wait.filter(|wait| *wait < ground.patience / 4) else { return };
    for _ in 0..6 {
        peer.stays_quiet_for(ack_wait / 3).await;
        peer.membership.settle(&partition, &[Settle::Extend(first.ticket)]).await.unwrap();
    }
    peer.take(2).await;
    let again = peer.got[1].1.ticket;
    assert_eq!((again.position, again.deliveries), (first.ticket.position, 2));
    assert_ne!(again.tag, first.ticket.tag);
    peer.membership.settle(&partition, &[Settle::Done(first.ticket)]).await.expect("an old ticket settles too");
    peer.stays_quiet_for(ack_wait * 2).await;
}

async fn a_released_partition_comes_back_under_a_higher_epoch(ground: Ground) {
    let (partition, positions) = ground.fill(5).await;
    let mut peer = ground.join().await;
    peer.take(5).await;
    peer.settle_first(2).await;
    let above = Epoch(peer.owned[&partition].epoch.0 + 10);
    peer.owned.remove(&partition);
    peer.got.clear();
    peer.membership.release(&partition, Some(above)).await.unwrap();
    peer.take(3).await;
    assert!(peer.owned[&partition].epoch > above, "{:?}", peer.owned[&partition].epoch);
    let mut came = peer.positions(&partition);
    came.sort_unstable();
    assert_eq!(came, positions[2..]);
}

async fn members_share_the_work(ground: Ground) {
    let scattered = ground.scatter().await;
    if scattered.len() < 2 || ground.has_one_instance() {
        return;
    }
    let mut one = ground.join().await;
    one.take(64).await;
    one.settle_first(64).await;
    let epochs: BTreeMap<Partition, Epoch> = one.owned.iter().map(|(p, owned)| (p.clone(), owned.epoch)).collect();
    let mut two = ground.join().await;
    let all = epochs.len();
    let competes = ground.competes();
    pump(&mut [&mut one, &mut two], "both to own some", |peers| {
        let [one, two] = [0, 1].map(|n| peers[n].owned.len());
        if competes { one == all && two == all } else { one > 0 && two > 0 && one + two == all }
    })
    .await;
    for (partition, owned) in &two.owned {
        let before = epochs[partition];
        assert!(if competes { owned.epoch == before } else { owned.epoch > before });
    }
    one.got.clear();
    two.got.clear();
    let expected: usize = ground.scatter().await.values().map(Vec::len).sum();
    (one.room, two.room) = (4, 4);
    pump(&mut [&mut one, &mut two], "every message", |peers| peers[0].got.len() + peers[1].got.len() == expected).await;
    assert!(!one.got.is_empty() && !two.got.is_empty(), "both work");
    assert!(one.places().is_disjoint(&two.places()), "each message goes to one of them");
    one.stays_quiet().await;
    two.stays_quiet().await;
}

async fn an_owner_that_does_not_give_up_loses_its_partition(ground: Ground) {
    if ground.competes() || ground.has_one_instance() || ground.scatter().await.len() < 2 {
        return;
    }
    let mut stubborn = ground.join().await;
    stubborn.obliging = false;
    stubborn.take(64).await;
    let leases: BTreeMap<_, _> = stubborn.owned.iter().map(|(p, owned)| (p.clone(), owned.lease.clone())).collect();
    let mut heir = ground.join().await;
    pump(&mut [&mut stubborn, &mut heir], "a partition to be taken away", |peers| {
        !peers[0].lost.is_empty() && peers[0].lost.iter().all(|p| peers[1].owned.contains_key(p))
    })
    .await;
    let lost = stubborn.lost[0].clone();
    assert!(stubborn.revoked.contains(&lost), "it was asked first");
    assert!(!leases[&lost].holds(&ground.clock), "its lease ended before another began");
    assert!(heir.owned[&lost].epoch > stubborn.last_epoch(&lost));
    let undone = stubborn.positions(&lost);
    heir.take_from(&lost, undone.len()).await;
    assert_eq!(heir.positions(&lost), undone, "what it left undone comes again, in order");
    if ground.ownership() != Ownership::Floor {
        return;
    }
    let settled = stubborn.membership.settle(&lost, &[Settle::Floor(Position(*undone.last().unwrap()))]).await;
    assert!(settled.is_ok() || matches!(settled, Err(BrokerError::Lost { .. })), "{settled:?}");
    heir.leave().await;
    stubborn.leave().await;
    let mut third = ground.join().await;
    third.take_from(&lost, undone.len()).await;
    assert_eq!(third.positions(&lost), undone, "a settle of the old owner has no effect");
}

async fn leaving_hands_over_at_once(ground: Ground) {
    let scattered = ground.scatter().await;
    if scattered.len() < 2 || ground.has_one_instance() {
        return;
    }
    let mut one = ground.join().await;
    let mut two = ground.join().await;
    pump(&mut [&mut one, &mut two], "both to own some", |peers| {
        scattered.keys().all(|p| peers.iter().any(|peer| peer.owned.contains_key(p)))
            && peers.iter().all(|peer| !peer.owned.is_empty())
    })
    .await;
    let since = ground.clock.boot();
    one.leave().await;
    pump(&mut [&mut two], "everything", |peers| scattered.keys().all(|p| peers[0].owned.contains_key(p))).await;
    assert!(ground.clock.boot().since(since) < Duration::from_secs(5), "nothing waits for a lease to lapse");
    two.take(64).await;
    let sent = scattered.iter().flat_map(|(p, positions)| positions.iter().map(|at| (p.clone(), Position(*at))));
    assert!(two.places().is_superset(&sent.filter(|place| !one.places().contains(place)).collect()));
}

async fn a_second_instance_waits_for_the_first(ground: Ground) {
    if !ground.has_one_instance() {
        return;
    }
    let (_, positions) = ground.fill(4).await;
    let mut first = ground.join().await;
    first.take(4).await;
    let subscription = || Subscription::new(&ground.consumer, vec![ground.topic.clone()]);
    let refused = ground.broker.join(subscription()).await.err();
    assert!(refused.as_ref().is_some_and(BrokerError::is_transient), "it may be tried again: {refused:?}");
    first.settle_first(3).await;
    first.leave().await;
    let mut second = ground.join().await;
    second.take(1).await;
    assert_eq!(second.places().first().map(|(_, at)| at.0), Some(positions[3]));
}

async fn consumers_do_not_see_each_other(ground: Ground) {
    let (partition, positions) = ground.fill(5).await;
    let other: Text = format!("{}-other", ground.consumer).into();
    let mut one = ground.join().await;
    let mut two = ground.join_as(&other, Start::Beginning).await;
    pump(&mut [&mut one, &mut two], "all at both", |peers| peers.iter().all(|peer| peer.got.len() == 5)).await;
    assert_eq!(two.positions(&partition), positions);
    one.settle_first(5).await;
    one.leave().await;
    two.leave().await;
    let mut again = ground.join_as(&other, Start::Beginning).await;
    again.take(5).await;
}
