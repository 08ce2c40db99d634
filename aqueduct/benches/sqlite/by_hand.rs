//! The same loops written by hand on sqlx: as short as they can be, with the least that is correct.

use std::path::Path;
use std::sync::Arc;

use aqueduct::Clock;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row};

use crate::load::{
    BATCH, CHECKPOINT_PAGES, EFFECTS, GROUP, Ids, READ, ROWS, SCHEMA, Speed, Stopwatch, body, headers, insert, key_of,
};

/// A log and one consumer of it on one connection.
pub(crate) struct ByHand {
    connection: SqliteConnection,
    clock: Clock,
}

impl ByHand {
    pub(crate) async fn new(path: &Path) -> sqlx::Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .pragma("wal_autocheckpoint", CHECKPOINT_PAGES.to_string())
            .disable_statement_logging();
        let mut connection = options.connect().await?;
        sqlx::raw_sql(SCHEMA).execute(&mut connection).await?;
        sqlx::raw_sql(EFFECTS).execute(&mut connection).await?;
        Ok(Self { connection, clock: Clock::system() })
    }

    /// Publishes events, a transaction for each batch.
    pub(crate) async fn publish(&mut self, events: u64, ids: Ids) -> sqlx::Result<Speed> {
        let statements = [ROWS, 1].map(|rows| (rows, Arc::<str>::from(insert(rows))));
        let body = body();
        let watch = Stopwatch::start();
        for start in (0..events).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX)) {
            let batch: Vec<u64> = (start..(start + BATCH).min(events)).collect();
            let mut tx = self.connection.begin_with("begin immediate").await?;
            let mut rest = &batch[..];
            while !rest.is_empty() {
                let (rows, statement) = &statements[usize::from(rest.len() < ROWS)];
                let (chunk, later) = rest.split_at(*rows);
                rest = later;
                let mut query = sqlx::query(AssertSqlSafe(Arc::clone(statement)));
                for n in chunk {
                    let id = ids.next(&self.clock);
                    let headers = headers(&id, &self.clock);
                    query = query.bind(id).bind(key_of(*n).into_bytes()).bind(headers).bind(body.clone());
                }
                query.execute(&mut *tx).await?;
            }
            tx.commit().await?;
        }
        Ok(watch.of(events))
    }

    /// Reads all events and commits how far it came after each read.
    pub(crate) async fn consume(&mut self, events: u64) -> sqlx::Result<Speed> {
        let watch = Stopwatch::start();
        let (mut last, mut seen) = (0_i64, 0);
        while seen < events {
            let select = "select position, key, headers, body from log where position > ? order by position limit ?";
            let rows = sqlx::query(select).bind(last).bind(READ).fetch_all(&mut self.connection).await?;
            for row in &rows {
                last = row.try_get(0)?;
                let (key, headers): (Option<Vec<u8>>, Vec<u8>) = (row.try_get(1)?, row.try_get(2)?);
                let body: Vec<u8> = row.try_get(3)?;
                std::hint::black_box((key, headers, body));
                seen += 1;
            }
            let update = sqlx::query("update offsets set position = ? where consumer = 'stock'").bind(last);
            update.execute(&mut self.connection).await?;
        }
        Ok(watch.of(events))
    }

    /// Reads all events and runs a handler for each, with its inbox row inside a savepoint, many in one commit.
    pub(crate) async fn transactions(&mut self, events: u64) -> sqlx::Result<Speed> {
        let watch = Stopwatch::start();
        let (mut last, mut seen) = (0_i64, 0);
        while seen < events {
            let select =
                "select position, id, key, headers, body from log where position > ? order by position limit ?";
            let rows = sqlx::query(select).bind(last).bind(GROUP).fetch_all(&mut self.connection).await?;
            let mut tx = self.connection.begin_with("begin immediate").await?;
            for row in &rows {
                last = row.try_get(0)?;
                let (id, body): (String, Vec<u8>) = (row.try_get(1)?, row.try_get(4)?);
                sqlx::query("savepoint handler").execute(&mut *tx).await?;
                let inbox = "insert into inbox (consumer, id, at) values ('stock', ?, ?) on conflict do nothing";
                let inbox = sqlx::query(inbox).bind(id.clone()).bind(self.clock.now().unix_ms());
                if inbox.execute(&mut *tx).await?.rows_affected() > 0 {
                    effect(&mut tx, id, body.len()).await?;
                }
                sqlx::query("release handler").execute(&mut *tx).await?;
                seen += 1;
            }
            let update = sqlx::query("update offsets set position = ? where consumer = 'stock'").bind(last);
            update.execute(&mut *tx).await?;
            tx.commit().await?;
        }
        Ok(watch.of(events))
    }
}

/// What a handler does, on both sides.
pub(crate) async fn effect(connection: &mut SqliteConnection, id: String, bytes: usize) -> sqlx::Result<()> {
    let insert = sqlx::query("insert into effects (event, bytes) values (?, ?)");
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    insert.bind(id).bind(bytes).execute(connection).await.map(drop)
}
