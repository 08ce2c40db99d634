//! Foreign types in public signatures bind the library's version to theirs: only those that were agreed on.

use std::collections::BTreeMap;

use crate::imports::{inline_path, uses};
use crate::source::{Finding, Source, blank, block_end, block_start, identifier, item_end, words};

/// What may be seen from outside: a path and all below it.
const ALLOWED: [&str; 9] = [
    "bytes",
    "bytestring",
    "prost",
    "serde_core",
    "sqlx",
    "tokio::time::Instant",
    "tower_layer",
    "tower_service",
    "uuid",
];

/// The names of the crates that a manifest's normal dependencies bring, as code writes them.
pub(crate) fn dependencies(manifest: &str) -> Vec<String> {
    let (mut names, mut inside) = (Vec::new(), false);
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]") && !line.contains("dev-") && !line.contains("build-");
        } else if let Some((name, _)) = line.split_once('=').filter(|_| inside && !line.starts_with(['#', ' '])) {
            names.push(name.trim().trim_end_matches(".workspace").replace('-', "_"));
        }
    }
    names
}

pub(crate) fn check(sources: &[Source], dependencies: &[String]) -> Vec<Finding> {
    sources.iter().flat_map(|s| check_file(s, dependencies)).collect()
}

fn check_file(source: &Source, dependencies: &[String]) -> Vec<Finding> {
    let code = without_attributes(&source.live);
    let imported = imported(&code, dependencies);
    let mut findings = Vec::new();
    for (start, end) in signatures(&code) {
        for (offset, path) in foreign(&code[start..end], &imported, dependencies) {
            let path = path.join("::");
            let allowed = |a: &str| path.strip_prefix(a).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
            if !ALLOWED.iter().any(|a| allowed(a)) {
                let what = format!(
                    "`{path}` in a public signature ties users to that crate's version: wrap it in a type of our own"
                );
                findings.push(source.finding(start + offset, what));
            }
        }
    }
    findings
}

/// The names that a file imports from dependencies, with their paths.
fn imported(code: &str, dependencies: &[String]) -> BTreeMap<String, Vec<String>> {
    let paths = uses(code).into_iter().flat_map(|u| u.paths);
    paths.filter(|(_, path)| path.first().is_some_and(|root| dependencies.contains(root))).collect()
}

/// Where public signatures are: functions without their bodies, traits with their methods', types with their public fields.
fn signatures(code: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for at in words(code, "pub") {
        let item = code[at + 3..].trim_start();
        let start = code.len() - item.len();
        let words = item.trim_start_matches("const ").trim_start_matches("async ").trim_start_matches("unsafe ");
        let head_end = block_start(code, start).unwrap_or(code.len());
        match identifier(words) {
            _ if item.starts_with('(') => {}
            "use" | "mod" => {}
            "trait" => found.extend(trait_signatures(code, start)),
            "enum" | "type" | "static" => found.push((start, item_end(code, start))),
            // The public fields are found by their own `pub`; of a tuple's only those count.
            "struct" => found.push((start, code[start..head_end].find('(').map_or(head_end, |i| start + i))),
            "fn" => found.push((start, head_end)),
            _ => found.push((start, start + field_len(item))),
        }
    }
    for at in words(code, "impl").filter(|&at| code[..at].ends_with('\n')) {
        let end = block_start(code, at).unwrap_or(code.len());
        if code[at..end].contains("From<") {
            found.push((at, end));
        }
    }
    found
}

fn trait_signatures(code: &str, start: usize) -> Vec<(usize, usize)> {
    let Some(open) = block_start(code, start) else { return Vec::new() };
    let end = block_end(code, open);
    let heads = words(&code[open..end], "fn").map(|at| open + at).map(|at| (at, block_start(code, at).unwrap_or(end)));
    [(start, open)].into_iter().chain(heads).collect()
}

/// How long the type of a field or constant is: to the comma, bracket or value that ends it.
fn field_len(field: &str) -> usize {
    let mut depth = 0;
    for (i, c) in field.char_indices() {
        match c {
            ')' | ']' | '}' | ',' | ';' | '=' if depth == 0 => return i,
            '<' | '(' | '[' | '{' => depth += 1,
            '>' if field[..i].ends_with('-') => {}
            '>' | ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
    }
    field.len()
}

/// The foreign paths in a signature, and where.
fn foreign(text: &str, imported: &BTreeMap<String, Vec<String>>, dependencies: &[String]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let name = identifier(&text[at..]);
        if name.is_empty() || text[at..].starts_with(char::is_whitespace) {
            at += text[at..].chars().next().map_or(1, char::len_utf8);
            continue;
        }
        let path = inline_path(&text[at..]);
        let len = path.iter().map(String::len).sum::<usize>() + 2 * (path.len() - 1);
        if let Some(full) = imported.get(name) {
            found.push((at, [full, &path[1..]].concat()));
        } else if path.len() > 1 && dependencies.contains(&path[0]) {
            found.push((at, path));
        }
        at += len.max(1);
    }
    found
}

fn without_attributes(code: &str) -> String {
    let mut code = code.to_owned();
    let mut from = 0;
    while let Some(at) = code[from..].find("#[").map(|i| from + i) {
        let mut depth = 0_i32;
        let end = code[at..].char_indices().find_map(|(i, c)| {
            depth += i32::from(c == '[') - i32::from(c == ']');
            (c == ']' && depth == 0).then_some(at + i + 1)
        });
        let end = end.unwrap_or(code.len());
        let gap = blank(&code[at..end]);
        code.replace_range(at..end, &gap);
        from = end;
    }
    code
}

mod lints {
    use super::*;
    use crate::source::planted;

    fn found(text: &str) -> Vec<String> {
        let dependencies = ["bytes", "jiff", "tokio", "serde_json", "parking_lot"].map(str::to_owned);
        let what = check(&planted(&[("a.rs", text)]), &dependencies).into_iter().map(|f| f.what);
        what.map(|w| w.split('`').nth(1).unwrap_or("").to_owned()).collect()
    }

    #[test]
    fn foreign_types_in_public_signatures_are_found() {
        assert_eq!(found("pub fn f(a: jiff::Timestamp) {}"), ["jiff::Timestamp"]);
        assert_eq!(
            found("use parking_lot::Mutex;\nimpl A { pub async fn f(&self) -> Result<Mutex<u8>, E> { x } }"),
            ["parking_lot::Mutex"]
        );
        assert_eq!(found("pub struct A { pub value: serde_json::Value, b: jiff::Span }"), ["serde_json::Value"]);
        assert_eq!(found("pub struct A(jiff::Span, pub jiff::Zoned);"), ["jiff::Zoned"]);
        assert_eq!(found("pub enum A { B(jiff::Span) }"), ["jiff::Span"]);
        assert_eq!(found("pub trait A { fn f(&self) -> jiff::Span { jiff::Zoned::now() } }"), ["jiff::Span"]);
        assert_eq!(found("impl From<serde_json::Error> for A {}\n").len(), 0);
        assert_eq!(found("\nimpl From<serde_json::Error> for A {}\n"), ["serde_json::Error"]);
        assert_eq!(found("use tokio::sync as s;\npub fn f() -> s::Notify {}"), ["tokio::sync::Notify"]);
    }

    #[test]
    fn agreed_and_hidden_types_pass() {
        for text in [
            "use bytes::Bytes;\npub fn f(a: Bytes) -> tokio::time::Instant { jiff::now() }",
            "pub(crate) fn f(a: jiff::Timestamp) {}",
            "pub struct A(jiff::Timestamp);",
            "impl A { pub const B: Self = Self(jiff::Timestamp::MIN); }",
            "#[derive(jiff::X)]\npub struct A { a: jiff::Span }",
            "pub fn f() {}\nfn g(a: jiff::Span) {}",
        ] {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }

    #[test]
    fn normal_dependencies_are_read_from_the_manifest() {
        let manifest = "[dependencies]\ntower-layer = \"1\"\n# a = 1\n[target.'cfg(unix)'.dependencies]\nrustix = \"1\"\n[dev-dependencies]\nproptest = \"1\"\n";
        assert_eq!(dependencies(manifest), ["tower_layer", "rustix"]);
    }
}
