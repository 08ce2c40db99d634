//! Every area keeps its budget of code lines, comments and tests not counted.

use std::collections::BTreeMap;

use crate::source::{Finding, Source};

/// More than its budget, with a sentence in ARCHITECTURE.md that says why: area and lines.
const EXCEEDED: [(&str, usize); 7] = [
    ("broker/nats", 2_550),
    ("broker/sqlite", 2_410),
    ("engine", 3_760),
    ("format/cloudevents", 450),
    ("compat", 1_100),
    ("store/sql", 4_050),
    ("the servers' databases", 2_870),
];

/// The area that a file counts for and its budget; none for the test kit, which is tests.
fn area(source: &Source) -> Option<(String, usize)> {
    let module = source.module();
    match module[..] {
        ["testing", ..] | ["store", "sql", "server", "planted"] => None,
        ["engine", "relay", ..]
        | ["store", "outbox"]
        | ["store", "sql", "outgoing" | "relay" | "relay_status" | "sole"] => Some(("the relay".into(), 1_800)),
        ["compat", system @ ("jetstream_bridge" | "tupic" | "windshift"), ..] if !module.ends_with(&["tables"]) => {
            Some((format!("compat/{system}"), 400))
        }
        ["compat", ..] | ["store", "sql", "beside"] => Some(("compat".into(), 700)),
        ["topology", ..] => Some(("topology".into(), 1_650)),
        ["engine", ..] => Some(("engine".into(), 3_000)),
        ["broker", "nats", "foreign", ..] => Some(("streams of others on NATS".into(), 700)),
        ["broker", name, ..] if name != "floor" => Some((format!("broker/{name}"), 2_000)),
        ["store", "sql", "server", ..] => Some(("the servers' databases".into(), 2_300)),
        ["store", "sql", ..] => Some(("store/sql".into(), 4_000)),
        ["format", name, ..] if name != "object" => Some((format!("format/{name}"), 400)),
        _ => Some(("the rest of the library".into(), 5_000)),
    }
}

pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut lines: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for source in sources {
        if let Some((name, budget)) = area(source) {
            lines.entry(name).or_insert((0, budget)).0 += source.live_lines();
        }
    }
    for (name, (used, budget)) in &lines {
        println!("{name}: {used} lines (bar {budget})");
    }
    let mut findings = Vec::new();
    for (name, (used, budget)) in lines {
        let bar = EXCEEDED.iter().find(|(n, _)| *n == name).map_or(budget, |(_, more)| *more);
        if used > bar {
            let what = format!(
                "{used} lines of code, {bar} is the budget: make it simpler, or say in ARCHITECTURE.md why not"
            );
            findings.push(Finding { at: name, what });
        }
    }
    findings
}

mod lints {
    use super::*;
    use crate::source::planted;

    #[test]
    fn an_area_above_its_budget_is_found() {
        let at = |path: &str, lines: usize| {
            let text = format!("// why\n\n{}#[cfg(test)]\nmod tests {{\n}}\n", "fn f() {}\n".repeat(lines));
            check(&planted(&[(path, &text), ("engine/mod.rs", "mod a;")])).into_iter().map(|f| f.at).collect::<Vec<_>>()
        };
        assert_eq!(at("format/json.rs", 400), [""; 0]);
        assert_eq!(at("format/json.rs", 401), ["format/json"]);
        assert_eq!(at("compat/tupic/format.rs", 401), ["compat/tupic"]);
        assert_eq!(at("compat/tupic/tables.rs", 1_100), [""; 0]);
        assert_eq!(at("engine/lanes.rs", 3_760), ["engine"]);
        assert_eq!(at("broker/memory/log.rs", 2_001), ["broker/memory"]);
        assert_eq!(at("router.rs", 5_001), ["the rest of the library"]);
        assert_eq!(at("testing/sim/mod.rs", 9_000), [""; 0]);
    }
}
