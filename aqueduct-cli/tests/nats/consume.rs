//! `aqueduct consume` from NATS: what handles events, and where those that fail go.

use std::io::{BufRead, BufReader, Read, Write};

use crate::shore::Shore;

const STORE: [&str; 2] = ["--store", "sqlite:store.db"];

#[test]
fn events_are_printed_or_given_to_programs_and_addresses() {
    let shore = Shore::new();
    shore.publish(3, 1).succeeded();
    let said = shore.run(&shore.consume(&["--max-events", "3", STORE[0], STORE[1]])).succeeded();
    let ids: Vec<_> = said.out.lines().map(|line| line.split("\"id\":\"").nth(1).unwrap().as_bytes()[0]).collect();
    assert_eq!(ids, b"012");

    let handler = shore.world.script("handler", "cat >> seen; echo >> seen");
    let of = |group| ["consume", &shore.name, "--group", group, "--max-events", "3", STORE[0], STORE[1]];
    let (exec, http) = (format!("{}_exec", shore.name), format!("{}_http", shore.name));
    shore.run(&[&of(&exec)[..], &["--exec", &handler]].concat()).succeeded().says(&["done 3"]);
    assert_eq!(shore.world.read("seen").lines().filter(|line| line.contains("tick")).count(), 3);

    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || answer(stream));
        }
    });
    shore.run(&[&of(&http)[..], &["--http", &url]].concat()).succeeded().says(&["done 3"]);
}

/// Takes each request.
fn answer(mut stream: std::net::TcpStream) {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut line, mut length) = (String::new(), 0);
        while lines.read_line(&mut line).unwrap_or(0) > 2 {
            let lower = line.to_ascii_lowercase();
            length = lower.strip_prefix("content-length: ").map_or(length, |text| text.trim().parse().unwrap());
            line.clear();
        }
        if line.is_empty() {
            return;
        }
        std::io::copy(&mut lines.by_ref().take(length), &mut std::io::sink()).unwrap();
        stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    }
}

#[test]
fn what_fails_for_good_is_a_dead_letter_in_the_store() {
    let shore = Shore::new();
    shore.publish(2, 2).succeeded();
    let handler = shore.world.script("handler", "grep -q '\"n\":0' && { echo no such sku >&2; exit 65; }; exit 0");
    let run = shore.consume(&["--exec", &handler, "--exit-when-idle", "300ms", STORE[0], STORE[1]]);
    shore.run(&run).succeeded();
    let listed = shore.run(&["dead-letters", "list", STORE[0], STORE[1]]).succeeded().out;
    assert!(listed.contains("no such sku") && listed.lines().count() == 2, "{listed}");
    let group = shore.status("groups", "group", &STORE);
    assert_eq!((&group["dead"], &group["lag"]), (&1.into(), &0.into()));

    // Nobody is stood in for: who runs the group carries it out.
    let replay = ["dead-letters", "replay", "--all", "--yes", STORE[0], STORE[1], "--wait", "1ms"];
    shore.run(&replay).failed(1, &["1 event still wait for whoever runs"]);
    shore.world.script("handler", "exit 0");
    let said = shore.run(&shore.consume(&["--exec", &handler, "--max-events", "1", STORE[0], STORE[1]]));
    said.succeeded().says(&["done 1"]);
    shore.run(&["dead-letters", "list"]).failed(78, &["which store is not said", "--store sqlite:PATH"]);
}

#[test]
fn without_a_store_it_says_where_failing_events_wait() {
    let shore = Shore::new();
    shore.publish(1, 1).succeeded();
    let said = shore.run(&shore.consume(&["--max-events", "1"])).succeeded();
    said.says(&["events that fail wait at the broker", "--store sqlite:PATH", "--database"]);
}

#[test]
fn topics_that_cannot_be_read_say_how_they_could_be() {
    let shore = Shore::bare();
    shore.run(&shore.consume(&[])).failed(66, &["does not exist on nats://", "aqueduct topology apply --file"]);
    shore.run(&["consume", "a.*", "--group", "g"]).failed(2, &["`a.*` is a pattern", "name each topic"]);
    shore.run(&["consume", "a..b", "--group", "g"]).failed(69, &["a..b", "choose another name"]);
    shore.run(&shore.consume(&["--no-wait"])).failed(2, &["no process has a group alone", "leave out --no-wait"]);
    shore.run(&shore.consume(&["--create-topics", "--exit-when-idle", "10ms"])).succeeded();
    shore.publish(1, 1).succeeded();
}

#[test]
fn results_are_published_to_a_topic_that_is_declared() {
    let shore = Shore::new();
    shore.publish(2, 1).succeeded();
    let results = format!("{}_results", shore.name);
    let handler = shore.world.script("handler", r#"echo '{"type":"priced","data":1}'"#);
    let run = shore.consume(&["--exec", &handler, "--max-events", "2", "--publish-results", &results]);
    shore.run(&run).failed(66, &[&results, "aqueduct topology apply"]);
    shore.declare("[[topic]]\nname = \"T_results\"\npartitions = 2\n");
    shore.run(&run).succeeded();
    let said = shore.run(&["consume", &results, "--group", &results, "--max-events", "2"]).succeeded();
    assert_eq!(said.out.lines().filter(|line| line.contains("priced")).count(), 2);
}
