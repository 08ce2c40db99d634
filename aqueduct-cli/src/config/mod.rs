//! Settings, from defaults, a file, the environment and flags, the later one counting.

mod consume;
mod load;
mod outbox;
mod publish;
mod relay;
mod values;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::database::DatabaseUrl;
use crate::failure::{Exit, Failure};
use crate::location::{FilePath, Location};

pub(crate) use consume::ConsumeSettings;
pub(crate) use load::{Flags, Origin, SECRETS, load};
pub(crate) use outbox::{OutboxSettings, System};
pub(crate) use publish::PublishSettings;
pub(crate) use relay::RelaySettings;
pub(crate) use values::{FormatName, From, Span};

/// The file that is read where no other is named.
pub(crate) const FILE: &str = "aqueduct.toml";

/// Everything that can be set.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) broker: Location,
    /// Of a NATS user.
    pub(crate) credentials: Option<PathBuf>,
    /// None is the database, or the broker's file if there is none.
    pub(crate) store: Option<FilePath>,
    pub(crate) database: Option<DatabaseUrl>,
    pub(crate) table_prefix: String,
    pub(crate) publish: PublishSettings,
    pub(crate) consume: ConsumeSettings,
    pub(crate) relay: RelaySettings,
}

impl Settings {
    /// The database, for what cannot do without.
    pub(crate) fn database(&self) -> Result<&DatabaseUrl, Failure> {
        self.database.as_ref().ok_or_else(|| {
            Failure::new(Exit::Config, "which database is not said")
                .fix("name it with --database, with the variable AQUEDUCT_DATABASE or as `database` in aqueduct.toml")
        })
    }
}
