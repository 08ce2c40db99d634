//! windshift: the vectors, and what is particular to its messages.

use aqueduct::compat::windshift::{Protobuf, check_pattern, check_subject};
use aqueduct::format::{CloudEvents, Format, FormatErrorKind};
use aqueduct::testing::format_suite::{self, Survives};
use aqueduct::testing::{Fate, TestApp};
use aqueduct::{Event, Message, Proto, Result, Router, Topic};
use prost_types::Any;
use serde_json::Value;

use crate::captured::{on_the_wire, read, vectors};

fn vectors_of_windshift() -> Value {
    vectors(include_str!("../vectors/windshift.json"))
}

#[test]
fn the_suite_holds() {
    let mut survives = Survives::everything();
    (survives.source, survives.subject, survives.schema) = (false, false, false);
    (survives.content_type, survives.texts, survives.identity) = (false, false, false);
    format_suite::check(&Protobuf::new(), survives);
}

#[test]
fn the_vectors_are_written_and_read() {
    for vector in vectors_of_windshift()["encode"].as_array().unwrap() {
        let text = |name: &str| vector[name].as_str().unwrap().to_owned();
        let event = Event::from_proto(&()).id(text("key")).time(text("time").parse().unwrap());
        assert_eq!(
            (event.kind.as_str(), event.data.is_empty()),
            (text("message").as_str(), text("body_hex").is_empty())
        );
        let message = Protobuf::new().encode(&event, &Topic::from("a.b")).unwrap();
        let mut expected: Vec<_> = vector["headers"].as_object().unwrap().iter().collect();
        expected.sort_by_key(|(name, _)| name.as_str());
        let expected: Vec<_> = expected.into_iter().map(|(n, v)| (n.clone(), v.as_str().unwrap().to_owned())).collect();
        assert_eq!((on_the_wire(&message), message.body.is_empty()), (expected, true));
        let read = read(&Protobuf::new(), &message);
        assert_eq!((read.id, read.kind, read.time, read.headers.len()), (event.id, event.kind, event.time, 0));
    }
}

#[test]
fn subjects_and_patterns_are_those_of_the_vectors() {
    let vectors = vectors_of_windshift();
    let each = |name: &str| vectors[name].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
    for good in each("good_subjects") {
        assert!(check_subject(&good).is_ok() && check_pattern(&good).is_ok(), "{good}");
    }
    for bad in each("bad_subjects") {
        let text = check_subject(&bad).unwrap_err().to_string();
        assert!(text.contains("out"), "{text}");
        let event = Event::from_proto(&()).id("1");
        assert_eq!(Protobuf::new().encode(&event, &Topic::from(&bad)).unwrap_err().kind, FormatErrorKind::Unsupported);
    }
    for good in each("good_patterns") {
        assert!(check_pattern(&good).is_ok(), "{good}");
    }
    assert!(check_pattern(">").is_ok() && check_pattern("*").is_ok());
    for bad in each("bad_patterns").chain(["", "a.>>", ">.a", "a..>", ".>", "a.%"].map(str::to_owned)) {
        assert!(check_pattern(&bad).is_err(), "{bad}");
    }
}

#[test]
fn a_type_is_the_full_name_of_a_message() {
    let written = |kind: &str| {
        let message = Protobuf::new().encode(&Event::raw(kind, "").id("1"), &Topic::from("a"));
        message.map(|message| message.headers.text("WS-Data-Type").unwrap().to_owned()).map_err(|e| e.to_string())
    };
    assert_eq!(written("acme.Order"), Ok("acme.Order".to_owned()));
    assert_eq!(written("type.googleapis.com/acme.Order"), Ok("acme.Order".to_owned()));
    for bad in ["", "acme.", "a b", "a\nb", "acme/"] {
        assert!(written(bad).unwrap_err().contains("full name"), "{bad}");
    }
    let no_id = Protobuf::new().encode(&Event::raw("a", ""), &Topic::from("a")).unwrap_err();
    assert_eq!(no_id.kind, FormatErrorKind::Missing);
}

#[test]
fn what_says_no_type_is_left_to_other_formats() {
    let mut message = Message::new("a", "");
    assert_eq!(Protobuf::new().decode(&message).unwrap_err().kind, FormatErrorKind::NotMine);
    message.headers.add("ws-data-type", "");
    assert_eq!(Protobuf::new().decode(&message).unwrap_err().kind, FormatErrorKind::Missing);
}

#[test]
fn its_trace_wins_over_one_that_it_does_not_look_at() {
    let mut message = Message::new("a", "");
    for (name, value) in
        [("traceparent", "w3c"), ("WS-Data-Type", "a"), ("tracestate", "w3c"), ("ws-trace-parent", "own")]
    {
        message.headers.add(name, value);
    }
    let headers = read(&Protobuf::new(), &message).headers;
    assert_eq!((headers.text("traceparent"), headers.text("tracestate")), (Some("own"), Some("w3c")));
    assert_eq!(headers.len(), 2);
}

#[derive(Clone, PartialEq, prost::Message)]
struct Order {
    #[prost(string, tag = "1")]
    sku: String,
}

#[test]
fn a_message_inside_an_any_keeps_its_name_through_cloud_events_too() {
    let order = Order { sku: "a".to_owned() };
    let any =
        Any { type_url: "type.googleapis.com/acme.Order".to_owned(), value: prost::Message::encode_to_vec(&order) };
    let event = Event::raw(any.type_url, any.value).id("1").source("s");
    let message = Protobuf::new().encode(&event, &Topic::from("orders")).unwrap();
    let event = read(&Protobuf::new(), &message).source("s");
    let message = CloudEvents::structured().encode(&event, &Topic::from("orders")).unwrap();
    let read = read(&CloudEvents::default(), &message);
    assert_eq!((read.kind.as_str(), read.proto::<Order>().unwrap()), ("acme.Order", order));
}

#[tokio::test(start_paused = true)]
async fn a_handler_takes_a_message_and_what_is_none_dies_at_once() {
    async fn handle(Proto(order): Proto<Order>) -> Result<()> {
        assert_eq!(order.sku, "sku-1");
        Ok(())
    }
    let app = TestApp::new(Router::new().on("acme.Order", handle));
    let order = prost::Message::encode_to_vec(&Order { sku: "sku-1".to_owned() });
    app.publish(Event::raw("acme.Order", order)).await;
    app.publish(Event::raw("acme.Order", &[0x0a, 0x7f][..])).await;
    app.wait_idle().await;
    let outcomes = app.outcomes().await;
    assert_eq!(outcomes.iter().map(|handled| handled.fate).collect::<Vec<_>>(), [Fate::Done, Fate::Dead]);
    assert!(outcomes[1].errors[0].as_str().contains("not the Protobuf expected"), "{:?}", outcomes[1].errors);
    app.stop().await.unwrap();
}
