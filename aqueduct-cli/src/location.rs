//! Where a broker or a store is.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::failure::{Exit, Failure};

/// Where a broker is: `sqlite:PATH`, or the addresses of NATS servers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Location {
    Sqlite(FilePath),
    Nats(Servers),
}

/// A file, as `sqlite:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct FilePath(PathBuf);

/// Addresses between commas. There may be a password in them, so only what stands after it is printed.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Servers(String);

impl Location {
    /// The file, for what is done in one alone.
    pub(crate) fn file(&self, instead: &str) -> Result<&FilePath, Failure> {
        match self {
            Self::Sqlite(file) => Ok(file),
            Self::Nats(servers) => {
                let text =
                    format!("this command works on the log of an SQLite file alone, and the broker is {servers}");
                Err(Failure::new(Exit::Usage, text).fix(instead))
            }
        }
    }

    /// There is no such topic.
    pub(crate) fn lacks(&self, topic: &str) -> Failure {
        match self {
            Self::Sqlite(file) => Failure::new(Exit::Missing, format!("topic `{topic}` does not exist in {file}")),
            Self::Nats(servers) => Failure::new(Exit::Missing, format!("topic `{topic}` does not exist on {servers}"))
                .fix(format!("correct the name, or declare it: {DECLARE}")),
        }
    }
}

/// How a topic comes to be on NATS.
pub(crate) const DECLARE: &str = "`aqueduct topology apply --file topology.toml`, whose --help shows such a file";

impl Servers {
    /// With the secrets, for who connects.
    pub(crate) fn addresses(&self) -> &str {
        &self.0
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once("://") {
            Some(("nats" | "tls", rest)) if !rest.is_empty() => Ok(Self::Nats(Servers(text.to_owned()))),
            Some(("nats" | "tls", _)) => Err("a host is missing: write nats://host:4222".into()),
            _ => FilePath::read(text, "sqlite:PATH and nats://host:4222 are").map(Self::Sqlite),
        }
    }
}

impl FromStr for FilePath {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::read(text, "only sqlite:PATH is")
    }
}

impl FilePath {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    fn read(text: &str, known: &str) -> Result<Self, String> {
        let is_kind = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric());
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self(path.into())),
            Some(("sqlite", _)) => Err("a path is missing after `sqlite:`: write sqlite:aqueduct.db".into()),
            Some((kind, rest)) if is_kind(kind) && (rest.starts_with("//") || !text.contains('@')) => {
                Err(format!("`{kind}:` is not known: {known}"))
            }
            // It may be a secret.
            _ if text.contains('@') => Err(format!("what stands before its `@` is not known, and not shown: {known}")),
            _ => Err(format!("`{text}` does not say what it is: write sqlite:{text}")),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(file) => file.fmt(f),
            Self::Nats(servers) => servers.fmt(f),
        }
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite:{}", self.0.display())
    }
}

impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, address) in self.0.split(',').map(str::trim).enumerate() {
            let (scheme, rest) = address.split_once("://").unwrap_or(("nats", address));
            let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
            // A password with `://` in it could pass for a scheme.
            let scheme = if scheme == "tls" { "tls" } else { "nats" };
            write!(f, "{}{scheme}://{place}", if n > 0 { "," } else { "" })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Location {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Location> for String {
    fn from(location: Location) -> Self {
        match location {
            Location::Sqlite(file) => file.into(),
            Location::Nats(Servers(addresses)) => addresses,
        }
    }
}

impl TryFrom<String> for FilePath {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<FilePath> for String {
    fn from(file: FilePath) -> Self {
        file.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shows_a_password() {
        let url = "nats://shop:top@secret@n1:4222, tls://n2,shop:topsecret@n3";
        let location: Location = url.parse().unwrap();
        assert_eq!(location.to_string(), "nats://n1:4222,tls://n2,nats://n3");
        assert!(!format!("{location:?}").contains("secret"));
        assert_eq!(String::from(location), url);
        for wrong in ["shop:topsecret@n1", "topsecret@n1:4222", "http://shop:topsecret@n1", "topsecret@n1"] {
            let fault = wrong.parse::<Location>().unwrap_err();
            assert!(!fault.contains("topsecret") && fault.contains("nats://host:4222"), "{fault}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_what_can() {
        let fault = |text: &str| text.parse::<Location>().unwrap_err();
        assert_eq!(fault("kafka:x"), "`kafka:` is not known: sqlite:PATH and nats://host:4222 are");
        assert_eq!(fault("nats://"), "a host is missing: write nats://host:4222");
        assert_eq!("nats://n1".parse::<FilePath>().unwrap_err(), "`nats:` is not known: only sqlite:PATH is");
    }
}
