//! The settings of `aqueduct publish`.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::FormatName;

/// The section `[publish]`. Defaults stand in the attributes alone.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Settings, section [publish]")]
pub(crate) struct PublishSettings {
    /// How events look in the broker.
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "cloudevents")]
    pub(crate) format: FormatName,
    /// The source of events that do not name theirs. An event is known by its source and its id.
    #[arg(long, value_name = "NAME", default_value = "aqueduct")]
    pub(crate) source: String,
    /// Refuses a topic that does not exist, instead of creating it.
    #[arg(long)]
    pub(crate) existing_topic: bool,
}
