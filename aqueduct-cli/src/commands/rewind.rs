//! `aqueduct rewind`: a group reads again what its database has lost.

use std::str::FromStr;

use aqueduct::{BrokerError, Partition, Position};
use clap::Args;
use serde_json::json;

use super::rows::existing_broker;
use crate::cli::Global;
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, print};

const EXAMPLES: &str = include_str!("help/rewind.txt");

/// What to do on NATS.
const INSTEAD: &str = "consume under another --group, with --from where it is to begin";

/// Moves a group back in a partition, so that it reads again what comes after.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Rewind {
    /// The group.
    #[arg(long)]
    group: String,
    /// The topic.
    #[arg(long)]
    topic: String,
    /// The number of the partition.
    #[arg(long)]
    partition: u32,
    /// The last position that is not read again, or `none`.
    #[arg(long, value_name = "POSITION")]
    to: To,
    /// Does not ask.
    #[arg(short, long)]
    yes: bool,
}

#[derive(Clone, Copy)]
struct To(Option<u64>);

impl FromStr for To {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            _ => {
                text.parse().map(|to| Self(Some(to))).map_err(|_| "write a position, such as 4711, or none".to_owned())
            }
        }
    }
}

impl Rewind {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let broker = existing_broker(global, INSTEAD).await?;
        let partition = Partition { topic: self.topic.as_str().into(), index: self.partition };
        let to = self.to.0.map_or("the beginning".to_owned(), |to| to.to_string());
        let question =
            format!("move group `{}` back in {partition} to {to}, and let it read again what comes after", self.group);
        if !confirm(&question, self.yes)? {
            note("nothing was done");
            return Ok(());
        }
        // Positions in a file begin with 1.
        let position = Position(self.to.0.unwrap_or(0));
        broker.rewind(self.group.as_str(), &partition, position).await.map_err(|error| match error {
            BrokerError::Refused(why) => {
                Failure::new(Exit::Data, why).fix("`aqueduct status` shows the groups, and how far they have come")
            }
            other => other.into(),
        })?;
        print(&match global.output.unwrap_or_default() {
            Output::Json => {
                let partition = partition.to_string();
                format!("{}\n", json!({ "rewound": self.group, "partition": partition, "to": self.to.0 }))
            }
            Output::Text => format!("group {} reads {partition} again from {to}\n", self.group),
        })
    }
}
