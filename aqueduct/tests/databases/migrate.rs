//! Two versions of a program on one database, and one that is too old for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use aqueduct::sql::{ServerDatabase, SqlStore};
use tokio::sync::watch;

use crate::fresh::TestDatabase;
use crate::logs::{BOUND, Logs, logged_on_servers};
use crate::service::Service;

/// What a program of version 1 does all day, `{n}` being different each time: takes over, parks, re-dates, finishes, takes effect.
const OLD: [&str; 9] = [
    "insert into aq_shards (consumer, topic, number, epoch) values ('old {n}', 'orders', 0, 1)",
    "update aq_shards set epoch = 2 where consumer = 'old {n}' and topic = 'orders' and number = 0",
    "insert into aq_rows (shard, position, idx, lane, state, revision, attempts, next_at, parked_at, replay, content, history, checksum, version) values (-{n}, 1, 0, 7, 0, 1, 1, 0, 0, 0, '', '', 0, 1)",
    "insert into aq_lanes (shard, lane, head_position, head_index, next_at) values (-{n}, 7, 1, 0, 5)",
    "update aq_rows set attempts = attempts + 1, revision = revision + 1 where shard = -{n} and position = 1 and idx = 0",
    "insert into aq_inbox (consumer, source, id, topic, number, position, at) values ('old {n}', 'shop', '1', 'orders', 0, 1, 0)",
    "delete from aq_rows where shard = -{n} and position = 1 and idx = 0",
    "delete from aq_lanes where shard = -{n} and lane = 7",
    "delete from aq_inbox where consumer = 'old {n}' and source = 'shop' and id = '1'",
];

/// Makes the tables of version 1 and nothing else.
async fn version_1<DB: TestDatabase>(url: &str) {
    let steps = ServerDatabase::<DB>::migrations("aq_").unwrap();
    let mut connection = DB::connect_to(url).await.unwrap();
    let lines: Vec<&str> = steps[0].lines().filter(|line| !line.starts_with("--")).collect();
    for statement in lines.join("\n").split(';').filter(|statement| !statement.trim().is_empty()) {
        DB::run(&mut connection, statement.to_owned()).await.unwrap();
    }
}

/// A program of version 1 under load, which does not know that there will be another.
struct Old {
    end: Arc<AtomicBool>,
    rounds: watch::Receiver<usize>,
    tasks: tokio::task::JoinSet<()>,
}

impl Old {
    fn start<DB: TestDatabase>(url: &str) -> Self {
        let (done, rounds) = watch::channel(0);
        let (end, next) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(1)));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (url, end, next, done) = (url.to_owned(), Arc::clone(&end), Arc::clone(&next), done.clone());
            tasks.spawn(async move {
                let mut connection = DB::connect_to(&url).await.unwrap();
                while !end.load(Ordering::SeqCst) {
                    let n = next.fetch_add(1, Ordering::SeqCst).to_string();
                    for statement in OLD {
                        let statement = statement.replace("{n}", &n);
                        DB::run(&mut connection, statement.clone())
                            .await
                            .unwrap_or_else(|e| panic!("{statement}: {e}"));
                    }
                    done.send_modify(|done| *done += 1);
                }
            });
        }
        Self { end, rounds, tasks }
    }

    async fn rounds(&self, more: usize) {
        let mut rounds = self.rounds.clone();
        let already = *rounds.borrow();
        let done = rounds.wait_for(|rounds| *rounds >= already + more);
        tokio::time::timeout(BOUND, done).await.expect("the old version goes on").expect("the old version goes on");
    }

    /// Ends it; it panics if a statement of it has failed.
    async fn end(mut self) {
        self.end.store(true, Ordering::SeqCst);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

/// Programs of the new version come up at once while one of the old version is at work; then both work.
async fn two_versions_run_under_load<DB: TestDatabase>(logs: Logs) {
    let database = DB::shared();
    version_1::<DB>(&database.url()).await;
    let old = Old::start::<DB>(&database.url());
    old.rounds(20).await;
    let error = DB::options_for(&database.url()).without_migrating().connect().await.unwrap_err().to_string();
    assert!(error.contains("version 1") && error.contains("needs 2") && error.contains("aqueduct migrate"), "{error}");
    let mut starts = tokio::task::JoinSet::new();
    for _ in 0..4 {
        starts.spawn(DB::options_for(&database.url()).connect());
    }
    while let Some(started) = starts.join_next().await {
        started.unwrap().unwrap();
    }
    let service = Service::<DB>::new(&logs, DB::options_for(&database.url()).without_migrating(), database.url()).await;
    assert_eq!(service.number("select max(version) from aq_schema").await, 2);
    assert_eq!(service.number("select count(*) from aq_schema").await, 2, "each step was done once");
    service.publish(500).await;
    let running = service.start().await;
    running.handled(100).await;
    old.rounds(20).await;
    service.settle_all(running).await;
    old.end().await;
    service.check().await;
}

/// A program that is too old does not touch what it does not know, and says how far apart they are.
async fn a_newer_schema_is_refused<DB: TestDatabase>(logs: Logs) {
    let database = DB::shared();
    let service = Service::<DB>::new(&logs, DB::options_for(&database.url()), database.url()).await;
    service.run("insert into aq_schema (version) values (99)").await;
    let refused = |what: &str, error: aqueduct::StoreError| {
        let text = error.to_string();
        assert!(text.contains("version 99") && text.contains("knows 2"), "{what}: {text}");
    };
    refused("connect", DB::options_for(&database.url()).connect().await.unwrap_err());
    refused("without", DB::options_for(&database.url()).without_migrating().connect().await.unwrap_err());
    refused("store", SqlStore::<ServerDatabase<DB>>::connect(database.url()).await.unwrap_err());
    refused("migrate", service.database.migrate().await.unwrap_err());
}

logged_on_servers!(two_versions_run_under_load, a_newer_schema_is_refused);
