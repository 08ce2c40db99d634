//! How long it takes from a commit to the handler.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aqueduct::sql::{ServerDatabase, SqlStore};
use aqueduct::{Consumer, Event, MemoryBroker, Relay, Router};
use parking_lot::Mutex;
use sqlx::Pool;
use tokio::sync::Notify;

use super::{Bench, event};

/// How long events are written at a rate.
const SECONDS: u64 = 10;

/// Milliseconds from the return of a commit to the handler, the median and what 99 of 100 are below, at so many events a second.
pub(crate) async fn latency<DB: Bench>(home: &ServerDatabase<DB>, pool: &Pool<DB>, rate: u64) -> [f64; 2] {
    let (broker, outbox) = (MemoryBroker::new(), DB::outbox(home));
    let came = Arc::new(Mutex::new(vec![None; usize::try_from(rate * SECONDS).expect("few")]));
    let (all, end) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (note, told) = (Arc::clone(&came), Arc::clone(&all));
    let handler = async move |event: Event| -> aqueduct::Result<()> {
        let (now, n): (_, usize) = (Instant::now(), event.id.as_str().parse()?);
        note.lock()[n] = Some(now);
        told.notify_one();
        Ok(())
    };
    let stop = Arc::clone(&end);
    let consumer =
        Consumer::new("stock", broker.clone()).topics(["orders"]).serve(Router::new().on("order.placed", handler));
    let consumer = tokio::spawn(consumer.with_graceful_shutdown(async move { stop.notified().await }).into_future());
    let relay = tokio::spawn(Relay::new(&SqlStore::new(home), broker.clone()).serve().into_future());
    let mut tick = tokio::time::interval(Duration::from_micros(1_000_000 / rate));
    let (committed, written) = (Arc::new(Mutex::new(vec![None; came.lock().len()])), rate * SECONDS);
    let mut writers = tokio::task::JoinSet::new();
    for n in 0..written {
        tick.tick().await;
        let (outbox, pool, committed) = (outbox.clone(), pool.clone(), Arc::clone(&committed));
        writers.spawn(async move {
            DB::write(&outbox, &pool, vec![event(n)]).await;
            committed.lock()[usize::try_from(n).expect("few")] = Some(Instant::now());
        });
    }
    while writers.join_next().await.is_some() {}
    while came.lock().iter().any(Option::is_none) {
        all.notified().await;
    }
    end.notify_one();
    relay.abort();
    consumer.await.expect("no panic").expect("it serves");
    let (came, committed) = (came.lock(), committed.lock());
    // The first second is for the relay to take its shards.
    let first = usize::try_from(rate).expect("few");
    let pairs = came.iter().zip(&*committed).skip(first).filter_map(|(came, committed)| came.zip(*committed));
    let mut took: Vec<f64> = pairs.map(|(came, at)| came.saturating_duration_since(at).as_secs_f64() * 1e3).collect();
    took.sort_by(f64::total_cmp);
    [took[took.len() / 2], took[took.len() * 99 / 100]]
}
