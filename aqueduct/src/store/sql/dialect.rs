//! What the SQL store needs of a database, so that it is written once.
//!
//! Statements are written with `?` for their arguments and with `on conflict`, as SQLite and PostgreSQL understand it; a
//! database that speaks otherwise rewrites them in its [`Session`]. So does each with two marks: `in_ints(?)`, whose argument
//! is a list of numbers, and `/*lock*/` at the end of a query, whose rows nobody else may change until the commit. Several statements may stand in one text, with `;`
//! between them: they run one after another, each takes its arguments where the one before has left off, and only the last
//! of them answers rows. That saves round trips, which cost more than the statements.

use bytes::Bytes;

use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::topic::Text;

/// A value in a statement or a row.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    /// None of this kind; only databases that check types ask for the kind.
    Null(Kind),
    Int(i64),
    Text(Text),
    Blob(Bytes),
    /// Numbers to look for, as the argument of `in_ints(?)`, such as `id in_ints(?)`. No row has one.
    Ints(Vec<i64>),
}

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Int,
    Text,
    Blob,
}

/// What is a value of one kind.
pub(crate) trait Valued: Into<Value> {
    const KIND: Kind;
}

impl Valued for i64 {
    const KIND: Kind = Kind::Int;
}

impl Valued for &Text {
    const KIND: Kind = Kind::Text;
}

impl Valued for Text {
    const KIND: Kind = Kind::Text;
}

impl Valued for Bytes {
    const KIND: Kind = Kind::Blob;
}

/// A row of a result.
#[derive(Clone, Debug)]
pub(crate) struct SqlRow(pub(crate) Vec<Value>);

/// A connection, mostly inside a transaction.
pub(crate) trait Session: Send {
    /// Runs a statement and answers how many rows it changed.
    fn execute<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<u64, StoreError>>;

    /// Runs a query and answers its rows.
    fn fetch<'a>(&'a mut self, sql: &'static str, args: Vec<Value>) -> BoxFuture<'a, Result<Vec<SqlRow>, StoreError>>;
}

/// Work within one transaction. It may be run again when the transaction is, and then starts from the beginning; what it
/// has found out counts when the transaction is committed.
pub(crate) trait Work: Send + 'static {
    /// Does it.
    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<(), StoreError>>;
}

/// A database that can hold the store.
pub(crate) trait Database: Send + Sync + 'static {
    /// Runs work in a transaction and answers when it is committed. Several works may share one commit.
    fn write(&self, work: Box<dyn Work>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// A session to read in, outside any transaction.
    fn read(&self) -> BoxFuture<'_, Result<Box<dyn Session>, StoreError>>;
}

impl SqlRow {
    pub(crate) fn int(&self, column: usize) -> Result<i64, StoreError> {
        match self.0.get(column) {
            Some(Value::Int(int)) => Ok(*int),
            other => Err(unexpected(column, "a number", other)),
        }
    }

    pub(crate) fn int_or_null(&self, column: usize) -> Result<Option<i64>, StoreError> {
        match self.0.get(column) {
            Some(Value::Null(_)) => Ok(None),
            _ => self.int(column).map(Some),
        }
    }

    pub(crate) fn text(&self, column: usize) -> Result<Text, StoreError> {
        match self.0.get(column) {
            Some(Value::Text(text)) => Ok(text.clone()),
            // MySQL has texts as bytes.
            Some(Value::Blob(bytes)) => {
                Text::try_from(bytes.clone()).map_err(|_| unexpected(column, "a text", self.0.get(column)))
            }
            other => Err(unexpected(column, "a text", other)),
        }
    }

    #[allow(dead_code, reason = "for the columns of sessions, which the lease reads")]
    pub(crate) fn text_or_null(&self, column: usize) -> Result<Option<Text>, StoreError> {
        match self.0.get(column) {
            Some(Value::Null(_)) => Ok(None),
            _ => self.text(column).map(Some),
        }
    }

    pub(crate) fn blob(&self, column: usize) -> Result<Bytes, StoreError> {
        match self.0.get(column) {
            Some(Value::Blob(blob)) => Ok(blob.clone()),
            other => Err(unexpected(column, "bytes", other)),
        }
    }

    /// What is written in a column, text or not; none for null.
    pub(crate) fn bytes_or_null(&self, column: usize) -> Result<Option<Bytes>, StoreError> {
        match self.0.get(column) {
            Some(Value::Null(_)) => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text.bytes())),
            _ => self.blob(column).map(Some),
        }
    }
}

fn unexpected(column: usize, wanted: &str, found: Option<&Value>) -> StoreError {
    let found = match found {
        None => "nothing",
        Some(Value::Null(_)) => "null",
        Some(Value::Int(_)) => "a number",
        Some(Value::Text(_)) => "a text",
        Some(Value::Blob(_)) => "bytes",
        Some(Value::Ints(_)) => "numbers",
    };
    StoreError::Refused(format!(
        "column {column} of a stored row has {found} where {wanted} belongs: the file is damaged, or another program wrote it"
    ))
}

impl From<i64> for Value {
    fn from(int: i64) -> Self {
        Self::Int(int)
    }
}

impl From<Vec<i64>> for Value {
    fn from(ints: Vec<i64>) -> Self {
        Self::Ints(ints)
    }
}

impl From<&Text> for Value {
    fn from(text: &Text) -> Self {
        Self::Text(text.clone())
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Self::Blob(bytes)
    }
}

impl From<Text> for Value {
    fn from(text: Text) -> Self {
        Self::Text(text)
    }
}

impl<T: Valued> From<Option<T>> for Value {
    fn from(value: Option<T>) -> Self {
        value.map_or(Self::Null(T::KIND), Into::into)
    }
}
