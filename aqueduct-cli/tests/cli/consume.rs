//! `consume`: groups, where they begin and end, formats, policies, and signals.

use serde_json::Value;

use crate::world::World;

const IDLE: [&str; 2] = ["--exit-when-idle", "300ms"];

fn numbers(out: &str) -> Vec<u64> {
    out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["data"]["n"].as_u64().unwrap()).collect()
}

#[test]
fn so_many_events_are_done_as_are_wanted_and_the_rest_comes_next() {
    let world = World::new();
    world.events(200, 200);
    let mut seen = Vec::new();
    for count in ["1", "5", "50"] {
        let said = world.run(&["consume", "t", "--group", "g", "--max-events", count]).succeeded();
        let found = numbers(&said.out);
        assert!(found.len() >= count.parse().unwrap() && found.len() < 100, "{}", found.len());
        seen.extend(found);
    }
    seen.extend(numbers(&world.run(&[&["consume", "t", "--group", "g"][..], &IDLE].concat()).succeeded().out));
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>(), "each event once");
}

#[test]
fn an_unknown_topic_is_refused_and_the_nearest_named() {
    let world = World::new();
    world
        .run(&["consume", "orders", "--group", "g"])
        .failed(66, &["no broker at sqlite:aqueduct.db", "publish into it first"]);
    assert!(!world.path("aqueduct.db").exists());
    world.run_with(&["publish", "--topic", "orders", "--type", "x", "--id", "n"], "{\"n\":1}").succeeded();
    let words = ["topic `order` does not exist", "did you mean `orders`?", "--create-topics"];
    world.run(&["consume", "order", "--group", "g"]).failed(66, &words);
    world.run(&[&["consume", "order", "--group", "g", "--create-topics"][..], &IDLE].concat()).succeeded();
    world.run(&[&["consume", "ord*", "--group", "g2"][..], &IDLE].concat()).failed(66, &[]);
    world.run(&[&["consume", ">", "--group", "g3"][..], &IDLE].concat()).succeeded();
}

#[test]
fn a_second_process_of_a_group_says_who_has_it_and_waits() {
    let world = World::new();
    world.events(1, 1);
    let mut first = world.start(&["consume", "t", "--group", "g"]);
    first.wait_for("\"n\":0");
    let pid = format!("pid {}", first.pid());
    let second = ["consume", "t", "--group", "g", "--no-wait"];
    world.run(&second).failed(75, &["`aqueduct`", &pid, "runs consumer \"g\"", "another --group"]);
    let mut second = world.start(&["consume", "t", "--group", "g", "--max-events", "1"]);
    assert!(second.wait_for("waiting:").contains(&pid));
    first.signal("TERM");
    assert!(first.end().success());
    world.run_with(&["publish", "--topic", "t", "--type", "x", "--id", "n"], "{\"n\":77}").succeeded();
    second.wait_for("\"n\":77");
    assert!(second.end().success());
}

#[test]
fn a_group_may_begin_at_the_end_or_at_a_time() {
    let world = World::new();
    world.events(3, 1);
    let new = world.run(&[&["consume", "t", "--group", "new", "--from", "new"][..], &IDLE].concat()).succeeded();
    assert_eq!(new.out, "");
    let late = ["consume", "t", "--group", "late", "--from", "2099-01-01T00:00:00Z"];
    assert_eq!(world.run(&[&late[..], &IDLE].concat()).succeeded().out, "");
    let early = ["consume", "t", "--group", "early", "--from", "2020-01-01T00:00:00Z"];
    assert_eq!(numbers(&world.run(&[&early[..], &IDLE].concat()).succeeded().out), [0, 1, 2]);
    world.run(&["consume", "t", "--group", "x", "--from", "yesterday"]).failed(2, &["neither `beginning` nor `new`"]);
}

#[test]
fn types_are_chosen_by_patterns() {
    let world = World::new();
    let line = |id: &str, kind: &str| {
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"s","type":"{kind}","data":{{"n":{id}}}}}"#)
    };
    let text = [line("1", "order.placed"), line("2", "order.paid.late"), line("3", "mail")].join("\n");
    world.run_with(&["publish", "--topic", "t"], &text).succeeded();
    let of = |types: &str| {
        let group = format!("g {types}");
        let said = world.run(&[&["consume", "t", "--group", &group, "--types", types][..], &IDLE].concat()).succeeded();
        let mut found = numbers(&said.out);
        found.sort_unstable();
        found
    };
    assert_eq!(of("order.*"), [1]);
    assert_eq!(of("order.>,mail"), [1, 2, 3]);
    world.run(&["consume", "t", "--group", "g", "--types", "a..b"]).failed(2, &["a..b"]);
}

#[test]
fn every_format_is_read_and_written() {
    let world = World::new();
    let line = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","time":"2026-01-05T09:00:07Z","partitionkey":"k","data":{"n":9,"id":"x"}}"#;
    for (topic, format) in [("binary", "cloudevents"), ("structured", "cloudevents-structured"), ("bare", "json")] {
        world.run_with(&["publish", "--topic", topic, "--format", format], line).succeeded();
    }
    let consume = ["consume", "binary", "structured", "bare", "--group", "g", "--format", "cloudevents,json"];
    let said = world.run(&[&consume[..], &IDLE].concat()).succeeded();
    assert_eq!(numbers(&said.out), [9, 9, 9]);
    let bare = ["consume", "bare", "--group", "h", "--format", "json", "--json-id", "id", "--json-key", "n"];
    let said = world.run(&[&bare[..], &IDLE].concat()).succeeded();
    let event: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!([&event["id"], &event["source"], &event["type"], &event["partitionkey"]], ["x", "bare", "bare", "9"]);
}

#[test]
fn the_policy_says_what_becomes_of_failures() {
    let world = World::new();
    world.events(2, 1);
    let consume = |group: &str, more: &[&str]| {
        let base =
            ["consume", "t", "--group", group, "--exec", "false", "--quick-attempts", "2", "--quick-delay", "1ms"];
        world.run(&[&base[..], more, &IDLE].concat()).succeeded();
    };
    consume("a", &["--policy", "fast"]);
    let states =
        |rows: Vec<crate::world::Row>| rows.into_iter().map(|row| (row.dead, row.attempts)).collect::<Vec<_>>();
    assert_eq!(states(world.rows()), [(true, 2), (true, 2)]);
    consume("b", &["--policy", "best-effort"]);
    assert_eq!(world.rows().len(), 2);
    consume("c", &["--policy", "ordered", "--attempts", "0", "--block"]);
    assert_eq!(world.rows().iter().filter(|row| row.dead).count(), 3, "the second of the key waits");
}

#[test]
fn a_signal_lets_what_runs_finish_and_a_second_one_does_not() {
    let world = World::new();
    world.events(2, 1);
    let handler = world.script("handler", "echo began; read go < go; echo ended");
    let go = world.path("go");
    assert!(std::process::Command::new("mkfifo").arg(&go).status().unwrap().success());
    let mut consume = world.start(&["consume", "t", "--group", "g", "--exec", &handler]);
    consume.wait_for("began");
    consume.signal("TERM");
    consume.wait_for("stopping");
    std::fs::write(&go, "go\n").unwrap();
    consume.wait_for("ended");
    consume.wait_for("done 1, failed attempts 0");
    assert!(consume.end().success());

    let mut consume = world.start(&["consume", "t", "--group", "g", "--exec", &handler, "--kill-after", "100ms"]);
    consume.wait_for("began");
    consume.signal("INT");
    consume.wait_for("stopping");
    consume.signal("INT");
    assert_eq!(consume.end().code(), Some(130), "{}", consume.said);
    assert!(!consume.said.contains("ended"));
    world.run(&[&["consume", "t", "--group", "g", "--no-wait"][..], &IDLE].concat()).succeeded();
}

#[test]
fn systemd_is_told_when_it_is_ready_and_when_it_stops() {
    let world = World::new();
    world.events(1, 1);
    let path = world.path("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(crate::world::LONG)).unwrap();
    let mut command = world.command(&["consume", "t", "--group", "g", "--sd-notify"]);
    command.env("NOTIFY_SOCKET", &path);
    let mut running = crate::world::Running::start(command);
    let told = || {
        let mut buffer = [0; 200];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).trim().to_owned()
    };
    assert_eq!(told(), "READY=1");
    running.signal("TERM");
    assert_eq!(told(), "STOPPING=1");
    assert!(running.end().success());
}

#[test]
fn an_output_that_nobody_reads_any_more_ends_it_at_once() {
    use std::io::{BufRead, BufReader};
    let world = World::new();
    world.events(20_000, 10);
    // Before anything was read of it, and after the first line, as with `| head -1`.
    for (group, lines) in [("none", 0), ("one", 1)] {
        let began = std::time::Instant::now();
        let mut command = world.command(&["consume", "t", "--group", group]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        let read: Vec<String> =
            BufReader::new(child.stdout.take().unwrap()).lines().take(lines).map(Result::unwrap).collect();
        assert!(read.len() == lines && read.iter().all(|line| line.starts_with('{')), "{read:?}");
        // Far below the 30 s that a graceful stop may take.
        assert!(child.wait().unwrap().success() && began.elapsed() < std::time::Duration::from_secs(20), "{group}");
    }
}
