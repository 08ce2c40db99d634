//! What this library writes in front of the reason in a column for errors: that the row is parked by it, in which lane,
//! when it is due, and how often it was refused.
//!
//! Every part has its place, so that SQL can look at it: `[aqueduct LANE DUE TRIES] why`, the lane in 16 hexadecimal digits,
//! the time in 13 digits of milliseconds.

use crate::clock::Timestamp;
use crate::topic::LaneId;

/// Where they stand, counted from 1 as SQL does; the time ends before `REST`.
const LANE: usize = 11;
const DUE: usize = 28;
const REST: usize = 41;

const BEGIN: &str = "[aqueduct ";

/// What is read back from a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) lane: LaneId,
    pub(super) due: Timestamp,
    pub(super) refused: u32,
    pub(super) why: String,
}

impl Mark {
    pub(super) fn write(&self) -> String {
        format!("{}{} {}] {}", begin(self.lane), due(self.due), self.refused, self.why)
    }

    /// None for what somebody else wrote.
    pub(super) fn read(text: &str) -> Option<Self> {
        let (head, why) = text.strip_prefix(BEGIN)?.split_once("] ")?;
        let mut parts = head.split(' ');
        let lane = LaneId(u64::from_str_radix(parts.next().filter(|lane| lane.len() == 16)?, 16).ok()?);
        let due = Timestamp::from_unix_ms(parts.next()?.parse().ok()?);
        Some(Self { lane, due, refused: parts.next()?.parse().ok()?, why: why.to_owned() })
    }
}

/// How the marks of a lane begin.
pub(super) fn begin(lane: LaneId) -> String {
    format!("{BEGIN}{:016x} ", lane.0)
}

pub(super) fn due(due: Timestamp) -> String {
    format!("{:013}", due.unix_ms().clamp(0, 9_999_999_999_999))
}

/// The condition that a column has a mark.
pub(super) fn is_marked(column: &str) -> String {
    format!("{column} like '{BEGIN}{} {} %] %'", "_".repeat(16), "_".repeat(13))
}

/// The expression for the lane, and for when it is due.
pub(super) fn parts(column: &str) -> [String; 2] {
    [format!("substr({column}, {LANE}, 16)"), format!("substr({column}, {DUE}, 13)")]
}

/// The expression for a mark that is due at another time, which is its argument.
pub(super) fn redated(column: &str) -> String {
    format!("concat(substr({column}, 1, {}), ?, substr({column}, {REST}))", DUE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_comes_back_and_stands_where_sql_looks() {
        let due = Timestamp::from_unix_ms(1_767_323_045_678);
        let mark = Mark { lane: LaneId(0xab), due, refused: 3, why: "no] such topic".into() };
        let text = mark.write();
        assert_eq!(text, "[aqueduct 00000000000000ab 1767323045678 3] no] such topic");
        assert_eq!(Mark::read(&text), Some(mark));
        assert_eq!(
            (&text[LANE - 1..][..16], &text[DUE - 1..][..13], &text[REST - 1..][..3]),
            ("00000000000000ab", "1767323045678", " 3]")
        );
        for other in ["", "NATS::IO::Timeout", "[aqueduct 1] no", "[aqueduct 00000000000000ab x 3] no"] {
            assert_eq!(Mark::read(other), None, "{other}");
        }
    }
}
