//! `aqueduct parked` and `aqueduct dead-letters`: what is in the store, and mending it.

mod act;
mod carry;
mod edit;
mod filter;
mod list;
mod show;

pub(crate) use carry::owner;
pub(crate) use list::in_time;

use std::sync::Arc;

use aqueduct::Event;
use aqueduct::sqlite::SqliteBroker;
use aqueduct::store::{Content, Listed, RowState};
use clap::{Args, Subcommand};

use crate::broker::{Absent, open_log, open_store};
use crate::cli::Global;
use crate::config::{Flags, Settings, load};
use crate::database::AnyStore;
use crate::failure::{Exit, Failure};
use crate::location::Location;

const LIST: &str = include_str!("../help/rows-list.txt");

const SHOW: &str = include_str!("../help/rows-show.txt");

const ACT: &str = include_str!("../help/rows-act.txt");

const EDIT: &str = include_str!("../help/rows-edit.txt");

/// Looks at events in the store, and mends them.
#[derive(Args)]
pub(crate) struct Rows {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Lists them, in the order of each key.
    #[command(after_long_help = LIST)]
    List(list::List),
    /// Shows everything about one: its attempts, its data, and what was done about it.
    #[command(after_long_help = SHOW)]
    Show(show::Show),
    /// Tries them again at once.
    #[command(after_long_help = ACT)]
    Replay(act::Act),
    /// Lets keys go on that wait behind dead letters.
    #[command(after_long_help = ACT)]
    Skip(act::Act),
    /// Forgets them.
    #[command(after_long_help = ACT)]
    Discard(act::Act),
    /// Changes what one carries.
    #[command(after_long_help = EDIT)]
    Edit(Box<edit::Edit>),
}

/// Which rows a command is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Parked,
    Dead,
}

impl Kind {
    fn command(self) -> &'static str {
        match self {
            Self::Parked => "parked",
            Self::Dead => "dead-letters",
        }
    }
}

impl Rows {
    pub(crate) async fn run(self, global: &Global, kind: Kind) -> Result<(), Failure> {
        let opened = open_existing(global).await?;
        let output = global.output.unwrap_or_default();
        match self.action {
            Action::List(list) => list.run(&opened, kind, output).await,
            Action::Show(show) => show.run(&opened, kind, output).await,
            Action::Replay(act) => act.run(&opened, kind, act::Verb::Replay, output).await,
            Action::Skip(act) => act.run(&opened, kind, act::Verb::Skip, output).await,
            Action::Discard(act) => act.run(&opened, kind, act::Verb::Discard, output).await,
            Action::Edit(edit) => edit.run(&opened, kind, output).await,
        }
    }
}

/// The embedded broker alone, which does not come into being by being looked at; for others it is said what to do instead.
pub(crate) async fn existing_broker(global: &Global, instead: &str) -> Result<SqliteBroker, Failure> {
    let settings = load(global, Flags::none())?.settings;
    Ok(SqliteBroker::new(&open_log(settings.broker.file(instead)?, Absent::Refuse).await?))
}

/// The store, and the embedded broker if it is that one; neither comes into being by being looked at.
pub(crate) struct Existing {
    pub(crate) broker: Option<SqliteBroker>,
    pub(crate) store: AnyStore,
}

pub(crate) async fn open_existing(global: &Global) -> Result<Existing, Failure> {
    let settings = load(global, Flags::none())?.settings;
    check_store(&settings)?;
    let log = match &settings.broker {
        Location::Sqlite(file) => Some(open_log(file, Absent::Refuse).await?),
        Location::Nats(_) => None,
    };
    let store = open_store(&settings, log.as_ref()).await?.ok_or_else(|| {
        Failure::new(Exit::Config, "which store is not said, and NATS has none")
            .fix("name that of the group with --store sqlite:PATH or --database")
    })?;
    Ok(Existing { broker: log.as_ref().map(SqliteBroker::new), store })
}

/// A store does not come into being by being looked at.
pub(crate) fn check_store(settings: &Settings) -> Result<(), Failure> {
    match settings.store.as_ref().filter(|store| !store.path().exists()) {
        None => Ok(()),
        Some(store) => Err(Failure::new(Exit::Missing, format!("there is no store at {store}"))
            .fix("correct --store, or leave it out if the store is in the broker's file")),
    }
}

/// Where a row stands, as lists show it.
fn place_of(listed: &Listed) -> String {
    let (partition, place) = (&listed.partition, listed.row.place);
    let index = if place.index > 0 { format!(".{}", place.index) } else { String::new() };
    format!("{partition}/{}{index}", place.position.0)
}

/// Its event, if a format could read it.
fn event_of(listed: &Listed) -> Option<&Arc<Event>> {
    match &listed.row.content {
        Content::Event(event) => Some(event),
        Content::Undecodable(_) => None,
    }
}

fn id_of(listed: &Listed) -> &str {
    event_of(listed).map_or("", |event| event.id.as_str())
}

fn is_dead(listed: &Listed) -> bool {
    matches!(listed.row.state, RowState::Dead(_))
}
