//! What operators look at on NATS, and what is refused there.

use aqueduct_servers::{Nats, Options};

use crate::shore::Shore;
use crate::world::World;

#[test]
fn status_shows_topics_and_how_far_groups_are() {
    let shore = Shore::new();
    shore.publish(10, 4).succeeded();
    shore.run(&shore.consume(&["--exit-when-idle", "300ms"])).succeeded();
    shore.publish(13, 4).succeeded();
    let topic = shore.status("topics", "topic", &[]);
    assert_eq!((&topic["events"], &topic["partitions"]), (&13.into(), &4.into()), "{topic}");
    let group = shore.status("groups", "group", &[]);
    assert_eq!((&group["lag"], &group["dead"]), (&3.into(), &0.into()), "{group}");
    let shown = shore.run(&["status"]).succeeded().out;
    assert!(shown.contains(&shore.name) && shown.contains("LAG"), "{shown}");
    shore.run(&["status", "--store", "sqlite:none.db"]).failed(66, &["no store at sqlite:none.db"]);
}

#[test]
fn the_doctor_finds_a_durable_that_hands_events_out_at_once() {
    let world = World::new();
    let server = Nats::start(Options::new()).unwrap();
    let doctor = || world.run(&["doctor", "--broker", &server.url()]);
    let said = doctor().succeeded().out;
    let parts =
        ["ok    connection", "ok    JetStream", "warn  topics", "aqueduct topology apply --file", "warn  store"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    world.write(
        "topology.toml",
        "[[topic]]\nname = \"orders\"\n[[stream]]\nname = \"jobs\"\n[[durable]]\nstream = \"jobs\"\nname = \"gem\"\nack_wait = \"1ns\"\n",
    );
    world.run(&["topology", "apply", "--yes", "--broker", &server.url()]).succeeded();
    let said = doctor();
    let parts = [
        "1 topic declared",
        "FAIL  durables",
        "durable gem of the stream jobs",
        "nats consumer edit jobs gem --wait 30s",
    ];
    assert!(parts.iter().all(|part| said.out.contains(part)), "{}", said.out);
    said.failed(69, &["1 check failed"]);
}

#[test]
fn the_doctor_says_what_a_server_lacks() {
    let world = World::new();
    let away = world.run(&["doctor", "--broker", "nats://shop:topsecret@127.0.0.1:1"]);
    assert!(away.out.contains("FAIL  connection") && !away.out.contains("topsecret"), "{}", away.out);
    away.failed(69, &["1 check failed"]);
    let users = "{ users: [{ user: shop, password: topsecret, permissions: { publish: \"orders.>\", subscribe: \"_INBOX.>\" } }] }";
    let server = Nats::start(Options::new().setting("authorization", users)).unwrap();
    let address = server.url().replace("//", "//shop:topsecret@");
    let said = world.run(&["doctor", "--broker", &address]);
    let parts = ["ok    connection", "FAIL  JetStream", "STREAM.LIST", "permit this user to list"];
    assert!(parts.iter().all(|part| said.out.contains(part)), "{}", said.out);
    assert!(!said.out.contains("topsecret") && !said.err.contains("topsecret"), "{said:?}");
}

#[test]
fn what_works_on_a_file_alone_says_what_to_do_instead() {
    let shore = Shore::bare();
    for (command, instead) in [
        (&["tail", "t"][..], "aqueduct consume TOPIC --group NAME --from new"),
        (&["purge", "t", "--all"], "nats stream purge"),
        (&["forget", "g"], "nats kv del aq_GROUP"),
        (&["rewind", "--group", "g", "--topic", "t", "--partition", "0", "--to", "none"], "another --group"),
    ] {
        shore.run(command).failed(2, &["the log of an SQLite file alone", "the broker is nats://", instead]);
    }
}
