//! Style as a test: what `ARCHITECTURE.md` and `CONTRIBUTING.md` say about the sources holds, or a test here fails with
//! the file, the line and what to do. Each rule has a test beside it that shows it a violation.

#![allow(clippy::unwrap_used, reason = "a rule that cannot read the sources has failed")]

use std::path::PathBuf;

#[path = "tidy/budget.rs"]
mod budget;
#[path = "tidy/comments.rs"]
mod comments;
#[path = "tidy/determinism.rs"]
mod determinism;
#[path = "tidy/hash_order.rs"]
mod hash_order;
#[path = "tidy/imports.rs"]
mod imports;
#[path = "tidy/levels.rs"]
mod levels;
#[path = "tidy/shape.rs"]
mod shape;
#[path = "tidy/signatures.rs"]
mod signatures;
#[path = "tidy/source.rs"]
mod source;

use source::{Finding, Source, read};

const LIBRARY: &str = "aqueduct/src";

/// The folder of the library's manifest. Cargo names it at run time; what was known when this was compiled may be another
/// checkout that shares the target folder.
fn package() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The sources below a folder of the workspace, such as `aqueduct/src`.
fn sources(folder: &str) -> Vec<Source> {
    read(&package().parent().unwrap().join(folder))
}

/// Everything that is written by hand.
const ALL: [&str; 7] =
    [LIBRARY, "aqueduct/tests", "aqueduct/benches", "aqueduct/examples", "servers/src", "servers/tests", "xtask/src"];

/// What a rule finds in folders of the workspace.
fn found(folders: &[&str], rule: impl Fn(&[Source]) -> Vec<Finding>) -> Vec<Finding> {
    let in_folder = |folder: &&str| {
        let below = |f: Finding| Finding { at: format!("{folder}/{}", f.at), what: f.what };
        rule(&sources(folder)).into_iter().map(below).collect::<Vec<_>>()
    };
    folders.iter().flat_map(in_folder).collect()
}

#[track_caller]
fn none(found: Vec<Finding>) {
    let lines: Vec<_> = found.into_iter().map(|f| format!("{}: {}", f.at, f.what)).collect();
    assert!(lines.is_empty(), "{} findings:\n{}", lines.len(), lines.join("\n"));
}

#[test]
fn the_sources_are_where_the_rules_look() {
    assert!(ALL.iter().map(|folder| sources(folder).len()).sum::<usize>() > 30);
    assert!(sources(LIBRARY).iter().any(|s| s.path == "engine/mod.rs"));
}

#[test]
fn imports_point_down() {
    none(found(&[LIBRARY], levels::check));
}

#[test]
fn files_functions_folders_and_names_keep_their_measure() {
    none(found(&ALL, shape::check));
}

#[test]
fn public_signatures_name_only_types_that_were_agreed_on() {
    let manifest = std::fs::read_to_string(package().join("Cargo.toml")).unwrap();
    let dependencies = signatures::dependencies(&manifest);
    none(found(&[LIBRARY], |library| signatures::check(library, &dependencies)));
}

#[test]
fn nothing_depends_on_chance() {
    none(found(&[LIBRARY], determinism::check));
    none(found(&[LIBRARY], hash_order::check));
}

#[test]
fn tests_wait_on_signals() {
    none(found(&[LIBRARY], |library| determinism::check_sleeps(library, false)));
    none(found(&["aqueduct/tests"], |tests| determinism::check_sleeps(tests, true)));
}

#[test]
fn comments_say_something() {
    none(found(&ALL, comments::check));
}

#[test]
fn every_area_keeps_its_budget_of_lines() {
    none(found(&[LIBRARY], budget::check));
}
