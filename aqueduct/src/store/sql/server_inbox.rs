//! What the inbox on a server holds, and how it forgets.

use std::time::Duration;

use super::dialect::Session;
use super::ops::one;
use super::server::{Server, ServerDatabase, Unowned};
use super::store::{HomeCalls, SqlStore, Step};
use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::outcome::BoxFuture;
use crate::topic::{Text, Topic};

/// More effects are not counted one by one.
const COUNTED_MAX: i64 = 1_000_000;

const COUNT: &str = "select count(*), min(at) from aq_inbox";

const ROWS: &str =
    "select count(*) from aq_rows r join aq_shards s on s.id = r.shard where s.consumer = ? and s.topic = ?";

const FORGET_FLOORS: &str =
    "delete from aq_settled where shard in (select id from aq_shards where consumer = ? and topic = ?)";

const FORGET_ROWS: &str = "
    delete from aq_lanes where shard in (select id from aq_shards where consumer = ? and topic = ?);
    delete from aq_rows where shard in (select id from aq_shards where consumer = ? and topic = ?)";

const FORGET_EFFECTS: &str = "delete from aq_inbox where consumer = ? and topic = ?";

/// What the inbox holds: the effects that transactional handlers have had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct InboxStatus {
    /// How many; about, if it is not `exact`.
    pub effects: u64,
    /// They were counted. Above a million they are not, where that would take long.
    pub exact: bool,
    /// When the oldest of them took effect; none if there is none, or if they were not counted.
    pub oldest: Option<Timestamp>,
}

/// What is forgotten with the floors of a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Forget {
    /// The effects too: an event that has the identity of one of them takes effect again.
    pub effects: bool,
    /// Parked events and dead letters too, which are lost.
    pub rows: bool,
}

impl<DB: Server> SqlStore<ServerDatabase<DB>> {
    /// What the inbox holds, of all consumers.
    pub async fn inbox_status(&self) -> Result<InboxStatus, StoreError> {
        let mut session = self.read().await?;
        let about = session.fetch(DB::INBOX_ABOUT, vec![]).await?;
        let about = about.first().map(|row| row.int_or_null(0)).transpose()?.flatten().unwrap_or(0);
        if about > COUNTED_MAX {
            return Ok(InboxStatus { effects: about.unsigned_abs(), exact: false, oldest: None });
        }
        let found = session.fetch(COUNT, vec![]).await?;
        let row = one(&found)?;
        let oldest = row.int_or_null(1)?.map(Timestamp::from_unix_ms);
        Ok(InboxStatus { effects: row.int(0)?.unsigned_abs(), exact: true, oldest })
    }

    /// Forgets up to where a consumer has settled a topic, so that it goes on with a stream that was made anew, or with a
    /// database that has lost its end. The partitions begin by themselves then, where the broker has them.
    ///
    /// Refused while the store has rows of the topic, unless they are forgotten too: events of the new stream would be
    /// taken for those that stood in the same places. Look at them with [`browse`](crate::store::Store::browse) before, and
    /// publish again what is still wanted.
    pub async fn inbox_forget(
        &self,
        consumer: impl Into<Text>,
        topic: impl Into<Topic>,
        forget: Forget,
    ) -> Result<(), StoreError> {
        self.write(Forgetting { consumer: consumer.into(), topic: topic.into(), forget }).await?;
        self.home().floors().none_is_missed();
        Ok(())
    }

    /// Forgets now the effects that nobody can ask for again, as is done by itself once an hour, and answers how many that
    /// were: those older than [`inbox_retention`](crate::sql::ServerOptions::inbox_retention), at or below the floor of
    /// their partition, and without a parked event or dead letter of the same identity.
    pub async fn inbox_sweep(&self) -> Result<u64, StoreError> {
        let (mut swept, kept) = (0, i64::try_from(self.home().retention().as_millis()).unwrap_or(i64::MAX));
        loop {
            let before = self.home().clock().now().unix_ms().saturating_sub(kept);
            let chunk = self.write(Sweep { statement: DB::SWEEP, before }).await?;
            swept += chunk;
            if chunk < CHUNK {
                return Ok(swept);
            }
        }
    }
}

/// How long an effect is remembered at least, unless told otherwise.
pub(super) const RETENTION: Duration = Duration::from_hours(24 * 7);

/// How often what is older is looked for.
const SWEEP_EVERY: Duration = Duration::from_hours(1);

/// Effects forgotten in one commit; the statements of the databases say so too.
const CHUNK: u64 = 1_000;

/// Forgets old effects once in a while, for as long as somebody has the database.
pub(super) async fn keep_house<DB: Server>(database: Unowned<DB>) {
    loop {
        let every = database.upgrade().map(|database| database.clock().jitter(SWEEP_EVERY / 10) + SWEEP_EVERY);
        let Some(every) = every else { return };
        tokio::time::sleep(every).await;
        let Some(database) = database.upgrade() else { return };
        if let Err(error) = SqlStore::new(&database).inbox_sweep().await {
            tracing::warn!(?database, %error, "old effects were not forgotten; it is tried again");
        }
    }
}

struct Forgetting {
    consumer: Text,
    topic: Topic,
    forget: Forget,
}

impl Step for Forgetting {
    type Answer = ();

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            let (consumer, topic) = (&self.consumer, Text::from(self.topic.clone()));
            let args = [consumer.into(), (&topic).into()];
            let rows = one(&session.fetch(ROWS, args.clone().into()).await?)?.int(0)?;
            if rows > 0 && !self.forget.rows {
                return Err(StoreError::Refused(format!(
                    "{consumer} has {rows} parked events and dead letters of {topic}, in whose places other events may stand now: publish again what of them is still wanted, and forget them too"
                )));
            }
            session.execute(FORGET_FLOORS, args.clone().into()).await?;
            if self.forget.rows {
                session.execute(FORGET_ROWS, [args.clone(), args.clone()].concat()).await?;
            }
            if self.forget.effects {
                session.execute(FORGET_EFFECTS, args.into()).await?;
            }
            Ok(())
        })
    }
}

struct Sweep {
    statement: &'static str,
    before: i64,
}

impl Step for Sweep {
    type Answer = u64;

    fn run<'a>(&'a mut self, session: &'a mut dyn Session) -> BoxFuture<'a, Result<u64, StoreError>> {
        Box::pin(session.execute(self.statement, vec![self.before.into()]))
    }
}
