//! The algebra of NATS subjects, exactly as the server has it: `*` is one token, `>` one or more at the end.

use std::collections::BTreeSet;

/// What stands for the tokens that no pattern names.
const OTHER: &str = " ";

fn tokens(subject: &str) -> Vec<&str> {
    subject.split('.').collect()
}

/// Why a text is no subject, or no pattern of subjects.
pub(super) fn fault(subject: &str) -> Option<&'static str> {
    let (tokens, wild) = (tokens(subject), |token: &&str| token.len() > 1 && token.contains(['*', '>']));
    match subject {
        "" => Some("it is empty"),
        s if s.contains(|c: char| c.is_whitespace() || c.is_control()) => {
            Some("it has white space or a control character")
        }
        _ if tokens.contains(&"") => Some("a dot begins it, ends it or follows another"),
        _ if tokens.iter().rev().skip(1).any(|token| *token == ">") => Some("`>` is not its last token"),
        _ if tokens.iter().any(wild) => Some("`*` and `>` are not tokens of their own"),
        _ => None,
    }
}

/// Whether there is a subject that both patterns match.
pub(super) fn overlap(one: &str, other: &str) -> bool {
    let (mut one, mut other) = (one.split('.'), other.split('.'));
    loop {
        match (one.next(), other.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(a), Some(b)) if a == b || a == "*" || b == "*" => {}
            _ => return false,
        }
    }
}

/// Whether each subject that a pattern matches is matched by one of the others, or by several of them together.
pub(super) fn covers<T: AsRef<str>>(patterns: &[T], pattern: &str) -> bool {
    let patterns = patterns.iter().map(|pattern| tokens(pattern.as_ref())).collect();
    covered(&patterns, &tokens(pattern))
}

fn covered(patterns: &BTreeSet<Vec<&str>>, pattern: &[&str]) -> bool {
    let Some((first, rest)) = pattern.split_first() else { return patterns.contains(&Vec::new()) };
    if patterns.iter().any(|pattern| *pattern == [">"]) {
        return true;
    }
    let named = || patterns.iter().filter_map(|pattern| pattern.first()).filter(|token| **token != "*");
    let after = |token: &str| -> BTreeSet<Vec<&str>> {
        let same =
            patterns.iter().filter(|pattern| pattern.first().is_some_and(|first| *first == "*" || *first == token));
        same.map(|pattern| pattern[1..].to_vec()).collect()
    };
    let on = |token: &str| match *first {
        ">" => covered(&after(token), &[]) && covered(&after(token), &[">"]),
        _ => covered(&after(token), rest),
    };
    match *first {
        // Without a pattern that goes on as it begins, there are always longer ones.
        ">" if patterns.is_empty() => false,
        "*" | ">" => on(OTHER) && named().all(|token| on(token)),
        token => on(token),
    }
}

/// What the subjects of a stream are once its transform has changed them: tokens that it computes are `*`.
pub(super) fn transformed(from: &str, to: &str, subjects: &[String]) -> Vec<String> {
    let mut made: Vec<&str> = Vec::new();
    for token in to.split('.') {
        match token {
            token if token.starts_with("{{") && !one_token(token) => {
                made.push(">");
                break;
            }
            token if token.starts_with("{{") || token.starts_with('$') => made.push("*"),
            token => made.push(token),
        }
    }
    let unchanged = subjects.iter().filter(|subject| !covers(&[from], subject)).cloned();
    unchanged.chain([made.join(".")]).collect()
}

/// Whether a function of a transform makes one token; others make as many as they like.
fn one_token(function: &str) -> bool {
    let name = function.trim_start_matches('{').trim_start().to_ascii_lowercase();
    name.starts_with("partition") || name.starts_with("wildcard")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn it_is_as_the_server_has_it() {
        let cases: Value = serde_json::from_str(include_str!("../../tests/vectors/subjects.json")).unwrap();
        let cases = |name: &str| cases[name].as_array().unwrap().clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let mut count = 0;
        for case in cases("match") {
            let (pattern, subject, expected) = (text(&case[0]), text(&case[1]), case[2].as_bool().unwrap());
            assert_eq!(covers(&[&pattern], &subject), expected, "{case}");
            assert_eq!(overlap(&pattern, &subject), expected, "{case}");
            count += 1;
        }
        for case in cases("overlap") {
            let (one, other, expected) = (text(&case[0]), text(&case[1]), case[2].as_bool().unwrap());
            assert_eq!((overlap(&one, &other), overlap(&other, &one)), (expected, expected), "{case}");
            count += 1;
        }
        for case in cases("covers") {
            let patterns: Vec<String> = case[0].as_array().unwrap().iter().map(text).collect();
            assert_eq!(covers(&patterns, &text(&case[1])), case[2].as_bool().unwrap(), "{case}");
            count += 1;
        }
        assert_eq!(count, 24);
    }

    #[test]
    fn several_may_cover_what_none_does_alone() {
        assert!(covers(&["*", "*.>"], ">"));
        assert!(covers(&["a", "*.*", "*.*.>", "*"], ">"));
        assert!(!covers(&["a", "*.>"], ">"));
        assert!(!covers(&["a.*", "b.*"], "*.*"));
        assert!(covers(&["a.b.*", "a.*.c", "a.>"], "a.*.*"));
    }

    #[test]
    fn a_text_that_is_no_subject_says_why() {
        for (subject, why) in
            [("", "empty"), ("a b", "space"), ("a..b", "dot"), (".a", "dot"), ("a.>.b", "last"), ("a*.b", "own")]
        {
            assert!(fault(subject).is_some_and(|fault| fault.contains(why)), "{subject}");
        }
        assert!(["a", "a.*.b", ">", "a.>", "a-b.c"].iter().all(|subject| fault(subject).is_none()));
    }

    #[test]
    fn a_transform_is_known_by_what_it_makes() {
        let subjects = ["shop.*".to_owned(), "orders.16.*.>".to_owned()];
        let made = transformed("shop.*", "orders.16.{{partition(16,1)}}._.{{wildcard(1)}}", &subjects);
        assert_eq!(made, ["orders.16.*.>", "orders.16.*._.*"]);
        assert_eq!(transformed("shop.*", "a.{{split(1,-)}}.b", &subjects[..1]), ["a.>"]);
        assert_eq!(transformed("shop.*", "a.$1", &subjects[..1]), ["a.*"]);
    }

    /// All subjects of up to five tokens of an alphabet, of which patterns name all but the last letter.
    fn subjects() -> Vec<String> {
        let (mut all, mut last) = (Vec::new(), vec![String::new()]);
        for _ in 0..5 {
            last = last.iter().flat_map(|begin| ["a", "b", "z"].map(|token| format!("{begin}.{token}"))).collect();
            all.extend(last.iter().map(|subject| subject[1..].to_owned()));
        }
        all
    }

    fn is_match(pattern: &str, subject: &str) -> bool {
        let (pattern, subject) = (tokens(pattern), tokens(subject));
        let begin = pattern.iter().position(|token| *token == ">").unwrap_or(pattern.len());
        let long_enough = if begin < pattern.len() { subject.len() > begin } else { subject.len() == begin };
        long_enough && pattern[..begin].iter().zip(&subject).all(|(p, s)| *p == "*" || p == s)
    }

    fn pattern() -> impl Strategy<Value = String> {
        let token = prop_oneof![Just("a"), Just("b"), Just("*")];
        (prop::collection::vec(token, 0..4), any::<bool>()).prop_map(|(mut tokens, tail)| {
            if tail || tokens.is_empty() {
                tokens.push(">");
            }
            tokens.join(".")
        })
    }

    proptest! {
        #[test]
        fn overlap_is_what_trying_all_subjects_finds(one in pattern(), other in pattern()) {
            let found = subjects().iter().any(|subject| is_match(&one, subject) && is_match(&other, subject));
            prop_assert_eq!(overlap(&one, &other), found);
        }

        #[test]
        fn covering_is_what_trying_all_subjects_finds(
            patterns in prop::collection::vec(pattern(), 0..5),
            one in pattern(),
        ) {
            let left_out = subjects().into_iter().find(|subject| {
                is_match(&one, subject) && !patterns.iter().any(|pattern| is_match(pattern, subject))
            });
            prop_assert_eq!(covers(&patterns, &one), left_out.is_none(), "{:?}", left_out);
        }
    }
}
