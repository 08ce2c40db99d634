//! The settings of `aqueduct relay`.

use clap::Args;
use serde::{Deserialize, Serialize};

use super::{FormatName, OutboxSettings, Span};

/// The section `[relay]`. Defaults stand in the attributes alone.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Settings, section [relay]")]
pub(crate) struct RelaySettings {
    /// The name by which relays of one database find each other: they share its rows. All have the same one.
    #[arg(long, value_name = "NAME", default_value = "relay")]
    pub(crate) name: String,
    /// The source of rows that do not name theirs [default: the name].
    #[arg(long, value_name = "NAME")]
    pub(crate) source: Option<String>,
    /// Keeps what identifies published rows for so long, in a table `aq_outbox_sent` [default: not at all].
    #[arg(long, value_name = "TIME")]
    pub(crate) audit: Option<Span>,
    /// How events look in the broker.
    #[arg(long, value_name = "FORMAT", value_enum, default_value = "cloudevents")]
    pub(crate) format: FormatName,
    /// Parks rows of a topic that does not exist, instead of creating it.
    #[arg(long)]
    pub(crate) existing_topic: bool,
    #[serde(flatten)]
    #[command(flatten)]
    pub(crate) table: OutboxSettings,
}
