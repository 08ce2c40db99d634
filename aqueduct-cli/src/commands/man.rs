//! `aqueduct man`: the manual.

use clap::Args;

use crate::cli;
use crate::failure::{Exit, Failure};
use crate::output::print;

const EXAMPLES: &str = "\
Examples:
  aqueduct man > ~/.local/share/man/man1/aqueduct.1
  aqueduct man consume | man -l -";

/// Prints the manual page, of the program or of one command.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Man {
    /// The command.
    command: Option<String>,
}

impl Man {
    pub(crate) fn run(self) -> Result<(), Failure> {
        let mut whole = cli::command(true);
        whole.build();
        let page = match &self.command {
            None => whole,
            Some(name) => whole.find_subcommand(name).cloned().ok_or_else(|| {
                Failure::new(Exit::Usage, format!("there is no command `{name}`")).fix("`aqueduct --help` lists them")
            })?,
        };
        let mut text = Vec::new();
        let rendered = clap_mangen::Man::new(page).render(&mut text);
        rendered.map_err(|e| Failure::new(Exit::Failed, "the manual cannot be made").because(&e))?;
        print(&String::from_utf8_lossy(&text))
    }
}
