//! `sql`: how programs in other languages write an event.

use serde_json::json;

use crate::database::{Kind, PREFIX, migrations};
use crate::failure::Failure;
use crate::output::{Output, print};

const POSTGRES: &str = include_str!("postgres.sql");

const MYSQL: &str = include_str!("mysql.sql");

const SQLITE: &str = include_str!("sqlite.sql");

pub(super) fn print_sql(kind: Kind, prefix: &str, output: Output) -> Result<(), Failure> {
    // It says whether tables can have such names.
    migrations(kind, prefix)?;
    let sql = match kind {
        Kind::Postgres => POSTGRES,
        Kind::MySql => MYSQL,
        Kind::Sqlite => SQLITE,
    };
    let sql = sql.replace(PREFIX, prefix);
    print(&match output {
        Output::Json => format!("{}\n", json!({ "sql": sql })),
        Output::Text => sql,
    })
}
