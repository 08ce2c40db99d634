//! Builds and runs the simulator's runner, `src/bin/sim.rs`.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::run::{cargo, program, read, show};

/// How many seeds CI runs of each sort.
const CI_SEEDS: u64 = 1_000;

/// Runs `count` seeds from `from` on.
pub(crate) fn seeds(from: u64, count: u64) -> Result<()> {
    runner(&["--from", &from.to_string(), "--seeds", &count.to_string()])
}

/// Runs fresh seeds for some seconds.
pub(crate) fn chaos(seconds: u64) -> Result<()> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    let from = now.as_secs() << 20;
    runner(&["--from", &from.to_string(), "--seconds", &seconds.to_string()])
}

/// The same for CI, with seeds that never change: what is red there was broken by the change.
pub(crate) fn more_fixed(count: u64) -> Result<()> {
    seeds(500_000, count)
}

/// The first seeds, which never change, and as many that no other commit has.
pub(crate) fn fixed_and_derived() -> Result<()> {
    seeds(0, CI_SEEDS)?;
    seeds(commit_seed()?, CI_SEEDS)
}

fn commit_seed() -> Result<u64> {
    let commit = read(&mut program("git", &["rev-parse", "HEAD"])).context("the commit gives half of the seeds")?;
    seed_of(commit.trim())
}

/// The first 12 digits of a commit's hash as a number: far from the end of `u64`, and short enough to type.
fn seed_of(commit: &str) -> Result<u64> {
    let digits = commit.get(..12).with_context(|| format!("{commit:?} is no commit"))?;
    u64::from_str_radix(digits, 16).with_context(|| format!("{commit:?} is no commit"))
}

/// With the profile of the tests, so that it shares its dependencies with them.
fn runner(args: &[&str]) -> Result<()> {
    let run = ["run", "--quiet", "--package", "xtask", "--bin", "sim", "--features", "sim", "--profile", "test", "--"];
    show(cargo(&run).args(args))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_gives_a_seed_and_rubbish_none() {
        assert_eq!(seed_of("00000000000aff00ff00").unwrap(), 10);
        assert!(seed_of("not a commit").is_err());
        assert!(seed_of("abc").is_err());
    }
}
