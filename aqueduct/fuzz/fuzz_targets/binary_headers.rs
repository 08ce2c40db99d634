//! Any headers, key and body; what can be read and written again is read alike.
#![no_main]

use aqueduct::format::{CloudEvents, Decoded, Format};
use aqueduct::testing::format_suite::check_decodes_or_explains;
use aqueduct::{Message, Topic};
use libfuzzer_sys::fuzz_target;

/// The names that mean something; a number beyond them takes the free name.
const NAMES: [&str; 14] = [
    "ce-specversion",
    "ce-id",
    "ce-source",
    "ce-type",
    "ce-time",
    "ce-subject",
    "ce-dataschema",
    "ce-partitionkey",
    "CE_Sequence",
    "ce-traceparent",
    "tracestate",
    "content-type",
    "ce-datacontenttype",
    "ce-",
];

type Input = (Vec<(u8, String, Vec<u8>)>, Option<Vec<u8>>, Vec<u8>);

fuzz_target!(|input: Input| {
    let (headers, key, body) = input;
    let mut message = Message::new("fuzz", body);
    message.key = key.map(Into::into);
    message.headers.add("ce-specversion", "1.0");
    for (name, free, value) in headers {
        message.headers.add(NAMES.get(usize::from(name)).map_or(free, |known| (*known).to_owned()), value);
    }
    let format = CloudEvents::binary();
    if check_decodes_or_explains(&format, &message)
        && let Ok(Decoded::One(event)) = format.decode(&message)
        && let Ok(again) = format.encode(&event, &Topic::from("fuzz"))
    {
        assert_eq!(format.decode(&again), Ok(Decoded::One(event)));
    }
});
