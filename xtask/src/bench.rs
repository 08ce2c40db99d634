//! Benchmarks: programs in `benches` that print lines `name: value (bar B)`.

use anyhow::{Result, bail};

use crate::run::{cargo, rust_files, show};
use crate::servers::Servers;

/// The packages that have benchmarks, and the features that these ask for.
const PACKAGES: [(&str, &str); 2] = [("aqueduct", "sqlite,postgres,mysql,nats,testing"), ("aqueduct-cli", "")];

/// Runs all benchmarks, or the named one; a benchmark that misses its bar ends with an error, and so does this.
pub(crate) fn run(name: Option<&str>) -> Result<()> {
    let mut known = Vec::new();
    for (package, features) in PACKAGES {
        known.extend(rust_files(&format!("{package}/benches")).into_iter().map(|bench| (package, features, bench)));
    }
    if let Some(unknown) = name.filter(|n| !known.iter().any(|(.., k)| k == n)) {
        let names: Vec<&str> = known.iter().map(|(.., bench)| bench.as_str()).collect();
        bail!("there is no benchmark {unknown:?}; there are: {}", names.join(", "));
    }
    for (package, features, bench) in known.iter().filter(|(.., k)| name.is_none_or(|n| n == k)) {
        let sources = [format!("{package}/benches/{bench}.rs"), format!("{package}/benches/{bench}")];
        let servers = Servers::for_sources(&sources.each_ref().map(String::as_str))?;
        let mut run = cargo(&["bench", "--quiet", "--package", package, "--features", features, "--bench", bench]);
        show(run.envs(servers.iter().flat_map(Servers::env)))?;
    }
    Ok(())
}
