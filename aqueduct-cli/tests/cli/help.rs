//! What `--help` says, and the forms that programs read.

use crate::world::World;

#[test]
fn every_help_is_as_it_was_looked_at() {
    let world = World::new();
    let commands = ["", "publish", "consume", "demo", "init", "config", "config show", "completions", "man"];
    for command in commands {
        let arguments: Vec<&str> = command.split(' ').filter(|word| !word.is_empty()).chain(["--help"]).collect();
        let help = world.run(&arguments).succeeded().out;
        insta::assert_snapshot!(format!("help {command}").trim().replace(' ', "-"), help);
    }
}

#[test]
fn settings_are_shown_as_they_were_looked_at() {
    insta::assert_snapshot!("config-show", World::new().run(&["config", "show"]).succeeded().out);
    insta::assert_snapshot!(
        "config-show-json",
        World::new().run(&["config", "show", "--output", "json"]).succeeded().out
    );
}

#[test]
fn an_event_is_printed_as_it_was_looked_at() {
    let world = World::new();
    let line = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":"k","time":"2026-01-05T09:00:07Z","sequence":"7","data":{"a": 1}}"#;
    world.run_with(&["publish", "--topic", "t"], line).succeeded();
    let said = world.run(&["consume", "t", "--group", "g", "--max-events", "1", "--output", "json"]).succeeded();
    insta::assert_snapshot!("event-json", said.out);
    insta::assert_snapshot!("consume-summary-json", said.err);
}

#[test]
fn completions_and_manuals_are_made() {
    let world = World::new();
    for shell in ["bash", "zsh", "fish"] {
        assert!(world.run(&["completions", shell]).succeeded().out.contains("exec-stream"), "{shell}");
    }
    assert!(world.run(&["man"]).succeeded().out.starts_with(".ie"));
    assert!(world.run(&["man", "consume"]).succeeded().out.contains("exec\\-stream"));
    world.run(&["man", "nothing"]).failed(2, &["there is no command `nothing`"]);
}

#[test]
fn colours_are_for_terminals_only() {
    let world = World::new();
    let mut command = world.command(&["consume", "t", "--group", "g"]);
    let said = command.env_remove("NO_COLOR").output().unwrap();
    assert!(!said.stderr.contains(&0x1b));
}
