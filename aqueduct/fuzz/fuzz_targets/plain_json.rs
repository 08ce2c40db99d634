//! Any body as plain JSON; what can be read is written as it was.
#![no_main]

use aqueduct::format::{Decoded, Format, PlainJson};
use aqueduct::testing::format_suite::check_decodes_or_explains;
use aqueduct::{Message, Topic};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    let message = Message::new("fuzz", body.to_vec());
    let format = PlainJson::new().id_field("id").key_field("key");
    if check_decodes_or_explains(&format, &message)
        && let Ok(Decoded::One(event)) = format.decode(&message)
    {
        let again = format.encode(&event, &Topic::from("fuzz")).map(|m| m.body);
        assert_eq!(again, Ok(message.body));
    }
});
