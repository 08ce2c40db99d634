//! `edit`.

use crate::world::{Said, World};

fn edit(world: &World, editor: &str, arguments: &[&str]) -> Said {
    let mut command = world.command(&[&["dead-letters", "edit"], arguments].concat());
    command.env("EDITOR", editor).env_remove("VISUAL").env("TMPDIR", world.path(""));
    Said::of(command)
}

fn data(world: &World, id: &str) -> String {
    world.json(&["dead-letters", "show", id])[0]["event"]["data"].to_string()
}

#[test]
fn new_data_is_shown_first_and_what_is_replayed_then_is_the_new_event() {
    let world = World::with_dead(2, 2);
    let arguments = ["dead-letters", "edit", "1", "--data", "-"];
    let said = world.run_with(&[&arguments[..], &["--dry-run"]].concat(), "{\"fixed\":1}\n").succeeded();
    said.says(&["-     \"n\": 1,", "+     \"fixed\": 1", "nothing was done"]);
    world.run_with(&arguments, "{\"fixed\":1}\n").failed(2, &["nobody can be asked", "--yes"]);
    assert_eq!(data(&world, "1"), r#"{"k":"key-1","n":1}"#);
    let said = world.run_with(&[&arguments[..], &["--yes"]].concat(), "{\"fixed\":1}\n").succeeded();
    said.says(&["nobody runs mail", "aqueduct dead-letters replay 1 --group mail"]);
    assert_eq!(data(&world, "1"), r#"{"fixed":1}"#);
    world.run(&["dead-letters", "replay", "1"]).succeeded();
    let handler = world.script("cat.sh", "cat >&2");
    let mut service = world.start(&["consume", "t", "--group", "mail", "--exec", &handler]);
    assert!(service.wait_for("\"id\":\"1\"").contains(r#""data":{"fixed":1}"#));
}

#[test]
fn an_editor_gets_the_whole_event() {
    let world = World::with_dead(2, 2);
    let editor = world.script("editor.sh", r#"sed -i 's/"n": 1/"n": 100/; s/"tick"/"tock"/' "$1""#);
    let mut service = world.service(&[]);
    edit(&world, &editor, &["1", "--yes", "--why", "n was wrong"]).succeeded().says(&["+     \"n\": 100,"]);
    let shown = &world.json(&["dead-letters", "show", "1"])[0];
    assert_eq!(
        (&shown["type"], &shown["event"]["data"]["n"], &shown["version"]),
        (&"tock".into(), &100.into(), &2.into())
    );
    assert_eq!(shown["commands"][0]["why"], "n was wrong");
    edit(&world, "true", &["1"]).succeeded().says(&["nothing was changed"]);
    service.signal("TERM");
    service.end();
    let left = std::fs::read_dir(world.path("")).unwrap().flatten();
    assert!(!left.map(|file| file.file_name()).any(|name| name.to_string_lossy().starts_with("aqueduct-")));
}

#[test]
fn what_is_no_event_or_has_another_key_is_refused_and_kept() {
    let world = World::with_dead(2, 2);
    let garbage = world.script("garbage.sh", r#"echo '{"n"' > "$1""#);
    let key = world.script("key.sh", r#"sed -i 's/"partitionkey": "key-1"/"partitionkey": "other"/' "$1""#);
    for (editor, words) in [(&garbage, "this is no event"), (&key, "an edit keeps the key: it was `key-1`")] {
        let said = edit(&world, editor, &["1", "--yes"]).failed(65, &[words, "what you wrote is in"]);
        let line = said.err.lines().find(|line| line.contains("what you wrote is in")).unwrap();
        let path = line.rsplit(' ').next().unwrap();
        assert!(std::path::Path::new(path).exists(), "{path}");
        std::fs::remove_file(path).unwrap();
    }
    edit(&world, "false", &["1"]).failed(1, &["`false` ended with"]);
    edit(&world, "no-such-editor", &["1"]).failed(127, &["`no-such-editor` cannot be started"]);
    edit(&world, "", &["1"]).failed(2, &["there is no editor", "--data"]);
    world.run_with(&["dlq", "edit", "1", "--data", "-", "--yes"], "{").failed(65, &["the new data is no JSON"]);
    world.run_with(&["dlq", "edit", "1", "--data", "missing"], "").failed(66, &["missing cannot be read"]);
    assert_eq!(data(&world, "1"), r#"{"k":"key-1","n":1}"#);
}

#[test]
fn an_event_that_changed_meanwhile_is_not_overwritten() {
    let world = World::with_dead(1, 1);
    let program = env!("CARGO_BIN_EXE_aqueduct");
    let slow = world.script(
        "slow.sh",
        &format!(
            r#"echo '{{"first":1}}' | {program} dead-letters edit 0 --data - --yes && sed -i 's/"n": 0/"n": 2/' "$1""#
        ),
    );
    edit(&world, &slow, &["0", "--yes"])
        .failed(1, &["has version 2 by now, not 1: look at it again", "1 event refused"]);
    assert_eq!(data(&world, "0"), r#"{"first":1}"#);
}
