//! Writing down up to where a consumer has settled its partitions: those of all in one write, and not too often.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::broker_error;
use super::merge::{Merge, Merged};
use crate::error::{BrokerError, StoreError};
use crate::outcome::BoxFuture;
use crate::store::sql::sqlite::SqliteFile;
use crate::topic::{Epoch, Text};

/// The time from one write to the next: each waits for the disk, and what is not written is only handled again after a crash.
const EVERY: Duration = Duration::from_millis(10);

/// The floors of a consumer on their way into the file.
pub(super) struct Floors(Merged<Settling>);

struct Settling {
    consumer: Text,
    /// When the last write began.
    wrote_at: Mutex<Option<Instant>>,
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
        Self(Merged::new(file, Settling { consumer: consumer.clone(), wrote_at: Mutex::new(None) }))
    }

    /// Writes down up to where a partition is settled. Answers false if it is owned under another epoch.
    pub(super) async fn settle(
        &self,
        (topic, number): (i64, u32),
        epoch: Epoch,
        floor: u64,
    ) -> Result<bool, BrokerError> {
        let (back, answer) = oneshot::channel();
        self.0.push(Settle { topic, number, epoch, floor, back });
        answer.await.unwrap_or(Err(BrokerError::Closed))
    }
}

impl Settling {
    /// Answers the topic, number and epoch of those that are owned under the epoch that was named.
    async fn settle(
        &self,
        settles: &[Settle],
        connection: &mut SqliteConnection,
    ) -> Result<Vec<(i64, i64, i64)>, sqlx::Error> {
        // One row of an update takes in one value.
        let mut highest: BTreeMap<(i64, u32, u64), u64> = BTreeMap::new();
        for Settle { topic, number, epoch, floor, .. } in settles {
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
        .bind(self.consumer.as_str().to_owned())
        .fetch_all(connection)
        .await?;
        rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?, row.try_get(2)?))).collect()
    }
}

impl Merge for Settling {
    type Part = Settle;
    type Done = Vec<(i64, i64, i64)>;

    const COST_MAX: usize = usize::MAX;

    fn cost(_: &Settle) -> usize {
        1
    }

    fn not_before(&self) -> Option<Instant> {
        self.wrote_at.lock().map(|at| at + EVERY)
    }

    fn run<'a>(
        &'a self,
        file: &'a SqliteFile,
        settles: &'a [Settle],
        connection: &'a mut SqliteConnection,
    ) -> BoxFuture<'a, Result<Self::Done, StoreError>> {
        *self.wrote_at.lock() = Some(Instant::now());
        Box::pin(async move { self.settle(settles, connection).await.map_err(|e| file.explain(e)) })
    }

    fn answer(&self, settles: Vec<Settle>, done: Result<Self::Done, StoreError>) -> Vec<Settle> {
        for Settle { topic, number, epoch, back, .. } in settles {
            let place = (topic, i64::from(number), epoch.0.cast_signed());
            let answer = done.as_ref().map(|current| current.contains(&place)).map_err(broker_error);
            // Who does not wait any more does not need the answer.
            drop(back.send(answer));
        }
        Vec::new()
    }
}
