//! `--exec-stream`: many events through few programs, and programs that misbehave.

use crate::world::{World, is_running};

const IDLE: [&str; 2] = ["--exit-when-idle", "400ms"];

/// Answers with what `BODY` makes of an event.
const WORKER: &str = "import json, sys, os, time\n\
def say(**reply): print(json.dumps(reply), flush=True)\n\
for line in sys.stdin:\n    ask = json.loads(line)\n    n = ask['event']['data']['n']\n    BODY\n";

fn worker(world: &World, body: &str) -> String {
    let path = world.write("worker.py", &WORKER.replace("BODY", &body.replace('\n', "\n    ")));
    format!("python3 {}", path.display())
}

fn consume<'a>(program: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["consume", "t", "--group", "g", "--exec-stream", program, "--quick-delay", "1ms"][..], more].concat()
}

#[test]
fn events_of_a_key_reach_workers_in_order() {
    let world = World::new();
    world.events(20_000, 50);
    let program = worker(
        &world,
        "open('seen','a').write('%s %d\\n' % (ask['event']['partitionkey'], n))\nsay(id=ask['id'], result='done')",
    );
    world
        .run(&consume(&program, &["--workers", "2", "--max-events", "20000"]))
        .succeeded()
        .says(&["done 20000, failed attempts 0"]);
    let mut last = std::collections::BTreeMap::new();
    let seen = world.read("seen");
    for line in seen.lines() {
        let (key, n) = line.split_once(' ').unwrap();
        let n: i64 = n.parse().unwrap();
        assert!(last.insert(key, n).unwrap_or(-1) < n, "{line}");
    }
    assert_eq!(seen.lines().count(), 20_000);
}

#[test]
fn results_say_what_became_of_events_in_whatever_order() {
    let world = World::new();
    world.events(4, 4);
    let body = "if n == 0: say(id=ask['id'], result='done', error=None)\n\
        elif n == 1: say(id=ask['id'], result='permanent', error='no such sku')\n\
        elif n == 2 and ask['attempt'] == 1: say(id=ask['id'], result='transient', error='busy', retry_after_ms=1)\n\
        elif n == 2: say(id=ask['id'], result='done')\n\
        else: say(id=ask['id'], result='transient', error='later', retry_after_ms=3600000)";
    world.run(&consume(&worker(&world, body), &IDLE)).succeeded();
    let mut rows = world.rows();
    rows.sort_by(|a, b| a.id.cmp(&b.id));
    let found: Vec<_> = rows.iter().map(|row| (row.id.as_str(), row.dead, row.error.as_str())).collect();
    assert_eq!(found, [("1", true, "no such sku"), ("3", false, "later")]);
}

#[test]
fn results_may_be_events_to_publish() {
    let world = World::new();
    world.events(2, 2);
    let program = worker(&world, "say(id=ask['id'], result='done', publish=[{'type': 'priced', 'data': n}])");
    world.run(&consume(&program, &["--publish-results", "prices", "--max-events", "2"])).succeeded();
    let out = world.run(&[&["consume", "prices", "--group", "look"][..], &IDLE].concat()).succeeded().out;
    assert_eq!(out.lines().filter(|line| line.contains("\"type\":\"priced\"")).count(), 2);
    let said = world
        .run(&[&["consume", "t", "--group", "h", "--exec-stream", &program, "--policy", "fast"][..], &IDLE].concat());
    said.succeeded();
    assert!(world.rows()[0].error.contains("give --publish-results TOPIC"));
}

#[test]
fn a_worker_that_dies_is_started_again_and_nothing_is_lost() {
    let world = World::new();
    world.events(300, 30);
    let body = "if n % 100 == 50 and not os.path.exists('died-%d' % n):\n    open('died-%d' % n, 'w')\n    print('tired', file=sys.stderr)\n    sys.exit(7)\n\
        open('seen','a').write('%d\\n' % n)\nsay(id=ask['id'], result='done')";
    let said =
        world.run(&consume(&worker(&world, body), &["--max-events", "300", "--parked-delay", "100ms"])).succeeded();
    assert!(said.err.contains("worker 1 ended (exit code 7): tired;"), "{}", said.err);
    let seen: std::collections::BTreeSet<String> = world.read("seen").lines().map(str::to_owned).collect();
    assert_eq!(seen.len(), 300);
}

#[test]
fn what_is_no_result_ends_the_worker_with_a_clear_word() {
    let world = World::new();
    for (group, body, word) in [
        ("a", "print('hello', flush=True)", "wrote `hello`, which is no result (expected value"),
        ("b", "say(id=ask['id'], result='finished')", "unknown variant `finished`"),
        ("c", "say(id=999999, result='done')", "wrote a result for id 999999, which it does not have in hand"),
        ("d", "os.close(1); time.sleep(1000)", "closed its standard input or output"),
    ] {
        let world_of = World::new();
        world_of.events(1, 1);
        let program = worker(&world_of, body);
        let arguments = [
            "consume",
            "t",
            "--group",
            group,
            "--exec-stream",
            &program,
            "--policy",
            "fast",
            "--quick-attempts",
            "1",
            "--kill-after",
            "100ms",
        ];
        let said = world_of.run(&[&arguments[..], &IDLE].concat()).succeeded();
        assert!(said.err.contains(word), "{said:?}");
        assert!(world_of.rows()[0].error.contains(word), "{:?}", world_of.rows());
    }
    world.events(1, 1);
    world.run(&consume("no-such-worker", &[])).failed(127, &["`no-such-worker` is not found"]);
}

#[test]
fn an_event_without_a_result_ends_its_worker_and_spares_the_others() {
    let world = World::new();
    world.events(40, 40);
    let body = "open('pids','a').write('%d\\n' % os.getpid())\nif n == 3: continue\nsay(id=ask['id'], result='done')";
    let more = ["--timeout", "400ms", "--kill-after", "100ms", "--policy", "fast", "--quick-attempts", "2"];
    world.run(&consume(&worker(&world, body), &[&more[..], &["--exit-when-idle", "1s"]].concat())).succeeded();
    let rows = world.rows();
    assert_eq!(rows.len(), 1, "{rows:?}");
    assert_eq!((rows[0].id.as_str(), rows[0].attempts), ("3", 2));
    assert_eq!(rows[0].error, "no result after 400ms; its worker was ended");
    let pids = world.read("pids");
    assert!(pids.lines().all(|pid| !is_running(pid)));
}

#[test]
fn the_worker_of_the_documentation_works() {
    let text = include_str!("../../../docs/exec-stream.md");
    let code = text.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let world = World::new();
    world.events(100, 10);
    let path = world.write("documented.py", code);
    let program = format!("python3 {}", path.display());
    let said = world.run(&consume(&program, &["--max-events", "100"])).succeeded();
    said.says(&["tick {'n': 99, 'k': 'key-9'}", "done 100, failed attempts 0"]);
}
