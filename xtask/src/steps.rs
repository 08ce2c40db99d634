//! The steps of `cargo xtask test`, cheap ones first. The last one ends with the test runner's own lines.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::run::{cargo, rust_files, show};
use crate::servers::{self, Servers};
use crate::{deny, promise, sim, toolchain};

struct Step {
    name: &'static str,
    what: &'static str,
    run: fn() -> Result<()>,
}

const STEPS: &[Step] = &[
    Step { name: "toolchain", what: "the library builds with its rust-version", run: toolchain::check },
    Step { name: "fmt", what: "the sources are formatted", run: || show(&mut cargo(&["fmt", "--all", "--check"])) },
    Step { name: "features", what: "each feature alone, none and all: clippy without a warning", run: features },
    Step { name: "clippy", what: "all targets of all crates: clippy without a warning", run: clippy },
    Step { name: "doc", what: "the documentation builds without a warning", run: doc },
    Step {
        name: "promise",
        what: "the default library has at most 40 crates and no server among them",
        run: promise::check,
    },
    Step { name: "deny", what: "licences, bans and sources of all dependencies", run: deny::check },
    Step { name: "sim", what: "1,000 fixed seeds, and 1,000 derived from the commit", run: sim::fixed_and_derived },
    Step {
        name: "chaos",
        what: "5,000 more fixed seeds, some 20 s (simulator only: no broker needs a server yet)",
        run: || sim::more_fixed(5_000),
    },
    Step { name: "servers", what: "database servers and NATS found or installed", run: servers::install },
    Step { name: "examples", what: "the course runs to its end", run: examples },
    Step {
        name: "build",
        what: "all tests compile",
        run: || show(&mut cargo(&["test", "--workspace", "--all-features", "--no-run"])),
    },
    Step { name: "test", what: "all tests and doc tests, with real servers", run: test },
];

/// Prints the steps.
pub(crate) fn list() {
    for step in STEPS {
        println!("{:<10} {}", step.name, step.what);
    }
}

/// Runs the steps, or only the named ones, to the end; fails if one did, and names all that failed.
pub(crate) fn run(only: &[String]) -> Result<()> {
    if let Some(unknown) = only.iter().find(|n| STEPS.iter().all(|s| s.name != n.as_str())) {
        bail!("there is no step {unknown:?}: `cargo xtask test --list` shows them");
    }
    let chosen: Vec<&Step> = STEPS.iter().filter(|s| only.is_empty() || only.iter().any(|n| n == s.name)).collect();
    let begin = Instant::now();
    let mut failed = Vec::new();
    for (i, step) in chosen.iter().enumerate() {
        let last = i + 1 == chosen.len();
        println!("\n== {}/{} {}: {} (at {})", i + 1, chosen.len(), step.name, step.what, seconds(begin.elapsed()));
        let start = Instant::now();
        match (step.run)() {
            // After the last step the test runner has the last word.
            Ok(()) if last => {}
            Ok(()) => println!("== {} passed in {}", step.name, seconds(start.elapsed())),
            Err(e) => {
                println!("== {} FAILED in {}: {e:#}", step.name, seconds(start.elapsed()));
                failed.push(step.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("failed: {}; run one again with `cargo xtask test --only {}`", failed.join(", "), failed[0]);
    }
    Ok(())
}

fn seconds(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

const LIBRARY: [&str; 5] = ["clippy", "--package", "aqueduct", "--lib", "--no-default-features"];

/// Without the tests: their dependencies would switch on features that the library must not rely on.
fn features() -> Result<()> {
    let warnings = ["--", "--deny", "warnings"];
    show(cargo(&LIBRARY).args(warnings))?;
    let names = promise::features()?;
    for name in &names {
        show(cargo(&LIBRARY).args(["--features", name]).args(warnings))?;
    }
    show(cargo(&LIBRARY).arg("--all-features").args(warnings))
}

fn clippy() -> Result<()> {
    show(&mut cargo(&["clippy", "--workspace", "--all-targets", "--all-features", "--", "--deny", "warnings"]))
}

fn doc() -> Result<()> {
    let mut doc: Command = cargo(&["doc", "--workspace", "--no-deps", "--all-features"]);
    show(doc.env("RUSTDOCFLAGS", "--deny warnings"))
}

fn test() -> Result<()> {
    let servers = Servers::start()?;
    show(cargo(&["test", "--workspace", "--all-features"]).envs(servers.env()))
}

/// Each example, with the features that some of them ask for.
fn examples() -> Result<()> {
    let names = rust_files("aqueduct/examples");
    if names.is_empty() {
        println!("there is no example yet");
    }
    let run = |name: &String| show(&mut cargo(&["run", "--quiet", "--features", "sqlite", "--example", name]));
    names.iter().try_for_each(run)
}
