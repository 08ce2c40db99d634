//! Benchmarks: programs in `aqueduct/benches` that print lines `name: value (bar B)`.

use anyhow::{Result, bail};

use crate::run::{cargo, rust_files, show};

/// Runs all benchmarks, or the named one; a benchmark that misses its bar ends with an error, and so does this.
pub(crate) fn run(name: Option<&str>) -> Result<()> {
    let known = rust_files("aqueduct/benches");
    if known.is_empty() {
        bail!("there is no benchmark yet in aqueduct/benches");
    }
    if let Some(unknown) = name.filter(|n| !known.iter().any(|k| k == n)) {
        bail!("there is no benchmark {unknown:?}; there are: {}", known.join(", "));
    }
    for bench in known.iter().filter(|k| name.is_none_or(|n| n == k.as_str())) {
        let features = "sqlite,testing";
        show(&mut cargo(&["bench", "--quiet", "--package", "aqueduct", "--features", features, "--bench", bench]))?;
    }
    Ok(())
}
