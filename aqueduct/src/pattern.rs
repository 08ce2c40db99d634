//! Patterns over event types and topics, such as `order.placed`, `payment.*` and `audit.>`.

use std::cmp::Ordering;

use crate::topic::Text;

/// A pattern over event types. A type is read as segments split at `.`; in a pattern `*` stands for exactly one segment
/// and `>`, which must come last, for one or more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pattern(Text);

/// A text that is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is no type pattern: {fault}")]
pub(crate) struct PatternError {
    pattern: Text,
    fault: &'static str,
}

const ONE: &str = "*";
const REST: &str = ">";

impl Pattern {
    /// Reads a pattern.
    pub(crate) fn parse(text: &str) -> Result<Self, PatternError> {
        let fault = |fault| Err(PatternError { pattern: text.into(), fault });
        if text.is_empty() {
            return fault("it is empty; `>` matches every type");
        }
        let mut segments = text.split('.').peekable();
        while let Some(segment) = segments.next() {
            match segment {
                "" => return fault("a segment between dots is empty"),
                ONE => {}
                REST if segments.peek().is_none() => {}
                REST => return fault("`>` must be the last segment; `*` matches one segment anywhere"),
                s if s.contains(['*', '>']) => return fault("`*` and `>` stand for whole segments between dots"),
                _ => {}
            }
        }
        Ok(Self(text.into()))
    }

    /// True if an event of this type is meant.
    pub(crate) fn matches(&self, kind: &str) -> bool {
        self.is_exact() && self.0.as_str() == kind || covers(self.segments(), kind.split('.'), false)
    }

    /// Which of two patterns is the more specific one: `Less` if every type that this one matches is matched by the other
    /// too, `Greater` the other way round. `Equal` if they match the same types, or have no type in common. None if they
    /// share some types and each has others: then nothing says which of them wins.
    pub(crate) fn cmp_specificity(&self, other: &Self) -> Option<Ordering> {
        match (covers(other.segments(), self.segments(), true), covers(self.segments(), other.segments(), true)) {
            (true, false) => Some(Ordering::Less),
            (false, true) => Some(Ordering::Greater),
            (true, true) => Some(Ordering::Equal),
            (false, false) => (!self.overlaps(other)).then_some(Ordering::Equal),
        }
    }

    /// True if some type is matched by both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let (mut ours, mut theirs) = (self.segments(), other.segments());
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) | (Some(REST), Some(_)) | (Some(_), Some(REST)) => return true,
                (Some(a), Some(b)) if a == b || a == ONE || b == ONE => {}
                _ => return false,
            }
        }
    }

    /// True if it has no wildcard, and so matches one type.
    pub(crate) fn is_exact(&self) -> bool {
        !self.0.as_str().contains(['*', '>'])
    }

    /// The pattern's text.
    pub(crate) fn as_str(&self) -> &str {
        self.0.as_str()
    }

    fn segments(&self) -> std::str::Split<'_, char> {
        self.0.as_str().split('.')
    }
}

/// True if everything that `narrow` stands for is matched by `wide`. The segments of `narrow` are those of a pattern, or
/// else of a type, in which `*` and `>` mean nothing.
fn covers<'a>(
    mut wide: impl Iterator<Item = &'a str>,
    mut narrow: impl Iterator<Item = &'a str>,
    narrow_is_pattern: bool,
) -> bool {
    loop {
        match (wide.next(), narrow.next()) {
            (None, None) | (Some(REST), Some(_)) => return true,
            (Some(ONE), Some(n)) if !(narrow_is_pattern && n == REST) => {}
            (Some(w), Some(n)) if w == n && w != ONE => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(text: &str) -> Pattern {
        Pattern::parse(text).unwrap()
    }

    #[test]
    fn wildcards_stand_for_segments() {
        let table = [
            ("order.placed", "order.placed", true),
            ("order.placed", "order.placed.twice", false),
            ("order.*", "order.placed", true),
            ("order.*", "order", false),
            ("order.*", "order.placed.twice", false),
            ("*.placed", "order.placed", true),
            ("order.>", "order.placed.twice", true),
            ("order.>", "order.placed", true),
            ("order.>", "order", false),
            (">", "anything", true),
            ("*", "any.thing", false),
            ("order.placed", "order.*", false),
            ("order.*", "order.>", true),
            ("order.*", "order.*", true),
        ];
        for (pattern, kind, matches) in table {
            assert_eq!(p(pattern).matches(kind), matches, "{pattern} {kind}");
        }
    }

    #[test]
    fn a_bad_pattern_says_what_is_wrong() {
        for (bad, why) in [
            ("", "empty"),
            ("a..b", "segment between dots is empty"),
            (".a", "segment between dots is empty"),
            ("a.>.b", "last segment"),
            ("a.b*", "whole segments"),
            ("a>", "whole segments"),
        ] {
            let text = Pattern::parse(bad).unwrap_err().to_string();
            assert!(text.contains(why) && text.contains(&format!("{bad:?}")), "{text}");
        }
    }

    #[test]
    fn the_narrower_pattern_is_less() {
        use Ordering::{Equal, Greater, Less};
        let table = [
            ("a.b", "a.*", Some(Less)),
            ("a.*", "a.b", Some(Greater)),
            ("a.*", "a.>", Some(Less)),
            ("a.*.c", "a.>", Some(Less)),
            ("a.>", ">", Some(Less)),
            ("*.>", ">", Some(Less)),
            ("*", ">", Some(Less)),
            ("a.b", "a.b", Some(Equal)),
            ("a.*", "a.*", Some(Equal)),
            ("a.*", "*.b", None),
            ("a.>", "*.b", None),
            ("a.*.c", "a.b.>", None),
            ("a.*", "b.*", Some(Equal)),
            ("a", "a.>", Some(Equal)),
        ];
        for (a, b, order) in table {
            assert_eq!(p(a).cmp_specificity(&p(b)), order, "{a} {b}");
            assert_eq!(p(b).cmp_specificity(&p(a)), order.map(Ordering::reverse), "{b} {a}");
        }
    }

    #[test]
    fn overlap_and_order_agree_with_what_is_matched() {
        let segments = ["a", "b", "*", ">"];
        let mut patterns = Vec::new();
        let mut kinds = Vec::new();
        for x in segments {
            for y in ["", "a", "b", "*", ">"] {
                for z in ["", "a", "b", "*", ">"] {
                    let text = [x, y, z].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join(".");
                    if !text.contains(['*', '>']) {
                        // A segment that no pattern names stands for all the others.
                        kinds.extend([text.clone(), text.replace('a', "c"), format!("{text}.c"), format!("c.{text}")]);
                    }
                    patterns.extend(Pattern::parse(&text));
                }
            }
        }
        for a in &patterns {
            for b in &patterns {
                let (both, only_a, only_b) = kinds.iter().fold((false, false, false), |seen, k| {
                    let (a, b) = (a.matches(k), b.matches(k));
                    (seen.0 || a && b, seen.1 || a && !b, seen.2 || b && !a)
                });
                assert_eq!(a.overlaps(b), both, "{a:?} {b:?}");
                let expected = match (both, only_a, only_b) {
                    (true, true, true) => None,
                    (true, false, true) => Some(Ordering::Less),
                    (true, true, false) => Some(Ordering::Greater),
                    _ => Some(Ordering::Equal),
                };
                assert_eq!(a.cmp_specificity(b), expected, "{a:?} {b:?}");
            }
        }
    }
}
