//! The order of a std `HashMap` or `HashSet` differs in each run: nothing goes through one from end to end.

use crate::source::{Finding, Source, identifier, words};

const ORDERLESS: [&str; 2] = ["HashMap", "HashSet"];
const WALKS: [&str; 12] = [
    "iter()",
    "iter_mut()",
    "keys()",
    "values()",
    "values_mut()",
    "drain()",
    "into_iter()",
    "into_keys()",
    "into_values()",
    "extract_if(",
    "difference(",
    "union(",
];
/// Calls between a name and the walk that change nothing about what is walked through.
const BETWEEN: [&str; 9] =
    ["lock()", "borrow()", "borrow_mut()", "as_ref()", "as_mut()", "read()", "write()", "get_mut()", "clone()"];

pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        for name in names(&source.live) {
            let walked = words(&source.live, &name).filter(|&at| is_walk(&source.live, at, name.len()));
            findings.extend(walked.map(|at| {
                let what = format!("`{name}` is a hash map or set, whose order differs in each run: use a `BTreeMap`");
                source.finding(at, what)
            }));
        }
    }
    findings
}

/// The fields and variables of a file that are hash maps or sets.
fn names(code: &str) -> Vec<String> {
    let mut types: Vec<String> = ORDERLESS.map(str::to_owned).to_vec();
    for at in words(code, "type") {
        let item = code[at..].split(';').next().unwrap_or("");
        if ORDERLESS.iter().any(|t| words(item, t).next().is_some()) {
            types.push(identifier(&item["type".len()..]).to_owned());
        }
    }
    let mut names: Vec<_> = types.iter().flat_map(|t| words(code, t).filter_map(|at| name_before(code, at))).collect();
    names.sort();
    names.dedup();
    names
}

/// The name that is given to what stands at `at`: `name: &mut Mutex<HashMap` or `let name = HashMap`; `0` in a tuple.
fn name_before(code: &str, at: usize) -> Option<String> {
    let start = code[..at].rfind([';', '{', '}', ',']).map_or(0, |i| i + 1);
    let line = code[start..at].trim_start();
    if line.starts_with("use ") || line.starts_with("type ") || line.contains("->") {
        return None;
    }
    let (name, kind) = match (line.rsplit_once(" = "), first_colon(line), line.split_once('(')) {
        (Some((name, _)), ..) => (&name[..first_colon(name).unwrap_or(name.len())], ""),
        (None, Some(colon), _) => (&line[..colon], &line[colon..]),
        (None, None, Some((item, kind))) if item.contains("struct ") => ("0", kind),
        _ => return None,
    };
    // A `Vec` of maps is walked through in its own order.
    if kind.contains("Vec<") || kind.contains("BTreeMap<") {
        return None;
    }
    let name = name.trim().rsplit([' ', '(', '|', '&']).next().unwrap_or(name);
    (!name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')).then(|| name.to_owned())
}

/// The first colon that stands alone.
fn first_colon(line: &str) -> Option<usize> {
    let alone = |&i: &usize| !line[i + 1..].starts_with(':') && !line[..i].ends_with(':');
    line.match_indices(':').map(|(i, _)| i).find(alone)
}

fn is_walk(code: &str, at: usize, len: usize) -> bool {
    let owned_by_self = code[..at].ends_with("self.");
    if code[at..at + len].starts_with('0') && !code[..at].ends_with('.') {
        return false;
    }
    let mut rest = code[at + len..].trim_start();
    while let Some(call) = rest.strip_prefix('.').map(str::trim_start) {
        if WALKS.iter().any(|w| call.starts_with(w)) {
            return true;
        }
        match BETWEEN.iter().find_map(|b| call.strip_prefix(b)) {
            Some(more) => rest = more.trim_start().trim_start_matches('?'),
            None => return false,
        }
    }
    let before = code[..at].trim_end_matches("self.").trim_end_matches("&mut ").trim_end_matches(['&', '*', ' ']);
    let looped = before.ends_with(" in") && rest.starts_with('{');
    looped && (owned_by_self || !code[..at].ends_with('.'))
}

mod lints {
    use super::*;
    use crate::source::planted;

    fn found(text: &str) -> usize {
        check(&planted(&[("a.rs", text)])).len()
    }

    #[test]
    fn walks_through_hash_maps_are_found() {
        let field = "struct A { lanes: HashMap<u8, u8>, b: u8 }\n";
        for walk in [
            "self.lanes.iter().count();",
            "for (k, v) in &self.lanes { }",
            "for k in self.lanes.keys() { }",
            "self.lanes\n    .values_mut()\n    .for_each(f);",
            "for l in lanes { }",
            "for l in &mut lanes { }",
            "lanes.drain()",
        ] {
            assert_eq!(found(&format!("{field}fn f() {{ {walk} }}")), 1, "{walk}");
        }
        assert_eq!(found("struct A(Mutex<HashSet<u8>>);\nfn f() { self.0.lock().iter(); }"), 1);
        assert_eq!(found("let mut seen = HashSet::new();\nseen.into_iter();"), 1);
        assert_eq!(found("type Seen = HashSet<u8>;\nfn f(seen: &Seen) { seen.iter(); }"), 1);
        assert_eq!(
            found(
                "struct A {\n    rows: parking_lot::Mutex<std::collections::HashMap<u8, u8>>,\n}\nfn f() { a.rows.lock().keys(); }"
            ),
            1
        );
    }

    #[test]
    fn other_uses_pass() {
        for text in [
            "use std::collections::{BTreeMap, HashMap};\nstruct A { lanes: HashMap<u8, u8> }\nfn f() { self.lanes.get(&1); self.lanes.insert(1, 2); self.lanes.len(); }",
            "struct A { rows: BTreeMap<u8, HashMap<u8, u8>> }\nfn f() { self.rows.iter(); }",
            "let a: HashMap<u8, u8> = b;\nfor x in a_list { }",
            "struct A { lanes: HashMap<u8, u8> }\n#[cfg(test)]\nmod t { fn f() { lanes.iter(); } }",
        ] {
            assert_eq!(found(text), 0, "{text}");
        }
    }
}
