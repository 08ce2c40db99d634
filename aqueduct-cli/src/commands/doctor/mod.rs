//! `aqueduct doctor`: what is wrong, or will be, and what to do about it.

mod nats;

use std::path::Path;
use std::time::Duration;

use anstyle::AnsiColor;
use aqueduct::sqlite::{ConsumerStatus, Owner, SqliteFile, SqliteStatus};
use aqueduct::{Clock, Text, Timestamp};
use clap::Args;
use indicatif::HumanBytes;
use rustix::fs::{Access, access, statvfs};
use serde::Serialize;

use super::rows::{Existing, open_existing, owner};
use crate::broker::{Absent, open_log};
use crate::cli::Global;
use crate::config::{Flags, Settings, load};
use crate::database::AnyStore;
use crate::failure::{Exit, Failure};
use crate::location::{FilePath, Location};
use crate::output::{Output, print};
use crate::table::{count, one_line, span};

const EXAMPLES: &str = include_str!("../help/doctor.txt");

/// Free space below which it is said, and below which little time is left.
const DISK_LOW: u64 = 1 << 30;
const DISK_OUT: u64 = 64 << 20;

/// A write-ahead log that is longer than this does not come from work alone.
const WAL_LONG: u64 = 256 << 20;

/// A relay that runs publishes rows long before.
const OUTBOX_OLD: Duration = Duration::from_mins(1);

/// Clocks differ by less.
const CLOCK_SLACK: Duration = Duration::from_secs(5);

/// Checks configuration, file, disk, clock, groups and what waits, and says what to do.
#[derive(Args)]
#[command(after_long_help = EXAMPLES)]
pub(crate) struct Doctor {}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    Ok,
    Warn,
    Fail,
}

#[derive(Serialize)]
struct Check {
    #[serde(rename = "check")]
    name: &'static str,
    level: Level,
    text: String,
    fix: Option<String>,
}

/// What was found so far.
#[derive(Default)]
struct Report(Vec<Check>);

impl Report {
    fn ok(&mut self, check: &'static str, text: impl Into<String>) {
        self.0.push(Check { name: check, level: Level::Ok, text: text.into(), fix: None });
    }

    fn warn(&mut self, check: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Check { name: check, level: Level::Warn, text: text.into(), fix: Some(fix.into()) });
    }

    fn fail(&mut self, check: &'static str, text: impl Into<String>, fix: impl Into<String>) {
        self.0.push(Check { name: check, level: Level::Fail, text: text.into(), fix: Some(fix.into()) });
    }

    fn failed(&mut self, check: &'static str, failure: &Failure) {
        let fix = failure.advice().unwrap_or("see the text").to_owned();
        self.fail(check, failure.text(), fix);
    }

    /// Says that all is well if nothing was said of a check.
    fn else_ok(&mut self, check: &'static str, text: impl Into<String>) {
        if self.0.iter().all(|done| done.name != check) {
            self.ok(check, text);
        }
    }
}

impl Doctor {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let Self {} = self;
        let mut report = Report::default();
        examine(global, &mut report).await;
        let failed = report.0.iter().filter(|check| check.level == Level::Fail).count();
        let text: String = match global.output.unwrap_or_default() {
            Output::Json => report.0.iter().map(|c| serde_json::to_string(c).unwrap_or_default() + "\n").collect(),
            Output::Text => report.0.iter().map(line).collect(),
        };
        print(&text)?;
        match failed {
            0 => Ok(()),
            n => Err(Failure::new(Exit::Unusable, format!("{} failed", count(n as u64, "check")))),
        }
    }
}

fn line(check: &Check) -> String {
    let (word, colour) = match check.level {
        Level::Ok => ("ok", AnsiColor::Green),
        Level::Warn => ("warn", AnsiColor::Yellow),
        Level::Fail => ("FAIL", AnsiColor::Red),
    };
    let (style, fix) = (colour.on_default(), check.fix.as_ref().map(|fix| format!("      do: {fix}\n")));
    format!("{style}{word:<4}{style:#}  {}: {}\n{}", check.name, one_line(&check.text), fix.unwrap_or_default())
}

async fn examine(global: &Global, report: &mut Report) {
    let settings = match load(global, Flags::none()) {
        Ok(loaded) => loaded.settings,
        Err(failure) => return report.failed("configuration", &failure),
    };
    report.ok("configuration", "every setting is known");
    if let Err(failure) = database(&settings, report).await {
        report.failed("database", &failure);
    }
    match &settings.broker {
        Location::Sqlite(file) => in_file(global, file, report).await,
        Location::Nats(servers) => nats::examine(global, servers, &settings, report).await,
    }
}

/// The embedded broker and the store.
async fn in_file(global: &Global, file: &FilePath, report: &mut Report) {
    let path = file.path();
    if !path.exists() {
        let text = format!("there is no broker at {file}");
        return report.warn("file", text, "publish into it, which creates it, or correct --broker or AQUEDUCT_BROKER");
    }
    permissions(path, report);
    disk(path, report);
    if let Err(failure) = open_log(file, Absent::Refuse).await {
        return report.failed("file", &failure);
    }
    report.ok("file", format!("{} can be used, and its tables are of this version", path.display()));
    let opened = match open_existing(global).await {
        Ok(opened) => opened,
        Err(failure) => return report.failed("store", &failure),
    };
    let Existing { broker: Some(broker), store } = opened else { return };
    let status = match broker.status().await {
        Ok(status) => status,
        Err(error) => {
            let failure = error.into();
            return ["groups", "store"].into_iter().for_each(|check| report.failed(check, &failure));
        }
    };
    groups(&status, report);
    if let Err(failure) = stored(&store, Some(&status), report).await {
        report.failed("store", &failure);
    }
}

/// The database of services and its outbox, where one is named.
async fn database(settings: &Settings, report: &mut Report) -> Result<(), Failure> {
    let Some(database) = &settings.database else { return Ok(()) };
    let outbox = database.open(&settings.table_prefix).await?.outbox(&settings.relay.table)?.status().await?;
    report.ok("database", "it can be used, and its tables are of this version");
    if outbox.parked > 0 {
        let text = format!("{} cannot be published, or wait behind one that cannot", count(outbox.parked, "row"));
        report.warn("outbox", text, "`aqueduct outbox list` says why; retry or discard them");
    }
    let age = outbox.oldest.map(|oldest| Clock::system().now().since(oldest)).filter(|age| *age > OUTBOX_OLD);
    if let Some(age) = age {
        let text = format!("a row has waited for {} to be published", span(age));
        report.warn("outbox", text, "run `aqueduct relay`, or look at what the relay logs");
    }
    report.else_ok("outbox", "no row waits for long");
    Ok(())
}

fn permissions(path: &Path, report: &mut Report) {
    let beside = |end: &str| {
        let mut name = path.as_os_str().to_owned();
        name.push(end);
        std::path::PathBuf::from(name)
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let files = [path.to_owned(), beside("-wal"), beside("-shm"), folder.to_owned()];
    for file in files.iter().filter(|file| file.exists()) {
        if let Err(error) = access(file, Access::READ_OK | Access::WRITE_OK) {
            let text = format!("{} cannot be written: {error}", file.display());
            report.fail("permissions", text, "run this as the user of the services, or change its owner");
        }
    }
    report.else_ok("permissions", "the file and its folder can be written");
    let long = beside("-wal").metadata().map_or(0, |found| found.len());
    if long > WAL_LONG {
        let text = format!("the write-ahead log has {}", HumanBytes(long));
        report.warn("write-ahead log", text, "look for a program that keeps a read transaction open on the file");
    }
}

fn disk(path: &Path, report: &mut Report) {
    if let Some(kind) = SqliteFile::network(path) {
        let text = format!("the file is on {kind}, where locks are not reliable and a crash can damage it");
        report.fail("file system", text, "move the file to a local disk");
    }
    report.else_ok("file system", "a local one");
    let Ok(found) = statvfs(path) else { return };
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let text = format!("{} free", HumanBytes(free));
    let fix = "free some space, or delete what is not needed: `aqueduct purge TOPIC --older 30d`";
    match free {
        0..DISK_OUT => report.fail("disk", text, fix),
        DISK_OUT..DISK_LOW => report.warn("disk", text, fix),
        _ => report.ok("disk", text),
    }
}

/// Whether the newest event of something is of the future.
fn clock(newest: impl Iterator<Item = (String, Option<Timestamp>)>, report: &mut Report) {
    let now = Clock::system().now();
    for (of, newest) in newest {
        if let Some(newest) = newest.filter(|newest| newest.since(now) > CLOCK_SLACK) {
            let text = format!("{of} has an event of {newest}, and here it is {now}");
            report.warn("clock", text, "set the clock right: what is parked waits by it");
            break;
        }
    }
    report.else_ok("clock", "nothing was stored in the future");
}

fn groups(status: &SqliteStatus, report: &mut Report) {
    clock(status.partitions.iter().map(|partition| (partition.partition.to_string(), partition.newest)), report);
    for group in &status.consumers {
        let (name, lag) = (&group.consumer, group.lag());
        match &group.owner {
            Owner::Nobody if lag > 0 => {
                let text = format!("nobody runs {name}; the log is kept for it, {} so far", count(lag, "event"));
                report.warn("groups", text, format!("start it, or if it is gone for good: aqueduct forget {name}"));
            }
            Owner::Orphans { .. } => {
                let text = format!("{name} cannot start before they end: {}", owner(&group.owner));
                report.warn("groups", text, "wait for them, or end them with kill");
            }
            Owner::Unseen => {
                let text =
                    format!("who runs {name} cannot be seen: another user or container, or nobody since a restart");
                report.warn("groups", text, "look as the user of the service, in its container");
            }
            _ => {}
        }
    }
    report.else_ok("groups", "every group that has something to do is run");
}

/// What the store holds. Who runs groups is known of an embedded broker alone.
async fn stored(store: &AnyStore, status: Option<&SqliteStatus>, report: &mut Report) -> Result<(), Failure> {
    let runs = |group: &Text| {
        let is_run = |o: &ConsumerStatus| o.consumer == *group && matches!(o.owner, Owner::Process { .. });
        status.is_none_or(|status| status.consumers.iter().any(is_run))
    };
    let (mut blocking, mut waiting, mut parked) = (0, 0, 0);
    for shard in store.shards().await? {
        blocking += shard.blocking;
        if !runs(&shard.consumer) {
            (waiting, parked) = (waiting + shard.waiting, parked + shard.parked);
        }
    }
    if blocking > 0 {
        let text = format!("{} hold their keys", count(blocking, "dead letter"));
        report.warn("store", text, "look at BLOCKS in `aqueduct dead-letters list`; replay, skip or discard them");
    }
    if parked > 0 {
        let text = format!("{} of groups that nobody runs", count(parked, "parked event"));
        report.warn("store", text, "start the groups: `aqueduct status` names them");
    }
    if waiting > 0 {
        let text = format!("{} wait for groups that nobody runs", count(waiting, "command"));
        report.warn("store", text, "start the group, or give any command on it, which carries out all of them");
    }
    report.else_ok("store", "no key waits behind a dead letter");
    Ok(())
}
