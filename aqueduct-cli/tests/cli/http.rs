//! `--http`: requests, and what answers mean.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::world::{Row, World};

const IDLE: [&str; 2] = ["--exit-when-idle", "400ms"];

/// A target that answers by a script, and keeps what it was sent.
struct Target {
    url: String,
    requests: Arc<Mutex<Vec<String>>>,
    connections: Arc<Mutex<usize>>,
}

impl Target {
    /// `answer` is given the number of the request from 0; none is no answer at all.
    fn new(answer: impl Fn(usize) -> Option<String> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (requests, connections) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<usize>>::default());
        let (kept, count, answer) = (requests.clone(), connections.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                *count.lock().unwrap() += 1;
                let (kept, answer) = (kept.clone(), answer.clone());
                std::thread::spawn(move || {
                    let mut reader = BufReader::new(stream);
                    while let Some(request) = read(&mut reader) {
                        let n = {
                            let mut kept = kept.lock().unwrap();
                            kept.push(request);
                            kept.len() - 1
                        };
                        let Some(answer) = answer(n) else {
                            std::thread::park();
                            return;
                        };
                        reader.get_mut().write_all(answer.as_bytes()).unwrap();
                    }
                });
            }
        });
        Self { url, requests, connections }
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn read(reader: &mut BufReader<std::net::TcpStream>) -> Option<String> {
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        text += &line;
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(text + "\r\n" + std::str::from_utf8(&body).unwrap())
}

#[expect(clippy::unnecessary_wraps, reason = "a target may also give none")]
fn answer(status: &str, headers: &str, body: &str) -> Option<String> {
    Some(format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len()))
}

fn consume(world: &World, url: &str, more: &[&str]) -> crate::world::Said {
    let base = ["consume", "t", "--group", "g", "--http", url, "--quick-delay", "1ms", "--policy", "fast"];
    world.run(&[&base[..], more, &IDLE].concat()).succeeded()
}

fn only_row(world: &World) -> Row {
    let mut rows = world.rows();
    assert_eq!(rows.len(), 1, "{rows:?}");
    rows.remove(0)
}

#[test]
fn an_event_is_a_post_in_binary_mode_over_connections_that_are_kept() {
    let (world, target) = (World::new(), Target::new(|_| answer("204 No Content", "", "")));
    let line = |id: usize| {
        format!(
            r#"{{"specversion":"1.0","id":"{id}","source":"s","type":"t","partitionkey":"k y","subject":"ü","datacontenttype":"application/json","data":{{"a":1}}}}"#
        )
    };
    let text: Vec<String> = (0..50).map(line).collect();
    world.run_with(&["publish", "--topic", "t"], &text.join("\n")).succeeded();
    consume(&world, &target.url, &["--http-header", "Authorization: Bearer hush"]).says(&["done 50"]);
    let request = target.requests()[0].to_ascii_lowercase();
    for part in [
        "post /hook http/1.1\r\n",
        "ce-specversion: 1.0\r\n",
        "ce-id: 0\r\n",
        "ce-type: t\r\n",
        "ce-partitionkey: k%20y\r\n",
        "ce-subject: %c3%bc\r\n",
        "content-type: application/json\r\n",
        "aqueduct-attempt: 1\r\n",
        "aqueduct-epoch: 1\r\n",
        "authorization: bearer hush\r\n",
        "\r\n{\"a\":1}",
    ] {
        assert!(request.contains(part), "{part:?} is missing: {request}");
    }
    assert_eq!(*target.connections.lock().unwrap(), 1, "one key, one connection");
}

#[test]
fn statuses_say_what_became_of_the_event() {
    for (status, attempts) in
        [("500 Oops", 2), ("503 Busy", 2), ("408 Slow", 2), ("425 Early", 2), ("404 Not Found", 1), ("400 Bad", 1)]
    {
        let (world, target) = (World::new(), Target::new(move |_| answer(status, "", "because I say so")));
        world.events(1, 1);
        consume(&world, &target.url, &["--quick-attempts", "2"]);
        let row = only_row(&world);
        assert_eq!((row.attempts, target.requests().len()), (attempts, attempts as usize), "{status}");
        assert!(row.error.contains(&status[..3]) && row.error.ends_with(": because I say so"), "{}", row.error);
    }
}

#[test]
fn a_target_that_asks_for_time_gets_it() {
    let target = Target::new(|n| match n {
        0 => answer("429 Too Many Requests", "retry-after: 1\r\n", ""),
        _ => answer("200 OK", "", "thanks"),
    });
    let world = World::new();
    world.events(1, 1);
    let began = Instant::now();
    let base = ["consume", "t", "--group", "g", "--http", &target.url, "--max-events", "1"];
    world.run(&base).succeeded().says(&["done 1, failed attempts 1"]);
    assert!(began.elapsed().as_millis() >= 1_000);
    assert_eq!(target.requests().len(), 2);
    assert!(target.requests()[1].contains("aqueduct-attempt: 2"));
}

#[test]
fn redirects_are_not_followed() {
    let (world, target) = (World::new(), Target::new(|_| answer("302 Found", "location: http://elsewhere/\r\n", "")));
    world.events(1, 1);
    consume(&world, &target.url, &[]);
    let row = only_row(&world);
    assert_eq!(row.attempts, 1);
    assert_eq!(
        row.error,
        "answered 302 Found and redirects to http://elsewhere/, which is not followed: give the address itself"
    );
}

#[test]
fn a_target_that_is_down_or_slow_is_tried_again() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let world = World::new();
    world.events(1, 1);
    consume(&world, &format!("http://{closed}/"), &["--quick-attempts", "2"]);
    let row = only_row(&world);
    assert!(row.attempts == 2 && row.error.to_lowercase().contains("connection refused"), "{}", row.error);

    let (world, target) = (World::new(), Target::new(|_| None));
    world.events(1, 1);
    consume(&world, &target.url, &["--quick-attempts", "2", "--timeout", "200ms"]);
    let row = only_row(&world);
    assert_eq!((row.attempts, row.error.as_str()), (2, "no answer after 200ms"));
}

#[test]
fn an_answer_may_be_events_to_publish() {
    let body = r#"[{"type":"priced","data":1},{"type":"priced","data":2}]"#;
    let (world, target) = (World::new(), Target::new(move |_| answer("200 OK", "", body)));
    world.events(1, 1);
    consume(&world, &target.url, &["--publish-results", "prices"]);
    let out = world.run(&[&["consume", "prices", "--group", "look"][..], &IDLE].concat()).succeeded().out;
    assert_eq!(out.lines().count(), 2);
}

#[test]
fn addresses_and_headers_that_cannot_be_used_say_so() {
    let world = World::new();
    world.events(1, 1);
    let run =
        |url: &str, header: &str| world.run(&["consume", "t", "--group", "g", "--http", url, "--http-header", header]);
    run("localhost:1", "A: b").failed(2, &["must begin with http://"]);
    run("http://user:hush@h/", "A: b").failed(2, &["a name or a password", "--http-header"]);
    let said = run("http://h/", "hush").failed(2, &["`Name: value`"]);
    assert!(!said.err.contains("hush"));
}
