//! Settings, from defaults, a file, the environment and flags, the later one counting.

mod consume;
mod load;
mod publish;
mod values;

use serde::{Deserialize, Serialize};

use crate::broker::Location;

pub(crate) use consume::ConsumeSettings;
pub(crate) use load::{Flags, Origin, SECRETS, load};
pub(crate) use publish::PublishSettings;
pub(crate) use values::{FormatName, From, Span};

/// The file that is read where no other is named.
pub(crate) const FILE: &str = "aqueduct.toml";

/// Everything that can be set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) broker: Location,
    /// None is the broker's file.
    pub(crate) store: Option<Location>,
    pub(crate) publish: PublishSettings,
    pub(crate) consume: ConsumeSettings,
}
