//! Writing down up to where a consumer has settled its partitions: those of all in one write, and not too often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::broker_error;
use crate::error::{BrokerError, StoreError};
use crate::outcome::BoxFuture;
use crate::store::sql::sqlite::SqliteFile;
use crate::store::sql::writer::AnyTask;
use crate::topic::{Epoch, Text};

/// The time from one write to the next: each waits for the disk, and what is not written is only handled again after a crash.
const EVERY: Duration = Duration::from_millis(10);

/// The floors of a consumer on their way into the file.
#[derive(Clone)]
pub(super) struct Floors(Arc<Shared>);

struct Shared {
    file: SqliteFile,
    consumer: Text,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    settles: Vec<Settle>,
    /// When the last write began.
    wrote_at: Option<Instant>,
}

/// Everything up to the floor is settled.
struct Settle {
    topic: i64,
    number: u32,
    epoch: Epoch,
    floor: u64,
    back: oneshot::Sender<Result<bool, BrokerError>>,
}

impl Floors {
    pub(super) fn new(file: &SqliteFile, consumer: &Text) -> Self {
        let (file, consumer) = (file.clone(), consumer.clone());
        Self(Arc::new(Shared { file, consumer, waiting: Mutex::default() }))
    }

    /// Writes down up to where a partition is settled. Answers false if it is owned under another epoch.
    pub(super) async fn settle(
        &self,
        (topic, number): (i64, u32),
        epoch: Epoch,
        floor: u64,
    ) -> Result<bool, BrokerError> {
        let (back, answer) = oneshot::channel();
        let first = {
            let mut waiting = self.0.waiting.lock();
            waiting.settles.push(Settle { topic, number, epoch, floor, back });
            (waiting.settles.len() == 1).then_some(waiting.wrote_at)
        };
        if let Some(wrote_at) = first {
            let floors = self.clone();
            tokio::spawn(async move {
                if let Some(wrote_at) = wrote_at {
                    tokio::time::sleep_until(wrote_at + EVERY).await;
                }
                let file = floors.0.file.clone();
                file.hand_in(Box::new(SettleAll { floors, settles: Vec::new(), current: Vec::new() })).await;
            });
        }
        answer.await.unwrap_or(Err(BrokerError::Closed))
    }

    fn take(&self) -> Vec<Settle> {
        let mut waiting = self.0.waiting.lock();
        waiting.wrote_at = Some(Instant::now());
        std::mem::take(&mut waiting.settles)
    }
}

/// Writes all floors that wait when its turn comes.
struct SettleAll {
    floors: Floors,
    settles: Vec<Settle>,
    /// The partitions that are owned under the epoch that was named.
    current: Vec<(i64, i64, i64)>,
}

impl SettleAll {
    async fn settle(&mut self, connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
        if self.settles.is_empty() {
            self.settles = self.floors.take();
        }
        // One row of an update takes in one value.
        let mut highest: BTreeMap<(i64, u32, u64), u64> = BTreeMap::new();
        for Settle { topic, number, epoch, floor, .. } in &self.settles {
            let known = highest.entry((*topic, *number, epoch.0)).or_default();
            *known = (*known).max(*floor);
        }
        let value = |((topic, number, epoch), floor): (&(i64, u32, u64), &u64)| {
            format!("[{topic},{number},{},{}]", epoch.cast_signed(), floor.cast_signed())
        };
        let list = format!("[{}]", highest.iter().map(value).collect::<Vec<_>>().join(","));
        let rows = sqlx::query(
            "update aq_floors set floor = max(floor, s.value ->> 3),
             seal = seal + 31 * (max(floor, s.value ->> 3) - floor)
             from json_each(?1) s
             where consumer = ?2 and topic = s.value ->> 0 and number = s.value ->> 1 and epoch = s.value ->> 2
             returning topic, number, epoch",
        )
        .bind(list)
        .bind(self.floors.0.consumer.as_str().to_owned())
        .fetch_all(connection)
        .await?;
        let current = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?)));
        self.current = current.collect::<Result<_, sqlx::Error>>()?;
        Ok(())
    }
}

impl AnyTask for SettleAll {
    fn run<'a>(&'a mut self, connection: &'a mut SqliteConnection) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move { self.settle(connection).await.map_err(|e| self.floors.0.file.explain(e)) })
    }

    fn answer(mut self: Box<Self>, committed: Result<(), StoreError>) {
        // Refused before its turn came: those that wait for it are told.
        if self.settles.is_empty() {
            self.settles = self.floors.take();
        }
        for Settle { topic, number, epoch, back, .. } in self.settles {
            let place = (topic, i64::from(number), epoch.0.cast_signed());
            let answer = committed.as_ref().map(|()| self.current.contains(&place)).map_err(broker_error);
            // Who does not wait any more does not need the answer.
            drop(back.send(answer));
        }
    }
}
