//! Instances of a consumer in processes that join, leave, are killed and stopped, and a server that is killed under them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aqueduct::broker::Broker;
use aqueduct::{Clock, Topic};
use aqueduct_servers::{Nats, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use async_nats::jetstream::stream::{Config, RetentionPolicy};

use crate::consume::event;
use crate::fresh::{pass, raw_at};
use crate::judge::{Still, Story};
use crate::process::{LONG, Worker};
use crate::worker::{TOPIC, options};

const KEYS: u64 = 200;
const PARTITIONS: u32 = 16;

/// Events that are published at once, each of another key, and how often.
const AT_ONCE: usize = 10;
const PACE: Duration = Duration::from_millis(10);

/// What `cargo xtask chaos` asks for; 20 s in a usual test run.
fn length() -> Duration {
    let seconds = std::env::var("AQUEDUCT_CHAOS_SECONDS").map_or(20, |value| value.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Publishes the next event of one key after another.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Load {
    fn begin(broker: impl Broker) -> Self {
        let (stop, rounds) = (Arc::new(AtomicBool::new(false)), AtomicU64::new(0));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let (topic, mut pace) = (Topic::from(TOPIC), tokio::time::interval(PACE));
            while !stopped.load(Ordering::Relaxed) {
                let number = rounds.fetch_add(1, Ordering::Relaxed);
                for first in (0..KEYS).step_by(AT_ONCE) {
                    pace.tick().await;
                    let events = (first..).take(AT_ONCE).map(|key| event(&topic, key, number)).collect();
                    for receipt in broker.publish(events).await {
                        receipt.unwrap();
                    }
                }
            }
            rounds.into_inner()
        });
        Self { stop, task }
    }

    /// Ends it; answers how many of each key there are.
    async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// A process of the fleet.
struct Instance {
    name: String,
    worker: Worker,
}

impl Instance {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.worker.process), signal).unwrap();
    }
}

/// How the topic lies on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// Declared: one stream, a reader for each partition.
    Declared,
    /// A work queue that others have made.
    WorkQueue,
}

/// All instances there were.
struct Fleet {
    folder: TempDir,
    server: Nats,
    layout: Layout,
    unguarded: bool,
    work_us: u64,
    clock: Clock,
    names: Vec<String>,
    running: Vec<Instance>,
    /// Those that stand still, since when.
    still: Vec<(u64, Instance)>,
    stills: Vec<Still>,
    crashed: Vec<String>,
    left: Vec<String>,
}

impl Fleet {
    async fn start(instances: usize, layout: Layout, unguarded: bool, work_us: u64) -> (Self, Load) {
        let server = Nats::start(Options::new()).unwrap();
        let broker = options(&server.url()).connect().await.unwrap();
        match layout {
            Layout::Declared => broker.declare(Topic::from(TOPIC)).await.unwrap(),
            Layout::WorkQueue => {
                let (raw, retention) = (raw_at(&server.url()).await, RetentionPolicy::WorkQueue);
                let subjects = vec![TOPIC.to_owned()];
                raw.create_stream(Config { name: TOPIC.to_owned(), subjects, retention, ..Config::default() })
                    .await
                    .unwrap();
            }
        }
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let mut fleet = Self {
            folder,
            server,
            layout,
            unguarded,
            work_us,
            clock,
            names: Vec::new(),
            running: Vec::new(),
            still: Vec::new(),
            stills: Vec::new(),
            crashed: Vec::new(),
            left: Vec::new(),
        };
        for _ in 0..instances {
            fleet.join();
        }
        let load = match layout {
            Layout::Declared => Load::begin(broker),
            Layout::WorkQueue => Load::begin(broker.foreign()),
        };
        (fleet, load)
    }

    fn join(&mut self) {
        let name = format!("instance-{}", self.names.len());
        let mut task = json!({
            "url": self.server.url(), "consumer": "stock", "unguarded": self.unguarded, "work_us": self.work_us,
        });
        if self.layout == Layout::WorkQueue {
            task["stream"] = json!(TOPIC);
        }
        let mut worker = Worker::start(self.folder.path(), &name, task);
        tokio::task::block_in_place(|| worker.wait_for("@up"));
        self.names.push(name.clone());
        self.running.push(Instance { name, worker });
    }

    fn any(&mut self) -> Instance {
        let index = self.clock.random(self.running.len() as u64);
        self.running.swap_remove(usize::try_from(index).unwrap())
    }

    fn kill(&mut self) {
        let mut instance = self.any();
        instance.worker.kill();
        self.crashed.push(instance.name);
    }

    fn leave(&mut self) {
        let mut instance = self.any();
        tell_to_leave(&mut instance);
        tokio::task::block_in_place(|| instance.worker.end_well());
        self.left.push(instance.name);
    }

    fn suspend(&mut self) {
        let instance = self.any();
        instance.signal(Signal::STOP);
        self.still.push((self.clock.boot().0, instance));
    }

    fn resume(&mut self, index: usize) {
        let (from, instance) = self.still.remove(index);
        instance.signal(Signal::CONT);
        self.stills.push(Still { process: instance.name.clone(), from });
        self.running.push(instance);
    }

    fn story(&self) -> Story {
        Story::read(self.folder.path(), &self.names)
    }

    /// Ends the load, waits until all has had its effect, and ends the instances.
    async fn end(&mut self, load: Load) -> (Story, u64) {
        while !self.still.is_empty() {
            self.resume(0);
        }
        let each = load.end().await;
        let settled = async {
            while self.story().missing(KEYS, each) > 0 {
                pass(Duration::from_millis(50)).await;
            }
        };
        // What is missing then is told by the judge.
        let _ = tokio::time::timeout(LONG, settled).await;
        for mut instance in std::mem::take(&mut self.running) {
            tell_to_leave(&mut instance);
            tokio::task::block_in_place(|| instance.worker.end_well());
        }
        (self.story(), each)
    }
}

fn tell_to_leave(instance: &mut Instance) {
    use std::io::Write;
    instance.worker.input.as_mut().unwrap().write_all(b"leave\n").unwrap();
}

/// The partition of a key, by the hash that the server has, too.
fn partition(key: u64) -> u32 {
    let hash = format!("k{key}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash % PARTITIONS
}

/// From 15 to 30 s, and long enough to be struck off in a short run.
fn standstill(clock: &Clock, length: Duration) -> u64 {
    let (least, more) = if length >= Duration::from_mins(1) { (15, 15) } else { (7, 3) };
    (least * 1_000 + clock.random(more * 1_000)) * 1_000_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_instances_nothing_is_lost_and_keys_keep_their_order() {
    whatever_happens(Layout::Declared).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_happens_to_instances_on_a_work_queue_nothing_is_lost_and_keys_keep_their_order() {
    whatever_happens(Layout::WorkQueue).await;
}

async fn whatever_happens(layout: Layout) {
    let (length, clock) = (length(), Clock::system());
    let (mut fleet, load) = Fleet::start(5, layout, false, 5_000).await;
    let begun = clock.boot();
    let end = begun.after(length);
    let mut server_killed = false;
    while clock.boot() < end {
        pass(Duration::from_millis(1_000 + clock.random(2_000))).await;
        let now = clock.boot();
        for index in (0..fleet.still.len()).rev() {
            if now.0 - fleet.still[index].0 > standstill(&clock, length) {
                fleet.resume(index);
            }
        }
        if !server_killed && now.since(begun) > length / 2 {
            server_killed = true;
            fleet.server.kill().unwrap();
            fleet.server.start_again().unwrap();
            continue;
        }
        let dice = clock.random(8);
        match fleet.running.len() {
            0..=2 => fleet.join(),
            3..=6 if dice < 2 => fleet.kill(),
            3..=6 if dice < 4 => fleet.suspend(),
            3..=6 if dice < 6 => fleet.join(),
            _ => fleet.leave(),
        }
    }
    let (story, each) = fleet.end(load).await;
    let pauses = |names: &[String]| names.iter().map(|name| story.longest_pause(name, partition)).max().unwrap_or(0);
    println!(
        "{layout:?}: {} events, {} instances: {} killed, {} stopped, {} left; {} repeats; a partition stood still for {} ms after a crash, {} ms \
         after a leave",
        KEYS * each,
        fleet.names.len(),
        fleet.crashed.len(),
        fleet.stills.len(),
        fleet.left.len(),
        story.repeats(),
        pauses(&fleet.crashed),
        pauses(&fleet.left),
    );
    let faults = story.faults(&fleet.stills, KEYS, each);
    assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(20)]);
}

/// One of two instances stands still until the other has taken over, and goes on.
async fn a_zombie(unguarded: bool) -> Vec<String> {
    let (mut fleet, load) = Fleet::start(2, Layout::Declared, unguarded, 50_000).await;
    let both = async {
        while fleet.story().runs.iter().filter(|run| run.process == fleet.names[1]).count() < 100 {
            pass(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, both).await.expect("both work");
    let first = fleet.running.remove(0);
    fleet.running.push(first);
    fleet.suspend();
    let (since, stopped) = (fleet.still[0].0, fleet.still[0].1.name.clone());
    let taken = async {
        loop {
            let story = fleet.story();
            let of = |run: &&crate::judge::Run| run.process == stopped;
            let partitions: std::collections::BTreeSet<u32> =
                story.runs.iter().filter(of).map(|run| partition(run.key)).collect();
            let taken: std::collections::BTreeSet<u32> = story
                .runs
                .iter()
                .filter(|run| run.process != stopped && run.effect > since)
                .map(|run| partition(run.key))
                .collect();
            if partitions.is_subset(&taken) {
                return;
            }
            pass(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(LONG, taken).await.expect("the other takes over");
    fleet.resume(0);
    let (story, each) = fleet.end(load).await;
    story.faults(&fleet.stills, KEYS, each)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_goes_on_after_it_was_replaced_does_nothing_more() {
    assert_eq!(a_zombie(false).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_guard_its_effects_are_found() {
    let faults = a_zombie(true).await;
    assert!(faults.iter().any(|fault| fault.contains("starts the same key")), "{faults:?}");
}
