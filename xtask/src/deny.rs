//! Licences, bans and sources of all dependencies, by cargo-deny.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::run::{cargo, program, show, target_dir};

/// Runs cargo-deny over `deny.toml`; builds it first, once, into the target folder where it is not installed.
pub(crate) fn check() -> Result<()> {
    let tool = match program("cargo-deny", &["--version"]).output() {
        Ok(output) if output.status.success() => PathBuf::from("cargo-deny"),
        _ => own()?,
    };
    let tool = tool.to_str().context("the target folder's name is no text")?;
    show(&mut program(tool, &["--workspace", "--all-features", "check", "bans", "licenses", "sources"]))
}

fn own() -> Result<PathBuf> {
    let tools = target_dir()?.join("tools");
    let tool = tools.join("bin").join(format!("cargo-deny{}", std::env::consts::EXE_SUFFIX));
    if !tool.exists() {
        println!("cargo-deny is not there yet; building it takes some minutes, once");
        show(cargo(&["install", "--locked", "cargo-deny", "--root"]).arg(&tools))?;
    }
    Ok(tool)
}
