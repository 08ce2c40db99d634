//! `doctor`.

use crate::world::World;

/// The level of a check, and what it says.
fn check(world: &World, name: &str) -> (String, String) {
    let said = world.run(&["doctor", "--output", "json"]);
    let check = said.values().into_iter().find(|check| check["check"] == name).unwrap();
    (check["level"].as_str().unwrap().to_owned(), check["text"].as_str().unwrap().to_owned())
}

#[test]
fn all_is_well_where_all_is_well() {
    let world = World::new();
    world.events(3, 3);
    let said = world.run(&["doctor"]).succeeded();
    assert!(said.out.lines().all(|line| line.starts_with("ok")), "{}", said.out);
}

#[test]
fn what_is_missing_is_a_warning_and_what_is_wrong_a_failure() {
    let world = World::new();
    assert_eq!(check(&world, "file").0, "warn");
    world.run(&["doctor"]).succeeded();
    assert!(!world.path("aqueduct.db").exists());
    world.write("aqueduct.toml", "[consume]\ntimeoutt = \"5s\"\n");
    let said = world.run(&["doctor"]).failed(69, &["1 check failed"]);
    assert!(said.out.contains("FAIL  configuration") && said.out.contains("did you mean"), "{}", said.out);
    world.write("aqueduct.toml", "");
    world.events(1, 1);
    world.execute("update aq_schema set version = 99");
    world.run(&["doctor"]).failed(69, &["1 check failed"]);
    assert_eq!(check(&world, "file").0, "fail");
    world.write("aqueduct.db", "this is no database, and long enough that SQLite looks at it at all");
    assert_eq!(check(&world, "file").0, "fail");
}

#[test]
fn a_group_that_nobody_runs_and_a_clock_that_is_behind_are_told() {
    let world = World::new();
    world.events(3, 1);
    world.mend();
    let handler = world.handler();
    world.run(&["consume", "t", "--group", "mail", "--exec", &handler, "--max-events", "1"]).succeeded();
    let (level, text) = check(&world, "groups");
    assert_eq!(level, "warn");
    assert!(text.contains("nobody runs mail") && text.contains("2 events"), "{text}");
    assert!(world.run(&["doctor"]).succeeded().out.contains("aqueduct forget mail"));
    world.execute("update aq_log set stored_at = 4000000000000");
    assert_eq!(check(&world, "clock").0, "warn");
}
