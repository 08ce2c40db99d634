//! Which table is the outbox: Aqueduct's own, or that of another system.

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

/// A part of the section `[relay]`, which `aqueduct outbox` knows too.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Settings, section [relay]")]
pub(crate) struct OutboxSettings {
    /// Whose table the rows are in; that of another system is in the same database as Aqueduct's own.
    #[arg(long, global = true, value_name = "SYSTEM", value_enum, default_value = "aqueduct")]
    pub(crate) outbox: System,
    /// The name of that table, where it is another than the system's own.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) outbox_table: Option<String>,
    /// What tupic's subjects begin with.
    #[arg(long, global = true, value_name = "PREFIX")]
    pub(crate) outbox_prefix: Option<String>,
    /// What tupic's service calls itself: its slug.
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) outbox_app: Option<String>,
}

/// A system that has an outbox table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub(crate) enum System {
    /// Aqueduct's own.
    Aqueduct,
    /// That of the Ruby gem.
    JetstreamBridge,
    /// That of the Go modules.
    Tupic,
}
