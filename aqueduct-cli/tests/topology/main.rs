//! `aqueduct topology` and real NATS servers: `cargo xtask test` starts one and says where it is in `AQUEDUCT_TEST_NATS`; for work by
//! hand `cargo xtask servers` does.

#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../cli/world.rs"]
#[allow(dead_code, reason = "the other tests need the rest of it")]
mod world;

use aqueduct_servers::{Nats, Options, fresh_name, nats_url};
use serde_json::{Value, json};
use world::{Said, World};

/// A topology of names that no other test has, in which `T` stands for them.
fn declared(world: &World, text: &str) -> String {
    let name = fresh_name().unwrap();
    world.write("topology.toml", &text.replace('T', &name));
    name
}

fn topology(world: &World, arguments: &[&str]) -> Said {
    world.run(&[&["topology"], arguments, &["--broker", &nats_url().unwrap()]].concat())
}

const ALL: &str = r#"
[[topic]]
name = "T"
partitions = 4
max_age = "30d"
plain_subjects = "T_plain.*"

[[consumer]]
name = "T"
topics = ["T"]

[[stream]]
name = "T_jobs"
subjects = ["T_jobs.>"]
retention = "workqueue"
settings = { compression = "s2", allow_direct = true }

[[stream]]
name = "T_audit"
sources = [{ stream = "T_jobs", transforms = [{ from = "T_jobs.paid.*", to = "T_audit.$1" }] }]

[[dead_letters]]
name = "T_dead"
subjects = ["T_dead.>"]
max_bytes = 1048576

[[durable]]
stream = "T_jobs"
name = "billing"
filters = ["T_jobs.paid.*"]
ack_wait = "30s"
"#;

#[test]
fn a_file_is_planned_applied_and_verified() {
    let world = World::new();
    let name = declared(&world, ALL);
    let said = topology(&world, &["plan"]).succeeded();
    assert!(
        said.out.contains(&format!("create stream {name}_jobs")) && said.out.contains("compression: s2"),
        "{}",
        said.out
    );
    topology(&world, &["verify"]).failed(1, &["6 objects missing or otherwise", "aqueduct topology apply"]);
    topology(&world, &["apply"]).failed(2, &["6 steps as above", "--yes"]);
    let said = topology(&world, &["apply", "--yes"]).succeeded();
    assert!(said.out.ends_with("done: 6 steps, and all is as declared\n"), "{}", said.out);
    let said = topology(&world, &["verify"]).succeeded();
    assert!(said.out.contains("warning: ") && said.out.contains("nothing to do"), "{}", said.out);
    let longer = world.read("topology.toml").replace("30d", "40d");
    world.write("topology.toml", &longer);
    let said = topology(&world, &["verify", "--allow-drift"]).succeeded();
    assert!(said.out.contains("max_age: 2592000s -> 3456000s"), "{}", said.out);
    let said = topology(&world, &["apply", "--yes", "--output", "json"]).succeeded();
    let applied: Value = serde_json::from_str(&said.out).unwrap();
    let change = json!({"field": "max_age", "is": "2592000s", "declared": "3456000s"});
    assert_eq!(
        applied,
        json!({"applied": [{"action": "update", "object": format!("stream {name}"), "changes": [change]}]})
    );
}

#[test]
fn what_cannot_be_is_refused_with_the_way_out() {
    let world = World::new();
    let name = declared(&world, "[[stream]]\nname = \"T\"\n");
    topology(&world, &["apply", "--yes"]).succeeded();
    world.write("topology.toml", &format!("[[stream]]\nname = \"{name}\"\nretention = \"workqueue\"\n"));
    for command in [&["plan"][..], &["verify"], &["apply", "--yes"]] {
        let said = topology(&world, command);
        assert!(said.out.contains("refused: ") && said.out.contains("under another name"), "{}", said.out);
        said.failed(78, &["1 setting refused", "the way out"]);
    }
}

#[test]
fn a_plan_is_printed_for_programs_as_it_was_looked_at() {
    let world = World::new();
    world.write("topology.toml", &ALL.replace('T', "orders"));
    let server = Nats::start(Options::new()).unwrap();
    let said = world.run(&["topology", "plan", "--output", "json", "--broker", &server.url()]).succeeded();
    let plan: Value = serde_json::from_str(&said.out).unwrap();
    insta::assert_snapshot!("plan-json", format!("{plan:#}"));
    insta::assert_snapshot!("plan", world.run(&["topology", "plan", "--broker", &server.url()]).succeeded().out);
    insta::assert_snapshot!("permissions", world.run(&["topology", "permissions"]).succeeded().out);
    let nsc = ["topology", "permissions", "--form", "nsc", "--domain", "hub", "--inbox-prefix", "in"];
    insta::assert_snapshot!("permissions-nsc", world.run(&nsc).succeeded().out);
    let said = world.run(&["topology", "permissions", "--output", "json"]).succeeded();
    let permissions: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(permissions[0]["who"], "consumer orders");
}

#[test]
fn permissions_that_are_missing_are_named_and_secrets_are_not() {
    let world = World::new();
    world.write("topology.toml", "[[topic]]\nname = \"orders\"\n");
    let users = "{ users: [{ user: root, password: root }, { user: shop, password: topsecret, permissions: { publish: \"orders.>\", subscribe: \"_INBOX.>\" } }] }";
    let server = Nats::start(Options::new().setting("authorization", users)).unwrap();
    let address = |user: &str| server.url().replace("//", &format!("//{user}@"));
    let run = |command: &str, user: &str| world.run(&["topology", command, "--broker", &address(user)]);
    world.run(&["topology", "apply", "--yes", "--broker", &address("root:root")]).succeeded();
    let said = run("verify", "shop:topsecret").succeeded();
    let parts =
        ["not seen: stream orders", "no permission for $JS.API.STREAM.INFO.orders", "it does take orders.16.*.>"];
    assert!(parts.iter().all(|part| said.out.contains(part)), "{}", said.out);
    let said = world.run(&["topology", "apply", "--yes", "--broker", &address("shop:topsecret")]);
    said.failed(69, &["nothing was changed", "$JS.API.STREAM.INFO.orders"]);
    let said = run("verify", "shop:topwrong");
    assert!(!said.err.contains("topwrong") && !said.out.contains("topwrong"), "{}", said.err);
    said.failed(69, &["no connection", "authorization violation", "user, password"]);
}

#[test]
fn a_file_that_is_wrong_says_where() {
    let world = World::new();
    let plan = |text: &str, code: i32, parts: &[&str]| {
        world.write("topology.toml", text);
        topology(&world, &["plan"]).failed(code, parts);
    };
    plan("[[topic]]\nname = \"a\"\nage = \"1d\"\n", 78, &["topology.toml", "unknown field", "age", "topology --help"]);
    plan("[[topic]]\nname = \"a\"\nmax_age = \"long\"\n", 78, &["topic.0.max_age", "no length of time"]);
    plan("[[topic]\n", 78, &["topology.toml"]);
    plan("[[topic]]\nname = \"a\"\npartitions = 3\n", 78, &["topology.toml: topic", "power of two"]);
    plan("[[stream]]\nname = \"a.b\"\n", 78, &["cannot be the name of a stream"]);
    plan("[[stream]]\nname = \"a\"\n[[stream]]\nname = \"a\"\n", 78, &["declared twice"]);
    world.write("topology.toml", "");
    world.run(&["topology", "plan", "--file", "none.toml"]).failed(66, &["no file none.toml"]);
    world.run(&["topology", "plan"]).failed(78, &["which NATS server", "--broker nats://"]);
}
