//! Leases in the database: a row for each session, a row for each part. Times are the instances' own, never the database's.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

use super::dialect::{Database, Session, SqlRow, Value};
use super::store::{Step, write};
use crate::error::StoreError;
use crate::lease::{Beat, LeaseError, LeaseTable, Member, Record, Take, View};
use crate::outcome::BoxFuture;
use crate::topic::{Epoch, Position, Text};

/// Counts a beat and reads the group: first its sessions, then its records.
macro_rules! beat {
    () => {
        "update aq_sessions set beat = ? where grp = ? and session = ? and beat < ?;
         select null, session, beat, null from aq_sessions where grp = ?
         union all select part, session, epoch, floor from aq_leases where grp = ?"
    };
}

const BEAT: &str = beat!();
const JOIN: &str = concat!(
    "insert into aq_sessions (grp, session, beat, info) values (?, ?, 0, ?) on conflict (grp, session) do nothing;\n",
    beat!()
);

/// The view by which a part is taken has shown it as nobody's under the epoch. Who takes it raises that, so while the epoch
/// is there the part still is nobody's.
const TAKE_FIRST: &str =
    "insert into aq_leases (grp, part, epoch, session) values (?, ?, ?, ?) on conflict (grp, part) do nothing";
const TAKE: &str = "update aq_leases set epoch = ?, session = ? where grp = ? and part = ? and epoch = ?";

const LET_GO: &str = "update aq_leases set session = null, floor = coalesce(?, floor)
    where grp = ? and part = ? and epoch = ? and session = ?";

/// The session's own beat and its end wait for each other at its row; whoever is second finds what the first has done.
const STRIKE: &str = "
    delete from aq_sessions where grp = ? and session = ? and beat = ?;
    update aq_leases set session = null where grp = ? and session = ?
        and not exists (select 1 from aq_sessions s where s.grp = ? and s.session = ?)";
const LEAVE: &str = "
    delete from aq_sessions where grp = ? and session = ?;
    update aq_leases set session = null where grp = ? and session = ?";

/// Every statement of this file, for the test of their plans.
#[cfg(test)]
pub(super) const ALL: [&str; 6] = [JOIN, TAKE_FIRST, TAKE, LET_GO, STRIKE, LEAVE];

/// The table of leases in a database. Clones share it, and keepers on them learn at once when a part is let go of here;
/// those of other processes with their next beat.
#[derive(Clone)]
pub(crate) struct SqlLeases {
    database: Arc<dyn Database>,
    changes: watch::Sender<u64>,
}

impl SqlLeases {
    pub(crate) fn new(database: Arc<dyn Database>) -> Self {
        Self { database, changes: watch::Sender::new(0) }
    }

    /// Runs a statement in a transaction of its own, after which parts may be nobody's.
    async fn free(&self, sql: &'static str, args: Vec<Value>) -> Result<(), LeaseError> {
        self.write(Statements(vec![(sql, args)])).await?;
        self.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    async fn write<S: Step>(&self, step: S) -> Result<S::Answer, LeaseError> {
        write(&*self.database, step).await.map_err(|error| match error {
            StoreError::Unavailable(source) => LeaseError::Unavailable(source),
            other => LeaseError::Refused(other.to_string()),
        })
    }
}

impl LeaseTable for SqlLeases {
    fn beat<'a>(&'a self, member: &'a Member, beat: Beat) -> BoxFuture<'a, Result<View, LeaseError>> {
        let Member { group, session, info } = member.clone();
        Box::pin(self.write(Counted { group, session, info, beat }))
    }

    fn take<'a>(&'a self, member: &'a Member, takes: &'a [Take]) -> BoxFuture<'a, Result<(), LeaseError>> {
        Box::pin(self.write(Statements(takes.iter().map(|take| taking(member, take)).collect())))
    }

    fn let_go<'a>(
        &'a self,
        member: &'a Member,
        part: &'a Text,
        epoch: Epoch,
        floor: Option<Position>,
    ) -> BoxFuture<'a, Result<(), LeaseError>> {
        let floor = floor.map(|floor| floor.0.cast_signed());
        let args = vec![floor.into(), (&member.group).into(), part.into(), number(epoch.0), (&member.session).into()];
        Box::pin(self.free(LET_GO, args))
    }

    fn strike<'a>(&'a self, group: &'a Text, session: &'a Text, beat: u64) -> BoxFuture<'a, Result<(), LeaseError>> {
        let names: [Value; 2] = [group.into(), session.into()];
        Box::pin(self.free(STRIKE, [&names[..], &[number(beat)], &names, &names].concat()))
    }

    fn leave<'a>(&'a self, member: &'a Member) -> BoxFuture<'a, Result<(), LeaseError>> {
        let names: [Value; 2] = [(&member.group).into(), (&member.session).into()];
        Box::pin(self.free(LEAVE, [&names[..], &names].concat()))
    }

    fn changes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.changes.subscribe())
    }
}

/// A number as SQL counts.
fn number(count: u64) -> Value {
    count.cast_signed().into()
}

fn taking(member: &Member, take: &Take) -> (&'static str, Vec<Value>) {
    let (group, session): (Value, Value) = ((&member.group).into(), (&member.session).into());
    let (part, to) = ((&take.part).into(), number(take.to.0));
    match take.from {
        None => (TAKE_FIRST, vec![group, part, to, session]),
        Some(from) => (TAKE, vec![to, session, group, part, number(from.0)]),
    }
}

/// Statements, one after another.
struct Statements(Vec<(&'static str, Vec<Value>)>);

impl Step for Statements {
    type Answer = ();

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            for (sql, args) in &self.0 {
                session.execute(sql, args.clone()).await?;
            }
            Ok(())
        })
    }
}

/// A beat, with the view as of its commit.
struct Counted {
    group: Text,
    session: Text,
    info: Text,
    beat: Beat,
}

impl Step for Counted {
    type Answer = View;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<View, StoreError>> {
        Box::pin(async move {
            let (group, own): (Value, Value) = ((&self.group).into(), (&self.session).into());
            let beat = number(self.beat.number);
            let counts = [beat.clone(), group.clone(), own.clone(), beat, group.clone(), group.clone()];
            let rows = if self.beat.joins {
                session.fetch(JOIN, [&[group, own, (&self.info).into()], &counts[..]].concat()).await?
            } else {
                session.fetch(BEAT, counts.into()).await?
            };
            view(&rows)
        })
    }
}

fn view(rows: &[SqlRow]) -> Result<View, StoreError> {
    let (mut sessions, mut records) = (BTreeMap::new(), BTreeMap::new());
    for row in rows {
        let count = row.int(2)?.cast_unsigned();
        let Some(part) = row.text_or_null(0)? else {
            sessions.insert(row.text(1)?, count);
            continue;
        };
        let floor = row.int_or_null(3)?.map(|floor| Position(floor.cast_unsigned()));
        records.insert(part, Record { epoch: Epoch(count), session: row.text_or_null(1)?, floor });
    }
    Ok(View { sessions, records })
}
