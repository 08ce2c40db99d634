//! Asking before something is done that cannot be taken back, and who asks for it.

use std::io::{IsTerminal, Write};

use clap::Args;

use crate::database::hidden;
use crate::failure::{Exit, Failure};

/// Asks a question that is answered by yes or no; anything but a yes is a no. Without a terminal nobody can be asked.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<bool, Failure> {
    if yes {
        return Ok(true);
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        let failure = Failure::new(Exit::Usage, format!("nobody can be asked without a terminal: {question}"));
        return Err(failure.then("nothing was done").fix("say --yes if that is what you want"));
    }
    anstream::eprint!("{question}; go on? [y/N] ");
    let mut answer = String::new();
    let read = std::io::stderr().flush().and_then(|()| std::io::stdin().read_line(&mut answer));
    read.map_err(|e| Failure::new(Exit::Failed, "the answer cannot be read").because(&e))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// On whose account something is done.
#[derive(Args)]
pub(crate) struct Account {
    /// Why, for the record [default: this command line].
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
    /// Who, for the record [default: $USER@host].
    #[arg(long, value_name = "NAME")]
    who: Option<String>,
}

impl Account {
    pub(crate) fn who(&self) -> String {
        self.who.clone().unwrap_or_else(who)
    }

    /// A command line may have a password in it, which the record shall not have.
    pub(crate) fn why(&self) -> String {
        let line = || std::env::args().skip(1).map(|argument| hidden(&argument)).collect::<Vec<_>>().join(" ");
        self.why.clone().unwrap_or_else(line)
    }
}

/// Who is at work here, for the record.
fn who() -> String {
    let user = std::env::var("USER").or_else(|_| std::env::var("LOGNAME")).ok().filter(|user| !user.is_empty());
    let user = user.unwrap_or_else(|| format!("uid-{}", rustix::process::getuid().as_raw()));
    let system = rustix::system::uname();
    format!("{user}@{}", system.nodename().to_string_lossy())
}
