//! The account that a server runs as: database servers refuse to be root.

use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::read;
use crate::programs::Places;

/// Who runs a server.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    /// None: the same as this process.
    other: Option<Other>,
}

#[derive(Clone, Debug)]
struct Other {
    name: String,
    user: u32,
    group: u32,
}

impl Account {
    /// The account of a server: ours, or, when we are root, the one that its package made, or else nobody's.
    pub(crate) fn of(server: &str) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { other: None });
        }
        let other = [server, "nobody"].into_iter().find_map(|name| {
            let id = |what: &str| read(Command::new("id").args([what, name])).ok()?.parse().ok();
            Some(Other { name: name.to_owned(), user: id("-u")?, group: id("-g")? })
        });
        Ok(Self { other: Some(other.context("there is no account `nobody` that could run a server")?) })
    }

    /// Ours, for a server that does not mind.
    pub(crate) fn own() -> Self {
        Self { other: None }
    }

    /// The name for the cache of what was made as this account.
    pub(crate) fn name(&self) -> &str {
        self.other.as_ref().map_or("self", |other| &other.name)
    }

    /// A program run as this account. `when_orphaned`: the signal it gets when the thread that started it is no more; where there
    /// is no `setpriv`, it gets none.
    pub(crate) fn command(&self, program: &Path, when_orphaned: Option<&str>) -> Result<Command> {
        let Some(setpriv) = Places::here().find("setpriv", &[]) else {
            if self.other.is_some() {
                bail!("root cannot start a server as somebody else without `setpriv` (util-linux)");
            }
            return Ok(plain(Command::new(program)));
        };
        let mut command = Command::new(setpriv);
        if let Some(Other { name, group, .. }) = &self.other {
            command.args([format!("--reuid={name}"), format!("--regid={group}"), "--init-groups".to_owned()]);
        }
        if let Some(signal) = when_orphaned {
            command.arg(format!("--pdeathsig={signal}"));
        }
        if command.get_args().count() == 0 {
            return Ok(plain(Command::new(program)));
        }
        command.arg("--").arg(program);
        Ok(plain(command))
    }

    /// Gives a file or a folder, without what is in it, to the account.
    pub(crate) fn give(&self, path: &Path) -> Result<()> {
        let Some(Other { user, group, name }) = &self.other else { return Ok(()) };
        chown(path, Some(*user), Some(*group)).with_context(|| format!("cannot give {} to {name}", path.display()))
    }
}

/// Without what the user's own settings would change about servers and their clients.
pub(crate) fn plain(mut command: Command) -> Command {
    let ours = |name: &str| ["PG", "MYSQL", "MARIADB"].iter().any(|p| name.starts_with(p));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(ours)) {
        command.env_remove(name);
    }
    command.env("LC_ALL", "C");
    command
}
