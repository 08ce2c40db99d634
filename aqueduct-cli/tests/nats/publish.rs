//! `aqueduct publish` to NATS.

use crate::shore::Shore;
use crate::world::World;

#[test]
fn lines_are_published_to_a_topic_of_any_number_of_partitions_and_again_add_nothing() {
    let shore = Shore::new();
    assert_eq!(shore.publish(20, 3).succeeded().out, "read 20, confirmed 20, duplicates 0, bad 0\n");
    assert_eq!(shore.publish(21, 3).succeeded().out, "read 21, confirmed 1, duplicates 20, bad 0\n");
}

#[test]
fn a_topic_that_is_not_declared_is_refused_and_declaring_it_is_named() {
    let shore = Shore::bare();
    let words = ["does not exist on nats://", "aqueduct topology apply --file", "nothing was published"];
    shore.publish(1, 1).failed(66, &words[..2]);
    shore.declare("[[stream]]\nname = \"T\"\n");
    shore.publish(1, 1).failed(69, &["was not made by"]);
}

#[test]
fn an_address_that_is_wrong_says_why_and_shows_no_password() {
    let world = World::new();
    let publish = |broker: &str, code: i32, words: &[&str]| {
        let mut command = world.command(&["publish", "--topic", "t"]);
        command.env("AQUEDUCT_BROKER", broker);
        let said = crate::world::Said::of(command);
        assert!(!said.err.contains("topsecret") && !said.out.contains("topsecret"), "{said:?}");
        said.failed(code, words);
    };
    publish("nats://", 78, &["a host is missing", "nats://host:4222"]);
    publish("nats://shop:topsecret@", 78, &["no host and port"]);
    publish("nats://shop:topsecret@n1/x", 78, &["no host and port"]);
    publish("shop:topsecret@n1", 78, &["AQUEDUCT_BROKER", "nats://host:4222"]);
    publish("http://shop:topsecret@n1", 78, &["`http:` is not known", "nats://host:4222"]);
    publish("nats://shop:topsecret@127.0.0.1:1", 69, &["no connection to NATS at nats://127.0.0.1:1", "--credentials"]);
}

#[test]
fn a_file_of_credentials_that_is_not_there_is_named() {
    let shore = Shore::new();
    let said = shore.run(&["publish", "--topic", &shore.name, "--credentials", "none.creds"]);
    said.failed(66, &["no file of credentials none.creds"]);
}

#[test]
fn the_settings_show_the_servers_without_the_login() {
    let world = World::new();
    world.write("aqueduct.toml", "broker = \"nats://shop:topsecret@n1:4222,tls://n2\"\ncredentials = \"shop.creds\"\n");
    let shown = world.run(&["config", "show"]).succeeded().out;
    assert!(shown.contains("nats://n1:4222,tls://n2") && !shown.contains("topsecret"), "{shown}");
    world.run(&["publish", "--topic", "t", "--store", "nats://shop:topsecret@n1"]).failed(78, &["only sqlite:PATH is"]);
}
