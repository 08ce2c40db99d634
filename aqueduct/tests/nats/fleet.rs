//! A fleet: instances of a consumer in processes, a server or a cluster under them, and a publisher.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aqueduct::broker::Broker;
use aqueduct::nats::NatsTopic;
use aqueduct::{Clock, Topic};
use aqueduct_servers::{Nats, NatsCluster, Options};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use async_nats::jetstream::stream::{Config, RetentionPolicy};
use futures_util::TryStreamExt;

use crate::consume::event;
use crate::fresh::{pass, raw_at};
use crate::judge::{Still, Story};
use crate::process::{LONG, Worker};
use crate::worker::{TOPIC, options};

pub(crate) const KEYS: u64 = 200;
pub(crate) const PARTITIONS: u32 = 16;

/// Events that are published at once, each of another key, and how often.
const AT_ONCE: usize = 10;
const PACE: Duration = Duration::from_millis(10);

/// Publishes the next event of one key after another.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<u64>,
}

impl Load {
    pub(crate) fn begin(broker: impl Broker) -> Self {
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
    pub(crate) async fn end(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// A process of the fleet.
pub(crate) struct Instance {
    pub(crate) name: String,
    pub(crate) worker: Worker,
}

impl Instance {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.worker.process), signal).unwrap();
    }
}

/// One server or three.
pub(crate) enum Servers {
    One(Nats),
    Cluster(NatsCluster),
}

impl Servers {
    pub(crate) fn url(&self) -> String {
        match self {
            Self::One(server) => server.url(),
            Self::Cluster(cluster) => cluster.url(),
        }
    }

    pub(crate) fn all(&self) -> &[Nats] {
        match self {
            Self::One(server) => std::slice::from_ref(server),
            Self::Cluster(cluster) => cluster.servers(),
        }
    }
}

/// How the topic lies on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    /// Declared: one stream, a reader for each partition.
    Declared,
    /// A work queue that others have made.
    WorkQueue,
}

/// All instances there were.
pub(crate) struct Fleet {
    folder: TempDir,
    pub(crate) servers: Servers,
    /// Where instances find the server, if not at its own address.
    pub(crate) url: Option<String>,
    layout: Layout,
    /// Whether instances poll handlers whatever has become of their leases.
    pub(crate) unguarded: bool,
    /// How long a handler waits at most.
    pub(crate) work_us: u64,
    clock: Clock,
    pub(crate) names: Vec<String>,
    pub(crate) running: Vec<Instance>,
    /// Those that stand still, since when.
    pub(crate) still: Vec<(u64, Instance)>,
    pub(crate) stills: Vec<Still>,
    pub(crate) crashed: Vec<String>,
    pub(crate) left: Vec<String>,
}

impl Fleet {
    /// A fleet without instances, on a server of its own.
    pub(crate) async fn new(layout: Layout) -> (Self, Load) {
        Self::on(Servers::One(Nats::start(Options::new()).unwrap()), layout).await
    }

    /// A fleet without instances.
    pub(crate) async fn on(servers: Servers, layout: Layout) -> (Self, Load) {
        let broker = options(&servers.url()).connect().await.unwrap();
        let num_replicas = servers.all().len();
        match layout {
            Layout::Declared => broker.declare(NatsTopic::new(TOPIC).replicas(num_replicas)).await.unwrap(),
            Layout::WorkQueue => {
                let (raw, retention) = (raw_at(&servers.url()).await, RetentionPolicy::WorkQueue);
                let (name, subjects) = (TOPIC.to_owned(), vec![TOPIC.to_owned()]);
                let config = Config { name, subjects, retention, num_replicas, ..Config::default() };
                raw.create_stream(config).await.unwrap();
            }
        }
        let (folder, clock) = (tempfile::tempdir().unwrap(), Clock::system());
        let fleet = Self {
            folder,
            servers,
            url: None,
            layout,
            unguarded: false,
            work_us: 5_000,
            clock,
            names: Vec::new(),
            running: Vec::new(),
            still: Vec::new(),
            stills: Vec::new(),
            crashed: Vec::new(),
            left: Vec::new(),
        };
        let load = match layout {
            Layout::Declared => Load::begin(broker),
            Layout::WorkQueue => Load::begin(broker.foreign()),
        };
        (fleet, load)
    }

    pub(crate) fn join(&mut self) {
        let (name, url) = (format!("instance-{}", self.names.len()), self.url.clone());
        let mut task = json!({
            "url": url.unwrap_or_else(|| self.servers.url()), "consumer": "stock", "unguarded": self.unguarded, "work_us": self.work_us,
        });
        if self.layout == Layout::WorkQueue {
            task["stream"] = json!(TOPIC);
        }
        let mut worker = Worker::start(self.folder.path(), &name, task);
        tokio::task::block_in_place(|| worker.wait_for("@up"));
        self.names.push(name.clone());
        self.running.push(Instance { name, worker });
    }

    /// Waits until the fleet has had so many more effects.
    pub(crate) async fn more(&self, effects: usize) {
        let before = self.story().runs.len();
        let more = async {
            while self.story().runs.len() < before + effects {
                pass(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LONG, more).await.expect("the fleet works");
    }

    /// Ends it as [`end`](Self::end) does; nothing may have gone wrong.
    pub(crate) async fn end_well(&mut self, load: Load) -> Story {
        let (story, each) = self.end(load).await;
        let faults = story.faults(&self.stills, (KEYS, each), self.layout == Layout::WorkQueue);
        assert!(faults.is_empty(), "{} faults: {:#?}", faults.len(), &faults[..faults.len().min(20)]);
        story
    }

    pub(crate) fn any(&mut self) -> Instance {
        let index = self.clock.random(self.running.len() as u64);
        self.running.swap_remove(usize::try_from(index).unwrap())
    }

    pub(crate) fn kill(&mut self) {
        let mut instance = self.any();
        instance.worker.kill();
        self.crashed.push(instance.name);
    }

    pub(crate) fn leave(&mut self) {
        let instance = self.any();
        self.leaves(instance);
    }

    /// One leaves, and has ended.
    pub(crate) fn leaves(&mut self, mut instance: Instance) {
        tell_to_leave(&mut instance);
        tokio::task::block_in_place(|| instance.worker.end_well());
        self.left.push(instance.name);
    }

    pub(crate) fn suspend(&mut self) {
        let instance = self.any();
        instance.signal(Signal::STOP);
        self.still.push((self.clock.boot().0, instance));
    }

    pub(crate) fn resume(&mut self, index: usize) {
        let (from, instance) = self.still.remove(index);
        instance.signal(Signal::CONT);
        self.stills.push(Still { process: instance.name.clone(), from });
        self.running.push(instance);
    }

    pub(crate) fn story(&self) -> Story {
        Story::read(self.folder.path(), &self.names)
    }

    /// Ends the load, waits until all has had its effect, and ends the instances.
    pub(crate) async fn end(&mut self, load: Load) -> (Story, u64) {
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
        if tokio::time::timeout(LONG, settled).await.is_err() {
            self.tell_what_stands().await;
        }
        for mut instance in std::mem::take(&mut self.running) {
            tell_to_leave(&mut instance);
            tokio::task::block_in_place(|| instance.worker.end_well());
        }
        (self.story(), each)
    }
}

impl Fleet {
    /// Prints what instances said last, and what the server knows of their readers.
    async fn tell_what_stands(&mut self) {
        for instance in &mut self.running {
            println!("{}: {}", instance.name, instance.worker.story());
        }
        let stream = raw_at(&self.servers.url()).await.get_stream(TOPIC).await.unwrap();
        let readers: Vec<_> = stream.consumers().try_collect().await.unwrap();
        for info in readers.iter().filter(|info| info.num_pending > 0 || info.num_ack_pending > 0) {
            println!("{info:?}");
        }
    }
}

fn tell_to_leave(instance: &mut Instance) {
    use std::io::Write;
    instance.worker.input.as_mut().unwrap().write_all(b"leave\n").unwrap();
}

/// The partition of a key, by the hash that the server has, too.
pub(crate) fn partition(key: u64) -> u32 {
    let hash = format!("k{key}")
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash % PARTITIONS
}
