//! `aqueduct migrate`.

use crate::fresh::{Fresh, on_each_server};

on_each_server! {
    migrating_says_from_which_version_to_which
    the_printed_sql_makes_the_tables
    tables_may_have_another_prefix
}

fn migrating_says_from_which_version_to_which(fresh: &Fresh) {
    let steps = fresh.json(&["migrate", "--print"]);
    let (first, known) = (&steps[0], &steps[steps.len() - 1]["to"]);
    fresh.sql(first["sql"].as_str().unwrap());
    let migrated = fresh.json(&["migrate"]);
    assert_eq!((&migrated[0]["from"], &migrated[0]["to"]), (&first["to"], known));
    let again = fresh.run(&["migrate"]).succeeded();
    assert_eq!(again.out, format!("the tables have version {known} already\n"));
}

fn the_printed_sql_makes_the_tables(fresh: &Fresh) {
    let sql = fresh.run(&["migrate", "--print"]).succeeded().out;
    fresh.run(&["outbox", "status"]).failed(69, &["version 0", "aqueduct migrate"]);
    fresh.sql(&sql);
    // It makes no tables of its own.
    fresh.run(&["outbox", "status"]).succeeded();
    let migrated = fresh.json(&["migrate"]);
    assert_eq!(migrated[0]["from"], migrated[0]["to"]);
}

fn tables_may_have_another_prefix(fresh: &Fresh) {
    let prefix = ["--table-prefix", "events_"];
    let with = |arguments: &[&str]| fresh.run(&[arguments, &prefix].concat());
    let sql = with(&["migrate", "--print"]).succeeded().out;
    assert!(sql.contains("create table events_outbox") && !sql.contains("aq_"), "{sql}");
    assert!(with(&["migrate"]).succeeded().out.starts_with("made the tables"));
    fresh.sql(&with(&["outbox", "sql"]).succeeded().out);
    assert!(with(&["outbox", "status"]).succeeded().out.contains("\n1 "));
    fresh.run(&["outbox", "status"]).failed(69, &["version 0"]);
    fresh.run(&["outbox", "status", "--table-prefix", "a;b"]).failed(78, &["a;b", "letters, digits"]);
}
