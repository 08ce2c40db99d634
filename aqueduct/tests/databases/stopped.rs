//! Processes that are stopped for longer than their lease inside a transaction, and resumed: another takes over meanwhile
//! though the transaction is open, and what the first one commits then is refused.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write as _};
use std::marker::PhantomData;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aqueduct::sqlite::{SqliteBroker, SqliteFile};
use aqueduct::{Clock, Event, Publisher};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::timeout;

use crate::fresh::{TestDatabase, tables};
use crate::stopped_worker::{FENCE, HANDLER, OWN, TASK, TOPIC};

/// Longer than anything here takes, on a busy machine too.
const LONG: Duration = Duration::from_mins(2);

/// Another is to take over within 7 s; a busy machine is given some more. Much less than an attempt may take.
const TAKE_OVER: Duration = Duration::from_secs(13);

/// A database does not tell of its changes, so it is asked for them.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

const KEYS: usize = 5;

/// Events of a key that are published before and while the first process is stopped, and after it has been resumed.
const NUMBERS: [std::ops::Range<usize>; 2] = [0..4, 4..6];

/// The event in whose handler the first process is stopped.
const HELD: &str = "key 0/0";

/// Another process of this binary. It ends with this value.
struct Worker {
    process: Child,
    output: UnboundedReceiver<String>,
    said: String,
}

impl Worker {
    fn tell(&mut self, what: &str) {
        writeln!(self.process.stdin.as_mut().unwrap(), "{what}").unwrap();
    }

    /// Waits until it has said something, or panics with what it has said instead.
    async fn wait_for(&mut self, mark: &str) {
        loop {
            let Ok(Some(line)) = timeout(LONG, self.output.recv()).await else {
                panic!("it did not say {mark:?}, but: {}", self.said);
            };
            writeln!(self.said, "{line}").unwrap();
            if line.contains(mark) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.process), signal).unwrap();
    }

    /// Stops it, and answers when it stands still.
    fn stop(&self) {
        self.signal(Signal::STOP);
        let (_, status) = waitpid(Some(Pid::from_child(&self.process)), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}: {}", self.said);
    }

    /// What the library has warned of so far.
    fn warnings(&mut self) -> String {
        while let Ok(line) = self.output.try_recv() {
            writeln!(self.said, "{line}").unwrap();
        }
        self.said.lines().filter(|line| line.starts_with("@log")).collect::<Vec<_>>().join("\n")
    }

    async fn end_well(&mut self) {
        self.tell("end");
        self.wait_for("@ended").await;
        assert!(self.process.wait().unwrap().success(), "{}", self.said);
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What two processes share: a log with one partition, and tables, one of them for effects.
struct Ground<DB: TestDatabase> {
    folder: TempDir,
    prefix: String,
    publisher: Publisher,
    planted: &'static str,
    database: PhantomData<DB>,
}

impl<DB: TestDatabase> Ground<DB> {
    async fn new(planted: &'static str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (_, prefix) = tables::<DB>().await;
        let log = SqliteFile::options(folder.path().join("log.db")).partitions(1).open().await.unwrap();
        let broker = SqliteBroker::new(&log);
        broker.declare(TOPIC).await.unwrap();
        let publisher = Publisher::new("till", broker);
        let serial = if DB::NAME == "MySQL" { "bigint auto_increment" } else { "bigserial" };
        // No constraint that would hide a second effect.
        let columns = "event varchar(200), lane varchar(200), number bigint, process varchar(200)";
        let table = format!("create table {prefix}effects (at {serial} primary key, {columns})");
        DB::run(&mut DB::connect().await, table).await.unwrap();
        Self { folder, prefix, publisher, planted, database: PhantomData }
    }

    async fn worker(&self, name: &str, stands_at: &str) -> Worker {
        let task = json!({
            "name": name, "stands_at": stands_at, "planted": self.planted, "database": DB::NAME,
            "prefix": self.prefix, "log": self.folder.path().join("log.db"),
        });
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "stopped_worker::process", "--ignored", "--nocapture"])
            .env(TASK, task.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (tell, output) = unbounded_channel();
        let stdout = process.stdout.take().unwrap();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        let mut worker = Worker { process, output, said: String::new() };
        worker.wait_for("@up").await;
        worker
    }

    async fn count(&self, what: &str) -> usize {
        let sql = format!("select count(*) from {}{what}", self.prefix);
        usize::try_from(DB::number(&mut DB::connect().await, sql).await.unwrap()).unwrap()
    }

    /// Waits until there are so many.
    async fn until(&self, what: &str, count: usize) {
        let sql = format!("select count(*) from {}{what}", self.prefix);
        let (mut connection, mut look) = (DB::connect().await, tokio::time::interval(LOOK_AGAIN));
        let reached = async {
            while DB::number(&mut connection, sql.clone()).await.unwrap() < i64::try_from(count).unwrap() {
                look.tick().await;
            }
        };
        if timeout(LONG, reached).await.is_err() {
            panic!("there are {} {what} and not {count}", self.count(what).await);
        }
    }

    /// Publishes these events of every key, in the order of their numbers.
    async fn publish(&self, numbers: std::ops::Range<usize>) {
        let of_number = |n: usize| {
            (0..KEYS).map(move |key| {
                let event = Event::raw("payment.made", n.to_string()).id(format!("key {key}/{n}"));
                event.topic(TOPIC).key(format!("key {key}"))
            })
        };
        let events = numbers.flat_map(of_number).filter(|event| event.id.as_str() != HELD).collect();
        for receipt in self.publisher.publish_all(events).await {
            receipt.unwrap();
        }
    }

    async fn publish_held(&self) {
        let event = Event::raw("payment.made", "0").id(HELD).topic(TOPIC).key("key 0");
        self.publisher.publish(event).await.unwrap();
    }

    /// Every event has one effect, and those of a key came in their order.
    async fn check(&self, events: usize) {
        let found = [self.count("effects").await, self.count("inbox").await];
        assert_eq!(found, [events; 2], "effects, and events in the inbox");
        let twice = format!("effects a join {}effects b on a.event = b.event and a.at < b.at", self.prefix);
        let late = format!("effects a join {}effects b on a.lane = b.lane and a.at < b.at", self.prefix);
        assert_eq!(self.count(&twice).await, 0, "an event has two effects");
        assert_eq!(self.count(&format!("{late} and a.number >= b.number")).await, 0, "a key is out of order");
    }
}

/// When the first process goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resumed {
    /// As soon as another has taken over, with the transaction open still unless the database has ended it.
    Early,
    /// After the other one has handled everything, for which the database had to end the transaction.
    Late,
}

/// Two processes, of which the first is stopped.
struct Stopped<DB: TestDatabase> {
    ground: Ground<DB>,
    first: Worker,
    second: Worker,
    /// From the signal to the second's first effect on another key; none if there was none in time.
    taken_over: Option<Duration>,
}

impl<DB: TestDatabase> Stopped<DB> {
    /// Stops the first process at a step, and waits until the second, which stood by, has taken over.
    async fn at(step: &str, planted: &'static str) -> Self {
        let ground = Ground::<DB>::new(planted).await;
        let mut first = ground.worker("first", step).await;
        ground.until("shards where epoch > 0", 1).await;
        let second = ground.worker("second", "").await;
        ground.until("sessions", 2).await;
        first.tell("arm");
        first.wait_for("@armed").await;
        let held = step != OWN;
        if held {
            ground.publish_held().await;
        }
        first.wait_for("@stands at").await;
        first.stop();
        let clock = Clock::system();
        let stopped_at = clock.boot();
        if !held {
            ground.publish_held().await;
        }
        ground.publish(NUMBERS[0].clone()).await;
        let effect = "effects where process = 'second' and lane <> 'key 0'";
        let taken_over = timeout(TAKE_OVER, ground.until(effect, 1)).await;
        let taken_over = taken_over.is_ok().then(|| clock.boot().since(stopped_at));
        println!("{} stopped at {step:?} {planted}: taken over after {taken_over:?}", DB::NAME);
        Self { ground, first, second, taken_over }
    }

    /// Lets the first process go on, and waits until everything has an effect. Answers what of it is the first's.
    async fn resume(&mut self, resumed: Resumed) -> usize {
        let events = KEYS * NUMBERS[0].len();
        if resumed == Resumed::Late {
            self.ground.until("effects", events).await;
        }
        self.first.tell("go on");
        self.first.signal(Signal::CONT);
        self.ground.until("effects", events).await;
        self.ground.count("effects where process = 'first'").await
    }

    /// The second leaves, and the first is an owner like any other again.
    async fn goes_on(mut self) {
        let all = KEYS * NUMBERS[1].end;
        self.second.end_well().await;
        self.ground.publish(NUMBERS[1].clone()).await;
        self.ground.until("effects", all).await;
        self.first.end_well().await;
        self.ground.check(all).await;
        assert_eq!(self.ground.count("effects where process = 'first'").await, KEYS * NUMBERS[1].len());
        println!("the first one warned:\n{}\nthe second one:\n{}", self.first.warnings(), self.second.warnings());
    }
}

/// The whole of it.
async fn is_replaced_and_refused<DB: TestDatabase>(step: &str, resumed: Resumed) {
    let mut stopped = Stopped::<DB>::at(step, "").await;
    assert!(stopped.taken_over.is_some(), "nobody took over: {}", stopped.second.warnings());
    let firsts = stopped.resume(resumed).await;
    assert_eq!(firsts, 0, "what was stopped has committed after another had taken over");
    stopped.goes_on().await;
}

async fn inside_a_handler<DB: TestDatabase>() {
    is_replaced_and_refused::<DB>(HANDLER, Resumed::Early).await;
}

async fn inside_a_handler_for_longer_than_the_attempt_may_take<DB: TestDatabase>() {
    is_replaced_and_refused::<DB>(HANDLER, Resumed::Late).await;
}

/// The beat of its lease, since nothing else happens.
async fn inside_a_transaction_of_the_library<DB: TestDatabase>() {
    is_replaced_and_refused::<DB>(OWN, Resumed::Early).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_the_fence_and_the_commit() {
    is_replaced_and_refused::<aqueduct::postgres::Postgres>(FENCE, Resumed::Early).await;
}

/// The fence and the commit are one message there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_between_the_fence_and_the_commit_of_mysql() {
    let ground = Ground::<aqueduct::mysql::MySql>::new("").await;
    let mut worker = ground.worker("first", FENCE).await;
    worker.tell("arm");
    worker.wait_for("@armed").await;
    ground.publish_held().await;
    ground.publish(NUMBERS[0].clone()).await;
    ground.until("effects", KEYS * NUMBERS[0].len()).await;
    worker.end_well().await;
    assert!(!worker.said.contains("@stands at"), "{}", worker.said);
}

/// A wrong way to fence: what is stopped commits beside its successor.
async fn a_fence_that_is_read_first_is_found_out<DB: TestDatabase>() {
    let mut stopped = Stopped::<DB>::at(HANDLER, "read first").await;
    assert!(stopped.taken_over.is_some(), "nobody took over: {}", stopped.second.warnings());
    assert_eq!(stopped.resume(Resumed::Early).await, 1, "the event that it held");
}

/// Another: what is stopped keeps its successor from taking over.
async fn a_fence_that_is_locked_first_is_found_out<DB: TestDatabase>() {
    let stopped = Stopped::<DB>::at(HANDLER, "locked first").await;
    assert_eq!(stopped.taken_over, None);
}

crate::fresh::on_servers!(
    inside_a_handler,
    inside_a_handler_for_longer_than_the_attempt_may_take,
    inside_a_transaction_of_the_library,
    a_fence_that_is_read_first_is_found_out,
    a_fence_that_is_locked_first_is_found_out,
);
