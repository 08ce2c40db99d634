//! Paths into JSON: `repository.full_name` or `/repository/full_name`.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

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
        let whole: &RawValue = serde_json::from_slice(json).map_err(|e| e.to_string())?;
        let found = self.segments.iter().try_fold(whole, |value, segment| step(value, segment));
        match found.map(RawValue::get) {
            None | Some("null" | "\"\"") => Ok(None),
            Some(text) if text.starts_with('"') => serde_json::from_str(text).map(Some).map_err(|e| e.to_string()),
            Some(text) if text.starts_with(['{', '[']) => {
                let kind = if text.starts_with('{') { "object" } else { "array" };
                Err(format!("at `{self}` is no text and no number, but an {kind}"))
            }
            Some(text) => Ok(Some(text.to_owned())),
        }
    }
}

/// What is below a value under this name or number. The last of several fields of a name counts.
fn step<'a>(value: &'a RawValue, segment: &str) -> Option<&'a RawValue> {
    match value.get().as_bytes().first()? {
        b'{' => serde_json::from_str::<HashMap<Cow<'_, str>, &RawValue>>(value.get()).ok()?.remove(segment),
        b'[' => serde_json::from_str::<Vec<&RawValue>>(value.get()).ok()?.get(segment.parse::<usize>().ok()?).copied(),
        _ => None,
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
