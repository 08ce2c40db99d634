//! The promise about the oldest toolchain: `rust-version` is one that the library was built with.

use anyhow::{Context, Result, bail};

use crate::run::{program, read, root, show};

/// Fails if the toolchain in use is older than `rust-version`, and builds with that version where it is installed beside a
/// newer one.
pub(crate) fn check() -> Result<()> {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml"))?;
    let least = rust_version(&manifest).context("Cargo.toml has no rust-version")?;
    let said = read(&mut program("rustc", &["--version"]))?;
    let used =
        said.split_whitespace().nth(1).and_then(minor).with_context(|| format!("rustc calls itself {said:?}"))?;
    let wanted = minor(least).with_context(|| format!("rust-version {least:?} is no version"))?;
    if used < wanted {
        bail!("this is {}, and the library needs {least}: `rustup update` brings a newer one", said.trim());
    }
    if used == wanted {
        println!("rust-version {least} is the toolchain in use: every step checks it");
        return Ok(());
    }
    let installed = read(&mut program("rustup", &["toolchain", "list"])).unwrap_or_default();
    let Some(old) = installed.lines().find_map(|l| l.split_whitespace().next().filter(|t| minor(t) == Some(wanted)))
    else {
        println!("rust-version {least} is NOT checked: it is not installed beside {}", said.trim());
        println!("`rustup toolchain install {least}` brings it");
        return Ok(());
    };
    let check = ["run", old, "cargo", "check", "--package", "aqueduct", "--lib", "--all-features"];
    show(program("rustup", &check).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN"))
}

/// The `rust-version` in a manifest.
fn rust_version(manifest: &str) -> Option<&str> {
    let line = manifest.lines().find(|l| l.trim_start().starts_with("rust-version"))?;
    line.split('"').nth(1)
}

/// The first two numbers of a version such as `1.95`, `1.95.0` or `1.95.0-x86_64-unknown-linux-gnu`.
fn minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_their_first_two_numbers() {
        assert_eq!(minor("1.95"), Some((1, 95)));
        assert_eq!(minor("1.95.2-x86_64-unknown-linux-gnu"), Some((1, 95)));
        assert_eq!(minor("stable-x86_64-unknown-linux-gnu"), None);
        assert!(minor("1.100") > minor("1.95"));
    }

    #[test]
    fn the_manifest_names_its_version() {
        assert_eq!(rust_version("[workspace.package]\nrust-version = \"1.95\"\n"), Some("1.95"));
    }
}
