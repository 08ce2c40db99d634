//! The ledger of a partition: which deliveries are in hand, and the floor below which everything is settled.

use std::collections::{BTreeSet, VecDeque};

use crate::broker::Ticket;
use crate::topic::{Place, Position};

/// The deliveries of one partition, by position, from the lowest that is not settled.
///
/// The floor runs over what was delivered and never counts positions: brokers leave gaps.
#[derive(Debug)]
pub(crate) struct Ledger {
    seats: VecDeque<Seat>,
    floor: Option<Position>,
    /// What is below the floor was settled. False where others may settle too (competing consumers).
    owned: bool,
}

/// One delivery in hand.
#[derive(Debug)]
struct Seat {
    ticket: Ticket,
    /// The events of it that are not settled yet, by index, if it carries several.
    #[expect(clippy::box_collection, reason = "nearly every delivery is alone, and its seat stays small")]
    batch: Option<Box<BTreeSet<u32>>>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    GivenBack,
    Done,
}

/// What an arriving delivery is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seated {
    /// New, or come again after it was given back: work on it.
    New,
    /// Still in hand; the newer ticket is kept.
    InHand,
    /// Settled before: only the broker does not know.
    Settled,
}

impl Ledger {
    pub(crate) fn new(floor: Option<Position>, owned: bool) -> Self {
        Self { seats: VecDeque::new(), floor, owned }
    }

    /// Everything up to here was settled, as the store knows; before anything has arrived.
    pub(crate) fn begin_above(&mut self, settled: Option<Position>) {
        self.floor = self.floor.max(settled);
    }

    /// Takes a delivery in hand.
    pub(crate) fn arrive(&mut self, ticket: Ticket) -> Seated {
        if self.owned && self.floor.is_some_and(|floor| ticket.position <= floor) {
            return Seated::Settled;
        }
        match self.find(ticket.position) {
            Ok(at) => {
                let Some(seat) = self.seats.get_mut(at) else { return Seated::Settled };
                seat.ticket = ticket;
                match seat.state {
                    State::Open => Seated::InHand,
                    State::Done => Seated::Settled,
                    State::GivenBack => {
                        seat.state = State::Open;
                        Seated::New
                    }
                }
            }
            Err(at) => {
                self.seats.insert(at, Seat { ticket, batch: None, state: State::Open });
                Seated::New
            }
        }
    }

    /// Says how many events a delivery carries; it is settled when all of them are. What was settled before it was given
    /// back stays settled.
    pub(crate) fn carries(&mut self, position: Position, events: u32) {
        if let Some(seat) = self.seat_mut(position).filter(|seat| events > 1 && seat.batch.is_none()) {
            seat.batch = Some(Box::new((0..events).collect()));
        }
    }

    /// Settles one event of a delivery; answers its ticket if that was the last one. An event that was under way when
    /// its delivery was given back counts once, however often it ends.
    pub(crate) fn settle(&mut self, place: Place) -> Option<Ticket> {
        let at = self.find(place.position).ok()?;
        let seat = self.seats.get_mut(at)?;
        if seat.state == State::Done {
            return None;
        }
        if let Some(left) = &mut seat.batch {
            left.remove(&place.index);
            if !left.is_empty() {
                return None;
            }
        }
        seat.state = State::Done;
        let ticket = seat.ticket;
        if self.owned {
            self.advance();
        } else {
            self.seats.remove(at);
        }
        Some(ticket)
    }

    /// Marks a delivery as given back; answers its ticket.
    pub(crate) fn give_back(&mut self, position: Position) -> Option<Ticket> {
        let owned = self.owned;
        let at = self.find(position).ok()?;
        let seat = self.seats.get_mut(at)?;
        if seat.state != State::Open {
            return None;
        }
        seat.state = State::GivenBack;
        let ticket = seat.ticket;
        if !owned {
            self.seats.remove(at);
        }
        Some(ticket)
    }

    /// Everything up to here is settled.
    pub(crate) fn floor(&self) -> Option<Position> {
        self.floor
    }

    /// The highest settled position, whatever is unsettled below it.
    pub(crate) fn highest_settled(&self) -> Option<Position> {
        let above = self.seats.iter().rev().find(|s| s.state == State::Done).map(|s| s.ticket.position);
        above.max(self.floor)
    }

    /// True if the position is above the floor and no delivery of it has arrived.
    pub(crate) fn is_to_come(&self, position: Position) -> bool {
        Some(position) > self.floor && self.find(position).is_err()
    }

    /// True if the delivery carries one event only.
    pub(crate) fn is_alone(&self, position: Position) -> bool {
        self.find(position).ok().and_then(|at| self.seats.get(at)).is_none_or(|seat| seat.batch.is_none())
    }

    /// The ticket of a delivery that is in hand.
    pub(crate) fn ticket(&self, position: Position) -> Option<Ticket> {
        let seat = self.seats.get(self.find(position).ok()?)?;
        (seat.state == State::Open).then_some(seat.ticket)
    }

    /// How many positions lie above the floor, settled or not.
    pub(crate) fn above_floor(&self) -> usize {
        self.seats.len()
    }

    /// The tickets that were never settled nor given back, in order.
    pub(crate) fn open(&self) -> impl Iterator<Item = Ticket> {
        self.seats.iter().filter(|s| s.state == State::Open).map(|s| s.ticket)
    }

    fn advance(&mut self) {
        while self.seats.front().is_some_and(|s| s.state == State::Done) {
            self.floor = self.seats.pop_front().map(|s| s.ticket.position);
        }
        if self.seats.is_empty() && self.seats.capacity() > 4_096 {
            self.seats.shrink_to(1_024);
        }
    }

    /// Positions mostly arrive at the end and leave no gaps, so the end and the place without gaps are tried first.
    fn find(&self, position: Position) -> Result<usize, usize> {
        let (Some(first), Some(last)) = (self.seats.front(), self.seats.back()) else { return Err(0) };
        if last.ticket.position < position {
            return Err(self.seats.len());
        }
        let guess = usize::try_from(position.0.saturating_sub(first.ticket.position.0)).unwrap_or(usize::MAX);
        if self.seats.get(guess).is_some_and(|s| s.ticket.position == position) {
            return Ok(guess);
        }
        self.seats.binary_search_by_key(&position, |s| s.ticket.position)
    }

    fn seat_mut(&mut self, position: Position) -> Option<&mut Seat> {
        let at = self.find(position).ok()?;
        self.seats.get_mut(at)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn ticket(position: u64) -> Ticket {
        Ticket::new(Position(position), position)
    }

    #[test]
    fn the_floor_is_contiguous_over_what_was_delivered() {
        let mut ledger = Ledger::new(Some(Position(3)), true);
        for p in [5, 7, 10] {
            assert_eq!(ledger.arrive(ticket(p)), Seated::New);
        }
        ledger.settle(Place::at(10));
        assert_eq!((ledger.floor(), ledger.highest_settled()), (Some(Position(3)), Some(Position(10))));
        ledger.settle(Place::at(5));
        assert_eq!(ledger.floor(), Some(Position(5)));
        ledger.settle(Place::at(7));
        assert_eq!((ledger.floor(), ledger.above_floor()), (Some(Position(10)), 0));
        assert_eq!(ledger.arrive(ticket(7)), Seated::Settled);
    }

    #[test]
    fn a_message_of_several_events_is_settled_with_the_last() {
        let mut ledger = Ledger::new(None, true);
        ledger.arrive(ticket(1));
        ledger.carries(Position(1), 2);
        assert_eq!(ledger.settle(Place::at(1)), None);
        assert_eq!(ledger.settle(Place { position: Position(1), index: 1 }), Some(ticket(1)));
        assert_eq!(ledger.floor(), Some(Position(1)));
    }

    #[test]
    fn what_was_given_back_keeps_its_seat_until_it_comes_again() {
        let mut ledger = Ledger::new(None, true);
        ledger.arrive(ticket(1));
        ledger.arrive(ticket(2));
        assert_eq!(ledger.give_back(Position(1)), Some(ticket(1)));
        ledger.settle(Place::at(2));
        assert_eq!(ledger.floor(), None);
        assert_eq!(ledger.open().count(), 0);
        assert_eq!(ledger.arrive(Ticket::new(Position(1), 99)), Seated::New);
        assert_eq!(ledger.arrive(Ticket::new(Position(1), 100)), Seated::InHand);
        assert_eq!(ledger.settle(Place::at(1)).map(|t| t.tag), Some(100));
        assert_eq!(ledger.floor(), Some(Position(2)));
    }

    proptest! {
        /// Against the naive model: the floor is the highest delivered position with nothing unsettled at or below it.
        #[test]
        fn it_agrees_with_the_naive_model(gaps in prop::collection::vec(1u64..4, 1..60), order in any::<u64>()) {
            let positions: Vec<u64> = gaps.iter().scan(0, |p, g| { *p += g; Some(*p) }).collect();
            let mut ledger = Ledger::new(None, true);
            for &p in &positions {
                ledger.arrive(ticket(p));
            }
            let mut left: BTreeSet<u64> = positions.iter().copied().collect();
            let mut rng = fastrand::Rng::with_seed(order);
            while !left.is_empty() {
                let p = *left.iter().nth(rng.usize(..left.len())).unwrap();
                left.remove(&p);
                prop_assert_eq!(ledger.settle(Place::at(p)), Some(ticket(p)));
                let lowest = left.first().copied().unwrap_or(u64::MAX);
                let floor = positions.iter().copied().filter(|p| *p < lowest).max().map(Position);
                prop_assert_eq!(ledger.floor(), floor);
            }
        }
    }
}
