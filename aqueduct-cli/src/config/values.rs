//! Values of settings that are written as text.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use aqueduct::Timestamp;
use aqueduct::broker::Start;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A length of time, such as `30s`, `500ms` or `1h 30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Span(pub(crate) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|e| format!("`{text}` is no length of time such as 30s, 500ms or 1h 30m: {e}"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// Where a group begins that has never settled anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct From(pub(crate) Start);

impl FromStr for From {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "beginning" => Ok(Self(Start::Beginning)),
            "new" => Ok(Self(Start::New)),
            time => time.parse::<Timestamp>().map(|time| Self(Start::Time(time))).map_err(|_| {
                format!("`{time}` is neither `beginning` nor `new` nor a time such as 2026-01-05T09:00:07Z")
            }),
        }
    }
}

impl fmt::Display for From {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Start::New => f.write_str("new"),
            Start::Time(time) => time.fmt(f),
            _ => f.write_str("beginning"),
        }
    }
}

/// Texts go through serde by their own words.
macro_rules! by_text {
    ($($name:ident),*) => {$(
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }

        impl std::convert::From<$name> for String {
            fn from(value: $name) -> Self {
                value.to_string()
            }
        }
    )*};
}

by_text!(Span, From);

/// How events look in the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FormatName {
    /// CloudEvents: attributes as headers, the data as the body. Reads the other encodings of CloudEvents too.
    Cloudevents,
    /// CloudEvents: the whole event as one JSON object. Reads the other encodings of CloudEvents too.
    CloudeventsStructured,
    /// Bare JSON without an envelope: the type is the topic.
    Json,
}
