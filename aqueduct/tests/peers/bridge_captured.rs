//! The gem `jetstream_bridge`: what versions 1.15 to 7.1 have stored and asked for.

use std::collections::BTreeMap;

use aqueduct::compat::jetstream_bridge::{DeadLetter, Envelope, Generation, Names, Reason};
use aqueduct::format::Format;
use aqueduct::{Event, Message, Topic};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::captured::{Case, check_all, json, on_the_wire, read};

fn generation(case: &Case) -> Generation {
    let version = case.text("version");
    let of = |begin: &str| version.trim_start_matches("tags ").trim_start_matches("tag ").starts_with(begin);
    match version {
        _ if of("1.") || of("2.0") => Generation::V1_3,
        _ if of("3.") => Generation::V2_1,
        _ if of("4.") || of("2.5.0-5.1.0") => Generation::V4_0,
        _ => Generation::V4_5,
    }
}

/// The names of every application in the records.
fn names(generation: Generation) -> Vec<Names> {
    let pairs = [("orders", "warehouse"), ("warehouse", "orders"), ("worker", "api"), ("api", "worker")];
    let names = pairs.map(|(app, dest)| match generation {
        Generation::V4_5 => Names::new(app, dest).unwrap(),
        _ => Names::before_4_5(generation, "production", app, dest).unwrap(),
    });
    names.to_vec()
}

/// The event of an envelope, made field by field, as somebody makes it who wants to publish the same.
fn made_of(body: &str) -> Event {
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_str(body).unwrap();
    let text = |name: &str| serde_json::from_str::<String>(fields[name].get()).unwrap();
    let event = Event::raw(text("event_type"), fields["payload"].get().to_owned()).id(text("event_id"));
    let event = event.source(text("producer")).time(text("occurred_at").parse().unwrap());
    let event = event.header("ce-traceid", text("trace_id"));
    match text("resource_id").as_str() {
        "" => event.header("ce-resourcetype", text("resource_type")),
        id => event.key(format!("{}/{id}", text("resource_type"))),
    }
}

/// Offsets of times are free: what is written is in UTC.
fn in_utc(body: &str) -> String {
    body.replace("2026-01-02T03:04:05+02:00", "2026-01-02T01:04:05Z")
}

fn is_envelope(body: &[u8]) -> bool {
    serde_json::from_slice::<Value>(body).is_ok_and(|value| value.get("event_type").is_some())
}

fn check_read(message: &Message, format: Envelope) {
    if !is_envelope(&message.body) {
        format.decode(message).unwrap_err();
        return;
    }
    let event = read(&format, message);
    let body = std::str::from_utf8(&message.body).unwrap();
    let made = made_of(body);
    assert_eq!((&event.id, &event.kind, &event.source, event.time), (&made.id, &made.kind, &made.source, made.time));
    assert_eq!((&event.key, &event.data), (&made.key, &made.data));
    assert_eq!(event.headers.get("ce-traceid"), made.headers.get("ce-traceid"));
    assert!(event.headers.get("nats-msg-id").is_none());
    assert_eq!(format.encode(&event, &message.topic).unwrap().body, in_utc(body));
}

fn check_written(message: &Message, format: Envelope) {
    let body = std::str::from_utf8(&message.body).unwrap();
    let written = format.encode(&made_of(body), &message.topic).unwrap();
    assert_eq!(written.body, in_utc(body));
    assert_eq!(on_the_wire(&written), on_the_wire(message));
    // The same from a row of an outbox, whose payload is the whole envelope.
    let row = Event::raw("any", body.to_owned()).id(written_id(&written)).source("s");
    let written = format.whole(true).encode(&row, &message.topic).unwrap();
    assert_eq!((on_the_wire(&written), &written.body), (on_the_wire(message), &message.body));
    assert_eq!(read(&format.whole(true), &written).data, message.body);
}

fn written_id(message: &Message) -> String {
    json(&message.body)["event_id"].as_str().unwrap().to_owned()
}

fn check_dead_letter(message: &Message) {
    let dead = DeadLetter::read(&message.headers).unwrap().unwrap();
    let context = json(message.headers.get("x-dlq-context").unwrap());
    let reason = match context["reason"].as_str().unwrap() {
        "malformed_json" => Reason::MalformedJson,
        "unrecoverable" => Reason::Unrecoverable,
        "max_deliver_exceeded" => Reason::MaxDeliverExceeded,
        other => panic!("{other}"),
    };
    assert_eq!((&dead.reason, dead.deliveries), (&reason, context["deliveries"].as_u64()));
    for (name, text) in [
        ("event_id", &dead.event_id),
        ("error_class", &dead.error_class),
        ("error_message", &dead.error_message),
        ("original_subject", &dead.original_subject),
        ("stream", &dead.stream),
        ("consumer", &dead.consumer),
    ] {
        assert_eq!(context[name], text.as_str());
    }
    let sequence = |name: &str| context["sequence"][name].as_u64();
    assert_eq!((dead.stream_sequence, dead.consumer_sequence), (sequence("stream"), sequence("consumer")));
    assert_eq!(dead.published_at.unwrap().to_string(), context["published_at"].as_str().unwrap());
    if is_envelope(&message.body) {
        let event = read(&Envelope::new(), message);
        assert_eq!(DeadLetter::read(&event.headers).unwrap(), Some(dead), "an event keeps what is said of it");
    }
}

fn check_message(message: &Message, generation: Generation) -> Vec<&'static str> {
    let format = Envelope::new().generation(generation);
    let is = |of: fn(&Names) -> &Topic| names(generation).iter().any(|names| *of(names) == message.topic);
    check_read(message, format);
    let mut checked = vec!["read"];
    if message.headers.get("x-dead-letter").is_some() {
        check_dead_letter(message);
        checked.push("dead letter");
    }
    if is(|names| &names.dead_letters) {
        assert!(!message.headers.is_empty());
    } else {
        assert!(is(|names| &names.publish), "{}", message.topic);
        if is_envelope(&message.body) {
            check_written(message, format);
            checked.push("written");
        }
    }
    checked
}

/// A row of an outbox or inbox: what its columns say is what the envelope says, and the envelope is what would be written.
fn check_row(row: &Value, generation: Generation) {
    let text = |name: &str| row[name].as_str().unwrap().to_owned();
    let (body, headers) = (text("payload"), text("headers"));
    let event = read(&Envelope::new(), &Message::new(text("subject"), body.clone()));
    if event.id.is_empty() {
        assert_eq!((headers.as_str(), event.kind.as_str()), ("{}", text("event_type").as_str()));
        return;
    }
    assert_eq!(event.id, text("event_id").as_str());
    assert_eq!(json(headers.as_bytes())["nats-msg-id"], event.id.as_str());
    let written = Envelope::new().generation(generation).encode(&made_of(&body), &Topic::from(text("subject")));
    assert_eq!(written.unwrap().body, body);
}

fn check_stream(config: &Value, generation: Generation) {
    let subjects: Vec<_> = config["subjects"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    let names = names(generation);
    assert!(names.iter().all(|names| config["name"] == names.stream.as_str()));
    if let [_, _, _] = subjects[..] {
        assert!(names.iter().any(|names| names.subjects().map(Topic::as_str)[..] == subjects[..]), "{subjects:?}");
    }
    let known = |subject| names.iter().any(|names| names.subjects().into_iter().any(|s| s.as_str() == subject));
    assert!(subjects.iter().all(|subject| known(*subject)), "{subjects:?}");
}

fn check(case: &Case) -> Vec<&'static str> {
    let generation = generation(case);
    let mut checked = case.message().map_or_else(Vec::new, |message| check_message(&message, generation));
    for dead in case.0["dead_letters"].as_array().into_iter().flatten() {
        let message = Case(dead.clone()).message().unwrap();
        checked.extend(check_message(&message, generation));
    }
    if !case.has("body_utf8") && case.has("headers") {
        // A message whose dead letter was lost by its headers: an event that had them is written without.
        let mut event = Event::raw("t", "{}").id("1").source("s");
        event.headers = case.headers();
        let written = Envelope::new().encode(&event, &Topic::from("t")).unwrap();
        assert_eq!(on_the_wire(&written), [("nats-msg-id".to_owned(), "1".to_owned())]);
        checked.push("headers");
    }
    if let Some(config) = case.0.get("stream_config") {
        check_stream(config, generation);
        checked.push("stream");
    }
    if let Some(config) = case.0.get("consumer_config") {
        let is = |names: &Names| {
            config["durable_name"] == names.durable.as_str() && config["filter_subject"] == names.subscribe.as_str()
        };
        assert!(names(generation).iter().any(is), "{config}");
        checked.push("durable");
    }
    for row in ["outbox_row", "inbox_row"].iter().filter_map(|name| case.0.get(name)) {
        check_row(row, generation);
        checked.push("row");
    }
    checked
}

#[test]
fn everything_that_the_gem_has_written_is_read_and_written() {
    // What was only done, not written: a refused publish, and how often something was handled.
    let behaviour = [
        "publish: payload is a list",
        "publish: nobody listens on the subject (two attempts)",
        "one idle consumer, handler succeeds: the event is handled max_deliver times (ack_wait 1 ns)",
        "durable created beforehand with ack_wait 30 s and no backoff: left alone, the event is handled once",
        "dead letters are published with the original Nats-Msg-Id and dropped by the broker as duplicates",
    ];
    check_all("jetstream_bridge", 63, check, &behaviour);
}
