//! `aqueduct migrate`: the tables in the database, of this version.

use aqueduct::sql::Migrated;
use clap::Args;
use serde_json::json;

use crate::cli::Global;
use crate::config::{Flags, load};
use crate::database::migrations;
use crate::failure::Failure;
use crate::output::{Output, print};

const EXAMPLES: &str = include_str!("help/migrate.txt");

/// Makes the tables in the database, or brings them to the version of this program.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Migrate {
    /// Prints the SQL instead of connecting, for who runs their own migrations.
    #[arg(long)]
    print: bool,
}

impl Migrate {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let settings = load(global, Flags::none())?.settings;
        let (database, prefix) = (settings.database()?, settings.table_prefix.as_str());
        let output = global.output.unwrap_or_default();
        if self.print {
            return print(&sql(&migrations(database.kind(), prefix)?, output));
        }
        let migrated = database.migrate(prefix).await?;
        print(&match output {
            Output::Json => format!("{}\n", json!({ "from": migrated.from, "to": migrated.to })),
            Output::Text => done(migrated),
        })
    }
}

/// All steps, each with the version that it leads to.
fn sql(steps: &[String], output: Output) -> String {
    let step = |(to, sql): (u32, &String)| match output {
        Output::Json => format!("{}\n", json!({ "to": to, "sql": sql })),
        Output::Text => format!("{sql}\n"),
    };
    (1..).zip(steps).map(step).collect()
}

fn done(Migrated { from, to, .. }: Migrated) -> String {
    match from {
        0 => format!("made the tables, of version {to}\n"),
        from if from == to => format!("the tables have version {to} already\n"),
        from => format!("brought the tables from version {from} to version {to}\n"),
    }
}
