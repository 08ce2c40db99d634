//! The engine in process: lanes and scheduler alone, and the whole engine on the memory broker.
//!
//! `cargo xtask bench engine`; each line is `name: value (bar B)`. Allocations and live bytes are counted by the test
//! `tests/memory.rs`.

#![allow(clippy::expect_used, reason = "a benchmark that cannot run has failed")]

use std::future::IntoFuture;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use aqueduct::broker::{Broker, MemoryBroker};
use aqueduct::format::{CloudEvents, Format};
use aqueduct::testing::bench::lanes_and_scheduler;
use aqueduct::{Bytes, Consumer, Event, Message, Router};
use tokio::runtime::Builder;
use tokio::sync::Notify;

/// Key ranks in proportion to 1/rank over 10,000 keys, as Zipf's law with exponent 1 has them.
fn zipf(n: u64) -> u64 {
    let x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 11;
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a rough mix"
    )]
    let rank = 10_000_f64.powf(x as f64 / (1_u64 << 53) as f64) as u64;
    rank
}

fn scattered(n: u64, keys: u64) -> u64 {
    (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % keys
}

fn rate(events: u64, seconds: f64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let events = events as f64;
    events / seconds
}

fn median(mut runs: Vec<f64>) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

async fn load(broker: &MemoryBroker, from: u64, events: u64, key_of: impl Fn(u64) -> u64) {
    let message = |n: u64| -> Message {
        let event =
            Event::raw("bench.event", vec![b'x'; 256]).id(n.to_string()).source("bench").key(key_of(n).to_string());
        CloudEvents::binary().encode(&event, &"bench".into()).expect("a plain event")
    };
    for start in (from..from + events).step_by(1_000) {
        let batch = (start..(start + 1_000).min(from + events)).map(message).collect();
        for receipt in broker.publish(batch).await {
            receipt.expect("room in the broker");
        }
    }
}

fn counting_router(events: u64, done: Arc<Notify>) -> Router {
    let left = Arc::new(AtomicU64::new(events));
    Router::new().on("bench.event", async move |body: Bytes| {
        std::hint::black_box(body.len());
        if left.fetch_sub(1, Ordering::Relaxed) == 1 {
            done.notify_one();
        }
    })
}

/// CPU seconds of this process so far, all threads together.
fn cpu_seconds() -> f64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    std::time::Duration::new(t.tv_sec.unsigned_abs(), u32::try_from(t.tv_nsec).unwrap_or(0)).as_secs_f64()
}

/// Events a second of the whole engine with a handler that does nothing, and CPU microseconds an event.
///
/// In rounds, as long as the caches would hold what a broker has just sent: each loads events, which is not timed, and
/// then serves until all are handled.
fn engine(rounds: u64, key_of: impl Fn(u64) -> u64 + Copy) -> (f64, f64) {
    const ROUND: u64 = 20_000;
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    let (mut seconds, mut cpu) = (0.0, 0.0);
    runtime.block_on(async {
        let broker = MemoryBroker::new().messages_max(usize::MAX);
        for round in 0..rounds {
            load(&broker, round * ROUND, ROUND, key_of).await;
            let (stop, done) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
            let stopped = Arc::clone(&stop);
            let consumer = Consumer::new("bench", broker.clone()).topics(["bench"]);
            let consumer = consumer.concurrency(1_000).buffer(8_192).buffer_per_key(8_192);
            let serve = consumer.serve(counting_router(ROUND, Arc::clone(&done)));
            let (begin, cpu_begin) = (Instant::now(), cpu_seconds());
            let serving =
                tokio::spawn(serve.with_graceful_shutdown(async move { stopped.notified().await }).into_future());
            done.notified().await;
            seconds += begin.elapsed().as_secs_f64();
            cpu += cpu_seconds() - cpu_begin;
            stop.notify_one();
            serving.await.expect("no panic").expect("a clean stop");
        }
    });
    (rate(rounds * ROUND, seconds), 1e6 / rate(rounds * ROUND, cpu))
}

/// How long 20,000 events of 200 keys take beside a key that fails with 500 events behind it and a handler that blocks its
/// thread until the end, over how long they take without: medians of runs that alternate.
fn isolation() -> f64 {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        with.push(others(true));
        without.push(others(false));
    }
    median(with) / median(without)
}

/// Seconds that the events of the healthy keys take; with a thread to spare, as the promise demands.
fn others(beside_bad_keys: bool) -> f64 {
    const EVENTS: u64 = 20_000;
    let runtime = Builder::new_multi_thread().worker_threads(3).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let broker = MemoryBroker::new();
        let message = |n: u64, kind: &'static str, key: String| {
            let event = Event::raw(kind, vec![b'x'; 256]).id(n.to_string()).source("bench").key(key);
            CloudEvents::binary().encode(&event, &"bench".into()).expect("a plain event")
        };
        let mut messages = Vec::new();
        if beside_bad_keys {
            messages.extend((0..501).map(|n| message(EVENTS + n, "fails", "failing".into())));
            messages.push(message(2 * EVENTS, "blocks", "blocking".into()));
        }
        messages.extend((0..EVENTS).map(|n| message(n, "bench.event", (n % 200).to_string())));
        broker.publish(messages).await;
        let done = Arc::new(Notify::new());
        let (unblock, blocked) = std::sync::mpsc::channel::<()>();
        let blocked = Arc::new(parking_lot::Mutex::new(blocked));
        let router = counting_router(EVENTS, Arc::clone(&done))
            .on("fails", async || -> aqueduct::Result<()> { Err(aqueduct::Error::msg("always")) })
            .on("blocks", async move || {
                let _ = blocked.lock().recv();
            });
        let begin = Instant::now();
        let serving =
            tokio::spawn(Consumer::new("bench", broker.clone()).topics(["bench"]).serve(router).into_future());
        done.notified().await;
        let seconds = begin.elapsed().as_secs_f64();
        drop(unblock);
        serving.abort();
        seconds
    })
}

fn main() {
    type Keys = fn(u64) -> u64;
    let only = std::env::args().skip(1).find(|a| !a.starts_with('-'));
    let wanted = |name: &str| only.as_deref().is_none_or(|o| name.contains(o) || o == "engine");
    let report = |name: &str, value: f64, bar: &str| println!("{name}: {value:.0} (bar {bar})");
    let mixes: [(&str, Keys); 4] = [
        ("100_keys", |n| scattered(n, 100)),
        ("10k_keys", |n| scattered(n, 10_000)),
        ("1m_keys", |n| scattered(n, 1_000_000)),
        ("zipf", zipf),
    ];
    if wanted("isolation") {
        println!("isolation_others_beside_bad_keys_ratio: {:.2} (bar 1.25)", isolation());
    }
    for (name, keys) in mixes {
        let judged = name == "10k_keys";
        if wanted("lanes") {
            let runs = (0..5).map(|_| rate(2_000_000, lanes_and_scheduler(2_000_000, keys).as_secs_f64())).collect();
            report(&format!("lanes_and_scheduler_{name}_per_s"), median(runs), if judged { "1000000" } else { "none" });
        }
        if wanted("whole") {
            let (rates, cpu) = (0..5).map(|_| engine(20, keys)).unzip();
            report(&format!("whole_engine_{name}_per_s"), median(rates), if judged { "500000" } else { "none" });
            println!("whole_engine_{name}_cpu_us_an_event: {:.2} (bar none)", median(cpu));
        }
    }
}
