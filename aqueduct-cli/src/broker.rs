//! Broker and store: opening them.

use std::path::Path;
use std::sync::Arc;

use aqueduct::broker::Broker;
use aqueduct::sqlite::{Children, SqliteBroker, SqliteFile, SqliteStore};

use crate::config::Settings;
use crate::database::AnyStore;
use crate::failure::{Exit, Failure};
use crate::location::{FilePath, Location};
use crate::nats::{Nats, connect};

/// A broker that is open.
#[derive(Clone)]
pub(crate) enum AnyBroker {
    Sqlite(SqliteBroker),
    Nats(Nats),
}

/// A broker and a store that are open. On NATS there may be no store.
pub(crate) struct Open {
    pub(crate) broker: AnyBroker,
    pub(crate) store: Option<AnyStore>,
}

/// What to do about a topic, or a file, that does not exist.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Absent {
    Create,
    Refuse,
}

impl AnyBroker {
    /// As the library takes it.
    pub(crate) fn shared(&self) -> Arc<dyn Broker> {
        match self {
            Self::Sqlite(broker) => Arc::new(broker.clone()),
            Self::Nats(broker) => Arc::new(broker.clone()),
        }
    }

    /// Where the programs of a group are recorded: in a file alone.
    pub(crate) fn children(&self, group: &str) -> Option<Children> {
        match self {
            Self::Sqlite(broker) => broker.children(group),
            Self::Nats(_) => None,
        }
    }

    /// The file of the embedded one.
    pub(crate) fn file(&self) -> Option<&SqliteFile> {
        match self {
            Self::Sqlite(broker) => Some(broker.file()),
            Self::Nats(_) => None,
        }
    }
}

/// Opens the broker, and the store if it is somewhere else.
pub(crate) async fn open(settings: &Settings, absent: Absent) -> Result<Open, Failure> {
    let broker = open_broker(settings, absent).await?;
    let store = open_store(settings, broker.file()).await?;
    Ok(Open { broker, store })
}

/// Opens the broker alone.
pub(crate) async fn open_broker(settings: &Settings, absent: Absent) -> Result<AnyBroker, Failure> {
    match &settings.broker {
        Location::Sqlite(file) => Ok(AnyBroker::Sqlite(SqliteBroker::new(&open_log(file, absent).await?))),
        Location::Nats(servers) => Ok(AnyBroker::Nats(Nats::new(connect(servers, settings).await?))),
    }
}

/// Opens the file of the embedded broker.
pub(crate) async fn open_log(file: &FilePath, absent: Absent) -> Result<SqliteFile, Failure> {
    if absent == Absent::Refuse && !file.path().exists() {
        return Err(Failure::new(Exit::Missing, format!("there is no broker at {file}"))
            .fix("publish into it first, which creates it, or name another with --broker sqlite:PATH"));
    }
    open_file(file.path(), absent).await
}

/// Opens the store: the one that is named, the database, or the broker's file.
pub(crate) async fn open_store(settings: &Settings, log: Option<&SqliteFile>) -> Result<Option<AnyStore>, Failure> {
    let own = |file: &FilePath| settings.broker == Location::Sqlite(file.clone());
    Ok(match (&settings.store, &settings.database) {
        (Some(other), _) if !own(other) => {
            Some(AnyStore::Sqlite(SqliteStore::new(&open_file(other.path(), Absent::Create).await?)))
        }
        (None, Some(_)) => Some(open_database(settings, log).await?),
        _ => log.map(|file| AnyStore::Sqlite(SqliteStore::new(file))),
    })
}

/// Opens the database; of a file that is the broker's too there is one, since it has one writer.
pub(crate) async fn open_database(settings: &Settings, log: Option<&SqliteFile>) -> Result<AnyStore, Failure> {
    let database = settings.database()?;
    let path = database.path().and_then(|path| path.canonicalize().ok());
    match log.filter(|log| path.is_some_and(|path| path == log.path())) {
        Some(log) => Ok(AnyStore::Sqlite(SqliteStore::new(log))),
        None => database.open(&settings.table_prefix).await,
    }
}

async fn open_file(path: &Path, absent: Absent) -> Result<SqliteFile, Failure> {
    let options = SqliteFile::options(path);
    let options = if absent == Absent::Refuse { options.require_topics() } else { options };
    options.open().await.map_err(Failure::from)
}
