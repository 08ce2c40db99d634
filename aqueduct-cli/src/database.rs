//! The database that services have: where it is, and the tables of Aqueduct in it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use aqueduct::compat::{jetstream_bridge, tupic};
use aqueduct::mysql::{MySql, MySqlDatabase, MySqlStore};
use aqueduct::postgres::{PgDatabase, PgStore, Postgres};
use aqueduct::sql::{Forget, InboxStatus, Migrated, Server, ServerDatabase, ServerOptions, ShardStatus};
use aqueduct::sqlite::{SqliteFile, SqliteStore};
use aqueduct::store::{Command, CommandId, CommandState, Listed, Store};
use aqueduct::{Consumer, OutboxTable, StoreError};
use serde::{Deserialize, Serialize};

use crate::config::{OutboxSettings, System};
use crate::failure::{Exit, Failure};

/// What the names of tables begin with, unless it is changed.
pub(crate) const PREFIX: &str = "aq_";

/// How a database is written, for those who have written it wrongly.
pub(crate) const FORMS: &str =
    "write postgres://USER:PASSWORD@HOST/NAME, mysql://USER:PASSWORD@HOST/NAME or sqlite:PATH";

/// What kind of database it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    MySql,
    Sqlite,
}

/// Where a database is. It may have a password in it, so nothing prints it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct DatabaseUrl {
    kind: Kind,
    text: String,
}

impl FromStr for DatabaseUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let kind = match text.split_once(':') {
            Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => Kind::Postgres,
            Some(("mysql" | "mariadb", rest)) if rest.starts_with("//") => Kind::MySql,
            Some(("sqlite", path)) if !path.is_empty() => Kind::Sqlite,
            _ => return Err(FORMS.into()),
        };
        Ok(Self { kind, text: text.to_owned() })
    }
}

impl TryFrom<String> for DatabaseUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DatabaseUrl> for String {
    fn from(database: DatabaseUrl) -> Self {
        database.text
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hidden(&self.text))
    }
}

/// A text as it may be shown: of a URL no more than what kind it is of.
pub(crate) fn hidden(text: &str) -> String {
    match text.split_once("://") {
        Some((before, _)) => format!("{before}://(hidden)"),
        None => text.to_owned(),
    }
}

impl DatabaseUrl {
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// Its file, if it is one.
    pub(crate) fn path(&self) -> Option<&Path> {
        self.text.strip_prefix("sqlite:").map(Path::new)
    }

    fn options<DB: Server>(&self, prefix: &str) -> ServerOptions<DB> {
        ServerDatabase::options(&self.text).prefix(prefix).without_migrating()
    }

    /// Opens what is there: tables that are missing are made by `aqueduct migrate` alone.
    pub(crate) async fn open(&self, prefix: &str) -> Result<AnyStore, Failure> {
        check(self.kind, prefix)?;
        Ok(match self.kind {
            Kind::Postgres => AnyStore::Postgres(PgStore::new(&self.options::<Postgres>(prefix).connect().await?)),
            Kind::MySql => AnyStore::MySql(MySqlStore::new(&self.options::<MySql>(prefix).connect().await?)),
            Kind::Sqlite => {
                let path = self.path().unwrap_or(Path::new(""));
                if !path.exists() {
                    let failure = Failure::new(Exit::Missing, format!("there is no database at {}", path.display()));
                    return Err(failure.fix("correct --database, or make it with `aqueduct migrate`"));
                }
                AnyStore::Sqlite(SqliteStore::open(path).await?)
            }
        })
    }

    /// Brings the tables to the version of this program.
    pub(crate) async fn migrate(&self, prefix: &str) -> Result<Migrated, Failure> {
        check(self.kind, prefix)?;
        let migrated = match self.kind {
            Kind::Postgres => self.options::<Postgres>(prefix).migrate().await,
            Kind::MySql => self.options::<MySql>(prefix).migrate().await,
            Kind::Sqlite => SqliteFile::options(self.path().unwrap_or(Path::new(""))).migrate().await,
        };
        Ok(migrated?)
    }
}

/// The SQL that makes the tables, a step for each version.
pub(crate) fn migrations(kind: Kind, prefix: &str) -> Result<Vec<String>, Failure> {
    let steps = match kind {
        Kind::Postgres => PgDatabase::migrations(prefix),
        Kind::MySql => MySqlDatabase::migrations(prefix),
        Kind::Sqlite if prefix == PREFIX => Ok(SqliteFile::migrations()),
        Kind::Sqlite => {
            let failure = Failure::new(Exit::Config, format!("tables in an SQLite file begin with `{PREFIX}` always"));
            return Err(failure.fix("leave out --table-prefix and AQUEDUCT_TABLE_PREFIX"));
        }
    };
    steps.map_err(|error| Failure::new(Exit::Config, error.to_string()))
}

/// Says whether tables can have such names.
fn check(kind: Kind, prefix: &str) -> Result<(), Failure> {
    migrations(kind, prefix).map(drop)
}

/// A store in any database.
#[derive(Clone)]
pub(crate) enum AnyStore {
    Sqlite(SqliteStore),
    Postgres(PgStore),
    MySql(MySqlStore),
}

/// Does the same with a store of any database.
macro_rules! with {
    ($any:expr, $store:ident => $what:expr) => {
        match $any {
            AnyStore::Sqlite($store) => $what,
            AnyStore::Postgres($store) => $what,
            AnyStore::MySql($store) => $what,
        }
    };
}

/// Opens a table that another system has, in a database server.
macro_rules! on_server {
    ($any:expr, $store:ident => $what:expr) => {
        match $any {
            AnyStore::Postgres($store) => $what.map_err(|error| Failure::new(Exit::Config, error.to_string())),
            AnyStore::MySql($store) => $what.map_err(|error| Failure::new(Exit::Config, error.to_string())),
            AnyStore::Sqlite(_) => {
                let failure =
                    Failure::new(Exit::Config, "the tables of other systems are read in database servers alone");
                Err(failure.fix("name a PostgreSQL, MySQL or MariaDB database, or leave out --outbox"))
            }
        }
    };
}

impl AnyStore {
    /// What every store can do.
    pub(crate) fn store(&self) -> &dyn Store {
        with!(self, store => store)
    }

    /// The outbox of services: Aqueduct's own, or the table of another system beside it.
    pub(crate) fn outbox(&self, of: &OutboxSettings) -> Result<OutboxTable, Failure> {
        match of.outbox {
            System::Aqueduct => Ok(with!(self, store => OutboxTable::from(store))),
            System::JetstreamBridge => {
                let outbox = jetstream_bridge::Outbox::new();
                let outbox = of.outbox_table.iter().fold(outbox, jetstream_bridge::Outbox::table);
                on_server!(self, store => outbox.open(store))
            }
            System::Tupic => {
                let (Some(prefix), Some(app)) = (&of.outbox_prefix, &of.outbox_app) else {
                    let failure = Failure::new(Exit::Config, "tupic's messages need the service's prefix and its name");
                    return Err(
                        failure.fix("say them with --outbox-prefix and --outbox-app, or in the section [relay]")
                    );
                };
                let outbox = tupic::Outbox::new(prefix, app);
                let outbox = of.outbox_table.iter().fold(outbox, tupic::Outbox::table);
                on_server!(self, store => outbox.open(store))
            }
        }
    }

    /// Lets a consumer park its events here.
    pub(crate) fn give_to(self, consumer: Consumer) -> Consumer {
        with!(self, store => consumer.store(store))
    }

    pub(crate) async fn shards(&self) -> Result<Vec<ShardStatus>, StoreError> {
        with!(self, store => store.shards().await)
    }

    /// What the inbox holds; none of a file, whose inbox goes with its log.
    pub(crate) async fn inbox_status(&self) -> Option<Result<InboxStatus, StoreError>> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(store) => Some(store.inbox_status().await),
            Self::MySql(store) => Some(store.inbox_status().await),
        }
    }

    /// Forgets where a group stands in a topic; none of a file.
    pub(crate) async fn inbox_forget(&self, group: &str, topic: &str, what: Forget) -> Option<Result<(), StoreError>> {
        match self {
            Self::Sqlite(_) => None,
            Self::Postgres(store) => Some(store.inbox_forget(group, topic, what).await),
            Self::MySql(store) => Some(store.inbox_forget(group, topic, what).await),
        }
    }

    pub(crate) async fn command_all(
        &self,
        commands: Vec<Command>,
    ) -> Result<Vec<Result<CommandId, StoreError>>, StoreError> {
        with!(self, store => store.command_all(commands).await)
    }

    pub(crate) async fn commands_on(
        &self,
        listed: &Listed,
    ) -> Result<Vec<(CommandId, Command, CommandState)>, StoreError> {
        with!(self, store => store.commands_on(listed).await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_shows_a_password() {
        let url = "postgres://shop:secret@db/shop?password=secret";
        assert_eq!(hidden(url), "postgres://(hidden)");
        assert_eq!(hidden(&format!("--database={url}")), "--database=postgres://(hidden)");
        assert_eq!(format!("{:?}", url.parse::<DatabaseUrl>().unwrap()), "postgres://(hidden)");
        for wrong in ["secret", "postgres:secret", "redis://secret", "sqlite:"] {
            assert_eq!(wrong.parse::<DatabaseUrl>().unwrap_err(), FORMS, "{wrong}");
        }
    }

    #[test]
    fn a_database_is_known_by_its_beginning() {
        let kind = |text: &str| text.parse::<DatabaseUrl>().unwrap().kind();
        assert_eq!((kind("postgres://a"), kind("postgresql://a")), (Kind::Postgres, Kind::Postgres));
        assert_eq!((kind("mysql://a"), kind("mariadb://a")), (Kind::MySql, Kind::MySql));
        assert_eq!((kind("sqlite:shop.db"), kind("sqlite:/a/shop.db")), (Kind::Sqlite, Kind::Sqlite));
    }
}
