//! What PostgreSQL and MySQL say differently about tables that are not Aqueduct's, and the names of those.

use crate::error::StoreError;
use crate::sql::Server;

/// The words of a database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Words {
    Postgres,
    MySql,
}

impl Words {
    pub(super) fn of<DB: Server>() -> Self {
        if DB::NAME == "PostgreSQL" { Self::Postgres } else { Self::MySql }
    }

    /// The text of a column of whatever type.
    pub(super) fn text(self, column: &str) -> String {
        match self {
            Self::Postgres => format!("{column}::text"),
            Self::MySql => column.to_owned(),
        }
    }

    /// A column of time in milliseconds since 1970. Without a zone it is in UTC, as connections of sqlx are.
    pub(super) fn unix_ms(self, column: &str) -> String {
        match self {
            Self::Postgres => format!("(extract(epoch from date_trunc('milliseconds', {column})) * 1000)::bigint"),
            Self::MySql => format!("timestampdiff(microsecond, '1970-01-01', {column}) div 1000"),
        }
    }

    /// The time of an argument in milliseconds since 1970.
    pub(super) fn time(self) -> &'static str {
        match self {
            Self::Postgres => "timestamp '1970-01-01' + ? * interval '1 millisecond'",
            Self::MySql => "timestampadd(microsecond, ? * 1000, '1970-01-01')",
        }
    }

    /// An argument that is JSON.
    pub(super) fn json(self) -> &'static str {
        match self {
            Self::Postgres => "?::jsonb",
            // Texts are sent as bytes, of which MySQL makes no JSON.
            Self::MySql => "convert(? using utf8mb4)",
        }
    }

    /// Says that rows are found by their ids. Left to itself MySQL may look at the whole of a small table, and wait there for
    /// rows of transactions that are open.
    pub(super) fn by_id(self) -> &'static str {
        match self {
            Self::Postgres => "",
            Self::MySql => " force index (primary)",
        }
    }
}

/// Refuses what is no plain name of a table: it goes into statements as it is.
pub(super) fn check_table(name: &str) -> Result<(), StoreError> {
    let part = |part: &str| {
        let begins = part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        begins && part.len() <= 63 && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    // `aq_` is where the prefix of Aqueduct's tables is put.
    if name.split('.').all(part) && name.split('.').count() <= 2 && !name.contains("aq_") {
        return Ok(());
    }
    Err(StoreError::Refused(format!(
        "the table {name:?} cannot be used: its name has letters, digits and `_`, no `aq_`, and perhaps a schema before a dot"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_are_plain() {
        for good in ["outbox_events", "shop.outbox_events", "_a1"] {
            assert!(check_table(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "1a", "a.b.c", "a;drop table b", "a'", "a.", "faq_events"] {
            assert!(check_table(bad).is_err(), "{bad}");
        }
    }
}
