//! An event: something that happened.

use bytes::Bytes;
use serde_core::{Serialize, de::DeserializeOwned};

use crate::clock::Timestamp;
use crate::error::{Error, Result, without_values};
use crate::headers::Headers;
use crate::topic::{Key, Text, Topic};

/// Something that happened, with the attributes of CloudEvents 1.0. Its identity is (source, id).
///
/// Build one with [`new`](Self::new) and the setters, which have the names of the fields. Id, source, time and topic may
/// stay unset: publishing fills in a UUIDv7, the publisher's name, the present and the topic of its route table.
///
/// ```
/// # fn main() -> aqueduct::Result<()> {
/// use aqueduct::Event;
/// let event = Event::new("stock.reserved", &["sku-1", "sku-2"])?.topic("stock").key("order-7");
/// assert_eq!(event.kind, "stock.reserved");
/// assert_eq!(event.json::<Vec<String>>()?, ["sku-1", "sku-2"]);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Unique within its source; empty until published.
    pub id: Text,
    /// Who says that it happened; empty until published.
    pub source: Text,
    /// The type, such as `order.placed`.
    pub kind: Text,
    /// When it happened.
    pub time: Option<Timestamp>,
    /// The topic it goes to or came from.
    pub topic: Option<Topic>,
    /// What orders it within its topic.
    pub key: Option<Key>,
    /// What within the source it is about (CloudEvents `subject`).
    pub subject: Option<Text>,
    /// The URI of the data's schema (CloudEvents `dataschema`).
    pub schema: Option<Text>,
    /// The media type of the data (CloudEvents `datacontenttype`).
    pub content_type: Option<Text>,
    /// Names and values beside the data. A name that starts with `ce-` is a CloudEvents extension attribute.
    pub headers: Headers,
    /// The data.
    pub data: Bytes,
}

/// The content type of [`Event::new`].
pub(crate) const JSON: Text = Text::from_static("application/json");

impl Event {
    /// An event of type `kind` whose data is `value` as JSON.
    pub fn new<T: Serialize + ?Sized>(kind: impl Into<Text>, value: &T) -> Result<Self> {
        Ok(Self::raw(kind, serde_json::to_vec(value)?).content_type(JSON))
    }

    /// An event of type `kind` with these bytes as data and no content type.
    pub fn raw(kind: impl Into<Text>, data: impl Into<Bytes>) -> Self {
        Self { kind: kind.into(), data: data.into(), ..Self::default() }
    }

    /// An event whose data is this message as Protobuf, and whose type is the full name of its type.
    ///
    /// ```
    /// # fn main() -> aqueduct::Result<()> {
    /// let event = aqueduct::Event::from_proto(&"hello".to_owned());
    /// assert_eq!(event.kind, "google.protobuf.StringValue");
    /// assert_eq!(event.proto::<String>()?, "hello");
    /// # Ok(()) }
    /// ```
    #[cfg(feature = "proto")]
    pub fn from_proto<T: prost::Name>(message: &T) -> Self {
        Self::raw(T::full_name(), message.encode_to_vec()).content_type("application/protobuf")
    }

    /// Sets the id. Defaults to a new UUIDv7 when published.
    pub fn id(mut self, id: impl Into<Text>) -> Self {
        self.id = id.into();
        self
    }

    /// Sets the source. Defaults to the name of the publisher or consumer that publishes it.
    pub fn source(mut self, source: impl Into<Text>) -> Self {
        self.source = source.into();
        self
    }

    /// Sets the time. Defaults to the time of publishing.
    pub fn time(mut self, time: Timestamp) -> Self {
        self.time = Some(time);
        self
    }

    /// Sets the topic. Defaults to what the publisher's route table says for the type.
    pub fn topic(mut self, topic: impl Into<Topic>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Sets the key; an empty key is no key. Defaults to none.
    pub fn key(mut self, key: impl Into<Text>) -> Self {
        self.key = Key::new(key);
        self
    }

    /// Sets the subject. Defaults to none.
    pub fn subject(mut self, subject: impl Into<Text>) -> Self {
        self.subject = Some(subject.into());
        self
    }

    /// Sets the schema. Defaults to none.
    pub fn schema(mut self, schema: impl Into<Text>) -> Self {
        self.schema = Some(schema.into());
        self
    }

    /// Sets the content type. Defaults to none, or to `application/json` after [`new`](Self::new).
    pub fn content_type(mut self, content_type: impl Into<Text>) -> Self {
        self.content_type = Some(content_type.into());
        self
    }

    /// Sets a header, replacing others of that name.
    pub fn header(mut self, name: impl Into<Text>, value: impl Into<Bytes>) -> Self {
        self.headers.set(name, value);
        self
    }

    /// The data read as JSON; the error names the event and what was expected, and shows nothing of the data.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.data).map_err(|e| {
            let problem = without_values(&e);
            Error::msg(format!("the data of {:?} event {:?} is not the JSON expected: {problem}", self.kind, self.id))
        })
    }

    /// The data read as Protobuf; the error names the event and the field, and shows nothing of the data.
    ///
    /// The trap: bytes of another type may well be read, as nonsense. Go by the event's type.
    #[cfg(feature = "proto")]
    pub fn proto<T: prost::Message + Default>(&self) -> Result<T> {
        T::decode(self.data.clone()).map_err(|e| {
            let problem = e.to_string();
            Error::msg(format!(
                "the data of {:?} event {:?} is not the Protobuf expected: {problem}",
                self.kind, self.id
            ))
        })
    }

    /// The bytes of data and headers.
    pub fn size(&self) -> usize {
        self.data.len() + self.headers.size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_key_is_no_key() {
        assert!(Event::raw("t", "").key("").key.is_none());
        assert_eq!(Event::raw("t", "").key("k").key.unwrap().as_str(), "k");
    }

    #[test]
    fn data_that_is_not_the_json_expected_names_the_event() {
        let text = Event::raw("t", "{").id("7").json::<u32>().unwrap_err().to_string();
        assert!(text.contains("\"t\"") && text.contains("\"7\""), "{text}");
    }
}
