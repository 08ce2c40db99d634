//! windshift: what the real library has stored, asked for and read.

use aqueduct::compat::windshift::{Protobuf, check_pattern, check_subject};
use aqueduct::format::Format;
use aqueduct::{Event, Headers, Message, Timestamp};

use crate::captured::{Case, check_all, on_the_wire, read};

const TRACE: [(&str, &str); 2] = [("WS-Trace-Parent", "traceparent"), ("WS-Trace-State", "tracestate")];

/// When the broker stored the messages: what counts where the publisher says no time.
fn stored_at() -> Timestamp {
    Timestamp::from_unix_ms(1)
}

fn check_read(case: &Case, message: &Message) {
    let message = Message { stored_at: Some(stored_at()), ..message.clone() };
    let header = |name: &str| message.headers.text(name);
    let Some(kind) = header("WS-Data-Type").filter(|kind| !kind.is_empty()) else {
        Protobuf::new().decode(&message).unwrap_err();
        return;
    };
    let event = read(&Protobuf::new(), &message);
    assert_eq!(event.kind, kind.trim_start_matches("type.googleapis.com/"));
    assert_eq!((event.id.as_str(), &event.data), (header("Nats-Msg-Id").unwrap_or_default(), &message.body));
    let traced = TRACE.map(|(own, w3c)| header(own).or(header(w3c)));
    assert_eq!(TRACE.map(|(_, w3c)| event.headers.text(w3c)), traced);
    assert_eq!(event.headers.len(), traced.iter().flatten().count());
    let time = header("WS-Published-Time").and_then(|time| time.parse().ok()).unwrap_or(stored_at());
    assert_eq!(event.time, Some(time));
    if let Some(peer) = case.0.get("peer_reads") {
        check_as_peer(peer, &event);
    }
}

/// What windshift's handler has seen is what a handler here sees; it may see more.
fn check_as_peer(peer: &serde_json::Value, event: &Event) {
    if let Some(time) = peer["occurred_at"].as_str() {
        assert_eq!(event.time.unwrap(), time.parse().unwrap());
    }
    if let Some(key) = peer["idempotency_key"].as_str().filter(|key| !key.is_empty()) {
        assert_eq!(event.id, key);
    }
    if let Some(trace) = peer["trace_id"].as_str() {
        assert!(event.headers.text("traceparent").unwrap().contains(trace));
    }
    if let Some(value) = peer["value"].as_str() {
        assert_eq!(format!("value:{:?}", event.proto::<String>().unwrap()), value);
    }
}

/// What windshift has sent, made of its parts and written again.
fn check_written(message: &Message) {
    let header = |name: &str| message.headers.text(name).map(str::to_owned);
    let mut event = Event::raw(header("WS-Data-Type").unwrap(), message.body.clone());
    event = event.id(header("Nats-Msg-Id").unwrap_or_else(|| "none".to_owned()));
    event = event.time(header("WS-Published-Time").unwrap().parse().unwrap());
    for (own, w3c) in TRACE {
        if let Some(value) = header(own) {
            event = event.header(w3c, value);
        }
    }
    let written = Protobuf::new().encode(&event, &message.topic);
    if event.kind.is_empty() {
        written.unwrap_err();
        return;
    }
    let mut written = written.unwrap();
    assert_eq!((&written.body, &written.topic), (&message.body, &message.topic));
    if header("Nats-Msg-Id").is_none() {
        written.dedup_id = None;
    }
    // Offsets are free; what is expected of the stream is said when it is published; a stream notes down where it copied from.
    let of_the_server = ["Nats-Expected-Last-Sequence", "Nats-Stream-Source"];
    let rest = message.headers.iter().filter(|(name, _)| !of_the_server.contains(&name.as_str()));
    let mut headers: Headers = rest.map(|(name, value)| (name.clone(), value.clone())).collect();
    if headers.text("WS-Published-Time") == Some("2026-07-08T09:10:11.12+02:00") {
        headers.set("WS-Published-Time", "2026-07-08T07:10:11.12Z");
    }
    assert_eq!(on_the_wire(&written), on_the_wire(&Message { headers, ..message.clone() }));
}

fn check(case: &Case) -> Vec<&'static str> {
    let mut checked = Vec::new();
    if let Some(message) = case.message() {
        check_subject(message.topic.as_str()).unwrap();
        check_read(case, &message);
        checked.push("read");
        if !case.what().starts_with("read by windshift") {
            check_written(&message);
            checked.push("written");
        }
    }
    let subjects = [&case.0["stream_config"]["subjects"], &case.0["consumer_config"]["filter_subjects"]];
    for subject in subjects.into_iter().filter_map(|subjects| subjects.as_array()).flatten() {
        check_pattern(subject.as_str().unwrap()).unwrap();
        checked.push("pattern");
    }
    checked
}

#[test]
fn everything_that_windshift_has_written_is_read_and_written() {
    // What was only done, not written, and consumers without subjects.
    let behaviour = [
        "publish twice with the same idempotency key, on the same and on another subject: both calls return the first event's id",
        "publish: a subject no stream listens to",
        "EnsureConsumer: durable, defaults",
        "EnsureConsumer: durable, from the end (= last message)",
        "EnsureConsumer: ephemeral, defaults",
        "EnsureConsumer: third, without subjects: filter dropped",
    ];
    check_all("windshift", 40, check, &behaviour);
}

#[test]
fn the_values_are_those_that_windshift_has_sent() {
    let events: Vec<Event> = crate::captured::cases("windshift")
        .iter()
        .filter(|case| case.what().starts_with("publish:") && !case.what().contains("Any empty"))
        .filter_map(|case| Some(read(&Protobuf::new(), &case.message()?)))
        .collect();
    let of = |kind: &str| {
        let event = events.iter().find(|event| event.kind == format!("google.protobuf.{kind}").as_str());
        event.unwrap_or_else(|| panic!("{kind}"))
    };
    let value: prost_types::Value = of("Value").proto().unwrap();
    assert_eq!(value.kind, Some(prost_types::value::Kind::StringValue("héllo".to_owned())));
    let time: prost_types::Timestamp = of("Timestamp").proto().unwrap();
    assert_eq!((time.seconds > 0, time.nanos > 0), (true, true));
    assert_eq!(of("StringValue").proto::<String>().unwrap(), "now");
    assert_eq!(of("UInt32Value").proto::<u32>().unwrap(), 301);
    assert!(of("BoolValue").proto::<bool>().unwrap());
    assert_eq!(of("DoubleValue").proto::<f64>().unwrap().to_bits(), 1.5_f64.to_bits());
    assert_eq!(of("FloatValue").proto::<f32>().unwrap().to_bits(), 2.5_f32.to_bits());
    of("Empty").proto::<()>().unwrap();
    let any: prost_types::Any = of("Any").proto().unwrap();
    assert_eq!(any.type_url, "type.googleapis.com/google.protobuf.StringValue");
    let inner = Event::raw(any.type_url, any.value).id("1");
    assert_eq!(inner.proto::<String>().unwrap(), "in");
}
