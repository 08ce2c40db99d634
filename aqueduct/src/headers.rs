//! Headers of messages and events.

use bytes::Bytes;

use crate::topic::Text;

/// Names and values that travel beside the data, in order; a name may repeat.
///
/// Names are compared without regard to ASCII case on reading and are kept as written. Values are bytes: most systems
/// put UTF-8 there, none promises it.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Headers(Vec<(Text, Bytes)>);

impl Headers {
    /// No headers; allocates nothing.
    pub const fn new() -> Self {
        Self(Vec::new())
    }

    /// The first value under `name`.
    pub fn get(&self, name: &str) -> Option<&Bytes> {
        self.0.iter().find(|(n, _)| n.as_str().eq_ignore_ascii_case(name)).map(|(_, v)| v)
    }

    /// The first value under `name` as text; none if it is missing or not UTF-8.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(|v| std::str::from_utf8(v).ok())
    }

    /// Replaces every value under `name` by this one.
    pub fn set(&mut self, name: impl Into<Text>, value: impl Into<Bytes>) {
        let name = name.into();
        self.remove(name.as_str());
        self.add(name, value);
    }

    /// Adds one more value under `name`.
    pub fn add(&mut self, name: impl Into<Text>, value: impl Into<Bytes>) {
        self.0.push((name.into(), value.into()));
    }

    /// Removes every value under `name`.
    pub fn remove(&mut self, name: &str) {
        self.0.retain(|(n, _)| !n.as_str().eq_ignore_ascii_case(name));
    }

    /// All names and values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&Text, &Bytes)> {
        self.0.iter().map(|(n, v)| (n, v))
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes of all names and values.
    pub fn size(&self) -> usize {
        self.0.iter().map(|(n, v)| n.as_str().len() + v.len()).sum()
    }
}

impl<N: Into<Text>, V: Into<Bytes>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(iter: I) -> Self {
        Self(iter.into_iter().map(|(n, v)| (n.into(), v.into())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_ignore_case_and_keep_their_spelling() {
        let mut h: Headers = [("Ce-Id", "1"), ("ce-id", "2"), ("x", "3")].into_iter().collect();
        assert_eq!(h.text("CE-ID"), Some("1"));
        h.set("CE-id", "9");
        assert_eq!(h.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>(), ["x", "CE-id"]);
        assert_eq!(h.size(), 1 + 1 + 5 + 1);
        h.add("bad", Bytes::from_static(&[0xff]));
        assert_eq!(h.text("bad"), None);
    }
}
