//! `aqueduct topology`: what is to be on a NATS server, and bringing it about.

mod file;
mod permissions;
mod show;

use std::path::{Path, PathBuf};

use aqueduct::BrokerError;
use aqueduct::nats::{NatsBroker, NatsOptions};
use aqueduct::topology::{Access, Topology as Declaration};
use clap::{Args, Subcommand};

use crate::cli::Global;
use crate::config::{Flags, load};
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::nats::connect_only;
use crate::output::{Output, note, print};

const FILE: &str = include_str!("../help/topology.txt");

const APPLY: &str = include_str!("../help/topology-apply.txt");

const VERIFY: &str = include_str!("../help/topology-verify.txt");

const PERMISSIONS: &str = include_str!("../help/topology-permissions.txt");

/// Streams and durables of NATS JetStream as they are declared in a file: what has to be done for it, doing it, and comparing.
#[derive(Args)]
#[command(after_long_help = FILE)]
pub(crate) struct Topology {
    #[command(subcommand)]
    action: Action,
    /// The file in which it is declared.
    #[arg(long, global = true, value_name = "PATH", default_value = "topology.toml")]
    file: PathBuf,
}

#[derive(Subcommand)]
enum Action {
    /// Says what has to be done, and does nothing.
    #[command(after_long_help = FILE)]
    Plan,
    /// Does what has to be done, and looks again.
    #[command(after_long_help = APPLY)]
    Apply(Applying),
    /// Compares what is there, and fails where it is not as declared.
    #[command(after_long_help = VERIFY)]
    Verify(Verifying),
    /// Prints the least that publishers, consumers and operators must be permitted.
    #[command(after_long_help = PERMISSIONS)]
    Permissions(permissions::Printing),
}

#[derive(Args)]
struct Applying {
    /// Does not ask.
    #[arg(short, long)]
    yes: bool,
}

#[derive(Args)]
struct Verifying {
    /// Does not fail where something is missing or otherwise than declared; it is shown.
    #[arg(long)]
    allow_drift: bool,
}

impl Topology {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let declared = file::read(&self.file)?;
        let (consumers, topology) = (declared.consumers(), declared.topology());
        check(&topology, &self.file)?;
        let output = global.output.unwrap_or_default();
        if let Action::Permissions(printing) = self.action {
            return printing.run(&topology, consumers, output);
        }
        let broker = connect_only(&load(global, Flags::none())?.settings).await?;
        match self.action {
            Action::Plan => {
                let plan = topology.plan(&broker).await?;
                print(&show::plan(&plan, output))?;
                show::refused(&plan)
            }
            Action::Verify(verify) => {
                let plan = topology.verify(&broker).await?;
                print(&show::plan(&plan, output))?;
                show::refused(&plan)?;
                show::drift(&plan, verify.allow_drift)
            }
            Action::Apply(apply) => apply.run(&topology, &broker, output).await,
            Action::Permissions(_) => Ok(()),
        }
    }
}

/// Says what is wrong with a declaration before anything is connected: rights are told from the whole of it.
fn check(topology: &Declaration, file: &Path) -> Result<(), Failure> {
    let rights = topology.permissions(&Access::Apply, &NatsOptions::new("nats://localhost"));
    let why = match rights {
        Ok(_) => return Ok(()),
        Err(BrokerError::Refused(why)) => why,
        Err(error) => error.to_string(),
    };
    Err(Failure::new(Exit::Config, format!("{}: {why}", file.display())))
}

impl Applying {
    async fn run(self, topology: &Declaration, broker: &NatsBroker, output: Output) -> Result<(), Failure> {
        let plan = topology.plan(broker).await?;
        if output == Output::Text {
            print(&show::plan(&plan, output))?;
        }
        show::refused(&plan)?;
        let steps = plan.steps().len();
        if steps > 0 && !confirm(&format!("{steps} steps as above"), self.yes)? {
            note("nothing was done");
            return Ok(());
        }
        plan.apply(broker).await?;
        print(&show::applied(&plan, output))
    }
}
