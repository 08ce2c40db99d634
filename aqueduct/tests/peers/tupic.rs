//! tupic's Go modules: the vectors, and what is particular to their envelope and names.

use aqueduct::compat::tupic::{self, Envelope};
use aqueduct::format::{Format, FormatErrorKind};
use aqueduct::testing::format_suite::{self, Survives};
use aqueduct::{Event, Message, Topic};
use bytes::Bytes;
use serde_json::Value;

use crate::captured::{json, on_the_wire, read, vectors};

fn survives() -> Survives {
    let mut survives = Survives::everything();
    (survives.kind, survives.subject, survives.schema, survives.content_type) = (false, false, false, false);
    (survives.bytes, survives.binary, survives.empty, survives.identity) = (false, false, false, false);
    survives
}

fn vectors_of_the_modules() -> Value {
    vectors(include_str!("../vectors/tupic.json"))
}

#[test]
fn the_suite_holds_for_events_and_for_tasks_that_are_wrapped() {
    format_suite::check(&Envelope::new("format"), survives());
    format_suite::check(&Envelope::new("format").wrapped_tasks(true), survives());
}

#[test]
fn the_vectors_are_written() {
    for vector in vectors_of_the_modules()["encode"].as_array().unwrap() {
        let text = |name: &str| vector[name].as_str().unwrap().to_owned();
        let event = Event::new("events.x", &vector["data"]).unwrap().id(text("id")).source(text("source"));
        let event = event.time(text("time").parse().unwrap()).header("ce-version", text("version"));
        let message = Envelope::new("acme").encode(&event, &Topic::from("acme.events.x")).unwrap();
        let expected = &vector["expect"];
        assert_eq!(json(&message.body), *expected);
        let in_order =
            ["id", "version", "source", "timestamp", "data"].map(|name| format!("\"{name}\":{}", expected[name]));
        assert_eq!(message.body, format!("{{{}}}", in_order.join(",")));
        assert_eq!(on_the_wire(&message), [("Nats-Msg-Id".to_owned(), text("id"))]);
        let read = read(&Envelope::new("acme"), &message);
        assert_eq!((read.kind, read.id, read.time, read.headers.len()), (event.kind, event.id, event.time, 0));
    }
}

#[test]
fn durables_and_subjects_are_those_of_the_vectors() {
    let vectors = vectors_of_the_modules();
    let each = |name: &str| {
        let rows = vectors[name].as_array().unwrap().iter();
        rows.map(|row| [0, 1, 2].map(|n| row[n].as_str().unwrap().to_owned())).collect::<Vec<_>>()
    };
    for [app, subject, durable] in each("durable") {
        assert_eq!(tupic::durable(&app, &subject), durable.as_str());
        assert_eq!(tupic::durables(&app, [&subject]).unwrap(), [durable.as_str()]);
    }
    for [app, one, other] in each("collide") {
        let text = tupic::durables(&app, [&one, &other]).unwrap_err().to_string();
        assert!(text.contains(&one) && text.contains(&other) && text.contains("rename"), "{text}");
        assert!(tupic::durables(&app, [&one, &one]).is_ok());
    }
    for [channel, name, subject] in each("task_subject") {
        let task = tupic::task_subject("acme", &channel, &name).unwrap();
        assert_eq!(task, tupic::event_subject("acme", &subject).unwrap());
        assert_eq!(task.as_str(), format!("acme.{subject}"));
    }
    for (delivery, wait) in vectors["task_delays_s"].as_object().unwrap() {
        assert_eq!(tupic::task_delay(delivery.parse().unwrap()).map(|wait| wait.as_secs()), wait.as_u64());
    }
    assert_eq!(tupic::task_delay(0), None);
}

#[test]
fn a_subject_that_could_not_be_one_says_why() {
    for (prefix, channel, name, why) in [
        ("", "default", "a", "prefix"),
        ("acme", "", "a", "nothing between"),
        ("acme", "a.b", "c", "one part"),
        ("acme", "default", "a.", "nothing between"),
        ("acme", "default", "*", "one subject"),
        ("acme", "default", "a b", "one subject"),
        ("acme", "default", &"a".repeat(255), "255"),
    ] {
        let text = tupic::task_subject(prefix, channel, name).unwrap_err().to_string();
        assert!(text.contains(why), "{text}");
    }
}

fn read_body(body: &'static str) -> Event {
    read(&Envelope::new("acme"), &Message::new("acme.events.x", body))
}

#[test]
fn names_are_read_in_any_case_and_a_null_counts_for_nothing_but_data() {
    let event =
        read_body(r#"{"ID":"a","id":null,"Source":"s","TimeStamp":-5,"Data":1,"version":"2","data":null,"x":{}}"#);
    assert_eq!((event.id.as_str(), event.source.as_str(), event.data.as_ref()), ("a", "s", b"null".as_ref()));
    assert_eq!((event.time.unwrap().unix_ms(), event.headers.text("ce-version")), (-5, Some("2")));
    assert_eq!(read_body("null"), read_body("{}"));
    let mut message = Message::new("other.x", "{}");
    message.headers.add("Nats-Msg-Id", "h");
    let event = read(&Envelope::new("acme"), &message);
    assert_eq!((event.id.as_str(), event.kind.as_str(), event.data.as_ref()), ("h", "other.x", b"null".as_ref()));
}

#[test]
fn what_the_modules_drop_is_an_error_that_shows_nothing_of_it() {
    for (body, why) in [
        ("", "EOF"),
        ("[4111]", "a JSON object"),
        ("\"4111\"", "a JSON object"),
        (r#"{"id":4111}"#, "\"id\": a string"),
        (r#"{"Version":{}}"#, "\"version\": a string"),
        (r#"{"source":false}"#, "\"source\": a string"),
        (r#"{"timestamp":"4111"}"#, "integer"),
        (r#"{"timestamp":4111.0}"#, "integer"),
        (r#"{"timestamp":4111e0}"#, "integer"),
    ] {
        let error = Envelope::new("acme").decode(&Message::new("t", body)).unwrap_err();
        let text = error.to_string();
        assert!(error.kind == FormatErrorKind::Malformed && text.contains(why) && !text.contains("4111"), "{text}");
    }
}

#[test]
fn a_version_that_no_row_could_hold_is_refused() {
    let event = Event::raw("t", "1").id("1").source("s");
    let written = |version: &str| {
        let message = Envelope::new("acme").version(version).encode(&event, &Topic::from("t"));
        message.map(|message| json(&message.body)["version"].clone()).map_err(|e| e.to_string())
    };
    assert_eq!(written("12345678901234567890"), Ok("12345678901234567890".into()));
    assert!(written("123456789012345678901").unwrap_err().contains("20 characters"));
}

#[test]
fn data_is_wrapped_for_old_tasks_only_where_that_is_asked_for() {
    let event = Event::raw("queue.validate", r#"{"a": 1}"#).id("1").source("s");
    let message =
        |wrapped| Envelope::new("acme").wrapped_tasks(wrapped).encode(&event, &Topic::from("acme.queue.validate"));
    assert_eq!(json(&message(true).unwrap().body)["data"], json(br#"{"Task":{"a":1}}"#));
    assert_eq!(json(&message(false).unwrap().body)["data"], json(br#"{"a":1}"#));
    let old = Envelope::new("acme").wrapped_tasks(true);
    assert_eq!(json(&read(&old, &message(true).unwrap()).data), json(br#"{"a":1}"#));
    assert_eq!(json(&read(&old, &message(false).unwrap()).data), json(br#"{"a":1}"#));
    let two = Message::new("t", Bytes::from_static(br#"{"data":{"Task":1,"other":2}}"#));
    assert_eq!(json(&read(&old, &two).data), json(br#"{"Task":1,"other":2}"#));
}
