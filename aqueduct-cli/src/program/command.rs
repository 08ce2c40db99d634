//! The command line of a program.

use std::path::Path;
use std::process::Stdio;

use tokio::process::Command;

use crate::failure::{Exit, Failure};

/// A program and its arguments.
#[derive(Clone, Debug)]
pub(crate) struct CommandLine {
    program: String,
    arguments: Vec<String>,
}

impl CommandLine {
    /// Splits it into words as a shell does, and says at once if there is no such program.
    pub(crate) fn parse(text: &str) -> Result<Self, Failure> {
        let words = shlex::split(text).filter(|words| !words.is_empty()).map(Vec::into_iter);
        let Some((mut words, program)) = words.and_then(|mut words| words.next().map(|program| (words, program)))
        else {
            let failure = Failure::new(Exit::Usage, format!("`{text}` is no command line"));
            return Err(failure.fix("close its quotes; for pipes and the like write \"sh -c '...'\""));
        };
        find(&program)?;
        Ok(Self { program, arguments: words.by_ref().collect() })
    }

    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// To be started at the head of a process group of its own, so that it can be ended with all that it starts.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).process_group(0).stdin(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Says what is wrong if no program of this name can be started.
fn find(program: &str) -> Result<(), Failure> {
    let missing = |text: String| Failure::new(Exit::NoProgram, text);
    let path = Path::new(program);
    if program.contains('/') {
        return match path.metadata() {
            Ok(metadata) if metadata.is_file() && is_executable(&metadata) => Ok(()),
            Ok(_) => {
                Err(missing(format!("`{program}` is no program that may be run")).fix(format!("chmod +x {program}")))
            }
            Err(error) => Err(missing(format!("the program `{program}` does not exist")).because(&error)),
        };
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let runs = |folder: std::path::PathBuf| {
        folder.join(program).metadata().is_ok_and(|metadata| metadata.is_file() && is_executable(&metadata))
    };
    if std::env::split_paths(&folders).any(runs) {
        return Ok(());
    }
    let fix = if path.exists() {
        format!("write ./{program} for the one in this folder")
    } else {
        "correct its name, or give its path".to_owned()
    };
    Err(missing(format!("the program `{program}` is not found in PATH")).fix(fix))
}

#[cfg(unix)]
fn is_executable(metadata: &std::fs::Metadata) -> bool {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o111 != 0
}

#[cfg(not(unix))]
fn is_executable(_: &std::fs::Metadata) -> bool {
    true
}
