//! The servers that tests share.

use std::path::Path;

use anyhow::{Context, Result};
use aqueduct_servers::{MARIADB_VARIABLE, MariaDb, NATS_VARIABLE, Nats, Options, POSTGRES_VARIABLE, Postgres};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::run::root;

/// Running servers, until this is dropped. One that the environment names already is used instead, and stays.
pub(crate) struct Servers {
    env: Vec<(&'static str, String)>,
    _postgres: Option<Postgres>,
    _mariadb: Option<MariaDb>,
    _nats: Option<Nats>,
}

impl Servers {
    /// Installs what is missing and starts what nobody has started.
    pub(crate) fn start() -> Result<Self> {
        install()?;
        let wanted = |variable| std::env::var_os(variable).is_none_or(|url| url.is_empty());
        let postgres = wanted(POSTGRES_VARIABLE).then(|| Postgres::start(Options::new())).transpose()?;
        let mariadb = wanted(MARIADB_VARIABLE).then(|| MariaDb::start(Options::new())).transpose()?;
        let nats = wanted(NATS_VARIABLE).then(|| Nats::start(Options::new())).transpose()?;
        let urls = [
            (POSTGRES_VARIABLE, postgres.as_ref().map(|s| s.url("postgres"))),
            (MARIADB_VARIABLE, mariadb.as_ref().map(|s| s.url("aqueduct"))),
            (NATS_VARIABLE, nats.as_ref().map(Nats::url)),
        ];
        let env = urls.into_iter().filter_map(|(variable, url)| Some((variable, url?))).collect();
        Ok(Self { env, _postgres: postgres, _mariadb: mariadb, _nats: nats })
    }

    /// Starts servers for programs whose sources, a file or a folder below the root, name them; for others it takes no time.
    pub(crate) fn for_sources(paths: &[&str]) -> Result<Option<Self>> {
        paths.iter().any(|path| names_servers(&root().join(path))).then(Self::start).transpose()
    }

    /// What programs need in their environment to find them.
    pub(crate) fn env(&self) -> Vec<(&'static str, String)> {
        self.env.clone()
    }
}

/// Installs the servers that are missing.
pub(crate) fn install() -> Result<()> {
    aqueduct_servers::install().context("the tests of stores and brokers need real servers")
}

/// Starts servers, prints where they are, and ends them at Ctrl-C.
pub(crate) fn run() -> Result<()> {
    // Before the first server, so that none is left behind.
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    let servers = Servers::start()?;
    for (variable, url) in servers.env() {
        println!("export {variable}={url}");
    }
    eprintln!("The servers run until Ctrl-C. Copy the lines above to where you run `cargo test`.");
    signals.forever().next();
    Ok(())
}

/// True if a file, or one in a folder, is about servers.
fn names_servers(path: &Path) -> bool {
    if path.is_dir() {
        return std::fs::read_dir(path).into_iter().flatten().flatten().any(|entry| names_servers(&entry.path()));
    }
    let names = ["aqueduct_servers", POSTGRES_VARIABLE, MARIADB_VARIABLE, NATS_VARIABLE];
    std::fs::read_to_string(path).is_ok_and(|text| names.iter().any(|name| text.contains(name)))
}
