//! `aqueduct config`: the settings as they count.

use clap::{Args, Subcommand};
use serde_json::Value;

use crate::cli::Global;
use crate::config::{Flags, Origin, SECRETS, load};
use crate::database::hidden;
use crate::failure::Failure;
use crate::location::Location;
use crate::output::{Output, print};

const EXAMPLES: &str = "\
Examples:
  aqueduct config show
  AQUEDUCT_CONSUME_TIMEOUT=5s aqueduct config show
  aqueduct config show --output json";

/// Looks at the settings.
#[derive(Args)]
pub(crate) struct Config {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Prints every setting, its value and where it comes from: a default, the file, a variable or a flag. Secrets are
    /// hidden.
    #[command(after_long_help = EXAMPLES)]
    Show,
}

impl Config {
    pub(crate) fn run(self, global: &Global) -> Result<(), Failure> {
        let Action::Show = self.action;
        let mut settings = load(global, Flags::none())?.origins();
        settings.iter_mut().filter(|setting| SECRETS.contains(&setting.key.as_str())).for_each(hide);
        settings.iter_mut().filter(|setting| setting.key == "broker").for_each(without_login);
        match global.output.unwrap_or_default() {
            Output::Json => print(&format!("{}\n", serde_json::to_string_pretty(&settings).unwrap_or_default())),
            Output::Text => print(&table(&settings)),
        }
    }
}

/// Leaves of each header its name, and of a database what kind it is.
fn hide(setting: &mut Origin) {
    if let Value::String(text) = &mut setting.value {
        *text = hidden(text);
    }
    let headers = setting.value.as_array_mut().into_iter().flatten();
    for header in headers {
        let name = header.as_str().and_then(|text| text.split_once(':')).map_or("", |(name, _)| name);
        *header = Value::from(format!("{name}: (hidden)"));
    }
}

/// Leaves of NATS servers where they are.
fn without_login(broker: &mut Origin) {
    let location = broker.value.as_str().map(str::parse::<Location>);
    broker.value = location.map_or(Value::Null, |known| known.map_or(Value::Null, |known| known.to_string().into()));
}

fn table(settings: &[Origin]) -> String {
    let shown = |setting: &Origin| match &setting.value {
        Value::Null => "(none)".to_owned(),
        value => value.to_string(),
    };
    let line = |setting: &Origin| format!("{:<25} {:<28} {}\n", setting.key, shown(setting), setting.from);
    settings.iter().map(line).collect()
}
