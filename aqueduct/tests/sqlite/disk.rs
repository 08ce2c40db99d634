//! Trouble with the disk, the folder and the locks of a file: publishing says what is wrong, a running service waits, and
//! goes on by itself when it is over.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use aqueduct::broker::{Arrival, Broker, Membership, Room, Settle, Subscription};
use aqueduct::sqlite::{Sqlite, SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::store::{Query, Store};
use aqueduct::{
    Attempt, BrokerError, Consumer, Error, Event, Health, Message, Policy, Publisher, Result, Router, ServeError, Tx,
};
use parking_lot::Mutex;
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Waits until something has come about that nobody tells of.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let (began, mut looks) = (Instant::now(), tokio::time::interval(Duration::from_millis(10)));
    while !done().await {
        assert!(began.elapsed() < Duration::from_secs(90), "it did not come about: {what}");
        looks.tick().await;
    }
}

fn message(body: impl Into<bytes::Bytes>) -> Message {
    let mut message = Message::new("orders", body);
    message.key = Some("k".into());
    message
}

async fn publish(broker: &SqliteBroker, body: impl Into<bytes::Bytes>) -> std::result::Result<(), BrokerError> {
    broker.publish(vec![message(body)]).await.remove(0).map(drop)
}

/// A shop with two services on one file. `stock` takes a transaction; `mail` fails at every first attempt and parks. Both
/// let the first events pass, and the others when the gate is open.
struct Shop {
    path: PathBuf,
    broker: SqliteBroker,
    publisher: Publisher,
    gate: watch::Sender<bool>,
    sent: usize,
    /// What `mail` has handled, and attempts that were counted though nothing but the disk was at fault.
    mails: Arc<Mutex<Vec<usize>>>,
    counted: Arc<Mutex<Vec<String>>>,
    services: Vec<(Health, JoinHandle<std::result::Result<(), ServeError>>)>,
    end: watch::Sender<bool>,
}

const BEFORE: usize = 12;
const KEYS: usize = 4;

impl Shop {
    async fn open(path: &Path) -> Self {
        let file = SqliteFile::options(path).handler_limit(Duration::from_secs(20)).open().await.unwrap();
        let broker = SqliteBroker::new(&file);
        let publisher = Publisher::new("shop", broker.clone());
        let (path, gate, end) = (file.path().to_owned(), watch::Sender::new(false), watch::Sender::new(false));
        let (mails, counted) = (Arc::default(), Arc::default());
        let mut shop = Self { path, broker, publisher, gate, sent: 0, mails, counted, services: Vec::new(), end };
        shop.execute("create table effects (event integer, ballast blob)").await;
        shop.publish(40).await;
        shop.serve("stock", shop.stock(), &file);
        shop.serve("mail", shop.mail(), &file);
        shop
    }

    async fn connection(&self) -> SqliteConnection {
        SqliteConnection::connect(&format!("sqlite:{}", self.path.display())).await.unwrap()
    }

    async fn execute(&self, sql: &'static str) {
        sqlx::raw_sql(sql).execute(&mut self.connection().await).await.unwrap();
    }

    async fn count(&self, sql: &'static str) -> usize {
        let found: i64 = sqlx::query(sql).fetch_one(&mut self.connection().await).await.unwrap().get(0);
        usize::try_from(found).unwrap()
    }

    async fn publish(&mut self, count: usize) {
        let event = |n: usize| Event::raw("order", n.to_string()).topic("orders").key(format!("key {}", n % KEYS));
        for receipt in self.publisher.publish_all((self.sent..self.sent + count).map(event).collect()).await {
            receipt.unwrap();
        }
        self.sent += count;
    }

    fn stock(&self) -> Router {
        let (gate, counted) = (self.gate.subscribe(), self.counted.clone());
        let handler = move |event: Event, attempt: Attempt, mut tx: Tx<Sqlite>| {
            let (open, counted) = (*gate.borrow(), counted.clone());
            async move {
                let n: usize = String::from_utf8_lossy(&event.data).parse()?;
                if n >= BEFORE && !open {
                    return Err(Error::msg("the gate is shut").uncounted());
                }
                if attempt.number > 1 {
                    counted.lock().push(format!("stock: attempt {} of {n}", attempt.number));
                }
                sqlx::query("insert into effects (event, ballast) values (?, zeroblob(30000))")
                    .bind(i64::try_from(n)?)
                    .execute(&mut *tx)
                    .await?;
                Ok(())
            }
        };
        Router::new().on("order", handler)
    }

    fn mail(&self) -> Router {
        let (gate, counted, mails) = (self.gate.clone(), self.counted.clone(), self.mails.clone());
        let handler = move |event: Event, attempt: Attempt| {
            let (mut gate, counted, mails) = (gate.subscribe(), counted.clone(), mails.clone());
            async move {
                let n: usize = String::from_utf8_lossy(&event.data).parse()?;
                if n >= BEFORE {
                    gate.wait_for(|open| *open).await?;
                }
                match attempt.number {
                    1 => return Err(Error::msg("the first attempt never works")),
                    2 => {}
                    more => counted.lock().push(format!("mail: attempt {more} of {n}")),
                }
                mails.lock().push(n);
                Result::Ok(())
            }
        };
        Router::new().on("order", handler)
    }

    fn serve(&mut self, name: &'static str, router: Router, file: &SqliteFile) {
        let policy = Policy::ordered().quick_attempts(1).parked_delay(Duration::from_millis(1)).block();
        let mut end = self.end.subscribe();
        let service = Consumer::new(name, self.broker.clone())
            .topics(["orders"])
            .store(SqliteStore::new(file))
            .policy(policy)
            .timeout(Duration::from_mins(10))
            .serve(router)
            .with_graceful_shutdown(async move { drop(end.wait_for(|end| *end).await) });
        self.services.push((service.health(), tokio::spawn(service.into_future())));
    }

    /// Both services have done what they may before the gate opens.
    async fn underway(&self) {
        until("the first events are handled", async || {
            self.count("select count(*) from effects").await == BEFORE && self.mails.lock().len() == BEFORE
        })
        .await;
    }

    /// Both services say why nothing goes on.
    async fn both_say(&self, why: &str) {
        for (health, _) in &self.services {
            until(why, async || health.reason().contains(why)).await;
        }
    }

    /// All is well again, by itself: everything took effect once and in order, nothing was counted against an event.
    async fn all_goes_on(mut self) {
        self.publish(1).await;
        let settled = "select coalesce(sum(floor), 0) from aq_floors group by consumer order by 1 limit 1";
        until("everything is settled", async || self.count(settled).await == self.sent).await;
        for (health, _) in &self.services {
            until(&health.reason(), async || health.is_ready() && health.reason().is_empty()).await;
        }
        until("every mail is sent", async || self.mails.lock().len() >= self.sent).await;
        assert_eq!(self.count("select count(*) from effects").await, self.sent, "once each");
        assert_eq!(self.count("select count(distinct event) from effects").await, self.sent);
        until("nothing is parked", async || self.count("select count(*) from aq_rows").await == 0).await;
        assert_eq!(self.counted.lock().clone(), Vec::<String>::new(), "no attempt was spent");
        for key in 0..KEYS {
            let of_key: Vec<usize> = self.mails.lock().iter().copied().filter(|n| n % KEYS == key).collect();
            let mut first = of_key.clone();
            first.dedup();
            let expected: Vec<usize> = (0..self.sent).filter(|n| n % KEYS == key).collect();
            assert_eq!(first, expected, "in order");
        }
        self.end.send_replace(true);
        for (_, service) in self.services {
            service.await.unwrap().unwrap();
        }
    }
}

/// A transient error that says why, and names the file.
#[track_caller]
fn says(error: &BrokerError, path: &Path, why: &str) {
    let text = error.to_string();
    assert!(error.is_transient() && text.contains(why) && text.contains(path.to_str().unwrap()), "{text}");
}

#[cfg(target_os = "linux")]
mod mounted {
    use super::*;

    use crate::small_disk::{fill, on_small_disk};

    #[test]
    fn a_full_disk_stops_everything_and_loses_nothing() {
        on_small_disk("disk::mounted::a_full_disk_stops_everything_and_loses_nothing", 10 << 20, async |disk| {
            let shop = Shop::open(&disk.path("shop.db")).await;
            shop.underway().await;
            let ballast = disk.path("ballast");
            // What SQLite has got of the disk already has room for some more.
            let mut stored = 0;
            let error = loop {
                fill(&ballast);
                match shop.broker.publish(vec![big(stored)]).await.remove(0) {
                    Ok(_) => stored += 1,
                    Err(error) => break error,
                }
                assert!(stored < 1_000);
            };
            says(&error, &shop.path, "the disk is full: free some space, and it goes on by itself");
            shop.gate.send_replace(true);
            shop.both_say("the disk is full: free some space").await;
            let error = shop.broker.publish(vec![big(stored)]).await.remove(0).unwrap_err();
            says(&error, &shop.path, "the disk is full");
            std::fs::remove_file(&ballast).unwrap();
            let path = shop.path.clone();
            let found = shop.count("select count(*) from aq_log l join aq_topics t on t.id = l.topic and name = 'big'");
            assert_eq!(found.await, stored, "what was confirmed is there, and nothing else");
            shop.all_goes_on().await;
            drop(SqliteFile::open(&path).await.unwrap());
        });
    }

    fn big(n: usize) -> Message {
        let mut message = Message::new("big", vec![7; 50_000]);
        message.dedup_id = Some(format!("big {n}").into());
        message
    }

    #[test]
    fn a_disk_that_is_read_only_says_so() {
        on_small_disk("disk::mounted::a_disk_that_is_read_only_says_so", 4 << 20, async |disk| {
            let path = disk.path("aqueduct.db");
            let broker = SqliteBroker::open(&path).await.unwrap();
            publish(&broker, "x").await.unwrap();
            let writer_ends = broker.file().changed();
            drop(broker);
            writer_ends.await;
            until("the file is closed", async || !path.with_file_name("aqueduct.db-wal").exists()).await;
            disk.remount_read_only();
            for name in ["aqueduct.db", "new.db"] {
                let error = SqliteFile::open(disk.path(name)).await.unwrap_err().to_string();
                let clear = error.contains("cannot be written") || error.contains("cannot be opened");
                assert!(clear && error.contains(name), "{error}");
            }
        });
    }
}

#[cfg(unix)]
mod limited {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;

    const SETUP: &str = "AQUEDUCT_TEST_LIMITED_FILE";

    /// The process that may write no more than a part of what it wants to.
    #[tokio::test]
    #[ignore = "it is started by a test"]
    async fn limited() {
        let Some(path) = std::env::var_os(SETUP).map(PathBuf::from) else { return };
        let broker = SqliteBroker::open(&path).await.unwrap();
        let mut stored = 0;
        let error = loop {
            match publish(&broker, vec![7; 50_000]).await {
                Ok(()) => stored += 1,
                Err(error) => break error,
            }
            assert!(stored < 1_000);
        };
        says(&error, &path, "whether a quota or a limit on the size of files was reached");
        let maximum = getrlimit(Resource::Fsize).maximum;
        setrlimit(Resource::Fsize, Rlimit { current: maximum, maximum }).unwrap();
        publish(&broker, "goes on").await.unwrap();
        let member = broker.join(Subscription::new("reader", vec!["orders".into()])).await.unwrap();
        let mut found = 0;
        while found <= stored {
            if let Arrival::Batch { deliveries, .. } = member.next(Room::new(100, &[])).await.unwrap() {
                found += deliveries.len();
            }
        }
        assert_eq!(found, stored + 1, "what was confirmed");
    }

    #[test]
    fn a_limit_on_the_size_of_files_is_told_and_loses_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let folder_path = folder.path().canonicalize().unwrap();
        // Else the signal ends the process.
        let done = std::process::Command::new("sh")
            .args([
                "-c",
                "trap '' XFSZ; ulimit -S -f 2000; exec \"$0\" --exact disk::limited::limited --ignored --nocapture",
            ])
            .arg(std::env::current_exe().unwrap())
            .env(SETUP, folder_path.join("aqueduct.db"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&done.stdout).into_owned() + &String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && text.contains("1 passed"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_goes_on_after_sqlite_has_rolled_back_commits_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = SqliteFile::open(folder.path().join("shop.db")).await.unwrap();
    let broker = SqliteBroker::new(&file);
    let mut connection = SqliteConnection::connect(&format!("sqlite:{}", file.path().display())).await.unwrap();
    sqlx::query("create table effects (what blob)").execute(&mut connection).await.unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (tried, seen) = (Arc::new(AtomicBool::new(false)), told.clone());
    let handler = move |_: Event, mut tx: Tx<Sqlite>| {
        let (first, seen) = (!tried.swap(true, Ordering::SeqCst), seen.clone());
        async move {
            if first {
                // SQLite's own way to be full; such a statement takes the whole transaction with it.
                sqlx::raw_sql("pragma max_page_count = 1").execute(&mut *tx).await?;
                let full = sqlx::query("insert into effects values (zeroblob(500000))").execute(&mut *tx).await;
                seen.lock().push(full.unwrap_err().to_string());
                let ghost = sqlx::query("insert into effects values ('ghost')").execute(&mut *tx).await;
                seen.lock().push(ghost.map_or_else(|e| e.to_string(), |_| "written".into()));
                return Result::<()>::Ok(());
            }
            sqlx::query("insert into effects values ('effect')").execute(&mut *tx).await?;
            Ok(())
        }
    };
    let end = watch::Sender::new(false);
    let mut ends = end.subscribe();
    let service = Consumer::new("stock", broker.clone())
        .topics(["orders"])
        .store(SqliteStore::new(&file))
        .serve(Router::new().on("order", handler))
        .with_graceful_shutdown(async move { drop(ends.wait_for(|end| *end).await) });
    let served = tokio::spawn(service.into_future());
    Publisher::new("shop", broker).publish(Event::raw("order", "1").topic("orders").key("k")).await.unwrap();
    until("the event is settled", async || {
        let settled = sqlx::query("select max(floor) from aq_floors").fetch_one(&mut connection).await.unwrap();
        settled.get::<Option<i64>, _>(0) == Some(1)
    })
    .await;
    let effects: Vec<String> =
        sqlx::query_scalar("select cast(what as text) from effects").fetch_all(&mut connection).await.unwrap();
    assert_eq!(effects, Vec::<String>::new(), "{:?}", told.lock());
    let dead = SqliteStore::new(&file).browse(&Query::default()).await.unwrap();
    let history = format!("{:?}", dead[0].row.history);
    assert!(history.contains("do not go on after a statement that has failed"), "{history}");
    assert!(told.lock()[0].contains("full"), "{:?}", told.lock());
    end.send_replace(true);
    served.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_another_program_locks_is_waited_for_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let shop = Shop::open(&folder.path().join("shop.db")).await;
    shop.underway().await;
    let mut other = shop.connection().await;
    let lock = other.begin_with("begin exclusive").await.unwrap();
    shop.gate.send_replace(true);
    let began = Instant::now();
    let publishes = (0..20).map(|n| {
        let broker = shop.broker.clone();
        tokio::spawn(async move { broker.publish(vec![Message::new("big", n.to_string())]).await.remove(0) })
    });
    for answer in publishes.collect::<Vec<_>>() {
        says(&answer.await.unwrap().unwrap_err(), &shop.path, "another process or transaction holds it");
    }
    // Each waits for 5 s at most, beside what came before it.
    assert!(began.elapsed() < Duration::from_secs(25), "{:?}", began.elapsed());
    shop.both_say("another process or transaction holds it").await;
    lock.rollback().await.unwrap();
    shop.all_goes_on().await;
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_is_moved_and_a_file_that_is_replaced_are_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let (home, away) = (folder.path().join("home"), folder.path().join("away"));
    std::fs::create_dir(&home).unwrap();
    let shop = Shop::open(&home.join("shop.db")).await;
    shop.underway().await;
    std::fs::rename(&home, &away).unwrap();
    // Whether it is stored nobody can say, if its commit was under way when the folder went. No service reads that topic.
    let aside = || Message::new("aside", "x");
    let error = shop.broker.publish(vec![aside()]).await.remove(0).unwrap_err();
    says(&error, &shop.path, "it is not there any more");
    shop.gate.send_replace(true);
    shop.both_say("it is not there any more").await;

    // Another file in its place, with a `-wal` of its own that its last connection deletes by this name.
    std::fs::create_dir(&home).unwrap();
    drop(SqliteFile::open(&shop.path).await.unwrap());
    until("the other file is closed", async || !home.join("shop.db-wal").exists()).await;
    let error = shop.broker.publish(vec![aside()]).await.remove(0).unwrap_err();
    says(&error, &shop.path, "another file has taken its place");
    shop.both_say("another file has taken its place").await;
    std::fs::rename(&home, folder.path().join("wrong")).unwrap();

    std::fs::rename(&away, &home).unwrap();
    shop.all_goes_on().await;
}

#[cfg(unix)]
#[tokio::test]
async fn a_write_ahead_log_that_is_deleted_is_noticed_by_the_next_write() {
    let folder = tempfile::tempdir().unwrap();
    let broker = SqliteBroker::open(folder.path().join("aqueduct.db")).await.unwrap();
    publish(&broker, "1").await.unwrap();
    std::fs::remove_file(folder.path().join("aqueduct.db-wal")).unwrap();
    let error = publish(&broker, "2").await.unwrap_err();
    says(&error, broker.file().path(), "commits are lost with it");
}

#[cfg(unix)]
mod stopped {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    const SETUP: &str = "AQUEDUCT_TEST_WRITING_FILE";
    const MARK: &str = "it writes";

    /// The process that is stopped while a handler has its transaction.
    #[tokio::test]
    #[ignore = "it is started by a test"]
    async fn writing() {
        let Some(path) = std::env::var_os(SETUP).map(PathBuf::from) else { return };
        let file = SqliteFile::options(&path).handler_limit(Duration::from_mins(2)).open().await.unwrap();
        let broker = SqliteBroker::new(&file);
        publish(&broker, "1").await.unwrap();
        let handler = async |_: Event, mut tx: Tx<Sqlite>| -> Result<()> {
            sqlx::query("create table effects (what text)").execute(&mut *tx).await?;
            println!("{MARK}");
            std::future::pending().await
        };
        let router = Router::new().on(">", handler);
        Publisher::new("shop", broker.clone()).publish(Event::raw("order", "1").topic("orders")).await.unwrap();
        let service = Consumer::new("stock", broker).topics(["orders"]).store(SqliteStore::new(&file)).serve(router);
        service.await.unwrap();
    }

    struct Writing(Child);

    impl Writing {
        /// A process that is writing by now.
        fn start(path: &Path) -> Self {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--exact", "disk::stopped::writing", "--ignored", "--nocapture"])
                .env(SETUP, path)
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            let child = Self(child);
            assert!(lines.map_while(std::result::Result::ok).any(|line| line.contains(MARK)), "it never wrote");
            child
        }

        fn signal(&self, signal: Signal) {
            kill_process(Pid::from_child(&self.0), signal).unwrap();
        }
    }

    impl Drop for Writing {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[tokio::test]
    async fn a_process_that_is_stopped_while_it_writes_is_told_of_and_others_go_on_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("aqueduct.db");
        let broker = SqliteBroker::open(&path).await.unwrap();
        for ends in [Signal::CONT, Signal::KILL] {
            let other = Writing::start(&path);
            other.signal(Signal::STOP);
            let began = Instant::now();
            let error = publish(&broker, "x").await.unwrap_err();
            says(&error, &path, "another process has been writing for 5s: is it stopped?");
            assert!(began.elapsed() >= Duration::from_secs(5));
            other.signal(ends);
            // Who goes on still has its transaction; it ends with the process.
            drop(other);
            publish(&broker, "x").await.unwrap();
        }
        let mut connection = SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
        let whole: String = sqlx::query_scalar("pragma integrity_check").fetch_one(&mut connection).await.unwrap();
        assert_eq!(whole, "ok");
    }
}

/// How long the write-ahead log of a file is.
fn wal_bytes(broker: &SqliteBroker) -> u64 {
    let mut path = broker.file().path().as_os_str().to_owned();
    path.push("-wal");
    std::fs::metadata(path).map_or(0, |found| found.len())
}

/// Publishes so many megabytes, and answers how long the write-ahead log was at the most.
async fn load(broker: &SqliteBroker, megabytes: usize) -> u64 {
    let mut most = 0;
    for _ in 0..megabytes {
        let batch: Vec<Message> = (0..20).map(|_| message(vec![7; 52_000])).collect();
        for receipt in broker.publish(batch).await {
            receipt.unwrap();
        }
        most = most.max(wal_bytes(broker));
    }
    most
}

async fn read_on(member: Arc<dyn Membership>) {
    loop {
        if let Ok(Arrival::Batch { partition, deliveries }) = member.next(Room::new(20, &[])).await {
            let last = deliveries.last().unwrap().ticket.position;
            member.settle(&partition, &[Settle::Floor(last)]).await.unwrap();
        }
    }
}

/// Reads in short transactions of which each begins before the one before it ends: somebody reads at every moment.
async fn always_reads(path: PathBuf) {
    let url = format!("sqlite:{}", path.display());
    let mut connections =
        [SqliteConnection::connect(&url).await.unwrap(), SqliteConnection::connect(&url).await.unwrap()];
    sqlx::raw_sql("begin; select count(*) from aq_topics").execute(&mut connections[0]).await.unwrap();
    loop {
        let [reading, next] = &mut connections;
        sqlx::raw_sql("begin; select count(*) from aq_topics").execute(&mut *next).await.unwrap();
        sqlx::raw_sql("rollback").execute(reading).await.unwrap();
        connections.swap(0, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_write_ahead_log_stays_short_under_load_and_shrinks_after_a_slow_reader() {
    const MIB: u64 = 1 << 20;
    let folder = tempfile::tempdir().unwrap();
    let file = SqliteFile::options(folder.path().join("aqueduct.db")).relaxed().open().await.unwrap();
    let broker = SqliteBroker::new(&file);
    let member = broker.join(Subscription::new("reader", vec!["orders".into()])).await.unwrap();
    let mut readers = tokio::task::JoinSet::new();
    readers.spawn(read_on(member));
    readers.spawn(always_reads(file.path().to_owned()));
    let most = load(&broker, 120).await;
    assert!(most < 64 * MIB, "{} MiB", most / MIB);

    // Nothing can be taken back of what one reads that does not end.
    let mut slow = SqliteConnection::connect(&format!("sqlite:{}", file.path().display())).await.unwrap();
    let mut reading = slow.begin().await.unwrap();
    sqlx::query("select count(*) from aq_topics").fetch_one(&mut *reading).await.unwrap();
    load(&broker, 50).await;
    let long = wal_bytes(&broker);
    assert!(long > 45 * MIB, "the slow reader held it: {} MiB", long / MIB);
    reading.rollback().await.unwrap();
    until("it shrinks without another write", async || wal_bytes(&broker) < 24 * MIB).await;
    let most = load(&broker, 40).await;
    assert!(most < 64 * MIB, "{} MiB", most / MIB);
}
