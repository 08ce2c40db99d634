//! Settings: which one counts, and what mistakes say.

use serde_json::Value;

use crate::world::World;

#[test]
fn the_file_counts_more_than_defaults_variables_more_than_the_file_and_flags_most() {
    let world = World::new();
    world.write("aqueduct.toml", "store = \"sqlite:file.db\"\n[consume]\ntimeout = \"1s\"\nworkers = 7\n");
    let mut command = world.command(&["config", "show", "--output", "json", "--broker", "sqlite:flag.db"]);
    command.env("AQUEDUCT_BROKER", "sqlite:variable.db").env("AQUEDUCT_CONSUME_TIMEOUT", "2s");
    let shown: Vec<Value> = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
    let of = |key: &str| {
        let setting = shown.iter().find(|setting| setting["key"] == key).unwrap();
        [&setting["value"], &setting["from"]].map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    assert_eq!(of("broker"), ["sqlite:flag.db", "flag --broker"]);
    assert_eq!(of("consume.timeout"), ["2s", "environment variable AQUEDUCT_CONSUME_TIMEOUT"]);
    assert_eq!(of("consume.workers"), ["7", "file aqueduct.toml"]);
    assert_eq!(of("store"), ["sqlite:file.db", "file aqueduct.toml"]);
    assert_eq!(of("consume.attempts"), ["20", "default"]);
}

#[test]
fn an_unknown_key_names_its_place_and_the_nearest_one() {
    let world = World::new();
    world.write("aqueduct.toml", "# a comment\n[consume]\ntimeot = \"1s\"\n");
    world.run(&["config", "show"]).failed(
        78,
        &["aqueduct.toml, line 3: there is no setting `consume.timeot`", "did you mean `consume.timeout`?"],
    );
    world.write("other.toml", "[consum]\ntimeout = \"1s\"\n");
    world.run(&["config", "show", "--config", "other.toml"]).failed(78, &["other.toml, line 2", "`consume.timeout`?"]);
    let mut command = World::new().command(&["config", "show"]);
    let said = command.current_dir("/").env("AQUEDUCT_BROKR", "x").output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("AQUEDUCT_BROKR is no setting") && said.contains("`AQUEDUCT_BROKER`?"), "{said}");
}

#[test]
fn a_wrong_value_names_its_place() {
    let world = World::new();
    world.write("aqueduct.toml", "[consume]\ntimeout = \"soon\"\n");
    world
        .run(&["config", "show"])
        .failed(78, &["file aqueduct.toml", "`consume.timeout`", "`soon` is no length of time"]);
    world.write("aqueduct.toml", "[consume\n");
    world.run(&["config", "show"]).failed(78, &["aqueduct.toml: TOML parse error at line 1"]);
    world
        .run(&["config", "show", "--config", "no.toml"])
        .failed(66, &["no configuration file no.toml", "aqueduct init"]);
    world.write("aqueduct.toml", "");
    world.run(&["consume", "t", "--group", "g", "--timeout", "soon"]).failed(2, &["such as 30s"]);
}

#[test]
fn secrets_are_hidden() {
    let world = World::new();
    world.write("aqueduct.toml", "[consume]\nhttp_header = [\"Authorization: Bearer hush\"]\n");
    for arguments in [&["config", "show"][..], &["config", "show", "--output", "json"]] {
        let shown = world.run(arguments).succeeded().out;
        assert!(shown.contains("Authorization: (hidden)") && !shown.contains("hush"), "{shown}");
    }
}

#[test]
fn init_writes_what_can_be_read_and_overwrites_nothing() {
    let world = World::new();
    world.run(&["init"]).succeeded();
    let defaults = World::new().run(&["config", "show"]).succeeded().out;
    assert_eq!(world.run(&["config", "show"]).succeeded().out, defaults);
    world.write("aqueduct.toml", "# mine\n");
    world.run(&["init"]).failed(1, &["aqueduct.toml exists already", "--config PATH"]);
    assert_eq!(world.read("aqueduct.toml"), "# mine\n");
    world.run(&["init", "--config", "no/such/folder.toml"]).failed(74, &["no/such/folder.toml cannot be written"]);
}

#[test]
fn what_is_secret_is_not_told_by_errors_either() {
    let world = World::new();
    for text in [
        "[consume]\nhttp_header = [\"Authorization: SECRET\"\n",
        "[consume]\nhttp_header = \"Authorization: SECRET\"\n",
        "[consume]\nhttp_header = [[\"Authorization: SECRET\"]]\n",
    ] {
        world.write("aqueduct.toml", text);
        let said = world.run(&["config", "show"]).failed(78, &["aqueduct.toml"]);
        assert!(!said.err.contains("SECRET") && !said.out.contains("SECRET"), "{said:?}");
    }
    std::fs::remove_file(world.path("aqueduct.toml")).unwrap();
    let mut command = world.command(&["config", "show"]);
    let said = command.env("AQUEDUCT_CONSUME_HTTP_HEADER", "Authorization: SECRET").output().unwrap();
    let text = String::from_utf8_lossy(&said.stderr);
    assert!(!said.status.success() && text.contains("write a list") && !text.contains("SECRET"), "{text}");
}
