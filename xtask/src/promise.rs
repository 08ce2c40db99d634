//! The promise about dependencies: few crates, and none that a library of this kind has no business with.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};

use crate::run::{cargo, read, root};

/// The most crates that the default library may consist of, itself included.
const CRATES_MAX: usize = 40;

/// Servers, web frameworks, command-line parsers, and the clients that only a feature may bring.
const BANNED: &[&str] = &[
    "actix-web",
    "argh",
    "async-nats",
    "axum",
    "clap",
    "hyper",
    "mysql_async",
    "poem",
    "rdkafka",
    "reqwest",
    "rocket",
    "rusqlite",
    "salvo",
    "scylla",
    "sqlx",
    "structopt",
    "tide",
    "tiny_http",
    "tokio-postgres",
    "tonic",
    "warp",
];

/// Counts the crates of the default library and looks for banned ones.
pub(crate) fn check() -> Result<()> {
    let tree = read(&mut cargo(&["tree", "--edges", "no-dev", "--package", "aqueduct", "--prefix", "none"]))?;
    let crates = crates(&tree);
    println!("the default library: {} crates (bar {CRATES_MAX})", crates.len());
    let banned: Vec<_> = crates.iter().filter(|(name, _)| BANNED.contains(name)).map(|(name, _)| *name).collect();
    if !banned.is_empty() {
        bail!("the default library brings {}: put it behind a feature", banned.join(", "));
    }
    if crates.len() > CRATES_MAX {
        bail!("the default library has {} crates, {CRATES_MAX} are promised", crates.len());
    }
    Ok(())
}

/// The features of the library, without `default`.
pub(crate) fn features() -> Result<Vec<String>> {
    let path = root().join("aqueduct/Cargo.toml");
    Ok(feature_names(&std::fs::read_to_string(&path).with_context(|| path.display().to_string())?))
}

/// Name and version of each crate in the output of `cargo tree --prefix none`, each once.
fn crates(tree: &str) -> BTreeSet<(&str, &str)> {
    tree.lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(n, rest)| (n, rest.split(' ').next().unwrap_or(rest)))
        .collect()
}

fn feature_names(manifest: &str) -> Vec<String> {
    let section = manifest.lines().skip_while(|l| l.trim() != "[features]").skip(1).take_while(|l| !l.starts_with('['));
    let names = section.filter(|l| !l.trim_start().starts_with('#')).filter_map(|l| l.split_once('='));
    names.map(|(name, _)| name.trim().to_owned()).filter(|n| n != "default").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crate_that_is_named_twice_counts_once_and_two_versions_count_twice() {
        let tree = "aqueduct v0.1.0 (/x)\nsyn v2.0.1\nsyn v3.0.0\nsyn v3.0.0 (*)\nserde_derive v1.0.0 (proc-macro)\n\n";
        let names: Vec<_> = crates(tree).into_iter().map(|(n, _)| n).collect();
        assert_eq!(names, ["aqueduct", "serde_derive", "syn", "syn"]);
    }

    #[test]
    fn features_are_read_from_their_section_only() {
        let manifest = "[package]\nname = \"a\"\n[features]\ndefault = []\n# note = 1\ntesting = [\"x\"]\nsql = []\n[dependencies]\nb = \"1\"\n";
        assert_eq!(feature_names(manifest), ["testing", "sql"]);
    }
}
