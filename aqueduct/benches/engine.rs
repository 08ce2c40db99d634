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

async fn load(broker: &MemoryBroker, events: u64, key_of: impl Fn(u64) -> u64) {
    let message = |n: u64| -> Message {
        let event =
            Event::raw("bench.event", vec![b'x'; 256]).id(n.to_string()).source("bench").key(key_of(n).to_string());
        CloudEvents::binary().encode(&event, &"bench".into()).expect("a plain event")
    };
    for start in (0..events).step_by(1_000) {
        let batch = (start..(start + 1_000).min(events)).map(message).collect();
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
fn engine(events: u64, key_of: impl Fn(u64) -> u64) -> (f64, f64) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let broker = MemoryBroker::new().messages_max(usize::MAX);
        load(&broker, events, key_of).await;
        let done = Arc::new(Notify::new());
        let consumer = Consumer::new("bench", broker.clone()).topics(["bench"]);
        let consumer = consumer.concurrency(1_000).buffer(8_192).buffer_per_key(8_192);
        let (begin, cpu) = (Instant::now(), cpu_seconds());
        let serving = tokio::spawn(consumer.serve(counting_router(events, Arc::clone(&done))).into_future());
        done.notified().await;
        let seconds = begin.elapsed().as_secs_f64();
        let cpu = cpu_seconds() - cpu;
        serving.abort();
        (rate(events, seconds), 1e6 / rate(events, cpu))
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
    for (name, keys) in mixes {
        let judged = name == "10k_keys";
        if wanted("lanes") {
            let runs = (0..5).map(|_| rate(2_000_000, lanes_and_scheduler(2_000_000, keys).as_secs_f64())).collect();
            report(&format!("lanes_and_scheduler_{name}_per_s"), median(runs), if judged { "1000000" } else { "none" });
        }
        if wanted("whole") {
            let (rates, cpu) = (0..5).map(|_| engine(400_000, keys)).unzip();
            report(&format!("whole_engine_{name}_per_s"), median(rates), if judged { "500000" } else { "none" });
            println!("whole_engine_{name}_cpu_us_an_event: {:.2} (bar none)", median(cpu));
        }
    }
}
