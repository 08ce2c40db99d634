//! `aqueduct inbox`: what the database remembers of events that have had their effect.

use aqueduct::sql::{Forget, InboxStatus};
use aqueduct::{Clock, StoreError};
use clap::{Args, Subcommand};
use indicatif::HumanCount;
use serde_json::json;

use crate::cli::Global;
use crate::config::{Flags, load};
use crate::confirm::confirm;
use crate::failure::{Exit, Failure};
use crate::output::{Output, note, print};
use crate::table::{Table, age};

const STATUS: &str = include_str!("help/inbox-status.txt");

const FORGET: &str = include_str!("help/inbox-forget.txt");

/// Looks at what the database remembers of events that have had their effect, and forgets it where a stream was made anew.
#[derive(Args)]
pub(crate) struct Inbox {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Shows how many effects are remembered, and since when.
    #[command(after_long_help = STATUS)]
    Status,
    /// Forgets up to where a group has settled a topic: for a stream that was made anew, or a database that has lost its end.
    #[command(after_long_help = FORGET)]
    Forget(Forgetting),
}

#[derive(Args)]
struct Forgetting {
    /// The group.
    #[arg(long)]
    group: String,
    /// The topic.
    #[arg(long)]
    topic: String,
    /// Forgets the effects too: events of the same identities take effect again.
    #[arg(long)]
    effects: bool,
    /// Forgets parked events and dead letters too, which are lost.
    #[arg(long)]
    rows: bool,
    /// Does not ask.
    #[arg(short, long)]
    yes: bool,
}

impl Inbox {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let settings = load(global, Flags::none())?.settings;
        let store = settings.database()?.open(&settings.table_prefix).await?;
        let output = global.output.unwrap_or_default();
        match self.action {
            Action::Status => {
                let status = store.inbox_status().await.ok_or_else(in_a_file)??;
                print(&shown(&status, output))
            }
            Action::Forget(forget) => {
                let Forgetting { group, topic, effects, rows, yes } = forget;
                let lost = match (effects, rows) {
                    (false, false) => "",
                    (true, false) => ", and that its events have taken effect",
                    (false, true) => ", and its parked events and dead letters",
                    (true, true) => ", that its events have taken effect, and its parked events and dead letters",
                };
                if !confirm(&format!("forget up to where group `{group}` has settled `{topic}`{lost}"), yes)? {
                    note("nothing was done");
                    return Ok(());
                }
                let mut what = Forget::default();
                (what.effects, what.rows) = (effects, rows);
                let forgotten = store.inbox_forget(&group, &topic, what).await.ok_or_else(in_a_file)?;
                forgotten.map_err(|error| match error {
                    StoreError::Refused(why) => Failure::new(Exit::Busy, why)
                        .fix("look at them with `aqueduct parked list` and `aqueduct dlq list`, or add --rows"),
                    other => other.into(),
                })?;
                print(&match output {
                    Output::Json => format!("{}\n", json!({ "forgotten": { "group": group, "topic": topic } })),
                    Output::Text => format!("forgot where group {group} stood in {topic}\n"),
                })
            }
        }
    }
}

fn in_a_file() -> Failure {
    Failure::new(
        Exit::Config,
        "an SQLite file keeps effects for as long as the log keeps their events, and forgets them with it",
    )
    .fix("name a database with --database postgres://... or mysql://...")
}

fn shown(status: &InboxStatus, output: Output) -> String {
    let now = Clock::system().now();
    if output == Output::Json {
        let value = json!({
            "at": now.to_string(), "effects": status.effects, "effects_is_estimate": !status.exact,
            "oldest": status.oldest.map(|at| at.to_string()),
            "oldest_age_s": status.oldest.map(|at| now.since(at).as_secs()),
        });
        return format!("{value}\n");
    }
    let about = if status.exact { "" } else { "about " };
    let mut table = Table::new(&["EFFECTS", "OLDEST"]);
    table.row(&[format!("{about}{}", HumanCount(status.effects)), age(status.oldest, now)]);
    table.text(true)
}
