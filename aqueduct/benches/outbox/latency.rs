//! How long it takes from a commit to the handler.

use std::future::IntoFuture;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aqueduct::sql::ServerDatabase;
use aqueduct::{Consumer, Event, MemoryBroker, Router};
use parking_lot::Mutex;
use sqlx::Pool;
use tokio::sync::Notify;

use super::{Bench, Running, event, until_empty};

/// How long events are written at a rate.
const SECONDS: u64 = 5;

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
    let relay = Running::start(home, broker.clone());
    // From now on it has its shards.
    DB::write(&outbox, pool, (0..200).map(|n| event(n).topic("others")).collect()).await;
    until_empty(pool).await;
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
    relay.end().await;
    consumer.await.expect("no panic").expect("it serves");
    let (came, committed) = (came.lock(), committed.lock());
    let pairs = came.iter().zip(&*committed).filter_map(|(came, committed)| came.zip(*committed));
    let mut took: Vec<f64> = pairs.map(|(came, at)| came.saturating_duration_since(at).as_secs_f64() * 1e3).collect();
    took.sort_by(f64::total_cmp);
    [took[took.len() / 2], took[took.len() * 99 / 100]]
}
