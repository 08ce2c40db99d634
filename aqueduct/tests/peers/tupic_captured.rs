//! tupic's Go modules: what versions 0.1.2 and 0.1.3 have stored, asked for and read.

use std::collections::BTreeMap;

use aqueduct::compat::tupic::{self, Envelope, TASK_DELAYS};
use aqueduct::format::{Format, FormatErrorKind};
use aqueduct::{Event, Message, Timestamp};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::captured::{Case, check_all, json, on_the_wire, read};

fn format(case: &Case) -> Envelope {
    let prefix = case.text("subject").split('.').next().unwrap();
    Envelope::new(prefix).wrapped_tasks(case.text("version").ends_with("0.1.2"))
}

/// What tupic drops by itself, without asking a handler.
fn is_dropped(case: &Case) -> bool {
    ["not JSON", "numeric id", "timestamp as text", "timestamp with a fraction"]
        .iter()
        .any(|why| case.what().contains(why))
}

fn check_read(case: &Case, message: &Message) {
    if is_dropped(case) {
        assert_eq!(format(case).decode(message).unwrap_err().kind, FormatErrorKind::Malformed);
        assert_eq!(case.acks(), [(1, "+TERM")]);
        return;
    }
    let event = read(&format(case), message);
    let lower: BTreeMap<_, _> = match json(&message.body) {
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name.to_lowercase(), value)).collect(),
        _ => BTreeMap::new(),
    };
    let field = |name: &str| lower.get(name).cloned().unwrap_or_default();
    let text = |name: &str| field(name).as_str().unwrap_or_default().to_owned();
    assert_eq!((event.id.as_str(), event.source.as_str()), (text("id").as_str(), text("source").as_str()));
    assert_eq!(event.time.map(Timestamp::unix_ms), field("timestamp").as_i64());
    let data = field("data");
    assert_eq!(json(&event.data), data.get("Task").cloned().unwrap_or(data));
    let version = Some(text("version")).filter(|version| !["", "1"].contains(&version.as_str()));
    assert_eq!(event.headers.text("ce-version"), version.as_deref());
    assert_eq!((event.headers.len(), event.topic.as_ref()), (usize::from(version.is_some()), Some(&message.topic)));
    assert_eq!(format!("{}.{}", case.text("subject").split('.').next().unwrap(), event.kind), case.text("subject"));
    if let Some(peer) = case.0.get("peer_reads") {
        assert_eq!(peer["version"], text("version"));
        let payload = peer["payload"].as_str().unwrap();
        assert_eq!(json(&event.data), if payload.is_empty() { Value::Null } else { json(payload.as_bytes()) });
    }
    if let Some(row) = case.0.get("failed_task_row") {
        assert_eq!((&row["id"], &row["type"]), (&event.id.as_str().into(), &event.kind.as_str().into()));
        assert_eq!((row["version"].as_str(), &row["payload"]), (Some(text("version").as_str()), &json(&event.data)));
    }
}

/// What the modules have sent, made of its parts and written again.
fn check_written(case: &Case, message: &Message) {
    let fields: BTreeMap<String, Box<RawValue>> = serde_json::from_slice(&message.body).unwrap();
    let text = |name: &str| serde_json::from_str::<String>(fields[name].get()).unwrap();
    let data = fields["data"].get().trim_start_matches("{\"Task\":");
    let data = if data.len() < fields["data"].get().len() { data.strip_suffix('}').unwrap() } else { data };
    let event = Event::raw("any", data.to_owned()).id(text("id")).source(text("source"));
    let event = event.time(Timestamp::from_unix_ms(fields["timestamp"].get().parse().unwrap()));
    let written = format(case).version(text("version")).encode(&event, &message.topic).unwrap();
    assert_eq!(written.body, message.body);
    assert_eq!(on_the_wire(&written), on_the_wire(message));
    let row = event.clone();
    let written = format(case)
        .whole(true)
        .encode(&Event::raw("any", message.body.clone()).id(row.id).source("s"), &message.topic);
    let written = written.unwrap();
    assert_eq!((on_the_wire(&written), &written.body), (on_the_wire(message), &message.body));
    assert_eq!(read(&format(case).whole(true), &written).data, message.body);
    if let Some(row) = case.0.get("outbox_row") {
        assert_eq!(tupic::event_subject("acme", row["subject"].as_str().unwrap()).unwrap(), message.topic);
        assert_eq!((&row["message_id"], &row["version"]), (&text("id").into(), &text("version").into()));
        assert_eq!(row["payload"], json(data.as_bytes()));
    }
}

fn check_durable(config: &Value) {
    let subject = config["filter_subject"].as_str().unwrap();
    let is_task = config.get("max_deliver").is_some();
    let named_by = if is_task { subject.split_once('.').unwrap().1 } else { subject };
    assert_eq!(config["durable_name"], tupic::durable("svc", named_by).as_str());
    if is_task {
        assert_eq!(config["max_deliver"], TASK_DELAYS.len() + 1);
    }
}

fn check(case: &Case) -> Vec<&'static str> {
    let mut checked = Vec::new();
    if let Some(message) = case.message() {
        check_read(case, &message);
        checked.push("read");
        if !case.what().starts_with("read by tupic") {
            check_written(case, &message);
            checked.push("written");
        }
    }
    if let Some(config) = case.0.get("consumer_config") {
        check_durable(config);
        checked.push("durable");
    }
    for (delivery, payload) in case.acks() {
        if let Some(delay) = payload.strip_prefix("-NAK ") {
            let wait = tupic::task_delay(delivery).unwrap();
            assert_eq!(json(delay.as_bytes())["delay"], u64::try_from(wait.as_nanos()).unwrap());
            checked.push("delay");
        } else if delivery == 11 {
            assert_eq!((payload, tupic::task_delay(delivery)), ("+TERM", None));
        }
    }
    if case.what().contains("(a.b and a-b)") {
        tupic::durables("svc", ["a.b", "a-b"]).unwrap_err();
        checked.push("collision");
    }
    checked
}

#[test]
fn everything_that_the_modules_have_written_is_read_and_written() {
    // What was only done, not written.
    let behaviour = [
        "event handler that fails three times: bare naks, redelivered at once",
        "Stop deletes every durable this process created (CONSUMER.DELETE); a durable found at start is kept",
        "second replica with the same durable",
    ];
    check_all("tupic", 24, check, &behaviour);
}
