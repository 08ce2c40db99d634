//! Nothing depends on chance: one seed replays a whole run.

use crate::source::{Finding, Source, block_end, words};

/// What only `clock.rs` may call, and what everything else calls instead.
const CHANCE: [(&str, &str); 11] = [
    ("SystemTime::now", "take the time from `Clock::now`"),
    ("std::time::Instant", "use `tokio::time::Instant`, or `Clock::boot`"),
    ("fastrand", "take random numbers from `Clock`"),
    ("rand::", "take random numbers from `Clock`"),
    ("Rng::new", "take random numbers from `Clock`"),
    ("getrandom", "take random numbers from `Clock`"),
    ("RandomState", "its order differs in each run: use a `BTreeMap`"),
    ("Uuid::now_v7", "take ids from `Clock::uuid`"),
    ("Uuid::new_v4", "take ids from `Clock::uuid`"),
    ("thread::spawn", "run it as a task, where the simulator sees it"),
    ("thread::sleep", "wait with `tokio::time`, which can be paused"),
];

/// What a static may not hold.
const SHARED: [&str; 8] = ["Atomic", "Cell", "LazyLock", "Lock", "Map", "Mutex", "OnceLock", "Vec"];

pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        findings.extend(selects(source));
        if source.path != "clock.rs" {
            findings.extend(chance(source));
            findings.extend(globals(source));
        }
    }
    findings
}

fn selects(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for at in words(&source.code, "select!") {
        let body = source.code[at + "select!".len()..].trim_start();
        if !body.get(1..).is_some_and(|b| b.trim_start().starts_with("biased;")) {
            findings.push(source.finding(at, "`select!` picks at random: begin it with `biased;`"));
        }
    }
    findings
}

fn chance(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (what, instead) in CHANCE {
        let found = words(&source.live, what).filter(|&at| !seeded(source, at));
        findings.extend(found.map(|at| source.finding(at, format!("`{what}`: {instead}"))));
    }
    let tokio = source.live.contains("tokio::time::Instant") || imports_tokio_instant(&source.live);
    for at in words(&source.live, "Instant::now").filter(|_| !tokio) {
        findings.push(source.finding(at, "`Instant::now`: import `tokio::time::Instant`, or use `Clock::boot`"));
    }
    for at in words(&source.live, "use std::time::") {
        let item = source.live[at..].split(';').next().unwrap_or("");
        if words(item, "Instant").next().is_some() && !item.contains("std::time::Instant") {
            findings.push(source.finding(at, "`std::time::Instant`: use `tokio::time::Instant`, or `Clock::boot`"));
        }
    }
    findings
}

/// The test kit may draw its scenarios from a generator of its own, which only a seed can make.
fn seeded(source: &Source, at: usize) -> bool {
    source.path.starts_with("testing/")
        && source.live[at..].starts_with("fastrand::Rng")
        && !source.live[at..].starts_with("fastrand::Rng::new")
}

fn imports_tokio_instant(code: &str) -> bool {
    words(code, "use tokio::").any(|at| {
        let item = code[at..].split(';').next().unwrap_or("");
        item.contains("time") && words(item, "Instant").next().is_some()
    })
}

fn globals(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for at in words(&source.live, "static").filter(|&at| !source.live[..at].ends_with('\'')) {
        let kind = source.live[at..].split(['=', ';', '{']).next().unwrap_or("");
        let changes = kind.starts_with("static mut") || kind.contains(':') && SHARED.iter().any(|s| kind.contains(s));
        if changes {
            findings
                .push(source.finding(at, "global state: two runs in one process would see each other; pass it along"));
        }
    }
    let locals = words(&source.live, "thread_local!");
    findings.extend(locals.map(|at| source.finding(at, "global state: pass it along")));
    findings
}

/// Tests wait on signals: a sleep needs a paused clock, and no test blocks its thread in one. `all`: the whole file is tests.
pub(crate) fn check_sleeps(sources: &[Source], all: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in sources {
        let in_tests = |at: &usize| all || !source.live[*at..].starts_with(&source.code[*at..=*at]);
        let thread = words(&source.code, "thread::sleep").filter(in_tests);
        findings.extend(thread.map(|at| source.finding(at, "a test sleeps: let it wait for a signal")));
        for at in words(&source.code, "sleep(").filter(in_tests) {
            let blocks = source.code[..at].ends_with("thread::");
            let declared = source.code[..at].ends_with("fn ");
            if !blocks && !declared && !under_paused_clock(&source.code, at) {
                findings
                    .push(source.finding(at, "a test sleeps in real time: pause the clock (`start_paused = true`)"));
            }
        }
    }
    findings
}

/// True if the test around `at` pauses the clock; code outside of tests is judged by the tests of its file.
fn under_paused_clock(code: &str, at: usize) -> bool {
    const PAUSES: [&str; 3] = ["start_paused = true", "start_paused(true)", "time::pause()"];
    let around = words(code, "#[tokio::test").filter(|start| *start < at).last().and_then(|start| {
        let open = start + code[start..].find('{')?;
        let end = block_end(code, open);
        (end > at).then(|| &code[start..end])
    });
    PAUSES.iter().any(|p| around.unwrap_or(code).contains(p))
}

mod lints {
    use super::*;
    use crate::source::planted;

    fn found(path: &str, text: &str) -> usize {
        check(&planted(&[(path, text)])).len()
    }

    #[test]
    fn a_select_that_is_not_biased_is_found() {
        assert_eq!(found("a.rs", "tokio::select! {\n a = b => {} }"), 1);
        assert_eq!(found("a.rs", "tokio::select! {\n // first\n biased;\n a = b => {} }"), 0);
    }

    #[test]
    fn clocks_chance_and_threads_are_found_outside_of_the_clock() {
        for text in [
            "let a = SystemTime::now();",
            "use std::time::Instant;",
            "use std::time::{Duration, Instant};",
            "let a = Instant::now();",
            "use fastrand::Rng;",
            "let a = Uuid::now_v7();",
            "let a = uuid::Uuid::new_v4();",
            "rand::random();",
            "std::thread::sleep(d);",
            "std::thread::spawn(f);",
        ] {
            assert_eq!(found("a.rs", text), 1, "{text}");
            assert_eq!(found("clock.rs", text), 0, "{text}");
        }
        assert_eq!(found("testing/sim.rs", "fastrand::u64(..); fastrand::Rng::new(); Rng::new()"), 4);
        assert_eq!(found("testing/sim.rs", "let a = fastrand::Rng::with_seed(seed);"), 0);
        assert_eq!(found("a.rs", "use tokio::time::{Duration, Instant};\nlet a = Instant::now();"), 0);
        assert_eq!(found("a.rs", "#[cfg(test)]\nmod tests { fn f() { SystemTime::now(); } }"), 0);
    }

    #[test]
    fn global_state_is_found() {
        assert_eq!(found("a.rs", "static N: AtomicU64 = AtomicU64::new(0);"), 1);
        assert_eq!(found("a.rs", "static mut N: u64 = 0;"), 1);
        assert_eq!(found("a.rs", "thread_local! { }"), 1);
        assert_eq!(found("a.rs", "static N: &str = \"\";\nfn f(a: &'static Mutex<u8>) {}"), 0);
    }

    #[test]
    fn sleeps_in_real_time_are_found() {
        let sleeps = |text: &str, all| check_sleeps(&planted(&[("a.rs", text)]), all).len();
        let real = "#[tokio::test]\nasync fn a() { tokio::time::sleep(d).await; }\n";
        let paused = "#[tokio::test(start_paused = true)]\nasync fn b() { sleep(d).await; }\n";
        assert_eq!(sleeps(real, true), 1);
        assert_eq!(sleeps(paused, true), 0);
        assert_eq!(sleeps(&format!("{paused}{real}"), true), 1);
        assert_eq!(sleeps("fn a() { std::thread::sleep(d) }", true), 1);
        assert_eq!(sleeps(&format!("fn live() {{ sleep(d) }}\n#[cfg(test)]\nmod tests {{ {real} }}"), false), 1);
    }
}
