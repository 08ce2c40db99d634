//! Names that JetStream takes for what may be called anything.

use std::fmt::Write as _;

use xxhash_rust::xxh3::xxh3_64;

use crate::topic::Text;

/// The name of a consumer as a part of others: its own, if it has nothing but letters, digits, `-` and `_`; else what it has
/// of these, and a hash of all.
pub(super) fn plain(name: &str) -> String {
    let takes = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(takes) {
        return name.to_owned();
    }
    let mut plain: String = name.chars().take(NAME_BYTES_MAX).map(|c| if takes(c) { c } else { '_' }).collect();
    let _ = write!(plain, "-{:016x}", xxh3_64(name.as_bytes()));
    plain
}

/// Room is left for what a reader's name has beside it.
const NAME_BYTES_MAX: usize = 150;

/// The bucket with the leases of a consumer.
pub(crate) fn bucket(consumer: &Text) -> String {
    format!("aq_{}", plain(consumer.as_str()))
}

/// Any text as a token of a key.
pub(super) fn token(text: &Text) -> String {
    let mut token = String::with_capacity(text.as_str().len());
    for byte in text.as_str().bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'/') {
            token.push(char::from(byte));
        } else {
            let _ = write!(token, "={byte:02X}");
        }
    }
    if token.is_empty() {
        token.push('=');
    }
    token
}

/// What the names of a partition's readers begin with; the epoch follows.
pub(super) fn readers(consumer: &Text, partitions: u32, partition: u32) -> String {
    format!("{}_{partitions}_{partition}_", plain(consumer.as_str()))
}

/// By which people know whose a reader is.
pub(super) fn description(consumer: &Text) -> String {
    format!("the consumer {consumer}, by Aqueduct")
}

/// The consumer of a description.
pub(super) fn described(description: &str) -> Option<&str> {
    description.strip_prefix("the consumer ")?.strip_suffix(", by Aqueduct")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_apart() {
        assert_eq!(bucket(&"stock".into()), "aq_stock");
        assert_eq!(readers(&"stock".into(), 16, 3), "stock_16_3_");
        assert_eq!(described(&description(&"a.b".into())), Some("a.b"));
        let names = ["a.b", "a b", "a_b", "", "ключ"].map(plain);
        for (at, name) in names.iter().enumerate() {
            assert!(name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_'), "{name}");
            assert!(!names[..at].contains(name), "{name}");
        }
        assert_eq!(
            ["a.b/1", "a=2Eb/1", "ü", ""].map(|text| token(&text.into())),
            ["a=2Eb/1", "a=3D2Eb/1", "=C3=BC", "="]
        );
    }
}
