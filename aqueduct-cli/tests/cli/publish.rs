//! `publish`: what is confirmed, what is bad, and what the messages say.

use serde_json::Value;

use crate::world::{WEBHOOKS, World};

const GOOD: &str = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":"k","data":{"a":1}}"#;

fn good(id: usize) -> String {
    GOOD.replace("\"id\":\"1\"", &format!("\"id\":\"{id}\""))
}

#[test]
fn the_same_file_again_adds_nothing() {
    let world = World::new();
    let publish = ["publish", "--topic", "hooks", WEBHOOKS, "--output", "json"];
    let counts = |said: &str| {
        let summary: Value = serde_json::from_str(said).unwrap();
        ["read", "confirmed", "duplicates", "bad"].map(|name| summary[name].as_u64().unwrap())
    };
    assert_eq!(counts(&world.run(&publish).succeeded().out), [329, 329, 0, 0]);
    assert_eq!(counts(&world.run(&publish).succeeded().out), [329, 0, 329, 0]);
    let look = world.run(&["consume", "hooks", "--group", "look", "--exit-when-idle", "300ms"]).succeeded();
    assert_eq!(look.out.lines().count(), 329);
}

#[test]
fn events_of_a_key_stay_in_the_order_of_the_file() {
    let world = World::new();
    world.events(5_000, 7);
    let look = world.run(&["consume", "t", "--group", "look", "--exit-when-idle", "300ms"]).succeeded();
    let mut last = std::collections::BTreeMap::<String, u64>::new();
    for line in look.out.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let (key, n) = (event["partitionkey"].as_str().unwrap(), event["data"]["n"].as_u64().unwrap());
        assert!(last.insert(key.to_owned(), n).is_none_or(|before| before < n), "{key}");
    }
    assert_eq!(last.len(), 7);
    assert_eq!(look.out.lines().count(), 5_000);
}

#[test]
fn a_malformed_line_stops_it_and_says_what_is_confirmed() {
    let world = World::new();
    let text = [good(1), good(2), "{\"specversion\":".to_owned(), good(3)].join("\n");
    let words = [
        "line 3 is bad: column 15: EOF while parsing",
        "confirmed: 2.",
        "what is confirmed adds nothing",
        "--skip-bad",
    ];
    world.run_with(&["publish", "--topic", "t"], &text).failed(65, &words);
    let said = world.run_with(&["publish", "--topic", "t", "--skip-bad"], &text).succeeded();
    assert_eq!(said.out, "read 4, confirmed 1, duplicates 2, bad 1\n");
    assert_eq!(said.err, "line 3 is bad: column 15: EOF while parsing a value\n");
}

#[test]
fn an_event_without_an_id_is_bad() {
    let world = World::new();
    let text = GOOD.replace("\"id\":\"1\",", "");
    world
        .run_with(&["publish", "--topic", "t"], &text)
        .failed(65, &["line 1 is bad: attribute \"id\": it is required", "nothing was published"]);
    let any = ["publish", "--topic", "t", "--type", "x", "--id", "delivery.id", "--key", "k"];
    world.run_with(&any, "{\"delivery\":{}}").failed(65, &["it has no id: there is nothing at `delivery.id`"]);
    world.run_with(&any, "{\"delivery\":{\"id\":7}}").failed(65, &["it has no key: there is nothing at `k`"]);
    world.run_with(&any[..5], "{}").failed(2, &["--id <PATH>"]);
    world.run_with(&["publish", "--topic", "t"], "{\"a\":1}").failed(65, &["no CloudEvent", "--type and --id"]);
}

#[test]
fn a_payload_of_ten_megabytes_is_refused_and_the_rest_of_its_key_goes_on() {
    let world = World::new();
    let line = |n: usize, len: usize| format!("{{\"n\":{n},\"k\":\"k\",\"pad\":\"{}\"}}", "a".repeat(len));
    let text = [line(1, 1), line(2, 10 << 20), line(3, 1), line(4, 1)].join("\n");
    let any = ["publish", "--topic", "t", "--type", "x", "--id", "n", "--key", "k"];
    let words = ["line 2 is bad", "10485", "the broker takes 1048576", "publish a reference", "confirmed: 1."];
    world.run_with(&any, &text).failed(65, &words);
    let said = world.run_with(&[&any[..], &["--skip-bad"]].concat(), &text).succeeded();
    assert_eq!(said.out, "read 4, confirmed 2, duplicates 1, bad 1\n");
}

#[test]
fn the_same_id_with_another_body_is_reported() {
    let world = World::new();
    world.run_with(&["publish", "--topic", "t"], GOOD).succeeded();
    let other = GOOD.replace("\"a\":1", "\"a\":2");
    world.run_with(&["publish", "--topic", "t"], &other).failed(65, &["line 1 is bad", "\"s#1\"", "another body"]);
}

#[test]
fn the_structured_encoding_needs_a_time_since_it_is_compared() {
    let world = World::new();
    let publish = ["publish", "--topic", "t", "--format", "cloudevents-structured"];
    world.run_with(&publish, GOOD).failed(65, &["line 1 is bad: it has no time"]);
    let timed = GOOD.replace("\"id\"", "\"time\":\"2026-01-05T09:00:07Z\",\"id\"");
    world.run_with(&publish, &timed).succeeded();
    assert_eq!(world.run_with(&publish, &timed).succeeded().out, "read 1, confirmed 0, duplicates 1, bad 0\n");
}

#[test]
fn killed_in_the_middle_it_goes_on_where_it_was() {
    let world = World::new();
    let lines: Vec<String> = (0..60_000).map(|n| format!("{{\"n\":{n},\"k\":\"key-{}\"}}", n % 50)).collect();
    let path = world.write("lines", &lines.join("\n"));
    let publish = ["publish", "--topic", "t", "--type", "tick", "--id", "n", "--key", "k", path.to_str().unwrap()];
    for _ in 0..3 {
        let mut running = world.start(&publish);
        running.wait_or_end(std::time::Duration::from_millis(150));
        running.kill();
    }
    let said = world.run(&publish).succeeded().out;
    assert!(said.starts_with("read 60000, ") && said.ends_with("bad 0\n"), "{said}");
    let look = world.run(&["consume", "t", "--group", "look", "--exit-when-idle", "1s"]).succeeded().out;
    let mut last = std::collections::BTreeMap::<String, u64>::new();
    for line in look.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let (key, n) = (event["partitionkey"].as_str().unwrap(), event["data"]["n"].as_u64().unwrap());
        assert!(last.insert(key.to_owned(), n).is_none_or(|before| before + 50 == n), "{key}: {n}");
    }
    assert_eq!(look.lines().count(), 60_000);
}

#[test]
fn inputs_topics_and_files_that_cannot_be_used_say_so() {
    let world = World::new();
    world
        .run(&["publish", "--topic", "t", "nothing.ndjson"])
        .failed(66, &["nothing.ndjson cannot be read", "No such file"]);
    world
        .run_with(&["publish", "--topic", "t", "--existing-topic"], GOOD)
        .failed(66, &["no broker at sqlite:aqueduct.db"]);
    world.run_with(&["publish", "--topic", "t"], GOOD).succeeded();
    let unknown = ["publish", "--topic", "tt", "--existing-topic"];
    world.run_with(&unknown, GOOD).failed(66, &["topic `tt` does not exist", "leave out --existing-topic"]);
    world.run_with(&["publish", "--topic", "a b"], GOOD).failed(2, &["white space"]);
    world.run_with(&["publish", "--topic", "t", "--broker", "kafka:x"], GOOD).failed(78, &["`kafka:` is not known"]);
    world.run_with(&["publish", "--topic", "t", "--broker", "x.db"], GOOD).failed(78, &["write sqlite:x.db"]);
    let nowhere = ["publish", "--topic", "t", "--broker", "sqlite:no/such/folder.db"];
    world.run_with(&nowhere, GOOD).failed(69, &["no/such/folder.db", "its folder cannot be used"]);
    let folder = ["publish", "--topic", "t", "--broker", "sqlite:."];
    world.run_with(&folder, GOOD).failed(69, &["it cannot be opened"]);
}

#[test]
fn a_file_of_a_newer_version_is_refused_with_both_versions() {
    let world = World::new();
    world.run_with(&["publish", "--topic", "t"], GOOD).succeeded();
    let path = world.path("aqueduct.db");
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        use sqlx::Connection;
        let mut file = sqlx::SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
        sqlx::query("update aq_schema set version = 99").execute(&mut file).await.unwrap();
        file.close().await.unwrap();
    });
    let words = ["schema version 99", "knows 2", "use a newer version"];
    world.run_with(&["publish", "--topic", "t"], GOOD).failed(69, &words);
    world.run(&["consume", "t", "--group", "g"]).failed(69, &words);
}

#[test]
fn errors_are_json_where_that_is_asked_for() {
    let world = World::new();
    let said = world.run_with(&["publish", "--topic", "t", "--output", "json"], "{").failed(65, &[]);
    let error: Value = serde_json::from_str(&said.err).unwrap();
    assert_eq!(error["exit"], 65);
    assert!(error["error"].as_str().unwrap().starts_with("line 1 is bad"), "{error}");
    assert!(error["fix"].is_string() && error["state"] == "nothing was published", "{error}");
}

#[test]
fn what_a_slow_program_writes_is_published_before_it_writes_more() {
    use std::io::Write;
    let world = World::new();
    let mut command = world.command(&["publish", "--topic", "t", "--type", "x", "--id", "n", "-"]);
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    for n in 1..4 {
        writeln!(input, "{{\"n\":{n}}}").unwrap();
        // It ends when the event has come.
        let arguments = ["consume", "t", "--group", "g", "--create-topics", "--max-events", "1"];
        assert!(world.run(&arguments).succeeded().out.contains(&format!("\"n\":{n}")));
    }
    drop(input);
    assert!(child.wait().unwrap().success());
}
