//! The fields of a JSON object as slices of the body, so that what a format does not interpret stays byte by byte.

use std::fmt;

use bytes::Bytes;
use serde_core::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::topic::Text;

/// The fields of a JSON object in their order, names and values as they are written. A name may repeat.
pub(crate) struct Fields<'a>(pub(crate) Vec<(&'a RawValue, &'a RawValue)>);

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut fields = Vec::new();
        while let Some(field) = map.next_entry()? {
            fields.push(field);
        }
        Ok(Fields(fields))
    }
}

impl<'a> Fields<'a> {
    /// The value of the last field of this name.
    pub(crate) fn get(&self, body: &Bytes, name: &str) -> Option<&'a RawValue> {
        self.0.iter().rev().find(|(n, _)| string(body, n).is_ok_and(|n| n == *name)).map(|(_, value)| *value)
    }
}

/// The text of a JSON string inside `body`: a slice of it if nothing is escaped. An error if it is something else.
pub(crate) fn string(body: &Bytes, raw: &RawValue) -> Result<Text, serde_json::Error> {
    let inner = raw.get().strip_prefix('"').and_then(|s| s.strip_suffix('"'));
    match inner.filter(|s| !s.contains('\\')).map(|s| Text::try_from(body.slice_ref(s.as_bytes()))) {
        Some(Ok(text)) => Ok(text),
        _ => serde_json::from_str::<String>(raw.get()).map(Text::from),
    }
}

/// True for a JSON `null`.
pub(crate) fn is_null(raw: &RawValue) -> bool {
    raw.get() == "null"
}

/// True for a JSON number.
pub(crate) fn is_number(raw: &RawValue) -> bool {
    raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_slices_of_the_body_unless_something_is_escaped() {
        let body = Bytes::from_static(br#"{"a": "plain", "b": "q\u0041\"", "c": 7, "\u0064": "x", "a": "last"}"#);
        let fields: Fields<'_> = serde_json::from_slice(&body).unwrap();
        let plain = string(&body, fields.0[0].1).unwrap();
        assert_eq!(plain, "plain");
        assert!(body.as_ptr_range().contains(&plain.as_str().as_ptr()));
        assert_eq!(string(&body, fields.get(&body, "b").unwrap()).unwrap(), "qA\"");
        assert!(string(&body, fields.get(&body, "c").unwrap()).is_err());
        assert_eq!(string(&body, fields.get(&body, "d").unwrap()).unwrap(), "x");
        assert_eq!(fields.get(&body, "a").unwrap().get(), "\"last\"");
        assert!(fields.get(&body, "e").is_none());
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        let err = serde_json::from_slice::<Fields<'_>>(b"[1]").err().unwrap().to_string();
        assert!(err.contains("a JSON object"), "{err}");
    }
}
