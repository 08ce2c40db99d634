//! Processes that are stopped for longer than their lease inside a transaction, and resumed: another takes over meanwhile
//! though the transaction is open, and what the first one commits then is refused.

use std::io::Write as _;
use std::marker::PhantomData;
use std::time::Duration;

use aqueduct::mysql::MySql;
use aqueduct::postgres::Postgres;
use aqueduct::sqlite::{SqliteBroker, SqliteFile};
use aqueduct::{Clock, Event, Publisher};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde_json::json;
use sqlx::Database as _;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::fresh::{TestDatabase, tables};
use crate::process::{LONG, Worker};
use crate::stopped_worker::{ENDS, HANDLER, OWN, TOPIC};
use crate::worker::database;

/// Another is to take over in this time.
const TAKE_OVER: Duration = Duration::from_secs(7);

/// What is given beside to a machine that is busy with other tests, and to a last beat that the second did not see at once;
/// together it is much less than an attempt may take.
const BUSY: Duration = Duration::from_secs(4);

/// A database does not tell of its changes, so it is asked for them.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

const KEYS: usize = 5;

/// Events of a key that are published before and while the first process is stopped, and after it has been resumed.
const NUMBERS: [std::ops::Range<usize>; 2] = [0..4, 4..6];

/// The event in whose handler the first process is stopped.
const HELD: &str = "key 0/0";

impl Worker {
    fn tell(&mut self, what: &str) {
        writeln!(self.input.as_mut().unwrap(), "{what}").unwrap();
    }

    /// Has it stand still at its step, the next time that it is there.
    fn arm(&mut self) {
        self.tell("arm");
        self.wait_for("@armed");
    }

    /// Stops it, and answers when it stands still.
    fn stop(&mut self) {
        let process = Pid::from_child(&self.process);
        kill_process(process, Signal::STOP).unwrap();
        let (_, status) = waitpid(Some(process), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}: {}", self.story());
    }

    /// It is to leave its step as soon as it runs again.
    fn resume(&mut self) {
        self.tell("go on");
        kill_process(Pid::from_child(&self.process), Signal::CONT).unwrap();
    }

    fn leave(&mut self) {
        self.tell("end");
        self.end_well();
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
        let log = SqliteFile::options(database(folder.path())).partitions(1).open().await.unwrap();
        let broker = SqliteBroker::new(&log);
        broker.declare(TOPIC).await.unwrap();
        let publisher = Publisher::new("till", broker);
        let serial = if DB::NAME == MySql::NAME { "bigint auto_increment" } else { "bigserial" };
        // No constraint that would hide a second effect.
        let columns = "event varchar(200), lane varchar(200), number bigint, process varchar(200)";
        let table = format!("create table {prefix}effects (at {serial} primary key, {columns})");
        DB::run(&mut DB::connect().await, table).await.unwrap();
        Self { folder, prefix, publisher, planted, database: PhantomData }
    }

    fn worker(&self, name: &str, stands_at: &str) -> Worker {
        let task = json!({
            "database": DB::NAME, "prefix": self.prefix, "stands_at": stands_at, "planted": self.planted,
        });
        let mut worker = Worker::start(self.folder.path(), name, task);
        worker.wait_for("@up");
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
        let reached = timeout(LONG, reached).await.is_ok();
        assert!(reached, "there are {} {what} and not {count}", self.count(what).await);
    }

    /// How many transactions of the first one's handlers are open, with an effect that is not committed.
    async fn open(&self) -> i64 {
        let mut connection = DB::connect().await;
        let sql = if DB::NAME == Postgres::NAME {
            let of_handler = format!("query like 'insert into {}effects%'", self.prefix);
            let stands = "state = 'idle in transaction' and state_change < now() - interval '4 seconds'";
            format!("select count(*) from pg_stat_activity where {stands} and {of_handler}")
        } else {
            DB::run(&mut connection, "set session transaction isolation level read uncommitted".into()).await.unwrap();
            format!("select count(*) from {}effects where process = 'first'", self.prefix)
        };
        DB::number(&mut connection, sql).await.unwrap()
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
        let mut first = ground.worker("first", step);
        ground.until("shards where epoch > 0", 1).await;
        let second = ground.worker("second", "");
        ground.until("sessions", 2).await;
        first.arm();
        let held = step != OWN;
        if held {
            ground.publish_held().await;
        }
        first.wait_for("@stands at");
        first.stop();
        let clock = Clock::system();
        let stopped_at = clock.boot();
        if !held {
            ground.publish_held().await;
        }
        ground.publish(NUMBERS[0].clone()).await;
        let effect = "effects where process = 'second' and lane <> 'key 0'";
        let taken_over = timeout(TAKE_OVER + BUSY, ground.until(effect, 1)).await;
        let taken_over = taken_over.is_ok().then(|| clock.boot().since(stopped_at));
        println!("{} stopped at {step:?} {planted}: taken over after {taken_over:?}", DB::NAME);
        // One of the library's own the database has ended with the lease.
        assert_eq!(ground.open().await, i64::from(held), "transactions of the first that are open");
        Self { ground, first, second, taken_over }
    }

    /// Lets the first process go on, and waits until everything has an effect. Answers what of it is the first's.
    async fn resume(&mut self, resumed: Resumed) -> usize {
        let events = KEYS * NUMBERS[0].len();
        if resumed == Resumed::Late {
            self.ground.until("effects", events).await;
        }
        self.first.resume();
        self.ground.until("effects", events).await;
        self.ground.count("effects where process = 'first'").await
    }

    /// The second leaves, and the first is an owner like any other again.
    async fn goes_on(mut self) {
        let all = KEYS * NUMBERS[1].end;
        self.second.leave();
        self.ground.publish(NUMBERS[1].clone()).await;
        self.ground.until("effects", all).await;
        self.first.leave();
        self.ground.check(all).await;
        assert_eq!(self.ground.count("effects where process = 'first'").await, KEYS * NUMBERS[1].len());
        println!("the first one said:{}\nthe second one:{}", self.first.story(), self.second.story());
    }
}

/// The whole of it.
async fn is_replaced_and_refused<DB: TestDatabase>(step: &str, resumed: Resumed) {
    let mut stopped = Stopped::<DB>::at(step, "").await;
    assert!(stopped.taken_over.is_some(), "nobody took over: {}", stopped.second.story());
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

/// The last moment at which it can be: the fence and the commit are one message.
async fn before_the_fence_is_looked_at<DB: TestDatabase>() {
    is_replaced_and_refused::<DB>(ENDS, Resumed::Early).await;
}

/// A wrong way to fence: what is stopped commits beside its successor.
async fn a_fence_that_is_read_first_is_found_out<DB: TestDatabase>() {
    let mut stopped = Stopped::<DB>::at(HANDLER, "read first").await;
    assert!(stopped.taken_over.is_some(), "nobody took over: {}", stopped.second.story());
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
    before_the_fence_is_looked_at,
    inside_a_transaction_of_the_library,
    a_fence_that_is_read_first_is_found_out,
    a_fence_that_is_locked_first_is_found_out,
);
