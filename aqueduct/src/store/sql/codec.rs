//! How events, headers and histories are written into blobs: fields with their lengths before them.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use xxhash_rust::xxh3::Xxh3;

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::headers::Headers;
use crate::topic::Text;

/// The version of every encoding in this folder; rows carry it.
pub(crate) const VERSION: i64 = 1;

/// Names of headers that most events have: a number stands for each. One that is added goes to the end.
const NAMES: [&str; 14] = [
    "content-type",
    "ce-specversion",
    "ce-id",
    "ce-source",
    "ce-type",
    "ce-time",
    "ce-subject",
    "ce-dataschema",
    "ce-partitionkey",
    "ce-sequence",
    "traceparent",
    "tracestate",
    "ce-traceparent",
    "ce-tracestate",
];

/// What stands before a name in [`NAMES`], plus its place there; 0 ends the headers, and 1 stands before any other name.
const NAMED: u8 = 2;

/// Writes fields one after another.
#[derive(Default)]
pub(crate) struct Encoder(BytesMut);

impl Encoder {
    pub(crate) fn byte(&mut self, byte: u8) -> &mut Self {
        self.0.put_u8(byte);
        self
    }

    pub(crate) fn int(&mut self, int: u64) -> &mut Self {
        self.0.put_u64_le(int);
        self
    }

    /// A time, to the nanosecond.
    pub(crate) fn time(&mut self, time: Timestamp) -> &mut Self {
        let ms = floor_ms(time);
        let rest = time.since(Timestamp::from_unix_ms(ms));
        self.int(ms.cast_unsigned()).int(u64::from(rest.subsec_nanos()))
    }

    pub(crate) fn optional_time(&mut self, time: Option<Timestamp>) -> &mut Self {
        self.byte(u8::from(time.is_some()));
        if let Some(time) = time {
            self.time(time);
        }
        self
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.reserve(4 + bytes.len());
        self.0.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.put_slice(bytes);
        self
    }

    pub(crate) fn optional(&mut self, bytes: Option<&[u8]>) -> &mut Self {
        self.0.put_u8(u8::from(bytes.is_some()));
        if let Some(bytes) = bytes {
            self.bytes(bytes);
        }
        self
    }

    pub(crate) fn headers(&mut self, headers: &Headers) -> &mut Self {
        self.0.reserve(headers.size() + headers.len() * 9 + 1);
        for (name, value) in headers.iter() {
            match (NAMED..).zip(NAMES).find(|(_, known)| *known == name.as_str()) {
                Some((number, _)) => self.byte(number),
                None => self.byte(1).bytes(name.as_str().as_bytes()),
            };
            self.bytes(value);
        }
        self.byte(0)
    }

    pub(crate) fn reserve(&mut self, bytes: usize) {
        self.0.reserve(bytes);
    }

    #[cfg(feature = "sqlite")]
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// What was written so far.
    pub(crate) fn written(&self) -> &[u8] {
        &self.0
    }

    pub(crate) fn finish(self) -> Bytes {
        self.0.freeze()
    }
}

/// Reads fields one after another; they share the memory of what is read.
pub(crate) struct Decoder(pub(crate) Bytes);

impl Decoder {
    pub(crate) fn byte(&mut self) -> Result<u8, StoreError> {
        self.0.try_get_u8().map_err(|_| too_short())
    }

    pub(crate) fn int(&mut self) -> Result<u64, StoreError> {
        self.0.try_get_u64_le().map_err(|_| too_short())
    }

    pub(crate) fn time(&mut self) -> Result<Timestamp, StoreError> {
        let ms = self.int()?.cast_signed();
        Ok(Timestamp::from_unix_ms(ms).after(Duration::from_nanos(self.int()?)))
    }

    pub(crate) fn optional_time(&mut self) -> Result<Option<Timestamp>, StoreError> {
        if self.byte()? == 0 { Ok(None) } else { self.time().map(Some) }
    }

    pub(crate) fn bytes(&mut self) -> Result<Bytes, StoreError> {
        let length = self.0.try_get_u32_le().map_err(|_| too_short())? as usize;
        if length > self.0.len() {
            return Err(too_short());
        }
        Ok(self.0.split_to(length))
    }

    pub(crate) fn optional(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.byte()? == 0 { Ok(None) } else { self.bytes().map(Some) }
    }

    pub(crate) fn text(&mut self) -> Result<Text, StoreError> {
        text(self.bytes()?)
    }

    pub(crate) fn optional_text(&mut self) -> Result<Option<Text>, StoreError> {
        self.optional()?.map(text).transpose()
    }

    pub(crate) fn headers(&mut self) -> Result<Headers, StoreError> {
        let mut headers = Headers::new();
        loop {
            let name = match self.byte()? {
                0 => return Ok(headers),
                1 => self.text()?,
                number => NAMES.get(usize::from(number - NAMED)).copied().map(Text::from_static).ok_or_else(unknown)?,
            };
            headers.add(name, self.bytes()?);
        }
    }
}

/// A time as a column has it: the millisecond that it is in.
pub(crate) fn floor_ms(time: Timestamp) -> i64 {
    let ms = time.unix_ms();
    if Timestamp::from_unix_ms(ms) > time { ms - 1 } else { ms }
}

/// A time as a column has it when nothing may happen before it: the millisecond that has begun by then or begins next.
pub(crate) fn ceil_ms(time: Timestamp) -> i64 {
    let ms = floor_ms(time);
    if Timestamp::from_unix_ms(ms) < time { ms + 1 } else { ms }
}

/// The checksum of a stored row: SQLite finds a damaged tree, and this finds damaged content.
pub(crate) fn checksum(numbers: &[i64], contents: &[&[u8]]) -> i64 {
    let mut hash = Xxh3::new();
    for number in numbers {
        hash.update(&number.to_le_bytes());
    }
    for content in contents {
        hash.update(&(content.len() as u64).to_le_bytes());
        hash.update(content);
    }
    hash.digest().cast_signed()
}

fn text(bytes: Bytes) -> Result<Text, StoreError> {
    Text::try_from(bytes).map_err(|_| StoreError::Refused("a stored text is not UTF-8: the file is damaged".into()))
}

fn unknown() -> StoreError {
    StoreError::Refused("a stored header has an unknown name: the file is damaged".into())
}

fn too_short() -> StoreError {
    StoreError::Refused("a stored row ends too early: the file is damaged".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_rubbish_is_refused() {
        let mut headers = Headers::new();
        headers.add("a", "1");
        headers.add("a", vec![0, 255]);
        headers.add("ce-id", "7");
        headers.add("ce-idx", "8");
        let mut encoder = Encoder::default();
        encoder.int(7).bytes(b"x").optional(None).optional(Some(b"y")).headers(&headers);
        let bytes = encoder.finish();
        let mut decoder = Decoder(bytes.clone());
        assert_eq!((decoder.int().unwrap(), decoder.bytes().unwrap()), (7, Bytes::from("x")));
        assert_eq!((decoder.optional().unwrap(), decoder.optional_text().unwrap()), (None, Some("y".into())));
        assert_eq!(decoder.headers().unwrap(), headers);
        for end in 0..bytes.len() {
            let mut short = Decoder(bytes.slice(..end));
            let all = short.int().and_then(|_| short.bytes()).and_then(|_| short.optional());
            assert!(all.and_then(|_| short.optional()).and_then(|_| short.headers()).is_err(), "{end} bytes");
        }
        assert!(Decoder(Bytes::from_static(&[255, 0, 0, 0, 0, 0])).headers().is_err());
        for (at, name) in NAMES.into_iter().enumerate() {
            assert!(!NAMES[..at].contains(&name), "{name} is there twice");
        }
    }
    #[test]
    fn times_keep_their_nanoseconds_and_columns_are_not_early() {
        let fine = |ms: i64| Timestamp::from_unix_ms(ms).after(Duration::from_nanos(1_500));
        let times = [fine(0), fine(-1), fine(-1_000), fine(1_800_000_000_123), Timestamp::from_unix_ms(-7)];
        for time in times.into_iter().chain([i64::MIN, i64::MAX].map(Timestamp::from_unix_ms)) {
            let mut encoder = Encoder::default();
            encoder.optional_time(Some(time)).optional_time(None);
            let mut decoder = Decoder(encoder.finish());
            assert_eq!((decoder.optional_time().unwrap(), decoder.optional_time().unwrap()), (Some(time), None));
            let (early, late) = (Timestamp::from_unix_ms(floor_ms(time)), Timestamp::from_unix_ms(ceil_ms(time)));
            assert!(early <= time && time <= late, "{early} {time} {late}");
        }
        assert_eq!([floor_ms(fine(-1)), ceil_ms(fine(-1)), ceil_ms(Timestamp::from_unix_ms(-7))], [-1, 0, -7]);
    }
}
