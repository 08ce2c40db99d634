//! `aqueduct init`: a configuration file to begin with.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::Path;

use clap::Args;

use crate::cli::Global;
use crate::config::FILE;
use crate::failure::{Exit, Failure};
use crate::output::print;

/// Every setting with its default, as a comment.
const TEMPLATE: &str = include_str!("init.toml");

const EXAMPLES: &str = "\
Examples:
  aqueduct init
  aqueduct init --config /etc/aqueduct.toml";

/// Writes a configuration file in which every setting stands as a comment. An existing file is never overwritten.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Init {}

impl Init {
    pub(crate) fn run(self, global: &Global) -> Result<(), Failure> {
        let Self {} = self;
        let path = global.config.as_deref().unwrap_or(Path::new(FILE));
        let written = File::create_new(path).and_then(|mut file| file.write_all(TEMPLATE.as_bytes()));
        written.map_err(|error| {
            let failure = match error.kind() {
                ErrorKind::AlreadyExists => Failure::new(Exit::Failed, format!("{} exists already", path.display())),
                _ => Failure::new(Exit::Output, format!("{} cannot be written", path.display())).because(&error),
            };
            failure.fix("name another file with --config PATH")
        })?;
        print(&format!("Wrote {}. `aqueduct config show` prints what counts.\n", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use figment::providers::{Format, Toml};
    use figment::{Figment, value::Dict};

    use super::*;

    #[test]
    fn every_setting_stands_in_the_template_with_its_default() {
        let text = TEMPLATE.replace("#: ", "");
        let written: Dict = Figment::from(Toml::string(&text)).extract().unwrap();
        let (broker, credentials, store, database, table_prefix) = (None, None, None, None, None);
        let (config, output, no_color, verbose) = (None, None, false, 0);
        let global = Global { broker, credentials, store, database, table_prefix, config, output, no_color, verbose };
        for setting in crate::config::load(&global, crate::config::Flags::none()).unwrap().origins() {
            let (mut value, mut found) = (figment::value::Value::from(written.clone()), true);
            for part in setting.key.split('.') {
                match value.as_dict().and_then(|dict| dict.get(part)).cloned() {
                    Some(inner) => value = inner,
                    None => found = false,
                }
            }
            assert!(found, "{} is missing", setting.key);
            if !setting.value.is_null() {
                assert_eq!(serde_json::to_value(&value).unwrap(), setting.value, "{}", setting.key);
            }
        }
    }
}
