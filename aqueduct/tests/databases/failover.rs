//! A PostgreSQL server is lost and its standby takes over: with all that was confirmed, or without the end of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aqueduct::postgres::Postgres as Pg;
use aqueduct::sql::ServerOptions;
use aqueduct::{Partition, Position};
use aqueduct_servers::{Database, Options, PgBouncer, Postgres};
use tokio::sync::watch;

use crate::fresh::TestDatabase as _;
use crate::logs::{Logs, logged};
use crate::proxy::Proxy;
use crate::service::{Running, Service};

/// A server with its standby, and a service that reaches whichever of them is the primary by one address.
struct Pair {
    primary: Postgres,
    standby: Postgres,
    proxy: Proxy,
    database: Database,
    service: Service<Pg>,
}

impl Pair {
    /// With so many partitions of the service's topic.
    async fn new(logs: &Logs, partitions: u32) -> Self {
        Self::with(logs, partitions, Pg::options_for).await
    }

    async fn with(logs: &Logs, partitions: u32, options: impl FnOnce(&str) -> ServerOptions<Pg>) -> Self {
        let primary = Postgres::start(Options::new()).unwrap();
        let database = primary.database().unwrap();
        let proxy = Proxy::to(primary.port()).await;
        let url = database.url().replace(&primary.port().to_string(), &proxy.port().to_string());
        let service = Service::<Pg>::with_partitions(logs, options(&url), &url, partitions).await;
        let standby = primary.standby().unwrap();
        Self { primary, standby, proxy, database, service }
    }

    /// The first event stands until the answer is dropped, so that no floor is written while others take effect.
    fn first_held(self) -> (Self, watch::Sender<bool>) {
        let (release, held) = watch::channel(false);
        let service = self.service.work(Arc::new(move |_, event, _| {
            let mut held = held.clone();
            Box::pin(async move {
                if event.id.as_str() == "event 0" {
                    // It is dropped to release it.
                    let _ = held.wait_for(|released| *released).await;
                }
                Ok(())
            })
        }));
        (Self { service, ..self }, release)
    }

    /// From now on the primary confirms what the standby has, and nothing else.
    fn synchronous(&self) {
        self.primary.query("postgres", "alter system set synchronous_standby_names = '*'").unwrap();
        self.primary.query("postgres", "select pg_reload_conf()").unwrap();
        // It is read some time later: a commit that waits for a standby which stands still has read it.
        self.standby.suspend().unwrap();
        let waits = || {
            let waiting = "select count(*) > 0 from pg_stat_activity where wait_event = 'SyncRep'";
            self.primary.query("postgres", waiting).unwrap() == "t"
        };
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    self.primary.query("postgres", "comment on database postgres is 'waited for'").unwrap();
                }
            });
            while !waits() {
                std::thread::yield_now();
            }
            done.store(true, Ordering::SeqCst);
            self.standby.resume().unwrap();
        });
    }

    /// The standby has what there is now, and gets nothing more.
    async fn cut_off(&self) {
        let end = self.primary.query("postgres", "select pg_current_wal_lsn()").unwrap();
        let has = format!("select pg_last_wal_replay_lsn() >= '{end}'");
        self.until("has the end", || self.standby.query("postgres", &has).unwrap() == "t").await;
        self.standby.query("postgres", "alter system set primary_conninfo = ''").unwrap();
        self.standby.query("postgres", "select pg_reload_conf()").unwrap();
        let left = || self.primary.query("postgres", "select count(*) from pg_stat_replication").unwrap();
        self.until("is cut off", || left() == "0").await;
    }

    async fn until(&self, what: &str, mut is: impl FnMut() -> bool) {
        let all = async {
            while !is() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(crate::logs::BOUND, all).await.unwrap_or_else(|_| panic!("the standby {what}"));
    }

    /// The primary is lost, and the standby takes over.
    fn fail_over(&self) {
        self.primary.kill().unwrap();
        self.standby.promote().unwrap();
        self.proxy.switch(self.standby.port());
    }

    /// Up to where a partition is settled, as the database has it.
    fn floor(&self, partition: u32) -> i64 {
        let sql = format!(
            "select coalesce(max(floor), -1) from aq_settled f join aq_shards s on s.id = f.shard where number = {partition}"
        );
        self.standby.query(self.database.name(), &sql).unwrap().parse().unwrap()
    }

    /// Reads again what the log says is to be read again, as the command that it names does, until nothing is.
    async fn rewind(&self, running: Running, logs: &Logs) {
        let (mut running, mut done) = (running, BTreeSet::new());
        loop {
            running.stop().await;
            let lines = logs.all(&["ERROR", &format!("127.0.0.1:{}", self.proxy.port()), "aqueduct rewind"]);
            for line in lines.difference(&done) {
                let (partition, to) = (named(line, "--partition "), named(line, "--to "));
                let index = u32::try_from(partition).unwrap();
                assert_eq!(self.floor(index), to, "{line}");
                let partition = Partition { topic: "orders".into(), index };
                let to = Position(u64::try_from(to.max(0)).unwrap());
                self.service.broker.rewind("stock", &partition, to).await.unwrap();
            }
            if self.behind().await.is_empty() {
                return;
            }
            done = lines;
            let told = logs.count(&["ERROR", "aqueduct rewind"]);
            running = self.service.start().await;
            logs.wait_for_more(&["ERROR", "aqueduct rewind"], told).await;
        }
    }

    /// The partitions that are settled further at the broker than in the database.
    async fn behind(&self) -> Vec<u32> {
        let status = self.service.broker.status().await.unwrap();
        let floors = status.consumers[0].floors.iter();
        let behind = floors.filter(|f| i64::try_from(f.floor.0).unwrap() > self.floor(f.partition.index).max(0));
        behind.map(|f| f.partition.index).collect()
    }
}

/// The number behind a word.
fn named(line: &str, word: &str) -> i64 {
    let rest = line.split_once(word).unwrap_or_else(|| panic!("no {word:?}: {line}")).1;
    if rest.starts_with("none") {
        return -1;
    }
    rest.split(|c: char| c != '-' && !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// What the primary has confirmed, the standby has: nothing is to be done by anybody.
#[test]
fn a_standby_that_has_everything_takes_over() {
    logged(async |logs| {
        let pair = Pair::new(&logs, 8).await;
        pair.synchronous();
        pair.service.publish(1_500).await;
        let running = pair.service.start().await;
        running.handled(400).await;
        pair.fail_over();
        pair.service.settle_all(running).await;
        pair.service.check().await;
        assert_eq!(pair.service.attempts(), 1, "an outage spends nothing\n{}", logs.text());
        assert_eq!(logs.count(&["lost the end"]), 0, "{}", logs.text());
        logs.wait_for(&["WARN", &format!("127.0.0.1:{}", pair.proxy.port())]).await;
    });
}

/// Floors that the broker knows are lost with the end: the partitions stop, and the command that the log names mends them.
#[test]
fn a_standby_without_the_last_floors_is_noticed() {
    logged(async |logs| {
        let pair = Pair::new(&logs, 8).await;
        pair.service.publish(400).await;
        let running = pair.service.start().await;
        running.handled(200).await;
        pair.cut_off().await;
        pair.service.publish(400).await;
        // All of it is settled at the broker, which loses nothing.
        pair.service.settle_all(running).await;
        pair.fail_over();
        pair.service.publish(200).await;
        let running = pair.service.start().await;
        logs.wait_for(&["ERROR", "a standby that lagged", "aqueduct rewind --group stock --topic orders --partition"])
            .await;
        assert!(!running.health.is_ready(), "a partition stands");
        pair.rewind(running, &logs).await;
        let running = pair.service.start().await;
        pair.service.settle_all(running).await;
        pair.service.check().await;
    });
}

/// The same while the service runs on, which has the floors in memory.
#[test]
fn a_running_service_notices_a_standby_without_the_last_floors() {
    logged(async |logs| {
        let pair = Pair::new(&logs, 8).await;
        pair.service.publish(400).await;
        let running = pair.service.start().await;
        running.handled(200).await;
        pair.cut_off().await;
        pair.service.publish(400).await;
        running.settled(800).await;
        pair.fail_over();
        pair.service.publish(200).await;
        logs.wait_for(&["ERROR", &format!("127.0.0.1:{}", pair.proxy.port()), "lost the end of what it had confirmed"])
            .await;
        logs.wait_for(&["ERROR", "aqueduct rewind --group stock --topic orders --partition"]).await;
        pair.rewind(running, &logs).await;
        let running = pair.service.start().await;
        pair.service.settle_all(running).await;
        pair.service.check().await;
    });
}

/// Effects are lost that came after the last floor: they are noticed before later ones of their keys run, and run again.
#[test]
fn a_standby_without_the_last_effects_is_noticed_and_mended() {
    logged(async |logs| {
        let (pair, release) = Pair::new(&logs, 1).await.first_held();
        pair.service.publish(500).await;
        let running = pair.service.start().await;
        // All but those of its key.
        running.handled(490).await;
        pair.cut_off().await;
        pair.service.publish(500).await;
        running.handled(980).await;
        pair.fail_over();
        pair.service.publish(500).await;
        drop(release);
        logs.wait_for(&["ERROR", &format!("127.0.0.1:{}", pair.proxy.port()), "lost the end of what it had confirmed"])
            .await;
        pair.service.settle_all(running).await;
        pair.service.check().await;
        assert_eq!(logs.count(&["aqueduct rewind"]), 0, "nobody has to do anything\n{}", logs.text());
    });
}

/// The take-over itself is lost: the fence has the epoch of the owner before, so nothing can be committed.
#[test]
fn a_standby_without_the_fence_is_noticed() {
    logged(async |logs| {
        let pair = Pair::new(&logs, 2).await;
        pair.service.publish(200).await;
        let running = pair.service.start().await;
        pair.service.settle_all(running).await;
        pair.cut_off().await;
        pair.service.publish(200).await;
        let running = pair.service.start().await;
        running.settled(400).await;
        pair.fail_over();
        pair.service.publish(100).await;
        logs.wait_for(&["ERROR", "aqueduct rewind --group stock --topic orders --partition"]).await;
        pair.rewind(running, &logs).await;
        let running = pair.service.start().await;
        pair.service.settle_all(running).await;
        pair.service.check().await;
    });
}

/// Not even the row of the fence is left.
#[test]
fn a_standby_without_the_partition_is_noticed() {
    logged(async |logs| {
        let pair = Pair::new(&logs, 2).await;
        pair.cut_off().await;
        pair.service.publish(200).await;
        let running = pair.service.start().await;
        running.settled(200).await;
        pair.fail_over();
        pair.service.publish(100).await;
        logs.wait_for(&["ERROR", "aqueduct rewind --group stock --topic orders --partition"]).await;
        pair.rewind(running, &logs).await;
        let running = pair.service.start().await;
        pair.service.settle_all(running).await;
        pair.service.check().await;
    });
}

/// Behind a pooler nobody sees that the server is another, until the next floor is written: then the same is mended, though later
/// events of a key may have taken effect before those that were lost.
#[test]
fn behind_a_pooler_lost_effects_are_noticed_with_the_next_floor() {
    logged(async |logs| {
        let pooler = std::cell::OnceCell::new();
        let options = |url: &str| {
            let before = PgBouncer::start(url).unwrap();
            let url = before.url(url.rsplit_once('/').unwrap().1);
            let before = pooler.get_or_init(|| before);
            assert!(before.pid().is_some());
            Pg::options_for(&url).behind_pooler()
        };
        let (pair, release) = Pair::with(&logs, 1, options).await.first_held();
        pair.service.publish(500).await;
        let running = pair.service.start().await;
        running.handled(490).await;
        pair.cut_off().await;
        pair.service.publish(500).await;
        running.handled(980).await;
        pair.fail_over();
        pair.service.publish(500).await;
        running.handled(1_000).await;
        drop(release);
        logs.wait_for(&["ERROR", "lost the end of what it had confirmed"]).await;
        pair.service.settle_all(running).await;
        pair.service.check_once().await;
        assert_eq!(logs.count(&["aqueduct rewind"]), 0, "nobody has to do anything\n{}", logs.text());
    });
}
