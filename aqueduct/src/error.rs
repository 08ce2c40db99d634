//! What can go wrong, and whose fault it is.

use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use crate::topic::{Epoch, Partition, Topic, TopicError};

/// Any error that can be sent between threads.
pub type BoxError = Box<dyn StdError + Send + Sync>;

/// A result whose error defaults to [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Trying again may help; what an error is unless something says otherwise.
    Transient,
    /// Trying again cannot help: the event becomes a dead letter.
    Permanent,
    /// Trying again may help, but not before this delay.
    RetryAfter(Duration),
    /// It may succeed if tried again, and the event is not at fault: a database that is full, locked or gone, a commit that
    /// failed for another. It is tried again without spending an attempt, for as long as it takes.
    Uncounted,
}

/// The error of handlers and extractors: any other error converts into it with `?`.
///
/// It is transient unless [`permanent`](Self::permanent), [`retry_after`](Self::retry_after) or the route's
/// [`Policy::classify`](crate::Policy) says otherwise. Like `anyhow::Error` it does not implement
/// [`std::error::Error`] itself; it converts into a [`BoxError`].
///
/// ```
/// use aqueduct::{Error, Fault, FaultExt};
/// let err: Error = "twelve".parse::<u8>().permanent().unwrap_err();
/// assert_eq!(err.fault(), Some(Fault::Permanent));
/// ```
pub struct Error(Box<Classified>);

/// An error with its fault, in a form that implements [`std::error::Error`] and so survives a trip through [`BoxError`].
#[derive(Debug)]
struct Classified {
    fault: Option<Fault>,
    source: BoxError,
}

/// An error with a text that says more than its own.
#[cfg(any(feature = "postgres", feature = "mysql"))]
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Explained {
    text: String,
    source: BoxError,
}

impl fmt::Display for Classified {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl StdError for Classified {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.source()
    }
}

impl Error {
    /// An error that is only a message.
    pub fn msg(message: impl Into<String>) -> Self {
        Self::boxed(message.into().into())
    }

    /// Takes over a boxed error and the fault that it, or an error below it, carries.
    pub fn boxed(source: BoxError) -> Self {
        match source.downcast::<Classified>() {
            Ok(classified) => Self(classified),
            Err(source) => Self(Box::new(Classified { fault: fault_below(source.as_ref()), source })),
        }
    }

    /// Says that trying again cannot help.
    pub fn permanent(mut self) -> Self {
        self.0.fault = Some(Fault::Permanent);
        self
    }

    /// Says not to try again before `delay` has passed.
    pub fn retry_after(mut self, delay: Duration) -> Self {
        self.0.fault = Some(Fault::RetryAfter(delay));
        self
    }

    /// Says that the event is not at fault: it is tried again without spending an attempt.
    ///
    /// The trap: an event that does cause it is tried for ever.
    pub fn uncounted(mut self) -> Self {
        self.0.fault = Some(Fault::Uncounted);
        self
    }

    /// What the error says of itself; none leaves it to the policy.
    pub fn fault(&self) -> Option<Fault> {
        self.0.fault
    }

    /// The same, with a text that says more than it does.
    #[cfg(any(feature = "postgres", feature = "mysql"))]
    pub(crate) fn explained(self, text: String) -> Self {
        let Classified { fault, source } = *self.0;
        Self(Box::new(Classified { fault, source: Box::new(Explained { text, source }) }))
    }

    /// This error and its causes, outermost first, at most 128: an error may be its own cause.
    pub fn chain(&self) -> impl Iterator<Item = &(dyn StdError + 'static)> {
        causes(self.0.source.as_ref())
    }

    /// The first error of type `T` among this one and its causes.
    pub fn downcast_ref<T: StdError + 'static>(&self) -> Option<&T> {
        self.chain().find_map(|e| e.downcast_ref())
    }
}

/// The fault of the first [`Classified`] among `error` and its causes.
fn fault_below(error: &(dyn StdError + 'static)) -> Option<Fault> {
    causes(error).find_map(|e| e.downcast_ref::<Classified>().map_or_else(|| database_fault(e), |known| known.fault))
}

/// What a database's own error says: an outage of it, or another transaction, is no event's fault.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
fn database_fault(error: &(dyn StdError + 'static)) -> Option<Fault> {
    match error.downcast_ref::<sqlx::Error>()? {
        sqlx::Error::Database(error) => server_fault(&**error).or_else(|| file_fault(&**error)),
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => Some(Fault::Uncounted),
        _ => None,
    }
}

#[cfg(not(any(feature = "sqlite", feature = "postgres", feature = "mysql")))]
fn database_fault(_: &(dyn StdError + 'static)) -> Option<Fault> {
    None
}

/// A serialisation failure, a deadlock, a lock that others hold, a server that lacks resources, goes down or is read-only, a
/// pooler that mixes up statements:
/// <https://www.postgresql.org/docs/current/errcodes-appendix.html>,
/// <https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html>.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
fn server_fault(error: &dyn sqlx::error::DatabaseError) -> Option<Fault> {
    #[cfg(feature = "mysql")]
    if let Some(error) = error.try_downcast_ref::<sqlx::mysql::MySqlDatabaseError>() {
        const OTHERS: [u16; 15] =
            [1020, 1021, 1040, 1053, 1114, 1152, 1158, 1161, 1203, 1205, 1213, 1290, 1792, 1836, 1927];
        return OTHERS.contains(&error.number()).then_some(Fault::Uncounted);
    }
    let code = error.code()?;
    let class = code.len() == 5 && ["08", "53", "57P"].iter().any(|class| code.starts_with(class));
    (class || ["40001", "40P01", "55P03", "25P03", "25006", "42P05", "26000"].contains(&&*code))
        .then_some(Fault::Uncounted)
}

/// Busy, locked, out of memory, read-only, disk error, full, cannot be opened: <https://sqlite.org/rescode.html>.
#[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
fn file_fault(error: &dyn sqlx::error::DatabaseError) -> Option<Fault> {
    const OUTAGES: [u32; 7] = [5, 6, 7, 8, 10, 13, 14];
    // Only the writer commits: a handler of its transaction tried to, or went on after SQLite had rolled it back.
    const COMMIT_REFUSED: u32 = 531;
    let code = error.code().filter(|code| code.len() <= 4)?.parse::<u32>().ok()?;
    let outage = OUTAGES.contains(&(code & 0xff)).then_some(Fault::Uncounted);
    if code == COMMIT_REFUSED { Some(Fault::Permanent) } else { outage }
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |e| (*e).source()).take(CAUSES_MAX)
}

/// How deep errors are looked into.
const CAUSES_MAX: usize = 128;

impl<E: StdError + Send + Sync + 'static> From<E> for Error {
    fn from(source: E) -> Self {
        Self::boxed(source.into())
    }
}

impl From<Error> for BoxError {
    fn from(e: Error) -> Self {
        e.0
    }
}

impl fmt::Display for Error {
    /// The error and its causes on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut last = String::new();
        for (n, e) in self.chain().enumerate() {
            let text = e.to_string();
            // Many errors repeat their cause in their own text.
            if n > 0 && last.contains(&text) {
                continue;
            }
            write!(f, "{}{text}", if n > 0 { ": " } else { "" })?;
            last = text;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("fault", &self.0.fault).field("source", &self.0.source).finish()
    }
}

/// Says on a result what kind of fault its error is.
pub trait FaultExt<T> {
    /// Trying again cannot help: the event becomes a dead letter.
    fn permanent(self) -> Result<T>;

    /// Trying again may help, but not before `delay` has passed.
    fn retry_after(self, delay: Duration) -> Result<T>;
}

impl<T, E: Into<BoxError>> FaultExt<T> for std::result::Result<T, E> {
    fn permanent(self) -> Result<T> {
        self.map_err(|e| Error::boxed(e.into()).permanent())
    }

    fn retry_after(self, delay: Duration) -> Result<T> {
        self.map_err(|e| Error::boxed(e.into()).retry_after(delay))
    }
}

/// What a broker answers when it does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BrokerError {
    /// The broker cannot be reached or did not answer; the same call may succeed later.
    #[error("the broker is unavailable: {0}")]
    Unavailable(#[source] BoxError),
    /// The topic does not exist.
    #[error("topic {topic:?} does not exist on the broker: create it, or correct the name")]
    NoSuchTopic {
        /// The topic.
        topic: Topic,
    },
    /// The topic's name is not usable.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The message is larger than the broker takes.
    #[error("the message has {bytes} bytes and the broker takes {limit}: publish a reference to the data instead")]
    TooLarge {
        /// The size of key, headers and body.
        bytes: usize,
        /// The largest size taken.
        limit: usize,
    },
    /// The topic holds as much as it may; later there may be room.
    #[error("topic {topic:?} is full: its consumers are behind, or its limit is too low")]
    Full {
        /// The topic.
        topic: Topic,
    },
    /// The same identity was published before with another body.
    #[error(
        "an event with the identity {dedup_id:?} was published before with another body: give each event its own id"
    )]
    IdentityReused {
        /// The identity as the broker saw it.
        dedup_id: String,
    },
    /// The partition is not owned any more under the epoch of the call.
    #[error("partition {partition} is not owned any more")]
    Lost {
        /// The partition.
        partition: Partition,
    },
    /// The broker refuses for a reason that will not pass by itself.
    #[error("the broker refuses: {0}")]
    Refused(String),
    /// The membership or the broker has been closed.
    #[error("closed")]
    Closed,
}

impl BrokerError {
    /// True if the same call may succeed later without anyone's help.
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Full { .. })
    }

    /// True if it says nothing about the message: any other would have fared the same.
    #[cfg(any(feature = "sqlite", feature = "postgres", feature = "mysql"))]
    pub(crate) fn is_about_the_broker(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Lost { .. } | Self::Closed)
    }
}

/// What a store answers when it does not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store cannot be reached or did not answer; the call may or may not have taken effect.
    #[error("the store is unavailable: {0}")]
    Unavailable(#[source] BoxError),
    /// Another owner has taken over under a higher epoch.
    #[error("partition {partition} was taken over under epoch {}, ours is {}", held.0, ours.0)]
    Fenced {
        /// The partition.
        partition: Partition,
        /// The epoch in the store.
        held: Epoch,
        /// The epoch of the call.
        ours: Epoch,
    },
    /// The store was written by a newer version of this library.
    #[error("the store has schema version {found} and this program knows {known}: use a newer version of the program")]
    TooNew {
        /// The version found.
        found: u32,
        /// The newest version known.
        known: u32,
    },
    /// The store has lost the end of what it had confirmed: what became of events must be looked at anew.
    #[error("the store has lost the end of what it had confirmed: {0}")]
    Lost(String),
    /// The store refuses for a reason that will not pass by itself.
    #[error("the store refuses: {0}")]
    Refused(String),
}

/// What serde says of data that it cannot read, without the values it found: errors go to logs, and data must not.
pub(crate) fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let Some((found, expected)) = text.rsplit_once(", expected ") else { return text };
    let known = ["invalid type: ", "invalid value: ", "unknown variant `", "unknown field `"];
    if !known.iter().any(|known| found.starts_with(known)) {
        return text;
    }
    let found = found.split(['"', '`']).next().unwrap_or_default().trim_end();
    format!("{found}, expected {expected}")
}

/// A mistake in the way a service is put together, found before the first event is fetched.
#[derive(Clone, PartialEq, Eq)]
pub struct WiringError {
    message: String,
    at: Option<&'static std::panic::Location<'static>>,
}

impl WiringError {
    /// A mistake described by `message`, which says what to do about it.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), at: None }
    }

    /// Names the place in the caller's code, unless a more exact one is known already.
    pub fn at(mut self, place: &'static std::panic::Location<'static>) -> Self {
        self.at.get_or_insert(place);
        self
    }
}

impl fmt::Display for WiringError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.at.map_or(Ok(()), |at| write!(f, "\n  at {at}"))
    }
}

impl fmt::Debug for WiringError {
    /// As people read it when `main` returns it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl StdError for WiringError {}

#[cfg(test)]
mod tests {
    use serde_core::de::DeserializeOwned;

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] BoxError);

    #[test]
    fn the_fault_survives_boxing_and_wrapping() {
        let inner: BoxError = Error::msg("inner").permanent().into();
        assert_eq!(Error::from(Outer(inner)).fault(), Some(Fault::Permanent));
        let again: BoxError = Error::msg("x").retry_after(Duration::from_secs(3)).into();
        assert_eq!(Error::boxed(again).fault(), Some(Fault::RetryAfter(Duration::from_secs(3))));
        assert_eq!(Error::msg("x").fault(), None);
    }

    #[test]
    fn errors_about_data_say_what_is_wrong_without_the_data() {
        #[track_caller]
        fn problem<T: DeserializeOwned>(data: &str) -> String {
            without_values(&serde_json::from_str::<T>(data).err().unwrap())
        }
        let text = problem::<u32>(r#""4111, expected \" 1111""#);
        assert!(text.starts_with("invalid type: string, expected u32 at line 1"), "{text}");
        assert_eq!(problem::<u8>("4111"), "invalid value: integer, expected u8 at line 1 column 4");
        assert_eq!(problem::<u8>("[4111]"), "invalid type: sequence, expected u8 at line 1 column 0");
        let text = problem::<std::result::Result<u8, u8>>(r#"{"4111":1}"#);
        assert_eq!(text, "unknown variant, expected `Ok` or `Err` at line 1 column 7");
        assert!(problem::<u8>("").starts_with("EOF while parsing a value"));
    }

    #[test]
    fn it_shows_its_causes_and_finds_them() {
        let err = Error::from(Outer("12x".parse::<u8>().unwrap_err().into()));
        assert_eq!(err.to_string(), "outer: invalid digit found in string");
        assert!(err.downcast_ref::<std::num::ParseIntError>().is_some());
    }
}
