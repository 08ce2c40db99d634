//! Paths into JSON: `repository.full_name` or `/repository/full_name`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// A way to a value inside a JSON object. Segments are joined by dots, or it is a JSON pointer (RFC 6901), which begins
/// with a slash; a number counts the elements of an array from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    text: String,
    segments: Vec<String>,
}

impl FromStr for Path {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let segments: Vec<String> = match text.strip_prefix('/') {
            Some(pointer) => pointer.split('/').map(|s| s.replace("~1", "/").replace("~0", "~")).collect(),
            None => text.split('.').map(str::to_owned).collect(),
        };
        if segments.iter().any(String::is_empty) {
            return Err(format!("`{text}` is no path such as repository.full_name or /repository/full_name"));
        }
        Ok(Self { text: text.to_owned(), segments })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Path {
    /// The text, number or boolean that it leads to; none if there is nothing, `null` or an empty text. An error says what
    /// is wrong with the JSON, or that something else is there.
    pub(crate) fn find(&self, json: &[u8]) -> Result<Option<String>, String> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let found = Step(&self.segments).deserialize(&mut reader);
        let raw = found.and_then(|found| reader.end().map(|()| found)).map_err(|e| e.to_string())?;
        match raw.map(RawValue::get) {
            None | Some("null" | "\"\"") => Ok(None),
            Some(text) if text.starts_with('"') => serde_json::from_str(text).map(Some).map_err(|e| e.to_string()),
            Some(text) if text.starts_with(['{', '[']) => {
                Err(format!("at `{self}` is no text and no number, but an {}", kind(text)))
            }
            Some(text) => Ok(Some(text.to_owned())),
        }
    }
}

fn kind(text: &str) -> &'static str {
    if text.starts_with('{') { "object" } else { "array" }
}

/// What is left of the way. The last of several fields of a name counts.
struct Step<'p>(&'p [String]);

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = Option<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Self::Value, D::Error> {
        match self.0 {
            [] => <&RawValue>::deserialize(reader).map(Some),
            _ => reader.deserialize_any(self),
        }
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = map.next_key::<Cow<'_, str>>()? {
            if name == self.0[0] {
                found = map.next_value_seed(Self(&self.0[1..]))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let wanted = self.0[0].parse::<usize>().ok();
        let (mut found, mut at) = (None, 0);
        loop {
            if wanted == Some(at) {
                match seq.next_element_seed(Self(&self.0[1..]))? {
                    Some(value) => found = value,
                    None => return Ok(found),
                }
            } else if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            at += 1;
        }
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_a_text_or_a_number() {
        let json = br#"{"a":{"b":[{"c":"x\ny"},7.50]},"a.b":"dotted","n":null,"e":"","t":true,"s":"text","d":1,"d":2}"#;
        let find = |path: &str| path.parse::<Path>().unwrap().find(json);
        assert_eq!(find("a.b.0.c").unwrap().unwrap(), "x\ny");
        assert_eq!(find("/a/b/1").unwrap().unwrap(), "7.50");
        assert_eq!(find("/a.b").unwrap().unwrap(), "dotted");
        assert_eq!(find("t").unwrap().unwrap(), "true");
        assert_eq!(find("d").unwrap().unwrap(), "2");
        for nothing in ["n", "e", "zzz", "a.zzz.y", "a.b.9", "s.deeper", "t.deeper", "d.deeper"] {
            assert_eq!(find(nothing).unwrap(), None, "{nothing}");
        }
        assert!(find("a").unwrap_err().contains("but an object"));
        assert!("s".parse::<Path>().unwrap().find(b"{\"s\":\"x\"").is_err());
        assert!("s".parse::<Path>().unwrap().find(b"{\"s\":\"x\"} y").is_err());
        assert!("a..b".parse::<Path>().unwrap_err().contains("is no path"));
    }
}
