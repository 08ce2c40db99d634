//! The rows of a round in the lines of their lanes, and the waves in which they go to the broker.
//!
//! One unconfirmed row a lane, unless the broker keeps order by itself. A row that is refused ends its line: those behind it
//! in the lane are not sent, and go to the lane's parked line with it. A broker that is away ends all lines and
//! parks nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::broker::Receipt;
use crate::clock::Clock;
use crate::error::BrokerError;
use crate::message::Message;
use crate::policy::defaults;
use crate::store::outbox::{Fate, Settled};
use crate::topic::{LaneId, Text};

/// A row, and how it goes over the wire.
pub(super) struct Letter {
    pub(super) id: i64,
    pub(super) shard: u32,
    pub(super) lane: LaneId,
    /// How often it was refused, if it is parked.
    pub(super) parked: Option<u32>,
    /// The message, or why there is none.
    pub(super) message: Result<Message, Text>,
}

/// The lines of a round.
pub(super) struct Lines {
    open: Vec<Line>,
    /// How many of a lane may be unconfirmed at once.
    window: usize,
    clock: Clock,
    outcome: Outcome,
}

struct Line {
    /// Lowest id first.
    letters: VecDeque<Letter>,
    /// Those of the wave that is under way.
    sent: Vec<Letter>,
}

/// What became of a round.
#[derive(Default)]
pub(super) struct Outcome {
    /// In each lane in the order of ids.
    pub(super) settled: Vec<Settled>,
    /// The broker could not be reached; what is not settled stays where it is.
    pub(super) outage: Option<BrokerError>,
    /// How many of those sent the broker had already.
    pub(super) duplicates: u64,
}

impl Lines {
    /// `ordered`: the broker keeps order across failures by itself.
    pub(super) fn new(letters: Vec<Letter>, ordered: bool, clock: Clock) -> Self {
        let mut known: BTreeMap<(u32, LaneId), usize> = BTreeMap::new();
        let mut open: Vec<Line> = Vec::new();
        for letter in letters {
            let at = *known.entry((letter.shard, letter.lane)).or_insert(open.len());
            if at == open.len() {
                open.push(Line { letters: VecDeque::with_capacity(1), sent: Vec::with_capacity(1) });
            }
            open[at].letters.push_back(letter);
        }
        let window = if ordered { usize::MAX } else { 1 };
        Self { open, window, clock, outcome: Outcome::default() }
    }

    /// The messages of the next wave; none when all lines have ended.
    pub(super) fn next_wave(&mut self) -> Vec<Message> {
        if self.outcome.outage.is_some() {
            self.open.clear();
        }
        let mut wave = Vec::with_capacity(self.open.len());
        for line in &mut self.open {
            line.take_turn(self.window, &mut wave);
            if line.sent.is_empty()
                && let Some(letter) = line.letters.pop_front()
            {
                // It cannot be sent, and what stood before it is confirmed.
                let why = letter.message.as_ref().err().cloned().unwrap_or_default();
                self.outcome.refuse(&letter, why, false, &self.clock);
                line.end(&mut self.outcome);
            }
        }
        self.open.retain(|line| !line.sent.is_empty());
        wave
    }

    /// Takes the broker's answers to the last wave, in its order.
    pub(super) fn answered(&mut self, answers: Vec<Result<Receipt, BrokerError>>) {
        let mut answers = answers.into_iter();
        for line in &mut self.open {
            let mut refused = false;
            for letter in std::mem::take(&mut line.sent) {
                match answers.next().unwrap_or(Err(BrokerError::Closed)) {
                    Ok(receipt) => {
                        self.outcome.duplicates += u64::from(receipt.duplicate);
                        self.outcome.settled.push(settled(&letter, Fate::Sent));
                    }
                    Err(error) if error.is_about_the_broker() => _ = self.outcome.outage.get_or_insert(error),
                    Err(_) if refused => self.outcome.settled.push(settled(&letter, Fate::Behind)),
                    Err(error) => {
                        refused = true;
                        let why = cut(error.to_string());
                        self.outcome.refuse(&letter, why, error.is_transient(), &self.clock);
                    }
                }
            }
            if refused {
                line.end(&mut self.outcome);
            }
        }
    }

    /// Sends nothing more: what is not settled stays where it is.
    pub(super) fn end(self) -> Outcome {
        self.outcome
    }
}

impl Line {
    /// Moves what may be sent now into the wave.
    fn take_turn(&mut self, window: usize, wave: &mut Vec<Message>) {
        while self.sent.len() < window {
            let Some(mut letter) = self.letters.pop_front_if(|letter| letter.message.is_ok()) else { return };
            wave.extend(std::mem::replace(&mut letter.message, Err(Text::default())));
            self.sent.push(letter);
        }
    }

    /// What is left stands behind one that was refused.
    fn end(&mut self, outcome: &mut Outcome) {
        outcome.settled.extend(self.letters.drain(..).map(|letter| settled(&letter, Fate::Behind)));
    }
}

impl Outcome {
    fn refuse(&mut self, letter: &Letter, why: Text, transient: bool, clock: &Clock) {
        let attempts = letter.parked.unwrap_or(0).saturating_add(1);
        let next_at = clock.now().after(wait_after(attempts, transient));
        self.settled.push(settled(letter, Fate::Refused { attempts, next_at, why }));
    }
}

/// How long after a refusal a row is tried again: for ever, since nothing may be lost.
fn wait_after(refusals: u32, transient: bool) -> Duration {
    let wait_max = if transient { FULL_DELAY_MAX } else { defaults::PARKED_DELAY_MAX };
    defaults::PARKED_DELAY.saturating_mul(1 << refusals.saturating_sub(1).min(20)).min(wait_max)
}

/// The longest wait for a topic that is full: there may be room at any time.
const FULL_DELAY_MAX: Duration = Duration::from_mins(1);

/// Bytes of a reason that are kept.
const WHY_BYTES_MAX: usize = 2_000;

fn cut(mut why: String) -> Text {
    why.truncate(why.floor_char_boundary(WHY_BYTES_MAX));
    why.into()
}

fn settled(letter: &Letter, fate: Fate) -> Settled {
    let Letter { id, shard, lane, parked, .. } = *letter;
    Settled { id, shard, lane, parked: parked.is_some(), fate }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topic::{Partition, Position};

    fn letter(id: i64, lane: u64) -> Letter {
        let message = Ok(Message::new("orders", id.to_string()));
        Letter { id, shard: 0, lane: LaneId(lane), parked: None, message }
    }

    fn invalid(id: i64, lane: u64) -> Letter {
        Letter { message: Err("it is no event".into()), ..letter(id, lane) }
    }

    /// What the broker answers, a letter each.
    fn answers(letters: &str) -> Vec<Result<Receipt, BrokerError>> {
        let answer = |letter| match letter {
            's' => Ok(Receipt::new(Partition { topic: "orders".into(), index: 0 }, Position(1), false)),
            'r' => Err(BrokerError::Refused("no".into())),
            _ => Err(BrokerError::Unavailable("gone".into())),
        };
        letters.chars().map(answer).collect()
    }

    fn ids(wave: &[Message]) -> Vec<i64> {
        wave.iter().map(|message| std::str::from_utf8(&message.body).unwrap().parse().unwrap()).collect()
    }

    /// The ids of a round with a letter for each fate.
    fn fates(lines: Lines) -> Vec<(i64, char)> {
        let fate = |row: &Settled| match row.fate {
            Fate::Sent => 's',
            Fate::Refused { .. } => 'r',
            Fate::Behind => 'b',
        };
        let mut fates: Vec<_> = lines.end().settled.iter().map(|row| (row.id, fate(row))).collect();
        fates.sort_unstable();
        fates
    }

    #[tokio::test]
    async fn one_of_each_lane_goes_at_a_time_and_a_refusal_ends_its_line_only() {
        let letters = vec![letter(1, 1), letter(2, 1), letter(3, 2), letter(4, 1), letter(5, 2), letter(6, 3)];
        let mut lines = Lines::new(letters, false, Clock::system());
        assert_eq!(ids(&lines.next_wave()), [1, 3, 6]);
        lines.answered(answers("ssr"));
        assert_eq!(ids(&lines.next_wave()), [2, 5]);
        lines.answered(answers("rs"));
        assert!(lines.next_wave().is_empty());
        assert_eq!(fates(lines), [(1, 's'), (2, 'r'), (3, 's'), (4, 'b'), (5, 's'), (6, 'r')]);
    }

    #[tokio::test]
    async fn a_broker_that_keeps_order_gets_all_at_once() {
        let letters = vec![letter(1, 1), letter(2, 1), letter(3, 2), invalid(4, 1), letter(5, 1)];
        let mut lines = Lines::new(letters, true, Clock::system());
        assert_eq!(ids(&lines.next_wave()), [1, 2, 3]);
        lines.answered(answers("sss"));
        assert!(lines.next_wave().is_empty());
        assert_eq!(fates(lines), [(1, 's'), (2, 's'), (3, 's'), (4, 'r'), (5, 'b')]);
    }

    #[tokio::test]
    async fn an_invalid_row_is_refused_in_its_turn() {
        let letters = vec![invalid(1, 1), letter(2, 1), letter(3, 2), invalid(4, 2)];
        let mut lines = Lines::new(letters, false, Clock::system());
        assert_eq!(ids(&lines.next_wave()), [3]);
        lines.answered(answers("a"));
        assert!(lines.next_wave().is_empty());
        assert_eq!(fates(lines), [(1, 'r'), (2, 'b')], "what stands behind the one that was not confirmed stays");
    }

    #[tokio::test]
    async fn an_outage_ends_the_round_and_parks_nothing() {
        let letters = vec![letter(1, 1), letter(2, 1), letter(3, 2)];
        let mut lines = Lines::new(letters, false, Clock::system());
        lines.next_wave();
        lines.answered(answers("sa"));
        assert!(lines.next_wave().is_empty());
        let outcome = lines.end();
        assert!(outcome.outage.is_some());
        assert_eq!(outcome.settled.len(), 1);
    }

    #[test]
    fn waits_double_to_an_hour_or_to_a_minute_where_room_may_come() {
        let waits = |transient| [1, 2, 5, 13, u32::MAX].map(|attempts| wait_after(attempts, transient).as_secs());
        assert_eq!(waits(false), [1, 2, 16, 3_600, 3_600]);
        assert_eq!(waits(true), [1, 2, 16, 60, 60]);
    }
}
