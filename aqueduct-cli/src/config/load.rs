//! Where settings come from: defaults, the file, the environment, flags.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgMatches, Args};
use figment::providers::{Format, Serialized, Toml};
use figment::value::{Dict, Value};
use figment::{Figment, Metadata, Profile, Provider};
use serde::Serialize;

use super::{FILE, Settings};
use crate::cli::Global;
use crate::database;
use crate::failure::{Exit, Failure};
use crate::suggest::did_you_mean;

const PREFIX: &str = "AQUEDUCT_";

/// Settings whose values are shown to nobody.
pub(crate) const SECRETS: [&str; 2] = ["consume.http_header", "database"];

/// What `aqueduct consume` tells the programs that it starts; no settings.
const TOLD: [&str; 4] = ["AQUEDUCT_ATTEMPT", "AQUEDUCT_EPOCH", "AQUEDUCT_GROUP", "AQUEDUCT_TOPIC"];

/// What begins so tells the tests of Aqueduct where servers are.
const OF_TESTS: &str = "AQUEDUCT_TEST_";

/// The settings and where each comes from.
pub(crate) struct Loaded {
    pub(crate) settings: Settings,
    figment: Figment,
    keys: BTreeSet<String>,
}

/// A setting as it counts.
#[derive(Serialize)]
pub(crate) struct Origin {
    pub(crate) key: String,
    pub(crate) value: serde_json::Value,
    pub(crate) from: String,
}

/// The flags of a command that are settings.
pub(crate) struct Flags(Vec<Layer>);

impl Flags {
    pub(crate) fn none() -> Self {
        Self(Vec::new())
    }

    /// Those of a section that were given on the command line.
    pub(crate) fn of(section: &str, settings: &impl Serialize, matches: &ArgMatches) -> Self {
        let Ok(Value::Dict(_, values)) = Value::serialize(settings) else { return Self::none() };
        let given = values.into_iter().filter(|(key, _)| {
            matches.try_contains_id(key).is_ok() && matches.value_source(key) == Some(ValueSource::CommandLine)
        });
        let layer = |(key, value): (String, Value)| {
            let name = format!("flag --{}", key.replace('_', "-"));
            Layer { name, key: format!("{section}.{key}"), value }
        };
        Self(given.map(layer).collect())
    }
}

/// Reads all sources; refuses what none of them may say.
pub(crate) fn load(global: &Global, flags: Flags) -> Result<Loaded, Failure> {
    let defaults = Value::serialize(Settings::defaults()?).map_err(|e| wrong(&e))?;
    let mut keys = BTreeSet::new();
    flatten("", &defaults, &mut keys);
    let mut figment = Figment::from(Serialized::defaults(defaults));
    if let Some(path) = file(global)? {
        let file = Toml::file_exact(&path);
        check_file(&path, &file, &keys)?;
        figment = figment.merge(file);
    }
    for layer in environment(&keys)? {
        figment = figment.merge(layer);
    }
    let Global { broker, store, database, table_prefix, .. } = global;
    let credentials = global.credentials.as_ref().map(|path| path.display().to_string());
    let named = [
        ("broker", broker),
        ("credentials", &credentials),
        ("store", store),
        ("database", database),
        ("table_prefix", table_prefix),
    ];
    for (key, value) in named {
        if let Some(value) = value {
            let name = format!("flag --{}", key.replace('_', "-"));
            figment = figment.merge(Layer { name, key: key.to_owned(), value: value.clone().into() });
        }
    }
    for layer in flags.0 {
        figment = figment.merge(layer);
    }
    let settings = figment.extract().map_err(|e| wrong(&e))?;
    Ok(Loaded { settings, figment, keys })
}

impl Loaded {
    /// Every setting, its value and its origin, in the order of their names.
    pub(crate) fn origins(&self) -> Vec<Origin> {
        let origin = |key: &String| {
            let value = self.figment.find_value(key).ok()?;
            let value = serde_json::to_value(&value).unwrap_or_default();
            let from = self.figment.find_metadata(key).map_or_else(|| "default".to_owned(), name);
            Some(Origin { key: key.clone(), value, from })
        };
        self.keys.iter().filter_map(origin).collect()
    }
}

impl Settings {
    fn defaults() -> Result<Self, Failure> {
        let broker = "sqlite:aqueduct.db".parse().map_err(|e: String| Failure::new(Exit::Config, e))?;
        let table_prefix = database::PREFIX.to_owned();
        let (publish, consume, relay) = (defaults()?, defaults()?, defaults()?);
        Ok(Self { broker, credentials: None, store: None, database: None, table_prefix, publish, consume, relay })
    }
}

/// What clap makes of no flags.
fn defaults<A: Args>() -> Result<A, Failure> {
    let matches = A::augment_args(clap::Command::new("defaults")).try_get_matches_from(["defaults"]);
    matches.and_then(|matches| A::from_arg_matches(&matches)).map_err(|e| Failure::new(Exit::Config, e.to_string()))
}

/// One setting from one place.
struct Layer {
    name: String,
    key: String,
    value: Value,
}

impl Provider for Layer {
    fn metadata(&self) -> Metadata {
        Metadata::named(self.name.clone())
    }

    fn data(&self) -> Result<figment::value::Map<Profile, Dict>, figment::Error> {
        let value =
            self.key.rsplit('.').fold(self.value.clone(), |value, part| Dict::from([(part.to_owned(), value)]).into());
        Ok(Profile::Default.collect(value.into_dict().unwrap_or_default()))
    }
}

/// The file to read: the one that is named, else the usual one where it exists.
fn file(global: &Global) -> Result<Option<PathBuf>, Failure> {
    match &global.config {
        None => Ok(Some(PathBuf::from(FILE)).filter(|path| path.exists())),
        Some(path) if path.exists() => Ok(Some(path.clone())),
        Some(path) => Err(Failure::new(Exit::Missing, format!("there is no configuration file {}", path.display()))
            .fix("correct the path after --config, or write one with `aqueduct init`")),
    }
}

/// The variables that are settings; any other of our prefix is a mistake.
fn environment(keys: &BTreeSet<String>) -> Result<Vec<Layer>, Failure> {
    let variable = |key: &str| format!("{PREFIX}{}", key.replace('.', "_").to_uppercase());
    let mut layers = Vec::new();
    for (name, value) in std::env::vars_os() {
        let (Some(name), value) = (name.to_str(), value.to_string_lossy()) else { continue };
        if !name.starts_with(PREFIX) || TOLD.contains(&name) || name.starts_with(OF_TESTS) {
            continue;
        }
        let Some(key) = keys.iter().find(|key| variable(key) == name) else {
            let names: BTreeSet<String> = keys.iter().map(|key| variable(key)).collect();
            let failure = Failure::new(Exit::Config, format!("the environment variable {name} is no setting"));
            return Err(failure.fix(meant(name, &names)));
        };
        let value: Value = value.parse().unwrap_or_else(|never| match never {});
        layers.push(Layer { name: format!("environment variable {name}"), key: key.clone(), value });
    }
    Ok(layers)
}

/// Refuses keys that no setting has.
fn check_file(path: &Path, file: &impl Provider, keys: &BTreeSet<String>) -> Result<(), Failure> {
    let broken = |e: figment::Error| {
        let text = e.kind.to_string();
        // Between the place and the reason stands the line itself, which may hold a secret.
        let told: Vec<&str> = text.lines().filter(|line| !line.contains('|')).map(str::trim).collect();
        Failure::new(Exit::Config, format!("{}: {}", path.display(), told.join(": ")))
    };
    let profiles = file.data().map_err(broken)?;
    let mut found = BTreeSet::new();
    for values in profiles.into_values() {
        flatten("", &Value::from(values), &mut found);
    }
    let section = |key: &str| keys.iter().any(|known| known.split('.').next() == Some(key) && known != key);
    let Some(unknown) = found.iter().find(|key| !keys.contains(*key) && !section(key)) else { return Ok(()) };
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let place = line_of(unknown, &text).map_or_else(String::new, |line| format!(", line {line}"));
    let failure = Failure::new(Exit::Config, format!("{}{place}: there is no setting `{unknown}`", path.display()));
    Err(failure.fix(meant(unknown, keys)))
}

fn meant(name: &str, names: &BTreeSet<String>) -> String {
    let question = did_you_mean(name, names.iter().map(String::as_str)).map(|question| question + " ");
    format!("{}`aqueduct config show` lists the settings", question.unwrap_or_default())
}

/// The names of all values below `value`, with dots. An empty table counts as a value.
fn flatten(prefix: &str, value: &Value, keys: &mut BTreeSet<String>) {
    match value.as_dict().filter(|dict| !dict.is_empty() || prefix.is_empty()) {
        None => _ = keys.insert(prefix.to_owned()),
        Some(dict) => {
            for (key, value) in dict {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&name, value, keys);
            }
        }
    }
}

/// The line on which a key stands, as far as can be seen without a parser.
fn line_of(key: &str, text: &str) -> Option<usize> {
    let mut section = String::new();
    text.lines()
        .position(|line| {
            let line = line.trim();
            if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.split(']').next()) {
                section = format!("{}.", name.trim());
                return section.trim_end_matches('.') == key;
            }
            let name = line.split('=').next().unwrap_or_default().trim().trim_matches('"');
            !name.is_empty() && format!("{section}{name}") == key
        })
        .map(|line| line + 1)
}

/// A source in words.
fn name(metadata: &Metadata) -> String {
    match metadata.source.as_ref().and_then(figment::Source::file_path) {
        Some(path) => format!("file {}", path.display()),
        None if metadata.name.starts_with("flag") || metadata.name.starts_with("environment") => {
            metadata.name.to_string()
        }
        None => "default".into(),
    }
}

fn wrong(error: &figment::Error) -> Failure {
    let place = error.metadata.as_ref().map(name).filter(|name| name != "default");
    let key = error.path.join(".");
    if SECRETS.contains(&key.as_str()) {
        let place = place.map(|place| place + ": ").unwrap_or_default();
        let text = format!("{place}`{key}` is not of the right kind (its value is not shown)");
        let fix = if key == "database" { database::FORMS } else { r#"write a list: ["Name: value"]"# };
        return Failure::new(Exit::Config, text).fix(fix);
    }
    let text = match (place, key.is_empty()) {
        (Some(place), false) => format!("{place}: `{key}`: {}", error.kind),
        (Some(place), true) => format!("{place}: {}", error.kind),
        (None, _) => format!("`{key}`: {}", error.kind),
    };
    Failure::new(Exit::Config, text)
}
