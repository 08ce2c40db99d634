//! The demo: everything goes wrong, and the table says what came of it.

use crate::world::World;

#[test]
fn the_demo_keeps_every_promise_and_says_how_to_look_further() {
    let world = World::new();
    let folder = world.path("demo");
    let folder = folder.to_str().unwrap();
    let said = world.run(&["demo", "--seconds", "6", "--folder", folder]).succeeded();
    let rows: Vec<Vec<&str>> = said.out.lines().map(|line| line.split_whitespace().collect()).collect();
    let count = |name: &str| rows.iter().find(|row| row.first() == Some(&name)).unwrap().last().copied();
    assert_eq!(
        [count("events"), count("handled"), count("kept"), count("LOST"), count("DONE"), count("OUT")],
        [Some("329"), Some("328"), Some("1"), Some("0"), Some("0"), Some("0")],
        "{}",
        said.out
    );
    for line in ["goes down", "killed (kill -9)", "started again", "is back"] {
        assert!(said.err.contains(line), "{line}: {}", said.err);
    }
    // What it says to look at is there.
    let file = format!("sqlite:{folder}/demo.db");
    assert!(said.out.contains(&file), "{}", said.out);
    let seen =
        world.run(&["--broker", &file, "consume", "webhooks", "--group", "me", "--max-events", "329"]).succeeded();
    assert_eq!(seen.out.lines().count(), 329);
    world.run(&["demo", "--folder", folder]).failed(2, &["has the files of an earlier demo", "--folder"]);
}

#[test]
fn the_plain_loop_beside_it_is_judged_by_the_same_rules() {
    let said = World::new().run(&["demo", "--naive", "--seconds", "5", "--output", "json"]).succeeded();
    let line: serde_json::Value = serde_json::from_str(&said.out).unwrap();
    let of = |side: &str, name: &str| line[side][name].as_u64().unwrap();
    for side in ["aqueduct", "plain_loop"] {
        assert_eq!(of(side, "handled") + of(side, "dead_letters") + of(side, "lost"), 329, "{side}: {line}");
    }
    assert_eq!(of("aqueduct", "lost") + of("aqueduct", "done_twice") + of("aqueduct", "out_of_order"), 0, "{line}");
    // Nobody can handle the poison event, and the queue drops it.
    assert!(of("plain_loop", "lost") > 0, "{line}");
}
