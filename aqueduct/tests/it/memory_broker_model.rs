//! The broker in memory loses nothing, whatever its members do.

use std::collections::{BTreeMap, BTreeSet};
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{
    Arrival, Broker, Lease, Membership, MemoryBroker, Ownership, Room, Settle, Subscription, Ticket,
};
use aqueduct::{BrokerError, Clock, Epoch, Message, Partition};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Publish(u8),
    /// Member, room.
    Next(usize, usize),
    /// Settles the nth of what the member has in hand.
    Settle(usize, usize),
    /// Gives back the nth, for so many milliseconds.
    Again(usize, usize, u64),
    /// Gives up the nth of its partitions, asked or not.
    Release(usize, usize),
    Crash(usize),
    Leave(usize),
    Sleep(u64),
}

/// A member as it sees itself.
struct Member {
    membership: Arc<dyn Membership>,
    /// What it has in hand of each partition.
    owned: BTreeMap<Partition, Vec<Ticket>>,
    leases: BTreeMap<Partition, Lease>,
}

struct World {
    broker: MemoryBroker,
    clock: Clock,
    by_floor: bool,
    members: [Option<Member>; 2],
    published: BTreeMap<Partition, u64>,
    settled: BTreeSet<(Partition, u64)>,
    /// The highest position that was ever delivered.
    reached: BTreeMap<Partition, u64>,
    epochs: BTreeMap<Partition, Epoch>,
    tags: BTreeSet<u64>,
}

impl World {
    fn new(ownership: Ownership) -> Self {
        let clock = Clock::simulated(1);
        let broker = MemoryBroker::new().partitions(4).ownership(ownership).clock(clock.clone());
        Self {
            broker,
            clock,
            by_floor: ownership == Ownership::Floor,
            members: [None, None],
            published: BTreeMap::new(),
            settled: BTreeSet::new(),
            reached: BTreeMap::new(),
            epochs: BTreeMap::new(),
            tags: BTreeSet::new(),
        }
    }

    async fn step(&mut self, step: Step) -> Result<(), TestCaseError> {
        match step {
            Step::Publish(key) => self.publish(key).await,
            Step::Next(who, room) => self.next(who, room).await.map(drop),
            Step::Settle(who, nth) => self.settle(who, nth, None).await,
            Step::Again(who, nth, delay) => self.settle(who, nth, Some(Duration::from_millis(delay))).await,
            Step::Release(who, nth) => self.release(who, nth).await,
            Step::Crash(who) => {
                self.members[who] = None;
                Ok(())
            }
            Step::Leave(who) => {
                if let Some(member) = self.members[who].take() {
                    member.membership.leave().await.unwrap();
                }
                Ok(())
            }
            Step::Sleep(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Ok(())
            }
        }
    }

    async fn publish(&mut self, key: u8) -> Result<(), TestCaseError> {
        let mut message = Message::new("orders", "x");
        message.key = Some(vec![key].into());
        let receipt = self.broker.publish(vec![message]).await.remove(0).unwrap();
        let count = self.published.entry(receipt.partition).or_default();
        *count += 1;
        prop_assert_eq!(receipt.position.0, *count);
        Ok(())
    }

    async fn member(&mut self, who: usize) -> &mut Member {
        if self.members[who].is_none() {
            let mut subscription = Subscription::new("billing", vec!["orders".into()]);
            subscription.clock = self.clock.clone();
            let membership = self.broker.join(subscription).await.unwrap();
            self.members[who] = Some(Member { membership, owned: BTreeMap::new(), leases: BTreeMap::new() });
        }
        self.members[who].as_mut().unwrap()
    }

    /// Takes what there is for a member now; false if there is nothing.
    async fn next(&mut self, who: usize, room: usize) -> Result<bool, TestCaseError> {
        let membership = self.member(who).await.membership.clone();
        let arrival = tokio::select! {
            biased;
            arrival = membership.next(Room::new(room, &[])) => arrival.unwrap(),
            () = ready(()) => return Ok(false),
        };
        let owned = &mut self.members[who].as_mut().unwrap().owned;
        match arrival {
            Arrival::Assigned { partition, epoch, floor, lease } => {
                let before = self.epochs.insert(partition.clone(), epoch);
                prop_assert!(before < Some(epoch), "{} under {:?} after {:?}", partition, epoch, before);
                let floor = floor.map_or(0, |floor| floor.0);
                let settled = (1..=floor).all(|position| self.settled.contains(&(partition.clone(), position)));
                prop_assert!(settled, "{} has a floor of {} above what is settled", partition, floor);
                owned.insert(partition.clone(), Vec::new());
                self.members[who].as_mut().unwrap().leases.insert(partition.clone(), lease);
                if let Some(other) = self.members[1 - who].as_ref().filter(|m| m.owned.contains_key(&partition)) {
                    let held = other.leases[&partition].holds(&self.clock);
                    prop_assert!(!held, "{} was neither released nor did its lease end", partition);
                }
            }
            Arrival::Batch { partition, deliveries } => {
                prop_assert!(!deliveries.is_empty() && deliveries.len() <= room);
                for delivery in deliveries {
                    self.delivered(who, &partition, delivery.ticket)?;
                }
            }
            Arrival::Revoking { partition, .. } => {
                owned.remove(&partition);
                let released = membership.release(&partition, None).await;
                prop_assert!(matches!(released, Ok(()) | Err(BrokerError::Lost { .. })), "{:?}", released);
            }
            Arrival::Resumed { partition } => {
                prop_assert!(owned.contains_key(&partition), "{} resumes unowned", partition);
            }
            Arrival::Lost { partition } => drop(owned.remove(&partition)),
            other => panic!("{other:?}"),
        }
        Ok(true)
    }

    fn delivered(&mut self, who: usize, partition: &Partition, ticket: Ticket) -> Result<(), TestCaseError> {
        let position = ticket.position.0;
        let hand = self.members[who].as_mut().unwrap().owned.get_mut(partition);
        prop_assert!(hand.is_some(), "{} was never assigned", partition);
        prop_assert!(self.tags.insert(ticket.tag), "the tag of {} is used twice", position);
        prop_assert!(!self.settled.contains(&(partition.clone(), position)), "{} was settled", position);
        let reached = self.reached.entry(partition.clone()).or_default();
        prop_assert!(position <= *reached + 1, "{} was passed over before {}", *reached + 1, position);
        *reached = position.max(*reached);
        let hand = hand.unwrap();
        if self.by_floor {
            let before = hand.last().map(|ticket| ticket.position.0);
            prop_assert!(before.is_none_or(|before| position == before + 1), "{} after {:?}", position, before);
        } else if let Some(stale) = hand.iter().position(|known| known.position.0 == position) {
            prop_assert_eq!(ticket.deliveries, hand[stale].deliveries + 1);
            hand.remove(stale);
        }
        hand.push(ticket);
        Ok(())
    }

    async fn settle(&mut self, who: usize, nth: usize, again: Option<Duration>) -> Result<(), TestCaseError> {
        let member = self.member(who).await;
        let in_hand: Vec<_> = member.owned.iter().flat_map(|(p, hand)| hand.iter().map(move |t| (p, *t))).collect();
        if in_hand.is_empty() {
            return Ok(());
        }
        let (partition, ticket) = in_hand[nth % in_hand.len()];
        let (partition, position) = (partition.clone(), ticket.position.0);
        let settle = match again {
            _ if self.by_floor => Settle::Floor(ticket.position),
            Some(delay) => Settle::Again(ticket, delay),
            None => Settle::Done(ticket),
        };
        let member = self.member(who).await;
        match member.membership.settle(&partition, &[settle]).await {
            Ok(()) => {}
            Err(BrokerError::Lost { .. }) => return Ok(()),
            Err(error) => return Err(TestCaseError::fail(error.to_string())),
        }
        match settle {
            Settle::Floor(_) => {
                let passed = (1..=position).map(|position| (partition.clone(), position));
                self.settled.extend(passed);
            }
            Settle::Done(_) => {
                self.member(who).await.owned.get_mut(&partition).unwrap().retain(|t| t.position.0 != position);
                self.settled.insert((partition.clone(), position));
            }
            _ => {}
        }
        let floor = self.broker.floor("billing", &partition).map_or(0, |floor| floor.0);
        let contiguous =
            (1..=self.published[&partition]).take_while(|p| self.settled.contains(&(partition.clone(), *p))).count();
        prop_assert_eq!(floor, contiguous as u64);
        Ok(())
    }

    async fn release(&mut self, who: usize, nth: usize) -> Result<(), TestCaseError> {
        let member = self.member(who).await;
        if member.owned.is_empty() {
            return Ok(());
        }
        let partition = member.owned.keys().nth(nth % member.owned.len()).unwrap().clone();
        member.owned.remove(&partition);
        let membership = member.membership.clone();
        let above = self.epochs[&partition].0 + 5;
        if membership.release(&partition, Some(Epoch(above))).await.is_ok() {
            self.epochs.insert(partition, Epoch(above));
        }
        Ok(())
    }

    /// Everyone dies; one member comes and finishes what is left.
    async fn drain(&mut self) -> Result<(), TestCaseError> {
        self.members = [None, None];
        for (partition, count) in self.published.clone() {
            self.reached.insert(partition, count);
        }
        while self.next(0, 1_000).await? {}
        let left: BTreeSet<(Partition, u64)> = self
            .published
            .iter()
            .flat_map(|(partition, count)| (1..=*count).map(|position| (partition.clone(), position)))
            .filter(|place| !self.settled.contains(place))
            .collect();
        let owned = self.member(0).await.owned.clone();
        let came: Vec<_> = owned.iter().flat_map(|(p, hand)| hand.iter().map(|t| (p.clone(), t.position.0))).collect();
        prop_assert_eq!(came, left.into_iter().collect::<Vec<_>>(), "what is left comes again, in order");
        while self.member(0).await.owned.values().any(|hand| !hand.is_empty()) && self.broker.lag("billing") != Some(0)
        {
            let last = self.member(0).await.owned.values().map(Vec::len).sum::<usize>() - 1;
            for nth in (0..=last).rev() {
                self.settle(0, nth, None).await?;
            }
        }
        prop_assert!(self.broker.lag("billing").is_none_or(|lag| lag == 0));
        prop_assert!(self.broker.log(&"orders".into()).is_empty(), "what everyone has passed is deleted");
        Ok(())
    }
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (who, nth) = (|| 0_usize..2, || 0_usize..50);
    let step = prop_oneof![
        8 => (0_u8..6).prop_map(Step::Publish),
        12 => (who(), 1_usize..5).prop_map(|(who, room)| Step::Next(who, room)),
        6 => (who(), nth()).prop_map(|(who, nth)| Step::Settle(who, nth)),
        3 => (who(), nth(), 0_u64..3_000).prop_map(|(who, nth, delay)| Step::Again(who, nth, delay)),
        1 => (who(), nth()).prop_map(|(who, nth)| Step::Release(who, nth)),
        1 => who().prop_map(Step::Crash),
        1 => who().prop_map(Step::Leave),
        2 => (0_u64..15_000).prop_map(Step::Sleep),
    ];
    proptest::collection::vec(step, 1..120)
}

fn check(ownership: Ownership, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut world = World::new(ownership);
        for step in steps {
            world.step(step).await?;
        }
        world.drain().await
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn with_a_floor_nothing_is_lost_and_order_holds(steps in steps()) {
        check(Ownership::Floor, steps)?;
    }

    #[test]
    fn settled_one_by_one_nothing_is_lost_and_order_holds(steps in steps()) {
        check(Ownership::AckEach, steps)?;
    }
}
