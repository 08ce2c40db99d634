//! The formats: the suite, what is particular to each, and arbitrary input.

use aqueduct::format::{CloudEvents, Decoded, Format, FormatErrorKind, PlainJson};
use aqueduct::testing::format_suite::{self, Survives};
use aqueduct::{Event, Headers, Message, Text, Timestamp, Topic};
use bytes::Bytes;
use proptest::prelude::*;

fn plain_json() -> Survives {
    let mut survives = Survives::everything();
    (survives.id, survives.source, survives.kind) = (false, false, false);
    (survives.time, survives.subject, survives.schema) = (false, false, false);
    (survives.binary, survives.empty) = (false, false);
    survives
}

fn headers(pairs: &[(&'static str, &'static str)]) -> Headers {
    pairs.iter().copied().collect()
}

fn binary(pairs: &[(&'static str, &'static str)]) -> Message {
    let mut message = Message::new("orders", "{}");
    message.headers = headers(pairs);
    message
}

const REQUIRED: [(&str, &str); 4] = [("ce-specversion", "1.0"), ("ce-id", "1"), ("ce-source", "s"), ("ce-type", "t")];

fn with(pairs: &[(&'static str, &'static str)]) -> Message {
    binary(&[&REQUIRED, pairs].concat())
}

fn structured(body: &'static str) -> Message {
    let mut message = Message::new("orders", body);
    message.headers = headers(&[("Content-Type", "Application/CloudEvents+JSON; charset=utf-8")]);
    message
}

fn one(message: &Message) -> Event {
    match CloudEvents::default().decode(message) {
        Ok(Decoded::One(event)) => event,
        other => panic!("one event is expected, not {other:?}"),
    }
}

/// The kind, and the text of the error.
fn fails(message: &Message) -> (FormatErrorKind, String) {
    let e = CloudEvents::default().decode(message).unwrap_err();
    (e.kind, e.to_string())
}

fn refused(event: &Event) -> (FormatErrorKind, String) {
    let topic = Topic::from("orders");
    let [a, b] = [CloudEvents::binary(), CloudEvents::structured()].map(|f| f.encode(event, &topic).unwrap_err());
    assert_eq!(a, b, "both modes refuse alike");
    (a.kind, a.to_string())
}

#[test]
fn cloudevents_in_binary_mode_keep_everything() {
    format_suite::check(&CloudEvents::binary(), Survives::everything());
}

#[test]
fn cloudevents_in_structured_mode_keep_everything() {
    format_suite::check(&CloudEvents::structured(), Survives::everything());
}

#[test]
fn plain_json_keeps_key_headers_and_data() {
    format_suite::check(&PlainJson::new(), plain_json());
}

#[test]
fn binary_attributes_are_found_in_any_case_and_with_kafkas_underscore() {
    let mut message = binary(&[
        ("CE_SpecVersion", "1.0"),
        ("cE-ID", "1"),
        ("ce_source", "s"),
        ("Ce-Type", "t"),
        ("ce_time", "2026-01-05T10:00:07.25+01:00"),
        ("CE_Sequence", "42"),
        ("Content-Type", "application/json"),
    ]);
    message.key = Some(Bytes::from_static(b"order-7"));
    let event = one(&message);
    let expected = Event::raw("t", "{}").id("1").source("s").topic("orders").key("order-7");
    let expected = expected.content_type("application/json").header("ce-sequence", "42");
    assert_eq!(event, expected.time("2026-01-05T09:00:07.25Z".parse().unwrap()));
    assert_eq!(event.headers.iter().next().unwrap().0, &"ce-sequence");
}

#[test]
fn texts_of_a_binary_event_are_slices_of_the_message() {
    let whole = Bytes::from_static(b"1.0|id-1|shop|order.placed|order-7|{}");
    let part = |text: &str| {
        let at = std::str::from_utf8(&whole).unwrap().find(text).unwrap();
        whole.slice(at..at + text.len())
    };
    let mut message = Message::new("orders", part("{}"));
    message.key = Some(part("order-7"));
    let names = [("ce-specversion", "1.0"), ("ce-id", "id-1"), ("ce-source", "shop"), ("ce-type", "order.placed")];
    message.headers = names.into_iter().map(|(name, value)| (name, part(value))).collect();
    let event = one(&message);
    let range = whole.as_ptr_range();
    let texts = [event.id.as_str(), event.source.as_str(), event.kind.as_str(), event.key.as_ref().unwrap().as_str()];
    for text in texts {
        assert!(range.contains(&text.as_ptr()), "{text} was copied");
    }
    assert!(range.contains(&event.data.as_ptr()));
}

#[test]
fn the_partition_key_wins_over_the_key_of_the_message() {
    let mut message = with(&[("ce-partitionkey", "inner")]);
    message.key = Some(Bytes::from_static(b"outer"));
    assert_eq!(one(&message).key.unwrap().as_str(), "inner");
    message.headers.set("ce-partitionkey", "");
    assert_eq!(one(&message).key.unwrap().as_str(), "outer");
    message.key = Some(Bytes::new());
    assert_eq!(one(&message).key, None);
    message.key = Some(Bytes::from_static(b"\xff"));
    let (kind, text) = fails(&message);
    assert!(kind == FormatErrorKind::Malformed && text.contains("key of the message"), "{text}");
}

#[test]
fn trace_headers_are_taken_from_extensions_unless_they_are_there() {
    let event = one(&with(&[("ce-traceparent", "a"), ("CE_TRACESTATE", "b")]));
    assert_eq!(event.headers, headers(&[("traceparent", "a"), ("tracestate", "b")]));
    let event = one(&with(&[("ce-traceparent", "a"), ("traceparent", "plain")]));
    assert_eq!(event.headers, headers(&[("traceparent", "plain")]));
    let event = one(&structured(
        r#"{"specversion":"1.0","id":"1","source":"s","type":"t","x":"1","traceparent":"a","tracestate":null}"#,
    ));
    assert_eq!(event.headers, headers(&[("traceparent", "a"), ("ce-x", "1")]));
}

#[test]
fn what_is_no_cloud_event_is_left_to_other_formats() {
    for message in [
        Message::new("orders", "{}"),
        binary(&[("content-type", "application/json"), ("ce-id", "1")]),
        binary(&[("content-type", "application/cloudevents+protobuf"), ("ce-specversion", "1.0")]),
    ] {
        assert_eq!(fails(&message).0, FormatErrorKind::NotMine, "{message:?}");
    }
}

#[test]
fn errors_name_the_attribute() {
    let table = [
        (with(&[("ce-specversion", "")]), None),
        (binary(&REQUIRED[..3]), Some((FormatErrorKind::Missing, vec!["ce-type"]))),
        (binary(&[REQUIRED[0], REQUIRED[2], REQUIRED[3]]), Some((FormatErrorKind::Missing, vec!["ce-id"]))),
        (
            binary(&[("ce-specversion", "0.3"), REQUIRED[1], REQUIRED[2], REQUIRED[3]]),
            Some((FormatErrorKind::Malformed, vec!["ce-specversion", "\"0.3\"", "\"1.0\""])),
        ),
        (with(&[("ce-time", "yesterday")]), Some((FormatErrorKind::Malformed, vec!["ce-time", "yesterday"]))),
        (
            structured(r#"{"id":"1","source":"s","type":"t"}"#),
            Some((FormatErrorKind::Missing, vec!["\"specversion\""])),
        ),
        (
            structured(r#"{"specversion":"1.0","id":7,"source":"s","type":"t"}"#),
            Some((FormatErrorKind::Malformed, vec!["\"id\"", "not a number"])),
        ),
        (
            structured(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","id":"2"}"#),
            Some((FormatErrorKind::Malformed, vec!["\"id\"", "twice"])),
        ),
        (
            structured(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data":1,"data_base64":"AA=="}"#),
            Some((FormatErrorKind::Malformed, vec!["\"data_base64\"", "`data`"])),
        ),
        (
            structured(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","data_base64":"A"}"#),
            Some((FormatErrorKind::Malformed, vec!["\"data_base64\"", "Base64"])),
        ),
        (
            structured(r#"{"specversion":"1.0","id":"1","source":"s","type":"t","list":[1]}"#),
            Some((FormatErrorKind::Malformed, vec!["\"list\"", "not an array"])),
        ),
        (structured("{\n  \"id\" 7}"), Some((FormatErrorKind::Malformed, vec!["line 2 column 8"]))),
        (structured("[]"), Some((FormatErrorKind::Malformed, vec!["line 1 column 0", "a JSON object"]))),
    ];
    for (message, expected) in table {
        let Some((kind, parts)) = expected else {
            assert_eq!(one(&message).kind, "t", "the first of two headers counts");
            continue;
        };
        let (found, text) = fails(&message);
        assert_eq!(found, kind, "{text}");
        for part in parts {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}

#[test]
fn times_have_any_offset_and_need_one() {
    for (written, read) in [
        ("2026-01-05T10:00:07.123456789+05:45", "2026-01-05T04:15:07.123456789Z"),
        ("2026-01-05t10:00:07z", "2026-01-05T10:00:07Z"),
        ("2026-01-05T10:00:07-00:00", "2026-01-05T10:00:07Z"),
        ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59Z"),
        ("0000-01-01T00:00:00Z", "0000-01-01T00:00:00Z"),
    ] {
        assert_eq!(one(&with(&[("ce-time", written)])).time.unwrap().to_string(), read);
    }
    for bad in ["2026-01-05T10:00:07", "2026-13-05T10:00:07Z", "1767603607", "2026-01-05"] {
        let (kind, text) = fails(&with(&[("ce-time", bad)]));
        assert!(kind == FormatErrorKind::Malformed && text.contains("ce-time") && text.contains(bad), "{text}");
    }
}

#[test]
fn deep_nesting_exhausts_no_stack() {
    let deep = format!("{}{}", "[".repeat(500_000), "]".repeat(500_000));
    let body = |name: &str, value: &str| {
        format!(r#"{{"specversion":"1.0","id":"1","source":"s","type":"t","{name}":{value}}}"#)
    };
    let mut message = structured("");
    message.body = body("data", &deep).into();
    assert_eq!(one(&message).data, deep);
    message.body = body("x", &deep).into();
    assert_eq!(fails(&message).0, FormatErrorKind::Malformed);
    message.body = deep.into();
    assert_eq!(fails(&message).0, FormatErrorKind::Malformed);
    assert!(PlainJson::new().id_field("id").decode(&message).is_ok());
}

#[test]
fn structured_data_stays_byte_by_byte() {
    let event = one(&structured(
        r#"{"data" : {"b" : 2.50,"a":"\u0041"} ,"specversion":"1.0","id":"1","source":"s","type":"t","sequence":42,"final":true}"#,
    ));
    assert_eq!(event.data, r#"{"b" : 2.50,"a":"\u0041"}"#);
    assert_eq!(event.headers, headers(&[("ce-sequence", "42"), ("ce-final", "true")]));
}

#[test]
fn a_json_string_is_text_if_the_content_type_is_not_json() {
    let body =
        r#"{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"text/xml","data":"<a b=\"c\"/>"}"#;
    assert_eq!(one(&structured(body)).data, r#"<a b="c"/>"#);
    let body = r#"{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"a/x+json","data":"x"}"#;
    assert_eq!(one(&structured(body)).data, r#""x""#);
}

#[test]
fn structured_mode_writes_json_as_it_is_and_the_rest_in_base64() {
    let body = |event: &Event| CloudEvents::structured().encode(event, &Topic::from("orders")).unwrap().body;
    let event = Event::raw("t", "{\"a\": 1}").id("1").source("s").header("ce-seq", "9").header("x", "y").key("k");
    assert_eq!(
        body(&event),
        r#"{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":"k","seq":"9","data":{"a": 1}}"#
    );
    let event = Event::raw("t", "{}").id("1").source("s").content_type("text/plain");
    assert_eq!(
        body(&event),
        r#"{"specversion":"1.0","id":"1","source":"s","type":"t","datacontenttype":"text/plain","data_base64":"e30="}"#
    );
}

#[test]
fn a_batch_is_read_in_order_and_names_the_broken_event() {
    let mut message = Message::new(
        "orders",
        r#"[{"specversion":"1.0","id":"1","source":"s","type":"t","partitionkey":"k"},{"specversion":"1.0","id":"2","source":"s","type":"t"}]"#,
    );
    message.headers = headers(&[("content-type", "application/cloudevents-batch+json"), ("x", "y")]);
    message.key = Some(Bytes::from_static(b"outer"));
    let Decoded::Batch(events) = CloudEvents::default().decode(&message).unwrap() else { panic!("a batch") };
    let read: Vec<_> = events.iter().map(|e| (e.id.as_str(), e.key.as_ref().unwrap().as_str())).collect();
    assert_eq!(read, [("1", "k"), ("2", "outer")]);
    assert!(events.iter().all(|e| e.headers.text("x") == Some("y")));

    message.body =
        Bytes::from_static(br#"[{"specversion":"1.0","id":"1","source":"s","type":"t"},{"specversion":"1.0"}]"#);
    let (kind, text) = fails(&message);
    assert!(kind == FormatErrorKind::Missing && text.contains("event 2, attribute \"id\""), "{text}");
    message.body = Bytes::from_static(b"[]");
    assert_eq!(CloudEvents::default().decode(&message).unwrap(), Decoded::Batch(Vec::new()));
}

#[test]
fn names_that_cloudevents_forbids_are_refused() {
    let event = |name: &str| Event::raw("t", "").id("1").source("s").header(name, "x");
    for (name, why) in [
        ("ce-id", "meaning of its own"),
        ("CE_Time", "meaning of its own"),
        ("ce-data", "meaning of its own"),
        ("ce-data_base64", "letters and digits"),
        ("ce-my-name", "letters and digits"),
        ("ce-", "letters and digits"),
        ("content-type", "Event::content_type"),
    ] {
        let (kind, text) = refused(&event(name));
        assert!(kind == FormatErrorKind::Unsupported && text.contains(why) && text.contains(name), "{text}");
    }
    for nothing in
        [Event::raw("", "").id("1").source("s"), Event::raw("t", "").source("s"), Event::raw("t", "").id("1")]
    {
        assert_eq!(refused(&nothing).0, FormatErrorKind::Missing);
    }
    let topic = Topic::from("orders");
    let written = CloudEvents::binary().encode(&event("CE_MySeq"), &topic).unwrap();
    assert_eq!(written.headers.iter().last().unwrap().0, &"ce-myseq");
    let mut twice = event("ce-a");
    twice.headers.add("Ce-A", "y");
    assert!(CloudEvents::structured().encode(&twice, &topic).unwrap_err().to_string().contains("twice"));
}

#[test]
fn identity_is_source_and_id() {
    let message = CloudEvents::binary().encode(&Event::raw("t", "").id("1").source("s"), &Topic::from("orders"));
    assert_eq!(message.unwrap().dedup_id.unwrap(), "s#1");
}

#[test]
fn plain_json_takes_id_and_key_from_fields() {
    let format = PlainJson::new()
        .id_field("id")
        .key_field("order")
        .kind_from(|topic| topic.as_str().rsplit('.').next().unwrap_or_default().into());
    let read = |body: &'static str| {
        let mut message = Message::new("shop.orders", body);
        message.key = Some(Bytes::from_static(b"outer"));
        match format.decode(&message) {
            Ok(Decoded::One(e)) => Ok((e.id, e.key.map(Text::from), e.kind)),
            Ok(other) => panic!("{other:?}"),
            Err(e) => Err(e.to_string()),
        }
    };
    let is = |id: &str, key: &str| Ok((Text::from(id), Some(Text::from(key)), Text::from("orders")));
    assert_eq!(read(r#"{"id": "\u0041", "order": 7}"#), is("A", "7"));
    assert_eq!(read(r#"{"id": null, "order": ""}"#), is("", "outer"));
    assert_eq!(read(r#" [{"id": "1"}]"#), is("", "outer"));
    assert_eq!(read("7"), is("", "outer"));
    let text = read(r#"{"id": {}}"#).unwrap_err();
    assert!(text.contains("field \"id\"") && text.contains("string or a number"), "{text}");
}

#[test]
fn broken_plain_json_names_line_and_column() {
    let read = PlainJson::new().decode(&Message::new("orders", "{\n  \"a\": }")).unwrap_err();
    assert_eq!(read.to_string(), "plain JSON: line 2 column 8: expected value");
    let written = PlainJson::new().encode(&Event::raw("t", "{"), &Topic::from("orders")).unwrap_err();
    assert!(written.to_string().contains("line 1 column 1"), "{written}");
}

fn text() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("x".to_owned()),
        "[a-z]{1,8}(\\.[a-z]{1,8}){0,2}",
        any::<String>().prop_filter("not empty", |s| !s.is_empty())
    ]
}

prop_compose! {
    fn event()(
        (id, source, kind) in (text(), text(), text()),
        optional in proptest::array::uniform4(proptest::option::of(text())),
        // The years 0 to 9999 are those of RFC 3339.
        time in proptest::option::of(-62_167_219_200_000_i64..253_402_207_200_000),
        plain in proptest::collection::vec(("[xX]-[a-zA-Z0-9_-]{0,5}", any::<Vec<u8>>()), 0..3),
        extensions in proptest::collection::btree_map("x[a-z0-9]{0,5}", any::<String>(), 0..3),
        data in prop_oneof![
            any::<Vec<u8>>(),
            any::<i64>().prop_map(|n| n.to_string().into_bytes()),
            any::<String>().prop_map(|s| serde_json::to_vec(&s).unwrap()),
        ],
    ) -> Event {
        let mut event = Event::raw(kind, data).id(id).source(source);
        let [key, subject, schema, content_type] = optional;
        if let Some(key) = key { event = event.key(key) }
        if let Some(subject) = subject { event = event.subject(subject) }
        if let Some(schema) = schema { event = event.schema(schema) }
        if let Some(content_type) = content_type { event = event.content_type(content_type) }
        if let Some(ms) = time { event = event.time(Timestamp::from_unix_ms(ms)) }
        for (name, value) in plain { event.headers.add(name, value) }
        for (name, value) in extensions { event.headers.add(format!("ce-{name}"), value) }
        event
    }
}

prop_compose! {
    fn message()(
        body in prop_oneof![any::<Vec<u8>>(), json().prop_map(String::into_bytes)],
        key in proptest::option::of(any::<Vec<u8>>()),
        named in proptest::collection::vec((proptest::sample::select(NAMES), value()), 0..12),
        others in proptest::collection::vec((any::<String>(), any::<Vec<u8>>()), 0..3),
    ) -> Message {
        let mut message = Message::new("orders", body);
        message.key = key.map(Bytes::from);
        for (name, value) in named { message.headers.add(name, value) }
        for (name, value) in others { message.headers.add(name, value) }
        message
    }
}

const NAMES: &[&str] = &[
    "ce-specversion",
    "ce-id",
    "ce-source",
    "ce-type",
    "ce_time",
    "CE-Subject",
    "ce-",
    "ce-x",
    "ce-traceparent",
    "ce-partitionkey",
    "content-type",
    "traceparent",
];

fn value() -> impl Strategy<Value = Vec<u8>> {
    const KNOWN: [&str; 6] =
        ["1.0", "", "t", "2026-01-05T10:00:07Z", "application/cloudevents+json", "application/cloudevents-batch+json"];
    prop_oneof![proptest::sample::select(&KNOWN[..]).prop_map(|s| s.as_bytes().to_vec()), any::<Vec<u8>>(),]
}

/// JSON that looks like structured events, more or less.
fn json() -> impl Strategy<Value = String> {
    let name = proptest::sample::select(
        &["specversion", "id", "source", "type", "time", "data", "data_base64", "datacontenttype", "tracestate", "x"][..],
    );
    let value = prop_oneof![
        proptest::sample::select(
            &["\"1.0\"", "\"s\"", "7", "null", "{}", "[1, \"\"]", "\"\\u0041\"", "\"\\ud800\"", "\"AA==\"", "nul"][..]
        )
        .prop_map(str::to_owned),
        any::<String>().prop_map(|s| serde_json::to_string(&s).unwrap()),
    ];
    let object = proptest::collection::vec((name, value), 0..8).prop_map(|fields| {
        format!("{{{}}}", fields.iter().map(|(n, v)| format!("\"{n}\":{v}")).collect::<Vec<_>>().join(","))
    });
    (object, any::<bool>()).prop_map(|(object, batch)| if batch { format!("[{object}, {object}]") } else { object })
}

proptest! {
    #[test]
    fn any_event_survives_in_both_modes(event in event()) {
        for format in [CloudEvents::binary(), CloudEvents::structured()] {
            format_suite::check_round_trip(&format, Survives::everything(), &event, &Topic::from("orders"));
        }
    }

    #[test]
    fn any_json_survives_as_plain_json(event in event(), data in json()) {
        prop_assume!(serde_json::from_str::<serde_json::Value>(&data).is_ok());
        let mut event = event;
        event.data = data.into();
        format_suite::check_round_trip(&PlainJson::new(), plain_json(), &event, &Topic::from("orders"));
    }

    #[test]
    fn any_message_is_read_or_explained(message in message()) {
        format_suite::check_decodes_or_explains(&CloudEvents::default(), &message);
        format_suite::check_decodes_or_explains(&PlainJson::new().id_field("id").key_field("x"), &message);
    }
}
