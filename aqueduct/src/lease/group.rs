//! What one instance concludes from the views it has of its group: a plain struct, without a table or a task.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::keeper::{Held, LastWords};
use super::shares::{Owners, shares};
use super::{Take, View};
use crate::clock::{Boot, Lease};
use crate::topic::{Epoch, Position, Text};

/// From one beat to the next.
const BEAT: Duration = Duration::from_secs(1);

/// How long a lease runs from the sending of the last beat that was counted.
const LEASE: Duration = Duration::from_secs(4);

/// Who has been silent for so long inherits nothing.
const SUSPECT: Duration = Duration::from_millis(2_500);

/// Who has been silent for so long is struck off. The lease has ended by then, 2 s ago and more.
const STRUCK: Duration = Duration::from_secs(6);

/// From one view to the next at most, for the time in between to count as others' silence. What is longer may have been
/// this process's own standstill, or the table's, in which others could not be heard.
const GAP_MAX: Duration = Duration::from_secs(2);

/// From one beat to the next while another owns what is to come here.
const OWED: Duration = Duration::from_millis(250);

/// The pause before a view that is to show what was done about the last one.
pub(super) const SOON: Duration = Duration::from_millis(20);

/// What is to be done about a view, in this order.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// This session was struck off: another is to be begun, with [`Group::rejoin`].
    Rejoin,
    Strike {
        session: Text,
        beat: u64,
    },
    /// The table has not let go yet of what was let go of.
    LetGo {
        part: Text,
        epoch: Epoch,
        floor: Option<Position>,
    },
    Take(Vec<Take>),
}

/// A beat that was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) number: u64,
    pub(super) at: Boot,
}

/// A group as one of its sessions knows it.
#[derive(Debug)]
pub(super) struct Group {
    parts: BTreeSet<Text>,
    session: Text,
    /// The last view was seen then.
    viewed_at: Option<Boot>,
    /// Each other session's last beat, and when it was first seen.
    heard: BTreeMap<Text, (u64, Boot)>,
    held: BTreeMap<Text, Held>,
    /// Parts that were let go of: under these epochs they are not held again, whatever the table says.
    let_go: BTreeMap<Text, (Epoch, LastWords)>,
    /// Epochs above which parts are taken.
    above: BTreeMap<Text, Epoch>,
    /// Another owns what is to come here.
    owed: bool,
}

impl Group {
    pub(super) fn new(parts: Vec<Text>, session: Text) -> Self {
        Self {
            parts: parts.into_iter().collect(),
            session,
            viewed_at: None,
            heard: BTreeMap::new(),
            held: BTreeMap::new(),
            let_go: BTreeMap::new(),
            above: BTreeMap::new(),
            owed: false,
        }
    }

    /// Begins a new session, which has nothing.
    pub(super) fn rejoin(&mut self, session: Text) {
        self.lose_all();
        self.session = session;
    }

    pub(super) fn held(&self) -> &BTreeMap<Text, Held> {
        &self.held
    }

    /// Takes in a view that a beat was answered with, just now.
    pub(super) fn observe(&mut self, view: &View, sent: Sent, now: Boot) -> Vec<Action> {
        self.listen(view, now);
        if view.sessions.get(&self.session) != Some(&sent.number) {
            self.lose_all();
            return vec![Action::Rejoin];
        }
        let mut actions = self.strikes(now);
        actions.extend(self.hold(view, sent.at.after(LEASE)));
        let takes = self.share_out(view, now);
        if !takes.is_empty() {
            actions.push(Action::Take(takes));
        }
        actions
    }

    /// Nothing is held under this epoch any more. Answers the epoch, if the part was held.
    pub(super) fn let_go(&mut self, part: &Text, words: LastWords) -> Option<Epoch> {
        let held = self.held.remove(part)?;
        held.lease.renew(ENDED);
        self.let_go.insert(part.clone(), (held.epoch, words));
        self.above.extend(words.above.map(|above| (part.clone(), above)));
        Some(held.epoch)
    }

    /// Holds nothing any more.
    pub(super) fn lose_all(&mut self) {
        self.held.values().for_each(|held| held.lease.renew(ENDED));
        self.held.clear();
        self.let_go.clear();
        self.owed = false;
    }

    /// When the next beat is due after one that was sent then.
    pub(super) fn next_beat(&self, sent: Boot) -> Boot {
        let next = sent.after(if self.owed { OWED } else { BEAT });
        let strikes = self.heard.values().map(|(_, at)| at.after(STRUCK));
        strikes.min().map_or(next, |strike| strike.min(next))
    }

    /// Hears who has beaten since the last view.
    fn listen(&mut self, view: &View, now: Boot) {
        let listened = self.viewed_at.is_some_and(|at| now.since(at) <= GAP_MAX);
        let before = std::mem::take(&mut self.heard);
        for (session, beat) in view.sessions.iter().filter(|(session, _)| **session != self.session) {
            let known = before.get(session).filter(|(known, _)| listened && known == beat);
            self.heard.insert(session.clone(), known.copied().unwrap_or((*beat, now)));
        }
        self.viewed_at = Some(now);
    }

    /// The sessions that have been silent for so long.
    fn silent(&self, least: Duration, now: Boot) -> impl Iterator<Item = (&Text, u64)> {
        let silent = self.heard.iter().filter(move |(_, (_, at))| now.since(*at) >= least);
        silent.map(|(session, (beat, _))| (session, *beat))
    }

    fn strikes(&self, now: Boot) -> Vec<Action> {
        let strike = |(session, beat): (&Text, u64)| Action::Strike { session: session.clone(), beat };
        self.silent(STRUCK, now).map(strike).collect()
    }

    /// Holds what the view says is this session's, until the deadline. Answers what is to be let go of.
    fn hold(&mut self, view: &View, deadline: Boot) -> Vec<Action> {
        let before = std::mem::take(&mut self.held);
        let let_go = std::mem::take(&mut self.let_go);
        let mut actions = Vec::new();
        for (part, record) in view.records.iter().filter(|(_, record)| record.session.as_ref() == Some(&self.session)) {
            let epoch = record.epoch;
            if let Some((_, words)) = let_go.get(part).filter(|(gone, _)| epoch <= *gone) {
                self.let_go.insert(part.clone(), (epoch, *words));
                actions.push(Action::LetGo { part: part.clone(), epoch, floor: words.floor });
                continue;
            }
            let known = before.get(part).filter(|held| held.epoch == epoch).cloned();
            let lease = || Lease::until(deadline);
            let held = known.unwrap_or_else(|| Held { epoch, lease: lease(), revoking: false, floor: record.floor });
            held.lease.renew(deadline);
            self.held.insert(part.clone(), held);
        }
        let is_held = |part, epoch| self.held.get(part).is_some_and(|held| held.epoch == epoch);
        let lost = before.iter().filter(|(part, held)| !is_held(part, held.epoch));
        lost.for_each(|(_, held)| held.lease.renew(ENDED));
        actions
    }

    /// Finds whose each part is to be. Asks for what is another's, and answers what is to be taken.
    fn share_out(&mut self, view: &View, now: Boot) -> Vec<Take> {
        let suspects: BTreeSet<&Text> = self.silent(SUSPECT, now).map(|(session, _)| session).collect();
        let members: BTreeSet<&Text> = view.sessions.keys().filter(|session| !suspects.contains(session)).collect();
        let mut owners = Owners::new();
        for part in &self.parts {
            let owner = view.records.get(part).and_then(|record| record.session.as_ref());
            let owner = owner.filter(|owner| view.sessions.contains_key(owner));
            // A suspect keeps what it has, and counts for nothing else.
            if owner.is_none_or(|owner| !suspects.contains(owner)) {
                owners.insert(part, owner);
            }
        }
        let shares = shares(&owners, &members);
        let is_own = |part: &Text| shares.get(part).is_some_and(|heir| **heir == self.session);
        let mut takes = Vec::new();
        self.owed = false;
        for (part, owner) in owners.iter().filter(|(part, _)| is_own(part)) {
            match owner {
                None => takes.push(take(part, view, self.above.get(*part))),
                Some(owner) => self.owed |= **owner != self.session,
            }
        }
        self.held.iter_mut().for_each(|(part, held)| held.revoking = !is_own(part));
        takes
    }
}

/// A lease that holds at no time.
const ENDED: Boot = Boot(0);

fn take(part: &Text, view: &View, above: Option<&Epoch>) -> Take {
    let from = view.records.get(part).map(|record| record.epoch);
    let above = from.max(above.copied()).map_or(0, |epoch| epoch.0);
    Take { part: part.clone(), from, to: Epoch(above + 1) }
}

#[cfg(test)]
mod tests {
    use super::super::Record;
    use super::*;
    use crate::clock::Clock;

    /// A table as it is shown to the session `a`, and the time.
    struct Watch {
        group: Group,
        view: View,
        now: Boot,
        number: u64,
    }

    impl Watch {
        fn of(parts: &[&str], others: &[&str]) -> Self {
            let group = Group::new(parts.iter().map(|part| Text::from(*part)).collect(), "a".into());
            let sessions = others.iter().map(|session| (Text::from(*session), 1)).collect();
            Self { group, view: View { sessions, records: BTreeMap::new() }, now: Boot(1_000_000_000), number: 0 }
        }

        fn record(&mut self, part: &str, epoch: u64, session: Option<&str>) {
            let record = Record { epoch: Epoch(epoch), session: session.map(Text::from), floor: None };
            self.view.records.insert(part.into(), record);
        }

        /// A beat so many milliseconds after the last one, answered at once.
        fn after(&mut self, ms: u64) -> Vec<Action> {
            self.answered(ms, 0)
        }

        /// A beat that is answered so many milliseconds after it was sent.
        fn answered(&mut self, after: u64, late: u64) -> Vec<Action> {
            let at = self.now.after(Duration::from_millis(after));
            self.now = at.after(Duration::from_millis(late));
            self.number += 1;
            self.view.sessions.insert("a".into(), self.number);
            self.group.observe(&self.view, Sent { number: self.number, at }, self.now)
        }

        fn beats(&mut self, session: &str) {
            *self.view.sessions.entry(session.into()).or_default() += 1;
        }

        fn lease(&self, part: &str) -> Lease {
            self.group.held()[&Text::from(part)].lease.clone()
        }

        fn held(&self) -> Vec<(&str, u64, bool)> {
            self.group.held().iter().map(|(part, held)| (part.as_str(), held.epoch.0, held.revoking)).collect()
        }
    }

    fn takes(taken: &[(&str, Option<u64>)]) -> Action {
        let take = |(part, from): &(&str, Option<u64>)| {
            let to = Epoch(from.map_or(1, |epoch| epoch + 1));
            Take { part: Text::from(*part), from: from.map(Epoch), to }
        };
        Action::Take(taken.iter().map(take).collect())
    }

    fn strike(session: &str, beat: u64) -> Action {
        Action::Strike { session: session.into(), beat }
    }

    #[test]
    fn the_first_one_takes_everything_above_the_last_epochs() {
        let mut watch = Watch::of(&["p", "q", "r"], &[]);
        watch.record("q", 7, None);
        watch.record("r", 3, Some("gone"));
        assert_eq!(watch.after(0), [takes(&[("p", None), ("q", Some(7)), ("r", Some(3))])]);
        assert!(watch.held().is_empty(), "what was asked for counts when a view shows it");
        watch.record("p", 1, Some("a"));
        watch.record("q", 8, Some("a"));
        watch.record("r", 4, Some("other"));
        watch.view.sessions.insert("other".into(), 1);
        assert_eq!(watch.after(20), []);
        assert_eq!(watch.held(), [("p", 1, false), ("q", 8, false)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_runs_from_the_sending_of_the_last_beat_and_keeps_its_epoch() {
        let (clock, mut watch) = (Clock::simulated(1), Watch::of(&["p"], &[]));
        watch.record("p", 1, Some("a"));
        watch.after(0);
        let lease = watch.lease("p");
        // The clock begins at 0, the watch at 1 s.
        tokio::time::sleep(Duration::from_millis(4_999)).await;
        assert!(lease.holds(&clock));
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(!lease.holds(&clock));
        watch.answered(9_000, 1_500);
        assert_eq!((watch.held(), lease.deadline()), (vec![("p", 1, false)], Boot(14_000_000_000)));
    }

    #[test]
    fn the_silent_are_suspected_and_struck_off_and_their_parts_are_taken_after_that() {
        let mut watch = Watch::of(&["p"], &["b"]);
        watch.record("p", 5, Some("b"));
        assert_eq!(watch.after(0), []);
        for _ in 0..5 {
            assert_eq!(watch.after(1_000), []);
        }
        assert_eq!(watch.group.next_beat(watch.now), watch.now.after(Duration::from_secs(1)));
        assert_eq!(watch.after(700), []);
        assert_eq!(watch.group.next_beat(watch.now), watch.now.after(Duration::from_millis(300)));
        assert_eq!(watch.after(300), [strike("b", 1)]);
        watch.view.sessions.remove(&Text::from("b"));
        assert_eq!(watch.after(20), [takes(&[("p", Some(5))])]);
    }

    #[test]
    fn a_beat_ends_a_silence() {
        let mut watch = Watch::of(&["p"], &["b"]);
        watch.record("p", 5, Some("b"));
        for n in 0..20 {
            if n % 5 == 0 {
                watch.beats("b");
            }
            assert_eq!(watch.after(1_000), []);
        }
    }

    #[test]
    fn time_in_which_nobody_could_be_heard_is_nobody_s_silence() {
        let mut watch = Watch::of(&["p"], &["b"]);
        watch.record("p", 5, Some("b"));
        for gap in [0, 1_000, 1_000, 1_000, 1_000, 1_000, 2_001, 1_000, 1_000, 1_000, 1_000, 1_000, 60_000] {
            assert_eq!(watch.after(gap), []);
        }
        for _ in 0..5 {
            assert_eq!(watch.after(1_000), []);
        }
        assert_eq!(watch.after(1_000), [strike("b", 1)]);
    }

    #[test]
    fn a_suspect_inherits_nothing_and_keeps_what_it_has() {
        let mut watch = Watch::of(&["p", "q", "r", "s"], &["b"]);
        for part in ["p", "q"] {
            watch.record(part, 1, Some("a"));
        }
        watch.record("r", 1, Some("b"));
        watch.record("s", 1, None);
        assert_eq!(watch.after(0), [], "it is b's share");
        watch.after(1_000);
        watch.after(1_000);
        assert_eq!(watch.after(499), []);
        assert_eq!(watch.after(1), [takes(&[("s", Some(1))])]);
        watch.record("s", 2, Some("a"));
        assert_eq!(watch.after(20), []);
        assert_eq!(watch.held(), [("p", 1, false), ("q", 1, false), ("s", 2, false)]);
        watch.beats("b");
        watch.after(20);
        assert_eq!(watch.held().iter().filter(|(.., revoking)| *revoking).count(), 1, "b is to have two again");
    }

    #[test]
    fn one_that_joins_is_owed_its_share_and_looks_more_often_until_it_has_it() {
        let mut watch = Watch::of(&["p", "q"], &["b"]);
        watch.record("p", 1, Some("b"));
        watch.record("q", 1, Some("b"));
        assert_eq!(watch.after(0), []);
        assert_eq!(watch.group.next_beat(watch.now), watch.now.after(OWED));
        let (a, b, parts) = ("a".into(), "b".into(), ["p", "q"].map(Text::from));
        let dealt = shares(&parts.iter().map(|part| (part, Some(&b))).collect(), &[&a, &b].into());
        let given = parts.iter().find(|part| *dealt[part] == a).unwrap().as_str();
        watch.record(given, 1, None);
        watch.beats("b");
        assert_eq!(watch.after(250), [takes(&[(given, Some(1))])]);
        watch.record(given, 2, Some("a"));
        watch.beats("b");
        assert_eq!(watch.after(20), []);
        assert_eq!(watch.group.next_beat(watch.now), watch.now.after(BEAT));
    }

    #[test]
    fn what_was_let_go_of_is_never_held_again_under_its_epoch() {
        let mut watch = Watch::of(&["p"], &[]);
        watch.record("p", 1, Some("a"));
        watch.after(0);
        let lease = watch.lease("p");
        assert_eq!(watch.group.let_go(&"p".into(), LastWords::default()), Some(Epoch(1)));
        assert_eq!((lease.deadline(), watch.group.let_go(&"p".into(), LastWords::default())), (ENDED, None));
        // The table was not told, or not yet.
        let again = Action::LetGo { part: "p".into(), epoch: Epoch(1), floor: None };
        assert_eq!(watch.after(1_000), std::slice::from_ref(&again));
        assert_eq!(watch.after(1_000), [again]);
        assert!(watch.held().is_empty());
        watch.record("p", 1, None);
        assert_eq!(watch.after(1_000), [takes(&[("p", Some(1))])]);
        watch.record("p", 2, Some("a"));
        assert_eq!(watch.after(20), []);
        assert_eq!((watch.held(), lease.deadline()), (vec![("p", 2, false)], ENDED));
    }

    #[test]
    fn who_was_struck_off_has_nothing_and_joins_again() {
        let mut watch = Watch::of(&["p"], &["b"]);
        watch.record("p", 1, Some("a"));
        watch.after(0);
        let lease = watch.lease("p");
        let sent = Sent { number: 2, at: watch.now };
        for other_beat in [Some(1), Some(3), None] {
            watch.view.sessions.remove(&Text::from("a"));
            watch.view.sessions.extend(other_beat.map(|beat| (Text::from("a"), beat)));
            assert_eq!(watch.group.observe(&watch.view, sent, watch.now), [Action::Rejoin]);
            assert_eq!((watch.held(), lease.deadline()), (vec![], ENDED));
        }
    }

    #[test]
    fn a_part_that_another_has_or_has_had_is_lost() {
        let mut watch = Watch::of(&["p", "q", "r"], &["b"]);
        for part in ["p", "q", "r"] {
            watch.record(part, 1, Some("a"));
        }
        watch.after(0);
        let leases: Vec<Lease> = watch.group.held().values().map(|held| held.lease.clone()).collect();
        watch.record("p", 2, Some("b"));
        watch.record("q", 3, Some("a"));
        watch.after(1_000);
        assert_eq!(
            watch.held().iter().map(|(part, epoch, _)| (*part, *epoch)).collect::<Vec<_>>(),
            [("q", 3), ("r", 1)]
        );
        let ended: Vec<bool> = leases.iter().map(|lease| lease.deadline() == ENDED).collect();
        assert_eq!(ended, [true, true, false]);
    }
}
