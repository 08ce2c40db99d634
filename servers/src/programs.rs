//! Where the programs of the servers are.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

/// A kind of server: what its programs and its package are called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Postgres,
    MariaDb,
    PgBouncer,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Postgres, Self::MariaDb, Self::PgBouncer];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Postgres => "PostgreSQL",
            Self::MariaDb => "MariaDB",
            Self::PgBouncer => "PgBouncer",
        }
    }

    /// The package in Debian 12.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Postgres => "postgresql-15",
            Self::MariaDb => "mariadb-server",
            Self::PgBouncer => "pgbouncer",
        }
    }

    pub(crate) fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Postgres => &["postgres", "initdb", "pg_basebackup", "psql"],
            Self::MariaDb => &["mariadbd", "mariadb-install-db", "mariadb"],
            Self::PgBouncer => &["pgbouncer"],
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
}

impl Places {
    /// Those of this machine.
    pub(crate) fn here() -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self {
            path: std::env::split_paths(&path).collect(),
            versions: "/usr/lib/postgresql".into(),
            system: ["/usr/sbin", "/usr/local/sbin", "/usr/bin", "/usr/local/bin"].map(PathBuf::from).into(),
        }
    }

    /// A program of a server; an error says how to get it.
    pub(crate) fn program(&self, kind: Kind, name: &str) -> Result<PathBuf> {
        let own = if kind == Kind::Postgres { self.postgres() } else { self.system.clone() };
        // What runs on the data of a server must be of its version; a client need not be.
        let found = match kind {
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

    fn missing(&self, kind: Kind, name: &str) -> anyhow::Error {
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
        let nowhere = Places { path: Vec::new(), versions: "/nowhere".into(), system: Vec::new() };
        for kind in Kind::ALL {
            let program = kind.programs()[0];
            let error = nowhere.program(kind, program).unwrap_err().to_string();
            for part in [kind.name(), kind.package(), program, "cargo xtask test", "cargo xtask servers"] {
                assert!(error.contains(part), "{error} does not name {part}");
            }
        }
    }
}
