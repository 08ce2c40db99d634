//! The settings of `aqueduct consume`.

use aqueduct::Policy;
use aqueduct::format::PlainJson;
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{FormatName, From, Span};

/// The section `[consume]`. Defaults stand in the attributes alone.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "Settings, section [consume]")]
pub(crate) struct ConsumeSettings {
    /// Where a group begins that is new: `beginning`, `new`, or a time such as 2026-01-05T09:00:07Z.
    #[arg(long, value_name = "WHERE", default_value = "beginning")]
    pub(crate) from: From,
    /// Only events of these types, as patterns: `order.*` is one more word, `order.>` one or more. Others are passed over
    /// for good [default: all].
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    pub(crate) types: Vec<String>,
    /// Creates topics that do not exist, instead of refusing them.
    #[arg(long)]
    pub(crate) create_topics: bool,
    /// The formats to read, asked in this order.
    #[arg(long, value_name = "FORMAT", value_enum, value_delimiter = ',', default_value = "cloudevents")]
    pub(crate) format: Vec<FormatName>,
    /// With --format json: the field of the body that is the id [default: the place in the topic].
    #[arg(long, value_name = "FIELD")]
    pub(crate) json_id: Option<String>,
    /// With --format json: the field of the body that is the key [default: the key it was published with].
    #[arg(long, value_name = "FIELD")]
    pub(crate) json_key: Option<String>,
    /// How many events are handled at the same time, of different keys [default: 32, with --exec-stream 256].
    #[arg(long, value_name = "N")]
    pub(crate) concurrency: Option<usize>,
    /// How long one attempt may take.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) timeout: Span,
    /// How long a program has between TERM and KILL.
    #[arg(long, value_name = "TIME", default_value = "2s")]
    pub(crate) kill_after: Span,
    /// How long a graceful stop may take.
    #[arg(long, value_name = "TIME", default_value = "30s")]
    pub(crate) shutdown: Span,
    /// With --exec-stream: how many workers run.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) workers: usize,
    /// With --http: a header of every request, such as `Authorization: Bearer ...`. May be given again.
    #[arg(long, value_name = "NAME: VALUE")]
    pub(crate) http_header: Vec<String>,
    /// Publishes the events that the handler answers with to this topic.
    #[arg(long, value_name = "TOPIC")]
    pub(crate) publish_results: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) failing: FailingSettings,
}

impl ConsumeSettings {
    /// Reading JSON, as the settings say.
    pub(crate) fn plain_json(&self) -> PlainJson {
        let json = PlainJson::new();
        let json = self.json_id.iter().fold(json, |json, field| json.id_field(field.as_str()));
        self.json_key.iter().fold(json, |json, field| json.key_field(field.as_str()))
    }
}

/// What becomes of events that fail; they are keys of `[consume]` too.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[command(next_help_heading = "When an attempt fails, section [consume]")]
pub(crate) struct FailingSettings {
    /// What to do when an event fails.
    #[arg(long, value_name = "POLICY", value_enum, default_value = "ordered")]
    pub(crate) policy: PolicyName,
    /// With --policy ordered: a dead letter holds its key until somebody resolves it, instead of letting it pass.
    #[arg(long)]
    pub(crate) block: bool,
    /// Attempts in quick succession, the first included.
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(crate) quick_attempts: u32,
    /// The longest wait after the first quick attempt; it doubles.
    #[arg(long, value_name = "TIME", default_value = "20ms")]
    pub(crate) quick_delay: Span,
    /// Attempts after that, while the event is parked; then it is a dead letter.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) attempts: u32,
    /// The wait before the first parked attempt; it doubles.
    #[arg(long, value_name = "TIME", default_value = "1s")]
    pub(crate) parked_delay: Span,
    /// The longest wait between parked attempts, at most 24h.
    #[arg(long, value_name = "TIME", default_value = "1h")]
    pub(crate) parked_delay_max: Span,
}

/// A policy of the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum PolicyName {
    /// Keeps keys in order: an event that fails is parked, and its key waits behind it.
    Ordered,
    /// Parks nothing: quick attempts, then a dead letter.
    Fast,
    /// Loses what fails: quick attempts, then a line in the log.
    BestEffort,
}

impl FailingSettings {
    pub(crate) fn policy(&self) -> Policy {
        let policy = match self.policy {
            PolicyName::Ordered => Policy::ordered(),
            PolicyName::Fast => Policy::fast(),
            PolicyName::BestEffort => Policy::best_effort(),
        };
        let policy = if self.block { policy.block() } else { policy };
        policy
            .quick_attempts(self.quick_attempts)
            .quick_delay(self.quick_delay.0)
            .max_attempts(self.attempts)
            .parked_delay(self.parked_delay.0)
            .parked_delay_max(self.parked_delay_max.0)
    }
}
