//! Whatever comes in: it is read or explained, and what is read is written so that it is read the same again.

use aqueduct::compat::jetstream_bridge::{Envelope, Generation};
use aqueduct::compat::tupic;
use aqueduct::compat::windshift::Protobuf;
use aqueduct::format::{Decoded, Format};
use aqueduct::testing::format_suite;
use aqueduct::{Message, Topic};
use proptest::prelude::*;

const NAMES: [&str; 16] = [
    "event_id",
    "event_type",
    "producer",
    "resource_id",
    "resource_type",
    "schema_version",
    "trace_id",
    "occurred_at",
    "payload",
    "id",
    "source",
    "version",
    "timestamp",
    "data",
    "DATA",
    "x",
];

const VALUES: [&str; 18] = [
    "\"a\"",
    "\"order.paid\"",
    "\"a/b\"",
    "\"/\"",
    "\"\"",
    "\"7\"",
    "\"null\"",
    "\" \"",
    "\"\\u0041\\n\"",
    "7",
    "2.50",
    "-1e3",
    "null",
    "true",
    "{\"id\":5,\"resource_id\":\"r\"}",
    "[1,\"\"]",
    "{\"Task\":{\"a\":1}}",
    "\"2026-01-02T03:04:05Z\"",
];

prop_compose! {
    fn message()(
        fields in proptest::collection::vec((proptest::sample::select(&NAMES[..]), proptest::sample::select(&VALUES[..])), 0..10),
        headers in proptest::collection::vec(
            (proptest::sample::select(&["Nats-Msg-Id", "nats-msg-id", "traceparent", "ce-resourceid", "WS-Data-Type", "WS-Published-Time", "X"][..]),
             proptest::sample::select(&["1", "a b", "acme.Order", "", "2026-01-02T03:04:05Z"][..])), 0..3),
        key in proptest::option::of("[a/]{0,3}"),
    ) -> Message {
        let fields: Vec<_> = fields.into_iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        let mut message = Message::new("orders", format!("{{{}}}", fields.join(",")));
        message.headers = headers.into_iter().collect();
        message.key = key.map(Into::into);
        message
    }
}

/// What is read is read again of what is written for it, where it can be written.
fn check(format: &dyn Format, message: &Message) -> Result<(), TestCaseError> {
    format_suite::check_decodes_or_explains(format, message);
    let Ok(Decoded::One(event)) = format.decode(message) else { return Ok(()) };
    if let Ok(written) = format.encode(&event, &Topic::from("orders")) {
        prop_assert_eq!(format.decode(&written), Ok(Decoded::One(event)), "{:?}", written);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]
    #[test]
    fn what_is_read_is_written_so_that_it_is_read_the_same_again(message in message()) {
        for generation in [Generation::V1_3, Generation::V2_1, Generation::V4_5] {
            check(&Envelope::new().generation(generation), &message)?;
            check(&Envelope::new().generation(generation).whole(true), &message)?;
        }
        check(&tupic::Envelope::new("acme"), &message)?;
        check(&tupic::Envelope::new("acme").whole(true), &message)?;
        check(&tupic::Envelope::new("acme").wrapped_tasks(true), &message)?;
        check(&Protobuf::new(), &message)?;
    }
}
