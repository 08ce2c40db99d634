//! Any body said to be a structured event; what can be read and written again is read alike.
#![no_main]

use aqueduct::format::{CloudEvents, Decoded, Format};
use aqueduct::testing::format_suite::check_decodes_or_explains;
use aqueduct::{Message, Topic};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let mut message = Message::new("fuzz", body.to_vec());
    message.headers.add("content-type", "application/cloudevents+json");
    let format = CloudEvents::structured();
    if check_decodes_or_explains(&format, &message)
        && let Ok(Decoded::One(event)) = format.decode(&message)
        && let Ok(again) = format.encode(&event, &Topic::from("fuzz"))
    {
        assert_eq!(format.decode(&again), Ok(Decoded::One(event)));
    }
});
