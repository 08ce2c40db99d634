//! MariaDB.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::account::Account;
use crate::address::Address;
use crate::database::{Client, Database};
use crate::folder::{RunFolder, fresh};
use crate::options::Options;
use crate::postgres::data_folder;
use crate::process::read;
use crate::programs::{Kind, Places};
use crate::server::{Ends, Ready, Server, is_server};

const USER: &str = "aqueduct";

/// What a server for tests has otherwise than usual. Commits stay durable: that is under test.
const SETTINGS: [(&str, &str); 10] = [
    ("bind-address", "127.0.0.1"),
    ("socket", ""),
    ("skip-name-resolve", "ON"),
    ("character-set-server", "utf8mb4"),
    ("max-connections", "300"),
    ("innodb-flush-log-at-trx-commit", "1"),
    ("innodb-buffer-pool-size", "32M"),
    ("innodb-log-file-size", LOG_SIZE),
    ("performance-schema", "OFF"),
    ("log-warnings", "1"),
];

/// Small, since it is copied for each server.
const LOG_SIZE: &str = "16M";

/// A database that is not the server's own, and the user with all rights, and nobody without a name: such a user would be preferred to it for connections from this machine.
const RIGHTS: &str = "CREATE DATABASE aqueduct;
FLUSH PRIVILEGES;
DELETE FROM mysql.global_priv WHERE User = '';
FLUSH PRIVILEGES;
CREATE USER 'aqueduct'@'%' IDENTIFIED BY 'aqueduct';
GRANT ALL PRIVILEGES ON *.* TO 'aqueduct'@'%' WITH GRANT OPTION;
";

/// A MariaDB server of a test's own. It ends when dropped.
///
/// Its text is `utf8mb4`, compared without regard to case, as on most servers in the world: a key must say `COLLATE utf8mb4_bin`.
#[derive(Debug)]
pub struct MariaDb {
    server: Server,
    data: PathBuf,
}

is_server!(MariaDb);

impl MariaDb {
    /// Starts a server and waits until it takes connections. Fails, with the end of its log, if it does not; and if MariaDB is not
    /// installed.
    #[allow(clippy::needless_pass_by_value, reason = "as for PostgreSQL, which keeps them for its standby")]
    pub fn start(options: Options) -> Result<Self> {
        let server = program("mariadbd")?;
        let account = Account::of("mysql")?;
        let run = RunFolder::new("mariadb", &account)?;
        let data = data_folder(&options, &run, &account)?;
        if !data.join("mysql").exists() {
            let version = read(Command::new(&server).arg("--version"))?;
            let version = version.split_whitespace().skip_while(|w| *w != "Ver").nth(1).unwrap_or("unknown").to_owned();
            fresh(&format!("mariadb {version}"), &account, &data, |folder| init(&account, folder))?;
        }
        let settings = options.all_settings().to_vec();
        let (folder, scratch) = (data.clone(), run.path().to_owned());
        let line = move |port: u16| {
            let mut line = account.command(&server, Some("KILL"))?;
            line.arg("--no-defaults").args(path("datadir", &folder)).args(path("tmpdir", &scratch));
            line.args(path("pid-file", &scratch.join("pid"))).arg(format!("--port={port}"));
            line.args(SETTINGS.map(|(name, value)| format!("--{name}={value}")));
            line.args(settings.iter().map(|(name, value)| format!("--{name}={value}")));
            Ok(line)
        };
        // It is one process and shares no memory, so that SIGKILL leaves nothing behind.
        let ends = Ends { stop: Signal::TERM, drop: Signal::KILL };
        let ready = Ready::Log("ready for connections");
        let server = Server::start(Kind::MariaDb.name(), run, ready, ends, Box::new(line))?;
        Ok(Self { server, data })
    }

    /// The address of a database on it, for a user with all rights. There always is `aqueduct`.
    pub fn url(&self, database: &str) -> String {
        self.address(database).url()
    }

    fn address(&self, database: &str) -> Address {
        Address {
            scheme: "mysql".into(),
            user: USER.into(),
            password: USER.into(),
            host: "127.0.0.1".into(),
            port: self.port(),
            database: database.to_owned(),
        }
    }

    /// A fresh database on it, which is dropped with the guard.
    pub fn database(&self) -> Result<Database> {
        Database::create(Client::MariaDb, self.address("aqueduct"))
    }

    /// Runs SQL in a database; the answer is one line a row, its fields between tabs.
    pub fn query(&self, database: &str, sql: &str) -> Result<String> {
        Client::MariaDb.query(&self.address(database), sql)
    }

    /// Where its data is.
    pub fn data(&self) -> &Path {
        &self.data
    }
}

fn program(name: &str) -> Result<PathBuf> {
    Places::here().program(Kind::MariaDb, name)
}

/// An option with a path, which need not be text.
fn path(name: &str, path: &Path) -> [std::ffi::OsString; 1] {
    let mut option = std::ffi::OsString::from(format!("--{name}="));
    option.push(path);
    [option]
}

/// Makes fresh data in `data` below a folder.
fn init(account: &Account, folder: &Path) -> Result<()> {
    let data = folder.join("data");
    let log_size = format!("--innodb-log-file-size={LOG_SIZE}");
    let mut install = account.command(&program("mariadb-install-db")?, None)?;
    install.current_dir(folder).arg("--no-defaults").args(path("datadir", &data)).arg(&log_size);
    install.args(["--auth-root-authentication-method=normal", "--skip-test-db", "--skip-name-resolve"]);
    read(&mut install)?;
    // On its own, it reads statements and ends.
    let rights = folder.join("rights.sql");
    std::fs::write(&rights, RIGHTS)?;
    let mut server = account.command(&program("mariadbd")?, None)?;
    server.current_dir(folder).args(["--no-defaults", "--bootstrap"]).args(path("datadir", &data)).arg(&log_size);
    let output = server.stdin(File::open(&rights)?).output().context("cannot start mariadbd")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "mariadbd did not make its user: {said}");
    Ok(())
}
