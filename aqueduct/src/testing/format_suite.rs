//! The conformance suite of formats: whoever implements [`Format`] runs it.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::event::Event;
use crate::format::{Decoded, Format, FormatError};
use crate::headers::Headers;
use crate::message::Message;
use crate::topic::{Text, Topic};

/// What of an event survives the way through a format. Begin with [`everything`](Self::everything) and take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each says of one part of an event whether it survives")]
#[non_exhaustive]
pub struct Survives {
    /// The id.
    pub id: bool,
    /// The source.
    pub source: bool,
    /// The type.
    pub kind: bool,
    /// The time.
    pub time: bool,
    /// The key, which then is the key of the message too.
    pub key: bool,
    /// The subject.
    pub subject: bool,
    /// The schema.
    pub schema: bool,
    /// The content type.
    pub content_type: bool,
    /// Headers, in order, repeated ones too, with any bytes as values.
    pub headers: bool,
    /// Extension attributes of CloudEvents: headers whose names start with `ce-`.
    pub extensions: bool,
    /// The bytes of JSON data; if not, its meaning must.
    pub bytes: bool,
    /// Data that is not JSON. If not, writing it is an error.
    pub binary: bool,
    /// Data of no bytes. If not, writing it is an error.
    pub empty: bool,
    /// Texts of any kind as types and ids. If not, they are not tried.
    pub texts: bool,
    /// Source and id as the dedup id of the message. If not, it may have none, or share it.
    pub identity: bool,
}

impl Survives {
    /// Everything survives.
    pub const fn everything() -> Self {
        Self {
            id: true,
            source: true,
            kind: true,
            time: true,
            key: true,
            subject: true,
            schema: true,
            content_type: true,
            headers: true,
            extensions: true,
            bytes: true,
            binary: true,
            empty: true,
            texts: true,
            identity: true,
        }
    }

    /// What is expected to be read of an event that was published to `topic`. What may be anything is taken from `read`.
    fn expected(self, event: &Event, topic: &Topic, read: &Event) -> Event {
        let mut expected = event.clone().topic(topic.clone());
        if !self.kind {
            expected.kind.clone_from(&read.kind);
        }
        if !self.key {
            expected.key.clone_from(&read.key);
        }
        if !self.bytes && json(event).is_some_and(|value| json(read) == Some(value)) {
            expected.data.clone_from(&read.data);
        }
        for (survives, value) in [(self.id, &mut expected.id), (self.source, &mut expected.source)] {
            if !survives {
                *value = Text::default();
            }
        }
        expected.time = expected.time.filter(|_| self.time);
        for (survives, value) in [
            (self.subject, &mut expected.subject),
            (self.schema, &mut expected.schema),
            (self.content_type, &mut expected.content_type),
        ] {
            if !survives {
                *value = None;
            }
        }
        expected
    }
}

/// Runs the whole suite.
///
/// ```
/// use aqueduct::format::CloudEvents;
/// use aqueduct::testing::format_suite::{Survives, check};
/// check(&CloudEvents::binary(), Survives::everything());
/// ```
///
/// # Panics
///
/// If the format breaks a rule; the message says which one.
#[track_caller]
pub fn check(format: &dyn Format, survives: Survives) {
    let topic = Topic::from("format.suite");
    for event in samples(survives) {
        check_round_trip(format, survives, &event, &topic);
    }
    check_what_cannot_be_written(format, survives, &topic);
    if survives.identity {
        check_identity(format, &topic);
    }
    let messages = samples(survives).into_iter().filter_map(|event| format.encode(&event, &topic).ok());
    let broken: usize = messages.map(|message| check_mutations(format, &message)).sum();
    assert!(broken > 0, "none of the broken messages is an error: what does the format not accept?");
}

/// Writes and reads one event, and compares what is read with what survives.
///
/// # Panics
///
/// If something else is read.
#[track_caller]
pub fn check_round_trip(format: &dyn Format, survives: Survives, event: &Event, topic: &Topic) {
    let message = match format.encode(event, topic) {
        Ok(message) => message,
        Err(e) => panic!("cannot be written: {e}\n{event:?}"),
    };
    assert_eq!(&message.topic, topic, "the message is for another topic");
    let key = event.key.as_ref().map(crate::topic::Key::bytes);
    assert!(!survives.key || message.key == key, "the key of the message is not that of the event: {message:?}");
    match format.decode(&message) {
        Ok(Decoded::One(read)) => {
            let expected = survives.expected(event, topic, &read);
            assert_eq!(read, expected, "the event read is not the event written, in {message:?}");
        }
        other => panic!("one event is expected, not {other:?}, from {message:?}"),
    }
    assert_eq!(format.encode(event, topic).as_ref(), Ok(&message), "the same event is written in two ways");
}

fn json(event: &Event) -> Option<serde_json::Value> {
    serde_json::from_slice(&event.data).ok()
}

/// Reads a message and, if it cannot be read, checks that the error is one that helps. True if it can be read.
///
/// # Panics
///
/// If the error does not say which format found what and where.
#[track_caller]
pub fn check_decodes_or_explains(format: &dyn Format, message: &Message) -> bool {
    match format.decode(message) {
        Ok(_) => true,
        Err(e) => {
            check_error(&e);
            false
        }
    }
}

#[track_caller]
fn check_error(e: &FormatError) {
    let text = e.to_string();
    for (what, part) in [("format", e.format), ("place", e.at.as_str()), ("problem", e.problem.as_str())] {
        assert!(!part.trim().is_empty() && text.contains(part), "the error does not name the {what}: {text:?}, {e:?}");
    }
}

fn check_what_cannot_be_written(format: &dyn Format, survives: Survives, topic: &Topic) {
    for (allowed, data) in [(survives.binary, NO_JSON), (survives.empty, b"")] {
        let written = format.encode(&content("application/octet-stream", data), topic);
        assert_eq!(written.is_ok(), allowed, "data {data:?}: {written:?}");
        if let Err(e) = written {
            check_error(&e);
        }
    }
}

/// The same identity has the same dedup id, another one has another.
fn check_identity(format: &dyn Format, topic: &Topic) {
    let dedup_id = |id: &str, source: &str, data| {
        let message = format.encode(&content("application/json", data).id(id).source(source), topic);
        message.ok().and_then(|m| m.dedup_id)
    };
    let ids = [dedup_id("1", "a", b"1"), dedup_id("2", "a", b"1"), dedup_id("1", "b", b"1")];
    assert!(ids.iter().all(Option::is_some), "an event with id and source has no dedup id");
    assert!(ids[0] != ids[1] && ids[0] != ids[2] && ids[1] != ids[2], "identities share a dedup id: {ids:?}");
    assert_eq!(ids[0], dedup_id("1", "a", b"2"), "the dedup id of an identity depends on its data");
}

const NO_JSON: &[u8] = &[0xff, 0x00, b'"', 0x80, b'\r', b'\n'];
const UNICODE: &str = "gr\u{fc}n \"\\/ \u{1f9ea}";

fn sample() -> Event {
    Event::raw("suite.sample", "{}").id("1").source("suite")
}

/// Events that show each part of an event, alone and together.
fn samples(survives: Survives) -> Vec<Event> {
    let json = || sample().content_type("application/json");
    let time = |ms| Timestamp::from_unix_ms(ms);
    let mut samples = vec![
        sample(),
        json(),
        json().key("k").time(time(0)).subject("s").schema("https://example.com/schema"),
        json().source(UNICODE).key(UNICODE).subject(UNICODE).time(time(1_767_603_607_250)),
        with_data(sample(), br#" { "b" : 2.50, "a":"\u0041", "b":1e3 } "#),
        with_data(sample(), br#"{"b" : 2.50, "a":"\u0041", "b":1e3, "deep":[[[null,true]]]}"#),
        with_data(json(), b"null"),
        with_data(json(), b"\"text\""),
    ];
    if survives.texts {
        samples.push(json().id(UNICODE));
        let event = Event::raw(UNICODE, "7").id("x#y").source("#");
        samples.push(event.content_type("application/vnd.suite+json; charset=utf-8"));
    }
    if survives.binary {
        samples.push(content("application/octet-stream", NO_JSON));
        samples.push(with_data(sample(), NO_JSON));
        samples.push(with_data(json(), NO_JSON));
        samples.push(content("text/plain", b"text"));
        samples.push(content("text/plain", b"\"text\""));
    }
    if survives.empty {
        samples.push(with_data(sample(), b""));
        samples.push(with_data(json(), b""));
    }
    if survives.headers {
        let mut event = json().header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        for (name, value) in [("X-One", &b"1"[..]), ("x-none", b""), ("x-one", b"again"), ("x-bytes", NO_JSON)] {
            event.headers.add(name, Bytes::from_static(value));
        }
        samples.push(event);
    }
    if survives.extensions {
        samples.push(json().header("ce-sequence", "42").header("ce-a1", UNICODE));
    }
    samples
}

fn with_data(event: Event, data: &'static [u8]) -> Event {
    Event { data: Bytes::from_static(data), ..event }
}

fn content(content_type: &str, data: &'static [u8]) -> Event {
    with_data(sample().content_type(content_type), data)
}

/// Reads the message with everything in it broken in turn; how many of these were errors.
fn check_mutations(format: &dyn Format, message: &Message) -> usize {
    let mutants = body_mutants(message).chain(header_mutants(message)).chain(key_mutants(message));
    mutants.filter(|mutant| !check_decodes_or_explains(format, mutant)).count()
}

/// The body cut short, and with each of its bytes replaced, removed or doubled.
fn body_mutants(message: &Message) -> impl Iterator<Item = Message> {
    const BYTES: [u8; 9] = [0, b'"', b'\\', b'{', b'}', b',', b'7', 0x80, 0xff];
    let body = &message.body;
    (0..body.len()).flat_map(move |n| {
        let splice = |middle: &[u8]| [&body[..n], middle, &body[n + 1..]].concat();
        let replaced = BYTES.map(|b| splice(&[b]));
        let others = [body[..n].to_vec(), body[n..].to_vec(), splice(&[]), splice(&[body[n], body[n]])];
        replaced.into_iter().chain(others).map(|body| Message { body: body.into(), ..message.clone() })
    })
}

/// Each header missing, doubled, in another case, with other values; and all missing.
fn header_mutants(message: &Message) -> impl Iterator<Item = Message> {
    type Pairs = Vec<(Text, Bytes)>;
    const VALUES: [&[u8]; 5] = [b"", b"?", b"\xff", b"application/json", b"application/cloudevents+json"];
    let headers: Pairs = message.headers.iter().map(|(n, v)| (n.clone(), v.clone())).collect();
    let count = headers.len();
    let with = move |change: &dyn Fn(&mut Pairs)| {
        let mut changed = headers.clone();
        change(&mut changed);
        Message { headers: changed.into_iter().collect(), ..message.clone() }
    };
    let none = Message { headers: Headers::new(), ..message.clone() };
    let each = (0..count).flat_map(move |n| {
        let mut mutants = vec![
            with(&|h| _ = h.remove(n)),
            with(&|h| h.push(h[n].clone())),
            with(&|h| h[n].0 = h[n].0.as_str().to_ascii_uppercase().into()),
            with(&|h| h[n].0 = h[n].0.as_str().replace('-', "_").into()),
        ];
        mutants.extend(VALUES.map(|value| with(&|h| h[n].1 = Bytes::from_static(value))));
        mutants
    });
    std::iter::once(none).chain(each)
}

fn key_mutants(message: &Message) -> impl Iterator<Item = Message> {
    [None, Some(&b""[..]), Some(b"\xff")]
        .into_iter()
        .map(|key| Message { key: key.map(Bytes::from_static), ..message.clone() })
}
