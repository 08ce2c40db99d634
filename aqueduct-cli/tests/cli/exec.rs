//! `--exec`: what programs are told, what their end means, and that nothing of them is left.

use serde_json::Value;

use crate::world::{World, is_running};

const IDLE: [&str; 2] = ["--exit-when-idle", "300ms"];

fn consume<'a>(program: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["consume", "t", "--group", "g", "--exec", program, "--quick-delay", "1ms"][..], more].concat()
}

#[test]
fn a_program_is_told_the_event_and_its_attributes() {
    let world = World::new();
    let line = r#"{"specversion":"1.0","id":"i-1","source":"s","type":"order.placed","partitionkey":"k","time":"2026-01-05T09:00:07Z","sequence":"7","subject":"x","data":{"a":1}}"#;
    world.run_with(&["publish", "--topic", "t"], line).succeeded();
    let program = world.script("handler", "cat > event; env | grep -E '^(CE_|AQUEDUCT_)' | sort > variables");
    world.run(&consume(&program, &["--max-events", "1"])).succeeded();
    let event: Value = serde_json::from_str(&world.read("event")).unwrap();
    assert_eq!(event["data"]["a"], 1);
    assert_eq!(event["sequence"], "7");
    let expected = "AQUEDUCT_ATTEMPT=1\nAQUEDUCT_EPOCH=1\nAQUEDUCT_GROUP=g\nAQUEDUCT_TOPIC=t\n\
        CE_DATACONTENTTYPE=application/json\nCE_ID=i-1\nCE_PARTITIONKEY=k\nCE_SEQUENCE=7\nCE_SOURCE=s\nCE_SPECVERSION=1.0\n\
        CE_SUBJECT=x\nCE_TIME=2026-01-05T09:00:07Z\nCE_TYPE=order.placed\n";
    let without_type = expected.replace("CE_DATACONTENTTYPE=application/json\n", "");
    assert_eq!(world.read("variables"), without_type);
}

#[test]
fn exit_codes_say_what_became_of_the_event() {
    let world = World::new();
    world.events(4, 4);
    let program = world.script(
        "handler",
        r#"case "$CE_ID:$AQUEDUCT_ATTEMPT" in
            0:*) exit 0;;
            1:*) echo warming up >&2; echo no such sku >&2; exit 65;;
            2:1) exit 75;;
            2:*) exit 0;;
            *) echo "try $AQUEDUCT_ATTEMPT" >&2; kill -9 $$;;
        esac"#,
    );
    let said = world.run(&consume(&program, &IDLE)).succeeded();
    assert!(said.err.contains("no such sku"), "what it says is passed on: {said:?}");
    let mut rows = world.rows();
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    let [dead, parked] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((dead.id.as_str(), dead.dead, dead.attempts), ("1", true, 1));
    assert_eq!(dead.error, "exit code 65: warming up | no such sku");
    assert_eq!((parked.id.as_str(), parked.dead, parked.attempts), ("3", false, 3));
    assert!(parked.error.contains("signal: 9") && parked.error.ends_with("try 3"), "{}", parked.error);
}

#[test]
fn a_program_that_is_missing_is_found_out_before_the_first_event() {
    let world = World::new();
    world.events(1, 1);
    world.run(&consume("no-such-program", &[])).failed(127, &["`no-such-program` is not found in PATH"]);
    world.run(&consume("./no-such-program x", &[])).failed(127, &["`./no-such-program` does not exist"]);
    world.write("plain", "text");
    world.run(&consume("./plain", &[])).failed(127, &["is no program that may be run", "chmod +x ./plain"]);
    world.run(&consume("sh -c 'oops", &[])).failed(2, &["is no command line", "quotes"]);
    assert!(world.rows().is_empty());
}

#[test]
fn a_program_that_is_deleted_meanwhile_spends_no_attempts() {
    let world = World::new();
    world.events(2, 1);
    let program = world.script("handler", "rm \"$0\"");
    let mut running = world.start(&consume(&program, &["--max-events", "2"]));
    running.wait_for("cannot be started");
    world.script("handler", "echo attempt $AQUEDUCT_ATTEMPT");
    running.wait_for("attempt 1");
    assert!(running.end().success());
}

#[test]
fn a_program_that_ignores_its_input_is_well() {
    let world = World::new();
    let pad = "a".repeat(1_000_000);
    let text = format!("{{\"n\":1,\"pad\":\"{pad}\"}}\n{{\"n\":2,\"pad\":\"{pad}\"}}");
    world.run_with(&["publish", "--topic", "t", "--type", "x", "--id", "n"], &text).succeeded();
    world.run(&consume("true", &IDLE)).succeeded().says(&["done 2, failed attempts 0"]);
}

#[test]
fn garbage_is_passed_on_unless_it_is_to_be_published() {
    let world = World::new();
    world.events(1, 1);
    let program = world.script("handler", "printf 'gar\\377bage\\n'; head -c 300000 /dev/zero");
    let output = world.command(&consume(&program, &IDLE)).output().unwrap();
    assert!(output.status.success() && output.stdout.starts_with(b"gar\xffbage\n"));
    assert!(output.stdout.len() > 300_000);
    let program = world.script("handler", "echo gar bage");
    let results =
        ["consume", "t", "--group", "h", "--exec", &program, "--publish-results", "out", "--quick-delay", "1ms"];
    world.run(&[&results[..], &IDLE].concat()).succeeded();
    let rows = world.rows();
    assert!(rows[0].error.contains("line 1, `gar bage`: expected value"), "{rows:?}");
}

#[test]
fn what_a_program_leaves_running_ends_with_it() {
    let world = World::new();
    world.events(2, 1);
    let program = world.script("handler", "sleep 1000 & echo $! >> pids; echo left one");
    let said = world.run(&consume(&program, &IDLE)).succeeded().says(&["done 2, failed attempts 0"]);
    assert_eq!(said.out.matches("left one").count(), 2);
    let pids = world.read("pids");
    assert_eq!(pids.lines().count(), 2);
    assert!(pids.lines().all(|pid| !is_running(pid)));
}

#[test]
fn what_escapes_from_its_group_holds_nobody_up() {
    let world = World::new();
    world.events(1, 1);
    // It holds the program's standard error, and not what this test reads to its end.
    let escape = "setsid sh -c 'echo $$ > pid; exec sleep 30' > /dev/null & until [ -s pid ]; do :; done";
    let program = world.script("handler", &format!("{escape}; echo half >&2; exit 3"));
    let more = ["--policy", "fast", "--quick-attempts", "1"];
    let began = std::time::Instant::now();
    world.run(&consume(&program, &[&more[..], &IDLE].concat())).succeeded();
    assert!(began.elapsed() < std::time::Duration::from_secs(20));
    assert_eq!(world.rows()[0].error, "exit code 3: half");
    crate::world::signal("KILL", world.read("pid").trim());
}

#[test]
fn a_deadline_ends_the_whole_group_whatever_it_does_against_it() {
    let world = World::new();
    world.events(1, 1);
    let program =
        world.script("handler", "trap '' TERM; sleep 1000 & echo $! $$ > pids; echo stubborn >&2; wait; sleep 1000");
    let more = ["--timeout", "300ms", "--kill-after", "100ms", "--policy", "fast", "--quick-attempts", "1"];
    world.run(&consume(&program, &[&more[..], &IDLE].concat())).succeeded();
    let row = &world.rows()[0];
    assert_eq!((row.dead, row.error.as_str()), (true, "it had not ended after 300ms and was ended: stubborn"));
    let pids = world.read("pids");
    assert!(pids.split_whitespace().count() == 2 && pids.split_whitespace().all(|pid| !is_running(pid)), "{pids}");
}

#[test]
fn results_are_published_before_the_event_is_done_and_once_for_an_id() {
    let world = World::new();
    world.events(3, 1);
    // Each fails after its answer, once: nothing is published then, and the ids are the same in the end.
    let program = world.script(
        "handler",
        r#"echo "{\"type\":\"priced\",\"partitionkey\":\"p\",\"data\":{\"n\":$CE_ID}}"
        echo "{\"type\":\"priced\",\"id\":\"own-$CE_ID\",\"source\":\"me\"}"
        [ "$AQUEDUCT_ATTEMPT" -gt 1 ]"#,
    );
    world.run(&consume(&program, &["--publish-results", "prices", "--max-events", "3"])).succeeded();
    let out = world.run(&[&["consume", "prices", "--group", "look"][..], &IDLE].concat()).succeeded().out;
    let events: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut ids: Vec<String> = events.iter().map(|event| format!("{} {}", event["source"], event["id"])).collect();
    ids.sort();
    let own = |n: usize| format!("\"me\" \"own-{n}\"");
    let filled = |n: usize| format!("\"g\" \"aqueduct#{n}#1\"");
    assert_eq!(ids, [filled(0), filled(1), filled(2), own(0), own(1), own(2)]);
}
