//! Relays in processes of their own: this test binary, started again with a task.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aqueduct::broker::{Abilities, Broker, Membership, Receipt, Subscription};
use aqueduct::mysql::MySql;
use aqueduct::postgres::Postgres;
use aqueduct::sql::SqlStore;
use aqueduct::sqlite::SqliteBroker;
use aqueduct::{BoxFuture, BrokerError, Clock, Event, Message, OutboxTable, Relay, Topic};
use rustix::process::{Pid, Signal, getpid, kill_process};
use serde_json::{Value, json};
use sqlx::{Connection as _, Database as _};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::fresh::TestDatabase;
use crate::relay::Server;
use crate::relay_cases::{Running, Site, WAITING, until};

/// Names the task.
const TASK: &str = "AQUEDUCT_RELAY_WORKER";

pub(crate) const TOPIC: &str = "orders";

/// The source of all events.
pub(crate) const SHOP: &str = "shop";

/// Longer than anything here takes, on a busy machine too.
const LONG: Duration = Duration::from_mins(2);

/// The file whose log all relays publish to.
pub(crate) fn stream(folder: &Path) -> PathBuf {
    folder.join("stream.db")
}

/// How long a relay that is to be struck may take to publish something.
const MOMENT: Duration = Duration::from_millis(500);

/// Another process of this binary. It ends with this value.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    output: UnboundedReceiver<String>,
    pub(crate) said: Vec<String>,
}

impl Process {
    /// A process with a role on the tables with this prefix.
    pub(crate) fn start<DB: TestDatabase>(role: &str, prefix: &str, folder: &Path, more: &Value) -> Self {
        let mut task = json!({"role": role, "database": DB::NAME, "prefix": prefix, "folder": folder});
        for (name, value) in more.as_object().into_iter().flatten() {
            task[name] = value.clone();
        }
        let (reader, stdout) = std::io::pipe().unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "relay_worker::process", "--ignored", "--nocapture"])
            .env(TASK, task.to_string())
            .stdin(Stdio::piped())
            .stderr(stdout.try_clone().unwrap())
            .stdout(stdout)
            .spawn()
            .unwrap();
        let (tell, output) = unbounded_channel();
        std::thread::spawn(move || {
            BufReader::new(reader).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Self { input: child.stdin.take(), child, output, said: Vec::new() }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Stops or kills it between its next publish and the settlement, if there is one in a moment, else now.
    pub(crate) async fn strike(&mut self, signal: Signal) {
        if self.input.as_mut().unwrap().write_all(b"!").is_err() {
            while self.line().await.is_some() {}
            panic!("it has ended by itself: {:#?}", self.said);
        }
        // It has nothing to publish perhaps.
        let _ = tokio::time::timeout(MOMENT, self.wait_for("@published")).await;
        self.signal(signal);
    }

    /// Waits until it has said something, and answers what came behind it.
    pub(crate) async fn wait_for(&mut self, mark: &str) -> String {
        loop {
            let line = self.line().await.unwrap_or_else(|| panic!("it never said {mark:?}: {:#?}", self.said));
            if let Some((_, rest)) = line.split_once(mark) {
                return rest.to_owned();
            }
        }
    }

    async fn line(&mut self) -> Option<String> {
        let line = tokio::time::timeout(LONG, self.output.recv()).await;
        let line = line.unwrap_or_else(|_| panic!("it says nothing: {:#?}", self.said))?;
        self.said.push(line.clone());
        Some(line)
    }

    /// Waits for its end, and answers all that it has said and by which signal it ended.
    pub(crate) async fn end(mut self) -> (Vec<String>, Option<i32>) {
        while self.line().await.is_some() {}
        let status = self.child.wait().unwrap();
        assert!(status.signal().is_some() || status.success(), "{status}: {:#?}", self.said);
        (std::mem::take(&mut self.said), status.signal())
    }

    /// Tells it to leave, and answers all that it has said.
    pub(crate) async fn leave(mut self) -> Vec<String> {
        self.input = None;
        let (said, signal) = self.end().await;
        assert_eq!(signal, None, "{said:#?}");
        said
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The sum of what processes have said under a mark.
pub(crate) fn sum(said: &[String], mark: &str) -> usize {
    said.iter().filter_map(|line| line.split_once(mark)?.1.parse::<usize>().ok()).sum()
}

/// Lets time pass as a fault: nothing is waited for.
pub(crate) async fn pass(time: Duration) {
    let _ = tokio::time::timeout(time, std::future::pending::<()>()).await;
}

/// Tells the test something. It may look like the runner's own line otherwise.
fn say(text: impl std::fmt::Display) {
    println!("\n@{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a part of other tests, which run it in a process of its own"]
async fn process() {
    let Ok(task) = std::env::var(TASK) else { return };
    let task: Value = serde_json::from_str(&task).unwrap();
    if task["database"] == Postgres::NAME { work::<Postgres>(task).await } else { work::<MySql>(task).await }
}

async fn work<DB: TestDatabase>(task: Value) {
    let site = Server::<DB>::open(task["prefix"].as_str().unwrap().to_owned()).await;
    let table = OutboxTable::from(&SqlStore::new(&site.database));
    let inner = SqliteBroker::open(stream(Path::new(task["folder"].as_str().unwrap()))).await.unwrap();
    let struck = Arc::new(AtomicBool::new(false));
    let broker = Telling { inner, times: task["times"].as_bool().unwrap_or(false), struck: Arc::clone(&struck) };
    let relay = Running::start(Relay::new(table, broker));
    say("up");
    if let Some(moment_us) = task["die_after_us"].as_u64() {
        sell_and_die(&site, Duration::from_micros(moment_us)).await;
    }
    input_ends(struck).await;
    relay.stop().await;
}

/// Transactions that are committed, rolled back, or open when the process dies.
pub(crate) const ORDERS: usize = 30;

pub(crate) fn order(number: usize) -> Event {
    let event = Event::raw("order.placed", number.to_string()).id(number.to_string()).topic(TOPIC);
    event.key(format!("key {}", number % 4))
}

/// Sells, and dies so long after the last commit. The relay is at work by then.
async fn sell_and_die<DB: TestDatabase>(site: &Server<DB>, moment: Duration) {
    site.write(vec![order(ORDERS)]).await;
    until(site, WAITING, 0).await;
    let mut open = Vec::new();
    for number in 0..ORDERS {
        // It lives for as long as the process does.
        let connection = Box::leak(Box::new(DB::connect().await));
        let mut tx = connection.begin().await.unwrap();
        let insert = format!("insert into {}sales values ({number})", site.prefix);
        DB::run(&mut tx, insert).await.unwrap();
        DB::publish_all(&site.outbox, &mut tx, vec![order(number)]).await.unwrap();
        match number % 5 {
            0 => tx.rollback().await.unwrap(),
            1 => open.push(tx),
            _ => tx.commit().await.unwrap(),
        }
    }
    if !moment.is_zero() {
        pass(moment).await;
    }
    kill_process(getpid(), Signal::KILL).unwrap();
    drop(open);
}

/// Takes down that a signal is to come, until nobody is there any more who could send one.
async fn input_ends(struck: Arc<AtomicBool>) {
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        for _ in std::io::stdin().lock().bytes().map_while(Result::ok) {
            struck.store(true, Ordering::SeqCst);
        }
        let _ = tell.send(());
    });
    let _ = told.await;
}

/// The log of a file, which tells of repeats, and of the times at which events come if that is wanted.
struct Telling {
    inner: SqliteBroker,
    times: bool,
    /// The answer to the next publish comes late: a signal is to come before it.
    struck: Arc<AtomicBool>,
}

impl Broker for Telling {
    fn abilities(&self) -> Abilities {
        self.inner.abilities()
    }

    fn publish(&self, messages: Vec<Message>) -> BoxFuture<'_, Vec<Result<Receipt, BrokerError>>> {
        if self.times {
            let now = Clock::system().boot().0;
            for message in &messages {
                say(format_args!("at {now} {}", id_of(message)));
            }
        }
        let answers = self.inner.publish(messages);
        Box::pin(async move {
            let answers = answers.await;
            let repeats = answers.iter().flatten().filter(|receipt| receipt.duplicate).count();
            if repeats > 0 {
                say(format_args!("repeats {repeats}"));
            }
            if self.struck.swap(false, Ordering::SeqCst) {
                say("published");
                pass(MOMENT).await;
            }
            answers
        })
    }

    fn check_topic<'a>(&'a self, topic: &'a Topic) -> BoxFuture<'a, Result<(), BrokerError>> {
        self.inner.check_topic(topic)
    }

    fn join(
        &self,
        subscription: Subscription,
    ) -> Pin<Box<dyn Future<Output = Result<Arc<dyn Membership>, BrokerError>> + Send + '_>> {
        self.inner.join(subscription)
    }
}

/// The id of the event in a message.
pub(crate) fn id_of(message: &Message) -> String {
    let identity = message.dedup_id.as_ref().unwrap().as_str();
    identity.strip_prefix(SHOP).and_then(|rest| rest.strip_prefix('#')).unwrap().to_owned()
}
