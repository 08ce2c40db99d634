//! Where a delivery ends: what follows from the way an attempt ended. One pure function; its table is a test.

use std::time::Duration;

use crate::broker::Ownership;
use crate::error::Fault;
use crate::policy::{Kind, Policy};
use crate::store::Hold;

/// How an attempt ended, as far as settling is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Done,
    Failed(Fault),
}

/// All that the decision depends on.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(crate) struct Case<'a> {
    pub(crate) end: End,
    /// Attempts made, this one included if it counts; for competing consumers, how often the broker has delivered it.
    pub(crate) attempts: u32,
    /// It is a row of the store, not a delivery.
    pub(crate) stored: bool,
    pub(crate) policy: &'a Policy,
    pub(crate) ownership: Ownership,
    /// There is a store that is as durable as the broker.
    pub(crate) store: bool,
    /// There is a topic for dead letters.
    pub(crate) letters: bool,
    /// It came in a message of its own, so that giving it back brings nothing else again.
    pub(crate) alone: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is settled; a row is deleted.
    Settle,
    /// It is given up with a line in the log, and settled.
    Drop,
    /// Again from memory, after a random delay of at most this; its key waits.
    Quick(Duration),
    /// Again from memory, after this delay; its key waits.
    Wait(Duration),
    /// Into the store with its whole lane, to be due after this delay. A row is dated anew.
    Park(Duration),
    /// Into the store as a dead letter; one that lets its lane pass goes to the topic for them, if there is one.
    Dead(Hold),
    /// Back to the broker with the tail of its lane, to come again after this delay.
    GiveBack(Duration),
}

/// How long an event waits at most that failed through no fault of its own.
const UNCOUNTED_WAIT: Duration = Duration::from_millis(200);

/// Decides. Everything that ends a delivery passes here.
pub(crate) fn settle(case: &Case<'_>) -> Step {
    match case.end {
        End::Done => Step::Settle,
        End::Failed(Fault::Permanent) => give_up(case),
        End::Failed(Fault::Uncounted) if case.ownership == Ownership::Competing => Step::GiveBack(UNCOUNTED_WAIT),
        End::Failed(Fault::Uncounted) => Step::Quick(UNCOUNTED_WAIT),
        End::Failed(fault) => {
            try_again(case, if let Fault::RetryAfter(delay) = fault { delay } else { Duration::ZERO })
        }
    }
}

/// No further attempt would help, or is left.
fn give_up(case: &Case<'_>) -> Step {
    match case.policy.kind {
        Kind::BestEffort => Step::Drop,
        Kind::Ordered | Kind::Fast if case.store || case.letters && case.policy.hold == Hold::Skip => {
            Step::Dead(case.policy.hold)
        }
        // Nowhere to put a dead letter: it stays with the broker, at the slowest pace there is.
        Kind::Ordered | Kind::Fast => hold(case, case.policy.parked_delay_max),
    }
}

/// A further attempt, if one is left, not before `least`.
fn try_again(case: &Case<'_>, least: Duration) -> Step {
    let policy = case.policy;
    let quick_left = case.attempts < policy.quick_attempts;
    let parked = case.attempts.saturating_sub(policy.quick_attempts) + 1;
    if quick_left && !case.stored && case.ownership != Ownership::Competing && least <= policy.parked_delay {
        let wait = policy.quick_wait(case.attempts);
        return if least > wait { Step::Wait(least) } else { Step::Quick(wait) };
    }
    if quick_left {
        return later(case, policy.quick_wait(case.attempts).max(least));
    }
    if policy.kind != Kind::Ordered || parked > policy.parked_attempts {
        return give_up(case);
    }
    later(case, policy.parked_wait(parked).max(least))
}

/// A later attempt from wherever the event can wait best.
fn later(case: &Case<'_>, delay: Duration) -> Step {
    let parks = case.store && case.ownership != Ownership::Competing && case.policy.kind == Kind::Ordered;
    if parks || case.stored { Step::Park(delay) } else { hold(case, delay) }
}

/// The event stays with the broker.
fn hold(case: &Case<'_>, delay: Duration) -> Step {
    match case.ownership {
        Ownership::Competing => Step::GiveBack(delay),
        Ownership::AckEach if case.alone => Step::GiveBack(delay),
        Ownership::AckEach | Ownership::Floor => Step::Wait(delay),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: fn(u64) -> Duration = Duration::from_secs;
    const MS: fn(u64) -> Duration = Duration::from_millis;
    const T: End = End::Failed(Fault::Transient);
    const P: End = End::Failed(Fault::Permanent);
    const U: End = End::Failed(Fault::Uncounted);

    /// The whole table: who owns, is there a store, is it a row, which attempt, how it ended, under which policy.
    #[test]
    #[rustfmt::skip]
    fn the_table() {
        use Ownership::{AckEach, Competing, Floor};
        let (ordered, block) = (Policy::ordered(), Policy::ordered().block());
        let (fast, best) = (Policy::fast(), Policy::best_effort());
        let after = |s| End::Failed(Fault::RetryAfter(S(s)));
        let hour = S(3600);
        let table: &[(Ownership, bool, bool, u32, End, &Policy, Step)] = &[
            // owner   store  row   attempt  end        policy    step
            (Floor,     true,  false,  1, End::Done,    &ordered, Step::Settle),
            (Floor,     true,  true,   9, End::Done,    &ordered, Step::Settle),
            (Competing, true,  false,  1, End::Done,    &ordered, Step::Settle),
            // quick attempts, in memory
            (Floor,     true,  false,  1, T,            &ordered, Step::Quick(MS(20))),
            (Floor,     true,  false,  2, T,            &ordered, Step::Quick(MS(40))),
            (AckEach,   false, false,  2, T,            &fast,    Step::Quick(MS(40))),
            (Floor,     true,  false,  1, after(1),     &ordered, Step::Wait(S(1))),
            (Competing, true,  false,  1, T,            &ordered, Step::GiveBack(MS(20))),
            // not the event's fault
            (Floor,     true,  false,  0, U,            &ordered, Step::Quick(MS(200))),
            (AckEach,   true,  false, 22, U,            &ordered, Step::Quick(MS(200))),
            (Floor,     true,  true,  22, U,            &fast,    Step::Quick(MS(200))),
            (Competing, true,  false, 22, U,            &best,    Step::GiveBack(MS(200))),
            // then parked
            (Floor,     true,  false,  1, after(5),     &ordered, Step::Park(S(5))),
            (Floor,     true,  false,  3, T,            &ordered, Step::Park(S(1))),
            (AckEach,   true,  false,  3, T,            &ordered, Step::Park(S(1))),
            (Floor,     true,  true,   1, T,            &ordered, Step::Park(MS(20))),
            (Floor,     true,  true,   4, T,            &ordered, Step::Park(S(2))),
            (Floor,     true,  true,  22, T,            &ordered, Step::Park(hour)),
            // without a store it waits where it is
            (Floor,     false, false,  3, T,            &ordered, Step::Wait(S(1))),
            (AckEach,   false, false,  3, T,            &ordered, Step::GiveBack(S(1))),
            (Competing, true,  false,  3, T,            &ordered, Step::GiveBack(S(1))),
            // then dead
            (Floor,     true,  true,  23, T,            &ordered, Step::Dead(Hold::Skip)),
            (Floor,     true,  true,  23, T,            &block,   Step::Dead(Hold::Block)),
            (Competing, true,  false, 23, T,            &ordered, Step::Dead(Hold::Skip)),
            (Floor,     true,  false,  3, T,            &fast,    Step::Dead(Hold::Skip)),
            (Floor,     true,  false,  1, P,            &ordered, Step::Dead(Hold::Skip)),
            (AckEach,   true,  false,  1, P,            &block,   Step::Dead(Hold::Block)),
            // nowhere to put a dead letter
            (Floor,     false, false,  1, P,            &ordered, Step::Wait(hour)),
            (AckEach,   false, false,  1, P,            &ordered, Step::GiveBack(hour)),
            (Competing, false, false,  3, T,            &fast,    Step::GiveBack(hour)),
            // nothing promised
            (Floor,     true,  false,  1, T,            &best,    Step::Quick(MS(20))),
            (Floor,     true,  false,  3, T,            &best,    Step::Drop),
            (Competing, true,  false,  1, P,            &best,    Step::Drop),
        ];
        for &(ownership, store, stored, attempts, end, policy, step) in table {
            let case = Case { end, attempts, stored, policy, ownership, store, letters: false, alone: true };
            assert_eq!(settle(&case), step, "{case:?}");
        }
    }

    #[test]
    fn an_event_that_shares_its_message_is_not_given_back_alone() {
        let policy = Policy::ordered();
        let mut case = Case {
            end: T,
            attempts: 3,
            stored: false,
            policy: &policy,
            ownership: Ownership::AckEach,
            store: false,
            letters: false,
            alone: false,
        };
        assert_eq!(settle(&case), Step::Wait(S(1)));
        case.ownership = Ownership::Competing;
        assert_eq!(settle(&case), Step::GiveBack(S(1)));
    }

    #[test]
    fn a_topic_takes_dead_letters_that_let_their_lane_pass() {
        let (pass, block, fast) = (Policy::ordered(), Policy::ordered().block(), Policy::fast());
        let case = |policy, end, attempts| Case {
            end,
            attempts,
            stored: false,
            policy,
            ownership: Ownership::Floor,
            store: false,
            letters: true,
            alone: true,
        };
        assert_eq!(settle(&case(&pass, P, 1)), Step::Dead(Hold::Skip));
        assert_eq!(settle(&case(&fast, T, 3)), Step::Dead(Hold::Skip));
        assert_eq!(settle(&case(&pass, T, 3)), Step::Wait(S(1)), "attempts are left");
        assert_eq!(settle(&case(&block, P, 1)), Step::Wait(S(3_600)), "a topic holds no lane");
    }
}
