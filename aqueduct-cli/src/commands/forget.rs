//! `aqueduct forget`: a group that is gone for good holds the log no more.

use aqueduct::sqlite::Owner;
use clap::Args;
use serde_json::json;

use super::rows::{existing_broker, owner};
use crate::cli::Global;
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, print};
use crate::suggest::did_you_mean;
use crate::table::count;

const EXAMPLES: &str = include_str!("help/forget.txt");

/// What to do on NATS.
const INSTEAD: &str = "delete what the group has on the server: its bucket with `nats kv del aq_GROUP`, and its readers on the stream with `nats consumer rm`";

/// Forgets how far a group has come that is gone for good, so that the log need not be kept for it.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Forget {
    /// The group.
    group: String,
    /// Does not ask.
    #[arg(short, long)]
    yes: bool,
}

impl Forget {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let broker = existing_broker(global, INSTEAD).await?;
        let status = broker.status().await?;
        let known = || status.consumers.iter().filter(|group| !group.floors.is_empty());
        let Some(group) = known().find(|group| group.consumer == self.group.as_str()) else {
            let failure = Failure::new(Exit::Missing, format!("there is no group `{}`", self.group));
            let question = did_you_mean(&self.group, known().map(|group| group.consumer.as_str()));
            return Err(failure.fix(question.unwrap_or_else(|| "`aqueduct status` lists the groups".into())));
        };
        if group.owner != Owner::Nobody && group.owner != Owner::Unseen {
            let text = format!("group `{}` cannot be forgotten while it runs: {}", self.group, owner(&group.owner));
            return Err(Failure::new(Exit::Busy, text).fix("stop it first"));
        }
        let lag = group.lag();
        let question =
            format!("forget how far group `{}` has come, with {} not read yet", self.group, count(lag, "event"));
        if !confirm(&question, self.yes)? {
            note("nothing was done");
            return Ok(());
        }
        broker.forget(self.group.as_str()).await?;
        match global.output.unwrap_or_default() {
            Output::Json => print(&format!("{}\n", json!({ "forgotten": self.group, "unread": lag }))),
            Output::Text => print(&format!("forgot group {}\n", self.group)),
        }
    }
}
