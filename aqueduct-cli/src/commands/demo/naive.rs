//! The same faults with a plain loop, as it is written every day: take an event, handle it, acknowledge it, on failure give it
//! back; several tasks at once. The queue is durable, gives back what was not acknowledged in time, and drops what was
//! delivered five times, as queues do.

use std::path::Path;
use std::time::Duration;

use aqueduct::{Clock, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode};
use sqlx::{ConnectOptions, Row};

use super::story::{Story, Webhook, handle, read};
use super::{Scene, effects, worked};

/// Tasks that handle events.
const TASKS: usize = 8;
/// Deliveries of one event at most.
const DELIVERIES_MAX: u32 = 5;
/// How long a task waits when there is nothing to do.
const IDLE: Duration = Duration::from_millis(20);

const QUEUE: &str = "create table if not exists queue (
    id integer primary key, event text not null, deliveries integer not null default 0, visible_at integer not null default 0
)";

/// The queue.
pub(super) struct Queue(SqliteConnection);

/// An event that was taken.
struct Taken {
    id: i64,
    event: String,
    deliveries: u32,
}

impl Queue {
    pub(super) async fn open(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
        let options = options.journal_mode(SqliteJournalMode::Wal).busy_timeout(Duration::from_secs(30));
        let mut connection = options.disable_statement_logging().connect().await?;
        sqlx::query(QUEUE).execute(&mut connection).await?;
        Ok(Self(connection))
    }

    /// Takes the first event that nobody has; it comes again unless it is acknowledged in time.
    async fn receive(&mut self, patience: Duration) -> Result<Option<Taken>> {
        let now = Clock::system().now();
        let row = sqlx::query(
            "update queue set deliveries = deliveries + 1, visible_at = ?
             where id = (select min(id) from queue where visible_at <= ?) returning id, event, deliveries",
        )
        .bind(now.after(patience).unix_ms())
        .bind(now.unix_ms())
        .fetch_optional(&mut self.0)
        .await?;
        let taken = |row: sqlx::sqlite::SqliteRow| {
            Ok(Taken { id: row.try_get(0)?, event: row.try_get(1)?, deliveries: row.try_get(2)? })
        };
        row.map(taken).transpose()
    }

    async fn ack(&mut self, id: i64) -> Result<()> {
        sqlx::query("delete from queue where id = ?").bind(id).execute(&mut self.0).await?;
        Ok(())
    }

    /// Gives an event back, for another try in a while.
    async fn nack(&mut self, taken: &Taken, delay: Duration) -> Result<()> {
        if taken.deliveries >= DELIVERIES_MAX {
            return self.ack(taken.id).await;
        }
        let at = Clock::system().now().after(delay).unix_ms();
        sqlx::query("update queue set visible_at = ? where id = ?")
            .bind(at)
            .bind(taken.id)
            .execute(&mut self.0)
            .await?;
        Ok(())
    }

    async fn len(&mut self) -> Result<usize> {
        let row = sqlx::query("select count(*) from queue").fetch_one(&mut self.0).await?;
        Ok(usize::try_from(row.try_get::<i64, _>(0)?).unwrap_or(0))
    }
}

impl Scene for Queue {
    async fn publish(&mut self, webhook: &Webhook) -> Result<()> {
        sqlx::query("insert into queue (event) values (?)").bind(webhook.line).execute(&mut self.0).await?;
        Ok(())
    }

    async fn waiting(&mut self) -> Result<usize> {
        self.len().await
    }

    async fn dead(&mut self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }

    async fn is_through(&mut self, _: usize, _: usize) -> Result<bool> {
        Ok(self.len().await? == 0)
    }
}

/// The process that handles the events, until it is ended.
pub(super) async fn work(path: &Path, story: Story) -> Result<()> {
    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        let mut queue = Queue::open(path).await?;
        tasks.push(tokio::spawn(async move {
            loop {
                if let Err(error) = consume(&mut queue, &story).await {
                    tracing::warn!(%error, "an event failed");
                }
            }
        }));
    }
    for task in tasks {
        // One that has panicked does no more, which nobody notices.
        drop(task.await);
    }
    Ok(())
}

/// One turn of the loop.
async fn consume(queue: &mut Queue, story: &Story) -> Result<()> {
    let Some(taken) = queue.receive(story.share(1.0 / 7.0)).await? else {
        tokio::time::sleep(IDLE).await;
        return Ok(());
    };
    let event = read(&taken.event)?;
    if let Err(error) = handle(&event, taken.deliveries, story) {
        queue.nack(&taken, story.share(1.0 / 40.0)).await?;
        return Err(error);
    }
    effects::insert(&mut queue.0, &event).await?;
    worked(&event);
    queue.ack(taken.id).await
}
