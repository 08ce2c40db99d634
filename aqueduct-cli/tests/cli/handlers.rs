//! The examples of handlers in other languages.

use std::collections::BTreeMap;

use crate::world::{WEBHOOKS, World};

const HANDLERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/handlers");

/// Runs a handler over the first real events: each is handled once, in the order of its key, or a dead letter.
fn run(what: &str, program: &str, count: usize) {
    let world = World::new();
    let events = std::fs::read_to_string(WEBHOOKS).unwrap();
    let events: Vec<&str> = events.lines().take(count).collect();
    world.run_with(&["publish", "--topic", "webhooks"], &events.join("\n")).succeeded();
    let program = program.replace("HANDLERS", HANDLERS);
    let more = ["--exit-when-idle", "1s", "--policy", "fast"];
    let said = world.run(&[&["consume", "webhooks", "--group", "g", what, &program][..], &more].concat()).succeeded();
    let handled = world.read("handled.txt");
    let dead = world.rows();
    assert!(dead.iter().all(|row| row.dead && row.error.contains("nobody handles github.ping")), "{dead:?} {said:?}");
    let mut keys: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in handled.lines() {
        let (id, key) = line.split_once(' ').unwrap();
        keys.entry(key).or_default().push(id);
    }
    let (mut expected, mut pings) = (BTreeMap::<String, Vec<String>>::new(), 0);
    for line in events {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        if event["type"] == "github.ping" {
            pings += 1;
            continue;
        }
        let text = |value: &serde_json::Value| value.as_str().unwrap_or("-").to_owned();
        expected.entry(text(&event["partitionkey"])).or_default().push(text(&event["id"]));
    }
    assert_eq!(dead.len(), pings);
    for (key, expected) in expected {
        let mut found = keys.remove(key.as_str()).unwrap_or_default();
        let mut expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        if key == "-" {
            found.sort_unstable();
            expected.sort_unstable();
        }
        assert_eq!(found, expected, "{key}");
    }
    assert!(keys.is_empty(), "{keys:?}");
}

#[test]
fn a_shell_script_handles_events() {
    run("--exec", "HANDLERS/handler.sh", 329);
}

#[test]
fn a_python_program_handles_events() {
    // Starting Python takes far longer than the work.
    run("--exec", "HANDLERS/handler.py", 40);
}

#[test]
fn a_python_worker_handles_events() {
    run("--exec-stream", "HANDLERS/worker.py", 329);
}

#[test]
fn a_node_worker_handles_events() {
    run("--exec-stream", "node HANDLERS/worker.mjs", 329);
}
