//! The gem `jetstream_bridge`: the vectors, and what is particular to its envelope.

use aqueduct::compat::jetstream_bridge::{Envelope, Generation, Names};
use aqueduct::format::{Format, FormatErrorKind};
use aqueduct::testing::format_suite::{self, Survives};
use aqueduct::{Event, Message, Topic};
use serde_json::Value;

use crate::captured::{json, on_the_wire, read, vectors};

fn survives() -> Survives {
    let mut survives = Survives::everything();
    (survives.key, survives.subject, survives.schema, survives.content_type) = (false, false, false, false);
    (survives.bytes, survives.binary, survives.empty, survives.identity) = (false, false, false, false);
    survives
}

fn vectors_of_the_gem() -> Value {
    vectors(include_str!("../vectors/bridge.json"))
}

#[test]
fn the_suite_holds_for_each_generation() {
    for generation in [Generation::V1_0, Generation::V2_1, Generation::V4_5] {
        format_suite::check(&Envelope::new().generation(generation), survives());
    }
}

#[test]
fn names_are_those_of_the_vectors() {
    let vectors = vectors_of_the_gem();
    for vector in vectors["names"].as_array().unwrap() {
        let text = |name: &str| vector[name].as_str().unwrap();
        let names = match text("generation") {
            "v7" => Names::new(text("app"), text("dest")),
            "v4" => Names::before_4_5(Generation::V4_0, text("env"), text("app"), text("dest")),
            _ => Names::before_4_5(Generation::V1_3, text("env"), text("app"), text("dest")),
        };
        let names = names.unwrap();
        assert_eq!(names.subjects().map(Topic::as_str), [text("publish"), text("subscribe"), text("dead")]);
        for (name, expected) in [(&names.durable, "durable"), (&names.stream, "stream")] {
            assert!(vector.get(expected).is_none_or(|expected| expected == name.as_str()), "{names:?}");
        }
    }
}

#[test]
fn the_stream_has_its_old_name_before_version_1_3_and_no_environment_from_4_5_on() {
    let names = |generation| Names::before_4_5(generation, "production", "api", "worker");
    assert_eq!(names(Generation::V1_0).unwrap().stream, "production-stream-bridge");
    assert_eq!(names(Generation::V1_3).unwrap().stream, "production-jetstream-bridge-stream");
    assert_eq!(names(Generation::V2_1).unwrap().dead_letters.as_str(), "production.sync.dlq");
    assert!(names(Generation::V4_5).unwrap_err().to_string().contains("`Names::new`"));
}

#[test]
fn what_the_gem_refuses_in_a_name_is_refused_with_the_fix() {
    let vectors = vectors_of_the_gem();
    let each = |name: &str| vectors[name].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
    for good in each("good_components") {
        assert!(Names::new(&good, "b").is_ok() && Names::new("a", &good).is_ok(), "{good}");
    }
    for bad in each("bad_components") {
        for refused in
            [Names::new(&bad, "b"), Names::new("a", &bad), Names::before_4_5(Generation::V2_1, &bad, "a", "b")]
        {
            let text = refused.unwrap_err().to_string();
            assert!(
                ["give it a name", "take a shorter one", "out, such as"].iter().any(|fix| text.contains(fix)),
                "{text}"
            );
        }
    }
}

#[test]
fn the_vectors_are_read() {
    for vector in vectors_of_the_gem()["decode"].as_array().unwrap() {
        let message = Message::new("myapp.sync.other", vector["body"].as_str().unwrap().to_owned());
        if vector.get("error").is_some() {
            assert_eq!(Envelope::new().decode(&message).unwrap_err().kind, FormatErrorKind::Malformed);
            continue;
        }
        let event = read(&Envelope::new(), &message);
        let texts = [("id", &event.id), ("type", &event.kind), ("source", &event.source)];
        assert!(texts.iter().all(|(name, text)| vector[name] == text.as_str()), "{event:?}");
        assert_eq!(event.time.unwrap().to_string(), vector["time"].as_str().unwrap());
        assert_eq!(event.key.clone().unwrap().as_str(), vector["key"].as_str().unwrap());
        assert_eq!(json(&event.data), vector["data"]);
        let again = Envelope::new().encode(&event, &message.topic).unwrap();
        assert_eq!(json(&again.body), json(&message.body));
    }
}

#[test]
fn the_vectors_are_written() {
    for vector in vectors_of_the_gem()["encode"].as_array().unwrap() {
        let mut event = Event::new(vector["type"].as_str().unwrap(), &vector["payload"]).unwrap().id("1").source("s");
        if let Some(of) = vector.get("resource_type") {
            event = event.header("ce-resourcetype", of.as_str().unwrap().to_owned());
        }
        let written = json(&Envelope::new().encode(&event, &Topic::from("t")).unwrap().body);
        for (name, expected) in vector["expect"].as_object().unwrap() {
            assert_eq!(&written[name], expected, "{name} of {written}");
        }
    }
}

fn read_body(body: &'static str) -> Event {
    read(&Envelope::new(), &Message::new("orders.sync.warehouse", body))
}

#[test]
fn whatever_types_an_envelope_has_it_is_written_again_as_it_was() {
    for body in [
        r#"{"event_id":"any text","schema_version":"2","event_type":"order.paid","producer":"p","resource_id":7,"occurred_at":"2026-01-02T03:04:05.5Z","trace_id":"1234567890123456","resource_type":"a/b","payload":[1,{"b":2.50}]}"#,
        r#"{"event_id":"1","schema_version":{"v":1},"event_type":"order.paid","producer":"p","resource_id":"","trace_id":null,"resource_type":"thing","payload":{"id":5}}"#,
        r#"{"event_id":"1","schema_version":1,"event_type":"paid","producer":"p","resource_id":"7","trace_id":"0123456789abcdef","resource_type":"order","payload":null}"#,
    ] {
        let event = read_body(body);
        assert_eq!(Envelope::new().encode(&event, &Topic::from("t")).unwrap().body, body);
    }
    let event = read_body(r#"{"event_type":"order.paid","resource_id":7,"resource_type":"a/b","trace_id":"1"}"#);
    assert_eq!((event.key.as_ref().unwrap().as_str(), event.data.as_ref()), ("a/b/7", b"null".as_ref()));
    let headers = ["ce-resourcetype", "ce-resourceid", "ce-traceid"].map(|name| event.headers.text(name).unwrap());
    assert_eq!((headers, event.headers.len()), (["a/b", "7", "\"1\""], 3));
}

#[test]
fn what_is_missing_is_left_open_and_the_header_has_the_id() {
    let event = read_body(r#"{"event_type":"order.paid"}"#);
    assert_eq!((event.id.as_str(), event.source.as_str(), &event.key, event.time), ("", "", &None, None));
    for name in ["nats-msg-id", "Nats-Msg-Id", "NATS-MSG-ID"] {
        let mut message = Message::new("t", r#"{"event_type":"order.paid","event_id":"body"}"#);
        message.headers.add(name, "header");
        let event = read(&Envelope::new(), &message);
        assert_eq!((event.id.as_str(), event.headers.len()), ("header", 0));
    }
}

#[test]
fn a_body_that_is_no_envelope_says_why_and_shows_nothing_of_it() {
    for (body, kind, why) in [
        ("", FormatErrorKind::Malformed, "EOF"),
        ("null", FormatErrorKind::Malformed, "a JSON object"),
        ("4111", FormatErrorKind::Malformed, "a JSON object"),
        ("[\"4111\"]", FormatErrorKind::Malformed, "a JSON object"),
        ("\"4111\"", FormatErrorKind::Malformed, "a JSON object"),
        ("{\"event_type\":4111}", FormatErrorKind::Malformed, "\"event_type\""),
        ("{\"event_type\":null}", FormatErrorKind::Missing, "\"event_type\""),
        ("{}", FormatErrorKind::Missing, "\"event_type\""),
    ] {
        let error = Envelope::new().decode(&Message::new("t", body)).unwrap_err();
        let text = error.to_string();
        assert!(error.kind == kind && text.contains(why) && !text.contains("4111"), "{body}: {text}");
    }
}

#[test]
fn no_header_of_the_server_is_written_from_version_2_1_on() {
    let mut event = Event::raw("order.paid", "{}").id("1").source("s").key("order/7").header("X-Other", "y");
    for name in ["Nats-Msg-Id", "nats-msg-id", "Nats-Expected-Last-Sequence"] {
        event.headers.add(name, "2");
    }
    let wire =
        |generation| on_the_wire(&Envelope::new().generation(generation).encode(&event, &Topic::from("t")).unwrap());
    let pairs = |pairs: [(&str, &str); 2]| pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    for later in [Generation::V2_1, Generation::V4_0, Generation::V4_5] {
        assert_eq!(wire(later), pairs([("X-Other", "y"), ("nats-msg-id", "1")]));
    }
    for earlier in [Generation::V1_0, Generation::V1_3] {
        assert_eq!(wire(earlier), pairs([("Nats-Msg-Id", "1"), ("X-Other", "y")]));
    }
    let refused = Envelope::new().encode(&event.id("a\r\nb"), &Topic::from("t")).unwrap_err();
    assert!(refused.to_string().contains("line breaks"), "{refused}");
}

#[test]
fn the_key_of_a_message_is_the_one_that_is_read() {
    let event = Event::raw("order.paid", r#"{"id": 5}"#).id("1").source("s");
    for (event, key) in [(event.clone(), "order/5"), (event.clone().key("7"), "order/7"), (event.key("a/7"), "a/7")] {
        let message = Envelope::new().encode(&event, &Topic::from("t")).unwrap();
        assert_eq!(message.key().unwrap(), key);
        assert_eq!(read(&Envelope::new(), &message).key.unwrap().as_str(), key);
    }
}

#[test]
fn a_row_that_is_no_envelope_is_refused() {
    let event = Event::raw("order.paid", "{}").id("1").source("s");
    let refused = Envelope::new().whole(true).encode(&event, &Topic::from("t")).unwrap_err();
    assert!(refused.to_string().contains("event_type"), "{refused}");
}

#[test]
fn a_trace_is_that_of_the_event_or_always_the_same() {
    let event = Event::raw("order.paid", "{}").id("1").source("s");
    let trace =
        |event: &Event| json(&Envelope::new().encode(event, &Topic::from("t")).unwrap().body)["trace_id"].clone();
    assert_eq!(trace(&event), trace(&event));
    assert_ne!(trace(&event), trace(&event.clone().id("2")));
    assert_eq!(trace(&event).as_str().unwrap().len(), 16);
    let event = event.header("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    assert_eq!(trace(&event), "8448eb211c80319c");
}
