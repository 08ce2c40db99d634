//! PostgreSQL.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::account::{Account, plain};
use crate::address::Address;
use crate::database::{Client, Database};
use crate::folder::{RunFolder, fresh};
use crate::options::Options;
use crate::process::read;
use crate::programs::{Kind, Places};
use crate::server::{Ends, Ready, Server, is_server};

const USER: &str = "aqueduct";

/// What a server for tests has otherwise than usual. Commits stay durable: that is under test.
const SETTINGS: &[(&str, &str)] = &[
    ("listen_addresses", "127.0.0.1"),
    ("unix_socket_directories", ""),
    ("max_connections", "200"),
    ("shared_buffers", "32MB"),
    // After a crash and on a standby, one call instead of one for each of a thousand files.
    #[cfg(target_os = "linux")]
    ("recovery_init_sync_method", "syncfs"),
];

/// A PostgreSQL server of a test's own. It ends when dropped.
///
/// Its databases sort text as people do and not by bytes, as most servers in the world: a query that relies on the order of bytes
/// must say `COLLATE "C"`.
#[derive(Debug)]
pub struct Postgres {
    server: Server,
    options: Options,
    data: PathBuf,
}

is_server!(Postgres);

impl Postgres {
    /// Starts a server and waits until it takes connections. Fails, with the end of its log, if it does not; and if PostgreSQL is not
    /// installed.
    pub fn start(options: Options) -> Result<Self> {
        let account = Account::of("postgres")?;
        let run = RunFolder::new("postgres", &account)?;
        let data = data_folder(&options, &run, &account)?;
        if !data.join("PG_VERSION").exists() {
            let postgres = program("postgres")?;
            let version = read(Command::new(&postgres).arg("--version"))?;
            fresh(&version, &account, &data, |folder| init(&account, folder))?;
        }
        Self::start_on(run, account, data, options)
    }

    fn start_on(run: RunFolder, account: Account, data: PathBuf, options: Options) -> Result<Self> {
        let postgres = program("postgres")?;
        let ready = Ready::Postmaster(data.join("postmaster.pid"));
        // At once, but not by SIGKILL: shared memory would outlive it.
        let ends = Ends { stop: Signal::INT, drop: Signal::QUIT };
        let own = options.all_settings().to_vec();
        let folder = data.clone();
        let line = move |port: u16| {
            let mut line = account.command(&postgres, Some("QUIT"))?;
            line.arg("-D").arg(&folder).args(["-p", &port.to_string()]);
            let usual = SETTINGS.iter().map(|(name, value)| format!("{name}={value}"));
            let own = own.iter().map(|(name, value)| format!("{name}={value}"));
            line.args(usual.chain(own).flat_map(|setting| ["-c".to_owned(), setting]));
            Ok(line)
        };
        let server = Server::start(Kind::Postgres.name(), run, ready, ends, Box::new(line))?;
        Ok(Self { server, options, data })
    }

    /// The address of a database on it, for a user with all rights. There always is `postgres`.
    pub fn url(&self, database: &str) -> String {
        self.address(database).url()
    }

    fn address(&self, database: &str) -> Address {
        Address {
            scheme: "postgres".into(),
            user: USER.into(),
            password: USER.into(),
            host: "127.0.0.1".into(),
            port: self.port(),
            database: database.to_owned(),
        }
    }

    /// A fresh database on it, which is dropped with the guard.
    pub fn database(&self) -> Result<Database> {
        Database::create(Client::Postgres, self.address("postgres"))
    }

    /// Runs SQL in a database; the answer is one line a row, its fields between `|`.
    pub fn query(&self, database: &str, sql: &str) -> Result<String> {
        Client::Postgres.query(&self.address(database), sql)
    }

    /// Where its data is.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Starts a standby that follows it asynchronously, with the same settings and a port of its own. It takes queries when this
    /// returns; what was committed just before may come a moment later.
    pub fn standby(&self) -> Result<Self> {
        let account = Account::of("postgres")?;
        let run = RunFolder::new("standby", &account)?;
        let data = run.path().join("data");
        let mut backup = account.command(&program("pg_basebackup")?, None)?;
        backup.current_dir(run.path()).arg("--pgdata").arg(&data).args(["--write-recovery-conf", "--no-sync"]);
        backup.args(["--checkpoint=fast", "--wal-method=stream", "--dbname", &self.url("postgres")]);
        read(&mut backup).context("a copy for the standby")?;
        Self::start_on(run, account, data, self.options.elsewhere())
    }

    /// Makes a standby a server that takes writes; answers when it does. The server that it followed is not told.
    pub fn promote(&self) -> Result<()> {
        let done = self.query("postgres", "SELECT pg_promote(true, 60)")?;
        if done != "t" {
            bail!("the standby was not promoted within 60 s; the end of its log:\n{}", self.log_tail(20));
        }
        Ok(())
    }
}

fn program(name: &str) -> Result<PathBuf> {
    Places::here().program(Kind::Postgres, name)
}

/// The folder `data` where the options want it, which may exist already.
pub(crate) fn data_folder(options: &Options, run: &RunFolder, account: &Account) -> Result<PathBuf> {
    let Some(folder) = options.own_folder() else { return Ok(run.path().join("data")) };
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    account.give(folder)?;
    Ok(folder.canonicalize()?.join("data"))
}

/// Makes fresh data in `data` below a folder. The order of text is that of the ICU library, which is the same on all systems, and
/// differs from that of bytes: a query that confuses the two must fail here and not at a user's.
fn init(account: &Account, folder: &Path) -> Result<()> {
    let mut init = plain(account.command(&program("initdb")?, None)?);
    init.current_dir(folder).arg("--pgdata").arg(folder.join("data")).args(["--username", USER, "--auth=trust"]);
    init.args(["--no-sync", "--no-instructions", "--encoding=UTF8", "--locale=C"]);
    init.args(["--locale-provider=icu", "--icu-locale=en-US"]);
    read(&mut init).map(drop)
}
