//! What every table of leases must do, sentence by sentence of the port's documentation.
//!
//! The port is the library's own, and so is this suite: it is reached from outside only by the tests of databases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::clock::Clock;
use crate::lease::{Beat, Held, Keeper, LastWords, LeaseTable, Member, Record, Take, View};
use crate::outcome::BoxFuture;
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
use crate::store::sql::{Home, SqlLeases};
use crate::topic::{Epoch, Position, Text};

type Case = (&'static str, fn(Leases) -> BoxFuture<'static, ()>);

const CASES: &[Case] = super::cases![
    a_session_joins_and_its_beats_count,
    who_has_not_joined_is_not_there,
    a_beat_that_comes_late_counts_for_nothing,
    a_part_is_taken_from_the_epoch_that_was_seen_and_no_other,
    several_parts_are_taken_each_for_itself,
    a_part_is_let_go_of_by_its_owner_alone,
    a_floor_stays_until_another_is_written,
    a_session_is_struck_off_at_its_last_beat_and_no_other,
    leaving_frees_everything,
    groups_do_not_see_each_other,
    whatever_was_done_may_be_done_again,
    names_may_be_any_text,
    of_those_who_take_at_once_one_wins,
    a_session_beats_or_is_struck_off_and_never_both,
    keepers_share_the_parts,
];

/// How often what happens at once is tried.
const ROUNDS: u64 = 20;

/// How long anything may take, on a busy machine too.
const PATIENCE: Duration = Duration::from_mins(1);

/// One table, by one way to it or several, which are used in turn.
#[derive(Clone)]
pub struct Leases(Vec<Arc<dyn LeaseTable>>);

#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
impl<'a, H: Home> FromIterator<&'a H> for Leases {
    /// The table in a database, which may have been opened more than once.
    fn from_iter<T: IntoIterator<Item = &'a H>>(homes: T) -> Self {
        Self(homes.into_iter().map(|home| Arc::new(SqlLeases::new(Arc::new(home.clone()))) as _).collect())
    }
}

#[cfg(feature = "nats")]
impl From<&[crate::nats::NatsBroker]> for Leases {
    /// The key-value buckets of a server, to which there may be more than one connection.
    fn from(brokers: &[crate::nats::NatsBroker]) -> Self {
        Self(brokers.iter().map(crate::nats::NatsBroker::leases).collect())
    }
}

/// Runs every case, each on a table of its own without rows. The factory gets the case's name.
pub async fn run(fresh: impl AsyncFn(&'static str) -> Leases) {
    for (name, case) in CASES {
        println!("lease_suite: {name}");
        case(fresh(name).await).await;
    }
}

impl Leases {
    /// One of the ways.
    fn way(&self, n: usize) -> Arc<dyn LeaseTable> {
        Arc::clone(&self.0[n % self.0.len()])
    }

    async fn join(&self, n: usize, member: &Member) -> View {
        self.way(n).beat(member, Beat { number: 1, joins: true }).await.unwrap()
    }

    async fn beat(&self, n: usize, member: &Member, number: u64) -> View {
        self.way(n).beat(member, Beat { number, joins: false }).await.unwrap()
    }

    async fn take(&self, n: usize, member: &Member, part: &str, from: Option<u64>, to: u64) {
        self.way(n).take(member, &[take(part, from, to)]).await.unwrap();
    }

    async fn let_go(&self, n: usize, member: &Member, part: &str, epoch: u64, floor: Option<u64>) {
        self.way(n).let_go(member, &part.into(), Epoch(epoch), floor.map(Position)).await.unwrap();
    }

    /// The records, as one sees them who is only looking.
    async fn records(&self) -> BTreeMap<Text, Record> {
        self.beat(0, &member("onlooker"), 1).await.records
    }

    /// Epoch and owner of a part.
    async fn record(&self, part: &str) -> (u64, Option<String>) {
        let record = self.records().await.remove(&Text::from(part)).unwrap();
        (record.epoch.0, record.session.map(|session| session.to_string()))
    }

    async fn is_there(&self, session: &str) -> bool {
        self.beat(0, &member("onlooker"), 1).await.sessions.contains_key(&Text::from(session))
    }
}

fn member(session: &str) -> Member {
    Member { group: "relay".into(), session: session.into(), info: "host (pid 7)".into() }
}

fn take(part: &str, from: Option<u64>, to: u64) -> Take {
    Take { part: part.into(), from: from.map(Epoch), to: Epoch(to) }
}

fn owned_by(epoch: u64, session: &str) -> (u64, Option<String>) {
    (epoch, Some(session.to_owned()))
}

async fn a_session_joins_and_its_beats_count(leases: Leases) {
    assert_eq!(leases.join(0, &member("a")).await.sessions, BTreeMap::from([("a".into(), 1)]));
    assert_eq!(leases.join(1, &member("b")).await.sessions, BTreeMap::from([("a".into(), 1), ("b".into(), 1)]));
    let view = leases.beat(1, &member("a"), 2).await;
    assert_eq!(view, View { sessions: BTreeMap::from([("a".into(), 2), ("b".into(), 1)]), records: BTreeMap::new() });
}

async fn who_has_not_joined_is_not_there(leases: Leases) {
    leases.join(0, &member("a")).await;
    assert_eq!(leases.beat(1, &member("b"), 1).await.sessions, BTreeMap::from([("a".into(), 1)]));
}

async fn a_beat_that_comes_late_counts_for_nothing(leases: Leases) {
    leases.join(0, &member("a")).await;
    assert_eq!(leases.beat(0, &member("a"), 5).await.sessions[&Text::from("a")], 5);
    assert_eq!(leases.beat(1, &member("a"), 4).await.sessions[&Text::from("a")], 5);
    assert_eq!(leases.join(1, &member("a")).await.sessions[&Text::from("a")], 5);
    assert_eq!(leases.beat(0, &member("a"), 6).await.sessions[&Text::from("a")], 6);
}

async fn a_part_is_taken_from_the_epoch_that_was_seen_and_no_other(leases: Leases) {
    let [a, b] = ["a", "b"].map(member);
    leases.join(0, &a).await;
    leases.join(1, &b).await;
    leases.take(0, &a, "p", None, 1).await;
    leases.take(1, &b, "p", None, 1).await;
    assert_eq!(leases.record("p").await, owned_by(1, "a"));
    leases.take(1, &b, "p", Some(1), 9).await;
    assert_eq!(leases.record("p").await, owned_by(9, "b"));
    for from in [None, Some(1), Some(8), Some(10)] {
        leases.take(0, &a, "p", from, 11).await;
        assert_eq!(leases.record("p").await, owned_by(9, "b"), "from {from:?}");
    }
    leases.take(0, &a, "q", Some(1), 2).await;
    assert!(!leases.records().await.contains_key(&Text::from("q")));
}

async fn several_parts_are_taken_each_for_itself(leases: Leases) {
    let [a, b] = ["a", "b"].map(member);
    leases.join(0, &a).await;
    leases.join(1, &b).await;
    leases.take(1, &b, "p", None, 3).await;
    leases.way(0).take(&a, &[take("p", Some(2), 4), take("q", None, 1), take("r", None, 7)]).await.unwrap();
    let owners: Vec<_> = [leases.record("p").await, leases.record("q").await, leases.record("r").await].into();
    assert_eq!(owners, [owned_by(3, "b"), owned_by(1, "a"), owned_by(7, "a")]);
    leases.way(0).take(&a, &[]).await.unwrap();
}

async fn a_part_is_let_go_of_by_its_owner_alone(leases: Leases) {
    let [a, b] = ["a", "b"].map(member);
    leases.join(0, &a).await;
    leases.join(1, &b).await;
    leases.take(0, &a, "p", None, 2).await;
    leases.let_go(1, &b, "p", 2, None).await;
    leases.let_go(0, &a, "p", 1, None).await;
    leases.let_go(0, &a, "q", 1, None).await;
    assert_eq!(leases.record("p").await, owned_by(2, "a"));
    leases.let_go(0, &a, "p", 2, None).await;
    assert_eq!(leases.record("p").await, (2, None));
    leases.take(1, &b, "p", Some(2), 3).await;
    assert_eq!(leases.record("p").await, owned_by(3, "b"));
}

async fn a_floor_stays_until_another_is_written(leases: Leases) {
    let a = member("a");
    leases.join(0, &a).await;
    let mut floors = Vec::new();
    for (epoch, floor) in [(1, None), (2, Some(41)), (3, None), (4, Some(40))] {
        leases.take(0, &a, "p", (epoch > 1).then_some(epoch - 1), epoch).await;
        leases.let_go(1, &a, "p", epoch, floor).await;
        floors.push(leases.records().await[&Text::from("p")].floor);
    }
    assert_eq!(floors, [None, Some(41), Some(41), Some(40)].map(|floor| floor.map(Position)));
}

async fn a_session_is_struck_off_at_its_last_beat_and_no_other(leases: Leases) {
    let [a, b] = ["a", "b"].map(member);
    leases.join(0, &a).await;
    leases.join(1, &b).await;
    leases.take(0, &a, "p", None, 1).await;
    leases.take(1, &b, "q", None, 1).await;
    leases.beat(0, &a, 3).await;
    for beat in [1, 2, 4] {
        leases.way(1).strike(&b.group, &a.session, beat).await.unwrap();
        assert!(leases.is_there("a").await);
        assert_eq!(leases.record("p").await, owned_by(1, "a"));
    }
    leases.way(1).strike(&b.group, &a.session, 3).await.unwrap();
    assert!(!leases.is_there("a").await && leases.is_there("b").await);
    assert_eq!((leases.record("p").await, leases.record("q").await), ((1, None), owned_by(1, "b")));
    assert!(!leases.beat(0, &a, 4).await.sessions.contains_key(&a.session), "a beat does not bring it back");
}

async fn leaving_frees_everything(leases: Leases) {
    let [a, b] = ["a", "b"].map(member);
    leases.join(0, &a).await;
    leases.join(1, &b).await;
    leases.way(0).take(&a, &[take("p", None, 1), take("q", None, 4)]).await.unwrap();
    leases.take(1, &b, "r", None, 1).await;
    leases.way(0).leave(&a).await.unwrap();
    assert!(!leases.is_there("a").await && leases.is_there("b").await);
    assert_eq!((leases.record("p").await, leases.record("q").await), ((1, None), (4, None)));
    assert_eq!(leases.record("r").await, owned_by(1, "b"));
}

async fn groups_do_not_see_each_other(leases: Leases) {
    let (a, mut other) = (member("a"), member("a"));
    other.group = "another".into();
    leases.join(0, &a).await;
    leases.take(0, &a, "p", None, 5).await;
    let view = leases.join(1, &other).await;
    assert_eq!(view, View { sessions: BTreeMap::from([("a".into(), 1)]), records: BTreeMap::new() });
    leases.take(1, &other, "p", None, 1).await;
    leases.let_go(1, &other, "p", 5, None).await;
    leases.beat(1, &other, 2).await;
    leases.way(1).strike(&other.group, &a.session, 1).await.unwrap();
    leases.way(1).leave(&other).await.unwrap();
    assert_eq!(leases.record("p").await, owned_by(5, "a"));
    assert_eq!(leases.beat(0, &a, 2).await.sessions, BTreeMap::from([("a".into(), 2)]));
}

async fn whatever_was_done_may_be_done_again(leases: Leases) {
    let [a, b] = ["a", "b"].map(member);
    for n in 0..2 {
        leases.join(n, &a).await;
        leases.take(n, &a, "p", None, 1).await;
        assert_eq!(leases.record("p").await, owned_by(1, "a"));
    }
    for n in 0..2 {
        leases.let_go(n, &a, "p", 1, Some(3)).await;
        assert_eq!(leases.record("p").await, (1, None));
    }
    leases.join(0, &b).await;
    leases.take(0, &b, "p", Some(1), 2).await;
    leases.take(1, &a, "p", None, 1).await;
    leases.let_go(1, &a, "p", 1, Some(3)).await;
    for n in 0..2 {
        leases.way(n).strike(&a.group, &a.session, 1).await.unwrap();
        assert!(!leases.is_there("a").await);
        assert_eq!(leases.record("p").await, owned_by(2, "b"));
    }
    for n in 0..2 {
        leases.way(n).leave(&b).await.unwrap();
        assert_eq!(leases.record("p").await, (2, None));
    }
}

async fn names_may_be_any_text(leases: Leases) {
    let a = Member { group: "les événements' ".into(), session: "a\"b".into(), info: Text::default() };
    leases.join(0, &a).await;
    for (n, part) in ["orders/0", "ключ", "P", "p", "p "].into_iter().enumerate() {
        leases.take(n, &a, part, None, n as u64 + 1).await;
    }
    let records = leases.beat(1, &a, 2).await.records;
    let epochs: Vec<_> = records.iter().map(|(part, record)| (part.as_str(), record.epoch.0)).collect();
    assert_eq!(epochs, [("P", 3), ("orders/0", 1), ("p", 4), ("p ", 5), ("ключ", 2)]);
}

async fn of_those_who_take_at_once_one_wins(leases: Leases) {
    let members: Vec<Member> = (0..6).map(|n| member(&format!("s{n}"))).collect();
    for (n, member) in members.iter().enumerate() {
        leases.join(n, member).await;
    }
    for round in 0..ROUNDS {
        let (from, to) = ((round > 0).then_some(round), round + 1);
        let tasks = members.iter().cloned().enumerate().map(|(n, member)| {
            let leases = leases.clone();
            tokio::spawn(async move {
                leases.take(n, &member, "p", from, to).await;
                let record = leases.beat(n, &member, round + 2).await.records.remove(&Text::from("p")).unwrap();
                assert_eq!(record.epoch, Epoch(to));
                record.session
            })
        });
        let mut winners = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            winners.push(task.await.unwrap());
        }
        assert!(winners[0].is_some() && winners.iter().all(|winner| *winner == winners[0]), "{winners:?}");
    }
}

async fn a_session_beats_or_is_struck_off_and_never_both(leases: Leases) {
    for round in 0..ROUNDS {
        let (a, part) = (member(&format!("a{round}")), format!("p{round}"));
        leases.join(0, &a).await;
        leases.take(0, &a, &part, None, 1).await;
        let (one, other) = (leases.way(0), leases.way(1));
        let view = tokio::spawn({
            let a = a.clone();
            async move { one.beat(&a, Beat { number: 2, joins: false }).await.unwrap() }
        });
        let struck = tokio::spawn({
            let a = a.clone();
            async move { other.strike(&a.group, &a.session, 1).await.unwrap() }
        });
        let (view, ()) = (view.await.unwrap(), struck.await.unwrap());
        let lives = view.sessions.get(&a.session) == Some(&2);
        let owner = lives.then(|| a.session.to_string());
        assert_eq!((leases.is_there(a.session.as_str()).await, leases.record(&part).await), (lives, (1, owner)));
    }
}

async fn keepers_share_the_parts(leases: Leases) {
    let parts: Vec<Text> = (0..8).map(|n| format!("p{n}").into()).collect();
    let start = |n| Keeper::start(leases.way(n), "relay".into(), parts.clone(), format!("{n}").into(), Clock::system());
    let first = start(0);
    let mut of_first = first.owned();
    wait(&mut of_first, |held| held.len() == 8).await;
    let second = start(1);
    let mut of_second = second.owned();
    wait(&mut of_first, |held| held.values().filter(|held| held.revoking).count() == 4).await;
    let revoked: Vec<Text> =
        of_first.borrow().iter().filter(|(_, held)| held.revoking).map(|(part, _)| part.clone()).collect();
    for part in &revoked {
        first.let_go(part, LastWords::default()).await;
    }
    wait(&mut of_second, |held| held.keys().eq(&revoked)).await;
    assert!(of_second.borrow().values().all(|held| held.epoch == Epoch(2) && held.lease.holds(&Clock::system())));
    first.leave().await;
    wait(&mut of_second, |held| held.len() == 8 && held.values().all(|held| held.epoch == Epoch(2))).await;
    second.leave().await;
    let records = leases.records().await;
    assert!(of_second.borrow().is_empty() && records.values().all(|record| record.session.is_none()), "{records:?}");
}

async fn wait(owned: &mut watch::Receiver<BTreeMap<Text, Held>>, so: impl Fn(&BTreeMap<Text, Held>) -> bool) {
    let found = tokio::time::timeout(PATIENCE, owned.wait_for(so)).await;
    drop(found.expect("it takes no longer").expect("the keeper lives"));
}
