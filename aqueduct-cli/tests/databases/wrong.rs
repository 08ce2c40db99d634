//! What is wrong with a database is said, with what to do, and never with a password.

use crate::fresh::{Fresh, on_each_server};
use crate::world::Said;

on_each_server! {
    a_wrong_address_or_password_is_said_without_the_password
    a_newer_schema_is_refused_with_both_versions
    the_doctor_looks_at_the_database
}

const SECRET: &str = "s3cr3t";

#[track_caller]
fn without_secret(said: Said) {
    assert!(!said.out.contains(SECRET) && !said.err.contains(SECRET), "{said:?}");
}

fn a_wrong_address_or_password_is_said_without_the_password(fresh: &Fresh) {
    let url = fresh.database.url();
    let (scheme, rest) = url.split_once("://").unwrap();
    let (login, place) = rest.split_once('@').unwrap();
    let (user, _) = login.split_once(':').unwrap();
    let (host, name) = place.split_once('/').unwrap();
    let with = |place: &str| format!("{scheme}://{user}:{SECRET}@{place}");
    let cases = [
        (with(place), 69, vec![host, user]),
        (with(&format!("127.0.0.1:1/{name}")), 69, vec!["127.0.0.1:1", "is the database up"]),
        (with(&format!("127.0.0.1:none/{name}")), 69, vec!["the URL", "cannot be read", "://user:password@host"]),
        (format!("redis://{user}:{SECRET}@{place}"), 78, vec!["`database`", "postgres://", "mysql://", "sqlite:"]),
    ];
    for (url, code, words) in cases {
        for command in [&["outbox", "status"][..], &["migrate"], &["relay"], &["-vvv", "outbox", "list"]] {
            without_secret(fresh.world.run(&[command, &["--database", &url]].concat()).failed(code, &words));
        }
        let mut command = fresh.world.command(&["outbox", "status", "--output", "json"]);
        command.env("AQUEDUCT_DATABASE", &url);
        without_secret(Said::of(command).failed(code, &words));
    }
    let shown = fresh.world.run(&["config", "show", "--database", &with(place)]).succeeded();
    assert!(shown.out.contains(&format!("{scheme}://(hidden)")), "{shown:?}");
    without_secret(shown);
    fresh.world.run(&["outbox", "status"]).failed(78, &["--database", "AQUEDUCT_DATABASE"]);
}

fn a_newer_schema_is_refused_with_both_versions(fresh: &Fresh) {
    let known = fresh.json(&["migrate"])[0]["to"].to_string();
    fresh.sql("insert into aq_schema (version) values (4711)");
    for command in [&["migrate"][..], &["outbox", "status"], &["relay"]] {
        fresh.run(command).failed(69, &["4711", &format!("knows {known}"), "newer version of the program"]);
    }
}

fn the_doctor_looks_at_the_database(fresh: &Fresh) {
    fresh.run(&["migrate"]).succeeded();
    fresh.world.events(1, 1);
    let said = fresh.run(&["doctor"]).succeeded();
    assert!(said.out.contains("database: it can be used") && said.out.contains("outbox: no row waits"), "{said:?}");
    fresh.sql("insert into aq_outbox (topic, type, written_at) values ('t', 'tick', 0)");
    let said = fresh.run(&["doctor"]).succeeded();
    assert!(said.out.contains("has waited for") && said.out.contains("do: run `aqueduct relay`"), "{said:?}");
    fresh.sql("drop table aq_schema");
    let said = fresh.run(&["doctor"]).failed(69, &[]);
    assert!(said.out.contains("FAIL  database: ") && said.out.contains("aqueduct migrate"), "{said:?}");
}
