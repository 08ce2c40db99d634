//! Handlers that share transactions: what a group has in common, and what each of them has alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aqueduct::postgres::Postgres;
use aqueduct::sql::ServerOptions;
use aqueduct::{Error, Event};
use aqueduct_servers::{Database, Options};
use parking_lot::Mutex;
use sqlx::Database as _;
use tokio::sync::watch;

use crate::faults::{number, on_own, on_shared, outlives_cuts, outlives_kills};
use crate::fresh::TestDatabase;
use crate::logs::{Logs, logged_on_servers};
use crate::service::{EFFECTS, KEYS, Service};

/// No group of these tests ends because it is old.
const FOR_EVER: Duration = Duration::from_secs(20);

/// Groups that were begun, handlers that have asked for a transaction, and how often each event's handler ran.
#[derive(Clone)]
struct Seen {
    begun: watch::Sender<usize>,
    waits: watch::Sender<usize>,
    runs: Arc<Mutex<BTreeMap<usize, usize>>>,
    attempts: Arc<Mutex<BTreeMap<usize, u32>>>,
}

impl Seen {
    fn new() -> Self {
        let (begun, waits) = (watch::Sender::new(0), watch::Sender::new(0));
        Self { begun, waits, runs: Arc::default(), attempts: Arc::default() }
    }

    fn told<DB: TestDatabase>(&self, options: ServerOptions<DB>) -> ServerOptions<DB> {
        let Self { begun, waits, .. } = self.clone();
        options.group_time(FOR_EVER).steps(move |step| match step {
            "begun" => begun.send_modify(|begun| *begun += 1),
            "waits" => waits.send_modify(|waits| *waits += 1),
            _ => {}
        })
    }

    /// A handler runs: the first of all waits until everybody waits for it. Answers which one it is.
    async fn runs(&self, event: &Event, attempt: aqueduct::Attempt) -> usize {
        let so_far = {
            let mut runs = self.runs.lock();
            *runs.entry(number(event)).or_default() += 1;
            runs.values().sum()
        };
        self.attempts.lock().insert(number(event), attempt.number);
        if so_far == 1 {
            self.waits.subscribe().wait_for(|waits| *waits >= KEYS).await.unwrap();
        }
        so_far
    }

    fn groups(&self) -> usize {
        *self.begun.borrow()
    }

    fn runs_of(&self, event: usize) -> usize {
        self.runs.lock().get(&event).copied().unwrap_or(0)
    }

    /// How often the handlers of these many events ran at least.
    fn least(&self) -> usize {
        self.runs.lock().values().copied().min().unwrap_or(0)
    }
}

/// One event of each key, whose handlers are all in the first group.
async fn one_group<DB: TestDatabase>(logs: &Logs, seen: &Seen) -> (Database, Service<DB>) {
    let (database, service) = on_shared::<DB>(logs, |options| seen.told(options)).await;
    (database, service.batched().concurrency(KEYS))
}

async fn many_events_share_a_commit<DB: TestDatabase>(logs: Logs) {
    let seen = Seen::new();
    let (_database, service) = one_group::<DB>(&logs, &seen).await;
    let at = seen.clone();
    let service = service.work(Arc::new(move |tx, event, attempt| {
        let seen = at.clone();
        Box::pin(async move {
            seen.runs(event, attempt).await;
            tx.publish(Event::raw("stock.reserved", "").topic("stock").key("k")).await
        })
    }));
    service.publish(KEYS).await;
    let running = service.start().await;
    service.settle_all(running).await;
    service.check().await;
    let published = service.number("select count(*) from aq_outbox").await;
    assert_eq!(published, i64::try_from(KEYS).unwrap());
    assert_eq!((seen.groups(), seen.least()), (1, 1), "{}", logs.text());
}

/// One fails after it has written, one goes on after an error, and one has taken effect before.
async fn each_has_its_own_end<DB: TestDatabase>(logs: Logs) {
    let seen = Seen::new();
    let (_database, service) = one_group::<DB>(&logs, &seen).await;
    let at = seen.clone();
    let service = service.work(Arc::new(move |tx, event, attempt| {
        let seen = at.clone();
        Box::pin(async move {
            seen.runs(event, attempt).await;
            if attempt.number == 1 && number(event) == 7 {
                DB::run(tx, format!("insert into {EFFECTS} (event, name, n) values ('undone', '', 0)")).await?;
                return Err(Error::msg("not now"));
            }
            if attempt.number == 1 && number(event) == 8 {
                DB::run(tx, "insert into there_is_no_such_table values (1)".to_owned()).await.unwrap_err();
            }
            Ok(())
        })
    }));
    let columns = "consumer, source, id, topic, number, position, at";
    service
        .run(&format!("insert into aq_inbox ({columns}) values ('stock', 'shop', 'event 9', 'orders', 0, 0, 0)"))
        .await;
    service.publish(KEYS).await;
    let running = service.start().await;
    service.settle_all(running).await;
    let all = i64::try_from(KEYS).unwrap();
    assert_eq!(service.number(&format!("select count(*) from {EFFECTS}")).await, all - 1, "{}", logs.text());
    assert_eq!(service.number(&format!("select count(distinct event) from {EFFECTS}")).await, all - 1);
    assert_eq!(
        service.number(&format!("select count(*) from {EFFECTS} where event in ('undone', 'event 9')")).await,
        0
    );
    assert_eq!(service.number("select count(*) from aq_inbox").await, all);
    // PostgreSQL has given up what went on after an error; MySQL goes on too.
    let gives_up = usize::from(DB::NAME == Postgres::NAME);
    for event in 0..KEYS {
        let expected = match event {
            7 => 2,
            8 => 1 + gives_up,
            9 => 0,
            _ => 1,
        };
        assert_eq!(seen.runs_of(event), expected, "event {event}\n{}", logs.text());
    }
}

/// The owner of one partition is replaced: nobody in the group has had an effect, and it is no attempt of theirs.
async fn a_raised_fence_refuses_all<DB: TestDatabase>(logs: Logs) {
    let seen = Seen::new();
    let (database, service) = one_group::<DB>(&logs, &seen).await;
    let (at, url) = (seen.clone(), database.url());
    let service = service.work(Arc::new(move |_, event, attempt| {
        let (seen, url) = (at.clone(), url.clone());
        Box::pin(async move {
            if seen.runs(event, attempt).await == KEYS {
                let mut other = DB::connect_to(&url).await?;
                let shard =
                    DB::number(&mut other, "select min(id) from aq_shards where consumer = 'stock'".into()).await?;
                DB::run(&mut other, format!("update aq_shards set epoch = epoch + 100 where id = {shard}")).await?;
            }
            Ok(())
        })
    }));
    service.publish(KEYS).await;
    let running = service.start().await;
    service.settle_all(running).await;
    service.check().await;
    assert!(seen.least() >= 2, "one was not refused: {:?}\n{}", seen.runs.lock(), logs.text());
    assert_eq!(service.attempts(), 1, "it is no event's fault\n{}", logs.text());
    assert!(seen.groups() >= KEYS, "they go alone then");
    logs.wait_for(&["WARN", "a commit was refused", "was taken over under epoch"]).await;
}

/// The connection of the group is ended in the middle of it.
async fn a_lost_connection_loses_all<DB: TestDatabase>(logs: Logs) {
    let seen = Seen::new();
    let (database, service) = one_group::<DB>(&logs, &seen).await;
    let (at, url) = (seen.clone(), database.url());
    let (number_of, kill) = if DB::NAME == Postgres::NAME {
        ("select pg_backend_pid()::bigint", "select pg_terminate_backend({})")
    } else {
        ("select cast(connection_id() as signed)", "kill {}")
    };
    let service = service.work(Arc::new(move |tx, event, attempt| {
        let (seen, url) = (at.clone(), url.clone());
        Box::pin(async move {
            if seen.runs(event, attempt).await == KEYS / 2 {
                let connection = DB::number(tx, number_of.to_owned()).await?;
                let mut other = DB::connect_to(&url).await?;
                DB::run(&mut other, kill.replace("{}", &connection.to_string())).await?;
            }
            Ok(())
        })
    }));
    service.publish(KEYS).await;
    let running = service.start().await;
    service.settle_all(running).await;
    service.check().await;
    let again = seen.runs.lock().values().filter(|runs| **runs == 2).count();
    assert_eq!(again, KEYS / 2, "{:?}\n{}", seen.runs.lock(), logs.text());
    assert_eq!(service.attempts(), 1, "it is no event's fault\n{}", logs.text());
}

/// A handler is cancelled inside a statement: the others run again, and none of their attempts is spent.
async fn a_cancelled_handler_spends_its_own_attempt<DB: TestDatabase>(logs: Logs) {
    let seen = Seen::new();
    let (_database, service) = one_group::<DB>(&logs, &seen).await;
    let at = seen.clone();
    let service = service.timeout(Duration::from_secs(2)).work(Arc::new(move |tx, event, attempt| {
        let seen = at.clone();
        Box::pin(async move {
            seen.runs(event, attempt).await;
            if number(event) == 7 && attempt.number == 1 {
                DB::run(tx, format!("select {}(50)", DB::SLEEP)).await?;
            }
            Ok(())
        })
    }));
    service.publish(KEYS).await;
    let running = service.start().await;
    service.settle_all(running).await;
    service.check().await;
    let counted: Vec<usize> = seen.attempts.lock().iter().filter(|(_, n)| **n > 1).map(|(event, _)| *event).collect();
    assert_eq!(counted, [7], "{}", logs.text());
}

async fn killed<DB: TestDatabase>(logs: Logs) {
    let (server, _database, service) = on_own::<DB>(&logs, Options::new()).await;
    outlives_kills(&server, &service.batched()).await;
}

/// Nobody knows what became of the group, until its events come again.
async fn cut_after_commit<DB: TestDatabase>(logs: Logs) {
    outlives_cuts::<DB>(&logs, Service::batched, 1).await;
}

logged_on_servers!(
    many_events_share_a_commit,
    each_has_its_own_end,
    a_raised_fence_refuses_all,
    a_lost_connection_loses_all,
    a_cancelled_handler_spends_its_own_attempt,
    killed,
    cut_after_commit,
);
