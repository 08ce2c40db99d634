//! A log whose file is damaged: what is read is what was published, or the partition stops and says where. Never other
//! bytes, and never fewer messages without a word.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aqueduct::broker::{Arrival, Broker, Membership, Room, Subscription};
use aqueduct::sqlite::{SqliteBroker, SqliteFile, SqliteStore};
use aqueduct::store::{Op, Query, Row, Store};
use aqueduct::{BrokerError, Consumer, Event, Message, Position, Router};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::store::{at, claim, row, run};

const PAGE: usize = 4_096;
/// A page in the write-ahead log.
const FRAME: usize = PAGE + 24;
const COUNT: usize = 750;

/// What every position of every partition holds.
type Log = BTreeMap<(u32, u64), Vec<u8>>;

fn message(n: usize) -> Message {
    let mut message = Message::new("orders", format!("{n} {}", "body ".repeat(40)));
    message.key = Some(format!("key {}", n % 7).into());
    message.dedup_id = Some(format!("shop#{n}").into());
    message
}

/// A broker on a file with a log in two partitions.
async fn filled(path: &Path) -> (SqliteBroker, Log) {
    let file = SqliteFile::options(path).partitions(2).relaxed().open().await.unwrap();
    let broker = SqliteBroker::new(&file);
    let mut log = Log::new();
    for from in (0..COUNT).step_by(30) {
        let receipts = broker.publish((from..from + 30).map(message).collect()).await;
        for (n, receipt) in (from..).zip(receipts) {
            let receipt = receipt.unwrap();
            log.insert((receipt.partition.index, receipt.position.0), message(n).body.to_vec());
        }
    }
    (broker, log)
}

/// The bytes of a whole file with such a log, and a folder for copies of it.
async fn whole() -> (TempDir, PathBuf, Vec<u8>, Log) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aqueduct.db");
    let (broker, log) = filled(&path).await;
    drop(broker);
    run(&path, "pragma wal_checkpoint(truncate)").await;
    let bytes = std::fs::read(&path).unwrap();
    (folder, path, bytes, log)
}

/// What came of reading everything.
#[derive(Debug, Default)]
struct Found {
    log: Log,
    stopped: BTreeMap<u32, String>,
    /// Nothing can be read at all.
    refused: Option<String>,
}

impl Found {
    /// All or nothing of what is right: what is missing is told.
    #[track_caller]
    fn check(&self, expected: &Log, what: &str) {
        for (place, body) in &self.log {
            assert_eq!(Some(body), expected.get(place), "{what}: other bytes at {place:?}");
        }
        for text in self.stopped.values().chain(&self.refused) {
            assert!(text.contains("damaged") || text.contains("no SQLite file"), "{what}: {text}");
        }
        for index in 0..2 {
            let of =
                |log: &Log| log.keys().filter(|(number, _)| *number == index).map(|(_, at)| *at).collect::<Vec<_>>();
            let (read, all) = (of(&self.log), of(expected));
            assert!(all.starts_with(&read), "{what}: {read:?} of {index}");
            let told = self.refused.is_some() || self.stopped.contains_key(&index);
            assert!(told || read.len() == all.len(), "{what}: {} of {} and not a word", read.len(), all.len());
        }
    }

    fn is_whole(&self) -> bool {
        self.stopped.is_empty() && self.refused.is_none()
    }
}

/// Reads all that a file has, until so many messages have come or every partition has stopped.
async fn read_all(path: &Path, count: usize) -> Found {
    let mut found = Found::default();
    let broker = match SqliteFile::options(path).relaxed().open().await {
        Ok(file) => SqliteBroker::new(&file),
        Err(error) => {
            found.refused = Some(error.to_string());
            return found;
        }
    };
    let member = match broker.join(Subscription::new("reader", vec!["orders".into()])).await {
        Ok(member) => member,
        Err(error) => {
            found.refused = Some(error.to_string());
            return found;
        }
    };
    while found.log.len() < count && found.stopped.len() < 2 && next(&*member, &mut found).await.is_continue() {}
    found
}

/// The next arrival. After a while without one the rest is missing.
async fn next(member: &dyn Membership, found: &mut Found) -> ControlFlow<()> {
    let patience = Duration::from_secs(if found.is_whole() { 20 } else { 1 });
    match tokio::time::timeout(patience, member.next(Room::new(500, &[]))).await {
        Err(_) => return ControlFlow::Break(()),
        Ok(Ok(Arrival::Batch { partition, deliveries })) => {
            for delivery in deliveries {
                let place = (partition.index, delivery.ticket.position.0);
                let twice = found.log.insert(place, delivery.message.body.to_vec());
                assert!(twice.is_none(), "{place:?} twice");
            }
        }
        Ok(Ok(Arrival::Stopped { partition, why })) => {
            assert!(why.contains("orders") || why.contains("aqueduct.db"), "{why}");
            found.stopped.insert(partition.index, why);
        }
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            assert!(!error.is_transient(), "{error}");
            found.refused = Some(error.to_string());
            return ControlFlow::Break(());
        }
    }
    ControlFlow::Continue(())
}

/// The same numbers in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % end as u64).unwrap()
    }
}

#[tokio::test]
async fn no_page_can_be_damaged_without_a_word() {
    let (folder, _, bytes, log) = whole().await;
    let (mut numbers, mut noticed) = (Numbers(7), 0);
    for page in 0..bytes.len() / PAGE {
        for case in usize::from(page % 3 > 0)..3 {
            let path = folder.path().join(format!("{page}-{case}-aqueduct.db"));
            let mut damaged = bytes.clone();
            let of_page = &mut damaged[page * PAGE..(page + 1) * PAGE];
            match case {
                0 => of_page.fill(0),
                // Where the entries of a page are listed.
                1 => of_page[numbers.below(120)] ^= 1 << numbers.below(8),
                _ => of_page[numbers.below(PAGE)] ^= 1 << numbers.below(8),
            }
            std::fs::write(&path, &damaged).unwrap();
            let found = read_all(&path, COUNT).await;
            found.check(&log, &format!("page {page} of {}, case {case}", bytes.len() / PAGE));
            noticed += usize::from(!found.is_whole());
            std::fs::remove_file(&path).unwrap();
        }
    }
    assert!(noticed > bytes.len() / PAGE / 2, "{noticed} were of consequence");
}

#[tokio::test]
async fn a_file_that_ends_too_early_is_noticed() {
    let (folder, _, bytes, log) = whole().await;
    for part in 1..12 {
        let path = folder.path().join(format!("{part}-aqueduct.db"));
        // At the end of a page, and within one.
        let end = bytes.len() / PAGE * part / 12 * PAGE + part % 2 * 1_000;
        std::fs::write(&path, &bytes[..end]).unwrap();
        let found = read_all(&path, COUNT).await;
        found.check(&log, &format!("{end} of {} bytes", bytes.len()));
        assert!(!found.is_whole());
    }
}

#[tokio::test]
async fn an_identity_is_never_taken_for_another() {
    let (folder, path, bytes, _) = whole().await;
    let sql = "select rootpage from sqlite_master where name = 'aq_identities'";
    let root: i64 = sqlx::query_scalar(sql).fetch_one(&mut crate::store::other(&path).await).await.unwrap();
    // Every page that begins as a leaf of an index does, and the root.
    let leaves =
        (0..bytes.len() / PAGE).filter(|page| bytes[page * PAGE] == 10 || i64::try_from(*page) == Ok(root - 1));
    let mut numbers = Numbers(3);
    for page in leaves.collect::<Vec<_>>() {
        for case in 0..2 {
            let path = folder.path().join(format!("{page}-{case}-aqueduct.db"));
            let mut damaged = bytes.clone();
            damaged[page * PAGE + numbers.below(PAGE)] ^= 1 << numbers.below(8);
            std::fs::write(&path, &damaged).unwrap();
            let Ok(file) = SqliteFile::options(&path).relaxed().open().await else { continue };
            let broker = SqliteBroker::new(&file);
            // Some that are there, and some that are not but look alike.
            for n in (COUNT - 60..COUNT + 20).step_by(4) {
                let is_new = n >= COUNT;
                match broker.publish(vec![message(n)]).await.remove(0) {
                    Ok(receipt) => assert!(!(is_new && receipt.duplicate), "{n} on page {page}: {receipt:?}"),
                    Err(error) => {
                        let damage = matches!(&error, BrokerError::Refused(text) if text.contains("damaged"));
                        assert!(damage || error.to_string().contains("UNIQUE"), "{n} on page {page}: {error}");
                    }
                }
            }
        }
    }
}

#[tokio::test]
async fn messages_that_are_gone_stop_their_partition_wherever_they_were() {
    for (what, sql) in [
        ("the first", "delete from aq_log where number = 0 and last = (select min(last) from aq_log where number = 0)"),
        ("in the middle", "delete from aq_log where number = 0 and last between 40 and 300"),
        (
            "one in the middle",
            "delete from aq_log where at = (select at from aq_log where number = 0 and last > 255 limit 1)",
        ),
        ("fewer than it says", "update aq_log set count = count - 1 where number = 0 and last > 100"),
        ("the last", "delete from aq_log where number = 0 and last = (select max(last) from aq_log where number = 0)"),
        ("all", "delete from aq_log where number = 0"),
        ("the end moved back", "update aq_partitions set next = next - 5 where number = 0"),
        ("the end moved on", "update aq_partitions set next = next + 5 where number = 0"),
        ("the beginning moved on", "update aq_partitions set first = first + 5 where number = 0"),
        ("the entry is gone", "delete from aq_partitions where number = 0"),
        ("another's entry", "update aq_partitions set number = 7 where number = 0"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aqueduct.db");
        let (broker, log) = filled(&path).await;
        drop(broker);
        run(&path, sql).await;
        let found = read_all(&path, COUNT).await;
        found.check(&log, what);
        assert_eq!(found.refused, None, "{what}");
        assert_eq!(found.stopped.keys().collect::<Vec<_>>(), [&0], "{what}: and the other goes on");
        assert!(found.stopped[&0].contains("orders/0"), "{}", found.stopped[&0]);
    }
}

#[tokio::test]
async fn what_is_known_of_a_consumer_cannot_move_it_past_messages() {
    for sql in [
        "update aq_floors set floor = floor + 5 where number = 0",
        "delete from aq_floors where number = 0",
        "update aq_floors set number = 7 where number = 0",
        "update aq_floors set consumer = 'readex' where number = 0",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aqueduct.db");
        let (broker, log) = filled(&path).await;
        drop(broker.join(Subscription::new("reader", vec!["orders".into()])).await.unwrap());
        run(&path, sql).await;
        let found = read_all(&path, COUNT).await;
        found.check(&log, sql);
        assert_eq!(found.stopped.keys().collect::<Vec<_>>(), [&0], "{sql}");
        let keep = aqueduct::sqlite::Retention::new().bytes(1);
        let error = broker.delete_now(keep).await.unwrap_err();
        assert!(error.to_string().contains("damaged"), "nothing is deleted by it: {error}");
    }
}

#[tokio::test]
async fn a_topic_that_is_damaged_is_not_made_anew() {
    for sql in [
        "update aq_topics set name = 'orderx'",
        "update aq_topics set partitions = 3",
        "update aq_topics set checksum = checksum + 1",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("aqueduct.db");
        drop(filled(&path).await);
        run(&path, sql).await;
        let broker = SqliteBroker::open(&path).await.unwrap();
        let error = broker.publish(vec![message(1)]).await.remove(0).unwrap_err();
        assert!(matches!(&error, BrokerError::Refused(text) if text.contains("topic \"order")), "{error}");
        assert!(broker.join(Subscription::new("reader", vec![">".into()])).await.is_err(), "{sql}");
    }
}

/// A copy of a file as a crash leaves it: with what is in its write-ahead log alone.
async fn crashed() -> (TempDir, Vec<u8>, Vec<u8>, Log) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("whole.db");
    let (broker, log) = filled(&path).await;
    let bytes = [path.clone(), folder.path().join("whole.db-wal")].map(|path| std::fs::read(path).unwrap());
    let [file, wal] = bytes;
    drop(broker);
    (folder, file, wal, log)
}

#[tokio::test]
async fn a_write_ahead_log_that_is_damaged_is_refused_unless_its_last_commit_may_never_have_ended() {
    let (folder, file, wal, log) = crashed().await;
    let frames = (wal.len() - 32) / FRAME;
    let commits: Vec<usize> = (0..frames).filter(|n| wal[32 + n * FRAME + 4..][..4] != [0; 4]).collect();
    let last_commit_begins = commits[commits.len() - 2] + 1;
    let mut numbers = Numbers(11);
    let places = (0..frames).step_by(frames / 40).chain([last_commit_begins - 1, last_commit_begins, frames - 1]);
    for frame in places {
        for at in [0, 4, 9, 17, 24 + numbers.below(PAGE)] {
            let path = folder.path().join(format!("{frame}-{at}-aqueduct.db"));
            let mut damaged = wal.clone();
            damaged[32 + frame * FRAME + at] ^= 1 << numbers.below(8);
            std::fs::write(&path, &file).unwrap();
            let log_path = path.with_file_name(format!("{frame}-{at}-aqueduct.db-wal"));
            std::fs::write(&log_path, &damaged).unwrap();
            if frame < last_commit_begins {
                let found = read_all(&path, COUNT).await;
                found.check(&log, &format!("frame {frame} of {frames}, byte {at}"));
                let text = found.refused.unwrap();
                assert!(text.contains("-wal is damaged at byte"), "{text}");
                assert_eq!(std::fs::read(&log_path).unwrap(), damaged, "it is left as it is");
            } else {
                // Nobody can tell it from a commit that a crash has cut off, unless the frame now says that it ends one.
                let found = read_all(&path, COUNT - 30).await;
                assert!(found.refused.is_none_or(|text| at == 4 && text.contains("-wal is damaged at byte")));
                assert!(found.log.iter().all(|(place, body)| log.get(place) == Some(body)));
            }
        }
    }
    let path = folder.path().join("header-aqueduct.db");
    std::fs::write(&path, &file).unwrap();
    let mut damaged = wal.clone();
    damaged[13] ^= 4;
    std::fs::write(folder.path().join("header-aqueduct.db-wal"), &damaged).unwrap();
    assert!(read_all(&path, COUNT).await.refused.unwrap().contains("-wal is damaged at byte 0"));
    std::fs::write(folder.path().join("header-aqueduct.db-wal"), &wal).unwrap();
    assert!(read_all(&path, COUNT).await.is_whole(), "undamaged it is read to its end");
}

#[tokio::test]
async fn a_service_stays_up_when_one_partition_is_damaged() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aqueduct.db");
    let file = SqliteFile::options(&path).partitions(2).open().await.unwrap();
    let broker = SqliteBroker::new(&file);
    let publisher = aqueduct::Publisher::new("shop", broker.clone());
    let event = |n: usize| Event::raw("order", n.to_string()).topic("orders").key(format!("key {}", n % 7));
    let mut expected = Vec::new();
    for n in 0..200 {
        let receipt = publisher.publish(event(n)).await.unwrap();
        if receipt.partition.index == 1 || receipt.position < Position(9) {
            expected.push(n);
        }
    }
    run(&path, "update aq_log set content = content || x'78' where number = 0 and last = 9").await;
    let handled = Arc::new(Mutex::new(Vec::new()));
    let seen = handled.clone();
    let router = Router::new().on("order", move |event: Event| {
        let seen = seen.clone();
        async move { seen.lock().push(String::from_utf8_lossy(&event.data).parse::<usize>().unwrap()) }
    });
    let service = Consumer::new("reader", broker).topics(["orders"]).store(SqliteStore::new(&file)).serve(router);
    let health = service.health();
    let served = tokio::spawn(service.into_future());
    let settled = "select count(*) from aq_floors f join aq_partitions p on p.number = f.number
        where f.number = 1 and f.floor = p.next - 1";
    let mut other = crate::store::other(&path).await;
    loop {
        let changed = file.changed();
        let found: i64 = sqlx::query_scalar(settled).fetch_one(&mut other).await.unwrap();
        if found == 1 && health.reason().contains("orders/0") {
            break;
        }
        drop(tokio::time::timeout(Duration::from_millis(100), changed).await);
    }
    assert!(health.is_live() && !health.is_ready() && health.reason().contains("orders/0:9"), "{}", health.reason());
    let mut handled = handled.lock().clone();
    handled.sort_unstable();
    // All before the damage in the same batch wait with it; the other partition is complete.
    assert!(handled.iter().all(|n| expected.contains(n)), "{handled:?}");
    served.abort();
}

#[tokio::test]
async fn no_page_of_the_store_can_be_damaged_so_that_it_serves_something_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.take_over(&claim(), None).await.unwrap();
    let rows: Vec<Row> = (1..300).map(|position| row(position, &format!("key {}", position % 20))).collect();
    store.apply(&claim(), &rows.iter().map(|row| Op::Put(vec![row.clone()])).collect::<Vec<_>>()).await.unwrap();
    drop(store);
    run(&path, "pragma wal_checkpoint(truncate)").await;
    let bytes = std::fs::read(&path).unwrap();
    let mut numbers = Numbers(5);
    for page in 0..bytes.len() / PAGE {
        for case in usize::from(page % 3 > 0)..3 {
            let path = folder.path().join(format!("{page}-{case}.db"));
            let mut damaged = bytes.clone();
            let of_page = &mut damaged[page * PAGE..(page + 1) * PAGE];
            match case {
                0 => of_page.fill(0),
                1 => of_page[numbers.below(120)] ^= 1 << numbers.below(8),
                _ => of_page[numbers.below(PAGE)] ^= 1 << numbers.below(8),
            }
            std::fs::write(&path, &damaged).unwrap();
            let Ok(store) = SqliteStore::open(&path).await else { continue };
            let mut all = Query::default();
            all.limit = 1_000;
            let listed = store.browse(&all).await.unwrap_or_default().into_iter().map(|listed| listed.row);
            let due = store.due(&claim(), at(9_000), 1_000).await.map_or(Vec::new(), |due| due.heads);
            for found in listed.chain(due) {
                assert!(rows.contains(&found), "page {page}, case {case}: {found:?}");
            }
        }
    }
}
