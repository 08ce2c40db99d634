//! The same loops written by hand on rusqlite, without any runtime; they run in a process of their own.

use std::path::Path;

use aqueduct::Clock;
use rusqlite::{Connection, TransactionBehavior, params_from_iter, types::Value};

use crate::load::{
    BATCH, CHECKPOINT_PAGES, EFFECTS, GROUP, Ids, ROWS, SCHEMA, Speed, Stopwatch, body, headers, insert, key_of,
};

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "full")?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(EFFECTS)?;
    Ok(connection)
}

/// Publishes events with ordered ids and then handles them; the two speeds.
pub(crate) fn run(path: &Path, events: u64, handled: u64) -> rusqlite::Result<(Speed, Speed)> {
    let mut connection = open(path)?;
    Ok((publish(&mut connection, events)?, transactions(&mut connection, handled)?))
}

fn publish(connection: &mut Connection, events: u64) -> rusqlite::Result<Speed> {
    let (statements, clock, body) = ([ROWS, 1].map(|rows| (rows, insert(rows))), Clock::system(), body());
    let watch = Stopwatch::start();
    for start in (0..events).step_by(usize::try_from(BATCH).unwrap_or(usize::MAX)) {
        let batch: Vec<u64> = (start..(start + BATCH).min(events)).collect();
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut rest = &batch[..];
        while !rest.is_empty() {
            let (rows, statement) = &statements[usize::from(rest.len() < ROWS)];
            let (chunk, later) = rest.split_at(*rows);
            rest = later;
            let values = chunk.iter().flat_map(|n| {
                let id = Ids::Ordered.next(&clock);
                let headers = headers(&id, &clock);
                let key = key_of(*n).into_bytes();
                [Value::Text(id), Value::Blob(key), Value::Blob(headers), Value::Blob(body.clone())]
            });
            tx.prepare_cached(statement)?.execute(params_from_iter(values))?;
        }
        tx.commit()?;
    }
    Ok(watch.of(events))
}

fn transactions(connection: &mut Connection, events: u64) -> rusqlite::Result<Speed> {
    let clock = Clock::system();
    let watch = Stopwatch::start();
    let (mut last, mut seen) = (0_i64, 0);
    while seen < events {
        let rows: Vec<(i64, String, Vec<u8>)> = {
            let select =
                "select position, id, key, headers, body from log where position > ? order by position limit ?";
            let mut select = connection.prepare_cached(select)?;
            let rows = select.query_map((last, GROUP), |row| Ok((row.get(0)?, row.get(1)?, row.get(4)?)))?;
            rows.collect::<rusqlite::Result<_>>()?
        };
        let tx = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        for (position, id, body) in rows {
            last = position;
            tx.prepare_cached("savepoint handler")?.execute(())?;
            let inbox = "insert into inbox (consumer, id, at) values ('stock', ?, ?) on conflict do nothing";
            if tx.prepare_cached(inbox)?.execute((&id, clock.now().unix_ms()))? > 0 {
                let bytes = i64::try_from(body.len()).unwrap_or(i64::MAX);
                tx.prepare_cached("insert into effects (event, bytes) values (?, ?)")?.execute((&id, bytes))?;
            }
            tx.prepare_cached("release handler")?.execute(())?;
            seen += 1;
        }
        tx.prepare_cached("update offsets set position = ? where consumer = 'stock'")?.execute([last])?;
        tx.commit()?;
    }
    Ok(watch.of(events))
}
