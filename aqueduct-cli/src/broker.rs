//! Broker and store: where they are, and opening them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aqueduct::sqlite::{SqliteBroker, SqliteFile, SqliteStore};
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::database::AnyStore;
use crate::failure::{Exit, Failure};

/// Where a broker or a store is, as `sqlite:PATH`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Location(PathBuf);

impl Location {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    /// There is no such topic.
    pub(crate) fn lacks(&self, topic: &str) -> Failure {
        Failure::new(Exit::Missing, format!("topic `{topic}` does not exist in {self}"))
    }
}

impl FromStr for Location {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("sqlite", path)) if !path.is_empty() => Ok(Self(path.into())),
            Some(("sqlite", _)) => Err("a path is missing after `sqlite:`: write sqlite:aqueduct.db".into()),
            Some((kind, _)) if kind.bytes().all(|b| b.is_ascii_alphanumeric()) => {
                Err(format!("`{kind}:` is not known: only sqlite:PATH is"))
            }
            _ => Err(format!("`{text}` does not say what it is: write sqlite:{text}")),
        }
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
        location.to_string()
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sqlite:{}", self.0.display())
    }
}

/// A broker and a store that are open.
pub(crate) struct Open {
    pub(crate) broker: SqliteBroker,
    pub(crate) store: AnyStore,
}

/// What to do about a topic, or a file, that does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    Create,
    Refuse,
}

/// Opens the file of the broker, and the store if it is somewhere else.
pub(crate) async fn open(settings: &Settings, absent: Absent) -> Result<Open, Failure> {
    let file = open_broker(settings, absent).await?;
    let store = match (&settings.store, &settings.database) {
        (Some(other), _) if other != &settings.broker => {
            AnyStore::Sqlite(SqliteStore::new(&open_file(other.path(), Absent::Create).await?))
        }
        (None, Some(_)) => open_database(settings, &file).await?,
        _ => AnyStore::Sqlite(SqliteStore::new(&file)),
    };
    Ok(Open { broker: SqliteBroker::new(&file), store })
}

/// Opens the file of the broker alone.
pub(crate) async fn open_broker(settings: &Settings, absent: Absent) -> Result<SqliteFile, Failure> {
    let path = settings.broker.path();
    if absent == Absent::Refuse && !path.exists() {
        let text = format!("there is no broker at {}", settings.broker);
        return Err(Failure::new(Exit::Missing, text)
            .fix("publish into it first, which creates it, or name another with --broker sqlite:PATH"));
    }
    open_file(path, absent).await
}

/// Opens the database; of a file that is the broker's too there is one, since it has one writer.
pub(crate) async fn open_database(settings: &Settings, broker: &SqliteFile) -> Result<AnyStore, Failure> {
    let database = settings.database()?;
    let same = database.path().and_then(|path| path.canonicalize().ok()).is_some_and(|path| path == broker.path());
    if same {
        return Ok(AnyStore::Sqlite(SqliteStore::new(broker)));
    }
    database.open(&settings.table_prefix).await
}

async fn open_file(path: &Path, absent: Absent) -> Result<SqliteFile, Failure> {
    let options = SqliteFile::options(path);
    let options = if absent == Absent::Refuse { options.require_topics() } else { options };
    options.open().await.map_err(Failure::from)
}
