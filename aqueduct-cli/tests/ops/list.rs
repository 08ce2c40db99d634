//! `list` and `show`.

use serde_json::json;

use crate::world::World;

fn ids(world: &World, more: &[&str]) -> Vec<String> {
    let rows = world.json(&[&["dead-letters", "list"], more].concat());
    rows.iter().map(|row| row["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn dead_letters_are_listed_in_the_order_of_each_key() {
    let world = World::with_dead(20, 4);
    let numbers: Vec<usize> = ids(&world, &[]).iter().map(|id| id.parse().unwrap()).collect();
    assert_eq!(numbers.len(), 20);
    crate::in_order(&numbers, 4);
    assert!(world.json(&["parked", "list"]).is_empty());
    world.run(&["parked", "list"]).succeeded().says(&["there are no such parked events"]);
}

#[test]
fn every_filter_narrows_down() {
    let world = World::with_dead(12, 3);
    assert_eq!(ids(&world, &["--key", "key-1"]), ["1", "4", "7", "10"]);
    assert_eq!(ids(&world, &["--id", "7"]), ["7"]);
    let place = world.json(&["dlq", "list", "--id", "7"])[0]["place"].as_str().unwrap().to_owned();
    let partition = place.split('/').nth(1).unwrap();
    assert!(ids(&world, &["--topic", "t", "--partition", partition]).contains(&"7".to_owned()));
    for all in [
        &["--group", "mail"][..],
        &["--topic", "t"],
        &["--type", "tick"],
        &["--source", "aqueduct"],
        &["--error", "mail server"],
        &["--newer", "1h"],
        &["--older", "0s"],
    ] {
        assert_eq!(ids(&world, all).len(), 12, "{all:?}");
    }
    for none in [
        &["--group", "mails"][..],
        &["--topic", "u"],
        &["--type", "tock"],
        &["--source", "x"],
        &["--error", "disk"],
        &["--newer", "0s"],
        &["--older", "1h"],
        &["--key", "key-1", "--id", "2"],
    ] {
        assert!(ids(&world, none).is_empty(), "{none:?}");
    }
    world.run(&["dlq", "list", "--group", "mial"]).succeeded().says(&["did you mean `mail`?"]);
    assert_eq!(ids(&world, &["--limit", "5"]).len(), 5);
    world.run(&["dlq", "list", "--limit", "5"]).succeeded().says(&["more than these 5"]);
    world.run(&["dlq", "list", "--partition", "1"]).failed(2, &["--topic"]);
}

#[test]
fn a_narrow_terminal_is_kept_to_and_a_pipe_has_no_colours() {
    let world = World::with_dead(3, 3);
    for width in [60_usize, 200] {
        let mut command = world.command(&["dead-letters", "list"]);
        let said = command.env("COLUMNS", width.to_string()).env_remove("NO_COLOR").output().unwrap();
        let text = String::from_utf8(said.stdout).unwrap();
        assert!(!text.contains('\x1b') && text.contains("the mail server"), "{text}");
        assert!(text.lines().all(|line| line.chars().count() <= width), "{text}");
    }
}

#[test]
fn one_event_is_shown_with_all_that_is_known() {
    let world = World::with_dead(4, 2);
    let place = world.json(&["dlq", "list", "--id", "3"])[0]["place"].as_str().unwrap().to_owned();
    for name in ["3", &place] {
        let text = world.run(&["dead-letters", "show", name]).succeeded().out;
        for part in [&place[..], "group mail", "key-1", "the mail server is away", "\"n\": 3", "dead-letters replay 3"]
        {
            assert!(text.contains(part), "{part:?} is missing: {text}");
        }
    }
    let shown = &world.json(&["dead-letters", "show", "3"])[0];
    assert_eq!(shown["event"]["data"], json!({ "n": 3, "k": "key-1" }));
    assert_eq!(shown["history"][0]["error"], "exit code 65: the mail server is away");
    world.run(&["dead-letters", "show", "9"]).failed(66, &["no dead letter `9`"]);
    world.run(&["parked", "show", "3"]).failed(66, &["`aqueduct dead-letters list` the others"]);
}

#[test]
fn what_several_groups_have_is_named_by_place_and_group() {
    let world = World::with_dead(1, 1);
    let handler = world.handler();
    world.run(&["consume", "t", "--group", "post", "--exec", &handler, "--exit-when-idle", "300ms"]).succeeded();
    world.run(&["dlq", "show", "0"]).failed(2, &["several are `0`", "--group mail", "--group post"]);
    world.run(&["dlq", "show", "0", "--group", "post"]).succeeded();
}

#[test]
fn a_file_that_is_missing_or_too_new_is_told() {
    let world = World::new();
    let commands: [&[&str]; 7] = [
        &["dead-letters", "list"],
        &["parked", "replay", "--all", "--yes"],
        &["dead-letters", "edit", "1"],
        &["status"],
        &["tail", "t"],
        &["purge", "t", "--all", "--yes"],
        &["forget", "mail", "--yes"],
    ];
    for command in commands {
        world.run(command).failed(66, &["there is no broker at sqlite:aqueduct.db"]);
    }
    assert!(!world.path("aqueduct.db").exists());
    world.events(1, 1);
    world.run(&["status", "--store", "sqlite:other.db"]).failed(66, &["there is no store at sqlite:other.db"]);
    assert!(!world.path("other.db").exists());
    world.execute("update aq_schema set version = 99");
    for command in commands {
        world.run(command).failed(69, &["99"]);
    }
}
