//! A process that consumes with transactions and stands still where it is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use aqueduct::sql::{Planted, SqlStore};
use aqueduct::sqlite::{SqliteBroker, SqliteFile};
use aqueduct::{Consumer, Error, Event, Router, Tx};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::Notify;

use crate::fresh::TestDatabase;
use crate::worker::database;

pub(crate) const TOPIC: &str = "payments";

/// How long an attempt may take, and so a transaction that does nothing: longer than a take-over may.
pub(crate) const ATTEMPT: Duration = Duration::from_secs(20);

/// A step of the test's own: a handler has run its last statement, and has not returned.
pub(crate) const HANDLER: &str = "handler";

/// A handler has returned, and the look at the fence is not sent, nor the commit, which is in the same message.
pub(crate) const ENDS: &str = "ends";

/// A transaction of the library's own has run its last statement, and is not committed.
pub(crate) const OWN: &str = "written";

/// Where it stands still, once.
struct Stand {
    step: String,
    armed: AtomicBool,
    go_on: Mutex<Receiver<()>>,
}

impl Stand {
    /// Waits for the test's word if it is the step, with its thread blocked: what comes after is in the same poll.
    fn reach(&self, step: &str) {
        if step == self.step && self.armed.swap(false, Ordering::SeqCst) {
            say(format_args!("stands at {step}"));
            let _ = self.go_on.lock().recv();
        }
    }
}

/// Tells the test something. It may look like the runner's own line otherwise.
fn say(text: impl std::fmt::Display) {
    println!("\n@{text}");
}

/// Does what the test says line by line. The end of the test is the process's, whatever that stands at.
fn listen(stand: Arc<Stand>, go_on: std::sync::mpsc::Sender<()>, end: Arc<Notify>) {
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(std::result::Result::ok) {
            match line.as_str() {
                "arm" => {
                    stand.armed.store(true, Ordering::SeqCst);
                    say("armed");
                }
                "go on" => go_on.send(()).unwrap(),
                _ => end.notify_one(),
            }
        }
        std::process::exit(1);
    });
}

pub(crate) async fn consume<DB: TestDatabase>(task: Value) {
    let text = |name: &str| task[name].as_str().unwrap_or_default().to_owned();
    let (go, go_on) = channel();
    let stand = Stand { step: text("stands_at"), armed: AtomicBool::default(), go_on: Mutex::new(go_on) };
    let (stand, end) = (Arc::new(stand), Arc::new(Notify::new()));
    listen(Arc::clone(&stand), go, Arc::clone(&end));
    let at = Arc::clone(&stand);
    let mut options = DB::options().prefix(text("prefix")).steps(move |step| at.reach(step));
    options = match task["planted"].as_str() {
        Some("read first") => options.planted(Planted::ReadFirst),
        Some("locked first") => options.planted(Planted::LockedFirst),
        _ => options,
    };
    let home = options.connect().await.unwrap();
    let log = SqliteFile::open(database(text("folder").as_ref())).await.unwrap();
    let broker = SqliteBroker::new(&log).lease_in(&home);
    let (prefix, name) = (text("prefix"), text("process"));
    let handler = move |event: Event, mut tx: Tx<DB>| {
        let (prefix, name, stand) = (prefix.clone(), name.clone(), stand.clone());
        async move {
            let Event { id, key, data, .. } = &event;
            let key = key.as_ref().map_or("", |key| key.as_str());
            let number = String::from_utf8_lossy(data);
            let row = format!("insert into {prefix}effects (event, lane, number, process) values");
            DB::run(&mut tx, format!("{row} ('{id}', '{key}', {number}, '{name}')")).await?;
            stand.reach(HANDLER);
            Ok::<_, Error>(())
        }
    };
    say("up");
    let app = Router::new().on("payment.made", handler).timeout(ATTEMPT);
    let consumer = Consumer::new("accounts", broker).topics([TOPIC]).store(SqlStore::new(&home));
    consumer.serve(app).with_graceful_shutdown(async move { end.notified().await }).await.unwrap();
}
