//! Kills at random moments, over the real events: nothing is lost, keys stay in order, no two runs of a key overlap.
//!
//! `AQUEDUCT_CHAOS_ROUNDS` says how many kills; the moment of each is derived from its number.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;

use crate::world::{LONG, Running, WEBHOOKS, World};

/// Fails for good on some types and for a while on others, and writes down when it begins and ends. `O_APPEND` keeps short
/// lines whole, whoever writes at the same time.
const HANDLER: &str = r#"
echo "begin $CE_SEQUENCE $CE_PARTITIONKEY $AQUEDUCT_EPOCH $$" >> steps
case "$CE_TYPE" in
    github.fork*) echo "end $CE_SEQUENCE $CE_PARTITIONKEY $AQUEDUCT_EPOCH $$" >> steps; exit 65;;
    github.issues.*) [ "$AQUEDUCT_ATTEMPT" -gt 3 ] || { echo "end $CE_SEQUENCE $CE_PARTITIONKEY $AQUEDUCT_EPOCH $$" >> steps; exit 75; };;
esac
cat > /dev/null
sleep 0.00$(($$ % 10))
echo "effect $CE_SEQUENCE $CE_PARTITIONKEY $AQUEDUCT_EPOCH $$" >> steps
echo "end $CE_SEQUENCE $CE_PARTITIONKEY $AQUEDUCT_EPOCH $$" >> steps
"#;

#[derive(Clone, Copy, PartialEq)]
enum Victim {
    /// The program alone: its handlers are orphans, for which the next one must wait.
    Parent,
    /// It and all that it started.
    Everything,
}

fn rounds() -> u64 {
    std::env::var("AQUEDUCT_CHAOS_ROUNDS").map_or(3, |rounds| rounds.parse().unwrap())
}

/// A moment of a round, spread over the first second.
fn moment(round: u64) -> Duration {
    Duration::from_millis(40 + round.wrapping_mul(0x9e37_79b9_7f4a_7c15) % 900)
}

fn consume(world: &World, more: &[&str]) -> Running {
    let handler = world.path("handler");
    let base = ["consume", "hooks", "--group", "g", "--exec", handler.to_str().unwrap(), "--concurrency", "8"];
    let policy = ["--quick-attempts", "2", "--quick-delay", "5ms", "--parked-delay", "40ms", "--timeout", "20s"];
    world.start(&[&base[..], &policy, more].concat())
}

/// The real events under ids and numbers of their own in each round, so that every kill finds work to interrupt.
fn events_of(round: u64) -> Vec<Value> {
    let text = std::fs::read_to_string(WEBHOOKS).unwrap();
    let renamed = |line: &str| {
        let mut event: Value = serde_json::from_str(line).unwrap();
        let number: u64 = event["sequence"].as_str().unwrap().parse().unwrap();
        event["id"] = Value::from(format!("{} {round}", event["id"].as_str().unwrap()));
        event["sequence"] = Value::from(format!("{:06}", round * 1_000 + number));
        event
    };
    text.lines().map(renamed).collect()
}

fn run(victim: Victim) {
    let world = World::new();
    world.script("handler", HANDLER);
    let (mut kills, mut parked, mut events, mut held) = (0, 0, Vec::new(), BTreeSet::new());
    for round in 0..rounds() {
        let fresh = events_of(round);
        let lines: Vec<String> = fresh.iter().map(Value::to_string).collect();
        world.run_with(&["publish", "--topic", "hooks"], &lines.join("\n")).succeeded();
        events.extend(fresh);
        let mut running = consume(&world, &[]);
        running.wait_or_end(moment(round));
        let programs = running.descendants();
        if running.kill() {
            kills += 1;
        }
        if victim == Victim::Everything {
            for pid in programs {
                crate::world::signal("KILL", &format!("-{pid}"));
            }
        }
        check_parked(&world, &events, &held);
        held = world.rows().into_iter().filter(|row| !row.dead).map(|row| row.id).collect();
        parked += held.len();
    }
    let mut last = consume(&world, &["--exit-when-idle", "4s"]);
    assert!(last.end().success(), "{}", last.said);
    let effects = check(&world, &events);
    println!("{kills} kills, {} events, {effects} effects, {parked} rows parked when killed", events.len());
}

/// What was parked after the kill before is parked still, dead, or done.
fn check_parked(world: &World, events: &[Value], held: &BTreeSet<String>) {
    let stored: BTreeSet<String> = world.rows().into_iter().map(|row| row.id).collect();
    let done: BTreeSet<String> =
        steps(world).into_iter().filter(|step| step[0] == "effect").map(|[_, number, ..]| number).collect();
    let number = |id: &str| events.iter().find(|event| event["id"] == id).unwrap()["sequence"].as_str().unwrap();
    for id in held {
        assert!(stored.contains(id) || done.contains(number(id)), "{id} was parked, and is gone");
    }
}

/// The steps in the order in which they were written: what, number, key, epoch, pid.
fn steps(world: &World) -> Vec<[String; 5]> {
    let text = world.read("steps");
    let fields = |line: &str| -> Option<[String; 5]> {
        let fields: Vec<String> = line.split(' ').map(str::to_owned).collect();
        fields.try_into().ok()
    };
    text.lines().filter_map(fields).collect()
}

/// Judges the whole, and answers how many effects there were.
fn check(world: &World, events: &[Value]) -> usize {
    let steps = steps(world);
    let effects: Vec<&[String; 5]> = steps.iter().filter(|step| step[0] == "effect").collect();
    let dead: BTreeSet<String> = world
        .rows()
        .into_iter()
        .map(|row| {
            assert!(row.dead, "{row:?}");
            row.id
        })
        .collect();
    let done: BTreeSet<&str> = effects.iter().map(|step| step[1].as_str()).collect();
    for event in events {
        let (id, number) = (event["id"].as_str().unwrap(), event["sequence"].as_str().unwrap());
        assert!(done.contains(number) != dead.contains(id), "I1: {number} is to be done or dead");
        assert_eq!(dead.contains(id), event["type"].as_str().unwrap().starts_with("github.fork"), "{number}");
    }
    check_order(&effects, events);
    check_overlap(&steps);
    effects.len()
}

/// I4: a key's numbers rise; after a crash they may go back, and on from there to the end.
fn check_order(effects: &[&[String; 5]], events: &[Value]) {
    let mut of_key = BTreeMap::<&str, Vec<&str>>::new();
    for event in events.iter().filter(|event| !event["type"].as_str().unwrap().starts_with("github.fork")) {
        if let Some(key) = event["partitionkey"].as_str() {
            of_key.entry(key).or_default().push(event["sequence"].as_str().unwrap());
        }
    }
    let mut at = BTreeMap::<&str, (usize, &str)>::new();
    for [_, number, key, epoch, _] in effects {
        let Some(order) = of_key.get(key.as_str()) else { continue };
        let place = order.iter().position(|n| n == number).unwrap();
        if let Some((before, before_epoch)) = at.insert(key, (place, epoch)) {
            let next = place == before + 1;
            let again = place <= before && epoch.as_str() != before_epoch;
            assert!(next || again, "I4: key {key} goes from {before} to {place}, epochs {before_epoch} and {epoch}");
        } else {
            assert_eq!(place, 0, "I4: key {key} begins late");
        }
    }
    for (key, (place, _)) in at {
        assert_eq!(place + 1, of_key[key].len(), "I4: key {key} does not end with its latest event");
    }
}

/// I5: between the begin and the end of a run of a key nothing else of the key begins in another process. A run without an
/// end was killed, and a killed one writes nothing after the next has begun.
fn check_overlap(steps: &[[String; 5]]) {
    let mut running = BTreeMap::<&str, &str>::new();
    for [what, _, key, _, pid] in steps.iter().filter(|step| !step[2].is_empty()) {
        match what.as_str() {
            "begin" => _ = running.insert(key, pid),
            _ => assert_eq!(running.get(key.as_str()), Some(&pid.as_str()), "I5: two runs of {key} overlap"),
        }
    }
}

#[test]
fn killed_with_all_its_programs_it_loses_nothing() {
    run(Victim::Everything);
}

#[test]
fn killed_alone_it_leaves_orphans_that_the_next_one_waits_for() {
    run(Victim::Parent);
}

#[test]
fn the_next_one_names_the_orphans_it_waits_for() {
    let world = World::new();
    world.events(1, 1);
    let go = world.path("go");
    assert!(std::process::Command::new("mkfifo").arg(&go).status().unwrap().success());
    let handler = world.script("handler", "echo began; read go < go; echo ended");
    let arguments = ["consume", "t", "--group", "g", "--exec", &handler, "--max-events", "1"];
    let mut first = world.start(&arguments);
    first.wait_for("began");
    first.kill();
    let mut second = world.start(&arguments);
    let line = second.wait_for("waiting:");
    assert!(line.contains("waits for orphans") && line.contains("`handler`"), "{line}");
    std::fs::write(&go, "go\n").unwrap();
    first.wait_for("ended");
    // The event comes again, since nobody could say that it was done.
    second.wait_for("began");
    std::fs::write(&go, "go\n").unwrap();
    assert!(second.end().success());
}

#[test]
fn an_orphan_past_its_deadline_is_ended_by_the_next_one() {
    let world = World::new();
    world.events(1, 1);
    let handler = world.script("handler", "[ -e once ] && exit 0; touch once; echo began; sleep 1000");
    let arguments = [
        "consume",
        "t",
        "--group",
        "g",
        "--exec",
        &handler,
        "--max-events",
        "1",
        "--timeout",
        "1s",
        "--kill-after",
        "100ms",
    ];
    let mut first = world.start(&arguments);
    first.wait_for("began");
    first.kill();
    let began = std::time::Instant::now();
    let mut second = world.start(&arguments);
    second.wait_for("had passed its deadline and was ended");
    assert!(second.end().success());
    assert!(began.elapsed() < LONG);
}
