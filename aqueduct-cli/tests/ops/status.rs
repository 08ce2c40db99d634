//! `status`.

use serde_json::Value;

use crate::world::World;

/// The first group.
fn group(world: &World) -> Value {
    world.json(&["status"])[0]["groups"][0].clone()
}

#[test]
fn it_says_who_runs_a_group_and_what_waits() {
    let world = World::new();
    world.events(6, 3);
    let mut service = world.service(&[]);
    world.until_dead(6);
    let group = group(&world);
    assert_eq!((&group["group"], &group["dead"], &group["parked"]), (&"mail".into(), &6.into(), &0.into()));
    let owner = &group["owner"];
    assert_eq!(
        (&owner["kind"], &owner["pid"], &owner["command"]),
        (&"process".into(), &service.pid().into(), &"aqueduct".into())
    );
    let text = world.run(&["status"]).succeeded().out;
    assert!(text.contains(&format!("aqueduct (pid {})", service.pid())), "{text}");
    service.signal("TERM");
    service.end();
    assert!(world.run(&["status"]).succeeded().out.contains("nobody runs it"));
}

#[test]
fn a_group_that_settles_nothing_is_told_from_one_that_works() {
    let world = World::new();
    world.events(1, 1);
    world.mend();
    let mut service = world.service(&[]);
    service.wait_for("handled 0");
    assert_eq!(group(&world)["stands_still_s"], Value::Null);
    service.signal("STOP");
    world.run_with(&["publish", "--topic", "t", "--type", "tick", "--id", "n"], "{\"n\":1}\n").succeeded();
    let standing = group(&world);
    assert!(standing["lag"] == 1 && standing["stands_still_s"].as_u64() >= Some(1), "{standing}");
    assert!(world.run(&["status"]).succeeded().out.contains("NOTHING SETTLED for "));
    let mut watch = world.start(&["status", "--watch"]);
    watch.wait_for("NOTHING SETTLED for ");
    watch.wait_for("NOTHING SETTLED for ");
    service.signal("CONT");
    service.wait_for("handled 1");
    watch.wait_for(&format!("aqueduct (pid {})", service.pid()));
    assert!(!watch.said.contains('\x1b'), "{}", watch.said);
}

#[test]
fn orphans_are_named() {
    let world = World::new();
    world.events(1, 1);
    let handler = world.script("sleep.sh", "echo $$ > pid; echo running >&2; exec sleep 600");
    let mut service = world.start(&["consume", "t", "--group", "mail", "--exec", &handler]);
    service.wait_for("running");
    let pid = world.read("pid").trim().to_owned();
    service.kill();
    let owner = &group(&world)["owner"];
    assert_eq!((&owner["kind"], &owner["pid"]), (&"orphans".into(), &service.pid().into()));
    assert_eq!(owner["orphans"][0].to_string(), pid);
    assert!(world.run(&["status"]).succeeded().out.contains(&format!("orphans of pid {}: {pid}", service.pid())));
    assert!(world.run(&["doctor"]).succeeded().out.contains("cannot start before they end"));
    crate::world::signal("KILL", &format!("-{pid}"));
}

#[test]
fn its_json_is_as_it_was_looked_at() {
    let world = World::with_dead(2, 2);
    insta::assert_snapshot!("status-json", redacted(&world.json(&["status"])[0]));
    insta::assert_snapshot!("list-json", redacted(&world.json(&["dlq", "list", "--id", "1"])[0]));
    world.run(&["dlq", "replay", "1", "--who", "ada", "--why", "mended"]).succeeded();
    insta::assert_snapshot!("show-json", redacted(&world.json(&["parked", "show", "1"])[0]));
    insta::assert_snapshot!("act-json", redacted(&world.json(&["dlq", "discard", "0", "--yes"])[0]));
    insta::assert_snapshot!("purge-json", redacted(&world.json(&["purge", "t", "--all", "--dry-run"])[0]));
    let checks: Vec<String> = world.json(&["doctor"]).iter().map(redacted).collect();
    insta::assert_snapshot!("doctor-json", checks.join("\n"));
}

/// Without what is another each time; of many partitions the first.
fn redacted(value: &Value) -> String {
    fn redact(name: &str, value: &mut Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    redact(name, value);
                }
            }
            Value::Array(values) => {
                if name == "partitions" {
                    values.truncate(1);
                }
                for value in values {
                    redact(name, value);
                }
            }
            Value::String(text) if text.contains("GiB") => *value = "(size) free".into(),
            Value::String(text) if text.len() > 18 && text.starts_with("20") => *value = "(time)".into(),
            // How long a time is written depends on the time.
            Value::Number(_) if matches!(name, "took_ms" | "bytes") => *value = "(number)".into(),
            _ => {}
        }
    }
    let mut value = value.clone();
    redact("", &mut value);
    serde_json::to_string_pretty(&value).unwrap()
}
