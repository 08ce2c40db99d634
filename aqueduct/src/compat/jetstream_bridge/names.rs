//! What the gem calls things on the broker.

use crate::compat::NameError;
use crate::topic::{Text, Topic};

/// Versions of the gem that are alike on the broker.
///
/// The trap: the version in a lock file lags behind the gem's tags, so it may name the generation before. Tell that of a
/// fleet by the subjects on its broker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Generation {
    /// Versions 1.0.1 to 1.2.
    V1_0,
    /// Versions 1.3 to 2.0.0, which call the stream otherwise.
    V1_3,
    /// Versions 2.1 to 3.0.2, with other subjects, and ids in a header that the server does not look at.
    V2_1,
    /// Versions 4.0 to 4.4.1, whose applications have dead letters of their own.
    V4_0,
    /// Versions 4.5.1 to 7.1, which know no environment.
    #[default]
    V4_5,
}

/// The names of one application that speaks with another.
///
/// ```
/// use aqueduct::compat::jetstream_bridge::{Generation, Names};
/// let names = Names::new("orders", "warehouse")?;
/// assert_eq!(names.publish, Names::new("warehouse", "orders")?.subscribe);
/// let names = Names::before_4_5(Generation::V4_0, "production", "api", "worker")?;
/// assert_eq!(names.publish.as_str(), "production.api.sync.worker");
/// assert!(Names::new("api.eu", "worker").unwrap_err().to_string().contains("dots"));
/// # Ok::<(), aqueduct::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Names {
    /// Where the application publishes.
    pub publish: Topic,
    /// What it subscribes to.
    pub subscribe: Topic,
    /// Where its dead letters go.
    pub dead_letters: Topic,
    /// The stream.
    pub stream: Text,
    /// Its durable consumer. Up to version 2.0 an application may have chosen another.
    pub durable: Text,
}

impl Names {
    /// The names from version 4.5 on. Refused if one has what the gem refuses.
    pub fn new(app: impl AsRef<str>, dest: impl AsRef<str>) -> Result<Self, NameError> {
        let (app, dest) = (component("application", app.as_ref())?, component("destination", dest.as_ref())?);
        Ok(Self {
            publish: format!("{app}.sync.{dest}").into(),
            subscribe: format!("{dest}.sync.{app}").into(),
            dead_letters: format!("{app}.sync.dlq").into(),
            stream: Text::from_static("jetstream-bridge-stream"),
            durable: format!("{app}-workers").into(),
        })
    }

    /// The names before version 4.5, which have the environment in them. Refused if one has what the gem refuses, and for a later
    /// generation.
    pub fn before_4_5(
        generation: Generation,
        env: impl AsRef<str>,
        app: impl AsRef<str>,
        dest: impl AsRef<str>,
    ) -> Result<Self, NameError> {
        let env = component("environment", env.as_ref())?;
        let (app, dest) = (component("application", app.as_ref())?, component("destination", dest.as_ref())?);
        let [publish, subscribe, dead_letters] = match generation {
            Generation::V1_0 | Generation::V1_3 => {
                [format!("data.sync.{app}.{dest}"), format!("data.sync.{dest}.{app}"), "data.sync.dlq".to_owned()]
            }
            Generation::V2_1 => [format!("{app}.sync.{dest}"), format!("{dest}.sync.{app}"), "sync.dlq".to_owned()],
            Generation::V4_0 => [format!("{app}.sync.{dest}"), format!("{dest}.sync.{app}"), format!("{app}.sync.dlq")],
            Generation::V4_5 => {
                return Err(NameError::new("environment", env, "from version 4.5 on there is none: use `Names::new`"));
            }
        }
        .map(|rest| Topic::from(format!("{env}.{rest}")));
        let stream = if generation == Generation::V1_0 { "stream-bridge" } else { "jetstream-bridge-stream" };
        let (stream, durable) = (format!("{env}-{stream}").into(), format!("{env}-{app}-workers").into());
        Ok(Self { publish, subscribe, dead_letters, stream, durable })
    }

    /// The subjects that the application wants in the stream, in the gem's order.
    ///
    /// The trap: an application whose subjects are missing there adds them when it starts, and sets the stream's limits
    /// back to their defaults, or fails. List those of all applications before any starts.
    pub fn subjects(&self) -> [&Topic; 3] {
        [&self.publish, &self.subscribe, &self.dead_letters]
    }
}

const COMPONENT_CHARS_MAX: usize = 255;

/// Refuses what the gem refuses in a part of a name.
fn component<'a>(what: &'static str, name: &'a str) -> Result<&'a str, NameError> {
    let problem = if name.trim().is_empty() {
        "it is blank: give it a name"
    } else if name.chars().count() > COMPONENT_CHARS_MAX {
        "it is longer than 255 characters: take a shorter one"
    } else if name.contains(|c: char| matches!(c, '.' | '*' | '>') || c.is_whitespace() || c.is_control()) {
        "it is one part of a subject: take dots, `*`, `>`, blanks and control characters out, such as by putting `-` or `_` there"
    } else {
        return Ok(name);
    };
    Err(NameError::new(what, name, Text::from_static(problem)))
}
