//! Files, functions, folders and names keep their measure.

use std::collections::BTreeMap;

use crate::source::{Finding, Source, block_end, block_start, identifier, line_of, words};

/// Lines of a file, tests not counted; aim at 300.
const FILE_LINES_MAX: usize = 800;
/// Lines of code of a function; aim at 30.
const FUNCTION_LINES_MAX: usize = 70;
const FOLDERS_MAX: usize = 3;
const NAMES: [&str; 6] = ["common", "helper", "helpers", "misc", "util", "utils"];

pub(crate) fn check(sources: &[Source]) -> Vec<Finding> {
    let mut findings: Vec<_> = sources.iter().flat_map(|s| [file(s), functions(s), names(s)].concat()).collect();
    findings.extend(lonely(sources));
    findings
}

fn file(source: &Source) -> Vec<Finding> {
    let tests = source.code.lines().zip(source.live.lines()).filter(|(code, live)| code != live).count();
    let lines = source.code.lines().count() - tests;
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![
        source.finding(
            0,
            format!("{lines} lines without tests, {FILE_LINES_MAX} is the most: split it by what it is about"),
        ),
    ]
}

fn functions(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for at in words(&source.code, "fn") {
        let name = identifier(&source.code[at + 2..]);
        let Some(open) = block_start(&source.code, at).filter(|_| !name.is_empty()) else { continue };
        if source.code[open..].starts_with(';') {
            continue;
        }
        let text = &source.code[at..block_end(&source.code, open)];
        let lines = text.lines().filter(|l| !l.trim().is_empty()).count();
        if lines > FUNCTION_LINES_MAX {
            let what =
                format!("`{name}` has {lines} lines, {FUNCTION_LINES_MAX} is the most: name its steps as functions");
            findings.push(source.finding(at, what));
        }
    }
    findings
}

fn names(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    let module = source.module();
    if let Some(name) = module.iter().find(|n| NAMES.contains(n)) {
        findings.push(source.finding(0, format!("`{name}` says nothing: name it after what is in it")));
    }
    for at in words(&source.code, "mod") {
        let name = identifier(&source.code[at + 3..]);
        let is_block = source.code[at + 3..].split(['{', ';']).next().is_some_and(|n| n.trim() == name);
        if is_block && NAMES.contains(&name) && line_of(&source.code, at) > 0 {
            findings.push(source.finding(at, format!("`mod {name}` says nothing: name it after what is in it")));
        }
    }
    let folders = source.path.matches('/').count();
    if folders > FOLDERS_MAX {
        findings
            .push(source.finding(0, format!("{folders} folders deep, {FOLDERS_MAX} is the most: bring it further up")));
    }
    findings
}

/// Folders with a single file.
fn lonely(sources: &[Source]) -> Vec<Finding> {
    let mut folders: BTreeMap<&str, (usize, &Source)> = BTreeMap::new();
    for source in sources {
        let above = source.path.match_indices('/').map(|(i, _)| &source.path[..i]);
        above.for_each(|folder| folders.entry(folder).or_insert((0, source)).0 += 1);
    }
    let single = folders.iter().filter(|(folder, (files, _))| *files == 1 && !folder.ends_with("bin"));
    single.map(|(f, (_, s))| s.finding(0, format!("alone in the folder `{f}`: make it `{f}.rs`"))).collect()
}

mod lints {
    use super::*;
    use crate::source::planted;

    fn found(path: &str, text: &str) -> usize {
        check(&planted(&[(path, text)])).len()
    }

    #[test]
    fn a_long_file_is_found_and_tests_do_not_count() {
        let long = "fn f() {}\n".repeat(801);
        assert_eq!(found("a.rs", &long), 1);
        assert_eq!(found("a.rs", &long[10..]), 0);
        assert_eq!(found("a.rs", &format!("#[cfg(test)]\nmod t {{\n{long}}}\n")), 0);
    }

    #[test]
    fn a_long_function_is_found_and_comments_do_not_count() {
        let body = |line: &str| format!("impl A {{\n fn f(a: [u8; 3]) {{\n{}\n }}\n}}", line.repeat(69));
        assert_eq!(found("a.rs", &body("let a = 1;\n")), 1);
        assert_eq!(found("a.rs", &body("// why\n")), 0);
    }

    #[test]
    fn names_that_say_nothing_are_found() {
        assert_eq!(found("util.rs", ""), 1);
        assert_eq!(found("a.rs", "mod helpers;"), 1);
        assert_eq!(found("a.rs", "pub mod common {}"), 1);
        assert_eq!(found("a.rs", "mod commons;"), 0);
    }

    #[test]
    fn deep_and_lonely_folders_are_found() {
        assert_eq!(check(&planted(&[("a/b/c/d/e.rs", ""), ("a/b/c/d/f.rs", "")])).len(), 2);
        assert_eq!(check(&planted(&[("a/mod.rs", ""), ("a/b/c.rs", "")])).len(), 1);
        assert_eq!(check(&planted(&[("a/b.rs", ""), ("a/mod.rs", "")])).len(), 0);
    }
}
