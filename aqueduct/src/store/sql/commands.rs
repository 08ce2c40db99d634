//! What operators ask for: given by anybody, carried out by the partition's owner, and kept as the audit trail.

use std::sync::Arc;

use super::codec::{VERSION, floor_ms};
use super::dialect::{Session, SqlRow, Value};
use super::ops::{SHARD, Shard, names, one};
use super::rows;
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::store::{Action, Applied, Command, CommandId, CommandState, Content, Listed, RowRef};
use crate::topic::{LaneId, Partition, Place, Position, Text, Topic};

/// Commands that may wait for their partitions' owners.
const WAITING_MAX: i64 = 10_000;

const COUNT_WAITING: &str = "select count(*) from aq_commands where state = 0";

/// The lane and the version of what is at a place.
const FIND: &str = "select lane, revision from aq_rows where shard = ? and position = ? and idx = ?";

const GIVE: &str =
    "insert into aq_commands (shard, position, idx, lane, revision, action, event, who, why, state, version)
    values (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?) returning id";

/// A command's columns, with the names of its shard.
macro_rules! command_columns {
    () => {
        "c.id, c.position, c.idx, c.lane, c.revision, c.action, c.event, c.who, c.why, c.version,
             c.state, c.ended_at, c.refusal, s.consumer, s.topic, s.number
         from aq_commands c join aq_shards s on s.id = c.shard"
    };
}

const WAITING: &str =
    concat!("select ", command_columns!(), " where c.shard = ? and c.state = 0 order by c.id limit ?");
const ONE: &str = concat!("select ", command_columns!(), " where c.shard = ? and c.id = ?");
const LAST: &str = concat!("select ", command_columns!(), " order by c.id desc limit ?");
const ON_ROW: &str = concat!(
    "select ",
    command_columns!(),
    " where s.consumer = ? and s.topic = ? and s.number = ? and c.position = ? and c.idx = ? order by c.id"
);
const RESULT: &str = "select state, ended_at, refusal from aq_commands where id = ?";
const END: &str = "update aq_commands set state = ?, ended_at = ?, refusal = ? where id = ? and state = 0";

/// Marks a row that cannot be read as discarded; its checksum stays wrong, so it is still not served.
const DISCARD: &str =
    "update aq_rows set state = 3, revision = revision + 1 where shard = ? and position = ? and idx = ?";

/// Every statement of this file that must not walk through a table, for the test of their plans.
#[cfg(test)]
pub(super) const ALL: [&str; 7] = [COUNT_WAITING, FIND, WAITING, ONE, RESULT, END, DISCARD];

/// A command as it is kept.
pub(super) type Kept = (CommandId, Command, CommandState);

/// Leaves a command, if the row that it names is there.
pub(super) async fn give(session: &mut dyn Session, command: &Command) -> Result<CommandId, StoreError> {
    let place = rows::columns_of(command.row.place);
    let shard = session.fetch(SHARD, names(&command.consumer, &command.partition)).await?;
    let shard = shard.first().map(|shard| shard.int(0)).transpose()?;
    let mut found = None;
    if let Some((shard, (position, index))) = shard.zip(place) {
        found = session.fetch(FIND, [shard, position, index].map(Value::Int).into()).await?.pop();
    }
    let found = found.map(|row| version(&row, 0, 1)).transpose()?;
    command.row.check(found).map_err(StoreError::Refused)?;
    if one(&session.fetch(COUNT_WAITING, vec![]).await?)?.int(0)? >= WAITING_MAX {
        let text = format!("{WAITING_MAX} commands wait for their partitions' owners: is one running?");
        return Err(StoreError::Unavailable(text.into()));
    }
    let (position, index) = place.unwrap_or_default();
    let RowRef { lane, version, .. } = command.row;
    let (action, event) = match &command.action {
        Action::Replay => (0, None),
        Action::Skip => (1, None),
        Action::Discard => (2, None),
        Action::Edit(event) => (3, Some(rows::content(&Content::Event(event.clone())))),
    };
    let numbers = [shard.unwrap_or_default(), position, index, lane.0.cast_signed(), version.into(), action];
    let mut args: Vec<Value> = numbers.map(Value::Int).into();
    args.extend([event.into(), (&command.who).into(), (&command.why).into(), VERSION.into()]);
    Ok(id(one(&session.fetch(GIVE, args).await?)?.int(0)?))
}

/// Carries out a command once: when it is asked for again, only the answer is given again.
pub(super) async fn operate(
    shard: &mut Shard<'_>,
    id: CommandId,
    refused: Option<&Text>,
    now: Timestamp,
) -> Result<Applied, StoreError> {
    let args = vec![shard.id.into(), id.0.cast_signed().into()];
    let Some(kept) = shard.session.fetch(ONE, args).await?.pop() else { return Ok(Applied::Conflict) };
    let (_, Command { row: named, action, .. }, mut state) = read(&kept)?;
    let found = shard.row(named.place).await?;
    let current = named.check(found.as_ref().map(|row| version(row, 3, 5)).transpose()?);
    let changed = current.is_err();
    if state == CommandState::Waiting {
        let outcome = match (refused, current, found) {
            (Some(why), ..) => Err(why.clone()),
            (None, Err(why), _) => Err(why.into()),
            (None, Ok(()), Some(found)) => act(shard, &found, named, &action, now).await?,
            (None, Ok(()), None) => Err("the row is gone".into()),
        };
        state = match outcome {
            Ok(()) => CommandState::Done { at: now },
            Err(why) => CommandState::Refused { at: now, why },
        };
        end(shard.session, id, &state).await?;
    }
    if changed && matches!(state, CommandState::Refused { .. }) {
        return Ok(Applied::Conflict);
    }
    shard.lane(named.lane).await
}

/// Does to a row what an operator wants, or says why it cannot be done.
async fn act(
    shard: &mut Shard<'_>,
    found: &SqlRow,
    named: RowRef,
    action: &Action,
    now: Timestamp,
) -> Result<Result<(), Text>, StoreError> {
    let mut row = match rows::read(found, shard.partition) {
        Ok(row) => row,
        Err(_) if *action == Action::Discard => {
            shard.session.execute(DISCARD, found.0[..3].to_vec()).await?;
            shard.refresh(named.lane).await?;
            return Ok(Ok(()));
        }
        Err(error) => return Ok(Err(error.to_string().into())),
    };
    if let Err(why) = row.act(action, now) {
        return Ok(Err(why.into()));
    }
    shard.change(&row).await?;
    Ok(Ok(()))
}

/// Writes down what became of a command.
pub(super) async fn end(session: &mut dyn Session, id: CommandId, state: &CommandState) -> Result<(), StoreError> {
    let (code, at, why) = match state {
        CommandState::Waiting => return Ok(()),
        CommandState::Done { at } => (1, at, None),
        CommandState::Refused { at, why } => (2, at, Some(why)),
    };
    let args = vec![code.into(), floor_ms(*at).into(), why.into(), id.0.cast_signed().into()];
    session.execute(END, args).await?;
    Ok(())
}

/// The commands that wait for a shard's owner, oldest first, and those that cannot be read.
pub(super) async fn waiting(
    session: &mut dyn Session,
    shard: i64,
    limit: i64,
) -> Result<(Vec<(CommandId, Command)>, Vec<(CommandId, StoreError)>), StoreError> {
    let (mut good, mut bad) = (Vec::new(), Vec::new());
    for row in session.fetch(WAITING, vec![shard.into(), limit.into()]).await? {
        match read(&row) {
            Ok((id, command, _)) => good.push((id, command)),
            Err(error) => bad.push((id(row.int(0)?), error)),
        }
    }
    Ok((good, bad))
}

/// The last commands that were given, oldest first.
pub(super) async fn last(session: &mut dyn Session, limit: i64) -> Result<Vec<Kept>, StoreError> {
    session.fetch(LAST, vec![limit.into()]).await?.iter().rev().map(read).collect()
}

/// The commands on a row, oldest first.
pub(super) async fn on_row(session: &mut dyn Session, listed: &Listed) -> Result<Vec<Kept>, StoreError> {
    let Some((position, index)) = rows::columns_of(listed.row.place) else { return Ok(Vec::new()) };
    let mut args = names(&listed.consumer, &listed.partition);
    args.extend([position, index].map(Value::Int));
    session.fetch(ON_ROW, args).await?.iter().map(read).collect()
}

pub(super) async fn result(session: &mut dyn Session, id: CommandId) -> Result<Option<CommandState>, StoreError> {
    let found = session.fetch(RESULT, vec![id.0.cast_signed().into()]).await?;
    found.first().map(|row| read_state(row, 0)).transpose()
}

fn id(number: i64) -> CommandId {
    CommandId(number.cast_unsigned())
}

/// The lane and the version of a row, in these columns.
fn version(row: &SqlRow, lane: usize, version: usize) -> Result<(LaneId, u32), StoreError> {
    Ok((LaneId(row.int(lane)?.cast_unsigned()), rows::small(row.int(version)?)?))
}

fn read(row: &SqlRow) -> Result<Kept, StoreError> {
    rows::known(row.int(9)?)?;
    let place = Place { position: Position(row.int(1)?.cast_unsigned()), index: rows::small(row.int(2)?)? };
    let named = RowRef { place, lane: LaneId(row.int(3)?.cast_unsigned()), version: rows::small(row.int(4)?)? };
    let action = match row.int(5)? {
        0 => Action::Replay,
        1 => Action::Skip,
        2 => Action::Discard,
        _ => match rows::read_content(row.blob(6)?)? {
            Content::Event(event) => Action::Edit(Arc::clone(&event)),
            Content::Undecodable(_) => return Err(rows::damaged("the command has no event")),
        },
    };
    let partition = Partition { topic: Topic::from(row.text(14)?), index: rows::small(row.int(15)?)? };
    let (who, why) = (row.text(7)?, row.text(8)?);
    let command = Command { consumer: row.text(13)?, partition, row: named, action, who, why };
    Ok((id(row.int(0)?), command, read_state(row, 10)?))
}

/// A command's state, in this column and the two after it.
fn read_state(row: &SqlRow, column: usize) -> Result<CommandState, StoreError> {
    let at = || row.int(column + 1).map(Timestamp::from_unix_ms);
    Ok(match row.int(column)? {
        0 => CommandState::Waiting,
        1 => CommandState::Done { at: at()? },
        _ => CommandState::Refused { at: at()?, why: row.text(column + 2)? },
    })
}
