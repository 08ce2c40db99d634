//! A database for one test.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::account::plain;
use crate::address::Address;
use crate::process::read;
use crate::programs::{Kind, Places};

/// The variable with the address of the PostgreSQL server that tests share, for a user who may create databases.
pub const POSTGRES_VARIABLE: &str = "AQUEDUCT_TEST_POSTGRES";
/// The variable with the address of the MariaDB or MySQL server that tests share, for a user who may create databases.
pub const MARIADB_VARIABLE: &str = "AQUEDUCT_TEST_MARIADB";

/// The variable with the address of the NATS server with JetStream that tests share.
pub const NATS_VARIABLE: &str = "AQUEDUCT_TEST_NATS";

/// The address of the shared NATS server. Fails if none is named in [`NATS_VARIABLE`], and says how to get one.
///
/// A test makes streams with a [`fresh_name`].
pub fn nats_url() -> Result<String> {
    named(NATS_VARIABLE)
}

/// A fresh PostgreSQL database on the shared server. Fails if no server is named in [`POSTGRES_VARIABLE`], and says how to get one.
pub fn postgres_database() -> Result<Database> {
    Database::create(Client::Postgres, shared(POSTGRES_VARIABLE, 5432)?)
}

/// A fresh MariaDB database on the shared server. Fails if no server is named in [`MARIADB_VARIABLE`], and says how to get one.
pub fn mariadb_database() -> Result<Database> {
    Database::create(Client::MariaDb, shared(MARIADB_VARIABLE, 3306)?)
}

fn shared(variable: &str, usual_port: u16) -> Result<Address> {
    Address::parse(&named(variable)?, usual_port).with_context(|| format!("the variable {variable}"))
}

fn named(variable: &str) -> Result<String> {
    std::env::var(variable).ok().filter(|url| !url.is_empty()).with_context(|| {
        format!(
            "{variable} names no server: run the tests with `cargo xtask test`, or start servers with `cargo xtask servers` and \
             copy the lines that it prints"
        )
    })
}

/// A database that is empty at first and dropped with this guard, together with the connections that are still open to it.
#[derive(Debug)]
pub struct Database {
    client: Client,
    /// Of a database that is always there, to create and drop this one.
    server: Address,
    name: String,
}

impl Database {
    pub(crate) fn create(client: Client, server: Address) -> Result<Self> {
        let name = fresh_name()?;
        client.query(&server, &format!("CREATE DATABASE {name}")).with_context(|| {
            format!("cannot create a database on {}:{}; does the server run?", server.host, server.port)
        })?;
        Ok(Self { client, server, name })
    }

    /// Its address, for sqlx and others.
    pub fn url(&self) -> String {
        self.server.database(&self.name).url()
    }

    /// Its name on the server.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs SQL in it; the answer is one line a row, its fields between `|` (PostgreSQL) or tabs (MariaDB).
    pub fn query(&self, sql: &str) -> Result<String> {
        self.client.query(&self.server.database(&self.name), sql)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // A server that the test has ended takes the database with it.
        if let Err(e) = self.client.drop_database(&self.server, &self.name) {
            eprintln!("the database {} was not dropped: {e:#}", self.name);
        }
    }
}

/// A name that no other test has, in this process or another: letters, digits and underscores.
pub fn fresh_name() -> Result<String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis();
    Ok(format!("aqueduct_{}_{}_{now}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)))
}

/// The program that comes with a server to send SQL.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Client {
    Postgres,
    MariaDb,
}

impl Client {
    pub(crate) fn query(self, address: &Address, sql: &str) -> Result<String> {
        match self {
            Self::Postgres => read(self.command(address)?.args(["--command", sql])),
            Self::MariaDb => read(self.command(address)?.args(["--execute", sql])),
        }
    }

    fn command(self, address: &Address) -> Result<Command> {
        match self {
            Self::Postgres => {
                let mut psql = plain(Command::new(Places::here().program(Kind::Postgres, "psql")?));
                psql.env("PGCONNECT_TIMEOUT", "10").args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"]);
                psql.args(["--set", "ON_ERROR_STOP=1", "--dbname", &address.url()]);
                Ok(psql)
            }
            Self::MariaDb => {
                let mut client = plain(Command::new(Places::here().program(Kind::MariaDb, "mariadb")?));
                let Address { user, password, host, port, database, .. } = address;
                client.env("MYSQL_PWD", password).args(["--no-defaults", "--batch", "--skip-column-names"]);
                client.args(["--protocol=tcp", "--connect-timeout=10"]);
                client.args([format!("--host={host}"), format!("--port={port}"), format!("--user={user}")]);
                client.arg(format!("--database={database}"));
                Ok(client)
            }
        }
    }

    /// Drops a database with the connections to it: they may belong to tasks that a test has left behind.
    fn drop_database(self, server: &Address, name: &str) -> Result<()> {
        match self {
            Self::Postgres => self.query(server, &format!("DROP DATABASE {name} WITH (FORCE)")).map(drop),
            Self::MariaDb => {
                // A connection that ends on its own in this moment is no error; one whose tables are still locked shall not hold
                // up the test for a day, which is the default.
                let end = format!(
                    "SET lock_wait_timeout = 30// \
                     BEGIN NOT ATOMIC \
                     DECLARE CONTINUE HANDLER FOR SQLEXCEPTION BEGIN END; \
                     FOR one IN (SELECT id FROM information_schema.processlist WHERE db = '{name}') DO KILL one.id; END FOR; \
                     END// \
                     DROP DATABASE {name}"
                );
                read(self.command(server)?.args(["--delimiter=//", "--execute", &end])).map(drop)
            }
        }
    }
}
