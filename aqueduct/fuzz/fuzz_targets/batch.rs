//! Any body said to be a batch of events.
#![no_main]

use aqueduct::Message;
use aqueduct::format::CloudEvents;
use aqueduct::testing::format_suite::check_decodes_or_explains;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let mut message = Message::new("fuzz", body.to_vec());
    message.headers.add("content-type", "application/cloudevents-batch+json");
    check_decodes_or_explains(&CloudEvents::default(), &message);
});
